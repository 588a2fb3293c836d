//! Spearman's rank correlation.

/// The correlation of the ranks of two series of as many numbers, tied ones at their mean rank; `None` of fewer than two, or where all of
/// one are tied.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "a rank correlation is one of pairs");
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = (product(&a, &a) * product(&b, &b)).sqrt();
    (spread > 0.0).then(|| product(&a, &b) / spread)
}

/// Ranks from 1 on.
fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| other.total_cmp(value).is_lt()).count();
        let tied = values.iter().filter(|other| other.total_cmp(value).is_eq()).count();
        below as f64 + (tied as f64 + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_order_counts() {
        let a = [3.0, 1.0, 2.0, 10.0];
        assert_eq!(spearman(&a, &[30.0, -5.0, 7.0, 31.0]), Some(1.0));
        assert_eq!(spearman(&a, &a.map(|x| -x)), Some(-1.0));
    }

    /// scipy 1.17.1: `spearmanr([1, 2, 2, 4, 5], [2, 1, 3, 3, 5])` is 0.7631578947368421.
    #[test]
    fn ties_share_their_mean_rank() {
        let rho = spearman(&[1.0, 2.0, 2.0, 4.0, 5.0], &[2.0, 1.0, 3.0, 3.0, 5.0]);
        assert!(rho.is_some_and(|rho| (rho - 0.763_157_894_736_842_1).abs() < 1e-12), "{rho:?}");
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0], &[2.0]), None);
        assert_eq!(spearman(&[1.0, 1.0], &[2.0, 3.0]), None);
    }
}

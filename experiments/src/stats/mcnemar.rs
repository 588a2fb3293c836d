//! McNemar's exact test: whether two models that answer the same questions differ in how many are right. Only questions that one answers
//! right and the other wrong tell: were the models alike, each of these would go either way with even chances.

/// Questions on which two models differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct McNemar {
    /// Right by the second model alone.
    pub n_lost: u64,
    /// Right by the first model alone.
    pub n_won: u64,
    /// How likely so uneven a split is, or a more uneven one, were the models alike; two-sided.
    pub p: f64,
}

impl McNemar {
    /// Of samples that are 1 where a model is right and 0 where it is wrong, one a question; `None` where they are something else, or of
    /// other questions.
    pub fn of(first: &[f64], second: &[f64]) -> Option<Self> {
        let is_answer = |sample: &f64| *sample == 0.0 || *sample == 1.0;
        if first.len() != second.len() || !first.iter().chain(second).all(is_answer) {
            return None;
        }
        let count = |is_counted: fn(f64, f64) -> bool| {
            first.iter().zip(second).filter(|(first, second)| is_counted(**first, **second)).count() as u64
        };
        let (n_lost, n_won) = (count(|first, second| first < second), count(|first, second| first > second));
        Some(Self { n_lost, n_won, p: two_sided(n_lost.min(n_won), n_lost + n_won) })
    }
}

/// Twice the chance of at most `least` heads of `n` tosses of an even coin, at most 1.
fn two_sided(least: u64, n: u64) -> f64 {
    // By logarithms: 2^n overflows at a thousand questions.
    let half = (0.5_f64).ln() * n as f64;
    let (mut log_choose, mut sum) = (0.0, 0.0);
    for k in 0..=least {
        if k > 0 {
            log_choose += ((n - k + 1) as f64 / k as f64).ln();
        }
        sum += f64::exp(log_choose + half);
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn answers(right: &[usize], n: usize) -> Vec<f64> {
        (0..n).map(|question| if right.contains(&question) { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn only_questions_that_differ_tell() {
        let found = McNemar::of(&answers(&[0, 1, 2], 6), &answers(&[2, 3, 4, 5], 6)).unwrap();
        assert_eq!((found.n_lost, found.n_won), (3, 2));
        assert!((found.p - 1.0).abs() < 1e-12);
        let alike = McNemar::of(&answers(&[1], 3), &answers(&[1], 3)).unwrap();
        assert_eq!(alike, McNemar { n_lost: 0, n_won: 0, p: 1.0 });
        assert_eq!(McNemar::of(&[0.5], &[1.0]), None);
        assert_eq!(McNemar::of(&[1.0], &[1.0, 0.0]), None);
    }

    /// R's `binom.test(c(k, n - k))$p.value`, which is McNemar's exact test.
    #[test]
    fn chances_are_those_of_a_coin() {
        for (least, n, expected) in [(1, 10, 0.021484375), (3, 12, 0.14599609375), (0, 5, 0.0625), (6, 12, 1.0)] {
            assert!((two_sided(least, n) - expected).abs() < 1e-12, "{least} of {n}: {}", two_sided(least, n));
        }
        // 450 of 1,000: normal approximation with continuity, z = 49.5 / sqrt(250).
        assert!((two_sided(450, 1000) - 0.00173).abs() < 2e-5, "{}", two_sided(450, 1000));
        assert!(two_sided(100, 5000) >= 0.0);
    }
}

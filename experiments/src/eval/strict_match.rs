//! Strict match on a task: the share of the problems on which a model writes the right answer where the examples have it. It is lm-eval's
//! `exact_match,strict-match` of GSM8K.

use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Unit};
use crate::stats::Estimator;
use crate::tasks::Judge;

/// See the module.
#[derive(Debug)]
pub struct StrictMatch;

impl Metric for StrictMatch {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "strict_match",
            label: "strict match",
            unit: Unit::FractionOfQuestions,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn of_item(&self) -> OfItem {
        OfItem::Written { n_texts: 1, of: |written| written.share(Judge::is_right_strictly) }
    }
}

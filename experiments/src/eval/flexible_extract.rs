//! Flexible extraction on a task: the share of the problems of which the last number that a model writes is the right answer. It is
//! lm-eval's `exact_match,flexible-extract` of GSM8K.

use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Unit};
use crate::stats::Estimator;
use crate::tasks::Judge;

/// See the module.
#[derive(Debug)]
pub struct FlexibleExtract;

impl Metric for FlexibleExtract {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "flexible_extract",
            label: "flexible match",
            unit: Unit::FractionOfQuestions,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn of_item(&self) -> OfItem {
        OfItem::Written { n_texts: 1, of: |written| written.share(Judge::is_right_anywhere) }
    }
}

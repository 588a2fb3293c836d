//! [`TasksSection`]: several tasks in a few lines, which stand for an evaluation of each by each of its metrics.

use std::num::{NonZeroU16, NonZeroUsize};

use awq_core::arithmetic::Arithmetic;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::not_repeated;
use super::{DatasetSpec, EvaluationSpec, LmEvalTaskProtocol, ProtocolSpec, ScoredText};
use crate::tasks::TaskName;

/// Tasks to evaluate on, all in one way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TasksSection {
    /// The tasks, in the order of tables.
    pub names: Vec<TaskName>,
    /// Tokens that a model sees at most. A longer question loses its beginning.
    pub max_len: NonZeroU16,
    /// The first this many questions of each; all when absent.
    pub max_questions: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent.
    #[serde(default)]
    pub arithmetic: Arithmetic,
}

impl TasksSection {
    /// The evaluations that it stands for.
    ///
    /// # Errors
    /// No task, or one that is named twice.
    pub(super) fn evaluations(self) -> anyhow::Result<Vec<EvaluationSpec>> {
        not_repeated("tasks.names", &self.names, |task| task.name())?;
        let of_task = |task: &TaskName| {
            let text = ScoredText {
                dataset: DatasetSpec::Task(*task),
                protocol: ProtocolSpec::LmEvalTask(LmEvalTaskProtocol { max_len: self.max_len }),
                max_windows: self.max_questions,
                arithmetic: self.arithmetic,
            };
            task.definition().metrics.iter().map(move |metric| metric.of(text.clone()))
        };
        Ok(self.names.iter().flat_map(of_task).collect())
    }
}

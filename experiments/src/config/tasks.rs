//! [`TasksSection`]: several tasks in a few lines, which stand for an evaluation of each by each of its metrics.

use std::num::{NonZeroU16, NonZeroUsize};

use schemars::JsonSchema;
use serde::Deserialize;

use super::check::not_repeated;
use super::{
    DatasetSpec, EvaluationSpec, LmEvalGenerationProtocol, LmEvalTaskProtocol, ProtocolSpec, ScoredText, SeveralTexts,
};
use crate::eval::ScoringArithmetic;
use crate::eval::metric::OfItem;
use crate::eval::registry::MetricKey;
use crate::tasks::TaskName;

/// Tasks to evaluate on, all in one way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TasksSection {
    /// The tasks, in the order of tables.
    pub names: Vec<TaskName>,
    /// Tokens that a model sees at most. A longer question loses its beginning.
    pub max_len: NonZeroU16,
    /// Examples before each question; as many as lm-eval shows unless told otherwise when absent, which is none of most tasks.
    pub n_shots: Option<u16>,
    /// Several texts on each problem of a task whose answers are written; one, the likeliest token by token, when absent.
    pub several: Option<SeveralTexts>,
    /// The first this many questions of each; all when absent.
    pub max_questions: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent.
    #[serde(default)]
    pub arithmetic: ScoringArithmetic,
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
                protocol: self.protocol(*task),
                max_windows: self.max_questions,
                arithmetic: self.arithmetic,
            };
            let n_texts = self.several.as_ref().map_or(1, |several| usize::from(several.n.get()));
            let is_measured = move |metric: &&MetricKey| match metric.metric().of_item() {
                OfItem::Written { n_texts: n_least, .. } => n_least <= n_texts,
                _ => true,
            };
            task.definition().metrics.iter().filter(is_measured).map(move |metric| metric.of(text.clone()))
        };
        Ok(self.names.iter().flat_map(of_task).collect())
    }

    fn protocol(&self, task: TaskName) -> ProtocolSpec {
        let (max_len, n_shots) = (self.max_len, self.n_shots.unwrap_or(task.definition().n_shots()));
        match task.definition().is_written() {
            true => {
                let several = self.several.clone();
                ProtocolSpec::LmEvalGeneration(LmEvalGenerationProtocol { max_len, n_shots, several })
            }
            false => ProtocolSpec::LmEvalTask(LmEvalTaskProtocol { max_len, n_shots }),
        }
    }
}

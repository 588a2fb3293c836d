//! [`Examples`]: rows with their answers that stand before a question, chosen as lm-eval chooses them.

use anyhow::ensure;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::definition::DataFile;
use super::python_random::PythonRandom;

/// lm-eval's seed of examples.
const SEED: u32 = 1234;

/// What stands behind each example.
const SEPARATOR: &str = "\n\n";

/// What a task's file says of its examples.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Examples {
    /// How many lm-eval shows unless told otherwise.
    pub n: u16,
    /// Which are shown.
    pick: Pick,
    /// Where the rows are; the first that can be had is used.
    #[serde(default)]
    pub(crate) files: Vec<DataFile>,
    /// The rows themselves, where they are few.
    #[serde(default)]
    pub(crate) rows: Vec<Map<String, Json>>,
}

/// Which rows are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pick {
    /// The first ones, the same before every question.
    First,
    /// Others before each question, drawn without repetition.
    Drawn,
}

impl Examples {
    /// What stands before each of `n_questions`: `n_shots` of `examples`, the same questions always the same ones.
    ///
    /// # Errors
    /// Fewer examples than that.
    pub(crate) fn prefixes(
        &self,
        examples: &[String],
        n_shots: u16,
        n_questions: usize,
    ) -> anyhow::Result<Vec<String>> {
        let n_shots = usize::from(n_shots);
        ensure!(
            n_shots <= examples.len(),
            "{n_shots} examples are asked for, the task has {}; lower `n_shots`",
            examples.len()
        );
        let mut random = PythonRandom::new(SEED);
        let prefix = |_| {
            let shown: Vec<usize> = match self.pick {
                Pick::First => (0..n_shots).collect(),
                Pick::Drawn => random.sample(examples.len(), n_shots),
            };
            shown.into_iter().flat_map(|index| [examples[index].as_str(), SEPARATOR]).collect()
        };
        Ok((0..n_questions).map(prefix).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::tasks::fixtures::{fixtures, problems, sha256_of_texts};
    use crate::tasks::{Asked, TaskName};

    fn prompts(task: TaskName, rows: &[Map<String, Json>], examples: &[Map<String, Json>]) -> Vec<String> {
        let definition = task.definition();
        let mut asked = Asked::Problems(problems(task, rows));
        if let Some(of_task) = &definition.examples {
            let rows = if examples.is_empty() { &of_task.rows } else { examples };
            let texts = definition.example_texts(None, rows).unwrap();
            let prefixes = of_task.prefixes(&texts, of_task.n, asked.len()).unwrap();
            asked = asked.behind(&prefixes);
        }
        let Asked::Problems(problems) = asked else { panic!("{task:?} has problems") };
        problems.into_iter().map(|problem| problem.prompt).collect()
    }

    #[test]
    fn prompts_are_those_of_lm_eval() {
        let fixture = &fixtures().gsm8k;
        let found = prompts(TaskName::Gsm8k, &fixture.rows, &fixture.examples);
        assert_eq!(found[..fixture.prompts.len()], fixture.prompts);
        assert_eq!(sha256_of_texts(&found), fixture.sha256_of_prompts);
        for (task, fixture) in [(TaskName::Mbpp, &fixtures().mbpp), (TaskName::Humaneval, &fixtures().humaneval)] {
            assert_eq!(prompts(task, &fixture.rows, &[]), fixture.prompts);
        }
    }

    #[test]
    fn too_few_examples_are_an_error() {
        let of_task = TaskName::Gsm8k.definition().examples.as_ref().unwrap();
        let error = of_task.prefixes(&["a".into()], 5, 2).unwrap_err().to_string();
        assert_eq!(error, "5 examples are asked for, the task has 1; lower `n_shots`");
        assert_eq!(of_task.prefixes(&["a".into()], 1, 2).unwrap(), ["a\n\n", "a\n\n"]);
        assert_eq!(of_task.prefixes(&[], 0, 1).unwrap(), [""]);
    }
}

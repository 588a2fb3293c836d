//! [`Examples`]: rows with their answers that stand before a question, chosen as lm-eval chooses them.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

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
    /// The same, but one more is drawn, and the row that is asked is left out: lm-eval's way where a task has no split `test`.
    DrawnWithSpare,
}

/// A row with its answer, as it stands before a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Example {
    /// The text.
    pub(crate) text: String,
    /// Which row it is.
    pub(crate) row: RowId,
}

/// Tells rows of data from each other; the same columns with the same values are one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowId([u8; 8]);

impl RowId {
    pub(crate) fn of(row: &Map<String, Json>) -> Self {
        let columns: BTreeMap<&String, &Json> = row.iter().collect();
        let digest = Sha256::digest(serde_json::to_vec(&columns).unwrap_or_default());
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }
}

impl Examples {
    /// What stands before each question, of which these are the rows: `n_shots` of `examples`, the same questions always the same ones.
    ///
    /// # Errors
    /// Fewer examples than that.
    pub(crate) fn prefixes(&self, examples: &[Example], n_shots: u16, asked: &[RowId]) -> anyhow::Result<Vec<String>> {
        let n_shots = usize::from(n_shots);
        let n_drawn = n_shots + usize::from(self.pick == Pick::DrawnWithSpare && n_shots > 0);
        ensure!(
            n_drawn <= examples.len(),
            "{n_shots} examples are asked for, the task has {} to choose from; lower `n_shots`",
            examples.len()
        );
        let mut random = PythonRandom::new(SEED);
        let mut prefixes = Vec::with_capacity(asked.len());
        for &row in asked {
            let shown = match self.pick {
                Pick::First => (0..n_shots).collect(),
                Pick::Drawn => random.sample(examples.len(), n_shots),
                Pick::DrawnWithSpare => others(&mut random, examples, (n_drawn, n_shots), row)?,
            };
            prefixes.push(shown.into_iter().flat_map(|index| [examples[index].text.as_str(), SEPARATOR]).collect());
        }
        Ok(prefixes)
    }
}

/// `n` of `examples` that are not the row `asked`: the first of `n_drawn`, or where too many of these are that row `n` of the others.
fn others(
    random: &mut PythonRandom,
    examples: &[Example],
    (n_drawn, n): (usize, usize),
    asked: RowId,
) -> anyhow::Result<Vec<usize>> {
    let is_other = |index: &usize| examples[*index].row != asked;
    let mut shown: Vec<usize> = random.sample(examples.len(), n_drawn).into_iter().filter(is_other).collect();
    if shown.len() < n {
        let pool: Vec<usize> = (0..examples.len()).filter(is_other).collect();
        ensure!(n <= pool.len(), "fewer than {n} examples are not the question itself; lower `n_shots`");
        shown = random.sample(pool.len(), n).into_iter().map(|at| pool[at]).collect();
    }
    shown.truncate(n);
    Ok(shown)
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
            let shown = if examples.is_empty() { &of_task.rows } else { examples };
            let (texts, none) = (definition.examples(None, shown).unwrap(), vec![RowId([0; 8]); asked.len()]);
            asked = asked.behind(&of_task.prefixes(&texts, of_task.n, &none).unwrap());
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
    fn questions_behind_examples_are_those_of_lm_eval() {
        let fixtures = fixtures();
        let named = |name: &str| TaskName::ALL.iter().copied().find(|task| task.name() == name).unwrap();
        for (name, shots) in &fixtures.shots {
            let definition = named(name).definition();
            let examples = definition.examples(None, &shots.examples).unwrap();
            let rows: Vec<RowId> = shots.rows.iter().map(RowId::of).collect();
            let prefixes = definition.examples.as_ref().unwrap().prefixes(&examples, 2, &rows).unwrap();
            let asker = definition.asker(None).unwrap();
            let questions = shots.rows.iter().map(|row| asker.question(row).unwrap()).collect();
            let Asked::Questions(questions) = Asked::Questions(questions).behind(&prefixes) else { panic!("{name}") };
            for (question, expected) in questions.iter().zip(&shots.answers) {
                let found = question.answers.iter().map(|one| (one.context.clone(), one.continuation.clone()));
                assert_eq!(&found.collect::<Vec<_>>(), expected, "{name}");
            }
        }
        let with_examples = |task: &&TaskName| task.definition().examples.as_ref().is_some_and(|one| one.n == 0);
        // ARC's two tasks are one but for their rows.
        assert_eq!(TaskName::ALL.iter().filter(with_examples).count(), fixtures.shots.len() + 1);
    }

    #[test]
    fn too_few_examples_are_an_error() {
        let of = |task: TaskName, n_shots, n_examples| {
            let examples: Vec<Example> = (0..n_examples).map(example).collect();
            task.definition().examples.as_ref().unwrap().prefixes(&examples, n_shots, &[RowId([0; 8]), RowId([9; 8])])
        };
        let error = of(TaskName::Gsm8k, 5, 1).unwrap_err().to_string();
        assert_eq!(error, "5 examples are asked for, the task has 1 to choose from; lower `n_shots`");
        assert!(of(TaskName::Piqa, 1, 1).is_err());
        assert_eq!(of(TaskName::Gsm8k, 1, 1).unwrap(), ["0\n\n", "0\n\n"]);
        assert_eq!(of(TaskName::Piqa, 0, 0).unwrap(), ["", ""]);
    }

    fn example(row: u8) -> Example {
        Example { text: row.to_string(), row: RowId([row; 8]) }
    }

    #[test]
    fn a_question_is_no_example_of_itself() {
        // Three of four rows are the question: whatever is drawn first, the fourth is shown.
        let examples = [0, 0, 0, 1].map(example);
        let mut random = PythonRandom::new(SEED);
        for _ in 0..20 {
            assert_eq!(others(&mut random, &examples, (2, 1), RowId([0; 8])).unwrap(), [3]);
        }
        assert!(others(&mut random, &examples, (3, 2), RowId([0; 8])).is_err());
        let row = |text: &str| RowId::of(serde_json::from_str::<Json>(text).unwrap().as_object().unwrap());
        assert_eq!(row("{\"a\": 1, \"b\": [2]}"), row("{\"b\": [2], \"a\": 1}"));
        assert_ne!(row("{\"a\": 1}"), row("{\"a\": \"1\"}"));
    }
}

//! [`Problem`]: what a model is to write a text on, and how it is judged.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::answer::{AnswerRules, Extraction};

/// What stands in the file of a task whose answers are written. Templates are over the columns of a row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generation {
    /// Template of what the model continues.
    pub(super) prompt: String,
    /// Template of what is right: behind the prompt of an example, and what answers are compared with.
    pub(super) target: Option<String>,
    /// What stands between the prompt and the target of an example.
    #[serde(default = "blank")]
    pub(super) delimiter: String,
    /// A text ends before the first of these.
    pub(super) until: Vec<String>,
    /// Tokens that a model writes at most.
    pub(super) max_new_tokens: usize,
    /// How a text is judged.
    pub(super) judge: JudgeTemplate,
}

fn blank() -> String {
    super::definition::DELIMITER.to_owned()
}

/// How texts of a task are judged.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum JudgeTemplate {
    /// By the answer in it, which must be that of the target.
    #[serde(deserialize_with = "shared")]
    Answer(Arc<AnswerRules>),
    /// As a part of a program, which must run to its end.
    Program {
        /// Template of what stands before it.
        before: String,
        /// Template of what stands behind it.
        after: String,
    },
}

fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<AnswerRules>, D::Error> {
    AnswerRules::deserialize(deserializer).map(Arc::new)
}

/// What a model is to write a text on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it continues.
    pub prompt: String,
    /// A text ends before the first of these.
    pub until: Arc<Vec<String>>,
    /// Tokens that it writes at most.
    pub max_new_tokens: usize,
    /// How a text is judged.
    pub judge: Judge,
}

/// How a text is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judge {
    /// By the answer in it.
    Answer {
        /// What the answer must be, among other words.
        reference: String,
        /// How answers are found and compared.
        rules: Arc<AnswerRules>,
    },
    /// As a part of a Python program, which must run to its end.
    Program {
        /// What stands before it.
        before: String,
        /// What stands behind it.
        after: String,
    },
}

impl Judge {
    /// The program that `text` is a part of; `None` where it is no part of one.
    pub fn program(&self, text: &str) -> Option<String> {
        match self {
            Self::Answer { .. } => None,
            Self::Program { before, after } => Some(format!("{before}{text}{after}")),
        }
    }

    /// Whether the answer of `text` is right, found where the form of the examples puts it.
    pub fn is_right_strictly(&self, text: &str) -> bool {
        self.is_right(|rules| &rules.strict, text)
    }

    /// Whether the answer of `text` is right, found wherever it may be.
    pub fn is_right_anywhere(&self, text: &str) -> bool {
        self.is_right(|rules| &rules.flexible, text)
    }

    fn is_right(&self, extraction: impl Fn(&AnswerRules) -> &Extraction, text: &str) -> bool {
        match self {
            Self::Answer { reference, rules } => rules.are_equal(extraction(rules).find(text), reference),
            Self::Program { .. } => false,
        }
    }
}

/// `text` before the first stop of `until`, as lm-eval cuts it.
pub fn until<'t>(text: &'t str, until: &[String]) -> &'t str {
    let cut = |text: &'t str, stop: &String| text.split(stop.as_str()).next().unwrap_or_default();
    until.iter().filter(|stop| !stop.is_empty()).fold(text, cut)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::tasks::TaskName;
    use crate::tasks::fixtures::{fixtures, problems};

    #[test]
    fn answers_are_found_and_compared_as_lm_eval_does() {
        let fixture = &fixtures().gsm8k;
        let problems = problems(TaskName::Gsm8k, &fixture.rows);
        let cases = fixture.texts.iter().zip(&fixture.cut).zip(&problems);
        for (index, ((text, cut), problem)) in cases.enumerate() {
            let text = until(text, &problem.until);
            assert_eq!(text, cut, "text {index}");
            let Judge::Answer { rules, .. } = &problem.judge else { panic!("GSM8K has answers") };
            let ((strict, is_strict), (flexible, is_flexible)) =
                (&fixture.strict_match[index], &fixture.flexible_extract[index]);
            assert_eq!((rules.strict.find(text), rules.flexible.find(text)), (strict.as_str(), flexible.as_str()));
            let found = (problem.judge.is_right_strictly(text), problem.judge.is_right_anywhere(text));
            assert_eq!(found, (*is_strict == 1.0, *is_flexible == 1.0), "{text:?}");
        }
    }

    #[test]
    fn programs_are_those_of_lm_eval() {
        for (task, fixture) in [(TaskName::Mbpp, &fixtures().mbpp), (TaskName::Humaneval, &fixtures().humaneval)] {
            let problems = problems(task, &fixture.rows);
            for ((problem, text), expected) in problems.iter().zip(&fixture.texts).zip(&fixture.programs) {
                let program = problem.judge.program(until(text, &problem.until));
                assert_eq!(program.as_ref(), Some(expected), "{task:?}");
                assert!(!problem.judge.is_right_strictly(text) && !problem.judge.is_right_anywhere(text));
            }
        }
    }
}

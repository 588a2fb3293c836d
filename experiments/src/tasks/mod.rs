//! Tasks: questions whose answers a model's log-likelihoods choose between, and problems that it writes a text on. Each is one small
//! file, which says where its data are, and how a row of them becomes a question; the questions are those of the task of the same name
//! in lm-eval.

mod answer;
mod asker;
mod definition;
mod examples;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod generation;
mod python_random;

use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::definition::Definition;
pub(crate) use self::definition::{DataFile, DataPlace};
pub use self::examples::Examples;
pub(crate) use self::examples::{Example, RowId};
pub use self::generation::{Judge, Problem};
use crate::eval::registry::MetricKey;

/// Makes the enum, its names and its files from one line per task.
macro_rules! tasks {
    ($($(#[doc = $doc:literal])* $task:ident = $name:literal;)*) => {
        /// A task by its name, which is that of lm-eval.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum TaskName {
            $($(#[doc = $doc])* #[serde(rename = $name)] $task,)*
        }

        impl TaskName {
            /// Every task.
            pub const ALL: &'static [Self] = &[$(Self::$task),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$task => $name,)* }
            }

            /// What it is, in a sentence.
            pub fn about(self) -> &'static str {
                match self { $(Self::$task => concat!($($doc),*).trim_ascii(),)* }
            }

            fn file(self) -> &'static str {
                match self { $(Self::$task => include_str!(concat!($name, ".toml")),)* }
            }
        }
    };
}

tasks! {
    /// Questions of a school's science tests that search engines cannot answer (Clark et al. 2018), test split.
    ArcChallenge = "arc_challenge";
    /// The easy questions of the same tests (Clark et al. 2018), test split.
    ArcEasy = "arc_easy";
    /// Yes or no, of a passage (Clark et al. 2019), validation split.
    Boolq = "boolq";
    /// Questions of common sense about concepts (Talmor et al. 2019), validation split.
    CommonsenseQa = "commonsense_qa";
    /// What caused something, or came of it (Roemmele et al. 2011), validation split of SuperGLUE.
    Copa = "copa";
    /// Sums of a school's word problems (Cobbe et al. 2021), test split, behind five examples.
    Gsm8k = "gsm8k";
    /// How a description goes on (Zellers et al. 2019), validation split.
    Hellaswag = "hellaswag";
    /// Python functions from what they should do (Chen et al. 2021): what the model writes is run.
    Humaneval = "humaneval";
    /// The last word of a passage (Paperno et al. 2016, as OpenAI prepared it), test split.
    LambadaOpenai = "lambada_openai";
    /// Short Python programs from a sentence (Austin et al. 2021), test split, behind three examples: what the model writes is run.
    Mbpp = "mbpp";
    /// Questions of 57 subjects, from school to profession (Hendrycks et al. 2021), test split, without examples.
    Mmlu = "mmlu";
    /// Questions of a science book's facts (Mihaylov et al. 2018), test split.
    Openbookqa = "openbookqa";
    /// How things of everyday life are done (Bisk et al. 2020), validation split.
    Piqa = "piqa";
    /// What people do, want and feel (Sap et al. 2019), validation split.
    SocialIqa = "social_iqa";
    /// Whom or what a sentence speaks of (Sakaguchi et al. 2019), validation split.
    Winogrande = "winogrande";
}

impl TaskName {
    /// How its questions are asked.
    pub fn definition(self) -> &'static Definition {
        static DEFINITIONS: OnceLock<Vec<Definition>> = OnceLock::new();
        let read = |task: &TaskName| {
            let definition = Definition::read(task.file());
            definition
                .unwrap_or_else(|error| panic!("the file of task {} is part of the program: {error:#}", task.name()))
        };
        &DEFINITIONS.get_or_init(|| Self::ALL.iter().map(read).collect())[self as usize]
    }

    /// Whether lm-eval reports `metric` of it.
    pub fn has(self, metric: MetricKey) -> bool {
        self.definition().metrics.contains(&metric)
    }
}

/// What a task asks, in the order of its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Questions with answers.
    Questions(Vec<Question>),
    /// Problems to write on.
    Problems(Vec<Problem>),
}

impl Asked {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Questions(questions) => questions.len(),
            Self::Problems(problems) => problems.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, each behind a text of its own.
    #[must_use]
    pub fn behind(mut self, prefixes: &[String]) -> Self {
        match &mut self {
            Self::Questions(questions) => {
                for (question, prefix) in questions.iter_mut().zip(prefixes) {
                    question.answers.iter_mut().for_each(|answer| answer.context.insert_str(0, prefix));
                }
            }
            Self::Problems(problems) => {
                problems.iter_mut().zip(prefixes).for_each(|(problem, prefix)| problem.prompt.insert_str(0, prefix));
            }
        }
        self
    }
}

/// A question as a model sees it: each answer is a text, scored behind a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The answers, of which there may be one.
    pub answers: Vec<Answer>,
    /// Which of them is right.
    pub target: usize,
}

/// An answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What stands before it and is not scored.
    pub context: String,
    /// What is scored, with the blank before it.
    pub continuation: String,
    /// Characters (Unicode scalar values) of the answer, without that blank.
    pub n_chars: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metric::OfItem;

    #[test]
    fn every_task_is_defined_and_measured_by_metrics_of_its_kind() {
        for &task in TaskName::ALL {
            let definition = task.definition();
            assert!(!definition.files.is_empty(), "{task:?}");
            let (is_written, has_choices) = (definition.is_written(), definition.has_choices());
            assert_eq!(has_choices, task.has(MetricKey::Accuracy), "{task:?}");
            assert_eq!(has_choices, task.has(MetricKey::TargetNll), "{task:?}");
            assert_eq!(!has_choices && !is_written, task.has(MetricKey::GreedyAccuracy), "{task:?}");
            assert_eq!(is_written && !definition.runs_programs(), task.has(MetricKey::StrictMatch), "{task:?}");
            assert_eq!(definition.runs_programs(), task.has(MetricKey::PassAt1), "{task:?}");
            let of_texts = |metric: &MetricKey| matches!(metric.metric().of_item(), OfItem::Written { .. });
            assert!(definition.metrics.iter().all(|metric| of_texts(metric) == is_written), "{task:?}");
            let examples = definition.examples.as_ref();
            assert!(examples.is_none_or(|one| one.files.is_empty() != one.rows.is_empty()), "{task:?}");
            assert_eq!(serde_json::to_string(&task).ok(), Some(format!("\"{}\"", task.name())));
        }
    }
}

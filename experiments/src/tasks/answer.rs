//! [`AnswerRules`]: how an answer is found in what a model wrote, and compared. Right values: the filter `regex` and the metric
//! `exact_match` of lm-eval 0.4.13.

use regex::{Captures, Regex};
use serde::{Deserialize, Deserializer};

/// What stands for an answer where none is found.
const INVALID: &str = "[invalid]";

/// How answers are found and compared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRules {
    /// Of a text that keeps to the form of the examples.
    pub(super) strict: Extraction,
    /// Of any text.
    pub(super) flexible: Extraction,
    /// What is taken out of an answer and of the reference before they are compared, in this order.
    ignored: Vec<Pattern>,
}

/// Which part of a text is its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extraction {
    /// Of a match with one group that group, with several the first that is not empty.
    pattern: Pattern,
    /// Which match counts.
    take: Take,
}

/// One of several matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Take {
    /// The first.
    First,
    /// The last.
    Last,
}

/// A regular expression of the crate `regex`.
#[derive(Clone, Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pattern = String::deserialize(deserializer)?;
        Regex::new(&pattern).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Extraction {
    /// The answer in `text`, without the blanks around it.
    pub(super) fn find<'t>(&self, text: &'t str) -> &'t str {
        let mut matches = self.pattern.0.captures_iter(text);
        let found = match self.take {
            Take::First => matches.next(),
            Take::Last => matches.last(),
        };
        found.and_then(|found| group_of(&found)).map_or(INVALID, trimmed)
    }
}

/// What a match stands for: itself, its only group, or the first of its groups that is not empty, if one is.
fn group_of<'t>(found: &Captures<'t>) -> Option<&'t str> {
    let mut groups = (1..found.len()).map(|at| found.get(at).map_or("", |group| group.as_str()));
    match found.len() {
        1 => found.get(0).map(|whole| whole.as_str()),
        2 => groups.next(),
        _ => groups.find(|group| !group.is_empty()),
    }
}

/// Without what Python takes for white space at either end.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

impl AnswerRules {
    /// Whether `answer` is `reference`.
    pub(super) fn are_equal(&self, answer: &str, reference: &str) -> bool {
        self.compared(answer) == self.compared(reference)
    }

    fn compared(&self, text: &str) -> String {
        let without = |text: String, pattern: &Pattern| pattern.0.replace_all(&text, "").into_owned();
        self.ignored.iter().fold(text.to_owned(), without).to_lowercase()
    }
}

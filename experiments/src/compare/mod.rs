//! Two folders of results side by side: what differs in what was asked, in what it was made with and in the numbers, and which
//! differences are beyond noise.

mod numbers;
mod pairs;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::ensure;
use serde::Serialize;
use serde_json::Value as Json;

pub use self::numbers::{Number, Verdict};
use crate::config::ExperimentSpec;
use crate::plan::Plan;
use crate::record::{StoredRecord, read_records};
use crate::report::doubts;
use crate::verify::{Finished, finished};

/// A folder of results, read.
pub struct Results {
    spec: ExperimentSpec,
    plan: Plan,
    records: Vec<StoredRecord>,
    name: String,
}

/// Something that two folders have, in two ways; empty where one has none of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its key.
    pub key: String,
    /// In the first folder.
    pub first: String,
    /// In the second.
    pub second: String,
}

/// Two folders of results compared. The second is held against the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What the user calls them.
    pub folders: [String; 2],
    /// Keys of the experiments that differ, written flat.
    pub settings: Vec<Difference>,
    /// What the records were made with: programs, machines, models and texts.
    pub made_with: Vec<Difference>,
    /// Cells that only one of them holds finished.
    pub alone: [Vec<String>; 2],
    /// Numbers that both have.
    pub numbers: Vec<Number>,
}

impl Results {
    /// Reads `folder`. What is wrong with single lines of its records is returned beside it.
    ///
    /// # Errors
    /// An experiment that cannot be read, records of a newer program, or no finished cell.
    pub fn read(folder: &Path, spec: ExperimentSpec) -> anyhow::Result<(Self, Vec<String>)> {
        let plan = Plan::new(&spec);
        let (records, mut notes) = read_records(folder)?;
        notes.extend(doubts::numbers(folder, &plan, &records));
        let results = Self { spec, plan, records, name: folder.display().to_string() };
        let n_finished = finished(&results.plan, &results.records).len();
        let is_timed_only = results.plan.models.is_empty();
        ensure!(!is_timed_only, "{}: has no cells, only times, which are not compared", folder.display());
        ensure!(n_finished > 0, "{}: no finished cell to compare; run the experiment first", folder.display());
        Ok((results, notes))
    }
}

impl Comparison {
    /// Cells are matched by what they ask, else by what they are called where that is one cell's name (`pairs`), and their
    /// numbers by metric, text and protocol.
    ///
    /// # Errors
    /// A metric that this program does not know.
    pub fn of(first: &Results, second: &Results) -> anyhow::Result<Self> {
        let cells = [first, second].map(|results| finished(&results.plan, &results.records));
        let [of_first, of_second] = [0, 1].map(|folder| cells[folder].iter().map(|one| one.cell).collect::<Vec<_>>());
        let [names, other_names] = [&of_first, &of_second].map(|cells| pairs::names(cells));
        let pairs = pairs::pairs(&of_first, &of_second);
        let mut numbers = Vec::new();
        for &(one, other) in &pairs {
            numbers.extend(numbers::of_cell(&names[one], &cells[0][one], &cells[1][other])?);
        }
        let alone = |names: &[String], paired: BTreeSet<usize>| -> Vec<String> {
            let left = names.iter().enumerate().filter(|(index, _)| !paired.contains(index));
            left.map(|(_, name)| name.clone()).collect()
        };
        Ok(Self {
            folders: [first.name.clone(), second.name.clone()],
            settings: differences(&settings(&first.spec), &settings(&second.spec)),
            made_with: differences(&made_with(&cells[0]), &made_with(&cells[1])),
            alone: [
                alone(&names, pairs.iter().map(|&(one, _)| one).collect()),
                alone(&other_names, pairs.iter().map(|&(_, other)| other).collect()),
            ],
            numbers,
        })
    }

    /// Numbers that differ beyond noise.
    pub fn n_beyond_noise(&self) -> usize {
        self.numbers.iter().filter(|number| number.verdict.is_beyond_noise()).count()
    }
}

/// Keys with other values.
fn differences(first: &BTreeMap<String, String>, second: &BTreeMap<String, String>) -> Vec<Difference> {
    let keys: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let value = |of: &BTreeMap<String, String>, key: &String| of.get(key).cloned().unwrap_or_default();
    let difference =
        |key: &String| Difference { key: key.clone(), first: value(first, key), second: value(second, key) };
    keys.into_iter().map(difference).filter(|one| one.first != one.second).collect()
}

/// Keys of what two experiments ask that differ; where they run is none of it.
pub fn settings_that_differ(first: &ExperimentSpec, second: &ExperimentSpec) -> Vec<String> {
    let asked = |spec: &ExperimentSpec| {
        let mut settings = settings(spec);
        settings.retain(|key, _| !key.starts_with("run.") || key == "run.precision");
        settings
    };
    differences(&asked(first), &asked(second)).into_iter().map(|difference| difference.key).collect()
}

/// An experiment as keys and values: `methods[0].awq.clip`.
fn settings(spec: &ExperimentSpec) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    flatten("", &serde_json::to_value(spec).unwrap_or_default(), &mut flat);
    flat
}

fn flatten(key: &str, value: &Json, flat: &mut BTreeMap<String, String>) {
    match value {
        Json::Null => {}
        Json::Object(object) if !object.is_empty() => {
            let separator = if key.is_empty() { "" } else { "." };
            object.iter().for_each(|(name, value)| flatten(&format!("{key}{separator}{name}"), value, flat));
        }
        Json::Array(array) if array.iter().any(|one| one.is_object() || one.is_array()) => {
            array.iter().enumerate().for_each(|(index, value)| flatten(&format!("{key}[{index}]"), value, flat));
        }
        Json::String(text) => drop(flat.insert(key.to_owned(), text.clone())),
        other => drop(flat.insert(key.to_owned(), other.to_string())),
    }
}

/// With what all cells of a folder were made.
fn made_with(cells: &[Finished<'_>]) -> BTreeMap<String, String> {
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for cell in cells {
        let made = &cell.record.provenance;
        let dirty = if made.dirty == Some(true) { " (dirty)" } else { "" };
        let own = [
            ("program.commit", made.commit.chars().take(7).collect::<String>() + dirty),
            ("program.version", made.version.clone()),
            ("program.profile", made.profile.clone()),
            ("program.dependencies", made.lock_sha256.chars().take(8).collect()),
            ("machine.device", made.device.clone()),
            ("machine.threads", made.threads.to_string()),
            ("machine.cpu", made.cpu.clone()),
            ("machine.platform", made.platform.clone()),
            ("machine.gpu", made.gpu.as_ref().map(|gpu| gpu.name.clone()).unwrap_or_default()),
        ];
        let files = made.assets.iter().map(|(name, hash)| (format!("files.{name}"), hash.chars().take(8).collect()));
        for (key, value) in own.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(files) {
            values.entry(key).or_default().insert(value);
        }
    }
    values.into_iter().map(|(key, values)| (key, values.into_iter().collect::<Vec<_>>().join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_compared_key_by_key() {
        let flat = |value: Json| {
            let mut flat = BTreeMap::new();
            flatten("", &value, &mut flat);
            flat
        };
        let first =
            flat(json!({"grids": {"bits": [3, 4]}, "methods": [{"rtn": {}}, {"awq": {"clip": "off"}}], "n": null}));
        let second = flat(json!({"grids": {"bits": [3]}, "methods": [{"rtn": {}}, {"awq": {"clip": "on"}}]}));
        let difference = |key: &str, first: &str, second: &str| Difference {
            key: key.to_owned(),
            first: first.to_owned(),
            second: second.to_owned(),
        };
        assert_eq!(
            differences(&first, &second),
            [difference("grids.bits", "[3,4]", "[3]"), difference("methods[1].awq.clip", "off", "on")]
        );
        let shorter = flat(json!({"methods": [{"rtn": {}}]}));
        assert_eq!(differences(&shorter, &second).last(), Some(&difference("methods[1].awq.clip", "", "on")));
    }
}

//! What a record was made of, and whether the same files are still there: a model may be replaced in its folder.

use std::collections::{BTreeMap, BTreeSet};

use crate::assets::AssetStore;
use crate::config::{ModelSource, ModelSpec};
use crate::plan::{CellId, Plan};
use crate::progress::Progress;
use crate::record::{Outcome, Record};

/// sha256 of files, by name.
type Files = BTreeMap<String, String>;

/// Files that decide how a text is begun, continued and shown, and no measured number.
const OF_DECODING_ONLY: [&str; 4] =
    ["added_tokens.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"];

/// Files of models that are no weights, as models are recorded.
const BESIDE_WEIGHTS: [&str; 5] =
    ["config.json", "model.safetensors.index.json", "quantization.json", "tokenizer.json", "tokenizer_config.json"];

/// Digits of a sha256 in messages.
const SHOWN_DIGITS: usize = 8;

/// The differences between the files of two records, in name order: `config.json sha256 00112233.. -> 44556677..`. A file
/// of a model that only one of them has is one; a text is compared where both name it.
pub(crate) fn differences(then: &Files, now: &Files) -> Vec<String> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let compared = names.into_iter().filter(|name| !OF_DECODING_ONLY.contains(&name.as_str()));
    let difference = |name: &String| match (then.get(name), now.get(name)) {
        (Some(then), Some(now)) if then == now => None,
        (Some(then), Some(now)) => Some(format!("{name} sha256 {} -> {}", shown(then), shown(now))),
        _ if !is_of_model(name) => None,
        (None, Some(now)) => Some(format!("{name} is new, sha256 {}", shown(now))),
        (Some(then), None) => Some(format!("{name} is gone, sha256 {}", shown(then))),
        (None, None) => None,
    };
    compared.filter_map(difference).collect()
}

fn is_of_model(name: &str) -> bool {
    let is_weights =
        |extension: &str| name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case(extension));
    BESIDE_WEIGHTS.contains(&name) || is_weights("safetensors") || is_weights("gguf")
}

fn shown(sha256: &str) -> String {
    format!("{}..", sha256.get(..SHOWN_DIGITS).unwrap_or(sha256))
}

/// The cells of `plan` that need not run: the newest record of each is finished, and its model's files are what they were.
/// Each model that was changed is noted, with what changed.
pub(crate) fn finished(plan: &Plan, records: &[Record], store: &AssetStore, progress: &Progress) -> BTreeSet<CellId> {
    let newest: BTreeMap<&CellId, &Record> = records.iter().map(|record| (&record.cell_id, record)).collect();
    let mut finished = BTreeSet::new();
    for model in &plan.models {
        let ids: Vec<CellId> = model.cells.iter().map(crate::plan::Cell::id).collect();
        let done = |id: &CellId| newest.get(id).filter(|record| matches!(record.outcome, Outcome::Done(_))).copied();
        let on_record: Vec<&Record> = ids.iter().filter_map(done).collect();
        if on_record.is_empty() {
            continue;
        }
        let files = files_now(&model.model, on_record.len() == ids.len(), store);
        let mut noted = BTreeSet::new();
        for record in on_record {
            let changes = files.as_ref().map_or_else(Vec::new, |now| changes_of_model(&record.provenance.assets, now));
            if changes.is_empty() {
                finished.insert(record.cell_id.clone());
            } else if noted.insert(changes.clone()) {
                progress.note(&format!(
                    "model {} changed since cells of it were recorded ({}): they run again",
                    model.model.name,
                    changes.join(", ")
                ));
            }
        }
    }
    finished
}

/// As [`differences`] where `now` holds the files of a model alone; what `then` holds beside them are texts.
pub(crate) fn changes_of_model(then: &Files, now: &Files) -> Vec<String> {
    let of_model = |(name, _): &(&String, &String)| is_of_model(name) || now.contains_key(*name);
    let then: Files = then.iter().filter(of_model).map(|(name, hash)| (name.clone(), hash.clone())).collect();
    differences(&then, now)
}

/// The hashes of a model's files as they are, where they can have changed and cost no download. A model that is no longer
/// there, or not whole, is not compared: its records stand.
fn files_now(model: &ModelSpec, all_on_record: bool, store: &AssetStore) -> Option<Files> {
    let can_change = match &model.source {
        ModelSource::Path(model) => model.path.exists(),
        ModelSource::Bundled(_) => true,
        // A tag or a branch may move. It is asked for only where the model is needed in any case.
        ModelSource::Hub(model) => !all_on_record && !is_commit(&model.revision),
        ModelSource::Registry(_) => false,
    };
    if !can_change {
        return None;
    }
    store.model(model).ok().map(|located| located.hashes)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Files {
        files.iter().map(|&(name, digit)| (name.to_owned(), digit.repeat(64))).collect()
    }

    #[test]
    fn changed_new_and_lost_files_of_a_model_count() {
        let then =
            files(&[("config.json", "a"), ("model.safetensors", "b"), ("wiki", "c"), ("tokenizer_config.json", "d")]);
        assert!(changes_of_model(&then, &files(&[])).len() == 3);
        let same = files(&[("config.json", "a"), ("model.safetensors", "b"), ("tokenizer_config.json", "d")]);
        assert_eq!(changes_of_model(&then, &same), Vec::<String>::new());
        let now = files(&[("config.json", "a"), ("model.safetensors", "e"), ("model-2.safetensors", "f")]);
        assert_eq!(
            changes_of_model(&then, &now),
            [
                "model-2.safetensors is new, sha256 ffffffff..",
                "model.safetensors sha256 bbbbbbbb.. -> eeeeeeee..",
                "tokenizer_config.json is gone, sha256 dddddddd..",
            ]
        );
    }

    #[test]
    fn texts_are_compared_where_both_name_them() {
        let gguf = ("m.GGUF", "a");
        assert!(differences(&files(&[gguf, ("wiki", "c")]), &files(&[gguf, ("c4", "d")])).is_empty());
        let other = differences(&files(&[gguf, ("wiki", "c")]), &files(&[gguf, ("wiki", "d")]));
        assert_eq!(other, ["wiki sha256 cccccccc.. -> dddddddd.."]);
    }

    #[test]
    fn files_of_decoding_change_no_number() {
        let then = files(&[("m.gguf", "a"), ("generation_config.json", "b")]);
        assert!(changes_of_model(&then, &files(&[("m.gguf", "a"), ("chat_template.jinja", "c")])).is_empty());
    }
}

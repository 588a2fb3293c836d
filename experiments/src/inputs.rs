//! What a record was made of, and whether that is still what it was: a model may be replaced in its folder, the revision of a
//! hub's model may move, and a later program may make a text or a method's numbers otherwise.

use std::collections::{BTreeMap, BTreeSet};

use crate::assets::AssetStore;
use crate::config::{DatasetSpec, ModelSource, ModelSpec};
use crate::data::Texts;
use crate::plan::{Cell, CellId, Plan};
use crate::progress::Progress;
use crate::record::{Done, FIRST_VERSION, Outcome, StoredRecord};

/// sha256 of files, by name.
type Files = BTreeMap<String, String>;

/// Files that decide how a text is begun, continued and shown, or joined with images, and no measured number.
const OF_DECODING_ONLY: [&str; 8] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "video_preprocessor_config.json",
];

/// Those of them that decide ids where there is no `tokenizer.json`, which has them in itself.
const OF_OLDER_TOKENIZERS: [&str; 2] = ["added_tokens.json", "special_tokens_map.json"];

/// Files of models that are no weights, as models are recorded.
const BESIDE_WEIGHTS: [&str; 9] = [
    "config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "quantization.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Digits of a sha256 in messages.
const SHOWN_DIGITS: usize = 8;

/// The differences between the files of two records, in name order: `config.json sha256 00112233.. -> 44556677..`. A file
/// of a model that only one of them has is one; a text is compared where both name it.
pub(crate) fn differences(then: &Files, now: &Files) -> Vec<String> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let compared = names.into_iter().filter(|name| decides(name, then) || decides(name, now));
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

/// Those of a model's files that decide a number, from all that it has.
pub(crate) fn deciding(files: &Files) -> impl Iterator<Item = (&str, &str)> {
    files.iter().filter(|(name, _)| decides(name, files)).map(|(name, sha256)| (name.as_str(), sha256.as_str()))
}

/// Whether a file decides a number of a model that has these `files`.
fn decides(name: &str, files: &Files) -> bool {
    let is_of_tokenizer = OF_OLDER_TOKENIZERS.contains(&name) && files.contains_key(name);
    !OF_DECODING_ONLY.contains(&name) || is_of_tokenizer && !files.contains_key("tokenizer.json")
}

fn is_of_model(name: &str) -> bool {
    let is_weights =
        |extension: &str| name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case(extension));
    let is_beside = BESIDE_WEIGHTS.contains(&name) || OF_OLDER_TOKENIZERS.contains(&name);
    is_beside || ["safetensors", "bin", "gguf"].into_iter().any(is_weights)
}

fn shown(sha256: &str) -> String {
    format!("{}..", sha256.get(..SHOWN_DIGITS).unwrap_or(sha256))
}

/// The cells of `plan` that need not run: the newest record of each is finished, and its model's files, its texts and its
/// method's version are what they were. Each change is noted.
///
/// Only what is on this machine is looked at, so that a finished experiment needs no download to be shown again; a text is read
/// where another cell of the model needs it in any case.
pub(crate) fn finished(
    plan: &Plan,
    records: &[StoredRecord],
    store: &AssetStore,
    texts: &mut Texts<'_>,
    progress: &Progress,
) -> BTreeSet<CellId> {
    let newest: BTreeMap<&CellId, &StoredRecord> = records.iter().map(|record| (&record.cell_id, record)).collect();
    let mut finished = BTreeSet::new();
    for model in &plan.models {
        let on_record: Vec<OnRecord<'_>> =
            model.cells.iter().filter_map(|cell| OnRecord::of(cell, *newest.get(&cell.id())?)).collect();
        let all = on_record.len() == model.cells.len();
        let files = if on_record.is_empty() { None } else { files_now(&model.model, all, store) };
        let mut again: BTreeMap<String, usize> = BTreeMap::new();
        for one in on_record {
            let changes =
                files.as_ref().map_or_else(Vec::new, |now| changes_of_model(&one.record.provenance.assets, now));
            let mut reasons = Vec::new();
            reasons.extend(one.other_checkpoint(all, store));
            if !changes.is_empty() {
                reasons.push(format!("the model changed since ({})", changes.join(", ")));
            }
            reasons.extend(one.other_version());
            reasons.extend(one.other_texts(all, texts));
            if reasons.is_empty() {
                finished.insert(one.record.cell_id.clone());
            } else {
                *again.entry(reasons.join("; ")).or_default() += 1;
            }
        }
        for (reasons, n_cells) in again {
            progress.note(&format!("{}: {n_cells} cell(s) on record run again: {reasons}", model.model.name));
        }
    }
    finished
}

/// A cell with its finished record.
struct OnRecord<'a> {
    cell: &'a Cell,
    record: &'a StoredRecord,
    done: &'a Done,
}

impl<'a> OnRecord<'a> {
    fn of(cell: &'a Cell, record: &'a StoredRecord) -> Option<Self> {
        match &record.outcome {
            Outcome::Done(done) => Some(Self { cell, record, done }),
            Outcome::Failed(_) => None,
        }
    }

    /// What is said where the checkpoint that was measured is another now.
    fn other_checkpoint(&self, all_on_record: bool, store: &AssetStore) -> Option<String> {
        let (spec, then) = (self.cell.checkpoint.as_ref()?, self.done.checkpoint.as_ref()?);
        let now = files_now(&spec.as_model(), all_on_record, store)?;
        let changes = differences(&then.files, &now);
        (!changes.is_empty()).then(|| format!("checkpoint {} changed since ({})", spec.name, changes.join(", ")))
    }

    /// What is said where the method's code has another version now.
    fn other_version(&self) -> Option<String> {
        let (method, then) = (&self.cell.quantization.as_ref()?.method, self.done.quantization.as_ref()?);
        let (then, now) = (then.method_version.unwrap_or(FIRST_VERSION), method.version());
        (then != now).then(|| format!("method `{}` has version {now}, then {then}", method.key()))
    }

    /// What is said of each text that is known to be another. Those of calibration are compared where the record names them.
    fn other_texts(&self, all_on_record: bool, texts: &mut Texts<'_>) -> Vec<String> {
        let mut others = Vec::new();
        let mut compare = |name: &str, then: &str, now: &str| {
            if then != now {
                others.push(format!("text {name} sha256 {} -> {}", shown(then), shown(now)));
            }
        };
        for (evaluation, measured) in self.cell.evaluations.iter().zip(&self.done.measurements) {
            let spec = evaluation.text();
            if may_be_looked_at(&spec.dataset, all_on_record)
                && let Ok(text) = texts.get_scored(spec)
                && let Ok(now) = text.scored_sha256(&spec.protocol)
            {
                compare(&text.name, &measured.text_sha256, &now);
            }
        }
        let calibration = self.cell.quantization.as_ref().and_then(|quantization| quantization.calibration.as_ref());
        let then = self.done.quantization.as_ref().and_then(|then| then.calibration_text_sha256.as_ref());
        let looked_at = calibration.filter(|spec| may_be_looked_at(&spec.dataset, all_on_record));
        let text = looked_at.and_then(|spec| texts.get(&spec.dataset).ok());
        if let Some((text, then)) = text.zip(then) {
            compare(&text.name, then, &text.sha256);
        }
        others
    }
}

/// Whether looking at a text costs little: the program makes the bundled ones, and others are needed by other cells. One that cannot be
/// had is an error of the cells that need it.
fn may_be_looked_at(spec: &DatasetSpec, all_on_record: bool) -> bool {
    matches!(spec, DatasetSpec::Bundled(_)) || !all_on_record
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
        // A tag or a branch may move. It is downloaded only where the model is needed in any case.
        ModelSource::Hub(hub) => !is_commit(&hub.revision) && (!all_on_record || store.is_at_hand(hub)),
        ModelSource::Registry(_) | ModelSource::RegistryParts(_) => false,
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
    fn files_of_added_tokens_count_where_they_decide_ids() {
        let json = files(&[("tokenizer.json", "a"), ("added_tokens.json", "b")]);
        let same = files(&[("tokenizer.json", "a"), ("added_tokens.json", "c")]);
        assert_eq!(differences(&json, &same), Vec::<String>::new());
        assert_eq!(deciding(&json).map(|(name, _)| name).collect::<Vec<_>>(), ["tokenizer.json"]);
        let older = files(&[("vocab.json", "a"), ("added_tokens.json", "b"), ("generation_config.json", "c")]);
        let other = files(&[("vocab.json", "a"), ("added_tokens.json", "c")]);
        assert_eq!(differences(&older, &other), ["added_tokens.json sha256 bbbbbbbb.. -> cccccccc.."]);
        let fewer = files(&[("vocab.json", "a")]);
        assert_eq!(differences(&older, &fewer), ["added_tokens.json is gone, sha256 bbbbbbbb.."]);
        assert_eq!(deciding(&older).map(|(name, _)| name).collect::<Vec<_>>(), ["added_tokens.json", "vocab.json"]);
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

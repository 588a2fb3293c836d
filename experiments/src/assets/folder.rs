//! Models that are already on this machine: a folder in Hugging Face layout, a GGUF file, or files inside the executable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use awq_core::load::{self, check_folder, gguf_parts};
use awq_core::open::check_config;
use serde::Deserialize;

use super::hashing::{Hashes, sha256_of};
use super::{LocatedModel, Partial, cannot_write};
use crate::config::names::is_inside;

/// What says which kind of model it is.
pub(crate) const CONFIG: &str = "config.json";
/// What is taken along if it exists.
pub(crate) const OPTIONAL: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantization.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];

/// A model at `path`, with the hash of each of its files.
///
/// # Errors
/// A path that does not exist, a folder that lacks a file a model needs, or a model of an unknown kind.
pub(crate) fn locate(path: &Path, hashes: &Hashes) -> anyhow::Result<LocatedModel> {
    let files = if path.is_dir() {
        let files = complete(path)?;
        // Before the weights are hashed, which takes minutes.
        check_config(path)?;
        files
    } else {
        if let Ok(target) = std::fs::read_link(path) {
            ensure!(
                path.exists(),
                "{}: a link to {}, which is not there; put the file there, or give another",
                path.display(),
                target.display()
            );
        }
        ensure!(
            path.exists(),
            "{}: no such model; give a folder in Hugging Face layout or a .gguf file, relative to the working directory",
            path.display()
        );
        ensure!(
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")),
            "{}: not a model; expected a folder in Hugging Face layout or a .gguf file",
            path.display()
        );
        vec![]
    };
    let hashes = if files.is_empty() {
        let of_part = |part: PathBuf| {
            ensure!(
                part.exists(),
                "{}: no {}, a part of the same model; put all parts into one folder",
                path.display(),
                part.display()
            );
            let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, hashes.of_file(&part)?))
        };
        gguf_parts(path).into_iter().map(of_part).collect::<anyhow::Result<_>>()?
    } else {
        files
            .into_iter()
            .map(|name| Ok((name.clone(), hashes.of_file(&path.join(name))?)))
            .collect::<anyhow::Result<_>>()?
    };
    Ok(LocatedModel { path: path.to_owned(), hashes })
}

/// The names of a model's files in `folder`: the required ones, the optional ones that are there, and the weights.
///
/// # Errors
/// The first file that is missing, with what to do.
pub(crate) fn complete(folder: &Path) -> anyhow::Result<Vec<String>> {
    check_folder(folder)?;
    let mut names = Vec::new();
    let is_there = |name: &str| folder.join(name).is_file();
    if let Some(name) = missing(is_there) {
        bail!(
            "{}: no {name}; a model folder holds config.json, tokenizer.json and model.safetensors or shards with an index",
            folder.display()
        );
    }
    names.extend(required(is_there).into_iter().map(str::to_owned));
    names.extend(OPTIONAL.iter().filter(|name| folder.join(name).is_file()).map(|&name| name.to_owned()));
    let weights = first_weights(is_there)
        .with_context(|| format!("{}: no weights; save the model as safetensors", folder.display()))?;
    names.push(weights.to_owned());
    if is_index(weights) {
        for shard in shards(&folder.join(weights))? {
            ensure!(
                folder.join(&shard).is_file(),
                "{}: no {shard}, though {weights} names it; download it again",
                folder.display()
            );
            names.push(shard);
        }
    }
    Ok(names)
}

/// What a model's files lack beside the weights.
pub(crate) fn missing(is_there: impl Fn(&str) -> bool) -> Option<&'static str> {
    if !is_there(CONFIG) {
        Some(CONFIG)
    } else if load::tokenizer_files(is_there).is_empty() {
        Some("tokenizer.json (nor tokenizer.model, nor vocab.json with merges.txt)")
    } else {
        None
    }
}

/// What the loader reads beside the weights in any case: the configuration and the tokenizer.
pub(crate) fn required(is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    [vec![CONFIG], load::tokenizer_files(is_there)].concat()
}

/// The file of weights that the loader reads: the first that is there, as in transformers. Safetensors come before pickles, a
/// single file before an index.
pub(crate) fn first_weights(is_there: impl Fn(&str) -> bool) -> Option<&'static str> {
    load::WEIGHTS.into_iter().find(|name| is_there(name))
}

/// Whether a file of weights is the list of a sharded checkpoint's files.
pub(crate) fn is_index(weights: &str) -> bool {
    weights.ends_with(".index.json")
}

/// The shards that an index names, in name order.
///
/// # Errors
/// An index that is not valid, or a shard that would lie outside the model's folder.
pub(crate) fn shards(index: &Path) -> anyhow::Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).with_context(|| format!("{}: cannot read", index.display()))?;
    let parsed: Index = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .with_context(|| format!("{}: not an index of shards; download it again", index.display()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    ensure!(!shards.is_empty(), "{}: key `weight_map` is empty; download it again", index.display());
    for shard in &shards {
        ensure!(
            is_inside(shard) && !shard.contains('/'),
            "{}: key `weight_map` names the shard `{shard}`; expected a plain file name",
            index.display()
        );
    }
    Ok(shards)
}

/// Puts files that the executable carries into `cache`, where the loaders can map them, under a name made of their
/// hashes: a program that carries other files makes another folder.
///
/// # Errors
/// A cache that cannot be written.
pub(crate) fn materialise(files: &[(&str, &[u8])], cache: &Path) -> anyhow::Result<LocatedModel> {
    let hashes: BTreeMap<String, String> =
        files.iter().map(|&(name, bytes)| (name.to_owned(), sha256_of(bytes))).collect();
    let listing: String = hashes.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
    let path = cache.join("bundled").join(sha256_of(listing.as_bytes()));
    // Each file is read whole and compared: a few megabytes, against a cache that someone else may have touched.
    let is_intact = |folder: &Path| {
        files.iter().all(|(name, bytes)| std::fs::read(folder.join(name)).is_ok_and(|found| found == *bytes))
    };
    if !is_intact(&path) {
        let partial = Partial::new(cache)?;
        for (name, bytes) in files {
            let file = partial.path().join(name);
            std::fs::write(&file, bytes).with_context(|| cannot_write(&file))?;
        }
        partial.finish(&path, is_intact)?;
    }
    Ok(LocatedModel { path, hashes })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::assets::progress::Progress;

    pub(crate) const WEIGHTS: &str = "model.safetensors";
    pub(crate) const INDEX: &str = "model.safetensors.index.json";

    /// The configuration of a model that can be read.
    pub(crate) const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;

    fn model_folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[track_caller]
    fn check_refused(files: &[(&str, &str)], expected: &str) {
        let folder = model_folder(files);
        let error = locate(folder.path(), &Hashes::new(Progress::Quiet)).unwrap_err();
        let message = format!("{error:#}").replace(&folder.path().display().to_string(), "DIR");
        assert!(message.starts_with(expected), "{message}");
    }

    #[test]
    fn every_file_of_a_folder_is_hashed() {
        let index = r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
        let folder = model_folder(&[
            ("config.json", LLAMA),
            ("tokenizer.json", "{}"),
            ("tokenizer_config.json", "{}"),
            (INDEX, index),
            ("1.safetensors", "one"),
            ("2.safetensors", "two"),
            ("notes.txt", "not part of the model"),
        ]);
        let model = locate(folder.path(), &Hashes::new(Progress::Quiet)).unwrap();
        let names: Vec<&str> = model.hashes.keys().map(String::as_str).collect();
        let expected =
            ["1.safetensors", "2.safetensors", "config.json", INDEX, "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names, expected);
        assert_eq!(model.hashes["1.safetensors"], sha256_of(b"one"));
        // What the loader reads is what is hashed.
        std::fs::write(folder.path().join(WEIGHTS), "all").unwrap();
        let model = locate(folder.path(), &Hashes::new(Progress::Quiet)).unwrap();
        assert!(model.hashes.contains_key(WEIGHTS) && !model.hashes.contains_key("1.safetensors"));
    }

    #[test]
    fn all_parts_of_a_gguf_file_are_the_model() {
        let folder = model_folder(&[]);
        let hashes = Hashes::new(Progress::Quiet);
        let (first, second) = ("s-00001-of-00002.gguf", "s-00002-of-00002.gguf");
        std::fs::write(folder.path().join(first), "1").unwrap();
        let error = locate(&folder.path().join(first), &hashes).unwrap_err().to_string();
        assert!(error.contains(second) && error.ends_with("put all parts into one folder"), "{error}");
        std::fs::write(folder.path().join(second), "2").unwrap();
        let of_parts = BTreeMap::from([(first.to_owned(), sha256_of(b"1")), (second.to_owned(), sha256_of(b"2"))]);
        for given in [first, second] {
            assert_eq!(locate(&folder.path().join(given), &hashes).unwrap().hashes, of_parts);
        }
    }

    #[test]
    fn older_files_of_a_tokenizer_are_hashed_where_there_is_no_other() {
        let folder = model_folder(&[
            ("config.json", LLAMA),
            (WEIGHTS, "all"),
            ("added_tokens.json", "{}"),
            ("merges.txt", "a b"),
            ("vocab.json", "{}"),
        ]);
        let check = |expected: &[&str]| {
            let model = locate(folder.path(), &Hashes::new(Progress::Quiet)).unwrap();
            assert_eq!(model.hashes.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        };
        check(&["added_tokens.json", "config.json", "merges.txt", WEIGHTS, "vocab.json"]);
        std::fs::write(folder.path().join("tokenizer.model"), "pieces").unwrap();
        check(&["added_tokens.json", "config.json", "merges.txt", WEIGHTS, "tokenizer.model", "vocab.json"]);
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        check(&["added_tokens.json", "config.json", WEIGHTS, "tokenizer.json"]);
    }

    #[test]
    fn pickled_weights_are_hashed_where_there_are_no_others() {
        const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";
        let index = r#"{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}"#;
        let folder = model_folder(&[
            ("config.json", LLAMA),
            ("tokenizer.json", "{}"),
            (PICKLED_INDEX, index),
            ("pytorch_model-00001-of-00001.bin", "one"),
        ]);
        let check = |expected: &[&str]| {
            let model = locate(folder.path(), &Hashes::new(Progress::Quiet)).unwrap();
            assert_eq!(model.hashes.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        };
        check(&["config.json", "pytorch_model-00001-of-00001.bin", PICKLED_INDEX, "tokenizer.json"]);
        std::fs::write(folder.path().join("pytorch_model.bin"), "all").unwrap();
        check(&["config.json", "pytorch_model.bin", "tokenizer.json"]);
        std::fs::write(folder.path().join(WEIGHTS), "all").unwrap();
        check(&["config.json", WEIGHTS, "tokenizer.json"]);
    }

    #[test]
    fn a_gguf_file_is_a_model_and_another_file_is_not() {
        let folder = model_folder(&[("m.gguf", "x"), ("m.bin", "x")]);
        let hashes = Hashes::new(Progress::Quiet);
        let model = locate(&folder.path().join("m.gguf"), &hashes).unwrap();
        assert_eq!(model.hashes, BTreeMap::from([("m.gguf".to_owned(), sha256_of(b"x"))]));
        let error = locate(&folder.path().join("m.bin"), &hashes).unwrap_err();
        assert!(error.to_string().ends_with("expected a folder in Hugging Face layout or a .gguf file"), "{error}");
        #[cfg(unix)]
        {
            let link = folder.path().join("link.gguf");
            std::os::unix::fs::symlink("m.gguf", &link).unwrap();
            assert_eq!(locate(&link, &hashes).unwrap().hashes["link.gguf"], sha256_of(b"x"));
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("../blobs/gone", &link).unwrap();
            let error = locate(&link, &hashes).unwrap_err().to_string();
            let expected =
                "link.gguf: a link to ../blobs/gone, which is not there; put the file there, or give another";
            assert!(error.ends_with(expected), "{error}");
        }
        let error = locate(&folder.path().join("none.gguf"), &hashes).unwrap_err();
        assert!(error.to_string().contains("none.gguf: no such model; give a folder"), "{error}");
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let both = [("config.json", "{}"), ("tokenizer.json", "{}")];
        let weights = (WEIGHTS, "weights");
        check_refused(&[both[1], weights], "DIR: no config.json; download it again");
        check_refused(
            &[both[0], weights],
            "DIR: no tokenizer.json (nor tokenizer.model, nor vocab.json with merges.txt); a model folder holds ",
        );
        check_refused(&both, "DIR: no weights; a model folder holds ");
        let with = |index| [both[0], both[1], (INDEX, index)];
        check_refused(
            &with(r#"{"weight_map": {"a": "gone.safetensors"}}"#),
            "DIR: no gone.safetensors, though model.safetensors.index.json names it; download it again",
        );
        check_refused(
            &with(r#"{"weight_map": {"a": "../x"}}"#),
            "DIR/model.safetensors.index.json: key `weight_map` names the shard `../x`; expected a plain file name",
        );
        check_refused(&with(r#"{"weight_map": {}}"#), "DIR/model.safetensors.index.json: key `weight_map` is empty");
        check_refused(
            &with("{\"weight_"),
            "DIR/model.safetensors.index.json: not an index of shards; download it again",
        );
    }

    #[test]
    fn carried_files_are_written_once_and_repaired() {
        let cache = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", b"weights")];
        let model = materialise(&files, cache.path()).unwrap();
        assert_eq!(std::fs::read(model.path.join("model.safetensors")).unwrap(), b"weights");
        assert_eq!(model.hashes["config.json"], sha256_of(b"{}"));
        std::fs::write(model.path.join("model.safetensors"), "cut off").unwrap();
        assert_eq!(materialise(&files, cache.path()).unwrap(), model);
        assert_eq!(std::fs::read(model.path.join("model.safetensors")).unwrap(), b"weights");
    }
}

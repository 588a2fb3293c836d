//! What a folder is: a model, or something that is named before a file of a model is missed.

use std::fs;
use std::path::Path;

use super::LoadError;
use super::tokenizer::tokenizer_files;
use super::weights::WEIGHTS;

const CONFIG: &str = "config.json";
/// How the names of weights that PyTorch has pickled begin.
const PICKLED: &str = "pytorch_model";

/// Checks that `folder` holds a model in Hugging Face layout, from names and first bytes alone.
///
/// # Errors
/// What the folder is instead, with the remedy.
pub fn check_folder(folder: &Path) -> Result<(), LoadError> {
    let not = |problem: String| Err(LoadError::NotAModel { path: folder.to_owned(), problem });
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(|source| LoadError::Open { file: folder.to_owned(), source })?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let has = |name: &str| names.iter().any(|known| known == name);
    let weights = WEIGHTS.iter().find(|name| has(name));
    let is_pickled = weights.is_none_or(|name| name.starts_with(PICKLED));
    let may_be_read = |name: &&String| {
        name.ends_with(".safetensors") || name.ends_with(".json") || is_pickled && is_pickled_shard(name)
    };
    for name in names.iter().filter(may_be_read) {
        check_link(&folder.join(name))?;
    }
    if weights.is_none() && names.iter().any(|name| name.starts_with("adapter_")) {
        return not(
            "an adapter (LoRA or the like), not a model; merge it into its base model, and give the result".into()
        );
    }
    let Some(weights) = weights else {
        return not(other_weights(&names));
    };
    if !has(CONFIG) {
        return not(format!("no {CONFIG}; download it again"));
    }
    let is_shard = |name: &str| if is_pickled { is_pickled_shard(name) } else { name.ends_with(".safetensors") };
    let tokenizer = tokenizer_files(has);
    let read = |name: &&String| {
        is_shard(name) || [CONFIG, weights].contains(&name.as_str()) || tokenizer.contains(&name.as_str())
    };
    names.iter().filter(read).try_for_each(|name| check_file(&folder.join(name)))
}

/// # Errors
/// A link to what is not there.
fn check_link(file: &Path) -> Result<(), LoadError> {
    match fs::read_link(file) {
        Ok(target) if !file.exists() => Err(LoadError::NotAModel {
            path: file.to_owned(),
            problem: format!("a link to {}, which is not there; download the file again", target.display()),
        }),
        _ => Ok(()),
    }
}

/// # Errors
/// A folder, nothing, or what git-lfs leaves in place of a large file.
fn check_file(file: &Path) -> Result<(), LoadError> {
    let not = |problem: &str| Err(LoadError::NotAModel { path: file.to_owned(), problem: problem.to_owned() });
    let opening = |source| LoadError::Open { file: file.to_owned(), source };
    let metadata = fs::metadata(file).map_err(opening)?;
    if metadata.is_dir() {
        return not("a folder, where a file was expected; download the model again");
    }
    if metadata.len() == 0 {
        return not("an empty file; download it again");
    }
    let mut first = [0; 40];
    let n = std::io::Read::read(&mut fs::File::open(file).map_err(opening)?, &mut first).map_err(opening)?;
    if first[..n].starts_with(b"version https://git-lfs") {
        return not(
            "a pointer that git-lfs left in place of the file; run `git lfs pull` in the folder, or download the file",
        );
    }
    Ok(())
}

/// What stands where the weights should be.
fn other_weights(names: &[String]) -> String {
    let find = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    let expected = WEIGHTS[..2].join(" or ");
    let one_part = |name: &str, total: &str, end: &str, index: &str| {
        let total = total.trim_end_matches(end).trim_start_matches('0');
        format!(
            "{name} is one part of {total}, and {index}, which says what is where, is not there; download all parts and the \
             index"
        )
    };
    if let Some(name) = find(&[".safetensors"]) {
        return match name.split_once("-of-") {
            Some((_, total)) => one_part(name, total, ".safetensors", WEIGHTS[1]),
            None if name.starts_with("consolidated") => format!(
                "only {name}: weights under the names of their maker's own program are not read; give the folder that \
                 transformers reads, with {expected}"
            ),
            None => format!("weights are in {name}, expected {expected}; rename it if it is the whole model"),
        };
    }
    if let Some((name, (_, total))) =
        names.iter().filter(|name| is_pickled_shard(name)).find_map(|name| Some((name, name.split_once("-of-")?)))
    {
        return one_part(name, total, ".bin", WEIGHTS[3]);
    }
    // Beside the weights a trainer leaves its own state.
    let is_state =
        |name: &str| ["training_args", "optimizer", "scheduler", "rng_state"].iter().any(|s| name.starts_with(s));
    let pickled = names.iter().filter(|name| !is_state(name));
    if let Some(name) = { pickled }.find(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)))
    {
        return format!(
            "only {name}: of what PyTorch has pickled, {} is read; rename it if it is the whole model, or save the model with \
             `save_pretrained`, which writes {}",
            WEIGHTS[2], WEIGHTS[0]
        );
    }
    if let Some(name) = find(&[".gguf"]) {
        return format!("a folder with {name}; give that file itself");
    }
    if let Some(name) = find(&[".h5", ".msgpack", ".onnx"]) {
        return format!("only {name}: weights of other frameworks are not read; load and save the model with PyTorch");
    }
    format!("no weights; a model folder holds {CONFIG}, tokenizer.json and {expected} with its shards")
}

fn is_pickled_shard(name: &str) -> bool {
    name.starts_with(PICKLED) && name.ends_with(".bin")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is said of a folder with these files; those whose content matters are given with it.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let message = check_folder(folder.path()).unwrap_err().to_string();
        assert_eq!(message.replace(&folder.path().display().to_string(), "DIR"), expected);
    }

    #[test]
    fn what_is_no_model_is_named() {
        check(
            &[("adapter_config.json", "{}"), ("adapter_model.safetensors", "x")],
            "DIR: an adapter (LoRA or the like), not a model; merge it into its base model, and give the result",
        );
        check(
            &[("config.json", "{}"), ("optimizer.pt", "x"), ("weights.pt", "x")],
            "DIR: only weights.pt: of what PyTorch has pickled, pytorch_model.bin is read; rename it if it is the whole model, or \
             save the model with `save_pretrained`, which writes model.safetensors",
        );
        check(
            &[("config.json", "{}"), ("pytorch_model-00001-of-00002.bin", "x")],
            "DIR: pytorch_model-00001-of-00002.bin is one part of 2, and pytorch_model.bin.index.json, which says what is where, \
             is not there; download all parts and the index",
        );
        check(
            &[("config.json", "{}"), ("pytorch_model.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0")],
            "DIR/pytorch_model.bin: a pointer that git-lfs left in place of the file; run `git lfs pull` in the folder, or \
             download the file",
        );
        check(
            &[("config.json", "{}"), ("model-00001-of-00003.safetensors", "x")],
            "DIR: model-00001-of-00003.safetensors is one part of 3, and model.safetensors.index.json, which says what is where, \
             is not there; download all parts and the index",
        );
        check(&[("model-q4_0.gguf", "x")], "DIR: a folder with model-q4_0.gguf; give that file itself");
        check(
            &[("config.json", "{}"), ("consolidated.safetensors", "x")],
            "DIR: only consolidated.safetensors: weights under the names of their maker's own program are not read; give the \
             folder that transformers reads, with model.safetensors or model.safetensors.index.json",
        );
        check(
            &[("config.json", "{}"), ("tf_model.h5", "x")],
            "DIR: only tf_model.h5: weights of other frameworks are not read; load and save the model with PyTorch",
        );
        check(
            &[("config.json", "{}")],
            "DIR: no weights; a model folder holds config.json, tokenizer.json and model.safetensors or \
             model.safetensors.index.json with its shards",
        );
        check(&[("model.safetensors", "x")], "DIR: no config.json; download it again");
        check(
            &[("config.json", "{}"), ("model.safetensors", "")],
            "DIR/model.safetensors: an empty file; download it again",
        );
        check(
            &[("config.json", "{}"), ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0")],
            "DIR/model.safetensors: a pointer that git-lfs left in place of the file; run `git lfs pull` in the folder, or \
             download the file",
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_names_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        std::os::unix::fs::symlink("../blobs/gone", &file).unwrap();
        assert_eq!(
            check_folder(folder.path()).unwrap_err().to_string(),
            format!("{}: a link to ../blobs/gone, which is not there; download the file again", file.display())
        );
    }

    #[test]
    fn a_folder_in_place_of_the_weights_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let weights = folder.path().join("model.safetensors");
        fs::create_dir(&weights).unwrap();
        assert_eq!(
            check_folder(folder.path()).unwrap_err().to_string(),
            format!("{}: a folder, where a file was expected; download the model again", weights.display())
        );
    }
}

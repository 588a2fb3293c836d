//! What a folder is: a model, or something that is named before a file of a model is missed.

use std::fs;
use std::path::Path;

use super::LoadError;

const CONFIG: &str = "config.json";
const WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

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
    for name in &names {
        check_link(&folder.join(name))?;
    }
    let has = |name: &str| names.iter().any(|known| known == name);
    let has_weights = WEIGHTS.iter().any(|name| has(name));
    if !has_weights && names.iter().any(|name| name.starts_with("adapter_")) {
        return not(
            "an adapter (LoRA or the like), not a model; merge it into its base model, and give the result".into()
        );
    }
    if !has_weights {
        return not(other_weights(&names));
    }
    if !has(CONFIG) {
        return not(format!("no {CONFIG}; download it again"));
    }
    for name in WEIGHTS.iter().filter(|name| has(name)) {
        check_weights(&folder.join(name))?;
    }
    Ok(())
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
pub(super) fn check_weights(file: &Path) -> Result<(), LoadError> {
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
    let expected = WEIGHTS.join(" or ");
    if let Some(name) = find(&[".safetensors"]) {
        return match name.split_once("-of-") {
            Some((_, total)) => format!(
                "{name} is one part of {}, and {}, which says what is where, is not there; download all parts and the index",
                total.trim_end_matches(".safetensors").trim_start_matches('0'),
                WEIGHTS[1],
            ),
            None => format!("weights are in {name}, expected {expected}; rename it if it is the whole model"),
        };
    }
    if let Some(name) = find(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return format!(
            "only {name}: weights pickled by PyTorch are not read, since reading them can run code; save the model with \
             `save_pretrained`, which writes {}",
            WEIGHTS[0]
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

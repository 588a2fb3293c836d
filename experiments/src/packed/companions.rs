//! Files beside the weights of a model folder that say how it is used; a quantized model keeps them as they are.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Context;

/// Small files that no tensor depends on. A tokenizer's own are the source of what is read of it, and say the same.
const FILES: [&str; 13] = [
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
    // How texts and images are put together.
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];
/// Named templates, one a file.
const TEMPLATES: &str = "additional_chat_templates";

/// What a model folder's tokenizer is read from. A GGUF file's neighbours are not its own.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];

/// Copies to folder `to` what lies beside `tokenizer_file`, byte for byte, where that is a model folder's ([`TOKENIZERS`]).
///
/// # Errors
/// A file that cannot be read or written.
pub(super) fn copy(tokenizer_file: &Path, to: &Path) -> anyhow::Result<()> {
    let Some(from) = tokenizer_file.parent().filter(|_| TOKENIZERS.iter().any(|name| tokenizer_file.ends_with(name)))
    else {
        return Ok(());
    };
    for name in FILES {
        copy_file(&from.join(name), &to.join(name))?;
    }
    let (from, to) = (from.join(TEMPLATES), to.join(TEMPLATES));
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(&to).with_context(|| format!("{}: cannot create the folder", to.display()))?;
    for entry in fs::read_dir(&from).with_context(|| format!("{}: cannot read the folder", from.display()))? {
        let entry = entry.with_context(|| format!("{}: cannot read the folder", from.display()))?;
        copy_file(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_file() {
        let copied = fs::copy(from, to).and_then(|_| File::open(to)?.sync_all());
        copied.with_context(|| {
            format!(
                "cannot copy {} to {} (is the disk full?); free space, or choose another place",
                from.display(),
                to.display()
            )
        })?;
    }
    Ok(())
}

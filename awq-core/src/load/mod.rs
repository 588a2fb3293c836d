//! Checkpoints from disk: Hugging Face folders and GGUF files, as named `f32` tensors with one configuration.
//!
//! Nothing here knows tensors of a backend: values are plain `Vec<f32>`, row-major, `[out, in]`. Files are
//! memory-mapped and read one tensor at a time, so that a model larger than memory can be worked on block by block.

mod class;
pub mod config;
mod error;
mod floats;
mod folder;
mod foreign;
mod fused;
mod gguf;
mod hugging_face;
mod keys;
mod map;
mod memory;
mod overlay;
pub mod packed;
mod pickled;
mod rope;
mod safetensors;
mod shards;
mod storage;
mod stored_dtype;
mod switches;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tokenizer;
mod weights;
mod windows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

pub(crate) use self::class::{Class, GgufArchitecture, InnerSize, KvHeads};
pub use self::config::ModelConfig;
pub use self::error::LoadError;
pub use self::folder::check_folder;
pub(crate) use self::fused::{Fused, Order, Rows, by_key_head, by_kind};
pub use self::fused::{holder_of, in_parts};
pub use self::gguf::GgufCheckpoint;
pub use self::memory::MemoryCheckpoint;
pub use self::overlay::{EditedCheckpoint, EditedTensors};
pub use self::packed::{PackedCheckpoint, PackedHeader};
pub use self::pickled::PickledCheckpoint;
pub use self::rope::{Rope, RopeScaling};
pub use self::safetensors::SafetensorsCheckpoint;
pub use self::storage::StoredType;
pub use self::tokenizer::{Tokenizer, tokenizer_files};
pub use self::weights::{WEIGHTS, open_weights};
pub(crate) use self::windows::Windows;
use crate::quantized::QuantizedWeight;

/// A memory-mapped source of named tensors.
///
/// Names are those of Hugging Face (`model.layers.0.self_attn.q_proj.weight`), whatever the format; shapes are
/// row-major, `[out, in]` for a linear.
pub trait Checkpoint: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// The shape, or `None` where there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values in row-major order, converted or dequantized, NaN and infinity among them. Touches the bytes of this tensor
    /// only.
    ///
    /// # Errors
    /// No such tensor, or a storage type that cannot be converted.
    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError>;

    /// The same of a tensor whose values are all used.
    ///
    /// # Errors
    /// As [`Checkpoint::read_any_f32`], or a value that is NaN or infinite.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let values = self.read_any_f32(name)?;
        match floats::first_non_finite(&values) {
            None => Ok(values),
            Some(index) => Err(LoadError::NonFinite { file: self.file_of(name), name: name.to_owned(), index }),
        }
    }

    /// Whether the tensor's storage type can be converted.
    fn is_readable(&self, _name: &str) -> bool {
        true
    }

    /// Whether a tensor holds integers or booleans, as buffers do and no weight.
    fn is_integer(&self, _name: &str) -> bool {
        false
    }

    /// Whether two tensors of one shape hold the same values.
    ///
    /// # Errors
    /// As [`Checkpoint::read_any_f32`].
    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        let bits = |name| -> Result<Vec<u32>, LoadError> {
            Ok(self.read_any_f32(name)?.into_iter().map(f32::to_bits).collect())
        };
        Ok(bits(name)? == bits(other)?)
    }

    /// How a tensor is stored, from the headers; `None` where there is no such tensor, or its type is not known.
    fn stored_type(&self, name: &str) -> Option<StoredType>;

    /// What a user should know of the files, a sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The file that holds a tensor, for messages.
    fn file_of(&self, _name: &str) -> PathBuf {
        self.source().to_owned()
    }

    /// The codes of a weight that is stored quantized; `None` for every other tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    fn read_quantized(&self, _name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(None)
    }

    /// The file that stands for the checkpoint in messages: the weights' file, or the index of the shards.
    fn source(&self) -> &Path;

    /// Size of all files together.
    fn bytes_on_disk(&self) -> u64;
}

/// A model on disk, opened: its headers are read and checked, its tensors are not read yet.
pub struct OpenedModel {
    /// The facts of the decoder.
    pub config: ModelConfig,
    /// The weights.
    pub checkpoint: Arc<dyn Checkpoint>,
    /// The tokenizer that came with it.
    pub tokenizer: Tokenizer,
    /// How it was quantized, where the folder is a packed checkpoint.
    pub packed: Option<PackedHeader>,
    /// The Jinja template that makes a text of a conversation, where the model has one.
    pub chat_template: Option<String>,
    /// Spellings of the special tokens by the names that templates know them by, such as `bos_token`.
    pub special_tokens: BTreeMap<String, String>,
}

/// Opens a model: a folder in Hugging Face layout (`config.json`, `tokenizer.json`, and `model.safetensors`, else
/// `pytorch_model.bin`, or shards with an index), the same with a `quantization.json` ([`packed`]), or a `.gguf` file.
///
/// # Errors
/// Anything that is missing, truncated, unknown or contradictory; see [`LoadError`].
pub fn open_model(path: &Path) -> Result<OpenedModel, LoadError> {
    if path.is_dir() {
        return open_folder(path);
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return open_gguf(path);
    }
    // A path that is not there is the likelier mistake: say that first.
    std::fs::metadata(path).map_err(|source| LoadError::Open { file: path.to_owned(), source })?;
    Err(LoadError::UnknownFormat { path: path.to_owned() })
}

/// Checks from the `config.json` of `folder` alone that [`open_model`] knows such a model: the rest may not be there yet.
///
/// # Errors
/// A family or a key that is not known, or a model that another tool quantized.
pub fn check_config(folder: &Path) -> Result<(), LoadError> {
    config_of(folder).map(drop)
}

fn config_of(folder: &Path) -> Result<ModelConfig, LoadError> {
    let file = folder.join("config.json");
    foreign::check_settings(folder, &file, &read_json(&file)?)?;
    ModelConfig::from_hugging_face(&file)
}

fn open_folder(folder: &Path) -> Result<OpenedModel, LoadError> {
    check_folder(folder)?;
    let mut config = config_of(folder)?;
    let generation_file = folder.join("generation_config.json");
    if generation_file.exists() {
        let generation: Json = read_json(&generation_file)?;
        for id in (keys::Keys { file: &generation_file, json: &generation }).token_ids("eos_token_id")? {
            if !config.eos_ids.contains(&id) {
                config.eos_ids.push(id);
            }
        }
    }
    let tokenizer = Tokenizer::from_folder(folder, &config)?;
    let chat_template = chat_template(folder)?;
    let special_tokens = special_tokens(folder, &tokenizer)?;
    if folder.join(packed::HEADER_FILE).exists() {
        let checkpoint = PackedCheckpoint::open_folder(folder)?;
        let packed = Some(checkpoint.header().clone());
        return Ok(OpenedModel {
            checkpoint: in_parts(&config, Arc::new(checkpoint)),
            config,
            tokenizer,
            packed,
            chat_template,
            special_tokens,
        });
    }
    let checkpoint = open_weights(folder)?;
    foreign::check_tensors(checkpoint.as_ref())?;
    let checkpoint = in_parts(&config, checkpoint);
    Ok(OpenedModel { config, checkpoint, tokenizer, packed: None, chat_template, special_tokens })
}

/// The template of `chat_template.jinja`, else that of `tokenizer_config.json`: a text, or a list of named ones of which
/// the default is taken.
fn chat_template(folder: &Path) -> Result<Option<String>, LoadError> {
    // As in transformers: a default among several templates counts before the one of its own.
    let files = ["additional_chat_templates/default.jinja", "chat_template.jinja"].map(|name| folder.join(name));
    if let Some(jinja) = files.into_iter().find(|file| file.exists()) {
        return match std::fs::read_to_string(&jinja) {
            Ok(template) => Ok(Some(template)),
            Err(source) => Err(LoadError::Open { file: jinja, source }),
        };
    }
    let file = folder.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(None);
    }
    let json: Json = read_json(&file)?;
    let text = |value: &Json| value.as_str().map(str::to_owned);
    Ok(match &json["chat_template"] {
        Json::Array(named) => named.iter().find(|one| one["name"] == "default").and_then(|one| text(&one["template"])),
        value => text(value),
    })
}

/// The tokens that `special_tokens_map.json` and `tokenizer_config.json` name, each a text or an object with one.
fn special_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<BTreeMap<String, String>, LoadError> {
    let mut tokens = named_by_ids(tokenizer);
    for file in ["special_tokens_map.json", "tokenizer_config.json"].map(|name| folder.join(name)) {
        if !file.exists() {
            continue;
        }
        let json: Json = read_json(&file)?;
        for (name, value) in json.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token")) {
            if let Some(token) = value.as_str().or_else(|| value["content"].as_str()) {
                tokens.insert(name.clone(), token.to_owned());
            }
        }
    }
    Ok(tokens)
}

fn named_by_ids(tokenizer: &Tokenizer) -> BTreeMap<String, String> {
    let named = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())];
    named.into_iter().filter_map(|(name, id)| Some((name.to_owned(), tokenizer.token(id?)?))).collect()
}

fn open_gguf(file: &Path) -> Result<OpenedModel, LoadError> {
    let opened = gguf::open(file)?;
    let tokenizer = Tokenizer::from_gguf(file, &opened.header.metadata)?;
    let chat_template = match opened.header.metadata.get("tokenizer.chat_template") {
        Some(gguf::Value::Text(template)) => Some(template.clone()),
        _ => None,
    };
    // In this format the vocabulary is the embedding's; a folder's tokenizer may know tokens (padding, say) without a row.
    let (tokens, rows) = (tokenizer.vocab_size(), opened.config.vocab_size);
    if tokens > rows {
        return Err(LoadError::VocabularyMismatch { file: file.to_owned(), tokenizer: tokens, model: rows });
    }
    let checkpoint = Arc::new(opened.checkpoint);
    let special_tokens = named_by_ids(&tokenizer);
    Ok(OpenedModel { config: opened.config, checkpoint, tokenizer, packed: None, chat_template, special_tokens })
}

/// Reads a tensor whose shape must be `expected`.
///
/// # Errors
/// As [`Checkpoint::read_f32`], and [`LoadError::WrongShape`] before any byte of the tensor is touched.
pub fn read_exact_shape(checkpoint: &dyn Checkpoint, name: &str, expected: &[usize]) -> Result<Vec<f32>, LoadError> {
    check_shape(checkpoint, name, expected)?;
    checkpoint.read_f32(name)
}

/// The same of a tensor of which not every value is used.
///
/// # Errors
/// As [`Checkpoint::read_any_f32`], and [`LoadError::WrongShape`].
pub(crate) fn read_any_exact_shape(
    checkpoint: &dyn Checkpoint,
    name: &str,
    expected: &[usize],
) -> Result<Vec<f32>, LoadError> {
    check_shape(checkpoint, name, expected)?;
    checkpoint.read_any_f32(name)
}

/// A missing tensor is an error of reading, which knows the nearest names.
pub(crate) fn check_shape(checkpoint: &dyn Checkpoint, name: &str, expected: &[usize]) -> Result<(), LoadError> {
    match checkpoint.shape(name) {
        Some(found) if found != expected => Err(LoadError::WrongShape {
            file: checkpoint.file_of(name),
            name: name.to_owned(),
            expected: expected.to_vec(),
            found,
        }),
        _ => Ok(()),
    }
}

/// Parses a JSON file.
fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(file).map_err(|source| LoadError::Open { file: file.to_owned(), source })?;
    serde_json::from_slice(without_mark(file, &bytes)?)
        .map_err(|source| LoadError::Json { file: file.to_owned(), source })
}

/// The text of a JSON file without the byte order mark that some editors put in front.
fn without_mark<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a [u8], LoadError> {
    match bytes {
        [0xEF, 0xBB, 0xBF, text @ ..] => Ok(text),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Err(LoadError::Encoding { file: file.to_owned(), encoding: "UTF-16" }),
        text => Ok(text),
    }
}

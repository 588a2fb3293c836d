//! A model on disk, opened: what kind of files they are, whose model it is, its configuration, tensors and tokenizer.

mod gguf;
mod hugging_face;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

pub use self::gguf::gguf_outline;
use crate::load::foreign::Scheme;
use crate::load::packed::HEADER_FILE;
use crate::load::{
    Checkpoint, Class, Keys, LoadError, ModelConfig, PackedCheckpoint, PackedHeader, Tokenizer, check_folder, foreign,
    gguf as gguf_files, language_checkpoint, open_weights, open_weights_of, read_json, scheme_of_tensors,
    with_written_names,
};
use crate::model;

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
    /// Method, settings and tool, where another tool has quantized it: `gptq: bits 4, group size 64 (by gptqmodel:7.7.0)`.
    pub quantized_by: Option<String>,
    /// The Jinja template that makes a text of a conversation, where the model has one.
    pub chat_template: Option<String>,
    /// Spellings of the special tokens by the names that templates know them by, such as `bos_token`.
    pub special_tokens: BTreeMap<String, String>,
}

/// Opens a model: a folder in Hugging Face layout (`config.json`, `tokenizer.json`, and `model.safetensors`, else
/// `pytorch_model.bin`, or shards with an index), the same with a `quantization.json` ([`crate::load::packed`]), or a `.gguf` file or any
/// of its parts.
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

/// The configuration, and how the weights are stored where another tool has quantized them.
fn config_of(folder: &Path) -> Result<(ModelConfig, Option<Scheme>), LoadError> {
    let file = folder.join("config.json");
    let scheme = foreign::check_settings(folder, &file, &read_json(&file)?)?;
    Ok((ModelConfig::from_hugging_face(&file)?, scheme))
}

/// The classes of transformers that are known.
fn known_classes() -> Vec<&'static Class> {
    model::classes().collect()
}

/// The class of a configuration.
fn class_of(config: &ModelConfig) -> Option<&'static Class> {
    model::classes().find(|class| class.name == config.architecture)
}

/// The tensors of `checkpoint` as the class of `config` has them: those of a language model in a model of texts and images under the
/// names of its class, and each part of a tensor that holds the rows of several linears in the place of that tensor.
pub fn in_parts(config: &ModelConfig, checkpoint: Arc<dyn Checkpoint>) -> Arc<dyn Checkpoint> {
    let checkpoint = match &config.outer {
        None => checkpoint,
        Some(outer) => {
            let named = outer["architectures"][0].as_str().or(outer["model_type"].as_str());
            Arc::new(language_checkpoint(checkpoint, named.unwrap_or("a model of texts and images")))
        }
    };
    crate::load::in_parts(class_of(config).map_or(&[][..], |class| class.fused), config, checkpoint)
}

fn open_folder(folder: &Path) -> Result<OpenedModel, LoadError> {
    check_folder(folder)?;
    let (mut config, scheme) = config_of(folder)?;
    let generation_file = folder.join("generation_config.json");
    if generation_file.exists() {
        let generation: Json = read_json(&generation_file)?;
        for id in (Keys { file: &generation_file, json: &generation }).token_ids("eos_token_id")? {
            if !config.eos_ids.contains(&id) {
                config.eos_ids.push(id);
            }
        }
    }
    let tokenizer = Tokenizer::from_folder(folder, &config)?;
    let chat_template = chat_template(folder)?;
    let special_tokens = special_tokens(folder, &tokenizer)?;
    if folder.join(HEADER_FILE).exists() {
        let checkpoint = PackedCheckpoint::open_folder(folder)?;
        let packed = Some(checkpoint.header().clone());
        return Ok(OpenedModel {
            checkpoint: in_parts(&config, Arc::new(checkpoint)),
            config,
            tokenizer,
            packed,
            quantized_by: None,
            chat_template,
            special_tokens,
        });
    }
    let (checkpoint, quantized_by) = tensors_of(folder, &config, scheme)?;
    Ok(OpenedModel { config, checkpoint, tokenizer, packed: None, quantized_by, chat_template, special_tokens })
}

/// Configuration and tensors of a model's folder in Hugging Face layout, without what belongs to texts.
///
/// # Errors
/// As [`open_model`].
pub fn open_tensors(folder: &Path) -> Result<(ModelConfig, Arc<dyn Checkpoint>), LoadError> {
    let (config, scheme) = config_of(folder)?;
    let (checkpoint, _) = tensors_of(folder, &config, scheme)?;
    Ok((config, checkpoint))
}

/// The tensors, and method, settings and tool where another tool has quantized them.
fn tensors_of(
    folder: &Path,
    config: &ModelConfig,
    scheme: Option<Scheme>,
) -> Result<(Arc<dyn Checkpoint>, Option<String>), LoadError> {
    let scheme = match scheme {
        Some(scheme) => Some(scheme),
        None => scheme_of_tensors(folder)?,
    };
    let checkpoint = match &scheme {
        Some(scheme) => with_written_names(&config.architecture, open_weights_of(folder, scheme)?),
        None => open_weights(folder)?,
    };
    foreign::check_tensors(checkpoint.as_ref())?;
    Ok((in_parts(config, checkpoint), scheme.map(|scheme| scheme.described().to_owned())))
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
    let opened = gguf_files::open(file, &known_classes())?;
    let tokenizer = Tokenizer::from_gguf(file, &opened.header.metadata)?;
    let text = |key: &str| match opened.header.metadata.get(key) {
        Some(gguf_files::Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let (chat_template, quantized_by) = (text("tokenizer.chat_template"), text("general.quantized_by"));
    // In this format the vocabulary is the embedding's; a folder's tokenizer may know tokens (padding, say) without a row.
    let (tokens, rows) = (tokenizer.vocab_size(), opened.config.vocab_size);
    if tokens > rows {
        return Err(LoadError::VocabularyMismatch { file: file.to_owned(), tokenizer: tokens, model: rows });
    }
    let checkpoint = Arc::new(opened.checkpoint);
    let special_tokens = named_by_ids(&tokenizer);
    let config = opened.config;
    Ok(OpenedModel { config, checkpoint, tokenizer, packed: None, quantized_by, chat_template, special_tokens })
}

#[cfg(test)]
mod tests;

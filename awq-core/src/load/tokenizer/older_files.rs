//! Tokenizers of folders without a `tokenizer.json`: `vocab.json` with `merges.txt` (byte-level BPE), or a SentencePiece
//! `tokenizer.model`, with the settings in the files beside.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::AddedToken;

use super::byte_level::{self, PreTokenizer};
use super::sentence_piece::{ModelFile, SpacePrefix};
use super::settings::Settings;
use super::{Around, SpecialTokens, Tokenizer, sha256_hex, tokenizer_error};
use crate::load::{LoadError, ModelConfig, read_json};

const JSON: &str = "tokenizer.json";
const SENTENCE_PIECE: &str = "tokenizer.model";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// The files from which a folder's tokenizer is read, of those that are there; none where it has no tokenizer.
pub fn tokenizer_files(is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    if is_there(JSON) {
        return vec![JSON];
    }
    let mut files = Vec::new();
    if is_there(SENTENCE_PIECE) {
        files.push(SENTENCE_PIECE);
    }
    if is_there(VOCABULARY) && is_there(MERGES) {
        files.extend([VOCABULARY, MERGES]);
    }
    files
}

/// Classes of transformers that cut words in a way that is known, and that way's name in GGUF files.
const CLASSES: [(&str, &str); 3] =
    [("GPT2Tokenizer", "gpt-2"), ("CodeGenTokenizer", "gpt-2"), ("Qwen2Tokenizer", "qwen2")];

/// The class that transformers takes where `tokenizer_config.json` names none.
const CLASSES_OF_MODELS: [(&str, &str); 8] = [
    ("GPT2LMHeadModel", "GPT2Tokenizer"),
    ("GPTBigCodeForCausalLM", "GPT2Tokenizer"),
    ("OPTForCausalLM", "GPT2Tokenizer"),
    ("PhiForCausalLM", "GPT2Tokenizer"),
    ("Qwen2ForCausalLM", "Qwen2Tokenizer"),
    ("Qwen2MoeForCausalLM", "Qwen2Tokenizer"),
    ("Qwen3ForCausalLM", "Qwen2Tokenizer"),
    ("Qwen3MoeForCausalLM", "Qwen2Tokenizer"),
];

/// The tokenizer of `folder`, or `None` where it has no such files.
///
/// # Errors
/// Files that are malformed or contradict each other, or a class that is not known.
pub(super) fn read(folder: &Path, config: &ModelConfig) -> Result<Option<Tokenizer>, LoadError> {
    let files = tokenizer_files(|name| folder.join(name).exists());
    if files.is_empty() {
        return Ok(None);
    }
    let settings = Settings::read(folder)?;
    let of_model =
        || CLASSES_OF_MODELS.iter().find(|(model, _)| *model == config.architecture).map(|(_, class)| *class);
    let class = settings.class().or_else(of_model);
    let way = class.and_then(|class| CLASSES.iter().find(|(known, _)| *known == class)).map(|(_, way)| *way);
    let has_pieces = files.contains(&SENTENCE_PIECE);
    match way.and_then(PreTokenizer::by_name) {
        Some(pre) if files.contains(&VOCABULARY) => byte_level_tokenizer(folder, &settings, pre, config).map(Some),
        _ if has_pieces => sentence_piece_tokenizer(folder, &settings.literally(), config).map(Some),
        _ => {
            let known = CLASSES.map(|(class, _)| class).join(", ");
            let found = class.map_or("is not there".to_owned(), |class| format!("{class:?}"));
            let problem = format!(
                "{found}; of {VOCABULARY} and {MERGES}, the tokenizers of {known} are read: save this one with transformers, which \
                 writes {JSON}"
            );
            Err(settings.bad("tokenizer_class", problem))
        }
    }
}

fn byte_level_tokenizer(
    folder: &Path,
    settings: &Settings,
    pre: &PreTokenizer,
    config: &ModelConfig,
) -> Result<Tokenizer, LoadError> {
    let (file, merges_file) = (folder.join(VOCABULARY), folder.join(MERGES));
    let ids: BTreeMap<String, u32> = read_json(&file)?;
    let opening = |source| LoadError::Open { file: merges_file.clone(), source };
    let merges = std::fs::read_to_string(&merges_file).map_err(opening)?;
    check_ids(&file, &ids)?;
    let pairs: Vec<&str> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let listed = serde_json::to_string(&ids).map_err(|error| tokenizer_error(&file, error))?;
    let digested = format!("{listed}\n{}", pairs.join("\n"));
    let prefix_space = settings.bool("add_prefix_space")?.unwrap_or(false);
    let inner = byte_level::build(&merges_file, pre, ids.into_iter().collect(), &pairs, prefix_space)?;
    // The class's own, where the files name no other.
    let end = "<|endoftext|>";
    let defaults =
        [("eos_token", end), ("unk_token", end)].into_iter().chain(pre.has_bos.then_some(("bos_token", end)));
    let defaults = defaults.map(|(name, text)| (name, text.to_owned())).collect();
    finish(
        inner,
        &file,
        settings,
        Defaults { named: defaults, is_of_file: false, adds_bos: false },
        config,
        digested.as_bytes(),
    )
}

/// # Errors
/// Two tokens with one id.
fn check_ids(file: &Path, ids: &BTreeMap<String, u32>) -> Result<(), LoadError> {
    let mut tokens: BTreeMap<u32, &str> = BTreeMap::new();
    for (token, id) in ids {
        if let Some(twin) = tokens.insert(*id, token) {
            return Err(tokenizer_error(file, format!("tokens {twin:?} and {token:?} have one id, {id}")));
        }
    }
    Ok(())
}

fn sentence_piece_tokenizer(folder: &Path, settings: &Settings, config: &ModelConfig) -> Result<Tokenizer, LoadError> {
    let file = folder.join(SENTENCE_PIECE);
    let mut model = ModelFile::read(&file)?;
    let digested = model.bytes.clone();
    for (id, token) in &settings.added {
        model.rename(*id, &token.content, &|id| settings.added.contains_key(&id));
    }
    let prefix = match (settings.bool("add_prefix_space")?, settings.bool("legacy")?) {
        (Some(false), _) => SpacePrefix::Never,
        (_, Some(false)) => SpacePrefix::FirstText,
        // Files that do not say are older than the difference.
        _ => SpacePrefix::EveryText,
    };
    let mut inner = model.build(prefix)?;
    inner.add_tokens(model.control()).map_err(|error| tokenizer_error(&file, error))?;
    finish(
        inner,
        &file,
        settings,
        Defaults { named: model.named(), is_of_file: true, adds_bos: true },
        config,
        &digested,
    )
}

/// What holds where no file says it.
struct Defaults {
    /// Tokens by their names.
    named: Vec<(&'static str, String)>,
    /// Whether the vocabulary's own file names them, which counts before `config.json`, and not the class alone.
    is_of_file: bool,
    adds_bos: bool,
}

/// Adds tokens, and settles which stand around a text.
fn finish(
    mut inner: tokenizers::Tokenizer,
    file: &Path,
    settings: &Settings,
    defaults: Defaults,
    config: &ModelConfig,
    digested: &[u8],
) -> Result<Tokenizer, LoadError> {
    let mut special = settings.special();
    let is_token = |text: &str| inner.token_to_id(text).is_some();
    let unnamed = defaults.named.iter().filter(|(name, text)| settings.named(name).is_none() && is_token(text));
    let unnamed: BTreeMap<&str, &String> = unnamed.map(|(name, text)| (*name, text)).collect();
    special.extend(unnamed.values().map(|text| AddedToken::from(text.as_str(), true)));
    settings.add_to(&mut inner, special)?;
    let id_of = |text: Option<&String>| text.and_then(|text| inner.token_to_id(text));
    let id = |name: &str, of_model: Option<u32>| {
        let named = settings.named(name).map(|token| token.content);
        let default = id_of(unnamed.get(name).copied());
        id_of(named.as_ref()).or(default.filter(|_| defaults.is_of_file)).or(of_model).or(default)
    };
    let bos = id("bos_token", config.bos_id);
    let eos = id("eos_token", config.eos_ids.first().copied());
    let adds_bos = settings.bool("add_bos_token")?.unwrap_or(defaults.adds_bos);
    let adds_eos = settings.bool("add_eos_token")?.unwrap_or(false);
    let around = Around {
        prefix: bos.filter(|_| adds_bos).into_iter().collect(),
        suffix: eos.filter(|_| adds_eos).into_iter().collect(),
    };
    let added = serde_json::to_vec(&settings.added).map_err(|error| tokenizer_error(file, error))?;
    let sha256 = sha256_hex(&[digested, &added].concat());
    Ok(Tokenizer { inner, file: file.to_owned(), special: SpecialTokens { bos, eos, around }, sha256 })
}

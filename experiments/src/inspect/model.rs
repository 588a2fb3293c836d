//! [`ModelFacts`]: a model that opens.

use std::path::Path;

use awq_core::grid::Grid;
use awq_core::load::{Checkpoint, LoadError, ModelConfig, PackedHeader, Tokenizer};
use awq_core::model::wiring::Wiring;
use awq_core::model::{known_families, wiring_of};
use awq_core::open::{OpenedModel, open_model};
use awq_core::rule::GridRule;
use serde::Serialize;
use serde_json::Value as Json;

use super::linears::GridFacts;
use super::memory::{self, Decoding, Floats, Stage};
use super::parameters::{Parameters, StoredAs};

/// A model, from the headers of its files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// What the user calls it.
    pub name: String,
    /// What its files are: `Hugging Face folder`, `GGUF file`, `packed folder`.
    pub files: &'static str,
    /// Size of the weights' files.
    pub bytes_on_disk: u64,
    /// Class in transformers.
    pub architecture: String,
    /// `model_type` of the class.
    pub family: Option<&'static str>,
    /// Its dimensions.
    pub shapes: Shapes,
    /// Its values.
    pub parameters: Parameters,
    /// In what types they are stored.
    pub stored: Vec<StoredAs>,
    /// How it was quantized, where it is a packed folder.
    pub packed: Option<PackedFacts>,
    /// Method, settings and tool, where another tool has quantized it.
    pub quantized_by: Option<String>,
    /// Its linears on the grid that was asked about; of a packed folder, on its own.
    pub quantization: GridFacts,
    /// Memory of each kind of work.
    pub memory: Vec<Stage>,
    /// Its tokenizer.
    pub tokenizer: TokenizerFacts,
    /// Whether it has a chat template.
    pub has_chat_template: bool,
    /// What the loader says of it.
    pub notes: Vec<String>,
    /// What cannot be done with it, and why.
    pub unsupported: Vec<String>,
}

/// Dimensions of a decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shapes {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward module, or inside an expert.
    pub intermediate_size: usize,
    /// Blocks.
    pub n_blocks: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys and values.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Whether the head is the embedding.
    pub has_tied_head: bool,
    /// Experts of a block; 0 for a model without.
    pub n_experts: usize,
    /// Experts that a token goes through, where the configuration says so.
    pub n_active_experts: Option<usize>,
}

/// How a packed folder was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PackedFacts {
    /// The method's label.
    pub method: String,
    /// Its settings, as an experiment's file has them.
    pub settings: Json,
    /// The grids that were asked for: `W4 g128 (*.down_proj W8 g128)`.
    pub grids: String,
    /// Bits a weight, with what lies between codes and weights.
    pub bits_per_weight: f64,
    /// What it was calibrated on, as an experiment's file has it.
    pub calibration: Option<Json>,
    /// Commit of the program that wrote it.
    pub commit: String,
    /// sha256 over all codes, scales and zero points.
    pub codes_sha256: String,
}

/// A tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerFacts {
    /// `BPE`, `Unigram`.
    pub kind: &'static str,
    /// Highest token id + 1.
    pub vocab_size: usize,
    /// Tokens that stand for themselves in a text.
    pub n_special: usize,
    /// The beginning of a text.
    pub bos: Option<String>,
    /// The end of one.
    pub eos: Option<String>,
    /// Whether it puts BOS before a text.
    pub adds_bos: bool,
    /// Whether it puts tokens after a text.
    pub adds_suffix: bool,
}

impl ModelFacts {
    /// Opens the model at `path` and reads nothing but headers (and the head and the embedding, where a file may hold one matrix
    /// under both names).
    pub(super) fn of(name: &str, path: &Path, grid: &Grid) -> Result<Self, LoadError> {
        let opened = open_model(path)?;
        let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref())?;
        Ok(Self::of_opened(name, path, &opened, &wiring, grid))
    }

    fn of_opened(name: &str, path: &Path, opened: &OpenedModel, wiring: &Wiring, grid: &Grid) -> Self {
        let OpenedModel { config, checkpoint, tokenizer, packed, chat_template, .. } = opened;
        let checkpoint: &dyn Checkpoint = checkpoint.as_ref();
        let parameters = Parameters::of(wiring, config);
        let rule = packed.as_ref().map_or_else(|| GridRule::from(*grid), PackedHeader::rule);
        let quantization = GridFacts::of(wiring, config, checkpoint, &rule);
        let decoding = match packed {
            Some(header) => Decoding::of_packed(header),
            None => Decoding::of_kernels(parameters.quantized, quantization.bits_per_weight),
        };
        let family = known_families().into_iter().find(|family| family.class == config.architecture);
        Self {
            name: name.to_owned(),
            files: match (packed, path.is_dir()) {
                (Some(_), _) => "packed folder",
                (None, true) => "Hugging Face folder",
                (None, false) => "GGUF file",
            },
            bytes_on_disk: checkpoint.bytes_on_disk(),
            architecture: config.architecture.clone(),
            family: family.map(|family| family.model_type),
            shapes: Shapes::of(wiring, config),
            memory: memory::stages(
                wiring,
                config,
                (&parameters, grid),
                (decoding, Floats::of(wiring, config, checkpoint)),
                packed.is_some(),
            ),
            parameters,
            stored: StoredAs::of(checkpoint),
            unsupported: unsupported(packed.as_ref(), chat_template.is_some()),
            packed: packed.as_ref().map(PackedFacts::from),
            quantized_by: opened.quantized_by.clone(),
            quantization,
            tokenizer: TokenizerFacts::from(tokenizer),
            has_chat_template: chat_template.is_some(),
            notes: wiring.notes.clone(),
        }
    }
}

/// What a model that opens is no good for.
fn unsupported(packed: Option<&PackedHeader>, has_chat_template: bool) -> Vec<String> {
    let quantize = packed.map(|header| {
        format!("quantize: it is quantized already ({}); quantize the model that it was made from", header.method)
    });
    let chat = "chat: it has no chat template; `generate` continues a text".to_owned();
    quantize.into_iter().chain((!has_chat_template).then_some(chat)).collect()
}

/// Experts that a token goes through, as the configuration says it.
pub(super) fn active_experts(config: &ModelConfig) -> Option<usize> {
    config.raw.get("num_experts_per_tok").and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok())
}

impl Shapes {
    fn of(wiring: &Wiring, config: &ModelConfig) -> Self {
        let experts =
            wiring.blocks.iter().flat_map(|block| block.layout.linears.iter().filter_map(|facts| facts.expert));
        let n_experts = experts.max().map_or(0, |last| last + 1);
        Self {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            n_blocks: config.n_blocks,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            context: config.longest_sequence(),
            has_tied_head: wiring.head.is_none(),
            n_experts,
            n_active_experts: active_experts(config).filter(|_| n_experts > 0),
        }
    }
}

impl From<&PackedHeader> for PackedFacts {
    fn from(header: &PackedHeader) -> Self {
        Self {
            method: header.method.clone(),
            settings: header.settings.clone(),
            grids: header.rule().label(),
            bits_per_weight: header.bits_per_weight,
            calibration: header.calibration.clone(),
            commit: header.commit.clone(),
            codes_sha256: header.codes_sha256.clone(),
        }
    }
}

impl From<&Tokenizer> for TokenizerFacts {
    fn from(tokenizer: &Tokenizer) -> Self {
        let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        Self {
            kind: tokenizer.kind(),
            vocab_size: tokenizer.vocab_size(),
            n_special: tokenizer.special().len(),
            bos: spelled(tokenizer.bos()),
            eos: spelled(tokenizer.eos()),
            adds_bos: tokenizer.adds_bos(),
            adds_suffix: tokenizer.adds_suffix(),
        }
    }
}

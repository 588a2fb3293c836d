//! Decoder-only language models as lists of blocks that are handed out one at a time.
//!
//! What a family is, is data: [`BlockTable`] names its linears, which input each reads, which groups of them share an
//! AWQ scale, and what that scale is folded into; [`wiring::Wiring`] names its tensors and says what is computed, block
//! by block. A family is one file with these two and a line in `FAMILIES`.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value as Json;

use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::load::{Checkpoint, Class, LoadError, ModelConfig};
use crate::quantized::QuantizedWeight;

mod alibi;
pub mod bloom;
mod decoder;
mod embedding;
pub mod falcon;
pub mod gemma;
pub mod gpt2;
pub mod gpt_neox;
pub mod granite;
mod head;
mod keys;
mod known;
pub mod layers;
mod layout;
pub mod llama;
pub mod mixtral;
pub mod mpt;
pub mod olmo2;
pub mod opt;
pub mod packing;
pub mod phi;
pub mod phi3;
mod products;
pub mod qwen3;
pub mod qwen_moe;
mod rotary;
pub(crate) mod rows;
pub mod smollm3;
pub mod stablelm;
mod storage;
mod tensors;
pub mod tiny;
mod walk;
pub mod wiring;

use decoder::WiredDecoder;
pub use embedding::Embedding;
pub use head::Head;
pub use known::{KnownFamily, known_families};
use layers::{Linear, Norm};
pub use layout::{BlockLayout, BlockTable, GroupTable, Inspect, LinearFacts, LinearName, NormName, PrevOp, ScaleGroup};
use packing::PackedSequences;
pub use products::{CodeProducts, Products, RoundedProducts};
pub use storage::{Storage, StoredShare};
pub use walk::for_each_block;
use wiring::Wiring;

/// Everything in a block that a method may change. Tensors are values: a changed block is a new one.
#[derive(Clone, Debug)]
pub struct BlockParams<B: QuantBackend> {
    /// Linears by name, weights `[out, in]`.
    pub linears: BTreeMap<LinearName, Linear<B>>,
    /// Norms by name.
    pub norms: BTreeMap<NormName, Norm<B>>,
    /// Who multiplies with the linears: the plain product in f32 as a checkpoint is read.
    pub products: Arc<dyn Products<B>>,
}

impl<B: QuantBackend> BlockParams<B> {
    /// A linear that the layout names; absent only through a bug in a family's file.
    pub fn linear(&self, name: LinearName) -> &Linear<B> {
        self.linears.get(&name).unwrap_or_else(|| panic!("the family's layout names `{name}`, its loader does not"))
    }

    /// `x W^T + b` of a linear that the layout names, for `x: [batch, seq, in]`.
    pub fn forward(&self, name: LinearName, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.products.product(name, self.linear(name), x)
    }

    /// A norm that the layout names; absent only through a bug in a family's file.
    pub fn norm(&self, name: NormName) -> &Norm<B> {
        self.norms.get(&name).unwrap_or_else(|| panic!("the family's layout names `{}`, its loader does not", name.0))
    }
}

/// Sees the input of each linear during a forward pass: what hooks are elsewhere.
pub trait Tap<B: QuantBackend> {
    /// `input: [batch, seq, in]` is what `linear` (and all that share its input) multiplies.
    fn see(&mut self, linear: LinearName, input: &Tensor<B, 3>);
}

/// Sees nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoTap;

impl<B: QuantBackend> Tap<B> for NoTap {
    fn see(&mut self, _: LinearName, _: &Tensor<B, 3>) {}
}

/// One decoder block.
pub trait Block<B: QuantBackend>: Send + Sync {
    /// What methods must know of it.
    fn layout(&self) -> &BlockLayout;

    /// Weights and norms.
    fn params(&self) -> &BlockParams<B>;

    /// The same block with other parameters.
    fn with_params(&self, params: BlockParams<B>) -> Box<dyn Block<B>>;

    /// `[batch, seq, hidden]` to `[batch, seq, hidden]`, positions starting at 0.
    fn forward(&self, hidden: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// Tokens `[1, tokens, hidden]` of packed sequences to the same, each at its position in its sequence.
    fn forward_packed(&self, hidden: Tensor<B, 3>, sequences: &PackedSequences<B>) -> Tensor<B, 3>;

    /// Runs the attention module alone on its (normed) input, `[batch, seq, hidden]`.
    fn attention(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// Runs the feed-forward module alone on its (normed) input, `[batch, seq, hidden]`.
    fn mlp(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;
}

/// The same block with the products of its linears computed by `products`.
pub fn with_products<B: QuantBackend>(block: &dyn Block<B>, products: Arc<dyn Products<B>>) -> Box<dyn Block<B>> {
    block.with_params(BlockParams { products, ..block.params().clone() })
}

/// A whole model. Only one block's weights need to be in memory at a time.
pub trait Decoder<B: QuantBackend>: Send + Sync {
    /// Its configuration.
    fn config(&self) -> &ModelConfig;

    /// What methods must know of a block.
    fn layout(&self, block_idx: usize) -> &BlockLayout;

    /// Checks that the embedding has a finite row for each id.
    ///
    /// # Errors
    /// [`LoadError::NonFiniteRow`].
    fn check_ids(&self, ids: &[Vec<u32>]) -> Result<(), LoadError>;

    /// Reads what makes hidden states of tokens. It is in memory until it is dropped.
    ///
    /// # Errors
    /// A file that can no longer be read.
    fn embedding(&self) -> Result<Embedding<B>, LoadError>;

    /// Reads one block from the checkpoint.
    ///
    /// # Errors
    /// A missing, misshapen or non-finite tensor, with file and name.
    fn block(&self, block_idx: usize) -> Result<Box<dyn Block<B>>, LoadError>;

    /// The codes of a block's linears, of those that the checkpoint has in codes.
    ///
    /// # Errors
    /// A file that can no longer be read.
    fn codes(&self, block_idx: usize) -> Result<BTreeMap<LinearName, QuantizedWeight>, LoadError>;

    /// The same model with the blocks that `checkpoint` has, and its head where that is quantized. All else is shared: no method
    /// changes it.
    ///
    /// # Errors
    /// A head that cannot be read.
    fn over(&self, checkpoint: Arc<dyn Checkpoint>) -> Result<Box<dyn Decoder<B>>, LoadError>;

    /// The last norm, and the projection behind it where there is one: hidden states `[batch, seq, hidden]` to what the head
    /// multiplies, `[batch, seq, width]` as wide as embeddings are.
    fn final_norm(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The weight of the head, `[vocab, width]`; the embedding where they are tied.
    ///
    /// # Errors
    /// As [`Decoder::head`].
    fn head_weight(&self) -> Result<Tensor<B, 2>, LoadError>;

    /// Reads the head, for products in `arithmetic`.
    ///
    /// # Errors
    /// A file that can no longer be read.
    fn head(&self, arithmetic: Arithmetic) -> Result<Head<B>, LoadError>;
}

/// What wires a family's models: checks what the family takes for granted, and names the tensors.
type WireFamily = fn(&ModelConfig, &dyn Checkpoint) -> Result<Wiring, LoadError>;

/// Each class of transformers that is known, and what wires it.
const FAMILIES: &[(&Class, WireFamily)] = &[
    (&bloom::BLOOM, bloom::wiring),
    (&falcon::FALCON, falcon::wiring),
    (&gemma::GEMMA, gemma::wiring),
    (&gemma::GEMMA2, gemma::gemma2_wiring),
    (&gemma::GEMMA3, gemma::gemma3_wiring),
    (&gpt2::GPT2, gpt2::wiring),
    (&gpt2::BIGCODE, gpt2::bigcode_wiring),
    (&gpt_neox::GPT_NEOX, gpt_neox::wiring),
    (&granite::GRANITE, granite::wiring),
    (&llama::LLAMA, llama::wiring),
    (&llama::MISTRAL, llama::wiring),
    (&mixtral::MIXTRAL, mixtral::wiring),
    (&mpt::MPT, mpt::wiring),
    (&olmo2::OLMO2, olmo2::wiring),
    (&opt::OPT, opt::wiring),
    (&phi::PHI, phi::wiring),
    (&phi3::PHI3, phi3::wiring),
    (&llama::QWEN2, llama::qwen2_wiring),
    (&qwen3::QWEN3, qwen3::wiring),
    (&qwen_moe::QWEN2_MOE, qwen_moe::qwen2_wiring),
    (&qwen_moe::QWEN3_MOE, qwen_moe::qwen3_wiring),
    (&smollm3::SMOLLM3, smollm3::wiring),
    (&stablelm::STABLELM, stablelm::wiring),
];

/// The classes that are known.
pub(crate) fn classes() -> impl Iterator<Item = &'static Class> {
    FAMILIES.iter().map(|(class, _)| *class)
}

/// The linear of the checkpoint that holds `linear`, where that is a part of one: `self_attn.qkv_proj` of `self_attn.qkv_proj.q`.
pub fn holder_of(linear: &str) -> Option<&str> {
    let (holder, part) = linear.rsplit_once('.')?;
    let mut fused = classes().flat_map(|class| class.fused);
    fused.any(|fused| fused.name == holder && fused.parts.iter().any(|(known, _)| *known == part)).then_some(holder)
}

/// How a model's tensors make up a decoder.
///
/// # Errors
/// An architecture that no family knows (never a fallback), or a model of a family that computes otherwise.
pub fn wiring_of(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let found = FAMILIES.iter().find(|(class, _)| class.name == config.architecture);
    let (_, wire) = found.ok_or_else(|| LoadError::UnknownArchitecture {
        file: checkpoint.source().to_owned(),
        architecture: config.architecture.clone(),
        known: classes().map(|class| class.name.to_owned()).collect(),
    })?;
    wire(config, checkpoint)?.settled(config, checkpoint)
}

/// Opens a decoder over a checkpoint.
///
/// # Errors
/// An architecture that no family knows (never a fallback), or a checkpoint that lacks a tensor.
pub fn open_decoder<B: QuantBackend>(
    config: ModelConfig,
    checkpoint: Arc<dyn Checkpoint>,
    device: &B::Device,
) -> Result<Box<dyn Decoder<B>>, LoadError> {
    let wiring = wiring_of(&config, checkpoint.as_ref())?;
    Ok(Box::new(WiredDecoder::<B>::open(wiring, config, checkpoint, device)?))
}

/// Refuses a model whose `config.json` gives one of the `fixed` keys another value than its family's code computes with. An
/// absent key stands for that value.
fn check_fixed(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    fixed: &[(&'static str, Json)],
) -> Result<(), LoadError> {
    for (key, expected) in fixed {
        let found = config.raw.get(key).filter(|found| !found.is_null() && *found != expected);
        if let Some(found) = found {
            let problem = format!("{found}, expected {expected}: other models of this class are not supported");
            return Err(bad_key(checkpoint, key, problem));
        }
    }
    Ok(())
}

/// An error about a key of the `config.json` that lies beside the weights. A GGUF file holds both.
fn bad_key(checkpoint: &dyn Checkpoint, key: &str, problem: String) -> LoadError {
    let weights = checkpoint.source();
    let is_gguf = weights.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let file = if is_gguf { weights.to_owned() } else { weights.with_file_name("config.json") };
    LoadError::BadKey { file, key: key.to_owned(), problem }
}

/// Ids of equally long sequences as a `[batch, seq]` tensor.
pub(crate) fn ids_tensor<B: QuantBackend>(ids: &[Vec<u32>], device: &B::Device) -> Tensor<B, 2, Int> {
    let seq = ids.first().map_or(0, Vec::len);
    assert!(ids.iter().all(|row| row.len() == seq), "sequences of one batch have one length");
    let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(flat, [ids.len(), seq]), device)
}

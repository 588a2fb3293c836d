//! The decoder that a [`Wiring`] describes, in tensors: attention and feed-forward module, each behind a norm, each added to
//! the residual stream. Every family so far is one of these; one that computes otherwise brings its own [`Decoder`].

mod block;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use self::block::WiredBlock;
use super::embedding::Embedding;
use super::head::Head;
use super::layers::{Linear, Norm, NormKind, matrix, projected, vector};
use super::rotary::Rotary;
use super::rows::{position_rows, unusable_ids};
use super::wiring::{Positions, Projections, Wiring};
use super::{Block, BlockLayout, BlockParams, Decoder, LinearName};
use crate::arithmetic::Arithmetic;
use crate::backend::{AttentionShape, QuantBackend};
use crate::load::{Checkpoint, LoadError, ModelConfig, check_values, read_any_exact_shape};
use crate::quantized::QuantizedWeight;

/// A decoder over a checkpoint. Copies share all tensors.
#[derive(Clone)]
pub(super) struct WiredDecoder<B: QuantBackend> {
    config: ModelConfig,
    wiring: Wiring,
    checkpoint: Arc<dyn Checkpoint>,
    /// Where the embedding is read from when it is used, whatever blocks are put in place of others.
    embedding_source: Arc<dyn Checkpoint>,
    /// See [`TokenRows`].
    unusable_ids: BTreeSet<u32>,
    embedding_norm: Option<Norm<B>>,
    /// Rows `[max_positions, hidden]` that are added to the embedding, where positions are learned.
    positions: Option<Tensor<B, 2>>,
    /// See [`Wiring::ropes`].
    rotaries: Vec<Arc<Rotary<B>>>,
    /// See [`Wiring::projections`]: into the residual stream, and out of it.
    projections: Option<[Tensor<B, 2>; 2]>,
    final_norm: Option<Norm<B>>,
    /// Where the head is read from when it is used; `None` for a tied one: the embedding is used.
    head_source: Option<Arc<dyn Checkpoint>>,
    head_bias: Option<Tensor<B, 1>>,
    device: B::Device,
}

impl<B: QuantBackend> WiredDecoder<B> {
    /// Reads all but the blocks.
    ///
    /// # Errors
    /// A missing, misshapen or non-finite tensor, with file and name.
    pub(super) fn open(
        wiring: Wiring,
        config: ModelConfig,
        checkpoint: Arc<dyn Checkpoint>,
        device: &B::Device,
    ) -> Result<Self, LoadError> {
        let (source, hidden) = (checkpoint.as_ref(), config.hidden_size);
        let width = wiring.embedding_width(&config);
        let vocab_by_width = [config.vocab_size, width];
        // Read again when it is used: until then it would take the room of a block.
        let unusable_ids = unusable_ids(source, &wiring, &config)?;
        let positions = match &wiring.positions {
            Positions::Rotary => None,
            Positions::Learned { tensor, first_row } => {
                let rows = position_rows(source, tensor, *first_row, &config)?;
                let shape = [config.max_positions, hidden];
                Some(Tensor::from_data(TensorData::new(rows, shape), device))
            }
        };
        let rotaries = wiring.ropes.iter().map(|rope| Arc::new(Rotary::new(rope.clone(), device.clone()))).collect();
        let read_projections = |names: &Projections| -> Result<_, LoadError> {
            let to_stream = matrix(source, &names.to_stream, [hidden, width], device)?;
            Ok([to_stream, matrix(source, &names.from_stream, [width, hidden], device)?])
        };
        let projections = wiring.projections.as_ref().map(read_projections).transpose()?;
        let read_norm = |name: &String| norm(source, name, hidden, wiring.norm, config.norm_eps, device);
        let final_norm = wiring.final_norm.as_ref().map(read_norm).transpose()?;
        let embedding_norm = wiring.embedding_norm.as_ref().map(read_norm).transpose()?;
        // As the embedding.
        if let Some(name) = &wiring.head {
            check_values(source, name, &vocab_by_width)?;
        }
        let head_source = wiring.head.is_some().then(|| checkpoint.clone());
        let read_bias = |name: &String| vector(source, name, config.vocab_size, device);
        let head_bias = wiring.head_bias.as_ref().map(read_bias).transpose()?;
        let device = device.clone();
        Ok(Self {
            config,
            wiring,
            embedding_source: checkpoint.clone(),
            checkpoint,
            unusable_ids,
            embedding_norm,
            positions,
            rotaries,
            projections,
            final_norm,
            head_source,
            head_bias,
            device,
        })
    }
}

/// Reads `{prefix}.weight` and, of a LayerNorm, `{prefix}.bias`.
fn norm<B: QuantBackend>(
    source: &dyn Checkpoint,
    prefix: &str,
    n_channels: usize,
    kind: NormKind,
    eps: f64,
    device: &B::Device,
) -> Result<Norm<B>, LoadError> {
    let read = |what: &str| vector(source, &format!("{prefix}.{what}"), n_channels, device);
    let bias = kind.has_bias().then(|| read("bias")).transpose()?;
    Ok(Norm { weight: read("weight")?, bias, kind, eps })
}

impl<B: QuantBackend> WiredDecoder<B> {
    fn vocab_by_width(&self) -> [usize; 2] {
        [self.config.vocab_size, self.wiring.embedding_width(&self.config)]
    }

    /// `[vocab, width]`.
    fn embedding_rows(&self) -> Result<Tensor<B, 2>, LoadError> {
        let shape = self.vocab_by_width();
        // Rows that no text has may hold anything.
        let rows = read_any_exact_shape(self.embedding_source.as_ref(), &self.wiring.embedding, &shape)?;
        Ok(Tensor::from_data(TensorData::new(rows, shape), &self.device))
    }
}

impl<B: QuantBackend> Decoder<B> for WiredDecoder<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self, block_idx: usize) -> &BlockLayout {
        &self.wiring.blocks[block_idx].layout
    }

    fn check_ids(&self, ids: &[Vec<u32>]) -> Result<(), LoadError> {
        match ids.iter().flatten().find(|id| self.unusable_ids.contains(id)) {
            None => Ok(()),
            Some(&id) => {
                let name = self.wiring.embedding.clone();
                Err(LoadError::NonFiniteRow { file: self.checkpoint.file_of(&name), name, id })
            }
        }
    }

    fn embedding(&self) -> Result<Embedding<B>, LoadError> {
        Ok(Embedding {
            rows: self.embedding_rows()?,
            scale: self.wiring.embedding_scale,
            norm: self.embedding_norm.clone(),
            to_stream: self.projections.as_ref().map(|[to_stream, _]| to_stream.clone()),
            positions: self.positions.clone(),
            hidden_size: self.config.hidden_size,
            device: self.device.clone(),
        })
    }

    fn block(&self, block_idx: usize) -> Result<Box<dyn Block<B>>, LoadError> {
        let (config, wiring, source) = (&self.config, &self.wiring, self.checkpoint.as_ref());
        let block = &wiring.blocks[block_idx];
        let shapes = block.linear_shapes(config).into_iter().chain(block.kept_shapes(config));
        let linears = shapes.map(|(name, shape)| {
            let has_bias = wiring.biased.contains(&name);
            Ok((name, Linear::load(source, &wiring.linear(block_idx, name), shape, has_bias, &self.device)?))
        });
        let linears = linears.collect::<Result<BTreeMap<_, _>, LoadError>>()?;
        let norms = block.norms().into_iter().map(|name| {
            let (prefix, n_channels) = (wiring.block_norm(block_idx, name), block.n_channels(name, config));
            let norm = match block.norm_kind(name, wiring.norm) {
                NormKind::Scale if !wiring.scaled_activations => {
                    let weight = Tensor::ones([n_channels], &self.device);
                    Norm { weight, bias: None, kind: NormKind::Scale, eps: config.norm_eps }
                }
                kind => norm(source, &prefix, n_channels, kind, config.norm_eps, &self.device)?,
            };
            Ok((name, norm))
        });
        let norms = norms.collect::<Result<BTreeMap<_, _>, LoadError>>()?;
        Ok(Box::new(WiredBlock {
            params: BlockParams { linears, norms, products: Arc::new(Arithmetic::F32) },
            wiring: block.clone(),
            shape: AttentionShape {
                n_heads: config.n_heads,
                n_kv_heads: config.n_kv_heads,
                head_dim: config.head_dim,
                window: config.windows[block_idx],
                scale: block.attention.scale,
                cap: block.attention.cap,
                slopes: block.attention.alibi.map(|alibi| alibi.biases(config.n_heads, config.head_dim)),
            },
            rotary: block.attention.rope.map(|rope| self.rotaries[rope].clone()),
        }))
    }

    fn codes(&self, block_idx: usize) -> Result<BTreeMap<LinearName, QuantizedWeight>, LoadError> {
        let shapes = self.wiring.blocks[block_idx].linear_shapes(&self.config);
        let codes = shapes.into_iter().map(|(name, _)| {
            let read = self.checkpoint.read_quantized(&format!("{}.weight", self.wiring.linear(block_idx, name)))?;
            Ok(read.map(|weight| (name, weight)))
        });
        codes.filter_map(Result::transpose).collect()
    }

    fn over(&self, checkpoint: Arc<dyn Checkpoint>) -> Result<Box<dyn Decoder<B>>, LoadError> {
        let is_quantized = checkpoint.read_quantized(self.wiring.head_name())?.is_some();
        let head_source = if is_quantized { Some(checkpoint.clone()) } else { self.head_source.clone() };
        let mut wiring = self.wiring.clone();
        wiring.settle_scales(checkpoint.as_ref());
        Ok(Box::new(Self { wiring, checkpoint, head_source, ..self.clone() }))
    }

    fn final_norm(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let normed = match &self.final_norm {
            None => hidden,
            Some(norm) => norm.forward(hidden),
        };
        match &self.projections {
            None => normed,
            Some([_, from_stream]) => projected(normed, from_stream),
        }
    }

    fn head_weight(&self) -> Result<Tensor<B, 2>, LoadError> {
        let Some(source) = &self.head_source else { return self.embedding_rows() };
        let name = self.wiring.head_name();
        match source.read_quantized(name)? {
            Some(head) => Ok(B::dequantize_weight(&head, &self.device)),
            None => matrix(source.as_ref(), name, self.vocab_by_width(), &self.device),
        }
    }

    fn head(&self, arithmetic: Arithmetic) -> Result<Head<B>, LoadError> {
        Ok(Head::new(self.head_weight()?, self.head_bias.clone(), self.wiring.logits, arithmetic))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU16;

    use burn::backend::Flex;
    use serde_json::json;

    use super::*;
    use crate::awq::{Awq, ClipStep, ScaleStep};
    use crate::backend::float_vec;
    use crate::driver::{Job, codes_sha256, quantize_model};
    use crate::grid::{Bits, Granularity, Grid};
    use crate::load::MemoryCheckpoint;
    use crate::model::tiny::{self, TinySpec};
    use crate::model::{NoTap, Storage, llama, mixtral};

    const SPEC: TinySpec = TinySpec::GQA;

    fn outputs(decoder: &dyn Decoder<Flex>) -> Vec<f32> {
        let mut hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&SPEC, 2, 20, 11));
        for block_idx in 0..SPEC.n_blocks {
            hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
        }
        float_vec(hidden)
    }

    /// A dense first block, and experts in the second: two copies of its module.
    fn mixed() -> (Wiring, ModelConfig, MemoryCheckpoint) {
        let (config, llama) = (SPEC.config(), tiny::checkpoint(&SPEC, 5));
        let mut checkpoint = MemoryCheckpoint::default();
        for name in llama.names() {
            let (shape, values) = (llama.shape(&name).unwrap(), llama.read_f32(&name).unwrap());
            let renamed = |expert: usize| {
                let name = name.replace("1.mlp.", &format!("1.block_sparse_moe.experts.{expert}."));
                name.replace(".gate_proj", ".w1").replace(".up_proj", ".w3").replace(".down_proj", ".w2")
            };
            match name.contains("1.mlp.") {
                true => (0..2).for_each(|expert| checkpoint.insert(&renamed(expert), &shape, values.clone())),
                false => checkpoint.insert(&name, &shape, values),
            }
        }
        let router = (0..2 * SPEC.hidden_size).map(|i| (i as f32).sin()).collect();
        checkpoint.insert("model.layers.1.block_sparse_moe.gate.weight", &[2, SPEC.hidden_size], router);
        let raw = json!({ "num_local_experts": 2, "num_experts_per_tok": 1 });
        let dense = llama::wiring(&config, &checkpoint).unwrap();
        let experts = mixtral::wiring(&ModelConfig { raw, ..config.clone() }, &checkpoint).unwrap();
        let wiring = Wiring { blocks: vec![dense.blocks[0].clone(), experts.blocks[1].clone()], ..dense };
        (wiring.settled(&config, &checkpoint).unwrap(), config, checkpoint)
    }

    #[test]
    fn blocks_of_one_model_may_differ() {
        let (wiring, config, checkpoint) = mixed();
        let base: Arc<dyn Checkpoint> = Arc::new(checkpoint);
        let decoder =
            WiredDecoder::<Flex>::open(wiring.clone(), config.clone(), base.clone(), &Default::default()).unwrap();
        let expected = outputs(tiny::decoder(&SPEC, 5, &Default::default()).unwrap().as_ref());
        let found = outputs(&decoder);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0)));
        let n_linears = |block_idx| decoder.layout(block_idx).linears.len();
        assert_eq!((n_linears(0), n_linears(1)), (4 + 3, 4 + 2 * 3));

        let group = Granularity::PerGroup(NonZeroU16::new(32).unwrap());
        let grid = Grid::awq(Bits::new(4).unwrap(), group);
        let plain = Awq { scale: ScaleStep::Off, clip: ClipStep::Off };
        let pass = quantize_model(&decoder, None, &[Job { method: &plain, grids: grid.into() }], &mut |_| {}).unwrap();
        let model = pass.models.into_iter().next().unwrap().unwrap();
        let (codes, bits) = (model.codes_sha256(), model.bits_per_weight());
        let quantized = Arc::new(model.into_checkpoint(&wiring, base));
        let of_model = outputs(decoder.over(quantized.clone()).unwrap().as_ref());
        assert_eq!(codes_sha256(&wiring, 2, quantized.as_ref()).unwrap(), codes);
        let storage = Storage::of(&wiring, &config, quantized.as_ref()).unwrap();
        assert!(storage.types.len() == 1 && (storage.bits_per_weight - bits).abs() < 1e-9, "{storage:?}");
        let reopened = WiredDecoder::<Flex>::open(wiring, config, quantized, &Default::default()).unwrap();
        assert!(outputs(&reopened) == of_model && of_model != found);
    }
}

//! The decoder that a [`Wiring`] describes, in tensors: attention and feed-forward module, each behind a norm, each added to
//! the residual stream. Every family so far is one of these; one that computes otherwise brings its own [`Decoder`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::activation::sigmoid;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::layers::{Linear, Norm, NormKind, matrix, product, vector};
use super::packing::{PackedSequences, Packing, indices};
use super::rotary::Rotary;
use super::rows::{TokenRows, position_rows};
use super::wiring::{
    BlockWiring, DenseWiring, ExpertsWiring, FeedForward, InnerWiring, LogitsWiring, Order, Positions, Projections,
    Wiring,
};
use super::{Block, BlockLayout, BlockParams, Decoder, NoTap, NormName, Tap, ids_tensor};
use crate::activation::Activation;
use crate::arithmetic::Arithmetic;
use crate::backend::{AttentionShape, QuantBackend, float_vec};
use crate::host::routing::route;
use crate::load::{Checkpoint, LoadError, ModelConfig};

/// A decoder over a checkpoint. Copies share all tensors.
#[derive(Clone)]
pub(super) struct WiredDecoder<B: QuantBackend> {
    config: ModelConfig,
    wiring: Wiring,
    checkpoint: Arc<dyn Checkpoint>,
    embedding: Tensor<B, 2>,
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
    /// `None` for a tied head: the embedding is used.
    head: Option<Tensor<B, 2>>,
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
        let rows = TokenRows::read(source, &wiring, &config)?;
        let embedding = Tensor::from_data(TensorData::new(rows.values, vocab_by_width), device);
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
        let head = wiring.head.as_ref().map(|name| matrix(source, name, vocab_by_width, device)).transpose()?;
        let read_bias = |name: &String| vector(source, name, config.vocab_size, device);
        let head_bias = wiring.head_bias.as_ref().map(read_bias).transpose()?;
        let device = device.clone();
        let unusable_ids = rows.unusable_ids;
        Ok(Self {
            config,
            wiring,
            checkpoint,
            embedding,
            unusable_ids,
            embedding_norm,
            positions,
            rotaries,
            projections,
            final_norm,
            head,
            head_bias,
            device,
        })
    }
}

impl<B: QuantBackend> WiredDecoder<B> {
    /// Token ids `[tokens]` to `[1, tokens, hidden]`, before positions are added.
    fn embed_tokens(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 3> {
        let rows = self.embedding.clone().select(0, ids).unsqueeze::<3>();
        let rows = match self.wiring.embedding_scale {
            None => rows,
            Some(scale) => rows * scale,
        };
        let rows = match &self.embedding_norm {
            None => rows,
            Some(norm) => norm.forward(rows),
        };
        match &self.projections {
            None => rows,
            Some([to_stream, _]) => projected(rows, to_stream),
        }
    }
}

/// `x W^T` of `x: [batch, seq, in]` by `weight: [out, in]`, in f32 arithmetic.
fn projected<B: QuantBackend>(x: Tensor<B, 3>, weight: &Tensor<B, 2>) -> Tensor<B, 3> {
    let ([batch, seq, n_in], [n_out, _]) = (x.dims(), weight.dims());
    product(x.reshape([batch * seq, n_in]), weight.clone(), Arithmetic::F32).reshape([batch, seq, n_out])
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

    fn embed(&self, ids: &[Vec<u32>]) -> Tensor<B, 3> {
        let [batch, seq] = [ids.len(), ids.first().map_or(0, Vec::len)];
        let rows = self.embed_tokens(ids_tensor::<B>(ids, &self.device).reshape([batch * seq]));
        let rows = rows.reshape([batch, seq, self.config.hidden_size]);
        match &self.positions {
            None => rows,
            Some(positions) => rows + positions.clone().narrow(0, 0, seq).unsqueeze::<3>(),
        }
    }

    fn embed_packed(&self, packing: &Packing) -> Tensor<B, 3> {
        let ids: Vec<usize> = packing.tokens().iter().map(|&id| id as usize).collect();
        let rows = self.embed_tokens(indices(&ids, &self.device));
        match &self.positions {
            None => rows,
            Some(positions) => {
                let positions = positions.clone().select(0, indices(packing.positions(), &self.device));
                rows + positions.unsqueeze::<3>()
            }
        }
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
            params: BlockParams { linears, norms, arithmetic: Arithmetic::F32 },
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

    fn over(&self, checkpoint: Arc<dyn Checkpoint>) -> Result<Box<dyn Decoder<B>>, LoadError> {
        let head = match checkpoint.read_quantized(self.wiring.head_name())? {
            Some(head) => Some(B::dequantize_weight(&head, &self.device)),
            None => self.head.clone(),
        };
        let mut wiring = self.wiring.clone();
        wiring.settle_scales(checkpoint.as_ref());
        Ok(Box::new(Self { wiring, checkpoint, head, ..self.clone() }))
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

    fn head_weight(&self) -> Tensor<B, 2> {
        self.head.as_ref().unwrap_or(&self.embedding).clone()
    }

    fn head(&self, rows: Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
        let logits = product(rows, self.head_weight(), arithmetic);
        let logits = match &self.head_bias {
            None => logits,
            Some(bias) => logits + bias.clone().unsqueeze::<2>(),
        };
        let LogitsWiring { divisor, cap } = self.wiring.logits;
        let logits = match divisor {
            None => logits,
            Some(divisor) => logits / divisor,
        };
        match cap {
            None => logits,
            Some(cap) => B::soft_cap(logits, cap),
        }
    }
}

struct WiredBlock<B: QuantBackend> {
    params: BlockParams<B>,
    wiring: Arc<BlockWiring>,
    shape: AttentionShape,
    rotary: Option<Arc<Rotary<B>>>,
}

impl<B: QuantBackend> Block<B> for WiredBlock<B> {
    fn layout(&self) -> &BlockLayout {
        &self.wiring.layout
    }

    fn params(&self) -> &BlockParams<B> {
        &self.params
    }

    fn with_params(&self, params: BlockParams<B>) -> Box<dyn Block<B>> {
        let (wiring, shape, rotary) = (self.wiring.clone(), self.shape.clone(), self.rotary.clone());
        Box::new(Self { params, wiring, shape, rotary })
    }

    fn forward(&self, hidden: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        self.run(hidden, None, tap)
    }

    fn forward_packed(&self, hidden: Tensor<B, 3>, sequences: &PackedSequences<B>) -> Tensor<B, 3> {
        self.run(hidden, Some(sequences), &mut NoTap)
    }

    fn attention(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        self.attention_over(None, input, tap)
    }

    fn mlp(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        match &self.wiring.mlp.module {
            FeedForward::Dense(module) => self.dense(module, input, tap),
            FeedForward::Experts(experts) => self.experts(experts, input, tap),
        }
    }
}

impl<B: QuantBackend> WiredBlock<B> {
    /// The whole block, on a batch or on packed sequences.
    fn run(&self, hidden: Tensor<B, 3>, packed: Option<&PackedSequences<B>>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let BlockWiring { attention, mlp, residual, .. } = self.wiring.as_ref();
        let normed = self.normed(attention.norm, &hidden);
        let of_attention = self.added(attention.norm_after, self.attention_over(packed, normed.clone(), tap));
        match residual.order {
            Order::AttentionFirst => {
                let hidden = hidden + of_attention;
                let normed = self.normed(mlp.norm, &hidden);
                hidden + self.added(mlp.norm_after, self.mlp(normed, tap))
            }
            Order::Normalized { after_attention, after_mlp } => {
                let hidden = self.params.norm(after_attention).forward(hidden + of_attention);
                let normed = self.normed(mlp.norm, &hidden);
                let hidden = hidden + self.added(mlp.norm_after, self.mlp(normed, tap));
                self.params.norm(after_mlp).forward(hidden)
            }
            Order::SideBySide => {
                // One tensor where both read one: it is captured under two names.
                let is_shared = mlp.norm == attention.norm;
                let normed = if is_shared { normed } else { self.normed(mlp.norm, &hidden) };
                hidden + of_attention + self.added(mlp.norm_after, self.mlp(normed, tap))
            }
        }
    }

    fn attention_over(
        &self,
        packed: Option<&PackedSequences<B>>,
        input: Tensor<B, 3>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let names = self.wiring.attention;
        tap.see(names.q, &input);
        let project = |name| self.params.forward(name, input.clone());
        let (mut q, mut k, v) = (project(names.q), project(names.k), project(names.v));
        if let Some(norms) = names.qk_norms {
            (q, k) = (self.norm_qk(&norms.of_queries(), q), self.norm_qk(&norms.of_keys(), k));
        }
        let rotary = self.rotary.as_deref();
        let mixed = match packed {
            Some(sequences) => sequences.attention([q, k, v], rotary, &self.shape),
            None => {
                let table = rotary.map(|rotary| rotary.first(input.dims()[1]));
                B::causal_attention(q, k, v, table.as_ref(), &self.shape)
            }
        };
        tap.see(names.o, &mixed);
        self.params.forward(names.o, mixed)
    }

    /// What a module sees of the residual stream.
    fn normed(&self, norm: Option<NormName>, hidden: &Tensor<B, 3>) -> Tensor<B, 3> {
        match norm {
            None => hidden.clone(),
            Some(norm) => self.params.norm(norm).forward(hidden.clone()),
        }
    }

    /// What is added of a module's output.
    fn added(&self, norm_after: Option<NormName>, output: Tensor<B, 3>) -> Tensor<B, 3> {
        let output = match norm_after {
            None => output,
            Some(norm) => self.params.norm(norm).forward(output),
        };
        match self.wiring.residual.scale {
            None => output,
            Some(scale) => output * scale,
        }
    }

    /// Normalizes queries or keys, `[batch, seq, n_heads * head_dim]`, as many channels at once as the norm has: all by one, or
    /// each head by its own.
    fn norm_qk(&self, norms: &[NormName], x: Tensor<B, 3>) -> Tensor<B, 3> {
        let (first, [batch, seq, width]) = (self.params.norm(norms[0]), x.dims());
        let [n_channels] = first.weight.dims();
        let rows = x.reshape([batch, seq * (width / n_channels), n_channels]);
        if norms.len() == 1 {
            return first.forward(rows).reshape([batch, seq, width]);
        }
        let plain = Norm { weight: first.weight.ones_like(), ..first.clone() };
        let weights = norms.iter().map(|norm| self.params.norm(*norm).weight.clone()).collect();
        let scale = Norm { weight: Tensor::cat(weights, 0), kind: NormKind::Scale, ..first.clone() };
        scale.forward(plain.forward(rows).reshape([batch, seq, width]))
    }

    /// A feed-forward module, or one expert.
    fn dense(&self, module: &DenseWiring, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let inner = match module.inner {
            InnerWiring::Gated { gate, up, activation } => {
                tap.see(gate, &input);
                let (gate, up) = (self.params.forward(gate, input.clone()), self.params.forward(up, input));
                match activation {
                    Activation::Silu => B::swiglu(gate, up),
                    _ => B::activate(activation, gate) * up,
                }
            }
            InnerWiring::Plain { up, activation, scale } => {
                tap.see(up, &input);
                let inner = B::activate(activation, self.params.forward(up, input));
                match scale {
                    None => inner,
                    Some(scale) => self.params.norm(scale).forward(inner),
                }
            }
        };
        tap.see(module.down, &inner);
        self.params.forward(module.down, inner)
    }

    /// Experts, each on the tokens that are sent to it, which it sees as one sequence.
    fn experts(&self, wiring: &ExpertsWiring, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let ([batch, seq, hidden], device, dtype) = (input.dims(), input.device(), input.dtype());
        tap.see(wiring.router, &input);
        // f32 in any arithmetic: a rounding error would send tokens elsewhere.
        let logits = self.params.linear(wiring.router).forward(input.clone(), Arithmetic::F32);
        let of_shared = wiring.shared.map(|shared| {
            let gate = self.params.linear(shared.gate).forward(input.clone(), Arithmetic::F32);
            sigmoid(gate) * self.dense(&shared.module, input.clone(), tap)
        });
        let rows = input.reshape([batch * seq, hidden]);
        let mut sum = rows.zeros_like();
        let shares = route(&float_vec(logits), wiring.experts.len(), wiring.n_active, wiring.weighting);
        for (expert, share) in wiring.experts.iter().zip(shares).filter(|(_, share)| !share.tokens.is_empty()) {
            let n = share.tokens.len();
            let tokens: Vec<i64> = share.tokens.iter().map(|&token| token as i64).collect();
            let tokens = Tensor::<B, 1, Int>::from_data(TensorData::new(tokens, [n]), &device);
            let seen = rows.clone().select(0, tokens.clone()).unsqueeze::<3>();
            let out = self.dense(expert, seen, tap).reshape([n, hidden]);
            let weights = Tensor::<B, 2>::from_data(TensorData::new(share.weights, [n, 1]), &device).cast(dtype);
            sum = sum.select_assign(0, tokens, out * weights, IndexingUpdateOp::Add);
        }
        let sum = sum.reshape([batch, seq, hidden]);
        match of_shared {
            None => sum,
            Some(of_shared) => sum + of_shared,
        }
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
    use crate::driver::{Job, codes_sha256, quantize_model};
    use crate::grid::{Bits, Granularity, Grid};
    use crate::load::MemoryCheckpoint;
    use crate::model::tiny::{self, TinySpec};
    use crate::model::{NoTap, Storage, llama, mixtral};

    const SPEC: TinySpec = TinySpec::GQA;

    fn outputs(decoder: &dyn Decoder<Flex>) -> Vec<f32> {
        let mut hidden = decoder.embed(&tiny::sequences(&SPEC, 2, 20, 11));
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

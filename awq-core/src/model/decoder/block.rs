//! A block of the decoder that a wiring describes, in tensors.

use std::sync::Arc;

use burn::tensor::activation::sigmoid;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::activation::Activation;
use crate::arithmetic::Arithmetic;
use crate::backend::{AttentionShape, QuantBackend, float_vec};
use crate::host::routing::route;
use crate::model::layers::{Norm, NormKind};
use crate::model::packing::PackedSequences;
use crate::model::rotary::Rotary;
use crate::model::wiring::{BlockWiring, DenseWiring, ExpertsWiring, FeedForward, InnerWiring, Order};
use crate::model::{Block, BlockLayout, BlockParams, NoTap, NormName, Tap};

pub(super) struct WiredBlock<B: QuantBackend> {
    pub(super) params: BlockParams<B>,
    pub(super) wiring: Arc<BlockWiring>,
    pub(super) shape: AttentionShape,
    pub(super) rotary: Option<Arc<Rotary<B>>>,
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

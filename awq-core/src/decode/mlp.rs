//! The feed-forward module of a block: one for all tokens, or experts.

use rayon::prelude::*;

use super::linear::Linear;
use super::model::HostNorm;
use super::pass::fill_up;
use crate::activation::Activation;
use crate::host::elementwise::{activate, swiglu};
use crate::host::routing::{Weighting, route};

/// A feed-forward module.
pub(super) enum Mlp {
    /// One for all tokens.
    Dense(Dense),
    /// See [`crate::model::wiring::ExpertsWiring`].
    Experts(Box<Experts>),
}

/// See [`crate::model::wiring::ExpertsWiring`].
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) n_active: usize,
    pub(super) weighting: Weighting,
    pub(super) experts: Vec<Dense>,
    /// One for all tokens, and what its output is multiplied by the sigmoid of.
    pub(super) shared: Option<(Dense, Linear)>,
}

/// A module for all tokens, or an expert.
pub(super) struct Dense {
    pub(super) inner: Inner,
    /// Gate and up, or up alone.
    pub(super) up: Linear,
    pub(super) down: Linear,
    /// What the inside is multiplied by.
    pub(super) scale: Option<HostNorm>,
}

/// What happens between the linears of a feed-forward module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    Gated(Activation),
    Plain(Activation),
}

/// What a pass through a module writes, allocated once.
#[derive(Default)]
pub(super) struct MlpBuffers {
    /// Rows that an expert multiplies at least, see [`super::pass::Pass::new`].
    least_rows: usize,
    up: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
    /// What one expert sees, and what it puts out.
    seen: Vec<f32>,
    out: Vec<f32>,
}

impl MlpBuffers {
    pub(super) fn new(least_rows: usize) -> Self {
        Self { least_rows, ..Self::default() }
    }
}

impl Mlp {
    /// The module's output for rows `x: [n, hidden]`.
    pub(super) fn forward(&self, x: &[f32], buffers: &mut MlpBuffers, out: &mut Vec<f32>) {
        match self {
            Self::Dense(module) => module.forward(x, &mut buffers.up, &mut buffers.inner, out),
            Self::Experts(module) => {
                let Experts { router, n_active, weighting, experts, shared } = module.as_ref();
                router.product(x, &mut buffers.logits);
                out.clear();
                out.resize(x.len(), 0.0);
                let shares = route(&buffers.logits, experts.len(), *n_active, *weighting);
                for (expert, share) in experts.iter().zip(shares).filter(|(_, share)| !share.tokens.is_empty()) {
                    let MlpBuffers { least_rows, up, inner, seen, out: of_expert, .. } = buffers;
                    let width = expert.up.n_in;
                    seen.clear();
                    share.tokens.iter().for_each(|token| seen.extend_from_slice(&x[token * width..][..width]));
                    fill_up(seen, width, *least_rows);
                    expert.forward(seen, up, inner, of_expert);
                    let rows = share.tokens.iter().zip(of_expert.chunks_exact(width)).zip(share.weights);
                    for ((token, row), weight) in rows {
                        out[token * width..][..width].iter_mut().zip(row).for_each(|(sum, y)| *sum += weight * y);
                    }
                }
                if let Some((shared, gate)) = shared {
                    let MlpBuffers { up, inner, logits, out: of_shared, .. } = buffers;
                    gate.product(x, logits);
                    shared.forward(x, up, inner, of_shared);
                    let rows = out.chunks_exact_mut(gate.n_in).zip(of_shared.chunks_exact(gate.n_in)).zip(logits);
                    for ((out, row), gate) in rows {
                        let weight = 1.0 / (1.0 + (-*gate).exp());
                        out.iter_mut().zip(row).for_each(|(sum, y)| *sum += weight * y);
                    }
                }
            }
        }
    }

    /// The linears, each with the share of its bytes that a step with one token reads.
    pub(super) fn linears(&self) -> Vec<(&Linear, f64)> {
        match self {
            Self::Dense(module) => vec![(&module.up, 1.0), (&module.down, 1.0)],
            Self::Experts(module) => {
                let Experts { router, n_active, experts, shared, .. } = module.as_ref();
                let share = *n_active as f64 / experts.len() as f64;
                let experts = experts.iter().flat_map(|expert| [(&expert.up, share), (&expert.down, share)]);
                let shared = shared.iter().flat_map(|(shared, gate)| [&shared.up, &shared.down, gate]);
                std::iter::once(router).chain(shared).map(|linear| (linear, 1.0)).chain(experts).collect()
            }
        }
    }
}

impl Dense {
    fn forward(&self, x: &[f32], up: &mut Vec<f32>, inner: &mut Vec<f32>, out: &mut Vec<f32>) {
        self.up.product(x, up);
        match self.inner {
            Inner::Gated(activation) => {
                gate(activation, up, inner, self.down.n_in);
                self.down.product(inner, out);
            }
            Inner::Plain(activation) => {
                activate(activation, up);
                if let Some(scale) = &self.scale {
                    scale.apply(up);
                }
                self.down.product(up, out);
            }
        }
    }
}

/// `activation(gate) * up` of rows that hold both.
fn gate(activation: Activation, gates_and_ups: &[f32], inner: &mut Vec<f32>, width: usize) {
    inner.resize(gates_and_ups.len() / 2, 0.0);
    let rows = inner.par_chunks_exact_mut(width).zip(gates_and_ups.par_chunks_exact(2 * width));
    rows.for_each(|(inner, row)| {
        let (gate, up) = row.split_at(width);
        inner.copy_from_slice(gate);
        match activation {
            Activation::Silu => swiglu(inner, up),
            _ => {
                activate(activation, inner);
                inner.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
            }
        }
    });
}

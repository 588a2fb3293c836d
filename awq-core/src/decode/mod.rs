//! Decoding: a model held in memory whole, a cache of keys and values, prefill and single-token steps.
//!
//! A decode step of a small model takes two milliseconds, so there are no tensors here: plain slices, buffers that are
//! allocated once, and the loops of [`crate::host`]. What a family computes is data ([`crate::model::wiring::Wiring`]);
//! the logits are those of its [`crate::model::Block`]s up to rounding (tested for every family).
//!
//! ```text
//! Checkpoint --load--> DecodeModel --Session::new--> Session --feed(ids)--> logits --Sampler--> next id
//!                                  --Batch::new----> Batch ----step(ids)--> logits of several texts
//! ```

mod attention;
mod batch;
mod cache;
mod linear;
mod mlp;
mod model;
mod pass;
pub mod sample;
mod session;
mod stack;

pub use self::batch::Batch;
pub use self::model::{CodesOf, DecodeModel, DecodeOptions, Footprint};
pub use self::sample::{NotFinite, Sampler, Sampling};
pub use self::session::{DecodeError, Session};
use crate::host::attention::Slopes;

/// Geometry of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    /// Query heads.
    n_q: usize,
    /// Key and value heads; each serves `n_q / n_kv` query heads.
    n_kv: usize,
    /// Channels of one head.
    dim: usize,
}

/// What becomes of the products of queries and keys.
#[derive(Clone, Debug)]
struct Scoring {
    /// See [`crate::load::ModelConfig::windows`].
    window: Option<usize>,
    /// What they are multiplied by.
    scale: f32,
    /// Then `cap * tanh(x / cap)`.
    cap: Option<f32>,
    /// What is added to them by positions.
    slopes: Option<Slopes>,
}

impl Heads {
    fn q_width(self) -> usize {
        self.n_q * self.dim
    }

    fn kv_width(self) -> usize {
        self.n_kv * self.dim
    }
}

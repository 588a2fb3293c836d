//! Activations collected from full-precision blocks, and the statistics that methods ask of them.
//!
//! Statistics are f32, whatever the activations are. They are computed on first use and kept, so that every cell of a sweep that
//! looks at the same block shares them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::tensor::{DType, Tensor};

use crate::backend::{QuantBackend, float_vec};
use crate::model::{Block, LinearName, Tap};
use crate::shared::Shared;

/// What a method looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureNeeds {
    /// The inputs of every linear on the calibration sequences. A method that needs none runs without calibration.
    pub inputs: bool,
    /// Also what every linear sees in the full-precision model, where blocks see the outputs of quantized ones.
    pub full_precision_inputs: bool,
}

/// The inputs of one linear on all calibration sequences.
#[derive(Debug)]
pub struct InputStats<B: QuantBackend> {
    batches: Vec<Tensor<B, 3>>,
    n_in: usize,
    device: B::Device,
    mean_abs: OnceLock<Tensor<B, 1>>,
    gram: OnceLock<Tensor<B, 2>>,
    gram_f64: OnceLock<Vec<f64>>,
    full_precision: Option<Vec<Tensor<B, 3>>>,
    drift: OnceLock<Option<Vec<f64>>>,
    shared: Shared,
}

impl<B: QuantBackend> InputStats<B> {
    /// Of batches of `[batch, seq, in]`.
    pub fn new(batches: Vec<Tensor<B, 3>>) -> Self {
        let (n_in, device) = batches.first().map_or((0, B::Device::default()), |x| (x.dims()[2], x.device()));
        Self { batches, ..Self::of_no_tokens(n_in, device) }
    }

    /// Of an expert that no token is sent to. All its statistics are zero.
    pub fn of_no_tokens(n_in: usize, device: B::Device) -> Self {
        Self {
            batches: Vec::new(),
            n_in,
            device,
            mean_abs: OnceLock::new(),
            gram: OnceLock::new(),
            gram_f64: OnceLock::new(),
            full_precision: None,
            drift: OnceLock::new(),
            shared: Shared::default(),
        }
    }

    /// Adds what the same linear sees of the same tokens in the full-precision model.
    #[must_use]
    pub fn with_full_precision(self, full_precision: Vec<Tensor<B, 3>>) -> Self {
        Self { full_precision: Some(full_precision), drift: OnceLock::new(), ..self }
    }

    /// What methods have made of these inputs alone, for all linears that see them and all cells of a sweep. The key holds
    /// everything else that the answer depends on.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The inputs, `[batch, seq, in]` each.
    pub fn batches(&self) -> &[Tensor<B, 3>] {
        &self.batches
    }

    /// Tokens over all batches.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|x| x.dims()[0] * x.dims()[1]).sum()
    }

    /// Input channels.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Mean of `|x|` over all tokens, `[in]`; zero where there are none.
    pub fn mean_abs(&self) -> Tensor<B, 1> {
        let sum = || {
            self.rows()
                .map(|x| B::in_f32(x).abs().sum_dim(0))
                .reduce(|a, b| a + b)
                .map(|sum| sum.squeeze::<1>() / self.n_tokens() as f64)
        };
        self.mean_abs.get_or_init(|| sum().unwrap_or_else(|| self.zeros([self.n_in]))).clone()
    }

    /// Sum of `x^2` over all tokens, `[in]`, batches added in f64; zero where there are none.
    pub fn sum_squares(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.n_in];
        for rows in self.rows() {
            let rows = B::in_f32(rows);
            let of_batch = float_vec((rows.clone() * rows).sum_dim(0));
            sums.iter_mut().zip(of_batch).for_each(|(sum, more)| *sum += f64::from(more));
        }
        sums
    }

    /// `X^T X / n_tokens` for `X: [n_tokens, in]`, `[in, in]`; zero where there are none. No factor 2 and no damping: a
    /// method adds its own.
    pub fn gram(&self) -> Tensor<B, 2> {
        let sum = || {
            self.rows()
                .map(B::in_f32)
                .map(|x| B::matmul(x.clone().transpose(), x))
                .reduce(|a, b| a + b)
                .map(|sum| sum / self.n_tokens() as f64)
        };
        self.gram.get_or_init(|| sum().unwrap_or_else(|| self.zeros([self.n_in, self.n_in]))).clone()
    }

    /// [`Self::gram`] summed in f64 on the host, row-major `[in, in]`. All zero where there are no tokens.
    pub fn gram_f64(&self) -> &[f64] {
        self.gram_f64.get_or_init(|| {
            let mut sum = vec![0.0; self.n_in() * self.n_in()];
            for rows in self.rows() {
                crate::host::gram::add_gram(&mut sum, &float_vec(rows), self.n_in());
            }
            let n_tokens = self.n_tokens().max(1) as f64;
            sum.iter_mut().for_each(|entry| *entry /= n_tokens);
            sum
        })
    }

    /// `(F - X)^T X / n_tokens` with `F` the inputs in the full-precision model, row-major `[in, in]`: how far the inputs have
    /// drifted. `None` where those inputs were not captured.
    pub fn drift(&self) -> Option<&[f64]> {
        let sum = || {
            let full_precision = self.full_precision.as_ref()?;
            let mut sum = vec![0.0; self.n_in() * self.n_in()];
            for (rows, full_precision) in self.rows().zip(full_precision) {
                let difference = float_vec(full_precision.clone().reshape(rows.dims()) - rows.clone());
                crate::host::gram::add_cross_gram(&mut sum, &difference, &float_vec(rows), self.n_in());
            }
            let n_tokens = self.n_tokens().max(1) as f64;
            sum.iter_mut().for_each(|entry| *entry /= n_tokens);
            Some(sum)
        };
        self.drift.get_or_init(sum).as_deref()
    }

    /// Every `stride`-th token of all batches joined, `[n, in]`, such that about `n_tokens` remain (all, where there are fewer).
    pub fn sampled_rows(&self, n_tokens: usize) -> Tensor<B, 2> {
        let stride = (self.n_tokens() / n_tokens.max(1)).max(1);
        if stride == 1 {
            return B::in_f32(Tensor::cat(self.rows().collect(), 0));
        }
        // From each batch its own: all of them joined would double the memory of the inputs.
        let mut seen = 0;
        let picked = self.rows().map(|rows| {
            let [n, _] = rows.dims();
            let of_batch: Vec<i64> =
                (seen..seen + n).filter(|row| row % stride == 0).map(|row| (row - seen) as i64).collect();
            seen += n;
            let picked = burn::tensor::TensorData::new(of_batch.clone(), [of_batch.len()]);
            B::in_f32(rows.clone().select(0, Tensor::from_data(picked, &rows.device())))
        });
        Tensor::cat(picked.collect(), 0)
    }

    fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::zeros(shape, (&self.device, DType::F32))
    }

    fn rows(&self) -> impl Iterator<Item = Tensor<B, 2>> + '_ {
        self.batches.iter().map(|x| {
            let [batch, seq, n_in] = x.dims();
            x.clone().reshape([batch * seq, n_in])
        })
    }
}

/// Everything captured of one block, and what methods have made of it.
#[derive(Debug)]
pub struct BlockInputs<B: QuantBackend> {
    by_linear: BTreeMap<LinearName, InputStats<B>>,
    shared: Shared,
}

impl<B: QuantBackend> BlockInputs<B> {
    /// Runs `block` on batches of hidden states and keeps what every linear sees, nothing in an expert that no token is
    /// sent to. Returns the block's outputs too.
    pub fn capture(block: &dyn Block<B>, hidden: &[Tensor<B, 3>]) -> (Self, Vec<Tensor<B, 3>>) {
        let mut tap = Capture::default();
        let outputs = hidden.iter().map(|batch| block.forward(batch.clone(), &mut tap)).collect();
        let mut inputs = Self::from_batches(tap.seen);
        if let Some(batch) = hidden.first() {
            for facts in &block.layout().linears {
                let [_, n_in] = block.params().linear(facts.name).weight.dims();
                let unreached = || InputStats::of_no_tokens(n_in, batch.device());
                inputs.by_linear.entry(facts.input).or_insert_with(unreached);
            }
        }
        (inputs, outputs)
    }

    /// From the inputs of each linear, by the name under which the layout captures them.
    pub fn from_batches(seen: BTreeMap<LinearName, Vec<Tensor<B, 3>>>) -> Self {
        let by_linear = seen.into_iter().map(|(linear, batches)| (linear, InputStats::new(batches))).collect();
        Self { by_linear, shared: Shared::default() }
    }

    /// Adds what each linear sees of the same tokens in the full-precision model.
    #[must_use]
    pub fn with_full_precision(self, full_precision: &Self) -> Self {
        let add = |(linear, stats): (LinearName, InputStats<B>)| match full_precision.get(linear) {
            Some(reference) => (linear, stats.with_full_precision(reference.batches.clone())),
            None => (linear, stats),
        };
        Self { by_linear: self.by_linear.into_iter().map(add).collect(), ..self }
    }

    /// The inputs captured under a name.
    pub fn get(&self, linear: LinearName) -> Option<&InputStats<B>> {
        self.by_linear.get(&linear)
    }

    /// What the cells of a sweep share about this block. A method asks with a key that holds everything that the answer
    /// depends on but the block and these inputs.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

struct Capture<B: QuantBackend> {
    seen: BTreeMap<LinearName, Vec<Tensor<B, 3>>>,
}

impl<B: QuantBackend> Default for Capture<B> {
    fn default() -> Self {
        Self { seen: BTreeMap::new() }
    }
}

impl<B: QuantBackend> Tap<B> for Capture<B> {
    fn see(&mut self, linear: LinearName, input: &Tensor<B, 3>) {
        self.seen.entry(linear).or_default().push(input.clone());
    }
}

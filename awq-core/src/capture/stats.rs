//! What is known of the inputs of one linear.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor};

use super::sums::{Gathered, Statistic, Sum};
use crate::backend::{QuantBackend, float_vec};
use crate::shared::Shared;

/// The inputs of one linear on all calibration sequences, or statistics of them. What is not there yet is computed from the inputs on
/// first use and kept, so that every cell of a sweep that looks at the same block shares it.
#[derive(Debug)]
pub struct InputStats<B: QuantBackend> {
    /// `None` where only statistics were gathered.
    batches: Option<Vec<Tensor<B, 3>>>,
    n_tokens: usize,
    n_in: usize,
    device: B::Device,
    mean_abs: Slot<Tensor<B, 1>>,
    sum_squares: Slot<Arc<Vec<f64>>>,
    gram: Slot<Tensor<B, 2>>,
    gram_f64: Slot<Arc<Vec<f64>>>,
    sampled_rows: BTreeMap<usize, Tensor<B, 2>>,
    full_precision: Option<Vec<Tensor<B, 3>>>,
    drift: Slot<Option<Arc<Vec<f64>>>>,
    shared: Shared,
}

impl<B: QuantBackend> InputStats<B> {
    /// Of batches of `[batch, seq, in]`.
    pub fn new(batches: Vec<Tensor<B, 3>>) -> Self {
        let (n_in, device) = batches.first().map_or((0, B::Device::default()), |x| (x.dims()[2], x.device()));
        let n_tokens: usize = batches.iter().map(|x| x.dims()[0] * x.dims()[1]).sum();
        Self { batches: Some(batches), n_tokens, ..Self::of_no_tokens(n_in, device) }
    }

    /// Of an expert that no token is sent to. All its statistics are zero.
    pub fn of_no_tokens(n_in: usize, device: B::Device) -> Self {
        Self {
            batches: Some(Vec::new()),
            n_tokens: 0,
            n_in,
            device,
            mean_abs: Slot::default(),
            sum_squares: Slot::default(),
            gram: Slot::default(),
            gram_f64: Slot::default(),
            sampled_rows: BTreeMap::new(),
            full_precision: None,
            drift: Slot::default(),
            shared: Shared::default(),
        }
    }

    /// Adds what the same linear sees of the same tokens in the full-precision model.
    #[must_use]
    pub fn with_full_precision(self, full_precision: Vec<Tensor<B, 3>>) -> Self {
        Self { full_precision: Some(full_precision), drift: Slot::default(), ..self }
    }

    /// What methods have made of these inputs alone, for all linears that see them and all cells of a sweep. The key holds
    /// everything else that the answer depends on.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The inputs, `[batch, seq, in]` each.
    ///
    /// # Panics
    /// If they were not gathered whole.
    pub fn batches(&self) -> &[Tensor<B, 3>] {
        self.batches.as_deref().unwrap_or_else(|| {
            panic!("the inputs were not kept, and what is asked of them was not gathered; add it to `MethodSettings::gathers`")
        })
    }

    /// Tokens over all batches.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Input channels.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Mean of `|x|` over all tokens, `[in]`; zero where there are none.
    pub fn mean_abs(&self) -> Tensor<B, 1> {
        self.mean_abs.get(|| self.mean_of_magnitudes(self.sum(Statistic::MeanAbs)))
    }

    /// Sum of `x^2` over all tokens, `[in]`, batches added in f64; zero where there are none.
    pub fn sum_squares(&self) -> Arc<Vec<f64>> {
        self.sum_squares.get(|| plain(self.sum(Statistic::SumSquares)).into())
    }

    /// `X^T X / n_tokens` for `X: [n_tokens, in]`, `[in, in]`; zero where there are none. No factor 2 and no damping: a
    /// method adds its own.
    pub fn gram(&self) -> Tensor<B, 2> {
        self.gram.get(|| self.mean_gram(self.sum(Statistic::Gram)))
    }

    /// [`Self::gram`] summed in f64 on the host, row-major `[in, in]`. All zero where there are no tokens.
    pub fn gram_f64(&self) -> Arc<Vec<f64>> {
        self.gram_f64.get(|| self.mean(plain(self.sum(Statistic::GramF64))).into())
    }

    /// `(F - X)^T X / n_tokens` with `F` the inputs in the full-precision model, row-major `[in, in]`: how far the inputs have
    /// drifted. `None` where those inputs were not captured.
    pub fn drift(&self) -> Option<Arc<Vec<f64>>> {
        let sum = || {
            let full_precision = self.full_precision.as_ref()?;
            let mut sum = vec![0.0; self.n_in() * self.n_in()];
            for (rows, full_precision) in self.rows().zip(full_precision) {
                let difference = float_vec(full_precision.clone().reshape(rows.dims()) - rows.clone());
                crate::host::gram::add_cross_gram(&mut sum, &difference, &float_vec(rows), self.n_in());
            }
            Some(self.mean(sum).into())
        };
        self.drift.get(sum)
    }

    /// Every `stride`-th token of all batches joined, `[n, in]`, such that about `n_tokens` remain (all, where there are fewer).
    pub fn sampled_rows(&self, n_tokens: usize) -> Tensor<B, 2> {
        let sample = || match self.sum(Statistic::SampledRows(n_tokens)) {
            Sum::SampledRows(sampled) => sampled.into_rows().1,
            other => unreachable!("{other:?}: not the statistic that was asked for"),
        };
        self.sampled_rows.get(&n_tokens).cloned().unwrap_or_else(sample)
    }

    /// Drops the matrices that methods have made of the inputs; they cannot be had again where the inputs were not kept.
    pub(super) fn let_go(&self) {
        self.gram.clear();
        self.gram_f64.clear();
        self.drift.clear();
        self.shared.clear();
    }

    fn sum(&self, statistic: Statistic) -> Sum<B> {
        let mut sum = Sum::new(statistic, self.n_in, self.n_tokens);
        self.rows().for_each(|rows| sum.add(&rows));
        sum
    }

    fn mean_of_magnitudes(&self, sum: Sum<B>) -> Tensor<B, 1> {
        match sum {
            Sum::MeanAbs(Some(sum)) => sum.squeeze::<1>() / self.n_tokens as f64,
            _ => self.zeros([self.n_in]),
        }
    }

    fn mean_gram(&self, sum: Sum<B>) -> Tensor<B, 2> {
        match sum {
            Sum::Gram(Some(sum)) => sum / self.n_tokens as f64,
            _ => self.zeros([self.n_in, self.n_in]),
        }
    }

    fn mean(&self, mut sum: Vec<f64>) -> Vec<f64> {
        let n_tokens = self.n_tokens.max(1) as f64;
        sum.iter_mut().for_each(|entry| *entry /= n_tokens);
        sum
    }

    fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::zeros(shape, (&self.device, DType::F32))
    }

    fn rows(&self) -> impl Iterator<Item = Tensor<B, 2>> + '_ {
        self.batches().iter().map(rows_of)
    }
}

/// A value that is made on first use, kept, and may be dropped.
#[derive(Debug)]
struct Slot<T>(Mutex<Option<T>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Slot<T> {
    const fn of(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    fn get(&self, make: impl FnOnce() -> T) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(make).clone()
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A batch without its sequences, `[n, in]`.
fn rows_of<B: QuantBackend>(batch: &Tensor<B, 3>) -> Tensor<B, 2> {
    let [n_sequences, seq, n_in] = batch.dims();
    batch.clone().reshape([n_sequences * seq, n_in])
}

/// A sum that is no tensor.
fn plain<B: QuantBackend>(sum: Sum<B>) -> Vec<f64> {
    match sum {
        Sum::Squares(sum) | Sum::GramF64(sum) => sum,
        other => unreachable!("{other:?}: not the statistic that was asked for"),
    }
}

/// Takes what one linear sees, batch by batch.
#[derive(Debug)]
pub(super) struct Gathering<B: QuantBackend> {
    asked: Gathered,
    /// Tokens that will come; of an expert it is not known how many of them.
    n_expected: usize,
    n_in: usize,
    n_seen: usize,
    device: B::Device,
    batches: Vec<Tensor<B, 3>>,
    /// Once there are as many tokens as channels: what is asked for, in place of the batches.
    sums: Option<Vec<Sum<B>>>,
}

impl<B: QuantBackend> Gathering<B> {
    /// For a linear of `n_in` channels.
    pub(super) fn new(asked: Gathered, n_in: usize, n_expected: usize, device: B::Device) -> Self {
        Self { asked, n_expected, n_in, n_seen: 0, device, batches: Vec::new(), sums: None }
    }

    pub(super) fn see(&mut self, input: &Tensor<B, 3>) {
        let [n_sequences, seq, _] = input.dims();
        self.n_seen += n_sequences * seq;
        if self.asked.only_counts() {
            return;
        }
        match &mut self.sums {
            Some(sums) => {
                let rows = rows_of(input);
                sums.iter_mut().for_each(|sum| sum.add(&rows));
            }
            None => self.batches.push(input.clone()),
        }
        if self.sums.is_none() && !self.asked.is_whole() && self.n_seen > self.n_in {
            let new = |statistic| Sum::new(statistic, self.n_in, self.n_expected);
            let mut sums: Vec<Sum<B>> = self.asked.statistics().map(new).collect();
            for batch in self.batches.drain(..) {
                let rows = rows_of(&batch);
                sums.iter_mut().for_each(|sum| sum.add(&rows));
            }
            self.sums = Some(sums);
        }
    }

    /// # Panics
    /// If other tokens came than were expected, and some of them were to be sampled.
    pub(super) fn finish(self) -> InputStats<B> {
        let Self { asked, n_expected, n_in, n_seen, device, batches, sums } = self;
        let sums = match sums {
            None if !asked.only_counts() => {
                return InputStats {
                    batches: Some(batches),
                    n_tokens: n_seen,
                    ..InputStats::of_no_tokens(n_in, device)
                };
            }
            sums => sums.unwrap_or_default(),
        };
        assert!(!asked.samples_rows() || n_seen == n_expected, "{n_seen} tokens came, {n_expected} were expected");
        let mut stats = InputStats { batches: None, n_tokens: n_seen, ..InputStats::of_no_tokens(n_in, device) };
        for sum in sums {
            match sum {
                Sum::MeanAbs(_) => stats.mean_abs = Slot::of(stats.mean_of_magnitudes(sum)),
                Sum::Gram(_) => stats.gram = Slot::of(stats.mean_gram(sum)),
                Sum::Squares(sum) => stats.sum_squares = Slot::of(sum.into()),
                Sum::GramF64(sum) => stats.gram_f64 = Slot::of(stats.mean(sum).into()),
                Sum::SampledRows(sampled) => stats.sampled_rows.extend([sampled.into_rows()]),
            }
        }
        stats
    }
}

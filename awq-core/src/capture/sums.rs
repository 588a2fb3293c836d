//! Statistics of what a linear sees, added up batch by batch: inputs need not be kept for them.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};

use crate::backend::{QuantBackend, float_vec};

/// Something that a method asks of what a linear sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statistic {
    /// [`InputStats::mean_abs`](super::InputStats::mean_abs).
    MeanAbs,
    /// [`InputStats::sum_squares`](super::InputStats::sum_squares).
    SumSquares,
    /// [`InputStats::gram`](super::InputStats::gram).
    Gram,
    /// [`InputStats::gram_f64`](super::InputStats::gram_f64).
    GramF64,
    /// [`InputStats::sampled_rows`](super::InputStats::sampled_rows) of this many tokens.
    SampledRows(usize),
}

/// What is kept of what a linear sees: by default how many tokens that is, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    is_whole: bool,
    statistics: BTreeSet<Statistic>,
}

impl Gathered {
    /// The inputs of all tokens, and so whatever can be asked of them.
    pub fn whole() -> Self {
        Self { is_whole: true, ..Self::default() }
    }

    /// Some statistics. While a linear has seen no more tokens than it has channels, its inputs are kept too: they take no more room
    /// than a Gram matrix.
    pub fn of(statistics: impl IntoIterator<Item = Statistic>) -> Self {
        Self { is_whole: false, statistics: statistics.into_iter().collect() }
    }

    /// What serves both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.is_whole |= other.is_whole;
        self.statistics.extend(other.statistics);
        self
    }

    /// Whether all inputs are kept.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether tokens are counted and nothing of them is kept.
    pub(super) fn only_counts(&self) -> bool {
        !self.is_whole && self.statistics.is_empty()
    }

    /// Bytes of what is kept of `n_tokens` tokens of `n_in` channels.
    pub fn bytes(&self, n_in: usize, n_tokens: u64) -> u64 {
        let (n_in, f32_bytes) = (n_in as u64, 4);
        let inputs = n_tokens * n_in * f32_bytes;
        let of_statistic = |statistic: &Statistic| match *statistic {
            Statistic::MeanAbs => n_in * f32_bytes,
            Statistic::SumSquares => n_in * 8,
            Statistic::Gram => n_in * n_in * f32_bytes,
            Statistic::GramF64 => n_in * n_in * 8,
            Statistic::SampledRows(n) => (2 * n as u64).min(n_tokens) * n_in * f32_bytes,
        };
        let statistics: u64 = self.statistics.iter().map(of_statistic).sum();
        match self.is_whole || (n_tokens <= n_in && !self.only_counts()) {
            true => inputs + statistics,
            false => statistics,
        }
    }

    pub(super) fn statistics(&self) -> impl Iterator<Item = Statistic> + '_ {
        self.statistics.iter().copied()
    }

    /// Whether tokens are sampled, which takes that their number is known before the first.
    pub(super) fn samples_rows(&self) -> bool {
        self.statistics.iter().any(|statistic| matches!(statistic, Statistic::SampledRows(_)))
    }
}

/// One statistic, as far as it is added up. Sums of f32 are taken batch by batch, in their order.
#[derive(Debug)]
pub(super) enum Sum<B: QuantBackend> {
    MeanAbs(Option<Tensor<B, 2>>),
    Squares(Vec<f64>),
    Gram(Option<Tensor<B, 2>>),
    GramF64(Vec<f64>),
    SampledRows(Sampled<B>),
}

/// Every `stride`-th token, of which the first is one.
#[derive(Debug)]
pub(super) struct Sampled<B: QuantBackend> {
    n_asked: usize,
    stride: usize,
    n_seen: usize,
    picked: Vec<Tensor<B, 2>>,
}

impl<B: QuantBackend> Sum<B> {
    /// Of no tokens yet, out of `n_tokens` that will come with `n_in` channels.
    pub(super) fn new(statistic: Statistic, n_in: usize, n_tokens: usize) -> Self {
        match statistic {
            Statistic::MeanAbs => Self::MeanAbs(None),
            Statistic::SumSquares => Self::Squares(vec![0.0; n_in]),
            Statistic::Gram => Self::Gram(None),
            Statistic::GramF64 => Self::GramF64(vec![0.0; n_in * n_in]),
            Statistic::SampledRows(n_asked) => {
                let stride = (n_tokens / n_asked.max(1)).max(1);
                Self::SampledRows(Sampled { n_asked, stride, n_seen: 0, picked: Vec::new() })
            }
        }
    }

    /// Adds a batch of tokens, `[n, in]`.
    pub(super) fn add(&mut self, rows: &Tensor<B, 2>) {
        match self {
            Self::MeanAbs(sum) => add_to(sum, B::in_f32(rows.clone()).abs().sum_dim(0)),
            Self::Squares(sums) => {
                let rows = B::in_f32(rows.clone());
                let of_batch = float_vec((rows.clone() * rows).sum_dim(0));
                sums.iter_mut().zip(of_batch).for_each(|(sum, more)| *sum += f64::from(more));
            }
            Self::Gram(sum) => {
                let rows = B::in_f32(rows.clone());
                add_to(sum, B::matmul(rows.clone().transpose(), rows));
            }
            Self::GramF64(sum) => {
                let [_, n_in] = rows.dims();
                crate::host::gram::add_gram(sum, &float_vec(rows.clone()), n_in);
            }
            Self::SampledRows(sampled) => sampled.add(rows),
        }
    }
}

impl<B: QuantBackend> Sampled<B> {
    fn add(&mut self, rows: &Tensor<B, 2>) {
        let [n, _] = rows.dims();
        let seen = self.n_seen..self.n_seen + n;
        self.n_seen = seen.end;
        if self.stride == 1 {
            return self.picked.push(B::in_f32(rows.clone()));
        }
        let of_batch: Vec<i64> =
            seen.clone().filter(|row| row % self.stride == 0).map(|row| (row - seen.start) as i64).collect();
        let picked = TensorData::new(of_batch.clone(), [of_batch.len()]);
        self.picked.push(B::in_f32(rows.clone().select(0, Tensor::from_data(picked, &rows.device()))));
    }

    /// For how many tokens it was asked, and these.
    pub(super) fn into_rows(self) -> (usize, Tensor<B, 2>) {
        (self.n_asked, Tensor::cat(self.picked, 0))
    }
}

fn add_to<B: QuantBackend>(sum: &mut Option<Tensor<B, 2>>, more: Tensor<B, 2>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + more,
        None => more,
    });
}

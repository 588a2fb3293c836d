//! A linear with made-up weights and inputs, for the tests of methods that look at one linear at a time.

use std::num::NonZeroU16;

use awq_core::backend::float_vec;
use awq_core::capture::InputStats;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::method::{LinearCtx, LinearMethod};
use awq_core::model::LinearName;
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};

/// One linear and what it sees.
pub(crate) struct Case {
    pub(crate) weight: Vec<f32>,
    pub(crate) n_in: usize,
    pub(crate) input: InputStats<Flex>,
    pub(crate) grid: Grid,
}

impl Case {
    /// Weights of a few large and many small values, inputs with channels of very different size that go together.
    pub(crate) fn new(n_out: usize, n_in: usize, n_tokens: usize, grid: Grid) -> Self {
        let mut noise = noise(7);
        let weight = (0..n_out * n_in).map(|_| noise().powi(3) * 0.1).collect();
        let mut rows = Vec::new();
        for _ in 0..n_tokens {
            let common = noise();
            let channel = |i: usize| (noise() + common) * (1.0 + (i % 7) as f32) * if i % 13 == 5 { 8.0 } else { 1.0 };
            rows.extend((0..n_in).map(channel));
        }
        Self { weight, n_in, input: inputs(rows, n_in), grid }
    }

    pub(crate) fn n_out(&self) -> usize {
        self.weight.len() / self.n_in
    }

    pub(crate) fn ctx(&self) -> LinearCtx<'_, Flex> {
        let weight = TensorData::new(self.weight.clone(), [self.n_out(), self.n_in]);
        LinearCtx {
            block_idx: 3,
            linear: LinearName("mlp.down_proj"),
            weight: Tensor::from_data(weight, &Default::default()),
            input: Some(&self.input),
            input_scale: None,
            grid: &self.grid,
            listener: &|_| {},
        }
    }
}

impl Case {
    /// The same with inputs in another unit, and channel `i` zero on every token where `dead(i)`.
    pub(crate) fn in_unit(&self, unit: f32, dead: impl Fn(usize) -> bool) -> Self {
        let (weight, n_in, grid) = (self.weight.clone(), self.n_in, self.grid);
        let scaled = |batch: &Tensor<Flex, 3>| {
            let channel = |at: usize| if dead(at % n_in) { 0.0 } else { unit };
            float_vec(batch.clone()).iter().enumerate().map(|(at, x)| channel(at) * x).collect::<Vec<f32>>()
        };
        let input = inputs(self.input.batches().iter().flat_map(scaled).collect(), n_in);
        Self { weight, n_in, input, grid }
    }
}

/// Asserts that a method that takes no note of the unit of its inputs has given the same codes on `case` in several units, where
/// every channel `i` with `dead(i)` is zero: bit for bit in units that are powers of two, and but for ties that rounding of
/// the inputs themselves decides in others.
#[track_caller]
pub(crate) fn check_units<M: LinearMethod<Flex>>(method: &M, label: &str, case: &Case, dead: impl Fn(usize) -> bool) {
    let quantize = |unit| {
        let case = case.in_unit(unit, &dead);
        method.quantize_linear(&case.ctx()).unwrap_or_else(|error| panic!("{label}, unit {unit}: {error}"))
    };
    let (expected, log) = quantize(1.0);
    for unit in [1.0 / 128.0, 128.0] {
        let (found, other) = quantize(unit);
        assert_eq!(found, expected, "{label}: inputs times {unit} change the codes");
        assert_eq!(other.notes, log.notes, "{label}: inputs times {unit} change the notes");
    }
    for unit in [0.01, 100.0] {
        let (found, other) = quantize(unit);
        let differing = found.codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
        let n = expected.codes.len();
        assert!(differing <= n / 100, "{label}: inputs times {unit} change {differing} of {n} codes");
        assert_eq!(other.notes, log.notes, "{label}: inputs times {unit} change the notes");
    }
}

/// Rows of `n_in` channels as the inputs of one batch.
pub(crate) fn inputs(rows: Vec<f32>, n_in: usize) -> InputStats<Flex> {
    let n_tokens = rows.len() / n_in;
    InputStats::new(vec![Tensor::from_data(TensorData::new(rows, [1, n_tokens, n_in]), &Default::default())])
}

/// An asymmetric grid with f32 scales that holds zero.
pub(crate) fn grid(bits: u8, group_size: u16) -> Grid {
    Grid {
        bits: Bits::new(bits).unwrap_or_else(|| panic!("{bits} bits")),
        granularity: NonZeroU16::new(group_size).map_or(Granularity::PerChannel, Granularity::PerGroup),
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: true,
        scale_dtype: ScaleDtype::F32,
        values: None,
    }
}

/// Numbers between -1 and 1 of a linear congruential generator.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Runs `work` on a pool of so many threads.
pub(crate) fn on_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
    pool.unwrap_or_else(|error| panic!("no pool of {n} threads: {error}")).install(work)
}

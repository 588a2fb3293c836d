//! What a product costs and what the machine could do: the numbers that a roofline is drawn from.
//!
//! Everything runs on rayon's current pool, so the caller chooses the threads. All arms of a comparison belong into one
//! run, interleaved ([`interleaved`]): the clock and what else the machine does change from minute to minute.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lanes::{Lanes, Work};
use super::tiles::{QUAD, TILE};
use super::{Activations, Kernel, KernelError, QuantMatmul};

/// Times of one arm, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the calls were faster.
    pub median: f64,
    /// A quarter of the calls were faster.
    pub lower_quartile: f64,
    /// A quarter of the calls were slower.
    pub upper_quartile: f64,
    /// Calls.
    pub n_calls: usize,
}

impl Latency {
    /// Of at least one time, in seconds.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "no time was taken");
        seconds.sort_by(f64::total_cmp);
        let at = |quarter: usize| seconds[(seconds.len() * quarter / 4).min(seconds.len() - 1)];
        Self { median: at(2), lower_quartile: at(1), upper_quartile: at(3), n_calls: seconds.len() }
    }
}

/// One arm of a comparison: copies of a weight, enough of them that no cache holds them all.
pub struct Arm {
    copies: Vec<Box<dyn QuantMatmul>>,
}

impl Arm {
    /// As many copies as fill `bytes`, and at least one.
    ///
    /// # Errors
    /// Those of `pack`.
    pub fn new(
        bytes: usize,
        pack: impl Fn() -> Result<Box<dyn QuantMatmul>, KernelError>,
    ) -> Result<Self, KernelError> {
        let first = pack()?;
        let n_copies = bytes / first.packed_bytes().max(1);
        let copies = std::iter::once(Ok(first)).chain((1..n_copies).map(|_| pack()));
        Ok(Self { copies: copies.collect::<Result<_, _>>()? })
    }

    /// The copies, of which there is at least one.
    pub fn copies(&self) -> &[Box<dyn QuantMatmul>] {
        &self.copies
    }

    /// Bytes that one product reads.
    pub fn packed_bytes(&self) -> usize {
        self.copies[0].packed_bytes()
    }
}

/// Times of products with `x: [n_rows, n_in]`: the arms take turns, each call on the next copy of its weight. Two rounds of
/// warm-up are not counted.
///
/// # Panics
/// If `n_rounds` is zero or `x` does not fit an arm.
pub fn interleaved(arms: &[Arm], x: &[f32], n_rounds: usize) -> Vec<Latency> {
    const WARM_UP: usize = 2;
    assert!(n_rounds > 0, "no round to measure");
    let mut seconds = vec![Vec::with_capacity(n_rounds); arms.len()];
    for round in 0..WARM_UP + n_rounds {
        for (arm, seconds) in arms.iter().zip(&mut seconds) {
            let weight = &arm.copies[round % arm.copies.len()];
            let mut out = vec![0.0; x.len() / weight.n_in() * weight.n_out()];
            let start = Instant::now();
            weight.matmul(x, black_box(&mut out));
            if round >= WARM_UP {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    seconds.into_iter().map(Latency::of).collect()
}

/// Bytes a second, the median of `n_rounds`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Read and written by copying one array into another.
    pub copy: f64,
    /// Read by summing an array.
    pub read: f64,
}

/// Measures memory with two arrays of `bytes` each, which should be several times the last-level cache.
///
/// # Panics
/// If `n_rounds` is zero.
pub fn bandwidth(bytes: usize, n_rounds: usize) -> Bandwidth {
    const CHUNK: usize = 1 << 17;
    assert!(n_rounds > 0, "no round to measure");
    let source = vec![1_u64; bytes.div_ceil(8)];
    let mut target = vec![0_u64; source.len()];
    let (mut copy, mut read) = (Vec::new(), Vec::new());
    for _ in 0..n_rounds {
        let start = Instant::now();
        let chunks = target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK));
        chunks.for_each(|(target, source)| target.copy_from_slice(source));
        copy.push(start.elapsed().as_secs_f64());
        black_box(&mut target);
        let start = Instant::now();
        let sum: u64 = source.par_chunks(CHUNK).map(|chunk| chunk.iter().fold(0, |sum, x| sum ^ x)).sum();
        read.push(start.elapsed().as_secs_f64());
        black_box(sum);
    }
    let n_bytes = (source.len() * 8) as f64;
    Bandwidth { copy: 2.0 * n_bytes / Latency::of(copy).median, read: n_bytes / Latency::of(read).median }
}

/// Operations a second on all threads of the current pool, a multiplication and an addition counted as two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// Fused multiplications and additions of f32.
    pub f32: f64,
    /// Products of bytes, added up in 32 bits.
    pub int8: f64,
}

/// Work on data in registers, or tiles in the first-level cache; returns its operations.
pub(super) type Arithmetic = fn() -> usize;

/// Measures the arithmetic of the best kernels' instructions, without memory.
pub fn peak() -> Peak {
    let rate = |work: Arithmetic| {
        let rounds = (0..9).map(|_| {
            let start = Instant::now();
            let operations: usize = rayon::broadcast(|_| work()).into_iter().sum();
            operations as f64 / start.elapsed().as_secs_f64()
        });
        rounds.fold(0.0, f64::max)
    };
    let (float, _) = Kernel::best(Activations::F32).arithmetic;
    let (_, integer) = Kernel::best(Activations::Int8).arithmetic;
    Peak { f32: rate(float), int8: rate(integer) }
}

/// Sums that do not wait for each other.
const N_CHAINS: usize = 10;
/// Long enough, as products of tiles are, that waking the other threads takes no part of it that counts: a tenth of it made the peak 275 GFLOP/s on a
/// virtual machine that reaches 440.
const N_STEPS: usize = 400_000;

/// Multiplications of floats on registers.
pub(super) fn multiply_floats<L: Lanes>() -> usize {
    struct Chains<L>(L);
    impl<L: Lanes> Work for Chains<L> {
        #[inline(always)]
        fn run(self) {
            let lanes = self.0;
            let (a, b) = (lanes.splat(black_box(0.5)), lanes.splat(black_box(0.25)));
            let mut sums = [lanes.splat(0.0); N_CHAINS];
            for _ in 0..N_STEPS {
                for sum in &mut sums {
                    *sum = lanes.mul_add(a, b, *sum);
                }
            }
            for sum in sums {
                black_box(lanes.store(sum));
            }
        }
    }
    if let Some(lanes) = L::detect() {
        lanes.vectorize(Chains(lanes));
    }
    2 * TILE * N_STEPS * N_CHAINS
}

/// Multiplications of bytes on registers.
pub(super) fn multiply_bytes<L: Lanes>() -> usize {
    struct Chains<L>(L);
    impl<L: Lanes> Work for Chains<L> {
        #[inline(always)]
        fn run(self) {
            let lanes = self.0;
            let mut sums = [lanes.zero_ints(); N_CHAINS];
            for step in 0..N_STEPS {
                // Opaque, or the compiler would multiply by the number of steps instead.
                let x = black_box(step as i32);
                for sum in &mut sums {
                    *sum = lanes.dot(*sum, *sum, x, 7);
                }
            }
            for sum in sums {
                black_box(lanes.store(lanes.to_floats(sum)));
            }
        }
    }
    if let Some(lanes) = L::detect() {
        lanes.vectorize(Chains(lanes));
    }
    2 * QUAD * TILE * N_STEPS * N_CHAINS
}

//! A number of f32 is the sum of three of bf16, and its product with another that of six products of these: tiles multiply so much faster
//! than vectors that this pays. Sums are as exact: a product loses less than half its last digit, and sums of pairs are rounded half as
//! often as those of single products.
//!
//! Numbers below 2^-126 count as zero in tiles, and so do parts and products below that: numbers below 2^-103 may lose their last
//! digits. A sum with an infinite number is no number: parts of others are zero.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;

use super::{DEEP, Task, even_runs, multiply, n_tiles, pair_of, store};
use crate::amx::{Amx, PARTS, ROWS, SIDE, Square, Tile};
use crate::host::avx512::{mask_of, transposed};

/// Rows of `x` from which it pays to take `w` apart, measured on two cores of a Xeon with rows of 576 and of 4,096 inputs: at 128 rows the two
/// are about even.
const ROWS_FROM: usize = 256;
/// Tiles of a row whose sum is added to the others as one, which loses fewer digits, and leaves what is multiplied in cache.
const STEPS: usize = 20;

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]` in f32; `None` where the CPU has no tiles, or vectors are faster.
///
/// Neither threads nor the other rows and columns change a bit of a sum, but for the number of rows from which tiles pay.
pub(in crate::host) fn matmul_transposed(x: &[f32], w: &[f32], k: usize) -> Option<Vec<f32>> {
    let pays = x.len() / k >= ROWS_FROM && k >= DEEP && !w.is_empty();
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16");
    if !pays || !has_avx512 {
        return None;
    }
    Some(product(Amx::detect()?, x, w, k))
}

fn product(amx: Amx, x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    // SAFETY: whoever calls this found AVX-512 on this CPU.
    let pack = |tiles: &mut [Tile], rows: &[f32]| unsafe { take_apart(tiles, rows, k, 0) };
    multiply::<PARTS>(x, w.len() / k, k, pack, |sums, task| {
        let w = &w[task.columns.start * k..task.columns.end * k];
        sums.resize(1, Square::ZERO);
        multiply_columns(amx, &mut sums[0], task, w, k);
    })
}

/// The columns `w: [columns, k]` of all rows of a task.
fn multiply_columns(amx: Amx, sums: &mut Square, task: Task<'_, '_>, w: &[f32], k: usize) {
    let (deep, width) = (k.div_ceil(DEEP), task.columns.len());
    for steps in even_runs(deep, STEPS) {
        let mut columns = vec![Tile::ZERO; n_tiles::<PARTS>(width, steps.len())];
        for (tiles, rows) in columns.chunks_mut(steps.len() * PARTS).zip(w.chunks(ROWS * k)) {
            // SAFETY: whoever calls this found AVX-512 on this CPU.
            unsafe {
                take_apart(tiles, rows, k, steps.start);
                turn_pairs(tiles);
            }
        }
        let tiles = amx.configure();
        for (pair, out) in task.out.chunks_mut(SIDE).enumerate() {
            let x = pair_of::<PARTS>(task.x, pair, deep, steps.clone());
            for (pair, start) in (0..width).step_by(SIDE).enumerate() {
                let w = pair_of::<PARTS>(&columns, pair, steps.len(), 0..steps.len());
                tiles.multiply_parts(x, w, sums);
                // SAFETY: whoever calls this found AVX-512 on this CPU; where there are inputs before these, their sums were stored.
                unsafe { store(out, sums, start..width.min(start + SIDE), steps.start > 0) };
            }
        }
    }
}

/// Up to 16 rows of `k` values as tiles of their parts, `[deep][part]`, from tile `first` on; what lies beyond stays zero.
#[target_feature(enable = "avx512f,avx512bw")]
fn take_apart(tiles: &mut [Tile], rows: &[f32], k: usize, first: usize) {
    let tiles = tiles.as_chunks_mut::<PARTS>().0;
    for row in 0..rows.len() / k {
        let values = &rows[row * k..][..k];
        for step in 0..tiles.len() {
            let values = &values[(first + step) * DEEP..];
            // SAFETY: the masks admit only values that the row has from here on.
            let (low, high) = unsafe {
                (
                    _mm512_maskz_loadu_epi32(mask_of(values.len()), values.as_ptr().cast()),
                    _mm512_maskz_loadu_epi32(
                        mask_of(values.len().saturating_sub(16)),
                        values.as_ptr().wrapping_add(16).cast(),
                    ),
                )
            };
            let (low, high) = (parts(low), parts(high));
            for part in 0..PARTS {
                let both = upper_halves(low[part], high[part]);
                // SAFETY: a row of a tile is 64 bytes.
                unsafe { _mm512_storeu_si512(tiles[step][part].0[row].as_mut_ptr().cast(), both) };
            }
        }
    }
}

/// Three numbers of bf16 whose sum is each value. Of one that is not finite the others are zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn parts(values: __m512i) -> [__m512i; PARTS] {
    let first = rounded(values);
    // The difference of infinities would be no number.
    let is_finite = _mm512_cmplt_epu32_mask(magnitude(values), _mm512_set1_epi32(INFINITE));
    let left = _mm512_maskz_sub_ps(is_finite, _mm512_castsi512_ps(values), _mm512_castsi512_ps(first));
    let second = rounded(_mm512_castps_si512(left));
    let third = _mm512_sub_ps(left, _mm512_castsi512_ps(second));
    [first, second, _mm512_castps_si512(third)]
}

/// Bits of infinity; those of what is not a number are above them.
const INFINITE: i32 = 0x7f80_0000;
/// Bits of the smallest number that would be rounded to infinity.
const ROUNDED_TO_INFINITE: i32 = 0x7f7f_8000;

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn magnitude(values: __m512i) -> __m512i {
    _mm512_and_si512(values, _mm512_set1_epi32(i32::MAX))
}

/// f32 rounded half to even to the 8 bits of mantissa of bf16, those that would become infinite towards zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rounded(values: __m512i) -> __m512i {
    let magnitude = magnitude(values);
    let last_bit = _mm512_and_si512(_mm512_srli_epi32::<16>(values), _mm512_set1_epi32(1));
    let half = _mm512_add_epi32(last_bit, _mm512_set1_epi32(0x7fff));
    let may_grow = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(ROUNDED_TO_INFINITE));
    let rounded = _mm512_mask_add_epi32(values, may_grow, values, half);
    // What is not a number must not lose the bits that say so.
    let is_nan = _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(INFINITE));
    let rounded = _mm512_mask_or_epi32(rounded, is_nan, rounded, _mm512_set1_epi32(0x0040_0000));
    _mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()))
}

/// The upper halves of 32 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn upper_halves(low: __m512i, high: __m512i) -> __m512i {
    let half = |words| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(low)), half(high))
}

/// Tiles of 16 rows of pairs become tiles of pairs of 16 columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn turn_pairs(tiles: &mut [Tile]) {
    for tile in 0..tiles.len() {
        let rows = &mut tiles[tile].0;
        let mut words = [_mm512_setzero_si512(); ROWS];
        for row in 0..ROWS {
            // SAFETY: a row of a tile is 64 bytes.
            words[row] = unsafe { _mm512_loadu_si512(rows[row].as_ptr().cast()) };
        }
        let words = transposed(words);
        for row in 0..ROWS {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(rows[row].as_mut_ptr().cast(), words[row]) };
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn value(i: usize) -> f32 {
        let uniform = (i as u32).wrapping_mul(2_654_435_761) >> 8;
        (uniform as f32 / (1 << 23) as f32 - 1.0) * (1 + i % 13) as f32
    }

    fn has_avx512() -> bool {
        let found = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
        if !found {
            eprintln!("not run: this CPU has no AVX-512 BF16");
        }
        found
    }

    /// Of products and sums in f64.
    fn root_mean_square_error(found: &[f32], x: &[f32], w: &[f32], k: usize) -> f64 {
        let n = w.len() / k;
        let squares = found.iter().enumerate().map(|(at, &found)| {
            let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            (f64::from(found) - exact).powi(2)
        });
        (squares.sum::<f64>() / found.len() as f64).sqrt()
    }

    #[test]
    fn sums_are_as_exact_as_those_of_vectors_whatever_the_threads_and_neighbours() {
        if !has_avx512() {
            return;
        }
        for (m, n, k) in
            [(1, 1, 1), (33, 31, 40), (32, 96, 64), (65, 70, 2500), (130, 33, 641), (2049, 33, 40), (3, 700, 33)]
        {
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 7)).collect();
            let on = |threads: usize, x: &[f32], w: &[f32]| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| product(Amx::for_tests(), x, w, k))
            };
            let found = on(1, &x, &w);
            assert!(found == on(2, &x, &w), "{m}x{n}x{k}: threads change a bit");
            let part = on(1, &x[..m.div_ceil(2) * k], &w[..n.div_ceil(2) * k]);
            for (row, part) in part.chunks_exact(n.div_ceil(2)).enumerate() {
                assert!(*part == found[row * n..][..part.len()], "{m}x{n}x{k}: neighbours change a bit");
            }
            let by_vectors = crate::host::matmul::matmul_transposed(&x, &w, k);
            let errors = [&found, &by_vectors].map(|found| root_mean_square_error(found, &x, &w, k));
            assert!(errors[0] <= errors[1] * 1.1, "{m}x{n}x{k}: errors are {errors:?}");
        }
    }

    #[test]
    fn a_number_is_the_sum_of_its_parts_and_only_what_is_not_finite_is_lost() {
        if !has_avx512() {
            return;
        }
        let numbers = [1.0, -1.003_906_2, 1.0 / 3.0, 123_456.79, 1e-30, f32::MAX, f32::MIN, 0.0];
        let mut numbers: Vec<f32> = numbers.into_iter().chain((0..32).map(value)).collect();
        let one = [1.0];
        assert_eq!(product(Amx::for_tests(), &numbers, &one, 1), numbers);
        assert_eq!(product(Amx::for_tests(), &one, &numbers, 1), numbers);
        (numbers[3], numbers[5]) = (f32::INFINITY, f32::from_bits(0x7f80_0001));
        let found = product(Amx::for_tests(), &numbers, &one, 1);
        for (found, number) in found.iter().zip(numbers) {
            assert!(if number.is_finite() { *found == number } else { !found.is_finite() }, "{number}: {found}");
        }
    }
}

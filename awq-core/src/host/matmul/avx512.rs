//! The product of linears by AVX-512, with the bits of faer's: a sum grows by fused multiplication and addition along 512 inputs, and is
//! then added to that of those before. Rows of `x` lie across the lanes of vectors, and values of `w` go to all lanes, so that `w` is
//! read as it is.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::PARALLEL_FROM;
use crate::host::avx512::{DEEP, LANES, Line, mask_of, transposed};

/// Vectors of a panel, and rows of `w` that are multiplied with it at a time: their sums take 24 of the 32 registers.
const VECTORS: usize = 2;
const COLS: usize = 12;
/// Multiplications below which faer is called, which has kernels for small products.
const PRODUCTS_FROM: usize = 1 << 16;
/// Rows of `x` that are packed at a time: 512 inputs of each stay in the second-level cache.
const ROWS_AT_ONCE: usize = 512;
/// Columns of a task at most.
const COLS_PER_TASK: usize = 288;
/// Inputs by which a panel is asked for ahead of use.
const AHEAD: usize = 12;

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]`; `None` where the CPU has no AVX-512, or the product is small.
pub(super) fn matmul_transposed(x: &[f32], w: &[f32], k: usize) -> Option<Vec<f32>> {
    let (m, n) = (x.len() / k, w.len() / k);
    assert!(x.len() == m * k && w.len() == n * k, "{} and {} values are no rows of {k}", x.len(), w.len());
    // Products with one row, column or input are faer's: it takes them in another order, or without a sum.
    let is_small = m == 1 || n == 1 || k == 1 || m * n * k < PRODUCTS_FROM;
    if is_small || !is_x86_feature_detected!("avx512f") {
        return None;
    }
    let least = if m * n * k < PARALLEL_FROM { usize::MAX } else { 1 };
    let rows_at_once = m.div_ceil(m.div_ceil(ROWS_AT_ONCE)).next_multiple_of(VECTORS * LANES);
    let mut out = Vec::with_capacity(m * n);
    let mut lines = Vec::with_capacity(m.min(rows_at_once).div_ceil(LANES) * k);
    for (out, x) in out.spare_capacity_mut()[..m * n].chunks_mut(rows_at_once * n).zip(x.chunks(rows_at_once * k)) {
        lines.clear();
        let n_lines = (x.len() / k).div_ceil(LANES) * k;
        let panels = lines.spare_capacity_mut()[..n_lines].par_chunks_mut(VECTORS * k).with_min_len(least);
        panels.zip(x.par_chunks(VECTORS * LANES * k)).for_each(|(lines, rows)| {
            // SAFETY: AVX-512 was found above.
            unsafe { pack(lines, rows, k) };
        });
        // SAFETY: the lines of every panel were written.
        unsafe { lines.set_len(n_lines) };
        let n_rows = rows_of_share(x.len() / k, n);
        let shares = out.par_chunks_mut(n_rows * n).zip(lines.par_chunks(n_rows / LANES * k)).with_min_len(least);
        shares.for_each(|(out, lines)| multiply_rows(out, lines, w, k, least));
    }
    // SAFETY: every column of every row was written.
    unsafe { out.set_len(m * n) };
    Some(out)
}

/// Rows that share columns: all, unless columns are too few to be shared out.
fn rows_of_share(m: usize, n: usize) -> usize {
    let n_shares = rayon::current_num_threads().div_ceil(n.div_ceil(COLS));
    m.div_ceil(n_shares).next_multiple_of(VECTORS * LANES)
}

/// The product with packed rows. A task has columns of its own, and `least` tasks make work for another thread.
fn multiply_rows(out: &mut [MaybeUninit<f32>], lines: &[Line], w: &[f32], k: usize, least: usize) {
    let n = w.len() / k;
    let (width, n_rows) = (columns_of_task(n), out.len() / n);
    let mut tasks: Vec<Vec<_>> = (0..n.div_ceil(width)).map(|_| Vec::with_capacity(n_rows)).collect();
    for row in out.chunks_exact_mut(n) {
        for (task, columns) in tasks.iter_mut().zip(row.chunks_mut(width)) {
            task.push(columns);
        }
    }
    let tasks = tasks.into_par_iter().zip(w.par_chunks(width * k)).with_min_len(least);
    tasks.for_each(|(mut out, w)| {
        // SAFETY: rows are packed only where AVX-512 was found.
        unsafe { multiply_columns(&mut out, lines, w, k) };
    });
}

/// Columns of a task: even shares for all threads, where there are enough.
fn columns_of_task(n: usize) -> usize {
    let n_tasks = n.div_ceil(COLS_PER_TASK).next_multiple_of(rayon::current_num_threads());
    n.div_ceil(n_tasks).next_multiple_of(COLS)
}

/// Up to [`VECTORS`] times 16 rows, a line for an input of 16 rows, input by input, the vectors of an input side by side. Lanes of missing rows are zero.
#[target_feature(enable = "avx512f")]
fn pack(lines: &mut [MaybeUninit<Line>], rows: &[f32], k: usize) {
    let (n_vectors, n_rows) = (lines.len() / k, rows.len() / k);
    for vector in 0..n_vectors {
        for start in (0..k).step_by(LANES) {
            let n_inputs = LANES.min(k - start);
            let mut by_row = [_mm512_setzero_si512(); LANES];
            for lane in 0..LANES.min(n_rows - vector * LANES) {
                let values = &rows[(vector * LANES + lane) * k + start..][..n_inputs];
                // SAFETY: the mask admits only the values that there are.
                by_row[lane] = unsafe { _mm512_maskz_loadu_epi32(mask_of(n_inputs), values.as_ptr().cast()) };
            }
            let by_input = transposed(by_row);
            for input in 0..n_inputs {
                let line = &mut lines[(start + input) * n_vectors + vector];
                // SAFETY: a line is 64 bytes, and aligned so.
                unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), by_input[input]) };
            }
        }
    }
}

/// The columns `out` of all rows, one for each row of `w`.
#[target_feature(enable = "avx512f")]
fn multiply_columns(out: &mut [&mut [MaybeUninit<f32>]], lines: &[Line], w: &[f32], k: usize) {
    let n_cols = w.len() / k;
    let mut chunk = [[0.0_f32; DEEP + LANES]; COLS];
    for first in (0..k).step_by(DEEP) {
        let depth = DEEP.min(k - first);
        for col in (0..n_cols).step_by(COLS) {
            let width = COLS.min(n_cols - col);
            for i in 0..COLS {
                let row = &w[(col + i.min(width - 1)) * k..][first..first + depth];
                chunk[i][..depth].copy_from_slice(row);
            }
            for (panel, out) in out.chunks_mut(VECTORS * LANES).enumerate() {
                let n_vectors = out.len().div_ceil(LANES);
                let lines = &lines[panel * VECTORS * k + first * n_vectors..][..depth * n_vectors];
                let columns = col..col + width;
                match n_vectors {
                    1 => tile::<1>(out, lines, &chunk, columns, first > 0),
                    _ => tile::<VECTORS>(out, lines, &chunk, columns, first > 0),
                }
            }
        }
    }
}

/// Products of `N` vectors of rows with up to 12 rows of `w`, added to the sums of inputs before these if there are any.
#[inline]
#[target_feature(enable = "avx512f")]
fn tile<const N: usize>(
    out: &mut [&mut [MaybeUninit<f32>]],
    lines: &[Line],
    w: &[[f32; DEEP + LANES]; COLS],
    columns: Range<usize>,
    has_sums: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); COLS]; N];
    let lines = lines.as_chunks::<N>().0;
    for input in 0..lines.len().min(DEEP) {
        let mut x = [_mm512_setzero_ps(); N];
        for vector in 0..N {
            x[vector] = lines[input][vector].load();
            _mm_prefetch::<_MM_HINT_T0>(
                lines.as_ptr().wrapping_add(input + AHEAD).cast::<Line>().wrapping_add(vector).cast(),
            );
        }
        for col in 0..COLS {
            let w = _mm512_set1_ps(w[col][input]);
            for vector in 0..N {
                sums[vector][col] = _mm512_fmadd_ps(x[vector], w, sums[vector][col]);
            }
        }
    }
    let mask = mask_of(columns.len());
    for vector in 0..N {
        let mut by_col = [_mm512_setzero_si512(); LANES];
        for col in 0..COLS {
            by_col[col] = _mm512_castps_si512(sums[vector][col]);
        }
        let by_row = transposed(by_col);
        for lane in 0..LANES.min(out.len() - vector * LANES) {
            let out = &mut out[vector * LANES + lane][columns.clone()];
            let mut sums = _mm512_castsi512_ps(by_row[lane]);
            // SAFETY: the mask admits only the columns that there are; where there are inputs before these, their sums were stored.
            unsafe {
                if has_sums {
                    sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out.as_ptr().cast()), sums);
                }
                _mm512_mask_storeu_ps(out.as_mut_ptr().cast(), mask, sums);
            }
        }
    }
}

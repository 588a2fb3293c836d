//! Products of numbers in bf16.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::_mm512_storeu_si512;

use super::{DEEP, Task, even_runs, multiply, pair_of, store};
use crate::amx::{Ahead, Amx, ROWS, SIDE, Square, Tile};
use crate::host::bf16::avx512::pairs;

/// Rows whose sums with a task's columns stay in the second-level cache until all inputs are in them.
const ROWS_OF_SUMS: usize = 512;
/// Tiles of a row that are multiplied at a time: those of 32 rows and of 32 columns stay in the first-level cache. No bit depends on it.
const STEPS: usize = 8;

/// `x w^T` for row-major `x: [m, k]`, rounded to bf16, and `n` columns `w`: tiles of pairs, `[column / 16][input / 32]`, an even number of blocks
/// of 16, filled up with zeros. The CPU must have AVX-512.
///
/// Sums grow from the first input to the last: neither threads nor the other rows and columns change a bit.
pub(in crate::host::bf16) fn matmul(amx: Amx, x: &[f32], w: &[Tile], n: usize, k: usize) -> Vec<f32> {
    let deep = k.div_ceil(DEEP);
    // SAFETY: whoever calls this found AVX-512 on this CPU.
    let pack = |tiles: &mut [Tile], rows: &[f32]| unsafe { pack_rows(tiles, rows, k) };
    multiply::<1>(x, n, k, pack, |sums, Task { out, x, columns }| {
        let w = &w[columns.start / ROWS * deep..];
        for (out, x) in out.chunks_mut(ROWS_OF_SUMS).zip(x.chunks(ROWS_OF_SUMS / ROWS * deep)) {
            let of_group = Task { out, x, columns: columns.clone() };
            add_up(amx, sums, of_group, w, deep);
        }
    })
}

/// The columns of up to [`ROWS_OF_SUMS`] rows. `w` are the tiles of these columns and of those behind them.
fn add_up(amx: Amx, sums: &mut Vec<Square>, Task { out, x, columns }: Task<'_, '_>, w: &[Tile], deep: usize) {
    let n_columns = columns.len().div_ceil(SIDE);
    sums.resize(out.len().div_ceil(SIDE) * n_columns, Square::ZERO);
    let tiles = amx.configure();
    for steps in even_runs(deep, STEPS) {
        // What is asked for while these inputs are multiplied: of the same rows and columns the next ones, or of the columns behind
        // them the first.
        let (next, behind) = if steps.end < deep { (steps.end, 0) } else { (0, n_columns) };
        for (row, sums) in sums.chunks_mut(n_columns).enumerate() {
            let of_rows = pair_of::<1>(x, row, deep, steps.clone());
            for (column, sums) in sums.iter_mut().enumerate() {
                let of_columns = pair_of::<1>(w, column, deep, steps.clone());
                let ahead = Ahead {
                    x: share_of(x, row, deep, next, steps.len(), column * Ahead::X_BYTES),
                    w: share_of(w, behind + column, deep, next, steps.len(), row * Ahead::W_BYTES),
                };
                tiles.add_bf16(of_rows, of_columns, sums, steps.start > 0, ahead);
            }
        }
    }
    drop(tiles);
    for (out, sums) in out.chunks_mut(SIDE).zip(sums.chunks(n_columns)) {
        for (sums, start) in sums.iter().zip((0..columns.len()).step_by(SIDE)) {
            // SAFETY: whoever multiplies found AVX-512 on this CPU.
            unsafe { store(out, sums, start..columns.len().min(start + SIDE), false) };
        }
    }
}

/// Up to 16 rows of `k` values, rounded, as tiles of them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(tiles: &mut [Tile], rows: &[f32], k: usize) {
    for row in 0..rows.len() / k {
        let values = &rows[row * k..][..k];
        for step in 0..tiles.len() {
            // SAFETY: a row of a tile is 64 bytes.
            unsafe { _mm512_storeu_si512(tiles[step].0[row].as_mut_ptr().cast(), pairs(values, step * DEEP)) };
        }
    }
}

/// Where a share begins of a run of `n` tiles from `first` on of both blocks of a pair: one that is `bytes_a_step` at each step behind the run's
/// beginning. Beyond both it is the first block's again. There may be no such pair: nothing is read there.
fn share_of(tiles: &[Tile], pair: usize, deep: usize, first: usize, n: usize, bytes_a_step: usize) -> *const u8 {
    let (run, offset) = (n * size_of::<Tile>(), n * bytes_a_step);
    let block = 2 * pair + offset / run % 2;
    tiles.as_ptr().wrapping_add(block * deep + first).cast::<u8>().wrapping_add(offset % run)
}

//! Products by tiles (AMX), which multiply bf16.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

mod parts;
mod single;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

pub(in crate::host) use self::parts::matmul_transposed;
pub(super) use self::single::matmul;
use crate::amx::{ROW_BYTES, ROWS, SIDE, Square, Tile};
use crate::host::avx512::mask_of;

/// Inputs that a tile holds.
const DEEP: usize = ROW_BYTES / 2;
/// Rows of `x` that are taken apart at a time, which bounds memory.
const ROWS_AT_ONCE: usize = 2048;
/// Columns of a task at most: what is multiplied of them at a time stays in the second-level cache.
const COLS_PER_TASK: usize = 256;

/// Some columns of some rows of a product.
struct Task<'a, 'b> {
    /// Of each row the columns, which no task has written yet.
    out: &'a mut [&'b mut [MaybeUninit<f32>]],
    /// The rows' tiles: `[row / 16][input / 32][part]`, an even number of blocks of 16, filled up with zeros.
    x: &'a [Tile],
    columns: Range<usize>,
}

/// `x w^T` for row-major `x: [m, k]` and `n` columns `w`. `pack` puts up to 16 rows of `k` values into their tiles, `[input / 32][part]`, of `N`
/// parts. `run` must write all of its task's columns; threads keep room for sums between tasks. The CPU must have AVX-512.
fn multiply<const N: usize>(
    x: &[f32],
    n: usize,
    k: usize,
    pack: impl Fn(&mut [Tile], &[f32]) + Sync,
    run: impl Fn(&mut Vec<Square>, Task<'_, '_>) + Sync,
) -> Vec<f32> {
    let m = x.len() / k;
    let mut out = Vec::with_capacity(m * n);
    for (out, x) in out.spare_capacity_mut()[..m * n].chunks_mut(ROWS_AT_ONCE * n).zip(x.chunks(ROWS_AT_ONCE * k)) {
        let n_rows = rows_of_share(x.len() / k, n);
        let shares = out.par_chunks_mut(n_rows * n).zip(x.par_chunks(n_rows * k));
        shares.for_each(|(out, x)| multiply_rows::<N>(out, x, n, k, &pack, &run));
    }
    // SAFETY: every share wrote all columns of each of its rows.
    unsafe { out.set_len(m * n) };
    out
}

/// Rows that share the tiles of columns: all, unless columns are too few to be shared out.
fn rows_of_share(m: usize, n: usize) -> usize {
    let n_shares = rayon::current_num_threads().div_ceil(n.div_ceil(SIDE));
    m.div_ceil(n_shares).next_multiple_of(SIDE)
}

/// The product with some rows. A task has columns of its own.
fn multiply_rows<const N: usize>(
    out: &mut [MaybeUninit<f32>],
    x: &[f32],
    n: usize,
    k: usize,
    pack: &(impl Fn(&mut [Tile], &[f32]) + Sync),
    run: &(impl Fn(&mut Vec<Square>, Task<'_, '_>) + Sync),
) {
    let deep = k.div_ceil(DEEP);
    let mut tiles = vec![Tile::ZERO; n_tiles::<N>(x.len() / k, deep)];
    let blocks = tiles.par_chunks_mut(deep * N).zip(x.par_chunks(ROWS * k));
    blocks.for_each(|(tiles, rows)| pack(tiles, rows));
    let (width, n_rows) = (columns_of_task(n), x.len() / k);
    let mut tasks: Vec<Vec<_>> = (0..n.div_ceil(width)).map(|_| Vec::with_capacity(n_rows)).collect();
    for row in out.chunks_exact_mut(n) {
        for (task, columns) in tasks.iter_mut().zip(row.chunks_mut(width)) {
            task.push(columns);
        }
    }
    tasks.into_par_iter().enumerate().for_each_init(Vec::new, |sums, (task, mut out)| {
        let columns = task * width..n.min((task + 1) * width);
        run(sums, Task { out: &mut out, x: &tiles, columns });
    });
}

/// Columns of a task, whole tiles: even shares for all threads, where there are enough.
fn columns_of_task(n: usize) -> usize {
    let n_tasks = n.div_ceil(COLS_PER_TASK).next_multiple_of(rayon::current_num_threads());
    n.div_ceil(n_tasks).next_multiple_of(SIDE)
}

/// Tiles of rows whose parts take `deep` tiles: pairs of blocks of 16 rows.
fn n_tiles<const N: usize>(n_rows: usize, deep: usize) -> usize {
    n_rows.div_ceil(SIDE) * 2 * deep * N
}

/// Both blocks of tiles of a pair, some of their inputs.
fn pair_of<const N: usize>(tiles: &[Tile], pair: usize, deep: usize, steps: Range<usize>) -> [&[Tile]; 2] {
    let (first, second) = tiles[2 * pair * deep * N..][..2 * deep * N].split_at(deep * N);
    let steps = steps.start * N..steps.end * N;
    [&first[steps.clone()], &second[steps]]
}

/// `deep` tiles of a row in even runs of `most` at most.
fn even_runs(deep: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let at_once = deep.div_ceil(deep.div_ceil(most));
    (0..deep).step_by(at_once).map(move |first| first..deep.min(first + at_once))
}

/// Stores sums in some columns of up to 32 rows, added to those before if there are any.
#[target_feature(enable = "avx512f")]
fn store(out: &mut [&mut [MaybeUninit<f32>]], sums: &Square, columns: Range<usize>, has_sums: bool) {
    for row in 0..out.len().min(SIDE) {
        let out = &mut out[row][columns.clone()];
        for start in [0, SIDE / 2] {
            let mask = mask_of(columns.len().saturating_sub(start));
            let at = out.as_mut_ptr().wrapping_add(start).cast::<f32>();
            // SAFETY: a half of a row of sums is 64 bytes; the mask admits only the columns that there are.
            unsafe {
                let mut sums = _mm512_loadu_ps(sums.0[row][start..].as_ptr());
                if has_sums {
                    sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sums);
                }
                _mm512_mask_storeu_ps(at, mask, sums);
            }
        }
    }
}

//! What all fused kernels share: the order in which tiles and rows are visited, and how work is split over threads.
#![allow(
    clippy::needless_range_loop,
    reason = "closures, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use rayon::prelude::*;

use super::lanes::{Lanes, Work};
use super::rows::Block;
use super::tiles::{Params, TILE, Tiles};

/// Lines that a product of one row asks for ahead of its reading.
pub(super) const PREFETCH: usize = 32;
/// Bytes of weights of a task at least, so that it takes longer than handing it over (microseconds).
const TASK_BYTES: usize = 1 << 16;
/// Multiplications of a task at least, where rows are many. Chosen as [`TASK_BYTES`] is.
const TASK_PRODUCTS: usize = 1 << 20;
/// Tasks of a thread at most: more would balance no better.
const TASKS_PER_THREAD: usize = 8;

/// A kind of activations, and how tiles are multiplied with them.
pub(super) trait Products<L: Lanes>: Sync {
    /// A block of rows.
    type Rows: Sync;

    fn block(rows: &Self::Rows) -> Block;

    /// The products of `TILES` tiles with one block of `ROWS` rows.
    fn product<const ROWS: usize, const TILES: usize>(
        lanes: L,
        tiles: &Tiles,
        first_tile: usize,
        rows: &Self::Rows,
    ) -> [[L::Floats; TILES]; ROWS];
}

/// The products of all row blocks with a run of tiles.
struct Task<'a, 'b, L: Lanes, P: Products<L>> {
    lanes: L,
    tiles: &'a Tiles,
    first_tile: usize,
    rows: &'a [P::Rows],
    /// The task's columns of each row of the result.
    out: &'a mut [&'b mut [f32]],
}

impl<L: Lanes, P: Products<L>> Work for Task<'_, '_, L, P> {
    #[inline(always)]
    fn run(mut self) {
        let n_cols = self.out.first().map_or(0, |row| row.len());
        for start in (0..n_cols).step_by(2 * TILE) {
            let pair = n_cols - start > TILE;
            for rows in self.rows {
                match (P::block(rows).n_lanes, pair) {
                    (8, _) if L::MAX_ROWS == 8 => self.product::<8, 2>(rows, start),
                    (4, _) if L::MAX_ROWS == 8 => self.product::<4, 2>(rows, start),
                    (4, _) if L::MAX_ROWS >= 4 => self.one_by_one::<4>(rows, start, pair),
                    _ => self.one_by_one::<1>(rows, start, pair),
                }
            }
        }
    }
}

impl<L: Lanes, P: Products<L>> Task<'_, '_, L, P> {
    #[inline(always)]
    fn one_by_one<const ROWS: usize>(&mut self, rows: &P::Rows, start: usize, pair: bool) {
        self.product::<ROWS, 1>(rows, start);
        if pair {
            self.product::<ROWS, 1>(rows, start + TILE);
        }
    }

    /// Writes the products of the tiles at column `start`, as far as rows and columns go.
    #[inline(always)]
    fn product<const ROWS: usize, const TILES: usize>(&mut self, rows: &P::Rows, start: usize) {
        let first_tile = self.first_tile + start / TILE;
        let products = P::product::<ROWS, TILES>(self.lanes, self.tiles, first_tile, rows);
        let first_row = P::block(rows).first_row;
        for row in 0..ROWS.min(self.out.len() - first_row) {
            let out = &mut *self.out[first_row + row];
            for tile in 0..TILES {
                let first = start + tile * TILE;
                let products = self.lanes.store(products[row][tile]);
                // The last tile of a matrix may be wider than what is left.
                let n = TILE.min(out.len().saturating_sub(first));
                if n == TILE {
                    out[first..first + TILE].copy_from_slice(&products);
                } else if n > 0 {
                    out[first..].copy_from_slice(&products[..n]);
                }
            }
        }
    }
}

/// Scale and zero point of a tile in a segment.
#[inline(always)]
pub(super) fn params<L: Lanes>(lanes: L, tiles: &Tiles, tile: usize, segment_idx: usize) -> (L::Floats, L::Floats) {
    let at = tile * tiles.segments.len() + segment_idx;
    match &tiles.params {
        Params::Compact(params) => lanes.compact_params(&params[at]),
        Params::Wide(params) => lanes.wide_params(&params[at]),
    }
}

/// `out: [n_rows, n_out]` from blocks of rows. Tasks are runs of tiles, and no sum crosses a tile: neither the split nor the
/// number of threads changes a bit.
pub(super) fn multiply<L: Lanes, P: Products<L>>(lanes: L, tiles: &Tiles, rows: &[P::Rows], out: &mut [f32]) {
    let n_rows = out.len() / tiles.n_out;
    let n_tiles = tiles.n_out.div_ceil(TILE);
    let by_bytes = TASK_BYTES.div_ceil(tiles.lines_per_tile() * 64);
    let by_products = TASK_PRODUCTS.div_ceil(TILE * tiles.n_in * n_rows.max(1));
    // Even, so that only the last task has a tile without a partner.
    let tiles_per_task = n_tiles.div_ceil(n_tasks(n_tiles / by_bytes.min(by_products))).next_multiple_of(2);
    let cols = tiles_per_task * TILE;
    let run = |first_tile, out: &mut [&mut [f32]]| {
        lanes.vectorize(Task::<L, P> { lanes, tiles, first_tile, rows, out });
    };
    if cols >= tiles.n_out {
        let mut rows: Vec<&mut [f32]> = out.chunks_exact_mut(tiles.n_out).collect();
        return run(0, &mut rows);
    }
    let mut tasks: Vec<Vec<&mut [f32]>> = (0..tiles.n_out.div_ceil(cols)).map(|_| Vec::with_capacity(n_rows)).collect();
    for row in out.chunks_exact_mut(tiles.n_out) {
        for (task, part) in tasks.iter_mut().zip(row.chunks_mut(cols)) {
            task.push(part);
        }
    }
    tasks.par_iter_mut().enumerate().for_each(|(task_idx, task)| run(task_idx * tiles_per_task, task));
}

/// How many tasks to make of work that is worth `most`: as many for every thread, where there is enough.
fn n_tasks(most: usize) -> usize {
    let threads = rayon::current_num_threads();
    let most = most.min(TASKS_PER_THREAD * threads);
    if most < threads { most.max(1) } else { most - most % threads }
}

//! A weight in bf16 for AVX-512, in the order in which tiles (AMX) read it, too.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::tiles;
use crate::amx::{Amx, ROW_BYTES, ROWS as TILE_ROWS, Tile};
use crate::host::avx512::{mask_of, transposed};

/// Rows of a tile of the result in registers: 6 of 4 vectors leave 8 of the 32 registers for the inputs.
const ROWS: usize = 6;
const VECTORS: usize = 4;
const COLS: usize = 16 * VECTORS;

/// Values that become one vector of pairs.
const PACKED: usize = 32;

/// Rows of `x` whose products one task computes: the bf16 copy of what is multiplied at a time stays in the second-level cache.
const ROWS_PER_TASK: usize = 96;
/// Tiles of a row of the weight that are multiplied at a time, sums going to memory between: a panel's share of 128 KiB stays in the
/// second-level cache while all rows of a task are multiplied with it. No bit depends on it.
const DEEP: usize = 32;
/// Rows of `x` from which tiles multiply: they take 32 at a time, whether there are as many or not.
const TILES_FROM: usize = 8;

/// A `[n, k]` weight rounded to bf16: for 16 rows of it at a time the pairs of neighbouring inputs, a line each, 16 lines a tile. Rows are
/// filled up with zeros to whole panels of 64.
pub struct Panels {
    /// `[n / 16][deep]`.
    tiles: Vec<Tile>,
    n: usize,
    k: usize,
    amx: Option<Amx>,
}

impl Panels {
    /// Packs a weight; `None` where the CPU lacks AVX-512 F, BW or BF16.
    pub fn pack(w: &[f32], k: usize) -> Option<Self> {
        let mut panels = Self::empty(w.len() / k, k)?;
        panels.blocks_mut().zip(w.par_chunks(TILE_ROWS * k)).for_each(|(tiles, rows)| {
            // SAFETY: all three instruction sets were found on this CPU.
            unsafe { pack_lines(tiles, rows, k) };
        });
        Some(panels)
    }

    /// The same of rows as they are needed: see [`super::Bf16Matrix::of_rows`].
    pub fn pack_rows(n: usize, k: usize, fill: &(impl Fn(usize, &mut [f32]) + Sync)) -> Option<Self> {
        let mut panels = Self::empty(n, k)?;
        let blocks = panels.blocks_mut().zip((0..n).into_par_iter().step_by(TILE_ROWS));
        blocks.for_each_init(
            || vec![0.0; TILE_ROWS * k],
            |room, (tiles, row)| {
                let rows = &mut room[..TILE_ROWS.min(n - row) * k];
                fill(row, rows);
                // SAFETY: all three instruction sets were found on this CPU.
                unsafe { pack_lines(tiles, rows, k) };
            },
        );
        Some(panels)
    }

    /// Of zeros.
    fn empty(n: usize, k: usize) -> Option<Self> {
        let available = is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512f");
        let tiles = || vec![Tile::ZERO; n.div_ceil(COLS) * VECTORS * k.div_ceil(PACKED)];
        available.then(|| Self { tiles: tiles(), n, k, amx: Amx::detect() })
    }

    /// The tiles of 16 rows each.
    fn blocks_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [Tile]> {
        self.tiles.par_chunks_mut(self.k.div_ceil(PACKED))
    }

    /// Rows of the weight.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes of the packed weight.
    pub fn bytes(&self) -> usize {
        size_of_val(self.tiles.as_slice())
    }

    /// `x w^T` for `x: [m, k]`, rounded to bf16; returns `[m, n]` in f32.
    pub fn matmul(&self, x: &[f32]) -> Vec<f32> {
        match self.amx {
            Some(amx) if x.len() / self.k >= TILES_FROM => tiles::matmul(amx, x, &self.tiles, self.n, self.k),
            _ => self.by_vectors(x),
        }
    }

    fn by_vectors(&self, x: &[f32]) -> Vec<f32> {
        let (m, n, k, deep) = (x.len() / self.k, self.n, self.k, self.k.div_ceil(PACKED));
        let pairs = deep * PACKED / 2;
        let mut rows = vec![0_u32; m * pairs];
        rows.par_chunks_mut(pairs).zip(x.par_chunks(k)).with_min_len(16).for_each(|(packed, row)| {
            // SAFETY: a weight is packed only where all three instruction sets are.
            unsafe { pack_row(packed, row) };
        });
        let mut out = vec![0.0_f32; m * n];
        let panels = || self.tiles.chunks_exact(deep * VECTORS).zip((0..n).step_by(COLS));
        if m > ROWS_PER_TASK {
            let tasks = out.par_chunks_mut(ROWS_PER_TASK * n).zip(rows.par_chunks(ROWS_PER_TASK * pairs));
            tasks.for_each(|(out, rows)| {
                for start in (0..deep).step_by(DEEP) {
                    for (panel, first) in panels() {
                        multiply(&mut out[first..], n, COLS.min(n - first), rows, panel, start);
                    }
                }
            });
            return out;
        }
        // Too few rows to share out: columns are, each task's in a buffer of its own.
        let columns = self.tiles.par_chunks_exact(deep * VECTORS).map(|panel| {
            let mut columns = vec![0.0_f32; m * COLS];
            for start in (0..deep).step_by(DEEP) {
                multiply(&mut columns, COLS, COLS, &rows, panel, start);
            }
            columns
        });
        for (columns, (_, first)) in columns.collect::<Vec<_>>().iter().zip(panels()) {
            let width = COLS.min(n - first);
            for (out, columns) in out.chunks_exact_mut(n).zip(columns.chunks_exact(COLS)) {
                out[first..first + width].copy_from_slice(&columns[..width]);
            }
        }
        out
    }
}

/// Adds the products of packed rows with one panel, of [`DEEP`] tiles from `start` on, to the first `n_cols` of each `stride` values
/// of `out`, which says how many rows there are.
fn multiply(out: &mut [f32], stride: usize, n_cols: usize, rows: &[u32], panel: &[Tile], start: usize) {
    let deep = panel.len() / VECTORS;
    let (pairs, end) = (deep * TILE_ROWS, deep.min(start + DEEP));
    let panel: [&[Tile]; VECTORS] = std::array::from_fn(|vector| &panel[vector * deep..][start..end]);
    for (out, rows) in out.chunks_mut(ROWS * stride).zip(rows.chunks(ROWS * pairs)) {
        let n_rows = out.len().div_ceil(stride);
        let row = |row: usize| {
            rows[row.min(n_rows - 1) * pairs..][start * TILE_ROWS..end * TILE_ROWS].as_chunks::<TILE_ROWS>().0
        };
        // SAFETY: a panel is packed only where all three instruction sets are.
        unsafe {
            match n_rows {
                1 => tile(out, stride, n_cols, n_rows, [row(0)], panel),
                2 => tile(out, stride, n_cols, n_rows, [row(0), row(1)], panel),
                3 | 4 => tile(out, stride, n_cols, n_rows, [row(0), row(1), row(2), row(3)], panel),
                _ => tile(out, stride, n_cols, n_rows, [row(0), row(1), row(2), row(3), row(4), row(5)], panel),
            }
        }
    }
}

/// Packs neighbouring values, the first in the low half; an odd last value gets a zero beside it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_row(packed: &mut [u32], row: &[f32]) {
    for (packed, start) in packed.chunks_mut(PACKED / 2).zip((0..row.len()).step_by(PACKED)) {
        store(packed, pairs(row, start));
    }
}

/// Up to 16 rows of `k` values as tiles of pairs; columns of missing rows are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_lines(tiles: &mut [Tile], rows: &[f32], k: usize) {
    for tile_idx in 0..tiles.len() {
        let mut by_row = [_mm512_setzero_si512(); TILE_ROWS];
        for row in 0..rows.len() / k {
            by_row[row] = pairs(&rows[row * k..][..k], tile_idx * PACKED);
        }
        let by_pair = transposed(by_row);
        for line in 0..TILE_ROWS {
            // SAFETY: a row of a tile is 64 bytes.
            unsafe { _mm512_storeu_si512(tiles[tile_idx].0[line].as_mut_ptr().cast(), by_pair[line]) };
        }
    }
}

/// The [`PACKED`] values of `row` from `start` on, zeros beyond its end, rounded to 16 pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pairs(row: &[f32], start: usize) -> __m512i {
    let left = (row.len() - start).min(PACKED);
    let row = &row[start..];
    // SAFETY: the masks admit only the `left` values that `row` has from here on.
    let (low, high) = unsafe {
        (
            _mm512_maskz_loadu_ps(mask_of(left), row.as_ptr()),
            _mm512_maskz_loadu_ps(mask_of(left.saturating_sub(16)), row.as_ptr().wrapping_add(16)),
        )
    };
    // SAFETY: both types are 512 bits without a meaning of their own.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Stores the first words of a vector, as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn store(to: &mut [u32], vector: __m512i) {
    // SAFETY: the mask admits only the words that `to` has.
    unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask_of(to.len()), vector) };
}

/// A vector of 16 pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn load(line: &[u8; ROW_BYTES]) -> __m512bh {
    // SAFETY: a line is 64 bytes.
    as_bf16(unsafe { _mm512_loadu_si512(line.as_ptr().cast()) })
}

/// 16 pairs under the name that the product wants.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits without a meaning of their own.
    unsafe { std::mem::transmute(pairs) }
}

/// Adds the products of packed rows with a part of a panel to the first `n_cols` of each `stride` values of `out`. The first
/// `n_rows` of `rows` are stored.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn tile<const ROWS: usize>(
    out: &mut [f32],
    stride: usize,
    n_cols: usize,
    n_rows: usize,
    rows: [&[[u32; TILE_ROWS]]; ROWS],
    panel: [&[Tile]; VECTORS],
) {
    // Indices here and below, not iterators: where those are called and not contained, sums leave their registers: a build
    // without optimisation across units took twelve times as long.
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for row in 0..ROWS.min(n_rows) {
        let out = &out[row * stride..][..n_cols];
        for vector in 0..VECTORS {
            let out = &out[n_cols.min(16 * vector)..];
            // SAFETY: the mask admits only the values that are left.
            sums[row][vector] = unsafe { _mm512_maskz_loadu_ps(mask_of(out.len()), out.as_ptr()) };
        }
    }
    let [a, b, c, d] = panel;
    for tile_idx in 0..a.len() {
        let (a, b, c, d) = (&a[tile_idx].0, &b[tile_idx].0, &c[tile_idx].0, &d[tile_idx].0);
        for line in 0..TILE_ROWS {
            let columns = [load(&a[line]), load(&b[line]), load(&c[line]), load(&d[line])];
            for row in 0..ROWS {
                let pair = as_bf16(_mm512_set1_epi32(rows[row][tile_idx][line].cast_signed()));
                for vector in 0..VECTORS {
                    sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], pair, columns[vector]);
                }
            }
        }
    }
    for row in 0..ROWS.min(n_rows) {
        let out = &mut out[row * stride..][..n_cols];
        for vector in 0..VECTORS {
            let out = &mut out[n_cols.min(16 * vector)..];
            // SAFETY: the mask admits only the values that are left.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask_of(out.len()), sums[row][vector]) };
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::host::bf16::rounded;

    /// A product of rounded rows as tiles add it up: of each 32 inputs the even and the odd ones, then both to those before.
    fn expected(x: &[f32], w: &[f32]) -> f32 {
        let mut sum = 0.0_f32;
        for (x, w) in x.chunks(PACKED).zip(w.chunks(PACKED)) {
            let every_second = |first: usize| {
                let pairs = x.iter().zip(w).skip(first).step_by(2);
                pairs.fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))
            };
            sum += every_second(0) + every_second(1);
        }
        sum
    }

    #[test]
    fn tiles_add_up_in_an_order_that_neither_rows_nor_threads_change() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 130, 64),
            (16, 64, 33),
            (17, 65, 33),
            (97, 130, 64),
            (5, 70, 2500),
            (103, 70, 2051),
            (1030, 300, 40),
        ] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let x = rounded(&(0..m * k).map(value).collect::<Vec<_>>());
            let w = rounded(&(0..n * k).map(|i| value(i + 5)).collect::<Vec<_>>());
            let Some(panels) = Panels::pack(&w, k) else {
                eprintln!("not run: this CPU has no AVX-512 BF16");
                return;
            };
            let [found, by_two] = [1, 2].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| tiles::matmul(Amx::for_tests(), &x, &panels.tiles, n, k))
            });
            assert!(found == by_two, "{m}x{k}x{n}");
            for (row, found) in found.chunks(n).enumerate() {
                for (col, found) in found.iter().enumerate() {
                    let expected = expected(&x[row * k..][..k], &w[col * k..][..k]);
                    assert!(*found == expected, "{m}x{k}x{n}, row {row}, column {col}: {found}, not {expected}");
                }
            }
        }
    }
}

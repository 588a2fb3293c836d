//! Products of many rows with integer activations by the tiles of AMX. Integers, and the order in which their sums are added, are those of
//! `integer.rs`: no bit depends on which of the two multiplies. Few rows are left to it.
//!
//! The codes of 16 outputs in a run of 64 input channels are one tile, as `tiles.rs` puts four codes of each output beside each other; the
//! bytes of 16 rows of activations are another. Two and two are multiplied at a time: both planes of 16-bit activations, or two blocks of
//! 8-bit ones, with two tiles of outputs.
#![allow(
    clippy::needless_range_loop,
    reason = "closures over vectors, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::avx512::Avx512;
use super::fused::{Fused, with_bits};
use super::lanes::{Lanes, Work, quad_codes};
use super::product::params;
use super::rows::{Plane, Width, bytes_of, quantize};
use super::tiles::{CHUNK, QUADS, SEGMENT, TILE, Tiles};
use super::{Activations, QuantMatmul, words};
use crate::amx::{Amx, ROW_BYTES, ROWS, Sums, Tile};
use crate::quantized::QuantizedWeight;

/// Tiles of outputs, and of rows, that are multiplied at a time.
const AT_ONCE: usize = 2;
/// Blocks of rows whose products are begun before the first is used: tiles take their time.
const BLOCKS: usize = 4;
/// Tiles that hold a run of input channels.
const DEEP: usize = SEGMENT / ROW_BYTES;
/// Chunks of a tile.
const CHUNKS: usize = ROW_BYTES / CHUNK;

/// Whether this CPU has tiles.
pub(super) fn is_available() -> bool {
    Avx512::detect().is_some() && Amx::detect().is_some()
}

/// A packed `[n_out, n_in]` matrix.
pub(super) struct Tiled {
    amx: Amx,
    /// Multiplies with few rows, and holds the weight.
    few: Fused<Avx512>,
    width: Width,
}

impl Tiled {
    /// Packs a weight for activations of 16 or 8 bits; `None` where the CPU has no tiles.
    pub(super) fn boxed(weight: &QuantizedWeight, activations: Activations) -> Option<Box<dyn QuantMatmul>> {
        Some(Box::new(Self::new(Amx::detect()?, weight, activations)?))
    }

    fn new(amx: Amx, weight: &QuantizedWeight, activations: Activations) -> Option<Self> {
        let width = if activations == Activations::Int16 { Width::Sixteen } else { Width::Eight };
        Some(Self { amx, few: Fused::new(weight, activations, None)?, width })
    }

    /// `PLANES` bytes an activation. A task is a group of rows, none of which depends on another.
    fn products<const PLANES: usize>(&self, x: &[f32], out: &mut [f32]) {
        let (lanes, tiles) = self.few.parts();
        let n_at_once = words::rows_of_group(x.len() / tiles.n_in, PLANES * tiles.n_in, [2 * ROWS, MOST_ROWS])
            .next_multiple_of(rows_at_once::<PLANES>());
        let tasks = out.par_chunks_mut(n_at_once * tiles.n_out).zip(x.par_chunks(n_at_once * tiles.n_in));
        tasks.for_each(|(out, x)| {
            let amx = self.amx;
            with_bits!(tiles.bits, BITS => lanes.vectorize(Group::<BITS, PLANES> { amx, lanes, tiles, x, out }));
        });
    }
}

impl QuantMatmul for Tiled {
    fn n_in(&self) -> usize {
        self.few.n_in()
    }

    fn n_out(&self) -> usize {
        self.few.n_out()
    }

    fn packed_bytes(&self) -> usize {
        self.few.packed_bytes()
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        match self.width {
            width if x.len() / self.n_in() < rows_from(width) => self.few.multiply(x, out),
            Width::Eight => self.products::<1>(x, out),
            Width::Sixteen => self.products::<2>(x, out),
        }
    }
}

/// Most rows that codes are unpacked for at once: their sums stay in the first-level cache.
const MOST_ROWS: usize = 128;

/// Rows that two tiles hold.
const fn rows_at_once<const PLANES: usize>() -> usize {
    AT_ONCE * ROWS / PLANES
}

/// Rows from which tiles are the faster ones, measured on two cores of a Xeon at 4 bits: from 24 rows with activations of 16 bits and from 48
/// of 8, for rows of 576 and of 4,096 inputs alike. That more threads need more rows is not measured.
fn rows_from(width: Width) -> usize {
    let of_a_thread = match width {
        Width::Sixteen => 12,
        Width::Eight => 24,
    };
    of_a_thread * rayon::current_num_threads()
}

/// Rows that codes are unpacked for at once.
struct Group<'a, const BITS: usize, const PLANES: usize> {
    amx: Amx,
    lanes: Avx512,
    tiles: &'a Tiles,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<const BITS: usize, const PLANES: usize> Work for Group<'_, BITS, PLANES> {
    #[inline(always)]
    fn run(self) {
        let Self { amx, lanes, tiles, x, out } = self;
        let (rows, registers) = (Rows::<PLANES>::new(x, tiles), amx.configure());
        let zero = [lanes.splat(0.0); AT_ONCE];
        let mut totals = vec![zero; rows.n_blocks * rows_at_once::<PLANES>()];
        let mut codes = [[Tile::ZERO; DEEP]; AT_ONCE];
        let mut sums = [[[Sums::ZERO; AT_ONCE]; AT_ONCE]; BLOCKS];
        for first_tile in (0..tiles.n_out.div_ceil(TILE)).step_by(AT_ONCE) {
            totals.fill(zero);
            let mut lines = tiles.lines_of::<BITS, AT_ONCE>(first_tile);
            let mut tiles_before = 0;
            for segment_idx in 0..tiles.segments.len() {
                let n_chunks = tiles.segments[segment_idx].n_chunks;
                let deep = n_chunks.div_ceil(CHUNKS);
                let mut params_of = [(lanes.splat(0.0), lanes.splat(0.0)); AT_ONCE];
                for tile in 0..AT_ONCE {
                    params_of[tile] = params(lanes, tiles, first_tile + tile, segment_idx);
                    let (chunks, rest) = lines[tile].split_at(n_chunks);
                    lines[tile] = rest;
                    // Where a last chunk has no neighbour, codes of before stay beside it: activations are zero there.
                    for chunk_idx in 0..n_chunks {
                        let to = &mut codes[tile][chunk_idx / CHUNKS].0[chunk_idx % CHUNKS * QUADS..][..QUADS];
                        macro_rules! quad {
                            ($($quad:literal)*) => {$(
                                store(lanes, &mut to[$quad], quad_codes::<Avx512, BITS>(lanes, &chunks[chunk_idx], $quad));
                            )*};
                        }
                        quad!(0 1 2 3 4 5 6 7);
                    }
                }
                for first_block in (0..rows.n_blocks).step_by(BLOCKS) {
                    let n_blocks = BLOCKS.min(rows.n_blocks - first_block);
                    for block in 0..n_blocks {
                        let x = rows.tiles_of(first_block + block, tiles_before, deep);
                        registers.multiply_bytes(x, [&codes[0][..deep], &codes[1][..deep]], &mut sums[block]);
                    }
                    for block in 0..n_blocks {
                        let first_row = (first_block + block) * rows_at_once::<PLANES>();
                        let (halves, low) = (&sums[block], &sums[block][1]);
                        // Of 16-bit activations the second half holds the low bytes of the first one's rows.
                        for half in 0..AT_ONCE / PLANES {
                            let high = &halves[half];
                            let (totals, _) = totals[first_row + half * ROWS..].as_chunks_mut::<ROWS>();
                            let (scales_and_sums, _) =
                                rows.scales_and_sums(segment_idx, first_row)[half * ROWS..].as_chunks::<ROWS>();
                            let (totals, scales_and_sums) = (&mut totals[0], &scales_and_sums[0]);
                            for row in 0..ROWS {
                                let (row_scale, row_sum) = scales_and_sums[row];
                                for tile in 0..AT_ONCE {
                                    let mut sum = floats(lanes, &high[tile].0[row]);
                                    if PLANES == 2 {
                                        sum = lanes.mul_add(sum, lanes.splat(256.0), floats(lanes, &low[tile].0[row]));
                                    }
                                    let (scale, zero_point) = params_of[tile];
                                    let centred = lanes.neg_mul_add(zero_point, lanes.splat(row_sum), sum);
                                    let step = lanes.mul(scale, lanes.splat(row_scale));
                                    totals[row][tile] = lanes.mul_add(centred, step, totals[row][tile]);
                                }
                            }
                        }
                    }
                }
                tiles_before += deep;
            }
            for (row, out) in out.chunks_exact_mut(tiles.n_out).enumerate() {
                for tile in 0..AT_ONCE {
                    let products = lanes.store(totals[row][tile]);
                    let first = (first_tile + tile) * TILE;
                    // The last tile of a matrix may be wider than what is left, or there only to make a pair.
                    let n = TILE.min(tiles.n_out.saturating_sub(first));
                    if n > 0 {
                        out[first..first + n].copy_from_slice(&products[..n]);
                    }
                }
            }
        }
    }
}

/// Writes the codes of a quad.
#[inline(always)]
fn store(_: Avx512, row: &mut [u8; ROW_BYTES], codes: __m512i) {
    // SAFETY: the first argument exists, so the CPU has the instruction; a row is 64 bytes.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), codes) }
}

/// Sums of a row as floats.
#[inline(always)]
fn floats(_: Avx512, sums: &[i32; ROWS]) -> __m512 {
    // SAFETY: the first argument exists, so the CPU has the instructions; a row is 64 bytes.
    unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.as_ptr().cast())) }
}

/// Activations as bytes, in the order in which tiles hold them, filled up with zero rows and zero channels.
struct Rows<const PLANES: usize> {
    n_blocks: usize,
    /// Tiles that a row takes.
    deep: usize,
    /// `[block][2][deep]`: both planes of 16 rows, or 16 rows and the next 16.
    tiles: Vec<Tile>,
    /// `[segment][row]`, with sums of the integers, which zero points multiply.
    scales_and_sums: Vec<(f32, f32)>,
}

impl<const PLANES: usize> Rows<PLANES> {
    #[inline(always)]
    fn new(x: &[f32], tiles: &Tiles) -> Self {
        let n_rows = x.len() / tiles.n_in;
        let at_once = rows_at_once::<PLANES>();
        let (n_blocks, n_segments) = (n_rows.div_ceil(at_once), tiles.segments.len());
        let mut deep = 0;
        for segment_idx in 0..n_segments {
            deep += tiles.segments[segment_idx].n_chunks.div_ceil(CHUNKS);
        }
        let mut rows = Self {
            n_blocks,
            deep,
            tiles: vec![Tile::ZERO; n_blocks * AT_ONCE * deep],
            scales_and_sums: vec![(0.0, 0.0); n_blocks * at_once * n_segments],
        };
        let width = if PLANES == 2 { Width::Sixteen } else { Width::Eight };
        for row_idx in 0..n_rows {
            let (block, row) = (row_idx / at_once, row_idx % at_once);
            // Of 16-bit activations the high bytes come first.
            let first = (block * AT_ONCE + row / ROWS) * deep;
            let mut tiles_before = 0;
            for segment_idx in 0..n_segments {
                let segment = &tiles.segments[segment_idx];
                let x = &x[row_idx * tiles.n_in + segment.start..][..segment.len];
                let mut integers = [0_i32; SEGMENT];
                rows.scales_and_sums[segment_idx * n_blocks * at_once + row_idx] =
                    quantize(x, width.limit(), &mut integers);
                let n_tiles = segment.n_chunks.div_ceil(CHUNKS);
                if PLANES == 2 {
                    rows.put(first + tiles_before, n_tiles, row % ROWS, &bytes_of(&integers, Plane::High));
                }
                let low = first + (PLANES - 1) * deep + tiles_before;
                rows.put(low, n_tiles, row % ROWS, &bytes_of(&integers, Plane::Low));
                tiles_before += n_tiles;
            }
        }
        rows
    }

    /// Writes a row of neighbouring tiles.
    #[inline(always)]
    fn put(&mut self, first: usize, n: usize, row: usize, bytes: &[u8; SEGMENT]) {
        for i in 0..n {
            self.tiles[first + i].0[row].copy_from_slice(&bytes[i * ROW_BYTES..][..ROW_BYTES]);
        }
    }

    /// What is multiplied at a time: `n` tiles of each of the two.
    #[inline(always)]
    fn tiles_of(&self, block: usize, first: usize, n: usize) -> [&[Tile]; AT_ONCE] {
        let of_block = &self.tiles[block * AT_ONCE * self.deep..][..AT_ONCE * self.deep];
        [&of_block[first..][..n], &of_block[self.deep + first..][..n]]
    }

    /// Of a segment of the rows that are multiplied at a time.
    #[inline(always)]
    fn scales_and_sums(&self, segment: usize, first_row: usize) -> &[(f32, f32)] {
        let n_rows = rows_at_once::<PLANES>();
        &self.scales_and_sums[segment * self.n_blocks * n_rows + first_row..][..n_rows]
    }
}

/// Multiplications of bytes by tiles, for [`super::bench::peak`].
pub(super) fn multiply_bytes_by_tiles() -> usize {
    const N_PRODUCTS: usize = 20_000;
    let Some(amx) = Amx::detect() else { return 0 };
    let (registers, tiles) = (amx.configure(), [Tile([[1; ROW_BYTES]; ROWS]); 8]);
    let mut sums = [[Sums::ZERO; AT_ONCE]; AT_ONCE];
    for _ in 0..N_PRODUCTS {
        registers.multiply_bytes([&tiles; AT_ONCE], [&tiles; AT_ONCE], std::hint::black_box(&mut sums));
    }
    2 * N_PRODUCTS * AT_ONCE * AT_ONCE * tiles.len() * ROWS * ROWS * ROW_BYTES
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::grid::{Bits, Granularity, Grid};
    use crate::quantized::ZeroPoints;
    use crate::transform::WeightTransform;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5
    }

    fn weight(n_out: usize, n_in: usize, bits: u8, group: u16) -> QuantizedWeight {
        let grid = Grid::awq(Bits::new(bits).unwrap(), Granularity::PerGroup(group.try_into().unwrap()));
        let n_groups = n_out * grid.granularity.n_groups(n_in);
        let codes = |n: usize| (0..n).map(|i| (i * 7919 % 1021 % (1 << bits)) as u8).collect();
        QuantizedWeight {
            n_out,
            n_in,
            grid,
            codes: codes(n_out * n_in),
            // Scales that are f16 are stored so.
            scale: (0..n_groups)
                .map(|i| if bits.is_multiple_of(2) { 0.0625 } else { 0.01 + value(i) / 100.0 })
                .collect(),
            zero_point: ZeroPoints::Codes(codes(n_groups)),
            transform: WeightTransform::Identity,
        }
    }

    #[test]
    fn products_are_those_of_few_rows_bit_for_bit() {
        let Some(_) = Avx512::detect() else {
            eprintln!("not run: this CPU has no AVX-512 VNNI");
            return;
        };
        for (n_out, n_in, n_rows) in [(1, 1, 64), (33, 100, 65), (50, 200, 130), (16, 576, 97), (70, 352, 210)] {
            let mut x: Vec<f32> = (0..n_rows * n_in).map(value).collect();
            // A row that is not finite stays alone.
            x[3 * n_in] = f32::INFINITY;
            for bits in [2, 3, 4, 5, 8] {
                for group in [32, 40, 64, 96, 128, 192] {
                    let weight = weight(n_out, n_in, bits, group);
                    for activations in [Activations::Int16, Activations::Int8] {
                        let tiled = Tiled::new(Amx::for_tests(), &weight, activations).unwrap();
                        let mut expected = vec![f32::NAN; n_rows * n_out];
                        tiled.few.multiply(&x, &mut expected);
                        for threads in [1, 2] {
                            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                            let mut found = vec![f32::NAN; n_rows * n_out];
                            pool.install(|| tiled.multiply(&x, &mut found));
                            let bits_of = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            let same = bits_of(&found) == bits_of(&expected);
                            assert!(same, "[{n_out}, {n_in}], {n_rows} rows, {bits} bits, groups of {group}");
                        }
                    }
                }
            }
        }
    }
}

//! Products of many rows with 16-bit activations, which stay whole here: pairs of them with pairs of codes. The codes of a run of input
//! channels are widened once for a group of rows, and what is multiplied at a time stays in the first-level cache. Integers, and the order
//! in which their sums are added, are those of `integer.rs`: no bit depends on which of the two multiplies.
#![allow(
    clippy::needless_range_loop,
    reason = "closures over vectors, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use rayon::prelude::*;

use super::fused::with_bits;
use super::lanes::{Lanes, Work, quad_codes};
use super::product::params;
use super::rows::{Width, quantize};
use super::tiles::{QUAD, QUADS, SEGMENT, TILE, Tiles};

/// Vectors of pairs of 16-bit integers.
pub(super) trait WordLanes: Lanes {
    /// Bytes 0 and 2 of each lane as 16-bit integers, or, where `odd`, bytes 1 and 3.
    fn words(self, codes: Self::Ints, odd: bool) -> Self::Ints;
    /// Adds the products of each lane's two 16-bit integers with those of `x`.
    fn dot_words(self, sums: Self::Ints, words: Self::Ints, x: i32) -> Self::Ints;
}

/// Rows of a thread from which the codes are widened for: fewer are multiplied faster as bytes.
const ROWS_OF_A_THREAD: usize = 32;
/// Most rows that codes are widened for at once: their sums, and a run of their activations, fit into the first-level cache.
const MOST_ROWS: usize = 64;
/// Bytes of the activations of these rows, which stay in the second-level cache.
const BYTES_OF_ROWS: usize = 1 << 19;
/// Most rows whose sums are in registers at a time.
const MOST_ROWS_AT_ONCE: usize = 8;

/// Whether [`multiply`] is the faster one for so many rows.
pub(super) fn pays(n_rows: usize) -> bool {
    n_rows / rayon::current_num_threads() >= ROWS_OF_A_THREAD
}

/// Rows of a group, from `least` to `most`: as many as fit, on all threads.
pub(super) fn rows_of_group(n_rows: usize, bytes_of_row: usize, [least, most]: [usize; 2]) -> usize {
    let fitting = (BYTES_OF_ROWS / bytes_of_row).clamp(least, most);
    fitting.min(n_rows.div_ceil(rayon::current_num_threads()))
}

/// `out = x w^T` for `x: [n, in]` and `out: [n, out]`. A task is a group of rows, none of which depends on another.
pub(super) fn multiply<L: WordLanes>(lanes: L, tiles: &Tiles, x: &[f32], out: &mut [f32]) {
    let bounds = [ROWS_OF_A_THREAD, MOST_ROWS];
    let n_at_once = rows_of_group(x.len() / tiles.n_in, 2 * tiles.n_in, bounds).next_multiple_of(MOST_ROWS_AT_ONCE);
    let tasks = out.par_chunks_mut(n_at_once * tiles.n_out).zip(x.par_chunks(n_at_once * tiles.n_in));
    tasks.for_each(|(out, x)| {
        with_bits!(tiles.bits, BITS => lanes.vectorize(Group::<L, BITS> { lanes, tiles, x, out }));
    });
}

/// Rows that codes are widened for at once.
struct Group<'a, L, const BITS: usize> {
    lanes: L,
    tiles: &'a Tiles,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<L: WordLanes, const BITS: usize> Work for Group<'_, L, BITS> {
    #[inline(always)]
    fn run(self) {
        if L::MAX_ROWS == MOST_ROWS_AT_ONCE { self.products::<8, 2>() } else { self.products::<4, 1>() }
    }
}

/// Pairs of a quad: bytes 0 and 2, then 1 and 3.
const PAIRS: usize = 2;

/// The codes of a run of input channels, widened: `[pair][tile]`.
type Widened<L, const TILES: usize> = [[<L as Lanes>::Ints; TILES]; SEGMENT / QUAD * PAIRS];

impl<L: WordLanes, const BITS: usize> Group<'_, L, BITS> {
    #[inline(always)]
    fn products<const ROWS: usize, const TILES: usize>(self) {
        let Self { lanes, tiles, x, out } = self;
        let rows = Rows::<ROWS>::new(x, tiles);
        let mut totals = vec![[[lanes.splat(0.0); TILES]; ROWS]; rows.n_blocks];
        let mut widened: Widened<L, TILES> = [[lanes.zero_ints(); TILES]; SEGMENT / QUAD * PAIRS];
        for first_tile in (0..tiles.n_out.div_ceil(TILE)).step_by(TILES) {
            totals.fill([[lanes.splat(0.0); TILES]; ROWS]);
            let mut lines = tiles.lines_of::<BITS, TILES>(first_tile);
            let mut pairs_before = 0;
            for segment_idx in 0..tiles.segments.len() {
                let n_chunks = tiles.segments[segment_idx].n_chunks;
                for tile in 0..TILES {
                    let (chunks, rest) = lines[tile].split_at(n_chunks);
                    lines[tile] = rest;
                    for chunk_idx in 0..n_chunks {
                        let widened = &mut widened[chunk_idx * QUADS * PAIRS..][..QUADS * PAIRS];
                        macro_rules! quad {
                            ($($quad:literal)*) => {$(
                                let codes = quad_codes::<L, BITS>(lanes, &chunks[chunk_idx], $quad);
                                widened[PAIRS * $quad][tile] = lanes.words(codes, false);
                                widened[PAIRS * $quad + 1][tile] = lanes.words(codes, true);
                            )*};
                        }
                        quad!(0 1 2 3 4 5 6 7);
                    }
                }
                let widened = &widened[..n_chunks * QUADS * PAIRS];
                let mut params_of = [(lanes.splat(0.0), lanes.splat(0.0)); TILES];
                for tile in 0..TILES {
                    params_of[tile] = params(lanes, tiles, first_tile + tile, segment_idx);
                }
                for block in 0..rows.n_blocks {
                    let sums = segment_sums::<L, ROWS, TILES>(lanes, widened, rows.pairs(block, pairs_before));
                    let (row_scales, row_sums) = rows.scales_and_sums(block, segment_idx);
                    for tile in 0..TILES {
                        let (scale, zero_point) = params_of[tile];
                        for row in 0..ROWS {
                            let sum = lanes.to_floats(sums[row][tile]);
                            let centred = lanes.neg_mul_add(zero_point, lanes.splat(row_sums[row]), sum);
                            let step = lanes.mul(scale, lanes.splat(row_scales[row]));
                            let total = &mut totals[block][row][tile];
                            *total = lanes.mul_add(centred, step, *total);
                        }
                    }
                }
                pairs_before += n_chunks * QUADS * PAIRS;
            }
            for (row, out) in out.chunks_exact_mut(tiles.n_out).enumerate() {
                for tile in 0..TILES {
                    let products = lanes.store(totals[row / ROWS][row % ROWS][tile]);
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

/// `sum over input channels of code * x` of one run, for each row.
#[inline(always)]
fn segment_sums<L: WordLanes, const ROWS: usize, const TILES: usize>(
    lanes: L,
    widened: &[[L::Ints; TILES]],
    x: &[[i32; ROWS]],
) -> [[L::Ints; TILES]; ROWS] {
    let mut sums = [[lanes.zero_ints(); TILES]; ROWS];
    let x = &x[..widened.len()];
    for pair in 0..widened.len() {
        for row in 0..ROWS {
            for tile in 0..TILES {
                sums[row][tile] = lanes.dot_words(sums[row][tile], widened[pair][tile], x[pair][row]);
            }
        }
    }
    sums
}

/// Activations as 16-bit integers, a scale for each row and segment, in blocks of `ROWS`, filled up with zero rows.
struct Rows<const ROWS: usize> {
    n_blocks: usize,
    pairs_of_row: usize,
    /// `[block][pair][row]`: two integers.
    pairs: Vec<[i32; ROWS]>,
    n_segments: usize,
    /// `[block][segment][row]`.
    scale: Vec<[f32; ROWS]>,
    /// `[block][segment][row]`: sums of the integers, which zero points multiply.
    sums: Vec<[f32; ROWS]>,
}

impl<const ROWS: usize> Rows<ROWS> {
    #[inline(always)]
    fn new(x: &[f32], tiles: &Tiles) -> Self {
        let n_blocks = (x.len() / tiles.n_in).div_ceil(ROWS);
        let n_segments = tiles.segments.len();
        let mut pairs_of_row = 0;
        for segment_idx in 0..n_segments {
            pairs_of_row += tiles.segments[segment_idx].n_chunks * QUADS * PAIRS;
        }
        let of_segments = vec![[0.0; ROWS]; n_blocks * n_segments];
        let mut rows = Self {
            n_blocks,
            pairs_of_row,
            pairs: vec![[0; ROWS]; n_blocks * pairs_of_row],
            n_segments,
            scale: of_segments.clone(),
            sums: of_segments,
        };
        for row_idx in 0..x.len() / tiles.n_in {
            let (block, row) = (row_idx / ROWS, row_idx % ROWS);
            let mut at = block * pairs_of_row;
            for segment_idx in 0..n_segments {
                let segment = &tiles.segments[segment_idx];
                let x = &x[row_idx * tiles.n_in + segment.start..][..segment.len];
                let mut integers = [0_i32; SEGMENT];
                let of_segment = block * n_segments + segment_idx;
                (rows.scale[of_segment][row], rows.sums[of_segment][row]) =
                    quantize(x, Width::Sixteen.limit(), &mut integers);
                let n_quads = segment.n_chunks * QUADS;
                let pairs = &mut rows.pairs[at..][..n_quads * PAIRS];
                let integers = &integers.as_chunks::<QUAD>().0[..n_quads];
                for quad in 0..n_quads {
                    let [a, b, c, d] = integers[quad];
                    pairs[PAIRS * quad][row] = (a & 0xffff) | c << 16;
                    pairs[PAIRS * quad + 1][row] = (b & 0xffff) | d << 16;
                }
                at += n_quads * PAIRS;
            }
        }
        rows
    }

    /// The integers of a block from a pair on.
    #[inline(always)]
    fn pairs(&self, block: usize, first: usize) -> &[[i32; ROWS]] {
        &self.pairs[block * self.pairs_of_row + first..]
    }

    #[inline(always)]
    fn scales_and_sums(&self, block: usize, segment: usize) -> (&[f32; ROWS], &[f32; ROWS]) {
        let at = block * self.n_segments + segment;
        (&self.scale[at], &self.sums[at])
    }
}

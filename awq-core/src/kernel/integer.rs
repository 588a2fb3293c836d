//! Products of packed weights with integer activations: exact sums of integers within a segment, f32 across segments.
#![allow(
    clippy::needless_range_loop,
    reason = "closures over vectors, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use super::lanes::{Lanes, quad_codes};
use super::product::{PREFETCH, Products, params};
use super::rows::{Block, IntegerRows};
use super::tiles::{Line, QUADS, Tiles};

/// `PLANES` bytes an activation, `BITS` bits a stored code.
pub(super) struct Integer<const BITS: usize, const PLANES: usize>;

impl<L: Lanes, const BITS: usize, const PLANES: usize> Products<L> for Integer<BITS, PLANES> {
    type Rows = IntegerRows;

    fn block(rows: &IntegerRows) -> Block {
        rows.block
    }

    #[inline(always)]
    fn product<const ROWS: usize, const TILES: usize>(
        lanes: L,
        tiles: &Tiles,
        first_tile: usize,
        rows: &IntegerRows,
    ) -> [[L::Floats; TILES]; ROWS] {
        let mut lines = tiles.lines_of::<BITS, TILES>(first_tile);
        let (mut quads, _) = rows.quads.as_chunks::<ROWS>();
        let (row_scales, _) = rows.scale.as_chunks::<ROWS>();
        let (row_sums, _) = rows.sums.as_chunks::<ROWS>();
        let mut out = [[lanes.splat(0.0); TILES]; ROWS];
        for (segment_idx, segment) in tiles.segments.iter().enumerate() {
            let n_quads = segment.n_chunks * QUADS;
            let (mut chunks, mut planes) = (lines, [&quads[..n_quads]; PLANES]);
            for tile in 0..TILES {
                (chunks[tile], lines[tile]) = lines[tile].split_at(segment.n_chunks);
            }
            for plane in 1..PLANES {
                planes[plane] = &quads[plane * n_quads..][..n_quads];
            }
            // Independent sums hide the latency of the dot product.
            let sums = match (ROWS, PLANES) {
                (1, 1) => segment_sums::<L, BITS, PLANES, ROWS, TILES, 4>(lanes, chunks, planes),
                (1, _) => segment_sums::<L, BITS, PLANES, ROWS, TILES, 2>(lanes, chunks, planes),
                _ => segment_sums::<L, BITS, PLANES, ROWS, TILES, 1>(lanes, chunks, planes),
            };
            quads = &quads[n_quads * PLANES..];
            for tile in 0..TILES {
                let (scale, zero_point) = params(lanes, tiles, first_tile + tile, segment_idx);
                for row in 0..ROWS {
                    let mut sum = lanes.to_floats(sums[0][row][tile]);
                    if PLANES == 2 {
                        sum = lanes.mul_add(sum, lanes.splat(256.0), lanes.to_floats(sums[1][row][tile]));
                    }
                    let centred = lanes.neg_mul_add(zero_point, lanes.splat(row_sums[segment_idx][row]), sum);
                    let step = lanes.mul(scale, lanes.splat(row_scales[segment_idx][row]));
                    out[row][tile] = lanes.mul_add(centred, step, out[row][tile]);
                }
            }
        }
        out
    }
}

/// `sum over input channels of code * x` of one segment, for each plane and row.
#[inline(always)]
fn segment_sums<
    L: Lanes,
    const BITS: usize,
    const PLANES: usize,
    const ROWS: usize,
    const TILES: usize,
    const CHAINS: usize,
>(
    lanes: L,
    tiles: [&[[Line; BITS]]; TILES],
    planes: [&[[i32; ROWS]]; PLANES],
) -> [[[L::Ints; TILES]; ROWS]; PLANES] {
    let mut sums = [[[[lanes.zero_ints(); TILES]; ROWS]; PLANES]; CHAINS];
    for chunk_idx in 0..tiles[0].len() {
        let mut chunks = [&tiles[0][chunk_idx]; TILES];
        for tile in 1..TILES {
            chunks[tile] = &tiles[tile][chunk_idx];
        }
        if ROWS == 1 {
            for line in chunks[0] {
                lanes.prefetch(line, PREFETCH);
            }
        }
        let mut x = [&planes[0].as_chunks::<QUADS>().0[chunk_idx]; PLANES];
        for plane in 1..PLANES {
            x[plane] = &planes[plane].as_chunks::<QUADS>().0[chunk_idx];
        }
        macro_rules! quad {
            ($($quad:literal)*) => {$(
                let mut codes = [lanes.zero_ints(); TILES];
                for tile in 0..TILES {
                    codes[tile] = quad_codes::<L, BITS>(lanes, chunks[tile], $quad);
                }
                for row in 0..ROWS {
                    for plane in 0..PLANES {
                        for tile in 0..TILES {
                            let sum = &mut sums[$quad % CHAINS][plane][row][tile];
                            *sum = lanes.dot(*sum, codes[tile], x[plane][$quad][row], BITS);
                        }
                    }
                }
            )*};
        }
        quad!(0 1 2 3 4 5 6 7);
    }
    let mut total = sums[0];
    for chain in 1..CHAINS {
        for plane in 0..PLANES {
            for row in 0..ROWS {
                for tile in 0..TILES {
                    let total = &mut total[plane][row][tile];
                    *total = lanes.add(*total, sums[chain][plane][row][tile]);
                }
            }
        }
    }
    total
}

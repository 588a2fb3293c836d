//! Products of packed weights with f32 activations: codes become floats in registers, scales and zero points are applied
//! to the sums of a segment.
#![allow(
    clippy::needless_range_loop,
    reason = "closures over vectors, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use super::lanes::{Lanes, quad_codes};
use super::product::{PREFETCH, Products, params};
use super::rows::{Block, FloatRows};
use super::tiles::{CHUNK, Line, QUAD, Tiles};

/// `BITS` bits a stored code.
pub(super) struct Float<const BITS: usize>;

impl<L: Lanes, const BITS: usize> Products<L> for Float<BITS> {
    type Rows = FloatRows;

    fn block(rows: &FloatRows) -> Block {
        rows.block
    }

    #[inline(always)]
    fn product<const ROWS: usize, const TILES: usize>(
        lanes: L,
        tiles: &Tiles,
        first_tile: usize,
        rows: &FloatRows,
    ) -> [[L::Floats; TILES]; ROWS] {
        let mut lines = tiles.lines_of::<BITS, TILES>(first_tile);
        let (mut values, _) = rows.values.as_chunks::<ROWS>().0.as_chunks::<CHUNK>();
        let (row_sums, _) = rows.sums.as_chunks::<ROWS>();
        let mut out = [[lanes.splat(0.0); TILES]; ROWS];
        for (segment_idx, segment) in tiles.segments.iter().enumerate() {
            let mut chunks = lines;
            for tile in 0..TILES {
                (chunks[tile], lines[tile]) = lines[tile].split_at(segment.n_chunks);
            }
            let x = &values[..segment.n_chunks];
            // Independent sums hide the latency of the multiplication.
            let sums = match (ROWS, TILES) {
                (1, _) => segment_sums::<L, BITS, ROWS, TILES, 8>(lanes, chunks, x),
                (4, 1) => segment_sums::<L, BITS, ROWS, TILES, 2>(lanes, chunks, x),
                _ => segment_sums::<L, BITS, ROWS, TILES, 1>(lanes, chunks, x),
            };
            values = &values[segment.n_chunks..];
            for tile in 0..TILES {
                let (scale, zero_point) = params(lanes, tiles, first_tile + tile, segment_idx);
                for row in 0..ROWS {
                    let row_sum = lanes.splat(row_sums[segment_idx][row]);
                    let centred = lanes.neg_mul_add(zero_point, row_sum, sums[row][tile]);
                    out[row][tile] = lanes.mul_add(centred, scale, out[row][tile]);
                }
            }
        }
        out
    }
}

/// `sum over input channels of code * x` of one segment, for each row and tile.
#[inline(always)]
fn segment_sums<L: Lanes, const BITS: usize, const ROWS: usize, const TILES: usize, const CHAINS: usize>(
    lanes: L,
    tiles: [&[[Line; BITS]]; TILES],
    values: &[[[f32; ROWS]; CHUNK]],
) -> [[L::Floats; TILES]; ROWS] {
    let mut sums = [[[lanes.splat(0.0); TILES]; ROWS]; CHAINS];
    for (chunk_idx, x) in values.iter().enumerate() {
        let mut chunks = [&tiles[0][chunk_idx]; TILES];
        for tile in 1..TILES {
            chunks[tile] = &tiles[tile][chunk_idx];
        }
        if ROWS == 1 {
            for line in chunks[0] {
                lanes.prefetch(line, PREFETCH);
            }
        }
        macro_rules! quad {
            ($($quad:literal)*) => {$(
                let mut codes = [lanes.zero_ints(); TILES];
                for tile in 0..TILES {
                    codes[tile] = quad_codes::<L, BITS>(lanes, chunks[tile], $quad);
                }
                for byte in 0..QUAD {
                    let channel = $quad * QUAD + byte;
                    let mut weights = [lanes.splat(0.0); TILES];
                    for tile in 0..TILES {
                        weights[tile] = lanes.byte_to_floats(codes[tile], byte, BITS);
                    }
                    for row in 0..ROWS {
                        let x = lanes.splat(x[channel][row]);
                        for tile in 0..TILES {
                            let sum = &mut sums[channel % CHAINS][row][tile];
                            *sum = lanes.mul_add(weights[tile], x, *sum);
                        }
                    }
                }
            )*};
        }
        quad!(0 1 2 3 4 5 6 7);
    }
    let mut total = sums[0];
    for chain in 1..CHAINS {
        for row in 0..ROWS {
            for tile in 0..TILES {
                total[row][tile] = lanes.add_floats(total[row][tile], sums[chain][row][tile]);
            }
        }
    }
    total
}

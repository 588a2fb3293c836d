//! Activations in the order in which kernels read them: blocks of 1, 4 or 8 rows, filled up with zero rows.
#![allow(
    clippy::needless_range_loop,
    reason = "closures, and so iterators, may not be inlined into code for other instructions: indices stay"
)]

use super::lanes::{Lanes, Work};
use super::tiles::{CHUNK, QUAD, QUADS, SEGMENT, Segment};

/// A run of rows that share one pass over a tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// First row.
    pub(super) first_row: usize,
    /// Rows of the caller.
    pub(super) n_rows: usize,
    /// Rows in store: 1, 4 or 8.
    pub(super) n_lanes: usize,
}

/// Cuts `n_rows` rows into blocks of up to `max`: 1, 4 or 8. A row behind others is stored as several are, for kernels add up a single row
/// in another order: of two rows or more, none depends on how many there are.
pub(super) fn blocks(n_rows: usize, max: usize) -> Vec<Block> {
    let block = |first_row| {
        let n_rows = max.min(n_rows - first_row);
        let n_lanes = match n_rows {
            1 if first_row == 0 || max == 1 => 1,
            1..=4 => 4,
            _ => 8,
        };
        Block { first_row, n_rows, n_lanes }
    };
    (0..n_rows).step_by(max).map(block).collect()
}

/// f32 activations of one block.
pub(super) struct FloatRows {
    pub(super) block: Block,
    /// `[input channel][row]`, every segment filled up to whole chunks.
    pub(super) values: Vec<f32>,
    /// `[segment][row]`: sums of the values, which zero points multiply.
    pub(super) sums: Vec<f32>,
}

impl FloatRows {
    pub(super) fn new(x: &[f32], n_in: usize, block: Block, segments: &[Segment]) -> Self {
        let lanes = block.n_lanes;
        let n_padded: usize = segments.iter().map(|segment| segment.n_chunks * CHUNK).sum();
        let mut values = vec![0.0; n_padded * lanes];
        let mut sums = vec![0.0; segments.len() * lanes];
        for (row_idx, row) in x.chunks_exact(n_in).skip(block.first_row).take(block.n_rows).enumerate() {
            let mut padded_start = 0;
            for (segment_idx, segment) in segments.iter().enumerate() {
                let values = &mut values[padded_start * lanes..];
                let row = &row[segment.start..segment.start + segment.len];
                for (&x, value) in row.iter().zip(values.iter_mut().skip(row_idx).step_by(lanes)) {
                    *value = x;
                }
                sums[segment_idx * lanes + row_idx] = sum(row);
                padded_start += segment.n_chunks * CHUNK;
            }
        }
        Self { block, values, sums }
    }
}

/// Activations of one block as integers, a scale for each row and segment: `x ~ scale * (256 high + low)` for 16 bits, two
/// planes of bytes, and `x ~ scale * high` for 8 bits, one plane.
pub(super) struct IntegerRows {
    pub(super) block: Block,
    /// `[segment][plane][quad][row]`: 4 signed bytes each.
    pub(super) quads: Vec<i32>,
    /// `[segment][row]`.
    pub(super) scale: Vec<f32>,
    /// `[segment][row]`: sums of the integers, which zero points multiply.
    pub(super) sums: Vec<f32>,
}

/// Bits of an integer activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Eight,
    Sixteen,
}

/// A byte of an integer activation; one of 8 bits has the low one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plane {
    High,
    Low,
}

impl Width {
    /// Planes of bytes.
    pub(super) const fn planes(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen => 2,
        }
    }

    /// Largest magnitude of an integer. At 16 bits, both bytes must be signed: `127 * 256 + 127`.
    pub(super) const fn limit(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Sixteen => 32_639.0,
        }
    }
}

impl IntegerRows {
    pub(super) fn new<L: Lanes>(
        lanes: L,
        x: &[f32],
        n_in: usize,
        block: Block,
        segments: &[Segment],
        width: Width,
    ) -> Self {
        let n_chunks: usize = segments.iter().map(|segment| segment.n_chunks).sum();
        let mut rows = Self {
            block,
            quads: vec![0; n_chunks * QUADS * width.planes() * block.n_lanes],
            scale: vec![0.0; segments.len() * block.n_lanes],
            sums: vec![0.0; segments.len() * block.n_lanes],
        };
        let x = &x[block.first_row * n_in..][..block.n_rows * n_in];
        lanes.vectorize(Quantize { x, n_in, segments, width, rows: &mut rows });
        rows
    }
}

/// Fills [`IntegerRows`].
struct Quantize<'a> {
    x: &'a [f32],
    n_in: usize,
    segments: &'a [Segment],
    width: Width,
    rows: &'a mut IntegerRows,
}

impl Work for Quantize<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, n_in, segments, width, rows } = self;
        let lanes = rows.block.n_lanes;
        for row_idx in 0..x.len() / n_in {
            let row = &x[row_idx * n_in..][..n_in];
            let mut rest = rows.quads.as_mut_slice();
            for segment_idx in 0..segments.len() {
                let segment = &segments[segment_idx];
                let n_quads = segment.n_chunks * QUADS;
                let (quads, tail) = rest.split_at_mut(n_quads * width.planes() * lanes);
                rest = tail;
                let at = segment_idx * lanes + row_idx;
                let mut integers = [0_i32; SEGMENT];
                let segment_row = &row[segment.start..segment.start + segment.len];
                (rows.scale[at], rows.sums[at]) = quantize(segment_row, width.limit(), &mut integers);
                match width {
                    Width::Eight => put(&integers, Plane::Low, quads, row_idx, lanes),
                    Width::Sixteen => {
                        let (high, low) = quads.split_at_mut(n_quads * lanes);
                        put(&integers, Plane::High, high, row_idx, lanes);
                        put(&integers, Plane::Low, low, row_idx, lanes);
                    }
                }
            }
        }
    }
}

/// The bytes of a plane: the high ones are such that what is left is a signed byte, too.
#[inline(always)]
pub(super) fn bytes_of(integers: &[i32; SEGMENT], plane: Plane) -> [u8; SEGMENT] {
    let (add, shift) = match plane {
        Plane::High => (128, 8),
        Plane::Low => (0, 0),
    };
    let mut bytes = [0_u8; SEGMENT];
    for i in 0..SEGMENT {
        bytes[i] = (integers[i].wrapping_add(add) >> shift) as u8;
    }
    bytes
}

/// Writes the bytes of a plane.
#[inline(always)]
fn put(integers: &[i32; SEGMENT], plane: Plane, quads: &mut [i32], row_idx: usize, lanes: usize) {
    let bytes = bytes_of(integers, plane);
    let bytes = bytes.as_chunks::<QUAD>().0;
    for quad in 0..bytes.len().min(quads.len() / lanes) {
        quads[quad * lanes + row_idx] = i32::from_le_bytes(bytes[quad]);
    }
}

/// Rounds a run of activations to integers of magnitude up to `limit`; returns their scale and sum. The scale of a run
/// with a value that is not finite is not a number, and so are all products with it.
#[inline(always)]
pub(super) fn quantize(x: &[f32], limit: f32, integers: &mut [i32; SEGMENT]) -> (f32, f32) {
    // Magnitudes compare as their bits do, infinity and NaN above all numbers.
    let mut amax = 0;
    for i in 0..x.len() {
        amax = amax.max(x[i].to_bits() & 0x7fff_ffff);
    }
    let amax = f32::from_bits(amax);
    if !amax.is_finite() {
        return (f32::NAN, 0.0);
    }
    // A run so small that the inverse overflows is zero for all purposes.
    let inverse = limit / amax;
    if !inverse.is_finite() {
        return (0.0, 0.0);
    }
    // Adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut sum = 0;
    for i in 0..x.len().min(SEGMENT) {
        integers[i] = (x[i] * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
        // Cannot overflow; a check, which profiles for tests have, would keep the loop from being vectorized.
        sum = i32::wrapping_add(sum, integers[i]);
    }
    (amax / limit, sum as f32)
}

/// Sum by 16 running sums, which vectors can hold.
fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel adds up one row in another order than several.
    #[test]
    fn no_row_is_alone_behind_others() {
        for max in [4, 8] {
            for n_rows in 2..40 {
                let blocks = blocks(n_rows, max);
                assert!(
                    blocks.iter().all(|block| block.n_lanes > 1 && block.n_rows <= block.n_lanes),
                    "{n_rows}: {blocks:?}"
                );
                assert_eq!(blocks.iter().map(|block| block.n_rows).sum::<usize>(), n_rows);
            }
            assert_eq!(blocks(1, max)[0].n_lanes, 1);
        }
        assert!(blocks(5, 1).iter().all(|block| block.n_lanes == 1));
    }
}

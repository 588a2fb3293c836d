//! Plain loops over 16 lanes, which compilers turn into whatever vectors the target has.

use super::lanes::{Lanes, Work};
use super::tiles::{Compact, Line, QUAD, TILE, Wide};
use super::words::WordLanes;

/// Runs anywhere.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// A value for each lane.
macro_rules! each {
    (|$lane:ident| $value:expr) => {{
        let mut values = [Default::default(); TILE];
        for $lane in 0..TILE {
            values[$lane] = $value;
        }
        values
    }};
}

impl Lanes for Portable {
    type Ints = [u32; TILE];
    type Floats = [f32; TILE];
    const COMPACT: bool = false;
    const MAX_ROWS: usize = 1;

    fn detect() -> Option<Self> {
        Some(Self)
    }

    fn vectorize<W: Work>(self, work: W) {
        work.run();
    }

    #[inline(always)]
    fn load(self, line: &Line) -> Self::Ints {
        let (lanes, _) = line.0.as_chunks::<QUAD>();
        each!(|l| u32::from_le_bytes(lanes[l]))
    }

    #[inline(always)]
    fn prefetch(self, _line: &Line, _n_lines: usize) {}

    #[inline(always)]
    fn shift_right(self, a: Self::Ints, by: usize) -> Self::Ints {
        each!(|l| a[l] >> by)
    }

    #[inline(always)]
    fn shift_left(self, a: Self::Ints, by: usize) -> Self::Ints {
        each!(|l| a[l] << by)
    }

    #[inline(always)]
    fn mask_bytes(self, a: Self::Ints, mask: u8) -> Self::Ints {
        each!(|l| a[l] & u32::from_le_bytes([mask; QUAD]))
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(|l| a[l] | b[l])
    }

    #[inline(always)]
    fn zero_ints(self) -> Self::Ints {
        [0; TILE]
    }

    #[inline(always)]
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(|l| a[l].wrapping_add(b[l]))
    }

    #[inline(always)]
    fn dot(self, sums: Self::Ints, codes: Self::Ints, x: i32, _bits: usize) -> Self::Ints {
        let mut sums = sums;
        for (byte, x) in x.to_le_bytes().into_iter().enumerate() {
            let x = i32::from(x.cast_signed()).cast_unsigned();
            sums = each!(|l| sums[l].wrapping_add((codes[l] >> (8 * byte) & 0xff).wrapping_mul(x)));
        }
        sums
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        each!(|l| a[l].cast_signed() as f32)
    }

    #[inline(always)]
    fn byte_to_floats(self, codes: Self::Ints, byte: usize, _bits: usize) -> Self::Floats {
        each!(|l| (codes[l] >> (8 * byte) & 0xff).cast_signed() as f32)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; TILE]
    }

    // Fused operations are calls into a library where the target has no instruction for them.
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(|l| a[l] * b[l] + c[l])
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each!(|l| c[l] - a[l] * b[l])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn add_floats(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each!(|l| a[l] + b[l])
    }

    #[inline(always)]
    fn store(self, a: Self::Floats) -> [f32; TILE] {
        a
    }

    #[inline(always)]
    fn compact_params(self, params: &Compact) -> (Self::Floats, Self::Floats) {
        self.wide_params(&params.widen())
    }

    #[inline(always)]
    fn wide_params(self, params: &Wide) -> (Self::Floats, Self::Floats) {
        (params.scale, params.zero_point)
    }
}

impl WordLanes for Portable {
    #[inline(always)]
    fn words(self, codes: Self::Ints, odd: bool) -> Self::Ints {
        let shift = if odd { 8 } else { 0 };
        each!(|l| codes[l] >> shift & 0x00ff_00ff)
    }

    #[inline(always)]
    fn dot_words(self, sums: Self::Ints, words: Self::Ints, x: i32) -> Self::Ints {
        let halves = |word: i32| [word as i16, (word >> 16) as i16].map(i32::from);
        let [x0, x1] = halves(x);
        each!(|l| {
            let [w0, w1] = halves(words[l].cast_signed());
            sums[l].wrapping_add((w0 * x0 + w1 * x1).cast_unsigned())
        })
    }
}

//! [`Lanes`]: the few vector operations that kernels are written in, one implementation per instruction set.

use super::tiles::{Compact, Line, Plane, QUADS, TILE, Wide, planes};

/// Work whose body is compiled for an instruction set; `run` must be `#[inline(always)]`.
pub(super) trait Work {
    fn run(self);
}

/// Vectors of 16 lanes, one a tile's output. A value of this type is the proof that the CPU has the instructions.
pub(super) trait Lanes: Copy + Send + Sync + 'static {
    /// 16 lanes of 32 bits: 4 codes each, or an integer sum.
    type Ints: Copy;
    /// 16 lanes of f32.
    type Floats: Copy;
    /// Whether [`Self::compact_params`] is fast.
    const COMPACT: bool;
    /// Most rows whose sums fit into registers: 1, 4, or 8, and then two tiles at a time.
    const MAX_ROWS: usize;

    /// `None` where the CPU lacks an instruction.
    fn detect() -> Option<Self>;
    /// Runs the work compiled for this instruction set.
    fn vectorize<W: Work>(self, work: W);

    fn load(self, line: &Line) -> Self::Ints;
    /// Asks for the line `n_lines` ahead.
    fn prefetch(self, line: &Line, n_lines: usize);
    /// Shifts each lane; bits that cross a byte are the caller's to mask.
    fn shift_right(self, a: Self::Ints, by: usize) -> Self::Ints;
    fn shift_left(self, a: Self::Ints, by: usize) -> Self::Ints;
    /// Keeps the bits of `mask` of each byte.
    fn mask_bytes(self, a: Self::Ints, mask: u8) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn zero_ints(self) -> Self::Ints;
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Adds the products of each lane's 4 codes, below `2^bits`, with the 4 signed bytes of `x`.
    fn dot(self, sums: Self::Ints, codes: Self::Ints, x: i32, bits: usize) -> Self::Ints;
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    /// Byte `byte` of each lane, a code below `2^bits`.
    fn byte_to_floats(self, codes: Self::Ints, byte: usize, bits: usize) -> Self::Floats;

    fn splat(self, value: f32) -> Self::Floats;
    /// `a * b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a * b`.
    fn neg_mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn add_floats(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn store(self, a: Self::Floats) -> [f32; TILE];
    /// Scale and zero point.
    fn compact_params(self, params: &Compact) -> (Self::Floats, Self::Floats);
    fn wide_params(self, params: &Wide) -> (Self::Floats, Self::Floats);
}

/// The codes of quad `quad` of a chunk, one a byte. All arguments but the lines are constants after inlining.
#[inline(always)]
pub(super) fn quad_codes<L: Lanes, const BITS: usize>(lanes: L, chunk: &[Line; BITS], quad: usize) -> L::Ints {
    debug_assert!(quad < QUADS);
    // In a constant: a call would leave the shifts to be found out for each vector.
    let (first, others) = const { planes(BITS) };
    let mut codes = plane_part(lanes, chunk, first, quad);
    for plane in others {
        codes = lanes.or(codes, plane_part(lanes, chunk, *plane, quad));
    }
    codes
}

#[inline(always)]
fn plane_part<L: Lanes, const BITS: usize>(lanes: L, chunk: &[Line; BITS], plane: Plane, quad: usize) -> L::Ints {
    let quads_per_line = 8 / plane.width;
    let line = lanes.load(&chunk[plane.first_line + quad / quads_per_line]);
    if plane.width == 8 {
        return line;
    }
    let shift = quad % quads_per_line * plane.width;
    let shifted = match shift.cmp(&plane.offset) {
        std::cmp::Ordering::Greater => lanes.shift_right(line, shift - plane.offset),
        std::cmp::Ordering::Equal => line,
        std::cmp::Ordering::Less => lanes.shift_left(line, plane.offset - shift),
    };
    lanes.mask_bytes(shifted, (((1_u16 << plane.width) - 1) << plane.offset) as u8)
}

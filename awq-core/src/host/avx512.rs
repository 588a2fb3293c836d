//! What products by vectors of AVX-512 have in common.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;

/// Values of a vector.
pub(super) const LANES: usize = 16;
/// Products that one sum in f32 takes up before it is added to the others: faer's number, on which bits depend.
pub(super) const DEEP: usize = 512;

/// A vector's values, aligned as a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line([f32; LANES]);

impl Line {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn load(&self) -> __m512 {
        // SAFETY: a line is 64 bytes, and aligned so.
        unsafe { _mm512_load_ps(self.0.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn store(&mut self, values: __m512i) {
        // SAFETY: a line is 64 bytes, and aligned so.
        unsafe { _mm512_store_si512(self.0.as_mut_ptr().cast(), values) };
    }
}

/// A 16 x 16 matrix of words, transposed: first inside quarters of four rows, then the quarters.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut quarters = rows;
    for first in [0, 4, 8, 12] {
        let (a, b, c, d) = (rows[first], rows[first + 1], rows[first + 2], rows[first + 3]);
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quarters[first] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quarters[first + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quarters[first + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quarters[first + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Vector `j` of each quarter now holds columns j, 4 + j, 8 + j and 12 + j, four words each.
    let mut columns = rows;
    for j in 0..4 {
        let (a, b, c, d) = (quarters[j], quarters[4 + j], quarters[8 + j], quarters[12 + j]);
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    columns
}

/// The first lanes of a vector, as many as there are values.
#[inline(always)]
pub(super) fn mask_of(n: usize) -> u16 {
    ((1_u32 << n.min(16)) - 1) as u16
}

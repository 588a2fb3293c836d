//! AVX-512 with VNNI: a vector is a whole tile.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Work};
use super::tiles::{Compact, Line, TILE, Wide};
use super::words::WordLanes;

/// Proof that the CPU has AVX-512 F, BW and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// An instruction on values.
macro_rules! vector {
    ($instruction:expr) => {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { $instruction }
    };
}

impl Lanes for Avx512 {
    type Ints = __m512i;
    type Floats = __m512;
    const COMPACT: bool = true;
    const MAX_ROWS: usize = 8;

    fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }

    fn vectorize<W: Work>(self, work: W) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn run<W: Work>(work: W) {
            work.run();
        }
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn load(self, line: &Line) -> __m512i {
        // SAFETY: the CPU has the instruction; a line is 64 bytes, aligned to 64.
        vector!(_mm512_load_si512(line.0.as_ptr().cast()))
    }

    #[inline(always)]
    fn prefetch(self, line: &Line, n_lines: usize) {
        // SAFETY: a prefetch reads nothing, its address may be any.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(n_lines).cast()) }
    }

    #[inline(always)]
    fn shift_right(self, a: __m512i, by: usize) -> __m512i {
        vector!(_mm512_srlv_epi32(a, _mm512_set1_epi32(by as i32)))
    }

    #[inline(always)]
    fn shift_left(self, a: __m512i, by: usize) -> __m512i {
        vector!(_mm512_sllv_epi32(a, _mm512_set1_epi32(by as i32)))
    }

    #[inline(always)]
    fn mask_bytes(self, a: __m512i, mask: u8) -> __m512i {
        vector!(_mm512_and_si512(a, _mm512_set1_epi8(mask.cast_signed())))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn zero_ints(self) -> __m512i {
        vector!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, codes: __m512i, x: i32, _bits: usize) -> __m512i {
        vector!(_mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        vector!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn byte_to_floats(self, codes: __m512i, byte: usize, bits: usize) -> __m512 {
        let shifted = if byte == 0 { codes } else { self.shift_right(codes, 8 * byte) };
        if bits <= 4 {
            // The permutation looks at the low 4 bits of each lane only: no mask is needed.
            return vector!({
                let table = _mm512_set_ps(15., 14., 13., 12., 11., 10., 9., 8., 7., 6., 5., 4., 3., 2., 1., 0.);
                _mm512_permutexvar_ps(shifted, table)
            });
        }
        vector!(_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff))))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        vector!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        vector!(_mm512_fnmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn add_floats(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn store(self, a: __m512) -> [f32; TILE] {
        // SAFETY: both are 16 values of f32.
        unsafe { std::mem::transmute::<__m512, [f32; TILE]>(a) }
    }

    #[inline(always)]
    fn compact_params(self, params: &Compact) -> (__m512, __m512) {
        // SAFETY: the CPU has the instructions; the arrays are 32 and 16 bytes, as wide as the loads.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(params.scale.as_ptr().cast()));
            let zero_point = _mm512_cvtepu8_epi32(_mm_loadu_si128(params.zero_point.as_ptr().cast()));
            (scale, _mm512_cvtepi32_ps(zero_point))
        }
    }

    #[inline(always)]
    fn wide_params(self, params: &Wide) -> (__m512, __m512) {
        // SAFETY: the CPU has the instructions; the arrays are 64 bytes, as wide as the loads.
        unsafe { (_mm512_loadu_ps(params.scale.as_ptr()), _mm512_loadu_ps(params.zero_point.as_ptr())) }
    }
}

impl WordLanes for Avx512 {
    #[inline(always)]
    fn words(self, codes: __m512i, odd: bool) -> __m512i {
        let codes = if odd { self.shift_right(codes, 8) } else { codes };
        vector!(_mm512_and_si512(codes, _mm512_set1_epi32(0x00ff_00ff)))
    }

    #[inline(always)]
    fn dot_words(self, sums: __m512i, words: __m512i, x: i32) -> __m512i {
        vector!(_mm512_dpwssd_epi32(sums, words, _mm512_set1_epi32(x)))
    }
}

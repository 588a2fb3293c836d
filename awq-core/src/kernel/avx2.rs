//! AVX2 with FMA and F16C: two vectors are a tile.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Work};
use super::tiles::{Compact, Line, TILE, Wide};
use super::words::WordLanes;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Applies an instruction to both halves.
macro_rules! halves {
    (|$half:ident| $instruction:expr) => {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe {
            [
                {
                    let $half = 0;
                    $instruction
                },
                {
                    let $half = 1;
                    $instruction
                },
            ]
        }
    };
}

impl Lanes for Avx2 {
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const COMPACT: bool = true;
    const MAX_ROWS: usize = 4;

    fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    fn vectorize<W: Work>(self, work: W) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run<W: Work>(work: W) {
            work.run();
        }
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn load(self, line: &Line) -> Self::Ints {
        let (halves, _) = line.0.as_chunks::<32>();
        halves!(|h| _mm256_loadu_si256(halves[h].as_ptr().cast()))
    }

    #[inline(always)]
    fn prefetch(self, line: &Line, n_lines: usize) {
        // SAFETY: a prefetch reads nothing, its address may be any.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(n_lines).cast()) }
    }

    #[inline(always)]
    fn shift_right(self, a: Self::Ints, by: usize) -> Self::Ints {
        halves!(|h| _mm256_srlv_epi32(a[h], _mm256_set1_epi32(by as i32)))
    }

    #[inline(always)]
    fn shift_left(self, a: Self::Ints, by: usize) -> Self::Ints {
        halves!(|h| _mm256_sllv_epi32(a[h], _mm256_set1_epi32(by as i32)))
    }

    #[inline(always)]
    fn mask_bytes(self, a: Self::Ints, mask: u8) -> Self::Ints {
        halves!(|h| _mm256_and_si256(a[h], _mm256_set1_epi8(mask.cast_signed())))
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        halves!(|h| _mm256_or_si256(a[h], b[h]))
    }

    #[inline(always)]
    fn zero_ints(self) -> Self::Ints {
        halves!(|_h| _mm256_setzero_si256())
    }

    #[inline(always)]
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        halves!(|h| _mm256_add_epi32(a[h], b[h]))
    }

    #[inline(always)]
    fn dot(self, sums: Self::Ints, codes: Self::Ints, x: i32, bits: usize) -> Self::Ints {
        if bits <= 7 {
            return halves!(|h| {
                let pairs = _mm256_maddubs_epi16(codes[h], _mm256_set1_epi32(x));
                _mm256_add_epi32(sums[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            });
        }
        // Two products of 8 bits overflow the 16 bits of their sum, so the highest bit goes by itself.
        halves!(|h| {
            let low = _mm256_maddubs_epi16(_mm256_and_si256(codes[h], _mm256_set1_epi8(0x7f)), _mm256_set1_epi32(x));
            let bit = _mm256_and_si256(_mm256_srli_epi32::<7>(codes[h]), _mm256_set1_epi8(1));
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(bit, _mm256_set1_epi32(x)), _mm256_set1_epi16(128));
            let products = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)), high);
            _mm256_add_epi32(sums[h], products)
        })
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        halves!(|h| _mm256_cvtepi32_ps(a[h]))
    }

    #[inline(always)]
    fn byte_to_floats(self, codes: Self::Ints, byte: usize, _bits: usize) -> Self::Floats {
        halves!(|h| {
            let shifted = _mm256_srlv_epi32(codes[h], _mm256_set1_epi32(8 * byte as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(0xff)))
        })
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        halves!(|_h| _mm256_set1_ps(value))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        halves!(|h| _mm256_fmadd_ps(a[h], b[h], c[h]))
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        halves!(|h| _mm256_fnmadd_ps(a[h], b[h], c[h]))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        halves!(|h| _mm256_mul_ps(a[h], b[h]))
    }

    #[inline(always)]
    fn add_floats(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        halves!(|h| _mm256_add_ps(a[h], b[h]))
    }

    #[inline(always)]
    fn store(self, a: Self::Floats) -> [f32; TILE] {
        // SAFETY: both are 16 values of f32.
        unsafe { std::mem::transmute::<[__m256; 2], [f32; TILE]>(a) }
    }

    #[inline(always)]
    fn compact_params(self, params: &Compact) -> (Self::Floats, Self::Floats) {
        let (scale, _) = params.scale.as_chunks::<8>();
        let (zero_point, _) = params.zero_point.as_chunks::<8>();
        (
            halves!(|h| _mm256_cvtph_ps(_mm_loadu_si128(scale[h].as_ptr().cast()))),
            halves!(|h| {
                let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(zero_point[h]));
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
            }),
        )
    }

    #[inline(always)]
    fn wide_params(self, params: &Wide) -> (Self::Floats, Self::Floats) {
        let (scale, _) = params.scale.as_chunks::<8>();
        let (zero_point, _) = params.zero_point.as_chunks::<8>();
        (halves!(|h| _mm256_loadu_ps(scale[h].as_ptr())), halves!(|h| _mm256_loadu_ps(zero_point[h].as_ptr())))
    }
}

impl WordLanes for Avx2 {
    #[inline(always)]
    fn words(self, codes: Self::Ints, odd: bool) -> Self::Ints {
        let codes = if odd { self.shift_right(codes, 8) } else { codes };
        halves!(|h| _mm256_and_si256(codes[h], _mm256_set1_epi32(0x00ff_00ff)))
    }

    #[inline(always)]
    fn dot_words(self, sums: Self::Ints, words: Self::Ints, x: i32) -> Self::Ints {
        halves!(|h| _mm256_add_epi32(sums[h], _mm256_madd_epi16(words[h], _mm256_set1_epi32(x))))
    }
}

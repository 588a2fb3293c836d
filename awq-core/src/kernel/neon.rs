//! NEON: four vectors are a tile.

use std::arch::aarch64::*;

use super::lanes::{Lanes, Work};
use super::tiles::{Compact, Line, TILE, Wide};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Applies an instruction to all quarters.
macro_rules! quarters {
    (|$quarter:ident| $instruction:expr) => {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe {
            [
                {
                    let $quarter = 0;
                    $instruction
                },
                {
                    let $quarter = 1;
                    $instruction
                },
                {
                    let $quarter = 2;
                    $instruction
                },
                {
                    let $quarter = 3;
                    $instruction
                },
            ]
        }
    };
}

impl Lanes for Neon {
    type Ints = [uint32x4_t; 4];
    type Floats = [float32x4_t; 4];
    const COMPACT: bool = false;
    const MAX_ROWS: usize = 4;

    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    fn vectorize<W: Work>(self, work: W) {
        #[target_feature(enable = "neon")]
        fn run<W: Work>(work: W) {
            work.run();
        }
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn load(self, line: &Line) -> Self::Ints {
        let (quarters, _) = line.0.as_chunks::<16>();
        quarters!(|q| vreinterpretq_u32_u8(vld1q_u8(quarters[q].as_ptr())))
    }

    #[inline(always)]
    fn prefetch(self, _line: &Line, _n_lines: usize) {}

    #[inline(always)]
    fn shift_right(self, a: Self::Ints, by: usize) -> Self::Ints {
        quarters!(|q| vshlq_u32(a[q], vdupq_n_s32(-(by as i32))))
    }

    #[inline(always)]
    fn shift_left(self, a: Self::Ints, by: usize) -> Self::Ints {
        quarters!(|q| vshlq_u32(a[q], vdupq_n_s32(by as i32)))
    }

    #[inline(always)]
    fn mask_bytes(self, a: Self::Ints, mask: u8) -> Self::Ints {
        quarters!(|q| vandq_u32(a[q], vreinterpretq_u32_u8(vdupq_n_u8(mask))))
    }

    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        quarters!(|q| vorrq_u32(a[q], b[q]))
    }

    #[inline(always)]
    fn zero_ints(self) -> Self::Ints {
        quarters!(|_q| vdupq_n_u32(0))
    }

    #[inline(always)]
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        quarters!(|q| vaddq_u32(a[q], b[q]))
    }

    #[inline(always)]
    fn dot(self, sums: Self::Ints, codes: Self::Ints, x: i32, bits: usize) -> Self::Ints {
        quarters!(|q| {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            let sums = vreinterpretq_s32_u32(sums[q]);
            if bits <= 7 {
                let pairs = pair_products(vreinterpretq_s8_u32(codes[q]), x);
                vreinterpretq_u32_s32(vpadalq_s16(sums, pairs))
            } else {
                // The product multiplies signed bytes, so the highest bit goes by itself.
                let bytes = vreinterpretq_u8_u32(codes[q]);
                let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x7f)));
                let bit = vreinterpretq_s8_u8(vshrq_n_u8::<7>(bytes));
                let high = vshlq_n_s32::<7>(vpaddlq_s16(pair_products(bit, x)));
                vreinterpretq_u32_s32(vaddq_s32(vpadalq_s16(sums, pair_products(low, x)), high))
            }
        })
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        quarters!(|q| vcvtq_f32_s32(vreinterpretq_s32_u32(a[q])))
    }

    #[inline(always)]
    fn byte_to_floats(self, codes: Self::Ints, byte: usize, _bits: usize) -> Self::Floats {
        quarters!(|q| {
            let shifted = vshlq_u32(codes[q], vdupq_n_s32(-8 * byte as i32));
            vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32(0xff)))
        })
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        quarters!(|_q| vdupq_n_f32(value))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        quarters!(|q| vfmaq_f32(c[q], a[q], b[q]))
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        quarters!(|q| vfmsq_f32(c[q], a[q], b[q]))
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        quarters!(|q| vmulq_f32(a[q], b[q]))
    }

    #[inline(always)]
    fn add_floats(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        quarters!(|q| vaddq_f32(a[q], b[q]))
    }

    #[inline(always)]
    fn store(self, a: Self::Floats) -> [f32; TILE] {
        // SAFETY: both are 16 values of f32.
        unsafe { std::mem::transmute::<[float32x4_t; 4], [f32; TILE]>(a) }
    }

    #[inline(always)]
    fn compact_params(self, params: &Compact) -> (Self::Floats, Self::Floats) {
        self.wide_params(&params.widen())
    }

    #[inline(always)]
    fn wide_params(self, params: &Wide) -> (Self::Floats, Self::Floats) {
        let (scale, _) = params.scale.as_chunks::<4>();
        let (zero_point, _) = params.zero_point.as_chunks::<4>();
        (quarters!(|q| vld1q_f32(scale[q].as_ptr())), quarters!(|q| vld1q_f32(zero_point[q].as_ptr())))
    }
}

/// Products of signed bytes, neighbours added. The instruction that adds fours is not stable in Rust.
#[inline(always)]
unsafe fn pair_products(a: int8x16_t, b: int8x16_t) -> int16x8_t {
    // SAFETY: the caller has found the instructions.
    unsafe { vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)) }
}

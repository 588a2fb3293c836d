//! The values of ggml's storage types as `f32`.
//!
//! The layouts are those of `ggml-common.h`; the arithmetic is in `f32` in the order of ggml's reference
//! dequantizers, so that the result is the same bit for bit. In the block types `d` is the scale, `m` the
//! minimum, both `f16`; codes `q` are nibbles, with further bits elsewhere in the block where there are more than 4.

mod codebooks;
mod k_blocks;
mod legacy;
mod ternary;
#[cfg(test)]
mod tests;

pub(super) use self::k_blocks::scale_and_min;
pub(super) use self::legacy::five_bits;
use half::f16;
use rayon::prelude::*;

use crate::arithmetic::FloatType;
use crate::formats::gguf::GgmlType;
use crate::load::floats;

/// The values of whole blocks. `bytes` is a multiple of the type's block size.
pub(super) fn dequantize(ggml_type: GgmlType, bytes: &[u8]) -> Vec<f32> {
    match ggml_type {
        GgmlType::F32 => floats::to_f32(FloatType::F32, bytes),
        GgmlType::F16 => floats::to_f32(FloatType::F16, bytes),
        GgmlType::Bf16 => floats::to_f32(FloatType::Bf16, bytes),
        // Rounded to the nearest.
        GgmlType::F64 => by_element(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        GgmlType::I8 => by_element(bytes, |bytes| i8::from_le_bytes(bytes).into()),
        GgmlType::I16 => by_element(bytes, |bytes| i16::from_le_bytes(bytes).into()),
        GgmlType::I32 => by_element(bytes, |bytes| i32::from_le_bytes(bytes) as f32),
        GgmlType::I64 => by_element(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
        GgmlType::Q4_0 => by_block(bytes, legacy::q4_0),
        GgmlType::Q4_1 => by_block(bytes, legacy::q4_1),
        GgmlType::Q5_0 => by_block(bytes, legacy::q5_0),
        GgmlType::Q5_1 => by_block(bytes, legacy::q5_1),
        GgmlType::Q8_0 => by_block(bytes, legacy::q8_0),
        GgmlType::Iq4Nl => by_block(bytes, legacy::iq4_nl),
        GgmlType::Mxfp4 => by_block(bytes, legacy::mxfp4),
        GgmlType::Q2K => by_block(bytes, k_blocks::q2_k),
        GgmlType::Q3K => by_block(bytes, k_blocks::q3_k),
        GgmlType::Q4K => by_block(bytes, k_blocks::q4_k),
        GgmlType::Q5K => by_block(bytes, k_blocks::q5_k),
        GgmlType::Q6K => by_block(bytes, k_blocks::q6_k),
        GgmlType::Tq1_0 => by_block(bytes, ternary::tq1_0),
        GgmlType::Tq2_0 => by_block(bytes, ternary::tq2_0),
        GgmlType::Iq1S => by_block(bytes, codebooks::iq1_s),
        GgmlType::Iq1M => by_block(bytes, codebooks::iq1_m),
        GgmlType::Iq2Xxs => by_block(bytes, codebooks::iq2_xxs),
        GgmlType::Iq2Xs => by_block(bytes, codebooks::iq2_xs),
        GgmlType::Iq2S => by_block(bytes, codebooks::iq2_s),
        GgmlType::Iq3Xxs => by_block(bytes, codebooks::iq3_xxs),
        GgmlType::Iq3S => by_block(bytes, codebooks::iq3_s),
        GgmlType::Iq4Xs => by_block(bytes, codebooks::iq4_xs),
    }
}

fn by_block<const BYTES: usize, const LEN: usize>(bytes: &[u8], block: fn(&[u8; BYTES], &mut [f32; LEN])) -> Vec<f32> {
    const BLOCKS_PER_TASK: usize = 1024;
    let blocks = bytes.as_chunks::<BYTES>().0;
    let mut values = vec![0.0; blocks.len() * LEN];
    values
        .as_chunks_mut::<LEN>()
        .0
        .par_iter_mut()
        .zip(blocks)
        .with_min_len(BLOCKS_PER_TASK)
        .for_each(|(values, bytes)| block(bytes, values));
    values
}

fn by_element<const BYTES: usize>(bytes: &[u8], element: fn([u8; BYTES]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<BYTES>().0.iter().map(|bytes| element(*bytes)).collect()
}

/// What the codes of IQ4_NL and IQ4_XS stand for.
const FOUR_BIT_TABLE: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The `f16` at `bytes[at..at + 2]`.
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Code `index` of a 32-element block: low nibbles hold the first half, high nibbles the second.
pub(super) fn nibble(codes: &[u8], index: usize) -> u8 {
    if index < 16 { codes[index] & 0x0f } else { codes[index - 16] >> 4 }
}

//! ggml's storage types, and their values as `f32`.
//!
//! The layouts are those of `ggml-common.h`; the arithmetic is in `f32` in the order of ggml's reference
//! dequantizers, so that the result is the same bit for bit. In the block types `d` is the scale, `m` the
//! minimum, both `f16`; codes `q` are nibbles, with further bits elsewhere in the block where there are more than 4.

#[cfg(test)]
mod tests;

use std::fmt;

use half::f16;
use rayon::prelude::*;

use crate::arithmetic::FloatType;
use crate::load::floats;

/// A storage type that this reader converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Every type, with its id in the file, its name, elements and bytes a block.
const TYPES: [(GgmlType, u32, &str, usize, usize); 11] = [
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 34),
    (GgmlType::Q4K, 12, "Q4_K", 256, 144),
    (GgmlType::Q5K, 13, "Q5_K", 256, 176),
    (GgmlType::Q6K, 14, "Q6_K", 256, 210),
    (GgmlType::Bf16, 30, "BF16", 1, 2),
];

/// Types that this reader does not convert, by their ids in `ggml.h`, the removed ones among them.
const OTHER_TYPES: [(u32, &str); 32] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The name of any type of ggml; of an id that is none of them, the id.
pub(in crate::load) fn type_name(id: u32) -> String {
    let known = TYPES.iter().map(|row| (row.1, row.2)).chain(OTHER_TYPES);
    let name = known.into_iter().find(|(known, _)| *known == id).map(|(_, name)| name.to_owned());
    name.unwrap_or_else(|| format!("ggml type {id}, which has no name"))
}

impl GgmlType {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The names of all types, for messages.
    pub(super) fn known() -> String {
        TYPES.map(|row| row.2).join(", ")
    }

    /// Elements in one block.
    pub(super) fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub(super) fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Elements that share a scale; `None` of floats.
    pub(super) fn group_size(self) -> Option<usize> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            // A block of 256 has scales of its own for each 16 or 32.
            Self::Q6K => Some(16),
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q4K | Self::Q5K => Some(32),
        }
    }

    fn row(self) -> &'static (GgmlType, u32, &'static str, usize, usize) {
        // The table has a row for each variant (a test holds it), so the fallback is never taken.
        TYPES.iter().find(|row| row.0 == self).unwrap_or(&TYPES[0])
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// The values of whole blocks. `bytes` is a multiple of the type's block size.
pub(super) fn dequantize(ggml_type: GgmlType, bytes: &[u8]) -> Vec<f32> {
    match ggml_type {
        GgmlType::F32 => floats::to_f32(FloatType::F32, bytes),
        GgmlType::F16 => floats::to_f32(FloatType::F16, bytes),
        GgmlType::Bf16 => floats::to_f32(FloatType::Bf16, bytes),
        GgmlType::Q4_0 => by_block(bytes, q4_0),
        GgmlType::Q4_1 => by_block(bytes, q4_1),
        GgmlType::Q5_0 => by_block(bytes, q5_0),
        GgmlType::Q5_1 => by_block(bytes, q5_1),
        GgmlType::Q8_0 => by_block(bytes, q8_0),
        GgmlType::Q4K => by_block(bytes, q4_k),
        GgmlType::Q5K => by_block(bytes, q5_k),
        GgmlType::Q6K => by_block(bytes, q6_k),
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

/// The `f16` at `bytes[at..at + 2]`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Code `index` of a 32-element block: low nibbles hold the first half, high nibbles the second.
fn nibble(codes: &[u8], index: usize) -> u8 {
    if index < 16 { codes[index] & 0x0f } else { codes[index - 16] >> 4 }
}

/// `[d, q: 16]`, `(q - 8) * d`.
fn q4_0(bytes: &[u8; 18], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (index, value) in values.iter_mut().enumerate() {
        *value = (f32::from(nibble(&bytes[2..], index)) - 8.0) * d;
    }
}

/// `[d, m, q: 16]`, `q * d + m`.
fn q4_1(bytes: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (index, value) in values.iter_mut().enumerate() {
        *value = f32::from(nibble(&bytes[4..], index)) * d + m;
    }
}

/// Code `index` of a 5-bit block: bit `index` of `high_bits` is the fifth bit.
fn five_bits(high_bits: &[u8], codes: &[u8], index: usize) -> u8 {
    nibble(codes, index) | ((high_bits[index / 8] >> (index % 8)) & 1) << 4
}

/// `[d, high bits: 4, q: 16]`, `(q - 16) * d`.
fn q5_0(bytes: &[u8; 22], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (index, value) in values.iter_mut().enumerate() {
        *value = (f32::from(five_bits(&bytes[2..6], &bytes[6..], index)) - 16.0) * d;
    }
}

/// `[d, m, high bits: 4, q: 16]`, `q * d + m`.
fn q5_1(bytes: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (index, value) in values.iter_mut().enumerate() {
        *value = f32::from(five_bits(&bytes[4..8], &bytes[8..], index)) * d + m;
    }
}

/// `[d, q: 32 signed]`, `q * d`.
fn q8_0(bytes: &[u8; 34], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (value, code) in values.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(code.cast_signed()) * d;
    }
}

/// The 6-bit scale and minimum of sub-block `index` (of 8), packed in 12 bytes.
fn scale_and_min(packed: &[u8], index: usize) -> (f32, f32) {
    let (scale, min) = if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        (
            (packed[index + 4] & 0x0f) | (packed[index - 4] >> 6) << 4,
            (packed[index + 4] >> 4) | (packed[index] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// `[d, dmin, scales: 12, q: 128]`: 8 sub-blocks of 32, `d * scale * q - dmin * min`.
/// Each 32 bytes of codes hold two sub-blocks, the first in the low nibbles.
fn q4_k(bytes: &[u8; 144], values: &mut [f32; 256]) {
    let (d, dmin) = (half_at(bytes, 0), half_at(bytes, 2));
    for (sub_block, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], sub_block);
        let (d, m) = (d * scale, dmin * min);
        let codes = &bytes[16 + sub_block / 2 * 32..][..32];
        let shift = sub_block % 2 * 4;
        for (value, code) in values.iter_mut().zip(codes) {
            *value = d * f32::from(code >> shift & 0x0f) - m;
        }
    }
}

/// As [`q4_k`] with a fifth bit: `[d, dmin, scales: 12, high bits: 32, q: 128]`; bit `sub_block` of high byte `i`
/// belongs to element `i` of that sub-block.
fn q5_k(bytes: &[u8; 176], values: &mut [f32; 256]) {
    let (d, dmin) = (half_at(bytes, 0), half_at(bytes, 2));
    let high_bits = &bytes[16..48];
    for (sub_block, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], sub_block);
        let (d, m) = (d * scale, dmin * min);
        let codes = &bytes[48 + sub_block / 2 * 32..][..32];
        let shift = sub_block % 2 * 4;
        for ((value, code), high) in values.iter_mut().zip(codes).zip(high_bits) {
            let code = (code >> shift & 0x0f) | (high >> sub_block & 1) << 4;
            *value = d * f32::from(code) - m;
        }
    }
}

/// `[q low: 128, q high: 64, scales: 16 signed, d]`: 16 sub-blocks of 16, `d * scale * (q - 32)`.
/// Each half of 128 elements has 64 low bytes and 32 high bytes; its four runs of 32 elements take the low
/// nibbles of bytes 0..32, of 32..64, then the high nibbles of the same, and bit pairs 0, 1, 2, 3 of the high bytes.
fn q6_k(bytes: &[u8; 210], values: &mut [f32; 256]) {
    let d = half_at(bytes, 208);
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (run / 4, run % 4);
        let low = &bytes[half * 64 + quarter % 2 * 32..][..32];
        let high = &bytes[128 + half * 32..][..32];
        for (index, value) in values.iter_mut().enumerate() {
            let scale = f32::from(bytes[192 + run * 2 + index / 16].cast_signed());
            let code = (low[index] >> (quarter / 2 * 4) & 0x0f) | (high[index] >> (quarter * 2) & 3) << 4;
            *value = d * scale * (f32::from(code) - 32.0);
        }
    }
}

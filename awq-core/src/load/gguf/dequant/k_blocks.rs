//! Blocks of 256 weights whose sub-blocks have scales (and minima) of a few bits, themselves scaled by an `f16`.

use super::half_at;

/// `[scales and minima: 16, q: 64, d, dmin]`: 16 sub-blocks of 16, each with a byte of 4 bits of scale and 4 of minimum,
/// `d * scale * q - dmin * min`.
pub(super) fn q2_k(bytes: &[u8; 84], values: &mut [f32; 256]) {
    let (d, dmin) = (half_at(bytes, 80), half_at(bytes, 82));
    for (sub_block, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let packed = bytes[sub_block];
        let (d, m) = (d * f32::from(packed & 0x0f), dmin * f32::from(packed >> 4));
        let (codes, shift) = two_bits(&bytes[16..80], sub_block);
        for (value, code) in values.iter_mut().zip(codes) {
            *value = d * f32::from(code >> shift & 3) - m;
        }
    }
}

/// The 16 bytes that hold the codes of sub-block `sub_block` (of 16), and where in each of them they stand: every 32 bytes hold
/// 128 weights, the first 32 of them in the lowest bit pairs.
fn two_bits(codes: &[u8], sub_block: usize) -> (&[u8], usize) {
    (&codes[sub_block / 8 * 32 + sub_block % 2 * 16..][..16], sub_block % 8 / 2 * 2)
}

/// `[high bits: 32, q: 64, scales: 12, d]`: 16 sub-blocks of 16, `d * (scale - 32) * (q - 4)`, where the third bit of q stands
/// in the high bits: bit `i / 32` of byte `i % 32`.
pub(super) fn q3_k(bytes: &[u8; 110], values: &mut [f32; 256]) {
    let d = half_at(bytes, 108);
    let scales = &bytes[96..108];
    for (sub_block, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[sub_block % 8] >> (sub_block / 8 * 4) & 0x0f;
        let high = scales[8 + sub_block % 4] >> (sub_block / 4 * 2) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        let (codes, shift) = two_bits(&bytes[32..96], sub_block);
        let high_bits = &bytes[sub_block % 2 * 16..][..16];
        for ((value, code), high) in values.iter_mut().zip(codes).zip(high_bits) {
            let code = (code >> shift & 3) | (high >> (sub_block / 2) & 1) << 2;
            *value = d * (f32::from(code) - 4.0);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `index` (of 8), packed in 12 bytes.
pub(in crate::load::gguf) fn scale_and_min(packed: &[u8], index: usize) -> (f32, f32) {
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
pub(super) fn q4_k(bytes: &[u8; 144], values: &mut [f32; 256]) {
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
pub(super) fn q5_k(bytes: &[u8; 176], values: &mut [f32; 256]) {
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
pub(super) fn q6_k(bytes: &[u8; 210], values: &mut [f32; 256]) {
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

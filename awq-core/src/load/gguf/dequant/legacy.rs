//! Blocks of 32 weights: the first types of ggml, one with a table of unequal steps, one with the floats of 4 bits of OCP.

use super::{FOUR_BIT_TABLE, half_at, nibble};

/// The codes of a block: low nibbles hold the first half, high nibbles the second.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 0x0f, byte >> 4);
    }
    codes
}

/// `[d, q: 16]`, `(q - 8) * d`.
pub(super) fn q4_0(bytes: &[u8; 18], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (value, code) in values.iter_mut().zip(nibbles(&bytes[2..])) {
        *value = (f32::from(code) - 8.0) * d;
    }
}

/// `[d, m, q: 16]`, `q * d + m`.
pub(super) fn q4_1(bytes: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (value, code) in values.iter_mut().zip(nibbles(&bytes[4..])) {
        *value = f32::from(code) * d + m;
    }
}

/// Code `index` of a 5-bit block: bit `index` of `high_bits` is the fifth bit.
pub(in crate::load::gguf) fn five_bits(high_bits: &[u8], codes: &[u8], index: usize) -> u8 {
    nibble(codes, index) | ((high_bits[index / 8] >> (index % 8)) & 1) << 4
}

/// `[d, high bits: 4, q: 16]`, `(q - 16) * d`.
pub(super) fn q5_0(bytes: &[u8; 22], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (index, value) in values.iter_mut().enumerate() {
        *value = (f32::from(five_bits(&bytes[2..6], &bytes[6..], index)) - 16.0) * d;
    }
}

/// `[d, m, high bits: 4, q: 16]`, `q * d + m`.
pub(super) fn q5_1(bytes: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    for (index, value) in values.iter_mut().enumerate() {
        *value = f32::from(five_bits(&bytes[4..8], &bytes[8..], index)) * d + m;
    }
}

/// `[d, q: 32 signed]`, `q * d`.
pub(super) fn q8_0(bytes: &[u8; 34], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (value, code) in values.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(code.cast_signed()) * d;
    }
}

/// `[d, q: 16]`, `table[q] * d`.
pub(super) fn iq4_nl(bytes: &[u8; 18], values: &mut [f32; 32]) {
    let d = half_at(bytes, 0);
    for (value, code) in values.iter_mut().zip(nibbles(&bytes[2..])) {
        *value = d * FOUR_BIT_TABLE[usize::from(code)];
    }
}

/// Twice the values of E2M1, which are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
const DOUBLED_E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// `[e, q: 16]`, `e2m1[q] * 2^(e - 127)`.
pub(super) fn mxfp4(bytes: &[u8; 17], values: &mut [f32; 32]) {
    let exponent = u32::from(bytes[0]);
    // 2^(e - 128), which the doubled values make up for; the two smallest are denormal.
    let d = f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 });
    for (value, code) in values.iter_mut().zip(nibbles(&bytes[1..])) {
        *value = d * DOUBLED_E2M1[usize::from(code)];
    }
}

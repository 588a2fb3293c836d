//! Blocks of 256 weights that are -1, 0 or 1 times a scale.

use super::half_at;

/// `[q: 48, q: 4, d]`: five weights a byte, four in the last bytes, as digits of base 3 after the point: `byte / 256` times a power
/// of three leaves the wanted digit in front of the point. The digits of one place stand together: 32 weights for each of the first
/// 32 bytes, then 16 for the next 16, 4 for the last 4.
pub(super) fn tq1_0(bytes: &[u8; 54], values: &mut [f32; 256]) {
    let d = half_at(bytes, 52);
    let runs = [(0..32, 5), (32..48, 5), (48..52, 4)];
    let digits = runs.into_iter().flat_map(|(run, n_digits)| {
        [1_u8, 3, 9, 27, 81].into_iter().take(n_digits).flat_map(move |power| {
            bytes[run.clone()].iter().map(move |byte| (u16::from(byte.wrapping_mul(power)) * 3) >> 8)
        })
    });
    for (value, digit) in values.iter_mut().zip(digits) {
        *value = d * (f32::from(digit) - 1.0);
    }
}

/// `[q: 64, d]`, `d * (q - 1)`: every 32 bytes hold 128 weights, the first 32 of them in the lowest bit pairs.
pub(super) fn tq2_0(bytes: &[u8; 66], values: &mut [f32; 256]) {
    let d = half_at(bytes, 64);
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes = &bytes[run / 4 * 32..][..32];
        for (value, code) in values.iter_mut().zip(codes) {
            *value = d * (f32::from(code >> (run % 4 * 2) & 3) - 1.0);
        }
    }
}

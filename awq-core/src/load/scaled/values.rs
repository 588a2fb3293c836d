//! Floats of 4 and 8 bits, and scales that are powers of two: what each byte stands for.

use std::sync::LazyLock;

/// Floats with 4 bits of exponent and 3 of mantissa, without infinities (OCP's E4M3, `float8_e4m3fn` in PyTorch).
pub(in crate::load) static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|byte| e4m3(byte as u8)));

/// Floats with 2 bits of exponent and 1 of mantissa, in the order of their codes.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xF), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// `2^(byte - 127)`; infinity for 255, which the format calls NaN.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        // The exponent of 2^-127 has no normal number.
        0 => f32::MIN_POSITIVE / 2.0,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// Codes of 4 bits, the first in the lower half of each byte.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.iter().flat_map(|byte| [usize::from(byte & 0xF), usize::from(byte >> 4)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables of OCP's specification of 8-bit floats.
    #[test]
    fn bytes_stand_for_what_the_formats_say() {
        let of = |byte: u8| E4M3[usize::from(byte)];
        assert_eq!([of(0x00), of(0x01), of(0x07), of(0x08)], [0.0, 0.001_953_125, 0.013_671_875, 0.015_625]);
        assert_eq!([of(0x38), of(0x7E), of(0xB8), of(0xFE)], [1.0, 448.0, -1.0, -448.0]);
        assert!(of(0x7F).is_nan() && of(0xFF).is_nan() && of(0x80).is_sign_negative());
        assert_eq!(E4M3.iter().filter(|value| value.is_finite()).count(), 254);
        assert_eq!([e8m0(127), e8m0(128), e8m0(1), e8m0(254)], [1.0, 2.0, 2.0_f32.powi(-126), 2.0_f32.powi(127)]);
        assert_eq!((e8m0(0), e8m0(255)), (2.0_f32.powi(-126) / 2.0, f32::INFINITY));
        assert_eq!(nibbles(&[0x21, 0xF0]).collect::<Vec<_>>(), [1, 2, 0, 15]);
    }
}

//! Codes, scales and zero points from words, in registers.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::super::units::{code_bit, n_together};

/// Codes that are made floats together: those of 8 input channels.
pub(super) const CHUNK: usize = 8;

/// Where a code lies in the words of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// The word that it lies or begins in.
    pub(super) word: usize,
    /// Shift of that word to the right, after which the code is [`Self::mask`].
    pub(super) shift: u32,
    /// Lowest bit of the code then: what is under the mask is the code times `2^at`.
    pub(super) at: u32,
    /// Bits of the code then.
    pub(super) mask: u32,
    /// Whether it has one bit in each word, of which [`scattered`] makes the code.
    pub(super) is_scattered: bool,
}

/// The place of code `i` of a unit. `in_place` leaves codes where they are as far as a float has room for them (23 bits),
/// which saves most shifts; who multiplies must then divide by `2^at`.
pub(super) const fn field(bits: usize, i: usize, in_place: bool) -> Field {
    let (word, bit) = (code_bit(bits, i) / 32, (code_bit(bits, i) % 32) as u32);
    if i >= n_together(bits) {
        return Field { word, shift: bit, at: 0, mask: (1 << bits) - 1, is_scattered: true };
    }
    let end = bit as usize + bits;
    let at = match in_place {
        true if end <= 23 => bit,
        true if end <= 32 => bit - 16,
        _ => 0,
    };
    Field { word, shift: bit - at, at, mask: ((1 << bits) - 1) << at, is_scattered: false }
}

/// A code of 3 bits of which words `first` to `first + 2` have bit `at` each; or two of them, 16 bits apart, where `mask` says so.
#[cube]
pub(super) fn scattered(
    words: &Array<u32>,
    #[comptime] first: usize,
    #[comptime] at: u32,
    #[comptime] mask: u32,
) -> u32 {
    let (a, b, c) = (words[first], words[comptime!(first + 1)], words[comptime!(first + 2)]);
    ((a >> at) & mask)
        | ((b >> comptime!(at - 1)) & comptime!(mask << 1))
        | ((c >> comptime!(at - 2)) & comptime!(mask << 2))
}

/// 2^23 as an f32. Kernels take it as an argument: an instruction takes one constant, and the mask of a code is one already.
pub(super) const MAGIC: u32 = 0x4b00_0000;

/// A whole number below 2^23 as a float, exactly: `2^23 + n` has `n` in its lowest bits. Cheaper than a conversion.
#[cube]
pub(super) fn small_float(n: u32, magic: u32) -> f32 {
    f32::reinterpret(n | magic) - 8_388_608.0f32
}

/// Scale and zero point of one group.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Params {
    pub(super) scale: f32,
    pub(super) zero: f32,
}

/// Reads them; see `units.rs` for the two forms.
#[cube]
pub(super) fn group_params(params: &Array<u32>, group: usize, #[comptime] wide: bool) -> Params {
    if comptime!(wide) {
        Params { scale: f32::reinterpret(params[2 * group]), zero: f32::reinterpret(params[2 * group + 1]) }
    } else {
        params_of(params[group])
    }
}

/// The two of one word.
#[cube]
pub(super) fn params_of(word: u32) -> Params {
    Params { scale: f32::reinterpret((word >> 1u32) & 0x7fff_e000u32), zero: small_float(word & 0x3fffu32, MAGIC) }
}

#[cfg(test)]
mod tests {
    use super::super::super::units::bit_of;
    use super::*;

    /// A field read as kernels read it.
    fn read(words: [u32; 4], field: Field) -> u32 {
        if field.is_scattered {
            return (0..3).map(|bit| (words[bit] >> field.shift & 1) << bit).sum();
        }
        (words[field.word] >> field.shift & field.mask) >> field.at
    }

    #[test]
    fn fields_are_the_codes_of_a_unit() {
        for bits in [2_usize, 3, 4] {
            let code = |i: usize| ((i as u64 * 2_654_435_761) >> 7) as u32 & ((1 << bits) - 1);
            let mut words = [0_u32; 4];
            for i in 0..32 {
                for bit in 0..bits {
                    let at = bit_of(bits, i, bit);
                    words[at / 32] |= (code(i) >> bit & 1) << (at % 32);
                }
            }
            for in_place in [false, true] {
                for i in 0..32 {
                    let field = field(bits, i, in_place);
                    assert_eq!(read(words, field), code(i), "{bits} bits, code {i}: {field:?}");
                    assert!(field.mask < 1 << 23 && (in_place || field.at == 0), "{field:?}");
                }
            }
        }
    }
}

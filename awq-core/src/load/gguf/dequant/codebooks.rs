//! Blocks of 256 weights whose codes are rows of a codebook: 8 (or 4) weights at once, most with signs of their own.
//!
//! The codebooks are facts of the format without a rule behind them. `grids.bin` holds them packed, as
//! `scripts/make-gguf-fixtures.py` takes them from PyPI's `gguf`.

use super::{FOUR_BIT_TABLE, half_at};

/// Rows of 16 bits, little-endian, one codebook after the other: 8 weights of 2 bits or 4 of 4, the first in the lowest bits.
static PACKED: &[u8; 9216] = include_bytes!("grids.bin");

/// A codebook in [`PACKED`].
struct Grid<const N_VALUES: usize> {
    /// Its first row.
    start: usize,
    /// What a packed weight stands for.
    values: [f32; N_VALUES],
}

/// Magnitudes of the 2-bit types.
const TWO_BITS: [f32; 3] = [8.0, 25.0, 43.0];
const IQ2_XXS: Grid<3> = Grid { start: 0, values: TWO_BITS };
const IQ2_XS: Grid<3> = Grid { start: 256, values: TWO_BITS };
const IQ2_S: Grid<3> = Grid { start: 768, values: TWO_BITS };
const IQ1: Grid<3> = Grid { start: 1792, values: [-1.0, 0.0, 1.0] };
const IQ3_XXS: Grid<8> = Grid { start: 3840, values: [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0] };
const IQ3_S: Grid<8> = Grid { start: 4096, values: [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0] };

impl<const N_VALUES: usize> Grid<N_VALUES> {
    /// Row `index`: as many weights as fit into 16 bits.
    fn row<const LEN: usize>(&self, index: usize) -> [f32; LEN] {
        let packed = u16_at(PACKED, 2 * (self.start + index));
        let bits = 16 / LEN;
        std::array::from_fn(|at| self.values[usize::from(packed >> (at * bits)) & ((1 << bits) - 1)])
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

/// Nibble `index`, the low one of a byte first.
fn nibble_at(bytes: &[u8], index: usize) -> f32 {
    f32::from(bytes[index / 2] >> (index % 2 * 4) & 0x0f)
}

/// Signs of eight weights, one a bit, of which seven are stored: an even number is negative.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// `1.0` or `-1.0`.
fn sign(signs: u8, bit: usize) -> f32 {
    if signs >> bit & 1 == 0 { 1.0 } else { -1.0 }
}

/// Eight weights.
fn write_eight(values: &mut [f32], d: f32, row: [f32; 8], signs: u8) {
    for (at, (value, magnitude)) in values.iter_mut().zip(row).enumerate() {
        *value = d * magnitude * sign(signs, at);
    }
}

/// Rows of 4 weights, in pairs.
fn pair(first: [f32; 4], second: [f32; 4]) -> [f32; 8] {
    std::array::from_fn(|at| if at < 4 { first[at] } else { second[at - 4] })
}

/// `[d, (rows: 4, signs and scale: 4) x 8]`: 8 sub-blocks of 32, `d * (scale + 1/2) / 4 * row * sign`. Of the 32 bits behind the rows,
/// four times 7 are signs and the highest 4 the scale.
pub(super) fn iq2_xxs(bytes: &[u8; 66], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let sub_block = &bytes[2 + index / 4 * 8..][..8];
        let packed = u32_at(sub_block, 4);
        let d = d * (0.5 + (packed >> 28) as f32) * 0.25;
        let row = usize::from(sub_block[index % 4]);
        write_eight(values, d, IQ2_XXS.row(row), even_signs(packed >> (index % 4 * 7)));
    }
}

/// `[d, rows and signs: 64, scales: 8]`: 16 sub-blocks of 16 with a scale of 4 bits; a row of 8 has 9 bits of index and 7 of signs.
pub(super) fn iq2_xs(bytes: &[u8; 74], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(bytes, 2 + 2 * index);
        let d = d * (0.5 + nibble_at(&bytes[66..], index / 2)) * 0.25;
        write_eight(values, d, IQ2_XS.row(usize::from(packed & 0x1ff)), even_signs(u32::from(packed >> 9)));
    }
}

/// `[d, rows: 32, signs: 32, high bits of rows: 8, scales: 8]`: 16 sub-blocks of 16 with a scale of 4 bits; a row of 8 has 8 + 2 bits
/// of index and 8 signs.
pub(super) fn iq2_s(bytes: &[u8; 82], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = usize::from(bytes[66 + index / 4] >> (index % 4 * 2) & 3);
        let row = usize::from(bytes[2 + index]) | high << 8;
        let d = d * (0.5 + nibble_at(&bytes[74..], index / 2)) * 0.25;
        write_eight(values, d, IQ2_S.row(row), bytes[34 + index]);
    }
}

/// `[d, rows: 64, signs and scale: 32]`: as [`iq2_xxs`] with rows of 4 and `d * (scale + 1/2) / 2`.
pub(super) fn iq3_xxs(bytes: &[u8; 98], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u32_at(bytes, 66 + index / 4 * 4);
        let d = d * (0.5 + (packed >> 28) as f32) * 0.5;
        let rows = [0, 1].map(|at| IQ3_XXS.row(usize::from(bytes[2 + 2 * index + at])));
        write_eight(values, d, pair(rows[0], rows[1]), even_signs(packed >> (index % 4 * 7)));
    }
}

/// `[d, rows: 64, high bits of rows: 8, signs: 32, scales: 4]`: 8 sub-blocks of 32 with a scale of 4 bits, `d * (2 scale + 1) * row *
/// sign`; a row of 4 has 8 + 1 bits of index.
pub(super) fn iq3_s(bytes: &[u8; 110], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let d = d * (1.0 + 2.0 * nibble_at(&bytes[106..], index / 4));
        let rows = [0, 1].map(|at| {
            let four = 2 * index + at;
            let high = usize::from(bytes[66 + four / 8] >> (four % 8) & 1);
            IQ3_S.row(usize::from(bytes[2 + four]) | high << 8)
        });
        write_eight(values, d, pair(rows[0], rows[1]), bytes[74 + index]);
    }
}

/// What the 1-bit types add to every weight of a row, up or down.
const SHIFT: f32 = 0.125;

fn write_shifted(values: &mut [f32], d: f32, row: [f32; 8], is_down: bool) {
    let shift = if is_down { -SHIFT } else { SHIFT };
    for (value, step) in values.iter_mut().zip(row) {
        *value = d * (step + shift);
    }
}

/// `[d, rows: 32, high bits, scale and shift: 16]`: 8 sub-blocks of 32, `d * (2 scale + 1) * (row ± 1/8)`. 16 bits a sub-block: 3 for
/// each of its four rows, 3 of scale, and the direction.
pub(super) fn iq1_s(bytes: &[u8; 50], values: &mut [f32; 256]) {
    let d = half_at(bytes, 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(bytes, 34 + index / 4 * 2);
        let d = d * f32::from(2 * (packed >> 12 & 7) + 1);
        let row = usize::from(bytes[2 + index]) | usize::from(packed >> (index % 4 * 3) & 7) << 8;
        write_shifted(values, d, IQ1.row(row), packed & 0x8000 != 0);
    }
}

/// `[rows: 32, high bits and shifts: 16, scales: 8]`: 16 sub-blocks of 16, each with a scale of 3 bits, four of which fill the low
/// 12 bits of a word; the 4 bits that are left in each of the four words are `d`. A row has 8 + 3 bits of index, and the direction.
pub(super) fn iq1_m(bytes: &[u8; 56], values: &mut [f32; 256]) {
    let words: [u16; 4] = std::array::from_fn(|word| u16_at(bytes, 48 + 2 * word));
    let d = words.iter().enumerate().fold(0, |d, (word, bits)| d | (bits >> 12) << (4 * word));
    let d = half_at(&d.to_le_bytes(), 0);
    for (index, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = words[index / 8] >> (index / 2 % 4 * 3) & 7;
        let high = bytes[32 + index / 2] >> (index % 2 * 4) & 0x0f;
        let row = usize::from(bytes[index]) | usize::from(high & 7) << 8;
        write_shifted(values, d * f32::from(2 * scale + 1), IQ1.row(row), high & 8 != 0);
    }
}

/// `[d, high bits of scales: 2, scales: 4, q: 128]`: 8 sub-blocks of 32 as those of IQ4_NL, with scales of 4 + 2 bits,
/// `d * (scale - 32) * table[q]`.
pub(super) fn iq4_xs(bytes: &[u8; 136], values: &mut [f32; 256]) {
    let (d, high) = (half_at(bytes, 0), u16_at(bytes, 2));
    for (sub_block, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let high = f32::from(high >> (2 * sub_block) & 3);
        let d = d * (nibble_at(&bytes[4..8], sub_block) + 16.0 * high - 32.0);
        let codes = &bytes[8 + 16 * sub_block..][..16];
        for (index, value) in values.iter_mut().enumerate() {
            *value = d * FOUR_BIT_TABLE[usize::from(super::nibble(codes, index))];
        }
    }
}

//! Codes to `u32` words and back. [`PackLayout`] names the bit order; every layout is exact and its own inverse.

use rayon::prelude::*;

use crate::grid::{Bits, Grid};
use crate::quantized::QuantizedWeight;

/// Rows that are worth a task.
const ROWS_PER_TASK: usize = 16;

/// How codes lie in `u32` words. Each row starts a new word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackLayout {
    /// A row is one string of bits, lowest first: code `i` is bits `i * b .. (i + 1) * b`, across word borders (3 bit: 32
    /// codes in 3 words, as GPTQ's checkpoints). No bit is wasted but in the last word of a row.
    Stream,
    /// Whole codes only, lowest first: `floor(32 / b)` codes a word (3 bit: 10, two bits unused; compressed-tensors).
    Whole,
}

impl PackLayout {
    /// Every layout, for tests that hold for all.
    pub const ALL: [Self; 2] = [Self::Stream, Self::Whole];

    /// Words of a row of `n` codes.
    pub fn words_per_row(self, n: usize, bits: Bits) -> usize {
        let bits = usize::from(bits.get());
        match self {
            Self::Stream => (n * bits).div_ceil(32),
            Self::Whole => n.div_ceil(32 / bits),
        }
    }

    /// Packs rows of `n_cols` codes.
    ///
    /// # Panics
    /// If a code does not fit into `bits`: quantization is wrong, and packing it would corrupt its neighbours.
    pub fn pack(self, codes: &[u8], n_cols: usize, bits: Bits) -> Vec<u32> {
        let words_per_row = self.words_per_row(n_cols, bits);
        let mut words = vec![0_u32; codes.len() / n_cols.max(1) * words_per_row];
        let rows = codes.par_chunks_exact(n_cols).zip(words.par_chunks_exact_mut(words_per_row));
        let pack_row = self.of_rows(bits).0;
        rows.with_min_len(ROWS_PER_TASK).for_each(|(row, packed)| {
            let largest = row.iter().fold(0, |largest, &code| code.max(largest));
            assert!(largest <= bits.max_code(), "code {largest} does not fit into {} bits", bits.get());
            pack_row(row, packed);
        });
        words
    }

    /// Unpacks rows of `n_cols` codes.
    pub fn unpack(self, words: &[u32], n_cols: usize, bits: Bits) -> Vec<u8> {
        let words_per_row = self.words_per_row(n_cols, bits).max(1);
        let mut codes = vec![0; words.len() / words_per_row * n_cols];
        let rows = words.par_chunks_exact(words_per_row).zip(codes.par_chunks_exact_mut(n_cols.max(1)));
        let unpack_row = self.of_rows(bits).1;
        rows.with_min_len(ROWS_PER_TASK).for_each(|(row, codes)| unpack_row(row, codes));
        codes
    }

    /// What packs a row, and what unpacks it. With as many bits as the compiler knows, all shifts are constants.
    fn of_rows(self, bits: Bits) -> (PackRow, UnpackRow) {
        match (self, bits.get()) {
            (Self::Stream, 2) => (pack_stream::<2>, unpack_stream::<2>),
            (Self::Stream, 3) => (pack_stream::<3>, unpack_stream::<3>),
            // Either layout has 8 codes a word.
            (_, 4) => (pack_nibbles, unpack_nibbles),
            (Self::Stream, 5) => (pack_stream::<5>, unpack_stream::<5>),
            (Self::Stream, 6) => (pack_stream::<6>, unpack_stream::<6>),
            (Self::Stream, 7) => (pack_stream::<7>, unpack_stream::<7>),
            (Self::Stream, _) => (pack_stream::<8>, unpack_stream::<8>),
            (Self::Whole, 2) => (pack_whole::<2>, unpack_whole::<2>),
            (Self::Whole, 3) => (pack_whole::<3>, unpack_whole::<3>),
            (Self::Whole, 5) => (pack_whole::<5>, unpack_whole::<5>),
            (Self::Whole, 6) => (pack_whole::<6>, unpack_whole::<6>),
            (Self::Whole, 7) => (pack_whole::<7>, unpack_whole::<7>),
            (Self::Whole, _) => (pack_whole::<8>, unpack_whole::<8>),
        }
    }
}

/// Codes of a row into its words, which are 0.
type PackRow = fn(&[u8], &mut [u32]);
/// Words of a row into its codes.
type UnpackRow = fn(&[u32], &mut [u8]);

/// Codes of a run that fills whole words whatever their bits, `BITS` of them.
const RUN: usize = 32;

fn pack_stream<const BITS: usize>(codes: &[u8], words: &mut [u32]) {
    for (codes, words) in codes.chunks(RUN).zip(words.chunks_mut(BITS)) {
        let mut run = [0; RUN];
        run[..codes.len()].copy_from_slice(codes);
        // One more than a run fills: nothing comes to lie there.
        let mut filled = [0_u32; 9];
        for (index, &code) in run.iter().enumerate() {
            let (word, shift) = (index * BITS / 32, index * BITS % 32);
            let shifted = u64::from(code) << shift;
            filled[word] |= shifted as u32;
            filled[word + 1] |= (shifted >> 32) as u32;
        }
        words.copy_from_slice(&filled[..words.len()]);
    }
}

fn unpack_stream<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
    for (words, codes) in words.chunks(BITS).zip(codes.chunks_mut(RUN)) {
        let mut filled = [0_u32; 9];
        filled[..words.len()].copy_from_slice(words);
        let mut run = [0; RUN];
        for (index, code) in run.iter_mut().enumerate() {
            let (word, shift) = (index * BITS / 32, index * BITS % 32);
            let window = u64::from(filled[word]) | u64::from(filled[word + 1]) << 32;
            *code = ((window >> shift) & ((1 << BITS) - 1)) as u8;
        }
        codes.copy_from_slice(&run[..codes.len()]);
    }
}

/// Bytes of one nibble each, eight at once: they move together by one nibble, two and four.
fn pack_nibbles(codes: &[u8], words: &mut [u32]) {
    for (codes, word) in codes.chunks(8).zip(words) {
        let mut bytes = [0; 8];
        bytes[..codes.len()].copy_from_slice(codes);
        let pairs = u64::from_le_bytes(bytes);
        let pairs = (pairs | pairs >> 4) & 0x00FF_00FF_00FF_00FF;
        let fours = (pairs | pairs >> 8) & 0x0000_FFFF_0000_FFFF;
        *word = (fours | fours >> 16) as u32;
    }
}

fn unpack_nibbles(words: &[u32], codes: &mut [u8]) {
    for (word, codes) in words.iter().zip(codes.chunks_mut(8)) {
        let fours = u64::from(*word);
        let fours = (fours | fours << 16) & 0x0000_FFFF_0000_FFFF;
        let pairs = (fours | fours << 8) & 0x00FF_00FF_00FF_00FF;
        let bytes = ((pairs | pairs << 4) & 0x0F0F_0F0F_0F0F_0F0F).to_le_bytes();
        codes.copy_from_slice(&bytes[..codes.len()]);
    }
}

fn pack_whole<const BITS: usize>(codes: &[u8], words: &mut [u32]) {
    for (codes, word) in codes.chunks(32 / BITS).zip(words) {
        *word = codes.iter().rev().fold(0, |word, &code| word << BITS | u32::from(code));
    }
}

fn unpack_whole<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
    for (word, codes) in words.iter().zip(codes.chunks_mut(32 / BITS)) {
        codes
            .iter_mut()
            .enumerate()
            .for_each(|(index, code)| *code = (word >> (index * BITS) & ((1 << BITS) - 1)) as u8);
    }
}

/// A [`QuantizedWeight`] at its stored size: what a sweep keeps of each cell.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeight {
    words: Vec<u32>,
    /// Everything but the codes.
    rest: QuantizedWeight,
}

impl PackedWeight {
    /// Packs the codes in [`PackLayout::Stream`].
    pub fn new(mut weight: QuantizedWeight) -> Self {
        let codes = std::mem::take(&mut weight.codes);
        Self { words: PackLayout::Stream.pack(&codes, weight.n_in, weight.grid.bits), rest: weight }
    }

    /// The grid of the weight.
    pub fn grid(&self) -> &Grid {
        &self.rest.grid
    }

    /// Stored bits of the matrix, see [`QuantizedWeight::stored_bits`].
    pub fn stored_bits(&self) -> u64 {
        self.rest.stored_bits()
    }

    /// Output and input channels.
    pub fn shape(&self) -> (usize, usize) {
        (self.rest.n_out, self.rest.n_in)
    }

    /// The weight as it was.
    pub fn unpack(&self) -> QuantizedWeight {
        let codes = PackLayout::Stream.unpack(&self.words, self.rest.n_in, self.rest.grid.bits);
        QuantizedWeight { codes, ..self.rest.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpacking_undoes_packing(bits in 2_u8..=8, n_cols in 1_usize..100, n_rows in 1_usize..4, seed in any::<u64>()) {
            let bits = Bits::new(bits).ok_or_else(|| TestCaseError::reject("bits"))?;
            let mut state = seed;
            let codes: Vec<u8> = (0..n_cols * n_rows).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8 & bits.max_code()
            }).collect();
            for layout in PackLayout::ALL {
                let words = layout.pack(&codes, n_cols, bits);
                prop_assert_eq!(words.len(), n_rows * layout.words_per_row(n_cols, bits));
                prop_assert_eq!(&layout.unpack(&words, n_cols, bits), &codes);
            }
        }
    }

    #[test]
    fn three_bit_stream_is_the_layout_of_gptq_checkpoints() {
        // Value 10 straddles the first two words: its two low bits are bits 30 and 31, its high bit is bit 0 of the next.
        let mut codes = vec![0_u8; 32];
        codes[10] = 0b101;
        let words = PackLayout::Stream.pack(&codes, 32, Bits::new(3).expect("3 is in 2..=8"));
        assert_eq!(words, [0b01 << 30, 0b1, 0]);
    }

    #[test]
    #[should_panic(expected = "code 8 does not fit into 3 bits")]
    fn a_code_out_of_range_is_not_packed() {
        PackLayout::Stream.pack(&[8], 1, Bits::new(3).expect("3 is in 2..=8"));
    }
}

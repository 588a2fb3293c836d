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
        rows.with_min_len(ROWS_PER_TASK).for_each(|(row, packed)| {
            for (i, &code) in row.iter().enumerate() {
                assert!(code <= bits.max_code(), "code {code} does not fit into {} bits", bits.get());
                let (word, shift) = self.place(i, bits);
                let shifted = u64::from(code) << shift;
                packed[word] |= shifted as u32;
                if shifted >> 32 != 0 {
                    packed[word + 1] |= (shifted >> 32) as u32;
                }
            }
        });
        words
    }

    /// Unpacks rows of `n_cols` codes.
    pub fn unpack(self, words: &[u32], n_cols: usize, bits: Bits) -> Vec<u8> {
        let words_per_row = self.words_per_row(n_cols, bits).max(1);
        let mut codes = vec![0; words.len() / words_per_row * n_cols];
        let rows = words.par_chunks_exact(words_per_row).zip(codes.par_chunks_exact_mut(n_cols.max(1)));
        rows.with_min_len(ROWS_PER_TASK).for_each(|(row, codes)| {
            for (i, code) in codes.iter_mut().enumerate() {
                let (word, shift) = self.place(i, bits);
                let next = row.get(word + 1).copied().unwrap_or(0);
                let window = u64::from(row[word]) | u64::from(next) << 32;
                *code = (window >> shift) as u8 & bits.max_code();
            }
        });
        codes
    }

    /// Word and bit where code `i` of a row starts.
    #[inline]
    fn place(self, i: usize, bits: Bits) -> (usize, u32) {
        let bits = usize::from(bits.get());
        match self {
            Self::Stream => (i * bits / 32, (i * bits % 32) as u32),
            Self::Whole => (i / (32 / bits), (i % (32 / bits) * bits) as u32),
        }
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

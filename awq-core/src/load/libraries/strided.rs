//! Codes that are packed along the rows of a matrix: a word holds the codes of rows that are `n_words` apart.

use rayon::prelude::*;

/// How codes lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strided {
    /// Bits of a code.
    pub(super) bits: usize,
    /// Bytes of a word, 1 or 4.
    pub(super) word_bytes: usize,
    /// Codes of a word.
    pub(super) per_word: usize,
    /// Whether the first of them is in the highest of the bits that are used.
    pub(super) is_high_first: bool,
}

impl Strided {
    /// Bytes of a matrix of codes.
    pub(super) fn n_bytes(self, [n_rows, n_columns]: [usize; 2]) -> usize {
        n_rows.div_ceil(self.per_word).saturating_mul(n_columns).saturating_mul(self.word_bytes)
    }

    /// `value` of each code, its row and its column, row-major. `bytes` are as many as [`Self::n_bytes`] says.
    pub(super) fn map<T: Copy + Default + Send>(
        self,
        bytes: &[u8],
        [n_rows, n_columns]: [usize; 2],
        value: impl Fn(u32, usize, usize) -> T + Sync,
    ) -> Vec<T> {
        let (step, mask) = (n_rows.div_ceil(self.per_word).max(1), (1_u32 << self.bits) - 1);
        let mut values = vec![T::default(); n_rows * n_columns];
        values.par_chunks_mut(n_columns.max(1)).enumerate().for_each(|(row, values)| {
            let (of_word, in_word) = (row % step, row / step);
            let shift = self.bits * if self.is_high_first { self.per_word - 1 - in_word } else { in_word };
            let words = bytes[of_word * n_columns * self.word_bytes..].chunks_exact(self.word_bytes);
            for (column, (to, word)) in values.iter_mut().zip(words).enumerate() {
                let word = word.iter().rev().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte));
                *to = value((word >> shift) & mask, row, column);
            }
        });
        values
    }

    /// The codes, row-major; of 8 bits at most.
    pub(super) fn codes(self, bytes: &[u8], matrix: [usize; 2]) -> Vec<u8> {
        self.map(bytes, matrix, |code, _, _| code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five rows of two codes: rows 0 to 2 in one half of each byte, rows 3 and 4 in the other.
    #[test]
    fn rows_that_are_words_apart_share_a_word() {
        let bytes = [0x61, 0x72, 0x83, 0x94, 0x05, 0x06];
        let low = Strided { bits: 4, word_bytes: 1, per_word: 2, is_high_first: false };
        assert_eq!(low.n_bytes([5, 2]), 6);
        let codes = low.map(&bytes, [5, 2], |code, _, _| code as f32);
        assert_eq!(codes, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(low.codes(&bytes, [5, 2]), [1, 2, 3, 4, 5, 6, 6, 7, 8, 9]);
        let high = Strided { is_high_first: true, ..low };
        let codes = high.map(&bytes, [5, 2], |code, _, _| code as f32);
        assert_eq!(codes, [6.0, 7.0, 8.0, 9.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn ten_codes_of_three_bits_leave_two_bits_of_a_word() {
        let words: u32 = (0..10).fold(0, |word, code| (word << 3) | (code % 8));
        let three = Strided { bits: 3, word_bytes: 4, per_word: 10, is_high_first: true };
        let codes = three.map(&words.to_le_bytes(), [10, 1], |code, row, _| code as f32 + 100.0 * row as f32);
        assert_eq!(codes, (0..10).map(|row| (row % 8) as f32 + 100.0 * row as f32).collect::<Vec<_>>());
    }
}

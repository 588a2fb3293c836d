//! ggml's storage types: ids, names, and how many bytes hold how many weights.

use std::fmt;

use crate::arithmetic::FloatType;

/// A storage type that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // Names of ggml.
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    I8,
    I16,
    I32,
    I64,
    F64,
    Iq1M,
    Bf16,
    Tq1_0,
    Tq2_0,
    Mxfp4,
}

/// What is known of a type.
struct Row {
    ggml_type: GgmlType,
    /// Its id in files.
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
    /// Weights that share a scale: a block has scales of its own for its parts. `None` of plain numbers.
    group_size: Option<usize>,
}

const fn plain(ggml_type: GgmlType, id: u32, name: &'static str, bytes: usize) -> Row {
    Row { ggml_type, id, name, block_len: 1, block_bytes: bytes, group_size: None }
}

/// A type of blocks of 32.
const fn small(ggml_type: GgmlType, id: u32, name: &'static str, block_bytes: usize) -> Row {
    Row { ggml_type, id, name, block_len: 32, block_bytes, group_size: Some(32) }
}

/// A type of blocks of 256.
const fn large(ggml_type: GgmlType, id: u32, name: &'static str, block_bytes: usize, group_size: usize) -> Row {
    Row { ggml_type, id, name, block_len: 256, block_bytes, group_size: Some(group_size) }
}

/// Every type, by id.
const TYPES: [Row; 30] = [
    plain(GgmlType::F32, 0, "F32", 4),
    plain(GgmlType::F16, 1, "F16", 2),
    small(GgmlType::Q4_0, 2, "Q4_0", 18),
    small(GgmlType::Q4_1, 3, "Q4_1", 20),
    small(GgmlType::Q5_0, 6, "Q5_0", 22),
    small(GgmlType::Q5_1, 7, "Q5_1", 24),
    small(GgmlType::Q8_0, 8, "Q8_0", 34),
    large(GgmlType::Q2K, 10, "Q2_K", 84, 16),
    large(GgmlType::Q3K, 11, "Q3_K", 110, 16),
    large(GgmlType::Q4K, 12, "Q4_K", 144, 32),
    large(GgmlType::Q5K, 13, "Q5_K", 176, 32),
    large(GgmlType::Q6K, 14, "Q6_K", 210, 16),
    large(GgmlType::Iq2Xxs, 16, "IQ2_XXS", 66, 32),
    large(GgmlType::Iq2Xs, 17, "IQ2_XS", 74, 16),
    large(GgmlType::Iq3Xxs, 18, "IQ3_XXS", 98, 32),
    large(GgmlType::Iq1S, 19, "IQ1_S", 50, 32),
    small(GgmlType::Iq4Nl, 20, "IQ4_NL", 18),
    large(GgmlType::Iq3S, 21, "IQ3_S", 110, 32),
    large(GgmlType::Iq2S, 22, "IQ2_S", 82, 16),
    large(GgmlType::Iq4Xs, 23, "IQ4_XS", 136, 32),
    plain(GgmlType::I8, 24, "I8", 1),
    plain(GgmlType::I16, 25, "I16", 2),
    plain(GgmlType::I32, 26, "I32", 4),
    plain(GgmlType::I64, 27, "I64", 8),
    plain(GgmlType::F64, 28, "F64", 8),
    large(GgmlType::Iq1M, 29, "IQ1_M", 56, 16),
    plain(GgmlType::Bf16, 30, "BF16", 2),
    large(GgmlType::Tq1_0, 34, "TQ1_0", 54, 256),
    large(GgmlType::Tq2_0, 35, "TQ2_0", 66, 256),
    small(GgmlType::Mxfp4, 39, "MXFP4", 17),
];

/// Types that this reader does not convert, by their ids in `ggml.h`: those of activations (`Q8_1`, `Q8_K`), which no file has, those
/// that were removed, and the newest.
const OTHER_TYPES: [(u32, &str); 13] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    // Its values are to be multiplied by those of a tensor beside it.
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The name of any type of ggml; of an id that is none of them, the id.
pub(crate) fn type_name(id: u32) -> String {
    let known = TYPES.iter().map(|row| (row.id, row.name)).chain(OTHER_TYPES);
    let name = known.into_iter().find(|(known, _)| *known == id).map(|(_, name)| name.to_owned());
    name.unwrap_or_else(|| format!("ggml type {id}, which has no name"))
}

impl GgmlType {
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.id == id).map(|row| row.ggml_type)
    }

    /// Its id in files.
    pub(crate) fn id(self) -> u32 {
        self.row().id
    }

    /// As ggml spells it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The type of its numbers, where these are floats that model files of every kind have.
    pub(crate) fn float(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::Bf16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// Bytes of so many weights, a multiple of the block's length.
    pub fn bytes_of(self, n_weights: usize) -> usize {
        n_weights / self.block_len() * self.block_bytes()
    }

    /// The names of all types, for messages.
    pub(crate) fn known() -> String {
        TYPES.map(|row| row.name).join(", ")
    }

    /// Elements in one block.
    pub(crate) fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes of one block.
    pub(crate) fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Elements that share a scale; `None` of plain numbers.
    pub(crate) fn group_size(self) -> Option<usize> {
        self.row().group_size
    }

    /// Stored bits of an element, with its share of scales and minima.
    pub(crate) fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }

    /// Whether elements are plain integers, as those of buffers are.
    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    fn row(self) -> &'static Row {
        // The table has a row for each variant (a test holds it), so the fallback is never taken.
        TYPES.iter().find(|row| row.ggml_type == self).unwrap_or(&TYPES[0])
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_row_in_the_table() {
        for row in &TYPES {
            assert_eq!(GgmlType::from_id(row.id), Some(row.ggml_type));
            assert_eq!(row.ggml_type.row().id, row.id);
        }
        assert!((0..=42).all(|id| !type_name(id).contains("ggml type")));
        assert_eq!((type_name(4), type_name(43)), ("Q4_2".into(), "ggml type 43, which has no name".into()));
    }

    /// As llama.cpp's table of types has them: codes, scales and minima.
    #[test]
    fn bits_of_a_weight_count_scales_and_minima() {
        for (ggml_type, bits_per_weight, group_size) in [
            (GgmlType::F32, 32.0, None),
            (GgmlType::F16, 16.0, None),
            (GgmlType::Bf16, 16.0, None),
            (GgmlType::Q4_0, 4.5, Some(32)),
            (GgmlType::Q4_1, 5.0, Some(32)),
            (GgmlType::Q5_0, 5.5, Some(32)),
            (GgmlType::Q5_1, 6.0, Some(32)),
            (GgmlType::Q8_0, 8.5, Some(32)),
            (GgmlType::Q2K, 2.625, Some(16)),
            (GgmlType::Q3K, 3.4375, Some(16)),
            (GgmlType::Q4K, 4.5, Some(32)),
            (GgmlType::Q5K, 5.5, Some(32)),
            (GgmlType::Q6K, 6.5625, Some(16)),
            (GgmlType::Iq1S, 1.5625, Some(32)),
            (GgmlType::Iq1M, 1.75, Some(16)),
            (GgmlType::Iq2Xxs, 2.0625, Some(32)),
            (GgmlType::Iq2Xs, 2.3125, Some(16)),
            (GgmlType::Iq2S, 2.5625, Some(16)),
            (GgmlType::Iq3Xxs, 3.0625, Some(32)),
            (GgmlType::Iq3S, 3.4375, Some(32)),
            (GgmlType::Iq4Nl, 4.5, Some(32)),
            (GgmlType::Iq4Xs, 4.25, Some(32)),
            (GgmlType::Tq1_0, 1.6875, Some(256)),
            (GgmlType::Tq2_0, 2.0625, Some(256)),
            (GgmlType::Mxfp4, 4.25, Some(32)),
        ] {
            assert_eq!(
                (ggml_type.bits_per_weight(), ggml_type.group_size()),
                (bits_per_weight, group_size),
                "{ggml_type}"
            );
        }
    }
}

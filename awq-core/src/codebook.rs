//! Codebooks: tables of values that codes stand for, where these are not spaced evenly.
//!
//! A weight is restored as `values[code] * scale`. A codebook is an entry of [`Codebook::facts`]: its values, what its scale
//! makes of a group's largest magnitude, and where a weight goes that lies in the middle of two values. With the type of its
//! scales ([`crate::grid::ScaleDtype`]) and the size of its groups it is a format: NF4 is [`Codebook::Nf4`] with f32 scales and
//! groups of 64, MXFP4 is [`Codebook::E2m1`] with scales that are powers of two and groups of 32, NVFP4 the same with scales in e4m3
//! and groups of 16. [`Codebook::Ternary`] with groups of 256 has the codes of llama.cpp's TQ1_0 and TQ2_0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::grid::Bits;

/// A table of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codebook {
    /// NormalFloat4 (QLoRA, arXiv 2305.14314): 16 quantiles of the normal distribution from -1 to 1, as bitsandbytes has them.
    Nf4,
    /// 4-bit floats with 2 bits of exponent and 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (OCP
    /// Microscaling Formats 1.0; there 0 has two codes).
    E2m1,
    /// -1, 0 and 1. The scale is the largest magnitude, as in llama.cpp's TQ1_0 and TQ2_0: plain rounding makes 0 of all that is smaller
    /// than half of it.
    Ternary,
}

/// What a codebook is.
#[derive(Debug)]
pub struct CodebookFacts {
    /// Its name in files.
    pub key: &'static str,
    /// Its name in labels.
    pub name: &'static str,
    /// Its values, ascending: code `i` stands for `values[i]`.
    pub values: &'static [f32],
    /// The middles of neighbouring values.
    bounds: &'static [f32],
    /// Where a weight goes that lies on a bound.
    ties: Ties,
    /// The largest magnitude of a group divided by its scale, but for scales in e4m3: these make the largest value of it.
    pub unit: f32,
    /// How a weight is brought to the unit of the table.
    steps: Steps,
}

#[derive(Clone, Copy, Debug)]
enum Steps {
    /// By the reciprocal of the scale (bitsandbytes, llama.cpp).
    Reciprocal,
    /// By division (compressed-tensors); the same for powers of two.
    Quotient,
}

#[derive(Clone, Copy, Debug)]
enum Ties {
    /// To the smaller value (bitsandbytes).
    Low,
    /// Away from the code that means 0 (llama.cpp).
    Away { zero: usize },
    /// To the value whose mantissa is even, which is every second one from `zero`, the code that means 0, on.
    Even { zero: usize },
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const E2M1: [f32; 15] = [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

const fn middles<const N: usize, const M: usize>(values: &[f32; N]) -> [f32; M] {
    let mut middles = [0.0; M];
    let mut i = 0;
    while i < M {
        middles[i] = (values[i] + values[i + 1]) / 2.0;
        i += 1;
    }
    middles
}

const NF4_FACTS: CodebookFacts = CodebookFacts {
    key: "nf4",
    name: "NF4",
    values: &NF4,
    bounds: &middles::<16, 15>(&NF4),
    ties: Ties::Low,
    unit: 1.0,
    steps: Steps::Reciprocal,
};

/// The scale of OCP's conversion is the power of two below the largest magnitude over the power of two below 6.
const E2M1_FACTS: CodebookFacts = CodebookFacts {
    key: "e2m1",
    name: "E2M1",
    values: &E2M1,
    bounds: &middles::<15, 14>(&E2M1),
    ties: Ties::Even { zero: 7 },
    unit: 4.0,
    steps: Steps::Quotient,
};

const TERNARY: [f32; 3] = [-1.0, 0.0, 1.0];

const TERNARY_FACTS: CodebookFacts = CodebookFacts {
    key: "ternary",
    name: "ternary",
    values: &TERNARY,
    bounds: &middles::<3, 2>(&TERNARY),
    ties: Ties::Away { zero: 1 },
    unit: 1.0,
    steps: Steps::Reciprocal,
};

/// The smallest scale that weights are divided by (bitsandbytes' constant): a group of zeros has none.
const SMALLEST_SCALE: f32 = 1e-38;

impl Codebook {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Nf4, Self::E2m1, Self::Ternary];

    /// The one of this key.
    pub fn named(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|book| book.facts().key == key)
    }

    /// What it is.
    pub const fn facts(self) -> &'static CodebookFacts {
        match self {
            Self::Nf4 => &NF4_FACTS,
            Self::E2m1 => &E2M1_FACTS,
            Self::Ternary => &TERNARY_FACTS,
        }
    }

    /// Bits of a code.
    pub const fn bits(self) -> Bits {
        let n_values = self.facts().values.len();
        let bits = usize::BITS - (n_values - 1).leading_zeros();
        Bits::new(bits as u8).expect("a table has 3 to 256 values")
    }

    /// The largest value.
    pub(crate) const fn largest(self) -> f32 {
        let values = self.facts().values;
        values[values.len() - 1]
    }

    /// The value of a code; that of the last for a code beyond the table.
    #[inline]
    pub fn value(self, code: u8) -> f32 {
        let values = self.facts().values;
        values[usize::from(code).min(values.len() - 1)]
    }

    /// The code nearest to a weight in a group of this scale.
    #[inline]
    pub fn nearest(self, weight: f32, scale: f32) -> u8 {
        let facts = self.facts();
        let scale = scale.max(SMALLEST_SCALE);
        let scaled = match facts.steps {
            Steps::Reciprocal => weight * (1.0 / scale),
            Steps::Quotient => weight / scale,
        };
        let code = facts.bounds.iter().filter(|bound| **bound < scaled).count();
        let on_bound = facts.bounds.get(code) == Some(&scaled);
        match facts.ties {
            Ties::Even { zero } if on_bound && code.abs_diff(zero) % 2 == 1 => code as u8 + 1,
            Ties::Away { zero } if on_bound && code >= zero => code as u8 + 1,
            Ties::Low | Ties::Even { .. } | Ties::Away { .. } => code as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tables_are_sorted_and_hold_zero() {
        for book in Codebook::ALL {
            let facts = book.facts();
            assert!(facts.values.is_sorted_by(|a, b| a < b), "{book:?}");
            assert!(facts.values.contains(&0.0), "{book:?}: a group of zeros must stay zeros");
            assert_eq!(facts.bounds.len() + 1, facts.values.len(), "{book:?}");
            assert!(facts.values.len() <= usize::from(book.bits().max_code()) + 1, "{book:?}");
            assert!(facts.values.len() > usize::from(book.bits().max_code()) / 2 + 1, "{book:?}: a bit too many");
        }
    }

    #[test]
    fn keys_are_those_of_files() {
        for book in Codebook::ALL {
            assert_eq!(serde_json::to_value(book).unwrap(), book.facts().key);
            assert_eq!(Codebook::named(book.facts().key), Some(book));
        }
        assert_eq!(Codebook::named("nf"), None);
    }

    #[test]
    fn a_value_is_its_own_code() {
        for book in Codebook::ALL {
            for (code, value) in book.facts().values.iter().enumerate() {
                assert_eq!(usize::from(book.nearest(value * 0.5, 0.5)), code, "{book:?}");
                assert_eq!(book.value(code as u8), *value);
            }
        }
    }

    /// By hand, from the bits of the format: a tie goes to the neighbour whose mantissa bit is 0.
    #[test]
    fn ties_of_4_bit_floats_go_to_the_even_mantissa() {
        let rounded = |x: f32| Codebook::E2m1.value(Codebook::E2m1.nearest(x, 1.0));
        let ties = [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)];
        for (x, expected) in ties {
            assert_eq!((rounded(x), rounded(-x)), (expected, -expected), "{x}");
        }
        assert_eq!((rounded(100.0), rounded(-100.0)), (6.0, -6.0));
    }

    #[test]
    fn ties_of_nf4_go_to_the_smaller_value() {
        for pair in NF4.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            assert_eq!(Codebook::Nf4.value(Codebook::Nf4.nearest(middle, 1.0)), pair[0]);
            assert_eq!(Codebook::Nf4.value(Codebook::Nf4.nearest(middle.next_up(), 1.0)), pair[1]);
        }
    }

    proptest! {
        #[test]
        fn no_value_is_nearer(weight in -10.0_f32..10.0, scale in 0.01_f32..4.0) {
            for book in Codebook::ALL {
                let scaled = weight * (1.0 / scale);
                let distance = |value: f32| (value - scaled).abs();
                let found = distance(book.value(book.nearest(weight, scale)));
                let least = book.facts().values.iter().map(|value| distance(*value)).fold(f32::INFINITY, f32::min);
                prop_assert!(found <= least * (1.0 + 1e-6), "{:?}: {} at {}", book, weight, scale);
            }
        }
    }
}

//! [`Alibi`]: the biases that models have in the place of positions.

use crate::backend::{SlopeBias, Slopes};

/// Attention with linear biases (Press et al. 2022): `-slope * distance` is added to the scores of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alibi {
    /// Slopes `2^(-8 i / n)` of `n` heads; where `n` is no power of two, those of the power below, then every other one of the
    /// power above (BLOOM).
    PowerBelow,
    /// Slopes `2^(-max i / n)`; where `n` is no power of two, every other one of the power above, from the second on and then from the
    /// first on (MPT).
    PowerAbove {
        /// The largest exponent.
        max: f64,
    },
    /// The slopes of BLOOM, rounded to bf16 as their products with positions are, and added before scores are divided by the root of
    /// the head width (Falcon).
    Bf16,
}

impl Alibi {
    /// What it adds to the scores of `n_heads` heads of `head_dim` channels.
    pub fn biases(self, n_heads: usize, head_dim: usize) -> Slopes {
        let bias = match self {
            Self::PowerBelow | Self::PowerAbove { .. } => SlopeBias::Distance,
            Self::Bf16 => SlopeBias::Bf16Position { divisor: (head_dim as f32).sqrt() },
        };
        Slopes { of_heads: self.slopes(n_heads), bias }
    }

    /// The slope of each head.
    pub fn slopes(self, n_heads: usize) -> Vec<f32> {
        let slopes = |n: usize, max: f64| (1..=n).map(move |i| (-max * i as f64 / n as f64).exp2() as f32);
        let above = n_heads.next_power_of_two();
        match self {
            Self::PowerBelow | Self::Bf16 if above == n_heads => slopes(above, 8.0).collect(),
            Self::PowerBelow | Self::Bf16 => {
                slopes(above / 2, 8.0).chain(slopes(above, 8.0).step_by(2)).take(n_heads).collect()
            }
            Self::PowerAbove { max } if above == n_heads => slopes(above, max).collect(),
            Self::PowerAbove { max } => {
                slopes(above, max).skip(1).step_by(2).chain(slopes(above, max).step_by(2)).take(n_heads).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right values: `build_alibi_tensor` of BLOOM and `build_mpt_alibi_tensor` of transformers 5.24.0.
    #[test]
    fn slopes_are_those_of_transformers() {
        let below = Alibi::PowerBelow.slopes(6);
        let above = Alibi::PowerAbove { max: 8.0 }.slopes(6);
        for (found, expected) in below.iter().zip([0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]) {
            assert!((found - expected).abs() < 1e-7, "{below:?}");
        }
        for (found, expected) in above.iter().zip([0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]) {
            assert!((found - expected).abs() < 1e-7, "{above:?}");
        }
        let sixteen = Alibi::PowerBelow.slopes(16);
        assert!(
            (sixteen[0] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-7 && (sixteen[15] - 0.003_906_25).abs() < 1e-9
        );
        assert_eq!(Alibi::PowerAbove { max: 4.0 }.slopes(4), [0.5, 0.25, 0.125, 0.0625]);
    }

    /// Right values: `build_alibi_tensor` of Falcon in transformers 5.24.0, for six heads. Positions from 257 on are rounded.
    #[test]
    fn biases_of_falcon_are_rounded_as_those_of_transformers() {
        let biases = Alibi::Bf16.biases(6, 4);
        for (head, expected) in [
            (0, [0.25, 0.75, 64.0, 75.0, 250.0]),
            (4, [0.5, 1.5, 128.0, 150.0, 500.0]),
            (5, [0.125, 0.375, 32.0, 37.5, 125.0]),
        ] {
            let of_keys = biases.of_keys(head, 0..1000);
            assert_eq!([1, 3, 257, 300, 999].map(|position| 2.0 * of_keys[position]), expected, "head {head}");
        }
        // A part of the keys is a part of the biases.
        assert_eq!(biases.of_keys(2, 300..310), biases.of_keys(2, 0..1000)[300..310]);
    }
}

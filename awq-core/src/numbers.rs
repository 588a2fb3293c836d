//! Types of numbers: one table of them, [`Number`], and what each is used for.
//!
//! | what | type | may be |
//! |---|---|---|
//! | a scale, or a kept weight, is stored as | [`crate::grid::ScaleDtype`] | f16, f32, e8m0, e4m3 |
//! | weights and activations in a GPU's memory, and in files, are stored as | [`crate::arithmetic::FloatType`] | f32, f16, bf16 |
//! | a Hessian is summed and factored in | [`crate::method::Precision`] | f32, f64 |
//!
//! Each of these is an enum of its own, so that a configuration cannot ask for what has no meaning; bits, name and rounding come
//! from the table. Sums of matrix products are f32, losses f64. What becomes of their inputs ([`crate::arithmetic::Arithmetic`]) may be more
//! than one number of a type, and is no type of this table. What kernels make of activations
//! ([`crate::kernel::Activations`]) are integers with a scale for each group, and no type of this table.

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision: 10 bits of mantissa, 6e-8 to 65504.
    F16,
    /// 7 bits of mantissa and the range of f32.
    Bf16,
    /// A power of two from 2^-127 to 2^127 (OCP Microscaling Formats).
    E8m0,
    /// 3 bits of mantissa, without infinities: 2^-9 to 448 (OCP 8-bit floating point).
    E4m3,
}

impl Number {
    /// Every one.
    pub const ALL: [Self; 6] = [Self::F64, Self::F32, Self::F16, Self::Bf16, Self::E8m0, Self::E4m3];

    /// Its name in configurations and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E8m0 => "e8m0",
            Self::E4m3 => "e4m3",
        }
    }

    /// Bits of one number.
    pub const fn bits(self) -> u32 {
        match self {
            Self::F64 => 64,
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E8m0 | Self::E4m3 => 8,
        }
    }

    /// What is stored for `x`, as f32: the nearest number, half to even, of e4m3 at most 448; of e8m0 the largest that is not above `x`.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F64 | Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::E8m0 => power_of_two_below(x),
            Self::E4m3 => nearest_e4m3(x),
        }
    }
}

/// The largest power of two from 2^-127 to 2^127 that is not above `x`, and the smallest for what lies below.
fn power_of_two_below(x: f32) -> f32 {
    const SMALLEST: f32 = f32::MIN_POSITIVE / 2.0;
    // The mantissa is cut off; below 2^-126 there is no exponent to keep.
    let power = f32::from_bits(x.to_bits() & 0x7f80_0000);
    if power >= f32::MIN_POSITIVE { power } else { SMALLEST }
}

fn nearest_e4m3(x: f32) -> f32 {
    /// Below it numbers are as far apart as at it.
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    let magnitude = x.abs().clamp(0.0, 448.0);
    let power = f32::from_bits(magnitude.max(SMALLEST_NORMAL).to_bits() & 0x7f80_0000);
    let step = power / 8.0;
    if x.is_nan() { x } else { (magnitude / step).round_ties_even() * step * x.signum() }
}

/// Gives an enum of some types of the table its method `number`.
macro_rules! of_table {
    ($role:ty: $($variant:ident),+) => {
        impl $role {
            /// Its entry in the table of types.
            pub const fn number(self) -> $crate::numbers::Number {
                match self {
                    $(Self::$variant => $crate::numbers::Number::$variant,)+
                }
            }
        }
    };
}

pub(crate) use of_table;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::arithmetic::FloatType;
    use crate::grid::ScaleDtype;
    use crate::method::Precision;

    #[test]
    fn names_are_those_of_configurations() {
        let name = |value: serde_json::Value| value.as_str().unwrap().to_owned();
        let check = |number: Number, value| assert_eq!(number.name(), name(value));
        for role in [ScaleDtype::F16, ScaleDtype::F32, ScaleDtype::E8m0, ScaleDtype::E4m3] {
            check(role.number(), serde_json::to_value(role).unwrap());
        }
        for role in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            check(role.number(), serde_json::to_value(role).unwrap());
        }
        for role in [Precision::F32, Precision::F64] {
            check(role.number(), serde_json::to_value(role).unwrap());
        }
    }

    #[test]
    fn powers_of_two_are_cut_and_not_rounded() {
        let cut = |x| Number::E8m0.round(x);
        assert_eq!((cut(1.0), cut(1.99), cut(0.75), cut(1e30)), (1.0, 1.0, 0.5, 2.0_f32.powi(99)));
        assert_eq!((cut(f32::MIN_POSITIVE), cut(0.0), cut(1e-45)), (2.0_f32.powi(-126), 5.877_472e-39, 5.877_472e-39));
    }

    /// By hand, from the bits of the format.
    #[test]
    fn small_floats_are_rounded_half_to_even_and_end_at_448() {
        let near = |x| Number::E4m3.round(x);
        assert_eq!((near(1.0), near(1.062_5), near(1.187_5), near(1.1)), (1.0, 1.0, 1.25, 1.125));
        assert_eq!((near(448.0), near(464.1), near(1e9), near(-500.0)), (448.0, 448.0, 448.0, -448.0));
        let smallest = 1.0 / 512.0;
        assert_eq!(
            (near(smallest), near(0.4 * smallest), near(0.5 * smallest), near(1.5 * smallest)),
            (smallest, 0.0, 0.0, 2.0 * smallest)
        );
        assert!(near(f32::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn rounding_keeps_order_and_changes_nothing_twice(a in 1e-6_f32..1e4, b in 1e-6_f32..1e4) {
            for number in Number::ALL {
                let (low, high) = (number.round(a.min(b)), number.round(a.max(b)));
                prop_assert!(low <= high, "{:?}", number);
                prop_assert_eq!(number.round(low), low);
            }
        }
    }
}

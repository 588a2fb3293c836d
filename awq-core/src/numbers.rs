//! Types of numbers: one table of them, [`Number`], and what each is used for.
//!
//! | what | type | may be |
//! |---|---|---|
//! | a scale, or a kept weight, is stored as | [`crate::grid::ScaleDtype`] | f16, f32, e8m0 |
//! | weights and activations in a GPU's memory, and in files, are stored as | [`crate::arithmetic::FloatType`] | f32, f16, bf16 |
//! | inputs of a matrix product are multiplied as | [`crate::arithmetic::Arithmetic`] | f32, bf16 |
//! | a Hessian is summed and factored in | [`crate::method::Precision`] | f32, f64 |
//!
//! Each of these is an enum of its own, so that a configuration cannot ask for what has no meaning; bits, name and rounding come
//! from the table. Sums of matrix products are f32, losses f64. What kernels make of activations
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
}

impl Number {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::F64, Self::F32, Self::F16, Self::Bf16, Self::E8m0];

    /// Its name in configurations and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E8m0 => "e8m0",
        }
    }

    /// Bits of one number.
    pub const fn bits(self) -> u32 {
        match self {
            Self::F64 => 64,
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E8m0 => 8,
        }
    }

    /// What is stored for `x`, as f32: the nearest number, half to even; of e8m0 the largest that is not above `x`.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F64 | Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::E8m0 => power_of_two_below(x),
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
    use crate::arithmetic::{Arithmetic, FloatType};
    use crate::grid::ScaleDtype;
    use crate::method::Precision;

    #[test]
    fn names_are_those_of_configurations() {
        let name = |value: serde_json::Value| value.as_str().unwrap().to_owned();
        let check = |number: Number, value| assert_eq!(number.name(), name(value));
        for role in [ScaleDtype::F16, ScaleDtype::F32, ScaleDtype::E8m0] {
            check(role.number(), serde_json::to_value(role).unwrap());
        }
        for role in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            check(role.number(), serde_json::to_value(role).unwrap());
        }
        for role in [Arithmetic::F32, Arithmetic::Bf16] {
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

//! Powers as straight-line arithmetic that compilers vectorise; libm's are a call for every number.

/// `x^p` for finite `x >= 0` and `|p| <= 1`, off by at most 1e-14 of it for `x` of 1e-30 to 1e30. Of 0, and of what is too small to
/// have all of its digits, a number as large (or small) as befits about 1e-308.
#[inline(always)]
pub(super) fn power(x: f64, p: f64) -> f64 {
    exp2(p * log2(x))
}

#[inline(always)]
fn log2(x: f64) -> f64 {
    /// Bits of the square root of one half: what mantissas are brought above, and below its double.
    const SQRT_HALF: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    const ONE: u64 = 1.0_f64.to_bits();
    /// Its low bits count from 0 on.
    const TWO_TO_52: f64 = 4_503_599_627_370_496.0;
    let bits = x.to_bits();
    let exponent = bits.wrapping_add(ONE - SQRT_HALF) >> 52;
    let mantissa = f64::from_bits(bits.wrapping_sub(exponent.wrapping_sub(1023) << 52));
    let exponent = f64::from_bits(TWO_TO_52.to_bits() | exponent) - (TWO_TO_52 + 1023.0);
    // ln m = 2 (s + s^3 / 3 + s^5 / 5 + ..), |s| < 0.172: the first term left out is below 2^-58.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let p = 1.0 / 21.0;
    let p = p * z + 1.0 / 19.0;
    let p = p * z + 1.0 / 17.0;
    let p = p * z + 1.0 / 15.0;
    let p = p * z + 1.0 / 13.0;
    let p = p * z + 1.0 / 11.0;
    let p = p * z + 1.0 / 9.0;
    let p = p * z + 1.0 / 7.0;
    let p = p * z + 1.0 / 5.0;
    let p = p * z + 1.0 / 3.0;
    let p = p * z + 1.0;
    exponent + 2.0 * std::f64::consts::LOG2_E * s * p
}

#[inline(always)]
fn exp2(x: f64) -> f64 {
    /// Adding 1.5 * 2^52 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = x.clamp(-1022.0, 1023.0);
    let shifted = x + ROUND;
    let r = (x - (shifted - ROUND)) * std::f64::consts::LN_2;
    // Taylor coefficients of e^r, |r| <= ln(2)/2: the first term left out is below 2^-57.
    let p = 1.0 / 6_227_020_800.0;
    let p = p * r + 1.0 / 479_001_600.0;
    let p = p * r + 1.0 / 39_916_800.0;
    let p = p * r + 1.0 / 3_628_800.0;
    let p = p * r + 1.0 / 362_880.0;
    let p = p * r + 1.0 / 40_320.0;
    let p = p * r + 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::power;

    #[test]
    fn agrees_with_libm() {
        for p in [-0.3, -0.99, -0.001, 0.0, 0.7, 1.0] {
            let mut x = 1e-30_f64;
            while x < 1e30 {
                let exact = x.powf(p);
                let relative = (power(x, p) - exact).abs() / exact;
                assert!(relative < 1e-14, "{x}^{p} is off by {relative:e}");
                x *= 1.003_1;
            }
        }
        for p in [-0.3, 0.7] {
            assert_eq!(power(1.0, p), 1.0);
        }
    }

    #[test]
    fn negative_powers_of_nothing_are_beyond_all_weights() {
        for x in [0.0, 1e-310, f64::MIN_POSITIVE] {
            assert!(power(x, -0.3) > 1e90 && power(x, -0.3).is_finite(), "{x}");
        }
        assert!(power(0.0, 0.7) < 1e-200);
    }
}

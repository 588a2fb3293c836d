//! `exp` as straight-line arithmetic that compilers vectorise; libm's is a call for every element.

/// `e^x` within 2 ulp for `x` in -87 ..= 88; smaller arguments give a value below 1.3e-38, `-inf` gives about that too.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 split in two so that `n * LN2_HIGH` is exact for |n| < 2^9.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor coefficients of e^r, |r| <= ln(2)/2: the first term left out is below 2^-27.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let power = f32::from_bits(((shifted.to_bits().wrapping_add(127)) << 23) & 0x7f80_0000);
    p * power
}

/// `tanh(x)`, off by at most 3e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// The error function, off by at most 4e-7: Abramowitz and Stegun 7.1.26.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let p = 1.061_405_4;
    let p = p * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-x * x)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::{erf, exp, tanh};

    /// Right values: `math.erf` of Python.
    #[test]
    fn erf_agrees_with_pythons() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.01, 0.011_283_415_555_849_618),
            (0.3, 0.328_626_759_459_127_4),
            (1.0, 0.842_700_792_949_714_9),
            (2.2, 0.998_137_153_702_018_3),
            (5.0, 0.999_999_999_998_462_5),
            (40.0, 1.0),
        ] {
            for (x, expected) in [(x, expected), (-x, -expected)] {
                assert!((f64::from(erf(x)) - expected).abs() < 4e-7, "erf({x}) is {}", erf(x));
            }
        }
    }

    #[test]
    fn tanh_agrees_with_libm() {
        for i in -30_000..30_000 {
            let x = i as f32 / 1000.0;
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 3e-7, "tanh({x}) is off by {error:e}");
        }
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(1e30)), (-1.0, 1.0));
    }

    #[test]
    fn agrees_with_libm_over_the_whole_range() {
        let mut x = -87.0_f32;
        while x < 87.9 {
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 3e-7, "exp({x}) is off by {relative:e}");
            x += 0.000_97;
        }
    }

    #[test]
    fn masked_scores_vanish() {
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert_eq!(exp(0.0), 1.0);
    }
}

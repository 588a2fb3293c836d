//! The matrix product of linears with bf16 inputs and f32 sums: twice the arithmetic of f32 on CPUs that have the
//! instruction (AVX-512 BF16), by tiles where there are any beside it (AMX), the same numbers up to the order of addition on all others.
//!
//! Tiles take over from 8 rows: with fewer, last bits are those of vectors.
//!
//! Inputs are rounded half to even to 8 bits of mantissa. Products of two such numbers are exact in f32.

use rayon::prelude::*;

use super::matmul::matmul_transposed;

/// Rows that are rounded at a time.
const ROWS_AT_ONCE: usize = 16;

/// A `[n, k]` matrix rounded to bf16, in the order in which this CPU multiplies with it.
pub enum Bf16Matrix {
    /// For the CPU's own instruction.
    #[cfg(target_arch = "x86_64")]
    Panels(Panels),
    /// Where it has none: the rounded values as f32, row-major.
    Rows {
        /// `[n, k]`.
        values: Vec<f32>,
        /// Values of a row.
        k: usize,
    },
}

impl Bf16Matrix {
    /// Of row-major `[n, k]`.
    pub fn new(w: &[f32], k: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = Panels::pack(w, k) {
            return Self::Panels(panels);
        }
        Self::Rows { values: rounded(w), k }
    }

    /// The same of rows as they are needed: `fill` gets the number of a row, and room for it and up to 15 more.
    pub fn of_rows(n: usize, k: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = Panels::pack_rows(n, k, &fill) {
            return Self::Panels(panels);
        }
        let mut values = vec![0.0; n * k];
        values.par_chunks_mut(ROWS_AT_ONCE * k).enumerate().for_each(|(chunk, rows)| {
            fill(chunk * ROWS_AT_ONCE, rows);
            rows.iter_mut().for_each(|value| *value = f32::from_bits(bf16_bits(*value) << 16));
        });
        Self::Rows { values, k }
    }

    /// `x w^T` for row-major `x: [m, k]`, rounded to bf16; returns `[m, n]` in f32.
    pub fn matmul(&self, x: &[f32]) -> Vec<f32> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Panels(panels) => panels.matmul(x),
            Self::Rows { values, k } => matmul_transposed(&rounded(x), values, *k),
        }
    }

    /// Rows.
    pub fn n(&self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Panels(panels) => panels.n(),
            Self::Rows { values, k } => values.len() / k,
        }
    }
}

impl std::fmt::Debug for Bf16Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bf16Matrix of {} rows", self.n())
    }
}

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]`, both rounded to bf16; returns `[m, n]` in f32.
pub fn matmul_transposed_bf16(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    Bf16Matrix::new(w, k).matmul(x)
}

/// Values rounded to bf16, as f32.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.par_iter().with_min_len(1 << 12).map(|&v| f32::from_bits(bf16_bits(v) << 16)).collect()
}

/// The upper half of the bits of a finite `v`, rounded half to even.
#[inline(always)]
fn bf16_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

#[cfg(target_arch = "x86_64")]
pub use avx512::Panels;

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions beyond the baseline are unsafe to call until their presence is known"
)]
mod avx512;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the same; and sums are written once, to memory that nothing was written to before")]
pub(super) mod tiles;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_product_of_rounded_inputs() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 130, 64),
            (2, 65, 64),
            (4, 64, 33),
            (7, 65, 33),
            (97, 130, 64),
            (200, 64, 576),
            (5, 70, 2500),
            (103, 70, 2051),
        ] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let expected = matmul_transposed(&rounded(&x), &rounded(&w), k);
            let found = matmul_transposed_bf16(&x, &w, k);
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(&expected) {
                // Sums are rounded as they grow.
                assert!((a - b).abs() < 1e-5 * ((k as f32).sqrt() + b.abs()), "{m}x{k}x{n}: {a} against {b}");
            }
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        for v in [1.0_f32, 1.003_906_2, 1.011_718_8, -2.7391, 1e-30, 65_504.0] {
            assert_eq!(f32::from_bits(bf16_bits(v) << 16), half::bf16::from_f32(v).to_f32(), "{v}");
        }
    }
}

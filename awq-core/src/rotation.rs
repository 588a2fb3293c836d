//! [`Rotation`]: seeded random orthogonal matrices that cost `n sqrt(n)` or `n log n` to apply.
//!
//! They make a matrix incoherent: no entry, and no direction of the inputs, stands out (QuIP, Chee et al., NeurIPS 2023,
//! arXiv 2307.13304, section 4; the Hadamard kind is QuIP#, arXiv 2402.04396, section 3). A rotation is `(L (x) R) P S`:
//! random signs `S`, a random permutation `P`, and the Kronecker product of two orthogonal factors.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Which factors a rotation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RotationKind {
    /// Two random orthogonal factors of nearly equal size, with a random permutation (QuIP).
    Kronecker,
    /// A Hadamard matrix of the largest power of two in the size; its odd part is a random orthogonal factor, so that every
    /// size is allowed (576 = 9 x 64). No permutation (QuIP#).
    Hadamard,
}

/// A seeded random orthogonal matrix of `n` rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    kind: RotationKind,
    seed: u64,
    signs: Vec<f64>,
    permutation: Vec<u32>,
    /// `L`, row-major.
    left: Vec<f64>,
    right: Right,
    /// Rows of `L` and of `R`.
    sizes: (usize, usize),
}

#[derive(Clone, Debug, PartialEq)]
enum Right {
    /// Row-major.
    Dense(Vec<f64>),
    /// Of a power of two.
    Hadamard,
}

impl Rotation {
    /// The rotation of a size and a seed.
    pub fn new(kind: RotationKind, n: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let signs = (0..n).map(|_| if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let mut permutation: Vec<u32> = (0..n as u32).collect();
        let (sizes, left, right);
        match kind {
            RotationKind::Kronecker => {
                shuffle(&mut permutation, &mut rng);
                let small = (1..=n).take_while(|p| p * p <= n).filter(|p| n.is_multiple_of(*p)).last().unwrap_or(1);
                sizes = (small, n / small);
                left = random_orthogonal(sizes.0, &mut rng);
                right = Right::Dense(random_orthogonal(sizes.1, &mut rng));
            }
            RotationKind::Hadamard => {
                let power_of_two = 1 << n.trailing_zeros();
                sizes = (n / power_of_two, power_of_two);
                left = random_orthogonal(sizes.0, &mut rng);
                right = Right::Hadamard;
            }
        }
        Self { kind, seed, signs, permutation, left, right, sizes }
    }

    /// Rotates a vector: `Q x`.
    ///
    /// # Panics
    /// If it has not `n` entries, as for every method here.
    pub fn apply(&self, x: &mut [f64]) {
        assert_eq!(x.len(), self.signs.len(), "a rotation of {} rows meets {} entries", self.signs.len(), x.len());
        let signed: Vec<f64> = x.iter().zip(&self.signs).map(|(x, sign)| x * sign).collect();
        for (x, &from) in x.iter_mut().zip(&self.permutation) {
            *x = signed[from as usize];
        }
        self.multiply_right(x, false);
        multiply_left(x, &self.left, self.sizes, false);
    }

    /// Rotates a vector back: `Q^T x`.
    pub fn undo(&self, x: &mut [f64]) {
        assert_eq!(x.len(), self.signs.len(), "a rotation of {} rows meets {} entries", self.signs.len(), x.len());
        multiply_left(x, &self.left, self.sizes, true);
        self.multiply_right(x, true);
        let permuted = x.to_vec();
        for (value, &to) in permuted.into_iter().zip(&self.permutation) {
            x[to as usize] = value * self.signs[to as usize];
        }
    }

    /// `M Q^T` for a row-major `M: [.., n]`: each row rotated.
    pub fn apply_rows(&self, matrix: &mut [f32]) {
        each_row(matrix, self.signs.len(), |row| self.apply(row));
    }

    /// `M Q` for a row-major `M: [.., n]`: each row rotated back.
    pub fn undo_rows(&self, matrix: &mut [f32]) {
        each_row(matrix, self.signs.len(), |row| self.undo(row));
    }

    /// `Q M` for a row-major `M: [n, n_cols]`: each column rotated.
    pub fn apply_columns(&self, matrix: &[f32], n_cols: usize) -> Vec<f32> {
        let mut columns = transpose(matrix, n_cols);
        self.apply_rows(&mut columns);
        transpose(&columns, self.signs.len())
    }

    /// `Q^T M` for a row-major `M: [n, n_cols]`: each column rotated back.
    pub fn undo_columns(&self, matrix: &[f32], n_cols: usize) -> Vec<f32> {
        let mut columns = transpose(matrix, n_cols);
        self.undo_rows(&mut columns);
        transpose(&columns, self.signs.len())
    }

    /// `Q M Q^T` of a symmetric row-major `M: [n, n]`, in place.
    pub fn conjugate(&self, matrix: &mut [f64]) {
        let n = self.signs.len();
        for _ in 0..2 {
            matrix.par_chunks_mut(n).for_each(|row| self.apply(row));
            // `(M Q^T)^T = Q M` for a symmetric `M`, so that the second pass rotates the other side.
            transpose_square(matrix, n);
        }
    }

    /// The kind and the seed: with the size, all that makes the rotation.
    pub fn recipe(&self) -> (RotationKind, u64) {
        (self.kind, self.seed)
    }

    pub(crate) fn hash_into(&self, hasher: &mut Sha256) {
        hasher.update(format!("{:?} {} {}", self.kind, self.signs.len(), self.seed));
    }

    /// `x` as `[sizes.0, sizes.1]`, each row multiplied by `R` (or its transpose).
    fn multiply_right(&self, x: &mut [f64], transposed: bool) {
        match &self.right {
            Right::Dense(factor) => {
                let n = self.sizes.1;
                x.chunks_mut(n).for_each(|row| multiply(row, factor, n, transposed));
            }
            // A Hadamard matrix in this order is symmetric.
            Right::Hadamard => x.chunks_mut(self.sizes.1).for_each(hadamard),
        }
    }
}

/// `x` as `[p, q]`, each column multiplied by the `p x p` factor (or its transpose).
fn multiply_left(x: &mut [f64], factor: &[f64], (p, q): (usize, usize), transposed: bool) {
    let mut out = vec![0.0; x.len()];
    for (row, out) in out.chunks_mut(q).enumerate() {
        for (col, x) in x.chunks(q).enumerate() {
            let weight = if transposed { factor[col * p + row] } else { factor[row * p + col] };
            out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
        }
    }
    x.copy_from_slice(&out);
}

/// `factor x` or `factor^T x`.
fn multiply(x: &mut [f64], factor: &[f64], n: usize, transposed: bool) {
    let mut out = vec![0.0; n];
    for (i, row) in factor.chunks(n).enumerate() {
        if transposed {
            out.iter_mut().zip(row).for_each(|(out, f)| *out += f * x[i]);
        } else {
            out[i] = row.iter().zip(&*x).map(|(f, x)| f * x).sum();
        }
    }
    x.copy_from_slice(&out);
}

/// The orthonormal Walsh-Hadamard transform of a power of two of values.
fn hadamard(x: &mut [f64]) {
    let n = x.len();
    let mut half = 1;
    while half < n {
        for pair in x.chunks_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let norm = (n as f64).sqrt().recip();
    x.iter_mut().for_each(|x| *x *= norm);
}

/// A Haar-random orthogonal matrix, row-major: Gram-Schmidt, done twice for accuracy, on rows of normal numbers.
fn random_orthogonal(n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut matrix: Vec<f64> = (0..n * n).map(|_| normal(rng)).collect();
    for i in 0..n {
        let (done, rest) = matrix.split_at_mut(i * n);
        let row = &mut rest[..n];
        for _ in 0..2 {
            for earlier in done.chunks(n) {
                let along: f64 = earlier.iter().zip(&*row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(earlier).for_each(|(r, e)| *r -= along * e);
            }
            let norm = row.iter().map(|r| r * r).sum::<f64>().sqrt();
            row.iter_mut().for_each(|r| *r /= norm);
        }
    }
    matrix
}

/// A standard normal number (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // In (0, 1], so that the logarithm is finite.
    let mut uniform = || ((rng.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
    radius * angle.cos()
}

/// A uniformly random order (Fisher-Yates; the modulo's bias is below 2^-32).
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let pick = rng.next_u64() % (last as u64 + 1);
        items.swap(last, pick as usize);
    }
}

fn each_row(matrix: &mut [f32], n: usize, change: impl Fn(&mut [f64]) + Sync) {
    matrix.par_chunks_mut(n).for_each(|row| {
        let mut wide: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        change(&mut wide);
        row.iter_mut().zip(wide).for_each(|(x, wide)| *x = wide as f32);
    });
}

/// Row-major `[n, n_cols]` to row-major `[n_cols, n]`.
fn transpose(matrix: &[f32], n_cols: usize) -> Vec<f32> {
    let n_rows = matrix.len() / n_cols.max(1);
    let mut out = vec![0.0; matrix.len()];
    out.par_chunks_mut(n_rows.max(1)).enumerate().for_each(|(col, out)| {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = matrix[row * n_cols + col]);
    });
    out
}

fn transpose_square(matrix: &mut [f64], n: usize) {
    for row in 0..n {
        for col in 0..row {
            matrix.swap(row * n + col, col * n + row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [RotationKind; 2] = [RotationKind::Kronecker, RotationKind::Hadamard];

    fn some_vector(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7 + 3) % 11) as f64 - 4.0).collect()
    }

    #[test]
    fn a_rotation_keeps_lengths_and_is_undone_at_any_size() {
        for kind in KINDS {
            for n in [1, 2, 7, 12, 60, 64, 576] {
                let rotation = Rotation::new(kind, n, 5);
                let original = some_vector(n);
                let mut x = original.clone();
                rotation.apply(&mut x);
                let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
                assert!((square(&x) - square(&original)).abs() < 1e-9 * (1.0 + square(&original)), "{kind:?} {n}");
                rotation.undo(&mut x);
                for (a, b) in x.iter().zip(&original) {
                    assert!((a - b).abs() < 1e-9, "{kind:?} {n}: {a} is not {b}");
                }
            }
        }
    }

    #[test]
    fn one_spike_is_spread_over_all_channels() {
        for kind in KINDS {
            let n = 576;
            let mut x = vec![0.0; n];
            x[17] = 1.0;
            Rotation::new(kind, n, 1).apply(&mut x);
            let largest = x.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            assert!(largest < 12.0 / (n as f64).sqrt(), "{kind:?}: the largest entry is still {largest}");
        }
    }

    #[test]
    fn conjugation_agrees_with_rotating_rows_and_columns() {
        for kind in KINDS {
            let n = 12;
            let rotation = Rotation::new(kind, n, 3);
            let mut symmetric: Vec<f64> = (0..n * n).map(|i| ((i / n) * (i % n) + (i / n) + (i % n)) as f64).collect();
            let mut single: Vec<f32> = symmetric.iter().map(|&x| x as f32).collect();
            rotation.apply_rows(&mut single);
            let expected = rotation.apply_columns(&single, n);
            rotation.conjugate(&mut symmetric);
            for (a, b) in symmetric.iter().zip(expected) {
                assert!((a - f64::from(b)).abs() < 1e-3, "{kind:?}: {a} is not {b}");
            }
        }
    }

    #[test]
    fn seeds_and_kinds_make_different_rotations() {
        let rotated = |kind, seed| {
            let mut x = some_vector(24);
            Rotation::new(kind, 24, seed).apply(&mut x);
            x
        };
        assert_eq!(rotated(RotationKind::Kronecker, 1), rotated(RotationKind::Kronecker, 1));
        assert_ne!(rotated(RotationKind::Kronecker, 1), rotated(RotationKind::Kronecker, 2));
        assert_ne!(rotated(RotationKind::Kronecker, 1), rotated(RotationKind::Hadamard, 1));
    }
}

//! Weights that are not quantized, behind the same trait: what packed kernels are measured against, and what a decoder in
//! full precision multiplies with.

use rayon::prelude::*;

use super::QuantMatmul;
use crate::host::bf16::matmul_transposed_bf16;
use crate::host::matmul::matmul_transposed;
use crate::host::matvec::matvec;

/// Bytes of weights of a task.
const TASK_BYTES: usize = 1 << 17;

/// A `[n_out, n_in]` matrix of f32.
pub struct DenseF32 {
    weight: Vec<f32>,
    n_in: usize,
}

impl DenseF32 {
    /// From row-major `[n_out, n_in]`.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn new(weight: Vec<f32>, n_in: usize) -> Self {
        assert!(!weight.is_empty() && weight.len().is_multiple_of(n_in), "{} weights in rows of {n_in}", weight.len());
        Self { weight, n_in }
    }
}

impl QuantMatmul for DenseF32 {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.weight.len() / self.n_in
    }

    fn packed_bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        if x.len() > self.n_in {
            return out.copy_from_slice(&matmul_transposed(x, &self.weight, self.n_in));
        }
        matvec(&self.weight, x, out);
    }
}

/// A `[n_out, n_in]` matrix of bf16, products in f32. With one row of activations only the weights are rounded, with more
/// the activations too (see [`crate::host::bf16`]).
pub struct DenseBf16 {
    /// The upper halves of the bits of f32.
    weight: Vec<u16>,
    n_in: usize,
}

impl DenseBf16 {
    /// From row-major `[n_out, n_in]`; values are rounded half to even.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn new(weight: &[f32], n_in: usize) -> Self {
        assert!(!weight.is_empty() && weight.len().is_multiple_of(n_in), "{} weights in rows of {n_in}", weight.len());
        Self { weight: weight.par_iter().map(|&w| half::bf16::from_f32(w).to_bits()).collect(), n_in }
    }
}

impl QuantMatmul for DenseBf16 {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.weight.len() / self.n_in
    }

    fn packed_bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        if x.len() > self.n_in {
            let weight: Vec<f32> = self.weight.par_iter().map(|&bits| widen(bits)).collect();
            return out.copy_from_slice(&matmul_transposed_bf16(x, &weight, self.n_in));
        }
        let rows = (TASK_BYTES / 2).div_ceil(self.n_in);
        let tasks = out.par_chunks_mut(rows).zip(self.weight.par_chunks(rows * self.n_in));
        tasks.for_each(|(out, weight)| multiply_row_bf16(x, weight, out));
    }
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Sums that a dot product keeps apart, so that vectors can hold them and no addition waits for another.
const SUMS: usize = 64;

vectorized! {
    /// `out = weight x`.
    fn multiply_row_bf16<'a>(x: &'a [f32], weight: &'a [u16], out: &'a mut [f32]) -> () {
        for (out, row) in out.iter_mut().zip(weight.chunks_exact(x.len())) {
            let mut sums = [0.0_f32; SUMS];
            let ((x, x_rest), (row, row_rest)) = (x.as_chunks::<SUMS>(), row.as_chunks::<SUMS>());
            for (x, row) in x.iter().zip(row) {
                for ((sum, x), w) in sums.iter_mut().zip(x).zip(row) {
                    *sum += x * widen(*w);
                }
            }
            let rest: f32 = x_rest.iter().zip(row_rest).map(|(x, w)| x * widen(*w)).sum();
            *out = sums.iter().sum::<f32>() + rest;
        }
    }
}

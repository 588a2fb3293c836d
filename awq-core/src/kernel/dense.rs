//! Weights that are not quantized, behind the same trait: what packed kernels are measured against.

use rayon::prelude::*;

use super::QuantMatmul;
#[cfg(target_arch = "x86_64")]
use crate::host::bf16::Panels;
use crate::host::bf16::matmul_transposed_bf16;
use crate::host::matrix::HostMatrix;

/// Bytes of weights of a task.
const TASK_BYTES: usize = 1 << 17;

/// A `[n_out, n_in]` matrix of f32.
pub struct DenseF32 {
    weight: HostMatrix,
}

impl DenseF32 {
    /// From row-major `[n_out, n_in]`.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn new(weight: Vec<f32>, n_in: usize) -> Self {
        Self { weight: HostMatrix::of_f32(weight, n_in) }
    }
}

impl QuantMatmul for DenseF32 {
    fn n_in(&self) -> usize {
        self.weight.n_in()
    }

    fn n_out(&self) -> usize {
        self.weight.n_out()
    }

    fn packed_bytes(&self) -> usize {
        self.weight.bytes()
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        // The baseline of several rows is the fastest product of dense matrices here.
        if x.len() > self.n_in() { self.weight.multiply_many(x, out) } else { self.weight.multiply(x, out) }
    }
}

/// A `[n_out, n_in]` matrix of bf16, activations rounded to bf16, sums in f32: by the CPU's own instruction where it has one
/// (see [`crate::host::bf16`]). Where it has none, a single row of activations stays f32.
pub struct DenseBf16 {
    weight: StoredBf16,
    n_in: usize,
}

enum StoredBf16 {
    #[cfg(target_arch = "x86_64")]
    Panels(Panels),
    /// Row-major upper halves of the bits of f32.
    Rows(Vec<u16>),
}

impl DenseBf16 {
    /// From row-major `[n_out, n_in]`; values are rounded half to even.
    ///
    /// # Panics
    /// If the length is not a positive number of rows.
    pub fn new(weight: &[f32], n_in: usize) -> Self {
        assert!(!weight.is_empty() && weight.len().is_multiple_of(n_in), "{} weights in rows of {n_in}", weight.len());
        #[cfg(target_arch = "x86_64")]
        if let Some(panels) = Panels::pack(weight, n_in) {
            return Self { weight: StoredBf16::Panels(panels), n_in };
        }
        Self::rows(weight, n_in)
    }

    fn rows(weight: &[f32], n_in: usize) -> Self {
        let rows = weight.par_iter().map(|&w| half::bf16::from_f32(w).to_bits()).collect();
        Self { weight: StoredBf16::Rows(rows), n_in }
    }
}

impl QuantMatmul for DenseBf16 {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        match &self.weight {
            #[cfg(target_arch = "x86_64")]
            StoredBf16::Panels(panels) => panels.n(),
            StoredBf16::Rows(rows) => rows.len() / self.n_in,
        }
    }

    fn packed_bytes(&self) -> usize {
        match &self.weight {
            #[cfg(target_arch = "x86_64")]
            StoredBf16::Panels(panels) => panels.bytes(),
            StoredBf16::Rows(rows) => size_of_val(rows.as_slice()),
        }
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        let rows = match &self.weight {
            #[cfg(target_arch = "x86_64")]
            StoredBf16::Panels(panels) => return out.copy_from_slice(&panels.matmul(x)),
            StoredBf16::Rows(rows) => rows,
        };
        if x.len() > self.n_in {
            let weight: Vec<f32> = rows.par_iter().map(|&bits| widen(bits)).collect();
            return out.copy_from_slice(&matmul_transposed_bf16(x, &weight, self.n_in));
        }
        let n_rows = (TASK_BYTES / 2).div_ceil(self.n_in);
        let tasks = out.par_chunks_mut(n_rows).zip(rows.par_chunks(n_rows * self.n_in));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What CPUs without the instruction run.
    #[test]
    fn rows_and_panels_give_the_same_products() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        let (n_out, n_in) = (70, 90);
        let weight: Vec<f32> = (0..n_out * n_in).map(value).collect();
        for n_rows in [1, 5] {
            // Numbers that bf16 holds, so that rounding them changes nothing.
            let x: Vec<f32> = (0..n_rows * n_in).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
            let run = |form: &DenseBf16| {
                let mut out = vec![f32::NAN; n_rows * n_out];
                form.matmul(&x, &mut out);
                out
            };
            let (found, expected) = (run(&DenseBf16::new(&weight, n_in)), run(&DenseBf16::rows(&weight, n_in)));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
            }
        }
    }
}

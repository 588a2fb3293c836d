//! The oracle: dequantize, then multiply in f32.

use super::QuantMatmul;
use crate::host::matmul::matmul_transposed;
use crate::quantized::QuantizedWeight;

/// A dequantized `[n_out, n_in]` matrix.
pub(super) struct Reference {
    weight: Vec<f32>,
    n_out: usize,
    n_in: usize,
}

impl Reference {
    pub(super) fn new(weight: &QuantizedWeight) -> Self {
        Self { weight: weight.dequantize(), n_out: weight.n_out, n_in: weight.n_in }
    }
}

impl QuantMatmul for Reference {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn packed_bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(&matmul_transposed(x, &self.weight, self.n_in));
    }
}

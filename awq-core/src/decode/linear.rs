//! The products of a decode step: linears that read one input as one matrix.

use std::sync::Arc;

use crate::host;
use crate::load::{Checkpoint, LoadError, read_exact_shape};

/// One or several linears with the same input: `[n_out, n_in]`, their rows one after the other.
pub(super) struct Linear {
    /// Row-major.
    weight: Arc<Vec<f32>>,
    /// `[n_out]`.
    bias: Option<Vec<f32>>,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

/// One of the linears of a [`Linear`].
pub(super) struct Part {
    /// Name of its tensors, without `.weight`.
    pub(super) name: String,
    /// Its output channels.
    pub(super) n_out: usize,
    /// Whether it has a bias.
    pub(super) has_bias: bool,
}

impl Linear {
    /// Reads `parts` and joins them.
    pub(super) fn load(checkpoint: &dyn Checkpoint, parts: &[Part], n_in: usize) -> Result<Self, LoadError> {
        let n_out = parts.iter().map(|part| part.n_out).sum();
        let weight = Arc::new(read_dense(checkpoint, parts, n_in)?);
        Ok(Self { weight, bias: read_biases(checkpoint, parts)?, n_in, n_out })
    }

    /// A matrix that others hold, too: a tied head.
    pub(super) fn shared(weight: Arc<Vec<f32>>, n_in: usize) -> Self {
        let n_out = weight.len() / n_in;
        Self { weight, bias: None, n_in, n_out }
    }

    /// `out = x W^T + b` for `x: [n, n_in]` and `out: [n, n_out]`.
    pub(super) fn forward(&self, x: &[f32], out: &mut [f32]) {
        if x.len() == self.n_in {
            host::matvec::matvec(&self.weight, x, out);
        } else {
            out.copy_from_slice(&host::matmul::matmul_transposed(x, &self.weight, self.n_in));
        }
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(self.n_out) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }

    /// Bytes of the weight, all of which a step reads.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }
}

fn read_dense(checkpoint: &dyn Checkpoint, parts: &[Part], n_in: usize) -> Result<Vec<f32>, LoadError> {
    let mut rows = Vec::with_capacity(parts.iter().map(|part| part.n_out * n_in).sum());
    for part in parts {
        rows.extend(read_exact_shape(checkpoint, &format!("{}.weight", part.name), &[part.n_out, n_in])?);
    }
    Ok(rows)
}

/// The biases one after the other, zeros for a part without one; `None` if no part has one.
fn read_biases(checkpoint: &dyn Checkpoint, parts: &[Part]) -> Result<Option<Vec<f32>>, LoadError> {
    if !parts.iter().any(|part| part.has_bias) {
        return Ok(None);
    }
    let mut biases = Vec::new();
    for part in parts {
        biases.extend(match part.has_bias {
            true => read_exact_shape(checkpoint, &format!("{}.bias", part.name), &[part.n_out])?,
            false => vec![0.0; part.n_out],
        });
    }
    Ok(Some(biases))
}

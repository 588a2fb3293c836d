//! The products of a decode step: linears that read one input as one matrix, dense or packed.

use std::sync::Arc;

use super::model::DecodeOptions;
use super::stack::stack;
use crate::host;
use crate::kernel::{Kernel, QuantMatmul};
use crate::load::{Checkpoint, LoadError, read_exact_shape};
use crate::quantized::QuantizedWeight;

/// One or several linears with the same input: `[n_out, n_in]`, their rows one after the other.
pub(super) struct Linear {
    weight: Weight,
    /// `[n_out]`.
    bias: Option<Vec<f32>>,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

enum Weight {
    /// Row-major f32.
    Dense(Arc<Vec<f32>>),
    /// In the order of a kernel.
    Packed(Box<dyn QuantMatmul>),
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
    /// Reads `parts` and joins them. They are packed where the checkpoint has all of them quantized on one grid and nothing
    /// lies between codes and weights, and dense otherwise.
    pub(super) fn load(
        checkpoint: &dyn Checkpoint,
        parts: &[Part],
        n_in: usize,
        options: &DecodeOptions,
    ) -> Result<Self, LoadError> {
        let n_out: usize = parts.iter().map(|part| part.n_out).sum();
        let weight = match read_packed(checkpoint, parts, n_in, options)? {
            Some(packed) => Weight::Packed(packed),
            None => Weight::Dense(Arc::new(read_dense(checkpoint, parts, n_in)?)),
        };
        Ok(Self { weight, bias: read_biases(checkpoint, parts)?, n_in, n_out })
    }

    /// A head: dense, in memory that a tied embedding shares, or rounded to the nearest code of `grid`.
    pub(super) fn head(weight: Arc<Vec<f32>>, bias: Option<Vec<f32>>, n_in: usize, options: &DecodeOptions) -> Self {
        let n_out = weight.len() / n_in;
        let weight = match &options.head {
            Some(grid) => Weight::Packed(pack(&host::grid::quantize(&weight, n_out, n_in, grid), options)),
            None => Weight::Dense(weight),
        };
        Self { weight, bias, n_in, n_out }
    }

    /// `out = x W^T + b` for `x: [n, n_in]` and `out: [n, n_out]`.
    pub(super) fn forward(&self, x: &[f32], out: &mut [f32]) {
        match &self.weight {
            Weight::Dense(weight) if x.len() == self.n_in => host::matvec::matvec(weight, x, out),
            Weight::Dense(weight) => out.copy_from_slice(&host::matmul::matmul_transposed(x, weight, self.n_in)),
            Weight::Packed(packed) => packed.matmul(x, out),
        }
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(self.n_out) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }

    /// As [`Self::forward`], `out` made as long as it must be.
    pub(super) fn product(&self, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len() / self.n_in * self.n_out, 0.0);
        self.forward(x, out);
    }

    pub(super) fn is_packed(&self) -> bool {
        matches!(self.weight, Weight::Packed(_))
    }

    /// Bytes of the weight, all of which a step reads.
    pub(super) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Dense(weight) => size_of_val(weight.as_slice()),
            Weight::Packed(packed) => packed.packed_bytes(),
        }
    }
}

fn read_packed(
    checkpoint: &dyn Checkpoint,
    parts: &[Part],
    n_in: usize,
    options: &DecodeOptions,
) -> Result<Option<Box<dyn QuantMatmul>>, LoadError> {
    let mut weights = Vec::with_capacity(parts.len());
    for part in parts {
        let name = format!("{}.weight", part.name);
        let Some(weight) = checkpoint.read_quantized(&name)? else { return Ok(None) };
        let (expected, found) = (vec![part.n_out, n_in], vec![weight.n_out, weight.n_in]);
        if found != expected {
            return Err(LoadError::WrongShape { file: checkpoint.source().to_owned(), name, expected, found });
        }
        weights.push(weight);
    }
    Ok(stack(weights).map(|weight| pack(&weight, options)))
}

/// A weight without a transform, for the best kernel of this CPU.
fn pack(weight: &QuantizedWeight, options: &DecodeOptions) -> Box<dyn QuantMatmul> {
    let packed = Kernel::best(options.activations).pack(weight);
    packed.unwrap_or_else(|error| panic!("the best kernel takes every weight that has rows and no transform: {error}"))
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

//! The products of a decode step: linears that read one input as one matrix, dense or packed.

use std::sync::Arc;

use super::model::{CodesOf, DecodeOptions};
use super::stack::{has_kernel, stack};
use crate::grid::Grid;
use crate::host;
use crate::host::matrix::HostMatrix;
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
    /// Whether codes were dequantized, because no kernel takes them.
    dequantized: bool,
}

enum Weight {
    /// As floats, which a tied embedding shares.
    Dense(Arc<HostMatrix>),
    /// In the order of a kernel.
    Packed(Box<dyn QuantMatmul>),
    /// Each linear by itself, with its bias: some have codes that a kernel takes, but not on one grid.
    Apart(Vec<Linear>),
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
    /// Reads `parts` and joins them. They are packed where the checkpoint has all of them quantized on one grid and a kernel takes
    /// their codes, apart where it takes those of some, and dense otherwise.
    pub(super) fn load(
        checkpoint: &dyn Checkpoint,
        parts: &[Part],
        n_in: usize,
        options: &DecodeOptions,
    ) -> Result<Self, LoadError> {
        let n_out: usize = parts.iter().map(|part| part.n_out).sum();
        let (weight, dequantized) = match read_codes(checkpoint, parts, n_in, options)? {
            Codes::Together(packed) => (Weight::Packed(packed), false),
            Codes::Apart if parts.len() > 1 => {
                let alone = |part| Self::load(checkpoint, std::slice::from_ref(part), n_in, options);
                let linears = parts.iter().map(alone).collect::<Result<_, _>>()?;
                return Ok(Self { weight: Weight::Apart(linears), bias: None, n_in, n_out, dequantized: false });
            }
            Codes::Apart | Codes::Unread => (read_dense(checkpoint, parts, n_in)?, true),
            Codes::None => (read_dense(checkpoint, parts, n_in)?, false),
        };
        Ok(Self { weight, bias: read_biases(checkpoint, parts)?, n_in, n_out, dequantized })
    }

    /// Of floats, which others may share.
    pub(super) fn dense(weight: Arc<HostMatrix>, bias: Option<Vec<f32>>) -> Self {
        let (n_in, n_out) = (weight.n_in(), weight.n_out());
        Self { weight: Weight::Dense(weight), bias, n_in, n_out, dequantized: false }
    }

    /// Rounded to the nearest codes of `grid`.
    pub(super) fn rounded(
        weight: &[f32],
        bias: Option<Vec<f32>>,
        n_in: usize,
        grid: &Grid,
        options: &DecodeOptions,
    ) -> Self {
        let n_out = weight.len() / n_in;
        let packed = pack(&host::grid::quantize(weight, n_out, n_in, grid), options);
        Self { weight: Weight::Packed(packed), bias, n_in, n_out, dequantized: false }
    }

    /// `out = x W^T + b` for `x: [n, n_in]` and `out: [n, n_out]`.
    pub(super) fn forward(&self, x: &[f32], out: &mut [f32]) {
        match &self.weight {
            Weight::Dense(weight) => weight.multiply(x, out),
            Weight::Packed(packed) => packed.matmul(x, out),
            Weight::Apart(linears) => self.forward_apart(linears, x, out),
        }
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(self.n_out) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }

    fn forward_apart(&self, linears: &[Self], x: &[f32], out: &mut [f32]) {
        let mut first = 0;
        let mut product = Vec::new();
        for linear in linears {
            linear.product(x, &mut product);
            let rows = out.chunks_exact_mut(self.n_out).zip(product.chunks_exact(linear.n_out));
            rows.for_each(|(out, product)| out[first..first + linear.n_out].copy_from_slice(product));
            first += linear.n_out;
        }
    }

    /// As [`Self::forward`], `out` made as long as it must be.
    pub(super) fn product(&self, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len() / self.n_in * self.n_out, 0.0);
        self.forward(x, out);
    }

    /// Itself, or its linears where each is held apart.
    pub(super) fn parts(&self) -> &[Self] {
        match &self.weight {
            Weight::Apart(linears) => linears,
            Weight::Dense(_) | Weight::Packed(_) => std::slice::from_ref(self),
        }
    }

    /// Bits of a weight that is held as a float.
    pub(super) fn float_bits(&self) -> Option<u8> {
        match &self.weight {
            Weight::Dense(weight) => Some(weight.bits()),
            Weight::Packed(_) | Weight::Apart(_) => None,
        }
    }

    pub(super) fn is_packed(&self) -> bool {
        matches!(self.weight, Weight::Packed(_))
    }

    pub(super) fn is_dequantized(&self) -> bool {
        self.dequantized
    }

    /// Bytes of the weight, all of which a step reads.
    pub(super) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Dense(weight) => weight.bytes(),
            Weight::Packed(packed) => packed.packed_bytes(),
            Weight::Apart(linears) => linears.iter().map(Self::bytes).sum(),
        }
    }
}

/// The codes of some linears.
enum Codes {
    /// A checkpoint has none of them quantized.
    None,
    /// No kernel takes those of any.
    Unread,
    /// A kernel takes those of some, or of all, but not as one matrix.
    Apart,
    /// All of them, as one matrix.
    Together(Box<dyn QuantMatmul>),
}

fn read_codes(
    checkpoint: &dyn Checkpoint,
    parts: &[Part],
    n_in: usize,
    options: &DecodeOptions,
) -> Result<Codes, LoadError> {
    let mut weights = Vec::with_capacity(parts.len());
    for part in parts {
        let name = format!("{}.weight", part.name);
        let weight = match options.codes {
            CodesOf::Ours => checkpoint.read_quantized(&name)?,
            CodesOf::All => checkpoint.read_codes(&name)?,
        };
        let Some(weight) = weight else { continue };
        let (expected, found) = ([part.n_out, n_in], [weight.n_out, weight.n_in]);
        if found != expected && !checkpoint.fits(&name, &expected) {
            let (expected, found) = (expected.to_vec(), found.to_vec());
            return Err(LoadError::WrongShape { file: checkpoint.source().to_owned(), name, expected, found });
        }
        // Some files know the groups of a weight and not its rows.
        weights.extend(if found == expected { Some(weight) } else { weight.regrouped(expected) });
    }
    let (n_quantized, has_kernel) = (weights.len(), weights.iter().any(has_kernel));
    let stacked = if n_quantized == parts.len() { stack(weights) } else { None };
    Ok(match stacked {
        Some(weight) => Codes::Together(pack(&weight, options)),
        None if n_quantized == 0 => Codes::None,
        None if has_kernel => Codes::Apart,
        None => Codes::Unread,
    })
}

/// A weight that has a kernel, for the best one of this CPU.
fn pack(weight: &QuantizedWeight, options: &DecodeOptions) -> Box<dyn QuantMatmul> {
    let packed = Kernel::best(options.activations).pack(weight);
    packed.unwrap_or_else(|error| panic!("the best kernel takes every weight that has rows and no table: {error}"))
}

fn read_dense(checkpoint: &dyn Checkpoint, parts: &[Part], n_in: usize) -> Result<Weight, LoadError> {
    let mut rows = Vec::with_capacity(parts.iter().map(|part| part.n_out * n_in).sum());
    for part in parts {
        rows.extend(read_exact_shape(checkpoint, &format!("{}.weight", part.name), &[part.n_out, n_in])?);
    }
    Ok(Weight::Dense(Arc::new(HostMatrix::new(rows, n_in))))
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

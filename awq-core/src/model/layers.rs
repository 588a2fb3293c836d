//! The layers that every family is built of, one copy of each.

use burn::tensor::{Tensor, TensorData};

use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::load::{Checkpoint, LoadError, check_shape, read_exact_shape};

/// A linear layer in the paper's and Hugging Face's orientation.
#[derive(Clone, Debug)]
pub struct Linear<B: QuantBackend> {
    /// `[out, in]`.
    pub weight: Tensor<B, 2>,
    /// `[out]`.
    pub bias: Option<Tensor<B, 1>>,
}

impl<B: QuantBackend> Linear<B> {
    /// Reads `{prefix}.weight` of `[n_out, n_in]` and, if asked for, `{prefix}.bias`. Codes are dequantized on the device.
    pub(crate) fn load(
        checkpoint: &dyn Checkpoint,
        prefix: &str,
        [n_out, n_in]: [usize; 2],
        has_bias: bool,
        device: &B::Device,
    ) -> Result<Self, LoadError> {
        let name = format!("{prefix}.weight");
        check_shape(checkpoint, &name, &[n_out, n_in])?;
        let weight = match checkpoint.read_quantized(&name)? {
            Some(weight) => B::dequantize_weight(&weight, device),
            None => matrix(checkpoint, &name, [n_out, n_in], device)?,
        };
        let bias = if has_bias { Some(vector(checkpoint, &format!("{prefix}.bias"), n_out, device)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `x W^T + b` for `x: [batch, seq, in]`.
    pub fn forward(&self, x: Tensor<B, 3>, arithmetic: Arithmetic) -> Tensor<B, 3> {
        self.forward_by(x, |x| product(x, self.weight.clone(), arithmetic))
    }

    /// The same with a product of its own: `[n, in]` to `[n, out]`.
    pub(super) fn forward_by(
        &self,
        x: Tensor<B, 3>,
        multiply: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 3> {
        let [batch, seq, n_in] = x.dims();
        let [n_out, _] = self.weight.dims();
        let dtype = x.dtype();
        let y = multiply(x.reshape([batch * seq, n_in]));
        let y = match &self.bias {
            Some(bias) => y + bias.clone().cast(dtype).unsqueeze::<2>(),
            None => y,
        };
        y.reshape([batch, seq, n_out])
    }
}

/// `x W^T` for `x: [n, in]` and `weight: [out, in]`, in the float type of `x`: what a method makes of a weight is f32.
pub(crate) fn product<B: QuantBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
    let weight = weight.cast(x.dtype());
    match arithmetic {
        Arithmetic::F32 => B::matmul_transposed(x, weight),
        Arithmetic::Bf16 => B::matmul_transposed_bf16(x, weight),
        Arithmetic::Bf16x3 => B::matmul_transposed_bf16x3(x, weight),
    }
}

/// `x W^T` of `x: [batch, seq, in]` by `weight: [out, in]`, in f32 arithmetic.
pub(super) fn projected<B: QuantBackend>(x: Tensor<B, 3>, weight: &Tensor<B, 2>) -> Tensor<B, 3> {
    let ([batch, seq, n_in], [n_out, _]) = (x.dims(), weight.dims());
    product(x.reshape([batch * seq, n_in]), weight.clone(), Arithmetic::F32).reshape([batch, seq, n_out])
}

/// What a norm does with its weight.
#[derive(Clone, Debug)]
pub struct Norm<B: QuantBackend> {
    /// `[hidden]`, multiplies; of [`NormKind::RmsPlusOne`] one less than what multiplies.
    pub weight: Tensor<B, 1>,
    /// `[hidden]`, is added; LayerNorm only.
    pub bias: Option<Tensor<B, 1>>,
    /// Which mean is taken.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f64,
}

/// Kind of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x)`.
    Rms,
    /// The same; what is stored is one less than what multiplies (Gemma).
    RmsPlusOne,
    /// `(x - mean(x)) / std(x)`.
    Layer,
    /// The same without a bias (MPT).
    LayerNoBias,
    /// `x` itself: what multiplies stands behind an activation, where nothing else takes the inverse of a scale. It is 1 until a
    /// method folds one in, and no checkpoint of another program has it.
    Scale,
}

impl NormKind {
    /// Whether such a norm adds a bias.
    pub(crate) fn has_bias(self) -> bool {
        matches!(self, Self::Layer)
    }

    /// What multiplies, less what is stored.
    pub(crate) fn offset(self) -> f32 {
        match self {
            Self::RmsPlusOne => 1.0,
            Self::Rms | Self::Layer | Self::LayerNoBias | Self::Scale => 0.0,
        }
    }
}

impl<B: QuantBackend> Norm<B> {
    /// Normalizes the last dimension of `[batch, seq, hidden]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let weight = self.weight.clone();
        match self.kind {
            NormKind::Rms => B::rms_norm(x, weight, self.eps),
            NormKind::RmsPlusOne => B::rms_norm(x, B::in_f32(weight) + 1.0, self.eps),
            NormKind::Scale => {
                let dtype = x.dtype();
                (B::in_f32(x) * B::in_f32(weight).unsqueeze::<3>()).cast(dtype)
            }
            NormKind::Layer | NormKind::LayerNoBias => {
                let bias = self.bias.clone().unwrap_or_else(|| weight.zeros_like());
                // burn has an operation of that name, too.
                <B as QuantBackend>::layer_norm(x, weight, bias, self.eps)
            }
        }
    }
}

/// Reads a `[rows, cols]` tensor.
pub(crate) fn matrix<B: QuantBackend>(
    checkpoint: &dyn Checkpoint,
    name: &str,
    shape: [usize; 2],
    device: &B::Device,
) -> Result<Tensor<B, 2>, LoadError> {
    let values = read_exact_shape(checkpoint, name, &shape)?;
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// Reads a `[n]` tensor.
pub(crate) fn vector<B: QuantBackend>(
    checkpoint: &dyn Checkpoint,
    name: &str,
    n: usize,
    device: &B::Device,
) -> Result<Tensor<B, 1>, LoadError> {
    let values = read_exact_shape(checkpoint, name, &[n])?;
    Ok(Tensor::from_data(TensorData::new(values, [n]), device))
}

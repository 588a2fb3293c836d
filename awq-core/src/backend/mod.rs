//! [`QuantBackend`]: what this crate asks of a burn backend beyond tensors.
//!
//! Every operation has a definition in plain tensor operations, which is the oracle and what GPU backends run. The CPU
//! backends override them with single-pass loops ([`crate::host`]): there, passes over memory and scalar `exp` calls would
//! cost more than the matrix products between them. GPU backends override products with packed weights
//! (`crate::kernel::cube`).
//!
//! Tensors on a GPU may be f16 or bf16 (the device's default float type). Norms, softmax, rotations, losses and everything
//! that a method computes are f32 all the same; only what lies between two operations of a block is rounded.

use burn::tensor::activation::{log_softmax, relu, silu};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, FloatDType, Int, Tensor, TensorData};

mod attention;
mod clip;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
mod quantize;

pub use attention::RotaryTable;
pub use clip::ClipOutcome;

use crate::activation::Activation;
use crate::grid::{Grid, ScaleDtype};
pub use crate::host::attention::{AttentionShape, SlopeBias, Slopes};
use crate::kernel::{DeviceWeight, QuantMatmul};
use crate::numbers::Number;
use crate::quantized::QuantizedWeight;

/// A burn backend that this crate runs on. Overrides must agree with the defaults up to rounding.
pub trait QuantBackend: Backend {
    /// Whether operations are queued and run on a device of their own, so that the host is free meanwhile.
    const BESIDE_HOST: bool = false;
    /// Whether [`Self::matmul_transposed_bf16`] is the faster product where the CPU has the instruction, and activations are f32.
    const FASTER_IN_BF16: bool = false;

    /// The tensor in f32; itself where it is so already.
    fn in_f32<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, D> {
        x.cast(DType::F32)
    }

    /// Scales of f32 rounded to the type that they are stored in, as f32.
    fn round_scales<const D: usize>(scale: Tensor<Self, D>, dtype: ScaleDtype) -> Tensor<Self, D> {
        rounded_on_host(scale, dtype)
    }

    /// `a b` for `[.., m, k]` and `[.., k, n]` with the same dimensions before the last two; returns `[.., m, n]`.
    fn matmul<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Tensor<Self, D> {
        a.matmul(b)
    }

    /// `x W^T` for `x: [n, in]` and `weight: [out, in]`; returns `[n, out]`.
    fn matmul_transposed(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        Self::matmul(x, weight.transpose())
    }

    /// A `[out, in]` weight rounded half to even to bf16, as [`Self::matmul_bf16`] reads it.
    type Bf16Weight: std::fmt::Debug + Send + Sync + 'static;

    /// Rounds a `[out, in]` weight.
    fn bf16_weight(weight: Tensor<Self, 2>) -> Self::Bf16Weight;

    /// `x W^T` for `x: [n, in]`, rounded half to even to bf16, with f32 sums; returns `[n, out]`.
    fn matmul_bf16(x: Tensor<Self, 2>, weight: &Self::Bf16Weight) -> Tensor<Self, 2>;

    /// The same of a weight that is used once.
    fn matmul_transposed_bf16(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        Self::matmul_bf16(x, &Self::bf16_weight(weight))
    }

    /// `x W^T` for `x: [n, in]` and `weight: [out, in]`, as exact as [`Self::matmul_transposed`] and by faster instructions where there are
    /// any: see [`crate::arithmetic::Arithmetic::Bf16x3`].
    fn matmul_transposed_bf16x3(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        Self::matmul_transposed(x, weight)
    }

    /// `x W^T` for `x: [n, in]` and a packed `[out, in]` weight; returns `[n, out]`.
    fn packed_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        let dtype = x.dtype();
        Self::matmul_transposed(x, Self::unpack_weight(weight).cast(dtype))
    }

    /// The same for a weight that a kernel of the CPU reads. Through host memory here.
    fn matmul_on_host(x: Tensor<Self, 2>, weight: &dyn QuantMatmul) -> Tensor<Self, 2> {
        let ([n, _], dtype, device) = (x.dims(), x.dtype(), x.device());
        let mut out = vec![0.0; n * weight.n_out()];
        weight.matmul(&float_vec(x), &mut out);
        Tensor::<Self, 2>::from_data(TensorData::new(out, [n, weight.n_out()]), &device).cast(dtype)
    }

    /// The weights that packed codes stand for, `[out, in]`, in the device's default float type. Through host memory here.
    fn unpack_weight(weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        let facts = weight.facts();
        let values = TensorData::new(weight.download().dequantize(), [facts.n_out, facts.n_in]);
        Tensor::from_data(values, &weight.device())
    }

    /// The weights that codes in host memory stand for, `[out, in]`, in the device's default float type.
    fn dequantize_weight(weight: &QuantizedWeight, device: &Self::Device) -> Tensor<Self, 2> {
        weight.to_tensor(device)
    }

    /// Rounds a `[out, in]` weight onto `grid`: minimum and maximum of each group set its scale and zero point.
    fn quantize_weight(weight: Tensor<Self, 2>, grid: &Grid) -> QuantizedWeight {
        quantize::quantize(weight, grid)
    }

    /// [`Self::quantize_weight`] then dequantize, without materialising codes: `[out, in]` in, `[out, in]` out.
    fn fake_quant(weight: Tensor<Self, 2>, grid: &Grid) -> Tensor<Self, 2> {
        quantize::fake_quant(weight, grid)
    }

    /// Fake quantization of `weight * scale` with the scale divided out again, `scale: [in]`: AWQ's candidate weight.
    fn fake_quant_scaled(weight: Tensor<Self, 2>, scale: Tensor<Self, 1>, grid: &Grid) -> Tensor<Self, 2> {
        let scale = scale.unsqueeze::<2>();
        Self::fake_quant(weight * scale.clone(), grid) / scale
    }

    /// By how much that changes the weight, for products in bf16.
    fn bf16_change(weight: Tensor<Self, 2>, scale: Tensor<Self, 1>, grid: &Grid) -> Self::Bf16Weight {
        quantize::bf16_change(weight, scale, grid)
    }

    /// AWQ's clip search: for each row and group of a `[out, in]` weight the bound among `factors` (the first is 1) times
    /// the group's largest magnitude that loses least, `grams[g]` being the Gram matrix of group `g`'s inputs.
    fn clip_search(
        weight: Tensor<Self, 2>,
        grams: &[Tensor<Self, 2>],
        grid: &Grid,
        factors: &[f64],
    ) -> ClipOutcome<Self> {
        clip::clip_search(weight, grams, grid, factors)
    }

    /// Causal self-attention from position 0, each query over the last `shape.window` positions where there is a window.
    /// Products of queries and keys are scaled and capped as `shape` says.
    ///
    /// `q: [batch, seq, n_heads * head_dim]`, `k` and `v: [batch, seq, n_kv_heads * head_dim]`, not yet rotated; with a
    /// table of `n_rotated / 2` angles, rotary embedding of the first `n_rotated` channels of each head in the half-split pairing
    /// (channel `c` pairs with `c + n_rotated / 2`).
    /// Returns `[batch, seq, n_heads * head_dim]`.
    fn causal_attention(
        q: Tensor<Self, 3>,
        k: Tensor<Self, 3>,
        v: Tensor<Self, 3>,
        rotary: Option<&RotaryTable<Self>>,
        shape: &AttentionShape,
    ) -> Tensor<Self, 3> {
        attention::causal_attention(q, k, v, rotary, shape)
    }

    /// `silu(gate) * up`, elementwise.
    fn swiglu(gate: Tensor<Self, 3>, up: Tensor<Self, 3>) -> Tensor<Self, 3> {
        silu(gate) * up
    }

    /// The activation of each value.
    fn activate(activation: Activation, x: Tensor<Self, 3>) -> Tensor<Self, 3> {
        match activation {
            Activation::Relu => relu(x),
            Activation::Silu => silu(x),
            Activation::Gelu => {
                let dtype = x.dtype();
                let x = Self::in_f32(x);
                let share = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf();
                (x * (share + 1.0) * 0.5).cast(dtype)
            }
            Activation::GeluTanh => {
                let dtype = x.dtype();
                // The cube of an f16 would overflow.
                let x = Self::in_f32(x);
                let cubed = x.clone() * x.clone() * x.clone() * Activation::GELU_CUBE;
                let tanh = ((x.clone() + cubed) * Activation::GELU_FACTOR).tanh();
                (x * (tanh + 1.0) * 0.5).cast(dtype)
            }
        }
    }

    /// `cap * tanh(x / cap)` of each value.
    fn soft_cap(x: Tensor<Self, 2>, cap: f64) -> Tensor<Self, 2> {
        let dtype = x.dtype();
        ((Self::in_f32(x) / cap).tanh() * cap).cast(dtype)
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
    fn rms_norm(x: Tensor<Self, 3>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 3> {
        let dtype = x.dtype();
        let x = Self::in_f32(x);
        // Not `recip`: on some backends it is a 14-bit approximation.
        let rms = (x.clone().powi_scalar(2).mean_dim(2) + eps).sqrt();
        (x / rms * Self::in_f32(weight).unsqueeze::<3>()).cast(dtype)
    }

    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` over the last dimension. The variance is the mean of squared
    /// deviations: the difference of two means that some backends take cancels where the mean is large.
    fn layer_norm(x: Tensor<Self, 3>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 3> {
        let dtype = x.dtype();
        let x = Self::in_f32(x);
        let centered = x.clone() - x.mean_dim(2);
        let variance = centered.clone().powi_scalar(2).mean_dim(2);
        let normed = centered / (variance + eps).sqrt() * Self::in_f32(weight).unsqueeze::<3>();
        (normed + Self::in_f32(bias).unsqueeze::<3>()).cast(dtype)
    }

    /// Sum of `a * b` over all elements. CPU backends add in an order that depends on the number of elements alone:
    /// burn-flex's own sum of 4 Mi elements or more has another order, and other last bits, in each run.
    fn dot_product<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> f64 {
        (Self::in_f32(a) * Self::in_f32(b)).sum().into_scalar().elem()
    }

    /// `tr(D G D^T)` for `D: [out, in]` and a symmetric `G: [in, in]`: the sum over rows `d` of `d G d^T`.
    fn quadratic_form(d: Tensor<Self, 2>, g: Tensor<Self, 2>) -> f64 {
        Self::dot_product(Self::matmul_transposed(d.clone(), g), d)
    }

    /// Sum of `(a - b)^2` over all elements; see [`Self::dot_product`].
    fn squared_distance<const D: usize>(a: &Tensor<Self, D>, b: &Tensor<Self, D>) -> f64 {
        (Self::in_f32(a.clone()) - Self::in_f32(b.clone())).powi_scalar(2).sum().into_scalar().elem()
    }

    /// [`Self::dot_product`], read when it is wanted.
    fn dot_product_later<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Total<Self> {
        Total::Known(Self::dot_product(a, b))
    }

    /// [`Self::quadratic_form`], read when it is wanted.
    fn quadratic_form_later(d: Tensor<Self, 2>, g: Tensor<Self, 2>) -> Total<Self> {
        Total::Known(Self::quadratic_form(d, g))
    }

    /// [`Self::squared_distance`], read when it is wanted.
    fn squared_distance_later<const D: usize>(a: &Tensor<Self, D>, b: &Tensor<Self, D>) -> Total<Self> {
        Total::Known(Self::squared_distance(a, b))
    }

    /// Negative log-likelihood in nats of each target under its row of logits, `logits: [n, vocab]`.
    fn token_nll(logits: Tensor<Self, 2>, targets: &[u32]) -> Vec<f32> {
        let device = logits.device();
        let indices: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
        let indices = Tensor::<Self, 2, Int>::from_data(TensorData::new(indices, [targets.len(), 1]), &device);
        let nll = log_softmax(Self::in_f32(logits), 1).gather(1, indices).neg();
        float_vec(nll)
    }
}

/// A sum over a tensor. A device may be at work on it still: many are read at once, for to wait for a device costs more than a sum.
#[derive(Clone, Debug)]
pub enum Total<B: Backend> {
    /// The sum.
    Known(f64),
    /// One element of f32, which may not be there yet.
    Queued(Tensor<B, 1>),
}

impl<B: Backend> Total<B> {
    /// The sums, waited for once.
    pub fn read(totals: Vec<Self>) -> Vec<f64> {
        let queued: Vec<Tensor<B, 1>> = totals.iter().filter_map(Self::queued).collect();
        let read = if queued.is_empty() { Vec::new() } else { float_vec(Tensor::cat(queued, 0)) };
        let mut read = read.into_iter();
        let known = |total| match total {
            Self::Known(sum) => sum,
            // As many were read as are queued.
            Self::Queued(_) => read.next().map_or(f64::NAN, f64::from),
        };
        totals.into_iter().map(known).collect()
    }

    fn queued(&self) -> Option<Tensor<B, 1>> {
        match self {
            Self::Known(_) => None,
            Self::Queued(sum) => Some(sum.clone()),
        }
    }
}

/// Scales of f32 rounded to the type that they are stored in, on the host: not every backend has the type.
pub(crate) fn rounded_on_host<B: Backend, const D: usize>(scale: Tensor<B, D>, dtype: ScaleDtype) -> Tensor<B, D> {
    let (dims, device) = (scale.dims(), scale.device());
    let rounded: Vec<f32> = float_vec(scale).into_iter().map(|scale| dtype.round(scale)).collect();
    Tensor::from_data(TensorData::new(rounded, dims), (&device, DType::F32))
}

/// Values rounded half to even to bf16, in the float type that they have.
pub(crate) fn rounded_to_bf16<B: QuantBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let (stored, device, dims) = (x.dtype(), x.device(), x.dims());
    if B::supports_dtype(&device, DType::BF16) {
        return x.cast(FloatDType::BF16).cast(stored);
    }
    let values = float_vec(x).into_iter().map(|x| Number::Bf16.round(x)).collect();
    Tensor::from_data(TensorData::new(values, dims), (&device, stored))
}

/// What products in bf16 are, in burn's own operations.
macro_rules! bf16_by_definition {
    () => {
        type Bf16Weight = burn::tensor::Tensor<Self, 2>;

        fn bf16_weight(weight: burn::tensor::Tensor<Self, 2>) -> burn::tensor::Tensor<Self, 2> {
            $crate::backend::rounded_to_bf16(weight)
        }

        fn matmul_bf16(
            x: burn::tensor::Tensor<Self, 2>,
            weight: &burn::tensor::Tensor<Self, 2>,
        ) -> burn::tensor::Tensor<Self, 2> {
            Self::matmul_transposed($crate::backend::rounded_to_bf16(x), weight.clone())
        }
    };
}
pub(crate) use bf16_by_definition;

/// The values of a tensor as f32, row-major.
pub fn float_vec<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    // A float tensor converts to f32 whatever its storage type is, so the only failure would be a bug in burn.
    tensor
        .into_data()
        .convert::<f32>()
        .into_vec()
        .unwrap_or_else(|error| panic!("a float tensor has no f32 values: {error:?}"))
}

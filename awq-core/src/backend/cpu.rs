//! The CPU backends: the hooks of [`QuantBackend`] through the loops of [`crate::host`].

use burn::tensor::{Tensor, TensorData};

use super::{AttentionShape, ClipOutcome, QuantBackend, RotaryTable, float_vec};
use crate::activation::Activation;
use crate::grid::Grid;
use crate::host::bf16::Bf16Matrix;
use crate::quantized::QuantizedWeight;

/// burn-ndarray with 32-bit integers overrides nothing: every definition as it stands, for tests to hold the others against.
#[cfg(feature = "ndarray")]
impl QuantBackend for burn::backend::NdArray<f32, i32> {
    super::bf16_by_definition!();
}

/// The CPU backends share the loops of [`crate::host`].
macro_rules! host_backend {
    ($backend:ty, $($override:item)*) => {
        impl QuantBackend for $backend {
            const FASTER_IN_BF16: bool = true;
            type Bf16Weight = Bf16Matrix;

            $($override)*

            fn quantize_weight(weight: Tensor<Self, 2>, grid: &Grid) -> QuantizedWeight {
                let [n_out, n_in] = weight.dims();
                crate::host::grid::quantize(&float_vec(weight), n_out, n_in, grid)
            }

            fn fake_quant(weight: Tensor<Self, 2>, grid: &Grid) -> Tensor<Self, 2> {
                let ([n_out, n_in], device) = (weight.dims(), weight.device());
                let mut values = float_vec(weight);
                crate::host::grid::fake_quant(&mut values, n_out, n_in, grid);
                Tensor::from_data(TensorData::new(values, [n_out, n_in]), &device)
            }

            fn clip_search(
                weight: Tensor<Self, 2>,
                grams: &[Tensor<Self, 2>],
                grid: &Grid,
                factors: &[f64],
            ) -> ClipOutcome<Self> {
                let ([n_out, n_in], device) = (weight.dims(), weight.device());
                let grams: Vec<Vec<f32>> = grams.iter().cloned().map(float_vec).collect();
                let mut values = float_vec(weight);
                let found = crate::host::clip::clip_search(&mut values, n_in, &grams, grid, factors);
                ClipOutcome {
                    weight: Tensor::from_data(TensorData::new(values, [n_out, n_in]), &device),
                    bound: Tensor::from_data(TensorData::new(found.bound, [n_out, grams.len()]), &device),
                    loss_before: found.loss_before,
                    loss_after: found.loss_after,
                }
            }

            fn causal_attention(
                q: Tensor<Self, 3>,
                k: Tensor<Self, 3>,
                v: Tensor<Self, 3>,
                rotary: Option<&RotaryTable<Self>>,
                shape: &AttentionShape,
            ) -> Tensor<Self, 3> {
                let (dims, device) = (q.dims(), q.device());
                let [batch, seq, _] = dims;
                let rotary = rotary.map(|table| table.first(seq)).map(|RotaryTable { cos, sin }| (float_vec(cos), float_vec(sin)));
                let rotary = rotary.as_ref().map(|(cos, sin)| (cos.as_slice(), sin.as_slice()));
                let out = crate::host::attention::causal_attention(
                    float_vec(q),
                    float_vec(k),
                    &float_vec(v),
                    rotary,
                    batch,
                    seq,
                    shape,
                );
                Tensor::from_data(TensorData::new(out, dims), &device)
            }

            fn swiglu(gate: Tensor<Self, 3>, up: Tensor<Self, 3>) -> Tensor<Self, 3> {
                let (dims, device) = (gate.dims(), gate.device());
                let mut values = float_vec(gate);
                crate::host::elementwise::swiglu(&mut values, &float_vec(up));
                Tensor::from_data(TensorData::new(values, dims), &device)
            }

            fn activate(activation: Activation, x: Tensor<Self, 3>) -> Tensor<Self, 3> {
                let (dims, device) = (x.dims(), x.device());
                let mut values = float_vec(x);
                crate::host::elementwise::activate(activation, &mut values);
                Tensor::from_data(TensorData::new(values, dims), &device)
            }

            fn soft_cap(x: Tensor<Self, 2>, cap: f64) -> Tensor<Self, 2> {
                let (dims, device) = (x.dims(), x.device());
                let mut values = float_vec(x);
                crate::host::elementwise::soft_cap(&mut values, cap as f32);
                Tensor::from_data(TensorData::new(values, dims), &device)
            }

            fn rms_norm(x: Tensor<Self, 3>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 3> {
                let (dims, device) = (x.dims(), x.device());
                let mut values = float_vec(x);
                crate::host::elementwise::rms_norm(&mut values, &float_vec(weight), eps as f32);
                Tensor::from_data(TensorData::new(values, dims), &device)
            }

            fn layer_norm(
                x: Tensor<Self, 3>,
                weight: Tensor<Self, 1>,
                bias: Tensor<Self, 1>,
                eps: f64,
            ) -> Tensor<Self, 3> {
                let (dims, device) = (x.dims(), x.device());
                let mut values = float_vec(x);
                crate::host::elementwise::layer_norm(&mut values, &float_vec(weight), &float_vec(bias), eps as f32);
                Tensor::from_data(TensorData::new(values, dims), &device)
            }

            fn dot_product<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> f64 {
                crate::host::elementwise::dot_product(&float_vec(a), &float_vec(b))
            }

            fn quadratic_form(d: Tensor<Self, 2>, g: Tensor<Self, 2>) -> f64 {
                let [_, n_in] = d.dims();
                crate::host::gram::quadratic_form(&float_vec(d), &float_vec(g), n_in)
            }

            fn squared_distance<const D: usize>(a: &Tensor<Self, D>, b: &Tensor<Self, D>) -> f64 {
                crate::host::elementwise::squared_distance(&float_vec(a.clone()), &float_vec(b.clone()))
            }

            fn token_nll(logits: Tensor<Self, 2>, targets: &[u32]) -> Vec<f32> {
                let [_, vocab] = logits.dims();
                crate::host::elementwise::token_nll(&float_vec(logits), vocab, targets)
            }
        }
    };
}

#[cfg(feature = "flex")]
// In braces: rustfmt would take items in parentheses for arguments and put commas between them.
host_backend! {
    burn::backend::Flex,
    fn matmul_transposed(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let ([n, n_in], [n_out, _], device) = (x.dims(), weight.dims(), x.device());
        let (x, weight) = (flex_values(x), flex_values(weight));
        let out = crate::host::matmul::matmul_transposed(x.storage::<f32>(), weight.storage::<f32>(), n_in);
        Tensor::from_data(TensorData::new(out, [n, n_out]), &device)
    }

    fn bf16_weight(weight: Tensor<Self, 2>) -> Bf16Matrix {
        let [_, n_in] = weight.dims();
        Bf16Matrix::new(flex_values(weight).storage::<f32>(), n_in)
    }

    fn matmul_bf16(x: Tensor<Self, 2>, weight: &Bf16Matrix) -> Tensor<Self, 2> {
        let ([n, _], device) = (x.dims(), x.device());
        let out = weight.matmul(flex_values(x).storage::<f32>());
        Tensor::from_data(TensorData::new(out, [n, weight.n()]), &device)
    }
}

/// A tensor whose storage holds exactly its values, row-major, without a copy where that is so already.
#[cfg(feature = "flex")]
fn flex_values(tensor: Tensor<burn::backend::Flex, 2>) -> burn::backend::flex::FlexTensor {
    let n = tensor.shape().num_elements();
    let primitive = tensor.into_primitive().tensor();
    let exact = primitive.is_contiguous() && primitive.layout().start_offset() == 0 && primitive.bytes().len() == 4 * n;
    if exact { primitive } else { burn::backend::flex::FlexTensor::from_data(primitive.into_data()) }
}

#[cfg(feature = "ndarray")]
host_backend! {
    burn::backend::NdArray<f32>,
    fn bf16_weight(weight: Tensor<Self, 2>) -> Bf16Matrix {
        let [_, n_in] = weight.dims();
        Bf16Matrix::new(&float_vec(weight), n_in)
    }

    fn matmul_bf16(x: Tensor<Self, 2>, weight: &Bf16Matrix) -> Tensor<Self, 2> {
        let ([n, _], device) = (x.dims(), x.device());
        Tensor::from_data(TensorData::new(weight.matmul(&float_vec(x)), [n, weight.n()]), &device)
    }
}

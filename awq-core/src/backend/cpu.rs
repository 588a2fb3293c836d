//! The CPU backends: the hooks of [`QuantBackend`] through the loops of [`crate::host`].

use burn::tensor::{DType, Tensor, TensorData};

use super::{AttentionShape, ClipOutcome, QuantBackend, RotaryTable, float_vec};
use crate::activation::Activation;
use crate::grid::Grid;
use crate::host::bf16::Bf16Matrix;
use crate::kernel::QuantMatmul;
use crate::quantized::QuantizedWeight;

/// burn-ndarray with 32-bit integers overrides nothing: every definition as it stands, for tests to hold the others against.
#[cfg(feature = "ndarray")]
impl QuantBackend for burn::backend::NdArray<f32, i32> {
    super::bf16_by_definition!();
}

/// The CPU backends share the loops of [`crate::host`], which read what `$values` makes of a tensor.
macro_rules! host_backend {
    ($backend:ty, $values:path, $($override:item)*) => {
        impl QuantBackend for $backend {
            const FASTER_IN_BF16: bool = true;
            type Bf16Weight = Bf16Matrix;

            $($override)*

            fn bf16_weight(weight: Tensor<Self, 2>) -> Bf16Matrix {
                let [_, n_in] = weight.dims();
                Bf16Matrix::new(&$values(weight), n_in)
            }

            fn matmul_bf16(x: Tensor<Self, 2>, weight: &Bf16Matrix) -> Tensor<Self, 2> {
                let ([n, _], device) = (x.dims(), x.device());
                Tensor::from_data(TensorData::new(weight.matmul(&$values(x)), [n, weight.n()]), &device)
            }

            fn matmul_transposed_bf16x3(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
                let ([n, n_in], [n_out, _], device) = (x.dims(), weight.dims(), x.device());
                let out = crate::host::matmul::matmul_transposed_bf16x3(&$values(x), &$values(weight), n_in);
                Tensor::from_data(TensorData::new(out, [n, n_out]), &device)
            }

            fn matmul_on_host(x: Tensor<Self, 2>, weight: &dyn QuantMatmul) -> Tensor<Self, 2> {
                let ([n, _], device) = (x.dims(), x.device());
                let mut out = vec![0.0; n * weight.n_out()];
                weight.matmul(&$values(x), &mut out);
                Tensor::from_data(TensorData::new(out, [n, weight.n_out()]), &device)
            }

            fn quantize_weight(weight: Tensor<Self, 2>, grid: &Grid) -> QuantizedWeight {
                let [n_out, n_in] = weight.dims();
                crate::host::grid::quantize(&$values(weight), n_out, n_in, grid)
            }

            fn fake_quant(weight: Tensor<Self, 2>, grid: &Grid) -> Tensor<Self, 2> {
                let ([n_out, n_in], device) = (weight.dims(), weight.device());
                let mut values = float_vec(weight);
                crate::host::grid::fake_quant(&mut values, n_out, n_in, grid);
                Tensor::from_data(TensorData::new(values, [n_out, n_in]), &device)
            }

            fn bf16_change(weight: Tensor<Self, 2>, scale: Tensor<Self, 1>, grid: &Grid) -> Bf16Matrix {
                let [n_out, n_in] = weight.dims();
                if !crate::host::grid::rounds_rows_alone(grid) {
                    return super::quantize::bf16_change(weight, scale, grid);
                }
                let (weight, scale) = ($values(weight), $values(scale));
                Bf16Matrix::of_rows(n_out, n_in, |row, changes| {
                    changes.copy_from_slice(&weight[row * n_in..][..changes.len()]);
                    crate::host::grid::replace_by_changes(changes, &scale, grid);
                })
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
                crate::host::elementwise::swiglu(&mut values, &$values(up));
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
                crate::host::elementwise::dot_product(&$values(a), &$values(b))
            }

            fn quadratic_form(d: Tensor<Self, 2>, g: Tensor<Self, 2>) -> f64 {
                let [_, n_in] = d.dims();
                crate::host::gram::quadratic_form(&$values(d), &$values(g), n_in)
            }

            fn squared_distance<const D: usize>(a: &Tensor<Self, D>, b: &Tensor<Self, D>) -> f64 {
                crate::host::elementwise::squared_distance(&$values(a.clone()), &$values(b.clone()))
            }

            fn token_nll(logits: Tensor<Self, 2>, targets: &[u32]) -> Vec<f32> {
                let [_, vocab] = logits.dims();
                crate::host::elementwise::token_nll(&$values(logits), vocab, targets)
            }
        }
    };
}

#[cfg(feature = "flex")]
// In braces: rustfmt would take items in parentheses for arguments and put commas between them.
host_backend! {
    burn::backend::Flex,
    flex_values,
    fn matmul_transposed(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let ([n, n_in], [n_out, _], device) = (x.dims(), weight.dims(), x.device());
        let (x, weight) = (flex_values(x), flex_values(weight));
        let out = crate::host::matmul::matmul_transposed(&x, &weight, n_in);
        Tensor::from_data(TensorData::new(out, [n, n_out]), &device)
    }
}

/// The values of a tensor as f32, row-major: its storage where that holds just these, else a copy.
#[cfg(feature = "flex")]
enum FlexValues {
    Stored(burn::backend::flex::FlexTensor),
    Copied(Vec<f32>),
}

#[cfg(feature = "flex")]
impl std::ops::Deref for FlexValues {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Stored(tensor) => tensor.storage(),
            Self::Copied(values) => values,
        }
    }
}

#[cfg(feature = "flex")]
fn flex_values<const D: usize>(tensor: Tensor<burn::backend::Flex, D>) -> FlexValues {
    let n = tensor.shape().num_elements();
    let stored = tensor.clone().into_primitive().tensor();
    let is_whole = stored.is_contiguous() && stored.layout().start_offset() == 0 && stored.bytes().len() == 4 * n;
    if is_whole && stored.dtype() == DType::F32 {
        FlexValues::Stored(stored)
    } else {
        FlexValues::Copied(float_vec(tensor))
    }
}

#[cfg(feature = "ndarray")]
host_backend! {
    burn::backend::NdArray<f32>,
    float_vec,
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Flex;

    use super::*;

    /// Views whose storage lies otherwise, or holds more, are copied: values are those of the tensor.
    #[test]
    fn values_are_those_of_the_tensor_whatever_its_storage() {
        let data = TensorData::new((0..24).map(|i| i as f32).collect::<Vec<f32>>(), [4, 6]);
        let whole = Tensor::<Flex, 2>::from_data(data, &Default::default());
        let is_stored = |tensor: &Tensor<Flex, 2>| matches!(flex_values(tensor.clone()), FlexValues::Stored(_));
        assert!(is_stored(&whole), "it is read where it is");
        for tensor in
            [whole.clone().transpose(), whole.clone().narrow(0, 1, 2), whole.clone().narrow(0, 0, 2), whole.clone()]
        {
            assert_eq!(*flex_values(tensor.clone()), *float_vec(tensor.clone()));
            let other = tensor.clone() * 0.5;
            let expected: f64 = float_vec(tensor.clone()).into_iter().map(|x| f64::from(x * 0.5).powi(2)).sum();
            assert_eq!(Flex::squared_distance(&tensor, &other), expected);
        }
    }
}

//! The GPU backends: the hooks of [`QuantBackend`] through the kernels of this module.

use burn::tensor::{Tensor, get_device_settings};

use super::{dequantize, in_f32, matmul, packed_matmul, rounded_to_f16};
use crate::backend::{QuantBackend, Total};
use crate::grid::ScaleDtype;
use crate::kernel::DeviceWeight;
use crate::quantized::QuantizedWeight;

/// Every GPU backend: `burn::backend::Cuda` and `burn::backend::Wgpu` are this type, with burn's default feature `fusion`.
impl<R, F, I, BT> QuantBackend for burn_fusion::Fusion<burn_cubecl::CubeBackend<R, F, I, BT>>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
    const BESIDE_HOST: bool = true;
    crate::backend::bf16_by_definition!();

    /// An operation of its own: burn 0.21 panics where it fuses a cast with the reduction that reads it.
    fn in_f32<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, D> {
        in_f32(x)
    }

    /// Small ones by kernels that no timing chooses.
    fn matmul<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Tensor<Self, D> {
        matmul(a, b)
    }

    fn packed_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        packed_matmul(x, weight)
    }

    fn unpack_weight(weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        dequantize(weight, get_device_settings::<Self>(&weight.device()).float_dtype.into())
    }

    fn round_scales<const D: usize>(scale: Tensor<Self, D>, dtype: ScaleDtype) -> Tensor<Self, D> {
        match dtype {
            ScaleDtype::F16 => rounded_to_f16(scale),
            _ => crate::backend::rounded_on_host(scale, dtype),
        }
    }

    fn dot_product_later<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Total<Self> {
        Total::Queued((Self::in_f32(a) * Self::in_f32(b)).sum())
    }

    fn quadratic_form_later(d: Tensor<Self, 2>, g: Tensor<Self, 2>) -> Total<Self> {
        Self::dot_product_later(Self::matmul_transposed(d.clone(), g), d)
    }

    fn squared_distance_later<const D: usize>(a: &Tensor<Self, D>, b: &Tensor<Self, D>) -> Total<Self> {
        Total::Queued((Self::in_f32(a.clone()) - Self::in_f32(b.clone())).powi_scalar(2).sum())
    }

    /// Codes travel, and become floats there; other weights than the kernel takes travel as floats.
    fn dequantize_weight(weight: &QuantizedWeight, device: &Self::Device) -> Tensor<Self, 2> {
        match DeviceWeight::new(weight, device) {
            Ok(packed) => Self::unpack_weight(&packed),
            Err(_) => weight.to_tensor(device),
        }
    }
}

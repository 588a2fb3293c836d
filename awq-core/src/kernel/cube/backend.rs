//! The GPU backends: the hooks of [`QuantBackend`] through the kernels of this module.

use burn::tensor::{Tensor, get_device_settings};

use super::{dequantize, in_f32, packed_matmul};
use crate::backend::QuantBackend;
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

    fn packed_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        packed_matmul(x, weight)
    }

    fn unpack_weight(weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        dequantize(weight, get_device_settings::<Self>(&weight.device()).float_dtype.into())
    }

    /// Codes travel, and become floats there; other weights than the kernel takes travel as floats.
    fn dequantize_weight(weight: &QuantizedWeight, device: &Self::Device) -> Tensor<Self, 2> {
        match DeviceWeight::new(weight, device) {
            Ok(packed) => Self::unpack_weight(&packed),
            Err(_) => weight.to_tensor(device),
        }
    }
}

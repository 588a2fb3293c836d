//! Products with packed weights on a GPU (W2A16 to W4A16), in CubeCL: one source for CUDA, Vulkan, Metal and WebGPU.
//!
//! Up to [`TENSOR_CORE_MAX_ROWS`] rows of f16 or bf16 activations are multiplied by packed weights as they are on NVIDIA's
//! tensor cores (`tensor_core.rs`), and up to [`MATVEC_MAX_ROWS`] rows of activations of any type on every other device
//! (`matvec.rs`): codes become floats in registers, and sums are f32. More rows are worth writing the dequantized weight to
//! memory once (`dequantize.rs`) and multiplying as dense matrices are (`dense.rs`), on tensor cores where there are some.
//! Products have the type of the activations, f32, f16 or bf16.
//!
//! burn's GPU backends run operations lazily, in streams (`burn-fusion`): ours are registered there as custom operations
//! (`operation.rs`) so that they keep their place between burn's own, without waiting for the device.

#[cfg(feature = "wgpu")]
mod adapter;
mod backend;
pub mod bench;
pub mod compiled;
mod dense;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `launch` says why that is right")]
mod dequantize;
mod fragment;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `launch` says why that is right")]
mod gptq;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `launch` says why that is right")]
#[allow(clippy::duplicate_underscore_argument, reason = "`cube` makes an `_X` of the size `X`")]
mod matvec;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `copy` and `read` say why that is right")]
mod memory;
mod operation;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `launch` says why that is right")]
mod rounding;
#[allow(unsafe_code, reason = "kernels are launched unchecked; `launch` says why that is right")]
#[allow(clippy::duplicate_underscore_argument, reason = "`cube` makes an `_X` of the size `X`")]
mod tensor_core;
mod unpack;

use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;

#[cfg(feature = "wgpu")]
pub use adapter::has_wgpu_adapter;
pub(crate) use dense::matmul;
pub use gptq::GptqWeight;
use operation::Packed;

use self::bench::DeviceError;
use super::DeviceWeight;
use super::bench::Bandwidth;
use crate::backend::QuantBackend;

/// Rows of activations up to which packed weights are multiplied as they are, without tensor cores. An estimate, not yet
/// measured on a GPU: a multiplication and an addition for each row and code cost as much as reading the code at some 5 (H100)
/// to 20 (RTX 4090) rows, while dequantizing first moves 9 times the bytes of the packed weight.
pub const MATVEC_MAX_ROWS: usize = 16;

/// Rows up to which they are multiplied as they are on tensor cores. An estimate, too: at 128 rows an H100 has 16 instructions
/// to issue for each 4-bit code, at 29.6e12 a second, which is half the time that it takes to write the weight in f16 and read
/// it again, at 3.35 TB/s; at 256 rows the two are about equal.
pub const TENSOR_CORE_MAX_ROWS: usize = 128;

/// A GPU backend. The ways to multiply that [`QuantBackend::packed_matmul`] chooses from, one by one, and a baseline.
pub trait GpuBackend: QuantBackend {
    /// Bytes of the largest array that a device takes.
    fn largest_array(device: &Self::Device) -> usize;

    /// What a device's memory does: arrays of `bytes` together copied and read, each by a kernel of its own, which must be several
    /// times what its caches hold for that to be so.
    ///
    /// # Errors
    /// A device that fails, or whose copies are not what was copied.
    fn bandwidth(device: &Self::Device, bytes: usize, n_rounds: usize) -> Result<Bandwidth, DeviceError>;

    /// Whether a device multiplies activations of `dtype` on tensor cores in a way that [`Self::tensor_core_matmul`] knows.
    fn has_tensor_cores(device: &Self::Device, dtype: DType) -> bool;

    /// `x w^T` from packed codes, whatever the number of rows of `x: [n, n_in]`.
    fn packed_matvec(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2>;

    /// `x w^T` from packed codes on tensor cores, for f16 or bf16 activations and a weight that
    /// [`on_tensor_cores`](crate::kernel::UnitFacts::on_tensor_cores) allows. Devices without tensor cores compute the same,
    /// slowly: for tests.
    fn tensor_core_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2>;

    /// `x w^T` with the weight dequantized into memory first.
    fn dequantized_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2>;

    /// `x w^T` with a weight in GPTQ's layout; scales have the type of `x`.
    fn gptq_matmul(x: Tensor<Self, 2>, weight: &GptqWeight<Self>) -> Tensor<Self, 2>;
}

impl<R, F, I, BT> GpuBackend for Cube<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn largest_array(device: &Self::Device) -> usize {
        usize::try_from(R::client(device).properties().memory.max_page_size).unwrap_or(usize::MAX)
    }

    fn bandwidth(device: &Self::Device, bytes: usize, n_rounds: usize) -> Result<Bandwidth, DeviceError> {
        memory::bandwidth(R::client(device), bytes, n_rounds)
    }

    fn has_tensor_cores(device: &Self::Device, dtype: DType) -> bool {
        tensor_core::is_native(&R::client(device), dtype)
    }

    fn packed_matvec(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        product(x, weight, Packed::Matvec)
    }

    fn tensor_core_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        assert!(matches!(x.dtype(), DType::F16 | DType::BF16), "activations of {:?} on tensor cores", x.dtype());
        assert!(weight.facts().on_tensor_cores(), "a weight whose zero points are no codes, on tensor cores");
        product(x, weight, Packed::TensorCore)
    }

    fn dequantized_matmul(x: Tensor<Self, 2>, weight: &DeviceWeight<Self>) -> Tensor<Self, 2> {
        check_channels(&x, weight.facts.n_in);
        let dtype = x.dtype();
        Self::matmul_transposed(x, dequantize(weight, dtype))
    }

    fn gptq_matmul(x: Tensor<Self, 2>, weight: &GptqWeight<Self>) -> Tensor<Self, 2> {
        check_channels(&x, weight.facts.n_in);
        assert_eq!(x.dtype(), weight.scales.dtype(), "activations and scales are of different types");
        let product = operation::gptq::<R, F, I, BT>(x.into_primitive().tensor(), weight);
        Tensor::from_primitive(TensorPrimitive::Float(product))
    }
}

fn product<R, F, I, BT>(
    x: Tensor<Cube<R, F, I, BT>, 2>,
    weight: &DeviceWeight<Cube<R, F, I, BT>>,
    how: Packed,
) -> Tensor<Cube<R, F, I, BT>, 2>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    check_channels(&x, weight.facts.n_in);
    let product = operation::product::<R, F, I, BT>(
        x.into_primitive().tensor(),
        weight.words.clone().into_primitive(),
        weight.params.clone().into_primitive(),
        weight.facts,
        how,
    );
    Tensor::from_primitive(TensorPrimitive::Float(product))
}

fn check_channels<B: QuantBackend>(x: &Tensor<B, 2>, n_in: usize) {
    let found = x.dims()[1];
    assert_eq!(found, n_in, "activations of {found} channels for a weight that takes {n_in}");
}

/// See [`QuantBackend::packed_matmul`].
pub(crate) fn packed_matmul<B: GpuBackend>(x: Tensor<B, 2>, weight: &DeviceWeight<B>) -> Tensor<B, 2> {
    let n_rows = x.dims()[0];
    let on_tensor_cores = weight.facts().on_tensor_cores() && B::has_tensor_cores(&x.device(), x.dtype());
    if on_tensor_cores && n_rows <= TENSOR_CORE_MAX_ROWS {
        B::tensor_core_matmul(x, weight)
    } else if n_rows <= MATVEC_MAX_ROWS {
        B::packed_matvec(x, weight)
    } else {
        B::dequantized_matmul(x, weight)
    }
}

/// See [`QuantBackend::in_f32`].
pub(crate) fn in_f32<R, F, I, BT, const D: usize>(x: Tensor<Cube<R, F, I, BT>, D>) -> Tensor<Cube<R, F, I, BT>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    if x.dtype() == DType::F32 {
        return x;
    }
    let wide = operation::widen::<R, F, I, BT>(x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(wide))
}

/// Values of f32 rounded half to even to f16, as f32.
pub(crate) fn rounded_to_f16<R, F, I, BT, const D: usize>(
    x: Tensor<Cube<R, F, I, BT>, D>,
) -> Tensor<Cube<R, F, I, BT>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    assert_eq!(x.dtype(), DType::F32, "values to be rounded to f16");
    let rounded = operation::rounded_to_f16::<R, F, I, BT>(x.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(rounded))
}

/// The weights that packed codes stand for, `[out, in]` of `dtype`.
pub(crate) fn dequantize<R, F, I, BT>(
    weight: &DeviceWeight<Cube<R, F, I, BT>>,
    dtype: DType,
) -> Tensor<Cube<R, F, I, BT>, 2>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let values = operation::dequantize::<R, F, I, BT>(
        weight.words.clone().into_primitive(),
        weight.params.clone().into_primitive(),
        weight.facts,
        dtype,
    );
    Tensor::from_primitive(TensorPrimitive::Float(values))
}

/// A GPU backend as burn's default features make it.
type Cube<R, F, I, BT> = Fusion<CubeBackend<R, F, I, BT>>;

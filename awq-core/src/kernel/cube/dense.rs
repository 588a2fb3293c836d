//! Dense products of small matrices, by a kernel that a rule chooses.
//!
//! burn has some thirty kernels compiled for each kind of product (types, layouts, sizes to a power of two) and keeps the fastest. On
//! CUDA that is half a minute each, and of 550 kernels that the quickstart had compiled 294 were such candidates, with 96% of all
//! code. A product of less than [`WORTH_TUNING`] operations does not earn that back.

use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeRuntime, FloatElement, IntElement};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::{Cube, operation};

/// Operations of a product from which on burn finds the fastest kernel. An estimate: they take a GPU 0.1 ms and more, so that ten
/// thousand products that are half as fast as they could be cost what the tuning does.
const WORTH_TUNING: f64 = 2e10;

/// `a b` for `[.., m, k]` and `[.., k, n]` with the same dimensions before the last two.
pub(crate) fn matmul<R, F, I, BT, const D: usize>(
    a: Tensor<Cube<R, F, I, BT>, D>,
    b: Tensor<Cube<R, F, I, BT>, D>,
) -> Tensor<Cube<R, F, I, BT>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let n_operations = 2.0 * a.shape().num_elements() as f64 * b.dims()[D - 1] as f64;
    if n_operations >= WORTH_TUNING || a.dtype() != b.dtype() {
        return a.matmul(b);
    }
    let (a, b) = (a.into_primitive().tensor(), b.into_primitive().tensor());
    Tensor::from_primitive(TensorPrimitive::Float(operation::dense::<R, F, I, BT>(a, b)))
}

/// The kernels that are tried for a type, in order: a kernel may not be for this device or these sizes, but the last is for all.
/// Products of f32 stay f32: tensor cores would round their factors to TF32.
fn strategies(dtype: DType) -> Vec<Strategy> {
    let any = [Strategy::SimpleUnit(Default::default()), Strategy::Naive];
    let tensor_cores =
        matches!(dtype, DType::F16 | DType::BF16).then(|| Strategy::SimpleCyclicCmma(Default::default()));
    tensor_cores.into_iter().chain(any).collect()
}

/// Computes a product as soon as its factors are there.
pub(super) fn launch<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let (client, device, dtype) = (a.client.clone(), a.device.clone(), a.dtype);
    let mut shape = a.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = b.meta.shape()[last];
    let out = client.empty(shape.num_elements() * dtype.size());
    let out = CubeTensor::new_contiguous(client.clone(), device, shape, out, dtype);
    for strategy in strategies(dtype) {
        let globals = MatmulGlobalElems { lhs: dtype.into(), rhs: dtype.into(), out: dtype.into() };
        let factor = |tensor: &CubeTensor<R>| InputBinding::new(tensor.clone().binding(), dtype.into());
        let launched = launch_ref(
            &strategy,
            &client,
            factor(&a),
            factor(&b),
            out.clone().binding(),
            &mut MatmulElems::from_globals(&globals),
        );
        if launched.is_ok() {
            return out;
        }
    }
    panic!("no kernel multiplies {:?} by {:?} of {dtype:?}", a.meta.shape(), b.meta.shape())
}

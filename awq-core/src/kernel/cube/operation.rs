//! The kernels as operations of burn's streams.

use std::marker::PhantomData;

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use super::super::UnitFacts;
use super::gptq::{GptqFacts, GptqWeight};

/// A tensor of a stream.
type Lazy<R> = FusionTensor<FusionCubeRuntime<R>>;
/// The tensors that operations of a stream have made so far.
type Handles<R> = HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>;

/// How packed weights are multiplied.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packed {
    /// See `matvec.rs`.
    Matvec,
    /// See `tensor_core.rs`.
    TensorCore,
}

/// `x w^T`: activations `[n, n_in]`, words and parameters in, `[n, n_out]` out.
#[derive(Clone, Debug)]
struct Product<B> {
    place: CustomOpIr,
    facts: UnitFacts,
    how: Packed,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for Product<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([x, words, params], [out]) = self.place.as_fixed();
        let x = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(x);
        let words = handles.get_int_tensor::<CubeBackend<R, F, I, BT>>(words);
        let params = handles.get_int_tensor::<CubeBackend<R, F, I, BT>>(params);
        let product = match self.how {
            Packed::Matvec => super::matvec::launch(x, words, params, &self.facts),
            Packed::TensorCore => super::tensor_core::launch(x, words, params, &self.facts),
        };
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, product);
    }
}

/// Words and parameters in, `[n_out, n_in]` out.
#[derive(Clone, Debug)]
struct Dequantize<B> {
    place: CustomOpIr,
    facts: UnitFacts,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for Dequantize<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([words, params], [out]) = self.place.as_fixed();
        let weight = super::dequantize::launch(
            handles.get_int_tensor::<CubeBackend<R, F, I, BT>>(words),
            handles.get_int_tensor::<CubeBackend<R, F, I, BT>>(params),
            &self.facts,
            out.dtype,
        );
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, weight);
    }
}

/// `x w^T` in GPTQ's layout: activations, words, scales, zero points and groups in, `[n, n_out]` out.
#[derive(Clone, Debug)]
struct Gptq<B> {
    place: CustomOpIr,
    facts: GptqFacts,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for Gptq<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([x, words, scales, zero_points, group_of], [out]) = self.place.as_fixed();
        let x = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(x);
        let scales = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(scales);
        let mut int = |tensor: &TensorIr| handles.get_int_tensor::<CubeBackend<R, F, I, BT>>(tensor);
        let weight = [int(words), scales, int(zero_points), int(group_of)];
        let product = super::gptq::launch(x, weight, &self.facts);
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, product);
    }
}

/// `a b` of dense matrices: both in, their product out.
#[derive(Clone, Debug)]
struct Dense<B> {
    place: CustomOpIr,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for Dense<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([a, b], [out]) = self.place.as_fixed();
        let a = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(a);
        let b = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(b);
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, super::dense::launch(a, b));
    }
}

/// Floats in, the same values as f32 out.
#[derive(Clone, Debug)]
struct Widen<B> {
    place: CustomOpIr,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for Widen<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([narrow], [out]) = self.place.as_fixed();
        let narrow = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(narrow);
        let wide = CubeBackend::<R, F, I, BT>::float_cast(narrow, FloatDType::F32);
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, wide);
    }
}

/// Values of f32 in, the same rounded to f16 out.
#[derive(Clone, Debug)]
struct RoundToF16<B> {
    place: CustomOpIr,
    backend: PhantomData<B>,
}

impl<R, F, I, BT> Operation<FusionCubeRuntime<R>> for RoundToF16<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut Handles<R>) {
        let ([values], [out]) = self.place.as_fixed();
        let values = handles.get_float_tensor::<CubeBackend<R, F, I, BT>>(values);
        handles.register_float_tensor::<CubeBackend<R, F, I, BT>>(&out.id, super::rounding::launch(values));
    }
}

/// Puts a [`Product`] into the stream of `x`.
pub(super) fn product<R, F, I, BT>(
    x: Lazy<R>,
    words: Lazy<R>,
    params: Lazy<R>,
    facts: UnitFacts,
    how: Packed,
) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (client, streams) = (x.client.clone(), OperationStreams::with_inputs([&x, &words, &params]));
    let shape = Shape::new([x.shape[0], facts.n_out]);
    let out = TensorIr::uninit(client.create_empty_handle(), shape, x.dtype);
    let place = CustomOpIr::new("packed_product", &[x.into_ir(), words.into_ir(), params.into_ir()], &[out]);
    let operation = Product::<CubeBackend<R, F, I, BT>> { place: place.clone(), facts, how, backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

/// Puts a [`Dequantize`] into the stream of `words`.
pub(super) fn dequantize<R, F, I, BT>(words: Lazy<R>, params: Lazy<R>, facts: UnitFacts, dtype: DType) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (client, streams) = (words.client.clone(), OperationStreams::with_inputs([&words, &params]));
    let shape = Shape::new([facts.n_out, facts.n_in]);
    let out = TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let place = CustomOpIr::new("packed_dequantize", &[words.into_ir(), params.into_ir()], &[out]);
    let operation = Dequantize::<CubeBackend<R, F, I, BT>> { place: place.clone(), facts, backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

/// Puts a [`Gptq`] into the stream of `x`.
pub(super) fn gptq<R, F, I, BT>(x: Lazy<R>, weight: &GptqWeight<Fusion<CubeBackend<R, F, I, BT>>>) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let words = weight.words.clone().into_primitive();
    let scales = weight.scales.clone().into_primitive().tensor();
    let zero_points = weight.zero_points.clone().into_primitive();
    let group_of = weight.group_of.clone().into_primitive();
    let streams = OperationStreams::with_inputs([&x, &words, &scales, &zero_points, &group_of]);
    let client = x.client.clone();
    let shape = Shape::new([x.shape[0], weight.facts.n_out]);
    let out = TensorIr::uninit(client.create_empty_handle(), shape, x.dtype);
    let inputs = [x, words, scales, zero_points, group_of].map(FusionTensor::into_ir);
    let place = CustomOpIr::new("gptq_matvec", &inputs, &[out]);
    let operation =
        Gptq::<CubeBackend<R, F, I, BT>> { place: place.clone(), facts: weight.facts, backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

/// Puts a [`Dense`] into the stream of `a`: `[.., m, k]` and `[.., k, n]`, with the same dimensions before the last two.
pub(super) fn dense<R, F, I, BT>(a: Lazy<R>, b: Lazy<R>) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let last = a.shape.num_dims() - 1;
    assert_eq!(a.shape[..last - 1], b.shape[..last - 1], "products of {:?} by {:?}", a.shape, b.shape);
    assert_eq!(a.shape[last], b.shape[last - 1], "products of {:?} by {:?}", a.shape, b.shape);
    let (client, streams) = (a.client.clone(), OperationStreams::with_inputs([&a, &b]));
    let mut shape = a.shape.clone();
    shape[last] = b.shape[last];
    let out = TensorIr::uninit(client.create_empty_handle(), shape, a.dtype);
    let place = CustomOpIr::new("dense_product", &[a.into_ir(), b.into_ir()], &[out]);
    let operation = Dense::<CubeBackend<R, F, I, BT>> { place: place.clone(), backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

/// Puts a [`Widen`] into the stream of `narrow`.
pub(super) fn widen<R, F, I, BT>(narrow: Lazy<R>) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (client, streams) = (narrow.client.clone(), OperationStreams::with_inputs([&narrow]));
    let out = TensorIr::uninit(client.create_empty_handle(), narrow.shape.clone(), DType::F32);
    let place = CustomOpIr::new("widen", &[narrow.into_ir()], &[out]);
    let operation = Widen::<CubeBackend<R, F, I, BT>> { place: place.clone(), backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

/// Puts a [`RoundToF16`] into the stream of `values`.
pub(super) fn rounded_to_f16<R, F, I, BT>(values: Lazy<R>) -> Lazy<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (client, streams) = (values.client.clone(), OperationStreams::with_inputs([&values]));
    let out = TensorIr::uninit(client.create_empty_handle(), values.shape.clone(), DType::F32);
    let place = CustomOpIr::new("round_to_f16", &[values.into_ir()], &[out]);
    let operation = RoundToF16::<CubeBackend<R, F, I, BT>> { place: place.clone(), backend: PhantomData };
    client.register(streams, OperationIr::Custom(place), operation).output()
}

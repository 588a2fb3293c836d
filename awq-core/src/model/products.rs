//! [`Products`]: who multiplies with the linears of a block.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};

use burn::tensor::Tensor;

use super::LinearName;
use super::layers::Linear;
use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::kernel::{Activations, Kernel, QuantMatmul};
use crate::quantized::QuantizedWeight;

/// Computes the products of a block's linears. A forward pass asks it for every linear but those that stay in full precision.
pub trait Products<B: QuantBackend>: Debug + Send + Sync {
    /// `x W^T + b` of `linear`, which the block knows as `name`, for `x: [batch, seq, in]`.
    fn product(&self, name: LinearName, linear: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3>;
}

/// The plain matrix product.
impl<B: QuantBackend> Products<B> for Arithmetic {
    fn product(&self, _: LinearName, linear: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        linear.forward(x, *self)
    }
}

/// Products in bf16 with weights that are rounded once for all batches, and kept so beside those in f32: half as much memory again where the
/// CPU multiplies bf16, as much elsewhere. On a backend that computes in f32.
#[derive(Debug)]
pub struct RoundedProducts<B: QuantBackend> {
    weights: BTreeMap<LinearName, B::Bf16Weight>,
}

impl<B: QuantBackend> RoundedProducts<B> {
    /// Rounds the weights of some linears. All of them here, on all threads: a thread that waits for another to round the weight that it needs
    /// may take over work that waits for the same one.
    pub fn new<'a>(linears: impl IntoIterator<Item = (LinearName, &'a Linear<B>)>) -> Self {
        let rounded = |(name, linear): (_, &Linear<B>)| (name, B::bf16_weight(linear.weight.clone()));
        Self { weights: linears.into_iter().map(rounded).collect() }
    }
}

impl<B: QuantBackend> Products<B> for RoundedProducts<B> {
    fn product(&self, name: LinearName, linear: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.weights.get(&name) {
            Some(weight) => linear.forward_by(x, |x| B::matmul_bf16(x, weight)),
            None => linear.forward(x, Arithmetic::Bf16),
        }
    }
}

/// Codes multiplied by a kernel of the CPU ([`crate::kernel`]); linears without codes, or whose codes no kernel takes (kept or rotated
/// inputs, tables of values), in f32.
pub struct CodeProducts {
    packed: BTreeMap<LinearName, Box<dyn QuantMatmul>>,
}

impl CodeProducts {
    /// Packs the codes of some linears for the fastest kernel with such activations.
    pub fn new(codes: &BTreeMap<LinearName, QuantizedWeight>, activations: Activations) -> Self {
        let kernel = Kernel::best(activations);
        let packed = codes.iter().filter_map(|(name, weight)| Some((*name, kernel.pack(weight).ok()?)));
        Self { packed: packed.collect() }
    }

    /// The linears that a kernel multiplies.
    pub fn linears(&self) -> impl Iterator<Item = LinearName> {
        self.packed.keys().copied()
    }
}

impl Debug for CodeProducts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.packed.keys()).finish()
    }
}

impl<B: QuantBackend> Products<B> for CodeProducts {
    fn product(&self, name: LinearName, linear: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.packed.get(&name) {
            Some(weight) => linear.forward_by(x, |x| B::matmul_on_host(x, weight.as_ref())),
            None => linear.forward(x, Arithmetic::F32),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::backend::float_vec;
    use crate::grid::{Bits, Granularity, Grid};
    use crate::transform::{KeptInputs, WeightTransform};

    const N_IN: usize = 40;
    const N_OUT: usize = 24;

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<Flex, D> {
        let value = |i: usize| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn codes(transform: WeightTransform) -> QuantizedWeight {
        let grid = Grid::awq(Bits::new(4).unwrap(), Granularity::PerChannel);
        QuantizedWeight { transform, ..Flex::quantize_weight(tensor([N_OUT, N_IN], 3), &grid) }
    }

    #[test]
    fn weights_that_are_rounded_once_give_the_products_of_those_rounded_each_time() {
        let linear = Linear::<Flex> { weight: tensor([N_OUT, N_IN], 3), bias: Some(tensor([N_OUT], 5)) };
        let known = LinearName("known");
        let products = RoundedProducts::new([(known, &linear)]);
        for (seed, name) in [(11, known), (13, known), (11, LinearName("unknown"))] {
            let x = tensor([2, 3, N_IN], seed);
            let expected = float_vec(linear.forward(x.clone(), Arithmetic::Bf16));
            assert_eq!(float_vec(products.product(name, &linear, x)), expected, "{name:?}, {seed}");
        }
    }

    /// Activations rounded to 16 bits move a product by some 65,278ths; without codes for a kernel not a bit moves.
    #[test]
    fn codes_are_multiplied_with_bias_and_in_any_order_and_others_in_f32() {
        let (plain, permuted, kept) = (LinearName("plain"), LinearName("permuted"), LinearName("kept"));
        let order = (0..N_IN as u32).rev().collect();
        let kept_inputs = KeptInputs { channels: vec![3], values: vec![0.5; N_OUT] };
        let codes: BTreeMap<LinearName, QuantizedWeight> = [
            (plain, codes(WeightTransform::Identity)),
            (permuted, codes(WeightTransform::PermutedInputs(order))),
            (kept, codes(WeightTransform::KeptInputs(kept_inputs))),
        ]
        .into();
        let products = CodeProducts::new(&codes, Activations::Int16);
        assert_eq!(products.linears().collect::<Vec<_>>(), [permuted, plain]);
        for (name, codes) in &codes {
            let bias = Some(tensor([N_OUT], 5));
            let linear = Linear::<Flex> { weight: codes.to_tensor(&Default::default()), bias };
            let x = tensor([2, 3, N_IN], 11);
            let expected = float_vec(linear.forward(x.clone(), Arithmetic::F32));
            let found = products.product(*name, &linear, x);
            assert_eq!(found.dims(), [2, 3, N_OUT]);
            let moved = float_vec(found).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let most = if *name == kept { 0.0 } else { N_IN as f32 * 0.5 * 0.5 / 65_278.0 };
            assert!(moved <= most && (moved > 0.0 || most == 0.0), "{name}: {moved}, at most {most}");
        }
    }
}

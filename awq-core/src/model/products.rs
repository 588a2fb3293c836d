//! [`Products`]: who multiplies with the linears of a block.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::LinearName;
use super::layers::Linear;
use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;

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

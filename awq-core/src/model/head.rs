//! [`Head`]: the last product of a model, and what becomes of it.

use burn::tensor::Tensor;

use super::wiring::LogitsWiring;
use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;

/// The head of a decoder, in memory as long as it is used.
#[derive(Debug)]
pub struct Head<B: QuantBackend> {
    weight: Weight<B>,
    bias: Option<Tensor<B, 1>>,
    wiring: LogitsWiring,
}

/// `[vocab, width]`, as products in an arithmetic read it.
#[derive(Debug)]
enum Weight<B: QuantBackend> {
    F32(Tensor<B, 2>),
    Bf16(B::Bf16Weight),
    Bf16x3(Tensor<B, 2>),
}

impl<B: QuantBackend> Head<B> {
    /// Of a weight `[vocab, width]` and a bias `[vocab]`.
    pub(super) fn new(
        weight: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
        wiring: LogitsWiring,
        arithmetic: Arithmetic,
    ) -> Self {
        let weight = match arithmetic {
            Arithmetic::F32 => Weight::F32(weight),
            Arithmetic::Bf16 => Weight::Bf16(B::bf16_weight(weight)),
            Arithmetic::Bf16x3 => Weight::Bf16x3(weight),
        };
        Self { weight, bias, wiring }
    }

    /// Rows of [`super::Decoder::final_norm`], `[n, width]`, to logits `[n, vocab]`.
    pub fn logits(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = match &self.weight {
            Weight::F32(weight) => B::matmul_transposed(rows, weight.clone()),
            Weight::Bf16(weight) => B::matmul_bf16(rows, weight),
            Weight::Bf16x3(weight) => B::matmul_transposed_bf16x3(rows, weight.clone()),
        };
        let logits = match &self.bias {
            None => logits,
            Some(bias) => logits + bias.clone().unsqueeze::<2>(),
        };
        let logits = match self.wiring.divisor {
            None => logits,
            Some(divisor) => logits / divisor,
        };
        match self.wiring.cap {
            None => logits,
            Some(cap) => B::soft_cap(logits, cap),
        }
    }
}

//! Folding a per-channel scale into the previous op, such that the full-precision block computes what it did before.
//!
//! For linears `W` that read `x` and a scale `s`: `(x / s) (W diag(s))^T = x W^T`. The division goes into whatever makes `x`
//! (AWQ paper, section 3.2; the previous op of every group is data of the family).

use burn::tensor::Tensor;

use crate::backend::QuantBackend;
use crate::model::layers::{Linear, Norm};
use crate::model::{BlockParams, PrevOp, ScaleGroup};

/// Multiplies the input channels of the group's linears and followers by `scale: [in]` and divides the previous op's
/// output by it. What changes is f32 afterwards.
///
/// # Panics
/// If the scale has not as many channels as the previous op has outputs: the family's layout is wrong.
pub fn fold<B: QuantBackend>(mut params: BlockParams<B>, group: &ScaleGroup, scale: &Tensor<B, 1>) -> BlockParams<B> {
    for &name in group.linears.iter().chain(&group.followers) {
        let linear = params.linear(name);
        let weight = B::in_f32(linear.weight.clone()) * scale.clone().unsqueeze::<2>();
        let bias = linear.bias.clone();
        params.linears.insert(name, Linear { weight, bias });
    }
    match group.prev_op {
        PrevOp::Norm(name) => {
            let norm = params.norm(name).clone();
            assert_eq!(
                norm.weight.dims(),
                scale.dims(),
                "{}: the scale must have one entry a channel of the norm",
                name.0
            );
            let offset = norm.kind.offset();
            let weight = match offset == 0.0 {
                true => B::in_f32(norm.weight) / scale.clone(),
                false => (B::in_f32(norm.weight) + offset) / scale.clone() - offset,
            };
            let bias = norm.bias.map(|bias| B::in_f32(bias) / scale.clone());
            params.norms.insert(name, Norm { weight, bias, ..norm });
        }
        PrevOp::Linear(name) => {
            let linear = params.linear(name).clone();
            assert_eq!(
                linear.weight.dims()[0],
                scale.dims()[0],
                "{name}: the scale must have one entry an output of the linear"
            );
            let weight = B::in_f32(linear.weight) / scale.clone().unsqueeze_dim::<2>(1);
            let bias = linear.bias.map(|bias| B::in_f32(bias) / scale.clone());
            params.linears.insert(name, Linear { weight, bias });
        }
    }
    params
}

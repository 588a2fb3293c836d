//! Folding a scale must leave what the full-precision block computes as it was.

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::fold::fold;
use awq_core::model::tiny::TinySpec;
use awq_core::model::{BlockParams, NoTap, ScaleGroup};
use burn::tensor::Tensor;

use crate::support::{Case, Cpu, check_close, numbers, tensor};

/// Scales between 1/4 and 4.
fn scale_of(group: &ScaleGroup, case: &Case) -> Tensor<Cpu, 1> {
    let [_, n_in] = case.block.params().linear(group.linears[0]).weight.dims();
    tensor(&numbers(n_in, 5).iter().map(|x| 16_f32.powf(*x)).collect::<Vec<_>>(), [n_in])
}

fn check_folding_keeps_output(spec: &TinySpec, group_label: &str) {
    let case = Case::new(spec, &[2]);
    let groups = &case.block.layout().scale_groups;
    let group = groups.iter().find(|group| group.label() == group_label).unwrap();
    let scale = scale_of(group, &case);
    let folded = fold(case.block.params().clone(), group, &scale);
    assert_ne!(weights(&folded), weights(case.block.params()), "a scale must change weights");

    let run = |params: BlockParams<Cpu>| {
        float_vec(case.block.with_params(params).forward(case.hidden[0].clone(), &mut NoTap))
    };
    check_close(group_label, &run(folded.clone()), &run(case.block.params().clone()), 1e-5);

    let restored = fold(folded, group, &scale.recip());
    check_close(group_label, &weights(&restored), &weights(case.block.params()), 1e-6);
}

fn weights<B: QuantBackend>(params: &BlockParams<B>) -> Vec<f32> {
    let linears = params.linears.values().flat_map(|linear| {
        let bias = linear.bias.clone().map_or_else(Vec::new, float_vec);
        [float_vec(linear.weight.clone()), bias].concat()
    });
    linears.chain(params.norms.values().flat_map(|norm| float_vec(norm.weight.clone()))).collect()
}

const QKV: &str = "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj";

#[test]
fn folding_into_a_norm_keeps_output() {
    check_folding_keeps_output(&TinySpec::GQA, QKV);
    check_folding_keeps_output(&TinySpec::MHA, QKV);
    check_folding_keeps_output(&TinySpec::GQA, "mlp.gate_proj+mlp.up_proj");
}

#[test]
fn folding_into_a_linear_keeps_output() {
    check_folding_keeps_output(&TinySpec::GQA, "mlp.down_proj");
}

#[test]
fn folding_into_a_linear_with_bias_keeps_output() {
    check_folding_keeps_output(&TinySpec::MHA, "self_attn.o_proj");
}

/// One value channel feeds several columns of `o_proj` there: the official code leaves the pair out.
#[test]
fn grouped_queries_have_no_scale_on_the_output_projection() {
    let labels = |spec: &TinySpec| -> Vec<String> {
        Case::new(spec, &[1]).block.layout().scale_groups.iter().map(ScaleGroup::label).collect()
    };
    assert_eq!(labels(&TinySpec::GQA), [QKV, "mlp.gate_proj+mlp.up_proj", "mlp.down_proj"]);
    assert_eq!(labels(&TinySpec::MHA), [QKV, "self_attn.o_proj", "mlp.gate_proj+mlp.up_proj", "mlp.down_proj"]);
}

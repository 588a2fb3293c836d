//! Salient channels in full precision and under a fixed scale: the ablations of the paper's Tables 1 to 3.

use awq_core::awq::{FixedScale, KeepSalient, RandomChannels, SalientBy};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::method::{BlockEdit, MethodSettings};
use awq_core::model::LinearName;
use awq_core::model::tiny::TinySpec;
use awq_core::quantized::QuantizedWeight;
use awq_core::transform::WeightTransform;

use crate::support::{Case, Cpu, grid, group, no_search};

const DOWN: LinearName = LinearName("mlp.down_proj");

fn case() -> Case {
    Case::new(&TinySpec::MHA, &[4, 4])
}

fn kept(edit: &BlockEdit<Cpu>, linear: LinearName) -> &[u32] {
    match &edit.linears[&linear].transform {
        WeightTransform::KeptInputs(kept) => &kept.channels,
        other => panic!("{linear} has the transform {other:?}"),
    }
}

fn keep(fraction: f64, by: SalientBy) -> KeepSalient {
    KeepSalient { fraction, by }
}

/// The channels with the largest of some numbers, ascending.
fn largest(values: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
    order.truncate(n);
    order.sort_unstable();
    order
}

#[test]
fn kept_channels_are_those_asked_for_and_hold_the_weights_themselves() {
    let case = case();
    let plain = case.edit(&no_search(), &grid(3, group(32)));
    for facts in &case.block.layout().linears {
        let name = facts.name;
        let weight = float_vec(case.block.params().linear(name).weight.clone());
        let n_in = case.block.params().linear(name).weight.dims()[1];
        let mut norms = vec![0.0_f32; n_in];
        for row in weight.chunks(n_in) {
            norms.iter_mut().zip(row).for_each(|(norm, w)| *norm += w * w);
        }
        let mean_abs = float_vec(case.inputs.get(facts.input).unwrap().mean_abs());
        let n = (n_in as f64 * 0.1).round() as usize;
        for (by, saliency) in [(SalientBy::Activation, &mean_abs), (SalientBy::WeightNorm, &norms)] {
            let edit = case.edit(&keep(0.1, by), &grid(3, group(32)));
            let channels = kept(&edit, name);
            assert_eq!(channels, largest(saliency, n), "{name}");
            let (restored, rounded) = (edit.linears[&name].dequantize(), plain.linears[&name].dequantize());
            for (at, value) in restored.iter().enumerate() {
                let expected = if channels.contains(&((at % n_in) as u32)) { weight[at] } else { rounded[at] };
                assert_eq!(*value, expected, "{name}, entry {at}");
            }
        }
    }
}

#[test]
fn random_channels_follow_the_seed_and_differ_between_linears() {
    let case = case();
    let edit = |seed| case.edit(&keep(0.2, SalientBy::Random(RandomChannels { seed })), &grid(3, group(32)));
    let (first, again, other) = (edit(1), edit(1), edit(2));
    let q = LinearName("self_attn.q_proj");
    assert_eq!(kept(&first, q), kept(&again, q));
    assert_ne!(kept(&first, q), kept(&other, q));
    assert_ne!(kept(&first, q), kept(&first, LinearName("self_attn.k_proj")));
    assert!(kept(&first, q).windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((kept(&first, q).len(), kept(&first, DOWN).len()), (13, 19));
}

#[test]
fn at_least_one_channel_is_kept_and_what_is_kept_is_counted() {
    let case = case();
    let grid = grid(3, group(32));
    let plain = case.edit(&no_search(), &grid);
    let edit = case.edit(&keep(0.001, SalientBy::Activation), &grid);
    let bits = |edit: &BlockEdit<Cpu>| edit.linears[&DOWN].stored_bits();
    let n_out = edit.linears[&DOWN].n_out as u64;
    assert_eq!(bits(&edit), bits(&plain) + 32 + n_out * 32);
    assert_eq!(keep(0.001, SalientBy::Activation).label(), "FP 0.1% (activation)");
    assert_eq!(keep(0.03, SalientBy::WeightNorm).label(), "FP 3% (weight norm)");
}

#[test]
fn keeping_everything_restores_the_weight() {
    let case = case();
    let edit = case.edit(&keep(1.0, SalientBy::Activation), &grid(2, group(32)));
    for (name, quantized) in &edit.linears {
        assert_eq!(quantized.dequantize(), float_vec(case.block.params().linear(*name).weight.clone()), "{name}");
    }
}

#[test]
fn a_fixed_scale_of_one_is_plain_rounding() {
    let case = case();
    let grid = grid(3, group(32));
    let edit = case.edit(&FixedScale { fraction: 0.1, scale: 1.0 }, &grid);
    assert_eq!(edit.linears, case.edit(&no_search(), &grid).linears);
    for log in &edit.log.linears {
        let change = log.step_change.unwrap();
        assert_eq!((change.n_changed, change.mean_ratio), (0, 1.0), "{}", log.linear);
    }
}

#[test]
fn a_fixed_scale_is_on_the_most_active_channels_and_its_steps_are_told() {
    let case = case();
    let grid = grid(3, group(32));
    let edit = case.edit(&FixedScale { fraction: 0.1, scale: 2.0 }, &grid);
    for (group_idx, scale) in &edit.scales {
        let first = case.block.layout().scale_groups[*group_idx].linears[0];
        let scale = float_vec(scale.clone());
        let n = (scale.len() as f64 * 0.1).round() as usize;
        let salient = largest(&float_vec(case.inputs.get(first).unwrap().mean_abs()), n);
        for (channel, &scale) in scale.iter().enumerate() {
            assert_eq!(scale, if salient.contains(&(channel as u32)) { 2.0 } else { 1.0 }, "{first}, {channel}");
        }
    }
    // Counted again for down_proj by hand: only its columns are scaled before steps are compared.
    let (_, scale) = edit.scales.iter().find(|(i, _)| case.block.layout().scale_groups[*i].linears == [DOWN]).unwrap();
    let weight = case.block.params().linear(DOWN).weight.clone();
    let steps = |weight| -> Vec<f32> { QuantizedWeight::clone(&Cpu::quantize_weight(weight, &grid)).scale };
    let (before, after) = (steps(weight.clone()), steps(weight * scale.clone().unsqueeze::<2>()));
    let log = edit.log.linears.iter().find(|log| log.linear == DOWN.0).unwrap().step_change.unwrap();
    assert_eq!(log.n_groups, before.len() as u64);
    assert_eq!(log.n_changed, before.iter().zip(&after).filter(|(a, b)| a != b).count() as u64);
    assert!(log.n_changed > 0 && log.n_changed < log.n_groups);
    assert!(log.mean_ratio > 1.0 && log.mean_ratio < 2.0, "{}", log.mean_ratio);
}

#[test]
fn a_fixed_scale_on_active_channels_beats_plain_rounding() {
    let case = case();
    let grid = grid(3, group(32));
    let loss = |edit: &BlockEdit<Cpu>| -> f64 {
        let name = LinearName("self_attn.q_proj");
        let weight = case.block.params().linear(name).weight.clone();
        let group = case.block.layout().scale_groups.iter().position(|group| group.linears.contains(&name));
        let mut restored = edit.linears[&name].to_tensor::<Cpu>(&weight.device());
        if let Some((_, scale)) = edit.scales.iter().find(|(group_idx, _)| Some(*group_idx) == group) {
            restored = restored / scale.clone().unsqueeze::<2>();
        }
        let delta = restored - weight;
        float_vec((delta.clone().matmul(case.inputs.get(name).unwrap().gram()) * delta).sum())[0].into()
    };
    let scaled = loss(&case.edit(&FixedScale { fraction: 0.0625, scale: 2.0 }, &grid));
    let plain = loss(&case.edit(&no_search(), &grid));
    assert!(scaled < plain, "{scaled} is not below {plain}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let fixed = |fraction, scale| FixedScale { fraction, scale };
    assert_eq!(
        fixed(0.01, 0.0).check().unwrap_err(),
        "scale = 0 is not a positive number; the paper has 1, 1.25, 1.5, 2 and 4"
    );
    assert_eq!(fixed(1.5, 2.0).check().unwrap_err(), "fraction = 1.5 is outside 0 .. 1; 1% of the channels is 0.01");
    assert!(keep(0.0, SalientBy::Activation).check().is_err());
    assert_eq!((fixed(0.01, 1.25).check(), fixed(0.01, 1.25).label()), (Ok(()), "s=1.25 on 1%".into()));
}

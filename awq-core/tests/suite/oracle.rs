//! Differential tests: SmolLM2-135M against vectors that an independent implementation made. Skipped, with a line saying
//! so, where the folders of `AWQ_ASSETS` (a list as PATH is) lack the files.

use std::path::PathBuf;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{Awq, ClipStep};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::BlockInputs;
use awq_core::fold::fold;
use awq_core::grid::{Granularity, Grid};
use awq_core::method::{BlockCtx, BlockEdit, QuantMethod};
use awq_core::model::{Block, Decoder, LinearName, NoTap, open_decoder};
use awq_core::open::open_model;
use awq_core::quantized::ZeroPoints;
use burn::tensor::Tensor;
use safetensors::{Dtype, SafeTensors};

use crate::support::{Cpu, check_close, grid, group, loss_error, no_search, official_awq, tensor};

/// The file called `name` in one of the folders of `AWQ_ASSETS`.
pub(crate) fn asset(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("AWQ_ASSETS").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: no {name} in the folders of AWQ_ASSETS");
    }
    found
}

/// A file of vectors.
struct Vectors(Vec<u8>);

impl Vectors {
    fn open(name: &str) -> Option<Self> {
        asset(name).map(|file| Self(std::fs::read(file).unwrap()))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let bytes = view.data();
        match view.dtype() {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x).into()).collect(),
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect(),
            Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|x| i32::from_le_bytes(*x).into()).collect(),
            Dtype::U8 => bytes.iter().map(|&x| x.into()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.numbers(name).into_iter().map(|x| x as f32).collect()
    }

    /// Token ids in sequences of `len`.
    fn ids(&self, name: &str, len: usize) -> Vec<Vec<u32>> {
        self.numbers(name).chunks(len).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    }
}

fn smollm2() -> Option<Box<dyn Decoder<Cpu>>> {
    let model = open_model(&asset("SmolLM2-135M-Instruct.Q4_1.gguf")?).unwrap();
    Some(open_decoder(model.config, model.checkpoint, &Default::default()).unwrap())
}

#[test]
fn forward_pass_is_that_of_the_oracle() {
    let (Some(decoder), Some(vectors)) = (smollm2(), Vectors::open("forward.safetensors")) else { return };
    let ids = vectors.ids("ids", 32);
    let mut hidden = decoder.embedding().unwrap().embed(&ids);
    assert_eq!(float_vec(hidden.clone()), vectors.floats("embed"));
    for block_idx in 0..decoder.config().n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
        let name = format!("block{block_idx}_out");
        check_close(&name, &float_vec(hidden.clone()), &vectors.floats(&name), 1e-4);
    }
    let normed = decoder.final_norm(hidden);
    check_close("final_norm", &float_vec(normed.clone()), &vectors.floats("final_norm"), 1e-3);
    let logits = decoder.head(Arithmetic::F32).unwrap().logits(normed.reshape([32, 576]));
    check_close("logits", &float_vec(logits.clone()), &vectors.floats("logits"), 1e-3);

    let nll = Cpu::token_nll(logits.narrow(0, 0, 31), &ids[0][1..]);
    let expected = vectors.floats("nll");
    check_close("nll", &nll, &expected, 1e-3);
    let mean = |values: &[f32]| values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    assert!((mean(&nll) - mean(&expected)).abs() < 1e-4, "mean nll {} {}", mean(&nll), mean(&expected));
}

/// Every entry `int<bits>_g<group>_<linear>`.
#[test]
fn plain_rounding_gives_the_codes_of_the_oracle() {
    let (Some(decoder), Some(vectors)) = (smollm2(), Vectors::open("rtn_b0.safetensors")) else { return };
    let block = decoder.block(0).unwrap();
    let mut n_checked = 0;
    for name in vectors.names() {
        let Some(key) = name.strip_suffix("_codes_u8") else { continue };
        let [bits, size, linear] = <[&str; 3]>::try_from(key.splitn(3, '_').collect::<Vec<_>>()).unwrap();
        let granularity = match size {
            "g-1" => Granularity::PerChannel,
            size => group(size[1..].parse().unwrap()),
        };
        let grid = grid(bits[3..].parse().unwrap(), granularity);
        let facts = block.layout().linears.iter().find(|facts| facts.name.0 == linear).unwrap();
        let found = Cpu::quantize_weight(block.params().linear(facts.name).weight.clone(), &grid);
        let codes: Vec<u8> = vectors.numbers(&name).iter().map(|&code| code as u8).collect();
        let differing = found.codes.iter().zip(&codes).filter(|(a, b)| a != b).count();
        assert_eq!((differing, found.codes.len()), (0, codes.len()), "{key}: codes that differ, of all");
        assert_eq!(found.scale, vectors.floats(&format!("{key}_qscale")), "{key}");
        let zeros: Vec<u8> = vectors.numbers(&format!("{key}_qzero_u8")).iter().map(|&zero| zero as u8).collect();
        assert_eq!(found.zero_point, ZeroPoints::Codes(zeros), "{key}");
        n_checked += 1;
    }
    assert_eq!(n_checked, 17, "entries in the file");
}

#[test]
fn mean_activations_are_those_of_the_oracle() {
    let (Some(decoder), Some(vectors)) = (smollm2(), Vectors::open("calib.safetensors")) else { return };
    let sequences = vectors.ids("calib_ids_32x512", 512);
    let block = decoder.block(0).unwrap();
    let hidden: Vec<_> = sequences[..8].chunks(3).map(|batch| decoder.embedding().unwrap().embed(batch)).collect();
    let (inputs, _) = BlockInputs::capture(block.as_ref(), &hidden);
    for linear in ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"] {
        let name = block.layout().linears.iter().find(|facts| facts.name.0 == linear).unwrap().name;
        let found = float_vec(inputs.get(name).unwrap().mean_abs());
        check_close(linear, &found, &vectors.floats(&format!("b0_{linear}_xmean_8x512")), 1e-4);
    }
}

/// Block 0 with the first two calibration sequences, 3 bit in groups of 64.
struct Replay {
    vectors: Vectors,
    block: Box<dyn Block<Cpu>>,
    inputs: BlockInputs<Cpu>,
    output: Tensor<Cpu, 3>,
}

const GROUPS: [(&str, &str); 3] = [
    ("qkv", "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj"),
    ("gate_up", "mlp.gate_proj+mlp.up_proj"),
    ("down", "mlp.down_proj"),
];

impl Replay {
    fn open() -> Option<Self> {
        let (decoder, calibration) = (smollm2()?, Vectors::open("calib.safetensors")?);
        let vectors = Vectors::open("awq_gptq_b0_small_int3_g64.safetensors")?;
        let hidden = decoder.embedding().unwrap().embed(&calibration.ids("calib_ids_32x512", 512)[..2]);
        assert_eq!(float_vec(hidden.clone()), vectors.floats("block0_input"));
        let block = decoder.block(0).unwrap();
        let (inputs, mut outputs) = BlockInputs::capture(block.as_ref(), &[hidden]);
        Some(Self { vectors, block, inputs, output: outputs.remove(0) })
    }

    fn grid() -> Grid {
        grid(3, group(64))
    }

    fn edit(&self, method: &dyn QuantMethod<Cpu>) -> BlockEdit<Cpu> {
        let grids = &Self::grid().into();
        let linears = &self.block.layout().linears;
        let ctx = BlockCtx {
            block_idx: 0,
            block: self.block.as_ref(),
            inputs: Some(&self.inputs),
            linears,
            grids,
            listener: &|_| {},
        };
        method.quantize_block(&ctx).unwrap()
    }
}

#[test]
fn scale_search_is_that_of_the_official_code() {
    let Some(replay) = Replay::open() else { return };
    let vectors = &replay.vectors;
    check_close("block output", &float_vec(replay.output.clone()), &vectors.floats("block0_output"), 1e-5);
    let edit = replay.edit(&Awq { clip: ClipStep::Off, ..official_awq() });
    for (short, label) in GROUPS {
        let (place, log) =
            edit.log.scale_searches.iter().enumerate().find(|(_, search)| search.group == label).unwrap();
        let linear = replay.block.layout().scale_groups[place].linears[0];
        let mean = replay.inputs.get(linear).unwrap().mean_abs();
        check_close(short, &float_vec(mean), &vectors.floats(&format!("{short}_xmean")), 1e-4);
        let expected = vectors.numbers(&format!("{short}_loss20"));
        assert_eq!(log.losses.len(), expected.len());
        let errors = expected.iter().enumerate().map(|(idx, &loss)| loss_error(log, idx, loss));
        let largest_error = errors.fold(0.0, f64::max);
        println!("{short}: largest relative difference of the 20 losses {largest_error:e}");
        assert!(largest_error < 0.01, "{short}: {:?} instead of {expected:?}", log.losses);
        assert!((log.ratio - vectors.numbers(&format!("{short}_ratio"))[0]).abs() < 1e-6, "{short}: {}", log.ratio);
        check_close(short, &float_vec(edit.scales[place].1.clone()), &vectors.floats(&format!("{short}_scales")), 1e-3);
    }
}

/// From the oracle's own scales, to the bit: a group that is clipped on both sides spans -m ..= m, its zero point is the
/// rounded 3.5, and the last bit of a scale decides which way that goes.
#[test]
fn clip_bounds_and_codes_are_those_of_the_official_code() {
    let Some(replay) = Replay::open() else { return };
    let ClipStep::Search(clip) = official_awq().clip else { unreachable!() };
    let layout = replay.block.layout();
    let mut params = replay.block.params().clone();
    let mut scales = Vec::new();
    for group in &layout.scale_groups {
        let (short, _) = GROUPS.iter().find(|(_, label)| *label == group.label()).unwrap();
        let scale = replay.vectors.floats(&format!("{short}_scales"));
        let scale = tensor::<Cpu, 1>(&scale, [scale.len()]);
        params = fold(params, group, &scale);
        scales.push((&group.linears, scale));
    }
    for facts in &layout.linears {
        let mut weight = params.linear(facts.name).weight.clone();
        if facts.clips {
            // 1,024 tokens, of which every second judges.
            let mut rows = replay.inputs.get(facts.input).unwrap().sampled_rows(clip.n_tokens.get());
            assert_eq!(rows.dims()[0], 512);
            if let Some((_, scale)) = scales.iter().find(|(linears, _)| linears.contains(&facts.name)) {
                rows = rows / scale.clone().unsqueeze::<2>();
            }
            let grams: Vec<Tensor<Cpu, 2>> = (0..rows.dims()[1])
                .step_by(64)
                .map(|start| rows.clone().narrow(1, start, 64))
                .map(|x| x.clone().transpose().matmul(x) / 512.0)
                .collect();
            let found = Cpu::clip_search(weight, &grams, &Replay::grid(), &clip.factors());
            let expected = replay.vectors.floats(&format!("{}_clipmax", facts.name));
            let share = share(&float_vec(found.bound), &expected, |a, b| (a - b).abs() <= 1e-3 * b.abs());
            println!("{}: {:.4}% of the bounds equal", facts.name, 100.0 * share);
            assert!(share > 0.999, "{}: {share} of the bounds equal", facts.name);
            weight = found.weight;
        }
        let codes = Cpu::quantize_weight(weight, &Replay::grid()).codes;
        check_codes(&replay, facts.name, &codes, 0.999);
    }
}

/// From our own scales, which differ in last bits: see above for what that does to clipped groups.
#[test]
fn awq_from_end_to_end_gives_nearly_the_codes_of_the_official_code() {
    let Some(replay) = Replay::open() else { return };
    let edit = replay.edit(&official_awq());
    let plain = replay.edit(&no_search());
    for facts in &replay.block.layout().linears {
        let found = &edit.linears[&facts.name];
        check_codes(&replay, facts.name, &found.codes, if facts.clips { 0.95 } else { 0.999 });
        let expected = replay.vectors.floats(&format!("awq_{}_qscale", facts.name));
        let share = share(&found.scale, &expected, |a, b| (a - b).abs() <= 1e-3 * b.abs());
        assert!(share > 0.9, "{}: {share} of the scales equal", facts.name);
        let plain = codes_share(&replay, facts.name, &plain.linears[&facts.name].codes);
        assert!(plain < 0.95, "{}: plain rounding has {plain} of the codes", facts.name);
    }
}

#[track_caller]
fn check_codes(replay: &Replay, linear: LinearName, codes: &[u8], least: f64) {
    let share = codes_share(replay, linear, codes);
    println!("{linear}: {:.4}% of the codes equal", 100.0 * share);
    assert!(share > least, "{linear}: {share} of the codes equal");
}

fn codes_share(replay: &Replay, linear: LinearName, codes: &[u8]) -> f64 {
    let codes: Vec<f32> = codes.iter().map(|&code| code.into()).collect();
    share(&codes, &replay.vectors.floats(&format!("awq_{linear}_codes_u8")), |a, b| a == b)
}

fn share(found: &[f32], expected: &[f32], same: fn(f32, f32) -> bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).filter(|(a, b)| same(**a, **b)).count() as f64 / expected.len() as f64
}

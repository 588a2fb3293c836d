//! Folders that formats write, as other tools do, read again; and folders that are damaged.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::*;
use crate::formats::tests::{grid, permuted, weight as random_weight};
use crate::formats::{Container, FORMATS, Format, Integers, Plan, PlannedLinear, awq, compressed, gptq};
use crate::grid::{Bits, ScaleDtype, Symmetry};
use crate::load::testing::{Stored, write_safetensors};
use crate::load::{foreign, read_json};
use crate::quantized::{QuantizedWeight, StoredParts};
use crate::transform::WeightTransform;

const LINEAR: &str = "model.layers.0.mlp.up_proj";

fn dtype(name: &str) -> Dtype {
    [Dtype::I32, Dtype::I64, Dtype::F16, Dtype::F32].into_iter().find(|dtype| format!("{dtype:?}") == name).unwrap()
}

/// The tensors of a linear in a format.
fn tensors(format: &dyn Format, weight: &QuantizedWeight) -> Vec<(String, Stored)> {
    let stored = |tensor: crate::formats::FormatTensor| {
        let stored = Stored { dtype: dtype(tensor.dtype), shape: tensor.shape, bytes: tensor.bytes };
        (format!("{LINEAR}.{}", tensor.part), stored)
    };
    let norm = ("model.norm.weight".to_owned(), Stored::f32(&[2], &[1.0, 2.0]));
    format.tensors(weight).into_iter().map(stored).chain([norm]).collect()
}

fn settings(format: &dyn Format, weight: &QuantizedWeight) -> Json {
    let linear = PlannedLinear { grid: weight.grid, shape: [weight.n_out, weight.n_in] };
    let stored =
        StoredParts { has_input_order: weight.transform != WeightTransform::Identity, ..StoredParts::default() };
    format.settings(&Plan {
        linears: BTreeMap::from([(LINEAR.to_owned(), linear)]),
        others: vec!["lm_head".into()],
        stored,
        dtype: None,
        writer: "awq-rs 0.1.0".into(),
        obstacle: None,
        gguf_obstacle: None,
    })
}

fn folder(settings: &Json, tensors: &[(String, Stored)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "quantization_config": settings });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let copied =
        |stored: &Stored| Stored { dtype: stored.dtype, shape: stored.shape.clone(), bytes: stored.bytes.clone() };
    let tensors: Vec<(&str, Stored)> = tensors.iter().map(|(name, stored)| (name.as_str(), copied(stored))).collect();
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn opened(folder: &Path) -> Result<(SafetensorsCheckpoint, IntegersCheckpoint, Scheme), LoadError> {
    let file = folder.join("config.json");
    let scheme = foreign::check_settings(folder, &file, &read_json::<Json>(&file)?)?.unwrap();
    let foreign::Scheme::Integers(scheme) = scheme else { panic!("{scheme:?}") };
    let checkpoint = open(SafetensorsCheckpoint::open_folder(folder)?, &scheme)?;
    Ok((SafetensorsCheckpoint::open_folder(folder)?, checkpoint, scheme))
}

/// The integers of the one linear.
fn integers(folder: &Path) -> Integers {
    let (base, _, scheme) = opened(folder).unwrap();
    let codes = base.names().into_iter().find_map(|name| weight(&base, &name, &scheme).unwrap());
    codes.unwrap().1.integers(&base).unwrap()
}

#[track_caller]
fn check_read_again(format: &dyn Format, weight: &QuantizedWeight) {
    let folder = folder(&settings(format, weight), &tensors(format, weight));
    let (_, checkpoint, _) = opened(folder.path()).unwrap();
    let (name, label) = (format!("{LINEAR}.weight"), format!("{} {:?}", format.key(), weight.grid));
    assert_eq!(checkpoint.names(), [name.clone(), "model.norm.weight".to_owned()], "{label}");
    assert_eq!(checkpoint.shape(&name), Some(vec![weight.n_out, weight.n_in]), "{label}");
    let products = weight.grid.scale_dtype.number();
    let expected: Vec<f32> = weight.dequantize().into_iter().map(|value| products.round(value)).collect();
    assert!(checkpoint.read_f32(&name).unwrap() == expected, "{label}");
    let stored = checkpoint.stored_type(&name).unwrap();
    let n_weights = (weight.n_out * weight.n_in) as f64;
    if weight.grid.granularity.groups(weight.n_out, weight.n_in).n_groups() >= weight.n_out {
        let expected = weight.stored_bits() as f64 / n_weights;
        let has_zero_points = format.key() == "awq" && weight.grid.symmetry != Symmetry::Asymmetric;
        assert!(has_zero_points || (stored.bits_per_weight - expected).abs() < 1e-9, "{label}: {stored:?}, {expected}");
    }
    let read = integers(folder.path()).to_weight(weight.grid.scale_dtype).unwrap();
    assert!(read.dequantize() == weight.dequantize(), "{label}");
    let codes = checkpoint.read_codes(&name).unwrap().unwrap().dequantize();
    assert!(codes.into_iter().map(|value| products.round(value)).eq(expected), "{label}");
    // Of channels in an order of rounding, those of a group are read in the model's own.
    if weight.grid.granularity.n_groups(weight.n_in) > 1 && weight.transform == WeightTransform::Identity {
        let parts = |weight: &QuantizedWeight| (weight.codes.clone(), weight.scale.clone(), weight.zero_point.clone());
        assert!(parts(&read) == parts(weight) && read.transform == weight.transform, "{label}");
    }
}

#[test]
fn what_formats_write_is_read_again() {
    let mut n_read = 0;
    for format in FORMATS.iter().filter(|format| format.container() == Container::Folder) {
        for bits in 2..=8 {
            for symmetry in [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted] {
                for (group, is_ordered) in [(Some(24), false), (Some(40), false), (None, false), (Some(24), true)] {
                    let mut weight = random_weight([32, 96], grid(bits, group, symmetry));
                    if is_ordered {
                        weight = permuted(weight);
                    }
                    let linear = PlannedLinear { grid: weight.grid, shape: [32, 96] };
                    let stored = StoredParts { has_input_order: is_ordered, ..StoredParts::default() };
                    if format.holds(&linear, stored).is_ok() {
                        check_read_again(*format, &weight);
                        n_read += 1;
                    }
                }
            }
        }
    }
    assert!(n_read > 150, "only {n_read}");
}

/// Rows of no whole words, and as many words in both layouts of compressed-tensors: its version tells them apart.
#[test]
fn words_of_compressed_tensors_are_told_apart() {
    for bits in [3, 5, 6, 7] {
        for n_in in [3, 11, 20, 33, 50, 64] {
            for format in [compressed::DENSE, compressed::WHOLE] {
                check_read_again(&format, &random_weight([13, n_in], grid(bits, None, Symmetry::Asymmetric)));
            }
        }
    }
}

#[test]
fn scales_may_be_floats_of_any_type_and_negative() {
    let mut weight = random_weight([8, 32], grid(4, Some(16), Symmetry::Asymmetric));
    weight.grid.scale_dtype = ScaleDtype::F32;
    weight.scale[3] = -0.1;
    check_read_again(&compressed::DENSE, &weight);
    // The products of bf16 are rounded to it.
    let mut tensors = tensors(&compressed::DENSE, &weight);
    let scales: Vec<half::bf16> = weight.scale.iter().map(|scale| half::bf16::from_f32(*scale)).collect();
    let (_, stored) = tensors.iter_mut().find(|(name, _)| name.ends_with("weight_scale")).unwrap();
    stored.dtype = Dtype::BF16;
    stored.bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let folder = folder(&settings(&compressed::DENSE, &weight), &tensors);
    let rounded = QuantizedWeight { scale: scales.iter().map(|scale| scale.to_f32()).collect(), ..weight };
    let expected: Vec<f32> = rounded.dequantize().iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect();
    assert_eq!(opened(folder.path()).unwrap().1.read_f32(&format!("{LINEAR}.weight")).unwrap(), expected);
}

/// By hand: two rows of 8-bit integers with a scale each, the second with a zero point of -128.
#[test]
fn signed_bytes_are_read() {
    let settings = json!({
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": { "group_0": {
            "weights": { "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": false },
            "input_activations": { "num_bits": 8, "type": "int", "dynamic": true }
        } }
    });
    let bytes = |values: &[i8]| values.iter().map(|value| *value as u8).collect::<Vec<u8>>();
    let tensors = [
        ("weight", Stored { dtype: Dtype::I8, shape: vec![2, 3], bytes: bytes(&[-128, 0, 127, -128, 1, 2]) }),
        ("weight_scale", Stored::f32(&[2, 1], &[0.5, 2.0])),
        ("weight_zero_point", Stored { dtype: Dtype::I8, shape: vec![2, 1], bytes: bytes(&[0, -128]) }),
    ];
    let tensors = tensors.map(|(part, stored)| (format!("{LINEAR}.{part}"), stored));
    let folder = folder(&settings, &tensors);
    let (_, checkpoint, _) = opened(folder.path()).unwrap();
    let values = checkpoint.read_f32(&format!("{LINEAR}.weight")).unwrap();
    assert_eq!(values, [-64.0, 0.0, 63.5, 0.0, 258.0, 260.0]);
    let [note] = checkpoint.notes().try_into().unwrap();
    assert!(note.contains("round activations as well"), "{note}");
    // Keys and values are rounded alone.
    let mut settings = settings;
    settings["config_groups"]["group_0"]["input_activations"] = json!(null);
    assert_eq!(opened(self::folder(&settings, &tensors).path()).unwrap().1.notes(), Vec::<String>::new());
    settings["kv_cache_scheme"] = json!({ "num_bits": 8, "type": "float" });
    let [note] = opened(self::folder(&settings, &tensors).path()).unwrap().1.notes().try_into().unwrap();
    assert!(note.contains("round activations as well"), "{note}");
}

/// A file that says version 1 of what is stored as version 2, and the other way round.
#[test]
fn zero_points_of_symmetric_weights_decide_the_version() {
    let weight = random_weight([32, 64], grid(4, Some(32), Symmetry::SymmetricFullRange));
    for (said, stored) in [(gptq::V1, gptq::V2), (gptq::V2, gptq::V1)] {
        let folder = folder(&settings(&said, &weight), &tensors(&stored, &weight));
        let (_, checkpoint, _) = opened(folder.path()).unwrap();
        let expected: Vec<f32> = weight.dequantize().iter().map(|w| half::f16::from_f32(*w).to_f32()).collect();
        assert_eq!(checkpoint.read_f32(&format!("{LINEAR}.weight")).unwrap(), expected);
        let [note] = checkpoint.notes().try_into().unwrap();
        assert!(note.contains("the settings say otherwise; the tensors count"), "{note}");
    }
    // Settings of asymmetric weights are taken at their word.
    let asymmetric = random_weight([32, 64], grid(4, Some(32), Symmetry::Asymmetric));
    let folder = folder(&settings(&gptq::V1, &asymmetric), &tensors(&gptq::V1, &asymmetric));
    assert!(opened(folder.path()).unwrap().1.notes().is_empty());
}

/// Linears of other bits than most, and names of tools.
#[test]
fn settings_of_tools_are_understood() {
    let scheme = |settings: Json| {
        let found = scheme(Path::new("config.json"), "quantization_config", &settings);
        found.map_err(|error| error.to_string())
    };
    let known = |settings: Json| scheme(settings).unwrap().unwrap();
    let bits = |scheme: &Scheme| scheme.bits.iter().map(|bits| bits.get()).collect::<Vec<u8>>();
    let auto_round = json!({
        "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128, "sym": true,
        "data_type": "int", "extra_config": { "a.q": { "bits": 16, "data_type": "fp" }, "a.k": { "bits": 8, "group_size": 32 } }
    });
    let read = known(auto_round);
    assert_eq!((bits(&read), read.group_sizes), (vec![4, 8], vec![Some(128), Some(32)]));
    assert_eq!(read.layout, Layout::Gptq { version: Gptq::V1, is_symmetric: true });
    let awq =
        known(json!({ "quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM", "zero_point": true }));
    assert_eq!((awq.layout, awq.group_sizes), (Layout::Awq, vec![None]));
    let old = known(json!({ "w_bit": 4, "q_group_size": 64, "zero_point": true, "version": "GEMM" }));
    assert_eq!((old.layout, old.group_sizes), (Layout::Awq, vec![Some(64)]));
    let dynamic = json!({
        "quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2",
        "dynamic": { "-:a": {}, "+:b": { "bits": 8, "group_size": 32 } }
    });
    assert_eq!(bits(&known(dynamic)), [4, 8]);
    for settings in [
        json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv" }),
        json!({ "quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin" }),
        json!({ "quant_method": "hqq" }),
        json!({ "quant_method": "compressed-tensors", "config_groups": { "a": { "weights": { "type": "float" } } } }),
    ] {
        assert_eq!(scheme(settings), Ok(None));
    }
    for (settings, expected) in [
        (
            json!({ "quant_method": "gptq", "bits": 9, "group_size": 64 }),
            "quantization_config.bits\": 9: expected 2 to 8 bits",
        ),
        (json!({ "quant_method": "gptq", "bits": 4, "group_size": "64" }), "group_size\": \"64\": expected a number"),
        (json!({ "quant_method": "gptq", "bits": 4, "group_size": 64, "pack_dtype": "int64" }), "words of int32"),
        (json!({ "quant_method": "gptq", "bits": 4, "group_size": 64, "rotation": "hadamard" }), "rotation"),
        (json!({ "quant_method": "awq", "bits": 8, "group_size": 64 }), "expected 4 bits"),
    ] {
        let message = scheme(settings).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

/// One change of a sound folder, and what is said of it.
#[track_caller]
fn check_refused(format: &dyn Format, change: impl FnOnce(&mut Vec<(String, Stored)>, &mut Json), expected: &str) {
    let weight = random_weight([32, 64], grid(4, Some(32), Symmetry::Asymmetric));
    let (mut tensors, mut settings) = (tensors(format, &weight), settings(format, &weight));
    change(&mut tensors, &mut settings);
    let folder = folder(&settings, &tensors);
    let message = match opened(folder.path()) {
        Err(error) => error.to_string(),
        Ok((_, checkpoint, _)) => {
            checkpoint.read_f32(&format!("{LINEAR}.weight")).map(drop).expect_err(expected).to_string()
        }
    };
    assert!(message.contains(expected), "{message}");
    let place = folder.path().display().to_string();
    assert!(message.starts_with(&place), "{message}");
}

fn tensor<'a>(tensors: &'a mut [(String, Stored)], part: &str) -> &'a mut Stored {
    let name = format!("{LINEAR}.{part}");
    &mut tensors.iter_mut().find(|(known, _)| *known == name).unwrap().1
}

/// A tensor of zeros of another shape.
fn reshape(tensors: &mut [(String, Stored)], part: &str, shape: &[usize]) {
    let tensor = tensor(tensors, part);
    tensor.bytes = vec![0; shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8];
    tensor.shape = shape.to_vec();
}

fn remove(tensors: &mut Vec<(String, Stored)>, part: &str) {
    tensors.retain(|(name, _)| *name != format!("{LINEAR}.{part}"));
}

#[test]
fn damaged_folders_are_named_with_their_tensor() {
    use crate::formats::awq::Gemm;
    let dense = &compressed::DENSE;
    for part in ["qzeros", "scales"] {
        check_refused(&Gemm, |tensors, _| remove(tensors, part), &format!("no tensor named \"{LINEAR}.{part}\""));
        check_refused(&gptq::V1, |tensors, _| remove(tensors, part), &format!("no tensor named \"{LINEAR}.{part}\""));
    }
    for part in ["weight_scale", "weight_shape"] {
        check_refused(dense, |tensors, _| remove(tensors, part), &format!("no tensor named \"{LINEAR}.{part}\""));
    }
    check_refused(
        &Gemm,
        |tensors, _| reshape(tensors, "qzeros", &[2, 5]),
        "qzeros\" has shape [2, 5], expected [2, 4]",
    );
    check_refused(
        &Gemm,
        |tensors, _| reshape(tensors, "scales", &[3, 32]),
        "scales\" has shape [3, 32], expected [2, 32]",
    );
    check_refused(&Gemm, |tensors, _| reshape(tensors, "qweight", &[0, 4]), "expected a matrix that is not empty");
    check_refused(&Gemm, |tensors, _| reshape(tensors, "qweight", &[256]), "expected a matrix that is not empty");
    check_refused(
        &Gemm,
        |_, settings| settings["group_size"] = 16.into(),
        "2 groups of 64 inputs, which no group size of 16",
    );
    check_refused(&Gemm, |_, settings| settings["group_size"] = json!(1_u64 << 62), "which no group size of");
    check_refused(&gptq::V2, |tensors, _| reshape(tensors, "g_idx", &[65]), "codes of none of the bits");
    check_refused(&gptq::V2, |_, settings| settings["bits"] = 2.into(), "codes of none of the bits");
    for group in [2_i32, -1, i32::MIN] {
        let change = |tensors: &mut Vec<(String, Stored)>, _: &mut Json| {
            tensor(tensors, "g_idx").bytes[20..24].copy_from_slice(&group.to_le_bytes());
        };
        check_refused(&gptq::V2, change, &format!("g_idx\": input 5 is in group {group}, of 2"));
    }
    let floats = |tensors: &mut Vec<(String, Stored)>, _: &mut Json| tensor(tensors, "qweight").dtype = Dtype::F32;
    check_refused(&gptq::V1, floats, "qweight\" is stored as F32, expected one of I32");
    let halves = |tensors: &mut Vec<(String, Stored)>, _: &mut Json| tensor(tensors, "scales").dtype = Dtype::I16;
    check_refused(&Gemm, halves, "scales\" is stored as I16, expected one of F16, BF16, F32");
    for (shape, expected) in [
        ([33, 64], "\"weight_shape\" says [33, 64]"),
        ([32, 0], "\"weight_shape\" says [32, 0]"),
        ([32, -64], "it holds [32, -64], expected two sizes"),
        ([32, i64::MAX], "expected two sizes"),
        ([32, 4_000_000_000], "4000000000 inputs fill other words"),
        ([32, 72], "72 inputs fill other words"),
    ] {
        let change = |tensors: &mut Vec<(String, Stored)>, _: &mut Json| {
            tensor(tensors, "weight_shape").bytes = shape.iter().flat_map(|size: &i64| size.to_le_bytes()).collect();
        };
        check_refused(dense, change, expected);
    }
    let zeros = "weight_zero_point";
    check_refused(dense, |tensors, _| reshape(tensors, zeros, &[3, 2]), "has shape [3, 2], expected [4, 2]");
    check_refused(dense, |tensors, _| reshape(tensors, "weight_scale", &[31, 2]), "expected scales of 32 rows");
    let nothing =
        |tensors: &mut Vec<(String, Stored)>, _: &mut Json| tensors.retain(|(name, _)| name.ends_with("norm.weight"));
    check_refused(&Gemm, nothing, "already quantized by awq: bits 4, group size 32, version gemm (by AutoAWQ)");
    let nan = |tensors: &mut Vec<(String, Stored)>, _: &mut Json| {
        tensor(tensors, "scales").bytes[..2].copy_from_slice(&[0, 0x7E]);
    };
    check_refused(&Gemm, nan, "NaN or infinity in tensor");
}

/// What divides the result of an activation is read as what multiplies it.
#[test]
fn scales_behind_activations_are_inverted() {
    let weight = random_weight([32, 64], grid(4, Some(32), Symmetry::Asymmetric));
    let (mut tensors, settings) = (tensors(&awq::Gemm, &weight), settings(&awq::Gemm, &weight));
    tensors.push(("model.layers.0.mlp.act.scales".into(), Stored::f32(&[3], &[0.5, 4.0, -1.0])));
    let (_, checkpoint, _) = opened(folder(&settings, &tensors).path()).unwrap();
    let name = "model.layers.0.mlp.act.weight";
    assert_eq!(checkpoint.read_f32(name).unwrap(), [2.0, 0.25, -1.0]);
    assert_eq!(checkpoint.names(), [name.to_owned(), format!("{LINEAR}.weight"), "model.norm.weight".into()]);
    for (divisor, said) in [(0.0, "0"), (f32::INFINITY, "inf"), (f32::NAN, "NaN"), (1e-45, "0.0")] {
        tensors.last_mut().unwrap().1 = Stored::f32(&[3], &[0.5, divisor, 1.0]);
        let (_, checkpoint, _) = opened(folder(&settings, &tensors).path()).unwrap();
        let message = checkpoint.read_any_f32(name).unwrap_err().to_string();
        let expected = format!("tensor \"model.layers.0.mlp.act.scales\" divides by {said}");
        assert!(message.contains(&expected) && message.contains(" at element 1; quantize"), "{message}");
    }
    let words = Stored { dtype: Dtype::I32, shape: vec![1], bytes: vec![0; 4] };
    tensors.last_mut().unwrap().1 = words;
    let message = opened(folder(&settings, &tensors).path()).err().unwrap().to_string();
    assert!(message.contains("act.scales\" is stored as I32, expected one of F16, BF16, F32"), "{message}");
}

/// Groups that are no runs in any order have weights all the same.
#[test]
fn any_groups_are_restored() {
    let integers = Integers {
        n_out: 1,
        n_in: 3,
        bits: Bits::new(4).unwrap(),
        codes: vec![1, 2, 15],
        scales: vec![1.0, -0.5],
        zero_points: vec![0, 15],
        group_of: vec![1, 0, 0],
    };
    assert_eq!(integers.restore(crate::numbers::Number::F16), [7.0, 2.0, 15.0]);
    assert_eq!(integers.to_weight(ScaleDtype::F16).unwrap().dequantize(), [7.0, 2.0, 15.0]);
    let uneven = Integers { scales: vec![1.0, 2.0, 3.0], zero_points: vec![0; 3], group_of: vec![2, 2, 0], ..integers };
    assert_eq!(uneven.restore(crate::numbers::Number::F32), [3.0, 6.0, 15.0]);
    assert_eq!(uneven.to_weight(ScaleDtype::F16), None);
}

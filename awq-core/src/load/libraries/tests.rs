//! Every folder of `tests/tools` (`scripts/make-tool-fixtures.py`, `scripts/make-mlx-fixtures.py`), and folders that are damaged.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::load::foreign;
use crate::load::testing::{Stored, sums_of_weights, write_safetensors};
use crate::load::{open_weights_of, read_json, scheme_of_tensors};

const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)
}

fn folders() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// As a model's folder is opened: by its settings, or by its tensors.
fn scheme_in(folder: &Path) -> Result<Option<foreign::Scheme>, LoadError> {
    let file = folder.join("config.json");
    match foreign::check_settings(folder, &file, &read_json(&file)?)? {
        Some(scheme) => Ok(Some(scheme)),
        None => scheme_of_tensors(folder),
    }
}

fn opened(folder: &Path) -> Result<std::sync::Arc<dyn Checkpoint>, LoadError> {
    open_weights_of(folder, &scheme_in(folder)?.unwrap())
}

/// Of values whose zeros have no sign.
fn sha256(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn weights_are_bit_for_bit_those_of_the_libraries_that_write_them() {
    let mut n_weights = 0;
    for folder in folders() {
        let checkpoint = opened(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for (name, sum) in sums_of_weights(&folder) {
            let values = checkpoint.read_any_f32(&name).unwrap();
            assert_eq!(values.len(), checkpoint.shape(&name).unwrap().iter().product::<usize>());
            assert_eq!(sha256(&values), sum, "{}: {name}", folder.display());
            n_weights += 1;
        }
        // Nothing of how they are stored is left.
        let is_parameter = |name: &String| name.ends_with(".weight") || name.ends_with(".bias");
        assert_eq!(checkpoint.names().into_iter().find(|name| !is_parameter(name)), None, "{}", folder.display());
    }
    // Llama has seven linears a block, GPT-2 and GPT-NeoX four, as Mixtral beside its experts. MLX rounds embedding and head as well; in one
    // of its folders they are one tensor, and a linear is left. It rounds a router, too, beside three experts of three linears.
    assert_eq!(n_weights, 17 * 7 + 3 * 4 + 2 * 7 + 8 + 4 + 4 + 2 * 9 + 7 + (4 + 1 + 3 * 3 + 2));
}

#[test]
fn types_say_what_a_weight_takes_in_the_file() {
    let n = 72.0 * 160.0;
    for (name, expected, bits, group_size) in [
        ("bitsandbytes-nf4", "bitsandbytes NF4", 4.5, Some(64)),
        ("bitsandbytes-nf4-nested", "bitsandbytes NF4", 4.125 + 32.0 / n, Some(64)),
        ("bitsandbytes-fp4-in-bf16", "bitsandbytes FP4", 4.5, Some(64)),
        ("bitsandbytes-int8", "bitsandbytes W8", 8.0 + 72.0 * 32.0 / n, None),
        ("torchao-int8", "torchao W8", 8.0 + 72.0 * 40.0 / n, None),
        ("torchao-int4-in-int8", "torchao W4 in bytes", 8.0 + 24.0 / 8.0, Some(8)),
        ("torchao-fp8", "torchao FP8", 8.0 + 72.0 * 32.0 / n, None),
        ("quanto-int4", "quanto W4", 4.0 + 32.0 / 32.0, Some(32)),
        ("quanto-int2", "quanto W2", 2.0 + 32.0 / 32.0, Some(32)),
        ("quanto-int8", "quanto W8", 8.0 + 72.0 * 16.0 / n, None),
        ("hqq-4", "HQQ W4", 4.0 + 32.0 / 24.0, Some(24)),
        ("hqq-3", "HQQ W3", 3.2 + 32.0 / 24.0, Some(24)),
        ("mlx-3", "MLX W3", 3.0 + 32.0 / 32.0, Some(32)),
        ("mlx-mixed", "MLX W8", 8.0 + 32.0 / 32.0, Some(32)),
    ] {
        let found = opened(&fixture(name)).unwrap().stored_type(DOWN).unwrap();
        assert_eq!((found.name.as_str(), found.group_size), (expected, group_size), "{name}");
        assert!((found.bits_per_weight - bits).abs() < 1e-12, "{name}: {}", found.bits_per_weight);
    }
}

#[test]
fn settings_are_said_in_words() {
    for (name, expected) in [
        ("bitsandbytes-nf4-nested", "bitsandbytes: 4 bit, nf4, with scales of 8 bit"),
        ("bitsandbytes-int8", "bitsandbytes: 8 bit"),
        ("torchao-fp8", "torchao: Float8WeightOnlyConfig"),
        ("quanto-int2", "quanto W2, to go by its tensors"),
        ("hqq-3", "HQQ W3, to go by its tensors"),
        ("hqq-4-experts", "HQQ W4, to go by its tensors"),
        ("mlx-4", "mlx: bits 4, groups of 32"),
    ] {
        assert_eq!(scheme_in(&fixture(name)).unwrap().unwrap().described(), expected);
    }
}

#[test]
fn products_that_round_their_inputs_are_noted() {
    let notes = |name: &str| opened(&fixture(name)).unwrap().notes();
    assert!(notes("bitsandbytes-nf4").is_empty());
    let [note] = notes("bitsandbytes-int8").try_into().unwrap();
    assert!(note.contains("config.json: the library's own products round their inputs as well"), "{note}");
}

/// How many rows a weight of quanto has does not stand in the file.
#[test]
fn groups_fit_every_number_of_rows_that_they_fill() {
    let checkpoint = opened(&fixture("quanto-int4")).unwrap();
    assert_eq!(checkpoint.shape(DOWN), Some(vec![360, 32]));
    for (shape, fits) in
        [([72, 160], true), ([36, 320], true), ([360, 32], true), ([160, 72], false), ([72, 128], false)]
    {
        assert_eq!(checkpoint.fits(DOWN, &shape), fits, "{shape:?}");
    }
    let of_rows = opened(&fixture("hqq-4")).unwrap();
    assert!(of_rows.fits(DOWN, &[72, 160]) && !of_rows.fits(DOWN, &[36, 320]));
}

/// Each weight is a product that the library rounds to 16 bits: codes stand for it before that.
#[test]
fn codes_stand_for_the_weights() {
    for (name, bits, group) in [
        ("bitsandbytes-int8", 8, 160),
        ("hqq-2", 2, 24),
        ("hqq-3", 3, 24),
        ("hqq-4", 4, 24),
        ("hqq-8", 8, 72),
        ("mlx-3", 3, 32),
        ("mlx-4", 4, 32),
        ("mlx-mixed", 8, 32),
        ("quanto-int2", 2, 32),
        ("quanto-int4", 4, 32),
        ("quanto-int8", 8, 160),
        ("torchao-int4-in-int8", 4, 8),
        ("torchao-int8", 8, 160),
    ] {
        let checkpoint = opened(&fixture(name)).unwrap();
        let linear = if name.starts_with("hqq") { "model.layers.0.mlp.gate_proj.weight" } else { DOWN };
        let weight = checkpoint.read_codes(linear).unwrap().unwrap();
        assert_eq!((weight.grid.bits.get(), weight.group_len()), (bits, group), "{name}");
        let (codes, values) = (weight.dequantize(), checkpoint.read_f32(linear).unwrap());
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        assert_eq!(codes.len(), values.len(), "{name}");
        let furthest = codes.iter().zip(&values).map(|(code, value)| (code - value).abs()).fold(0.0, f32::max);
        assert!(furthest <= 0.01 * largest, "{name}: {furthest} of {largest}");
    }
    // Groups of 24 begin in one row of 160 and end in another in HQQ's.
    for name in ["bitsandbytes-nf4", "hqq-4", "hqq-4-columns", "quanto-fp8", "torchao-fp8"] {
        assert!(opened(&fixture(name)).unwrap().read_codes(DOWN).unwrap().is_none(), "{name}");
    }
    let one_row = opened(&fixture("quanto-int4-one-row")).unwrap();
    assert!(one_row.read_codes("model.layers.0.mlp.shared_expert_gate.weight").unwrap().is_none());
}

/// A folder with one linear, whose tensors are these.
fn folder(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), json!({}).to_string()).unwrap();
    let stored = |dtype: &Dtype, shape: &[usize], bytes: &[u8]| {
        let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let bytes = if bytes.len() == n_bytes { bytes.to_vec() } else { vec![0; n_bytes] };
        Stored { dtype: *dtype, shape: shape.to_vec(), bytes }
    };
    let tensors: Vec<(&str, Stored)> =
        tensors.iter().map(|(name, dtype, shape, bytes)| (*name, stored(dtype, shape, bytes))).collect();
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[track_caller]
fn check_refused(tensors: &[(&str, Dtype, &[usize], &[u8])], expected: &str) {
    let message = opened(folder(tensors).path()).err().unwrap().to_string();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn tensors_of_bitsandbytes_that_do_not_fit_are_named() {
    use Dtype::{F32, U8};
    let state = br#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 32]}"#;
    let of_state = ("w.weight.quant_state.bitsandbytes__nf4", U8, &[state.len()][..], &state[..]);
    let (codes, absmax) = (("w.weight", U8, &[64, 1][..], &[][..]), ("w.weight.absmax", F32, &[2][..], &[][..]));
    let map = ("w.weight.quant_map", F32, &[16][..], &[][..]);
    assert!(opened(folder(&[codes, absmax, map, of_state]).path()).is_ok());
    check_refused(&[codes, absmax, map], "no tensor named \"w.weight.quant_state.bitsandbytes__nf4\"");
    check_refused(&[codes, absmax, of_state], "no tensor named \"w.weight.quant_map\"");
    let of_text = ("w.weight.quant_state.bitsandbytes__nf4", U8, &[2][..], &b"{}"[..]);
    check_refused(&[codes, absmax, map, of_text], "not the settings of a weight (missing field `quant_type`");
    let short = ("w.weight.absmax", F32, &[3][..], &[][..]);
    check_refused(&[codes, short, map, of_state], "\"w.weight.absmax\" of shape [3]: it holds 3 values, expected 2");
    let few = ("w.weight", U8, &[60, 1][..], &[][..]);
    check_refused(&[few, absmax, map, of_state], "60 bytes, and \"quant_state\" says shape [4, 32] in blocks of 64");
}

#[test]
fn tensors_of_quanto_that_do_not_fit_are_named() {
    use Dtype::{BF16, F32, I8, U8};
    let codes = ("w.weight._data._data", U8, &[4, 16][..], &[][..]);
    let scale = |shape: &'static [usize]| ("w.weight._scale", BF16, shape, &[][..]);
    let shift = ("w.weight._shift", BF16, &[8, 1][..], &[][..]);
    assert!(opened(folder(&[codes, scale(&[8, 1]), shift]).path()).is_ok());
    check_refused(&[codes, scale(&[8, 1])], "no tensor named \"w.weight._shift\"");
    check_refused(
        &[codes, scale(&[9, 1]), shift],
        "9 groups, as \"w.weight._scale\" has scales, fill it with neither 4 nor",
    );
    let of_bytes = ("w.weight._data", I8, &[4, 16][..], &[][..]);
    check_refused(
        &[of_bytes, scale(&[3])],
        "\"w.weight._scale\" of shape [3]: expected a scale, or one for each of 4 rows",
    );
    check_refused(&[("w.weight._data", F32, &[4, 16], &[]), scale(&[4])], "\"w.weight._data\" is stored as F32");
}

/// torchao leaves GPT-2 as it is, and its settings stand there all the same.
#[test]
fn settings_without_codes_are_a_note() {
    let settings = json!({ "quantization_config": { "quant_method": "torchao", "quant_type": {} } });
    let with = |dtype: Dtype| {
        let folder = folder(&[("h.0.attn.c_attn.weight", dtype, &[2, 6], &[])]);
        std::fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
        opened(folder.path())
    };
    let [note] = with(Dtype::BF16).unwrap().notes().try_into().unwrap();
    assert!(note.ends_with("config.json: says torchao, and no tensor holds codes: nothing is quantized, and floats are read as they are"), "{note}");
    let message = with(Dtype::I8).err().unwrap().to_string();
    assert!(message.contains("already quantized by torchao"), "{message}");
}

/// A weight that quanto has stored exactly, since the extremes of each value are the value.
#[test]
fn a_row_of_quanto_without_groups_has_a_scale_a_weight() {
    const GATE: &str = "model.layers.0.mlp.shared_expert_gate.weight";
    let found = opened(&fixture("quanto-int4-one-row")).unwrap().stored_type(GATE).unwrap();
    assert_eq!((found.name.as_str(), found.bits_per_weight), ("quanto, a scale a weight", 8.0 + 32.0));
    use Dtype::{BF16, U8};
    let bf16 = |values: [f32; 3]| values.map(|value| half::bf16::from_f32(value).to_le_bytes()).concat();
    let (scales, shifts) = (bf16([0.5, 2.0, 0.0]), bf16([1.0, -1.0, -3.0]));
    let of = |codes: &[u8]| {
        let tensors: [(&str, Dtype, &[usize], &[u8]); 3] = [
            ("w.weight._data._data", U8, &[1, 3], codes),
            ("w.weight._scale", BF16, &[1, 3], &scales),
            ("w.weight._shift", BF16, &[1, 3], &shifts),
        ];
        opened(folder(&tensors).path()).unwrap()
    };
    let checkpoint = of(&[3, 1, 15]);
    assert_eq!(checkpoint.shape("w.weight"), Some(vec![1, 3]));
    assert_eq!(checkpoint.read_f32("w.weight").unwrap(), [0.5, 3.0, 3.0]);
    let message = of(&[3, 16, 1]).read_f32("w.weight").unwrap_err().to_string();
    assert!(message.contains("\"w.weight._data._data\" of shape [1, 3]: byte 16 at 1, expected codes"), "{message}");
}

/// Each linear of each expert has its part of the tensor that holds all of them.
#[test]
fn experts_in_one_tensor_are_taken_apart() {
    let checkpoint = opened(&fixture("hqq-4-experts")).unwrap();
    let base = SafetensorsCheckpoint::open_folder(&fixture("hqq-4-experts")).unwrap();
    let whole = base.read_f32("model.layers.0.mlp.experts.gate_up_proj").unwrap();
    let experts = "model.layers.0.mlp.experts";
    let mut joined = Vec::new();
    for part in [".0.gate_proj", ".0.up_proj", ".1.gate_proj", ".1.up_proj", ".2.gate_proj", ".2.up_proj"] {
        let name = format!("{experts}{part}.weight");
        assert_eq!(checkpoint.shape(&name), Some(vec![96, 64]));
        joined.extend(checkpoint.read_f32(&name).unwrap());
    }
    assert_eq!(joined, whole);
    assert_eq!(checkpoint.shape(&format!("{experts}.1.down_proj.weight")), Some(vec![64, 96]));
    assert!(!checkpoint.names().contains(&format!("{experts}.down_proj")));
}

#[test]
fn experts_that_are_no_matrices_are_refused() {
    use Dtype::{BF16, I8, U8};
    let codes = ("w.weight._data", I8, &[2, 2][..], &[][..]);
    let scale = ("w.weight._scale", BF16, &[2][..], &[][..]);
    let experts = |dtype, shape: &'static [usize]| ("a.experts.gate_up_proj", dtype, shape, &[][..]);
    assert!(opened(folder(&[codes, scale, experts(BF16, &[3, 4, 2])]).path()).is_ok());
    check_refused(&[codes, scale, experts(BF16, &[3, 5, 2])], "its rows are no 2 matrices of equal size");
    check_refused(&[codes, scale, experts(BF16, &[3, 4])], "of shape [3, 4]: expected the matrices of all experts");
    check_refused(&[codes, scale, experts(BF16, &[3, 0, 2])], "its rows are no 2 matrices of equal size");
    check_refused(&[codes, scale, experts(BF16, &[5000, 2, 1])], "5000 experts, expected at most 4096");
    check_refused(&[codes, scale, experts(U8, &[3, 4, 2])], "\"a.experts.gate_up_proj\" is stored as U8");
}

#[test]
fn codes_of_torchao_without_their_facts_are_refused() {
    let codes = ("w._weight_qdata", Dtype::I8, &[4, 16][..], &[][..]);
    let scale = ("w._weight_scale", Dtype::F32, &[4, 1][..], &[][..]);
    check_refused(&[codes, scale], "the file's metadata says nothing of \"w.weight\"");
}

/// Mixtral's experts have names of their own, and a layer may stay in floats.
#[test]
fn experts_of_mlx_are_called_as_their_family_calls_them() {
    let halves: Vec<u8> =
        [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let tensors: [(&str, Dtype, &[usize], &[u8]); 5] = [
        ("m.block_sparse_moe.switch_mlp.up_proj.weight", Dtype::BF16, &[2, 1, 2], &halves),
        ("w.weight", Dtype::U32, &[4, 8], &[]),
        ("w.scales", Dtype::BF16, &[4, 2], &[]),
        ("w.biases", Dtype::BF16, &[4, 2], &[]),
        ("n.weight", Dtype::BF16, &[2, 2], &halves),
    ];
    let folder = folder(&tensors);
    let settings = json!({ "quantization": { "bits": 4, "group_size": 32 } });
    std::fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
    let checkpoint = opened(folder.path()).unwrap();
    let experts = [0, 1].map(|expert| format!("m.block_sparse_moe.experts.{expert}.w3.weight"));
    assert_eq!(checkpoint.names(), [&experts[0], &experts[1], "n.weight", "w.weight"]);
    assert_eq!(checkpoint.read_f32(&experts[1]).unwrap(), [3.0, 4.0]);
    assert_eq!(checkpoint.shape(&experts[0]), Some(vec![1, 2]));
    assert_eq!(checkpoint.read_f32("n.weight").unwrap().len(), 4);
}

#[test]
fn tensors_of_mlx_that_do_not_fit_are_named() {
    use Dtype::{BF16, U8, U32};
    let (codes, groups) = (("w.weight", U32, &[4, 8][..], &[][..]), &[4, 2][..]);
    let (scales, biases) = (("w.scales", BF16, groups, &[][..]), ("w.biases", BF16, groups, &[][..]));
    let check = |settings: Json, tensors: &[(&str, Dtype, &[usize], &[u8])], expected: Option<&str>| {
        let folder = folder(tensors);
        std::fs::write(folder.path().join("config.json"), json!({ "quantization": settings }).to_string()).unwrap();
        let message = opened(folder.path()).err().map(|error| error.to_string());
        assert_eq!(message.is_some(), expected.is_some(), "{message:?}");
        assert!(message.as_deref().unwrap_or_default().contains(expected.unwrap_or_default()), "{message:?}");
    };
    let settings = json!({ "bits": 4, "group_size": 32 });
    check(settings.clone(), &[codes, scales, biases], None);
    check(settings.clone(), &[codes, scales], Some("no tensor named \"w.biases\""));
    check(settings.clone(), &[codes, ("w.scales", U8, groups, &[]), biases], Some("\"w.scales\" is stored as U8"));
    let few = ("w.scales", BF16, &[4, 1][..], &[][..]);
    check(settings, &[codes, few, biases], Some("\"w.scales\" of shape [4, 1]: it holds 4 values, expected 8"));
    check(
        json!({ "bits": 3, "group_size": 32 }),
        &[codes, scales, biases],
        Some("3 bits in groups of 32 do not fill its rows"),
    );
    check(json!({ "bits": 9, "group_size": 32 }), &[codes, scales, biases], Some("gives it no bits from 1 to 8"));
    let other_mode = json!({ "bits": 4, "group_size": 32, "w": { "mode": "mxfp4" } });
    check(other_mode, &[codes, scales, biases], Some("or another mode than affine"));
    let turned = ("w.scales", BF16, &[2, 4][..], &[][..]);
    check(json!({ "bits": 4, "group_size": 32 }), &[codes, turned, biases], Some("expected 2 a row of \"w.weight\""));
    let twice = json!({ "bits": 4, "group_size": 32 });
    let both = json!({ "quantization": twice, "quantization_config": twice });
    let folder_of_both = folder(&[codes, scales, biases]);
    std::fs::write(folder_of_both.path().join("config.json"), both.to_string()).unwrap();
    assert!(opened(folder_of_both.path()).is_ok(), "both keys and no mode");
    let huge = ("w.weight", U32, &[0, 1 << 60][..], &[][..]);
    check(
        json!({ "bits": 4, "group_size": 32 }),
        &[huge, scales, biases],
        Some("\"w.weight\" of shape [0, 1152921504606846976]: it is empty"),
    );
    let experts = ("a.switch_mlp.up_proj.weight", U32, &[4, 8][..], &[][..]);
    check(json!({ "bits": 4, "group_size": 32 }), &[experts], Some("expected the matrices of up to 4096 experts"));
    let small_floats = json!({ "bits": 4, "group_size": 32, "mode": "mxfp4" });
    check(small_floats, &[codes, scales], Some("MLX: bits 4, group size 32, mode mxfp4"));
}

proptest! {
    /// A damaged file gives an error or weights of their shapes.
    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec![
            "autoawq-neox", "bitsandbytes-int8-gpt2", "bitsandbytes-nf4-nested", "gptqmodel-gpt2", "hqq-3", "hqq-4-experts",
            "mlx-4-experts", "mlx-mixed", "quanto-int4", "quanto-int4-one-row", "torchao-int4-in-int8",
        ]),
        at in 8..20_000_usize,
        byte: u8,
    ) {
        let (from, to) = (fixture(name), tempfile::tempdir().unwrap());
        std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
        let place = at % bytes.len();
        bytes[place] = byte;
        std::fs::write(to.path().join("model.safetensors"), bytes).unwrap();
        let scheme = scheme_in(to.path());
        if let Ok(checkpoint) = scheme.and_then(|scheme| match scheme {
            Some(scheme) => open_weights_of(to.path(), &scheme),
            None => crate::load::open_weights(to.path()),
        }) {
            for name in checkpoint.names() {
                let _ = checkpoint.read_codes(&name);
                if let Ok(values) = checkpoint.read_any_f32(&name) {
                    prop_assert_eq!(values.len(), checkpoint.shape(&name).unwrap().iter().product::<usize>());
                }
            }
        }
    }
}

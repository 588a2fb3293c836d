//! Every folder of `tests/floats` (`scripts/make-float-fixtures.py`), and folders that are damaged.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::load::read_json;
use crate::load::testing::{Stored, sums_of_weights, write_safetensors};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/floats")
}

fn open(folder: &Path) -> Result<ScaledCheckpoint, LoadError> {
    let file = folder.join("config.json");
    let scheme = scheme(&file, &read_json::<Json>(&file)?)?.unwrap();
    super::open(SafetensorsCheckpoint::open_folder(folder)?, &scheme)
}

fn sha256(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn weights_are_bit_for_bit_those_of_the_libraries_that_write_them() {
    let mut n_weights = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        let checkpoint = open(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for (name, sum) in sums_of_weights(&folder) {
            let values = checkpoint.read_any_f32(&name).unwrap();
            assert_eq!(values.len(), checkpoint.shape(&name).unwrap().iter().product::<usize>());
            assert_eq!(sha256(&values), sum, "{}: {name}", folder.display());
            n_weights += 1;
        }
        let left = checkpoint.names().into_iter().find(|name| name.contains("scale") || name.contains("packed"));
        assert_eq!(left, None, "{}", folder.display());
    }
    assert_eq!(n_weights, 13 * 7 + 4 + 1);
}

#[test]
fn types_say_what_a_weight_takes() {
    let stored = |name: &str, tensor: &str| open(&fixtures().join(name)).unwrap().stored_type(tensor).unwrap();
    const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
    for (name, expected, bits, group_size) in [
        ("fp8-blocks", "FP8 32x32", 8.0 + 6.0 * 32.0 / 6144.0, None),
        ("fp8-blocks-e8m0", "FP8 32x32", 8.0 + 6.0 * 8.0 / 6144.0, None),
        ("fp8-tensor", "FP8 per-tensor", 8.0 + 32.0 / 6144.0, None),
        ("fbgemm-fp8", "FP8 per-channel", 8.0 + 64.0 * 32.0 / 6144.0, None),
        ("ct-fp8-channel", "FP8 per-channel", 8.0 + 64.0 * 16.0 / 6144.0, None),
        ("ct-fp8-block", "FP8 24x40", 8.0 + 9.0 * 32.0 / 6144.0, None),
        ("ct-fp8-group", "FP8", 9.0, Some(32)),
        ("ct-mxfp8", "MXFP8", 8.25, Some(32)),
        ("ct-mxfp4", "MXFP4", 4.25, Some(32)),
        ("ct-nvfp4", "NVFP4", 4.5 + 32.0 / 6144.0, Some(16)),
    ] {
        let found = stored(name, DOWN);
        assert_eq!((found.name.as_str(), found.group_size), (expected, group_size), "{name}");
        assert!((found.bits_per_weight - bits).abs() < 1e-12, "{name}: {}", found.bits_per_weight);
    }
    assert_eq!(stored("ct-nvfp4", "lm_head.weight").name, "BF16");
}

/// A folder with the weight of one linear, `[4, 32]`, and its scales.
fn folder(settings: Json, tensors: &[(&str, Dtype, &[usize])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "quantization_config": settings });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<(&str, Stored)> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let n_bits = shape.iter().product::<usize>() * dtype.bitsize();
            (*name, Stored { dtype: *dtype, shape: shape.to_vec(), bytes: vec![0x38; n_bits / 8] })
        })
        .collect();
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    folder
}

#[track_caller]
fn check_refused(settings: &Json, tensors: &[(&str, Dtype, &[usize])], expected: &str) {
    let folder = folder(settings.clone(), tensors);
    let message = open(folder.path()).err().unwrap().to_string();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn scales_that_do_not_fit_are_named() {
    use Dtype::{BF16, F8_E4M3, F32, F64, U8};
    let blocks = json!({ "quant_method": "fp8", "weight_block_size": [2, 16] });
    let codes = ("w.weight", F8_E4M3, &[4, 32][..]);
    let inverse = |dtype, shape: &'static [usize]| ("w.weight_scale_inv", dtype, shape);
    check_refused(&blocks, &[codes], "no tensor named \"w.weight_scale_inv\"");
    check_refused(
        &blocks,
        &[codes, inverse(F32, &[4, 1])],
        "tensor \"w.weight_scale_inv\" has shape [4, 1], and fp8 implies [2, 2] or one scale for \"w.weight\" of [4, 32]",
    );
    check_refused(&blocks, &[codes, inverse(F64, &[2, 2])], "\"w.weight_scale_inv\" is stored as F64");
    // As a tool writes that has left the weights as they were.
    check_refused(&blocks, &[("w.weight", BF16, &[4, 32]), inverse(F32, &[2, 2])], "already quantized by fp8");

    let compressed = |format: &str| {
        json!({
            "quant_method": "compressed-tensors", "format": format,
            "config_groups": { "group_0": { "weights": { "num_bits": 4, "type": "float", "strategy": "group" } } }
        })
    };
    let packed = ("w.weight_packed", U8, &[4, 16][..]);
    let nv = compressed("nvfp4-pack-quantized");
    check_refused(&nv, &[packed, ("w.weight_scale", F8_E4M3, &[4, 2])], "no tensor named \"w.weight_global_scale\"");
    let global = |shape: &'static [usize]| ("w.weight_global_scale", F32, shape);
    check_refused(
        &nv,
        &[packed, ("w.weight_scale", F8_E4M3, &[4, 3]), global(&[1])],
        "\"w.weight_scale\" has shape [4, 3], expected [4, 2]",
    );
    check_refused(
        &nv,
        &[packed, ("w.weight_scale", F8_E4M3, &[4, 2]), global(&[2])],
        "\"w.weight_global_scale\" has shape [2], expected [1]",
    );
    let mx = compressed("mxfp4-pack-quantized");
    check_refused(&mx, &[packed, ("w.weight_scale", BF16, &[4, 1])], "\"w.weight_scale\" is stored as BF16");
    check_refused(&mx, &[packed, ("w.weight_scale", U8, &[4, 2])], "has shape [4, 2], expected [4, 1]");

    let experts = json!({ "quant_method": "mxfp4" });
    check_refused(&experts, &[("e_blocks", U8, &[2, 4, 1, 8])], "has shape [2, 4, 1, 8], expected [2, 4, 1, 16]");
    check_refused(&experts, &[("e_blocks", U8, &[2, 4, 1, 16])], "no tensor named \"e_scales\"");
}

#[test]
fn what_activations_would_go_through_is_a_note() {
    let notes = |name: &str| open(&fixtures().join(name)).unwrap().notes();
    assert!(notes("ct-nvfp4").is_empty(), "{:?}", notes("ct-nvfp4"));
    let [note] = notes("ct-fp8-tensor").try_into().unwrap();
    assert!(note.contains("config.json: programs that this file is made for round activations as well"), "{note}");
}

proptest! {
    /// A damaged header gives an error or a weight of its shape.
    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec!["ct-nvfp4", "ct-mxfp8", "fp8-blocks", "mxfp4-experts"]),
        at in 8..1500_usize,
        byte: u8,
    ) {
        let (from, to) = (fixtures().join(name), tempfile::tempdir().unwrap());
        std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
        let place = at % bytes.len();
        bytes[place] = byte;
        std::fs::write(to.path().join("model.safetensors"), bytes).unwrap();
        if let Ok(checkpoint) = open(to.path()) {
            for name in checkpoint.names() {
                if let Ok(values) = checkpoint.read_any_f32(&name) {
                    prop_assert_eq!(values.len(), checkpoint.shape(&name).unwrap().iter().product::<usize>());
                }
            }
        }
    }
}

//! Models whose weights other programs have quantized, against what these restore: small floats with scales
//! (`scripts/make-float-fixtures.py`), and folders as libraries save them (`scripts/make-tool-fixtures.py`, `scripts/make-mlx-fixtures.py`).

use std::path::PathBuf;
use std::sync::Arc;

use awq_core::decode::{CodesOf, DecodeModel, DecodeOptions, Session};
use awq_core::driver::{Job, quantize_model};
use awq_core::load::{Checkpoint, MemoryCheckpoint, ModelConfig};
use awq_core::model::{Storage, open_decoder, wiring_of};
use awq_core::open::open_tensors;

use crate::fixture::{Fixture, float_folder, tool_folder};
use crate::support::{Cpu, check_close, grid, group, no_search};

/// Folders of models, and how tables call what they store.
const FORMATS: [(&str, &str); 33] = [
    ("auto-fp8", "FP8 per-tensor"),
    ("ct-fp8-block", "FP8 24x40"),
    ("ct-fp8-channel", "FP8 per-channel"),
    ("ct-fp8-f16", "FP8 per-channel"),
    ("ct-fp8-group", "FP8"),
    ("ct-fp8-tensor", "FP8 per-tensor"),
    ("ct-mxfp4", "MXFP4"),
    ("ct-mxfp8", "MXFP8"),
    ("ct-nvfp4", "NVFP4"),
    ("fbgemm-fp8", "FP8 per-channel"),
    ("fp8-blocks", "FP8 32x32"),
    ("fp8-blocks-bf16", "FP8 32x32"),
    ("fp8-blocks-e8m0", "FP8 32x32"),
    ("fp8-tensor", "FP8 per-tensor"),
    ("bitsandbytes-fp4-in-bf16", "bitsandbytes FP4"),
    ("bitsandbytes-int8", "bitsandbytes W8"),
    ("bitsandbytes-nf4", "bitsandbytes NF4"),
    ("bitsandbytes-nf4-nested", "bitsandbytes NF4"),
    ("hqq-1-columns", "HQQ W1"),
    ("hqq-2", "HQQ W2"),
    ("hqq-3", "HQQ W3"),
    ("hqq-4", "HQQ W4"),
    ("hqq-4-columns", "HQQ W4"),
    ("hqq-8", "HQQ W8"),
    ("mlx-3", "MLX W3"),
    ("mlx-4", "MLX W4"),
    ("quanto-fp8", "quanto FP8"),
    ("quanto-int2", "quanto W2"),
    ("quanto-int4", "quanto W4"),
    ("quanto-int8", "quanto W8"),
    ("torchao-fp8", "torchao FP8"),
    ("torchao-int4-in-int8", "torchao W4 in bytes"),
    ("torchao-int8", "torchao W8"),
];

/// Of other models than that one: linears that lie the other way round, a matrix of one row, experts in one tensor, scales behind an
/// activation, layers of several bits.
const OF_OTHER_MODELS: [&str; 9] = [
    "autoawq-neox",
    "bitsandbytes-int8-gpt2",
    "bitsandbytes-nf4-gpt2",
    "gptqmodel-gemma3",
    "gptqmodel-gpt2",
    "hqq-4-experts",
    "mlx-4-experts",
    "mlx-mixed",
    "quanto-int4-one-row",
];

fn folders() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|(name, _)| *name).chain(OF_OTHER_MODELS)
}

fn folder(name: &str) -> PathBuf {
    let folder = float_folder(name);
    if folder.exists() { folder } else { tool_folder(name) }
}

fn opened(name: &str) -> (ModelConfig, Arc<dyn Checkpoint>) {
    open_tensors(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn logits_are_those_of_transformers() {
    for name in folders() {
        let (config, checkpoint) = opened(name);
        // quanto's files do not know how many rows a weight has that has groups: another's of the same model do.
        let shapes =
            if ["quanto-int2", "quanto-int4"].contains(&name) { opened("hqq-4").1 } else { checkpoint.clone() };
        let mut copy = MemoryCheckpoint::default();
        for tensor in checkpoint.names() {
            copy.insert(&tensor, &shapes.shape(&tensor).unwrap(), checkpoint.read_f32(&tensor).unwrap());
        }
        let fixture = Fixture::with_expected(config, copy, &folder(name).join("expected.safetensors"));
        check_close(name, &fixture.run::<Cpu>(), &fixture.logits, 1e-4);
    }
}

/// Parts of a fused tensor among them.
#[test]
fn the_base_model_is_called_by_what_its_file_stores() {
    for (name, expected) in FORMATS {
        let (config, checkpoint) = opened(name);
        let wiring = wiring_of(&config, checkpoint.as_ref()).unwrap();
        let storage = Storage::of(&wiring, &config, checkpoint.as_ref()).unwrap();
        assert_eq!(storage.types.len(), 1, "{name}");
        assert_eq!(storage.types[0].name, expected, "{name}");
        assert!((1.4..11.1).contains(&storage.bits_per_weight), "{name}: {}", storage.bits_per_weight);
    }
}

#[test]
fn they_are_quantized_as_any_other() {
    for name in folders() {
        let (config, checkpoint) = opened(name);
        let decoder = open_decoder::<Cpu>(config, checkpoint, &Default::default()).unwrap();
        let jobs = [Job { method: &no_search(), grids: grid(4, group(16)).into() }];
        let pass = quantize_model(decoder.as_ref(), None, &jobs, &mut |_| {}).unwrap();
        let model = pass.models.into_iter().next().unwrap().unwrap();
        assert!(model.bits_per_weight() < 6.5, "{name}");
    }
}

/// Folders of libraries, and whether their codes are multiplied as they are: those of tables, of small floats and of groups along the
/// outputs are not.
const WITH_KERNELS: [(&str, bool); 19] = [
    ("bitsandbytes-int8", true),
    ("bitsandbytes-int8-gpt2", true),
    ("bitsandbytes-nf4", false),
    ("bitsandbytes-nf4-gpt2", false),
    ("hqq-1-columns", false),
    ("hqq-2", true),
    ("hqq-3", true),
    ("hqq-4", true),
    ("hqq-4-columns", false),
    ("hqq-8", true),
    ("mlx-3", true),
    ("mlx-4", true),
    ("quanto-fp8", false),
    ("quanto-int2", true),
    ("quanto-int4", true),
    ("quanto-int8", true),
    ("torchao-fp8", false),
    ("torchao-int4-in-int8", true),
    ("torchao-int8", true),
];

/// Weights of libraries are rounded to 16 bits, products of codes are not: logits differ by that, and so the likeliest token of one is all
/// but the likeliest of the other.
#[test]
fn codes_of_libraries_decode_as_the_floats_that_they_restore() {
    for (name, has_kernels) in WITH_KERNELS {
        let (config, checkpoint) = opened(name);
        let load = |codes| {
            let options = DecodeOptions { codes, ..DecodeOptions::EXACT };
            DecodeModel::load(config.clone(), checkpoint.as_ref(), &options).unwrap()
        };
        let (packed, floats) = (load(CodesOf::All), load(CodesOf::Ours));
        let (with, without) = (packed.footprint(), floats.footprint());
        assert_eq!((without.n_packed, without.n_dequantized), (0, 0), "{name}");
        // In HQQ's the groups of one linear cross its rows.
        let n_crossed = if name.starts_with("hqq") { config.n_blocks } else { 0 };
        let expected = if has_kernels { with.n_linears - n_crossed } else { 0 };
        assert_eq!((with.n_packed, with.n_dequantized), (expected, 0), "{name}");
        // Floats take 16 bits here, and groups of a few channels are filled up for kernels.
        let is_smaller = with.step_bytes < 2 * without.step_bytes;
        assert!(
            if has_kernels { is_smaller } else { with.step_bytes == without.step_bytes },
            "{name}: {with:?}, {without:?}"
        );
        let ids: Vec<u32> = (0..12).map(|index| index * 5 % config.vocab_size.min(60) as u32).collect();
        let logits = |model: &DecodeModel| Session::new(model, 12).unwrap().feed_each(&ids).unwrap();
        let (found, expected) = (logits(&packed), logits(&floats));
        // quanto rounds the product of code and scale before it subtracts the shift, which is as large.
        let is_coarse = name.starts_with("quanto-int");
        check_close(name, &found, &expected, if is_coarse { 6e-2 } else { 2e-2 });
        let n_ids = found.len() / ids.len();
        for (found, expected) in found.chunks(n_ids).zip(expected.chunks(n_ids)) {
            let likeliest = (0..n_ids).max_by(|a, b| found[*a].total_cmp(&found[*b])).unwrap();
            let highest = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let most = if is_coarse { 0.2 } else { 0.05 };
            assert!(
                highest - expected[likeliest] <= most,
                "{name}: {} below the likeliest",
                highest - expected[likeliest]
            );
        }
    }
}

/// GPT-2 keeps floats `[in, out]`; codes lie as everyone's, and parts of a tensor are decoded with.
#[test]
fn codes_of_gpt2_are_those_of_its_parts() {
    let (_, checkpoint) = opened("gptqmodel-gpt2");
    for (part, n_out) in [("attn.c_attn.k", 64), ("mlp.c_fc.transposed", 256), ("mlp.c_proj.transposed", 64)] {
        let name = format!("transformer.h.0.{part}.weight");
        let codes = checkpoint.read_codes(&name).unwrap().unwrap();
        assert_eq!((codes.n_out, Some(vec![codes.n_out, codes.n_in])), (n_out, checkpoint.shape(&name)), "{name}");
        check_close(&name, &codes.dequantize(), &checkpoint.read_f32(&name).unwrap(), 1e-3);
    }
}

#[test]
fn slices_are_the_tensors() {
    for name in folders() {
        let (_, checkpoint) = opened(name);
        for tensor in checkpoint.names() {
            let slices: Vec<Vec<f32>> = checkpoint.slices(&tensor).unwrap().map(Result::unwrap).collect();
            assert_eq!(slices.concat(), checkpoint.read_any_f32(&tensor).unwrap(), "{name}: {tensor}");
        }
    }
}

/// What is written in another way must not say that it is stored in this one.
#[test]
fn written_configurations_say_nothing_of_how_the_weights_were_stored() {
    for (name, _) in FORMATS {
        let (config, _) = opened(name);
        let is_silent = name.starts_with("hqq") || name.starts_with("quanto");
        assert_eq!(config.raw.get("quantization_config").is_none(), is_silent, "{name}");
        assert_eq!(config.to_hugging_face().get("quantization_config"), None, "{name}");
    }
}

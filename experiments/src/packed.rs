//! Writes a packed checkpoint; its layout is described where it is read ([`awq_core::load::packed`]).
//!
//! Tensors go to disk one at a time, so memory is bounded by the largest. The weights get their name last: a folder that
//! was not finished has no `model.safetensors` and is not taken for a model.

mod companions;
pub(crate) mod halves;
mod tensor_file;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use awq_core::grid::Grid;
use awq_core::load::packed::{HEADER_FILE, PackedHeader, PackedLinear, PackedTransform};
use awq_core::load::{Checkpoint, EditedTensors};
use awq_core::model::wiring::Wiring;
use awq_core::model::wiring_of;
use awq_core::open::OpenedModel;
use awq_core::pack::PackLayout;
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use serde::Serialize;
use serde_json::{Value as Json, json};

pub(crate) use self::tensor_file::TensorFile;

pub(crate) const WEIGHTS: &str = "model.safetensors";

/// Bytes that [`write()`] needs at least while it writes: the tensors are in two files at its end. Codes and scales of the
/// linears that `grid_of` gives a grid, 16 bits a value of everything else.
pub fn needed_bytes(checkpoint: &dyn Checkpoint, grid_of: impl Fn(&str) -> Option<Grid>) -> u64 {
    let n_bytes = |name: &String| match grid_of(name) {
        Some(grid) => bytes_of_codes(checkpoint, name, &grid),
        None => 2 * n_values(checkpoint, name),
    };
    let beside: u64 = checkpoint.beside().iter().map(|name| 2 * n_values(checkpoint, name)).sum();
    2 * (checkpoint.names().iter().map(n_bytes).sum::<u64>() + beside)
}

fn n_values(checkpoint: &dyn Checkpoint, name: &str) -> u64 {
    checkpoint.shape(name).unwrap_or_default().iter().map(|&dim| dim as u64).product()
}

/// Bytes of the codes and scales of a linear on `grid`.
pub fn bytes_of_codes(checkpoint: &dyn Checkpoint, name: &str, grid: &Grid) -> u64 {
    let n_in = checkpoint.shape(name).and_then(|shape| shape.last().copied()).unwrap_or(1).max(1);
    let n_values = n_values(checkpoint, name);
    let n_scales = n_values / n_in as u64 * grid.granularity.n_groups(n_in) as u64;
    (n_values * u64::from(grid.bits.get())).div_ceil(8) + n_scales * u64::from(grid.scale_dtype.bits() / 8 + 1)
}

/// Writes `checkpoint`, with everything of `opened` that is not a tensor, into an empty folder.
///
/// # Errors
/// A tensor that cannot be read, or a disk that is full.
pub fn write(
    folder: &Path,
    opened: &OpenedModel,
    checkpoint: &dyn Checkpoint,
    header: PackedHeader,
) -> anyhow::Result<()> {
    let wiring = wiring_of(&opened.config, checkpoint)?;
    write_model_files(folder, opened, &config_of(opened, &wiring))?;
    // What a decoder reads, and no buffers. NaN may stand in rows that no text looks up.
    write_tensors(folder, tensors_of(opened, &wiring, checkpoint), checkpoint, header)
}

/// The tensors that are written: what is beside the language model stays with it, but for counters that transformers computes.
pub(crate) fn tensors_of(
    opened: &OpenedModel,
    wiring: &Wiring,
    checkpoint: &dyn Checkpoint,
) -> impl Iterator<Item = String> {
    let beside: Vec<String> = checkpoint.beside().into_iter().filter(|name| !checkpoint.is_integer(name)).collect();
    wiring.tensors(&opened.config).into_keys().chain(beside)
}

/// The model's `config.json`, of a model that `wiring` is of.
pub(crate) fn config_of(opened: &OpenedModel, wiring: &Wiring) -> Json {
    let mut config = opened.config.to_hugging_face();
    if wiring.head.is_some() {
        // A tied head that was quantized is a tensor of its own now.
        config["tie_word_embeddings"] = false.into();
    }
    config
}

/// Writes everything of a model that is not a tensor.
///
/// # Errors
/// A file that cannot be read or written.
pub(crate) fn write_model_files(folder: &Path, opened: &OpenedModel, config: &Json) -> anyhow::Result<()> {
    write_json(folder, "config.json", config)?;
    write_text(folder, "tokenizer.json", &opened.tokenizer.to_json()?)?;
    let token = |id: Option<u32>| id.and_then(|id| opened.tokenizer.token(id));
    let tokenizer_config = json!({
        "bos_token": token(opened.tokenizer.bos()),
        "eos_token": token(opened.tokenizer.eos()),
        "chat_template": opened.chat_template,
    });
    write_json(folder, "tokenizer_config.json", &tokenizer_config)?;
    let generation = json!({ "bos_token_id": opened.tokenizer.bos(), "eos_token_id": opened.config.eos_ids });
    write_json(folder, "generation_config.json", &generation)?;
    companions::copy(opened.tokenizer.file(), folder)
}

/// Writes only what a method changed into an empty folder: the linears, and tensors into which scales were folded.
///
/// # Errors
/// As [`write()`].
pub fn write_codes(folder: &Path, edited: &EditedTensors, header: PackedHeader) -> anyhow::Result<()> {
    write_tensors(folder, edited.names().into_iter(), edited, header)
}

fn write_tensors(
    folder: &Path,
    names: impl Iterator<Item = String>,
    checkpoint: &dyn Checkpoint,
    mut header: PackedHeader,
) -> anyhow::Result<()> {
    let partial = folder.join(format!("{WEIGHTS}.partial"));
    let mut file = TensorFile::create(folder)?;
    for name in names {
        match checkpoint.read_quantized(&name)? {
            Some(weight) => {
                let linear = name.strip_suffix(".weight").unwrap_or(&name);
                header.linears.insert(linear.to_owned(), add_linear(&mut file, linear, &weight)?);
            }
            None => {
                let shape = checkpoint.shape(&name).unwrap_or_default();
                file.add_slices(&name, &shape, || checkpoint.slices(&name))?;
            }
        }
    }
    file.finish(&partial).with_context(|| cannot_write(&partial))?;
    write_json(folder, HEADER_FILE, &header)?;
    fs::rename(&partial, folder.join(WEIGHTS)).with_context(|| format!("{}: cannot rename", partial.display()))
}

fn write_json(folder: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    write_text(folder, name, &(serde_json::to_string_pretty(value)? + "\n"))
}

/// What to say of a file of a model that cannot be written.
pub(crate) fn cannot_write(file: &Path) -> String {
    format!("{}: cannot write (is the disk full?); free space, or choose another place", file.display())
}

pub(crate) fn write_text(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = folder.join(name);
    let written =
        File::create(&file).and_then(|mut made| made.write_all(text.as_bytes()).and_then(|()| made.sync_all()));
    written.with_context(|| cannot_write(&file))
}

/// Adds the tensors of a quantized linear.
fn add_linear(file: &mut TensorFile, name: &str, weight: &QuantizedWeight) -> anyhow::Result<PackedLinear> {
    let QuantizedWeight { n_out, n_in, grid, .. } = *weight;
    let tensor = |part: &str| format!("{name}.{part}");
    let words = PackLayout::Stream.pack(&weight.codes, n_in, grid.bits);
    file.add_words(tensor("codes"), &[n_out, words.len() / n_out], &words)?;
    // A matrix with one scale has one; any other as many in a row as there are groups.
    let scale_rows = n_out.min(weight.scale.len());
    let scales_shape = [scale_rows, weight.scale.len() / scale_rows];
    file.add_floats(&tensor("scales"), &scales_shape, &weight.scale)?;
    match &weight.zero_point {
        ZeroPoints::Codes(codes) => file.add(tensor("zero_points"), "U8", &scales_shape, codes)?,
        ZeroPoints::Real(values) => file.add_floats(&tensor("zero_points"), &scales_shape, values)?,
    }
    let transform = match &weight.transform {
        WeightTransform::Identity => PackedTransform::Identity,
        WeightTransform::PermutedInputs(order) => {
            file.add_words(tensor("input_order"), &[n_in], order)?;
            PackedTransform::PermutedInputs
        }
        WeightTransform::KeptInputs(kept) => {
            let n_kept = kept.channels.len();
            file.add_words(tensor("kept_inputs"), &[n_kept], &kept.channels)?;
            file.add_floats(&tensor("kept_weights"), &[n_out, n_kept], &kept.values)?;
            PackedTransform::KeptInputs
        }
        WeightTransform::Rotated(rotated) => {
            file.add_floats(&tensor("input_scales"), &[n_in], &rotated.input_scale)?;
            PackedTransform::Rotated { output: rotated.output.recipe(), input: rotated.input.recipe() }
        }
    };
    Ok(PackedLinear { shape: [n_out, n_in], grid, transform })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use half::bf16;

    use awq_core::driver::codes_sha256;
    use awq_core::load::{MemoryCheckpoint, Tokenizer};
    use awq_core::model::tiny::{self, TinySpec};
    use awq_core::model::{Storage, wiring_of};
    use awq_core::open::open_model;

    use super::*;
    use crate::bundled::assets;
    use crate::codes::CodeStore;
    use crate::progress::{Progress, Style};
    use crate::quantize::request::Request;
    use crate::quantize::{Quantized, Recipe, calibration_text, header, quantize};
    use crate::session::{Machine, Model};

    /// A tiny model that reads the bundled language.
    fn opened() -> Model {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), assets::TOKENIZER).unwrap();
        let spec = TinySpec { vocab_size: 2048, ..TinySpec::MHA };
        let config = spec.config();
        let tokenizer = Tokenizer::from_folder(folder.path(), &config).unwrap();
        let checkpoint: Arc<MemoryCheckpoint> = Arc::new(tiny::checkpoint(&spec, 11));
        let chat_template = Some("<|im_start|>".to_owned());
        let opened = OpenedModel {
            config,
            checkpoint,
            tokenizer,
            packed: None,
            quantized_by: None,
            chat_template,
            special_tokens: Default::default(),
        };
        Model::of(opened, Default::default(), &Progress::new(Style::Quiet)).unwrap()
    }

    fn quantized(model: &Model, recipe: &Recipe) -> Quantized {
        let settings = crate::assets::AssetSettings::from_env(&[], Style::Quiet).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let settings = crate::assets::AssetSettings { cache: cache.path().to_owned(), offline: true, ..settings };
        let store = crate::assets::AssetStore::new(settings).unwrap();
        let codes = CodeStore::new(cache.path(), 1 << 30);
        let progress = Progress::new(Style::Quiet);
        quantize(model, recipe, Machine::in_f32("flex", &codes, &progress), &store).unwrap()
    }

    /// Every kind of zero point, of granularity and of transform.
    const METHODS: [(&str, &str); 11] = [
        ("rtn-nf4g64-f32", ""),
        ("rtn-e2m1g32-e8m0", ""),
        ("awq-e2m1g16-e4m3", ""),
        ("rtn-ternaryg32", ""),
        ("awq-w4g40", ""),
        ("rtn-w3", ""),
        ("hqq-w4g32", ""),
        ("rtn-w4g32", "[keep_salient]\nfraction = 0.03\nby = \"activation\""),
        (
            "gptq-w3g32",
            "[gptq]\ndamp = 0.01\nblock_size = 128\norder = \"activation\"\ngroup_grid = \"updated_weights\"\nrange = \"min_max\"\nhessian = \"f64\"",
        ),
        (
            "gptq-w2",
            "[quip]\nincoherence = { on = { rotation = \"kronecker\", seed = 5 } }\nrounding = \"ldlq\"\ngrid = \"one_scale\"\ndamp = 0.01",
        ),
        (
            "gptq-w4g32",
            "[quip]\nincoherence = { on = { rotation = \"hadamard\", seed = 5 } }\nrounding = \"ldlq\"\ngrid = \"grouped\"\ndamp = 0.01",
        ),
    ];

    #[track_caller]
    fn check_same_tensors(read: &OpenedModel, quantized: &Quantized, label: &str) {
        assert_eq!(read.checkpoint.names(), quantized.checkpoint.names(), "{label}");
        for name in read.checkpoint.names() {
            assert_eq!(read.checkpoint.shape(&name), quantized.checkpoint.shape(&name), "{label}: {name}");
            let packed = |checkpoint: &dyn Checkpoint| checkpoint.read_quantized(&name).unwrap();
            assert!(
                packed(read.checkpoint.as_ref()) == packed(quantized.checkpoint.as_ref()),
                "{label}: {name} is stored otherwise"
            );
            let bits = |checkpoint: &dyn Checkpoint| -> Vec<u32> {
                checkpoint.read_f32(&name).unwrap().into_iter().map(f32::to_bits).collect()
            };
            assert!(bits(read.checkpoint.as_ref()) == bits(quantized.checkpoint.as_ref()), "{label}: {name}");
        }
    }

    /// Written with linears of several grids, and `v_proj` in full precision.
    fn mixed(model: &Model) -> (Quantized, tempfile::TempDir) {
        let mut request: Request = "rtn-w4g32".parse().unwrap();
        let overrides = ["*.down_proj=w8", "mlp.gate_proj=nf4g16", "*.v_proj=fp"];
        request.overrides = overrides.iter().map(|text| text.parse().unwrap()).collect();
        let recipe = request.recipe(&model.opened.config, || calibration_text("bundled")).unwrap();
        let (quantized, folder) = (quantized(model, &recipe), tempfile::tempdir().unwrap());
        write(folder.path(), &model.opened, quantized.checkpoint.as_ref(), header(&recipe, &quantized).unwrap())
            .unwrap();
        (quantized, folder)
    }

    #[test]
    fn each_linear_is_read_with_its_own_grid() {
        let (quantized, folder) = mixed(&opened());
        let read = open_model(folder.path()).unwrap();
        check_same_tensors(&read, &quantized, "mixed");
        let header = read.packed.as_ref().unwrap();
        assert_eq!(header.linears.len(), 12);
        let label = |name: &str| header.linears[&format!("model.layers.1.{name}")].grid.label();
        assert_eq!([label("self_attn.q_proj"), label("mlp.down_proj")], ["W4 g32", "W8 g32"]);
        assert_eq!(label("mlp.gate_proj"), "NF4 g16");
        assert_eq!(header.rule().label(), "W4 g32 (*.down_proj W8 g32, mlp.gate_proj NF4 g16, *.v_proj FP)");
        let wiring = wiring_of(&read.config, read.checkpoint.as_ref()).unwrap();
        let storage = Storage::of(&wiring, &read.config, read.checkpoint.as_ref()).unwrap();
        let of_all = quantized.full_precision.unwrap().bits_per_weight_of_all;
        assert!((storage.bits_per_weight - of_all).abs() < 1e-9, "{storage:?}, {of_all}");
        let names: Vec<&str> = storage.types.iter().map(|share| share.name.as_str()).collect();
        assert_eq!(names, ["packed RTN W4 g32", "packed RTN NF4 g16", "packed RTN W8 g32", "F32"]);
    }

    #[test]
    fn a_grid_that_contradicts_itself_is_named_when_it_is_read() {
        let (_, folder) = mixed(&opened());
        let file = folder.path().join(HEADER_FILE);
        let mut header: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        header["linears"]["model.layers.0.mlp.gate_proj"]["grid"]["bits"] = 3.into();
        fs::write(&file, header.to_string()).unwrap();
        let error = open_model(folder.path()).err().unwrap().to_string();
        assert!(
            error.contains("linears.model.layers.0.mlp.gate_proj") && error.contains("is a table of 4 bits"),
            "{error}"
        );
    }

    #[test]
    fn what_is_written_is_read_again_bit_for_bit() {
        let model = opened();
        let opened = &model.opened;
        for (request, settings) in METHODS {
            let request: Request = request.parse().unwrap();
            let mut recipe = request.recipe(&opened.config, || calibration_text("bundled")).unwrap();
            if !settings.is_empty() {
                recipe.method = toml::from_str(settings).unwrap();
                let other: Request = "awq-w4".parse().unwrap();
                recipe.calibration = other.recipe(&opened.config, || calibration_text("bundled")).unwrap().calibration;
            }
            let quantized = quantized(&model, &recipe);
            let label = recipe.label();
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), opened, quantized.checkpoint.as_ref(), header(&recipe, &quantized).unwrap()).unwrap();
            let read = open_model(folder.path()).unwrap();
            check_same_tensors(&read, &quantized, &label);
            let wiring = wiring_of(&read.config, read.checkpoint.as_ref()).unwrap();
            let codes = codes_sha256(&wiring, read.config.n_blocks, read.checkpoint.as_ref()).unwrap();
            assert_eq!(codes, quantized.codes_sha256, "{label}");
            let header = read.packed.unwrap();
            let storage = Storage::of(&wiring, &read.config, read.checkpoint.as_ref()).unwrap();
            assert!((storage.bits_per_weight - header.bits_per_weight).abs() < 1e-9, "{label}: {storage:?}");
            assert!(
                storage.types.iter().all(|share| share.name.starts_with(&format!("packed {}", header.method))),
                "{label}: {storage:?}"
            );
            assert_eq!((header.method, header.codes_sha256), (recipe.method.label(), codes));
            assert_eq!(header.linears.len(), 14, "{label}");
            let text = "A text, and its tokens.";
            assert_eq!(read.tokenizer.encode(text).unwrap(), opened.tokenizer.encode(text).unwrap());
            let special = |tokenizer: &Tokenizer| (tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos());
            assert_eq!(special(&read.tokenizer), special(&opened.tokenizer));
            assert_eq!(read.chat_template, opened.chat_template);
            let config = awq_core::load::ModelConfig { raw: serde_json::Value::Null, ..read.config };
            assert_eq!(config, opened.config);
        }
    }

    #[test]
    fn floats_take_the_smallest_type_that_holds_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = TensorFile::create(folder.path()).unwrap();
        file.add_floats("f16", &[2], &[0.5, -1.25]).unwrap();
        file.add_floats("bf16", &[2], &[1e30_f32, 0.5].map(|v| bf16::from_f32(v).to_f32())).unwrap();
        file.add_floats("f32", &[1], &[0.1]).unwrap();
        let path = folder.path().join("t.safetensors");
        file.finish(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let dtype = |name: &str| format!("{:?}", read.tensor(name).unwrap().dtype());
        assert_eq!([dtype("f16"), dtype("bf16"), dtype("f32")], ["F16", "BF16", "F32"]);
        assert_eq!(read.tensor("f32").unwrap().data(), 0.1_f32.to_le_bytes());
    }

    #[test]
    fn space_is_estimated_near_what_is_written() {
        let model = opened();
        let opened = &model.opened;
        let request: Request = "rtn-w4g32".parse().unwrap();
        let recipe = request.recipe(&opened.config, || calibration_text("bundled")).unwrap();
        let quantized = quantized(&model, &recipe);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), opened, quantized.checkpoint.as_ref(), header(&recipe, &quantized).unwrap()).unwrap();
        let written = folder.path().join(WEIGHTS).metadata().unwrap().len();
        let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref()).unwrap();
        let grid_of = |name: &str| wiring.quantizes(name).then_some(recipe.rule.grid);
        let needed = needed_bytes(opened.checkpoint.as_ref(), grid_of) as f64 / 2.0;
        // The tiny model's embedding is f32.
        assert!((0.4..1.05).contains(&(needed / written as f64)), "{needed} for {written}");
    }
}

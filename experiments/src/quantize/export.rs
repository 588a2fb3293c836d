//! A quantized model as other programs load it: linears in one of [`awq_core::formats`], everything else as in the model's own
//! folder, or in one GGUF file ([`super::gguf_file`]).

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use awq_core::codebook::Codebook;
use awq_core::formats::{self, Format, FormatTensor, Plan, PlannedLinear};
use awq_core::load::{Checkpoint, Contents, GgufOutline, ModelConfig, Slices, weight_slices};
use awq_core::model::layers::NormKind;
use awq_core::model::wiring::Wiring;
use awq_core::model::{LinearName, holder_of, known_families, wiring_of};
use awq_core::open::{gguf_outline, open_tensors};
use rayon::prelude::*;
use serde_json::{Value as Json, json};

use super::card::{shell, stored_as};
use super::{Quantized, Recipe};
use crate::packed::{self, TensorFile, WEIGHTS};
use crate::provenance::Provenance;
use crate::session::Model;

/// What `recipe` makes of the linears of a model, before any work; and the model as a GGUF file, where one holds it.
///
/// # Errors
/// Overrides that do not fit the model.
pub fn plan(model: &Model, recipe: &Recipe) -> anyhow::Result<(Plan, Option<GgufOutline>)> {
    let grids = recipe.rule.resolve(&model.wiring)?;
    let (wiring, config) = (model.wiring.as_ref(), &model.opened.config);
    let stored = recipe.method.settings().stores();
    let mut plan = Plan {
        linears: Default::default(),
        others: Vec::new(),
        stored,
        dtype: ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str()).map(str::to_owned),
        writer: format!("awq-rs {}", env!("CARGO_PKG_VERSION")),
        obstacle: obstacle(wiring, config, stored.scales_activations),
        gguf_obstacle: None,
    };
    for (block_idx, block) in wiring.blocks.iter().enumerate() {
        let grid_of = |linear: LinearName| grids.block(block_idx).of(linear).copied();
        let quantizable = block.linear_shapes(config).into_iter().map(|(name, shape)| (name, shape, grid_of(name)));
        let kept = block.kept_shapes(config).into_iter().map(|(name, shape)| (name, shape, None));
        for (linear, shape, grid) in quantizable.chain(kept) {
            let name = wiring.linear(block_idx, linear);
            match grid {
                Some(grid) => drop(plan.linears.insert(name, PlannedLinear { grid, shape })),
                None => plan.others.push(name),
            }
        }
    }
    let head = wiring.head_name();
    let head = head.strip_suffix(".weight").unwrap_or(head).to_owned();
    match grids.head() {
        Some(grid) => {
            let shape = [config.vocab_size, wiring.embedding_width(config)];
            plan.linears.insert(head, PlannedLinear { grid: *grid, shape });
        }
        None => plan.others.push(head),
    }
    let outline = match activation_obstacle(wiring, config, stored.scales_activations) {
        Some(problem) => Err(problem),
        None => outline(model, recipe),
    };
    plan.gguf_obstacle = match &outline {
        Ok(outline) => gguf_obstacle(outline, &plan),
        Err(problem) => Some(problem.clone()),
    };
    Ok((plan, outline.ok()))
}

/// A model as a GGUF file, before its linears have codes.
///
/// # Errors
/// What no such file holds, in words.
fn outline(model: &Model, recipe: &Recipe) -> Result<GgufOutline, String> {
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let mut more = vec![
        ("general.description", recipe.label()),
        ("awq_rs.method", json(serde_json::to_string(&recipe.method))),
        ("awq_rs.calibration", json(serde_json::to_string(&recipe.calibration))),
    ];
    more.extend(model.storage.as_ref().map(|base| ("awq_rs.made_of", stored_as(base))));
    gguf_outline(&model.opened, &model.wiring, recipe.rule.head().is_some(), &about(model, &more))
}

/// Keys of a GGUF file that say what it is and where it is from.
pub(super) fn about(model: &Model, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let source = model.opened.checkpoint.source();
    let named = if source.extension().is_some_and(|end| end == "gguf") { Some(source) } else { source.parent() };
    let name = named.and_then(Path::file_stem).map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let Provenance { version, commit, command, .. } = Provenance::collect("", 0, Default::default());
    let mut about = vec![
        ("general.name", name),
        ("general.quantized_by", format!("awq-rs {version}, commit {commit}")),
        ("awq_rs.command", shell(&command)),
    ];
    about.extend(more.iter().cloned());
    about
}

/// Rows that one tensor has are in one type.
fn gguf_obstacle(outline: &GgufOutline, plan: &Plan) -> Option<String> {
    let grid = |name: &String| plan.linears.get(name.strip_suffix(".weight")?).map(|linear| linear.grid.values);
    let is_e2m1 = |name: &String| grid(name).map(|values| values == Some(Codebook::E2m1));
    outline.tensors().iter().find_map(|tensor| {
        let Contents::Tensors(names) = &tensor.contents else { return None };
        let other = names.iter().find(|name| is_e2m1(name) != is_e2m1(&names[0]))?;
        Some(format!("{} and {other} lie in one tensor ({}), which has one type", names[0], tensor.name))
    })
}

/// What keeps a model out of every format.
fn obstacle(wiring: &Wiring, config: &ModelConfig, scales_activations: bool) -> Option<String> {
    if let Some(outer) = &config.outer {
        let class = outer["architectures"][0].as_str().unwrap_or("the model");
        return Some(format!("{class} holds a tower for images, and its language model has other names there"));
    }
    let mut linears = wiring.blocks.iter().flat_map(|block| block.linear_shapes(config));
    if let Some((name, holder)) = linears.find_map(|(name, _)| Some((name, holder_of(name.0)?))) {
        return Some(format!(
            "{} stores {name} as a part of {holder}, and parts have scales of their own",
            config.architecture
        ));
    }
    activation_obstacle(wiring, config, scales_activations)
}

/// Scales that have no other place than an activation.
pub(super) fn activation_obstacle(wiring: &Wiring, config: &ModelConfig, scales_activations: bool) -> Option<String> {
    let has_scale = wiring
        .blocks
        .iter()
        .any(|block| block.norms().into_iter().any(|name| block.norm_kind(name, wiring.norm) == NormKind::Scale));
    (scales_activations && has_scale).then(|| {
        format!("in {} the method folds scales into activations, where other programs have none", config.architecture)
    })
}

/// Checks that `format` holds a model.
///
/// # Errors
/// What it does not hold, and which formats do.
pub fn check(format: &dyn Format, plan: &Plan) -> anyhow::Result<()> {
    match formats::problem(format, plan) {
        None => Ok(()),
        Some(problem) => anyhow::bail!("{problem}"),
    }
}

/// Writes a quantized model into an empty folder. Tensors go to disk one at a time, and get their file's name last.
///
/// # Errors
/// A tensor that cannot be read, or a disk that is full.
pub fn write(
    folder: &Path,
    model: &Model,
    quantized: &Quantized,
    (format, plan): (&dyn Format, &Plan),
) -> anyhow::Result<()> {
    let (opened, checkpoint) = (&model.opened, quantized.checkpoint.as_ref());
    let wiring = wiring_without_scales(&opened.config, checkpoint)?;
    let mut config = packed::config_of(opened, &wiring);
    config["quantization_config"] = format.settings(plan);
    if config.get("model_type").is_none() {
        // Of a GGUF file; other programs find the class by it.
        let family = known_families().into_iter().find(|family| family.class == opened.config.architecture);
        config["model_type"] = family.map_or(Json::Null, |family| json!(family.model_type));
    }
    packed::write_model_files(folder, opened, &config)?;
    let partial = folder.join(format!("{WEIGHTS}.partial"));
    let mut file = TensorFile::create(folder)?;
    for name in packed::tensors_of(opened, &wiring, checkpoint) {
        add(&mut file, &name, checkpoint, format)?;
    }
    file.finish(&partial).with_context(|| packed::cannot_write(&partial))?;
    fs::rename(&partial, folder.join(WEIGHTS)).with_context(|| format!("{}: cannot rename", partial.display()))
}

/// How a quantized model is wired elsewhere: without scales behind activations. Methods that fold nothing there leave ones.
fn wiring_without_scales(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> anyhow::Result<Wiring> {
    let mut wiring = wiring_of(config, checkpoint)?;
    if wiring.scaled_activations {
        for (block_idx, block) in wiring.blocks.iter().enumerate() {
            let scales = block.norms().into_iter();
            for name in scales.filter(|name| block.norm_kind(*name, wiring.norm) == NormKind::Scale) {
                let scale = checkpoint.read_any_f32(&format!("{}.weight", wiring.block_norm(block_idx, name)))?;
                ensure!(
                    scale.iter().all(|&factor| factor == 1.0),
                    "scales were folded into activations, where other programs have none"
                );
            }
        }
        wiring.scaled_activations = false;
    }
    Ok(wiring)
}

/// Reads what was written as a folder of another tool, and holds each linear against what was quantized.
///
/// # Errors
/// A folder that does not open, or a linear with other weights.
pub fn verify(folder: &Path, quantized: &Quantized, plan: &Plan) -> anyhow::Result<()> {
    let (_, written) = open_tensors(folder).context("what was written cannot be read again")?;
    for linear in plan.linears.keys() {
        let name = format!("{linear}.weight");
        let weight =
            quantized.checkpoint.read_quantized(&name)?.with_context(|| format!("{linear} is not quantized"))?;
        let products = weight.grid.scale_dtype.number();
        let is_same = are_same(written.slices(&name)?, weight_slices(weight), |value| products.round(value))?;
        ensure!(is_same, "{linear}: what was written is not what was quantized");
    }
    Ok(())
}

/// Whether one tensor is another one changed, bit for bit.
///
/// # Errors
/// Those of the slices.
pub(super) fn are_same(
    mut found: Slices<'_>,
    mut expected: Slices<'_>,
    change: impl Fn(f32) -> f32 + Sync,
) -> anyhow::Result<bool> {
    let is_same = |(found, expected): (&f32, &f32)| found.to_bits() == change(*expected).to_bits();
    loop {
        match (found.next().transpose()?, expected.next().transpose()?) {
            (None, None) => return Ok(true),
            (Some(found), Some(expected)) if found.len() == expected.len() => {
                if !found.par_iter().zip(&expected).with_min_len(VALUES_PER_TASK).all(is_same) {
                    return Ok(false);
                }
            }
            _ => return Ok(false),
        }
    }
}

/// Values that are worth a task.
const VALUES_PER_TASK: usize = 1 << 14;

fn add(file: &mut TensorFile, name: &str, checkpoint: &dyn Checkpoint, format: &dyn Format) -> anyhow::Result<()> {
    let Some(weight) = checkpoint.read_quantized(name)? else {
        let shape = checkpoint.shape(name).unwrap_or_default();
        return file.add_slices(name, &shape, || checkpoint.slices(name));
    };
    let linear = name.strip_suffix(".weight").unwrap_or(name);
    for FormatTensor { part, dtype, shape, bytes } in format.tensors(&weight) {
        file.add(format!("{linear}.{part}"), dtype, &shape, &bytes)?;
    }
    Ok(())
}

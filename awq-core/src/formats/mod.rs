//! Layouts of quantized linears that other programs load and write: one file a format, a line each in [`FORMATS`].
//!
//! A format makes the tensors of a linear from a [`QuantizedWeight`]'s codes, never from floats, and what it cannot hold it says
//! before any work ([`problem`]). The other way round, [`Integers`] is what its tensors say of a linear.
//!
//! | format | codes lie | zero points | groups of inputs |
//! |---|---|---|---|
//! | [`awq`] (AutoAWQ's GEMM) | along outputs, 8 a word in an order of its own | as they are | runs |
//! | [`gptq`], v1 and v2 | along inputs, one string of bits | v1: less one | any, by `g_idx` |
//! | [`compressed`] (compressed-tensors) | along inputs, one string of bits, or whole codes up to 0.17 | as they are | runs |
//! | [`gguf`] (llama.cpp) | along inputs, in blocks with their scale | in the codes, or times the scale | runs of whole blocks |

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde_json::Value as Json;

use crate::grid::{Granularity, Grid, ScaleDtype, Symmetry};
use crate::quantized::{QuantizedWeight, StoredParts, ZeroPoints};
use crate::transform::WeightTransform;

pub mod awq;
pub mod compressed;
pub mod gguf;
pub mod gptq;
mod integers;
#[cfg(test)]
pub(crate) mod tests;

pub use integers::Integers;

/// The layout of this program, which holds every grid and every method. It is no entry of [`FORMATS`].
pub const PACKED: &str = "packed";

/// Every format.
pub static FORMATS: &[&dyn Format] =
    &[&awq::Gemm, &gptq::V1, &gptq::V2, &compressed::DENSE, &compressed::WHOLE, &gguf::Gguf];

/// What a format's tensors stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A folder in Hugging Face layout: `config.json`, the tokenizer's files, safetensors.
    Folder,
    /// One GGUF file with all of that.
    File,
}

/// A layout of quantized linears.
pub trait Format: Send + Sync {
    /// Its name on the command line.
    fn key(&self) -> &'static str;

    /// A sentence on it.
    fn about(&self) -> &'static str;

    /// What its tensors stand in.
    fn container(&self) -> Container {
        Container::Folder
    }

    /// Whether it holds a linear.
    ///
    /// # Errors
    /// What it does not hold, in words.
    fn holds(&self, linear: &PlannedLinear, stored: StoredParts) -> Result<(), String>;

    /// Whether it holds the linears of a model together; those that it holds alone.
    ///
    /// # Errors
    /// What it does not hold, in words.
    fn holds_all(&self, plan: &Plan) -> Result<(), String>;

    /// What some loaders make of a model in it that a user would not expect, a sentence each.
    fn notes(&self, _plan: &Plan) -> Vec<String> {
        Vec::new()
    }

    /// What stands in `config.json` under `quantization_config`.
    fn settings(&self, plan: &Plan) -> Json;

    /// The tensors of a linear that it holds.
    fn tensors(&self, weight: &QuantizedWeight) -> Vec<FormatTensor>;
}

/// A tensor of a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatTensor {
    /// What its name has after the linear's: `qweight`.
    pub part: &'static str,
    /// As safetensors files call it, `I32`, or ggml: `Q4_0`.
    pub dtype: &'static str,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Little-endian.
    pub bytes: Vec<u8>,
}

/// What is known of a model before it is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The linears that are quantized, by their names in the checkpoint, without `.weight`.
    pub linears: BTreeMap<String, PlannedLinear>,
    /// Those that stay in full precision, the head among them.
    pub others: Vec<String>,
    /// What the method stores.
    pub stored: StoredParts,
    /// The type that the model's configuration names, in which loaders hold floats: `bfloat16`.
    pub dtype: Option<String>,
    /// Who writes it: `awq-rs 0.1.0`.
    pub writer: String,
    /// Why no folder of other programs holds this model.
    pub obstacle: Option<String>,
    /// Why no GGUF file does.
    pub gguf_obstacle: Option<String>,
}

/// A linear that is to be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedLinear {
    /// Its grid.
    pub grid: Grid,
    /// `[n_out, n_in]`.
    pub shape: [usize; 2],
}

/// The format of a key.
pub fn named(key: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.key() == key)
}

/// Why `format` cannot hold a model, and which formats can; `None` where it can.
pub fn problem(format: &dyn Format, plan: &Plan) -> Option<String> {
    let problem = why_not(format, plan)?;
    let others = FORMATS.iter().filter(|other| why_not(**other, plan).is_none()).map(|other| other.key());
    let others: Vec<&str> = std::iter::once(PACKED).chain(others).collect();
    Some(format!("format `{}`: {problem}; choose one of {}", format.key(), others.join(", ")))
}

fn why_not(format: &dyn Format, plan: &Plan) -> Option<String> {
    let obstacle = match format.container() {
        Container::Folder => &plan.obstacle,
        Container::File => &plan.gguf_obstacle,
    };
    if obstacle.is_some() {
        return obstacle.clone();
    }
    let of_one = |(name, linear): (&String, &PlannedLinear)| {
        format.holds(linear, plan.stored).err().map(|problem| format!("{name}: {problem}"))
    };
    plan.linears.iter().find_map(of_one).or_else(|| format.holds_all(plan).err())
}

impl Plan {
    /// The grid that most linears have, the first of equally many.
    pub(crate) fn main_grid(&self) -> Option<Grid> {
        let mut counts: Vec<(Grid, usize)> = Vec::new();
        for linear in self.linears.values() {
            match counts.iter_mut().find(|(grid, _)| *grid == linear.grid) {
                Some((_, n)) => *n += 1,
                None => counts.push((linear.grid, 1)),
            }
        }
        let most = counts.iter().map(|(_, n)| *n).max()?;
        counts.into_iter().find(|(_, n)| *n == most).map(|(grid, _)| grid)
    }

    /// Linears that are not on the [`Self::main_grid`].
    pub(crate) fn on_other_grids(&self) -> impl Iterator<Item = (&str, &PlannedLinear)> {
        let main = self.main_grid();
        self.linears.iter().filter(move |(_, one)| Some(one.grid) != main).map(|(name, one)| (name.as_str(), one))
    }
}

/// What no format of integers holds: tables of values, real zero points, and what else lies between codes and weights.
fn holds_codes(linear: &PlannedLinear, stored: StoredParts) -> Result<(), String> {
    if let Some(values) = linear.grid.values {
        return Err(format!("it has evenly spaced codes, not those of the table {}", values.facts().name));
    }
    holds_beside(stored)
}

/// What a method stores beside codes and scales.
fn holds_beside(stored: StoredParts) -> Result<(), String> {
    if stored.has_real_zero_points {
        return Err("its zero points are codes, those of this method are real numbers".into());
    }
    match stored.beside {
        Some(what) => Err(format!("it has no place for {what}, which this method stores")),
        None => Ok(()),
    }
}

/// Scales in f16, as the kernels for these formats take them.
fn holds_scales(grid: &Grid) -> Result<(), String> {
    match grid.scale_dtype {
        ScaleDtype::F16 => Ok(()),
        other => Err(format!("its scales are f16, not {}", other.number().name())),
    }
}

/// `-1` stands for a whole row.
fn group_size(grid: &Grid) -> i64 {
    match grid.granularity {
        Granularity::PerGroup(size) => size.get().into(),
        Granularity::PerChannel | Granularity::PerTensor => -1,
    }
}

/// Whether zero points are the middle code, which loaders of symmetric weights take for granted.
fn is_symmetric(grid: &Grid) -> bool {
    grid.symmetry != Symmetry::Asymmetric
}

/// Scales and zero points of each row, `[n_out, n_groups]`, whatever shares them.
///
/// # Panics
/// If zero points are no codes: such a weight is refused before.
fn of_rows(weight: &QuantizedWeight) -> (Vec<f32>, Vec<u8>) {
    let ZeroPoints::Codes(zero_points) = &weight.zero_point else { panic!("zero points that are real numbers") };
    let (groups, n_groups) = (weight.grid.granularity.groups(weight.n_out, weight.n_in), n_groups(weight));
    let places = (0..weight.n_out).flat_map(|row| {
        let start = row * weight.n_in;
        (0..n_groups).map(move |group| start + group * weight.group_len())
    });
    let indices: Vec<usize> = places.map(|place| groups.group_of(place)).collect();
    (
        indices.iter().map(|&index| weight.scale[index]).collect(),
        indices.iter().map(|&index| zero_points[index]).collect(),
    )
}

/// Groups are runs of neighbouring inputs, as they are in no order of rounding but where a row is one group.
fn holds_order(grid: &Grid, stored: StoredParts) -> Result<(), String> {
    match (stored.has_input_order, grid.granularity) {
        (true, Granularity::PerGroup(_)) => {
            Err("its groups are neighbouring inputs, those of this method follow an order of rounding (gptq:act-order \
                 with static groups has both)"
                .into())
        }
        _ => Ok(()),
    }
}

/// Codes `[n_out, n_in]` with inputs in the model's own order, and the group of each input.
fn in_order_of_inputs(weight: &QuantizedWeight) -> (Vec<u8>, Vec<u32>) {
    let (n_in, len) = (weight.n_in, weight.group_len());
    let WeightTransform::PermutedInputs(order) = &weight.transform else {
        return (weight.codes.clone(), Integers::runs(n_in, len));
    };
    let (mut codes, mut groups) = (vec![0; weight.codes.len()], vec![0; n_in]);
    for (row, permuted) in codes.chunks_mut(n_in).zip(weight.codes.chunks(n_in)) {
        order.iter().zip(permuted).for_each(|(&channel, &code)| row[channel as usize] = code);
    }
    for (place, &channel) in order.iter().enumerate() {
        groups[channel as usize] = (place / len) as u32;
    }
    (codes, groups)
}

/// Groups of a row.
fn n_groups(weight: &QuantizedWeight) -> usize {
    weight.grid.granularity.n_groups(weight.n_in)
}

/// Row-major `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transposed<T: Copy + Default + Send + Sync>(matrix: &[T], n_columns: usize) -> Vec<T> {
    /// Columns of one task: a cache line of bytes.
    const WIDTH: usize = 64;
    let n_rows = matrix.len() / n_columns.max(1);
    let mut columns = vec![T::default(); n_rows * n_columns];
    if columns.is_empty() {
        return columns;
    }
    columns.par_chunks_mut(WIDTH * n_rows).enumerate().for_each(|(task, columns)| {
        let (first, width) = (task * WIDTH, columns.len() / n_rows);
        for (row, values) in matrix.chunks_exact(n_columns).enumerate() {
            for (column, value) in values[first..first + width].iter().enumerate() {
                columns[column * n_rows + row] = *value;
            }
        }
    });
    columns
}

fn tensor_of_words(part: &'static str, shape: [usize; 2], words: &[u32]) -> FormatTensor {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    FormatTensor { part, dtype: "I32", shape: shape.to_vec(), bytes }
}

fn tensor_of_halves(part: &'static str, shape: [usize; 2], values: &[f32]) -> FormatTensor {
    let bytes = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    FormatTensor { part, dtype: "F16", shape: shape.to_vec(), bytes }
}

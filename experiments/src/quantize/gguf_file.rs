//! A model as one GGUF file, which llama.cpp loads: tensors go to disk one at a time, codes as blocks of ggml
//! ([`awq_core::formats::gguf`]), everything else in the smallest float type that holds each value. The header comes last, into the
//! room that was left for it: only then is it known in which types tensors came to lie.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use awq_core::formats::gguf::{GgmlType, Needs, blocks};
use awq_core::load::{Checkpoint, Contents, GgufOutline, GgufTensor, Placed, weight_slices};
use awq_core::model::{Storage, wiring_of};
use awq_core::open::open_model;

use super::Quantized;
use super::export::are_same;
use crate::packed::cannot_write;
use crate::packed::halves::{Half, whole};

/// Writes the tensors of `checkpoint` as `outline` has them into a new file.
///
/// # Errors
/// A tensor that cannot be read, linears of one tensor that no type holds together, or a disk that is full.
pub fn write(path: &Path, outline: &GgufOutline, checkpoint: &dyn Checkpoint) -> anyhow::Result<()> {
    let mut file = GgufFile::create(path, outline, None)?;
    file.add(checkpoint, outline.tensors().len())?;
    file.finish()
}

/// A file in the making: its tensors come one after the other.
pub(super) struct GgufFile<'a> {
    path: &'a Path,
    outline: &'a GgufOutline,
    /// The type of matrices in floats; `None` for the smallest that holds each value.
    float: Option<GgmlType>,
    file: BufWriter<File>,
    placed: Vec<Placed>,
    offset: u64,
}

impl<'a> GgufFile<'a> {
    /// Makes room for the header.
    pub(super) fn create(path: &'a Path, outline: &'a GgufOutline, float: Option<GgmlType>) -> anyhow::Result<Self> {
        let nowhere = vec![Placed { ggml_type: GgmlType::F32, offset: 0 }; outline.tensors().len()];
        let mut file = BufWriter::new(File::create(path).with_context(|| cannot_write(path))?);
        file.write_all(&vec![0; outline.header(&nowhere).len()]).with_context(|| cannot_write(path))?;
        Ok(Self { path, outline, float, file, placed: Vec::new(), offset: 0 })
    }

    /// Adds the next `n_tensors` of the outline.
    pub(super) fn add(&mut self, checkpoint: &dyn Checkpoint, n_tensors: usize) -> anyhow::Result<()> {
        let outline = self.outline;
        let start = self.placed.len();
        outline.tensors()[start..start + n_tensors].iter().try_for_each(|tensor| self.add_one(tensor, checkpoint))
    }

    fn add_one(&mut self, tensor: &GgufTensor, checkpoint: &dyn Checkpoint) -> anyhow::Result<()> {
        let ggml_type = type_of(tensor, checkpoint, self.float)?;
        self.placed.push(Placed { ggml_type, offset: self.offset });
        let mut n_bytes = 0;
        match &tensor.contents {
            Contents::Values(values) => n_bytes += self.put(&floats(values, ggml_type))?,
            Contents::Tensors(names) => {
                for name in names {
                    n_bytes += self.add_rows(name, tensor, ggml_type, checkpoint)?;
                }
            }
        }
        let whole = n_bytes.next_multiple_of(GgufOutline::ALIGNMENT);
        self.put(&vec![0; whole - n_bytes])?;
        self.offset += whole as u64;
        Ok(())
    }

    /// Adds the rows of one tensor of the model; their bytes.
    fn add_rows(
        &mut self,
        name: &str,
        tensor: &GgufTensor,
        ggml_type: GgmlType,
        checkpoint: &dyn Checkpoint,
    ) -> anyhow::Result<usize> {
        if let Some(weight) = checkpoint.read_quantized(name)? {
            return self.put(&tensor.arranged(blocks(&weight, ggml_type)));
        }
        if tensor.is_rearranged() {
            let rows = encoded(name, &tensor.stored(checkpoint.read_any_f32(name)?), ggml_type)?;
            return self.put(&tensor.arranged(rows));
        }
        let mut n_bytes = 0;
        for slice in checkpoint.slices(name)? {
            n_bytes += self.put(&encoded(name, &tensor.stored(slice?), ggml_type)?)?;
        }
        Ok(n_bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        self.file.write_all(bytes).with_context(|| cannot_write(self.path))?;
        Ok(bytes.len())
    }

    /// Writes the header, and all to the disk.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let problem = || cannot_write(self.path);
        self.file.seek(SeekFrom::Start(0)).with_context(problem)?;
        self.file.write_all(&self.outline.header(&self.placed)).with_context(problem)?;
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(problem)?;
        file.sync_all().with_context(problem)
    }
}

/// The smallest type that holds everything that lies in a tensor.
fn type_of(tensor: &GgufTensor, checkpoint: &dyn Checkpoint, float: Option<GgmlType>) -> anyhow::Result<GgmlType> {
    let Contents::Tensors(names) = &tensor.contents else { return Ok(GgmlType::F32) };
    let (mut needs, mut n_quantized): (Option<Needs>, usize) = (None, 0);
    let mut floats = float.map_or_else(|| vec![GgmlType::F16, GgmlType::Bf16], |asked| vec![asked]);
    for name in names {
        if let Some(weight) = checkpoint.read_quantized(name)? {
            let own = Needs::of(&weight);
            needs = Some(needs.map_or(own, |needs| needs.and(own)));
            n_quantized += 1;
        } else if !tensor.is_f32() && float.is_none() {
            for slice in checkpoint.slices(name)? {
                let values = tensor.stored(slice?);
                floats.retain(|&ggml_type| half(ggml_type).is_some_and(|half| half.holds(&values)));
            }
        }
    }
    match needs {
        None if tensor.is_f32() => Ok(GgmlType::F32),
        None => Ok(floats.first().copied().unwrap_or(GgmlType::F32)),
        Some(needs) => {
            ensure!(
                n_quantized == names.len(),
                "{}: quantized in part: all of {} have one type",
                tensor.name,
                names.join(", ")
            );
            needs.smallest().with_context(|| format!("{}: no type of ggml holds the codes of all of it", tensor.name))
        }
    }
}

/// The least number that f16 rounds to infinity.
const BEYOND_F16: f32 = 65_520.0;

/// Values of the tensor `name` in a type of floats.
fn encoded(name: &str, values: &[f32], ggml_type: GgmlType) -> anyhow::Result<Vec<u8>> {
    let is_lost = |value: &&f32| value.is_finite() && value.abs() >= BEYOND_F16;
    if ggml_type == GgmlType::F16
        && let Some(value) = values.iter().find(is_lost)
    {
        bail!("{name}: {value} is beyond the range of f16; choose --float bf16 or f32");
    }
    Ok(floats(values, ggml_type))
}

fn half(ggml_type: GgmlType) -> Option<Half> {
    match ggml_type {
        GgmlType::F16 => Some(Half::F16),
        GgmlType::Bf16 => Some(Half::Bf16),
        _ => None,
    }
}

fn floats(values: &[f32], ggml_type: GgmlType) -> Vec<u8> {
    half(ggml_type).map_or_else(|| whole(values), |half| half.bytes(values))
}

/// Reads a file again, and holds every tensor against what was to be written. In what types its linears came to lie.
///
/// # Errors
/// A file that does not open, or a tensor with other values.
pub fn verify(path: &Path, outline: &GgufOutline, quantized: &Quantized) -> anyhow::Result<Option<Storage>> {
    let written = open_model(path).context("what was written cannot be read again")?;
    for tensor in outline.tensors() {
        let Contents::Tensors(names) = &tensor.contents else { continue };
        for name in names {
            let found = written.checkpoint.slices(name)?;
            let is_same = match quantized.checkpoint.read_quantized(name)? {
                Some(weight) => are_same(found, weight_slices(weight), |value| value)?,
                // A norm that is stored with the one that Hugging Face adds has lost its last bits.
                None if tensor.adds_one() => {
                    are_same(found, quantized.checkpoint.slices(name)?, |value| (value + 1.0) - 1.0)?
                }
                None => are_same(found, quantized.checkpoint.slices(name)?, |value| value)?,
            };
            ensure!(is_same, "{name}: what was written is not what was quantized");
        }
    }
    let wiring = wiring_of(&written.config, written.checkpoint.as_ref())?;
    Ok(Storage::of(&wiring, &written.config, written.checkpoint.as_ref()))
}

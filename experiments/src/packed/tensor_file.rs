//! A safetensors file, written tensor by tensor: memory is bounded by the largest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use anyhow::Context;
use awq_core::load::{LoadError, Slices};
use serde::Serialize;

use super::halves::{Half, whole};

/// A safetensors file in the making: its header comes first but is known last, so tensors wait in a file without a name.
pub(crate) struct TensorFile {
    data: BufWriter<File>,
    entries: BTreeMap<String, Entry>,
    n_bytes: usize,
}

/// The header, with what transformers asks of it: that the tensors are PyTorch's.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'static str, &'static str>,
    #[serde(flatten)]
    entries: &'a BTreeMap<String, Entry>,
}

/// What the header says of a tensor.
#[derive(Serialize)]
struct Entry {
    dtype: &'static str,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl TensorFile {
    pub(crate) fn create(folder: &Path) -> anyhow::Result<Self> {
        let data = tempfile::tempfile_in(folder)
            .with_context(|| format!("{}: cannot write; choose another folder with --out", folder.display()))?;
        Ok(Self { data: BufWriter::new(data), entries: BTreeMap::new(), n_bytes: 0 })
    }

    pub(crate) fn add(
        &mut self,
        name: String,
        dtype: &'static str,
        shape: &[usize],
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let start = self.n_bytes;
        self.put(&name, bytes)?;
        self.entered(name, dtype, shape, start);
        Ok(())
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.data.write_all(bytes).with_context(|| {
            format!("tensor {name}: cannot write (is the disk full?); free space, or choose another place")
        })?;
        self.n_bytes += bytes.len();
        Ok(())
    }

    fn entered(&mut self, name: String, dtype: &'static str, shape: &[usize], start: usize) {
        self.entries.insert(name, Entry { dtype, shape: shape.to_vec(), data_offsets: (start, self.n_bytes) });
    }

    /// Adds values in the smallest float type that holds each of them exactly.
    pub(crate) fn add_floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> anyhow::Result<()> {
        let half = Half::ALL.into_iter().find(|half| half.holds(values));
        self.add(name.to_owned(), dtype_of(half), shape, &bytes_of(half, values))
    }

    /// The same of values that come in slices, twice: it takes all of them to know the type.
    pub(crate) fn add_slices<'s>(
        &mut self,
        name: &str,
        shape: &[usize],
        slices: impl Fn() -> Result<Slices<'s>, LoadError>,
    ) -> anyhow::Result<()> {
        let mut halves = Half::ALL.to_vec();
        for slice in slices()? {
            let slice = slice?;
            halves.retain(|half| half.holds(&slice));
            if halves.is_empty() {
                break;
            }
        }
        let (half, start) = (halves.first().copied(), self.n_bytes);
        for slice in slices()? {
            self.put(name, &bytes_of(half, &slice?))?;
        }
        self.entered(name.to_owned(), dtype_of(half), shape, start);
        Ok(())
    }

    pub(crate) fn add_words(&mut self, name: String, shape: &[usize], words: &[u32]) -> anyhow::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.add(name, "U32", shape, &bytes)
    }

    /// Header and tensors, in the order in which they were added, into `path`.
    pub(crate) fn finish(self, path: &Path) -> io::Result<()> {
        let metadata = BTreeMap::from([("format", "pt")]);
        let mut header = serde_json::to_vec(&Header { metadata, entries: &self.entries })?;
        // Readers that map the file find tensors aligned.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut data = self.data.into_inner().map_err(io::IntoInnerError::into_error)?;
        data.rewind()?;
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        io::copy(&mut data, &mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

fn dtype_of(half: Option<Half>) -> &'static str {
    match half {
        Some(Half::F16) => "F16",
        Some(Half::Bf16) => "BF16",
        None => "F32",
    }
}

fn bytes_of(half: Option<Half>, values: &[f32]) -> Vec<u8> {
    half.map_or_else(|| whole(values), |half| half.bytes(values))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use awq_core::load::{Checkpoint, SafetensorsCheckpoint};

    use super::*;

    /// Of three slices, the last decides the type of all; what is read again are the values.
    #[test]
    fn values_in_slices_lie_as_those_that_come_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = TensorFile::create(folder.path()).unwrap();
        let values = |last: f32| vec![vec![0.5_f32, -2.0], vec![3.0, 0.25], vec![last]];
        let cases = [("f16", 1.0009766), ("bf16", f32::from_bits(0x7149_0000)), ("f32", 0.1)];
        for (name, last) in cases {
            let slices = || Ok(Box::new(values(last).into_iter().map(Ok)) as Slices<'static>);
            file.add_slices(name, &[5], slices).unwrap();
            file.add_floats(&format!("{name}-at-once"), &[5], &values(last).concat()).unwrap();
        }
        let path = folder.path().join("model.safetensors");
        file.finish(&path).unwrap();
        let read = SafetensorsCheckpoint::open_file(&path).unwrap();
        for (name, last) in cases {
            assert_eq!(read.stored_type(name).unwrap().name, name.to_uppercase());
            assert_eq!(read.read_f32(name).unwrap(), values(last).concat());
            assert!(read.is_copy(name, &format!("{name}-at-once")).unwrap(), "{name}");
        }
    }
}

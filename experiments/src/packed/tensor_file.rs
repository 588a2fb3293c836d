//! A safetensors file, written tensor by tensor: memory is bounded by the largest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use anyhow::Context;
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
        self.data.write_all(bytes).with_context(|| {
            format!("tensor {name}: cannot write (is the disk full?); free space, or choose another place")
        })?;
        let start = self.n_bytes;
        self.n_bytes += bytes.len();
        self.entries.insert(name, Entry { dtype, shape: shape.to_vec(), data_offsets: (start, self.n_bytes) });
        Ok(())
    }

    /// Adds values in the smallest float type that holds each of them exactly.
    pub(crate) fn add_floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> anyhow::Result<()> {
        let (dtype, bytes) = if Half::F16.holds(values) {
            ("F16", Half::F16.bytes(values))
        } else if Half::Bf16.holds(values) {
            ("BF16", Half::Bf16.bytes(values))
        } else {
            ("F32", whole(values))
        };
        self.add(name.to_owned(), dtype, shape, &bytes)
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

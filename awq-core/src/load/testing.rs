//! Writers of small checkpoints, and the way to real ones, for tests.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A tensor as it lies in a safetensors file.
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

pub(crate) fn write_safetensors(file: &Path, tensors: &[(&str, Stored)]) {
    let views = tensors
        .iter()
        .map(|(name, stored)| (*name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, file).unwrap();
}

/// A GGUF file in the making.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    n_keys: u64,
    keys: Vec<u8>,
    /// Name, dimensions fastest first, type id, bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufWriter {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, n_keys: 0, keys: Vec::new(), tensors: Vec::new() }
    }

    fn key(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        push_text(&mut self.keys, key);
        self.keys.extend(type_id.to_le_bytes());
        self.keys.extend(value);
        self.n_keys += 1;
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.key(key, 7, &[value.into()])
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        push_text(&mut bytes, value);
        self.key(key, 8, &bytes)
    }

    pub(crate) fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = array_start(8, values.len());
        values.iter().for_each(|value| push_text(&mut bytes, value));
        self.key(key, 9, &bytes)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = array_start(5, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(key, 9, &bytes)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let mut bytes = array_start(6, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.key(key, 9, &bytes)
    }

    /// `shape` is row-major.
    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], type_id: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), shape.iter().rev().copied().collect(), type_id, bytes));
        self
    }

    pub(crate) fn f32_tensor(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        self.tensor(name, shape, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.n_keys.to_le_bytes());
        file.extend(&self.keys);
        let mut data = Vec::new();
        for (name, dims, type_id, bytes) in &self.tensors {
            push_text(&mut file, name);
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(type_id.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}

fn array_start(element_type: u32, count: usize) -> Vec<u8> {
    let mut bytes = element_type.to_le_bytes().to_vec();
    bytes.extend((count as u64).to_le_bytes());
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The file called `name` in one of the folders that `AWQ_ASSETS` lists (as PATH does), at most two levels down.
/// A test that needs it ends early where there is none.
pub(crate) fn asset(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("AWQ_ASSETS").unwrap_or_default();
    let found = std::env::split_paths(&folders).find_map(|folder| find_file(&folder, name, 2));
    if found.is_none() {
        println!("skipped: no {name} in the folders of AWQ_ASSETS");
    }
    found
}

fn find_file(folder: &Path, name: &str, levels: usize) -> Option<PathBuf> {
    let file = folder.join(name);
    if file.is_file() {
        return Some(file);
    }
    let below = levels.checked_sub(1)?;
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders.into_iter().filter(|path| path.is_dir()).find_map(|path| find_file(&path, name, below))
}

/// WikiText-2's test split as the Hugging Face rows joined by two newlines: a blank line is an empty row, any
/// other row keeps its own newline.
pub(crate) fn joined_wikitext_rows(raw: &str) -> String {
    let rows: Vec<&str> =
        raw.split_inclusive('\n').map(|line| if line.trim().is_empty() { "" } else { line }).collect();
    rows.join("\n\n")
}

/// The sums that a script has put into the metadata of `expected.safetensors`, of each weight by name.
pub(crate) fn sums_of_weights(folder: &Path) -> Vec<(String, String)> {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let sums = header.metadata().clone().unwrap().into_iter();
    sums.filter_map(|(key, sum)| Some((key.strip_prefix("sha256 ")?.to_owned(), sum))).collect()
}

//! A checkpoint without files: tensors by name in memory, for tests and for models that a program makes.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::nearest_names;
use super::{Checkpoint, LoadError, StoredType};

/// Named tensors in memory. It checks what the checkpoints on disk check.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryCheckpoint {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl MemoryCheckpoint {
    /// Adds a tensor of row-major `values`, or replaces the one of that name.
    ///
    /// # Panics
    /// If `values` are not as many as `shape` says.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: values of shape {shape:?}");
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values));
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(shape, _)| shape.clone())
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        match self.tensors.get(name) {
            Some((_, values)) => Ok(values.clone()),
            None => Err(LoadError::MissingTensor {
                file: self.source().to_owned(),
                name: name.to_owned(),
                nearest: nearest_names(name, self.tensors.keys().map(String::as_str)),
            }),
        }
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.tensors.contains_key(name).then(|| StoredType::float("F32", 32))
    }

    fn source(&self) -> &Path {
        Path::new("memory")
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}

//! A quantized model in memory as a checkpoint: what a method changed, over the checkpoint that it was made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, LoadError, StoredType};
use crate::pack::PackedWeight;
use crate::quantized::QuantizedWeight;

/// See the module. Made by [`crate::driver::QuantizedModel::into_checkpoint`].
pub struct QuantizedCheckpoint {
    base: Arc<dyn Checkpoint>,
    /// By name of the weight, `{linear}.weight`.
    pub(crate) packed: BTreeMap<String, Arc<PackedWeight>>,
    /// Norms, biases and linears in full precision, into which scales were folded, by name.
    pub(crate) changed: BTreeMap<String, Vec<f32>>,
}

impl QuantizedCheckpoint {
    pub(crate) fn new(base: Arc<dyn Checkpoint>) -> Self {
        Self { base, packed: BTreeMap::new(), changed: BTreeMap::new() }
    }

    /// Names of the tensors that are not those of the checkpoint below.
    pub fn edited(&self) -> impl Iterator<Item = &str> {
        self.packed.keys().chain(self.changed.keys()).map(String::as_str)
    }
}

impl Checkpoint for QuantizedCheckpoint {
    fn names(&self) -> Vec<String> {
        let mut names = self.base.names();
        // What stands behind an activation is in no other checkpoint.
        names.extend(self.changed.keys().filter(|name| self.base.shape(name).is_none()).cloned());
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(name).or_else(|| self.changed.get(name).map(|values| vec![values.len()]))
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        match (self.packed.get(name), self.changed.get(name)) {
            (Some(weight), _) => Ok(weight.unpack().dequantize()),
            (None, Some(values)) => Ok(values.clone()),
            (None, None) => self.base.read_any_f32(name),
        }
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(self.packed.get(name).map(|weight| weight.unpack()))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.packed.contains_key(name) || self.changed.contains_key(name) || self.base.is_readable(name)
    }

    fn is_integer(&self, name: &str) -> bool {
        self.base.is_integer(name)
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        self.base.is_copy(name, other)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        match self.packed.get(name) {
            Some(weight) => {
                let (n_out, n_in) = weight.shape();
                let bits_per_weight = weight.stored_bits() as f64 / (n_out * n_in) as f64;
                Some(StoredType::codes(weight.grid().label(), *weight.grid(), bits_per_weight))
            }
            None => self.base.stored_type(name),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.base.notes()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(name)
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

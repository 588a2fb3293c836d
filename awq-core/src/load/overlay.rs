//! What methods changed, over the checkpoint that they changed it in: the one way in which a quantized model is run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::nearest_names;
use super::{Checkpoint, LoadError, Slices, StoredType};
use crate::pack::PackedWeight;
use crate::quantized::QuantizedWeight;

/// A checkpoint some of whose tensors are those of others.
pub struct EditedCheckpoint {
    base: Arc<dyn Checkpoint>,
    edits: Vec<Arc<dyn Checkpoint>>,
    /// Which edit has a tensor.
    edit_of: BTreeMap<String, usize>,
}

impl EditedCheckpoint {
    /// `base` with every tensor of `edits` in place of its own of that name; a later edit wins over an earlier one.
    pub fn new(base: Arc<dyn Checkpoint>, edits: Vec<Arc<dyn Checkpoint>>) -> Self {
        let names = |(index, edit): (usize, &Arc<dyn Checkpoint>)| {
            edit.names().into_iter().map(move |name| (name, index)).collect::<Vec<_>>()
        };
        let edit_of = edits.iter().enumerate().flat_map(names).collect();
        Self { base, edits, edit_of }
    }

    /// Names of the tensors that are not those of the checkpoint below.
    pub fn edited(&self) -> impl Iterator<Item = &str> {
        self.edit_of.keys().map(String::as_str)
    }

    /// The checkpoint that a tensor is read from.
    fn holder(&self, name: &str) -> &dyn Checkpoint {
        self.edit_of.get(name).map_or(self.base.as_ref(), |&index| self.edits[index].as_ref())
    }
}

impl Checkpoint for EditedCheckpoint {
    fn names(&self) -> Vec<String> {
        // A tied head that is quantized is a tensor of its own.
        let names: BTreeSet<String> = self.base.names().into_iter().chain(self.edit_of.keys().cloned()).collect();
        names.into_iter().collect()
    }

    fn beside(&self) -> Vec<String> {
        self.base.beside()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.holder(name).shape(name)
    }

    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        self.holder(name).fits(name, expected)
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.holder(name).read_any_f32(name)
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        self.holder(name).slices(name)
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.holder(name).read_quantized(name)
    }

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.holder(name).read_codes(name)
    }

    fn is_readable(&self, name: &str) -> bool {
        self.holder(name).is_readable(name)
    }

    fn is_integer(&self, name: &str) -> bool {
        self.base.is_integer(name)
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        if self.edit_of.contains_key(name) || self.edit_of.contains_key(other) {
            return Ok(false);
        }
        self.base.is_copy(name, other)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.holder(name).stored_type(name)
    }

    fn notes(&self) -> Vec<String> {
        self.base.notes()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.holder(name).file_of(name)
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

/// Tensors that a method changed, in memory, under the names of the checkpoint that they are from.
#[derive(Clone, Debug, Default)]
pub struct EditedTensors {
    /// Quantized weights, `{linear}.weight`.
    packed: BTreeMap<String, Arc<PackedWeight>>,
    /// Norms, biases and linears in full precision, into which scales were folded.
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl EditedTensors {
    pub(crate) fn insert_packed(&mut self, name: String, weight: Arc<PackedWeight>) {
        self.packed.insert(name, weight);
    }

    pub(crate) fn insert_floats(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.floats.insert(name, (shape, values));
    }
}

impl Checkpoint for EditedTensors {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.packed.keys().chain(self.floats.keys()).cloned().collect();
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let of_packed = |weight: &Arc<PackedWeight>| Vec::from(<[usize; 2]>::from(weight.shape()));
        self.packed.get(name).map(of_packed).or_else(|| self.floats.get(name).map(|(shape, _)| shape.clone()))
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        match (self.packed.get(name), self.floats.get(name)) {
            (Some(weight), _) => Ok(weight.unpack().dequantize()),
            (None, Some((_, values))) => Ok(values.clone()),
            (None, None) => Err(LoadError::MissingTensor {
                file: self.source().to_owned(),
                name: name.to_owned(),
                nearest: nearest_names(name, self.packed.keys().chain(self.floats.keys()).map(String::as_str)),
            }),
        }
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(self.packed.get(name).map(|weight| weight.unpack()))
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        let of_packed = |weight: &Arc<PackedWeight>| {
            let (n_out, n_in) = weight.shape();
            let bits_per_weight = weight.stored_bits() as f64 / (n_out * n_in) as f64;
            StoredType::codes(weight.grid().label(), *weight.grid(), bits_per_weight)
        };
        let of_floats = || self.floats.contains_key(name).then(|| StoredType::float("F32", 32));
        self.packed.get(name).map(of_packed).or_else(of_floats)
    }

    fn source(&self) -> &Path {
        Path::new("memory")
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}

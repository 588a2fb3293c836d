//! A folder's tensors with weights in the place of the codes and scales that they are restored from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::safetensors::SafetensorsCheckpoint;
use super::{Checkpoint, LoadError, Slices, StoredType, slices};
use crate::quantized::QuantizedWeight;

/// A weight that is stored as several tensors.
pub(super) trait Restored: Send + Sync {
    /// Of the weight, row-major.
    fn shape(&self) -> &[usize];

    /// Whether it can be read as a tensor of shape `expected`.
    fn fits(&self, expected: &[usize]) -> bool {
        self.shape() == expected
    }

    /// Whether it lies `[out, in]` whatever the class has, see [`Checkpoint::is_turned`].
    fn is_turned(&self) -> bool {
        false
    }

    /// The tensor of its codes.
    fn codes(&self) -> &str;

    /// The tensors that its codes need.
    fn others(&self) -> Vec<&str>;

    /// How it is stored.
    fn stored_type(&self) -> StoredType;

    /// Its values, row-major.
    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError>;

    /// Its codes, see [`Checkpoint::read_codes`].
    fn read_codes(&self, _base: &SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(None)
    }
}

impl Restored for Box<dyn Restored> {
    fn shape(&self) -> &[usize] {
        self.as_ref().shape()
    }

    fn fits(&self, expected: &[usize]) -> bool {
        self.as_ref().fits(expected)
    }

    fn is_turned(&self) -> bool {
        self.as_ref().is_turned()
    }

    fn codes(&self) -> &str {
        self.as_ref().codes()
    }

    fn others(&self) -> Vec<&str> {
        self.as_ref().others()
    }

    fn stored_type(&self) -> StoredType {
        self.as_ref().stored_type()
    }

    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        self.as_ref().read(base)
    }

    fn read_codes(&self, base: &SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> {
        self.as_ref().read_codes(base)
    }
}

/// See the module.
pub(crate) struct RestoredCheckpoint<W> {
    base: SafetensorsCheckpoint,
    /// By the name that the weight has.
    weights: BTreeMap<String, W>,
    names: Vec<String>,
    notes: Vec<String>,
}

impl<W: Restored> RestoredCheckpoint<W> {
    /// `hidden` are tensors that are no part of the model, beside those of the weights.
    pub(super) fn new(
        base: SafetensorsCheckpoint,
        weights: BTreeMap<String, W>,
        mut hidden: BTreeSet<String>,
        notes: Vec<String>,
    ) -> Self {
        for weight in weights.values() {
            hidden.insert(weight.codes().to_owned());
            hidden.extend(weight.others().into_iter().map(str::to_owned));
        }
        let others = base.names().into_iter().filter(|name| !hidden.contains(name));
        let names: BTreeSet<String> = others.chain(weights.keys().cloned()).collect();
        let notes = base.notes().into_iter().chain(notes).collect();
        Self { base, weights, names: names.into_iter().collect(), notes }
    }
}

impl<W: Restored> Checkpoint for RestoredCheckpoint<W> {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.get(name).map_or_else(|| self.base.shape(name), |weight| Some(weight.shape().to_vec()))
    }

    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        match self.weights.get(name) {
            Some(weight) => weight.fits(expected),
            None => self.base.fits(name, expected),
        }
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.weights.get(name).map_or_else(|| self.base.read_any_f32(name), |weight| weight.read(&self.base))
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        match self.weights.get(name) {
            Some(weight) => Ok(slices::in_memory(weight.read(&self.base)?, weight.shape())),
            None => self.base.slices(name),
        }
    }

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.weights.get(name).map_or_else(|| self.base.read_codes(name), |weight| weight.read_codes(&self.base))
    }

    fn is_turned(&self, name: &str) -> bool {
        self.weights.get(name).is_some_and(Restored::is_turned)
    }

    fn is_readable(&self, name: &str) -> bool {
        self.weights.contains_key(name) || self.base.is_readable(name)
    }

    fn is_integer(&self, name: &str) -> bool {
        !self.weights.contains_key(name) && self.base.is_integer(name)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.weights.get(name).map_or_else(|| self.base.stored_type(name), |weight| Some(weight.stored_type()))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(self.weights.get(name).map_or(name, |weight| weight.codes()))
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

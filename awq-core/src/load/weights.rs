//! The weights of a model folder, in whichever format.

use std::path::Path;
use std::sync::Arc;

use super::foreign::Scheme;
use super::{Checkpoint, LoadError, PickledCheckpoint, SafetensorsCheckpoint, integers, libraries, scaled};

/// Files of weights in the order in which they are looked for, which is that of transformers: the first that is there is read.
pub const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Opens the first of [`WEIGHTS`] that is in `folder`.
///
/// # Errors
/// As [`SafetensorsCheckpoint::open_folder`] and [`PickledCheckpoint::open_folder`].
pub fn open_weights(folder: &Path) -> Result<Arc<dyn Checkpoint>, LoadError> {
    let first = WEIGHTS.iter().find(|name| folder.join(name).exists());
    if first.is_some_and(|name| name.starts_with("pytorch_model.")) {
        Ok(Arc::new(PickledCheckpoint::open_folder(folder)?))
    } else {
        Ok(Arc::new(SafetensorsCheckpoint::open_folder(folder)?))
    }
}

/// How the weights of `folder` are stored, where its tensors alone say it.
///
/// # Errors
/// As [`SafetensorsCheckpoint::open_folder`], and tensors of a library that do not belong together.
pub(crate) fn scheme_of_tensors(folder: &Path) -> Result<Option<Scheme>, LoadError> {
    match WEIGHTS[..2].iter().any(|name| folder.join(name).exists()) {
        true => Ok(libraries::scheme_of(&SafetensorsCheckpoint::open_folder(folder)?)?.map(Scheme::Library)),
        false => Ok(None),
    }
}

/// The same of a folder whose settings say that weights are stored as others, which they are restored from as they are read.
///
/// # Errors
/// As [`open_weights`], and tensors that do not belong to such weights; they are read from safetensors alone.
pub(crate) fn open_weights_of(folder: &Path, scheme: &Scheme) -> Result<Arc<dyn Checkpoint>, LoadError> {
    let base = SafetensorsCheckpoint::open_folder(folder)?;
    Ok(match scheme {
        Scheme::Floats(scheme) => Arc::new(scaled::open(base, scheme)?),
        Scheme::Integers(scheme) => Arc::new(integers::open(base, scheme)?),
        Scheme::Library(scheme) => Arc::new(libraries::open(base, scheme)?),
    })
}

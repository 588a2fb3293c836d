//! Read-only memory maps: the one place in the loaders that is `unsafe`.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::LoadError;

/// A whole file, mapped; pages are read from disk when they are touched.
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    #[allow(unsafe_code, reason = "a memory map is how a model larger than memory is read")]
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let opening = |source| LoadError::Open { file: path.to_owned(), source };
        let file = File::open(path).map_err(opening)?;
        // SAFETY: the map is read-only and private to this struct. A writer that changes the file
        // while it is mapped could change bytes under us; every use copies bytes into floats or
        // strings that are checked afterwards, so no invariant of Rust's types rests on them.
        let map = unsafe { Mmap::map(&file) }.map_err(opening)?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

//! Files of a model: mapped read-only for headers and small tensors, read in place for large ones. The one place in the loaders that
//! is `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::LoadError;

/// A whole file, mapped; pages are read from disk when they are touched.
///
/// A page of the map that was touched counts as this process's memory until the system wants it back, so that a model that is read
/// once, tensor by tensor, would count whole: tensors are read with [`MappedFile::read`] instead.
pub(super) struct MappedFile {
    path: PathBuf,
    #[cfg(unix)]
    file: File,
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
        Ok(Self {
            path: path.to_owned(),
            #[cfg(unix)]
            file,
            map,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A copy of the bytes of `range`, which no page of the map is touched for.
    ///
    /// # Errors
    /// A file that became shorter since it was opened, or a disk that fails.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let mut bytes = vec![0; range.len()];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with what the file has from byte `start` on.
    ///
    /// # Errors
    /// As [`MappedFile::read`].
    pub(super) fn read_into(&self, start: usize, bytes: &mut [u8]) -> Result<(), LoadError> {
        let read = self.read_exact_at(start, bytes);
        read.map_err(|source| LoadError::Read { file: self.path.clone(), source })
    }

    #[cfg(unix)]
    fn read_exact_at(&self, start: usize, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, start as u64)
    }

    /// The standard library reads in place on Unix alone.
    #[cfg(not(unix))]
    fn read_exact_at(&self, start: usize, bytes: &mut [u8]) -> io::Result<()> {
        let from = self.map.get(start..).and_then(|from| from.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_read_is_what_is_mapped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), (0..=255).collect::<Vec<u8>>()).unwrap();
        let map = MappedFile::open(file.path()).unwrap();
        for range in [0..256, 0..0, 7..8, 250..256, 256..256] {
            assert_eq!(map.read(range.clone()).unwrap(), map.bytes()[range]);
        }
    }

    /// A map would end the process with a signal.
    #[test]
    #[cfg(unix)]
    fn a_file_that_became_shorter_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 64]).unwrap();
        let map = MappedFile::open(file.path()).unwrap();
        file.as_file().set_len(10).unwrap();
        let error = map.read(0..64).unwrap_err().to_string();
        let name = file.path().display();
        assert_eq!(error, format!("cannot read {name}, which may have changed since it was opened; download it again"));
    }
}

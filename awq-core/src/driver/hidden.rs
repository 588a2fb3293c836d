//! Hidden states of calibration sequences: in memory as far as there is room, the others in temporary files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Tensor, TensorData};

use crate::backend::QuantBackend;
use crate::load::LoadError;

/// Room for the hidden states of a pass. How much of it there is changes no result: what lies in a file is read back bit for bit.
#[derive(Clone, Debug)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: u64,
    folder: PathBuf,
    in_memory: AtomicU64,
    in_files: AtomicU64,
    most_in_files: AtomicU64,
}

impl Room {
    /// All of the memory.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX, PathBuf::new())
    }

    /// This many bytes of memory. What is more goes to files in `folder`, which nobody else sees and which end with the process.
    pub fn new(bytes: u64, folder: PathBuf) -> Self {
        let zero = AtomicU64::default;
        Self(Arc::new(Shared { bytes, folder, in_memory: zero(), in_files: zero(), most_in_files: zero() }))
    }

    /// The most bytes that were in files at a time.
    pub fn most_in_files(&self) -> u64 {
        self.0.most_in_files.load(Ordering::Relaxed)
    }

    /// Memory for `bytes`, while there is some.
    fn take(&self, bytes: u64) -> Option<Taken> {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|&taken| taken <= self.0.bytes);
        let taken = self.0.in_memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.ok().map(|_| Taken { room: self.clone(), bytes, in_file: false })
    }

    fn take_in_file(&self, bytes: u64) -> Taken {
        let in_files = self.0.in_files.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.most_in_files.fetch_max(in_files, Ordering::Relaxed);
        Taken { room: self.clone(), bytes, in_file: true }
    }
}

/// Room that is given back when what it holds is dropped.
#[derive(Debug)]
struct Taken {
    room: Room,
    bytes: u64,
    in_file: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let counter = if self.in_file { &self.room.0.in_files } else { &self.room.0.in_memory };
        counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The hidden states of all calibration sequences at one place in the model, in batches of `[batch, seq, hidden]`.
#[derive(Debug)]
pub(super) struct HiddenStates<B: QuantBackend> {
    room: Room,
    batches: Vec<Batch<B>>,
    /// What does not fit in memory, one batch behind the other.
    file: Option<File>,
    n_bytes_in_file: u64,
}

#[derive(Debug)]
struct Batch<B: QuantBackend> {
    shape: [usize; 3],
    place: Place<B>,
    _taken: Taken,
}

#[derive(Debug)]
enum Place<B: QuantBackend> {
    Memory(Tensor<B, 3>),
    File { offset: u64, n_bytes: usize, dtype: DType, device: B::Device },
}

impl<B: QuantBackend> HiddenStates<B> {
    /// None yet.
    pub(super) fn new(room: &Room) -> Self {
        Self { room: room.clone(), batches: Vec::new(), file: None, n_bytes_in_file: 0 }
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// A folder for temporary files that is full or cannot be written.
    pub(super) fn push(&mut self, states: Tensor<B, 3>) -> Result<(), LoadError> {
        let shape = states.dims();
        let n_bytes = shape.iter().product::<usize>() * states.dtype().size();
        let (place, taken) = match self.room.take(n_bytes as u64) {
            Some(taken) => (Place::Memory(states), taken),
            None => (self.write(states)?, self.room.take_in_file(n_bytes as u64)),
        };
        self.batches.push(Batch { shape, place, _taken: taken });
        Ok(())
    }

    fn write(&mut self, states: Tensor<B, 3>) -> Result<Place<B>, LoadError> {
        let folder = self.room.0.folder.clone();
        let failed = |source| LoadError::HiddenStates { folder: folder.clone(), source };
        let file = match self.file.take() {
            Some(file) => file,
            None => temporary_file(&folder).map_err(failed)?,
        };
        let (dtype, device, offset) = (states.dtype(), states.device(), self.n_bytes_in_file);
        let data = states.into_data();
        let written = write_at(&file, offset, data.as_bytes());
        self.file = Some(file);
        written.map_err(failed)?;
        let n_bytes = data.as_bytes().len();
        self.n_bytes_in_file += n_bytes as u64;
        Ok(Place::File { offset, n_bytes, dtype, device })
    }

    /// A batch.
    ///
    /// # Errors
    /// A temporary file that cannot be read back.
    pub(super) fn get(&self, idx: usize) -> Result<Tensor<B, 3>, LoadError> {
        let Batch { shape, place, .. } = &self.batches[idx];
        match (place, &self.file) {
            (Place::Memory(states), _) => Ok(states.clone()),
            (Place::File { offset, n_bytes, dtype, device }, Some(file)) => {
                let mut bytes = vec![0; *n_bytes];
                read_at(file, *offset, &mut bytes)
                    .map_err(|source| LoadError::HiddenStates { folder: self.room.0.folder.clone(), source })?;
                let data = TensorData::from_bytes_vec(bytes, *shape, *dtype);
                Ok(Tensor::from_data(data, (device, *dtype)))
            }
            (Place::File { .. }, None) => unreachable!("a batch is in a file only after it was made"),
        }
    }

    /// Batches.
    pub(super) fn n_batches(&self) -> usize {
        self.batches.len()
    }

    /// All batches, one in memory at a time.
    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Tensor<B, 3>, LoadError>> + '_ {
        (0..self.batches.len()).map(|idx| self.get(idx))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Tokens over all batches.
    pub(super) fn n_tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.shape[0] * batch.shape[1]).sum()
    }

    /// Numbers over all batches.
    pub(super) fn n_values(&self) -> usize {
        self.batches.iter().map(|batch| batch.shape.iter().product::<usize>()).sum()
    }
}

/// A file without a name: it is gone with the process, however that ends.
fn temporary_file(folder: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    tempfile::tempfile_in(folder)
}

fn write_at(mut file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

fn read_at(mut file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    type Cpu = burn::backend::Flex;

    fn batch(first: f32) -> Tensor<Cpu, 3> {
        let values: Vec<f32> = (0..24).map(|i| first + i as f32 / 7.0).collect();
        Tensor::from_data(TensorData::new(values, [2, 3, 4]), &Default::default())
    }

    fn floats(states: Tensor<Cpu, 3>) -> Vec<f32> {
        crate::backend::float_vec(states)
    }

    /// 24 numbers take 96 bytes: one of three batches fits.
    #[test]
    fn what_does_not_fit_is_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(100, folder.path().join("made when needed"));
        let mut states = HiddenStates::new(&room);
        [0.1, -3.0, 1e-20].iter().for_each(|&first| states.push(batch(first)).unwrap());
        assert_eq!((states.n_tokens(), states.n_values(), room.most_in_files()), (18, 72, 192));
        let read: Vec<Vec<f32>> = states.iter().map(|batch| floats(batch.unwrap())).collect();
        assert_eq!(read, [0.1, -3.0, 1e-20].map(|first| floats(batch(first))));
        let names = std::fs::read_dir(folder.path().join("made when needed")).unwrap();
        assert_eq!(names.count(), 0, "the file has no name");
    }

    #[test]
    fn room_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(100, folder.path().into());
        for first in [0.0, 1.0, 2.0] {
            let mut states = HiddenStates::new(&room);
            states.push(batch(first)).unwrap();
        }
        assert_eq!(room.most_in_files(), 0);
        assert_eq!(room.0.in_memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = HiddenStates::new(&Room::new(0, file.join("below"))).push(batch(0.0)).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("file/below") && message.contains("free space"), "{message}");
    }
}

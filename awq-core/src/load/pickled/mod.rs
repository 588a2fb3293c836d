//! Hugging Face folders with `pytorch_model.bin`, or shards listed by `pytorch_model.bin.index.json`: what `torch.save` makes of
//! a state dict. A zip archive holds a pickle, `data.pkl`, that says which tensor is which part of which storage, and each
//! storage as a file of plain numbers, `data/0`. The pickle is read and never run ([`pickle`]).

mod names;
mod pickle;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;
mod zip;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use self::pickle::Pickled;
use self::view::View;
use self::zip::Entries;
use super::map::MappedFile;
use super::shards::{FileNames, Shards};
use super::stored_dtype::{READABLE, float_type, is_integer};
use super::{Checkpoint, LoadError, StoredType, floats};

const FILES: FileNames = FileNames { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json" };
/// How files of PyTorch before 1.6 begin: no zip, but pickles one after the other.
const OLD_FORMAT: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// How a zip archive begins.
const ZIP: &[u8] = b"PK\x03\x04";
/// The largest pickle that is read; that of 100,000 tensors has 20 MB.
const MAX_PICKLE_BYTES: usize = 64 << 20;

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// It contradicts its own format: it was cut off, damaged or forged.
    Damaged(String),
    /// It may be whole, but holds something else than plain tensors.
    Foreign(String),
}

/// The tensors of one or more memory-mapped files of PyTorch.
pub struct PickledCheckpoint {
    shards: Shards<Entry>,
}

/// Where a tensor lies.
#[derive(PartialEq, Eq)]
struct Entry {
    view: View,
    /// Byte range of the storage in its file. Tensors may share one.
    storage: Range<usize>,
}

impl PickledCheckpoint {
    /// Opens `pytorch_model.bin` of `folder`, or else the shards that its index names. Maps the files and reads the zip
    /// directories and pickles only.
    ///
    /// # Errors
    /// A missing, unreadable, truncated or damaged file; one that holds anything but plain tensors; a shard or a tensor that the
    /// index promises and the folder lacks.
    pub fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        Ok(Self { shards: Shards::open_folder(folder, &FILES, read_header)? })
    }

    /// A tensor's type, shape and bytes in row-major order.
    fn raw(&self, name: &str) -> Result<(&View, Cow<'_, [u8]>), LoadError> {
        let (entry, file) = self.shards.find(name)?;
        // In bounds: the range of each storage was checked against the file, and each view against its storage.
        Ok((&entry.view, entry.view.row_major(&file.bytes()[entry.storage.clone()])))
    }
}

/// Every tensor of a file, and where it lies.
fn read_header(file: &MappedFile) -> Result<Vec<(String, Entry)>, LoadError> {
    tensors(file.bytes()).map_err(|problem| match problem {
        Problem::Damaged(problem) => LoadError::BadHeader { file: file.path().to_owned(), problem },
        Problem::Foreign(problem) => LoadError::Pickled { file: file.path().to_owned(), problem },
    })
}

fn tensors(bytes: &[u8]) -> Result<Vec<(String, Entry)>, Problem> {
    if bytes.starts_with(OLD_FORMAT) {
        return Err(Problem::Foreign("written in the format of PyTorch before 1.6, which is not read".to_owned()));
    }
    if !bytes.starts_with(ZIP) {
        return Err(Problem::Damaged("no zip archive, which torch.save writes".to_owned()));
    }
    let entries = zip::entries(bytes)?;
    let root = root(&entries)?;
    if let Some(code) = entries.keys().find(|name| is_code(name, root)) {
        return Err(Problem::Foreign(format!("a TorchScript program (it has {code:?}), not a state dict")));
    }
    let order = entries.get(&format!("{root}/byteorder")).map(|range| &bytes[range.clone()]);
    if order.is_some_and(|order| order != b"little") {
        return Err(Problem::Foreign("its numbers are not little-endian".to_owned()));
    }
    let pickle = &bytes[entries[&format!("{root}/{PICKLE}")].clone()];
    if pickle.len() > MAX_PICKLE_BYTES {
        let problem = format!("its pickle has {} bytes, at most {MAX_PICKLE_BYTES} are read", pickle.len());
        return Err(Problem::Foreign(problem));
    }
    let placed = |(name, tensor): (&str, Pickled<'_>)| Ok((name.to_owned(), place(tensor, root, &entries)?));
    pickle::state_dict(pickle)?.into_iter().map(placed).collect()
}

const PICKLE: &str = "data.pkl";

/// The folder of the archive that everything is in.
fn root(entries: &Entries) -> Result<&str, Problem> {
    let mut roots = entries
        .keys()
        .filter_map(|name| name.split_once('/'))
        .filter(|(_, inner)| *inner == PICKLE)
        .map(|(root, _)| root);
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(Problem::Foreign(format!("a zip archive without {PICKLE}, not a state dict"))),
        (Some(one), Some(other)) => {
            Err(Problem::Damaged(format!("it has {PICKLE} twice, in {one:?} and in {other:?}")))
        }
    }
}

fn is_code(name: &str, root: &str) -> bool {
    let inner = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
    inner.is_some_and(|inner| inner == "constants.pkl" || inner.starts_with("code/"))
}

/// The tensor in its file.
fn place(tensor: Pickled<'_>, root: &str, entries: &Entries) -> Result<Entry, Problem> {
    let Pickled { key, storage_bytes, view } = tensor;
    let name = format!("{root}/data/{key}");
    let storage = entries.get(&name).ok_or_else(|| Problem::Damaged(format!("the storage {name:?} is not there")))?;
    if storage.len() as u64 != storage_bytes {
        let found = storage.len();
        return Err(Problem::Damaged(format!("the storage {name:?} has {found} bytes, expected {storage_bytes}")));
    }
    Ok(Entry { view, storage: storage.clone() })
}

impl Checkpoint for PickledCheckpoint {
    fn names(&self) -> Vec<String> {
        self.shards.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shards.place(name).map(|entry| entry.view.shape.clone())
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let (view, bytes) = self.raw(name)?;
        let float = float_type(view.dtype).ok_or_else(|| LoadError::UnsupportedDtype {
            file: self.file_of(name),
            name: name.to_owned(),
            dtype: format!("{:?}", view.dtype),
            known: READABLE.to_owned(),
        })?;
        Ok(floats::to_f32(float, &bytes))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.shards.place(name).is_some_and(|entry| float_type(entry.view.dtype).is_some())
    }

    fn is_integer(&self, name: &str) -> bool {
        self.shards.place(name).is_some_and(|entry| is_integer(entry.view.dtype))
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        let ((one, one_file), (two, two_file)) = (self.shards.find(name)?, self.shards.find(other)?);
        // A tied head is a second name, of which nothing need be read.
        if std::ptr::eq(one_file, two_file) && one == two {
            return Ok(true);
        }
        let ((one, bytes), (other, other_bytes)) = (self.raw(name)?, self.raw(other)?);
        Ok(one.dtype == other.dtype && one.shape == other.shape && bytes == other_bytes)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        let dtype = self.shards.place(name)?.view.dtype;
        Some(StoredType::float(format!("{dtype:?}"), dtype.bitsize()))
    }

    fn notes(&self) -> Vec<String> {
        self.shards.notes()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.shards.file_of(name)
    }

    fn source(&self) -> &Path {
        self.shards.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shards.bytes_on_disk()
    }
}

//! The tensors of one file, or of several under an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::nearest_names;
use super::map::MappedFile;
use super::{LoadError, read_json};

/// Names of the files of a format.
pub(super) struct FileNames {
    /// All tensors in one file.
    pub(super) single: &'static str,
    /// Which tensor is in which of several files.
    pub(super) index: &'static str,
}

/// How a format finds the tensors of one file.
pub(super) type ReadHeader<T> = fn(&MappedFile) -> Result<Vec<(String, T)>, LoadError>;

/// The tensors of one or more memory-mapped files; `T` is where in its file a tensor lies.
pub(super) struct Shards<T> {
    /// The single file or the index: what error messages about the whole checkpoint name.
    source: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Placed<T>>,
    /// Shard of each tensor, as the index has it. It may be wrong: what counts is where a tensor is.
    promised: BTreeMap<String, String>,
    /// Tensors that stand in several shards.
    doubled: BTreeSet<String>,
}

struct Placed<T> {
    file_idx: usize,
    place: T,
    /// Whether the index places it in this file, or says nothing of it.
    is_at_home: bool,
}

/// The part of the index file that matters: tensor name to shard file name.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl<T> Shards<T> {
    /// Opens the single file of `folder`, or else the shards that its index names. Maps the files and reads the headers only.
    ///
    /// # Errors
    /// A missing or unreadable file, what `read_header` says, a shard or a tensor that the index promises and the folder lacks.
    pub(super) fn open_folder(folder: &Path, names: &FileNames, read_header: ReadHeader<T>) -> Result<Self, LoadError> {
        let (single, index) = (folder.join(names.single), folder.join(names.index));
        if index.exists() && !single.exists() {
            Self::open_sharded(folder, &index, read_header)
        } else {
            Self::open_file(&single, read_header)
        }
    }

    /// Opens one file.
    ///
    /// # Errors
    /// As [`Self::open_folder`].
    pub(super) fn open_file(file: &Path, read_header: ReadHeader<T>) -> Result<Self, LoadError> {
        let mut shards = Self::empty(file);
        shards.add(file, &|_| false, read_header)?;
        Ok(shards)
    }

    fn open_sharded(folder: &Path, index_file: &Path, read_header: ReadHeader<T>) -> Result<Self, LoadError> {
        let index: ShardIndex = read_json(index_file)?;
        let mut shards = Self::empty(index_file);
        let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
        for shard in names {
            let file = folder.join(shard);
            if !file.exists() {
                let tensor = index.weight_map.iter().find(|(_, home)| *home == shard).map(|(name, _)| name.clone());
                return Err(LoadError::MissingShard {
                    file: index_file.to_owned(),
                    shard: shard.to_owned(),
                    tensor: tensor.unwrap_or_default(),
                });
            }
            // Of a tensor in several shards, the one counts that the index names.
            let elsewhere = |name: &str| index.weight_map.get(name).is_some_and(|home| home != shard);
            shards.add(&file, &elsewhere, read_header)?;
        }
        shards.promised = index.weight_map;
        Ok(shards)
    }

    fn empty(source: &Path) -> Self {
        Self {
            source: source.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            promised: BTreeMap::new(),
            doubled: BTreeSet::new(),
        }
    }

    /// Adds the tensors of `file`. One that the index places `elsewhere` gives way to the one there; where the index is wrong and
    /// there is none, it is read from here.
    fn add(
        &mut self,
        file: &Path,
        elsewhere: &dyn Fn(&str) -> bool,
        read_header: ReadHeader<T>,
    ) -> Result<(), LoadError> {
        let map = MappedFile::open(file)?;
        let file_idx = self.files.len();
        for (name, place) in read_header(&map)? {
            if self.tensors.contains_key(&name) {
                self.doubled.insert(name.clone());
            }
            if elsewhere(&name) && self.tensors.contains_key(&name) {
                continue;
            }
            let is_at_home = !elsewhere(&name);
            if self.tensors.get(&name).is_some_and(|known| known.is_at_home && is_at_home) {
                return Err(LoadError::BadHeader {
                    file: file.to_owned(),
                    problem: format!("tensor {name:?} stands in two shards, and the index does not say which counts"),
                });
            }
            self.tensors.insert(name, Placed { file_idx, place, is_at_home });
        }
        self.files.push(map);
        Ok(())
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Where a tensor lies in its file, if there is one of this name.
    pub(super) fn place(&self, name: &str) -> Option<&T> {
        self.tensors.get(name).map(|placed| &placed.place)
    }

    /// Where a tensor lies, and in which file.
    ///
    /// # Errors
    /// No such tensor; the message names the file that should have it.
    pub(super) fn find(&self, name: &str) -> Result<(&T, &MappedFile), LoadError> {
        let found = self.tensors.get(name).map(|placed| (&placed.place, &self.files[placed.file_idx]));
        found.ok_or_else(|| LoadError::MissingTensor {
            file: match self.promised.get(name) {
                Some(shard) => self.source.with_file_name(shard),
                None => self.source.clone(),
            },
            name: name.to_owned(),
            nearest: nearest_names(name, self.tensors.keys().map(String::as_str)),
        })
    }

    /// What a user should know of the files, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let index = self.source.display();
        let misplaced = self.tensors.iter().filter(|(_, placed)| !placed.is_at_home).map(|(name, _)| name.as_str());
        let misplaced: Vec<&str> = misplaced.collect();
        let doubled: Vec<&str> = self.doubled.iter().map(String::as_str).collect();
        let named = |names: &[&str]| match names {
            [one] => format!("{one:?}"),
            [one, more @ ..] => format!("{one:?} and {} more tensor(s)", more.len()),
            [] => String::new(),
        };
        let mut notes = Vec::new();
        if !misplaced.is_empty() {
            notes.push(format!(
                "{index}: places {} in another shard than the one that has it, which is read",
                named(&misplaced)
            ));
        }
        if !doubled.is_empty() {
            notes.push(format!("{index}: {} stand in several shards; the one that it names is read", named(&doubled)));
        }
        notes
    }

    /// The file that holds a tensor, for messages.
    pub(super) fn file_of(&self, name: &str) -> PathBuf {
        let file = self.tensors.get(name).map(|placed| self.files[placed.file_idx].path());
        file.unwrap_or(&self.source).to_owned()
    }

    /// The single file or the index.
    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    /// Size of all files together.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }
}

//! The code store: what quantization gave, kept apart from how it is scored.
//!
//! Another evaluation, another window limit, a lost report or a kill then costs no quantization that was done. A
//! [`QuantizationId`] (`id.rs`) is the question; the answer is a folder `codes/ID` of the asset cache with a folder a block
//! (`block.rs`), each of which appears in one step as soon as the block is quantized. A quantized model is run from there, block
//! by block: none is ever whole in memory.

mod answer;
mod block;
mod id;

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::ensure;
use awq_core::load::Checkpoint;
use awq_core::model::wiring::Wiring;

pub use self::answer::Codes;
use self::block::LOG_FILE;
pub use self::id::{QuantizationId, Question, hash_of_sequences};
use crate::assets::Partial;
use crate::progress::Progress;
use crate::unfinished::{self, Unfinished};

/// The file of a folder that is locked while a run has its codes open.
const LOCK: &str = "lock";

/// Bytes of all stored codes together, unless [`LIMIT_VARIABLE`] says otherwise.
const DEFAULT_LIMIT: u64 = 10 << 30;

/// Environment variable: the limit in GiB; 0 keeps no codes and uses none.
pub const LIMIT_VARIABLE: &str = "AWQ_CODES_GIB";

/// Quantized codes on disk.
#[derive(Clone, Debug)]
pub struct CodeStore {
    place: Arc<Place>,
    limit_bytes: u64,
}

#[derive(Debug)]
enum Place {
    /// The asset cache.
    Cache(PathBuf),
    /// Removed with the program's last use of it. What lies in the asset cache is read where that cannot be written.
    Scratch { folder: Scratch, read_only: Option<PathBuf> },
}

/// A folder that goes with its process, or is swept by the next.
#[derive(Debug)]
enum Scratch {
    InCache(Partial),
    Elsewhere(Unfinished),
}

impl Scratch {
    fn among_temporary_files() -> std::io::Result<Self> {
        const PREFIX: &str = "awq-codes-";
        let parent = std::env::temp_dir();
        // What others left there is theirs to remove.
        let _ = unfinished::sweep(&parent, PREFIX);
        Unfinished::new_in(&parent, PREFIX).map(Self::Elsewhere)
    }

    fn path(&self) -> &Path {
        match self {
            Self::InCache(partial) => partial.path(),
            Self::Elsewhere(folder) => folder.path(),
        }
    }
}

/// A model whose codes are stored.
#[derive(Clone)]
pub struct BaseTensors {
    /// How its tensors are called.
    pub wiring: Arc<Wiring>,
    /// The tensors that no method changes.
    pub checkpoint: Arc<dyn Checkpoint>,
}

impl CodeStore {
    /// The store in an asset cache; a [`Self::scratch`] one where the environment turns it off, or the cache cannot be written.
    ///
    /// # Errors
    /// A limit that is no number, or no place for temporary files.
    pub fn from_env(cache: &Path, progress: &Progress) -> anyhow::Result<Self> {
        let limit_bytes = match std::env::var(LIMIT_VARIABLE) {
            Ok(text) if !text.trim().is_empty() => limit_of(&text)?,
            _ => DEFAULT_LIMIT,
        };
        if limit_bytes == 0 {
            return Self::scratch(cache);
        }
        let store = Self::new(cache, limit_bytes);
        let usable = fs::create_dir_all(store.folder()).map_err(anyhow::Error::from);
        match usable.and_then(|()| Partial::new(cache)) {
            Ok(_) => Ok(store),
            Err(error) => {
                progress.note(&format!(
                    "{}: codes cannot be kept ({error:#}); those of this run are in a temporary folder",
                    store.folder().display()
                ));
                Self::in_scratch(cache, Some(store.folder()))
            }
        }
    }

    /// The store in an asset cache, of at most `limit_bytes` between passes.
    pub fn new(cache: &Path, limit_bytes: u64) -> Self {
        Self { place: Arc::new(Place::Cache(cache.to_owned())), limit_bytes }
    }

    /// An empty store that is removed with its last copy: in the asset cache where that can be written, else among the system's
    /// temporary files.
    ///
    /// # Errors
    /// No place for temporary files.
    pub fn scratch(cache: &Path) -> anyhow::Result<Self> {
        Self::in_scratch(cache, None)
    }

    fn in_scratch(cache: &Path, read_only: Option<PathBuf>) -> anyhow::Result<Self> {
        let in_cache = Partial::new(cache).map(Scratch::InCache);
        let folder = in_cache.or_else(|_| Scratch::among_temporary_files()).map_err(|error| {
            anyhow::anyhow!(
                "no folder for temporary files ({error}); set AWQ_CACHE or TMPDIR to one that can be written"
            )
        })?;
        Ok(Self { place: Arc::new(Place::Scratch { folder, read_only }), limit_bytes: 0 })
    }

    /// Where the codes lie.
    pub fn folder(&self) -> PathBuf {
        self.cache().join("codes")
    }

    /// Where folders are filled.
    fn cache(&self) -> &Path {
        match self.place.as_ref() {
            Place::Cache(folder) => folder,
            Place::Scratch { folder, .. } => folder.path(),
        }
    }

    /// Where more codes lie, which are only read.
    fn read_only(&self) -> Option<&Path> {
        match self.place.as_ref() {
            Place::Scratch { read_only, .. } => read_only.as_deref(),
            Place::Cache(_) => None,
        }
    }

    /// The codes that answer `question`, as far as they are stored. A block that is damaged, or answers another question, is removed
    /// with all behind it.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn open(&self, question: &Question<'_>, base: BaseTensors) -> anyhow::Result<Codes> {
        Codes::open(self.clone(), question, base)
    }

    /// Drops what alone is larger than the limit, and then what was not used for longest, until the rest fits. Codes that any run has open
    /// stay; where a file system has no locks they are dropped, and only this machine can still read them.
    pub fn trim(&self) {
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(self.folder())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                let path = entry.path();
                let used = fs::metadata(block::folder_in(&path, 0).join(LOG_FILE)).and_then(|file| file.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), bytes_in(&path), path)
            })
            .collect();
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        let (too_large, fitting): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|(_, bytes, _)| *bytes > self.limit_bytes);
        for (_, bytes, path) in too_large.into_iter().chain(fitting) {
            if total <= self.limit_bytes {
                break;
            }
            // Locked until it is gone.
            let lock = fs::File::options().read(true).write(true).open(path.join(LOCK));
            let is_open = |lock: &fs::File| matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
            if lock.as_ref().is_ok_and(is_open) {
                // What is too large goes with its run, and takes no other's place until then.
                total -= if bytes > self.limit_bytes { bytes } else { 0 };
                continue;
            }
            // Out of the way in one step, lock and all: a run that stores the same answer meanwhile begins a folder of its own. Another may
            // drop the same at the same time.
            let _ = match Partial::new(self.cache()) {
                Ok(dropped) => fs::rename(&path, dropped.path().join("codes")),
                Err(_) => fs::remove_dir_all(path),
            };
            total -= bytes;
        }
    }
}

fn limit_of(text: &str) -> anyhow::Result<u64> {
    let gib: f64 = text.trim().parse().unwrap_or(f64::NAN);
    ensure!(
        gib.is_finite() && gib >= 0.0,
        "{LIMIT_VARIABLE}={text}: not a number of GiB; unset it, or give one (0 keeps no codes)"
    );
    Ok((gib * f64::from(1 << 30)) as u64)
}

/// Bytes of all files in and below a folder; 0 of what cannot be read.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[cfg(test)]
mod tests;

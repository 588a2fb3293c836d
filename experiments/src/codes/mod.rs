//! The code store: what quantization gave, kept apart from how it is scored.
//!
//! Another evaluation, another window limit, a lost report or a kill then costs no quantization that was done. A
//! [`QuantizationId`] (`id.rs`) is the question; the answer is a folder `codes/ID` of the asset cache with a folder a block
//! (`block.rs`), each of which appears in one step as soon as the block is quantized. A quantized model is run from there, block
//! by block: none is ever whole in memory.

mod block;
mod id;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use awq_core::driver::{Begun, BlockLog, QuantizedBlock, codes_sha256, head_tensors};
use awq_core::load::{Checkpoint, EditedCheckpoint};
use awq_core::model::wiring::Wiring;
use awq_core::pack::PackedWeight;
use awq_core::rule::GridRule;
use tempfile::TempDir;

use self::block::{HEAD, LOG_FILE, Part, StoredPart};
pub use self::id::{QuantizationId, Question, hash_of_sequences};
use crate::assets::{Partial, cannot_write};
use crate::progress::Progress;

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
    /// Removed with the program's last use of it.
    Scratch(TempDir),
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
                Self::scratch(cache)
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
        let in_cache = fs::create_dir_all(cache).and_then(|()| tempfile::tempdir_in(cache));
        let folder = in_cache.or_else(|_| tempfile::tempdir()).map_err(|error| {
            anyhow::anyhow!(
                "no folder for temporary files ({error}); set AWQ_CACHE or TMPDIR to one that can be written"
            )
        })?;
        Ok(Self { place: Arc::new(Place::Scratch(folder)), limit_bytes: 0 })
    }

    /// Where the codes lie.
    pub fn folder(&self) -> PathBuf {
        self.cache().join("codes")
    }

    /// Where folders are filled.
    fn cache(&self) -> &Path {
        match self.place.as_ref() {
            Place::Cache(folder) => folder,
            Place::Scratch(folder) => folder.path(),
        }
    }

    /// The codes that answer `question`, as far as they are stored. A block that is damaged, or answers another question, is removed with all behind
    /// it.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn open(&self, question: &Question<'_>, base: BaseTensors) -> anyhow::Result<Codes> {
        let folder = self.folder().join(question.id()?.0);
        let mut codes = Codes {
            store: self.clone(),
            folder,
            header: block::header(question)?,
            question: serde_json::to_value(question)?,
            base,
            blocks: Vec::new(),
            head: None,
        };
        for block_idx in 0..codes.n_blocks_of_model() {
            let of_block = codes.folder_of(block_idx);
            match of_block.is_dir().then(|| StoredPart::read(&of_block, &codes.question)) {
                Some(Ok(block)) => codes.blocks.push(block),
                Some(Err(_)) => {
                    let behind = (block_idx..codes.n_blocks_of_model()).map(|idx| codes.folder_of(idx));
                    behind.for_each(|folder| drop(fs::remove_dir_all(folder)));
                    break;
                }
                None => break,
            }
        }
        codes.head = StoredPart::read(&codes.folder_of_head(), &codes.question).ok();
        // Those that were not used for longest are dropped first.
        let _ = File::open(codes.folder_of(0).join(LOG_FILE)).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(codes)
    }

    /// Drops what alone is larger than the limit, and then what was not used for longest, until the rest fits. Codes that are open
    /// can still be read.
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
            // Another run may drop the same at the same time.
            let _ = fs::remove_dir_all(path);
            total -= bytes;
        }
    }
}

/// The codes of one question, block by block: those that are stored, from the first on.
pub struct Codes {
    store: CodeStore,
    folder: PathBuf,
    question: serde_json::Value,
    header: awq_core::load::PackedHeader,
    base: BaseTensors,
    blocks: Vec<StoredPart>,
    head: Option<StoredPart>,
}

impl Codes {
    fn n_blocks_of_model(&self) -> usize {
        self.base.wiring.blocks.len()
    }

    fn folder_of(&self, block_idx: usize) -> PathBuf {
        block::folder_in(&self.folder, block_idx)
    }

    fn folder_of_head(&self) -> PathBuf {
        self.folder.join(HEAD)
    }

    /// The blocks, and the head where it is quantized.
    fn parts(&self) -> impl Iterator<Item = &StoredPart> {
        self.blocks.iter().chain(&self.head)
    }

    /// Blocks that are stored.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether all that is asked for is stored.
    pub fn is_whole(&self) -> bool {
        let has_head = self.head.is_some() || self.rule().head().is_none();
        self.n_blocks() == self.n_blocks_of_model() && has_head
    }

    /// The grids that were asked for.
    pub fn rule(&self) -> GridRule {
        self.header.rule()
    }

    /// What a pass goes on from.
    pub fn begun(&self) -> Option<Begun> {
        (self.n_blocks() > 0).then(|| Begun { n_blocks: self.n_blocks(), checkpoint: self.checkpoint() })
    }

    /// Stores the next block.
    ///
    /// # Errors
    /// A disk that is full, or a folder that cannot be written.
    pub fn keep(&mut self, block: QuantizedBlock) -> anyhow::Result<()> {
        let (block_idx, base) = (self.n_blocks(), &self.base);
        let tensors = block.codes.tensors(&base.wiring, block_idx, base.checkpoint.as_ref());
        let (stored_bits, shared_seconds) = (block.codes.stored_bits(), block.shared_seconds);
        let folder = self.folder_of(block_idx);
        let name = &block::name_of(block_idx);
        let part = Part { name, tensors: &tensors, stored_bits, shared_seconds, log: Some(block.log) };
        let stored = self.store_part(&folder, part)?;
        self.blocks.push(stored);
        Ok(())
    }

    /// Stores the quantized head.
    ///
    /// # Errors
    /// As [`Codes::keep`].
    pub fn keep_head(&mut self, head: PackedWeight) -> anyhow::Result<()> {
        let (n_out, n_in) = head.shape();
        let stored_bits = (head.stored_bits(), (n_out * n_in) as u64);
        let tensors = head_tensors(&self.base.wiring, Arc::new(head));
        let part = Part { name: HEAD, tensors: &tensors, stored_bits, shared_seconds: 0.0, log: None };
        self.head = Some(self.store_part(&self.folder_of_head(), part)?);
        Ok(())
    }

    fn store_part(&self, folder: &Path, part: Part<'_>) -> anyhow::Result<StoredPart> {
        let partial = Partial::new(self.store.cache())?;
        StoredPart::write(partial.path(), part, self.header.clone(), &self.question)
            .with_context(|| cannot_write(folder))?;
        // Another run that answers the same question may be quicker, and has the same codes.
        partial.finish(folder, |found| StoredPart::read(found, &self.question).is_ok())?;
        StoredPart::read(folder, &self.question)
    }

    /// The model with these codes in place of its own weights: what runs it.
    pub fn checkpoint(&self) -> Arc<dyn Checkpoint> {
        let edits = self.parts().map(|part| part.tensors.clone() as Arc<dyn Checkpoint>).collect();
        Arc::new(EditedCheckpoint::new(self.base.checkpoint.clone(), edits))
    }

    /// What happened in each block.
    pub fn logs(&self) -> impl Iterator<Item = &BlockLog> {
        self.blocks.iter().filter_map(|block| block.log.block.as_ref())
    }

    /// Wall time of reading and capturing, shared by all cells of the pass that it was spent in.
    pub fn shared_seconds(&self) -> f64 {
        self.blocks.iter().map(|block| block.log.shared_seconds).sum()
    }

    /// Stored bits per quantized weight, scales and zero points counted.
    pub fn bits_per_weight(&self) -> f64 {
        let sum = |of: fn(&block::Log) -> u64| self.parts().map(|part| of(&part.log)).sum::<u64>();
        sum(|log| log.stored_bits) as f64 / sum(|log| log.n_weights).max(1) as f64
    }

    /// sha256 over all codes, scales and zero points, in the order of blocks and linears.
    ///
    /// # Errors
    /// A block that cannot be read.
    pub fn sha256(&self) -> anyhow::Result<String> {
        Ok(codes_sha256(&self.base.wiring, self.n_blocks(), self.checkpoint().as_ref())?)
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

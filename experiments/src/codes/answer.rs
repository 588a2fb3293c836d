//! [`Codes`]: what is stored of the answer to one question.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use awq_core::driver::{Begun, BlockLog, QuantizedBlock, codes_sha256, head_tensors};
use awq_core::load::{Checkpoint, EditedCheckpoint, PackedHeader};
use awq_core::pack::PackedWeight;
use awq_core::rule::GridRule;
use serde_json::Value as Json;

use super::block::{self, HEAD, LOG_FILE, Part, StoredPart};
use super::{BaseTensors, CodeStore, LOCK, Question};
use crate::assets::{Partial, cannot_write};

/// The codes of one question, block by block: those that are stored, from the first on.
pub struct Codes {
    store: CodeStore,
    folder: PathBuf,
    question: Json,
    header: PackedHeader,
    base: BaseTensors,
    blocks: Vec<StoredPart>,
    head: Option<StoredPart>,
    is_damaged: bool,
    /// The folder's [`LOCK`], locked: no run drops it to make room while this one fills or reads it.
    hold: Option<File>,
}

impl Codes {
    pub(super) fn open(store: CodeStore, question: &Question<'_>, base: BaseTensors) -> anyhow::Result<Self> {
        let id = question.id()?.0;
        let mut codes = Self {
            folder: store.folder().join(&id),
            header: block::header(question)?,
            question: serde_json::to_value(question)?,
            base,
            blocks: Vec::new(),
            head: None,
            is_damaged: false,
            hold: None,
            store,
        };
        codes.read(&id)?;
        codes.hold();
        // Those that were not used for longest are dropped first.
        let _ = File::open(codes.folder_of(0).join(LOG_FILE)).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(codes)
    }

    /// Locks the folder, once it is there. Where a file system has no locks, this machine can read open files that are dropped, and others
    /// cannot.
    fn hold(&mut self) {
        let lock = self.folder.join(LOCK);
        if self.folder.is_dir() && self.hold.as_ref().is_none_or(|held| !is_same(held, &lock)) {
            // NFS locks no folders, and locks a file for one run alone only where it is open for writing.
            let file = File::options().read(true).write(true).create(true).truncate(false).open(lock);
            self.hold = file.ok().filter(|file| file.try_lock_shared().is_ok());
        }
    }

    /// Reads the parts that are as they were written, wherever they lie. A damaged one is removed, with the blocks behind it. What is
    /// not there yet stays alone: another run that answers the same question may be storing it. So does what cannot be read now, by a
    /// process that has too many files open, say: it may be as it was written.
    fn read(&mut self, id: &str) -> anyhow::Result<()> {
        let elsewhere = self.store.read_only().map(|codes| codes.join(id));
        for block_idx in 0..self.n_blocks_of_model() {
            let name = block::name_of(block_idx);
            match self.part(&name, elsewhere.as_deref()) {
                Found::Whole(block) => self.blocks.push(block),
                Found::Nothing => {
                    let behind = block_idx + 1..self.n_blocks_of_model();
                    self.is_damaged = behind.into_iter().any(|idx| is_there(&self.folder_of(idx)));
                    break;
                }
                Found::Damaged => {
                    (block_idx..self.n_blocks_of_model()).for_each(|idx| remove(&self.folder_of(idx)));
                    self.is_damaged = true;
                    break;
                }
                Found::Unreadable(error) => return Err(error),
            }
        }
        match self.part(HEAD, elsewhere.as_deref()) {
            Found::Whole(head) => self.head = Some(head),
            Found::Nothing => {}
            Found::Damaged => {
                remove(&self.folder_of_head());
                self.is_damaged = true;
            }
            Found::Unreadable(error) => return Err(error),
        }
        // A file or a link to nowhere in place of the folder.
        if is_there(&self.folder) && !self.folder.is_dir() {
            let _ = fs::remove_file(&self.folder);
        }
        Ok(())
    }

    fn part(&self, name: &str, elsewhere: Option<&Path>) -> Found {
        let own = self.folder.join(name);
        // Before it is read: what appears meanwhile is no damage.
        let was_there = is_there(&own);
        let error = match StoredPart::read(&own, &self.question) {
            Ok(part) => return Found::Whole(part),
            Err(error) => error,
        };
        match elsewhere.map(|folder| StoredPart::read(&folder.join(name), &self.question)) {
            Some(Ok(part)) => Found::Whole(part),
            _ if !was_there => Found::Nothing,
            _ if is_damage(&error) => Found::Damaged,
            _ => Found::Unreadable(error.context(format!(
                "{}: stored codes cannot be read; run again, or remove them if this stays so",
                own.display()
            ))),
        }
    }

    /// Whether stored blocks were damaged, or are missing before others.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

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
        self.hold();
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

/// What is stored of a part.
enum Found {
    Whole(StoredPart),
    Damaged,
    Unreadable(anyhow::Error),
    Nothing,
}

/// Whether it is what lies there that is wrong, and not what keeps it from being read.
fn is_damage(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let of_content = [NotFound, NotADirectory, IsADirectory, InvalidData, UnexpectedEof];
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.all(|cause| of_content.contains(&cause.kind()))
}

/// Whether what is open still has this name: another run may have dropped it before it was locked.
fn is_same(open: &File, path: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(open), Ok(named)) = (open.metadata(), fs::metadata(path)) {
        use std::os::unix::fs::MetadataExt as _;
        return (open.dev(), open.ino()) == (named.dev(), named.ino());
    }
    open.metadata().is_ok() && path.exists()
}

/// Whether a folder, a file or a link has this name.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a folder, a file or a link. What cannot be removed is an error when something else is to take its place.
fn remove(path: &Path) {
    let _ = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

//! The code store: what quantization gave, kept apart from how it is scored.
//!
//! Another evaluation, another window limit, a lost report or a kill after quantization then costs no quantization. A
//! [`QuantizationId`] (`id.rs`) is the question; the answer is a folder `codes/ID` of the asset cache in the layout of packed
//! checkpoints ([`awq_core::load::packed`]), with only the tensors that the method changed, and the log of its blocks beside.
//! Whole folders appear in one step. The store may be removed at any time; it never decides whether a cell succeeds.

mod id;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use awq_core::driver::{BlockLog, QuantizedModel};
use awq_core::load::Checkpoint;
use awq_core::load::packed::{HEADER_FILE, LAYOUT_VERSION, PackedCheckpoint, PackedHeader};
use awq_core::model::wiring::Wiring;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::id::{QuantizationId, Question, hash_of_sequences};
use crate::assets::{Partial, files_in, hex};
use crate::files::write_durably;
use crate::provenance::Provenance;
use crate::quantize::write::{WEIGHTS, write_codes};

/// What a method logged, and what was asked.
const LOG_FILE: &str = "quantized.json";

/// Bytes of all stored codes together, unless [`LIMIT_VARIABLE`] says otherwise.
const DEFAULT_LIMIT: u64 = 10 << 30;

/// Environment variable: the limit in GiB; 0 keeps no codes and uses none.
pub const LIMIT_VARIABLE: &str = "AWQ_CODES_GIB";

/// Quantized codes in the asset cache.
#[derive(Clone, Debug)]
pub struct CodeStore {
    cache: PathBuf,
    limit_bytes: u64,
}

/// Codes as they were when a cell was quantized.
#[derive(Clone, Debug)]
pub struct StoredCodes {
    /// The model, bit for bit.
    pub model: QuantizedModel,
    /// Wall time of capturing then, shared by all cells of that pass.
    pub shared_seconds: f64,
}

/// Content of [`LOG_FILE`].
#[derive(Serialize, Deserialize)]
struct Log {
    question: serde_json::Value,
    /// [`hash_of_tensors`].
    tensors_sha256: String,
    shared_seconds: f64,
    blocks: Vec<BlockLog>,
}

impl CodeStore {
    /// The store in an asset cache; `None` where the environment turns it off.
    ///
    /// # Errors
    /// A limit that is no number.
    pub fn from_env(cache: &Path) -> anyhow::Result<Option<Self>> {
        let limit_bytes = match std::env::var(LIMIT_VARIABLE) {
            Ok(text) if !text.trim().is_empty() => limit_of(&text)?,
            _ => DEFAULT_LIMIT,
        };
        Ok((limit_bytes > 0).then(|| Self::new(cache, limit_bytes)))
    }

    /// The store in an asset cache, of at most `limit_bytes`.
    pub fn new(cache: &Path, limit_bytes: u64) -> Self {
        Self { cache: cache.to_owned(), limit_bytes }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join("codes")
    }

    /// The codes of `id`, where they are stored; those found damaged are removed.
    pub fn load(&self, id: &QuantizationId, wiring: &Wiring) -> Option<StoredCodes> {
        let folder = self.folder().join(&id.0);
        if !folder.is_dir() {
            return None;
        }
        match read(&folder, wiring) {
            Ok(stored) => {
                // Those that were not used for longest are dropped first.
                let _ = File::open(folder.join(LOG_FILE)).and_then(|file| file.set_modified(SystemTime::now()));
                Some(stored)
            }
            Err(_) => {
                let _ = fs::remove_dir_all(&folder);
                None
            }
        }
    }

    /// Keeps `codes`, which `tensors` holds as a checkpoint, and drops what was not used for longest until all fit. Codes that
    /// alone are larger than the limit are not kept.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn save(
        &self,
        question: &Question<'_>,
        codes: &StoredCodes,
        wiring: &Wiring,
        base: Arc<dyn Checkpoint>,
    ) -> anyhow::Result<()> {
        let id = question.id()?;
        let partial = Partial::new(&self.cache)?;
        let header = header(question, &codes.model)?;
        write_codes(partial.path(), &codes.model.clone().into_checkpoint(wiring, base), header)?;
        let log = Log {
            question: serde_json::to_value(question).context("a question is JSON")?,
            tensors_sha256: hash_of_tensors(partial.path())?,
            shared_seconds: codes.shared_seconds,
            blocks: codes.model.logs.clone(),
        };
        let log_file = partial.path().join(LOG_FILE);
        let json = serde_json::to_vec(&log).context("logs are JSON")?;
        write_durably(&log_file, &json).with_context(|| crate::assets::cannot_write(&log_file))?;
        let n_bytes = bytes_in(partial.path());
        if n_bytes <= self.limit_bytes {
            self.make_room(n_bytes);
            let is_right = |kept: &Path| hash_of_tensors(kept).is_ok_and(|sha256| sha256 == log.tensors_sha256);
            partial.finish(&self.folder().join(&id.0), is_right)?;
        }
        Ok(())
    }

    /// Drops the codes that were not used for longest until `n_bytes` fit.
    fn make_room(&self, n_bytes: u64) {
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(self.folder())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                let path = entry.path();
                let used = fs::metadata(path.join(LOG_FILE)).and_then(|file| file.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), bytes_in(&path), path)
            })
            .collect();
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in kept {
            if total + n_bytes <= self.limit_bytes {
                break;
            }
            // Another run may drop the same at the same time.
            let _ = fs::remove_dir_all(path);
            total -= bytes;
        }
    }
}

/// The header of a packed checkpoint. What it was calibrated on is in the question beside it.
fn header(question: &Question<'_>, model: &QuantizedModel) -> anyhow::Result<PackedHeader> {
    let program = Provenance::collect("", 0, Default::default());
    Ok(PackedHeader {
        layout_version: LAYOUT_VERSION,
        method: question.method.label(),
        settings: serde_json::to_value(question.method).context("settings are JSON")?,
        grid: *question.grid,
        overrides: question.overrides.to_vec(),
        bits_per_weight: model.bits_per_weight(),
        calibration: None,
        codes_sha256: model.codes_sha256(),
        version: program.version,
        commit: program.commit,
        linears: Default::default(),
    })
}

fn limit_of(text: &str) -> anyhow::Result<u64> {
    let gib: f64 = text.trim().parse().unwrap_or(f64::NAN);
    ensure!(
        gib.is_finite() && gib >= 0.0,
        "{LIMIT_VARIABLE}={text}: not a number of GiB; unset it, or give one (0 keeps no codes)"
    );
    Ok((gib * f64::from(1 << 30)) as u64)
}

fn bytes_in(folder: &Path) -> u64 {
    let files = files_in(folder).unwrap_or_default();
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
}

/// sha256 over the tensors and their header.
fn hash_of_tensors(folder: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    for name in [WEIGHTS, HEADER_FILE] {
        let path = folder.join(name);
        let cannot_read = || format!("{}: cannot read", path.display());
        let mut file = File::open(&path).with_context(cannot_read)?;
        loop {
            let n_read = file.read(&mut chunk).with_context(cannot_read)?;
            if n_read == 0 {
                break;
            }
            hasher.update(&chunk[..n_read]);
        }
    }
    Ok(hex(hasher))
}

fn read(folder: &Path, wiring: &Wiring) -> anyhow::Result<StoredCodes> {
    let log: Log = serde_json::from_slice(&fs::read(folder.join(LOG_FILE))?)?;
    ensure!(log.tensors_sha256 == hash_of_tensors(folder)?, "{}: damaged", folder.display());
    let checkpoint = PackedCheckpoint::open_folder(folder)?;
    let model = QuantizedModel::from_checkpoint(wiring, &checkpoint, log.blocks)?;
    Ok(StoredCodes { model, shared_seconds: log.shared_seconds })
}

#[cfg(test)]
mod tests;

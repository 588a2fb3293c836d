//! One stored block, or head: a folder in the layout of packed checkpoints ([`awq_core::load::packed`]) with only the tensors that the
//! method changed, and a log beside.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use awq_core::driver::BlockLog;
use awq_core::load::EditedTensors;
use awq_core::load::packed::{HEADER_FILE, LAYOUT_VERSION, PackedCheckpoint, PackedHeader};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::Question;
use crate::assets::{cannot_write, hex};
use crate::files::write_durably;
use crate::packed::{WEIGHTS, write_codes};
use crate::provenance::Provenance;

/// What a method logged, and what was asked.
pub(super) const LOG_FILE: &str = "quantized.json";

/// sha256 over all other files, written last.
const SEAL_FILE: &str = "sha256";

/// A block that is stored, or the head.
pub(super) struct StoredPart {
    pub(super) tensors: Arc<PackedCheckpoint>,
    pub(super) log: Log,
}

/// Content of [`LOG_FILE`].
#[derive(Serialize, Deserialize)]
pub(super) struct Log {
    /// What the codes answer.
    question: Json,
    /// Which part of the answer this is.
    part: String,
    /// Stored bits of its quantized weights.
    pub(super) stored_bits: u64,
    /// How many they are.
    pub(super) n_weights: u64,
    /// Wall time of reading and capturing the block, shared by all cells of that pass.
    pub(super) shared_seconds: f64,
    /// What happened in the block; none of the head.
    pub(super) block: Option<BlockLog>,
}

/// The folder of a block in the folder of its question.
pub(super) fn folder_in(codes: &Path, block_idx: usize) -> PathBuf {
    codes.join(name_of(block_idx))
}

/// The name of a block's folder.
pub(super) fn name_of(block_idx: usize) -> String {
    format!("{block_idx:05}")
}

/// The name of the head's folder.
pub(super) const HEAD: &str = "head";

/// What is to be stored.
pub(super) struct Part<'a> {
    /// The last part of its folder's path.
    pub(super) name: &'a str,
    pub(super) tensors: &'a EditedTensors,
    /// Stored bits of the quantized weights, and how many they are.
    pub(super) stored_bits: (u64, u64),
    pub(super) shared_seconds: f64,
    pub(super) log: Option<BlockLog>,
}

impl StoredPart {
    /// Writes a part into an empty folder.
    pub(super) fn write(folder: &Path, part: Part<'_>, header: PackedHeader, question: &Json) -> anyhow::Result<()> {
        let (stored_bits, n_weights) = part.stored_bits;
        let bits_per_weight = stored_bits as f64 / n_weights.max(1) as f64;
        write_codes(folder, part.tensors, PackedHeader { bits_per_weight, ..header })?;
        let log = Log {
            question: question.clone(),
            part: part.name.to_owned(),
            stored_bits,
            n_weights,
            shared_seconds: part.shared_seconds,
            block: part.log,
        };
        let log_file = folder.join(LOG_FILE);
        let json = serde_json::to_vec(&log).context("logs are JSON")?;
        write_durably(&log_file, &json).with_context(|| cannot_write(&log_file))?;
        let seal = folder.join(SEAL_FILE);
        write_durably(&seal, hash_of_files(folder)?.as_bytes()).with_context(|| cannot_write(&seal))
    }

    /// Reads a part of the answer to `question`.
    ///
    /// # Errors
    /// Anything that is not as it was written, or the answer to another question.
    pub(super) fn read(folder: &Path, question: &Json) -> anyhow::Result<Self> {
        let seal = fs::read_to_string(folder.join(SEAL_FILE))?;
        ensure!(seal == hash_of_files(folder)?, "{}: damaged", folder.display());
        let log: Log = serde_json::from_slice(&fs::read(folder.join(LOG_FILE))?)?;
        let in_place = folder.file_name().is_some_and(|name| *name == *log.part);
        ensure!(log.question == *question && in_place, "{}: not what belongs there", folder.display());
        Ok(Self { tensors: Arc::new(PackedCheckpoint::open_folder(folder)?), log })
    }
}

/// The header of a block. What it was calibrated on is in the question beside it, and its hash is that of its tensors.
pub(super) fn header(question: &Question<'_>) -> anyhow::Result<PackedHeader> {
    let program = Provenance::collect("", 0, Default::default());
    Ok(PackedHeader {
        layout_version: LAYOUT_VERSION,
        method: question.method.label(),
        settings: serde_json::to_value(question.method).context("settings are JSON")?,
        grid: *question.grid,
        overrides: question.overrides.to_vec(),
        bits_per_weight: 0.0,
        calibration: None,
        codes_sha256: String::new(),
        version: program.version,
        commit: program.commit,
        linears: Default::default(),
    })
}

/// sha256 over the tensors, their header and the log.
fn hash_of_files(folder: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    for name in [WEIGHTS, HEADER_FILE, LOG_FILE] {
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

//! [`Record`]: what one finished (or failed) cell leaves behind, one JSON object a line in `records.jsonl`.
//!
//! The file is only ever appended to, each record with one write and a sync, so that a kill
//! loses no record: only the cell being measured, or the cells being quantized in one pass. Everything a table or figure
//! needs is in here: making a report opens no model.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use awq_core::arithmetic::Arithmetic;
use awq_core::driver::BlockLog;
use awq_core::load::packed::PackedHeader;
use awq_core::model::Storage;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::{Cell, CellId};
use crate::provenance::Provenance;

/// Version of the record's layout; raised when a field changes meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// One cell's outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA_VERSION`] when it was written.
    pub schema: u32,
    /// Content hash of `cell`.
    pub cell_id: CellId,
    /// What was asked, as planned.
    pub cell: Cell,
    /// What came out.
    pub outcome: Outcome,
    /// With what it was made.
    pub provenance: Provenance,
}

/// What came of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It finished.
    Done(Box<Done>),
    /// It failed; the sweep went on.
    Failed(Failed),
}

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What was measured, in the order of the cell's evaluations.
    pub measurements: Vec<Measurement>,
    /// What the method did; absent for full precision.
    pub quantization: Option<Quantization>,
    /// What the checkpoint itself was quantized with, where it is a packed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackedOrigin>,
    /// In what types the checkpoint stores the linears of its blocks; absent in records of before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What it cost.
    pub cost: Cost,
}

/// What a packed checkpoint says of its making.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedOrigin {
    /// Method and grid: `AWQ W4 g128`.
    pub label: String,
    /// Stored bits per quantized weight.
    pub bits_per_weight: f64,
    /// sha256 over all codes, scales and zero points, as in [`Quantization`].
    pub codes_sha256: String,
}

impl From<&PackedHeader> for PackedOrigin {
    fn from(header: &PackedHeader) -> Self {
        Self {
            label: format!("{} {}", header.method, header.grid.label()),
            bits_per_weight: header.bits_per_weight,
            codes_sha256: header.codes_sha256.clone(),
        }
    }
}

/// A failed cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// `quantize` or `evaluate`.
    pub stage: Stage,
    /// The error chain, outermost first.
    pub error: String,
}

/// Where a cell failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// While capturing or quantizing.
    Quantize,
    /// While measuring.
    Evaluate,
}

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What: `token_perplexity`.
    pub metric: String,
    /// On what: `wikitext2-test`.
    pub dataset: String,
    /// Under which protocol: `gptq`, `llama-cpp`.
    pub protocol: String,
    /// Tokens of a window.
    pub seq_len: usize,
    /// How the matrix products of the scoring pass were computed.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
    /// The value.
    pub value: f64,
    /// Standard error of the value as other programs print it: over windows taken as independent (`gptq`), over tokens taken as
    /// independent (`llama-cpp`). Reports show the latter; in place of the former one that knows how windows depend on each other.
    pub standard_error: Option<f64>,
    /// Windows scored.
    pub n_windows: usize,
    /// Windows that the whole text has; larger than `n_windows` when the run was limited.
    pub n_windows_total: usize,
    /// Tokens scored.
    pub n_tokens: u64,
    /// Mean negative log-likelihood (nats per token) of each window: the raw samples for intervals and paired differences.
    pub nll_per_window: Vec<f64>,
    /// The lowest perplexity any model can reach on this text, where the text's true entropy is known.
    pub floor: Option<f64>,
    /// Calibration tokens that also occur in these windows: overlap makes the number optimistic. `None` without calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_overlap_tokens: Option<u64>,
    /// sha256 of the text.
    pub text_sha256: String,
    /// sha256 of the tokenizer's content.
    pub tokenizer_sha256: String,
    /// Wall time of this measurement.
    pub seconds: f64,
}

/// What a method did to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// Stored bits per quantized weight, scales and zero points counted.
    pub bits_per_weight: f64,
    /// sha256 over all codes, scales and zero points in block and linear order.
    pub codes_sha256: String,
    /// Calibration sequences used; 0 where the method needs none.
    pub n_calibration_sequences: usize,
    /// Calibration tokens that also occur in a scored window of any of the cell's measurements.
    pub calibration_overlap_tokens: u64,
    /// What happened in each block.
    pub blocks: Vec<BlockLog>,
}

/// What a cell cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall time of this cell's own quantization work.
    pub quantize_seconds: f64,
    /// Wall time of capturing activations, shared by all cells of one pass.
    pub shared_capture_seconds: f64,
    /// Wall time of the measurements.
    pub evaluate_seconds: f64,
    /// Largest resident memory of the process so far, in bytes; 0 where the system does not tell.
    pub peak_resident_bytes: u64,
}

/// A kind of record, with a file of its own.
pub trait Line: Serialize + DeserializeOwned {
    /// Name of the file.
    const FILE: &'static str;

    /// Layout of the record, see [`SCHEMA_VERSION`].
    fn schema(&self) -> u32;
}

impl Line for Record {
    const FILE: &'static str = "records.jsonl";

    fn schema(&self) -> u32 {
        self.schema
    }
}

/// The append-only file of records, held by one run at a time.
#[derive(Debug)]
pub struct RecordFile<R = Record> {
    path: PathBuf,
    file: File,
    on_record: Vec<R>,
    n_cut_bytes: usize,
}

impl<R: Line> RecordFile<R> {
    /// Opens the file of these records in `folder` for appending and reads what it already holds.
    ///
    /// A last line that a kill or a full disk cut short is cut off; every whole line is kept.
    ///
    /// # Errors
    /// If the file cannot be opened for writing, another run is writing to it, or a line that is whole is not a record of
    /// this schema.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(R::FILE);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(|| {
            format!("{}: cannot open for appending; choose a writable folder with --out", path.display())
        })?;
        // The system releases the lock when the program ends, however it ends. File systems without locks are not refused.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!(
                "{}: another run is writing to it; wait for its end or choose another folder with --out",
                path.display()
            );
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("{}: cannot read", path.display()))?;
        let whole = whole_lines(&bytes);
        let on_record = parse_records(&path, whole)?;
        let n_cut_bytes = bytes.len() - whole.len();
        if n_cut_bytes > 0 {
            file.set_len(whole.len() as u64)
                .with_context(|| format!("{}: cannot cut off the incomplete record", path.display()))?;
        }
        Ok(Self { path, file, on_record, n_cut_bytes })
    }

    /// The records that were in the file when it was opened.
    pub fn on_record(&self) -> &[R] {
        &self.on_record
    }

    /// Bytes of an incomplete last record that were cut off when the file was opened.
    pub fn n_cut_bytes(&self) -> usize {
        self.n_cut_bytes
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record and forces it to the disk.
    ///
    /// # Errors
    /// If it cannot be written whole (a full disk): the file is then cut back to the records that it held before.
    pub fn append(&mut self, record: &R) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(record).context("a record cannot be written as JSON")?;
        line.push('\n');
        let before =
            self.file.seek(SeekFrom::End(0)).with_context(|| format!("{}: cannot seek", self.path.display()))?;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Leave whole lines only; if even this fails, the next `open` drops the cut line.
            let _ = self.file.set_len(before);
            return Err(error).with_context(|| {
                format!(
                    "{}: cannot append a record (is the disk full?); free space and run again to resume",
                    self.path.display()
                )
            });
        }
        Ok(())
    }
}

/// Reads all records of a finished or interrupted experiment, without opening the file for writing.
///
/// # Errors
/// If the file is missing or a whole line is not a record.
pub fn read_records<R: Line>(folder: &Path) -> anyhow::Result<Vec<R>> {
    let path = folder.join(R::FILE);
    let bytes =
        std::fs::read(&path).with_context(|| format!("{}: cannot read; run the experiment first", path.display()))?;
    parse_records(&path, whole_lines(&bytes))
}

/// Everything up to the last line feed. Bytes, not text: what follows may end in the middle of a character.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    &bytes[..end]
}

fn parse_records<R: Line>(path: &Path, lines: &[u8]) -> anyhow::Result<Vec<R>> {
    let parse = |(index, line): (usize, &[u8])| -> anyhow::Result<R> {
        let place = || format!("{}:{}: not a record; move the file away to start anew", path.display(), index + 1);
        let record: R = serde_json::from_slice(line).with_context(place)?;
        ensure!(
            record.schema() == SCHEMA_VERSION,
            "{}:{}: record schema {}, this program reads {SCHEMA_VERSION}; move the file away to start anew",
            path.display(),
            index + 1,
            record.schema()
        );
        Ok(record)
    };
    lines.split_inclusive(|&byte| byte == b'\n').enumerate().map(parse).collect()
}

//! [`Record`]: what one finished (or failed) cell leaves behind, one JSON object a line in `records.jsonl`.
//!
//! Records are only ever appended (`record/file.rs`), each with one write and a sync, so that a kill
//! loses no record: only the cell being measured, or the block being quantized. Everything a table or figure
//! needs is in here: making a report opens no model.
//!
//! A record is read for as long as its schema is. Its cell is kept as it was written and not read again: what was asked is known
//! by its hash, and shown by the plan of whoever asks. A key that an experiment's file gets or loses makes no record unreadable.

use std::collections::BTreeMap;

use awq_core::driver::{BlockLog, FullPrecisionShare};
use awq_core::load::packed::PackedHeader;
use awq_core::model::Storage;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::blocks::BlockFile;
pub use self::compact::Compacted;
pub use self::file::{BadLine, Line, RecordFile, read_records};
pub use self::hold::release_hold;
pub use self::merge::Merged;

pub mod blocks;
mod compact;
mod file;
mod hold;
mod merge;

use crate::eval::ScoringArithmetic;
use crate::plan::{Cell, CellId};
use crate::provenance::Provenance;
use crate::stats::Samples;

/// Name of the copy of the experiment that stands beside its records.
pub const RESOLVED_CONFIG: &str = "experiment.toml";

/// Version of the record's layout; raised when a field changes meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// One cell's outcome: `C` is the cell as it was asked, or as its JSON was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<C = Cell> {
    /// [`SCHEMA_VERSION`] when it was written.
    pub schema: u32,
    /// Content hash of `cell`.
    pub cell_id: CellId,
    /// What the cell is called; absent from records of before there were labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// What was asked, as planned.
    pub cell: C,
    /// What came out.
    pub outcome: Outcome,
    /// With what it was made.
    pub provenance: Provenance,
}

/// A record as it lies in the file.
pub type StoredRecord = Record<Json>;

impl Line for StoredRecord {
    type Written = Record;

    const FILE: &'static str = "records.jsonl";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn quantization(&mut self) -> Option<&mut Quantization> {
        self.outcome.quantization()
    }

    fn detached(written: &Record, blocks: &mut BlockFile) -> anyhow::Result<Option<Record>> {
        let mut record = written.clone();
        let Some(quantization) = record.outcome.quantization() else { return Ok(None) };
        let Some(detached) = blocks.detach(quantization)? else { return Ok(None) };
        *quantization = detached;
        Ok(Some(record))
    }
}

impl<C> Record<C> {
    /// The record as one of `cell`, whose hash it has.
    pub fn of_cell(&self, cell: &Cell) -> Record {
        Record {
            schema: self.schema,
            cell_id: self.cell_id.clone(),
            labels: self.labels.clone(),
            cell: cell.clone(),
            outcome: self.outcome.clone(),
            provenance: self.provenance.clone(),
        }
    }
}

/// What a cell is called in tables: for readers of the file who do not want to know what its cell means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Name of the model.
    pub model: String,
    /// `FP`, or the method's label: `RTN`, `AWQ`.
    pub method: String,
    /// `W4 g128`; absent for full precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// Name of the calibration, where the experiment compares several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
}

impl From<&Cell> for Labels {
    fn from(cell: &Cell) -> Self {
        let quantization = cell.quantization.as_ref();
        Self {
            model: cell.model.name.clone(),
            method: cell.method_label(),
            grid: quantization.map(|_| cell.grid_label()),
            calibration: quantization.and_then(|quantization| quantization.calibration_name.clone()),
        }
    }
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

impl Outcome {
    fn quantization(&mut self) -> Option<&mut Quantization> {
        match self {
            Self::Done(done) => done.quantization.as_mut(),
            Self::Failed(_) => None,
        }
    }
}

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// What was measured, in the order of the cell's evaluations.
    pub measurements: Vec<Measurement>,
    /// What the method did; absent for full precision.
    pub quantization: Option<Quantization>,
    /// The checkpoint that was measured in place of the model's own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<ByOthers>,
    /// What the checkpoint itself was quantized with, where it is a packed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackedOrigin>,
    /// In what types the checkpoint stores the linears of its blocks; absent in records of before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What it cost.
    pub cost: Cost,
}

/// A quantized checkpoint, as another program has left it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByOthers {
    /// In what types it stores the linears of its blocks.
    pub storage: Storage,
    /// The tool and its settings, as far as its files tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized_by: Option<String>,
    /// sha256 of each of its files, by name.
    pub files: BTreeMap<String, String>,
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
            label: format!("{} {}", header.method, header.rule().label()),
            bits_per_weight: header.bits_per_weight,
            codes_sha256: header.codes_sha256.clone(),
        }
    }
}

/// A failed cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Where.
    pub stage: Stage,
    /// The error chain, outermost first.
    pub error: String,
}

/// Where a cell failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// While finding, downloading or opening the model. Records of before there was this stage have `quantize`.
    Load,
    /// While capturing or quantizing.
    Quantize,
    /// While measuring.
    Evaluate,
}

impl Stage {
    /// The word of the record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Quantize => "quantize",
            Self::Evaluate => "evaluate",
        }
    }
}

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What: the name of a metric, `token_perplexity` ([`crate::eval::metric::Quantity`] has its unit, direction and estimator).
    pub metric: String,
    /// On what: `wikitext2-test`.
    pub dataset: String,
    /// Under which protocol: `gptq`, `llama-cpp`.
    pub protocol: String,
    /// Tokens of a window; of documents, the most that one window scores.
    pub seq_len: usize,
    /// How the matrix products of the scoring pass were computed.
    #[serde(default, skip_serializing_if = "ScoringArithmetic::is_f32")]
    pub arithmetic: ScoringArithmetic,
    /// The value.
    pub value: f64,
    /// Standard error of the value as other programs print it: over windows taken as independent (`gptq`), over tokens taken as
    /// independent (`llama-cpp`). Reports show the latter; in place of the former one that knows how windows depend on each other.
    pub standard_error: Option<f64>,
    /// Windows scored; documents, questions or problems, of a protocol that takes each apart.
    pub n_windows: usize,
    /// Windows or documents that the whole text has; larger than `n_windows` when the run was limited.
    pub n_windows_total: usize,
    /// Tokens scored, or written.
    pub n_tokens: u64,
    /// Mean over the scored tokens of each window, or over the tokens, words or bytes of each document, in the order of the text: the
    /// raw samples for intervals and paired differences. Of a perplexity per token, negative log-likelihoods in nats per token.
    /// Older records, all of perplexities, call them `nll_per_window`.
    #[serde(alias = "nll_per_window")]
    pub samples: Vec<f64>,
    /// How much each sample weighs: the tokens, words or bytes of its document. Empty where all weigh alike, as windows of one
    /// length do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// The best that any model is expected to reach on this text, where the text's true entropy is known.
    pub floor: Option<f64>,
    /// Calibration tokens that also occur in these windows: overlap makes the number optimistic. `None` without calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_overlap_tokens: Option<u64>,
    /// sha256 of the text.
    pub text_sha256: String,
    /// sha256 of the tokenizer's content.
    pub tokenizer_sha256: String,
    /// First 8 hex digits of the sha256 of what was written on each problem, of all its texts: whether two models, or two programs, wrote
    /// the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<String>,
    /// What ran generated code, where some was run: `Python 3.11.7, in namespaces of its own`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_with: Option<String>,
    /// Wall time of the pass over the text that gave it, and what else was measured in it.
    pub seconds: f64,
}

impl Measurement {
    /// The samples with their weights.
    pub fn weighted_samples(&self) -> Samples<'_> {
        Samples::new(&self.samples, &self.weights)
    }
}

/// Version of every method when records did not name one.
pub const FIRST_VERSION: u32 = 1;

/// What a method did to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// [`crate::registry::MethodSpec::version`]; absent from records of before there were versions: [`FIRST_VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method_version: Option<u32>,
    /// sha256 of the text that calibration sequences were taken from; absent without calibration and from older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_text_sha256: Option<String>,
    /// Stored bits per quantized weight, scales and zero points counted.
    pub bits_per_weight: f64,
    /// Linears of the blocks that were left in full precision; absent where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_precision: Option<FullPrecisionShare>,
    /// sha256 over all codes, scales and zero points in block and linear order.
    pub codes_sha256: String,
    /// Calibration sequences used; 0 where the method needs none.
    pub n_calibration_sequences: usize,
    /// Calibration tokens that also occur in a scored window of any of the cell's measurements.
    pub calibration_overlap_tokens: u64,
    /// What happened in each block. In the file, records of before lay it down here; the others in [`blocks::FILE`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockLog>,
    /// sha256 of the line of [`blocks::FILE`] that holds `blocks`; absent where they are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_sha256: Option<String>,
}

/// What a cell cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall time of this cell's own quantization work, when it was done.
    pub quantize_seconds: f64,
    /// Wall time of capturing activations, shared by all cells of one pass, when that was done.
    pub shared_capture_seconds: f64,
    /// Whether the codes are from the code store: quantization then took its time in an earlier run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub codes_from_store: bool,
    /// Wall time of the measurements.
    pub evaluate_seconds: f64,
    /// Largest resident memory of the process so far, in bytes; 0 where the system does not tell.
    pub peak_resident_bytes: u64,
}

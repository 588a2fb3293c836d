//! [`Forecast`]: the time and memory that an experiment will take on this machine, from the shapes of its models, the tokens of its texts
//! and rates that were measured here. Nothing is downloaded: what is not at hand is named.
//!
//! Reading blocks, scales and codes from disk is not counted, nor are cells on record and codes in the code store taken off.

mod rates;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use awq_core::driver::Propagation;
use awq_core::grids::ModelGrids;
use awq_core::load::ModelConfig;

pub use self::rates::{Pair, Rates};
use self::work::{BlockShape, MethodWork};
use crate::assets::AssetStore;
use crate::config::{CalibrationSpec, EvaluationSpec, ProtocolSpec, ScoredText};
use crate::data::Texts;
use crate::eval::ScoringArithmetic;
use crate::eval::metric::Needs;
use crate::eval::score::{most_bytes, n_tokens_fed};
use crate::eval::windows::{Items, Windows};
use crate::generate::write::n_at_once;
use crate::need::{CalibrationSize, Need};
use crate::plan::cost::{PROGRAM, bytes, duration};
use crate::plan::{Cell, ModelPlan, Plan, QuantizationCell, passes};
use crate::progress::{Progress, Style};
use crate::report::tables::{Align, Column, Table, TableRow};
use crate::report::terminal;
use crate::session::Model;

/// Tokens of what is written on a problem, about.
const TOKENS_OF_A_WRITING: f64 = 200.0;
/// Of the texts that are in the making at once, the share that is still written on, about: some end long before others.
const SHARE_IN_THE_MAKING: f64 = 0.5;
const F32: u64 = 4;

/// What an experiment takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    lines: Vec<Line>,
    /// What is not counted, and why.
    left_out: Vec<String>,
    /// Where and when rates were measured.
    measured: String,
}

/// Cells of one method.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    model: String,
    method: String,
    n_cells: usize,
    quantize_seconds: f64,
    score_seconds: f64,
    bytes: u64,
}

impl Forecast {
    /// Of all cells of a plan.
    pub fn of(plan: &Plan, rates: &Rates, store: &AssetStore) -> Self {
        let progress = Progress::new(Style::Quiet);
        let (mut lines, mut left_out): (Vec<Line>, Vec<String>) = (Vec::new(), Vec::new());
        for of_model in &plan.models {
            match Model::open(&of_model.model, store, &progress) {
                Ok(model) => lines.extend(OnModel::new(&model, of_model, rates, store, &mut left_out).lines()),
                Err(error) => left_out.push(format!(
                    "{}: a plan downloads nothing, as with HF_HUB_OFFLINE: {error:#}",
                    of_model.model.name
                )),
            }
        }
        let measured = format!("{}, {} threads, {}", rates.cpu, rates.threads, rates.measured);
        Self { lines, left_out, measured }
    }

    /// Seconds of all that is counted.
    pub fn seconds(&self) -> f64 {
        self.lines.iter().map(|line| line.quantize_seconds + line.score_seconds).sum()
    }

    /// A table for a terminal, and what it leaves out.
    pub fn describe(&self) -> String {
        let mut text = if self.lines.is_empty() { String::new() } else { terminal::render_table(&self.table()) };
        text.extend(self.left_out.iter().map(|one| format!("not counted: {one}\n")));
        text
    }

    fn table(&self) -> Table {
        let column = |heading: &str, align| Column { heading: heading.to_owned(), align };
        let seconds = |seconds: f64| match seconds {
            0.0 => "-".to_owned(),
            few if few < 9.5 => format!("{few:.1} s"),
            some if (90.0..600.0).contains(&some) => format!("{:.1} min", some / 60.0),
            many => duration(many),
        };
        let row = |cells: [String; 6], starts_section| TableRow {
            cells: cells.to_vec(),
            emphasized: Vec::new(),
            starts_section,
        };
        let line = |line: &Line| {
            let cells = [
                line.model.clone(),
                line.method.clone(),
                line.n_cells.to_string(),
                seconds(line.quantize_seconds),
                seconds(line.score_seconds),
                bytes(line.bytes as f64),
            ];
            row(cells, false)
        };
        let sum = |of: fn(&Line) -> f64| seconds(self.lines.iter().map(of).sum());
        let n_cells: usize = self.lines.iter().map(|line| line.n_cells).sum();
        let most = self.lines.iter().map(|line| line.bytes).max().unwrap_or(0);
        let total = [
            format!("in all {}", seconds(self.seconds())),
            String::new(),
            n_cells.to_string(),
            sum(|line| line.quantize_seconds),
            sum(|line| line.score_seconds),
            bytes(most as f64),
        ];
        Table {
            slug: "forecast".into(),
            caption: format!(
                "About, at rates measured on {}. Cells on record and stored codes take less. Memory includes hidden states, \
                 which lie in files where it ends.",
                self.measured
            ),
            columns: vec![
                column("model", Align::Left),
                column("method", Align::Left),
                column("cells", Align::Right),
                column("quantizing", Align::Right),
                column("scoring", Align::Right),
                column("memory", Align::Right),
            ],
            rows: self.lines.iter().map(line).chain([row(total, true)]).collect(),
            emphasis: None,
            notes: Vec::new(),
        }
    }
}

/// One model's cells.
struct OnModel<'a> {
    model: &'a Model,
    cells: &'a [Cell],
    rates: &'a Rates,
    blocks: Vec<BlockShape>,
    texts: BTreeMap<ScoredText, TextSize>,
}

/// How large a text is, in this model's tokens.
#[derive(Clone, Copy, Debug)]
struct TextSize {
    fed: f64,
    /// Tokens of a sequence, on average.
    seq_len: f64,
    scored: f64,
    /// Texts that are written.
    n_written: f64,
    /// Tokens of the longest prompt with its text.
    longest: usize,
    /// On how many prompts at once, at most.
    n_at_once: f64,
}

impl<'a> OnModel<'a> {
    fn new(
        model: &'a Model,
        plan: &'a ModelPlan,
        rates: &'a Rates,
        store: &AssetStore,
        left_out: &mut Vec<String>,
    ) -> Self {
        let config = &model.opened.config;
        let blocks = model.wiring.blocks.iter().map(|block| BlockShape::of(block, config)).collect();
        let specs: BTreeSet<&ScoredText> =
            plan.cells.iter().flat_map(|cell| &cell.evaluations).map(EvaluationSpec::text).collect();
        let (mut texts, mut sizes) = (Texts::new(store), BTreeMap::new());
        for spec in specs {
            match size_of(spec, model, &mut texts) {
                Ok(size) => {
                    sizes.insert(spec.clone(), size);
                }
                Err(error) => left_out.push(format!("{}: {error:#}", plan.model.name)),
            }
        }
        Self { model, cells: &plan.cells, rates, blocks, texts: sizes }
    }

    /// A line a method, in the order of cells.
    fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        let mut add = |cell: &Cell, quantize_seconds: f64| {
            let (score_seconds, bytes) = (self.score_seconds(cell), self.bytes(cell));
            let (model, method) = (cell.model.name.clone(), cell.method_label());
            match lines.iter_mut().find(|line| line.method == method) {
                Some(line) => {
                    line.n_cells += 1;
                    line.quantize_seconds += quantize_seconds;
                    line.score_seconds += score_seconds;
                    line.bytes = line.bytes.max(bytes);
                }
                None => lines.push(Line { model, method, n_cells: 1, quantize_seconds, score_seconds, bytes }),
            }
        };
        self.cells.iter().filter(|cell| cell.quantization.is_none()).for_each(|cell| add(cell, 0.0));
        for pass in passes(self.cells) {
            let mut seen = Vec::new();
            for (index, cell) in pass.into_iter().enumerate() {
                add(cell, self.quantize_seconds(cell, index == 0, &mut seen));
            }
        }
        lines
    }

    /// Seconds of a cell in a pass in which the methods of `seen` came before.
    fn quantize_seconds(&self, cell: &'a Cell, is_first: bool, seen: &mut Vec<&'a crate::registry::MethodSpec>) -> f64 {
        let Some(quantization) = &cell.quantization else { return 0.0 };
        let (method, calibration) = (&quantization.method, quantization.calibration.as_ref());
        let (tokens, seq_len) = calibration.map_or((0.0, 0.0), |spec| (tokens_of(spec), spec.seq_len.get() as f64));
        let propagation = calibration.map_or(Propagation::FullPrecision, |spec| spec.propagation);
        // Where blocks see quantized outputs, nothing that is made of inputs is shared.
        let shares = propagation == Propagation::FullPrecision;
        let is_new = !shares || !seen.contains(&method);
        seen.push(method);
        let n_stages = self.model.wiring.blocks.first().map_or(1, |block| block.layout.stages.len());
        // The first cell captures for all, each goes through its own block.
        let n_passes = match propagation {
            Propagation::FullPrecision => 1 + usize::from(is_first),
            Propagation::Quantized => 2,
            Propagation::QuantizedPerStage => n_stages + 1,
        };
        let of_block = |shape: &BlockShape| {
            let MethodWork { once, each } = shape.work(method, tokens);
            let once = if is_new { self.rates.method(method.key(), once) } else { 0.0 };
            once + self.rates.method(method.key(), each)
                + n_passes as f64 * self.rates.forward(shape, (tokens, seq_len), ScoringArithmetic::F32)
        };
        self.blocks.iter().map(of_block).sum()
    }

    fn score_seconds(&self, cell: &Cell) -> f64 {
        let texts: BTreeSet<&ScoredText> = cell.evaluations.iter().map(EvaluationSpec::text).collect();
        texts.into_iter().filter_map(|text| Some(self.text_seconds(cell, text, self.texts.get(text)?))).sum()
    }

    fn text_seconds(&self, cell: &Cell, text: &ScoredText, size: &TextSize) -> f64 {
        let of_text = cell.evaluations.iter().filter(|evaluation| evaluation.text() == text);
        let has_divergences = of_text.map(|one| one.metric().metric().needs()).any(|needs| needs == Needs::BaseLogits);
        let pass = |arithmetic: ScoringArithmetic| -> f64 {
            self.blocks.iter().map(|shape| self.rates.forward(shape, (size.fed, size.seq_len), arithmetic)).sum()
        };
        let vocab = self.model.opened.config.vocab_size as f64;
        let width = self.model.wiring.embedding_width(&self.model.opened.config) as f64;
        let floats = text.arithmetic.of_floats();
        let of_weight = self.rates.forward.get(ScoringArithmetic::from(floats).name()).map_or(0.0, |pair| pair.first);
        let logits = |of_logit: f64| size.scored * vocab * (width * of_weight + of_logit);
        let Pair { first, second } = self.rates.logit;
        // A step reads all weights, for all texts that are in the making, and the keys and values of each.
        let n_together = (size.n_at_once * SHARE_IN_THE_MAKING).max(1.0);
        let n_steps = size.n_written * TOKENS_OF_A_WRITING / n_together;
        let n_seen = (size.seq_len + TOKENS_OF_A_WRITING / 2.0) as usize;
        let caches = n_together * cache_bytes(&self.model.opened.config, n_seen) as f64;
        let written = n_steps * self.rates.byte * (self.bytes_held(cell, self.weights_of_step()) + caches);
        // Texts are written in f32.
        let arithmetic = match &cell.quantization {
            _ if size.n_written > 0.0 => ScoringArithmetic::F32,
            // Codes that no kernel takes are restored.
            Some(quantization) if has_kernel(quantization) => text.arithmetic,
            _ => text.arithmetic.of_floats().into(),
        };
        let own = pass(arithmetic) + logits(first) + written;
        match (has_divergences, cell.quantization.is_none()) {
            (false, _) => own,
            (true, false) => own + logits(second),
            // The noise floor is another pass, and what all cells are held against a third.
            (true, true) => own + pass(floats.other().into()) + pass(floats.into()) + logits(first + second),
        }
    }

    /// Weights of linears of blocks that a token goes through.
    fn weights_of_step(&self) -> f64 {
        self.blocks.iter().map(|shape| shape.weights_of_token(0.0)).sum()
    }

    /// Bytes of that many weights of blocks, and of the head, where the whole model is held to write: codes as they are stored, floats in
    /// f32, which is the most that they take.
    fn bytes_held(&self, cell: &Cell, n_weights: f64) -> f64 {
        let config = &self.model.opened.config;
        let head = config.vocab_size * self.model.wiring.embedding_width(config);
        // Half a bit of scales; what lies between codes and weights has no kernel.
        let packed = |quantization: &QuantizationCell| (f64::from(quantization.grid.bits.get()) + 0.5) / 8.0;
        let of_weight =
            cell.quantization.as_ref().filter(|quantization| has_kernel(quantization)).map_or(F32 as f64, packed);
        n_weights * of_weight + (F32 * head as u64) as f64
    }

    /// Bytes of a model that writes, and of its keys and values.
    fn bytes_of_writing(&self, cell: &Cell) -> u64 {
        let config = &self.model.opened.config;
        let n_weights: usize = self
            .model
            .wiring
            .blocks
            .iter()
            .flat_map(|block| block.linear_shapes(config))
            .map(|(_, [n_out, n_in])| n_out * n_in)
            .sum();
        let of_text = |size: &TextSize| size.n_at_once as u64 * cache_bytes(config, size.longest) as u64;
        let texts = cell.evaluations.iter().filter_map(|evaluation| self.texts.get(evaluation.text()));
        let caches = texts.filter(|size| size.n_written > 0.0).map(of_text).max();
        caches.map_or(0, |caches| PROGRAM + caches + self.bytes_held(cell, n_weights as f64) as u64)
    }

    /// Memory of a cell, at its most.
    fn bytes(&self, cell: &Cell) -> u64 {
        let (wiring, config) = (&self.model.wiring, &self.model.opened.config);
        let largest = wiring.blocks.iter().map(|block| {
            block.linear_shapes(config).iter().map(|(_, [n_out, n_in])| (n_out * n_in) as u64).sum::<u64>()
        });
        let head = (config.vocab_size * wiring.embedding_width(config)) as u64 * F32;
        let states =
            self.texts.values().map(|size| (size.fed as u64) * config.hidden_size as u64 * F32).max().unwrap_or(0);
        let of_scoring = states.min(most_bytes(0) as u64)
            + (largest.max().unwrap_or(0) * F32)
                .max(2 * head + most_bytes(config.vocab_size) as u64 - most_bytes(0) as u64);
        let grids = cell.quantization.as_ref().and_then(|quantization| quantization.rule().resolve(wiring).ok());
        let of_quantizing =
            cell.quantization.as_ref().zip(grids).map_or(0, |(quantization, grids): (_, ModelGrids)| {
                let size = quantization.calibration.as_ref().map(CalibrationSize::of);
                let need = Need::of_pass(wiring, config, &[(quantization.method.settings(), &grids)], size);
                need.memory + need.hidden_states
            });
        (PROGRAM + of_scoring).max(of_quantizing).max(self.bytes_of_writing(cell))
    }
}

/// Whether kernels multiply the codes of such a cell: nothing lies between them and the weights, and no table of values.
fn has_kernel(quantization: &QuantizationCell) -> bool {
    quantization.grid.values.is_none() && quantization.method.settings().stores().beside.is_none()
}

/// Bytes of the keys and values of a text of `n_tokens`.
fn cache_bytes(config: &ModelConfig, n_tokens: usize) -> usize {
    config.n_blocks * 2 * config.n_kv_heads * config.head_dim * n_tokens * F32 as usize
}

fn tokens_of(calibration: &CalibrationSpec) -> f64 {
    (calibration.n_sequences() * calibration.seq_len.get()) as f64
}

/// Cuts a text as scoring would.
fn size_of(spec: &ScoredText, model: &Model, texts: &mut Texts<'_>) -> anyhow::Result<TextSize> {
    let text = texts.get_scored(spec)?;
    let limit = spec.max_windows.map(std::num::NonZeroUsize::get);
    let windows = Windows::cut(&text.scored(&spec.protocol)?, &model.opened.tokenizer, &spec.protocol, limit)?;
    let (fed, n_written) = match &spec.protocol {
        ProtocolSpec::LmEvalGeneration(protocol) => {
            (windows.windows.iter().map(Vec::len).sum(), (windows.windows.len() * protocol.n_texts()) as f64)
        }
        _ => (n_tokens_fed(&windows, model.opened.config.hidden_size), 0.0),
    };
    let scored =
        windows.windows.iter().zip(&windows.first_targets).map(|(window, first)| window.len().saturating_sub(*first));
    let scored = if n_written > 0.0 { 0 } else { scored.sum::<usize>() };
    let n_windows = windows.windows.len();
    let seq_len = fed as f64 / n_windows.max(1) as f64;
    let new_tokens = |at: usize| match &windows.items {
        Items::Problems(problems) => problems[at].max_new_tokens,
        _ => 0,
    };
    let lengths = windows.windows.iter().enumerate().map(|(at, window)| window.len() + new_tokens(at));
    let longest = lengths.max().unwrap_or(0);
    let n_at_once = n_windows.min(n_at_once(cache_bytes(&model.opened.config, longest))) as f64;
    Ok(TextSize { fed: fed as f64, seq_len, scored: scored as f64, n_written, longest, n_at_once })
}

#[cfg(test)]
mod tests;

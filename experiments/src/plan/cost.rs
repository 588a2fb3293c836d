//! What a cell will cost, from its configuration alone: the size of a model is read out of its name, no file is opened.

use std::collections::BTreeSet;

use crate::config::{DatasetSpec, EvaluationSpec, ModelSpec, ProtocolSpec, ScoredText};
use crate::plan::Cell;

/// Floating-point operations per second that the time estimate assumes: a small CPU with wide vectors. A GPU is far faster.
pub(crate) const ASSUMED_FLOPS: f64 = 2.0e11;
/// The program, its tokenizer, and what the allocator holds beside what is asked of it.
pub(crate) const PROGRAM: u64 = 200 << 20;
/// Tokens assumed for a text without a limit: the test split of WikiText-2 has between 245k and 341k with common tokenizers.
const ASSUMED_TOKENS: f64 = 3.0e5;
/// Tokens of a document of the bundled language, about.
const TOKENS_OF_A_BUNDLED_DOCUMENT: f64 = 158.0;
/// Tokens of a question with all its answers, about: 40 of ARC-Easy, 45 of WinoGrande, 60 of PIQA, 93 of HellaSwag (SmolLM2's
/// tokenizer, the first 300 questions of each).
const TOKENS_OF_A_QUESTION: f64 = 80.0;
/// Questions assumed for a task without a limit: most have 500 to 10,000.
const ASSUMED_QUESTIONS: f64 = 3.0e3;
/// Forward passes' worth of work on the calibration of each method, as records of SmolLM2-135M on two cores have it
/// (`results/reference/`), alone in its pass: the output errors of blocks are about one of them. AWQ's is a search of 20 ratios with
/// clipping; GPTAQ's is taken from GPTQ's, of which it keeps two streams, and was not timed.
const PASSES_OF_METHODS: [(&str, f64); 9] = [
    ("rtn", 1.0),
    ("keep_salient", 1.5),
    ("fixed_scale", 1.5),
    ("hqq", 2.5),
    ("gptq", 6.0),
    ("gptaq", 7.0),
    ("quip", 8.0),
    ("awq", 17.0),
    ("awq_gptq", 18.0),
];

/// Tokens of an example of GSM8K or MBPP, about, and of what is written on a problem.
const TOKENS_OF_AN_EXAMPLE: f64 = 160.0;
const TOKENS_OF_A_WRITING: f64 = 200.0;

/// Weights of a model whose name does not tell: of one model any number does.
const ASSUMED_PARAMETERS: f64 = 1.0e9;

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Makes codes.
    Quantize,
    /// Measures.
    Score,
}

/// What a cell takes, in floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Estimate {
    /// To be quantized.
    pub(crate) quantize: f64,
    /// To be measured.
    pub(crate) score: f64,
}

impl Estimate {
    pub(crate) fn new(cell: &Cell) -> Self {
        let params = parameters(&cell.model).unwrap_or(ASSUMED_PARAMETERS);
        let quantize = cell.quantization.as_ref().map_or(0.0, |_| calibration_tokens(cell) * passes_of(cell));
        Self { quantize: 2.0 * params * quantize, score: 2.0 * params * scored_tokens(cell) }
    }

    fn seconds(&self) -> f64 {
        (self.quantize + self.score) / ASSUMED_FLOPS
    }

    pub(crate) fn get(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Quantize => self.quantize,
            Kind::Score => self.score,
        }
    }

    pub(crate) fn of(&mut self, kind: Kind) -> &mut f64 {
        match kind {
            Kind::Quantize => &mut self.quantize,
            Kind::Score => &mut self.score,
        }
    }
}

/// What cells need, about, as far as the names of their models tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// On a CPU of 200 GFLOP/s, one cell after the other.
    pub seconds: f64,
    /// Memory, without hidden states and logits.
    pub bytes: f64,
}

impl Need {
    /// Of all cells, one after the other; `None` where a model's name says no size.
    pub(super) fn of<'a>(models: impl IntoIterator<Item = (&'a ModelSpec, &'a [Cell])>) -> Option<Self> {
        let mut need = Self { seconds: 0.0, bytes: 0.0 };
        for (model, cells) in models {
            let params = parameters(model)?;
            need.seconds += cells.iter().map(|cell| Estimate::new(cell).seconds()).sum::<f64>();
            need.bytes = need.bytes.max(memory(cells, params));
        }
        Some(need)
    }

    /// `roughly 2.3 h on a 200 GFLOP/s CPU`.
    pub fn time(&self) -> String {
        format!("roughly {} on a 200 GFLOP/s CPU", duration(self.seconds))
    }

    /// `about 3.1 GiB`.
    pub fn memory(&self) -> String {
        format!("about {}", bytes(self.bytes))
    }
}

/// One cell's work in words.
pub(super) fn describe(cell: &Cell) -> String {
    let scores = format!("scores about {} tokens", thousands(scored_tokens(cell)));
    let need = parameters(&cell.model).map(|_| Need { seconds: Estimate::new(cell).seconds(), bytes: 0.0 });
    need.map_or_else(|| scores.clone(), |need| format!("{scores}, {}", need.time()))
}

/// Bytes for one model of `params` weights.
fn memory(cells: &[Cell], params: f64) -> f64 {
    // A decoder has 20 to 100 blocks; one in thirty is close enough for a plan.
    PROGRAM as f64 + params / 30.0 * 4.0 * blocks_held(cells)
}

/// Blocks in f32 that are at least as large as all that is held at once, as `results/memory.md` has it at a 7B shape: 3.3 of plain rounding, 4.1
/// of AWQ, 5.6 of GPTQ.
fn blocks_held(cells: &[Cell]) -> f64 {
    let held = |cell: &Cell| match &cell.quantization {
        None => 1.0,
        Some(quantization) if quantization.calibration.is_none() => 4.0,
        Some(_) => 6.0,
    };
    cells.iter().map(held).fold(0.0, f64::max)
}

/// Memory for one model: some blocks in f32, and what is in flight.
pub(super) fn model_summary(model: &ModelSpec, cells: &[Cell]) -> Option<String> {
    let params = parameters(model)?;
    let is_written =
        |evaluation: &EvaluationSpec| matches!(evaluation.text().protocol, ProtocolSpec::LmEvalGeneration(_));
    let writes = cells.iter().flat_map(|cell| &cell.evaluations).any(is_written);
    Some(format!(
        "{}: {} parameters by its name, {} in f32. Needs about {} (as much as {} in f32, and the program) and up to 2 GiB of hidden states and \
         logits.{}",
        model.name,
        count(params),
        bytes(params * 4.0),
        bytes(memory(cells, params)),
        match blocks_held(cells) {
            n if n <= 1.0 => "one block".to_owned(),
            n => format!("{n:.0} blocks"),
        },
        if writes {
            " What it writes is written with the whole model in memory, in 16 bits or f32 where it is not quantized, \
             and up to 2 GiB of keys and values, or those of one text."
        } else {
            ""
        },
    ))
}

/// Metrics of one text are measured in one pass.
fn scored_tokens(cell: &Cell) -> f64 {
    let tokens = |text: &ScoredText| {
        let whole_text = match &text.dataset {
            DatasetSpec::Bundled(text) => f64::from(text.n_documents.get()) * TOKENS_OF_A_BUNDLED_DOCUMENT,
            DatasetSpec::Task(_) => {
                let n_questions = text.max_windows.map_or(ASSUMED_QUESTIONS, |max| max.get() as f64);
                let written = match &text.protocol {
                    ProtocolSpec::LmEvalGeneration(protocol) => protocol.n_texts() as f64 * TOKENS_OF_A_WRITING,
                    _ => 0.0,
                };
                let shown = f64::from(text.protocol.n_shots()) * TOKENS_OF_AN_EXAMPLE;
                return n_questions * (TOKENS_OF_A_QUESTION + shown + written);
            }
            _ => ASSUMED_TOKENS,
        };
        text.max_windows.map_or(whole_text, |max| ((max.get() * text.seq_len()) as f64).min(whole_text))
    };
    let texts: BTreeSet<&ScoredText> = cell.evaluations.iter().map(EvaluationSpec::text).collect();
    texts.into_iter().map(tokens).sum()
}

/// Forward passes' worth of work on the calibration that a cell's method is.
fn passes_of(cell: &Cell) -> f64 {
    let key = cell.quantization.as_ref().map_or("", |quantization| quantization.method.key());
    PASSES_OF_METHODS.iter().find(|(known, _)| *known == key).map_or(0.0, |(_, passes)| *passes)
}

fn calibration_tokens(cell: &Cell) -> f64 {
    let calibration = cell.quantization.as_ref().and_then(|q| q.calibration.as_ref());
    calibration.map_or(0.0, |spec| (spec.n_sequences() * spec.seq_len.get()) as f64)
}

/// `Llama-2-7B` is 7e9, `SmolLM2-135M-Instruct` is 135e6: the last number of the name that ends in B or M.
fn parameters(model: &ModelSpec) -> Option<f64> {
    let words = model.name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    words.rev().find_map(|word| {
        let (number, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
        let unit = match unit {
            "B" | "b" => 1e9,
            "M" | "m" => 1e6,
            _ => return None,
        };
        number.parse::<f64>().ok().map(|number| number * unit)
    })
}

fn thousands(tokens: f64) -> String {
    format!("{:.0}k", (tokens / 1000.0).max(1.0))
}

/// `7.0B`, `135M`.
fn count(params: f64) -> String {
    if params < 1e9 { format!("{:.0}M", params / 1e6) } else { format!("{:.1}B", params / 1e9) }
}

pub(crate) fn bytes(bytes: f64) -> String {
    let mib = bytes / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// `40 s`, `85 min`, `7.2 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bundled, ModelSource};
    use crate::registry::MethodSpec;

    #[test]
    fn sizes_are_read_out_of_names() {
        let size = |name: &str| parameters(&ModelSpec { name: name.into(), source: ModelSource::Bundled(Bundled {}) });
        assert_eq!(size("Llama-2-7B"), Some(7e9));
        assert_eq!(size("SmolLM2-135M-Instruct"), Some(135e6));
        assert_eq!(size("opt-1.3b"), Some(1.3e9));
        assert_eq!(size("stories"), None);
    }

    #[test]
    fn every_method_has_its_work() {
        let known = PASSES_OF_METHODS.map(|(key, _)| key);
        assert!(MethodSpec::KEYS.iter().all(|key| known.contains(key)), "{known:?}");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([30.0, 100.0, 5000.0, 26_000.0].map(duration), ["30 s", "2 min", "83 min", "7.2 h"]);
    }
}

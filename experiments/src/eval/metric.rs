//! [`Metric`]: a number of a model on a text: what it needs of the model, what it makes of each token, and what reports must
//! know of it.

use std::sync::OnceLock;

use rayon::slice::{Chunks, ParallelSlice as _};

use crate::stats::Estimator;
use crate::tasks::Judge;

/// A number of a model on a text. Its value is made of one value a scored token: what the tokens of each item (window, document,
/// question) come to is a sample, and [`Quantity::estimator`] says what the samples stand for.
pub trait Metric: Sync {
    /// What reports know of it.
    fn quantity(&self) -> Quantity;

    /// What it needs of each scored token.
    fn needs(&self) -> Needs;

    /// What the values of the tokens of an item come to.
    fn of_item(&self) -> OfItem {
        OfItem::Sum(Per::Token)
    }

    /// One value a row of `scored`. It depends on that row alone, however rows are batched. Metrics of texts score no tokens.
    fn score(&self, _scored: &Scored<'_>) -> Vec<f32> {
        Vec::new()
    }

    /// The best that any model is expected to reach on a text of this entropy in nats per token, where that is known.
    fn floor(&self, _nats_per_token: f64) -> Option<f64> {
        None
    }
}

/// All that tables, figures, published numbers and statistics know of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Name in records: `token_perplexity`. It says the convention where there are several.
    pub name: &'static str,
    /// What tables call it: `perplexity`.
    pub label: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// Which of two values is better.
    pub direction: Direction,
    /// What its samples stand for.
    pub estimator: Estimator,
}

impl Quantity {
    /// Label and unit: `perplexity per token`.
    pub fn words(&self) -> String {
        match self.unit {
            Unit::PerToken => format!("{} per token", self.label),
            Unit::NatsPerToken => format!("{} in nats per token", self.label),
            Unit::NatsAtToken => format!("{} in nats", self.label),
            Unit::Probability => format!("{}, a probability", self.label),
            Unit::Fraction => format!("{}, a fraction of the tokens", self.label),
            Unit::FractionOfQuestions => format!("{}, a fraction of the questions", self.label),
            Unit::NatsPerAnswer => format!("{} in nats per answer", self.label),
            Unit::PerAnswer => format!("{} per right answer", self.label),
            Unit::PerWord | Unit::PerByte | Unit::BitsPerByte => self.label.to_owned(),
        }
    }
}

/// What a number is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Choices that a model is as undecided between at each token.
    PerToken,
    /// Nats, on average over tokens.
    NatsPerToken,
    /// Nats at a token.
    NatsAtToken,
    /// A probability, 0 to 1.
    Probability,
    /// A share of the tokens, 0 to 1.
    Fraction,
    /// Choices that a model is as undecided between at each word.
    PerWord,
    /// At each byte.
    PerByte,
    /// Bits, on average over bytes.
    BitsPerByte,
    /// A share of the questions of a task, 0 to 1.
    FractionOfQuestions,
    /// Choices that a model is as undecided between at each right answer to a question.
    PerAnswer,
    /// Nats, on average over the right answers to questions.
    NatsPerAnswer,
}

impl Unit {
    /// Whether 0 is a model that lost nothing, from which figures begin.
    pub fn begins_at_zero(self) -> bool {
        matches!(self, Self::NatsPerToken | Self::NatsAtToken | Self::Probability)
    }

    /// Whether figures may need a logarithmic axis.
    pub fn may_span_decades(self) -> bool {
        match self {
            Self::PerToken
            | Self::NatsPerToken
            | Self::NatsAtToken
            | Self::Probability
            | Self::PerWord
            | Self::PerByte
            | Self::BitsPerByte
            | Self::PerAnswer
            | Self::NatsPerAnswer => true,
            Self::Fraction | Self::FractionOfQuestions => false,
        }
    }
}

/// Which of two values is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The lower one.
    LowerIsBetter,
    /// The higher one.
    HigherIsBetter,
}

impl Direction {
    /// The word of it: `lower`.
    pub fn better(self) -> &'static str {
        match self {
            Self::LowerIsBetter => "lower",
            Self::HigherIsBetter => "higher",
        }
    }

    /// How much worse a value is by `difference`, which is that value minus another; negative where it is better.
    pub fn worse_by(self, difference: f64) -> f64 {
        match self {
            Self::LowerIsBetter => difference,
            Self::HigherIsBetter => -difference,
        }
    }
}

/// What the values of the tokens of an item come to: a sample.
#[derive(Clone, Copy, Debug)]
pub enum OfItem {
    /// Their sum, divided; of a window or a document.
    Sum(Per),
    /// What they add to this quantile of all tokens ([`crate::stats::quantile`]); of a window or a document.
    Quantile(f64),
    /// The largest of them; of a window or a document.
    Largest,
    /// What this makes of the sums of each answer to a question.
    Question(fn(&Answers<'_>) -> f64),
    /// What this makes of the texts that a model writes on a problem.
    Written {
        /// Texts that it takes at least.
        n_texts: usize,
        /// What it makes of them.
        of: fn(&Written<'_>) -> f64,
    },
}

/// What a model wrote on a problem.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// The texts, each before the first stop.
    pub texts: &'a [String],
    /// How they are judged.
    pub judge: &'a Judge,
    /// Which texts make programs that run to their end; empty where they make none.
    pub passes: &'a [bool],
}

impl Written<'_> {
    /// Share of the texts of which this is true.
    pub fn share(&self, is_right: impl Fn(&Judge, &str) -> bool) -> f64 {
        let n_right = self.texts.iter().filter(|text| is_right(self.judge, text)).count();
        n_right as f64 / self.texts.len() as f64
    }
}

/// The answers to a question, of which a metric has scored the tokens.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a> {
    /// Sum of the values of each answer's tokens.
    pub sums: &'a [f64],
    /// Characters of each answer.
    pub n_chars: &'a [usize],
    /// Which is right.
    pub target: usize,
}

impl Answers<'_> {
    /// 1 where the right answer has the least of `losses`, one an answer, else 0. Of equal ones the first counts.
    pub fn is_right(&self, losses: impl Iterator<Item = f64>) -> f64 {
        let least = losses.enumerate().reduce(|least, other| if other.1 < least.1 { other } else { least });
        if least.is_some_and(|(index, _)| index == self.target) { 1.0 } else { 0.0 }
    }
}

/// What the values of tokens are divided by: their sum over an item by how many of these it has. Words and bytes are those of the
/// document as its data set has it, so that models with other tokenizers can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Scored tokens.
    Token,
    /// Words of a document.
    Word,
    /// Bytes of a document in UTF-8.
    Byte,
}

/// What a metric needs of each scored token; each one includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing: it judges texts.
    Nothing,
    /// The negative log-likelihood of the token that came.
    Likelihoods,
    /// The logits of the whole vocabulary.
    Logits,
    /// Those of the base model as well: the one that methods start from.
    BaseLogits,
}

/// Scored tokens, one a row: a part of a text that holds whole tokens, not whole windows.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The tokens that came.
    pub targets: &'a [u32],
    /// Their negative log-likelihoods in nats.
    pub nll: &'a [f32],
    /// Size of the vocabulary.
    pub vocab: usize,
    /// `[rows, vocab]`, row-major; empty where no metric needs them.
    pub logits: &'a [f32],
    /// The base model's, likewise.
    pub base_logits: &'a [f32],
    /// The divergences of its rows, once a metric asked for them.
    pub divergences: OnceLock<Vec<f32>>,
}

impl<'a> Scored<'a> {
    /// The logits of each row.
    pub fn rows(&self) -> Chunks<'a, f32> {
        self.logits.par_chunks(self.vocab)
    }

    /// The base model's.
    pub fn base_rows(&self) -> Chunks<'a, f32> {
        self.base_logits.par_chunks(self.vocab)
    }
}

//! How the grammar makes choices: by emitting words.
//!
//! # Why the probability of a text is known exactly
//!
//! The grammar is written against [`Walker`] and makes every decision by emitting a word: [`Walker::choose`] offers
//! options that begin with distinct words and emits the chosen one; [`Walker::maybe`] may emit none, and then the
//! word that comes next is none of those it offered. So the next word alone decides each choice, two different
//! derivations differ at the first word where they part, and the probability of a text is the product of the choices
//! of its only derivation. [`super::entropy`] draws texts and parses them back with the same grammar code.

/// Who makes the choices: a sampler or a parser.
pub(super) trait Walker {
    /// Why a walk can stop early.
    type Error;

    /// Emits one of `options`, `(word, weight)` with distinct words, and returns its index. Its probability is its
    /// weight over the sum of all weights.
    fn choose(&mut self, options: &[Weighted]) -> Result<usize, Self::Error>;

    /// With probability `1 - pass` the same as [`Walker::choose`]; else emits nothing. The grammar guarantees that
    /// the word after a pass is none of the options.
    fn maybe(&mut self, options: &[Weighted], pass: f64) -> Result<Option<usize>, Self::Error>;

    /// Emits the only possible word.
    fn say(&mut self, word: &'static str) -> Result<(), Self::Error> {
        self.choose(&[(word, 1.0)]).map(drop)
    }

    /// Emits the only possible words, in order.
    fn say_all(&mut self, words: &[&'static str]) -> Result<(), Self::Error> {
        words.iter().try_for_each(|word| self.say(word))
    }
}

/// A word and its weight.
pub(super) type Weighted = (&'static str, f64);

/// Weights proportional to `1 / (rank + 2)` that sum to `mass`; the word at index `turn` has rank 0.
pub(super) fn zipf(words: &[&'static str], turn: usize, mass: f64) -> Vec<Weighted> {
    let n = words.len();
    let weight = |rank: usize| 1.0 / (rank as f64 + 2.0);
    let total: f64 = (0..n).map(weight).sum();
    words.iter().enumerate().map(|(index, word)| (*word, mass * weight((index + n - turn % n) % n) / total)).collect()
}

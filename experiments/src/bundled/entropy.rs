//! Draws documents of the bundled language with their probability, and parses texts back to it.
//!
//! Entropy here is per document: [`Document::nats`] is `-ln p(text)`, the sum over all choices of the derivation
//! (see [`super::walker`] for why there is only one). Over many documents, the sum of nats over the number of tokens
//! is the lowest mean loss that any model can reach with that tokenizer, when it sees each document from its start;
//! `exp` of it is the lowest perplexity. A window that begins in the middle of a document hides facts that later words
//! repeat, so with windows the true floor lies somewhat higher.

use std::convert::Infallible;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::grammar;
use super::walker::{Walker, Weighted};

/// A text of the bundled language and its information content.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// One line, without the line feed that ends it.
    pub text: String,
    /// `-ln` of the probability that the grammar gives this text.
    pub nats: f64,
}

/// The document of a seed: the same text on every machine and at every time.
pub fn generate_document(seed: u64) -> Document {
    let mut sampler =
        Sampler { rng: ChaCha8Rng::seed_from_u64(seed), line: Line::default(), nats: 0.0, declined: Vec::new() };
    let Ok(()) = grammar::document(&mut sampler);
    Document { text: sampler.line.text, nats: sampler.nats }
}

/// `-ln p(text)` of one document (no line feed), found by parsing it.
///
/// # Errors
/// Where the grammar gives `text` no probability: names the word (counted from 0) at which it leaves the language and the words expected.
pub fn document_nats(text: &str) -> Result<f64, NotInLanguage> {
    let mut parser = Parser { rest: text, line: Line::default(), n_words: 0, nats: 0.0 };
    grammar::document(&mut parser)?;
    if parser.rest.is_empty() {
        Ok(parser.nats)
    } else {
        Err(NotInLanguage { word_idx: parser.n_words, expected: "the end of the document".to_owned() })
    }
}

/// A text that the grammar cannot make.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("not a document of the bundled language: at word {word_idx} expected {expected}")]
pub struct NotInLanguage {
    /// Words before the one in question; punctuation marks count.
    pub word_idx: usize,
    /// What would have continued the document.
    pub expected: String,
}

/// Text under construction: words joined as English is written, sentences capitalised.
#[derive(Default)]
struct Line {
    text: String,
    sentence_began: bool,
    glue_next: bool,
}

impl Line {
    /// `word` as it would be appended: with the space before it, and capitalised where it begins a sentence.
    fn surface(&self, word: &str) -> String {
        let closes = matches!(word, "." | "," | "?" | ")" | "]");
        let space = if self.text.is_empty() || self.glue_next || closes { "" } else { " " };
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if !self.sentence_began => {
                format!("{space}{}{}", first.to_uppercase(), letters.as_str())
            }
            _ => format!("{space}{word}"),
        }
    }

    fn push(&mut self, word: &str) {
        let surface = self.surface(word);
        self.text.push_str(&surface);
        self.glue_next = matches!(word, "(" | "[");
        self.sentence_began = !matches!(word, "." | "?");
    }
}

fn total_weight(options: &[Weighted]) -> f64 {
    options.iter().map(|(_, weight)| weight).sum()
}

struct Sampler {
    rng: ChaCha8Rng,
    line: Line,
    nats: f64,
    /// Words offered and passed over since the last emitted one.
    declined: Vec<&'static str>,
}

impl Walker for Sampler {
    type Error = Infallible;

    fn choose(&mut self, options: &[Weighted]) -> Result<usize, Infallible> {
        let total = total_weight(options);
        let mut left = self.rng.random::<f64>() * total;
        let mut choice = 0;
        // The last option takes what rounding leaves over.
        while choice + 1 < options.len() && left >= options[choice].1 {
            left -= options[choice].1;
            choice += 1;
        }
        let (word, weight) = options[choice];
        assert!(
            !self.declined.contains(&word),
            "the grammar is ambiguous: `{word}` follows a choice that passed it over"
        );
        self.declined.clear();
        self.line.push(word);
        self.nats -= (weight / total).ln();
        Ok(choice)
    }

    fn maybe(&mut self, options: &[Weighted], pass: f64) -> Result<Option<usize>, Infallible> {
        if self.rng.random::<f64>() < pass {
            self.nats -= pass.ln();
            self.declined.extend(options.iter().map(|(word, _)| word));
            return Ok(None);
        }
        self.nats -= (1.0 - pass).ln();
        self.choose(options).map(Some)
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: Line,
    n_words: usize,
    nats: f64,
}

impl Parser<'_> {
    /// Whether the text goes on with `word` and not just with letters that begin like it; the rest after it.
    fn after(&self, word: &str) -> Option<&str> {
        let rest = self.rest.strip_prefix(&self.line.surface(word))?;
        let is_whole = !(word.ends_with(char::is_alphanumeric) && rest.starts_with(char::is_alphanumeric));
        is_whole.then_some(rest)
    }

    fn take(&mut self, options: &[Weighted]) -> Option<usize> {
        let choice = options.iter().position(|(word, _)| self.after(word).is_some())?;
        let (word, weight) = options[choice];
        self.rest = &self.rest[self.line.surface(word).len()..];
        self.line.push(word);
        self.n_words += 1;
        self.nats -= (weight / total_weight(options)).ln();
        Some(choice)
    }
}

impl Walker for Parser<'_> {
    type Error = NotInLanguage;

    fn choose(&mut self, options: &[Weighted]) -> Result<usize, NotInLanguage> {
        self.take(options).ok_or_else(|| {
            let mut expected: Vec<_> = options.iter().take(5).map(|(word, _)| format!("`{word}`")).collect();
            if options.len() > expected.len() {
                expected.push(format!("{} others", options.len() - expected.len()));
            }
            NotInLanguage { word_idx: self.n_words, expected: expected.join(" or ") }
        })
    }

    fn maybe(&mut self, options: &[Weighted], pass: f64) -> Result<Option<usize>, NotInLanguage> {
        let choice = self.take(options);
        self.nats -= if choice.is_some() { (1.0 - pass).ln() } else { pass.ln() };
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Checks what the argument of `walker` rests on: the options of every choice look different in the text.
    struct DistinctOptions(Sampler);

    impl DistinctOptions {
        #[track_caller]
        fn check(&self, options: &[Weighted]) {
            let surfaces: BTreeSet<_> = options.iter().map(|(word, _)| self.0.line.surface(word)).collect();
            assert_eq!(surfaces.len(), options.len(), "two equal options among {options:?}");
            assert!(options.iter().all(|(_, weight)| *weight > 0.0));
        }
    }

    impl Walker for DistinctOptions {
        type Error = Infallible;

        fn choose(&mut self, options: &[Weighted]) -> Result<usize, Infallible> {
            self.check(options);
            self.0.choose(options)
        }

        fn maybe(&mut self, options: &[Weighted], pass: f64) -> Result<Option<usize>, Infallible> {
            self.check(options);
            self.0.maybe(options, pass)
        }
    }

    fn sampler(seed: u64) -> Sampler {
        Sampler { rng: ChaCha8Rng::seed_from_u64(seed), line: Line::default(), nats: 0.0, declined: Vec::new() }
    }

    #[test]
    fn options_of_every_choice_are_distinct() {
        for seed in 0..300 {
            let mut walker = DistinctOptions(sampler(seed));
            let Ok(()) = grammar::document(&mut walker);
        }
    }

    #[test]
    fn texts_parse_back_to_their_own_probability() {
        for seed in 0..500 {
            let document = generate_document(seed);
            let parsed = document_nats(&document.text).unwrap();
            assert!((parsed - document.nats).abs() < 1e-9, "seed {seed}: {parsed} against {}", document.nats);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        assert_eq!(generate_document(7), generate_document(7));
        assert_ne!(generate_document(7).text, generate_document(8).text);
    }

    #[test]
    fn first_choice_comes_as_often_as_its_probability_says() {
        let n = 4000;
        let mut counts = BTreeMap::new();
        for seed in 0..n {
            let mood = generate_document(seed).text.split(' ').nth(3).unwrap().to_owned();
            *counts.entry(mood).or_insert(0_u64) += 1;
        }
        // Weights 1/2, 1/3, 1/4, 1/5.
        let total = 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0 + 1.0 / 5.0;
        for (rank, mood) in ["merry", "sad", "short", "strange"].iter().enumerate() {
            let expected = 1.0 / (rank as f64 + 2.0) / total;
            let seen = counts[*mood] as f64 / n as f64;
            let five_sigma = 5.0 * (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((seen - expected).abs() < five_sigma, "{mood}: {seen} against {expected}");
        }
    }

    #[test]
    fn a_changed_fact_leaves_the_language() {
        let Document { text, .. } = generate_document(3);
        let (body, ending) = text.rsplit_once("So ends").unwrap();
        let topic = ending.rsplit(' ').next().unwrap();
        let other = if topic == "harbor." { "forest." } else { "harbor." };
        let changed = format!("{body}So ends{}", ending.replace(topic, other));
        let error = document_nats(&changed).unwrap_err();
        assert_eq!(error.expected, format!("`{}`", topic.trim_end_matches('.')));
        let error = document_nats(&text[..text.len() / 2]).unwrap_err();
        assert!(error.to_string().starts_with("not a document of the bundled language: at word "), "{error}");
        assert_eq!(document_nats(&format!("{text} More.")).unwrap_err().expected, "the end of the document");
    }
}

//! Token sequences to calibrate on, and how much of them is also evaluated.
//!
//! A tokenizer comes as a function from text to ids. Whether it puts a BOS token in front of every text is the
//! tokenizer's business: the AWQ code lets it, so that with a Llama tokenizer every document begins with one.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use awq_core::open::OpenedModel;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Text;
use crate::config::CalibrationSpec;
use crate::config::sources::{DocumentCrops, JoinedDocuments, RandomCrops, SamplingSpec, TokenOffsets};
use crate::eval::windows::check_seq_len;

/// Consecutive tokens that must agree for [`overlap_tokens`] to count them.
pub const OVERLAP_NGRAM: usize = 32;

/// A tokenizer: the ids of a text.
pub type Encode<'a> = dyn Fn(&str) -> anyhow::Result<Vec<u32>> + 'a;

/// Calibration sequences, all of the same length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationSet {
    /// Token ids, `[n_sequences][seq_len]`.
    pub ids: Vec<Vec<u32>>,
    /// Where each sequence lies in the tokens that it was cut from: those of the joined text, or, for
    /// [`SamplingSpec::JoinedDocuments`] and [`SamplingSpec::DocumentCrops`], those of what was drawn.
    pub spans: Vec<Range<usize>>,
}

/// The sequences that `spec` takes from `text` with a model's tokenizer.
///
/// # Errors
/// Sequences longer than the model has positions, a token that its vocabulary lacks, and as [`sequences`].
pub fn calibration_set(opened: &OpenedModel, spec: &CalibrationSpec, text: &Text) -> anyhow::Result<CalibrationSet> {
    check_seq_len(&opened.config, spec.seq_len.get()).context("calibration")?;
    let encode = |part: &str| Ok(opened.tokenizer.encode_with_special(part)?);
    let set = sequences(text, &encode, &spec.sampling, spec.seq_len)?;
    let rows = opened.config.vocab_size;
    if let Some(&id) = set.ids.iter().flatten().find(|&&id| id as usize >= rows) {
        bail!(
            "calibration text {} holds token {id} ({:?}), but the model's vocabulary has {rows}; remove it from the text, or \
             use the tokenizer that came with this model",
            text.name,
            opened.tokenizer.token(id).unwrap_or_default()
        );
    }
    Ok(set)
}

/// Takes sequences of `seq_len` tokens from `text` as `sampling` says. The same arguments give the same sequences.
///
/// # Errors
/// A text that is empty or too short (naming data set, tokens found and remedy), or a tokenizer that fails.
pub fn sequences(
    text: &Text,
    encode: &Encode<'_>,
    sampling: &SamplingSpec,
    seq_len: NonZeroUsize,
) -> anyhow::Result<CalibrationSet> {
    let name = &text.name;
    ensure!(
        text.documents.iter().any(|document| !document.trim().is_empty()),
        "calibration text {name} is empty; choose another data set or file"
    );
    let seq_len = seq_len.get();
    let encode = |part: &str| encode(part).with_context(|| format!("calibration text {name}: cannot tokenize"));
    let (tokens, starts) = match sampling {
        SamplingSpec::JoinedDocuments(rule) => {
            let tokens = join_documents(text, &encode, rule, seq_len)?;
            let starts = (0..tokens.len() / seq_len).map(|sequence| sequence * seq_len).collect();
            (tokens, starts)
        }
        SamplingSpec::RandomCrops(rule) => {
            let tokens = encode(&text.joined())?;
            ensure_one_sequence(name, &tokens, seq_len)?;
            ensure_begins(name, &tokens, seq_len, ("first_token", "is"), rule.first_token)?;
            let starts = random_starts(tokens.len(), seq_len, rule);
            (tokens, starts)
        }
        SamplingSpec::DocumentCrops(rule) => {
            let tokens = crop_documents(text, &encode, rule, seq_len)?;
            (tokens, (0..rule.n_sequences.get()).map(|sequence| sequence * seq_len).collect())
        }
        SamplingSpec::TokenOffsets(TokenOffsets { starts }) => {
            let tokens = encode(&text.joined())?;
            ensure_one_sequence(name, &tokens, seq_len)?;
            ensure!(!starts.is_empty(), "calibration text {name}: key `starts` is empty; give at least one position");
            for &start in starts {
                ensure_begins(name, &tokens, seq_len, ("starts", "holds"), start)?;
            }
            (tokens, starts.clone())
        }
    };
    let spans: Vec<_> = starts.iter().map(|&start| start..start + seq_len).collect();
    Ok(CalibrationSet { ids: spans.iter().map(|span| tokens[span.clone()].to_vec()).collect(), spans })
}

/// The AWQ code's rule: documents in shuffled order; those LONGER than one sequence are skipped, not cut, and so are
/// those without a token; the first `n_documents` others are joined without anything between them. Blocks cut from the
/// result cross documents, and there are fewer of them than documents (about 60 for 128 documents of the Pile at 512).
///
/// The shuffle is Fisher-Yates driven by ChaCha8; the order that Python's `random` makes of the same seed is another.
fn join_documents(
    text: &Text,
    encode: &impl Fn(&str) -> anyhow::Result<Vec<u32>>,
    rule: &JoinedDocuments,
    seq_len: usize,
) -> anyhow::Result<Vec<u32>> {
    let mut order: Vec<usize> = (0..text.documents.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(rule.seed));
    let mut tokens = Vec::new();
    let mut n_taken = 0;
    let mut n_longer = 0;
    for document_idx in order {
        if n_taken == rule.n_documents.get() {
            break;
        }
        let document = encode(&text.documents[document_idx])?;
        if document.len() > seq_len {
            n_longer += 1;
        } else if !document.is_empty() {
            tokens.extend(document);
            n_taken += 1;
        }
    }
    ensure!(
        tokens.len() >= seq_len,
        "calibration text {}: {n_taken} documents of at most {seq_len} tokens give {} tokens, fewer than one sequence of \
         {seq_len} ({n_longer} longer documents are skipped by this rule); raise `n_documents`, or use `random_crops`",
        text.name,
        tokens.len()
    );
    Ok(tokens)
}

/// The GPTQ code's rule: sequences at random positions of the joined text, which may overlap. Every position from
/// `first_token` on at which a sequence fits is possible (the GPTQ code leaves the last one out).
fn random_starts(n_tokens: usize, seq_len: usize, rule: &RandomCrops) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(rule.seed);
    (0..rule.n_sequences.get()).map(|_| rng.random_range(rule.first_token..=n_tokens - seq_len)).collect()
}

/// The GPTQ code's rule for C4: documents in shuffled order; those with no more tokens than one sequence are skipped; of each
/// other one sequence is taken, at a random position. Returns the sequences behind one another.
///
/// A document's position is drawn after the document, so that the first sequences of a longer list are those of a shorter.
fn crop_documents(
    text: &Text,
    encode: &impl Fn(&str) -> anyhow::Result<Vec<u32>>,
    rule: &DocumentCrops,
    seq_len: usize,
) -> anyhow::Result<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(rule.seed);
    let mut order: Vec<usize> = (0..text.documents.len()).collect();
    order.shuffle(&mut rng);
    let wanted = rule.n_sequences.get();
    let mut tokens = Vec::with_capacity(wanted * seq_len);
    for document_idx in order {
        if tokens.len() == wanted * seq_len {
            break;
        }
        let document = encode(&text.documents[document_idx])?;
        if document.len() > seq_len {
            let start = rng.random_range(0..=document.len() - seq_len);
            tokens.extend_from_slice(&document[start..start + seq_len]);
        }
    }
    ensure!(
        tokens.len() == wanted * seq_len,
        "calibration text {}: only {} documents have more than {seq_len} tokens, `n_sequences` asks for {wanted}; lower it or \
         `seq_len`, or use `random_crops`",
        text.name,
        tokens.len() / seq_len
    );
    Ok(tokens)
}

fn ensure_one_sequence(name: &str, tokens: &[u32], seq_len: usize) -> anyhow::Result<()> {
    ensure!(
        tokens.len() >= seq_len,
        "calibration text {name} has {} tokens, fewer than one sequence of {seq_len}; choose a longer text or lower `seq_len`",
        tokens.len()
    );
    Ok(())
}

/// Whether a sequence that begins at token `start`, as a key says, lies inside the text. The text has room for one.
fn ensure_begins(
    name: &str,
    tokens: &[u32],
    seq_len: usize,
    (key, verb): (&str, &str),
    start: usize,
) -> anyhow::Result<()> {
    let last = tokens.len() - seq_len;
    ensure!(
        start <= last,
        "calibration text {name}: key `{key}` {verb} {start}, but a sequence of {seq_len} tokens must begin at {last} or \
         before: the text has {} tokens",
        tokens.len()
    );
    Ok(())
}

/// How many calibration tokens are also evaluated: tokens that lie in some run of [`OVERLAP_NGRAM`] consecutive tokens of
/// a calibration sequence that also occurs inside a scored window. Each position of each sequence counts once. Runs that
/// reach over the end of a sequence or window are not seen.
pub fn overlap_tokens(calibration: &[Vec<u32>], windows: &[&[u32]]) -> u64 {
    let scored: HashSet<&[u32]> = windows.iter().flat_map(|window| window.windows(OVERLAP_NGRAM)).collect();
    let of_sequence = |sequence: &Vec<u32>| {
        let mut n_tokens = 0;
        let mut counted_to = 0;
        for (start, ngram) in sequence.windows(OVERLAP_NGRAM).enumerate() {
            if scored.contains(ngram) {
                let end = start + OVERLAP_NGRAM;
                n_tokens += end - counted_to.max(start);
                counted_to = end;
            }
        }
        n_tokens as u64
    };
    calibration.iter().map(of_sequence).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// One token a byte.
    fn bytes(text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn text(documents: &[&str]) -> Text {
        Text::new("toy", documents.iter().map(|&document| document.to_owned()).collect(), "\n")
    }

    fn joined_documents(n_documents: usize, seed: u64) -> SamplingSpec {
        let n_documents = NonZeroUsize::new(n_documents).unwrap();
        SamplingSpec::JoinedDocuments(JoinedDocuments { n_documents, seed })
    }

    fn random_crops(n_sequences: usize, seed: u64) -> SamplingSpec {
        SamplingSpec::RandomCrops(RandomCrops {
            n_sequences: NonZeroUsize::new(n_sequences).unwrap(),
            seed,
            first_token: 0,
        })
    }

    fn taken(documents: &[&str], sampling: &SamplingSpec, seq_len: usize) -> Result<CalibrationSet, String> {
        let seq_len = NonZeroUsize::new(seq_len).unwrap();
        sequences(&text(documents), &bytes, sampling, seq_len).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn long_and_empty_documents_are_skipped_and_blocks_cross_documents() {
        let set = taken(&["aaa", "", "bbbbb", "cc", "dddd"], &joined_documents(3, 0), 4).unwrap();
        // aaa, cc and dddd in some order: 9 tokens, two blocks; the fifth document is longer than a sequence.
        assert_eq!(set.spans, [0..4, 4..8]);
        let mut letters: Vec<u32> = set.ids.concat();
        letters.dedup();
        assert!(!letters.contains(&u32::from(b'b')));
        assert!(letters.len() >= 2);
    }

    #[test]
    fn a_document_of_exactly_one_sequence_is_taken() {
        let set = taken(&["abcd"], &joined_documents(1, 0), 4).unwrap();
        assert_eq!(set.ids, [bytes("abcd").unwrap()]);
    }

    #[test]
    fn no_more_documents_than_asked_for() {
        let documents = ["aa", "bb", "cc", "dd", "ee", "ff"];
        let set = taken(&documents, &joined_documents(3, 7), 2).unwrap();
        assert_eq!(set.ids.len(), 3);
        assert_eq!(set, taken(&documents, &joined_documents(3, 7), 2).unwrap());
        let orders: HashSet<_> =
            (0..20).map(|seed| taken(&documents, &joined_documents(6, seed), 2).unwrap().ids).collect();
        assert!(orders.len() > 10, "the seed must change the order");
    }

    /// What `draws` stands on: the next seed gives other sequences, under every rule that has one.
    #[test]
    fn every_seed_is_a_draw_of_its_own() {
        let documents: Vec<String> = (0..40_u8)
            .map(|document| (0..12).map(|letter| char::from(33 + (document + 2 * letter) % 90)).collect())
            .collect();
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let n_sequences = NonZeroUsize::new(6).unwrap();
        let rules = [
            joined_documents(9, 0),
            random_crops(6, 0),
            SamplingSpec::DocumentCrops(DocumentCrops { n_sequences, seed: 0 }),
        ];
        for rule in rules {
            let seq_len = if matches!(rule, SamplingSpec::JoinedDocuments(_)) { 12 } else { 8 };
            let draws: HashSet<_> = (0..20)
                .map(|seed| {
                    let mut rule = rule.clone();
                    *rule.seed_mut().unwrap() += seed;
                    let mut ids = taken(&documents, &rule, seq_len).unwrap().ids;
                    ids.sort();
                    ids
                })
                .collect();
            assert_eq!(draws.len(), 20, "{rule:?}");
        }
        assert_eq!(SamplingSpec::TokenOffsets(TokenOffsets { starts: vec![0] }).seed_mut(), None);
    }

    #[test]
    fn the_shuffle_stays_what_it_was() {
        // Recorded from this code: a new version of the crate rand that shuffles otherwise would change results.
        let set = taken(&["a", "b", "c", "d", "e", "f", "g", "h"], &joined_documents(8, 42), 8).unwrap();
        let order: String = set.ids[0].iter().map(|&id| char::from(id as u8)).collect();
        assert_eq!(order, "hbfegadc");
    }

    #[test]
    fn offsets_are_replayed_exactly() {
        let offsets = |starts: &[usize]| SamplingSpec::TokenOffsets(TokenOffsets { starts: starts.to_vec() });
        let set = taken(&["abc", "def"], &offsets(&[4, 0]), 3).unwrap();
        assert_eq!(set.ids, [bytes("def").unwrap(), bytes("abc").unwrap()]);
        assert_eq!(set.spans, [4..7, 0..3]);
        assert_eq!(
            taken(&["abc", "def"], &offsets(&[0, 5]), 3).unwrap_err(),
            "calibration text toy: key `starts` holds 5, but a sequence of 3 tokens must begin at 4 or before: the text has \
             7 tokens"
        );
        assert_eq!(
            taken(&["abc"], &offsets(&[]), 3).unwrap_err(),
            "calibration text toy: key `starts` is empty; give at least one position"
        );
        assert!(taken(&["abc"], &offsets(&[usize::MAX]), 3).is_err());
    }

    #[test]
    fn texts_without_enough_tokens_say_what_to_do() {
        let empty = "calibration text toy is empty; choose another data set or file";
        for sampling in [joined_documents(1, 0), random_crops(1, 0)] {
            assert_eq!(taken(&[], &sampling, 4).unwrap_err(), empty);
            assert_eq!(taken(&["", " \n"], &sampling, 4).unwrap_err(), empty);
        }
        assert_eq!(
            taken(&["abc"], &random_crops(1, 0), 4).unwrap_err(),
            "calibration text toy has 3 tokens, fewer than one sequence of 4; choose a longer text or lower `seq_len`"
        );
        assert_eq!(
            taken(&["abc", "abcde"], &joined_documents(2, 0), 4).unwrap_err(),
            "calibration text toy: 1 documents of at most 4 tokens give 3 tokens, fewer than one sequence of 4 (1 longer \
             documents are skipped by this rule); raise `n_documents`, or use `random_crops`"
        );
        let failing = |_: &str| anyhow::bail!("no such token");
        let error = sequences(&text(&["abc"]), &failing, &random_crops(1, 0), NonZeroUsize::MIN).unwrap_err();
        assert_eq!(format!("{error:#}"), "calibration text toy: cannot tokenize: no such token");
    }

    #[test]
    fn crops_reach_both_ends() {
        let set = taken(&["abcde"], &random_crops(200, 1), 4).unwrap();
        let starts: HashSet<usize> = set.spans.iter().map(|span| span.start).collect();
        assert_eq!(starts, HashSet::from([0, 1]));
    }

    #[test]
    fn crops_begin_where_they_may() {
        let crops = |first_token| {
            let n_sequences = NonZeroUsize::new(200).unwrap();
            SamplingSpec::RandomCrops(RandomCrops { n_sequences, seed: 1, first_token })
        };
        let starts = |first_token| -> HashSet<usize> {
            let set = taken(&["abcdefgh"], &crops(first_token), 4).unwrap();
            set.spans.iter().map(|span| span.start).collect()
        };
        assert_eq!(starts(2), HashSet::from([2, 3, 4]));
        assert_eq!(starts(4), HashSet::from([4]));
        assert_eq!(
            taken(&["abcdefgh"], &crops(5), 4).unwrap_err(),
            "calibration text toy: key `first_token` is 5, but a sequence of 4 tokens must begin at 4 or before: the text has \
             8 tokens"
        );
        // Absent it is no part of a cell, whose id stays.
        assert!(!serde_json::to_string(&crops(0)).unwrap().contains("first_token"));
    }

    #[test]
    fn crops_of_documents_lie_inside_one_and_more_begin_with_the_same() {
        let crops = |n_sequences: usize| {
            SamplingSpec::DocumentCrops(DocumentCrops { n_sequences: NonZeroUsize::new(n_sequences).unwrap(), seed: 3 })
        };
        let documents = ["abcdef", "xyz", "ghijkl", "wxyz", "mnopqr"];
        let two = taken(&documents, &crops(2), 4).unwrap();
        let three = taken(&documents, &crops(3), 4).unwrap();
        assert_eq!(two.ids, three.ids[..2]);
        let cut: HashSet<String> =
            three.ids.iter().map(|ids| ids.iter().map(|&id| char::from(id as u8)).collect()).collect();
        // A document of just one sequence is too short; each of the others gives one.
        assert!(cut.iter().all(|crop| documents.iter().any(|document| document.len() > 4 && document.contains(crop))));
        assert_eq!(cut.len(), 3);
        assert_eq!(
            taken(&documents, &crops(4), 4).unwrap_err(),
            "calibration text toy: only 3 documents have more than 4 tokens, `n_sequences` asks for 4; lower it or \
             `seq_len`, or use `random_crops`"
        );
    }

    #[test]
    fn overlap_counts_tokens_in_shared_runs_once() {
        let run: Vec<u32> = (0..100).collect();
        let apart: Vec<u32> = (1000..1100).collect();
        let sequence = [run.clone()];
        assert_eq!(overlap_tokens(&sequence, &[&run]), 100);
        assert_eq!(overlap_tokens(&[run.clone(), run.clone()], &[&run, &run]), 200);
        assert_eq!(overlap_tokens(&sequence, &[&apart]), 0);
        assert_eq!(overlap_tokens(&sequence, &[&run[10..10 + OVERLAP_NGRAM]]), OVERLAP_NGRAM as u64);
        assert_eq!(overlap_tokens(&sequence, &[&run[..OVERLAP_NGRAM - 1]]), 0);
        let two_runs = [&run[..40], &apart[..40], &run[50..90]].concat();
        assert_eq!(overlap_tokens(&[two_runs], &[&run]), 80);
        assert_eq!(overlap_tokens(&[], &[]), 0);
    }

    proptest! {
        #[test]
        fn every_sequence_is_what_its_span_says(seq_len in 1usize..40, n in 1usize..8, seed: u64, words in "[a-z ]{40,80}") {
            let set = taken(&["x", &words], &random_crops(n, seed), seq_len).unwrap();
            let tokens = bytes(&text(&["x", &words]).joined()).unwrap();
            prop_assert_eq!(set.ids.len(), n);
            for (ids, span) in set.ids.iter().zip(set.spans) {
                prop_assert_eq!(ids.as_slice(), &tokens[span]);
            }
        }
    }
}

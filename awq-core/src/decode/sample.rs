//! From logits to the next token: greedy, or drawn with temperature, top-k and top-p.

use std::num::NonZeroUsize;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::host::elementwise::lane_max;
use crate::host::exp::exp;
use crate::host::vectorized;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely token; of equals the one with the lowest id.
    Greedy,
    /// A draw.
    Random(RandomSampling),
}

/// See [`Sampling::Random`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomSampling {
    /// Divides the logits; positive. Towards 0 the draw becomes greedy.
    pub temperature: f32,
    /// Only this many of the most likely tokens can be drawn.
    pub top_k: Option<NonZeroUsize>,
    /// Only the smallest set of most likely tokens whose probability (after temperature and top-k) reaches this can be drawn;
    /// in `0 ..= 1`, 1 for all.
    pub top_p: f32,
    /// Seed of the ChaCha8 generator: the same logits and seed give the same tokens.
    pub seed: u64,
}

/// Logits from which no token can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{n_bad} of {vocab} logits are NaN or infinite, so that no next token can be chosen: the model's weights are damaged, or \
     its activations overflow f32; get the checkpoint again and, where it is quantized, quantize it again"
)]
pub struct NotFinite {
    /// Logits that are NaN or infinite; a minus infinity among finite ones is a token that is ruled out, and is not counted.
    pub n_bad: usize,
    /// All logits.
    pub vocab: usize,
}

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// One a token of the vocabulary, 1 for the most likely.
    weights: Vec<f32>,
    /// Tokens that can be drawn.
    candidates: Vec<u32>,
}

/// Candidates that are sorted first for top-p; ten times as many where these do not suffice.
const FIRST_SORTED: usize = 64;

impl Sampler {
    /// A sampler at the start of its sequence of draws.
    pub fn new(sampling: Sampling) -> Self {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Random(random) => random.seed,
        };
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(seed), weights: Vec::new(), candidates: Vec::new() }
    }

    /// The next token under `logits`, `[vocab]`; minus infinity rules a token out.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity, or none that is finite.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, NotFinite> {
        let max = largest(logits)?;
        Ok(match self.sampling {
            Sampling::Greedy => logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32,
            Sampling::Random(random) => self.draw(logits, max, &random),
        })
    }

    fn draw(&mut self, logits: &[f32], max: f32, random: &RandomSampling) -> u32 {
        self.weights.resize(logits.len(), 0.0);
        weigh(logits, max, random.temperature.recip(), &mut self.weights);
        self.candidates.clear();
        self.candidates.extend(0..logits.len() as u32);
        if let Some(k) = random.top_k.filter(|k| k.get() < logits.len()) {
            most_likely_first(&mut self.candidates, &self.weights, k.get());
            self.candidates.truncate(k.get());
        }
        if random.top_p < 1.0 {
            self.keep_top_p(f64::from(random.top_p));
        }
        let mut left = self.uniform() * self.total();
        for &id in &self.candidates {
            left -= f64::from(self.weights[id as usize]);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a rest after the last candidate.
        self.candidates[self.candidates.len() - 1]
    }

    /// Keeps the smallest set of most likely candidates whose share of the weight reaches `top_p`. The whole vocabulary is
    /// sorted only where it must be: that would take longer than a decode step.
    fn keep_top_p(&mut self, top_p: f64) {
        let wanted = top_p * self.total();
        let mut n_sorted = FIRST_SORTED.min(self.candidates.len());
        loop {
            most_likely_first(&mut self.candidates, &self.weights, n_sorted);
            let mut sum = 0.0;
            let reaches = |&id: &u32| {
                sum += f64::from(self.weights[id as usize]);
                sum >= wanted
            };
            if let Some(last) = self.candidates[..n_sorted].iter().position(reaches) {
                return self.candidates.truncate(last + 1);
            }
            if n_sorted == self.candidates.len() {
                return;
            }
            n_sorted = (10 * n_sorted).min(self.candidates.len());
        }
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|&id| f64::from(self.weights[id as usize])).sum()
    }

    /// In `0 .. 1`, 53 bits.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Puts the `n` most likely of `ids` in front, in order; of equals the lower id comes first.
fn most_likely_first(ids: &mut [u32], weights: &[f32], n: usize) {
    let likelier = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then_with(|| a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n, likelier);
    }
    ids[..n].sort_unstable_by(likelier);
}

/// The largest logit.
fn largest(logits: &[f32]) -> Result<f32, NotFinite> {
    assert!(!logits.is_empty(), "no logits to choose from");
    let max = max_of(logits);
    let n_bad = if max == f32::NEG_INFINITY { logits.len() } else { not_below(logits, max.min(f32::MAX)) };
    if n_bad > 0 { Err(NotFinite { n_bad, vocab: logits.len() }) } else { Ok(max) }
}

vectorized! {
    /// NaN is passed over.
    fn max_of<'a>(logits: &'a [f32]) -> f32 {
        lane_max(logits)
    }

    /// How many logits are neither `max` nor below it: NaN, and plus infinity where `max` is finite.
    fn not_below<'a>(logits: &'a [f32], max: f32) -> usize {
        let n_below: u32 = logits.iter().map(|&logit| u32::from(logit <= max)).sum();
        logits.len() - n_below as usize
    }

    /// `weights = exp((logits - max) / temperature)`.
    fn weigh<'a>(logits: &'a [f32], max: f32, inverse_temperature: f32, weights: &'a mut [f32]) -> () {
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = exp((logit - max) * inverse_temperature);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    /// Probabilities 0.5, 0.25, 0.125, 0.125 under temperature 1, in another order: logarithms plus 1.
    const LOGITS: [f32; 4] = [-1.079_441_5, 0.306_852_8, -1.079_441_5, -0.386_294_4];

    fn random(temperature: f32, top_k: Option<usize>, top_p: f32, seed: u64) -> Sampler {
        let top_k = top_k.and_then(NonZeroUsize::new);
        Sampler::new(Sampling::Random(RandomSampling { temperature, top_k, top_p, seed }))
    }

    fn frequencies(mut sampler: Sampler, n: usize) -> BTreeMap<u32, f64> {
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            *counts.entry(sampler.next(&LOGITS).unwrap()).or_insert(0.0) += 1.0 / n as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_likely() {
        let mut greedy = Sampler::new(Sampling::Greedy);
        assert_eq!(greedy.next(&LOGITS), Ok(1));
        assert_eq!(greedy.next(&[0.5, 2.0, 2.0]), Ok(1));
        assert_eq!(greedy.next(&[f32::NEG_INFINITY, -1.0]), Ok(1));
        assert_eq!(greedy.next(&[f32::MIN, f32::MAX]), Ok(1));
    }

    #[test]
    fn logits_that_are_not_finite_choose_no_token() {
        // As long as a vector and a rest, the fault at either end.
        for place in [0, 18] {
            for (value, others, n_bad) in [
                (f32::NAN, 0.5, 1),
                (f32::INFINITY, 0.5, 1),
                (f32::NAN, f32::NAN, 19),
                (f32::NAN, f32::NEG_INFINITY, 19),
                (f32::NEG_INFINITY, f32::NEG_INFINITY, 19),
                (f32::INFINITY, f32::NAN, 19),
            ] {
                let mut logits = vec![others; 19];
                logits[place] = value;
                for mut sampler in [Sampler::new(Sampling::Greedy), random(0.7, Some(3), 0.9, 1)] {
                    assert_eq!(sampler.next(&logits), Err(NotFinite { n_bad, vocab: 19 }), "{value} among {others}");
                }
            }
        }
        assert_eq!(
            NotFinite { n_bad: 1, vocab: 19 }.to_string(),
            "1 of 19 logits are NaN or infinite, so that no next token can be chosen: the model's weights are damaged, or its \
             activations overflow f32; get the checkpoint again and, where it is quantized, quantize it again"
        );
    }

    #[test]
    fn a_token_that_is_ruled_out_is_never_drawn() {
        let mut sampler = random(1.0, None, 1.0, 2);
        assert!((0..200).all(|_| sampler.next(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.5]).unwrap() % 2 == 1));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let found = frequencies(random(1.0, None, 1.0, 7), 20_000);
        for (id, expected) in [(0, 0.125), (1, 0.5), (2, 0.125), (3, 0.25)] {
            // Six standard errors.
            assert!((found[&id] - expected).abs() < 0.022, "{id}: {found:?}");
        }
        // Probabilities squared: 16, 4, 1, 1 of 22.
        let sharper = frequencies(random(0.5, None, 1.0, 7), 20_000);
        assert!((sharper[&1] - 16.0 / 22.0).abs() < 0.022, "{sharper:?}");
    }

    #[test]
    fn top_k_keeps_k_and_one_is_greedy() {
        let one = frequencies(random(1.0, Some(1), 1.0, 3), 200);
        assert_eq!(one.keys().copied().collect::<Vec<_>>(), [1]);
        let two = frequencies(random(1.0, Some(2), 1.0, 3), 5_000);
        assert_eq!(two.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert!((two[&1] - 2.0 / 3.0).abs() < 0.04, "{two:?}");
        // Of equals the lower id stays.
        let three = frequencies(random(1.0, Some(3), 1.0, 3), 2_000);
        assert_eq!(three.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let kept = |top_p| frequencies(random(1.0, None, top_p, 5), 2_000).keys().copied().collect::<Vec<_>>();
        assert_eq!(kept(0.0), [1]);
        assert_eq!(kept(0.49), [1]);
        assert_eq!(kept(0.51), [1, 3]);
        assert_eq!(kept(0.74), [1, 3]);
        assert_eq!(kept(0.76), [0, 1, 3]);
        assert_eq!(kept(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_flat_distribution_is_sorted_as_far_as_top_p_needs() {
        // 2000 equal tokens: top-p keeps the lowest ids, far more than are sorted at first.
        let logits = vec![0.25; 2_000];
        let mut sampler = random(1.0, None, 0.6, 9);
        let drawn: Vec<u32> = (0..3_000).map(|_| sampler.next(&logits).unwrap()).collect();
        let highest = drawn.iter().max().copied();
        assert!(highest.is_some_and(|id| (1_150..=1_200).contains(&id)), "{highest:?}");
    }

    #[test]
    fn a_cold_draw_is_greedy_and_a_seed_repeats() {
        let cold = frequencies(random(1e-3, None, 1.0, 11), 500);
        assert_eq!(cold.keys().copied().collect::<Vec<_>>(), [1]);
        let draws = |seed| {
            let mut sampler = random(1.0, None, 1.0, seed);
            (0..40).map(|_| sampler.next(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}

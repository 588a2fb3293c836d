//! Texts on prompts that end before a stop string, as lm-eval's Hugging Face model writes them (0.4.13): the tokens of a text are
//! decoded by themselves, special ones left out, and what stands behind the first stop is cut away.
//!
//! Several texts are in the making at once, for a step reads all weights however many texts it is of. Which ones, changes no text.

use anyhow::Context;
use awq_core::decode::{Batch, DecodeModel, Sampler, Sampling};
use awq_core::load::Tokenizer;

use crate::tasks::generation::until;

/// Bytes of the keys and values of all texts in the making; those of one text may be more.
const CACHE_BYTES: usize = 2 << 30;

/// On how many prompts texts are in the making at once, where keys and values of one take `cache_bytes`.
pub fn n_at_once(cache_bytes: usize) -> usize {
    (CACHE_BYTES / cache_bytes.max(1)).clamp(1, Batch::MOST)
}

/// What is to be written on one prompt.
pub struct Assignment<'a> {
    /// Its tokens.
    pub prompt: &'a [u32],
    /// A text ends before the first of these.
    pub stops: &'a [String],
    /// Tokens of a text at most.
    pub max_tokens: usize,
    /// How each of its texts is drawn.
    pub texts: Vec<Sampling>,
}

impl Assignment<'_> {
    /// Tokens that are fed at most: what progress is counted in.
    pub fn n_tokens(&self) -> u64 {
        (self.prompt.len() + self.texts.len() * self.max_tokens) as u64
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Before the first stop.
    pub text: String,
    /// Tokens made, those of a stop counted, an end token not.
    pub n_tokens: usize,
}

/// A model that writes.
pub struct Writer<'m> {
    model: &'m DecodeModel,
    tokenizer: &'m Tokenizer,
    /// Tokens that end a text.
    end_ids: Vec<u32>,
    /// Prompts on which texts are in the making at once, at most; as many as memory allows where it does not say.
    n_at_once: Option<usize>,
}

impl<'m> Writer<'m> {
    /// On as many prompts at once as memory allows.
    pub fn new(model: &'m DecodeModel, tokenizer: &'m Tokenizer) -> Self {
        let end_ids = model.config().eos_ids.iter().copied().chain(tokenizer.eos()).collect();
        Self { model, tokenizer, end_ids, n_at_once: None }
    }

    /// Writes all texts of all assignments, in their order. `advance` hears how many more of their tokens ([`Assignment::n_tokens`]) are
    /// done, or are not needed.
    ///
    /// # Errors
    /// Names the problem, or those that took a step together: a prompt that does not fit, a token that the model does not have, logits that
    /// are not finite, or a tokenizer that fails.
    pub fn write(
        &self,
        assignments: &[Assignment<'_>],
        advance: &mut dyn FnMut(u64),
    ) -> anyhow::Result<Vec<Vec<Text>>> {
        let capacity = capacity(assignments);
        let n_at_once = self.n_at_once.unwrap_or_else(|| n_at_once(self.model.cache_bytes(capacity)));
        let n_places = n_at_once.min(assignments.len()).max(1);
        let mut batch = Batch::new(self.model, n_places, capacity)?;
        let n_shared = shared_tokens(assignments);
        let mut written: Vec<Vec<Text>> = assignments.iter().map(|_| Vec::new()).collect();
        let mut waiting = assignments.iter().enumerate();
        let mut places: Vec<Option<Place<'_>>> = (0..n_places).map(|_| None).collect();
        loop {
            for (place_idx, place) in places.iter_mut().enumerate() {
                while place.is_none()
                    && let Some((problem_idx, assignment)) = waiting.next()
                {
                    // What was read here last begins alike.
                    batch.truncate(place_idx, n_shared);
                    let n_kept = batch.len_of(place_idx);
                    let on_problem = || format!("problem {problem_idx}");
                    let logits = batch.feed(place_idx, &assignment.prompt[n_kept..]).with_context(on_problem)?;
                    let mut new = Place::new(problem_idx, assignment, logits.to_vec());
                    advance(assignment.prompt.len() as u64);
                    if self.begin(&mut new, &mut written[problem_idx], advance).with_context(on_problem)? {
                        *place = Some(new);
                    }
                }
            }
            let next: Vec<Option<u32>> = places.iter().map(|place| place.as_ref().map(|place| place.next)).collect();
            if next.iter().all(Option::is_none) {
                return Ok(written);
            }
            let on_problems = || {
                let busy = places.iter().flatten().map(|place| place.problem_idx.to_string());
                format!("problems {}", busy.collect::<Vec<_>>().join(", "))
            };
            let logits = batch.step(&next).with_context(on_problems)?.to_vec();
            let rows = logits.chunks_exact(self.model.config().vocab_size);
            let busy = places.iter_mut().enumerate().filter(|(_, place)| place.is_some());
            for ((place_idx, slot), logits) in busy.zip(rows) {
                let Some(place) = slot else { continue };
                let problem_idx = place.problem_idx;
                let on_problem = || format!("problem {problem_idx}");
                let of_problem = &mut written[problem_idx];
                place.n_fed += 1;
                advance(1);
                if self.go_on(place, logits).with_context(on_problem)? {
                    continue;
                }
                of_problem.push(self.finished(place, advance).with_context(on_problem)?);
                batch.truncate(place_idx, place.assignment.prompt.len());
                if !self.begin(place, of_problem, advance).with_context(on_problem)? {
                    *slot = None;
                }
            }
        }
    }

    /// Begins the next text of a place; texts that end before their first step are finished. Whether there is one to go on with.
    fn begin(
        &self,
        place: &mut Place<'_>,
        written: &mut Vec<Text>,
        advance: &mut dyn FnMut(u64),
    ) -> anyhow::Result<bool> {
        let texts = &place.assignment.texts;
        while let Some(sampling) = texts.get(written.len()) {
            place.sampler = Sampler::new(*sampling);
            place.ids.clear();
            place.n_fed = 0;
            let logits = std::mem::take(&mut place.prompt_logits);
            let goes_on = self.go_on(place, &logits);
            place.prompt_logits = logits;
            if goes_on? {
                return Ok(true);
            }
            written.push(self.finished(place, advance)?);
        }
        Ok(false)
    }

    /// Takes the token that follows; whether one is to be fed.
    fn go_on(&self, place: &mut Place<'_>, logits: &[f32]) -> anyhow::Result<bool> {
        let Assignment { stops, max_tokens, .. } = place.assignment;
        place.next = place.sampler.next(logits)?;
        if place.ids.len() == *max_tokens || self.end_ids.contains(&place.next) {
            return Ok(false);
        }
        place.ids.push(place.next);
        if place.ids.len() == *max_tokens {
            return Ok(false);
        }
        // A stop may be spelled by a special token, which is no part of the text.
        let spelled = self.tokenizer.decode(&place.ids)?;
        let end = self.spelled_end();
        Ok(!stops.iter().chain(&end).any(|stop| spelled.contains(stop.as_str())))
    }

    fn finished(&self, place: &Place<'_>, advance: &mut dyn FnMut(u64)) -> anyhow::Result<Text> {
        advance((place.assignment.max_tokens - place.n_fed) as u64);
        let plain: Vec<u32> = place.ids.iter().copied().filter(|&id| !self.tokenizer.is_special(id)).collect();
        let text = self.tokenizer.decode(&plain)?;
        let stops: Vec<String> = place.assignment.stops.iter().cloned().chain(self.spelled_end()).collect();
        Ok(Text { text: until(&text, &stops).to_owned(), n_tokens: place.ids.len() })
    }

    /// The end token as text, which ends a text that spells it.
    fn spelled_end(&self) -> Option<String> {
        self.tokenizer.eos().and_then(|id| self.tokenizer.token(id))
    }
}

/// A text in the making.
struct Place<'a> {
    problem_idx: usize,
    assignment: &'a Assignment<'a>,
    /// Logits behind the prompt.
    prompt_logits: Vec<f32>,
    sampler: Sampler,
    /// Tokens of the text.
    ids: Vec<u32>,
    /// The one that is fed next.
    next: u32,
    /// Those that were fed.
    n_fed: usize,
}

impl<'a> Place<'a> {
    fn new(problem_idx: usize, assignment: &'a Assignment<'a>, prompt_logits: Vec<f32>) -> Self {
        Self {
            problem_idx,
            assignment,
            prompt_logits,
            sampler: Sampler::new(Sampling::Greedy),
            ids: Vec::new(),
            next: 0,
            n_fed: 0,
        }
    }
}

/// Tokens of the longest prompt with a text on it.
fn capacity(assignments: &[Assignment<'_>]) -> usize {
    assignments.iter().map(|one| one.prompt.len() + one.max_tokens).max().unwrap_or(0)
}

/// Tokens that all prompts begin with and that need to be read once, see [`Batch::PROMPT_PIECE`]; a last token is left to be fed.
fn shared_tokens(assignments: &[Assignment<'_>]) -> usize {
    let Some((first, others)) = assignments.split_first() else { return 0 };
    let alike = |other: &Assignment<'_>| {
        let n_alike = first.prompt.iter().zip(other.prompt).take_while(|(a, b)| a == b).count();
        n_alike.min(other.prompt.len().saturating_sub(1))
    };
    let n_alike = others.iter().map(alike).min().unwrap_or(0).min(first.prompt.len().saturating_sub(1));
    n_alike / Batch::PROMPT_PIECE * Batch::PROMPT_PIECE
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// More problems than places, prompts that begin alike and are longer than a piece, several texts on each, and a text that ends with
    /// its first token.
    #[test]
    fn texts_do_not_depend_on_how_many_are_written_at_once() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bundled");
        let opened = awq_core::open::open_model(&folder).unwrap();
        let exact = awq_core::decode::DecodeOptions::EXACT;
        let model = DecodeModel::load(opened.config.clone(), opened.checkpoint.as_ref(), &exact).unwrap();
        let ids = |text: String| opened.tokenizer.encode(&text).unwrap();
        let text = crate::bundled::bundled_text(crate::bundled::Split::Test, 6);
        let (shown, rest) = text.split_at(text.char_indices().nth(1500).unwrap().0);
        let prompts: Vec<Vec<u32>> = (0..7).map(|i| ids(format!("{shown}{}", &rest[..20 + 11 * i]))).collect();
        assert!(prompts.iter().all(|prompt| prompt.len() > Batch::PROMPT_PIECE), "{}", prompts[0].len());
        let stops = [" the".to_owned()];
        let random =
            |seed| awq_core::decode::sample::RandomSampling { temperature: 1.0, top_k: None, top_p: 0.9, seed };
        let assignments: Vec<Assignment<'_>> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| Assignment {
                prompt,
                stops: &stops[..i % 2],
                max_tokens: 1 + 5 * i,
                texts: vec![Sampling::Greedy, Sampling::Random(random(i as u64))],
            })
            .collect();
        assert_eq!(shared_tokens(&assignments), Batch::PROMPT_PIECE);
        let write = |n_at_once| {
            let mut n_told = 0;
            let writer = Writer { n_at_once: Some(n_at_once), ..Writer::new(&model, &opened.tokenizer) };
            let written = writer.write(&assignments, &mut |n| n_told += n).unwrap();
            assert_eq!(n_told, assignments.iter().map(Assignment::n_tokens).sum::<u64>());
            written
        };
        let all = write(Batch::MOST);
        assert!(all.iter().all(|texts| texts.len() == 2) && all[6][0].n_tokens > 5);
        assert_eq!(write(1), all);
        assert_eq!(write(3), all);
    }

    #[test]
    fn prompts_share_whole_pieces_and_never_their_last_token() {
        let (piece, empty) = (Batch::PROMPT_PIECE, Vec::new());
        let shared = |prompts: &[Vec<u32>]| {
            let assignment =
                |prompt| Assignment { prompt, stops: empty.as_slice(), max_tokens: 1, texts: vec![Sampling::Greedy] };
            shared_tokens(&prompts.iter().map(|prompt| assignment(prompt.as_slice())).collect::<Vec<_>>())
        };
        let prompt = |n_alike: usize, n: usize, other: u32| -> Vec<u32> {
            (0..n).map(|i| if i < n_alike { 7 } else { other }).collect()
        };
        assert_eq!(shared(&[]), 0);
        assert_eq!(shared(&[prompt(piece + 9, piece + 20, 1), prompt(piece + 9, piece + 30, 2)]), piece);
        assert_eq!(shared(&[prompt(piece - 1, piece + 20, 1), prompt(piece - 1, piece + 30, 2)]), 0);
        let twice = prompt(2 * piece, 2 * piece, 1);
        assert_eq!(shared(&[twice.clone(), twice.clone()]), piece);
        assert_eq!(shared(&[twice.clone(), prompt(2 * piece, 2 * piece + 1, 1)]), piece);
        assert_eq!(shared(&[prompt(2 * piece, 3 * piece, 1), prompt(2 * piece, 3 * piece, 1), twice]), piece);
    }
}

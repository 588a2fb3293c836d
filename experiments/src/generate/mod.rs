//! Text from a model: a prompt through prefill, tokens one by one, and what that took.

pub mod chat;
pub mod stream;
pub mod write;

use std::num::NonZeroU16;
use std::time::Instant;

use awq_core::decode::{Sampler, Session};
use awq_core::grid::{Bits, Granularity, Grid};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    EndToken,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The session has no room.
    ContextFull,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Wall time of the prompt's pass, which gives the first token.
    pub prefill_seconds: f64,
    /// Tokens made, an end token not counted.
    pub n_generated: usize,
    /// Tokens that took a step of their own: all but the first, and an end token.
    pub n_steps: usize,
    /// Wall time of these steps, sampling included.
    pub decode_seconds: f64,
    /// Why it ended.
    pub stop: Stop,
}

impl Generation {
    /// `prefill 12 tokens in 0.031 s (387 tokens/s), decode 64 tokens at 98.1 tokens/s`.
    pub fn describe(&self) -> String {
        let rate = |n: usize, seconds: f64| n as f64 / seconds.max(1e-9);
        format!(
            "prefill {} tokens at {:.1} tokens/s, first token after {:.3} s; decode {} tokens at {:.1} tokens/s",
            self.n_prompt,
            rate(self.n_prompt, self.prefill_seconds),
            self.prefill_seconds,
            self.n_steps,
            rate(self.n_steps, self.decode_seconds),
        )
    }
}

/// The grid of a head that is rounded to `bits`: groups small enough that 4 bits hurt little, for the head's scales are a
/// small part of it.
pub fn head_grid(bits: Bits) -> Grid {
    const GROUP_SIZE: NonZeroU16 = NonZeroU16::new(32).expect("32 is not 0");
    Grid::awq(bits, Granularity::PerGroup(GROUP_SIZE))
}

/// Feeds `prompt` and hands at most `max_tokens` tokens to `on_token`, until one of `end_ids` comes.
///
/// # Errors
/// A prompt that does not fit, logits that are not finite, or an error of `on_token`.
pub fn generate(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    prompt: &[u32],
    max_tokens: usize,
    end_ids: &[u32],
    on_token: &mut dyn FnMut(u32) -> anyhow::Result<()>,
) -> anyhow::Result<Generation> {
    let start = Instant::now();
    let mut next = sampler.next(session.feed(prompt)?)?;
    let prefill_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (mut n_generated, mut n_steps) = (0, 0);
    let stop = loop {
        if end_ids.contains(&next) {
            break Stop::EndToken;
        }
        if n_generated == max_tokens {
            break Stop::MaxTokens;
        }
        n_generated += 1;
        on_token(next)?;
        if n_generated == max_tokens {
            break Stop::MaxTokens;
        }
        if session.len() == session.capacity() {
            break Stop::ContextFull;
        }
        next = sampler.next(session.feed(&[next])?)?;
        n_steps += 1;
    };
    let decode_seconds = start.elapsed().as_secs_f64();
    Ok(Generation { n_prompt: prompt.len(), prefill_seconds, n_generated, n_steps, decode_seconds, stop })
}

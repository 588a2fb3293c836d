//! Measurements of a model, quantized or not: one metric a file, and a line in [`registry`].
//!
//! ```text
//! text --windows--> windows of tokens --score--> one value a token of each metric --scores--> samples, one a window, document
//!                                                                                          or question
//! ```
//! One pass over the blocks ([`score`]) feeds all metrics that are asked of a text ([`metric`]). On the problems of a task a model
//! writes ([`crate::session`]), and metrics judge what it wrote.

pub mod accuracy;
mod arithmetic;
mod base_model;
mod batch;
pub mod bits_per_byte;
pub mod byte_perplexity;
pub mod documents;
pub mod flexible_extract;
pub mod greedy_accuracy;
pub mod kl_divergence;
pub mod kl_max;
pub mod kl_quantiles;
pub mod metric;
pub mod next_token_accuracy;
pub mod normalized_accuracy;
pub mod pass_at_k;
pub mod perplexity;
mod problems;
mod questions;
pub mod registry;
pub mod rms_probability_change;
pub mod score;
pub mod scores;
pub mod strict_match;
pub mod target_nll;
pub mod target_perplexity;
pub mod top_token_agreement;
pub mod windows;
pub mod word_perplexity;

pub use self::arithmetic::ScoringArithmetic;
pub use self::base_model::BaseModel;
pub use self::documents::Document;

#[cfg(test)]
mod tests;

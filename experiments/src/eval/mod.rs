//! Measurements of a model, quantized or not: one metric a file, and a line in [`registry`].
//!
//! ```text
//! text --windows--> windows of tokens --score--> one value a token of each metric --scores--> samples, one a window or document
//! ```
//! One pass over the blocks ([`score`]) feeds all metrics that are asked of a text ([`metric`]).

mod base_model;
pub mod bits_per_byte;
pub mod byte_perplexity;
pub mod documents;
pub mod kl_divergence;
pub mod metric;
pub mod next_token_accuracy;
pub mod perplexity;
pub mod registry;
pub mod score;
pub mod scores;
pub mod top_token_agreement;
pub mod windows;
pub mod word_perplexity;

pub use self::base_model::BaseModel;
pub use self::documents::Document;

#[cfg(test)]
mod tests;

//! Measurements of a model, quantized or not: one metric a file.

pub mod perplexity;

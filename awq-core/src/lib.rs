//! Activation-aware Weight Quantization (AWQ) on burn tensors, generic over the backend.
//!
//! The data flow, and the files to read in this order: [`grid`] (what codes exist), [`model`] (a decoder as a list of
//! blocks), [`capture`] (what linears see), [`method`] (from what is known of a block to an edit of it), [`awq`], and
//! [`driver`] (the block loop, the only place where a model changes).
//!
//! This crate writes no file and knows no experiment.

pub mod activation;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions that Rust has no names for, unsafe until their presence is known")]
mod amx;
pub mod arithmetic;
pub mod awq;
pub mod backend;
pub mod capture;
pub mod codebook;
pub mod decode;
pub mod driver;
pub mod fold;
pub mod formats;
pub mod grid;
pub mod grids;
#[macro_use]
pub mod host;
pub mod kernel;
pub mod load;
pub mod log;
pub mod method;
pub mod model;
pub mod numbers;
pub mod open;
pub mod pack;
pub mod progress;
pub mod quantized;
pub mod rotation;
pub mod rule;
mod scale_range;
pub mod shared;
pub mod transform;

//! Activation-aware Weight Quantization on burn tensors.

pub mod driver;
pub mod grid;
pub mod load;
pub mod log;

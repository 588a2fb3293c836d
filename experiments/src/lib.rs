//! TOML-configured quantization experiments.

pub mod bundled;

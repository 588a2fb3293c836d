//! TOML-configured quantization experiments.

pub mod bundled;
pub mod config;
pub mod plan;
pub mod provenance;
pub mod record;
pub mod registry;
pub mod report;
pub mod stats;

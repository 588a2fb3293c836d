//! Quantization experiments from TOML files: what is asked, what is run, what is recorded, what is shown.
//!
//! ```text
//! configs/x.toml -> config -> plan -> runner (session) -> record (records.jsonl) -> report (tables, figures)
//! ```
//! Nothing to the right is imported by anything to the left: `plan` opens nothing, `report` loads no model.

pub mod assets;
pub mod bundled;
pub mod cli;
pub mod cluster;
pub mod codes;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
mod encoding;
pub mod eval;
mod files;
pub mod forecast;
pub mod generate;
mod guard;
mod inputs;
pub mod inspect;
pub mod limit;
pub mod need;
pub mod packed;
pub mod plan;
pub mod progress;
pub mod provenance;
pub mod quantize;
pub mod record;
pub mod registry;
pub mod report;
pub mod runner;
pub mod sandbox;
pub mod session;
pub mod speed;
pub mod stats;
pub mod tasks;
mod unfinished;
pub mod verify;

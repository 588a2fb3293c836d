//! TOML-configured quantization experiments.

pub mod bundled;
pub mod config {
    //! What TOML may say.
    pub mod sources;
}
pub mod assets;
pub mod data;
pub mod provenance;

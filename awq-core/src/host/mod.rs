//! Single-pass CPU loops behind [`crate::backend::QuantBackend`], over plain row-major f32 slices.
//!
//! `pulp` compiles each loop for AVX-512, AVX2 and the portable baseline and picks at run time. Work is split into chunks
//! whose bounds depend on the shape alone and sums stay inside a chunk, so thread count never changes a bit.

pub mod attention;
pub mod clip;
pub mod elementwise;
pub mod exp;
pub mod gram;
pub mod grid;

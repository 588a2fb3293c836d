//! The program from outside, on a model so small that each run takes a moment: what it prints, what it leaves behind, and
//! what it says to bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, missing_docs)]

mod bad_config;
mod bad_data;
mod bad_model;
mod by_others;
mod cluster;
mod codes;
mod commands;
mod comparing;
mod decoding;
mod devices;
mod draws;
mod exporting;
mod families;
mod generation;
mod gguf;
mod gpu_check;
mod grids;
mod inspecting;
mod interruption;
mod keeping;
mod metrics;
mod older_files;
mod packing;
mod parts;
mod records;
mod replaced;
mod speed;
mod support;
mod tasks;

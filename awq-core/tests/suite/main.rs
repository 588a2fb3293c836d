//! Properties, identities and differential tests of the public interface, in one binary (one link for all of them).
#![allow(clippy::unwrap_used)]

mod awq;
mod awq_losses;
mod by_others;
mod codebooks;
mod decode;
mod driver;
mod experts;
mod families;
mod fixture;
mod fold;
mod gguf;
mod grid;
mod kernels;
mod loops;
mod multimodal;
mod oracle;
mod pickled;
mod rules;
mod salient;
mod scaled;
mod support;
mod tensors;
mod threads;
mod tokenizers;
mod windows;

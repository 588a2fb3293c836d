//! GGUF, which llama.cpp loads: linears in the types of ggml whose blocks have one scale in f16 (MXFP4: a power of two).
//!
//! | type | bits a weight | a code stands for | holds |
//! |---|--:|---|---|
//! | Q4_0 | 4.5 | `(q - 8) * d` | steps of -8 to 7 from zero: 4 bits with a fixed zero, 3 and 2 bits |
//! | Q4_1 | 5 | `q * d + m`, `m` in f16 | 4 bits, where every `m = -zero_point * d` is a number of f16 |
//! | Q5_0 | 5.5 | `(q - 16) * d` | steps of -16 to 15: 4 bits with any zero point, 5 bits with a fixed zero |
//! | Q5_1 | 6 | `q * d + m` | 5 bits, as Q4_1 |
//! | Q8_0 | 8.5 | `q * d` | steps of -128 to 127: all up to 7 bits, 8 bits with a fixed zero |
//! | TQ2_0 | 2.06 | `(q - 1) * d`, blocks of 256 | ternary codes |
//! | MXFP4 | 4.25 | `e2m1[q] * 2^(e - 127)` | its own grid |
//!
//! A product of a zero point and a scale has up to 8 bits more than the scale, which f16 rarely has room for: asymmetric codes of 4 bits
//! are in Q5_0 as a rule, bit for bit. A tensor gets the smallest type that holds every code of it ([`Needs`]). Groups of several
//! blocks repeat their scale. Source: `ggml-common.h` and `ggml-quants.c` of llama.cpp b10605.

mod blocks;
mod needs;
#[cfg(test)]
mod tests;
mod types;

use serde_json::Value as Json;

pub use self::blocks::blocks;
pub use self::needs::Needs;
pub use self::types::GgmlType;
pub(crate) use self::types::type_name;
use super::{
    Container, Format, FormatTensor, Plan, PlannedLinear, group_size, holds_beside, holds_order, holds_scales,
};
use crate::codebook::Codebook;
use crate::grid::{Grid, ScaleDtype, Symmetry};
use crate::quantized::{QuantizedWeight, StoredParts};

/// Weights of a block of the types for evenly spaced codes.
const BLOCK: usize = 32;

/// See the module.
pub struct Gguf;

impl Format for Gguf {
    fn key(&self) -> &'static str {
        "gguf"
    }

    fn about(&self) -> &'static str {
        "one GGUF file for llama.cpp: 2 to 7 bits, 8 with a fixed zero, MXFP4, ternary; groups of whole blocks of 32 inputs"
    }

    fn container(&self) -> Container {
        Container::File
    }

    fn holds(&self, linear: &PlannedLinear, stored: StoredParts) -> Result<(), String> {
        holds_beside(stored)?;
        holds_values(&linear.grid)?;
        holds_order(&linear.grid, stored)?;
        let n_in = linear.shape[1];
        if !n_in.is_multiple_of(BLOCK) {
            return Err(format!("its blocks are of {BLOCK} inputs, which do not divide {n_in}"));
        }
        match usize::try_from(group_size(&linear.grid)) {
            Ok(size) if size < n_in && !size.is_multiple_of(BLOCK) => {
                Err(format!("groups of {size} are not made of blocks of {BLOCK} inputs (--group-size may)"))
            }
            _ => Ok(()),
        }
    }

    fn holds_all(&self, _: &Plan) -> Result<(), String> {
        Ok(())
    }

    /// Nothing: a file has no `config.json`.
    fn settings(&self, _: &Plan) -> Json {
        Json::Null
    }

    fn tensors(&self, weight: &QuantizedWeight) -> Vec<FormatTensor> {
        let Some(ggml_type) = Needs::of(weight).smallest() else { return Vec::new() };
        vec![FormatTensor {
            part: "weight",
            dtype: ggml_type.name(),
            shape: vec![weight.n_out, weight.n_in],
            bytes: blocks(weight, ggml_type),
        }]
    }
}

/// Codes, their range, and the type of scales.
fn holds_values(grid: &Grid) -> Result<(), String> {
    match (grid.values, grid.scale_dtype) {
        (Some(Codebook::E2m1), ScaleDtype::E8m0) => Ok(()),
        (Some(Codebook::E2m1), _) => Err("e2m1 has scales in e8m0 there (--scale-dtype)".into()),
        (Some(values @ Codebook::Nf4), _) => Err(format!(
            "it has evenly spaced codes, E2M1 and ternary ones, not those of the table {}",
            values.facts().name
        )),
        (Some(Codebook::Ternary) | None, _) => holds_scales(grid).and_then(|()| {
            match grid.symmetry {
            Symmetry::Asymmetric if grid.bits.get() == 8 => Err(
                "its Q8_0 goes from -128 to 127 steps around zero, and 8 bits with free zero points to 255 (7 bits, or \
                 --symmetry restricted)"
                    .into(),
            ),
            _ => Ok(()),
        }
        }),
    }
}

/// The zero points of rows where a grid has any, or the code that stands for 0.
fn zero_points(weight: &QuantizedWeight) -> (Vec<f32>, Vec<u8>) {
    let (scales, mut zero_points) = super::of_rows(weight);
    match weight.grid.values {
        None => {}
        // Of an odd number of values that are their own mirror image.
        Some(values) => zero_points.fill((values.facts().values.len() / 2) as u8),
    }
    (scales, zero_points)
}

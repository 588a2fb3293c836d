//! AutoAWQ's GEMM layout, which vLLM, transformers and TGI load: 4 bits, `weight = (code - zero_point) * scale`.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[n_in, n_out / 8]` | bits `4i` of a word are the code of output `8c + ORDER[i]` |
//! | `qzeros` | I32 | `[n_groups, n_out / 8]` | as `qweight` |
//! | `scales` | F16 | `[n_groups, n_out]` | |
//!
//! Source: AutoAWQ 0.2.9, `awq/modules/linear/gemm.py` and `awq/utils/packing_utils.py`. Its group size divides the inputs.

use serde_json::{Value as Json, json};

use super::{
    Format, FormatTensor, Plan, PlannedLinear, group_size, holds_codes, holds_order, holds_scales, in_order_of_inputs,
    n_groups, of_rows, tensor_of_halves, tensor_of_words, transposed,
};
use crate::quantized::{QuantizedWeight, StoredParts};
use crate::rule::HEAD;

/// Codes of a word.
pub(crate) const PER_WORD: usize = 8;
/// The output channels of a word's codes, lowest bits first.
const ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];
const BITS: u8 = 4;

/// See the module.
pub struct Gemm;

impl Format for Gemm {
    fn key(&self) -> &'static str {
        "awq"
    }

    fn about(&self) -> &'static str {
        "AutoAWQ's GEMM layout, for vLLM, transformers and TGI: 4 bits, groups that divide the inputs"
    }

    fn holds(&self, linear: &PlannedLinear, stored: StoredParts) -> Result<(), String> {
        holds_codes(linear, stored)?;
        holds_scales(&linear.grid)?;
        let ([n_out, n_in], grid) = (linear.shape, linear.grid);
        if grid.bits.get() != BITS {
            return Err(format!("it has {BITS} bits, not {}", grid.bits.get()));
        }
        holds_order(&grid, stored)?;
        if n_out % PER_WORD != 0 {
            return Err(format!("its words hold the codes of {PER_WORD} output channels, which do not divide {n_out}"));
        }
        let size = usize::try_from(group_size(&grid)).unwrap_or(n_in);
        match n_in % size {
            0 => Ok(()),
            _ => Err(format!("groups of {size} do not divide {n_in} input channels (--group-size may)")),
        }
    }

    fn holds_all(&self, plan: &Plan) -> Result<(), String> {
        if let Some((name, linear)) = plan.on_other_grids().next() {
            return Err(format!("all its linears have one grid, and {name} has {}", linear.grid.label()));
        }
        match plan.linears.contains_key(HEAD) {
            true => Err(format!("loaders keep `{HEAD}` in full precision")),
            false => Ok(()),
        }
    }

    fn settings(&self, plan: &Plan) -> Json {
        // Loaders leave the head out by themselves, and where they are told of any linears.
        let kept: Vec<&str> = plan.others.iter().map(String::as_str).filter(|name| *name != HEAD).collect();
        let not_converted = if kept.is_empty() { Json::Null } else { json!([kept, vec![HEAD]].concat()) };
        json!({
            "quant_method": "awq",
            "bits": BITS,
            "group_size": plan.main_grid().as_ref().map_or(-1, group_size),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": not_converted,
        })
    }

    fn tensors(&self, weight: &QuantizedWeight) -> Vec<FormatTensor> {
        let (n_out, n_in, n_groups) = (weight.n_out, weight.n_in, n_groups(weight));
        let (scales, zero_points) = of_rows(weight);
        let codes = pack(&transposed(&in_order_of_inputs(weight).0, n_in));
        let zero_points = pack(&transposed(&zero_points, n_groups));
        vec![
            tensor_of_words("qweight", [n_in, n_out / PER_WORD], &codes),
            tensor_of_words("qzeros", [n_groups, n_out / PER_WORD], &zero_points),
            tensor_of_halves("scales", [n_groups, n_out], &transposed(&scales, n_groups)),
        ]
    }
}

/// Rows of codes, of which each word has 8.
fn pack(codes: &[u8]) -> Vec<u32> {
    let word = |codes: &[u8; PER_WORD]| {
        ORDER.iter().enumerate().fold(0, |word, (i, &place)| word | u32::from(codes[place]) << (i * usize::from(BITS)))
    };
    codes.as_chunks::<PER_WORD>().0.iter().map(word).collect()
}

/// The codes of words, row by row.
pub(crate) fn unpack(words: &[u32]) -> Vec<u8> {
    let mut codes = vec![0; words.len() * PER_WORD];
    for (word, codes) in words.iter().zip(codes.as_chunks_mut::<PER_WORD>().0) {
        for (i, &place) in ORDER.iter().enumerate() {
            codes[place] = (word >> (i * usize::from(BITS))) as u8 & 0xF;
        }
    }
    codes
}

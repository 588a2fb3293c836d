//! GPTQ's layout, as AutoGPTQ, GPTQModel, vLLM and ExLlama have it: 2, 3, 4 and 8 bits, `weight = (code - zero_point) * scale`.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[n_in * bits / 32, n_out]` | a column is one string of bits along the inputs, lowest first |
//! | `qzeros` | I32 | `[n_groups, n_out * bits / 32]` | the same along the outputs |
//! | `scales` | F16 | `[n_groups, n_out]` | |
//! | `g_idx` | I32 | `[n_in]` | the group of each input channel; groups in the order of rounding are no runs |
//!
//! Version 1 stores zero points less one. A zero point of 0 then borrows: GPTQModel 7.7.0, the one writer that keeps such zero points,
//! takes one off every code of a word at once with 2, 4 and 8 bits, and wraps each code by itself with 3; what it writes is read by
//! adding one in the same way. A kernel that adds one to each code reads another zero point there: version 2 has the zero points
//! themselves. Source: GPTQModel 7.7.0, `gptqmodel/utils/model.py` (`convert_gptq_v1_to_v2_format_module`).

use serde_json::{Map, Value as Json, json};

use super::{
    Format, FormatTensor, Plan, PlannedLinear, group_size, holds_codes, holds_scales, in_order_of_inputs, is_symmetric,
    n_groups, of_rows, tensor_of_halves, tensor_of_words, transposed,
};
use crate::grid::Bits;
use crate::pack::PackLayout;
use crate::quantized::{QuantizedWeight, StoredParts};
use crate::rule::HEAD;

const WORD_BITS: usize = u32::BITS as usize;

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gptq {
    /// Less one.
    V1,
    /// As they are.
    V2,
}

/// `gptq`.
pub const V1: Gptq = Gptq::V1;
/// `gptq_v2`.
pub const V2: Gptq = Gptq::V2;

/// Whether the layout has codes of so many bits.
pub(crate) fn has_bits(bits: Bits) -> bool {
    [2, 3, 4, 8].contains(&bits.get())
}

impl Format for Gptq {
    fn key(&self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq_v2",
        }
    }

    fn about(&self) -> &'static str {
        match self {
            Self::V1 => {
                "GPTQ's layout, for vLLM, transformers and ExLlama, and for GPTQModel with a fixed zero: 2, 3, 4 or 8 bits"
            }
            Self::V2 => {
                "the same with zero points as they are, for GPTQModel, vLLM and transformers: right also where one is 0"
            }
        }
    }

    fn holds(&self, linear: &PlannedLinear, stored: StoredParts) -> Result<(), String> {
        holds_codes(linear, stored)?;
        holds_scales(&linear.grid)?;
        let bits = linear.grid.bits;
        if !has_bits(bits) {
            return Err(format!("it has 2, 3, 4 or 8 bits, not {}", bits.get()));
        }
        for (n, of) in linear.shape.into_iter().zip(["output", "input"]) {
            if n * usize::from(bits.get()) % WORD_BITS != 0 {
                return Err(format!("codes of {n} {of} channels in {} bits do not fill words of 32", bits.get()));
            }
        }
        Ok(())
    }

    fn holds_all(&self, plan: &Plan) -> Result<(), String> {
        // transformers 5.24 with GPTQModel 7.7 keeps a dense head, which the folder has no weight for: it is drawn at random.
        match plan.linears.contains_key(HEAD) {
            true => Err(format!("transformers does not read `{HEAD}` in it, and draws one at random")),
            false => Ok(()),
        }
    }

    fn notes(&self, plan: &Plan) -> Vec<String> {
        let is_free = plan.linears.values().any(|linear| !is_symmetric(&linear.grid));
        let note = "GPTQModel.load refuses version 1 of weights with free zero points, which vLLM and transformers load; `gptq_v2` \
                    loads in all of them (or a fixed zero, --symmetry full)";
        if *self == Self::V1 && is_free { vec![note.to_owned()] } else { Vec::new() }
    }

    fn settings(&self, plan: &Plan) -> Json {
        let grid = plan.main_grid();
        let symmetric = plan.linears.values().all(|linear| is_symmetric(&linear.grid));
        let mut settings = json!({
            "quant_method": "gptq",
            "method": "gptq",
            "format": self.key(),
            "checkpoint_format": self.key(),
            "bits": grid.map_or(4, |grid| grid.bits.get()),
            "group_size": grid.as_ref().map_or(-1, group_size),
            "desc_act": plan.stored.has_input_order,
            "sym": symmetric,
            "lm_head": plan.linears.contains_key(HEAD),
            "pack_dtype": "int32",
            "meta": { "quantizer": [plan.writer.replace(' ', ":")] },
        });
        let dynamic = dynamic(plan);
        if !dynamic.is_empty() {
            settings["dynamic"] = Json::Object(dynamic);
        }
        // transformers 5.24 knows no `dynamic`, and looks for codes of all linears but where this names them.
        if plan.others.iter().any(|name| name != HEAD) {
            let quantized: Vec<&String> = plan.linears.keys().filter(|name| *name != HEAD).collect();
            settings["modules_in_block_to_quantize"] = json!([quantized]);
        }
        settings
    }

    fn tensors(&self, weight: &QuantizedWeight) -> Vec<FormatTensor> {
        let QuantizedWeight { n_out, n_in, grid, .. } = weight;
        let (bits, n_groups) = (grid.bits, n_groups(weight));
        let (codes, groups) = in_order_of_inputs(weight);
        let words = PackLayout::Stream.pack(&codes, *n_in, bits);
        let n_words = words.len() / n_out;
        let (scales, zero_points) = of_rows(weight);
        let mut zero_words = PackLayout::Stream.pack(&transposed(&zero_points, n_groups), *n_out, bits);
        if *self == Self::V1 {
            less_one(&mut zero_words, *n_out, bits);
        }
        let n_zero_words = zero_words.len() / n_groups;
        vec![
            tensor_of_words("qweight", [n_words, *n_out], &transposed(&words, n_words)),
            tensor_of_words("qzeros", [n_groups, n_zero_words], &zero_words),
            tensor_of_halves("scales", [n_groups, *n_out], &transposed(&scales, n_groups)),
            FormatTensor {
                part: "g_idx",
                dtype: "I32",
                shape: vec![*n_in],
                bytes: groups.iter().flat_map(|group| group.to_le_bytes()).collect(),
            },
        ]
    }
}

/// What is said of linears that are quantized otherwise, as GPTQModel and vLLM read it: rules by regular expressions of names.
fn dynamic(plan: &Plan) -> Map<String, Json> {
    let pattern = |sign: char, name: &str| format!("{sign}:^{}$", name.replace('.', "\\."));
    let kept = plan.others.iter().filter(|name| *name != HEAD).map(|name| (pattern('-', name), json!({})));
    let others = plan.on_other_grids().map(|(name, linear)| {
        let of_grid = json!({
            "bits": linear.grid.bits.get(),
            "group_size": group_size(&linear.grid),
            "sym": is_symmetric(&linear.grid),
        });
        (pattern('+', name), of_grid)
    });
    kept.chain(others).collect()
}

/// A word whose codes are all 1; `None` where codes cross words.
fn ones(bits: Bits) -> Option<u32> {
    let bits = usize::from(bits.get());
    WORD_BITS.is_multiple_of(bits).then(|| (0..WORD_BITS / bits).fold(0, |word, i| word | 1 << (i * bits)))
}

/// Zero points to those of version 1, in rows of `n` codes.
pub(super) fn less_one(words: &mut [u32], n: usize, bits: Bits) {
    match ones(bits) {
        Some(ones) => words.iter_mut().for_each(|word| *word = word.wrapping_sub(ones)),
        None => each_code(words, n, bits, |code| code.wrapping_sub(1)),
    }
}

/// Zero points of version 1 to what they stand for, in rows of `n` codes.
pub(crate) fn plus_one(words: &mut [u32], n: usize, bits: Bits) {
    match ones(bits) {
        Some(ones) => words.iter_mut().for_each(|word| *word = word.wrapping_add(ones)),
        None => each_code(words, n, bits, |code| code.wrapping_add(1)),
    }
}

fn each_code(words: &mut [u32], n: usize, bits: Bits, change: impl Fn(u8) -> u8) {
    let codes = PackLayout::Stream.unpack(words, n, bits);
    let changed: Vec<u8> = codes.into_iter().map(|code| change(code) & bits.max_code()).collect();
    words.copy_from_slice(&PackLayout::Stream.pack(&changed, n, bits));
}

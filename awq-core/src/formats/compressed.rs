//! compressed-tensors' `pack-quantized`, which vLLM and transformers load: 2 to 8 bits, `weight = (code - zero_point) * scale`.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `weight_packed` | I32 | `[n_out, words]` | codes along the inputs, lowest bits first |
//! | `weight_scale` | F16, F32 | `[n_out, n_groups]` | |
//! | `weight_zero_point` | I32 | `[words, n_groups]` | along the outputs; only of asymmetric weights |
//! | `weight_shape` | I64 | `[2]` | `[n_out, n_in]` |
//!
//! A code is the signed integer of that program plus `2^(bits - 1)`, and so is a zero point. Codes of 3, 5, 6 and 7 bits are one
//! string of bits since 0.18.0; up to 0.17.1 a word has whole codes (3 bits: 10), under the same name of the format. Source:
//! compressed-tensors 0.20.0, `compressors/pack_quantized`, and what 0.17 and 0.20 write.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{
    Format, FormatTensor, Plan, PlannedLinear, group_size, holds_codes, holds_order, in_order_of_inputs, is_symmetric,
    n_groups, of_rows, tensor_of_halves, tensor_of_words, transposed,
};
use crate::grid::{Grid, ScaleDtype};
use crate::pack::PackLayout;
use crate::quantized::{QuantizedWeight, StoredParts};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackQuantized {
    key: &'static str,
    about: &'static str,
    /// The version that the folder names.
    version: &'static str,
    layout: PackLayout,
}

/// Since 0.18.0.
pub const DENSE: PackQuantized = PackQuantized {
    key: "compressed-tensors",
    about: "pack-quantized of compressed-tensors 0.18 and later, for vLLM and transformers: 2 to 8 bits",
    version: "0.20.0",
    layout: PackLayout::Stream,
};

/// Up to 0.17.
pub const WHOLE: PackQuantized = PackQuantized {
    key: "compressed-tensors-0.17",
    about: "the same for compressed-tensors up to 0.17, which has other words of 3, 5, 6 and 7 bits",
    version: "0.17.1",
    layout: PackLayout::Whole,
};

impl Format for PackQuantized {
    fn key(&self) -> &'static str {
        self.key
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn holds(&self, linear: &PlannedLinear, stored: StoredParts) -> Result<(), String> {
        holds_codes(linear, stored)?;
        holds_order(&linear.grid, stored)?;
        let (n_in, size) = (linear.shape[1], group_size(&linear.grid));
        // 0.20.0 refuses such groups as it reads them.
        match usize::try_from(size) {
            Ok(size) if n_in % size != 0 => {
                Err(format!("groups of {size} do not divide {n_in} input channels (--group-size may)"))
            }
            _ => Ok(()),
        }
    }

    fn holds_all(&self, _: &Plan) -> Result<(), String> {
        Ok(())
    }

    fn notes(&self, plan: &Plan) -> Vec<String> {
        let note = "config.json says bfloat16, in which transformers 5.24 then holds the scales too: weights there are off by 0.17% \
                    (root of the mean square; 0.43% at most) of what these scales say, and exact with dtype=torch.float16";
        if plan.dtype.as_deref() == Some("bfloat16") { vec![note.to_owned()] } else { Vec::new() }
    }

    fn settings(&self, plan: &Plan) -> Json {
        let main = plan.main_grid();
        let mut groups = Map::new();
        if let Some(grid) = &main {
            groups.insert("group_0".into(), self.group(grid, json!(["Linear"])));
        }
        let mut others: BTreeMap<Grid, Vec<&str>> = BTreeMap::new();
        for (name, linear) in plan.on_other_grids() {
            others.entry(linear.grid).or_default().push(name);
        }
        for (index, (grid, names)) in others.into_iter().enumerate() {
            groups.insert(format!("group_{}", index + 1), self.group(&grid, json!(names)));
        }
        json!({
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": plan.others,
            "global_compression_ratio": null,
            "kv_cache_scheme": null,
            "version": self.version,
        })
    }

    fn tensors(&self, weight: &QuantizedWeight) -> Vec<FormatTensor> {
        let QuantizedWeight { n_out, n_in, grid, .. } = weight;
        let n_groups = n_groups(weight);
        let words = self.layout.pack(&in_order_of_inputs(weight).0, *n_in, grid.bits);
        let (scales, zero_points) = of_rows(weight);
        let shape = [*n_out as u64, *n_in as u64];
        let mut tensors = vec![
            tensor_of_words("weight_packed", [*n_out, words.len() / n_out], &words),
            match grid.scale_dtype {
                ScaleDtype::F16 => tensor_of_halves("weight_scale", [*n_out, n_groups], &scales),
                _ => FormatTensor {
                    part: "weight_scale",
                    dtype: "F32",
                    shape: vec![*n_out, n_groups],
                    bytes: scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
                },
            },
            FormatTensor {
                part: "weight_shape",
                dtype: "I64",
                shape: vec![2],
                bytes: shape.iter().flat_map(|n| n.to_le_bytes()).collect(),
            },
        ];
        if !is_symmetric(grid) {
            let packed = self.layout.pack(&transposed(&zero_points, n_groups), *n_out, grid.bits);
            let n_words = packed.len() / n_groups;
            tensors.push(tensor_of_words("weight_zero_point", [n_words, n_groups], &transposed(&packed, n_words)));
        }
        tensors
    }
}

impl PackQuantized {
    /// Linears of one grid.
    fn group(&self, grid: &Grid, targets: Json) -> Json {
        let (strategy, size) = match group_size(grid) {
            -1 => ("channel", Json::Null),
            size => ("group", json!(size)),
        };
        let zero_points = if is_symmetric(grid) { Json::Null } else { json!("torch.int8") };
        json!({
            "targets": targets,
            "weights": {
                "num_bits": grid.bits.get(),
                "type": "int",
                "symmetric": is_symmetric(grid),
                "strategy": strategy,
                "group_size": size,
                "dynamic": false,
                "actorder": null,
                "block_structure": null,
                "observer": "minmax",
                "observer_kwargs": {},
                "scale_dtype": null,
                "zp_dtype": zero_points,
            },
            "input_activations": null,
            "output_activations": null,
            "format": "pack-quantized",
        })
    }
}

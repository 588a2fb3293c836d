//! [`GridFacts`]: the linears that methods quantize, on a grid: groups of a row, bits of a weight, bytes of the packed model.

use std::collections::BTreeMap;

use awq_core::grid::{Granularity, Grid, Symmetry};
use awq_core::load::{Checkpoint, ModelConfig};
use awq_core::model::wiring::Wiring;
use serde::Serialize;

use crate::packed::bytes_of_codes;

/// Linears of a model on a grid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GridFacts {
    /// The grid: `W4 g128`.
    pub grid: String,
    /// The linears; those of all blocks and experts that are alike are one row.
    pub linears: Vec<LinearRow>,
    /// Bits a weight: codes, and a scale and zero point a group.
    pub bits_per_weight: f64,
    /// Bytes of the packed model on disk, about: codes, scales, and 16 bits for each other value.
    pub packed_bytes: u64,
    /// AWQ's groups of linears that share a scale, in the order of the first block that has them.
    pub scale_groups: Vec<String>,
    /// Linears that AWQ scales in no group.
    pub unscaled: Vec<String>,
}

/// Linears of one name and shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinearRow {
    /// Name inside a block, `*` for the number of an expert.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// How many there are.
    pub count: usize,
    /// Groups of a row.
    pub n_groups: usize,
    /// Weights of the last group, where they are fewer than a group of the grid has.
    pub ragged: Option<usize>,
}

impl GridFacts {
    pub(super) fn of(wiring: &Wiring, config: &ModelConfig, checkpoint: &dyn Checkpoint, grid: &Grid) -> Self {
        let (linears, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            wiring.tensors(config).into_iter().partition(|(name, _)| wiring.quantizes(name));
        let other_values: u64 = others.values().map(|shape| n_values(shape)).sum();
        let names: Vec<String> = linears.into_keys().collect();
        let linears = rows(wiring, config, grid);
        let n_weights: u64 = linears.iter().map(LinearRow::n_weights).sum();
        let bits: u64 =
            linears.iter().map(|row| row.n_weights() * u64::from(grid.bits.get()) + row.group_bits(grid)).sum();
        let (scale_groups, unscaled) = scales(wiring);
        Self {
            grid: grid.label(),
            linears,
            bits_per_weight: bits as f64 / n_weights.max(1) as f64,
            packed_bytes: names.iter().map(|name| bytes_of_codes(checkpoint, name, grid)).sum::<u64>()
                + 2 * other_values,
            scale_groups,
            unscaled,
        }
    }
}

impl LinearRow {
    /// Weights of all of them.
    fn n_weights(&self) -> u64 {
        n_values(&self.shape) * self.count as u64
    }

    /// Bits of scales and zero points of all of them.
    fn group_bits(&self, grid: &Grid) -> u64 {
        let zero_point = match grid.symmetry {
            Symmetry::Asymmetric => u64::from(grid.bits.get()),
            Symmetry::SymmetricFullRange | Symmetry::SymmetricRestricted => 0,
        };
        let n_scales = match grid.granularity {
            Granularity::PerTensor => self.count,
            Granularity::PerChannel | Granularity::PerGroup(_) => self.count * self.shape[0] * self.n_groups,
        };
        n_scales as u64 * (u64::from(grid.scale_dtype.bits()) + zero_point)
    }
}

/// Number of values of a tensor.
pub(super) fn n_values(shape: &[usize]) -> u64 {
    shape.iter().map(|&dim| dim as u64).product()
}

fn rows(wiring: &Wiring, config: &ModelConfig, grid: &Grid) -> Vec<LinearRow> {
    let mut rows: Vec<LinearRow> = Vec::new();
    let tensors = wiring.tensors(config);
    for (block_idx, block) in wiring.blocks.iter().enumerate() {
        for facts in &block.layout.linears {
            let tensor = format!("{}.weight", wiring.linear(block_idx, facts.name));
            let Some(&[n_out, n_in]) = tensors.get(&tensor).map(Vec::as_slice) else { continue };
            let name = without_expert(facts.name.0, facts.expert);
            match rows.iter_mut().find(|row| row.name == name && row.shape == [n_out, n_in]) {
                Some(row) => row.count += 1,
                None => rows.push(row(name, [n_out, n_in], grid)),
            }
        }
    }
    rows
}

fn row(name: String, shape: [usize; 2], grid: &Grid) -> LinearRow {
    let n_in = shape[1];
    let n_groups = grid.granularity.n_groups(n_in);
    let ragged = match grid.granularity {
        Granularity::PerGroup(size) => Some(n_in % usize::from(size.get())).filter(|&rest| rest > 0),
        Granularity::PerTensor | Granularity::PerChannel => None,
    };
    LinearRow { name, shape, count: 1, n_groups, ragged }
}

/// A linear's name with `*` for the number of its expert.
fn without_expert(name: &str, expert: Option<usize>) -> String {
    match expert {
        Some(expert) => name.replacen(&format!(".{expert}."), ".*.", 1),
        None => name.to_owned(),
    }
}

/// Labels of AWQ's groups, and the linears that are in none.
fn scales(wiring: &Wiring) -> (Vec<String>, Vec<String>) {
    let (mut groups, mut unscaled) = (Vec::new(), Vec::new());
    let add = |list: &mut Vec<String>, name: String| {
        if !list.contains(&name) {
            list.push(name);
        }
    };
    for block in &wiring.blocks {
        let layout = &block.layout;
        let expert_of =
            |linear| layout.linears.iter().find(|facts| facts.name == linear).and_then(|facts| facts.expert);
        for group in &layout.scale_groups {
            let expert = group.linears.first().and_then(|&linear| expert_of(linear));
            add(&mut groups, without_expert(&group.label(), expert));
        }
        for facts in &layout.linears {
            if !layout.scale_groups.iter().any(|group| group.linears.contains(&facts.name)) {
                add(&mut unscaled, without_expert(facts.name.0, facts.expert));
            }
        }
    }
    (groups, unscaled)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use awq_core::grid::{Bits, Granularity, Grid};

    use super::*;

    fn grid(group_size: u16) -> Grid {
        let granularity = NonZeroU16::new(group_size).map_or(Granularity::PerChannel, Granularity::PerGroup);
        Grid::awq(Bits::new(4).expect("4 bits"), granularity)
    }

    #[test]
    fn a_group_that_is_not_full_is_ragged() {
        let of = |n_in, size| {
            let row = row("linear".into(), [8, n_in], &grid(size));
            (row.n_groups, row.ragged)
        };
        assert_eq!(of(576, 128), (5, Some(64)));
        assert_eq!(of(512, 128), (4, None));
        assert_eq!(of(96, 128), (1, Some(96)));
        assert_eq!(of(576, 0), (1, None));
    }

    #[test]
    fn bits_of_groups_are_those_of_a_quantized_weight() {
        let grid = grid(128);
        let row = row("linear".into(), [3, 576], &grid);
        let quantized = awq_core::quantized::QuantizedWeight {
            n_out: 3,
            n_in: 576,
            grid,
            codes: vec![0; 3 * 576],
            scale: vec![1.0; 15],
            zero_point: awq_core::quantized::ZeroPoints::Codes(vec![0; 15]),
            transform: awq_core::transform::WeightTransform::Identity,
        };
        assert_eq!(row.n_weights() * 4 + row.group_bits(&grid), quantized.stored_bits());
    }

    #[test]
    fn experts_have_no_number() {
        assert_eq!(without_expert("moe.experts.12.w1", Some(12)), "moe.experts.*.w1");
        assert_eq!(without_expert("self_attn.q_proj", None), "self_attn.q_proj");
    }
}

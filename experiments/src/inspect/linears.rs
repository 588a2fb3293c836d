//! [`GridFacts`]: the linears that methods quantize, on a grid: groups of a row, bits of a weight, bytes of the packed model.

use awq_core::grid::{Granularity, Grid, Symmetry};
use awq_core::load::{Checkpoint, ModelConfig};
use awq_core::model::wiring::Wiring;
use awq_core::rule::{GridRule, HEAD};
use serde::Serialize;

use crate::packed::bytes_of_codes;

/// Linears of a model on a grid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GridFacts {
    /// The grid of linears that have none of their own: `W4 g128`.
    pub grid: String,
    /// The linears, and the head where it is quantized; those of all blocks and experts that are alike are one row.
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
    /// Its grid; absent where it stays in full precision.
    pub grid: Option<String>,
    /// How many there are.
    pub count: usize,
    /// Groups of a row; 0 in full precision.
    pub n_groups: usize,
    /// Weights of the last group, where they are fewer than a group of the grid has.
    pub ragged: Option<usize>,
}

impl GridFacts {
    pub(super) fn of(wiring: &Wiring, config: &ModelConfig, checkpoint: &dyn Checkpoint, rule: &GridRule) -> Self {
        let tensors = wiring.tensors(config);
        let grid_of = |name: &str| match wiring.quantizable_linear(name) {
            Some(linear) => rule.grid_of(name.strip_suffix(".weight")?, linear.0),
            None => rule.head().filter(|_| Some(name) == wiring.head.as_deref()),
        };
        let bytes = |(name, shape): (&String, &Vec<usize>)| match grid_of(name) {
            Some(grid) => bytes_of_codes(checkpoint, name, grid),
            None => 2 * n_values(shape),
        };
        let rows = rows(wiring, config, rule);
        let quantized = || rows.iter().filter_map(|(row, grid)| Some((row, (*grid)?)));
        let bits =
            |(row, grid): (&LinearRow, &Grid)| row.n_weights() * u64::from(grid.bits.get()) + row.group_bits(grid);
        let n_bits: u64 = quantized().map(bits).sum();
        let n_weights: u64 = quantized().map(|(row, _)| row.n_weights()).sum();
        let (scale_groups, unscaled) = scales(wiring);
        Self {
            grid: rule.grid.label(),
            bits_per_weight: n_bits as f64 / n_weights.max(1) as f64,
            packed_bytes: tensors.iter().map(bytes).sum(),
            linears: rows.into_iter().map(|(row, _)| row).collect(),
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
        let of_matrix = u64::from(grid.scale_dtype.bits_of_matrix());
        n_scales as u64 * (u64::from(grid.scale_dtype.bits()) + zero_point) + self.count as u64 * of_matrix
    }
}

/// Number of values of a tensor.
pub(super) fn n_values(shape: &[usize]) -> u64 {
    shape.iter().map(|&dim| dim as u64).product()
}

/// Each row with its grid.
fn rows<'a>(wiring: &Wiring, config: &ModelConfig, rule: &'a GridRule) -> Vec<(LinearRow, Option<&'a Grid>)> {
    let mut rows: Vec<(LinearRow, Option<&Grid>)> = Vec::new();
    let tensors = wiring.tensors(config);
    let mut add = |name: String, tensor: &str, grid: Option<&'a Grid>| {
        let Some(&[n_out, n_in]) = tensors.get(tensor).map(Vec::as_slice) else { return };
        let one = row(name, [n_out, n_in], grid);
        match rows.iter_mut().find(|(known, _)| LinearRow { count: 1, ..known.clone() } == one) {
            Some((known, _)) => known.count += 1,
            None => rows.push((one, grid)),
        }
    };
    for (block_idx, block) in wiring.blocks.iter().enumerate() {
        for facts in &block.layout.linears {
            let linear = wiring.linear(block_idx, facts.name);
            let grid = rule.grid_of(&linear, facts.name.0);
            add(without_expert(facts.name.0, facts.expert), &format!("{linear}.weight"), grid);
        }
    }
    if let Some(grid) = rule.head() {
        add(HEAD.to_owned(), wiring.head.as_deref().unwrap_or(&wiring.embedding), Some(grid));
    }
    rows
}

fn row(name: String, shape: [usize; 2], grid: Option<&Grid>) -> LinearRow {
    let n_in = shape[1];
    let n_groups = grid.map_or(0, |grid| grid.granularity.n_groups(n_in));
    let ragged = match grid.map(|grid| grid.granularity) {
        Some(Granularity::PerGroup(size)) => Some(n_in % usize::from(size.get())).filter(|&rest| rest > 0),
        Some(Granularity::PerTensor | Granularity::PerChannel) | None => None,
    };
    LinearRow { name, shape, grid: grid.map(Grid::label), count: 1, n_groups, ragged }
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
    use awq_core::model::tiny::{self, TinySpec};
    use awq_core::model::wiring_of;
    use awq_core::rule::GridOverride;

    use super::*;

    fn grid(group_size: u16) -> Grid {
        let granularity = NonZeroU16::new(group_size).map_or(Granularity::PerChannel, Granularity::PerGroup);
        Grid::awq(Bits::new(4).expect("4 bits"), granularity)
    }

    #[test]
    fn a_group_that_is_not_full_is_ragged() {
        let of = |n_in, size| {
            let row = row("linear".into(), [8, n_in], Some(&grid(size)));
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
        let row = row("linear".into(), [3, 576], Some(&grid));
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
    fn linears_are_told_apart_by_their_grids() {
        let spec = TinySpec::MHA;
        let (config, checkpoint) = (spec.config(), tiny::checkpoint(&spec, 0));
        let wiring = wiring_of(&config, &checkpoint).expect("a tiny model");
        let one = |linears: &str, grid| GridOverride { linears: linears.into(), grid };
        let eight = Grid { bits: Bits::new(8).expect("8 bits"), ..grid(32) };
        let overrides =
            vec![one("model.layers.0.mlp.down_proj", Some(eight)), one("*.v_proj", None), one(HEAD, Some(eight))];
        let rule = GridRule { grid: grid(64), overrides };
        let facts = GridFacts::of(&wiring, &config, &checkpoint, &rule);
        let of = |name: &str| -> Vec<(Option<&str>, usize, usize)> {
            let rows = facts.linears.iter().filter(|row| row.name == name);
            rows.map(|row| (row.grid.as_deref(), row.count, row.n_groups)).collect()
        };
        let (n_blocks, n_groups) = (config.n_blocks, |n_in: usize, size| n_in.div_ceil(size));
        assert_eq!(of("self_attn.v_proj"), [(None, n_blocks, 0)]);
        let inner = config.intermediate_size;
        let down = [(Some("W8 g32"), 1, n_groups(inner, 32)), (Some("W4 g64"), n_blocks - 1, n_groups(inner, 64))];
        assert_eq!(of("mlp.down_proj"), down);
        assert_eq!(of(HEAD), [(Some("W8 g32"), 1, n_groups(config.hidden_size, 32))]);
        assert!((4.0..8.0).contains(&facts.bits_per_weight), "{}", facts.bits_per_weight);
    }

    #[test]
    fn experts_have_no_number() {
        assert_eq!(without_expert("moe.experts.12.w1", Some(12)), "moe.experts.*.w1");
        assert_eq!(without_expert("self_attn.q_proj", None), "self_attn.q_proj");
    }
}

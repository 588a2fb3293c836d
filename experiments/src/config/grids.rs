//! `[grids]`: the grids of an experiment as the product of lists, with overrides for some linears.

use std::fmt;

use anyhow::{bail, ensure};
use awq_core::codebook::Codebook;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::grids::RuleError;
use awq_core::rule::{GridOverride, GridRule, HEAD};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Lists whose product gives the grids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GridSweep {
    /// Bits of a code, for codes that are spaced evenly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bits: Vec<Bits>,
    /// Tables of values that codes stand for, beside `bits` or in their place: `"nf4"`, `"e2m1"`, `"ternary"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Codebook>,
    /// `"per_tensor"`, `"per_channel"` or `{ per_group = 128 }`.
    pub granularity: Vec<Granularity>,
    /// Where zero lies; with `bits` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    /// Whether a group's range is widened to hold zero (AWQ: false, GPTQ: true); with `bits` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_includes_zero: Option<bool>,
    /// How scales are stored.
    pub scale_dtype: ScaleDtype,
    /// Lists of overrides, each of which is tried with every grid; `[]` among them stands for none. In a list the first
    /// override whose pattern matches a linear decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Vec<OverrideSpec>>,
}

/// What becomes of the linears that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OverrideSpec {
    /// Pattern of names, in the checkpoint (`model.layers.0.*`) or in the block (`mlp.down_proj`); a `*` stands for any
    /// characters. It must match a linear of every model of the experiment.
    pub linears: String,
    /// Their grid.
    pub grid: GridChange,
}

/// Another grid for some linears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GridChange {
    /// `"full_precision"`: they are not quantized.
    FullPrecision,
    /// The keys in which their grid is another one.
    #[serde(untagged)]
    Keys(GridKeys),
}

/// Keys of a grid; one that is absent is as in the grid of the other linears.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GridKeys {
    /// Bits of a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<Bits>,
    /// A table of values, in place of codes that are spaced evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Codebook>,
    /// `"per_tensor"`, `"per_channel"` or `{ per_group = 128 }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
    /// Where zero lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    /// Whether a group's range is widened to hold zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_includes_zero: Option<bool>,
    /// How scales are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<ScaleDtype>,
}

/// By hand: an untagged enum would hide which key is wrong.
impl<'de> Deserialize<'de> for GridChange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Change;
        impl<'de> Visitor<'de> for Change {
            type Value = GridChange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`\"full_precision\"` or keys of a grid, such as `{ bits = 8 }`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<GridChange, E> {
                match text {
                    "full_precision" => Ok(GridChange::FullPrecision),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<GridChange, M::Error> {
                GridKeys::deserialize(MapAccessDeserializer::new(map)).map(GridChange::Keys)
            }
        }
        deserializer.deserialize_any(Change)
    }
}

impl GridKeys {
    /// `grid` with these keys. Codes that are spaced evenly take nothing over from a table of values but group and type of
    /// scale, and the reverse.
    fn on(&self, grid: Grid) -> Grid {
        let granularity = self.granularity.unwrap_or(grid.granularity);
        let scale_dtype = self.scale_dtype.unwrap_or(grid.scale_dtype);
        match (self.values, self.bits) {
            (Some(values), _) => Grid::of_codebook(values, granularity, scale_dtype),
            (None, None) if grid.values.is_some() => Grid { granularity, scale_dtype, ..grid },
            (None, bits) => Grid {
                bits: bits.unwrap_or(grid.bits),
                granularity,
                symmetry: self.symmetry.unwrap_or(grid.symmetry),
                range_includes_zero: self.range_includes_zero.unwrap_or(grid.range_includes_zero),
                scale_dtype,
                values: None,
            },
        }
    }

    /// Keys that do not go together.
    fn check(&self) -> Result<(), &'static str> {
        let is_even = self.bits.is_some() || self.symmetry.is_some() || self.range_includes_zero.is_some();
        match self.values {
            Some(_) if is_even => Err("`values` go without `bits`, `symmetry` and `range_includes_zero`"),
            _ => Ok(()),
        }
    }

    /// Keys that the grid of the other linears must give it where that is a table of values.
    fn check_on_values(&self) -> Result<(), &'static str> {
        let is_even = self.bits.is_some() || self.symmetry.is_some() || self.range_includes_zero.is_some();
        let is_whole = self.bits.is_some() && self.symmetry.is_some() && self.range_includes_zero.is_some();
        match is_even && !is_whole {
            true => Err("the other linears have a table of values; give `bits`, `symmetry` and `range_includes_zero`"),
            false => Ok(()),
        }
    }
}

impl OverrideSpec {
    /// The override of a rule whose grid is `grid`.
    pub fn on(&self, grid: Grid) -> GridOverride {
        let grid = match &self.grid {
            GridChange::FullPrecision => None,
            GridChange::Keys(keys) => Some(keys.on(grid)),
        };
        GridOverride { linears: self.linears.clone(), grid }
    }
}

impl GridSweep {
    /// What no type can express.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.bits.is_empty() || !self.values.is_empty(),
            "key `grids.bits` is an empty list; give at least one entry, there or in `grids.values`"
        );
        let has_keys = (self.symmetry.is_some(), self.range_includes_zero.is_some());
        match has_keys {
            (false, _) if !self.bits.is_empty() => bail!("key `grids.symmetry` is missing; `grids.bits` need it"),
            (_, false) if !self.bits.is_empty() => {
                bail!("key `grids.range_includes_zero` is missing; `grids.bits` need it")
            }
            (true, _) | (_, true) if self.bits.is_empty() => {
                bail!(
                    "`grids.symmetry` and `grids.range_includes_zero` have no effect without `grids.bits`; remove them"
                )
            }
            _ => {}
        }
        for (list, overrides) in self.overrides.iter().enumerate() {
            for (index, one) in overrides.iter().enumerate() {
                ensure!(
                    !one.linears.trim().is_empty(),
                    "key `grids.overrides[{list}][{index}].linears` is empty; give a pattern such as `*.down_proj`"
                );
                ensure!(one.linears != HEAD || one.grid != GridChange::FullPrecision, RuleError::HeadAnyhow);
                ensure!(
                    overrides[..index].iter().all(|earlier| earlier.linears != one.linears),
                    RuleError::Hidden { pattern: one.linears.clone() }
                );
                let GridChange::Keys(keys) = &one.grid else { continue };
                let on_values = if self.values.is_empty() { Ok(()) } else { keys.check_on_values() };
                keys.check()
                    .and(on_values)
                    .map_err(|problem| anyhow::anyhow!("key `grids.overrides[{list}][{index}].grid`: {problem}"))?;
            }
        }
        Ok(())
    }

    /// Every grid, granularity outermost, then bits and tables of values, then overrides, in the order of the lists.
    pub fn rules(&self) -> Vec<GridRule> {
        let even = |bits, granularity| {
            let (symmetry, range_includes_zero) = self.symmetry.zip(self.range_includes_zero)?;
            let scale_dtype = self.scale_dtype;
            Some(Grid { bits, granularity, symmetry, range_includes_zero, scale_dtype, values: None })
        };
        let of_values = |values, granularity| Grid::of_codebook(values, granularity, self.scale_dtype);
        let grids = self.granularity.iter().flat_map(|&granularity| {
            let even = self.bits.iter().filter_map(move |&bits| even(bits, granularity));
            even.chain(self.values.iter().map(move |&values| of_values(values, granularity)))
        });
        let none = [Vec::new()];
        let overrides = if self.overrides.is_empty() { none.as_slice() } else { &self.overrides };
        let rule = |grid: Grid, overrides: &[OverrideSpec]| GridRule {
            grid,
            overrides: overrides.iter().map(|one| one.on(grid)).collect(),
        };
        grids.flat_map(|grid| overrides.iter().map(move |overrides| rule(grid, overrides))).collect()
    }
}

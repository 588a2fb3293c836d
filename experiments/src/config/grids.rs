//! `[grids]`: the grids of an experiment as the product of lists, with overrides for some linears.

use std::fmt;

use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::rule::{GridOverride, GridRule};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Lists whose product gives the grids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GridSweep {
    /// Bits of a code.
    pub bits: Vec<Bits>,
    /// `"per_tensor"`, `"per_channel"` or `{ per_group = 128 }`.
    pub granularity: Vec<Granularity>,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// Whether a group's range is widened to hold zero (AWQ: false, GPTQ: true).
    pub range_includes_zero: bool,
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
    /// `grid` with these keys.
    fn on(&self, grid: Grid) -> Grid {
        Grid {
            bits: self.bits.unwrap_or(grid.bits),
            granularity: self.granularity.unwrap_or(grid.granularity),
            symmetry: self.symmetry.unwrap_or(grid.symmetry),
            range_includes_zero: self.range_includes_zero.unwrap_or(grid.range_includes_zero),
            scale_dtype: self.scale_dtype.unwrap_or(grid.scale_dtype),
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
    /// Every grid, granularity outermost, then bits, then overrides, in the order of the lists.
    pub fn rules(&self) -> Vec<GridRule> {
        let grid = |bits, granularity| Grid {
            bits,
            granularity,
            symmetry: self.symmetry,
            range_includes_zero: self.range_includes_zero,
            scale_dtype: self.scale_dtype,
        };
        let grids = (self.granularity.iter())
            .flat_map(|&granularity| self.bits.iter().map(move |&bits| grid(bits, granularity)));
        let none = [Vec::new()];
        let overrides = if self.overrides.is_empty() { none.as_slice() } else { &self.overrides };
        let rule = |grid: Grid, overrides: &[OverrideSpec]| GridRule {
            grid,
            overrides: overrides.iter().map(|one| one.on(grid)).collect(),
        };
        grids.flat_map(|grid| overrides.iter().map(move |overrides| rule(grid, overrides))).collect()
    }
}

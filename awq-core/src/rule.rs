//! [`GridRule`]: which grid each linear of a model is rounded to, and which linears stay in full precision.
//!
//! A rule is one grid for all linears and a list of overrides by name. It is made without a model; what it comes to for a model's
//! own linears is in [`crate::grids`].

use serde::{Deserialize, Serialize};

use crate::grid::Grid;

/// Name of the head, without `.weight`. It stays in full precision unless an override has just this name: no pattern with a `*`
/// stands for it.
pub const HEAD: &str = "lm_head";

/// A grid for all linears, and overrides of it: the first one whose pattern matches a linear decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GridRule {
    /// The grid of linears that no override names.
    pub grid: Grid,
    /// The others.
    pub overrides: Vec<GridOverride>,
}

/// What becomes of the linears that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridOverride {
    /// Pattern of their names, in the checkpoint (`model.layers.3.mlp.down_proj`) or in the block (`mlp.down_proj`). A `*`
    /// stands for any characters, dots among them. The name of a tensor that holds several linears stands for all of them, and
    /// each has one of its own: `self_attn.qkv_proj.q`.
    pub linears: String,
    /// Their grid; `None` leaves them in full precision.
    pub grid: Option<Grid>,
}

impl From<Grid> for GridRule {
    fn from(grid: Grid) -> Self {
        Self { grid, overrides: Vec::new() }
    }
}

impl GridRule {
    /// `W4 g128`, or with overrides `W4 g128 (*.down_proj W8 g128, model.layers.0.* FP)`.
    pub fn label(&self) -> String {
        let label = self.grid.label();
        if self.overrides.is_empty() {
            return label;
        }
        let grid_label = |grid: Option<Grid>| grid.map_or_else(|| "FP".to_owned(), |grid| grid.label());
        let overrides: Vec<String> =
            self.overrides.iter().map(|one| format!("{} {}", one.linears, grid_label(one.grid))).collect();
        format!("{label} ({})", overrides.join(", "))
    }

    /// The grid of the head; `None` where it stays in full precision.
    pub fn head(&self) -> Option<&Grid> {
        self.overrides.iter().find(|one| one.linears == HEAD).and_then(|one| one.grid.as_ref())
    }

    /// Every grid that it names.
    pub fn grids(&self) -> impl Iterator<Item = &Grid> {
        std::iter::once(&self.grid).chain(self.overrides.iter().filter_map(|one| one.grid.as_ref()))
    }
}

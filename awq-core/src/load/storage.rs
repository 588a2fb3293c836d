//! How tensors are stored in a checkpoint's files, known from the headers alone.

use crate::grid::{Granularity, Grid};

/// How one tensor is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredType {
    /// `BF16`, `GGUF Q4_1`, `packed AWQ W4 g128`.
    pub name: String,
    /// Bits a weight, with the scales and minima of its groups.
    pub bits_per_weight: f64,
    /// Weights that share a scale; `None` where weights are floats, or a scale belongs to a whole row or more.
    pub group_size: Option<usize>,
}

impl StoredType {
    /// A type whose weights are floats.
    pub(super) fn float(name: impl Into<String>, bits: usize) -> Self {
        Self { name: name.into(), bits_per_weight: bits as f64, group_size: None }
    }

    /// Codes on a grid of this project.
    pub(super) fn codes(name: String, grid: Grid, bits_per_weight: f64) -> Self {
        let group_size = match grid.granularity {
            Granularity::PerGroup(size) => Some(size.get().into()),
            Granularity::PerTensor | Granularity::PerChannel => None,
        };
        Self { name, bits_per_weight, group_size }
    }
}

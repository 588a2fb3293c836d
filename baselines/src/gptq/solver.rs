//! The column loop of GPTQ. Rows do not depend on each other: tasks of a few rows run in parallel, and each goes through all
//! column blocks while they are in cache.

use std::ops::Range;

use awq_core::grid::{FittedGrid, GroupParams};
use rayon::prelude::*;

use super::{Gptq, GroupGrid, Ordered, RangeSearch};
use crate::linalg::{ROWS_PER_TASK, subtract_product};

/// Where scale and zero point of a column come from.
pub(super) enum Groups {
    /// One pair for everything.
    WholeMatrix(GroupParams),
    /// Fixed beforehand: `params` row-major `[n_out, n_groups]`, and the group of each column in the order of rounding.
    Fixed { of_column: Vec<usize>, params: Vec<GroupParams> },
    /// Runs of `len` columns in the order of rounding, their range taken when their column block is reached.
    Following { len: usize },
}

/// Everything that the rows share.
pub(super) struct Solver<'a> {
    grid: &'a FittedGrid,
    range: &'a RangeSearch,
    factor: &'a [f32],
    corrections: Option<&'a [f32]>,
    n_in: usize,
    groups: Groups,
    blocks: Vec<Range<usize>>,
}

impl<'a> Solver<'a> {
    pub(super) fn new(
        gptq: &'a Gptq,
        grid: &'a FittedGrid,
        ordered: &Ordered<'a>,
        n_in: usize,
        groups: Groups,
    ) -> Self {
        let block_size = usize::from(gptq.block_size.get());
        let blocks = match (&groups, gptq.group_grid) {
            // A block that ends where a group starts has applied all its errors by then.
            (&Groups::Following { len }, GroupGrid::UpdatedWeights) => (0..n_in)
                .step_by(len)
                .flat_map(|group| column_blocks(group..(group + len).min(n_in), block_size))
                .collect(),
            _ => column_blocks(0..n_in, block_size),
        };
        let &Ordered { factor, corrections, .. } = ordered;
        Self { grid, range: &gptq.range, factor, corrections, n_in, groups, blocks }
    }

    /// Rounds a row-major `[n_out, n_in]` weight. Returns its codes and the parameters of all groups, row-major
    /// `[n_out, n_groups]` (one for a whole matrix).
    pub(super) fn solve(&self, mut weight: Vec<f32>) -> (Vec<u8>, Vec<GroupParams>) {
        let n_in = self.n_in;
        let n_groups = self.n_groups();
        let n_out = weight.len() / n_in.max(1);
        let mut codes = vec![0_u8; weight.len()];
        let mut params = match &self.groups {
            Groups::WholeMatrix(params) => vec![*params; n_out],
            Groups::Fixed { params, .. } => params.clone(),
            Groups::Following { .. } => vec![GroupParams { scale: 1.0, zero_point: 0.0 }; n_out * n_groups],
        };
        let rows = weight.par_chunks_mut(ROWS_PER_TASK * n_in).zip(codes.par_chunks_mut(ROWS_PER_TASK * n_in));
        rows.zip(params.par_chunks_mut(ROWS_PER_TASK * n_groups)).for_each(|((weight, codes), params)| {
            for block in &self.blocks {
                self.round_block(block.clone(), weight, codes, params);
            }
        });
        if matches!(self.groups, Groups::WholeMatrix(_)) {
            params.truncate(1);
        }
        (codes, params)
    }

    fn n_groups(&self) -> usize {
        match &self.groups {
            Groups::WholeMatrix(_) => 1,
            Groups::Fixed { of_column, .. } => of_column.iter().max().map_or(1, |last| last + 1),
            Groups::Following { len } => self.n_in.div_ceil(*len),
        }
    }

    fn group_of(&self, column: usize) -> usize {
        match &self.groups {
            Groups::WholeMatrix(_) => 0,
            Groups::Fixed { of_column, .. } => of_column[column],
            Groups::Following { len } => column / len,
        }
    }

    /// Rounds the columns of one block in some rows, and moves their errors (and corrections) onto all later columns.
    fn round_block(&self, block: Range<usize>, weight: &mut [f32], codes: &mut [u8], params: &mut [GroupParams]) {
        let (n_in, n_groups) = (self.n_in, self.n_groups());
        let mut errors = vec![0.0_f32; weight.len() / n_in * block.len()];
        // The rounded weights, negated: `subtract_product` then adds their corrections.
        let mut negated = vec![0.0_f32; if self.corrections.is_some() { errors.len() } else { 0 }];
        for row in 0..weight.len() / n_in {
            let weight = &mut weight[row * n_in..(row + 1) * n_in];
            let codes = &mut codes[row * n_in..(row + 1) * n_in];
            let params = &mut params[row * n_groups..(row + 1) * n_groups];
            if let &Groups::Following { len } = &self.groups {
                for start in block.clone().filter(|column| column % len == 0) {
                    params[start / len] = self.range.params(&weight[start..(start + len).min(n_in)], self.grid);
                }
            }
            for column in block.clone() {
                let params = &params[self.group_of(column)];
                let value = weight[column];
                let code = self.grid.grid.nearest_code(value, params);
                codes[column] = code;
                let factor = &self.factor[column * n_in..(column + 1) * n_in];
                let error = (value - self.grid.grid.weight(code, params)) / factor[column];
                let at = row * block.len() + column - block.start;
                errors[at] = error;
                let later = column + 1..block.end;
                for (w, u) in weight[later.clone()].iter_mut().zip(&factor[later.clone()]) {
                    *w -= error * u;
                }
                if let Some(corrections) = self.corrections {
                    let corrections = &corrections[column * n_in..(column + 1) * n_in];
                    for (w, p) in weight[later.clone()].iter_mut().zip(&corrections[later]) {
                        *w += value * p;
                    }
                    negated[at] = -self.grid.grid.weight(code, params);
                }
            }
        }
        let rows_of_block = block.start * n_in..block.end * n_in;
        subtract_product(weight, &errors, &self.factor[rows_of_block.clone()], n_in, block.end..n_in);
        if let Some(corrections) = self.corrections {
            subtract_product(weight, &negated, &corrections[rows_of_block], n_in, block.end..n_in);
        }
    }
}

/// Cuts columns into blocks.
fn column_blocks(columns: Range<usize>, block_size: usize) -> Vec<Range<usize>> {
    columns.clone().step_by(block_size).map(|start| start..(start + block_size).min(columns.end)).collect()
}

//! The column loop of GPTQ. Rows do not depend on each other: tasks of a few rows run in parallel, and each goes through all
//! column blocks while they are in cache.

use std::ops::Range;

use awq_core::grid::{FittedGrid, GroupParams};
use awq_core::progress::Listener;
use rayon::prelude::*;

use super::columns::Columns;
use super::{Gptq, GroupGrid, Ordered, RangeSearch};
use crate::linalg::{ROWS_PER_TASK, rows_per_word, subtract_product};

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
    /// `[n_out, n_groups]` (one for a whole matrix). `listener` hears of it some rows at a time.
    pub(super) fn solve(&self, mut weight: Vec<f32>, listener: &Listener<'_>) -> (Vec<u8>, Vec<GroupParams>) {
        let n_in = self.n_in;
        let n_groups = self.n_groups();
        let n_out = weight.len() / n_in.max(1);
        let mut codes = vec![0_u8; weight.len()];
        let mut params = match &self.groups {
            Groups::WholeMatrix(params) => vec![*params; n_out],
            Groups::Fixed { params, .. } => params.clone(),
            Groups::Following { .. } => vec![GroupParams { scale: 1.0, zero_point: 0.0 }; n_out * n_groups],
        };
        let at_once = rows_per_word();
        let rows = weight.chunks_mut(at_once * n_in).zip(codes.chunks_mut(at_once * n_in));
        for ((weight, codes), params) in rows.zip(params.chunks_mut(at_once * n_groups)) {
            let share = (weight.len() / n_in) as f64 / n_out as f64;
            let rows = weight.par_chunks_mut(ROWS_PER_TASK * n_in).zip(codes.par_chunks_mut(ROWS_PER_TASK * n_in));
            rows.zip(params.par_chunks_mut(ROWS_PER_TASK * n_groups)).for_each(|((weight, codes), params)| {
                for block in &self.blocks {
                    self.round_block(block.clone(), weight, codes, params);
                }
            });
            listener(share);
        }
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
        if let &Groups::Following { len } = &self.groups {
            for (weight, params) in weight.chunks(n_in).zip(params.chunks_mut(n_groups)) {
                for start in block.clone().filter(|column| column % len == 0) {
                    params[start / len] = self.range.params(&weight[start..(start + len).min(n_in)], self.grid);
                }
            }
        }
        let mut columns = Columns::gather(weight, n_in, block.clone());
        let params_of = |column: usize| {
            let group = self.group_of(column);
            params.chunks(n_groups).map(move |params| &params[group])
        };
        columns.round(&self.grid.grid, self.factor, self.corrections, params_of);
        columns.put_codes(codes);
        let rows_of_block = block.start * n_in..block.end * n_in;
        let later = block.end..n_in;
        subtract_product(
            weight,
            &columns.rows(&columns.errors),
            &self.factor[rows_of_block.clone()],
            n_in,
            later.clone(),
        );
        if let Some(corrections) = self.corrections {
            // The rounded weights are negated: what is subtracted then adds their corrections.
            subtract_product(weight, &columns.rows(&columns.negated), &corrections[rows_of_block], n_in, later);
        }
    }
}

/// Cuts columns into blocks.
fn column_blocks(columns: Range<usize>, block_size: usize) -> Vec<Range<usize>> {
    columns.clone().step_by(block_size).map(|start| start..(start + block_size).min(columns.end)).collect()
}

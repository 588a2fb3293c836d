//! The columns of one block in the rows of one task, a column's rows side by side: rounding a column waits for the one before it,
//! so vectors go across the rows.

use std::ops::Range;

use awq_core::grid::{Grid, GroupParams};
use pulp::NullaryFnOnce;

use crate::linalg::ROWS_PER_TASK;

/// One column's values in the rows of a task.
type Column = [f32; ROWS_PER_TASK];

/// See the module.
pub(super) struct Columns {
    n_in: usize,
    n_rows: usize,
    block: Range<usize>,
    /// `[column][row]`: the weights, all earlier errors applied. Rows that a task lacks are zero.
    weights: Vec<Column>,
    /// Errors of the rounded columns, over the diagonal of the factor.
    pub(super) errors: Vec<Column>,
    /// The rounded weights, negated.
    pub(super) negated: Vec<Column>,
    /// Their codes.
    codes: Vec<[u8; ROWS_PER_TASK]>,
}

impl Columns {
    /// The columns `block` of up to [`ROWS_PER_TASK`] rows of `n_in` weights.
    pub(super) fn gather(weight: &[f32], n_in: usize, block: Range<usize>) -> Self {
        let zeros = vec![[0.0; ROWS_PER_TASK]; block.len()];
        let mut weights = zeros.clone();
        for (row, weight) in weight.chunks(n_in).enumerate() {
            weights.iter_mut().zip(&weight[block.clone()]).for_each(|(column, &w)| column[row] = w);
        }
        let codes = vec![[0; ROWS_PER_TASK]; block.len()];
        let n_rows = weight.len() / n_in;
        Self { n_in, n_rows, block, weights, errors: zeros.clone(), negated: zeros, codes }
    }

    /// Rounds one column after the other; each moves its errors onto those after it. `params_of` gives a column's scale and zero
    /// point in each row.
    pub(super) fn round<'p, P: Iterator<Item = &'p GroupParams>>(
        &mut self,
        grid: &Grid,
        factor: &[f32],
        corrections: Option<&[f32]>,
        params_of: impl Fn(usize) -> P,
    ) {
        let (block, n_in) = (self.block.clone(), self.n_in);
        let arch = pulp::Arch::new();
        for (at, column) in block.clone().enumerate() {
            let mut params = RowParams { scale: [1.0; ROWS_PER_TASK], zero_point: [0.0; ROWS_PER_TASK] };
            for (row, of_row) in params_of(column).enumerate() {
                (params.scale[row], params.zero_point[row]) = (of_row.scale, of_row.zero_point);
            }
            let from = column * n_in + column;
            let to = column * n_in + block.end;
            let (done, later) = self.weights.split_at_mut(at + 1);
            arch.dispatch(RoundColumn {
                grid,
                params: &params,
                weights: &done[at],
                later,
                factor: &factor[from..to],
                corrections: corrections.map(|corrections| &corrections[from..to]),
                errors: &mut self.errors[at],
                negated: &mut self.negated[at],
                codes: &mut self.codes[at],
            });
        }
    }

    /// Writes the codes into rows of `n_in`.
    pub(super) fn put_codes(&self, codes: &mut [u8]) {
        for (row, codes) in codes.chunks_mut(self.n_in).enumerate() {
            codes[self.block.clone()].iter_mut().zip(&self.codes).for_each(|(code, column)| *code = column[row]);
        }
    }

    /// Values of the columns, row-major `[row][column]`.
    pub(super) fn rows(&self, columns: &[Column]) -> Vec<f32> {
        (0..self.n_rows).flat_map(|row| columns.iter().map(move |column| column[row])).collect()
    }
}

/// Scale and zero point of one column in each row.
struct RowParams {
    scale: Column,
    zero_point: Column,
}

/// The work on one column, compiled for every instruction set.
struct RoundColumn<'a> {
    grid: &'a Grid,
    params: &'a RowParams,
    weights: &'a Column,
    /// The columns of the block after it.
    later: &'a mut [Column],
    /// The factor's row of this column, from its diagonal to the end of the block.
    factor: &'a [f32],
    /// The same of GPTAQ's corrections.
    corrections: Option<&'a [f32]>,
    errors: &'a mut Column,
    negated: &'a mut Column,
    codes: &'a mut [u8; ROWS_PER_TASK],
}

impl NullaryFnOnce for RoundColumn<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { grid, params, weights, later, factor, corrections, errors, negated, codes } = self;
        let mut rounded = [0.0; ROWS_PER_TASK];
        grid.round_rows(weights, &params.scale, &params.zero_point, codes, &mut rounded);
        for row in 0..ROWS_PER_TASK {
            errors[row] = (weights[row] - rounded[row]) / factor[0];
            negated[row] = -rounded[row];
        }
        for (column, &u) in later.iter_mut().zip(&factor[1..]) {
            for row in 0..ROWS_PER_TASK {
                column[row] -= errors[row] * u;
            }
        }
        if let Some(corrections) = corrections {
            for (column, &p) in later.iter_mut().zip(&corrections[1..]) {
                for row in 0..ROWS_PER_TASK {
                    column[row] += weights[row] * p;
                }
            }
        }
    }
}

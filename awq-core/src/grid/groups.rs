//! [`Groups`]: how a matrix falls into groups, once for all that go through them.

use std::ops::Range;

use super::Granularity;

/// How a matrix falls into groups, each of which has one scale. Groups do not cross rows, the last of a row may be short, and a
/// per-tensor grid sees the matrix as one long row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Weights of a row.
    pub row_len: usize,
    /// Weights of a group, but for the last of a row.
    pub len: usize,
    /// Groups of a row.
    pub per_row: usize,
    n_rows: usize,
}

impl Granularity {
    /// The groups of a row-major `[n_out, n_in]` matrix.
    pub fn groups(self, n_out: usize, n_in: usize) -> Groups {
        let (n_rows, row_len) = match self {
            Self::PerTensor => (1, n_out * n_in),
            Self::PerChannel | Self::PerGroup(_) => (n_out, n_in),
        };
        Groups { row_len, len: self.group_len(row_len).max(1), per_row: self.n_groups(row_len).max(1), n_rows }
    }

    /// The columns of each group of a row of `n_in` weights, the last of which may be fewer.
    pub fn columns(self, n_in: usize) -> impl Iterator<Item = Range<usize>> {
        let len = self.group_len(n_in).max(1);
        (0..n_in).step_by(len).map(move |start| start..(start + len).min(n_in))
    }
}

impl Groups {
    /// Groups of the whole matrix, and so scales.
    pub fn n_groups(&self) -> usize {
        self.n_rows * self.per_row
    }

    /// The group of the weight at a place of the row-major matrix, counted in the order of scales.
    #[inline]
    pub fn group_of(&self, place: usize) -> usize {
        place / self.row_len * self.per_row + place % self.row_len / self.len
    }

    /// The groups of a matrix, in the order of their scales.
    pub fn of<'a, T>(&self, matrix: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let len = self.len;
        matrix.chunks(self.row_len.max(1)).flat_map(move |row| row.chunks(len))
    }
}

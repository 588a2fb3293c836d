//! [`Tensor`]: a tensor of Hugging Face in the file, which may be a part of a stored one, or changed.

use std::path::Path;

use super::header::TensorInfo;
use super::names::interleaved_rows_to_halves;
use crate::load::LoadError;

/// A tensor of Hugging Face, and what must be changed in the values that are stored.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) info: TensorInfo,
    pub(super) change: Change,
}

/// What llama.cpp's converter did to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// It put the two rows of each rotary pair of so many heads side by side.
    Interleaved {
        n_heads: usize,
    },
    /// It added 1.
    OneMore,
}

impl Tensor {
    /// The values of Hugging Face, of those that are stored.
    pub(super) fn restored(&self, values: Vec<f32>) -> Vec<f32> {
        match self.change {
            Change::Nothing => values,
            Change::Interleaved { n_heads } => {
                let row_len = self.info.shape.get(1).copied().unwrap_or(1);
                interleaved_rows_to_halves(&values, n_heads, row_len)
            }
            Change::OneMore => values.into_iter().map(|value| value - 1.0).collect(),
        }
    }

    /// The weight of a norm that is stored with a one that Hugging Face adds.
    pub(super) fn with_one_less(self) -> Self {
        Self { change: Change::OneMore, ..self }
    }

    /// The same values in another shape.
    pub(super) fn shaped(mut self, shape: Vec<usize>) -> Self {
        self.info.shape = shape;
        self
    }

    /// Its rows as the tensors that they are: names and numbers of rows.
    ///
    /// # Errors
    /// Another number of rows than these have together.
    pub(super) fn in_rows(
        &self,
        name: &str,
        parts: Vec<(String, usize)>,
        file: &Path,
    ) -> Result<Vec<(String, Self)>, LoadError> {
        let shape = &self.info.shape;
        let n_rows = parts.iter().map(|(_, n_rows)| n_rows).sum::<usize>();
        let row: Vec<usize> = shape.iter().copied().skip(1).collect();
        let expected: Vec<usize> = std::iter::once(n_rows).chain(row.iter().copied()).collect();
        check_shape(file, name, shape, &expected)?;
        let mut start = 0;
        let mut tensors = Vec::new();
        for (part, n_rows) in parts {
            let stored = self.info.stored.rows(start, n_rows, row.iter().product());
            let stored = stored.ok_or_else(|| LoadError::BadHeader {
                file: file.to_owned(),
                problem: format!("tensor {name:?} is stored in blocks that no row of it ends with"),
            })?;
            let shape = std::iter::once(n_rows).chain(row.iter().copied()).collect();
            tensors
                .push((part, Self { info: TensorInfo { shape, stored, part: self.info.part }, change: self.change }));
            start += n_rows;
        }
        Ok(tensors)
    }

    /// `[n_experts, out, in]` as the tensors of each expert.
    ///
    /// # Errors
    /// Another number of dimensions, more experts than any model has, or a type of storage of which the size is not known.
    pub(super) fn in_experts(
        &self,
        name: &str,
        named: impl Fn(usize) -> String,
        file: &Path,
    ) -> Result<Vec<(String, Self)>, LoadError> {
        /// A damaged number would take memory for each.
        const MAX_EXPERTS: usize = 4096;
        let &[n_experts, out, row_len] = self.info.shape.as_slice() else {
            let problem = format!("tensor {name:?} has shape {:?}, expected experts, rows, columns", self.info.shape);
            return Err(LoadError::BadHeader { file: file.to_owned(), problem });
        };
        if n_experts > MAX_EXPERTS {
            let problem = format!("tensor {name:?} has {n_experts} experts, expected at most {MAX_EXPERTS}");
            return Err(LoadError::BadHeader { file: file.to_owned(), problem });
        }
        let rows = self.clone().shaped(vec![n_experts * out, row_len]);
        rows.in_rows(name, (0..n_experts).map(|expert| (named(expert), out)).collect(), file)
    }
}

/// # Errors
/// Another shape.
pub(super) fn check_shape(file: &Path, name: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(LoadError::WrongShape {
        file: file.to_owned(),
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

//! Tensors as PyTorch stores them: views of flat storages, with an offset and a stride a dimension.

use std::borrow::Cow;

use safetensors::Dtype;

use super::Problem;

/// Where the elements of a tensor lie in its storage, counted in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) dtype: Dtype,
    /// The first element.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// One a dimension.
    pub(super) strides: Vec<usize>,
}

impl View {
    /// Checks the view against a storage of `storage_bytes` bytes.
    ///
    /// # Errors
    /// Elements outside the storage, or more of them than it has (one number shown as many).
    pub(super) fn check(&self, storage_bytes: u64) -> Result<(), Problem> {
        let n_stored = usize::try_from(storage_bytes / self.n_bytes() as u64).unwrap_or(usize::MAX);
        let n_elements = self.shape.iter().try_fold(1, |product: usize, size| product.checked_mul(*size));
        if self.shape.contains(&0) {
            return Ok(());
        }
        let mut dims = self.shape.iter().zip(&self.strides);
        let last =
            dims.try_fold(self.offset, |last, (size, stride)| last.checked_add((size - 1).checked_mul(*stride)?));
        if last.is_none_or(|last| last >= n_stored) {
            return Err(Problem::Damaged("a tensor lies outside its storage".to_owned()));
        }
        if n_elements.is_none_or(|n_elements| n_elements > n_stored) {
            let shape = &self.shape;
            let problem =
                format!("a tensor of shape {shape:?} shows the {n_stored} numbers of its storage several times");
            return Err(Problem::Foreign(problem));
        }
        Ok(())
    }

    /// The bytes of the elements in row-major order, of a `storage` that the view was checked against.
    pub(super) fn row_major<'a>(&self, storage: &'a [u8]) -> Cow<'a, [u8]> {
        if self.shape.contains(&0) {
            return Cow::Borrowed(&[]);
        }
        let n_elements: usize = self.shape.iter().product();
        let first = self.offset * self.n_bytes();
        if self.is_row_major() {
            return Cow::Borrowed(&storage[first..first + n_elements * self.n_bytes()]);
        }
        let mut bytes = Vec::with_capacity(n_elements * self.n_bytes());
        let mut index = vec![0; self.shape.len()];
        for _ in 0..n_elements {
            let element: usize = index.iter().zip(&self.strides).map(|(at, stride)| at * stride).sum();
            let at = first + element * self.n_bytes();
            bytes.extend(&storage[at..at + self.n_bytes()]);
            // The last dimension runs fastest.
            for (at, size) in index.iter_mut().zip(&self.shape).rev() {
                *at += 1;
                if *at < *size {
                    break;
                }
                *at = 0;
            }
        }
        Cow::Owned(bytes)
    }

    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }

    /// Bytes of an element.
    fn n_bytes(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(offset: usize, shape: &[usize], strides: &[usize], expected: &[u16]) {
        let storage: Vec<u8> = (0..12u16).flat_map(u16::to_le_bytes).collect();
        let view = View { dtype: Dtype::I16, offset, shape: shape.to_vec(), strides: strides.to_vec() };
        assert_eq!(view.check(storage.len() as u64), Ok(()));
        let elements: Vec<u16> =
            view.row_major(&storage).as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        assert_eq!(elements, expected);
    }

    #[test]
    fn elements_come_in_row_major_order() {
        check(0, &[3, 4], &[4, 1], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        check(4, &[2, 4], &[4, 1], &[4, 5, 6, 7, 8, 9, 10, 11]);
        check(0, &[4, 3], &[1, 4], &[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        // Rows of a wider matrix, every second column, a dimension of one element with a stride of no meaning.
        check(1, &[3, 2], &[4, 2], &[1, 3, 5, 7, 9, 11]);
        check(2, &[2, 1, 3], &[6, 999, 1], &[2, 3, 4, 8, 9, 10]);
        check(0, &[2, 3, 2], &[1, 4, 2], &[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]);
        check(7, &[], &[], &[7]);
        check(99, &[2, 0], &[1, 1], &[]);
    }
}

//! The values of a tensor a slice at a time: whoever copies, converts or compares a large one need not hold all of it.

use super::{Checkpoint, LoadError, check_shape, floats};
use crate::quantized::QuantizedWeight;

/// Slices of a tensor in their order, each of as many whole rows, the last of what is left. Two tensors of one shape come in slices of the
/// same sizes.
pub type Slices<'a> = Box<dyn Iterator<Item = Result<Vec<f32>, LoadError>> + 'a>;

/// Values of a slice, unless a single row has more: enough to work on with all cores, little beside a block.
const LEN: usize = 1 << 20;

/// Values of a slice of a tensor of this shape, whole rows.
pub(super) fn slice_len(shape: &[usize]) -> usize {
    let row_len = shape.iter().skip(1).fold(1_usize, |n, size| n.saturating_mul(*size)).max(1);
    (LEN / row_len).max(1).saturating_mul(row_len)
}

/// Slices of values that are in memory.
pub(super) fn in_memory(values: Vec<f32>, shape: &[usize]) -> Slices<'static> {
    let len = slice_len(shape);
    let starts = (0..values.len()).step_by(len);
    Box::new(starts.map(move |start| Ok(values[start..values.len().min(start + len)].to_vec())))
}

/// Slices of the weights that codes stand for, as [`QuantizedWeight::dequantize`] has them.
pub fn weight_slices(weight: QuantizedWeight) -> Slices<'static> {
    let shape = [weight.n_out, weight.n_in];
    let n_rows = slice_len(&shape) / weight.n_in.max(1);
    if weight.rows(0..0).is_none() {
        return in_memory(weight.dequantize(), &shape);
    }
    let starts = (0..weight.n_out).step_by(n_rows.max(1));
    Box::new(starts.map(move |start| {
        let rows = weight.rows(start..weight.n_out.min(start + n_rows));
        Ok(rows.map_or_else(Vec::new, |rows| rows.dequantize()))
    }))
}

/// Checks shape and values of a tensor that is not used yet.
///
/// # Errors
/// As [`read_exact_shape`](super::read_exact_shape).
pub(crate) fn check_values(checkpoint: &dyn Checkpoint, name: &str, expected: &[usize]) -> Result<(), LoadError> {
    check_shape(checkpoint, name, expected)?;
    let mut n_seen = 0;
    for slice in checkpoint.slices(name)? {
        let slice = slice?;
        if let Some(index) = floats::first_non_finite(&slice) {
            let (file, name) = (checkpoint.file_of(name), name.to_owned());
            return Err(LoadError::NonFinite { file, name, index: n_seen + index });
        }
        n_seen += slice.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU16;

    use safetensors::Dtype;

    use super::*;
    use crate::grid::{Bits, Granularity, Grid};
    use crate::host::grid::quantize;
    use crate::load::testing::{Stored, write_safetensors};
    use crate::load::{MemoryCheckpoint, SafetensorsCheckpoint};

    fn joined(slices: Slices<'_>) -> (Vec<usize>, Vec<f32>) {
        let slices: Vec<Vec<f32>> = slices.map(Result::unwrap).collect();
        (slices.iter().map(Vec::len).collect(), slices.concat())
    }

    /// Rows of 300,000: three fill a slice.
    const SHAPE: [usize; 2] = [7, 300_000];
    const LENS: [usize; 3] = [900_000, 900_000, 300_000];

    fn values() -> Vec<f32> {
        (0..SHAPE[0] * SHAPE[1]).map(|index| (index % 251) as f32 - 100.0).collect()
    }

    #[test]
    fn slices_of_a_file_and_of_memory_are_the_tensor_cut_in_the_same_places() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = values().iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        let stored = Stored { dtype: Dtype::BF16, shape: SHAPE.to_vec(), bytes };
        write_safetensors(&folder.path().join("model.safetensors"), &[("w", stored)]);
        let of_file = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        let mut memory = MemoryCheckpoint::default();
        memory.insert("w", &SHAPE, values());
        for checkpoint in [&of_file as &dyn Checkpoint, &memory] {
            let (lens, found) = joined(checkpoint.slices("w").unwrap());
            assert_eq!(lens, LENS);
            assert!(found == values());
        }
    }

    #[test]
    fn codes_come_in_slices_whether_or_not_rows_stand_alone() {
        let of = |granularity| quantize(&values(), SHAPE[0], SHAPE[1], &Grid::awq(Bits::new(4).unwrap(), granularity));
        for granularity in
            [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(NonZeroU16::new(128).unwrap())]
        {
            let weight = of(granularity);
            let expected = weight.dequantize();
            let (lens, found) = joined(weight_slices(weight));
            assert_eq!(lens, LENS, "{granularity:?}");
            assert!(found == expected, "{granularity:?}");
        }
    }

    #[test]
    fn a_row_longer_than_a_slice_is_one_and_nothing_has_none() {
        assert_eq!(slice_len(&[3, 2 * LEN]), 2 * LEN);
        assert_eq!(slice_len(&[LEN + 5]), LEN);
        assert_eq!(joined(in_memory(vec![1.0, 2.0], &[2])).0, [2]);
        assert!(joined(in_memory(Vec::new(), &[0, 4])).0.is_empty());
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_by_its_place_in_the_tensor() {
        let mut checkpoint = MemoryCheckpoint::default();
        let mut values = values();
        values[1_500_000] = f32::NAN;
        checkpoint.insert("w", &SHAPE, values);
        let error = check_values(&checkpoint, "w", &SHAPE).unwrap_err();
        assert!(matches!(error, LoadError::NonFinite { index: 1_500_000, .. }), "{error}");
        let error = check_values(&checkpoint, "w", &[7, 5]).unwrap_err();
        assert!(matches!(error, LoadError::WrongShape { .. }), "{error}");
    }
}

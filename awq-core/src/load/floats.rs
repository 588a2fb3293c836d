//! Little-endian float bytes to `f32`, and the check that no NaN or infinity slips into a model.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::map::MappedFile;
use super::{LoadError, Slices};
use crate::arithmetic::FloatType;

/// Elements converted by one task: large enough to hide the cost of a task, small enough to share.
const CHUNK: usize = 1 << 16;

/// Converts `bytes`, whose length is a multiple of the element size, to `f32` (exact for all three types).
pub(super) fn to_f32(float: FloatType, bytes: &[u8]) -> Vec<f32> {
    let (n_bytes, convert) = conversion(float);
    let mut values = vec![0.0; bytes.len() / n_bytes];
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * n_bytes))
        .for_each(|(values, bytes)| convert(bytes, values));
    values
}

/// The values in a range of a file, whose length is a multiple of the element size. Of their bytes a task's are in memory.
///
/// # Errors
/// As [`MappedFile::read`].
pub(super) fn read_f32(float: FloatType, file: &MappedFile, range: Range<usize>) -> Result<Vec<f32>, LoadError> {
    let (n_bytes, convert) = conversion(float);
    let mut values = vec![0.0; range.len() / n_bytes];
    values.par_chunks_mut(CHUNK).enumerate().try_for_each_init(
        || vec![0; CHUNK * n_bytes],
        |bytes, (index, values)| {
            let bytes = &mut bytes[..values.len() * n_bytes];
            file.read_into(range.start + index * CHUNK * n_bytes, bytes)?;
            convert(bytes, values);
            Ok(())
        },
    )?;
    Ok(values)
}

/// The same in slices of `len` values.
pub(super) fn slices(float: FloatType, file: &MappedFile, range: Range<usize>, len: usize) -> Slices<'_> {
    let (n_bytes, end) = (len.saturating_mul(conversion(float).0), range.end);
    Box::new(range.step_by(n_bytes).map(move |start| {
        let end = end.min(start.saturating_add(n_bytes));
        read_f32(float, file, start..end)
    }))
}

/// Fills values from as many elements.
type Convert = fn(&[u8], &mut [f32]);

/// Bytes of an element, and what converts as many of them as there are values.
fn conversion(float: FloatType) -> (usize, Convert) {
    let convert: Convert = match float {
        FloatType::F32 => from_f32_bytes,
        FloatType::F16 => from_f16_bytes,
        FloatType::Bf16 => from_bf16_bytes,
    };
    (float.number().bits() as usize / 8, convert)
}

/// The index of the first NaN or infinity.
pub(super) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Whole chunks first: the search for the exact place runs only when there is one.
    let bad_chunk = values.par_chunks(CHUNK).position_first(|chunk| !chunk.iter().all(|value| value.is_finite()))?;
    let start = bad_chunk * CHUNK;
    values[start..].iter().position(|value| !value.is_finite()).map(|offset| start + offset)
}

fn from_f32_bytes(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

fn from_f16_bytes(bytes: &[u8], values: &mut [f32]) {
    // The map may be unaligned, so the halves are copied out before the vectorised conversion.
    let halves: Vec<f16> = bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    halves.convert_to_f32_slice(values);
}

fn from_bf16_bytes(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn every_f16_and_bf16_converts_as_the_scalar_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let halves = to_f32(FloatType::F16, &bytes);
        let brains = to_f32(FloatType::Bf16, &bytes);
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            let index = usize::from(bits);
            assert!(halves[index] == half || (half.is_nan() && halves[index].is_nan()), "{bits:#x}");
            assert!(brains[index] == brain || (brain.is_nan() && brains[index].is_nan()), "{bits:#x}");
        }
    }

    #[test]
    fn f32_bytes_round_trip_across_a_chunk_boundary() {
        let values: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32 * 0.5 - 7.0).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(to_f32(FloatType::F32, &bytes), values);
    }

    /// From a place that no element is aligned to, and of fewer values than a task has, as many, and more.
    #[test]
    fn values_of_a_file_are_those_of_its_bytes() {
        let bytes: Vec<u8> = (0..4 * CHUNK + 64).map(|i| (i * 7 % 120) as u8).collect();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &bytes).expect("it is written");
        let map = MappedFile::open(file.path()).expect("it is mapped");
        for (float, size) in [(FloatType::F32, 4), (FloatType::F16, 2), (FloatType::Bf16, 2)] {
            for len in [0, size, CHUNK - size, CHUNK * size, 4 * CHUNK] {
                let range = 13..13 + len;
                let found = read_f32(float, &map, range.clone()).expect("it is read");
                assert_eq!(found, to_f32(float, &bytes[range]), "{float:?}, {len} bytes");
            }
        }
    }

    #[test]
    fn first_non_finite_is_the_first_one() {
        let mut values = vec![1.0; 3 * CHUNK];
        assert_eq!(first_non_finite(&values), None);
        values[CHUNK + 5] = f32::NAN;
        values[CHUNK + 9] = f32::INFINITY;
        values[2 * CHUNK] = f32::NEG_INFINITY;
        assert_eq!(first_non_finite(&values), Some(CHUNK + 5));
    }
}

//! Little-endian float bytes to `f32`, and the check that no NaN or infinity slips into a model.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::arithmetic::FloatType;

/// Elements converted by one task: large enough to hide the cost of a task, small enough to share.
const CHUNK: usize = 1 << 16;

/// Converts `bytes`, whose length is a multiple of the element size, to `f32` (exact for all three types).
pub(super) fn to_f32(float: FloatType, bytes: &[u8]) -> Vec<f32> {
    let n_bytes = float.number().bits() as usize / 8;
    let mut values = vec![0.0; bytes.len() / n_bytes];
    let convert = match float {
        FloatType::F32 => from_f32_bytes,
        FloatType::F16 => from_f16_bytes,
        FloatType::Bf16 => from_bf16_bytes,
    };
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * n_bytes))
        .for_each(|(values, bytes)| convert(bytes, values));
    values
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

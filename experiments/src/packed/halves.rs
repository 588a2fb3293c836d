//! Floats in the two types of 16 bits: which of them hold all values, and the bytes, on all cores.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Values of a task.
const CHUNK: usize = 1 << 14;

/// A type of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

impl Half {
    /// Both, in the order in which they are tried.
    pub(crate) const ALL: [Self; 2] = [Self::F16, Self::Bf16];

    /// Whether each of `values` is a number of this type, bit for bit.
    pub(crate) fn holds(self, values: &[f32]) -> bool {
        match self {
            Self::F16 => holds::<f16>(values),
            Self::Bf16 => holds::<bf16>(values),
        }
    }

    /// `values` rounded to this type, little-endian.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => bytes::<f16>(values),
            Self::Bf16 => bytes::<bf16>(values),
        }
    }
}

fn holds<H: Copy + Default>(values: &[f32]) -> bool
where
    [H]: HalfFloatSliceExt,
{
    values.par_chunks(CHUNK).all(|values| {
        let (mut halves, mut back) = (vec![H::default(); values.len()], vec![0.0; values.len()]);
        halves.convert_from_f32_slice(values);
        halves.convert_to_f32_slice(&mut back);
        back.iter().zip(values).all(|(back, value)| back.to_bits() == value.to_bits())
    })
}

fn bytes<H: Copy + Default>(values: &[f32]) -> Vec<u8>
where
    [H]: HalfFloatSliceExt,
{
    let mut bytes = vec![0; 2 * values.len()];
    bytes.par_chunks_mut(2 * CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
        let mut halves = vec![H::default(); values.len()];
        halves.convert_from_f32_slice(values);
        for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves.reinterpret_cast()) {
            *bytes = half.to_le_bytes();
        }
    });
    bytes
}

/// `values` as they are, little-endian.
pub(crate) fn whole(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * values.len()];
    bytes.par_chunks_mut(4 * CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
        for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than a task, each value beside what the scalar conversions make of it.
    #[test]
    fn chunks_convert_as_the_scalars_do() {
        let values: Vec<f32> =
            (0..2 * CHUNK + 3).map(|i| (i as f32 - 9000.0) * 0.37).chain([0.0, -0.0, 1e-7, 6e4, -1e-30]).collect();
        let expected: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        assert!(Half::F16.bytes(&values) == expected);
        let expected: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        assert!(Half::Bf16.bytes(&values) == expected);
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(whole(&values) == expected);
    }

    #[test]
    fn a_single_value_that_is_lost_is_seen_wherever_it_is() {
        let mut values = vec![-1.5; 2 * CHUNK + 3];
        assert!(Half::F16.holds(&values) && Half::Bf16.holds(&values) && Half::F16.holds(&[]));
        for (at, value, in_f16, in_bf16) in [
            (0, 2049.0, false, false),
            (CHUNK, 1.0009766, true, false),
            (2 * CHUNK + 2, 1e20, false, false),
            (7, 65536.0, false, true),
        ] {
            let kept = std::mem::replace(&mut values[at], value);
            assert_eq!((Half::F16.holds(&values), Half::Bf16.holds(&values)), (in_f16, in_bf16), "{value}");
            values[at] = kept;
        }
    }
}

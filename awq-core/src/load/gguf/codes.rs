//! Codes of ggml's evenly spaced types as this program's kernels multiply with them: nothing is rounded but their sums.

use rayon::prelude::*;

use super::dequant::{five_bits, half_at, nibble, scale_and_min};
use super::names::interleaved_rows_to_halves;
use super::tensor::Change;
use crate::formats::gguf::GgmlType;
use crate::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Weights that share a scale are `q * scale + minimum`.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    scale: f32,
    minimum: f32,
}

/// How a type's blocks are read: `BYTES` a block.
struct Reader {
    bits: u8,
    group_len: u16,
    /// The code of 0, of types without minima.
    middle: Option<u8>,
    block: fn(&[u8], &mut [u8], &mut [Group]),
}

/// Types whose codes are multiplied as they are. Groups of 16 fill half of what kernels read at once; they still take half the bytes
/// of floats.
fn reader(ggml_type: GgmlType) -> Option<Reader> {
    let of = |bits, group_len, middle, block| Some(Reader { bits, group_len, middle, block });
    match ggml_type {
        GgmlType::Q4_0 => of(4, 32, Some(8), q4_0),
        GgmlType::Q4_1 => of(4, 32, None, q4_1),
        GgmlType::Q5_0 => of(5, 32, Some(16), q5_0),
        GgmlType::Q5_1 => of(5, 32, None, q5_1),
        GgmlType::Q8_0 => of(8, 32, Some(128), q8_0),
        GgmlType::Q4K => of(4, 32, None, q4_k),
        GgmlType::Q5K => of(5, 32, None, q5_k),
        GgmlType::Q6K => of(6, 16, Some(32), q6_k),
        _ => None,
    }
}

/// The `[n_out, n_in]` matrix in `bytes`; `None` of types that have no such codes, of rows that end inside a block, and where a group
/// has a minimum and no scale, which no zero point stands for.
pub(super) fn codes(
    ggml_type: GgmlType,
    bytes: &[u8],
    [n_out, n_in]: [usize; 2],
    change: Change,
) -> Option<QuantizedWeight> {
    let reader = reader(ggml_type)?;
    let (len, n_bytes) = (ggml_type.block_len(), ggml_type.block_bytes());
    if !n_in.is_multiple_of(len) || n_in == 0 || bytes.len() != n_out * n_in / len * n_bytes {
        return None;
    }
    let group_len = usize::from(reader.group_len);
    let mut codes = vec![0; n_out * n_in];
    let mut groups = vec![Group::default(); n_out * n_in / group_len];
    let blocks = codes.par_chunks_mut(len).zip(groups.par_chunks_mut(len / group_len)).zip(bytes.par_chunks(n_bytes));
    blocks.with_min_len(1024).for_each(|((codes, groups), bytes)| (reader.block)(bytes, codes, groups));
    if let Change::Interleaved { n_heads } = change {
        codes = interleaved_rows_to_halves(&codes, n_heads, n_in);
        groups = interleaved_rows_to_halves(&groups, n_heads, n_in / group_len);
    } else if change != Change::Nothing {
        return None;
    }
    let zero_point = match reader.middle {
        Some(middle) => ZeroPoints::Codes(vec![middle; groups.len()]),
        None => ZeroPoints::Real(groups.iter().map(zero_point).collect::<Option<_>>()?),
    };
    Some(QuantizedWeight {
        n_out,
        n_in,
        grid: Grid {
            bits: Bits::new(reader.bits)?,
            granularity: Granularity::PerGroup(reader.group_len.try_into().ok()?),
            symmetry: if reader.middle.is_some() { Symmetry::SymmetricFullRange } else { Symmetry::Asymmetric },
            range_includes_zero: false,
            scale_dtype: ScaleDtype::F32,
            values: None,
        },
        codes,
        scale: groups.iter().map(|group| group.scale).collect(),
        zero_point,
        transform: WeightTransform::Identity,
    })
}

fn zero_point(group: &Group) -> Option<f32> {
    match group {
        Group { minimum: 0.0, .. } => Some(0.0),
        Group { scale, minimum } => Some(-minimum / scale).filter(|zero_point| zero_point.is_finite()),
    }
}

fn q4_0(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    groups[0] = Group { scale: half_at(bytes, 0), minimum: 0.0 };
    codes.iter_mut().enumerate().for_each(|(index, code)| *code = nibble(&bytes[2..], index));
}

fn q4_1(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    groups[0] = Group { scale: half_at(bytes, 0), minimum: half_at(bytes, 2) };
    codes.iter_mut().enumerate().for_each(|(index, code)| *code = nibble(&bytes[4..], index));
}

fn q5_0(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    groups[0] = Group { scale: half_at(bytes, 0), minimum: 0.0 };
    codes.iter_mut().enumerate().for_each(|(index, code)| *code = five_bits(&bytes[2..6], &bytes[6..], index));
}

fn q5_1(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    groups[0] = Group { scale: half_at(bytes, 0), minimum: half_at(bytes, 2) };
    codes.iter_mut().enumerate().for_each(|(index, code)| *code = five_bits(&bytes[4..8], &bytes[8..], index));
}

fn q8_0(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    groups[0] = Group { scale: half_at(bytes, 0), minimum: 0.0 };
    // A signed byte, 128 more.
    codes.iter_mut().zip(&bytes[2..]).for_each(|(code, byte)| *code = byte ^ 0x80);
}

fn q4_k(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    with_minima(bytes, groups);
    for (sub_block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (low, shift) = (&bytes[16 + sub_block / 2 * 32..][..32], sub_block % 2 * 4);
        codes.iter_mut().zip(low).for_each(|(code, byte)| *code = byte >> shift & 0x0f);
    }
}

fn q5_k(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    with_minima(bytes, groups);
    for (sub_block, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (low, shift) = (&bytes[48 + sub_block / 2 * 32..][..32], sub_block % 2 * 4);
        for ((code, byte), high) in codes.iter_mut().zip(low).zip(&bytes[16..48]) {
            *code = (byte >> shift & 0x0f) | (high >> sub_block & 1) << 4;
        }
    }
}

/// Of the 8 sub-blocks of Q4_K and Q5_K.
fn with_minima(bytes: &[u8], groups: &mut [Group]) {
    let (d, dmin) = (half_at(bytes, 0), half_at(bytes, 2));
    for (sub_block, group) in groups.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_min(&bytes[4..16], sub_block);
        *group = Group { scale: d * scale, minimum: -(dmin * minimum) };
    }
}

fn q6_k(bytes: &[u8], codes: &mut [u8], groups: &mut [Group]) {
    let d = half_at(bytes, 208);
    for (group, scale) in groups.iter_mut().zip(&bytes[192..208]) {
        *group = Group { scale: d * f32::from(scale.cast_signed()), minimum: 0.0 };
    }
    for (run, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (run / 4, run % 4);
        let (low, high) = (&bytes[half * 64 + quarter % 2 * 32..][..32], &bytes[128 + half * 32..][..32]);
        for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
            *code = (low >> (quarter / 2 * 4) & 0x0f) | (high >> (quarter * 2) & 3) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::f16;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::super::dequant::dequantize;
    use super::*;

    const TYPES: [GgmlType; 8] = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ];

    /// Any bytes, with scales and minima of a usual size.
    fn blocks(ggml_type: GgmlType, n: usize, seed: u64) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = vec![0; n * ggml_type.block_bytes()];
        rng.fill_bytes(&mut bytes);
        for block in bytes.chunks_mut(ggml_type.block_bytes()) {
            let at: &[usize] = match ggml_type {
                GgmlType::Q6K => &[208],
                GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
                _ => &[0, 2],
            };
            for &at in at {
                block[at..at + 2]
                    .copy_from_slice(&f16::from_f32(0.001 + (rng.next_u32() % 100) as f32 / 1000.0).to_le_bytes());
            }
            // No sub-block of a K-type without a scale.
            if matches!(ggml_type, GgmlType::Q4K | GgmlType::Q5K) {
                block[4..8].iter_mut().for_each(|byte| *byte |= 1);
                block[12..16].iter_mut().for_each(|byte| *byte |= 1);
            }
        }
        bytes
    }

    fn check(found: &[f32], expected: &[f32], what: &str) {
        let largest = expected.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= 2e-6 * largest, "{what}, {index}: {found}, expected {expected}");
        }
    }

    #[test]
    fn codes_stand_for_the_values_of_every_type() {
        for ggml_type in TYPES {
            let bytes = blocks(ggml_type, 6 * 512 / ggml_type.block_len(), 3);
            let expected = dequantize(ggml_type, &bytes);
            let weight = codes(ggml_type, &bytes, [6, 512], Change::Nothing).unwrap();
            check(&weight.dequantize(), &expected, &ggml_type.to_string());
            let change = Change::Interleaved { n_heads: 3 };
            let weight = codes(ggml_type, &bytes, [6, 512], change).unwrap();
            check(&weight.dequantize(), &interleaved_rows_to_halves(&expected, 3, 512), "rotary pairs");
        }
    }

    #[test]
    fn what_has_no_codes_is_left_to_floats() {
        let bytes = blocks(GgmlType::Q4_0, 3, 5);
        assert!(codes(GgmlType::Q4_0, &bytes, [6, 16], Change::Nothing).is_none(), "a block holds two rows");
        assert!(codes(GgmlType::F16, &[0; 64], [1, 32], Change::Nothing).is_none());
        // A minimum without a scale, and none of either.
        let mut bytes = blocks(GgmlType::Q4_1, 2, 7);
        bytes[..2].fill(0);
        assert!(codes(GgmlType::Q4_1, &bytes, [1, 64], Change::Nothing).is_none());
        bytes[2..4].fill(0);
        let weight = codes(GgmlType::Q4_1, &bytes, [1, 64], Change::Nothing).unwrap();
        assert_eq!(weight.dequantize()[..32], [0.0; 32]);
    }
}

//! Codes to the blocks of ggml.

use half::f16;
use rayon::prelude::*;

use super::types::GgmlType;
use super::{BLOCK, zero_points};
use crate::formats::{in_order_of_inputs, n_groups};
use crate::quantized::QuantizedWeight;

/// A block's codes, the code that stands for 0, and the scale.
struct Source<'a> {
    codes: &'a [u8],
    zero: u8,
    scale: f32,
}

/// A linear in a type that meets its [`Needs`](super::Needs), row by row: `[n_out, n_in]`.
///
/// # Panics
/// If the type does not.
pub fn blocks(weight: &QuantizedWeight, ggml_type: GgmlType) -> Vec<u8> {
    assert!(super::Needs::of(weight).are_met_by(ggml_type), "{ggml_type} does not hold {:?}", weight.grid);
    let (scales, zeros) = zero_points(weight);
    let (codes, _) = in_order_of_inputs(weight);
    let (len, n_groups, block_len) = (weight.group_len(), n_groups(weight), ggml_type.block_len());
    let row_bytes = ggml_type.bytes_of(weight.n_in);
    let mut bytes = vec![0; row_bytes * weight.n_out];
    let rows = bytes.par_chunks_mut(row_bytes).zip(codes.par_chunks(weight.n_in)).enumerate();
    rows.for_each(|(row, (bytes, codes))| {
        let blocks = bytes.chunks_mut(ggml_type.block_bytes()).zip(codes.chunks(block_len));
        for (index, (bytes, codes)) in blocks.enumerate() {
            let group = row * n_groups + index * block_len / len;
            write(&Source { codes, zero: zeros[group], scale: scales[group] }, ggml_type, bytes);
        }
    });
    bytes
}

/// Writes one block into its bytes, which are 0.
fn write(source: &Source<'_>, ggml_type: GgmlType, bytes: &mut [u8]) {
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    let steps = |from: i16| source.codes.iter().map(move |&code| i16::from(code) - i16::from(source.zero) + from);
    let minimum = half(-source.scale * f32::from(source.zero));
    match ggml_type {
        GgmlType::Q4_0 => {
            bytes[..2].copy_from_slice(&half(source.scale));
            nibbles(steps(8).map(|q| q as u8), &mut bytes[2..]);
        }
        GgmlType::Q4_1 => {
            bytes[..2].copy_from_slice(&half(source.scale));
            bytes[2..4].copy_from_slice(&minimum);
            nibbles(source.codes.iter().copied(), &mut bytes[4..]);
        }
        GgmlType::Q5_0 => {
            bytes[..2].copy_from_slice(&half(source.scale));
            five_bits(steps(16).map(|q| q as u8), &mut bytes[2..]);
        }
        GgmlType::Q5_1 => {
            bytes[..2].copy_from_slice(&half(source.scale));
            bytes[2..4].copy_from_slice(&minimum);
            five_bits(source.codes.iter().copied(), &mut bytes[4..]);
        }
        GgmlType::Tq2_0 => {
            for (index, q) in steps(1).enumerate() {
                let run = index / BLOCK;
                bytes[run / 4 * BLOCK + index % BLOCK] |= (q as u8) << (run % 4 * 2);
            }
            bytes[64..].copy_from_slice(&half(source.scale));
        }
        GgmlType::Mxfp4 => {
            // A power of two: its exponent, with the bias of f32.
            bytes[0] = (source.scale.to_bits() >> 23) as u8;
            // The sign is the highest bit, and 0 has none.
            nibbles(steps(0).map(|q| q.unsigned_abs() as u8 | if q < 0 { 8 } else { 0 }), &mut bytes[1..]);
        }
        // Of the types that meet any needs, Q8_0 is left.
        _ => {
            bytes[..2].copy_from_slice(&half(source.scale));
            bytes[2..].iter_mut().zip(steps(0)).for_each(|(byte, q)| *byte = q as u8);
        }
    }
}

/// The first half of a block in low nibbles, the second in high ones.
fn nibbles(codes: impl Iterator<Item = u8>, bytes: &mut [u8]) {
    let mut of_block = [0; BLOCK];
    of_block.iter_mut().zip(codes).for_each(|(to, code)| *to = code & 0xF);
    let (low, high) = of_block.split_at(BLOCK / 2);
    bytes.iter_mut().zip(low).zip(high).for_each(|((byte, low), high)| *byte = low | high << 4);
}

/// The fifth bits of all codes, then the other four.
fn five_bits(codes: impl Iterator<Item = u8> + Clone, bytes: &mut [u8]) {
    let (high, low) = bytes.split_at_mut(4);
    for (index, code) in codes.clone().enumerate() {
        high[index / 8] |= (code >> 4 & 1) << (index % 8);
    }
    nibbles(codes, low);
}

//! Blocks of every type beside what PyPI's `gguf` makes of them (`scripts/make-gguf-fixtures.py`).
#![allow(clippy::unwrap_used)]

use std::path::Path;

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::*;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The values of the first blocks lie beside them, of all a digest.
#[test]
fn every_type_of_blocks_is_read_as_gguf_reads_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf-blocks.safetensors");
    let file = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut n_types = 0;
    for id in 0..64 {
        let Some(ggml_type) = GgmlType::from_id(id) else { continue };
        if ggml_type.group_size().is_none() {
            continue;
        }
        n_types += 1;
        let tensor = |what: &str| tensors.tensor(&format!("{id}.{ggml_type}.{what}")).unwrap();
        let (blocks, expected, digest) = (tensor("blocks"), tensor("values"), tensor("sha256"));
        let [n_blocks, block_bytes] = *blocks.shape() else { panic!("{ggml_type}") };
        assert!(n_blocks > 8 && block_bytes == ggml_type.block_bytes(), "{ggml_type}");
        let values = dequantize(ggml_type, blocks.data());
        assert_eq!(values.len(), n_blocks * ggml_type.block_len(), "{ggml_type}");
        let expected: Vec<u32> =
            expected.data().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let (first, known) = (bits(&values[..expected.len()]), &expected);
        if let Some(at) = first.iter().zip(known).position(|(value, known)| value != known) {
            panic!("{ggml_type}, element {at}: {} and not {}", f32::from_bits(first[at]), f32::from_bits(known[at]));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Sha256::digest(bytes)[..], *digest.data(), "{ggml_type}");
    }
    assert_eq!(3 * n_types, tensors.names().len(), "each type of the file is read");
}

#[test]
fn plain_numbers() {
    assert_eq!(dequantize(GgmlType::F32, &1.5_f32.to_le_bytes()), [1.5]);
    assert_eq!(dequantize(GgmlType::F16, &f16::from_f32(-0.25).to_le_bytes()), [-0.25]);
    assert_eq!(dequantize(GgmlType::Bf16, &half::bf16::from_f32(3.0).to_le_bytes()), [3.0]);
    let doubles: Vec<u8> = [0.1, -1e-40, 1e300].into_iter().flat_map(f64::to_le_bytes).collect();
    assert_eq!(dequantize(GgmlType::F64, &doubles), [0.1_f32, -1e-40, f32::INFINITY]);
    assert_eq!(dequantize(GgmlType::I8, &[0x80, 3]), [-128.0, 3.0]);
    assert_eq!(dequantize(GgmlType::I16, &(-300_i16).to_le_bytes()), [-300.0]);
    assert_eq!(dequantize(GgmlType::I32, &16_777_217_i32.to_le_bytes()), [16_777_216.0]);
    assert_eq!(dequantize(GgmlType::I64, &(-5_i64).to_le_bytes()), [-5.0]);
}

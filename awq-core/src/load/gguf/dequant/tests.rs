use super::*;

/// Blocks of pseudo-random bytes with sane `f16` numbers at `halves`.
fn blocks(ggml_type: GgmlType, halves: &[usize]) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes: Vec<u8> = (0..ggml_type.block_bytes() * 5)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    for (index, block) in bytes.chunks_mut(ggml_type.block_bytes()).enumerate() {
        for (which, at) in halves.iter().enumerate() {
            let number = f16::from_f32(0.013 * (index as f32 - 1.7) + 0.4 * which as f32);
            block[*at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

fn half_of(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Compares with `expected`, written as ggml's own loops go; exact, because the arithmetic is the same.
#[track_caller]
fn check(ggml_type: GgmlType, halves: &[usize], expected: fn(&[u8]) -> Vec<f32>) {
    let bytes = blocks(ggml_type, halves);
    let expected: Vec<f32> = bytes.chunks(ggml_type.block_bytes()).flat_map(expected).collect();
    assert_eq!(expected.len(), 5 * ggml_type.block_len());
    assert_eq!(dequantize(ggml_type, &bytes), expected, "{ggml_type}");
}

fn low_then_high(codes: &[u8]) -> Vec<u8> {
    codes.iter().map(|code| code % 16).chain(codes.iter().map(|code| code / 16)).collect()
}

fn with_fifth_bits(codes: &[u8], high: &[u8]) -> Vec<u8> {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    low_then_high(codes)
        .into_iter()
        .enumerate()
        .map(|(j, code)| code + if high & (1 << j) == 0 { 0 } else { 16 })
        .collect()
}

/// All eight (scale, min) pairs.
fn scales(q: &[u8]) -> Vec<(f32, f32)> {
    let first = (0..4).map(|j| (q[j] & 63, q[j + 4] & 63));
    let last = (4..8).map(|j| ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)));
    first.chain(last).map(|(scale, min)| (f32::from(scale), f32::from(min))).collect()
}

#[test]
fn every_type_has_one_row_in_the_table() {
    for id in 0..64 {
        if let Some(ggml_type) = GgmlType::from_id(id) {
            assert!(ggml_type.block_bytes() > 0 && GgmlType::known().contains(&ggml_type.to_string()));
        }
    }
    assert_eq!(GgmlType::known(), "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16");
}

/// As llama.cpp's table of types has them: codes, scales and minima.
#[test]
fn bits_of_a_weight_count_scales_and_minima() {
    let bits = |ggml_type: GgmlType| 8.0 * ggml_type.block_bytes() as f64 / ggml_type.block_len() as f64;
    let expected = [
        (GgmlType::F32, 32.0, None),
        (GgmlType::F16, 16.0, None),
        (GgmlType::Bf16, 16.0, None),
        (GgmlType::Q4_0, 4.5, Some(32)),
        (GgmlType::Q4_1, 5.0, Some(32)),
        (GgmlType::Q5_0, 5.5, Some(32)),
        (GgmlType::Q5_1, 6.0, Some(32)),
        (GgmlType::Q8_0, 8.5, Some(32)),
        (GgmlType::Q4K, 4.5, Some(32)),
        (GgmlType::Q5K, 5.5, Some(32)),
        (GgmlType::Q6K, 6.5625, Some(16)),
    ];
    assert_eq!(expected.len(), TYPES.len());
    for (ggml_type, bits_per_weight, group_size) in expected {
        assert_eq!((bits(ggml_type), ggml_type.group_size()), (bits_per_weight, group_size), "{ggml_type}");
    }
}

#[test]
fn plain_floats() {
    assert_eq!(dequantize(GgmlType::F32, &1.5_f32.to_le_bytes()), [1.5]);
    assert_eq!(dequantize(GgmlType::F16, &f16::from_f32(-0.25).to_le_bytes()), [-0.25]);
    assert_eq!(dequantize(GgmlType::Bf16, &half::bf16::from_f32(3.0).to_le_bytes()), [3.0]);
}

#[test]
fn legacy_blocks() {
    check(GgmlType::Q4_0, &[0], |b| {
        low_then_high(&b[2..]).iter().map(|q| (i32::from(*q) - 8) as f32 * half_of(b, 0)).collect()
    });
    check(GgmlType::Q4_1, &[0, 2], |b| {
        low_then_high(&b[4..]).iter().map(|q| f32::from(*q) * half_of(b, 0) + half_of(b, 2)).collect()
    });
    check(GgmlType::Q5_0, &[0], |b| {
        with_fifth_bits(&b[6..], &b[2..6]).iter().map(|q| (i32::from(*q) - 16) as f32 * half_of(b, 0)).collect()
    });
    check(GgmlType::Q5_1, &[0, 2], |b| {
        with_fifth_bits(&b[8..], &b[4..8]).iter().map(|q| f32::from(*q) * half_of(b, 0) + half_of(b, 2)).collect()
    });
    check(GgmlType::Q8_0, &[0], |b| b[2..].iter().map(|q| f32::from(*q as i8) * half_of(b, 0)).collect());
}

#[test]
fn k_blocks_of_4_and_5_bits() {
    check(GgmlType::Q4K, &[0, 2], |b| {
        let scales = scales(&b[4..16]);
        b[16..]
            .chunks(32)
            .flat_map(low_then_high)
            .enumerate()
            .map(|(i, q)| {
                let (scale, min) = scales[i / 32];
                half_of(b, 0) * scale * f32::from(q) - half_of(b, 2) * min
            })
            .collect()
    });
    check(GgmlType::Q5K, &[0, 2], |b| {
        let scales = scales(&b[4..16]);
        b[48..]
            .chunks(32)
            .flat_map(low_then_high)
            .enumerate()
            .map(|(i, q)| {
                let fifth = if b[16 + i % 32] & (1 << (i / 32)) == 0 { 0 } else { 16 };
                let (scale, min) = scales[i / 32];
                half_of(b, 0) * scale * f32::from(q + fifth) - half_of(b, 2) * min
            })
            .collect()
    });
}

#[test]
fn k_blocks_of_6_bits() {
    check(GgmlType::Q6K, &[208], |b| {
        let mut values = vec![0.0; 256];
        for half in 0..2 {
            let (ql, qh, sc) = (&b[64 * half..], &b[128 + 32 * half..], &b[192 + 8 * half..]);
            for l in 0..32 {
                let codes = [
                    (ql[l] & 0xf) | ((qh[l] & 3) << 4),
                    (ql[l + 32] & 0xf) | (((qh[l] >> 2) & 3) << 4),
                    (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                    (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                ];
                for (quarter, code) in codes.into_iter().enumerate() {
                    let scale = f32::from(sc[l / 16 + 2 * quarter] as i8);
                    values[128 * half + 32 * quarter + l] = half_of(b, 208) * scale * (i32::from(code) - 32) as f32;
                }
            }
        }
        values
    });
}

/// The names and ids of gguf 0.19's `GGMLQuantizationType`, and of the types that `ggml.h` says were removed.
#[test]
fn every_type_has_its_name() {
    for (id, name) in [(0, "F32"), (4, "Q4_2"), (9, "Q8_1"), (10, "Q2_K"), (16, "IQ2_XXS"), (20, "IQ4_NL"), (28, "F64")]
    {
        assert_eq!(type_name(id), name);
    }
    for (id, name) in [(31, "Q4_0_4_4"), (34, "TQ1_0"), (35, "TQ2_0"), (39, "MXFP4"), (40, "NVFP4"), (41, "Q1_0")] {
        assert_eq!(type_name(id), name);
    }
    assert!((0..=42).all(|id| !type_name(id).contains("ggml type")));
    assert_eq!(type_name(43), "ggml type 43, which has no name");
}

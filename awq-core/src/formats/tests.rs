//! What formats write, read again a bit at a time as their makers document it.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU16;

use super::*;
use crate::grid::Bits;

/// A pseudo-random sequence.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % below
    }
}

pub(crate) fn grid(bits: u8, group: Option<u16>, symmetry: Symmetry) -> Grid {
    let granularity =
        group.map_or(Granularity::PerChannel, |size| Granularity::PerGroup(NonZeroU16::new(size).unwrap()));
    Grid { symmetry, ..Grid::awq(Bits::new(bits).unwrap(), granularity) }
}

/// Codes, scales and zero points at random; the first and the last zero point are 0 and the largest code.
pub(crate) fn weight([n_out, n_in]: [usize; 2], grid: Grid) -> QuantizedWeight {
    let mut noise = Noise(7 + n_in as u64 + u64::from(grid.bits.get()));
    let n_codes = u32::from(grid.bits.max_code()) + 1;
    let n_scales = grid.granularity.groups(n_out, n_in).n_groups();
    let codes = (0..n_out * n_in).map(|_| noise.next(n_codes) as u8).collect();
    let scale = (0..n_scales).map(|_| half::f16::from_f32(0.001 + noise.next(1000) as f32 * 1e-4).to_f32()).collect();
    let mut zeros: Vec<u8> = (0..n_scales).map(|_| noise.next(n_codes) as u8).collect();
    zeros[n_scales - 1] = grid.bits.max_code();
    zeros[0] = 0;
    if grid.symmetry != Symmetry::Asymmetric {
        zeros.fill(grid.bits.max_code() / 2 + 1);
    }
    let zero_point = ZeroPoints::Codes(zeros);
    QuantizedWeight { n_out, n_in, grid, codes, scale, zero_point, transform: WeightTransform::Identity }
}

/// Channels in an order that keeps no group together.
pub(crate) fn permuted(weight: QuantizedWeight) -> QuantizedWeight {
    let order: Vec<u32> = (0..weight.n_in as u32).map(|channel| channel * 5 % weight.n_in as u32).collect();
    QuantizedWeight { transform: WeightTransform::PermutedInputs(order), ..weight }
}

/// Tensors by part.
struct Stored(Vec<FormatTensor>);

impl Stored {
    fn tensor(&self, part: &str) -> &FormatTensor {
        self.0.iter().find(|tensor| tensor.part == part).unwrap_or_else(|| panic!("no {part}"))
    }

    /// Words and their columns.
    fn words(&self, part: &str) -> (Vec<u32>, usize) {
        let tensor = self.tensor(part);
        assert_eq!((tensor.dtype, tensor.bytes.len()), ("I32", 4 * tensor.shape.iter().product::<usize>()), "{part}");
        let words = tensor.bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        (words, *tensor.shape.last().unwrap())
    }

    fn half(&self, part: &str, row: usize, column: usize) -> f32 {
        let tensor = self.tensor(part);
        assert_eq!(tensor.dtype, "F16");
        let at = 2 * (row * tensor.shape[1] + column);
        half::f16::from_le_bytes([tensor.bytes[at], tensor.bytes[at + 1]]).to_f32()
    }

    /// A code in a row of words, from its first bit on.
    fn along_row(&self, part: &str, row: usize, first_bit: usize, bits: u8) -> u32 {
        let (words, width) = self.words(part);
        (0..usize::from(bits)).map(|i| bit(words[row * width + (first_bit + i) / 32], first_bit + i) << i).sum()
    }

    /// The same in a column.
    fn along_column(&self, part: &str, column: usize, first_bit: usize, bits: u8) -> u32 {
        let (words, width) = self.words(part);
        (0..usize::from(bits)).map(|i| bit(words[(first_bit + i) / 32 * width + column], first_bit + i) << i).sum()
    }
}

fn bit(word: u32, at: usize) -> u32 {
    word >> (at % 32) & 1
}

/// A value of each weight, from a code and the group and zero point of a channel.
fn check(format: &dyn Format, weight: &QuantizedWeight, read: impl Fn(&Stored, usize, usize) -> f32) {
    let linear = PlannedLinear { grid: weight.grid, shape: [weight.n_out, weight.n_in] };
    let stored =
        StoredParts { has_input_order: weight.transform != WeightTransform::Identity, ..StoredParts::default() };
    assert_eq!(format.holds(&linear, stored), Ok(()));
    let (stored, expected) = (Stored(format.tensors(weight)), weight.dequantize());
    for out in 0..weight.n_out {
        for at in 0..weight.n_in {
            let found = read(&stored, out, at);
            assert_eq!(found, expected[out * weight.n_in + at], "{}: {out}, {at} of {:?}", format.key(), weight.grid);
        }
    }
}

const SYMMETRIES: [Symmetry; 3] = [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted];

fn awq_value(stored: &Stored, group: usize, out: usize, at: usize) -> f32 {
    // AutoAWQ's order of reading: output `8c + j` is in nibble `REVERSE[j]`.
    const REVERSE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let nibble = |part, row| stored.along_row(part, row, out / 8 * 32 + 4 * REVERSE[out % 8], 4) as f32;
    (nibble("qweight", at) - nibble("qzeros", group)) * stored.half("scales", group, out)
}

#[test]
fn awq_is_read_as_its_maker_reads_it() {
    for symmetry in SYMMETRIES {
        for (group, len) in [(Some(16), 16), (Some(48), 48), (None, 48)] {
            let weight = weight([24, 48], grid(4, group, symmetry));
            check(&awq::Gemm, &weight, |stored, out, at| awq_value(stored, at / len, out, at));
        }
    }
    // A group for the whole row knows no order.
    let weight = permuted(weight([8, 12], grid(4, None, Symmetry::Asymmetric)));
    check(&awq::Gemm, &weight, |stored, out, at| awq_value(stored, 0, out, at));
}

/// One is added to each zero point of a word from the lowest on, with a carry into the next as GPTQModel's sum of words has it.
fn zero_of_v1(stored: &Stored, group: usize, out: usize, bits: u8) -> f32 {
    let of = |out: usize| stored.along_row("qzeros", group, out * usize::from(bits), bits);
    let n_codes = 1 << bits;
    if bits == 3 {
        return ((of(out) + 1) % n_codes) as f32;
    }
    let first = out - out % (32 / usize::from(bits));
    let carry = (first..out).fold(0, |carry, earlier| (of(earlier) + 1 + carry) / n_codes);
    ((of(out) + 1 + carry) % n_codes) as f32
}

#[test]
fn gptq_is_read_as_gptqmodel_reads_it() {
    for bits in [2, 3, 4, 8] {
        for symmetry in SYMMETRIES {
            // Ragged, longer than the row, and one group.
            for group in [Some(24), Some(500), None] {
                let weight = weight([32, 64], grid(bits, group, symmetry));
                for weight in [permuted(weight.clone()), weight] {
                    for version in [gptq::V1, gptq::V2] {
                        check(&version, &weight, |stored, out, at| {
                            let group = stored.words("g_idx").0[at] as usize;
                            let zero = match version {
                                gptq::V1 => zero_of_v1(stored, group, out, bits),
                                _ => stored.along_row("qzeros", group, out * usize::from(bits), bits) as f32,
                            };
                            let code = stored.along_column("qweight", out, at * usize::from(bits), bits);
                            (code as f32 - zero) * stored.half("scales", group, out)
                        });
                    }
                }
            }
        }
    }
}

/// Numbers of transformers and of GPTQModel 7.7.0: 8 in each code is -2004318072, of version 1 2004318071.
#[test]
fn zero_points_of_version_1_are_less_one() {
    let weight = weight([32, 32], grid(4, None, Symmetry::SymmetricFullRange));
    let zeros = |format: &dyn Format| Stored(format.tensors(&weight)).words("qzeros").0;
    assert_eq!((zeros(&gptq::V1), zeros(&gptq::V2)), (vec![0x7777_7777; 4], vec![0x8888_8888; 4]));
    let weight = self::weight([32, 32], grid(3, None, Symmetry::SymmetricFullRange));
    let zeros = Stored(gptq::V1.tensors(&weight)).words("qzeros").0;
    assert_eq!(zeros, [0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D]);
}

#[test]
fn reading_a_version_1_undoes_writing_it() {
    for bits in [2, 3, 4, 8].map(|bits| Bits::new(bits).unwrap()) {
        let mut noise = Noise(3);
        let words: Vec<u32> = (0..24).map(|_| noise.next(u32::MAX)).collect();
        let n = words.len() / 2 * 32 / usize::from(bits.get());
        let mut changed = words.clone();
        gptq::plus_one(&mut changed, n, bits);
        assert_ne!(changed, words);
        gptq::less_one(&mut changed, n, bits);
        assert_eq!(changed, words);
    }
}

#[test]
fn compressed_tensors_are_read_as_their_maker_reads_them() {
    for bits in 2..=8_u8 {
        for symmetry in SYMMETRIES {
            for (group, len) in [(Some(15), 15), (Some(45), 45), (None, 45)] {
                // Rows of no whole words.
                let weight = weight([13, 45], grid(bits, group, symmetry));
                for format in [compressed::DENSE, compressed::WHOLE] {
                    let place = |index: usize| match format {
                        compressed::DENSE => index * usize::from(bits),
                        _ => {
                            index / (32 / usize::from(bits)) * 32 + index % (32 / usize::from(bits)) * usize::from(bits)
                        }
                    };
                    check(&format, &weight, |stored, out, at| {
                        let middle = 1_i32 << (bits - 1);
                        let signed = |code: u32| code as i32 - middle;
                        let zero = match symmetry {
                            Symmetry::Asymmetric => {
                                signed(stored.along_column("weight_zero_point", at / len, place(out), bits))
                            }
                            _ => 0,
                        };
                        let code = signed(stored.along_row("weight_packed", out, place(at), bits));
                        (code - zero) as f32 * stored.half("weight_scale", out, at / len)
                    });
                }
            }
        }
    }
    let weight = weight([3, 20], Grid { scale_dtype: ScaleDtype::F32, ..grid(4, Some(5), Symmetry::Asymmetric) });
    let stored = Stored(compressed::DENSE.tensors(&weight));
    assert_eq!((stored.tensor("weight_scale").dtype, &stored.tensor("weight_scale").shape), ("F32", &vec![3, 4]));
    assert_eq!(stored.tensor("weight_shape").bytes, [3, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0]);
}

/// A scale of the whole matrix is one of each row.
#[test]
fn a_scale_of_the_matrix_is_repeated() {
    let grid = Grid { granularity: Granularity::PerTensor, ..grid(4, None, Symmetry::Asymmetric) };
    let weight = weight([8, 8], grid);
    check(&awq::Gemm, &weight, |stored, out, at| awq_value(stored, 0, out, at));
    let stored = Stored(gptq::V2.tensors(&weight));
    assert_eq!(stored.tensor("scales").shape, [1, 8]);
}

#[test]
fn transposing_takes_every_value_to_its_place() {
    for [rows, columns] in [[0, 3], [3, 0], [1, 1], [5, 64], [7, 65], [130, 3]] {
        let matrix: Vec<u32> = (0..rows * columns).map(|value| value as u32).collect();
        let found = transposed(&matrix, columns);
        let expected: Vec<u32> =
            (0..columns).flat_map(|column| (0..rows).map(move |row| (row * columns + column) as u32)).collect();
        assert_eq!(found, expected);
    }
}

fn plan(linears: &[(&str, Grid, [usize; 2])], stored: StoredParts) -> Plan {
    let one = |(name, grid, shape): &(&str, Grid, [usize; 2])| {
        ((*name).to_owned(), PlannedLinear { grid: *grid, shape: *shape })
    };
    Plan {
        linears: linears.iter().map(one).collect(),
        others: vec!["lm_head".into()],
        stored,
        dtype: None,
        writer: "awq-rs 0.1.0".into(),
        obstacle: None,
        gguf_obstacle: Some("there is no tokenizer".into()),
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_those_that_can() {
    let (plain, w4) = (StoredParts::default(), grid(4, Some(128), Symmetry::Asymmetric));
    let message = |key: &str, linears: &[_], stored| problem(named(key).unwrap(), &plan(linears, stored));
    let shape = [64, 256];
    assert_eq!(message("awq", &[("a.q", w4, shape)], plain), None);
    let all = "packed, awq, gptq, gptq_v2, compressed-tensors, compressed-tensors-0.17, gguf";
    assert_eq!(FORMATS.iter().fold(PACKED.to_owned(), |all, format| all + ", " + format.key()), all);
    let ragged = message("awq", &[("a.q", w4, [64, 576])], plain).unwrap();
    assert_eq!(
        ragged,
        "format `awq`: a.q: groups of 128 do not divide 576 input channels (--group-size may); choose one of packed, gptq, gptq_v2"
    );
    let w3 = grid(3, Some(64), Symmetry::Asymmetric);
    assert_eq!(
        message("awq", &[("a.q", w3, shape)], plain).unwrap(),
        "format `awq`: a.q: it has 4 bits, not 3; choose one of packed, gptq, gptq_v2, compressed-tensors, compressed-tensors-0.17"
    );
    let odd = message("gptq", &[("a.q", w3, [40, 256])], plain).unwrap();
    assert!(
        odd.contains("codes of 40 output channels in 3 bits do not fill words of 32; choose one of packed, comp"),
        "{odd}"
    );
    let w5 = message("gptq_v2", &[("a.q", grid(5, None, Symmetry::Asymmetric), shape)], plain).unwrap();
    assert!(w5.contains("it has 2, 3, 4 or 8 bits, not 5"), "{w5}");
    let ordered = StoredParts { has_input_order: true, ..plain };
    let order = message("compressed-tensors", &[("a.q", w4, shape)], ordered).unwrap();
    assert!(order.contains("follow an order of rounding") && order.ends_with("packed, gptq, gptq_v2"), "{order}");
    for (stored, said) in [
        (StoredParts { has_real_zero_points: true, ..plain }, "its zero points are codes"),
        (StoredParts { beside: Some("rotations"), ..plain }, "no place for rotations"),
    ] {
        for format in FORMATS {
            let planned = Plan { gguf_obstacle: None, ..plan(&[("a.q", w4, shape)], stored) };
            let found = problem(*format, &planned).unwrap();
            assert!(found.contains(said) && found.ends_with("; choose one of packed"), "{found}");
        }
    }
    let mixed = [("a.k", w4, shape), ("a.q", w4, shape), ("a.v", grid(8, None, Symmetry::Asymmetric), shape)];
    let mixed = message("awq", &mixed, plain).unwrap();
    assert!(mixed.contains("a.v: it has 4 bits, not 8"), "{mixed}");
    let f32 = message("gptq", &[("a.q", Grid { scale_dtype: ScaleDtype::F32, ..w4 }, shape)], plain).unwrap();
    assert!(f32.contains("its scales are f16, not f32; choose one of packed, compressed-tensors,"), "{f32}");
    let nf4 = Grid::of_codebook(crate::codebook::Codebook::Nf4, w4.granularity, ScaleDtype::F16);
    assert!(message("gptq", &[("a.q", nf4, shape)], plain).unwrap().contains("not those of the table NF4"));
    let head = message("awq", &[("a.q", w4, shape), ("lm_head", w4, shape)], plain).unwrap();
    assert!(
        head.contains("loaders keep `lm_head` in full precision; choose one of packed, compressed-tensors,"),
        "{head}"
    );
    for key in ["gptq", "gptq_v2"] {
        let head = message(key, &[("a.q", w4, shape), ("lm_head", w4, shape)], plain).unwrap();
        let expected = "transformers does not read `lm_head` in it, and draws one at random; choose one of packed, compressed-tensors,";
        assert!(head.contains(expected), "{head}");
    }
}

/// What a user is told before the work: of free zero points in version 1, of scales in the model's type.
#[test]
fn surprises_of_loaders_are_notes() {
    let notes = |key: &str, symmetry, dtype: Option<&str>| {
        let plan = plan(&[("a.q", grid(4, Some(128), symmetry), [64, 256])], StoredParts::default());
        named(key).unwrap().notes(&Plan { dtype: dtype.map(str::to_owned), ..plan })
    };
    let bf16 = Some("bfloat16");
    for format in FORMATS {
        let (free, fixed) = (Symmetry::Asymmetric, Symmetry::SymmetricFullRange);
        let found = [(free, bf16), (free, Some("float16")), (fixed, bf16)].map(|(symmetry, dtype)| {
            notes(format.key(), symmetry, dtype).first().map_or("", |note| note.split(' ').next().unwrap()).to_owned()
        });
        let expected = match format.key() {
            "gptq" => ["GPTQModel.load", "GPTQModel.load", ""],
            "compressed-tensors" | "compressed-tensors-0.17" => ["config.json", "", "config.json"],
            _ => [""; 3],
        };
        assert_eq!(found, expected, "{}", format.key());
    }
}

#[test]
fn settings_name_what_is_quantized_otherwise_or_not_at_all() {
    let (w4, w8) = (grid(4, Some(64), Symmetry::Asymmetric), grid(8, None, Symmetry::SymmetricFullRange));
    let shape = [64, 64];
    let mut mixed = plan(&[("m.0.k", w4, shape), ("m.0.q", w4, shape), ("m.0.v", w8, shape)], StoredParts::default());
    mixed.others = vec!["m.0.o".into(), "lm_head".into()];
    let gptq = gptq::V2.settings(&mixed);
    assert_eq!(
        gptq["dynamic"],
        serde_json::json!({ "-:^m\\.0\\.o$": {}, "+:^m\\.0\\.v$": { "bits": 8, "group_size": -1, "sym": true } })
    );
    assert_eq!(
        (&gptq["bits"], &gptq["checkpoint_format"], &gptq["sym"]),
        (&4.into(), &"gptq_v2".into(), &false.into())
    );
    assert_eq!(gptq["modules_in_block_to_quantize"], serde_json::json!([["m.0.k", "m.0.q", "m.0.v"]]));
    let all = gptq::V2.settings(&plan(&[("m.0.k", w4, shape)], StoredParts::default()));
    assert_eq!(all["modules_in_block_to_quantize"], Json::Null, "loaders know the linears of a model");
    let compressed = compressed::DENSE.settings(&mixed);
    assert_eq!(compressed["ignore"], serde_json::json!(["m.0.o", "lm_head"]));
    let group = &compressed["config_groups"]["group_1"];
    assert_eq!(group["targets"], serde_json::json!(["m.0.v"]));
    assert_eq!((&group["weights"]["num_bits"], &group["weights"]["strategy"]), (&8.into(), &"channel".into()));
    mixed.linears.remove("m.0.v");
    assert_eq!(awq::Gemm.settings(&mixed)["modules_to_not_convert"], serde_json::json!(["m.0.o", "lm_head"]));
    assert_eq!(
        awq::Gemm.settings(&plan(&[("a", w4, shape)], StoredParts::default()))["modules_to_not_convert"],
        Json::Null
    );
}

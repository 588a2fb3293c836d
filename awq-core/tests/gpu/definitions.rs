//! What GPU backends run in plain tensor operations, against the loops of the CPU.

use awq_core::backend::{AttentionShape, QuantBackend, RotaryTable, float_vec};
use awq_core::grid::Grid;
use burn::tensor::Tensor;

use crate::support::{Cpu, check_close, grid, group, numbers, tensor};
use crate::{Gpu, PRODUCT_TOLERANCE, has_device};

/// A name and what a backend computes.
type Named = (&'static str, Vec<f32>);

fn attention<B: QuantBackend>(seq: usize, window: Option<usize>) -> Vec<f32> {
    let shape = AttentionShape { window, ..AttentionShape::new(6, 2, 16) };
    let rows = |heads: usize, seed| tensor::<B, 3>(&numbers(2 * seq * heads * 16, seed), [2, seq, heads * 16]);
    let angles: Vec<f32> = (0..seq * 8).map(|i| (i / 8) as f32 * 0.7_f32.powi((i % 8) as i32)).collect();
    let of = |f: fn(f32) -> f32| tensor::<B, 2>(&angles.iter().map(|&angle| f(angle)).collect::<Vec<_>>(), [seq, 8]);
    let table = RotaryTable { cos: of(f32::cos), sin: of(f32::sin) };
    float_vec(B::causal_attention(rows(6, 1), rows(2, 2), rows(2, 3), Some(&table), &shape))
}

fn block_parts<B: QuantBackend>() -> Vec<Named> {
    let x = |seed| tensor::<B, 3>(&numbers(2 * 45 * 70, seed), [2, 45, 70]);
    let vector = |seed| tensor::<B, 1>(&numbers(70, seed), [70]);
    let logits: Vec<f32> = numbers(41 * 1003, 8).iter().map(|x| 20.0 * x).collect();
    let targets: Vec<u32> = (0..41).map(|row| row * 977 % 1003).collect();
    let matrix = |n, seed| tensor::<B, 2>(&numbers(n * 70, seed), [n, 70]);
    vec![
        ("attention", attention::<B>(33, None)),
        ("attention in windows", attention::<B>(33, Some(5))),
        // More queries than are scored at once.
        ("attention of a long sequence", attention::<B>(700, None)),
        ("attention of a long sequence in windows", attention::<B>(700, Some(150))),
        ("rms_norm", float_vec(B::rms_norm(x(4), vector(5), 1e-5))),
        ("layer_norm", float_vec(<B as QuantBackend>::layer_norm(x(4) + 3.0, vector(5), vector(9), 1e-5))),
        ("swiglu", float_vec(B::swiglu(x(6) * 30.0, x(7)))),
        ("token_nll", B::token_nll(tensor(&logits, [41, 1003]), &targets)),
        ("squared_distance", vec![B::squared_distance(&x(1), &x(2)) as f32]),
        ("matmul_transposed", float_vec(B::matmul_transposed(matrix(33, 1), matrix(65, 2)))),
        ("matmul_transposed_bf16", float_vec(B::matmul_transposed_bf16(matrix(33, 1), matrix(65, 2)))),
    ]
}

#[test]
fn the_parts_of_a_block_agree() {
    if !has_device("the_parts_of_a_block_agree") {
        return;
    }
    for ((what, found), (_, expected)) in block_parts::<Gpu>().iter().zip(block_parts::<Cpu>()) {
        check_close(what, found, &expected, PRODUCT_TOLERANCE);
    }
}

fn quantized<B: QuantBackend>(grid: &Grid) -> Vec<Named> {
    let weight = || tensor::<B, 2>(&numbers(70 * 576, 9), [70, 576]);
    let scale: Tensor<B, 1> = tensor::<B, 1>(&numbers(576, 3), [576]).abs() + 0.5;
    let codes = B::quantize_weight(weight(), grid);
    vec![
        ("scales", codes.scale.clone()),
        ("quantize_weight", codes.dequantize()),
        ("fake_quant", float_vec(B::fake_quant(weight(), grid))),
        ("fake_quant_scaled", float_vec(B::fake_quant_scaled(weight(), scale, grid))),
    ]
}

/// A weight half way between two codes may be rounded the other way where a division differs in its last bit.
#[test]
fn weights_are_rounded_to_the_same_codes() {
    if !has_device("weights_are_rounded_to_the_same_codes") {
        return;
    }
    for bits in [4, 3, 2] {
        let grid = grid(bits, group(128));
        for ((what, found), (_, expected)) in quantized::<Gpu>(&grid).iter().zip(quantized::<Cpu>(&grid)) {
            let n_different = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1e-5).count();
            assert!(n_different * 2000 <= found.len(), "{what}, {bits} bits: {n_different} of {} differ", found.len());
        }
    }
}

fn clipped<B: QuantBackend>() -> (Vec<f32>, f64, f64) {
    let rows = tensor::<B, 2>(&numbers(40 * 96, 11), [40, 96]);
    let grams: Vec<_> = [(0, 64), (64, 32)]
        .map(|(start, len)| rows.clone().narrow(1, start, len))
        .map(|x| x.clone().transpose().matmul(x))
        .into();
    let weight = tensor(&numbers(70 * 96, 10), [70, 96]);
    let found = B::clip_search(weight, &grams, &grid(3, group(64)), &[1.0, 0.9, 0.8, 0.7]);
    (float_vec(found.bound), found.loss_before, found.loss_after)
}

#[test]
fn clip_searches_find_the_same_bounds() {
    if !has_device("clip_searches_find_the_same_bounds") {
        return;
    }
    let ((bounds, before, after), (expected, expected_before, expected_after)) = (clipped::<Gpu>(), clipped::<Cpu>());
    let tolerance = 10.0 * PRODUCT_TOLERANCE;
    check_close("losses", &[before as f32, after as f32], &[expected_before as f32, expected_after as f32], tolerance);
    // Two factors that lose about the same may change places.
    let n_different = bounds.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1e-5).count();
    let allowed = if cfg!(feature = "cuda") { bounds.len() / 20 } else { 2 };
    assert!(n_different <= allowed, "{n_different} of {} bounds differ", bounds.len());
}

//! What GPU backends run in plain tensor operations, against the loops of the CPU.

use awq_core::backend::{AttentionShape, QuantBackend, RotaryTable, Total, float_vec};
use awq_core::grid::{Grid, ScaleDtype};
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

/// Products of `[batch, m, k]` and `[batch, k, n]`, where `k` may lie in the first dimension of either factor in memory.
fn dense<B: QuantBackend>() -> Vec<(String, Vec<f32>)> {
    let mut products = Vec::new();
    for [batch, m, k, n] in
        [[1, 1, 1, 1], [1, 1, 70, 33], [2, 33, 70, 1], [3, 64, 64, 64], [1, 130, 257, 65], [2, 300, 40, 7]]
    {
        // Every layout of one of them: kernels are compiled anew for each.
        for turned in if m == 130 { 0..4 } else { 2..3 } {
            let factor = |is_turned: bool, rows: usize, columns: usize, seed: u64| {
                let values = numbers(batch * rows * columns, seed);
                match is_turned {
                    false => tensor::<B, 3>(&values, [batch, rows, columns]),
                    true => tensor::<B, 3>(&values, [batch, columns, rows]).swap_dims(1, 2),
                }
            };
            let product = B::matmul(factor(turned & 1 == 1, m, k, 1), factor(turned & 2 == 2, k, n, 2));
            assert_eq!(product.dims(), [batch, m, n]);
            products.push((format!("[{batch}, {m}, {k}, {n}], turned {turned}"), float_vec(product)));
        }
    }
    products
}

#[test]
fn dense_products_of_all_sizes_and_layouts_agree() {
    if !has_device("dense_products_of_all_sizes_and_layouts_agree") {
        return;
    }
    for ((what, found), (_, expected)) in dense::<Gpu>().iter().zip(dense::<Cpu>()) {
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

#[test]
fn scales_are_rounded_to_f16_as_on_the_host() {
    if !has_device("scales_are_rounded_to_f16_as_on_the_host") {
        return;
    }
    // Ties of either kind, the last value and what lies behind it, f16's smallest values and half of the smallest.
    let mut values = vec![
        0.0,
        1.0,
        2049.0,
        2051.0,
        65_504.0,
        65_519.9,
        65_520.0,
        1e6,
        f32::INFINITY,
        6.1e-5,
        6e-8,
        2.98e-8,
        2.99e-8,
    ];
    values.extend((1..2000).map(|i| (i as f32 - 0.5) * 2.0_f32.powi(-24)));
    values.extend((0..4000).map(|i| 1e-9 * 1.009_f32.powi(i)));
    values.extend(values.clone().iter().map(|x| -x));
    let n = values.len();
    let found = float_vec(Gpu::round_scales(tensor::<Gpu, 2>(&values, [n, 1]), ScaleDtype::F16));
    for (value, found) in values.iter().zip(found) {
        let expected = ScaleDtype::F16.round(*value);
        assert_eq!(found.to_bits(), expected.to_bits(), "{value:e} is {found:e} instead of {expected:e}");
    }
}

#[test]
fn sums_that_are_read_at_once_are_those_read_one_by_one() {
    if !has_device("sums_that_are_read_at_once_are_those_read_one_by_one") {
        return;
    }
    let matrix = |seed| tensor::<Gpu, 2>(&numbers(70 * 70, seed), [70, 70]);
    let totals = vec![
        Gpu::dot_product_later(matrix(1), matrix(2)),
        Total::Known(0.1),
        Gpu::squared_distance_later(&matrix(3), &matrix(4)),
        Gpu::quadratic_form_later(matrix(5), matrix(6)),
    ];
    assert!(totals.iter().filter(|total| matches!(total, Total::Queued(_))).count() == 3);
    let expected = [
        Gpu::dot_product(matrix(1), matrix(2)),
        0.1,
        Gpu::squared_distance(&matrix(3), &matrix(4)),
        Gpu::quadratic_form(matrix(5), matrix(6)),
    ];
    let found = Total::read(totals);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        // Once, on Mesa and before a kernel was chosen, two calls differed in the last digit.
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} instead of {expected}");
    }
}

fn clipped<B: QuantBackend>() -> (Vec<f32>, f64, f64) {
    let rows = tensor::<B, 2>(&numbers(40 * 224, 11), [40, 224]);
    let grams: Vec<_> = [(0, 64), (64, 64), (128, 64), (192, 32)]
        .map(|(start, len)| rows.clone().narrow(1, start, len))
        .map(|x| x.clone().transpose().matmul(x))
        .into();
    let weight = tensor(&numbers(70 * 224, 10), [70, 224]);
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

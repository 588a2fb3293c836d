//! The single-pass loops of the CPU backends against the definitions in tensor operations, and at several thread counts.

use awq_core::activation::Activation;
use awq_core::backend::{AttentionShape, QuantBackend, RotaryTable, SlopeBias, Slopes, float_vec};
use awq_core::kernel::{Activations, Kernel};

use crate::support::{Cpu, Definition, OtherCpu, check_close, grid, group, numbers, tensor, with_threads};

const BATCH: usize = 2;
const GQA: AttentionShape = AttentionShape::new(6, 2, 16);
const MHA: AttentionShape = AttentionShape::new(3, 3, 10);

fn attention<B: QuantBackend>(seq: usize, shape: &AttentionShape, rotary: bool) -> Vec<f32> {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *shape;
    let rows = |heads: usize, seed| {
        let values: Vec<f32> = numbers(BATCH * seq * heads * head_dim, seed).iter().map(|x| 4.0 * x).collect();
        tensor::<B, 3>(&values, [BATCH, seq, heads * head_dim])
    };
    // The table may be longer than the sequence.
    let half = head_dim / 2;
    let angles: Vec<f32> = (0..(seq + 3) * half).map(|i| (i / half) as f32 * 0.7_f32.powi((i % half) as i32)).collect();
    let of =
        |f: fn(f32) -> f32| tensor::<B, 2>(&angles.iter().map(|&angle| f(angle)).collect::<Vec<_>>(), [seq + 3, half]);
    let table = RotaryTable { cos: of(f32::cos), sin: of(f32::sin) };
    let table = rotary.then_some(&table);
    float_vec(B::causal_attention(rows(n_heads, 1), rows(n_kv_heads, 2), rows(n_kv_heads, 3), table, shape))
}

/// A kernel of the CPU has the same products whatever backend hands it activations, of a view as well.
#[test]
fn kernels_of_the_cpu_serve_every_backend() {
    fn products<B: QuantBackend>() -> Vec<f32> {
        let weight = B::quantize_weight(tensor::<B, 2>(&numbers(24 * 40, 1), [24, 40]), &grid(4, group(32)));
        let packed = Kernel::best(Activations::Int16).pack(&weight).unwrap();
        let x = tensor::<B, 2>(&numbers(50 * 40, 2), [40, 50]).transpose();
        let product = B::matmul_on_host(x, packed.as_ref());
        assert_eq!(product.dims(), [50, 24]);
        float_vec(product)
    }
    let expected = products::<Definition>();
    assert_eq!(products::<Cpu>(), expected);
    assert_eq!(products::<OtherCpu>(), expected);
}

#[test]
fn attention_agrees_with_its_definition() {
    // Windows of one position, within a block of queries, of a whole block, over several, and of more than there is.
    let windows = [None, Some(1), Some(5), Some(128), Some(200), Some(4096)];
    for shape in windows.iter().flat_map(|&window| [AttentionShape { window, ..GQA }, AttentionShape { window, ..MHA }])
    {
        for seq in [1, 7, 128, 129, 300] {
            for rotary in [false, true] {
                let shape = &shape;
                let what = format!("{shape:?}, {seq} tokens, rotary {rotary}");
                let expected = attention::<Definition>(seq, shape, rotary);
                check_close(&what, &attention::<Cpu>(seq, shape, rotary), &expected, 1e-5);
                check_close(&what, &attention::<OtherCpu>(seq, shape, rotary), &expected, 1e-5);
            }
        }
    }
}

/// Scores of another scale that are capped and fall with the distance, and heads of which the first channels are rotated.
#[test]
fn scaled_capped_sloped_and_partly_rotated_attention_agrees_with_its_definition() {
    let slopes = |bias| Some(Slopes { of_heads: vec![0.5, 0.25, 0.1, 0.01, 0.3, 0.7], bias });
    let distance = slopes(SlopeBias::Distance);
    let shape = AttentionShape { scale: Some(0.4), cap: Some(1.5), window: Some(50), slopes: distance, ..GQA };
    let run = |shape: &AttentionShape, half: usize| {
        fn of<B: QuantBackend>(shape: &AttentionShape, half: usize) -> Vec<f32> {
            let rows = |heads: usize, seed| {
                let values: Vec<f32> = numbers(129 * heads * 16, seed).iter().map(|x| 4.0 * x).collect();
                tensor::<B, 3>(&values, [1, 129, heads * 16])
            };
            let angles: Vec<f32> =
                (0..129 * half).map(|i| (i / half) as f32 * 0.7_f32.powi((i % half) as i32)).collect();
            let of = |f: fn(f32) -> f32| {
                tensor::<B, 2>(&angles.iter().map(|&angle| f(angle)).collect::<Vec<_>>(), [129, half])
            };
            let table = RotaryTable { cos: of(f32::cos), sin: of(f32::sin) };
            float_vec(B::causal_attention(rows(6, 1), rows(2, 2), rows(2, 3), Some(&table), shape))
        }
        let expected = of::<Definition>(shape, half);
        check_close(&format!("{shape:?}, {half} pairs"), &of::<Cpu>(shape, half), &expected, 1e-5);
        expected
    };
    let expected = run(&shape, 3);
    for (other, half) in [
        (AttentionShape { scale: None, ..shape.clone() }, 3),
        (AttentionShape { cap: None, ..shape.clone() }, 3),
        (AttentionShape { slopes: None, ..shape.clone() }, 3),
        (AttentionShape { slopes: slopes(SlopeBias::Bf16Position { divisor: 3.0 }), ..shape.clone() }, 3),
        (shape.clone(), 8),
    ] {
        let other = run(&other, half);
        assert!(expected.iter().zip(&other).any(|(a, b)| (a - b).abs() > 0.01), "it changes nothing");
    }
}

#[test]
fn activations_and_caps_agree_with_their_definitions() {
    let values: Vec<f32> = numbers(70_000, 4).iter().map(|x| 20.0 * x).collect();
    for activation in [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let run =
            |found: Vec<f32>, expected: Vec<f32>| check_close(&format!("{activation:?}"), &found, &expected, 1e-6);
        let definition = float_vec(Definition::activate(activation, tensor(&values, [1, 1, 70_000])));
        run(float_vec(Cpu::activate(activation, tensor(&values, [1, 1, 70_000]))), definition);
    }
    let gelu = float_vec(Definition::activate(Activation::GeluTanh, tensor(&[1.0, -1.0, 3.0, -60.0], [1, 1, 4])));
    // `torch.nn.functional.gelu(x, approximate="tanh")`.
    check_close("GELU", &gelu, &[0.841_192, -0.158_808, 2.996_363, 0.0], 1e-6);
    let gelu = float_vec(Definition::activate(Activation::Gelu, tensor(&[1.0, -1.0, 3.0, -60.0], [1, 1, 4])));
    check_close("GELU", &gelu, &[0.841_345, -0.158_655, 2.995_95, 0.0], 1e-6);
    let capped = float_vec(Definition::soft_cap(tensor(&values, [7, 10_000]), 3.0));
    check_close("cap", &float_vec(Cpu::soft_cap(tensor(&values, [7, 10_000]), 3.0)), &capped, 1e-6);
    assert!(capped.iter().all(|x| x.abs() <= 3.0) && (capped[0] - 3.0 * (values[0] / 3.0).tanh()).abs() < 1e-6);
}

/// The definition itself, against scalars: position 0 sees only itself, later ones a softmax over what came before, and of
/// that the last `window` positions. 1030 queries are more than are scored at once, twice.
#[test]
fn attention_is_a_causal_softmax() {
    for seq in [3, 1030] {
        for window in [None, Some(1), Some(2), Some(700), Some(2000)] {
            check_definition(seq, window);
        }
    }
}

#[track_caller]
fn check_definition(seq: usize, window: Option<usize>) {
    let shape = AttentionShape { window, ..AttentionShape::new(2, 1, 2) };
    let (q, k, v) = (numbers(seq * 4, 1), numbers(seq * 2, 2), numbers(seq * 2, 3));
    let mut expected = vec![0.0_f64; seq * 4];
    for query in 0..seq {
        // Key j is seen where i - window < j <= i, as in transformers' `sliding_window_overlay`.
        let is_seen = |&key: &usize| window.is_none_or(|window| key as i64 > query as i64 - window as i64);
        let seen: Vec<usize> = (0..=query).filter(is_seen).collect();
        for head in 0..2 {
            let dot = |key: usize| (0..2).map(|c| f64::from(q[query * 4 + head * 2 + c] * k[key * 2 + c])).sum::<f64>();
            let weights: Vec<f64> = seen.iter().map(|&key| (dot(key) / 2_f64.sqrt()).exp()).collect();
            for c in 0..2 {
                let mixed: f64 = seen.iter().zip(&weights).map(|(key, w)| w * f64::from(v[key * 2 + c])).sum();
                expected[query * 4 + head * 2 + c] = mixed / weights.iter().sum::<f64>();
            }
        }
    }
    let expected: Vec<f32> = expected.into_iter().map(|x| x as f32).collect();
    let run = |q, k, v| float_vec(Definition::causal_attention(q, k, v, None, &shape));
    let found = run(tensor(&q, [1, seq, 4]), tensor(&k, [1, seq, 2]), tensor(&v, [1, seq, 2]));
    check_close(&format!("{seq} tokens, {window:?}"), &found, &expected, 1e-6);
}

/// Rows of 70: whole vectors and a rest.
fn norm<B: QuantBackend>() -> Vec<f32> {
    float_vec(B::rms_norm(tensor(&numbers(2 * 45 * 70, 4), [2, 45, 70]), tensor(&numbers(70, 5), [70]), 1e-5))
}

/// Rows whose mean is larger than what they deviate from it by.
fn layer_norm<B: QuantBackend>() -> Vec<f32> {
    let x: Vec<f32> = numbers(2 * 45 * 70, 4).iter().map(|x| x + 3.0).collect();
    let [weight, bias] = [5, 9].map(|seed| tensor(&numbers(70, seed), [70]));
    float_vec(<B as QuantBackend>::layer_norm(tensor(&x, [2, 45, 70]), weight, bias, 1e-5))
}

fn gate<B: QuantBackend>() -> Vec<f32> {
    let gate: Vec<f32> = numbers(3 * 211 * 67, 6).iter().map(|x| 30.0 * x).collect();
    float_vec(B::swiglu(tensor(&gate, [3, 211, 67]), tensor(&numbers(3 * 211 * 67, 7), [3, 211, 67])))
}

fn nll<B: QuantBackend>() -> Vec<f32> {
    let logits: Vec<f32> = numbers(41 * 1003, 8).iter().map(|x| 20.0 * x).collect();
    let targets: Vec<u32> = (0..41).map(|row| row * 977 % 1003).collect();
    B::token_nll(tensor(&logits, [41, 1003]), &targets)
}

#[test]
fn norm_gate_and_likelihood_agree_with_their_definitions() {
    for (what, found, expected) in [
        ("rms_norm on flex", norm::<Cpu>(), norm::<Definition>()),
        ("rms_norm on ndarray", norm::<OtherCpu>(), norm::<Definition>()),
        ("layer_norm on flex", layer_norm::<Cpu>(), layer_norm::<Definition>()),
        ("layer_norm on ndarray", layer_norm::<OtherCpu>(), layer_norm::<Definition>()),
        ("swiglu on flex", gate::<Cpu>(), gate::<Definition>()),
        ("swiglu on ndarray", gate::<OtherCpu>(), gate::<Definition>()),
        ("token_nll on flex", nll::<Cpu>(), nll::<Definition>()),
        ("token_nll on ndarray", nll::<OtherCpu>(), nll::<Definition>()),
    ] {
        check_close(what, &found, &expected, 2e-6);
    }
}

/// `[n, in]` times the transpose of `[out, in]`, over shapes that fill no tile and over views that are not row-major.
#[test]
fn products_agree_with_their_definition() {
    fn product<B: QuantBackend>([n, n_in, n_out]: [usize; 3], views: bool) -> Vec<f32> {
        let x = numbers(n * n_in, 12);
        let weight = numbers(2 * n_out * n_in, 13);
        if views {
            let x = tensor::<B, 2>(&x, [n_in, n]).transpose();
            let weight = tensor::<B, 2>(&weight, [2 * n_out, n_in]).narrow(0, n_out, n_out);
            return float_vec(B::matmul_transposed(x, weight));
        }
        let weight = tensor(&weight[..n_out * n_in], [n_out, n_in]);
        float_vec(B::matmul_transposed(tensor(&x, [n, n_in]), weight))
    }
    for shape in [[1, 1, 1], [1, 64, 3], [7, 33, 5], [130, 96, 65], [300, 17, 200]] {
        for views in [false, true] {
            let expected = product::<Definition>(shape, views);
            let what = format!("{shape:?}, views {views}");
            check_close(&what, &product::<Cpu>(shape, views), &expected, 1e-5);
            check_close(&what, &product::<OtherCpu>(shape, views), &expected, 1e-5);
        }
    }
    let run = || product::<Cpu>([300, 96, 200], false);
    assert_eq!(with_threads(1, run), with_threads(2, run));
}

fn distance<B: QuantBackend>() -> f64 {
    let values = |seed| tensor::<B, 3>(&numbers(3 * 211 * 67, seed), [3, 211, 67]);
    B::squared_distance(&values(14), &values(15))
}

#[test]
fn squared_distance_is_the_sum_of_squares() {
    let (a, b) = (numbers(3 * 211 * 67, 14), numbers(3 * 211 * 67, 15));
    let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    for found in [distance::<Cpu>(), distance::<OtherCpu>(), distance::<Definition>()] {
        assert!((found - exact).abs() < 1e-5 * exact, "{found} instead of {exact}");
    }
    assert_eq!(with_threads(1, distance::<Cpu>).to_bits(), with_threads(2, distance::<Cpu>).to_bits());
}

#[test]
fn likelihood_survives_huge_logits() {
    let logits = [1e4, 0.0, -1e4, -1e4, 0.0, 1e4];
    let nll = Cpu::token_nll(tensor(&logits, [2, 3]), &[0, 0]);
    assert!(nll[0].abs() < 1e-3, "the likely token costs nothing: {nll:?}");
    assert!((nll[1] - 2e4).abs() < 1e-2, "{nll:?}");
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let quantized = || Cpu::quantize_weight(tensor(&numbers(70 * 576, 9), [70, 576]), &grid(3, group(128)));
    let clipped = || {
        let weight = tensor(&numbers(70 * 96, 10), [70, 96]);
        let rows = tensor::<Cpu, 2>(&numbers(40 * 96, 11), [40, 96]);
        let grams: Vec<_> = (0..2)
            .map(|group_idx| rows.clone().narrow(1, group_idx * 64, if group_idx == 0 { 64 } else { 32 }))
            .map(|x| x.clone().transpose().matmul(x))
            .collect();
        let found = Cpu::clip_search(weight, &grams, &grid(3, group(64)), &[1.0, 0.9, 0.8, 0.7]);
        (float_vec(found.weight), float_vec(found.bound), found.loss_before, found.loss_after)
    };
    assert_eq!(with_threads(1, quantized), with_threads(2, quantized));
    assert_eq!(with_threads(1, clipped), with_threads(2, clipped));
    let windowed = || attention::<Cpu>(300, &AttentionShape { window: Some(90), ..GQA }, true);
    for run in [norm::<Cpu>, gate::<Cpu>, nll::<Cpu>, || attention::<Cpu>(300, &GQA, true), windowed] {
        assert_eq!(with_threads(1, run), with_threads(2, run));
    }
}

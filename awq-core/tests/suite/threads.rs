//! The same bits at any number of threads, at sizes of a model of 7 billion weights: what splits work otherwise there than at the
//! sizes of other tests would show here.

use awq_core::awq::Nearest;
use awq_core::backend::{AttentionShape, QuantBackend, float_vec};
use awq_core::capture::InputStats;
use awq_core::host::gram::add_gram;
use awq_core::method::{LinearCtx, LinearMethod};
use awq_core::model::LinearName;
use burn::tensor::Tensor;

use crate::support::{Cpu, grid, group, numbers, tensor, with_threads};

const HIDDEN: usize = 4096;
const INNER: usize = 11_008;

#[track_caller]
fn check_same<T: PartialEq + Send>(what: &str, run: impl Fn() -> T + Sync) {
    let one = with_threads(1, &run);
    for n_threads in [2, 3] {
        assert!(with_threads(n_threads, &run) == one, "{what}: {n_threads} threads change a bit");
    }
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor<Cpu, 2> {
    tensor(&numbers(rows * cols, seed), [rows, cols])
}

#[test]
fn losses_of_a_real_weight_are_the_same_20_times() {
    let (weight, grid) = (matrix(HIDDEN, HIDDEN, 1), grid(4, group(128)));
    let quantize = || {
        Nearest.quantize_linear(&LinearCtx {
            block_idx: 0,
            linear: LinearName("self_attn.o_proj"),
            weight: weight.clone(),
            input: None,
            input_scale: None,
            grid: &grid,
            listener: &|_| {},
        })
    };
    let (_, log) = with_threads(1, quantize).unwrap();
    let rounded = Cpu::fake_quant(weight.clone(), &grid);
    let n_weights = (HIDDEN * HIDDEN) as f64;
    for n_threads in [1, 2] {
        with_threads(n_threads, || {
            for _ in 0..20 {
                let error = Cpu::squared_distance(&weight, &rounded) / n_weights;
                assert_eq!(error.to_bits(), log.weight_mse.to_bits(), "{n_threads} threads");
            }
        });
    }
}

#[test]
fn products_are_the_same() {
    for [n, n_in, n_out] in [[1, HIDDEN, INNER], [1, INNER, HIDDEN], [200, HIDDEN, 2000], [64, INNER, 1000]] {
        let (x, weight) = (matrix(n, n_in, 2), matrix(n_out, n_in, 3));
        check_same(&format!("{n} x {n_in} x {n_out}"), || float_vec(Cpu::matmul_transposed(x.clone(), weight.clone())));
    }
}

/// 2048 tokens are more elements than burn-flex adds in one thread.
#[test]
fn statistics_of_inputs_are_the_same() {
    let x = tensor::<Cpu, 3>(&numbers(2048 * HIDDEN, 4), [1, 2048, HIDDEN]);
    check_same("mean magnitudes", || float_vec(InputStats::new(vec![x.clone()]).mean_abs()));
    let few = x.narrow(1, 0, 128);
    check_same("the Gram matrix in f32", || float_vec(InputStats::new(vec![few.clone()]).gram()));
    let (rows, n_in) = (numbers(32 * HIDDEN, 5), HIDDEN);
    check_same("the Gram matrix in f64", || {
        let mut gram = vec![0.0; n_in * n_in];
        add_gram(&mut gram, &rows, n_in);
        gram
    });
}

#[test]
fn attention_and_likelihoods_are_the_same() {
    for window in [None, Some(300)] {
        let shape = AttentionShape { window, ..AttentionShape::new(4, 2, 128) };
        let rows = |heads: usize, seed| tensor::<Cpu, 3>(&numbers(2048 * heads * 128, seed), [1, 2048, heads * 128]);
        let (q, k, v) = (rows(4, 6), rows(2, 7), rows(2, 8));
        check_same("attention", || float_vec(Cpu::causal_attention(q.clone(), k.clone(), v.clone(), None, &shape)));
    }
    let logits = matrix(64, 128_256, 9);
    let targets: Vec<u32> = (0..64).map(|row| row * 977).collect();
    check_same("likelihoods", || Cpu::token_nll(logits.clone(), &targets));
}

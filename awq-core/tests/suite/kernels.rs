//! Every kernel against the definition of a product: dequantize, then sum in f64.

use awq_core::grid::{Granularity, Grid, ScaleDtype};
use awq_core::kernel::bench::{Arm, bandwidth, interleaved, peak};
use awq_core::kernel::dense::{DenseBf16, DenseF32};
use awq_core::kernel::{Activations, KERNELS, Kernel, KernelError, QuantMatmul};
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::{KeptInputs, WeightTransform};

use super::support::{check_close, grid, group, numbers, with_threads};

/// Random codes, f16 scales and zero points.
fn weight(n_out: usize, n_in: usize, grid: Grid, seed: u64) -> QuantizedWeight {
    let n_groups = match grid.granularity {
        Granularity::PerTensor => 1,
        granularity => n_out * granularity.n_groups(n_in),
    };
    let codes = |n, seed| -> Vec<u8> {
        let n_codes = f32::from(grid.bits.max_code()) + 1.0;
        numbers(n, seed).iter().map(|x| ((x + 1.0) / 2.0 * n_codes) as u8).collect()
    };
    let scale = numbers(n_groups, seed + 2).iter().map(|x| ScaleDtype::F16.round(0.01 + x * 0.009)).collect();
    QuantizedWeight {
        n_out,
        n_in,
        grid,
        codes: codes(n_out * n_in, seed),
        scale,
        zero_point: ZeroPoints::Codes(codes(n_groups, seed + 1)),
        transform: WeightTransform::Identity,
    }
}

/// Checks each product: half a step of the integer activations in every run of at most 128 input channels of a group, and
/// f32 rounding of the terms that are added up (code and zero point apart).
#[track_caller]
fn check(kernel: &Kernel, weight: &QuantizedWeight, n_rows: usize) {
    let (n_in, n_out) = (weight.n_in, weight.n_out);
    let x = numbers(n_rows * n_in, 77);
    let mut found = vec![f32::NAN; n_rows * n_out];
    kernel.pack(weight).unwrap().matmul(&x, &mut found);
    let dequantized = weight.dequantize();
    let run_len = weight.group_len().min(128);
    let limit = match kernel.activations {
        Activations::F32 => f64::INFINITY,
        Activations::Int16 => 32_639.0,
        Activations::Int8 => 127.0,
    };
    let largest_scale = weight.scale.iter().fold(0.0_f32, |max, scale| max.max(*scale));
    for (row, found) in x.chunks_exact(n_in).zip(found.chunks_exact(n_out)) {
        for (out_idx, found) in found.iter().enumerate() {
            let column = &dequantized[out_idx * n_in..][..n_in];
            let (mut exact, mut step, mut magnitude) = (0.0, 0.0, 0.0);
            for group in (0..n_in).step_by(weight.group_len()) {
                let end = (group + weight.group_len()).min(n_in);
                for start in (group..end).step_by(run_len) {
                    let (x, w) = (&row[start..end.min(start + run_len)], &column[start..end.min(start + run_len)]);
                    exact += x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                    let amax = x.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
                    step += f64::from(amax) / limit / 2.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                    magnitude += x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                }
            }
            let rounding = 1e-6 * magnitude * f64::from(largest_scale) * f64::from(weight.grid.bits.max_code());
            let error = (f64::from(*found) - exact).abs();
            assert!(
                error <= step + rounding,
                "{}, {} of [{n_out}, {n_in}], {n_rows} rows: {found} instead of {exact}, off by {error:e} of {:e}",
                kernel.name,
                weight.grid.label(),
                step + rounding
            );
        }
    }
}

fn available() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().filter(|kernel| kernel.is_available())
}

#[test]
fn every_kernel_multiplies_every_grid() {
    let granularities =
        [group(32), group(64), group(128), group(40), group(192), Granularity::PerChannel, Granularity::PerTensor];
    for kernel in available() {
        for bits in 2..=8 {
            for granularity in granularities {
                for (n_out, n_in, n_rows) in [(1, 1, 1), (33, 100, 3), (50, 200, 1), (16, 576, 7)] {
                    check(kernel, &weight(n_out, n_in, grid(bits, granularity), u64::from(bits)), n_rows);
                }
            }
        }
    }
}

#[test]
fn every_kernel_multiplies_any_number_of_rows() {
    for kernel in available() {
        for n_rows in (1..=17).chain([31, 32, 40, 64, 65]) {
            check(kernel, &weight(47, 160, grid(4, group(64)), 5), n_rows);
        }
    }
}

/// Some kernels multiply many rows in another way than few.
#[test]
fn a_row_beside_others_has_the_same_products_however_many_they_are() {
    const N_IN: usize = 200;
    let x = numbers(203 * N_IN, 6);
    for kernel in available().filter(|kernel| kernel.name != "reference") {
        for bits in [2, 3, 4, 5, 8] {
            for granularity in [group(64), group(40), group(192), Granularity::PerTensor] {
                let weight = weight(47, N_IN, grid(bits, granularity), u64::from(bits));
                let packed = kernel.pack(&weight).unwrap();
                let product = |x: &[f32]| {
                    let mut out = vec![f32::NAN; x.len() / N_IN * weight.n_out];
                    packed.matmul(x, &mut out);
                    out
                };
                let few: Vec<f32> = x.chunks(7 * N_IN).flat_map(product).collect();
                for threads in [1, 2, 3] {
                    let many = with_threads(threads, || product(&x));
                    assert!(many == few, "{}, {}, {threads} threads", kernel.name, weight.grid.label());
                }
            }
        }
    }
}

#[test]
fn real_zero_points_and_f32_scales_are_kept() {
    for kernel in available() {
        let mut weight = weight(40, 300, grid(3, group(128)), 9);
        weight.scale.iter_mut().for_each(|scale| *scale *= 1.000_3);
        check(kernel, &weight, 2);
        weight.zero_point = ZeroPoints::Real(numbers(weight.scale.len(), 4).iter().map(|x| 3.5 + 4.0 * x).collect());
        check(kernel, &weight, 2);
    }
}

/// GPTQ's activation order.
#[test]
fn inputs_are_gathered_into_the_order_of_the_codes() {
    let n_in = 200;
    let order: Vec<u32> = (0..n_in as u32).map(|channel| channel * 77 % n_in as u32).collect();
    for kernel in available() {
        for n_rows in [1, 5, 40] {
            let in_order = weight(33, n_in, grid(4, group(64)), 3);
            let permuted =
                QuantizedWeight { transform: WeightTransform::PermutedInputs(order.clone()), ..in_order.clone() };
            let x = numbers(n_rows * n_in, 8);
            let gathered: Vec<f32> =
                x.chunks_exact(n_in).flat_map(|row| order.iter().map(|&channel| row[channel as usize])).collect();
            let run = |weight: &QuantizedWeight, x: &[f32]| {
                let mut out = vec![0.0; n_rows * weight.n_out];
                kernel.pack(weight).unwrap().matmul(x, &mut out);
                out
            };
            let (found, expected) = (run(&permuted, &x), run(&in_order, &gathered));
            if kernel.name == "reference" {
                // Dequantized, and summed in another order.
                check_close(kernel.name, &found, &expected, 1e-4);
            } else {
                assert!(found == expected, "{}, {n_rows} rows", kernel.name);
            }
            let dense = DenseF32::new(permuted.dequantize(), n_in);
            let mut expected = vec![0.0; n_rows * 33];
            dense.matmul(&x, &mut expected);
            check_close(
                kernel.name,
                &found,
                &expected,
                if kernel.activations == Activations::Int8 { 0.3 } else { 1e-2 },
            );
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for kernel in available() {
        for n_rows in [1, 5, 40] {
            let weight = weight(2000, 576, grid(4, group(128)), 3);
            let packed = kernel.pack(&weight).unwrap();
            let x = numbers(n_rows * weight.n_in, 8);
            let run = |n_threads| {
                let mut out = vec![0.0; n_rows * weight.n_out];
                with_threads(n_threads, || packed.matmul(&x, &mut out));
                out
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{}, {n_rows} rows: threads change the product", kernel.name);
        }
    }
}

#[test]
fn a_row_of_integers_has_the_same_products_alone_and_among_others() {
    for kernel in available().filter(|kernel| kernel.activations != Activations::F32) {
        let weight = weight(50, 576, grid(4, group(128)), 3);
        let packed = kernel.pack(&weight).unwrap();
        let x = numbers(13 * weight.n_in, 8);
        let mut together = vec![0.0; 13 * weight.n_out];
        packed.matmul(&x, &mut together);
        for (row, together) in x.chunks_exact(weight.n_in).zip(together.chunks_exact(weight.n_out)) {
            let mut alone = vec![0.0; weight.n_out];
            packed.matmul(row, &mut alone);
            assert_eq!(alone, together, "{}", kernel.name);
        }
    }
}

#[test]
fn sixteen_bits_are_far_closer_than_eight() {
    let weight = weight(64, 1024, grid(4, group(128)), 6);
    let x = numbers(weight.n_in, 1);
    let rms_of = |activations| {
        let mut reference = vec![0.0; weight.n_out];
        Kernel::named("reference").unwrap().pack(&weight).unwrap().matmul(&x, &mut reference);
        let mut found = vec![0.0; weight.n_out];
        Kernel::best(activations).pack(&weight).unwrap().matmul(&x, &mut found);
        let squares = found.iter().zip(&reference).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (squares / reference.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
    };
    let (eight, sixteen) = (rms_of(Activations::Int8), rms_of(Activations::Int16));
    assert!(eight > 1e-4 && eight < 2e-2, "8 bits are off by {eight:e} of the product");
    assert!(sixteen < 2e-4 * eight.max(0.1), "16 bits are off by {sixteen:e}, 8 bits by {eight:e} of the product");
}

#[test]
fn activations_that_are_not_finite_stay_so_and_zeros_stay_zero() {
    for kernel in available() {
        let weight = weight(20, 256, grid(4, group(64)), 2);
        let packed = kernel.pack(&weight).unwrap();
        for poison in [f32::NAN, f32::INFINITY] {
            let mut x = vec![0.5; 256];
            x[100] = poison;
            let mut out = vec![0.0; 20];
            packed.matmul(&x, &mut out);
            // A weight of zero times infinity is not a number either.
            assert!(out.iter().all(|y| !y.is_finite()), "{}: {poison} gave {out:?}", kernel.name);
        }
        let mut out = vec![f32::NAN; 20];
        packed.matmul(&[0.0; 256], &mut out);
        assert!(out.iter().all(|y| *y == 0.0), "{}: {out:?}", kernel.name);
        packed.matmul(&[], &mut []);
    }
}

#[test]
fn packed_bytes_are_those_of_codes_and_scales() {
    let weight = weight(64, 1024, grid(4, group(128)), 6);
    let packed = Kernel::best(Activations::F32).pack(&weight).unwrap();
    // 4 bits a code, and at least an f16 scale and a byte of zero point a group, at most two f32.
    let groups = 64 * 8;
    assert!((32_768 + groups * 3..=32_768 + groups * 8).contains(&packed.packed_bytes()));
    assert_eq!((packed.n_out(), packed.n_in()), (64, 1024));
}

#[test]
fn dense_weights_multiply_as_the_reference() {
    for (n_out, n_in, n_rows) in [(1, 1, 1), (33, 100, 1), (700, 576, 1), (33, 100, 5)] {
        let weight = weight(n_out, n_in, grid(4, group(64)), 3);
        let x = numbers(n_rows * n_in, 5);
        let run = |packed: &dyn QuantMatmul| {
            let mut out = vec![0.0; n_rows * n_out];
            packed.matmul(&x, &mut out);
            out
        };
        let expected = run(&*Kernel::named("reference").unwrap().pack(&weight).unwrap());
        let what = format!("[{n_out}, {n_in}], {n_rows} rows");
        check_close(&what, &run(&DenseF32::new(weight.dequantize(), n_in)), &expected, 1e-6 * n_in as f32);
        check_close(&what, &run(&DenseBf16::new(&weight.dequantize(), n_in)), &expected, 2e-2);
    }
}

#[test]
fn what_cannot_be_packed_is_named() {
    let message = |error: KernelError| error.to_string();
    let unknown = message(Kernel::named("abacus").err().unwrap());
    assert!(unknown.starts_with("unknown kernel `abacus`; known are "), "{unknown}");
    assert!(unknown.ends_with("reference"), "{unknown}");
    let mut kept = weight(4, 32, grid(4, group(32)), 1);
    kept.transform = WeightTransform::KeptInputs(KeptInputs { channels: vec![3], values: vec![0.5; 4] });
    for kernel in available() {
        assert_eq!(kernel.pack(&kept).err(), Some(KernelError::Transformed));
        assert_eq!(kernel.pack(&weight(0, 32, grid(4, group(32)), 1)).err(), Some(KernelError::Empty(0, 32)));
    }
}

#[test]
#[should_panic(expected = "33 activations and 4 products do not fit a [4, 32] weight")]
fn lengths_that_do_not_fit_are_a_bug() {
    let packed = Kernel::best(Activations::F32).pack(&weight(4, 32, grid(4, group(32)), 1)).unwrap();
    packed.matmul(&[0.0; 33], &mut [0.0; 4]);
}

#[test]
fn names_are_unique_and_every_kind_of_activations_has_a_kernel() {
    let mut names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), KERNELS.len());
    for activations in [Activations::F32, Activations::Int16, Activations::Int8] {
        assert_eq!(Kernel::best(activations).activations, activations);
    }
    assert_eq!(Activations::Int8.label(4), "W4A8 int8");
}

#[test]
fn what_is_measured_of_the_machine_is_a_number() {
    let bandwidth = with_threads(2, || bandwidth(1 << 20, 3));
    let peak = with_threads(1, peak);
    for value in [bandwidth.copy, bandwidth.read, peak.f32, peak.int8] {
        assert!(value.is_finite() && value > 1e6, "{bandwidth:?}, {peak:?}");
    }
    let weight = weight(64, 256, grid(4, group(64)), 2);
    let kernel = Kernel::best(Activations::F32);
    let arms = [1 << 16, 0].map(|bytes| Arm::new(bytes, || kernel.pack(&weight)).unwrap());
    assert_eq!(arms[1].copies().len(), 1);
    assert_eq!(arms[0].copies().len(), (1 << 16) / arms[0].packed_bytes());
    let broken = Arm::new(0, || Err(KernelError::Transformed)).err();
    assert_eq!(broken, Some(KernelError::Transformed));
    let latencies = interleaved(&arms, &[0.5; 512], 5);
    assert_eq!(latencies.len(), 2);
    for latency in latencies {
        assert_eq!(latency.n_calls, 5);
        assert!(0.0 < latency.lower_quartile, "{latency:?}");
        assert!(latency.lower_quartile <= latency.median && latency.median <= latency.upper_quartile, "{latency:?}");
    }
}

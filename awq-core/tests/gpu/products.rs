//! Products with packed weights against the definition: dequantize, then sum in f64.

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::grid::{Granularity, Grid, ScaleDtype};
use awq_core::kernel::cube::bench::{Product, Queued, interleaved};
use awq_core::kernel::cube::{GptqWeight, GpuBackend, MATVEC_MAX_ROWS};
use awq_core::kernel::{DeviceWeight, KernelError, UnitWeight};
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::support::{Cpu, grid, group, numbers, tensor};
use crate::{Gpu, PRODUCT_TOLERANCE, has_device};

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
    // Some scales are subnormal as f16.
    let scale = |x: &f32| ScaleDtype::F16.round(0.000_02 + (x + 0.3).max(0.0) * 0.01);
    QuantizedWeight {
        n_out,
        n_in,
        grid,
        codes: codes(n_out * n_in, seed),
        scale: numbers(n_groups, seed + 2).iter().map(scale).collect(),
        zero_point: ZeroPoints::Codes(codes(n_groups, seed + 1)),
        transform: WeightTransform::Identity,
    }
}

/// Checks each product up to f32 rounding of the terms that are added up (code and zero point apart) and of the result to
/// `dtype`. More than a few rows are multiplied by burn, and by a weight that was rounded, too.
#[track_caller]
fn check<B: QuantBackend>(weight: &QuantizedWeight, n_rows: usize, dtype: DType) {
    let packed = DeviceWeight::<B>::new(weight, &Default::default()).unwrap();
    check_product::<B>(weight, n_rows, dtype, n_rows > MATVEC_MAX_ROWS, |x| B::packed_matmul(x, &packed));
}

/// As [`check`], of any way to multiply; `by_burn` where the product of matrices is burn's own.
#[track_caller]
fn check_product<B: QuantBackend>(
    weight: &QuantizedWeight,
    n_rows: usize,
    dtype: DType,
    by_burn: bool,
    multiply: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) {
    let (n_in, n_out) = (weight.n_in, weight.n_out);
    let x = tensor::<B, 2>(&numbers(n_rows * n_in, 77), [n_rows, n_in]).cast(dtype);
    let product = multiply(x.clone());
    assert_eq!((product.dims(), product.dtype()), ([n_rows, n_out], dtype));
    let (x, found) = (float_vec(x), float_vec(product));
    let dequantized = weight.dequantize();
    let largest_scale = weight.scale.iter().fold(0.0_f32, |max, scale| max.max(*scale));
    let step = match dtype {
        DType::F32 if by_burn => f64::from(PRODUCT_TOLERANCE),
        DType::F32 => 0.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 1.0 / 128.0,
    };
    for (row, found) in x.chunks_exact(n_in).zip(found.chunks_exact(n_out)) {
        for (out_idx, found) in found.iter().enumerate() {
            let terms = || row.iter().zip(&dequantized[out_idx * n_in..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (exact, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let codes = row.iter().map(|x| f64::from(x.abs())).sum::<f64>() * f64::from(largest_scale);
            let limit = 1e-6 * codes * f64::from(weight.grid.bits.max_code()) + step * magnitude;
            let error = (f64::from(*found) - exact).abs();
            assert!(
                error <= limit,
                "{} of [{n_out}, {n_in}], {n_rows} rows of {dtype:?}: {found} instead of {exact}, off by {error:e} of {limit:e}",
                weight.grid.label()
            );
        }
    }
}

#[test]
fn every_number_of_bits_and_rows_is_multiplied() {
    if !has_device("every_number_of_bits_and_rows_is_multiplied") {
        return;
    }
    for bits in [4, 3, 2] {
        // 576 = 4 * 128 + 64: a ragged last group.
        let weight = weight(47, 576, grid(bits, group(128)), u64::from(bits));
        for n_rows in [1, 2, 3, 8, 13, MATVEC_MAX_ROWS, MATVEC_MAX_ROWS + 1, 64] {
            check::<Gpu>(&weight, n_rows, DType::F32);
        }
    }
}

#[test]
fn every_grouping_is_multiplied() {
    if !has_device("every_grouping_is_multiplied") {
        return;
    }
    for granularity in [group(32), group(64), group(96), Granularity::PerChannel, Granularity::PerTensor] {
        for (n_out, n_in) in [(1, 1), (33, 256), (50, 200), (9, 90), (20, 2080)] {
            check::<Gpu>(&weight(n_out, n_in, grid(4, granularity), 5), 1, DType::F32);
        }
        check::<Gpu>(&weight(50, 200, grid(3, granularity), 5), 5, DType::F32);
    }
}

#[test]
fn real_zero_points_and_f32_scales_are_kept() {
    if !has_device("real_zero_points_and_f32_scales_are_kept") {
        return;
    }
    let mut weight = weight(40, 320, grid(3, group(128)), 9);
    weight.scale.iter_mut().for_each(|scale| *scale *= 1.000_3);
    check::<Gpu>(&weight, 2, DType::F32);
    weight.zero_point = ZeroPoints::Real(numbers(weight.scale.len(), 4).iter().map(|x| 3.5 + 4.0 * x).collect());
    check::<Gpu>(&weight, 2, DType::F32);
    check::<Gpu>(&weight, 40, DType::F32);
}

#[test]
fn half_precision_activations_are_multiplied_with_f32_sums() {
    if !has_device("half_precision_activations_are_multiplied_with_f32_sums") {
        return;
    }
    for dtype in [DType::F16, DType::BF16] {
        if !Gpu::supports_dtype(&Default::default(), dtype) {
            eprintln!(
                "half_precision_activations_are_multiplied_with_f32_sums: {dtype:?} skipped, the device has none"
            );
            continue;
        }
        for n_rows in [1, 5, 40] {
            check::<Gpu>(&weight(33, 256, grid(4, group(64)), 2), n_rows, dtype);
        }
    }
}

#[test]
fn both_ways_to_multiply_give_the_product_at_any_number_of_rows() {
    if !has_device("both_ways_to_multiply_give_the_product_at_any_number_of_rows") {
        return;
    }
    let weight = weight(50, 200, grid(4, group(64)), 6);
    let packed = DeviceWeight::<Gpu>::new(&weight, &Default::default()).unwrap();
    for n_rows in [1, 40] {
        check_product::<Gpu>(&weight, n_rows, DType::F32, false, |x| Gpu::packed_matvec(x, &packed));
        check_product::<Gpu>(&weight, n_rows, DType::F32, true, |x| Gpu::dequantized_matmul(x, &packed));
    }
}

/// On a device without tensor cores too: there lanes exchange what the instruction would.
#[test]
fn products_on_tensor_cores_are_those_of_the_definition() {
    if !has_device("products_on_tensor_cores_are_those_of_the_definition") {
        return;
    }
    for dtype in [DType::F16, DType::BF16] {
        if !Gpu::supports_dtype(&Default::default(), dtype) {
            eprintln!("products_on_tensor_cores_are_those_of_the_definition: {dtype:?} skipped, the device has none");
            continue;
        }
        // 40 is no multiple of 16 outputs. 1100 channels end within a unit, and 9 quads of units are more than 8 planes; 2048 are a
        // quad for each of 16 planes, of 2240 some planes have a second one. A group is a quad, less, or all channels.
        for (bits, granularity, n_rows, n_in) in [
            (4, group(128), 1, 1100),
            (4, group(32), 13, 1100),
            (3, group(64), 1, 1100),
            (2, Granularity::PerChannel, 5, 1100),
            (4, group(128), 9, 1024),
            (4, group(128), 1, 2048),
            (3, group(128), 17, 2240),
        ] {
            let weight = weight(40, n_in, grid(bits, granularity), 7);
            let packed = DeviceWeight::<Gpu>::new(&weight, &Default::default()).unwrap();
            check_product::<Gpu>(&weight, n_rows, dtype, false, |x| Gpu::tensor_core_matmul(x, &packed));
        }
    }
}

#[test]
fn the_gptq_layout_is_multiplied_with_and_without_activation_order() {
    if !has_device("the_gptq_layout_is_multiplied_with_and_without_activation_order") {
        return;
    }
    // 200 = 3 * 64 + 8: a ragged last group, and a last cube whose threads have no column.
    let mut weight = weight(40, 200, grid(4, group(64)), 4);
    for transform in
        [WeightTransform::Identity, WeightTransform::PermutedInputs((0..200).map(|i| (i * 7 + 3) % 200).collect())]
    {
        weight.transform = transform;
        let packed = GptqWeight::<Gpu>::new(&weight, DType::F32, &Default::default()).unwrap();
        // A code is half a byte; every group has a scale and half a byte of zero point a row; a channel names its group.
        assert_eq!(packed.packed_bytes(), 40 * 200 / 2 + 40 * 4 * 4 + 40 * 4 / 2 + 200 * 4);
        for n_rows in [1, 3] {
            check_product::<Gpu>(&weight, n_rows, DType::F32, false, |x| Gpu::gptq_matmul(x, &packed));
        }
    }
}

#[test]
fn what_the_gptq_layout_cannot_hold_is_named() {
    if !has_device("what_the_gptq_layout_cannot_hold_is_named") {
        return;
    }
    let error = |weight: &QuantizedWeight| GptqWeight::<Gpu>::new(weight, DType::F32, &Default::default()).unwrap_err();
    assert_eq!(error(&weight(8, 64, grid(3, group(32)), 1)), KernelError::NotGptq(8, 64, 3));
    assert_eq!(error(&weight(8, 60, grid(4, group(32)), 1)), KernelError::NotGptq(8, 60, 4));
    assert_eq!(error(&weight(8, 64, grid(4, Granularity::PerTensor), 1)), KernelError::NotGptq(8, 64, 4));
    let mut real = weight(8, 64, grid(4, group(32)), 1);
    real.zero_point = ZeroPoints::Real(vec![7.5; real.scale.len()]);
    assert_eq!(error(&real), KernelError::NotGptq(8, 64, 4));
}

#[test]
fn every_form_is_timed() {
    if !has_device("every_form_is_timed") {
        return;
    }
    let (device, dtype) = (Default::default(), DType::F32);
    let weight = weight(64, 128, grid(4, group(64)), 2);
    let units = UnitWeight::new(&weight).unwrap();
    let bytes = 1 << 16;
    let mut arms: Vec<Box<dyn Queued>> = vec![
        Box::new(Product::<Gpu, Tensor<Gpu, 2>>::dense([64, 128], dtype, bytes, &device)),
        Box::new(Product::<Gpu, DeviceWeight<Gpu>>::packed(&units, dtype, bytes, &device)),
        Box::new(Product::<Gpu, DeviceWeight<Gpu>>::dequantized(&units, dtype, bytes, &device)),
        Box::new(Product::<Gpu, GptqWeight<Gpu>>::gptq(&weight, dtype, bytes, &device).unwrap()),
    ];
    assert_eq!(arms[0].weight_bytes(), 64 * 128 * 4);
    assert!(arms[1].weight_bytes() < arms[3].weight_bytes(), "our layout has no group for each channel");
    for batch_size in [1, 5] {
        arms.iter_mut().for_each(|arm| arm.set_batch_size(batch_size).unwrap());
        for latency in interleaved(&mut arms, 3).unwrap() {
            assert!(latency.n_calls == 3 && latency.lower_quartile > 0.0, "{latency:?}");
        }
    }
    // Faster than any memory there is: then nothing was copied.
    let bandwidth = Gpu::bandwidth(&device, 8 << 20, 2).unwrap();
    assert!((1e6..2e13).contains(&bandwidth.copy) && (1e6..2e13).contains(&bandwidth.read), "{bandwidth:?}");
}

/// What CPU backends run: through host memory.
#[test]
fn the_definition_is_the_product() {
    for bits in [4, 3, 2] {
        check::<Cpu>(&weight(33, 90, grid(bits, group(32)), 5), 3, DType::F32);
    }
}

#[test]
fn dequantized_weights_are_exact() {
    if !has_device("dequantized_weights_are_exact") {
        return;
    }
    for bits in [4, 3, 2] {
        for (n_out, n_in) in [(33, 256), (9, 90), (700, 1000)] {
            let weight = weight(n_out, n_in, grid(bits, group(64)), 8);
            let packed = DeviceWeight::<Gpu>::new(&weight, &Default::default()).unwrap();
            let found: Tensor<Gpu, 2> = Gpu::unpack_weight(&packed);
            assert_eq!(float_vec(found), weight.dequantize(), "{bits} bits, [{n_out}, {n_in}]");
            assert_eq!(packed.download(), UnitWeight::new(&weight).unwrap());
            assert_eq!(float_vec(Gpu::dequantize_weight(&weight, &Default::default())), weight.dequantize());
        }
    }
}

/// Codes of more bits than the kernel takes, and codes of permuted inputs.
#[test]
fn weights_that_no_kernel_takes_are_dequantized_all_the_same() {
    if !has_device("weights_that_no_kernel_takes_are_dequantized_all_the_same") {
        return;
    }
    let mut permuted = weight(9, 90, grid(4, group(32)), 3);
    permuted.transform = WeightTransform::PermutedInputs((0..90).rev().collect());
    for weight in [weight(9, 90, grid(8, group(32)), 3), permuted] {
        assert_eq!(float_vec(Gpu::dequantize_weight(&weight, &Default::default())), weight.dequantize());
    }
}

#[test]
fn what_cannot_be_packed_in_units_is_named() {
    let error = |weight: &QuantizedWeight| UnitWeight::new(weight).unwrap_err();
    assert_eq!(error(&weight(4, 64, grid(5, group(32)), 1)), KernelError::TooManyBits(5));
    assert_eq!(error(&weight(4, 64, grid(4, group(40)), 1)), KernelError::BrokenUnits(40));
    assert_eq!(error(&weight(0, 64, grid(4, group(32)), 1)), KernelError::Empty(0, 64));
}

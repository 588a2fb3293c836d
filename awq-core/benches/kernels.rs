//! Products with packed and dense weights over shapes of Llama-2-7B, Llama-3-8B and SmolLM2-135M, on all threads, by the
//! best kernel of each kind of activations. Throughput is in bytes of packed weight; buffers rotate through 256 MiB, so
//! that no cache holds them.
#![allow(missing_docs, unreachable_pub, reason = "criterion's macros make public functions")]

use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::kernel::bench::Arm;
use awq_core::kernel::dense::{DenseBf16, DenseF32};
use awq_core::kernel::{Activations, Kernel, KernelError, QuantMatmul};
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Model, output and input channels of a linear.
const SHAPES: [(&str, usize, usize); 8] = [
    ("llama-2-7b", 4096, 4096),
    ("llama-2-7b", 11_008, 4096),
    ("llama-2-7b", 4096, 11_008),
    ("llama-3-8b", 14_336, 4096),
    ("llama-3-8b", 1024, 4096),
    ("smollm2-135m", 576, 576),
    ("smollm2-135m", 1536, 576),
    ("smollm2-135m", 49_152, 576),
];
/// Of the copies of a weight that take turns.
const ARM_BYTES: usize = 256 << 20;
const GROUP_SIZE: u16 = 128;

fn weight(n_out: usize, n_in: usize, bits: Bits) -> QuantizedWeight {
    let granularity = std::num::NonZeroU16::new(GROUP_SIZE).map_or(Granularity::PerChannel, Granularity::PerGroup);
    let n_groups = n_out * granularity.n_groups(n_in);
    QuantizedWeight {
        n_out,
        n_in,
        grid: Grid::awq(bits, granularity),
        codes: (0..n_out * n_in).map(|i| (i * 7919) as u8 & bits.max_code()).collect(),
        scale: vec![0.5; n_groups],
        zero_point: ZeroPoints::Codes(vec![1; n_groups]),
        transform: WeightTransform::Identity,
    }
}

fn kernels(c: &mut Criterion) {
    for (model, n_out, n_in) in SHAPES {
        for n_rows in [1, 16] {
            let mut group = c.benchmark_group(format!("{model} [{n_out}, {n_in}] batch {n_rows}"));
            group.sample_size(20);
            let x: Vec<f32> = (0..n_rows * n_in).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
            let mut out = vec![0.0; n_rows * n_out];
            let mut measure = |name: &str, bits: u8, pack: &dyn Fn() -> Result<Box<dyn QuantMatmul>, KernelError>| {
                let arm = Arm::new(ARM_BYTES, pack).unwrap_or_else(|error| panic!("{name}: {error}"));
                group.throughput(Throughput::Bytes(arm.packed_bytes() as u64));
                let mut turn = arm.copies().iter().cycle();
                group.bench_function(BenchmarkId::new(name, bits), |b| {
                    b.iter(|| turn.next().map(|packed| packed.matmul(&x, &mut out)));
                });
            };
            let dense: Vec<f32> = (0..n_out * n_in).map(|i| (i * 31 % 1009) as f32 / 1009.0 - 0.5).collect();
            measure("dense-f32", 32, &|| Ok(Box::new(DenseF32::new(dense.clone(), n_in))));
            measure("dense-bf16", 16, &|| Ok(Box::new(DenseBf16::new(&dense, n_in))));
            for bits in [2, 3, 4, 8].into_iter().filter_map(Bits::new) {
                let weight = weight(n_out, n_in, bits);
                for kernel in [Activations::F32, Activations::Int16, Activations::Int8].map(Kernel::best) {
                    measure(kernel.name, bits.get(), &|| kernel.pack(&weight));
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);

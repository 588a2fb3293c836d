//! Steps of quantization on the CPU loops: rounding onto a grid, and the candidate weights of AWQ's scale search.
//! Throughput is in weights.
#![allow(missing_docs, unreachable_pub, reason = "criterion's macros make public functions")]

use std::num::NonZeroU16;

use awq_core::backend::QuantBackend;
use awq_core::grid::{Bits, Granularity, Grid};
use burn::tensor::{Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

type Cpu = burn::backend::Flex;

const N_OUT: usize = 1536;
const N_IN: usize = 576;

fn tensor<const D: usize>(shape: [usize; D], low: f32) -> Tensor<Cpu, D> {
    let values = (0..shape.iter().product::<usize>()).map(|i| low + (i * 7919 % 1009) as f32 / 1009.0).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, shape), &Default::default())
}

fn quantize(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Elements((N_OUT * N_IN) as u64));
    let (weight, scale) = (tensor([N_OUT, N_IN], -0.5), tensor([N_IN], 0.5));
    let granularity = NonZeroU16::new(128).map_or(Granularity::PerChannel, Granularity::PerGroup);
    for bits in [3, 4].into_iter().filter_map(Bits::new) {
        let grid = Grid::awq(bits, granularity);
        group.bench_function(BenchmarkId::new("round", bits.get()), |b| {
            b.iter(|| Cpu::quantize_weight(weight.clone(), &grid));
        });
        group.bench_function(BenchmarkId::new("fake-quant", bits.get()), |b| {
            b.iter(|| Cpu::fake_quant(weight.clone(), &grid));
        });
        group.bench_function(BenchmarkId::new("fake-quant-scaled", bits.get()), |b| {
            b.iter(|| Cpu::fake_quant_scaled(weight.clone(), scale.clone(), &grid));
        });
    }
    group.finish();
}

criterion_group!(benches, quantize);
criterion_main!(benches);

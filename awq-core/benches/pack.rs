//! Codes to words and back, and weights to the order of a kernel. Throughput is in codes.
#![allow(missing_docs, unreachable_pub, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::kernel::{Activations, Kernel};
use awq_core::pack::PackLayout;
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const N_OUT: usize = 1024;
const N_IN: usize = 1024;

fn weight(bits: Bits) -> QuantizedWeight {
    QuantizedWeight {
        n_out: N_OUT,
        n_in: N_IN,
        grid: Grid::awq(bits, Granularity::PerChannel),
        codes: (0..N_OUT * N_IN).map(|i| (i * 7919) as u8 & bits.max_code()).collect(),
        scale: vec![0.5; N_OUT],
        zero_point: ZeroPoints::Codes(vec![1; N_OUT]),
        transform: WeightTransform::Identity,
    }
}

fn pack(c: &mut Criterion) {
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Elements((N_OUT * N_IN) as u64));
    for bits in [2, 3, 4, 8].into_iter().filter_map(Bits::new) {
        let weight = weight(bits);
        let words = PackLayout::Stream.pack(&weight.codes, N_IN, bits);
        group.bench_function(BenchmarkId::new("words", bits.get()), |b| {
            b.iter(|| PackLayout::Stream.pack(black_box(&weight.codes), N_IN, bits));
        });
        group.bench_function(BenchmarkId::new("codes", bits.get()), |b| {
            b.iter(|| PackLayout::Stream.unpack(black_box(&words), N_IN, bits));
        });
        let kernel = Kernel::best(Activations::Int16);
        group.bench_function(BenchmarkId::new(kernel.name, bits.get()), |b| {
            b.iter(|| kernel.pack(black_box(&weight)).map(|packed| packed.packed_bytes()));
        });
    }
    group.finish();
}

criterion_group!(benches, pack);
criterion_main!(benches);

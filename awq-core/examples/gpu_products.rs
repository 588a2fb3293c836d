//! What products with packed weights cost on a GPU, beside burn's f16 matrix product and a copy kernel of the same run.
//!
//! ```sh
//! cargo run --release -p awq-core --features cuda --example gpu_products            # or --features wgpu
//! cargo run --release -p awq-core --features wgpu --example gpu_products -- smoke   # one small shape, for a test
//! ```
//!
//! Calls are queued one behind the other and the device is waited for at the end: what is measured is the device's time,
//! or the host's time to launch a kernel where that is longer (the first line says how long it takes). Each call reads the
//! next of many buffers, together several times as large as a last-level cache.

use std::time::Instant;

use awq_core::backend::QuantBackend;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::kernel::{DeviceWeight, UnitWeight};
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor};

#[cfg(feature = "cuda")]
type Gpu = burn::backend::Cuda;
#[cfg(not(feature = "cuda"))]
type Gpu = burn::backend::Wgpu;

/// `[out, in]` of the linears of Llama-2-7B (fused q, k and v; o; gate; down) and Llama-3-8B (q and o; k and v; gate; down).
const SHAPES: [[usize; 2]; 7] =
    [[12288, 4096], [4096, 4096], [11008, 4096], [4096, 11008], [1024, 4096], [14336, 4096], [4096, 14336]];
const BATCHES: [usize; 5] = [1, 4, 16, 64, 256];

/// What is measured on.
struct Plan {
    shapes: Vec<[usize; 2]>,
    /// Bytes of all buffers that calls take turns on.
    bytes: usize,
    n_calls: usize,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let smoke = std::env::args().nth(1).as_deref() == Some("smoke");
    let plan = if smoke {
        Plan { shapes: vec![[256, 512]], bytes: 1 << 20, n_calls: 4 }
    } else {
        Plan { shapes: SHAPES.to_vec(), bytes: 512 << 20, n_calls: 100 }
    };
    run::<Gpu>(&plan, &Default::default())
}

fn run<B: QuantBackend>(plan: &Plan, device: &B::Device) -> Result<(), Failure> {
    println!("device: {}", B::name(device));
    let launch = DeviceWeight::<B>::new(&weight(4, 32, 4)?, device)?;
    let x = Tensor::<B, 2>::ones([1, 32], (device, DType::F32));
    let seconds = seconds_per_call::<B>(device, plan.n_calls, |_| drop(B::packed_matmul(x.clone(), &launch)))?;
    println!("a product of one unit, which is what a launch costs: {:.4} ms", seconds * 1e3);
    let copy = copy_bandwidth::<B>(plan, device)?;
    println!("copy kernel (read and written): {:.0} GB/s\n", copy / 1e9);
    let dtypes = [DType::F16, DType::F32];
    let dtype = dtypes.into_iter().find(|&dtype| B::supports_dtype(device, dtype)).ok_or("no float type")?;
    println!("| bits | out x in | batch | ms | GB/s | % of copy | {dtype:?} matmul ms | ratio |");
    println!("|--:|:--|--:|--:|--:|--:|--:|--:|");
    for &[n_out, n_in] in &plan.shapes {
        let dense_bytes = n_out * n_in * dtype.size();
        let dense: Vec<Tensor<B, 2>> = (0..(plan.bytes / dense_bytes).max(2))
            .map(|_| Tensor::random([n_out, n_in], Distribution::Uniform(-1.0, 1.0), (device, dtype)))
            .collect();
        let inputs = BATCHES.map(|n| Tensor::<B, 2>::random([n, n_in], Distribution::Default, (device, dtype)));
        let mut dense_seconds = Vec::new();
        for x in &inputs {
            let call = |i: usize| drop(x.clone().matmul(dense[i % dense.len()].clone().transpose()));
            dense_seconds.push(seconds_per_call::<B>(device, plan.n_calls, call)?);
        }
        drop(dense);
        for bits in [4, 3, 2] {
            let packed = UnitWeight::new(&weight(n_out, n_in, bits)?)?;
            let first: DeviceWeight<B> = packed.clone().upload(device);
            let n_copies = (plan.bytes / first.packed_bytes()).max(2);
            let weights: Vec<_> = std::iter::repeat_with(|| packed.clone().upload(device)).take(n_copies).collect();
            for (x, dense) in inputs.iter().zip(&dense_seconds) {
                let call = |i: usize| drop(B::packed_matmul(x.clone(), &weights[i % n_copies]));
                let seconds = seconds_per_call::<B>(device, plan.n_calls, call)?;
                let bandwidth = first.packed_bytes() as f64 / seconds;
                println!(
                    "| {bits} | {n_out} x {n_in} | {} | {:.4} | {:.0} | {:.0} | {:.4} | {:.2} |",
                    x.dims()[0],
                    seconds * 1e3,
                    bandwidth / 1e9,
                    100.0 * bandwidth / copy,
                    dense * 1e3,
                    dense / seconds
                );
            }
        }
    }
    Ok(())
}

/// Median of five rounds of `n_calls` queued calls; one more round comes first and is not counted.
fn seconds_per_call<B: Backend>(
    device: &B::Device,
    n_calls: usize,
    mut call: impl FnMut(usize),
) -> Result<f64, Failure> {
    const ROUNDS: usize = 5;
    let mut seconds = Vec::with_capacity(ROUNDS);
    for round in 0..=ROUNDS {
        B::sync(device)?;
        let start = Instant::now();
        (0..n_calls).for_each(|i| call(round * n_calls + i));
        B::sync(device)?;
        if round > 0 {
            seconds.push(start.elapsed().as_secs_f64() / n_calls as f64);
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2])
}

/// Bytes a second of an elementwise kernel that reads one array and writes another.
fn copy_bandwidth<B: Backend>(plan: &Plan, device: &B::Device) -> Result<f64, Failure> {
    let source = Tensor::<B, 1>::ones([plan.bytes / size_of::<f32>()], (device, DType::F32));
    let seconds = seconds_per_call::<B>(device, plan.n_calls.div_ceil(10), |_| drop(source.clone() * 2.0))?;
    Ok(2.0 * plan.bytes as f64 / seconds)
}

/// Arbitrary codes in groups of 128.
fn weight(n_out: usize, n_in: usize, bits: u8) -> Result<QuantizedWeight, Failure> {
    let bits = Bits::new(bits).ok_or("bits")?;
    let granularity = Granularity::PerGroup(128.try_into()?);
    let n_groups = n_out * granularity.n_groups(n_in);
    let code = |i: usize| (i.wrapping_mul(2_654_435_761) >> 16) as u8 & bits.max_code();
    Ok(QuantizedWeight {
        n_out,
        n_in,
        grid: Grid {
            bits,
            granularity,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: false,
            scale_dtype: ScaleDtype::F16,
        },
        codes: (0..n_out * n_in).map(code).collect(),
        scale: vec![ScaleDtype::F16.round(0.01); n_groups],
        zero_point: ZeroPoints::Codes((0..n_groups).map(code).collect()),
        transform: WeightTransform::Identity,
    })
}

//! What products with a weight cost on a GPU: packed forms, dense ones, and bounds of the device.
//!
//! Calls are put into the device's queue one behind the other and waited for at the end: what is measured is the device's
//! time, or the host's time to launch a kernel where that is longer. (CubeCL's own profiler is no alternative on CUDA: it
//! waits for the device before and after each measurement and takes the host's clock, too.) Each call reads the next of
//! several copies of its weight, together larger than a last-level cache. Results are kept until then: what nobody holds any more,
//! burn's fusion need not compute.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor};

use super::super::bench::{Bandwidth, Latency};
use super::super::{DeviceWeight, KernelError, UnitWeight};
use super::{GptqWeight, GpuBackend};
use crate::quantized::QuantizedWeight;

/// Calls that are queued before the device is waited for.
const N_CALLS: usize = 20;

/// Work on a device failed.
#[derive(Debug, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceError(pub String);

/// A product with one weight, to be timed.
pub trait Queued {
    /// Bytes of weight that a call reads.
    fn weight_bytes(&self) -> usize;

    /// Rows of activations of the calls to come.
    ///
    /// # Errors
    /// If the device has no memory for them.
    fn set_batch_size(&mut self, n_rows: usize) -> Result<(), DeviceError>;

    /// Puts a call into the device's queue; different numbers read different copies.
    ///
    /// # Errors
    /// If it cannot be started.
    fn queue(&mut self, call: usize) -> Result<(), DeviceError>;

    /// Waits until all is done.
    ///
    /// # Errors
    /// If a call failed.
    fn wait(&mut self) -> Result<(), DeviceError>;
}

/// Times of a call: the arms take turns, each with a queue of calls. Two rounds of warm-up, in which kernels are compiled
/// and tuned, are not counted.
///
/// # Errors
/// If a call fails.
///
/// # Panics
/// If `n_rounds` is zero.
pub fn interleaved(arms: &mut [Box<dyn Queued>], n_rounds: usize) -> Result<Vec<Latency>, DeviceError> {
    const WARM_UP: usize = 2;
    assert!(n_rounds > 0, "no round to measure");
    let mut seconds = vec![Vec::with_capacity(n_rounds); arms.len()];
    for round in 0..WARM_UP + n_rounds {
        for (arm, seconds) in arms.iter_mut().zip(&mut seconds) {
            arm.wait()?;
            let start = Instant::now();
            (0..N_CALLS).try_for_each(|call| arm.queue(round * N_CALLS + call))?;
            arm.wait()?;
            if round >= WARM_UP {
                seconds.push(start.elapsed().as_secs_f64() / N_CALLS as f64);
            }
        }
    }
    Ok(seconds.into_iter().map(Latency::of).collect())
}

/// A product of burn tensors.
pub struct Product<B: Backend, W> {
    multiply: fn(Tensor<B, 2>, &W) -> Tensor<B, 2>,
    weight_bytes: usize,
    copies: Vec<W>,
    x: Tensor<B, 2>,
    /// Results of the calls in the queue.
    pending: Vec<Tensor<B, 2>>,
}

impl<B: GpuBackend> Product<B, Tensor<B, 2>> {
    /// burn's product with a dense `[n_out, n_in]` weight, in as many copies as fill `bytes`.
    pub fn dense([n_out, n_in]: [usize; 2], dtype: DType, bytes: usize, device: &B::Device) -> Self {
        let weight_bytes = n_out * n_in * dtype.size();
        let copy = || Tensor::random([n_out, n_in], Distribution::Uniform(-1.0, 1.0), (device, dtype));
        let multiply = |x: Tensor<B, 2>, weight: &Tensor<B, 2>| x.matmul(weight.clone().transpose());
        Self::new(multiply, weight_bytes, bytes, copy, activations(1, n_in, dtype, device))
    }
}

impl<B: GpuBackend> Product<B, DeviceWeight<B>> {
    /// Multiplied as it is.
    pub fn packed(weight: &UnitWeight, dtype: DType, bytes: usize, device: &B::Device) -> Self {
        Self::units(B::packed_matvec, weight, dtype, bytes, device)
    }

    /// Dequantized into memory by each call, then multiplied as a dense weight.
    pub fn dequantized(weight: &UnitWeight, dtype: DType, bytes: usize, device: &B::Device) -> Self {
        Self::units(B::dequantized_matmul, weight, dtype, bytes, device)
    }

    fn units(
        multiply: fn(Tensor<B, 2>, &DeviceWeight<B>) -> Tensor<B, 2>,
        weight: &UnitWeight,
        dtype: DType,
        bytes: usize,
        device: &B::Device,
    ) -> Self {
        let copy = || weight.clone().upload(device);
        let first: DeviceWeight<B> = copy();
        let x = activations(1, first.facts().n_in, dtype, device);
        Self::new(multiply, first.packed_bytes(), bytes, copy, x)
    }
}

impl<B: GpuBackend> Product<B, GptqWeight<B>> {
    /// The baseline in GPTQ's layout.
    ///
    /// # Errors
    /// As [`GptqWeight::new`].
    pub fn gptq(weight: &QuantizedWeight, dtype: DType, bytes: usize, device: &B::Device) -> Result<Self, KernelError> {
        // A cloned tensor is the same memory: each copy is an upload of its own.
        let mut copies = vec![GptqWeight::new(weight, dtype, device)?];
        let weight_bytes = copies[0].packed_bytes();
        for _ in 1..n_copies(weight_bytes, bytes) {
            copies.push(GptqWeight::new(weight, dtype, device)?);
        }
        let x = activations(1, weight.n_in, dtype, device);
        Ok(Self { multiply: B::gptq_matmul, weight_bytes, copies, x, pending: Vec::new() })
    }
}

impl<B: Backend, W> Product<B, W> {
    fn new(
        multiply: fn(Tensor<B, 2>, &W) -> Tensor<B, 2>,
        weight_bytes: usize,
        bytes: usize,
        copy: impl FnMut() -> W,
        x: Tensor<B, 2>,
    ) -> Self {
        let copies = std::iter::repeat_with(copy).take(n_copies(weight_bytes, bytes)).collect();
        Self { multiply, weight_bytes, copies, x, pending: Vec::new() }
    }
}

fn n_copies(weight_bytes: usize, bytes: usize) -> usize {
    (bytes / weight_bytes.max(1)).max(1)
}

impl<B: Backend, W> Queued for Product<B, W> {
    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn set_batch_size(&mut self, n_rows: usize) -> Result<(), DeviceError> {
        self.x = activations(n_rows, self.x.dims()[1], self.x.dtype(), &self.x.device());
        Ok(())
    }

    fn queue(&mut self, call: usize) -> Result<(), DeviceError> {
        self.pending.push((self.multiply)(self.x.clone(), &self.copies[call % self.copies.len()]));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        wait::<B>(&self.x.device())?;
        self.pending.clear();
        Ok(())
    }
}

/// Bytes of an array: many devices take no larger one.
const ARRAY_BYTES: usize = 64 << 20;

/// Copies arrays into others, elementwise, and sums them: bytes a second, medians of `n_rounds`. The arrays take turns and
/// have `bytes` together, which should be several times the last-level cache.
///
/// # Errors
/// If the device fails.
pub fn bandwidth<B: Backend>(bytes: usize, n_rounds: usize, device: &B::Device) -> Result<Bandwidth, DeviceError> {
    let array = bytes.min(ARRAY_BYTES);
    let ones = || Tensor::<B, 1>::ones([array / size_of::<f32>()], (device, DType::F32));
    let sources: Vec<_> = std::iter::repeat_with(ones).take(n_copies(array, bytes)).collect();
    let median = |call: &dyn Fn(Tensor<B, 1>) -> Tensor<B, 1>| -> Result<f64, DeviceError> {
        let mut seconds = Vec::with_capacity(n_rounds);
        for round in 0..=n_rounds {
            wait::<B>(device)?;
            let start = Instant::now();
            let results: Vec<_> = (0..N_CALLS).map(|i| call(sources[i % sources.len()].clone())).collect();
            wait::<B>(device)?;
            drop(results);
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64() / N_CALLS as f64);
            }
        }
        Ok(Latency::of(seconds).median)
    };
    let copy = median(&|source| source * 2.0)?;
    let read = median(&|source| source.sum())?;
    Ok(Bandwidth { copy: 2.0 * array as f64 / copy, read: array as f64 / read })
}

/// Operations a second of burn's product of two square matrices, of 4096 rows or as many as keep the device busy for a
/// millisecond.
///
/// # Errors
/// If the device fails.
pub fn peak<B: Backend>(dtype: DType, device: &B::Device) -> Result<f64, DeviceError> {
    const LARGEST: usize = 4096;
    const ENOUGH: f64 = 1e-3;
    let mut n = 512;
    loop {
        let square = || Tensor::<B, 2>::random([n, n], Distribution::Uniform(-1.0, 1.0), (device, dtype));
        let (a, b) = (square(), square());
        let mut fastest = f64::INFINITY;
        // The first compiles and tunes.
        for round in 0..4 {
            wait::<B>(device)?;
            let start = Instant::now();
            let product = a.clone().matmul(b.clone());
            wait::<B>(device)?;
            drop(product);
            if round > 0 {
                fastest = fastest.min(start.elapsed().as_secs_f64());
            }
        }
        if fastest > ENOUGH || n == LARGEST {
            return Ok(2.0 * (n as f64).powi(3) / fastest);
        }
        n *= 2;
    }
}

fn activations<B: Backend>(n_rows: usize, n_in: usize, dtype: DType, device: &B::Device) -> Tensor<B, 2> {
    Tensor::random([n_rows, n_in], Distribution::Uniform(-1.0, 1.0), (device, dtype))
}

fn wait<B: Backend>(device: &B::Device) -> Result<(), DeviceError> {
    B::sync(device).map_err(|error| DeviceError(error.to_string()))
}

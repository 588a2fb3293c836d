//! What products with a weight cost on a GPU: packed forms, dense ones, and bounds of the device.
//!
//! Calls are put into the device's queue one behind the other and waited for at the end, so that it is the device's time that
//! is measured. (CubeCL's own profiler is no alternative on CUDA: it waits for the device before and after each measurement
//! and takes the host's clock, too.) Where starting a call takes longer than the call, calls wait behind other work whose time,
//! measured apart, is subtracted. Each call reads the next of several copies of its weight,
//! together larger than a last-level cache. Results are kept until the end: what nobody holds any more, burn's fusion need not
//! compute.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor};

use super::super::bench::Latency;
use super::super::{DeviceWeight, KernelError, UnitWeight};
use super::{GptqWeight, GpuBackend};
use crate::quantized::QuantizedWeight;

/// Calls that are queued before the device is waited for.
const N_CALLS: usize = 50;
/// Bytes of the array whose sum is the other work that calls wait behind.
const BALLAST_BYTES: usize = 256 << 20;

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

    /// Puts work into the queue that takes the device longer than it takes to be started.
    ///
    /// # Errors
    /// If it cannot be started.
    fn queue_ballast(&mut self) -> Result<(), DeviceError>;

    /// Waits until all is done.
    ///
    /// # Errors
    /// If a call failed.
    fn wait(&mut self) -> Result<(), DeviceError>;
}

/// Times of a call: the arms take turns, each with a queue of calls. Warm-up, in which kernels are compiled and tuned, is not
/// counted.
///
/// # Errors
/// If a call fails.
///
/// # Panics
/// If `n_rounds` is zero.
pub fn interleaved(arms: &mut [Box<dyn Queued>], n_rounds: usize) -> Result<Vec<Latency>, DeviceError> {
    assert!(n_rounds > 0, "no round to measure");
    let mut n_ballast = Vec::with_capacity(arms.len());
    for arm in arms.iter_mut() {
        queue_and_wait(arm.as_mut(), N_CALLS, 0)?;
        n_ballast.push(ballast(arm.as_mut())?);
    }
    let mut seconds = vec![Vec::with_capacity(n_rounds); arms.len()];
    for _ in 0..n_rounds {
        for ((arm, seconds), n_ballast) in arms.iter_mut().zip(&mut seconds).zip(&n_ballast) {
            let arm = arm.as_mut();
            let calls = behind_ballast(arm, *n_ballast)?;
            // Something else kept the machine busy; the time with that of starting the calls is an upper bound.
            let calls = if calls > 0.0 { calls } else { queue_and_wait(arm, N_CALLS, 0)? };
            seconds.push(calls / N_CALLS as f64);
        }
    }
    Ok(seconds.into_iter().map(Latency::of).collect())
}

/// Seconds until all is done.
fn queue_and_wait(arm: &mut dyn Queued, n_calls: usize, n_ballast: usize) -> Result<f64, DeviceError> {
    arm.wait()?;
    let start = Instant::now();
    (0..n_ballast).try_for_each(|_| arm.queue_ballast())?;
    (0..n_calls).try_for_each(|call| arm.queue(call))?;
    arm.wait()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds of a queue of calls behind ballast, less those of the ballast alone.
fn behind_ballast(arm: &mut dyn Queued, n_ballast: usize) -> Result<f64, DeviceError> {
    let alone = if n_ballast > 0 { queue_and_wait(arm, 0, n_ballast)? } else { 0.0 };
    Ok(queue_and_wait(arm, N_CALLS, n_ballast)? - alone)
}

/// Ballast that keeps the device busy until all calls are started, which takes no longer than starting and making them; none
/// where they are no faster behind it.
fn ballast(arm: &mut dyn Queued) -> Result<usize, DeviceError> {
    const MOST: usize = 200;
    const N_TIMED: usize = 4;
    let calls = queue_and_wait(arm, N_CALLS, 0)?;
    queue_and_wait(arm, 0, 1)?;
    let one = queue_and_wait(arm, 0, N_TIMED)? / N_TIMED as f64;
    let n_ballast = ((1.5 * calls / one).ceil() as usize).clamp(1, MOST);
    let is_faster = behind_ballast(arm, n_ballast)? < 0.9 * calls;
    Ok(if is_faster { n_ballast } else { 0 })
}

/// A product of burn tensors.
pub struct Product<B: Backend, W> {
    multiply: fn(Tensor<B, 2>, &W) -> Tensor<B, 2>,
    weight_bytes: usize,
    copies: Vec<W>,
    x: Tensor<B, 2>,
    /// Results of the calls in the queue.
    pending: Vec<Tensor<B, 2>>,
    /// What [`Queued::queue_ballast`] sums, once it has been asked for.
    ballast: Option<Tensor<B, 2>>,
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

    /// Multiplied as it is, on tensor cores; none where there are none, or the weight is not one for them.
    pub fn tensor_core(weight: &UnitWeight, dtype: DType, bytes: usize, device: &B::Device) -> Option<Self> {
        let takes = B::has_tensor_cores(device, dtype) && weight.facts().on_tensor_cores();
        takes.then(|| Self::units(B::tensor_core_matmul, weight, dtype, bytes, device))
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
        Ok(Self::of(B::gptq_matmul, weight_bytes, copies, x))
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
        Self::of(multiply, weight_bytes, copies, x)
    }

    fn of(
        multiply: fn(Tensor<B, 2>, &W) -> Tensor<B, 2>,
        weight_bytes: usize,
        copies: Vec<W>,
        x: Tensor<B, 2>,
    ) -> Self {
        Self { multiply, weight_bytes, copies, x, pending: Vec::new(), ballast: None }
    }
}

fn n_copies(weight_bytes: usize, bytes: usize) -> usize {
    (bytes / weight_bytes.max(1)).max(1)
}

impl<B: GpuBackend, W> Queued for Product<B, W> {
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

    fn queue_ballast(&mut self) -> Result<(), DeviceError> {
        let device = self.x.device();
        let array = self.ballast.get_or_insert_with(|| ones(BALLAST_BYTES, &device));
        self.pending.push(array.clone().sum_dim(1));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        wait::<B>(&self.x.device())?;
        self.pending.clear();
        Ok(())
    }
}

/// An array of about `bytes`, or of as many as the device takes. In rows, which many threads can sum.
fn ones<B: GpuBackend>(bytes: usize, device: &B::Device) -> Tensor<B, 2> {
    const ROW: usize = 1024;
    let n_rows = bytes.min(B::largest_array(device)) / (ROW * size_of::<f32>());
    Tensor::ones([n_rows.max(1), ROW], (device, DType::F32))
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

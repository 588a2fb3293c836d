//! cuBLAS's product with a dense f16 weight, summed in f32: the baseline that papers compare with.

use std::sync::Arc;

use awq_core::kernel::cube::bench::{DeviceError, Queued, interleaved};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::f16;

/// Number of a CUDA device; `None` of other names.
pub(crate) fn index(device: &str) -> Option<usize> {
    match device.split_once(':') {
        None => (device == "cuda").then_some(0),
        Some((backend, index)) => index.parse().ok().filter(|_| backend == "cuda"),
    }
}

/// What the driver calls a device.
pub(crate) fn device_name(index: usize) -> Option<String> {
    CudaContext::new(index).and_then(|context| context.name()).ok()
}

/// `x w^T` of a `[n_out, n_in]` weight, in several copies.
pub(super) struct CublasProduct {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    n_out: usize,
    n_in: usize,
    n_rows: usize,
    copies: Vec<CudaSlice<f16>>,
    x: CudaSlice<f16>,
    out: CudaSlice<f16>,
    /// What other work overwrites.
    ballast: CudaSlice<u8>,
}

/// Long enough to write for the host to start another call meanwhile.
const BALLAST_BYTES: usize = 256 << 20;

impl CublasProduct {
    /// As many copies as fill `bytes`; `None` where cuBLAS is not installed.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub(super) fn new(index: usize, [n_out, n_in]: [usize; 2], bytes: usize) -> Result<Option<Self>, DeviceError> {
        if !crate::device::has_cublas() {
            return Ok(None);
        }
        let context = CudaContext::new(index).map_err(failed)?;
        let stream = context.new_stream().map_err(failed)?;
        let blas = CudaBlas::new(stream.clone()).map_err(failed)?;
        let values: Vec<f16> =
            (0..n_out * n_in).map(|i| f16::from_f32((i * 7919 % 1009) as f32 / 1009.0 - 0.5)).collect();
        let n_copies = (bytes / (n_out * n_in * size_of::<f16>()).max(1)).max(1);
        let copies = (0..n_copies).map(|_| stream.clone_htod(&values)).collect::<Result<Vec<_>, _>>();
        let (x, out) = (stream.alloc_zeros(n_in), stream.alloc_zeros(n_out));
        Ok(Some(Self {
            copies: copies.map_err(failed)?,
            x: x.map_err(failed)?,
            out: out.map_err(failed)?,
            ballast: stream.alloc_zeros(BALLAST_BYTES).map_err(failed)?,
            stream,
            blas,
            n_out,
            n_in,
            n_rows: 1,
        }))
    }
}

impl Queued for CublasProduct {
    fn weight_bytes(&self) -> usize {
        self.n_out * self.n_in * size_of::<f16>()
    }

    fn set_batch_size(&mut self, n_rows: usize) -> Result<(), DeviceError> {
        let values: Vec<f16> = (0..n_rows * self.n_in).map(|i| f16::from_f32((i % 17) as f32 / 17.0 - 0.5)).collect();
        self.x = self.stream.clone_htod(&values).map_err(failed)?;
        self.out = self.stream.alloc_zeros(n_rows * self.n_out).map_err(failed)?;
        self.n_rows = n_rows;
        Ok(())
    }

    fn queue(&mut self, call: usize) -> Result<(), DeviceError> {
        let int = |n: usize| i32::try_from(n).map_err(|_| DeviceError(format!("{n} channels are too many for cuBLAS")));
        // cuBLAS counts columns first: our row-major weight is its transpose there, and so are activations and products.
        let config = GemmConfig {
            transa: sys::cublasOperation_t::CUBLAS_OP_T,
            transb: sys::cublasOperation_t::CUBLAS_OP_N,
            m: int(self.n_out)?,
            n: int(self.n_rows)?,
            k: int(self.n_in)?,
            alpha: f16::ONE,
            lda: int(self.n_in)?,
            ldb: int(self.n_in)?,
            beta: f16::ZERO,
            ldc: int(self.n_out)?,
        };
        let weight = &self.copies[call % self.copies.len()];
        // SAFETY: the weight is `[n_out, n_in]`, `x` `[n_rows, n_in]` and `out` `[n_rows, n_out]`, as `config` says.
        unsafe { self.blas.gemm(config, weight, &self.x, &mut self.out) }.map_err(failed)
    }

    fn queue_ballast(&mut self) -> Result<(), DeviceError> {
        self.stream.memset_zeros(&mut self.ballast).map_err(failed)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(failed)
    }
}

/// Operations a second of a product of two square matrices of 4096 rows, which come from memory; `None` without cuBLAS.
///
/// # Errors
/// If the device fails.
pub(super) fn peak(index: usize) -> Result<Option<f64>, DeviceError> {
    const N: usize = 4096;
    const N_ROUNDS: usize = 3;
    let Some(mut product) = CublasProduct::new(index, [N, N], 0)? else { return Ok(None) };
    product.set_batch_size(N)?;
    let latencies = interleaved(&mut [Box::new(product) as Box<dyn Queued>], N_ROUNDS)?;
    Ok(latencies.first().map(|latency| 2.0 * (N as f64).powi(3) / latency.median))
}

fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError(error.to_string())
}

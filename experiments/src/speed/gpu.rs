//! Latency of products with one weight on a GPU: dense and packed forms, taking turns.

use std::collections::BTreeMap;

use awq_core::arithmetic::FloatType;
use awq_core::grid::Grid;
use awq_core::host;
use awq_core::kernel::cube::bench::{Product, Queued, interleaved, peak};
use awq_core::kernel::cube::{GptqWeight, GpuBackend};
use awq_core::kernel::{Activations, DeviceWeight, UnitWeight};
use awq_core::quantized::QuantizedWeight;
use awq_core::transform::WeightTransform;
use burn::tensor::{DType, Tensor};

use super::Timed;
use super::kernels::numbers;
use super::record::{Gpu, KernelTimes, Machine, MachinePeak, Measured, PackedForm};
use crate::config::{KernelSpeed, Shape};
use crate::device::GpuJob;

/// Bytes of the array that is copied to measure memory: many times a last-level cache.
const MEMORY_BYTES: usize = 512 << 20;
const MEMORY_ROUNDS: usize = 5;

/// Every form of one weight, at several batch sizes.
pub(super) struct TimeKernels<'a> {
    pub(super) device: &'a str,
    pub(super) precision: FloatType,
    pub(super) shape: &'a Shape,
    pub(super) of: &'a KernelSpeed,
    pub(super) batch_sizes: Vec<usize>,
    /// Takes the times at one batch size, by its index.
    pub(super) done: &'a mut dyn FnMut(usize, Timed) -> anyhow::Result<()>,
}

/// A form and what it is called: the kernel, and the codes where there are any.
type Form = (String, Option<PackedForm>, Box<dyn Queued>);

impl GpuJob for TimeKernels<'_> {
    type Output = ();

    fn run<B: GpuBackend>(self, device: B::Device) -> anyhow::Result<()> {
        let dtype: DType = self.precision.dtype().into();
        let mut names = Vec::new();
        let mut arms = Vec::new();
        for (kernel, packed, arm) in self.forms::<B>(dtype, &device)? {
            names.push((kernel, packed));
            arms.push(arm);
        }
        let machine = Machine {
            bandwidth: B::bandwidth(&device, MEMORY_BYTES, MEMORY_ROUNDS)?,
            peak: MachinePeak::Gpu { dense_product: self.peak::<B>(dtype, &device)? },
        };
        let gpu = Gpu { name: name::<B>(self.device, &device), precision: self.precision };
        for (index, &batch_size) in self.batch_sizes.iter().enumerate() {
            arms.iter_mut().try_for_each(|arm| arm.set_batch_size(batch_size))?;
            let latencies = interleaved(&mut arms, self.of.n_rounds.get())?;
            let bytes = arms.iter().map(|arm| arm.weight_bytes());
            let times = KernelTimes::new(self.shape, batch_size, &names, bytes, latencies);
            let (measured, gpu) = (Measured::Kernels(times), Some(gpu.clone()));
            (self.done)(index, Timed { measured, machine, gpu, assets: BTreeMap::new() })?;
        }
        Ok(())
    }
}

impl TimeKernels<'_> {
    /// Operations a second of a large dense product: burn's, or cuBLAS's where that is faster.
    fn peak<B: GpuBackend>(&self, dtype: DType, device: &B::Device) -> anyhow::Result<f64> {
        let of_burn = peak::<B>(dtype, device)?;
        #[cfg(feature = "cuda")]
        if let (Some(index), FloatType::F16) = (super::cublas::index(self.device), self.precision) {
            return Ok(super::cublas::peak(index)?.map_or(of_burn, |of_cublas| of_cublas.max(of_burn)));
        }
        Ok(of_burn)
    }

    fn forms<B: GpuBackend>(&self, dtype: DType, device: &B::Device) -> anyhow::Result<Vec<Form>> {
        let sizes = [self.shape.n_out.get(), self.shape.n_in.get()];
        let bytes = self.of.distinct_mib.get() << 20;
        let precision = self.precision.name();
        let dense = Product::<B, Tensor<B, 2>>::dense(sizes, dtype, bytes, device);
        let mut forms: Vec<Form> = vec![(format!("dense-{precision}"), None, Box::new(dense))];
        #[cfg(feature = "cuda")]
        if let (Some(index), FloatType::F16) = (super::cublas::index(self.device), self.precision) {
            let product = super::cublas::CublasProduct::new(index, sizes, bytes)?;
            forms.extend(product.map(|product| ("cublas-f16".into(), None, Box::new(product) as Box<dyn Queued>)));
        }
        // Speed does not depend on the values.
        let values = numbers(sizes[0] * sizes[1]);
        let grids = self.of.bits.iter().flat_map(|bits| self.of.granularity.iter().map(move |g| (*bits, *g)));
        for (bits, granularity) in grids {
            let weight = host::grid::quantize(&values, sizes[0], sizes[1], &Grid::awq(bits, granularity));
            let form = |granularity: String| {
                let (bits, precision) = (bits.get(), Some(self.precision));
                Some(PackedForm { bits, granularity, activations: Activations::F32, precision })
            };
            let units = UnitWeight::new(&weight)?;
            let packed = Product::<B, DeviceWeight<B>>::packed(&units, dtype, bytes, device);
            forms.push(("matvec".into(), form(granularity.label()), Box::new(packed)));
            if let Some(product) = Product::<B, DeviceWeight<B>>::tensor_core(&units, dtype, bytes, device) {
                let label = format!("{} tensor cores", granularity.label());
                forms.push(("tensor-core".into(), form(label), Box::new(product)));
            }
            let dequantized = Product::<B, DeviceWeight<B>>::dequantized(&units, dtype, bytes, device);
            let label = format!("{} dequantized", granularity.label());
            forms.push(("dequantize".into(), form(label), Box::new(dequantized)));
            if GptqWeight::<B>::holds(&weight) {
                let ordered = QuantizedWeight { transform: arbitrary_order(sizes[1]), ..weight };
                let gptq = Product::<B, GptqWeight<B>>::gptq(&ordered, dtype, bytes, device)?;
                forms.push(("gptq".into(), form(format!("{} GPTQ act-order", granularity.label())), Box::new(gptq)));
            }
        }
        Ok(forms)
    }
}

/// What the driver calls the GPU; burn's name of the backend where it does not tell.
fn name<B: GpuBackend>(device: &str, at: &B::Device) -> String {
    #[cfg(feature = "cuda")]
    if let Some(name) = super::cublas::index(device).and_then(super::cublas::device_name) {
        return name;
    }
    format!("{device} ({})", B::name(at))
}

/// An order of the channels in which neighbours come from all over the row, as activation order leaves them.
fn arbitrary_order(n_in: usize) -> WeightTransform {
    let mut order: Vec<u32> = (0..n_in as u32).collect();
    order.sort_by_key(|&channel| channel.wrapping_mul(2_654_435_761));
    WeightTransform::PermutedInputs(order)
}

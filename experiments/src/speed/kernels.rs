//! Latency of products with one weight: dense and packed forms, taking turns.

use awq_core::grid::Grid;
use awq_core::kernel::Kernel;
use awq_core::kernel::bench::{Arm, interleaved};
use awq_core::kernel::dense::{DenseBf16, DenseF32};

use super::record::{KernelTimes, PackedForm};
use crate::config::{KernelSpeed, Shape};

/// Every form of one weight, in as many copies as a comparison needs. Making them takes longer than timing them.
pub struct Forms {
    shape: Shape,
    /// Name of the kernel, and the codes where there are any.
    names: Vec<(String, Option<PackedForm>)>,
    arms: Vec<Arm>,
}

impl Forms {
    /// Packs a weight of this shape.
    ///
    /// # Errors
    /// A kernel that does not take the weight.
    pub fn new(shape: &Shape, spec: &KernelSpeed) -> anyhow::Result<Self> {
        let (n_out, n_in) = (shape.n_out.get(), shape.n_in.get());
        let dense = numbers(n_out * n_in);
        let bytes = spec.distinct_mib.get() << 20;
        let mut names = vec![("dense-f32".to_owned(), None), ("dense-bf16".to_owned(), None)];
        let mut arms = vec![
            Arm::new(bytes, || Ok(Box::new(DenseF32::new(dense.clone(), n_in))))?,
            Arm::new(bytes, || Ok(Box::new(DenseBf16::new(&dense, n_in))))?,
        ];
        for (&bits, &granularity) in spec.bits.iter().flat_map(|bits| spec.granularity.iter().map(move |g| (bits, g))) {
            let weight = awq_core::host::grid::quantize(&dense, n_out, n_in, &Grid::awq(bits, granularity));
            for &activations in &spec.activations {
                let kernel = Kernel::best(activations);
                arms.push(Arm::new(bytes, || kernel.pack(&weight))?);
                let form =
                    PackedForm { bits: bits.get(), granularity: granularity.label(), activations, precision: None };
                names.push((kernel.name.to_owned(), Some(form)));
            }
        }
        Ok(Self { shape: shape.clone(), names, arms })
    }

    /// Times products of every form with `batch_size` rows of activations, on rayon's current pool.
    pub fn measure(&self, batch_size: usize, n_rounds: usize) -> KernelTimes {
        let latencies = interleaved(&self.arms, &numbers(batch_size * self.shape.n_in.get()), n_rounds);
        let bytes = self.arms.iter().map(Arm::packed_bytes);
        KernelTimes::new(&self.shape, batch_size, &self.names, bytes, latencies)
    }
}

/// Numbers between -0.5 and 0.5, always the same.
pub(super) fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

//! Latency of products with one weight: dense and packed forms, taking turns.

use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::kernel::bench::{Arm, interleaved};
use awq_core::kernel::dense::{DenseBf16, DenseF32};
use awq_core::kernel::{Kernel, QuantMatmul};
use awq_core::quantized::QuantizedWeight;

use super::record::{KernelArm, KernelTimes, PackedForm};
use crate::config::{KernelSpeed, Shape};

/// Times every form of a weight.
///
/// # Errors
/// A kernel that does not take the weight.
pub fn measure(shape: &Shape, batch_size: usize, spec: &KernelSpeed) -> anyhow::Result<KernelTimes> {
    let (n_out, n_in) = (shape.n_out.get(), shape.n_in.get());
    let dense = numbers(n_out * n_in);
    let bytes = spec.distinct_mib.get() << 20;
    let mut forms = vec![("dense-f32".to_owned(), None), ("dense-bf16".to_owned(), None)];
    let mut arms = vec![
        Arm::new(bytes, || Box::new(DenseF32::new(dense.clone(), n_in))),
        Arm::new(bytes, || Box::new(DenseBf16::new(&dense, n_in))),
    ];
    for (&bits, &granularity) in spec.bits.iter().flat_map(|bits| spec.granularity.iter().map(move |g| (bits, g))) {
        let weight = round_to_nearest(&dense, [n_out, n_in], bits, granularity);
        for &activations in &spec.activations {
            let kernel = Kernel::best(activations);
            arms.push(packed_arm(kernel, &weight, bytes)?);
            let form = PackedForm { bits: bits.get(), granularity: granularity.label(), activations };
            forms.push((kernel.name.to_owned(), Some(form)));
        }
    }
    let latencies = interleaved(&arms, &numbers(batch_size * n_in), spec.n_rounds.get());
    let arms = forms.into_iter().zip(&arms).zip(latencies).map(|(((kernel, packed), arm), latency)| KernelArm {
        kernel,
        packed,
        bytes: arm.packed_bytes(),
        latency,
    });
    Ok(KernelTimes { shape: shape.clone(), batch_size, arms: arms.collect() })
}

fn packed_arm(kernel: &Kernel, weight: &QuantizedWeight, bytes: usize) -> anyhow::Result<Arm> {
    kernel.pack(weight)?;
    // What packs once packs again.
    let pack =
        || -> Box<dyn QuantMatmul> { kernel.pack(weight).unwrap_or_else(|error| panic!("{}: {error}", kernel.name)) };
    Ok(Arm::new(bytes, pack))
}

fn round_to_nearest(dense: &[f32], [n_out, n_in]: [usize; 2], bits: Bits, granularity: Granularity) -> QuantizedWeight {
    let grid = Grid {
        bits,
        granularity,
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: false,
        scale_dtype: ScaleDtype::F16,
    };
    awq_core::host::grid::quantize(dense, n_out, n_in, &grid)
}

/// Numbers between -0.5 and 0.5, always the same.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

//! Records as long-format frames: `speed-kernels.csv` and `speed-decode.csv`, and the same as Parquet.

use awq_core::kernel::Activations;
use awq_core::kernel::bench::Latency;
use polars::prelude::*;

use super::record::{
    DecodeTimes, Gpu, KernelArm, KernelTimes, Machine, MachinePeak, Measured, PackedForm, SpeedRecord,
};
use super::tables::threads;
use crate::report::columns::columns;

columns! {
    /// One form of one weight, multiplied with some rows of activations.
    KernelRow {
        /// What the weight is.
        shape: String,
        /// Output channels.
        n_out: u64,
        /// Input channels.
        n_in: u64,
        /// CPU threads.
        threads: u64,
        /// The GPU that the products ran on, and the type of its tensors: `NVIDIA H100, f16`; null on the CPU.
        gpu: Option<String>,
        /// The GPU with its driver and what compiled the kernels: `NVIDIA H100, driver 580.95.05, CUDA 13.0`; null on the CPU.
        gpu_system: Option<String>,
        /// Rows of activations.
        batch_size: u64,
        /// How the weight is stored and multiplied: `dense f32`, `W4A16 int16 g128`.
        form: String,
        /// Registry name of the kernel.
        kernel: String,
        /// Bits of a code; null where the weight is dense.
        bits: Option<u64>,
        /// `g128`, `per-channel`; null where the weight is dense.
        granularity: Option<String>,
        /// Bytes of the stored weight.
        bytes: u64,
        /// Median time of a product, in milliseconds.
        ms: f64,
        /// Lower quartile of the times.
        ms_lower_quartile: f64,
        /// Upper quartile of the times.
        ms_upper_quartile: f64,
        /// Timed calls.
        n_calls: u64,
        /// Weight bytes per second of the median, in GB/s.
        gb_per_s: f64,
        /// Measured bandwidth of copying (reads and writes counted), in GB/s.
        copy_gb_per_s: f64,
        /// Measured bandwidth of reading, in GB/s.
        read_gb_per_s: f64,
        /// `gb_per_s` over `copy_gb_per_s`.
        share_of_copy: f64,
        /// Operations per second of the median (a multiplication and an addition are two), in GFLOP/s.
        gflop_per_s: f64,
        /// Measured peak of the arithmetic that the kernel uses, counted in the same operations; null where it is not measured.
        peak_gflop_per_s: Option<f64>,
        /// `gflop_per_s` over `peak_gflop_per_s`.
        share_of_peak: Option<f64>,
        /// Which bound is the higher: `memory` (faster of copying and reading) or `compute`; null where the peak is not known.
        bound: Option<String>,
        /// The time that this bound leaves at best, over the median.
        share_of_bound: Option<f64>,
        /// Median time of dense f32 over this median; null where that was not measured, as with the next three.
        speedup_f32: Option<f64>,
        /// Median time of dense bf16 over this median.
        speedup_bf16: Option<f64>,
        /// Median time of dense f16 (burn's product) over this median.
        speedup_f16: Option<f64>,
        /// Median time of dense f16 (cuBLAS) over this median.
        speedup_cublas: Option<f64>,
        /// Processor.
        cpu: String,
        /// Commit that measured it.
        commit: String,
        /// Whether sources of the program differed from that commit; null where it is not known.
        dirty: Option<bool>,
    }
}

columns! {
    /// One form of one model.
    DecodeRow {
        /// Model name.
        model: String,
        /// CPU threads.
        threads: u64,
        /// How the weights are stored and multiplied: `dense f32`, `dense 16 bits`, `W4A16 int16 g64, head W8`.
        form: String,
        /// Weight bytes that a step reads.
        step_bytes: u64,
        /// Bytes of keys and values that a step reads, the mean over the steps.
        cache_bytes: u64,
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Median prompt tokens per second.
        prefill_tokens_per_s: f64,
        /// Lower quartile.
        prefill_lower_quartile: f64,
        /// Upper quartile.
        prefill_upper_quartile: f64,
        /// Single-token steps of a repetition.
        new_tokens: u64,
        /// Median steps per second.
        decode_tokens_per_s: f64,
        /// Lower quartile.
        decode_lower_quartile: f64,
        /// Upper quartile.
        decode_upper_quartile: f64,
        /// Timed repetitions.
        n_repeats: u64,
        /// Bytes of weights, keys and values per second of the median step, in GB/s.
        gb_per_s: f64,
        /// Measured bandwidth of copying (reads and writes counted), in GB/s.
        copy_gb_per_s: f64,
        /// `gb_per_s` over `copy_gb_per_s`.
        share_of_copy: f64,
        /// Prefill speed over that of the dense form.
        prefill_speedup: f64,
        /// Decoding speed over that of the dense form.
        decode_speedup: f64,
        /// Processor.
        cpu: String,
        /// Commit that measured it.
        commit: String,
        /// Whether sources of the program differed from that commit; null where it is not known.
        dirty: Option<bool>,
    }
}

impl KernelRow {
    /// What it ran on: `2 threads`, `NVIDIA H100, f16`.
    pub(super) fn place(&self) -> String {
        self.gpu.clone().unwrap_or_else(|| threads(self.threads))
    }
}

/// A row a form of every weight.
pub fn kernel_rows(records: &[SpeedRecord]) -> Vec<KernelRow> {
    let rows = |record: &SpeedRecord| match &record.measured {
        Measured::Kernels(times) => times.arms.iter().map(|arm| kernel_row(record, times, arm)).collect(),
        Measured::Decode(_) => Vec::new(),
    };
    records.iter().flat_map(rows).collect()
}

/// A row a form of every model.
pub fn decode_rows(records: &[SpeedRecord]) -> Vec<DecodeRow> {
    let rows = |record: &SpeedRecord| match &record.measured {
        Measured::Kernels(_) => Vec::new(),
        Measured::Decode(times) => decode_rows_of(record, times),
    };
    records.iter().flat_map(rows).collect()
}

fn kernel_row(record: &SpeedRecord, times: &KernelTimes, arm: &KernelArm) -> KernelRow {
    let (n_out, n_in) = (times.shape.n_out.get(), times.shape.n_in.get());
    let seconds = arm.latency.median;
    let operations = 2.0 * (times.batch_size * n_out * n_in) as f64;
    let Machine { bandwidth, .. } = record.machine;
    let peak = peak_of(&record.machine, arm, times.batch_size);
    let bytes = arm.bytes as f64;
    let bound = peak.map(|peak| {
        let (memory, compute) = (bytes / bandwidth.copy.max(bandwidth.read), operations / peak);
        if memory > compute { ("memory", memory) } else { ("compute", compute) }
    });
    let speedup = |kernel: &str| {
        let dense = times.arms.iter().find(|arm| arm.kernel == kernel);
        dense.map(|dense| dense.latency.median / seconds)
    };
    let gpu = |gpu: &Gpu| format!("{}, {}", gpu.name, gpu.precision.name());
    KernelRow {
        shape: times.shape.name.clone(),
        n_out: n_out as u64,
        n_in: n_in as u64,
        threads: record.provenance.threads as u64,
        gpu: record.gpu.as_ref().map(gpu),
        gpu_system: record.provenance.gpu.as_ref().map(crate::provenance::Gpu::label),
        batch_size: times.batch_size as u64,
        form: arm.packed.as_ref().map_or_else(|| arm.kernel.replace('-', " "), PackedForm::label),
        kernel: arm.kernel.clone(),
        bits: arm.packed.as_ref().map(|packed| u64::from(packed.bits)),
        granularity: arm.packed.as_ref().map(|packed| packed.granularity.clone()),
        bytes: arm.bytes as u64,
        ms: 1e3 * seconds,
        ms_lower_quartile: 1e3 * arm.latency.lower_quartile,
        ms_upper_quartile: 1e3 * arm.latency.upper_quartile,
        n_calls: arm.latency.n_calls as u64,
        gb_per_s: 1e-9 * bytes / seconds,
        copy_gb_per_s: 1e-9 * bandwidth.copy,
        read_gb_per_s: 1e-9 * bandwidth.read,
        share_of_copy: bytes / seconds / bandwidth.copy,
        gflop_per_s: 1e-9 * operations / seconds,
        peak_gflop_per_s: peak.map(|peak| 1e-9 * peak),
        share_of_peak: peak.map(|peak| operations / seconds / peak),
        bound: bound.map(|(name, _)| name.to_owned()),
        share_of_bound: bound.map(|(_, best)| best / seconds),
        speedup_f32: speedup("dense-f32"),
        speedup_bf16: speedup("dense-bf16"),
        speedup_f16: speedup("dense-f16"),
        speedup_cublas: speedup("cublas-f16"),
        cpu: record.provenance.cpu.clone(),
        commit: record.provenance.commit.clone(),
        dirty: record.provenance.dirty,
    }
}

/// Operations a second that the arithmetic of a form allows.
fn peak_of(machine: &Machine, arm: &KernelArm, batch_size: usize) -> Option<f64> {
    let peak = match machine.peak {
        MachinePeak::Cpu(peak) => peak,
        MachinePeak::Gpu { dense_product } => return Some(dense_product),
    };
    match arm.packed.as_ref().map(|packed| packed.activations) {
        Some(Activations::F32) => Some(peak.f32),
        Some(Activations::Int8) => Some(peak.int8),
        // Two products of bytes each.
        Some(Activations::Int16) => Some(peak.int8 / 2.0),
        None if arm.kernel == "dense-f32" => Some(peak.f32),
        // One row is multiplied in f32; several by instructions for bf16, whose peak is not measured.
        None => (batch_size == 1).then_some(peak.f32),
    }
}

fn decode_rows_of(record: &SpeedRecord, times: &DecodeTimes) -> Vec<DecodeRow> {
    let dense = times.arms.iter().find(|arm| arm.packed.is_none());
    let speedup = |median: f64, of: fn(&super::record::DecodeArm) -> &Latency| {
        dense.map_or(f64::NAN, |dense| of(dense).median / median)
    };
    let row = |arm: &super::record::DecodeArm| {
        let prefill = |seconds: f64| times.prompt_tokens as f64 / seconds;
        let bytes_per_s = (arm.step_bytes + arm.cache_bytes) as f64 / arm.step.median;
        DecodeRow {
            model: times.model.clone(),
            threads: record.provenance.threads as u64,
            form: arm.label(),
            step_bytes: arm.step_bytes as u64,
            cache_bytes: arm.cache_bytes as u64,
            prompt_tokens: times.prompt_tokens as u64,
            prefill_tokens_per_s: prefill(arm.prefill.median),
            prefill_lower_quartile: prefill(arm.prefill.upper_quartile),
            prefill_upper_quartile: prefill(arm.prefill.lower_quartile),
            new_tokens: times.new_tokens as u64,
            decode_tokens_per_s: 1.0 / arm.step.median,
            decode_lower_quartile: 1.0 / arm.step.upper_quartile,
            decode_upper_quartile: 1.0 / arm.step.lower_quartile,
            n_repeats: arm.step.n_calls as u64,
            gb_per_s: 1e-9 * bytes_per_s,
            copy_gb_per_s: 1e-9 * record.machine.bandwidth.copy,
            share_of_copy: bytes_per_s / record.machine.bandwidth.copy,
            prefill_speedup: speedup(arm.prefill.median, |arm| &arm.prefill),
            decode_speedup: speedup(arm.step.median, |arm| &arm.step),
            cpu: record.provenance.cpu.clone(),
            commit: record.provenance.commit.clone(),
            dirty: record.provenance.dirty,
        }
    };
    times.arms.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use awq_core::kernel::bench::{Bandwidth, Peak};

    use super::*;
    use crate::config::Shape;
    use crate::provenance::Provenance;
    use crate::record::SCHEMA_VERSION;

    fn arm(kernel: &str, packed: Option<PackedForm>, bytes: usize, seconds: f64) -> KernelArm {
        KernelArm { kernel: kernel.into(), packed, bytes, latency: Latency::of(vec![seconds]) }
    }

    /// A [1000, 1000] weight on a machine that copies 10 GB/s and has 100 GFLOP/s of f32 and 400 of bytes.
    fn record(batch_size: usize) -> SpeedRecord {
        let thousand = NonZeroUsize::MIN.saturating_add(999);
        let packed =
            |activations| Some(PackedForm { bits: 4, granularity: "g128".into(), activations, precision: None });
        let arms = vec![
            arm("dense-f32", None, 4_000_000, 1e-3),
            arm("dense-bf16", None, 2_000_000, 5e-4),
            arm("a", packed(Activations::Int16), 500_000, 1e-4),
            arm("b", packed(Activations::Int8), 500_000, 1e-4),
        ];
        let shape = Shape { name: "square".into(), n_out: thousand, n_in: thousand };
        SpeedRecord {
            schema: SCHEMA_VERSION,
            id: "0".into(),
            measured: Measured::Kernels(KernelTimes { shape, batch_size, arms }),
            machine: Machine {
                bandwidth: Bandwidth { copy: 1e10, read: 8e9 },
                peak: MachinePeak::Cpu(Peak { f32: 1e11, int8: 4e11 }),
            },
            gpu: None,
            provenance: Provenance::collect("cpu", 1, Default::default()),
        }
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn rates_shares_and_bounds_follow_from_bytes_operations_and_times() {
        let rows = kernel_rows(&[record(1)]);
        let int16 = &rows[2];
        assert_eq!((int16.form.as_str(), int16.bits), ("W4A16 int16 g128", Some(4)));
        // 0.5 MB in 0.1 ms; 2 million operations in 0.1 ms; a peak of half of that of bytes.
        close(int16.gb_per_s, 5.0);
        close(int16.share_of_copy, 0.5);
        close(int16.gflop_per_s, 20.0);
        close(int16.share_of_peak.unwrap_or(0.0), 0.1);
        close(int16.speedup_f32.unwrap_or(0.0), 10.0);
        close(int16.speedup_bf16.unwrap_or(0.0), 5.0);
        assert_eq!(int16.bound.as_deref(), Some("memory"));
        close(int16.share_of_bound.unwrap_or(0.0), 0.5);
    }

    #[test]
    fn many_rows_are_bound_by_arithmetic() {
        let rows = kernel_rows(&[record(16)]);
        // 32 million operations take 0.16 ms at 200 GFLOP/s, the bytes 0.05 ms.
        assert_eq!(rows[2].bound.as_deref(), Some("compute"));
        close(rows[2].share_of_bound.unwrap_or(0.0), 1.6);
        // The peak of instructions for bf16 is not measured.
        assert_eq!((rows[1].bound.clone(), rows[1].share_of_peak), (None, None));
        close(rows[3].share_of_peak.unwrap_or(0.0), 0.8);
    }

    #[test]
    fn a_frame_reads_back() {
        let rows = kernel_rows(&[record(1)]);
        let frame = KernelRow::to_frame(&rows).unwrap_or_default();
        assert_eq!(KernelRow::from_frame(&frame).unwrap_or_default(), rows);
    }
}

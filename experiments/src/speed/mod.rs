//! `[speed]`: latency of kernels on the CPU or a GPU, and tokens a second of models on the CPU.
//!
//! ```text
//! SpeedSpec --asked.rs--> Comparison --kernels.rs, gpu.rs, decode.rs--> SpeedRecord --> speed.jsonl --rows.rs--> tables, figures
//! ```
//!
//! A record is the answer where CPU, threads and commit are those of the run (`on_record.rs`). A comparison is finished or not:
//! what a kill cuts short is measured again as a whole, for its forms took turns.

pub mod asked;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "a call of cuBLAS takes pointers; `queue` says why they are right")]
pub(crate) mod cublas;
pub mod decode;
pub mod figures;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu;
pub mod kernels;
mod on_record;
pub mod published;
pub mod record;
pub mod rows;
pub mod tables;

use std::collections::BTreeMap;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use awq_core::kernel::bench;

use self::asked::{Comparison, Place, Question, comparisons};
use self::kernels::Forms;
use self::record::{FailedComparison, Gpu, Machine, MachinePeak, Measured, SpeedLine, SpeedRecord};
use crate::assets::AssetStore;
use crate::config::{KernelSpeed, ModelSpec, Shape, SpeedSpec};
use crate::guard::guarded;
use crate::progress::{Bar, Progress};
use crate::provenance::Provenance;
use crate::record::{RecordFile, SCHEMA_VERSION};

/// Bytes of each array that is copied to measure a CPU's memory: several times the last-level cache of a server.
const MEMORY_BYTES: usize = 256 << 20;
const MEMORY_ROUNDS: usize = 5;

/// Where a run measures.
#[derive(Clone, Copy, Debug)]
pub struct SpeedOptions<'a> {
    /// Device of the run. Kernels are timed there, models on the CPU.
    pub device: &'a str,
    /// Type of weights and activations on a GPU.
    pub precision: FloatType,
    /// CPU threads where the experiment does not list any.
    pub threads: usize,
}

/// What one comparison gave.
struct Timed {
    measured: Measured,
    machine: Machine,
    gpu: Option<Gpu>,
    assets: BTreeMap<String, String>,
}

/// Measures what is not yet on record in `file`, or was measured on another CPU or by another commit, and appends each comparison
/// when it is done. One that fails (a model that cannot be had or opened, a weight that does not fit into memory, a device that
/// fails) becomes a record, and the others go on; the number of those is returned.
///
/// # Errors
/// A record that cannot be appended.
pub fn run(
    spec: &SpeedSpec,
    models: &[ModelSpec],
    options: &SpeedOptions<'_>,
    mut file: RecordFile<SpeedLine>,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<usize> {
    file.notes().iter().for_each(|note| progress.note(note));
    let place = Place::of(options.device, options.precision);
    let all = comparisons(spec, models, options.threads, &place);
    let todo = on_record::to_measure(all, file.on_record(), progress);
    if todo.is_empty() {
        return Ok(0);
    }
    let mut n_failed = 0;
    let bar = progress.bar("speed, comparisons", todo.len() as u64);
    // A weight is packed once for all its batch sizes, which takes longer than the products.
    for of_weight in todo.chunk_by(Comparison::shares_weight) {
        let first = &of_weight[0];
        let mut n_finished = 0;
        let mut finish = |one: &Comparison<'_>, timed: Timed| {
            finish(one, timed, &mut file, &bar)?;
            n_finished += 1;
            Ok(())
        };
        let measured = guarded(|| match &first.question {
            Question::Kernels { shape, of, place: Place::Cpu, .. } => on_cpu(of_weight, shape, of, &mut finish),
            Question::Kernels { shape, of, place: Place::Gpu { device, precision }, .. } => {
                on_gpu(device, *precision, of_weight, shape, of, &mut finish)
            }
            Question::Decode { model, of } => {
                let timed = on_threads(first.threads, || {
                    let machine = cpu_bounds();
                    let (times, assets) = decode::measure(model, of, store, progress)?;
                    Ok(Timed { measured: Measured::Decode(times), machine, gpu: None, assets })
                });
                timed.and_then(|timed| finish(first, timed))
            }
        });
        if let Err(error) = measured {
            // They are finished in order.
            for one in &of_weight[n_finished..] {
                progress.note(&format!("FAILED {}: {error:#}", one.label()));
                file.append(&failed(one, &error))?;
                n_failed += 1;
            }
        }
    }
    bar.finish();
    Ok(n_failed)
}

fn failed(one: &Comparison<'_>, error: &anyhow::Error) -> SpeedLine {
    SpeedLine::Failed(Box::new(FailedComparison {
        schema: SCHEMA_VERSION,
        id: one.id(),
        label: one.label(),
        error: format!("{error:#}"),
        gpu_precision: one.gpu_precision(),
        provenance: Provenance::collect(one.device(), one.threads, BTreeMap::new()),
    }))
}

/// Times the kernels of the CPU.
fn on_cpu(
    of_weight: &[Comparison<'_>],
    shape: &Shape,
    of: &KernelSpeed,
    finish: &mut dyn FnMut(&Comparison<'_>, Timed) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let forms = Forms::new(shape, of)?;
    for one in of_weight {
        let timed = on_threads(one.threads, || {
            let machine = cpu_bounds();
            let measured = Measured::Kernels(forms.measure(one.batch_size(), of.n_rounds.get()));
            Ok(Timed { measured, machine, gpu: None, assets: BTreeMap::new() })
        })?;
        finish(one, timed)?;
    }
    Ok(())
}

/// Times the kernels of a GPU.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn on_gpu(
    device: &str,
    precision: FloatType,
    of_weight: &[Comparison<'_>],
    shape: &Shape,
    of: &KernelSpeed,
    finish: &mut dyn FnMut(&Comparison<'_>, Timed) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let batch_sizes: Vec<usize> = of_weight.iter().map(Comparison::batch_size).collect();
    let mut done = |index: usize, timed: Timed| finish(&of_weight[index], timed);
    crate::device::run_on_gpu(
        device,
        precision,
        gpu::TimeKernels { device, precision, shape, of, batch_sizes, done: &mut done },
    )
}

/// Says which feature to build with.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn on_gpu(
    device: &str,
    precision: FloatType,
    _: &[Comparison<'_>],
    _: &Shape,
    _: &KernelSpeed,
    _: &mut dyn FnMut(&Comparison<'_>, Timed) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    crate::device::check(device, precision)
}

fn finish(one: &Comparison<'_>, timed: Timed, file: &mut RecordFile<SpeedLine>, bar: &Bar) -> anyhow::Result<()> {
    let Timed { measured, machine, gpu, assets } = timed;
    let provenance = Provenance::collect(one.device(), one.threads, assets);
    let record = SpeedRecord { schema: SCHEMA_VERSION, id: one.id(), measured, machine, gpu, provenance };
    file.append(&SpeedLine::Done(Box::new(record)))?;
    bar.advance(1);
    Ok(())
}

/// Bounds of the CPU on the threads of rayon's current pool.
fn cpu_bounds() -> Machine {
    Machine { bandwidth: bench::bandwidth(MEMORY_BYTES, MEMORY_ROUNDS), peak: MachinePeak::Cpu(bench::peak()) }
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("no thread pool")?.install(work)
}

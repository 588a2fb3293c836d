//! `[speed]`: latency of kernels and tokens a second of models, on the CPU.
//!
//! ```text
//! SpeedSpec --comparisons--> measure (kernels.rs, decode.rs) --SpeedRecord--> speed.jsonl --> rows.rs --> tables, figures
//! ```
//!
//! A comparison is finished or not: what a kill cuts short is measured again as a whole, for its forms took turns.

pub mod decode;
pub mod figures;
pub mod kernels;
pub mod record;
pub mod rows;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use awq_core::kernel::bench;
use serde::Serialize;
use sha2::{Digest, Sha256};

use self::record::{Machine, Measured, SpeedRecord};
use crate::assets::AssetStore;
use crate::config::{DecodeSpeed, KernelSpeed, ModelSpec, Shape, SpeedSpec};
use crate::progress::Progress;
use crate::provenance::Provenance;
use crate::record::{RecordFile, SCHEMA_VERSION};

/// Bytes of each array that is copied to measure memory: several times the last-level cache of a server.
const MEMORY_BYTES: usize = 256 << 20;
const MEMORY_ROUNDS: usize = 5;

/// What one record answers.
#[derive(Serialize)]
enum Question<'a> {
    Kernels { shape: &'a Shape, batch_size: usize, of: &'a KernelSpeed },
    Decode { model: &'a ModelSpec, of: &'a DecodeSpeed },
}

/// A comparison that is asked for.
#[derive(Serialize)]
struct Comparison<'a> {
    threads: usize,
    question: Question<'a>,
}

impl Comparison<'_> {
    /// Content hash. What other shapes and batch sizes the experiment asks for is no part of it.
    fn id(&self) -> String {
        let json = match &self.question {
            Question::Kernels { shape, batch_size, of } => {
                let KernelSpeed { bits, granularity, activations, n_rounds, distinct_mib, .. } = of;
                serde_json::to_vec(&(
                    self.threads,
                    shape,
                    batch_size,
                    bits,
                    granularity,
                    activations,
                    n_rounds,
                    distinct_mib,
                ))
            }
            Question::Decode { .. } => serde_json::to_vec(self),
        };
        let digest = Sha256::digest(json.unwrap_or_default());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn label(&self) -> String {
        let threads = format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" });
        match &self.question {
            Question::Kernels { shape, batch_size, .. } => {
                format!("{} [{}, {}], batch {batch_size}, {threads}", shape.name, shape.n_out, shape.n_in)
            }
            Question::Decode { model, .. } => format!("{} decoding, {threads}", model.name),
        }
    }
}

/// Every comparison of an experiment, in order.
fn comparisons<'a>(spec: &'a SpeedSpec, models: &'a [ModelSpec], threads: usize) -> Vec<Comparison<'a>> {
    let counts: Vec<usize> = match spec.threads.as_slice() {
        [] => vec![threads],
        counts => counts.iter().map(|count| count.get()).collect(),
    };
    let mut all = Vec::new();
    for threads in counts {
        if let Some(of) = &spec.kernels {
            for shape in &of.shapes {
                let batch_sizes = of.batch_sizes.iter().map(|size| size.get());
                all.extend(
                    batch_sizes.map(|batch_size| Comparison {
                        threads,
                        question: Question::Kernels { shape, batch_size, of },
                    }),
                );
            }
        }
        if let Some(of) = &spec.decode {
            all.extend(models.iter().map(|model| Comparison { threads, question: Question::Decode { model, of } }));
        }
    }
    all
}

/// The comparisons as text lines, for `plan`.
pub fn describe(spec: &SpeedSpec, models: &[ModelSpec], threads: usize) -> String {
    let lines = comparisons(spec, models, threads)
        .iter()
        .map(|one| format!("{}  {}\n", one.id(), one.label()))
        .collect::<String>();
    format!("{lines}\n")
}

/// Those of `records` that answer what is asked, the newest of each, in the order of the question.
pub fn asked(spec: &SpeedSpec, models: &[ModelSpec], records: &[SpeedRecord]) -> Vec<SpeedRecord> {
    // Without a list, the file does not say how many threads the run had: its records do.
    let threads = records.last().map_or(1, |record| record.provenance.threads);
    let newest: BTreeMap<&str, &SpeedRecord> = records.iter().map(|record| (record.id.as_str(), record)).collect();
    comparisons(spec, models, threads)
        .iter()
        .filter_map(|one| newest.get(one.id().as_str()).map(|&r| r.clone()))
        .collect()
}

/// Measures what is not yet on record in `file`, and appends each comparison when it is done.
///
/// # Errors
/// A model that cannot be had or opened, a weight that does not fit into memory, or a record that cannot be appended.
pub fn run(
    spec: &SpeedSpec,
    models: &[ModelSpec],
    threads: usize,
    mut file: RecordFile<SpeedRecord>,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<()> {
    let on_record: BTreeSet<String> = file.on_record().iter().map(|record| record.id.clone()).collect();
    let todo = comparisons(spec, models, threads).into_iter().filter(|one| !on_record.contains(&one.id()));
    let todo: Vec<Comparison<'_>> = todo.collect();
    if todo.is_empty() {
        return Ok(());
    }
    let bar = progress.bar("speed, comparisons", todo.len() as u64);
    for one in &todo {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(one.threads).build().context("no thread pool")?;
        let (machine, (measured, assets)) = pool.install(|| -> anyhow::Result<_> {
            let machine = Machine { bandwidth: bench::bandwidth(MEMORY_BYTES, MEMORY_ROUNDS), peak: bench::peak() };
            Ok((machine, measure(&one.question, store, progress).with_context(|| one.label())?))
        })?;
        let provenance = Provenance::collect("cpu", one.threads, assets);
        file.append(&SpeedRecord { schema: SCHEMA_VERSION, id: one.id(), measured, machine, provenance })?;
        bar.advance(1);
    }
    bar.finish();
    Ok(())
}

fn measure(
    question: &Question<'_>,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<(Measured, BTreeMap<String, String>)> {
    Ok(match question {
        Question::Kernels { shape, batch_size, of } => {
            (Measured::Kernels(kernels::measure(shape, *batch_size, of)?), BTreeMap::new())
        }
        Question::Decode { model, of } => {
            let (times, assets) = decode::measure(model, of, store, progress)?;
            (Measured::Decode(times), assets)
        }
    })
}

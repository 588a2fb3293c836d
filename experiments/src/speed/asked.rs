//! What `[speed]` asks for, as comparisons, and which of them are on record.

use std::collections::BTreeMap;

use awq_core::arithmetic::FloatType;
use itertools::Itertools as _;
use sha2::{Digest, Sha256};

use super::record::SpeedLine;
use super::tables::threads;
use crate::config::{DecodeSpeed, KernelSpeed, ModelSpec, Shape, SpeedSpec};

/// Where kernels run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the CPU.
    Cpu,
    /// On a GPU.
    Gpu {
        /// Device name: `cuda:1`.
        device: String,
        /// Type of weights and activations.
        precision: FloatType,
    },
}

impl Place {
    /// That of a device name.
    pub fn of(device: &str, precision: FloatType) -> Self {
        match device {
            "flex" | "ndarray" => Self::Cpu,
            _ => Self::Gpu { device: device.to_owned(), precision },
        }
    }
}

/// What one record answers.
pub(super) enum Question<'a> {
    Kernels { shape: &'a Shape, batch_size: usize, of: &'a KernelSpeed, place: Place },
    Decode { model: &'a ModelSpec, of: &'a DecodeSpeed },
}

/// A comparison that is asked for.
pub(super) struct Comparison<'a> {
    /// CPU threads; a GPU's kernels have no use for them.
    pub(super) threads: usize,
    pub(super) question: Question<'a>,
}

impl Comparison<'_> {
    /// Content hash. What other shapes and batch sizes the experiment asks for is no part of it.
    pub(super) fn id(&self) -> String {
        let json = match &self.question {
            Question::Kernels { shape, batch_size, of, place } => {
                let KernelSpeed { bits, granularity, activations, n_rounds, distinct_mib, .. } = of;
                let forms = (shape, batch_size, bits, granularity);
                match place {
                    Place::Cpu => serde_json::to_vec(&(self.threads, forms, activations, n_rounds, distinct_mib)),
                    Place::Gpu { device, precision } => {
                        serde_json::to_vec(&(device, precision, forms, n_rounds, distinct_mib))
                    }
                }
            }
            Question::Decode { model, of } => serde_json::to_vec(&(self.threads, model, of)),
        };
        let digest = Sha256::digest(json.unwrap_or_default());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn label(&self) -> String {
        match &self.question {
            Question::Kernels { shape, batch_size, place, .. } => {
                let on = match place {
                    Place::Cpu => threads(self.threads as u64),
                    Place::Gpu { device, precision } => format!("{device} in {}", precision.name()),
                };
                format!("{} [{}, {}], batch {batch_size}, {on}", shape.name, shape.n_out, shape.n_in)
            }
            Question::Decode { model, .. } => format!("{} decoding, {}", model.name, threads(self.threads as u64)),
        }
    }

    /// As provenance names it.
    pub(super) fn device(&self) -> &str {
        match &self.question {
            Question::Kernels { place: Place::Gpu { device, .. }, .. } => device,
            _ => "cpu",
        }
    }

    /// Type of weights and activations on a GPU.
    pub(super) fn gpu_precision(&self) -> Option<FloatType> {
        match &self.question {
            Question::Kernels { place: Place::Gpu { precision, .. }, .. } => Some(*precision),
            _ => None,
        }
    }

    /// Rows of activations; 1 of a model's steps.
    pub(super) fn batch_size(&self) -> usize {
        match &self.question {
            Question::Kernels { batch_size, .. } => *batch_size,
            Question::Decode { .. } => 1,
        }
    }

    /// Whether both are of the same weight in the same place.
    pub(super) fn shares_weight(&self, other: &Self) -> bool {
        match (&self.question, &other.question) {
            (Question::Kernels { shape: a, place: on_a, .. }, Question::Kernels { shape: b, place: on_b, .. }) => {
                (a, on_a, self.threads) == (b, on_b, other.threads)
            }
            _ => false,
        }
    }
}

/// Every comparison of an experiment, in order: on a GPU, its kernels come first.
pub(super) fn comparisons<'a>(
    spec: &'a SpeedSpec,
    models: &'a [ModelSpec],
    threads: usize,
    place: &Place,
) -> Vec<Comparison<'a>> {
    let counts: Vec<usize> = match spec.threads.as_slice() {
        [] => vec![threads],
        counts => counts.iter().map(|count| count.get()).collect(),
    };
    let kernels = |threads: usize| {
        let of = spec.kernels.iter();
        let weights = of.flat_map(|of| of.shapes.iter().map(move |shape| (of, shape)));
        weights.flat_map(move |(of, shape)| {
            let batch_sizes = of.batch_sizes.iter().map(|size| size.get());
            batch_sizes.map(move |batch_size| Comparison {
                threads,
                question: Question::Kernels { shape, batch_size, of, place: place.clone() },
            })
        })
    };
    let mut all = Vec::new();
    if *place != Place::Cpu {
        all.extend(kernels(threads));
    }
    for threads in counts {
        if *place == Place::Cpu {
            all.extend(kernels(threads));
        }
        let of = spec.decode.iter().flat_map(|of| models.iter().map(move |model| (of, model)));
        all.extend(of.map(|(of, model)| Comparison { threads, question: Question::Decode { model, of } }));
    }
    all
}

/// The comparisons of a run as text lines, for `plan`.
pub fn describe(spec: &SpeedSpec, models: &[ModelSpec], threads: usize, place: &Place) -> String {
    let lines = comparisons(spec, models, threads, place)
        .iter()
        .map(|one| format!("{}  {}\n", one.id(), one.label()))
        .collect::<String>();
    format!("{lines}\n")
}

/// Those of `records` that answer what is asked, the newest of each, in the order of the question; first those of the CPU,
/// then those of each GPU that has any.
pub fn asked(spec: &SpeedSpec, models: &[ModelSpec], records: &[SpeedLine]) -> Vec<SpeedLine> {
    // Without a list, the file does not say how many threads the run had: its records do.
    let threads = records.last().map_or(1, |record| record.provenance().threads);
    let newest: BTreeMap<&str, &SpeedLine> = records.iter().map(|record| (record.id(), record)).collect();
    let gpus = records.iter().filter_map(|record| {
        let precision = record.gpu_precision()?;
        Some(Place::Gpu { device: record.provenance().device.clone(), precision })
    });
    let ids = std::iter::once(Place::Cpu)
        .chain(gpus.unique())
        .flat_map(|place| comparisons(spec, models, threads, &place).iter().map(Comparison::id).collect::<Vec<_>>());
    ids.unique().filter_map(|id| newest.get(id.as_str()).map(|&record| record.clone())).collect()
}

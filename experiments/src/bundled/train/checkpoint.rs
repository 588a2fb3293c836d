//! Where a training run can go on: weights, optimizer state and position in the text, in one file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::TrainOptions;
use super::adamw::AdamW;
use super::weights::{HostTensor, NetworkConfig, Weights};

/// State of a run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) weights: Weights,
    pub(super) optimizer: AdamW,
    pub(super) step: u32,
    pub(super) n_tokens: u64,
    pub(super) next_document: u32,
    /// Loss of every step so far.
    pub(super) losses: Vec<f64>,
    pub(super) wall_seconds: f64,
}

/// The part of a checkpoint that is not a tensor; stored as JSON in the file's metadata.
#[derive(Serialize, Deserialize)]
struct Header {
    options: TrainOptions,
    config: NetworkConfig,
    step: u32,
    n_tokens: u64,
    next_document: u32,
    losses: Vec<f64>,
    wall_seconds: f64,
}

const HEADER: &str = "training";
/// A tensor's weight and its two moments.
const PARTS: [&str; 3] = ["weight", "first_moment", "second_moment"];

fn path(options: &TrainOptions) -> PathBuf {
    options.out.join("checkpoint.safetensors")
}

impl Checkpoint {
    /// Before the first step.
    pub(super) fn begin(weights: Weights) -> Self {
        Checkpoint {
            weights,
            optimizer: AdamW::default(),
            step: 0,
            n_tokens: 0,
            next_document: 0,
            losses: Vec::new(),
            wall_seconds: 0.0,
        }
    }

    /// Replaces the checkpoint in the output folder; a kill leaves either the old or the new one.
    pub(super) fn save(&self, options: &TrainOptions) -> anyhow::Result<()> {
        let header = Header {
            options: options.clone(),
            config: self.weights.config.clone(),
            step: self.step,
            n_tokens: self.n_tokens,
            next_document: self.next_document,
            losses: self.losses.clone(),
            wall_seconds: self.wall_seconds,
        };
        let mut parts: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, tensor) in &self.weights.tensors {
            let [first, second] = &self.optimizer.moments[name];
            for (part, values) in PARTS.iter().zip([&tensor.values, first, second]) {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                parts.insert(format!("{part}.{name}"), (tensor.shape.clone(), bytes));
            }
        }
        let views = parts
            .iter()
            .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let metadata = [(HEADER.to_owned(), serde_json::to_string(&header)?)].into();
        let bytes = safetensors::serialize(views, Some(metadata))?;

        let path = path(options);
        let unfinished = path.with_extension("unfinished");
        std::fs::write(&unfinished, bytes).with_context(|| format!("writing {}", unfinished.display()))?;
        std::fs::rename(&unfinished, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// The checkpoint in the output folder, if there is one.
    pub(super) fn load(options: &TrainOptions) -> anyhow::Result<Option<Self>> {
        let path = path(options);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let checkpoint = Self::parse(&bytes, options)
            .with_context(|| format!("{}: remove it to begin a new run", path.display()))?;
        Ok(Some(checkpoint))
    }

    fn parse(bytes: &[u8], options: &TrainOptions) -> anyhow::Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let json = metadata.metadata().as_ref().and_then(|entries| entries.get(HEADER)).context("not a checkpoint")?;
        let header: Header = serde_json::from_str(json)?;
        let asked = TrainOptions { out: PathBuf::new(), ..options.clone() };
        anyhow::ensure!(header.options == asked, "it is of a run with other options");

        let stored = SafeTensors::deserialize(bytes)?;
        let values = |part: &str, name: &str| -> anyhow::Result<Vec<f32>> {
            let view = stored.tensor(&format!("{part}.{name}"))?;
            Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let (mut tensors, mut moments) = (BTreeMap::new(), BTreeMap::new());
        for (name, shape) in header.config.shapes() {
            let [weight, first, second] = PARTS.map(|part| values(part, &name));
            tensors.insert(name.clone(), HostTensor { shape, values: weight? });
            moments.insert(name, [first?, second?]);
        }
        Ok(Checkpoint {
            weights: Weights { config: header.config, tensors },
            optimizer: AdamW { n_steps: header.step, moments },
            step: header.step,
            n_tokens: header.n_tokens,
            next_document: header.next_document,
            losses: header.losses,
            wall_seconds: header.wall_seconds,
        })
    }

    /// Removes the checkpoint in the output folder, if there is one.
    pub(super) fn remove(options: &TrainOptions) -> anyhow::Result<()> {
        let path = path(options);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

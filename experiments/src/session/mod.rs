//! A model at work: opened once, then calibrated for, quantized and scored as often as is asked. Experiments and the command line
//! do it alike.

mod calibrate;
mod quantize;
mod score;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use awq_core::backend::QuantBackend;
use awq_core::driver::FullPrecisionShare;
use awq_core::grid::Grid;
use awq_core::model::wiring::Wiring;
use awq_core::model::{Decoder, Storage, open_decoder, wiring_of};
use awq_core::open::{OpenedModel, open_model};
use awq_core::rule::GridRule;

pub use self::calibrate::Calibrated;
pub use self::quantize::Wanted;
pub use self::score::{BaseModels, Prepared, PreparedTexts, Subject};
use crate::assets::AssetStore;
use crate::codes::{BaseTensors, CodeStore, Codes};
use crate::config::{Memory, ModelSpec};
use crate::limit::MemoryLimit;
use crate::packed::bytes_of_codes;
use crate::progress::Progress;
use crate::sandbox::Sandbox;

/// A model whose headers are read and checked.
pub struct Model {
    /// Its files, opened.
    pub opened: OpenedModel,
    /// How its tensors are called, and what is computed with them.
    pub wiring: Arc<Wiring>,
    /// In what types its linears are stored.
    pub storage: Option<Storage>,
    /// sha256 of each of its files, by name.
    pub files: BTreeMap<String, String>,
}

impl Model {
    /// Finds a model, downloading it if need be, and opens it. What a user should know of its files is noted.
    ///
    /// # Errors
    /// A model that cannot be had or opened.
    pub fn open(spec: &ModelSpec, store: &AssetStore, progress: &Progress) -> anyhow::Result<Self> {
        let located = store.model(spec)?;
        let opened = open_model(&located.path).with_context(|| format!("model {}", spec.name))?;
        Self::of(opened, located.hashes, progress).context("the model cannot be opened")
    }

    /// An opened model with the hashes of its files. What a user should know of them is noted.
    ///
    /// # Errors
    /// Tensors that make up no model of its family.
    pub fn of(opened: OpenedModel, files: BTreeMap<String, String>, progress: &Progress) -> anyhow::Result<Self> {
        let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref())?;
        wiring.notes.iter().for_each(|note| progress.note(note));
        let storage = Storage::of(&wiring, &opened.config, opened.checkpoint.as_ref());
        Ok(Self { opened, wiring: Arc::new(wiring), storage, files })
    }
}

impl Model {
    /// The grid of a tensor that `rule` quantizes.
    pub fn grid_of(&self, rule: &GridRule, name: &str) -> Option<Grid> {
        let linear = self.wiring.quantizable_linear(name)?;
        rule.grid_of(name.strip_suffix(".weight")?, linear.0).copied()
    }

    /// What the rule of `codes` leaves in full precision.
    ///
    /// # Errors
    /// Overrides that do not fit the model.
    pub fn left_in_full_precision(&self, codes: &Codes) -> anyhow::Result<Option<FullPrecisionShare>> {
        let grids = codes.rule().resolve(&self.wiring)?;
        Ok(FullPrecisionShare::of(&grids, &self.wiring, &self.opened.config, codes.checkpoint().as_ref()))
    }

    /// Bytes of all codes that `rule` makes.
    pub fn bytes_of_codes(&self, rule: &GridRule) -> u64 {
        let checkpoint = self.opened.checkpoint.as_ref();
        let bytes = |name: &String| self.grid_of(rule, name).map(|grid| bytes_of_codes(checkpoint, name, &grid));
        checkpoint.names().iter().filter_map(bytes).sum::<u64>()
    }
}

/// What a session runs on.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Device name.
    pub device: &'a str,
    /// Type of weights and activations there.
    pub precision: FloatType,
    /// Where codes are kept.
    pub codes: &'a CodeStore,
    /// How much memory quantizing may take; on a GPU hidden states are in its own.
    pub memory: MemoryLimit,
    /// Who is told.
    pub progress: &'a Progress,
    /// What runs generated code, where the user lets it run.
    pub sandbox: Option<&'a Sandbox>,
}

impl<'a> Machine<'a> {
    /// A device that computes in f32, as all of it does that is no experiment's.
    pub fn in_f32(device: &'a str, codes: &'a CodeStore, progress: &'a Progress) -> Self {
        let memory = MemoryLimit::new(None);
        Self { device, precision: FloatType::F32, codes, memory, progress, sandbox: None }
    }

    /// The same within so much memory, where something is asked for.
    #[must_use]
    pub fn within(self, memory: Option<&Memory>) -> Self {
        Self { memory: MemoryLimit::new(memory), ..self }
    }
}

/// A model open on a backend.
pub struct Session<'a, B: QuantBackend> {
    model: &'a Model,
    decoder: Box<dyn Decoder<B>>,
    machine: Machine<'a>,
}

impl<'a, B: QuantBackend> Session<'a, B> {
    /// Reads what is no part of a block.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn open(model: &'a Model, machine: Machine<'a>, device: &B::Device) -> anyhow::Result<Self> {
        let OpenedModel { config, checkpoint, .. } = &model.opened;
        let decoder = open_decoder::<B>(config.clone(), checkpoint.clone(), device);
        Ok(Self { model, decoder: decoder.context("the model cannot be opened")?, machine })
    }

    /// What was opened.
    pub fn model(&self) -> &'a Model {
        self.model
    }

    /// What it runs on.
    pub fn machine(&self) -> Machine<'a> {
        self.machine
    }

    /// The model as its files have it.
    pub fn decoder(&self) -> &dyn Decoder<B> {
        self.decoder.as_ref()
    }

    fn base_tensors(&self) -> BaseTensors {
        BaseTensors { wiring: self.model.wiring.clone(), checkpoint: self.model.opened.checkpoint.clone() }
    }
}

//! What a quantized model is written as: this program's own layout, or one that other programs load. Whether it can be is known
//! before any work.

use anyhow::{Context, ensure};
use awq_core::driver::codes_sha256;
use awq_core::formats::{Container, Format, Plan};
use awq_core::load::GgufOutline;
use awq_core::model::{Storage, wiring_of};
use awq_core::open::open_model;

use super::card::Card;
use super::place::Place;
use super::{Quantized, Recipe, export, gguf_file, header};
use crate::config::CheckpointFormat;
use crate::packed;
use crate::session::Model;

/// What lies on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Bytes of weights.
    pub n_bytes: u64,
    /// The types that codes came to lie in, where these are not the grid's own: in a GGUF file.
    pub storage: Option<Storage>,
}

/// Behind what was measured, in a GGUF file.
const BITS_OF_FILE: &str = "Bits per weight are those of the codes and their scales. This file holds them in types of ggml, which may \
                            take more: `experiments inspect` says which.";

/// A model that is to be quantized and written in a format that holds it.
pub struct Target<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    format: CheckpointFormat,
    /// What becomes of the linears in a format of other programs.
    plan: Option<(&'static dyn Format, Plan)>,
    /// The model as a GGUF file, where it is to be one.
    outline: Option<GgufOutline>,
}

impl<'a> Target<'a> {
    /// Checks that the format holds what `recipe` makes of a model.
    ///
    /// # Errors
    /// What it does not hold, and which formats do.
    pub fn plan(model: &'a Model, recipe: &'a Recipe, format: CheckpointFormat) -> anyhow::Result<Self> {
        let Some(other) = format.format() else {
            return Ok(Self { model, recipe, format, plan: None, outline: None });
        };
        let (plan, outline) = export::plan(model, recipe)?;
        export::check(other, &plan)?;
        let outline = outline.filter(|_| format.container() == Container::File);
        Ok(Self { model, recipe, format, plan: Some((other, plan)), outline })
    }

    /// What some loaders make of it that a user would not expect, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.plan.as_ref().map_or_else(Vec::new, |(format, plan)| format.notes(plan))
    }

    /// Writes the quantized model into its place, and reads it again. `measured` is what is known of its quality, in Markdown.
    ///
    /// # Errors
    /// A tensor that cannot be read, a disk that is full, or what is read again and differs.
    pub fn write(&self, place: &Place, quantized: &Quantized, measured: Option<&str>) -> anyhow::Result<Written> {
        let base = self.model.storage.as_ref();
        let notes = self.notes();
        let card = Card { recipe: self.recipe, base, quantized, format: self.format, notes: &notes, measured };
        let mut storage = None;
        let n_bytes = match (&self.plan, &self.outline) {
            (None, _) => {
                packed::write_text(place.folder(), Card::FILE, &card.render())?;
                self.write_packed(place, quantized)?
            }
            (Some(_), Some(outline)) => {
                let with_tables = |tables: &str| {
                    let text = format!("{}\n\n{BITS_OF_FILE}\n", tables.trim_end());
                    outline.clone().with_text("awq_rs.measured", text)
                };
                let outline = &measured.map_or_else(|| outline.clone(), with_tables);
                gguf_file::write(&place.file(), outline, quantized.checkpoint.as_ref())?;
                storage = gguf_file::verify(&place.file(), outline, quantized)?;
                place.file().metadata()?.len()
            }
            (Some((format, plan)), None) => {
                packed::write_text(place.folder(), Card::FILE, &card.render())?;
                export::write(place.folder(), self.model, quantized, (*format, plan))?;
                export::verify(place.folder(), quantized, plan)?;
                place.folder().join(packed::WEIGHTS).metadata()?.len()
            }
        };
        Ok(Written { n_bytes, storage })
    }

    /// Gives what was written its name.
    ///
    /// # Errors
    /// A place that something was put into meanwhile.
    pub fn finish(&self, place: Place) -> anyhow::Result<()> {
        match self.format.container() {
            Container::Folder => place.finish(),
            Container::File => place.finish_file(),
        }
    }

    /// Writes the packed checkpoint and reads it again; its size.
    fn write_packed(&self, place: &Place, quantized: &Quantized) -> anyhow::Result<u64> {
        let (opened, checkpoint) = (&self.model.opened, quantized.checkpoint.as_ref());
        packed::write(place.folder(), opened, checkpoint, header(self.recipe, quantized)?)?;
        let written = open_model(place.folder()).context("what was written cannot be read again")?;
        let wiring = wiring_of(&written.config, written.checkpoint.as_ref())?;
        let found = codes_sha256(&wiring, written.config.n_blocks, written.checkpoint.as_ref())?;
        ensure!(found == quantized.codes_sha256, "what was written is not what was quantized");
        Ok(written.checkpoint.bytes_on_disk())
    }
}

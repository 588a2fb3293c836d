//! Calibration sequences for the tokenizer of a session's model.

use anyhow::ensure;
use awq_core::backend::QuantBackend;
use awq_core::driver::{Calibration, Propagation};

use super::Session;
use crate::codes::hash_of_sequences;
use crate::config::{CalibrationSpec, Draw};
use crate::data::Texts;
use crate::data::calibration::{CalibrationSet, calibration_set};
use crate::need::CalibrationSize;

/// Calibration sequences, how they travel, and where they are from.
pub struct Calibrated {
    /// The sequences.
    pub set: CalibrationSet,
    /// Name of their text.
    pub text_name: String,
    /// sha256 of it.
    pub text_sha256: String,
    /// [`hash_of_sequences`].
    pub(super) sequences_sha256: String,
    pub(super) propagation: Propagation,
}

impl Calibrated {
    pub(super) fn size(&self) -> CalibrationSize {
        let (n_sequences, seq_len) = (self.set.ids.len(), self.set.ids.first().map_or(0, Vec::len));
        CalibrationSize { n_sequences, seq_len, propagation: self.propagation }
    }

    pub(crate) fn calibration(&self) -> Calibration<'_> {
        Calibration { sequences: &self.set.ids, propagation: self.propagation }
    }
}

impl<B: QuantBackend> Session<'_, B> {
    /// The sequences of `spec`, or of one of several draws of it. A draw that is no other than the first is an error: the spread
    /// of the two would be nothing, and say nothing.
    ///
    /// # Errors
    /// A text that is missing or too short, or such a draw.
    pub fn calibrate(
        &self,
        spec: &CalibrationSpec,
        draw: Option<Draw>,
        texts: &mut Texts<'_>,
    ) -> anyhow::Result<Calibrated> {
        let calibrated = self.calibrate_once(spec, texts)?;
        if let Some(draw) = draw.filter(|draw| draw.index > 0) {
            let sorted = |calibrated: &Calibrated| {
                let mut ids = calibrated.set.ids.clone();
                ids.sort();
                ids
            };
            ensure!(
                sorted(&calibrated) != sorted(&self.calibrate_once(&draw.first(spec), texts)?),
                "draw {} of the calibration takes the same sequences as draw 0: the text has no others; remove `draws` or \
                 calibrate on a longer text",
                draw.index
            );
        }
        Ok(calibrated)
    }

    fn calibrate_once(&self, spec: &CalibrationSpec, texts: &mut Texts<'_>) -> anyhow::Result<Calibrated> {
        let text = texts.get(&spec.dataset)?;
        let set = calibration_set(&self.model.opened, spec, text)?;
        Ok(Calibrated {
            sequences_sha256: hash_of_sequences(&set.ids),
            set,
            text_name: text.name.clone(),
            text_sha256: text.sha256.clone(),
            propagation: spec.propagation,
        })
    }
}

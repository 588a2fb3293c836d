//! Codes of a session's model: from the code store, or quantized together in one pass over the blocks.

use anyhow::ensure;
use awq_core::backend::QuantBackend;
use awq_core::driver::{Begun, BlockSink, Job, QuantizedBlock, quantize_blocks};
use awq_core::grid::Grid;
use awq_core::method::MethodError;
use awq_core::model::Decoder;

use super::{Calibrated, Session};
use crate::assets::cannot_write;
use crate::codes::{Codes, Question};
use crate::guard::guarded;
use crate::packed::bytes_of_codes;
use crate::progress::Bar;
use crate::registry::MethodSpec;

/// Codes that are to be made.
pub struct Wanted<'a> {
    /// The method.
    pub method: &'a MethodSpec,
    /// The grid.
    pub grid: Grid,
    /// What is stored of them.
    pub codes: Codes,
}

impl<B: QuantBackend> Session<'_, B> {
    /// What is stored of a quantization of this model.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn stored(&self, method: &MethodSpec, grid: &Grid, calibrated: Option<&Calibrated>) -> anyhow::Result<Codes> {
        let calibration = calibrated.map(|one| (one.sequences_sha256.as_str(), one.propagation));
        let on = (self.machine.device, self.machine.precision);
        let question = Question::new(&self.model.files, (method, grid), calibration, on);
        self.machine.codes.open(&question, self.base_tensors())
    }

    /// Makes codes, all in one pass, and stores each block at once: a kill costs no more than the block that was worked on.
    /// `label` says which pass it is.
    ///
    /// # Errors
    /// A disk without room for them, a block that cannot be read or stored. What a method objects to is its own result.
    pub fn quantize(
        &self,
        label: &str,
        wanted: Vec<Wanted<'_>>,
        calibrated: Option<&Calibrated>,
    ) -> anyhow::Result<Vec<Result<Codes, MethodError>>> {
        self.check_room(&wanted)?;
        let jobs: Vec<Job<'_, B>> =
            wanted.iter().map(|one| Job { method: one.method.method::<B>(), grid: one.grid }).collect();
        let bar = self.machine.progress.bar(label, self.decoder.config().n_blocks as u64);
        let calibration = calibrated.map(Calibrated::calibration);
        let mut sink = Stored { codes: wanted.into_iter().map(|one| one.codes).collect(), bar: &bar };
        let results = guarded(|| quantize_blocks(self.decoder.as_ref(), calibration, &jobs, &mut sink))?;
        let codes = sink.codes;
        bar.finish();
        Ok(codes.into_iter().zip(results).map(|(codes, result)| result.map(|()| codes)).collect())
    }

    /// The model with `codes` in place of its weights.
    pub fn quantized(&self, codes: &Codes) -> Box<dyn Decoder<B>> {
        self.decoder.over(codes.checkpoint())
    }

    fn check_room(&self, wanted: &[Wanted<'_>]) -> anyhow::Result<()> {
        let checkpoint = self.model.opened.checkpoint.as_ref();
        let linears: Vec<String> =
            checkpoint.names().into_iter().filter(|name| self.model.wiring.quantizes(name)).collect();
        let n_blocks = self.decoder.config().n_blocks.max(1) as u64;
        let missing = |one: &Wanted<'_>| {
            bytes_of_codes(checkpoint, &linears, &one.grid) / n_blocks * (n_blocks - one.codes.n_blocks() as u64)
        };
        let needed: u64 = wanted.iter().map(missing).sum();
        let folder = self.machine.codes.folder();
        // A system that does not tell is tried.
        let free = fs4::available_space(folder.parent().unwrap_or(&folder)).unwrap_or(u64::MAX);
        ensure!(
            needed <= free,
            "{}: the codes need about {:.1} GB, {:.1} are free",
            cannot_write(&folder),
            needed as f64 / 1e9,
            free as f64 / 1e9
        );
        Ok(())
    }
}

struct Stored<'a> {
    codes: Vec<Codes>,
    bar: &'a Bar,
}

impl BlockSink for Stored<'_> {
    type Error = anyhow::Error;

    fn begun(&self, job_idx: usize) -> Option<Begun> {
        self.codes[job_idx].begun()
    }

    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> anyhow::Result<()> {
        self.codes[job_idx].keep(block)
    }

    fn passed(&mut self, _: usize, _: f64) {
        self.bar.advance(1);
    }
}

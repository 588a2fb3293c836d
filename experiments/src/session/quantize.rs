//! Codes of a session's model: from the code store, or quantized together in as few passes over the blocks as memory allows.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{anyhow, ensure};
use awq_core::backend::QuantBackend;
use awq_core::driver::{Begun, BlockSink, Job, QuantizedBlock, Room, quantize_blocks};
use awq_core::model::Decoder;
use awq_core::pack::PackedWeight;
use awq_core::rule::GridRule;

use super::{Calibrated, Session};
use crate::assets::cannot_write;
use crate::codes::{Codes, Question};
use crate::guard::guarded;
use crate::need::{self, Need};
use crate::plan::cost::bytes;
use crate::progress::Bar;
use crate::registry::MethodSpec;

/// Codes that are to be made.
pub struct Wanted<'a> {
    /// The method.
    pub method: &'a MethodSpec,
    /// The grid of each linear.
    pub rule: GridRule,
    /// What is stored of them.
    pub codes: Codes,
}

impl<B: QuantBackend> Session<'_, B> {
    /// What is stored of a quantization of this model.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn stored(
        &self,
        method: &MethodSpec,
        rule: &GridRule,
        calibrated: Option<&Calibrated>,
    ) -> anyhow::Result<Codes> {
        let calibration = calibrated.map(|one| (one.sequences_sha256.as_str(), one.propagation));
        let on = (self.machine.device, self.machine.precision);
        let question = Question::new(&self.model.files, (method, rule), calibration, on);
        self.machine.codes.open(&question, self.base_tensors())
    }

    /// Makes codes, in one pass where memory allows, and stores each block at once: a kill costs no more than the block that was worked on.
    /// `label` says which pass it is.
    ///
    /// # Errors
    /// Overrides that do not fit the model, a disk without room for the codes. What a method objects to is its own result, and so is a
    /// block that cannot be read or stored, of all codes that were not made before it.
    pub fn quantize(
        &self,
        label: &str,
        wanted: Vec<Wanted<'_>>,
        calibrated: Option<&Calibrated>,
    ) -> anyhow::Result<Vec<anyhow::Result<Codes>>> {
        self.check_room(&wanted)?;
        let mut jobs: Vec<Job<'_, B>> = Vec::new();
        let mut codes = Vec::new();
        let mut settings = Vec::new();
        for one in wanted {
            settings.push(one.method.settings());
            jobs.push(Job { method: one.method.method::<B>(), grids: one.rule.resolve(&self.model.wiring)? });
            codes.push(one.codes);
        }
        let n_blocks = self.decoder.config().n_blocks;
        let n_missing: usize = codes.iter().map(|codes| n_blocks.saturating_sub(codes.n_blocks())).sum();
        let of_jobs: Vec<need::Job<'_>> = settings.into_iter().zip(jobs.iter().map(|job| &job.grids)).collect();
        self.check_memory(&of_jobs, calibrated)?;
        let passes = self.fitting(&of_jobs, calibrated);
        let memory = bytes(self.machine.memory.bytes as f64);
        if passes.len() > 1 {
            let (n_jobs, n_passes) = (jobs.len(), passes.len());
            self.machine.progress.note(&format!(
                "{n_jobs} cells go through the blocks in {n_passes} passes: together they need more than {memory} of memory"
            ));
        }
        let bar = self.machine.progress.bar(label, n_missing as u64 * PARTS_OF_A_BLOCK);
        let calibration = calibrated.map(Calibrated::calibration);
        let mut codes: Vec<Option<Codes>> = codes.into_iter().map(Some).collect();
        let (mut made, mut most_in_files, mut broken) = (BTreeMap::new(), 0, None);
        for pass in passes {
            let of_pass: Vec<need::Job<'_>> = pass.iter().map(|&job| of_jobs[job]).collect();
            let room = self.room(&of_pass, calibrated);
            let jobs: Vec<Job<'_, B>> = pass.iter().map(|&job| jobs[job].clone()).collect();
            let codes = pass.iter().filter_map(|&job| codes[job].take()).collect();
            let done = vec![0.0; pass.len()];
            let mut sink = Stored { codes, room: room.clone(), bar: &bar, done: RefCell::new(done) };
            match guarded(|| quantize_blocks(self.decoder.as_ref(), calibration, &jobs, &mut sink)) {
                Ok(results) => {
                    let codes = sink.codes.into_iter().zip(results);
                    let codes = codes.map(|(codes, result)| result.map(|()| codes).map_err(anyhow::Error::from));
                    made.extend(pass.into_iter().zip(codes));
                }
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
            most_in_files = most_in_files.max(room.most_in_files());
        }
        bar.finish();
        if most_in_files > 0 {
            self.machine.progress.note(&format!(
                "hidden states of up to {} lay in temporary files, for which there was no room within {memory} of memory",
                bytes(most_in_files as f64),
            ));
        }
        let not_made = || Err(broken.as_ref().map_or_else(|| anyhow!("not made"), |error| anyhow!("{error:#}")));
        Ok((0..jobs.len()).map(|job| made.remove(&job).unwrap_or_else(not_made)).collect())
    }

    /// The model with `codes` in place of its weights.
    ///
    /// # Errors
    /// A head that cannot be read.
    pub fn quantized(&self, codes: &Codes) -> anyhow::Result<Box<dyn Decoder<B>>> {
        Ok(self.decoder.over(codes.checkpoint())?)
    }

    /// Checks that each method alone fits into the memory that was asked for.
    ///
    /// # Errors
    /// One that does not.
    pub(crate) fn check_memory(&self, jobs: &[need::Job<'_>], calibrated: Option<&Calibrated>) -> anyhow::Result<()> {
        if B::BESIDE_HOST {
            return Ok(());
        }
        let check = |job: &need::Job<'_>| self.need(&[*job], calibrated).check(&job.0.label(), self.machine.memory);
        jobs.iter().try_for_each(check)
    }

    /// Jobs that go through the blocks together, as memory allows: indices, pass by pass.
    fn fitting(&self, jobs: &[need::Job<'_>], calibrated: Option<&Calibrated>) -> Vec<Vec<usize>> {
        if B::BESIDE_HOST {
            return vec![(0..jobs.len()).collect()];
        }
        let (wiring, config, size) = (&self.model.wiring, &self.model.opened.config, calibrated.map(Calibrated::size));
        Need::passes(wiring, config, jobs, size, self.machine.memory.bytes)
    }

    /// Room for the hidden states of a pass, beside what else it needs.
    pub(crate) fn room(&self, jobs: &[need::Job<'_>], calibrated: Option<&Calibrated>) -> Room {
        if B::BESIDE_HOST {
            return Room::unlimited();
        }
        let need = self.need(jobs, calibrated);
        Room::new(self.machine.memory.bytes.saturating_sub(need.memory), self.machine.codes.folder())
    }

    fn need(&self, jobs: &[need::Job<'_>], calibrated: Option<&Calibrated>) -> Need {
        Need::of_pass(&self.model.wiring, &self.model.opened.config, jobs, calibrated.map(Calibrated::size))
    }

    fn check_room(&self, wanted: &[Wanted<'_>]) -> anyhow::Result<()> {
        let n_blocks = self.decoder.config().n_blocks.max(1) as u64;
        let missing = |one: &Wanted<'_>| {
            self.model.bytes_of_codes(&one.rule) / n_blocks * (n_blocks - one.codes.n_blocks() as u64)
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

/// Units of a bar that a block of one cell is: it moves while a block is worked on, which may take minutes.
const PARTS_OF_A_BLOCK: u64 = 1000;

struct Stored<'a> {
    codes: Vec<Codes>,
    room: Room,
    bar: &'a Bar,
    /// How much of its next block is done, of each job.
    done: RefCell<Vec<f64>>,
}

/// Whole parts of a block that a share of it is.
fn parts(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * PARTS_OF_A_BLOCK as f64) as u64
}

impl BlockSink for Stored<'_> {
    type Error = anyhow::Error;

    fn begun(&self, job_idx: usize) -> Option<Begun> {
        self.codes[job_idx].begun()
    }

    fn room(&self) -> Room {
        self.room.clone()
    }

    fn advance(&self, job_idx: usize, share: f64) {
        let done = &mut self.done.borrow_mut()[job_idx];
        let before = parts(*done);
        *done += share;
        self.bar.advance(parts(*done) - before);
    }

    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> anyhow::Result<()> {
        self.codes[job_idx].keep(block)?;
        let done = std::mem::take(&mut self.done.get_mut()[job_idx]);
        self.bar.advance(PARTS_OF_A_BLOCK - parts(done));
        Ok(())
    }

    fn keep_head(&mut self, job_idx: usize, head: PackedWeight) -> anyhow::Result<()> {
        self.codes[job_idx].keep_head(head)
    }

    fn passed(&mut self, _: usize, _: f64) {}
}

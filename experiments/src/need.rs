//! [`Need`]: the memory that quantizing a model takes on a CPU, from shapes alone, before any work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::ensure;
use awq_core::capture::{Gathered, GatheredOfBlock, gather_both};
use awq_core::driver::{Propagation, TOKENS_PER_BATCH};
use awq_core::grids::{BlockGrids, ModelGrids};
use awq_core::load::ModelConfig;
use awq_core::method::{MethodSettings, WorkingShapes};
use awq_core::model::wiring::{BlockWiring, Wiring};
use awq_core::model::{BlockLayout, LinearName};
use itertools::Itertools as _;

use crate::config::CalibrationSpec;
use crate::limit::MemoryLimit;
use crate::plan::cost::{PROGRAM, bytes};

const F32: u64 = 4;

/// Bytes that a pass over the blocks of a model holds at once, about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// All but hidden states.
    pub memory: u64,
    /// Hidden states of all calibration tokens, which may lie in a file.
    pub hidden_states: u64,
}

/// How large a calibration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationSize {
    /// Sequences.
    pub n_sequences: usize,
    /// Tokens of one.
    pub seq_len: usize,
    /// How they travel.
    pub propagation: Propagation,
}

impl CalibrationSize {
    /// Of a calibration that is not read yet.
    pub fn of(spec: &CalibrationSpec) -> Self {
        Self { n_sequences: spec.n_sequences(), seq_len: spec.seq_len.get(), propagation: spec.propagation }
    }

    fn n_tokens(&self) -> u64 {
        (self.n_sequences * self.seq_len) as u64
    }

    /// Tokens that go through a block at a time.
    fn at_once(&self) -> u64 {
        self.n_tokens().min(TOKENS_PER_BATCH.max(self.seq_len) as u64)
    }
}

/// A method and the grids that it is to round to.
pub type Job<'a> = (&'a dyn MethodSettings, &'a ModelGrids);

impl Need {
    /// Of one pass for all jobs.
    pub fn of_pass(
        wiring: &Wiring,
        config: &ModelConfig,
        jobs: &[Job<'_>],
        calibration: Option<CalibrationSize>,
    ) -> Self {
        let of_block = |(block_idx, block): (usize, &Arc<BlockWiring>)| {
            let shapes = Shapes::of(block, config);
            shapes.need(jobs, block_idx, calibration)
        };
        let blocks = wiring.blocks.iter().enumerate().map(of_block).max().unwrap_or(0);
        let Some(calibration) = calibration else { return Self { memory: PROGRAM + blocks, hidden_states: 0 } };
        let states = calibration.n_tokens() * config.hidden_size as u64 * F32;
        // Before a block and behind it; where each job has its own stream, the outputs that it is compared with beside them.
        let n_streams = match calibration.propagation {
            Propagation::FullPrecision => 2,
            Propagation::Quantized | Propagation::QuantizedPerStage => jobs.len() as u64 + 2,
        };
        let embedding = (config.vocab_size * wiring.embedding_width(config)) as u64 * F32;
        Self { memory: PROGRAM + blocks.max(embedding), hidden_states: n_streams * states }
    }

    /// Jobs that go through the blocks together: all in one pass where they fit into `limit` bytes, or into what one of them needs alone
    /// where that is more. Else jobs of one method first, which ask for the same of inputs, as many as fit: their indices, pass by pass.
    /// Hidden states count as far as a job brings its own.
    pub fn passes(
        wiring: &Wiring,
        config: &ModelConfig,
        jobs: &[Job<'_>],
        calibration: Option<CalibrationSize>,
        limit: u64,
    ) -> Vec<Vec<usize>> {
        let need = |pass: &[usize]| {
            let jobs: Vec<Job<'_>> = pass.iter().map(|&job| jobs[job]).collect();
            Self::of_pass(wiring, config, &jobs, calibration)
        };
        let of_one: Vec<Self> = (0..jobs.len()).map(|job| need(&[job])).collect();
        let limit = of_one.iter().map(|need| need.memory).max().unwrap_or(0).max(limit);
        let shared_states = of_one.first().map_or(0, |need| need.hidden_states);
        let fits = |pass: &[usize]| {
            let need = need(pass);
            need.memory + need.hidden_states.saturating_sub(shared_states) <= limit
        };
        let all: Vec<usize> = (0..jobs.len()).collect();
        if fits(&all) {
            return vec![all];
        }
        let by_method = all.into_iter().into_group_map_by(|&job| jobs[job].0.label());
        let mut passes: Vec<Vec<usize>> = Vec::new();
        for job in by_method.into_values().sorted().flatten() {
            match passes.last_mut() {
                Some(pass) if fits(&[pass.as_slice(), &[job]].concat()) => pass.push(job),
                _ => passes.push(vec![job]),
            }
        }
        passes
    }

    /// Checks that methods of this label fit within what was asked for.
    ///
    /// # Errors
    /// That they need more.
    pub fn check(&self, label: &str, limit: MemoryLimit) -> anyhow::Result<()> {
        ensure!(
            !limit.is_asked || self.memory <= limit.bytes,
            "{label} needs about {} of memory beside hidden states, {} are allowed; give more with --memory or `[run] memory`, \
             or choose another method",
            bytes(self.memory as f64),
            bytes(limit.bytes as f64)
        );
        Ok(())
    }
}

/// The matrices of a block.
struct Shapes<'a> {
    layout: &'a BlockLayout,
    linears: BTreeMap<LinearName, [usize; 2]>,
    /// Weights of all.
    n_weights: u64,
    /// Numbers that a token is while it goes through.
    n_of_token: u64,
    /// The share of all tokens that an expert sees.
    share_of_expert: f64,
}

impl<'a> Shapes<'a> {
    fn of(block: &'a BlockWiring, config: &ModelConfig) -> Self {
        let linears: BTreeMap<_, _> = block.linear_shapes(config).into_iter().collect();
        let n_weights: u64 = linears.values().map(|[n_out, n_in]| (n_out * n_in) as u64).sum();
        let share_of_expert = block.mlp.module.share_of_expert();
        // In the feed-forward module: the stream, what is normed, two inner states and their product.
        let n_of_token = (3 * config.hidden_size + 3 * config.intermediate_size) as u64;
        Self { layout: &block.layout, linears, n_weights, n_of_token, share_of_expert }
    }

    /// Bytes of a pass at this block, without hidden states between blocks.
    fn need(&self, jobs: &[Job<'_>], block_idx: usize, calibration: Option<CalibrationSize>) -> u64 {
        let block = self.n_weights * F32;
        let codes = self.n_weights + self.n_weights / 8;
        let n_tokens = calibration.map_or(0, |calibration| calibration.n_tokens());
        let working =
            |(method, grids): &Job<'_>| method.working_bytes(&self.working_shapes(grids.block(block_idx), n_tokens));
        let working = jobs.iter().map(working).max().unwrap_or(0);
        let Some(calibration) = calibration else { return block + codes + working };
        let gathered = self.gathered(jobs, block_idx, calibration);
        let forward = calibration.at_once() * self.n_of_token * F32;
        // Gathering, then the method, then the run through restored weights.
        block + gathered + forward.max(codes + working.max(block + forward))
    }

    /// Bytes of what jobs ask of inputs.
    fn gathered(&self, jobs: &[Job<'_>], block_idx: usize, calibration: CalibrationSize) -> u64 {
        let of_job = |(method, grids): &Job<'_>| match method.needs().inputs {
            true => method.gathers(self.layout, grids.block(block_idx)),
            false => GatheredOfBlock::new(),
        };
        let bytes = |gathered: GatheredOfBlock| -> u64 {
            let of_input = |(input, gathered): (LinearName, Gathered)| {
                let (n_in, share) = self.width_and_share(input).unwrap_or((0, 1.0));
                gathered.bytes(n_in, (calibration.n_tokens() as f64 * share) as u64)
            };
            gathered.into_iter().map(of_input).sum()
        };
        match calibration.propagation {
            Propagation::FullPrecision => bytes(jobs.iter().map(of_job).fold(GatheredOfBlock::new(), gather_both)),
            _ => jobs.iter().map(|job| bytes(of_job(job))).max().unwrap_or(0),
        }
    }

    /// Channels of an input, and the share of the tokens that it has.
    fn width_and_share(&self, input: LinearName) -> Option<(usize, f64)> {
        if let Some(facts) = self.layout.linears.iter().find(|facts| facts.input == input) {
            let share = facts.expert.map_or(1.0, |_| self.share_of_expert);
            return Some((self.linears.get(&facts.name)?[1], share));
        }
        let group = self.layout.scale_groups.iter().find(|group| group.input == input)?;
        Some((self.linears.get(&group.linears[0])?[1], 1.0))
    }

    fn working_shapes(&self, grids: &BlockGrids, n_tokens: u64) -> WorkingShapes {
        let quantized = self.layout.linears.iter().filter(|facts| grids.of(facts.name).is_some());
        let inputs: BTreeSet<LinearName> = quantized.clone().map(|facts| facts.input).collect();
        WorkingShapes {
            inputs: inputs.into_iter().filter_map(|input| Some(self.width_and_share(input)?.0)).collect(),
            linears: quantized.filter_map(|facts| self.linears.get(&facts.name).copied()).collect(),
            n_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use awq_core::grid::{Bits, Granularity, Grid};
    use awq_core::model::tiny::{self, TinySpec};
    use awq_core::model::wiring_of;
    use awq_core::rule::GridRule;

    use super::*;
    use crate::registry::MethodSpec;

    const MIB: u64 = 1 << 20;

    /// The need of a method on the first block of a model of these sizes, in MiB.
    fn need(method: &str, size: Option<CalibrationSize>) -> (u64, u64) {
        let spec = TinySpec { hidden_size: 512, intermediate_size: 1024, vocab_size: 50, ..TinySpec::MHA };
        let wiring = wiring_of(&spec.config(), &tiny::checkpoint(&spec, 0)).unwrap();
        let method = MethodSpec::presets(method).remove(0).1;
        let grids = GridRule::from(Grid::awq(Bits::new(4).unwrap(), Granularity::PerChannel));
        let grids = grids.resolve(&wiring).unwrap();
        let need = Need::of_pass(&wiring, &spec.config(), &[(method.settings(), &grids)], size);
        ((need.memory - PROGRAM) / MIB, need.hidden_states / MIB)
    }

    fn size(n_sequences: usize) -> Option<CalibrationSize> {
        Some(CalibrationSize { n_sequences, seq_len: 512, propagation: Propagation::FullPrecision })
    }

    #[test]
    fn a_method_of_statistics_needs_the_same_whatever_the_calibration() {
        let (memory, hidden_states) = need("gptq", size(64));
        assert_eq!(need("gptq", size(128)), (memory, 2 * hidden_states));
        // 65,536 tokens of 512 numbers, before the block and behind it.
        assert_eq!(need("gptq", size(128)).1, 256);
    }

    /// AWQ keeps the inputs of two modules: 2 x 512 numbers for each of 32,768 tokens more.
    #[test]
    fn whole_inputs_grow_with_the_calibration() {
        let (small, large) = (need("awq", size(64)).0, need("awq", size(128)).0);
        assert_eq!(large - small, 128);
    }

    /// GPTQ's Gram matrices and AWQ's inputs are in memory together where both look at a block.
    #[test]
    fn jobs_that_do_not_fit_together_go_one_after_the_other() {
        let spec = TinySpec { hidden_size: 512, intermediate_size: 1024, vocab_size: 50, ..TinySpec::MHA };
        let (config, wiring) = (spec.config(), wiring_of(&spec.config(), &tiny::checkpoint(&spec, 0)).unwrap());
        let grids = GridRule::from(Grid::awq(Bits::new(4).unwrap(), Granularity::PerChannel)).resolve(&wiring).unwrap();
        let methods: Vec<MethodSpec> = ["awq", "gptq", "awq"].map(|key| MethodSpec::presets(key).remove(0).1).into();
        let jobs: Vec<Job<'_>> = methods.iter().map(|method| (method.settings(), &grids)).collect();
        let of = |jobs: &[Job<'_>]| Need::of_pass(&wiring, &config, jobs, size(64)).memory;
        let passes = |limit| Need::passes(&wiring, &config, &jobs, size(64), limit);
        let (all, awq) = (of(&jobs), of(&[jobs[0], jobs[2]]));
        assert!(awq < all, "{awq} of {all}");
        assert_eq!(passes(all), [[0, 1, 2]]);
        // Those of one method together.
        assert_eq!(passes(all - 1), [vec![0, 2], vec![1]]);
        assert!(of(&jobs[1..2]) < all);
        // Where even one does not fit, two on other grids that share their inputs take no more.
        assert_eq!(passes(0), [vec![0, 2], vec![1]]);
    }

    /// Where blocks see quantized outputs, each job has a stream of hidden states: 64 MiB.
    #[test]
    fn jobs_with_streams_of_their_own_go_together_as_far_as_these_fit() {
        let spec = TinySpec { hidden_size: 512, intermediate_size: 1024, vocab_size: 50, ..TinySpec::MHA };
        let (config, wiring) = (spec.config(), wiring_of(&spec.config(), &tiny::checkpoint(&spec, 0)).unwrap());
        let grids = GridRule::from(Grid::awq(Bits::new(4).unwrap(), Granularity::PerChannel)).resolve(&wiring).unwrap();
        let method = MethodSpec::presets("gptq").remove(0).1;
        let jobs: Vec<Job<'_>> = vec![(method.settings(), &grids); 5];
        let size = CalibrationSize { propagation: Propagation::Quantized, ..size(64).unwrap() };
        let alone = Need::of_pass(&wiring, &config, &jobs[..1], Some(size)).memory;
        let passes = |limit| Need::passes(&wiring, &config, &jobs, Some(size), limit);
        assert_eq!(passes(alone + 4 * 64 * MIB).len(), 1);
        assert_eq!(passes(alone + 65 * MIB), [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn plain_rounding_needs_no_more_than_a_block_and_its_codes() {
        let (memory, hidden_states) = need("rtn", None);
        // 2.5 million weights.
        assert!((10..40).contains(&memory), "{memory}");
        assert_eq!(hidden_states, 0);
    }
}

//! Texts that a model writes on the problems of a task, and whether the programs that they make pass.
//!
//! The whole model is held in memory for it, its floats in the 16 bits of its file or in f32, its codes packed, and decodes on the CPU: the scoring pass keeps no cache.

use std::sync::Arc;

use anyhow::Context;
use awq_core::backend::QuantBackend;
use awq_core::decode::sample::RandomSampling;
use awq_core::decode::{DecodeModel, DecodeOptions, Sampling};
use awq_core::load::{Checkpoint, ModelConfig};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Session;
use crate::config::{LmEvalGenerationProtocol, SeveralTexts};
use crate::eval::scores::Writings;
use crate::eval::windows::Windows;
use crate::generate::write::{Assignment, Writer};
use crate::sandbox::Sandbox;
use crate::tasks::Problem;

/// A model of a session for writing, loaded when it is first asked for.
pub(super) struct LazyModel {
    config: ModelConfig,
    checkpoint: Arc<dyn Checkpoint>,
    loaded: Option<DecodeModel>,
}

impl LazyModel {
    pub(super) fn new(config: ModelConfig, checkpoint: Arc<dyn Checkpoint>) -> Self {
        Self { config, checkpoint, loaded: None }
    }
}

impl<B: QuantBackend> Session<'_, B> {
    /// What the model writes on `problems`, whose prompts are `windows`. `label` says what for.
    ///
    /// # Errors
    /// A model that does not fit into memory or cannot decode, or a sandbox that is missing where programs are run.
    pub(super) fn write(
        &self,
        label: &str,
        model: &mut LazyModel,
        (windows, problems): (&Windows, &[Problem]),
        protocol: &LmEvalGenerationProtocol,
    ) -> anyhow::Result<Writings> {
        let opened = &self.model.opened;
        if model.loaded.is_none() {
            let load = DecodeModel::load(model.config.clone(), model.checkpoint.as_ref(), &DecodeOptions::EXACT);
            model.loaded = Some(load.context("the model cannot be loaded for writing")?);
        }
        let loaded = model.loaded.as_ref().context("no model is loaded for writing")?;
        let prompts = windows.windows.iter().zip(problems).enumerate();
        let assignments: Vec<Assignment<'_>> = prompts
            .map(|(index, (prompt, problem))| Assignment {
                prompt,
                stops: &problem.until,
                max_tokens: problem.max_new_tokens,
                texts: (0..protocol.n_texts()).map(|text| sampling(protocol.several.as_ref(), index, text)).collect(),
            })
            .collect();
        let writer = Writer::new(loaded, &opened.tokenizer);
        let bar = self.machine.progress.bar(label, assignments.iter().map(Assignment::n_tokens).sum());
        let written = writer.write(&assignments, &mut |n_tokens| bar.advance(n_tokens))?;
        bar.finish();
        let n_tokens: u64 = written.iter().flatten().map(|text| text.n_tokens as u64).sum();
        let texts: Vec<Vec<String>> =
            written.into_iter().map(|texts| texts.into_iter().map(|text| text.text).collect()).collect();
        let passes = problems.par_iter().zip(&texts).map(|(problem, texts)| self.passes(problem, texts));
        let passes = passes.collect::<anyhow::Result<_>>()?;
        Ok(Writings { texts, passes, n_tokens })
    }

    /// Which of the programs that `texts` make pass; empty where they make none.
    fn passes(&self, problem: &Problem, texts: &[String]) -> anyhow::Result<Vec<bool>> {
        let programs = texts.iter().filter_map(|text| problem.judge.program(text));
        programs.map(|program| self.sandbox()?.passes(&program)).collect()
    }

    fn sandbox(&self) -> anyhow::Result<&Sandbox> {
        self.machine.sandbox.context("generated code may not be run: the command lacks --run-generated-code")
    }
}

/// How one of the texts on a problem is drawn: each from a seed of its own, whatever is drawn before it.
fn sampling(several: Option<&SeveralTexts>, problem_idx: usize, text_idx: usize) -> Sampling {
    let Some(several) = several else { return Sampling::Greedy };
    let digest = Sha256::digest(format!("{} {problem_idx} {text_idx}", several.seed));
    let mut seed = [0; 8];
    seed.copy_from_slice(&digest[..8]);
    Sampling::Random(RandomSampling {
        temperature: several.temperature.get() as f32,
        top_k: None,
        top_p: several.top_p.get() as f32,
        seed: u64::from_le_bytes(seed),
    })
}

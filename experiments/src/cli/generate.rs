//! `experiments generate`.

use std::num::NonZeroUsize;
use std::time::Instant;

use awq_core::decode::{Sampler, Session};
use clap::Args;

use super::model::{DecodeArgs, ModelArgs, SamplingArgs, end_ids, show};
use crate::generate::stream::TextStream;
use crate::generate::{Stop, generate};
use crate::provenance::peak_resident_bytes;

/// Continue a text, and say how fast that went.
///
///   experiments generate bundled --prompt "Once" --max-tokens 64
///   experiments generate model.gguf --quant awq-w4g128 --prompt "The capital of France is"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    /// The text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to make at most.
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: NonZeroUsize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let sampling = args.sampling.sampling()?;
    let start = Instant::now();
    let (opened, model) = args.model.load(&args.decode)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut prompt = opened.tokenizer.encode_prompt(&args.prompt)?;
    if prompt.is_empty() {
        prompt.splice(0..0, opened.tokenizer.bos());
    }
    let mut session = Session::new(&model, prompt.len() + args.max_tokens.get())?;
    let mut stream = TextStream::after(&opened.tokenizer, &prompt);
    show(&args.prompt)?;
    let done = generate(
        &mut session,
        &mut Sampler::new(sampling),
        &prompt,
        args.max_tokens.get(),
        &end_ids(&opened),
        &mut |id| show(&stream.push(id)?),
    )?;
    show(&(stream.finish()? + "\n"))?;
    let footprint = model.footprint();
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let ended = match done.stop {
        Stop::EndToken => "the model ended the text",
        Stop::MaxTokens => "--max-tokens reached",
        Stop::ContextFull => "the context is full",
    };
    let dequantized = match footprint.n_dequantized {
        0 => String::new(),
        n => format!(", {n} dequantized to floats: no kernel takes their codes"),
    };
    args.model.machine.progress().note(&format!(
        "{} ({ended})\nloaded in {load_seconds:.2} s, {} threads; a step reads {:.1} MB of weights ({} of {} linears packed{dequantized}); cache {:.1} MB, peak memory {:.1} MB",
        done.describe(),
        rayon::current_num_threads(),
        mb(footprint.step_bytes),
        footprint.n_packed,
        footprint.n_linears,
        mb(session.cache_bytes()),
        mb(peak_resident_bytes() as usize),
    ));
    Ok(())
}

//! `experiments chat`.

use std::io::{BufRead, IsTerminal};
use std::num::NonZeroUsize;

use anyhow::Context;
use awq_core::decode::{Sampler, Session};
use clap::Args;

use super::model::{DecodeArgs, ModelArgs, SamplingArgs, end_ids, show};
use crate::generate::chat::ChatFormat;
use crate::generate::stream::TextStream;
use crate::generate::{Stop, generate};

/// Talk with a model that has a chat template (ChatML, Llama 2 or Llama 3). The conversation stays in the cache, so that only
/// what is new is computed. `/reset` begins anew, `/quit` or the end of the input ends it.
///
///   experiments chat SmolLM2-135M-Instruct.gguf --temperature 0.7 --top-p 0.9
///   printf 'Hello!\nAnd in French?\n' | experiments chat model-awq
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    /// System message [default: the template's own, if it has one].
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of one answer at most.
    #[arg(long, value_name = "N", default_value = "512")]
    max_tokens: NonZeroUsize,
    /// Tokens of the whole conversation at most; not more than the model has positions.
    #[arg(long, value_name = "N", default_value = "2048")]
    context: NonZeroUsize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let sampling = args.sampling.sampling()?;
    let (opened, model) = args.model.load(&args.decode)?;
    let format = ChatFormat::of(opened.chat_template.as_deref())
        .with_context(|| opened.checkpoint.source().display().to_string())?;
    let tokenizer = &opened.tokenizer;
    let end_ids: Vec<u32> = end_ids(&opened).into_iter().chain(tokenizer.token_id(format.end_token())).collect();
    let capacity = args.context.get().min(opened.config.longest_sequence());
    let mut session = Session::new(&model, capacity)?;
    let mut sampler = Sampler::new(sampling);
    let progress = args.model.machine.progress();
    let stdin = std::io::stdin();
    // Someone who types sees where; a program that writes gets answers alone.
    let invitation = if stdin.is_terminal() { "> " } else { "" };
    show(invitation)?;
    for line in stdin.lock().lines() {
        let line = line.context("standard input")?;
        match line.trim() {
            "" => {}
            "/quit" => break,
            "/reset" => {
                session.truncate(0);
                progress.note("the conversation begins anew");
            }
            message => {
                let turn = match session.is_empty() {
                    true => format.first_turn(args.system.as_deref(), message),
                    false => format.next_turn(message),
                };
                let ids = tokenizer.encode(&turn)?;
                if ids.len() > session.capacity() - session.len() {
                    progress.note(&format!(
                        "this message does not fit: {} of {} tokens are used; /reset begins anew, --context gives more room",
                        session.len(),
                        session.capacity()
                    ));
                } else {
                    let mut stream = TextStream::after(tokenizer, &ids);
                    let mut on_token = |id| show(&stream.push(id)?);
                    let max_tokens = args.max_tokens.get();
                    let done = generate(&mut session, &mut sampler, &ids, max_tokens, &end_ids, &mut on_token)?;
                    show(&(stream.finish()? + "\n"))?;
                    if done.stop != Stop::EndToken {
                        progress.note("(cut short)");
                    }
                    progress.note(&done.describe());
                }
            }
        }
        show(invitation)?;
    }
    Ok(())
}

//! `experiments chat`.

use std::io::{BufRead, IsTerminal};
use std::num::NonZeroUsize;

use anyhow::{Context, ensure};
use awq_core::decode::{Sampler, Session};
use awq_core::load::Tokenizer;
use awq_core::open::OpenedModel;
use clap::Args;

use super::model::{DecodeArgs, ModelArgs, SamplingArgs, end_ids, show};
use crate::generate::chat::{ChatTemplate, Message};
use crate::generate::stream::TextStream;
use crate::generate::{Stop, generate};

/// Talk with a model through its own chat template. The conversation stays in the cache, so that only what is new is computed.
/// `/reset` begins anew, `/quit` or the end of the input ends it.
///
///   experiments chat SmolLM2-135M-Instruct.gguf --temperature 0.7 --top-p 0.9
///   printf 'Hello!\nAnd in French?\n' | experiments chat model-awq
///   echo '[{"role": "user", "content": "Hello"}]' | experiments chat model-awq --show-prompt
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    /// System message [default: the template's own, if it has one].
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print the prompt that the template makes of a conversation (JSON on standard input), and end.
    #[arg(long)]
    show_prompt: bool,
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
    if args.show_prompt {
        let opened = args.model.open()?.opened;
        return show(&prompt_of_messages(&template(&opened)?, args.system.as_deref())?);
    }
    let (opened, model) = args.model.load(&args.decode)?;
    let template = template(&opened)?;
    let tokenizer = &opened.tokenizer;
    let end_ids: Vec<u32> = end_ids(&opened).into_iter().chain(end_of_turn(&template, tokenizer)?).collect();
    let capacity = args.context.get().min(opened.config.longest_sequence());
    let mut session = Session::new(&model, capacity)?;
    let mut sampler = Sampler::new(sampling);
    let progress = args.model.machine.progress();
    let system = args.system.iter().map(|text| Message::new("system", text));
    let opening: Vec<Message> = system.collect();
    let (mut messages, mut held) = (opening.clone(), Vec::new());
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
                messages.clone_from(&opening);
                progress.note("the conversation begins anew");
            }
            message => {
                messages.push(Message::new("user", message));
                let ids = tokenizer.encode(&template.render(&messages, true)?)?;
                if ids.len() > session.capacity() {
                    messages.pop();
                    progress.note(&format!(
                        "this message does not fit: {} of {} tokens are used; /reset begins anew, --context gives more room",
                        session.len(),
                        session.capacity()
                    ));
                } else {
                    // A template may write earlier turns otherwise than they were (without a thought, say): what is the
                    // same stays in the cache, and at least one token is fed.
                    let same = ids.iter().zip(&held).take_while(|(new, old)| new == old).count();
                    let n_kept = same.min(ids.len() - 1);
                    session.truncate(n_kept);
                    let mut stream = TextStream::after(tokenizer, &ids);
                    let mut answer = String::new();
                    held = ids.clone();
                    let mut on_token = |id| {
                        let text = stream.push(id)?;
                        held.push(id);
                        answer.push_str(&text);
                        show(&text)
                    };
                    let max_tokens = args.max_tokens.get();
                    let done =
                        generate(&mut session, &mut sampler, &ids[n_kept..], max_tokens, &end_ids, &mut on_token)?;
                    let rest = stream.finish()?;
                    answer.push_str(&rest);
                    show(&(rest + "\n"))?;
                    // The last token was made and not fed.
                    held.truncate(session.len());
                    messages.push(Message::new("assistant", &answer));
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

fn template(opened: &OpenedModel) -> anyhow::Result<ChatTemplate> {
    ChatTemplate::new(opened.chat_template.as_deref(), opened.special_tokens.clone())
        .with_context(|| opened.tokenizer.file().display().to_string())
}

/// The prompt of a conversation that comes as JSON, behind the system message that is asked for.
fn prompt_of_messages(template: &ChatTemplate, system: Option<&str>) -> anyhow::Result<String> {
    let json = std::io::read_to_string(std::io::stdin()).context("standard input")?;
    let mut messages: Vec<Message> = serde_json::from_str(&json).context(
        "standard input: expected a conversation as JSON, e.g. [{\"role\": \"user\", \"content\": \"Hello\"}]",
    )?;
    if let Some(system) = system {
        ensure!(
            messages.iter().all(|message| message.role() != "system"),
            "--system: the conversation has a system message of its own; leave one of them out"
        );
        messages.insert(0, Message::new("system", system));
    }
    template.render(&messages, messages.last().is_none_or(|message| message.role() != "assistant"))
}

/// The token that the template puts behind an answer, if it is one token: models end answers with it, and some
/// configurations do not say so.
fn end_of_turn(template: &ChatTemplate, tokenizer: &Tokenizer) -> anyhow::Result<Option<u32>> {
    let ids = tokenizer.encode(template.after_answer().trim_start())?;
    Ok(ids.first().copied().filter(|&id| tokenizer.is_special(id)))
}

//! `experiments derive`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::print;
use crate::config::ExperimentSpec;
use crate::config::derive::{Setting, derive};

/// Print an experiment's file with some keys changed, to be kept as another one.
///
///   experiments derive configs/smollm2.toml --set grids.bits=[2] > configs/smollm2-2bit.toml
///   experiments derive configs/smollm2.toml --set methods[1].awq=llm-awq-bf16 --question "Does bf16 do?"
///
/// Comments and order stay. A file that extends another is printed whole, as `plan --resolved` prints it, so that it may lie anywhere;
/// paths of models and texts in it are still relative to where the program runs. What comes out is checked before it is printed.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct DeriveArgs {
    /// The experiment's TOML file.
    config: PathBuf,
    /// A key and its new value: grids.bits=[2]. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// The new question.
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
}

pub(super) fn run(args: &DeriveArgs) -> anyhow::Result<()> {
    let spec = ExperimentSpec::read(&args.config)?;
    let place = || args.config.display().to_string();
    let written = std::fs::read_to_string(&args.config).with_context(place)?;
    let extends = toml::from_str::<toml::Table>(&written).is_ok_and(|file| file.contains_key("extends"));
    let document = if extends { spec.to_toml()? } else { written };
    let question = args.question.as_ref().map(|question| format!("question={}", toml::Value::from(question.as_str())));
    let question = question.map(|setting| setting.parse::<Setting>()).transpose().map_err(anyhow::Error::msg)?;
    let settings: Vec<Setting> = args.set.iter().cloned().chain(question).collect();
    let derived = derive(&document, &settings).with_context(place)?;
    let file = tempfile::Builder::new().suffix(".toml").tempfile().context("cannot write a temporary file")?;
    std::fs::write(file.path(), &derived).context("cannot write a temporary file")?;
    ExperimentSpec::read(file.path()).map_err(|error| {
        anyhow::anyhow!("{}", format!("{error:#}").replace(&file.path().display().to_string(), "the derived file"))
    })?;
    print(&derived);
    Ok(())
}

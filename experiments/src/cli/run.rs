//! `experiments run`, which is what a file alone means.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use clap::Args;

use super::devices::{self, Shares};
use super::generated_code::GeneratedCodeArgs;
use super::{MachineArgs, write_report};
use crate::codes::CodeStore;
use crate::config::ExperimentSpec;
use crate::limit::MemoryLimit;
use crate::plan::Plan;
use crate::plan::select::{Selection, Shard};
use crate::progress::Progress;
use crate::record::RecordFile;
use crate::runner::exports::{self, CHECKPOINTS, Exported};
use crate::runner::{self, OnFailure, OnRecord, RunOptions, Summary, default_out};
use crate::session::Machine;
use crate::speed::SpeedOptions;
use crate::{device, speed};

/// What an experiment is run with.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The experiment's TOML file, e.g. configs/quickstart.toml.
    #[arg(required = true)]
    config: Option<PathBuf>,
    /// Folder for records, tables and figures [default: results/ and the name of the file; of a smoke run, with -first-N].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Score at most this many windows of each text: for a smoke run. Every table then says so.
    #[arg(long, value_name = "N")]
    max_windows: Option<NonZeroUsize>,
    /// Type of weights and activations on a GPU, in place of the file's: f32, f16 or bf16.
    #[arg(long, value_name = "P", value_parser = float_type)]
    precision: Option<FloatType>,
    /// Run only these cells: method=awq,bits=3. Keys: model, method, grid, bits, group, calibration, draw; full precision is
    /// method=fp. Given again, cells of either.
    #[arg(long, value_name = "KEY=VALUE,..")]
    only: Vec<Selection>,
    /// Run cells that are on record again, from their codes on; tables show the newest.
    #[arg(long)]
    pub(super) rerun: bool,
    /// Stop at the first cell that fails, in place of going on with the others.
    #[arg(long)]
    fail_fast: bool,
    /// Run one of n shares of the cells, in a folder of its own; `merge` joins them.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Deal the cells out to several devices of this machine, such as cuda:0,cuda:1: a process for each, which share out the CPU threads
    /// and the memory. Not with --fail-fast.
    #[arg(long, value_name = "D,D..", value_delimiter = ',', conflicts_with_all = ["device", "shard", "fail_fast"])]
    pub(super) devices: Vec<String>,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
    #[command(flatten)]
    code: GeneratedCodeArgs,
}

pub(super) fn float_type(name: &str) -> Result<FloatType, &'static str> {
    let known = [FloatType::F32, FloatType::F16, FloatType::Bf16];
    known.into_iter().find(|known| known.name() == name).ok_or("use f32, f16 or bf16")
}

impl RunArgs {
    /// Whether it is the whole experiment that runs.
    fn is_whole(&self) -> bool {
        self.only.is_empty() && self.shard.is_none()
    }

    /// What shares of it are run with, beside what each has for itself and what their experiment says.
    pub(super) fn of_shares(&self) -> Vec<OsString> {
        let only = self.only.iter().map(|selection| ("--only", selection.to_string().into()));
        let assets = self.machine.assets.iter().map(|folder| ("--assets", folder.into()));
        let named = only.chain(assets).flat_map(|(name, value): (_, OsString)| [name.into(), value]);
        let flags = [(self.rerun, "--rerun"), (self.code.is_given(), GeneratedCodeArgs::FLAG)];
        named.chain(flags.into_iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| flag.into())).collect()
    }

    fn plan(&self, spec: &ExperimentSpec) -> anyhow::Result<Plan> {
        let plan = Plan::new(spec).select(&self.only).map_err(|problem| anyhow::anyhow!("--only: {problem}"))?;
        Ok(match self.shard {
            Some(shard) => plan.shard(shard),
            None => plan,
        })
    }
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().context("no experiment given; try configs/quickstart.toml")?;
    let mut spec = ExperimentSpec::read(config)?;
    spec.limit_windows(args.max_windows);
    if let Some(precision) = args.precision {
        spec.set_precision(precision).with_context(|| format!("{}: --precision", config.display()))?;
    }
    let device = args.devices.first().or(args.machine.device.as_ref()).unwrap_or(&spec.run.device).clone();
    std::iter::once(&device).chain(&args.devices).try_for_each(|device| device::check(device, spec.run.precision))?;
    device::check_one_backend(&args.devices)?;
    let threads = device::set_threads(args.machine.threads.or(spec.run.threads).map(NonZeroUsize::get));
    let out = args.out.clone().unwrap_or_else(|| default_out(config, args.max_windows, args.shard));
    let progress = args.machine.progress();
    let plan = args.plan(&spec)?;
    let sandbox = args.code.sandbox(plan.cells(), &progress)?;
    progress.note(&format!(
        "{}\n{} cells, device {device}, {threads} threads, results in {}",
        plan.question,
        plan.cells().count(),
        out.display()
    ));
    if let Some(note) = device::note(&device)? {
        progress.note(&note);
    }
    let store = args.machine.store()?;
    let codes = match args.rerun {
        true => CodeStore::scratch(store.cache())?,
        false => CodeStore::from_env(store.cache(), &progress)?,
    };
    let mut records = runner::claim_folder(&out, &spec, args.max_windows)?;
    if devices::take_over(&out, &mut records)? {
        // Read again, with what was taken over.
        drop(records);
        records = RecordFile::open(&out)?;
    }
    exports::check(&plan, &store, &progress)
        .with_context(|| format!("{}: not a valid experiment", config.display()))?;
    let memory = MemoryLimit::new(args.machine.memory.as_ref().or(spec.run.memory.as_ref()));
    let (mut left, mut by_shares, began) = (plan.clone(), 0, Instant::now());
    if args.devices.len() > 1 && plan.n_units() > 1 {
        let shares = Shares { args, spec: &spec, threads, memory, out: &out };
        let finished;
        (records, finished) = shares.run(&plan, records, &progress)?;
        by_shares = finished.len();
        // The others are on record now.
        left = if args.rerun { left.without(&finished) } else { left };
    }
    let options = RunOptions {
        device: device.clone(),
        threads,
        codes,
        memory,
        on_record: if args.rerun { OnRecord::RunAgain } else { OnRecord::Skip },
        on_failure: if args.fail_fast { OnFailure::Stop } else { OnFailure::GoOn },
        sandbox,
    };
    let mut summary = runner::run(&left, &options, records, &store, &progress)?;
    summary.finished += by_shares;
    summary.resumed = summary.resumed.saturating_sub(if args.rerun { 0 } else { by_shares });
    if by_shares > 0 {
        devices::count_all_cells(&out, plan.cells().count(), &summary, began.elapsed());
    }
    let exported = (!summary.stopped).then(|| {
        let machine = Machine {
            device: &device,
            precision: spec.run.precision,
            codes: &options.codes,
            memory: options.memory,
            progress: &progress,
            sandbox: None,
        };
        exports::write((&plan, &Plan::new(&spec)), &out, machine, threads, &store)
    });
    // What was quantized again for them is beyond the limit of the store.
    options.codes.trim();
    if spec.speed.is_some() && !args.is_whole() {
        progress.note("[speed] is left out: it is timed when the whole experiment runs");
    }
    let timed = spec.speed.as_ref().filter(|_| args.is_whole() && !summary.stopped).map(|speed| {
        let options = SpeedOptions { device: &device, precision: spec.run.precision, threads };
        speed::run(speed, &spec.models, &options, RecordFile::open(&out)?, &store, &progress)
    });
    // Neither what cannot be timed nor a report that fails may hide the summary, or that cells failed.
    let report = write_report(&out, &progress);
    let code = finish(&summary, &progress);
    let exported = exported.transpose().with_context(|| format!("{}: [export]", out.display()))?;
    if let Some(exported) = exported {
        say_exported(&exported, &progress);
    }
    let n_not_timed = timed.transpose().with_context(|| format!("{}: [speed]", out.display()))?.unwrap_or(0);
    report.with_context(|| format!("{}: the records are kept, the report is not whole", out.display()))?;
    if n_not_timed > 0 {
        progress.note(&format!("{n_not_timed} comparisons of [speed] failed"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(code)
}

fn say_exported(exported: &Exported, progress: &Progress) {
    let Exported { written, kept, missing } = exported;
    if written + kept + missing > 0 {
        progress.note(&format!(
            "{written} checkpoints written to {CHECKPOINTS}/, {kept} were there, {missing} left out: their cells have not finished"
        ));
    }
}

fn finish(summary: &Summary, progress: &Progress) -> ExitCode {
    progress.note(&format!(
        "{} cells finished, {} were on record, {} failed",
        summary.finished, summary.resumed, summary.failed
    ));
    if summary.stopped {
        progress.note("stopped at the first cell that failed (--fail-fast); run again to go on");
    }
    if summary.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

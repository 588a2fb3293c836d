//! The command line.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::assets::progress::json_line;
use crate::assets::{AssetSettings, AssetStore};
use crate::codes::CodeStore;
use crate::config::{ExperimentSpec, Memory};
use crate::forecast::{Forecast, Rates};
use crate::limit::MemoryLimit;
use crate::plan::Plan;
use crate::progress::{Progress, Style};
use crate::record::blocks::FILE as BLOCKS;
use crate::record::{Compacted, Line as _, RecordFile, StoredRecord};
use crate::runner::{OnFailure, OnRecord, RunOptions};
use crate::speed::asked::{Place, asked, describe};
use crate::speed::record::SpeedLine;
use crate::{device, record, report, verify};

mod chat;
mod collect;
mod compare;
mod derive;
mod devices;
mod export;
mod generate;
mod generated_code;
mod inspect;
mod list;
mod merge;
mod model;
mod quantize;
mod run;
mod source;
mod status;
mod submit;

use self::generated_code::GeneratedCodeArgs;
pub use self::run::RunArgs;

/// Measure what weight quantization does to a language model: one TOML file asks one question, one command answers it
/// with a table, figures, and a record of everything that made them.
///
///   experiments configs/quickstart.toml        run it; run it again to resume or to see the table
///   experiments plan configs/llama7b.toml      what would run, how long, how much memory
///   experiments report results/quickstart      make tables and figures again from the records
///   experiments verify results/quickstart      run the cells again and compare codes and numbers
///   experiments compare results/a results/b    what differs between two runs, and what of it is beyond noise
///   experiments derive FILE --set KEY=VALUE    the same experiment with another setting, as a file
///   experiments submit FILE --profile PROFILE  run it on a SLURM cluster; `status` and `collect` follow
///
///   experiments quantize bundled --method awq --bits 4 --group-size 128 --out DIR   write a packed checkpoint
///   experiments generate DIR --prompt "Once"                                        continue a text
///   experiments inspect DIR                                                         what a model is, what would be quantized
///   experiments list methods                                                        what there is to choose from
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, verbatim_doc_comment)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an experiment (the same as giving its file alone).
    Run(RunArgs),
    /// Print an experiment's cells, their cost and memory need; of models and texts at hand by method, once this machine is measured.
    Plan {
        /// The experiment's TOML file.
        config: PathBuf,
        /// Device in place of the file's, as of `run`.
        #[arg(long, value_name = "D", conflicts_with = "resolved")]
        device: Option<String>,
        /// Measure how fast this machine is, which takes half a minute on two cores, and keep that for later plans.
        #[arg(long, conflicts_with = "resolved")]
        measure: bool,
        /// CPU threads that the experiment will run on [default: the file's, or all cores].
        #[arg(long, value_name = "N", conflicts_with = "resolved")]
        threads: Option<NonZeroUsize>,
        /// Print the experiment as one flat file in place of its cells: what it extends, presets and published tables spelled out.
        #[arg(long)]
        resolved: bool,
    },
    /// Make tables and figures again from the records of a finished or interrupted experiment.
    Report {
        /// The folder that the experiment wrote.
        folder: PathBuf,
    },
    /// Move the logs of blocks in records of earlier programs to blocks.jsonl.zst; all else in the records stays as it is.
    Compact {
        /// The folder that the experiment wrote.
        folder: PathBuf,
    },
    /// Run the cells of a finished experiment again and compare codes' hashes and numbers with the records.
    Verify {
        /// The folder that the experiment wrote.
        folder: PathBuf,
        #[command(flatten)]
        machine: MachineArgs,
        #[command(flatten)]
        code: GeneratedCodeArgs,
    },
    Compare(compare::CompareArgs),
    Merge(merge::MergeArgs),
    Submit(submit::SubmitArgs),
    Status(status::StatusArgs),
    Collect(collect::CollectArgs),
    Derive(derive::DeriveArgs),
    Quantize(quantize::QuantizeArgs),
    Export(export::ExportArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Inspect(inspect::InspectArgs),
    List(list::ListArgs),
    /// Print the JSON Schema of experiment files, for completion in an editor.
    Schema {
        /// Of which files.
        #[arg(value_enum, default_value_t = SchemaOf::Experiment)]
        of: SchemaOf,
    },
    /// Train the bundled model again (about 25 minutes on two cores).
    #[cfg(feature = "train")]
    TrainBundled {
        /// Where its files go.
        #[arg(long, default_value = "results/bundled-model")]
        out: PathBuf,
    },
}

/// Files that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SchemaOf {
    /// Experiments.
    Experiment,
    /// What a SLURM cluster gives a task, for `submit`.
    SlurmProfile,
}

/// The machine's side: never changes a number.
#[derive(Args, Debug)]
struct MachineArgs {
    /// Device in place of the file's (of quantization; decoding runs on the CPU): flex, ndarray, cuda, cuda:N or wgpu.
    #[arg(long, value_name = "D")]
    device: Option<String>,
    /// CPU threads [default: all cores].
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Memory that quantizing may take, such as 8G [default: nine tenths of what is free]. Changes no result.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Folder that is searched for assets by sha256 before any network; may be given more than once.
    #[arg(long, value_name = "DIR")]
    assets: Vec<PathBuf>,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// Form of what is said on standard error: text, with bars on a terminal, or a JSON object a line.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
}

/// Form of the lines on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

impl LogFormat {
    /// The last line of a command that failed.
    pub fn error(self, error: &anyhow::Error) -> String {
        match self {
            Self::Text => format!("error: {error:#}"),
            Self::Json => json_line("error", &format!("{error:#}")),
        }
    }
}

impl Cli {
    /// The form that the command asks for.
    pub fn log(&self) -> LogFormat {
        let machine = match &self.command {
            None => &self.run.machine,
            Some(Command::Run(args)) => &args.machine,
            Some(Command::Verify { machine, .. }) => machine,
            Some(Command::Quantize(args)) => &args.model.machine,
            Some(Command::Export(args)) => &args.model.machine,
            Some(Command::Generate(args)) => &args.model.machine,
            Some(Command::Chat(args)) => &args.model.machine,
            Some(_) => return LogFormat::Text,
        };
        machine.log
    }
}

impl MachineArgs {
    fn style(&self) -> Style {
        match (self.quiet, self.log) {
            (false, LogFormat::Json) => Style::Json,
            _ => Style::detect(self.quiet),
        }
    }

    fn store(&self) -> anyhow::Result<AssetStore> {
        AssetStore::new(AssetSettings::from_env(&self.assets, self.style())?)
    }

    fn progress(&self) -> Progress {
        Progress::new(self.style())
    }
}

/// Does what the command line asks; the exit code is a failure where a cell failed or a check did not hold.
///
/// # Errors
/// Anything that stops the whole command.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Plan { config, resolved: true, .. }) => {
            print(&ExperimentSpec::read(&config)?.to_toml()?);
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Plan { config, device, measure, threads, resolved: false }) => {
            let mut spec = ExperimentSpec::read(&config)?;
            spec.run.device = device.unwrap_or(spec.run.device);
            device::check_name(&spec.run.device, spec.run.precision)?;
            // A plan for another machine is a plan, too.
            if let Err(error) = device::check_built(&spec.run.device) {
                Progress::new(Style::detect(false)).note(&format!("cannot run here: {error}"));
            }
            let threads = device::set_threads(threads.or(spec.run.threads).map(NonZeroUsize::get));
            let plan = Plan::new(&spec);
            print(&plan.describe());
            print(&forecast_of(&plan, &spec.run.device, threads, measure)?);
            if let Some(speed) = &spec.speed {
                let place = Place::of(&spec.run.device, spec.run.precision);
                print(&describe(speed, &spec.models, threads, &place));
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Report { folder }) => {
            let progress = Progress::new(Style::detect(false));
            devices::left_out(&folder).iter().for_each(|note| progress.note(note));
            write_report(&folder, &progress)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Compact { folder }) => {
            compact(&folder)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Verify { folder, machine, code }) => verify_experiment(&folder, &machine, &code),
        Some(Command::Compare(args)) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Merge(args)) => merge::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Submit(args)) => submit::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Status(args)) => status::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Collect(args)) => collect::run(&args),
        Some(Command::Derive(args)) => derive::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Quantize(args)) => quantize::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Export(args)) => export::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Generate(args)) => generate::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Chat(args)) => chat::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::List(args)) => list::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Schema { of }) => {
            print(&match of {
                SchemaOf::Experiment => crate::config::json_schema(),
                SchemaOf::SlurmProfile => crate::config::profile::profile_schema(),
            });
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "train")]
        Some(Command::TrainBundled { out }) => {
            train_bundled(out)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What a plan takes on this machine; nothing where its speed is not known and not asked for.
fn forecast_of(plan: &Plan, device: &str, threads: usize, measure: bool) -> anyhow::Result<String> {
    let settings = match AssetSettings::from_env(&[], Style::detect(false)) {
        Ok(settings) => AssetSettings { offline: true, ..settings },
        // A plan needs no folder.
        Err(_) if !measure => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let cache = settings.cache.clone();
    let rates = match measure {
        true => Some(Rates::measure(&cache, device, threads, &Progress::new(Style::detect(false)))?),
        false => Rates::kept(&cache, device, threads),
    };
    if plan.cells().next().is_none() {
        return Ok(String::new());
    }
    Ok(match rates {
        Some(rates) => format!("\n{}", Forecast::of(plan, &rates, &AssetStore::new(settings)?).describe()),
        None => "Measure this machine with `experiments plan --measure` for times that hold here.\n".to_owned(),
    })
}

/// The experiment that `folder` was written by.
fn experiment_of(folder: &Path) -> anyhow::Result<ExperimentSpec> {
    let path = folder.join(record::RESOLVED_CONFIG);
    ensure!(
        path.is_file(),
        "{}: no {} in it; give a folder that an experiment wrote",
        folder.display(),
        record::RESOLVED_CONFIG
    );
    ExperimentSpec::read(&path)
}

/// Writes the report of a folder and prints its table.
fn write_report(folder: &Path, progress: &Progress) -> anyhow::Result<()> {
    let spec = experiment_of(folder)?;
    let plan = Plan::new(&spec);
    let (records, mut notes): (Vec<StoredRecord>, _) = record::read_records(folder)?;
    let speed = match &spec.speed {
        Some(speed) if folder.join(SpeedLine::FILE).is_file() => {
            let (lines, of_speed) = record::read_records(folder)?;
            notes.extend(of_speed);
            asked(speed, &spec.models, &lines)
        }
        // Of parts and shares alone.
        Some(_) => {
            notes.push(format!("{}: nothing of [speed] is timed yet; the whole experiment times it", folder.display()));
            Vec::new()
        }
        None => Vec::new(),
    };
    notes.extend(report::doubts::numbers(folder, &plan, &records));
    notes.extend(report::doubts::other_cells(folder, &plan, &records));
    notes.iter().for_each(|note| progress.note(note));
    let shown = report::with_report(&plan, &records, &speed, |report| {
        report.write(folder)?;
        Ok(report.terminal())
    })?;
    print(&shown);
    Ok(())
}

/// Moves logs of blocks out of old records, and says what became smaller.
fn compact(folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(StoredRecord::FILE);
    ensure!(path.is_file(), "{}: no such file; give a folder that an experiment wrote", path.display());
    let mut file = RecordFile::<StoredRecord>::open(folder)?;
    let Compacted { n_moved, n_left } = file.compact()?;
    let left = if n_left > 0 {
        format!("; {n_left} record(s) spell them otherwise than this program and are left as they are")
    } else {
        String::new()
    };
    print(&format!("{}: the logs of blocks of {n_moved} record(s) are in {BLOCKS} now{left}\n", path.display()));
    Ok(())
}

fn verify_experiment(folder: &Path, machine: &MachineArgs, code: &GeneratedCodeArgs) -> anyhow::Result<ExitCode> {
    let spec = experiment_of(folder)?;
    let (records, notes) = record::read_records(folder)?;
    notes.iter().chain(&devices::left_out(folder)).for_each(|note| machine.progress().note(note));
    let plan = Plan::new(&spec);
    let finished = verify::finished(&plan, &records);
    let Some(first) = finished.first() else {
        bail!("{}: no finished cell to verify; run the experiment first", folder.display());
    };
    // Where the records were made, which `--device` may have chosen then: another backend rounds sums otherwise.
    let device = machine.device.clone().unwrap_or_else(|| first.record.provenance.device.clone());
    let sandbox = code.sandbox(finished.iter().map(|finished| finished.cell), &machine.progress())?;
    device::check(&device, spec.run.precision)?;
    let threads = device::set_threads(machine.threads.or(spec.run.threads).map(std::num::NonZero::get));
    // What was quantized before would be compared with itself.
    let store = machine.store()?;
    let codes = CodeStore::scratch(store.cache())?;
    let (on_record, on_failure) = (OnRecord::default(), OnFailure::default());
    let memory = MemoryLimit::new(machine.memory.as_ref().or(spec.run.memory.as_ref()));
    let options = RunOptions { device, threads, codes, memory, on_record, on_failure, sandbox };
    let verdicts = verify::verify(&plan, &finished, &options, &store, &machine.progress())?;
    print(&verify::table(&verdicts));
    let all_same = verdicts.iter().all(|verdict| verdict.same());
    Ok(if all_same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(feature = "train")]
fn train_bundled(out: PathBuf) -> anyhow::Result<()> {
    let options = crate::bundled::train::TrainOptions::bundled(out);
    let report = crate::bundled::train::train(&options, &mut |step| eprintln!("{step:?}"))?;
    eprintln!("{report:?}");
    Ok(())
}

/// What a command answers goes to standard output; a closed pipe is not an error worth a panic.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

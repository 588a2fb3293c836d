//! `experiments submit`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use awq_core::arithmetic::FloatType;
use clap::Args;

use super::generated_code::GeneratedCodeArgs;
use super::run::float_type;
use super::{experiment_of, print};
use crate::assets::AssetSettings;
use crate::cluster::script::Script;
use crate::cluster::status::Status;
use crate::cluster::{Job, Shares, slurm};
use crate::compare::settings_that_differ;
use crate::config::ExperimentSpec;
use crate::config::profile::SlurmProfile;
use crate::device;
use crate::plan::Plan;
use crate::progress::{Progress, Style};
use crate::record::{RESOLVED_CONFIG, release_hold};
use crate::runner::{claim_folder, default_out};

/// Run an experiment on a SLURM cluster: its cells are dealt out to the tasks of one job array, each a share as of `run --shard`, and
/// cells that share work stay together.
///
///   experiments submit FILE --profile my-cluster.toml --dry-run   the script; nothing is submitted
///   experiments submit FILE --profile my-cluster.toml
///   experiments status results/NAME                               how far each share is
///   experiments collect results/NAME                              tables of what is there
///
/// The profile says what a task gets: cores, memory, time, GPUs, lines of setup; configs/profiles/slurm.toml is one to copy. The
/// experiment is written down as it is now; editing its file afterwards changes nothing. A task that is preempted, or whose node is
/// lost, runs again and goes on behind its last stored block. Where tasks failed or ran out of time, the same command submits the
/// shares that are not finished, once the job has ended. Folder, program and cache must lie where every node sees them.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct SubmitArgs {
    /// The experiment's TOML file, e.g. configs/quickstart.toml.
    config: PathBuf,
    /// What each task gets, as a TOML file; configs/profiles/slurm.toml is one to begin with.
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// Folder for the shares, and for records, tables and figures of the whole [default: as of `run`].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the script, and submit and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Score at most this many windows of each text: for a smoke run. Every table then says so.
    #[arg(long, value_name = "N")]
    max_windows: Option<NonZeroUsize>,
    /// Device in place of the file's.
    #[arg(long, value_name = "D")]
    device: Option<String>,
    /// Type of weights and activations on a GPU, in place of the file's: f32, f16 or bf16.
    #[arg(long, value_name = "P", value_parser = float_type)]
    precision: Option<FloatType>,
    /// Folder that is searched for assets by sha256 before any network; may be given more than once.
    #[arg(long, value_name = "DIR")]
    assets: Vec<PathBuf>,
    #[command(flatten)]
    code: GeneratedCodeArgs,
}

pub(super) fn run(args: &SubmitArgs) -> anyhow::Result<()> {
    let progress = Progress::new(Style::detect(false));
    let profile = SlurmProfile::read(&args.profile)?;
    let mut spec = ExperimentSpec::read(&args.config)?;
    spec.limit_windows(args.max_windows);
    if let Some(precision) = args.precision {
        spec.set_precision(precision).with_context(|| format!("{}: --precision", args.config.display()))?;
    }
    let device = args.device.clone().unwrap_or_else(|| spec.run.device.clone());
    check_device(&device, &spec, &profile, &args.profile)?;
    let plan = Plan::new(&spec);
    ensure!(
        plan.n_units() > 0,
        "{}: has no cells, only things to time, which are timed one after the other; use `experiments run` in a job of your own",
        args.config.display()
    );
    args.code.check_consent(plan.cells())?;
    if !args.dry_run {
        slurm::check()?;
    }

    let out = args.out.clone().unwrap_or_else(|| default_out(&args.config, args.max_windows, None));
    let absolute = std::path::absolute(&out).with_context(|| format!("{}: no such place", out.display()))?;
    check_same(&out, &spec)?;
    // Held from before SLURM is asked until the job is noted: two commands at once make no two jobs.
    let _held = (!args.dry_run).then(|| claim_folder(&out, &spec, args.max_windows)).transpose()?;
    let n_shares = profile.max_tasks.get().min(plan.n_units());
    let mut shares = Shares::open(&out)?.unwrap_or_else(|| Shares::new(&absolute, n_shares));
    let mut status = Status::of(&shares, &plan)?;
    if !args.dry_run {
        let unknown = "what is queued already is not known, and nothing was submitted; try again when SLURM answers";
        status = status.with_tasks(slurm::queue(&shares.submitted.job_name).context(unknown)?);
        check_ended(&status, &out)?;
    }
    let unfinished = status.unfinished();
    if unfinished.is_empty() {
        print(&format!("{}: every cell has its numbers; `experiments collect {0}` makes tables\n", out.display()));
        return Ok(());
    }
    let script = script(args, &profile, &shares, &unfinished, &device)?;
    note_need(&plan, &shares, &profile, &progress);
    if spec.speed.is_some() {
        progress.note("[speed] is left out: it is timed when the whole experiment runs in one process");
    }
    if args.dry_run {
        print(&script);
        return Ok(());
    }

    shares.write(&spec, &script)?;
    for &index in &unfinished {
        release_hold(&shares.folder_of(shares.shard(index)), &shares.job_ids())?;
    }
    let id = slurm::submit(&shares.script_file())?;
    let n_cells: usize = status.shares.iter().map(|share| share.cells.n_cells - share.cells.n_done).sum();
    let n_tasks = unfinished.len();
    shares.add_job(Job { id, shares: unfinished, unix_time: chrono::Utc::now().timestamp().unsigned_abs() })?;
    print(&format!(
        "job {id}: {n_tasks} of {} shares, {n_cells} cells to do\n\
         `experiments status {out}` shows how far it is, `experiments collect {out}` makes tables of what is there\n",
        shares.submitted.n_shares,
        out = out.display(),
    ));
    Ok(())
}

/// A device that tasks will have: known, built in, and with GPUs where it is one.
fn check_device(device: &str, spec: &ExperimentSpec, profile: &SlurmProfile, path: &Path) -> anyhow::Result<()> {
    device::check_name(device, spec.run.precision)?;
    device::check_built(device)?;
    let is_gpu = !device::is_cpu(device);
    match (is_gpu, profile.has_gpus()) {
        (true, false) => bail!("device `{device}`, and {} gives tasks no GPU; set `gpus = 1` in it", path.display()),
        (false, true) => bail!(
            "device `{device}`, and {} gives tasks GPUs that they would not use; leave `gpus` out of it, or give --device cuda",
            path.display()
        ),
        _ => Ok(()),
    }
}

/// A folder that holds nothing, or this experiment.
fn check_same(out: &Path, spec: &ExperimentSpec) -> anyhow::Result<()> {
    let shown = match Shares::open(out)? {
        Some(shares) => Some(ExperimentSpec::read(&shares.experiment_file())?),
        None => out.join(RESOLVED_CONFIG).is_file().then(|| experiment_of(out)).transpose()?,
    };
    let keys = shown.map_or_else(Vec::new, |shown| settings_that_differ(&shown, spec));
    ensure!(
        keys.is_empty(),
        "{}: holds another experiment: {} differ; choose another folder with --out",
        out.display(),
        keys.join(", ")
    );
    Ok(())
}

/// No task of it waits or runs.
fn check_ended(status: &Status, out: &Path) -> anyhow::Result<()> {
    let alive: Vec<String> = status.alive().map(|task| format!("{} ({})", task.share, task.state)).collect();
    let Some(task) = status.alive().next() else { return Ok(()) };
    bail!(
        "{}: job {} is not at its end: shares {}; wait for it (`experiments status {0}`), or end it with `scancel {1}`",
        out.display(),
        task.job,
        alive.join(", ")
    )
}

fn script(
    args: &SubmitArgs,
    profile: &SlurmProfile,
    shares: &Shares,
    unfinished: &[usize],
    device: &str,
) -> anyhow::Result<String> {
    let settings = AssetSettings::from_env(&args.assets, Style::Quiet)?;
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("{}: no such place", path.display()));
    let cache = absolute(profile.cache.as_deref().unwrap_or(&settings.cache))?;
    let hub = absolute(&settings.hub.cache)?;
    let mut options = vec!["--device".to_owned(), device.to_owned()];
    for folder in &settings.folders {
        let folder = absolute(folder)?;
        let text = folder.to_str().with_context(|| format!("{}: not UTF-8; rename it", folder.display()))?;
        options.extend(["--assets".to_owned(), text.to_owned()]);
    }
    options.extend(args.code.is_given().then(|| GeneratedCodeArgs::FLAG.to_owned()));
    let script = Script {
        profile,
        job_name: &shares.submitted.job_name,
        shares: unfinished,
        n_shares: shares.submitted.n_shares,
        folder: shares.folder(),
        experiment: &shares.experiment_file(),
        program: &std::env::current_exe().context("this program does not know where it lies")?,
        place: &std::env::current_dir().context("the current folder is gone")?,
        environment: &[("AWQ_CACHE", cache.as_path()), ("HF_HUB_CACHE", hub.as_path())],
        options: &options,
    };
    script.text()
}

/// Says so where a task is likely to need more than it gets.
fn note_need(plan: &Plan, shares: &Shares, profile: &SlurmProfile, progress: &Progress) {
    let needs: Vec<_> = shares.all().filter_map(|shard| plan.clone().shard(shard).need()).collect();
    let longest = needs.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    if let Some(need) = longest.filter(|need| need.seconds > profile.time.seconds()) {
        progress.note(&format!(
            "the largest share takes {} by the name of its model, and `time` is {}: what runs out of time goes on when submitted again",
            need.time(),
            profile.time.get()
        ));
    }
    let largest = needs.iter().max_by(|a, b| a.bytes.total_cmp(&b.bytes));
    if let Some(need) = largest.filter(|need| need.bytes > profile.memory.bytes()) {
        progress.note(&format!(
            "a share needs {} by the name of its model, and `memory` is {}: its tasks may be killed",
            need.memory(),
            profile.memory.get()
        ));
    }
}

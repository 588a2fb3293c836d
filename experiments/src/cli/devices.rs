//! `run --devices`: an experiment dealt out to several devices of one machine, a process for each. Processes share no memory, so that
//! one that is out of memory, or whose driver fails, takes no other with it.
//!
//! ```text
//! DIR/records.jsonl, tables           the whole
//! DIR/devices/experiment.toml         what the shares run: the experiment without what is kept and timed once
//! DIR/devices/1-of-2                  a share as `run --shard 1/2` leaves it; gone when all are done, or when the next run has taken it over
//! DIR/devices/1-of-2.log              what its process has printed
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::run::RunArgs;
use crate::cluster::status::Counts;
use crate::config::ExperimentSpec;
use crate::files::write_durably;
use crate::limit::MemoryLimit;
use crate::plan::select::Shard;
use crate::plan::{CellId, Plan};
use crate::progress::sweep::{PROGRESS_FILE, SweepState};
use crate::progress::{Bar, Progress};
use crate::provenance::machine;
use crate::record::{Line as _, Outcome, RESOLVED_CONFIG, RecordFile, StoredRecord, read_records};
use crate::runner::{Summary, claim_folder};

/// The folder of the shares, in that of the whole.
const FOLDER: &str = "devices";

/// Between two looks at the processes.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The shares of an experiment.
pub(super) struct Shares<'a> {
    /// What the whole is run with.
    pub(super) args: &'a RunArgs,
    /// The experiment, as it was read and limited.
    pub(super) spec: &'a ExperimentSpec,
    /// CPU threads of all.
    pub(super) threads: usize,
    /// Memory of all.
    pub(super) memory: MemoryLimit,
    /// The folder of the whole.
    pub(super) out: &'a Path,
}

/// A share and its process.
struct Running {
    device: String,
    shard: Shard,
    n_cells: usize,
    /// Records that were there before it began.
    n_before: usize,
    folder: PathBuf,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Drop for Running {
    /// A run that ends before its shares takes them along: they go on from their records and stored blocks.
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Takes over what shares of a run that was killed have measured, and removes their folders. Says whether there were any.
///
/// # Errors
/// A share that still runs, or a folder that cannot be read or removed.
pub(super) fn take_over(out: &Path, records: &mut RecordFile<StoredRecord>) -> anyhow::Result<bool> {
    let folder = out.join(FOLDER);
    if !folder.is_dir() {
        return Ok(false);
    }
    let place = || format!("{}: cannot take over what an earlier run with --devices has left there", folder.display());
    for entry in fs::read_dir(&folder).with_context(place)? {
        let share = entry.with_context(place)?.path();
        if share.join(StoredRecord::FILE).is_file() {
            // Refused while its process goes on.
            let held = RecordFile::<StoredRecord>::open(&share).with_context(place)?;
            records.merge(&share)?;
            drop(held);
        }
    }
    fs::remove_dir_all(&folder).with_context(place)?;
    Ok(true)
}

/// How many cells only shares have on record, in words; nothing where there are none. What cannot be read is for those who take it over.
pub(super) fn left_out(out: &Path) -> Option<String> {
    let finished = |folder: &Path| -> BTreeSet<CellId> {
        let (records, _) = read_records::<StoredRecord>(folder).unwrap_or_default();
        let done = records.into_iter().filter(|record| matches!(record.outcome, Outcome::Done(_)));
        done.map(|record| record.cell_id).collect()
    };
    let folder = out.join(FOLDER);
    let shares = fs::read_dir(&folder).into_iter().flatten().flatten();
    let of_shares: BTreeSet<CellId> = shares.flat_map(|share| finished(&share.path())).collect();
    let n = of_shares.difference(&finished(out)).count();
    (n > 0).then(|| {
        format!(
            "{n} cell(s) that shares in {} have finished are not counted here; run the experiment again, which takes them over",
            folder.display()
        )
    })
}

impl Shares<'_> {
    /// Runs the cells of `plan` that `records` do not have, each share on its device, and takes over what they measured. The records
    /// with that, and the cells that were finished; what a share left undone is for the caller.
    ///
    /// # Errors
    /// A folder that cannot be written, or a process that cannot be started.
    pub(super) fn run(
        &self,
        plan: &Plan,
        mut records: RecordFile<StoredRecord>,
        progress: &Progress,
    ) -> anyhow::Result<(RecordFile<StoredRecord>, BTreeSet<CellId>)> {
        let place = || format!("{}: cannot write", self.folder().display());
        fs::create_dir_all(self.folder()).with_context(place)?;
        // What is kept of models, and timed, is for the whole.
        let of_shares = ExperimentSpec { export: None, speed: None, ..self.spec.clone() };
        write_durably(&self.experiment(), of_shares.to_toml()?.as_bytes()).with_context(place)?;
        let n = self.args.devices.len().min(plan.n_units());
        if n < self.args.devices.len() {
            progress.note(&format!("the cells make {n} shares, so that {n} of the devices have work"));
        }
        let mut running = Vec::new();
        for (index, device) in (1..=n).zip(&self.args.devices) {
            let shard = Shard { index, n };
            running.extend(self.start(&plan.clone().shard(shard), shard, device, &of_shares, progress)?);
        }
        if !running.is_empty() {
            let n_cells: usize = running.iter().map(|share| share.n_cells).sum();
            let bar = progress.bar(&format!("{} shares of the cells", running.len()), n_cells as u64);
            wait(&mut running, &bar, &self.out.join(PROGRESS_FILE))?;
            bar.finish();
        }
        let (mut finished, mut all_done) = (BTreeSet::new(), true);
        for share in &running {
            records.merge(&share.folder)?;
            let (of_share, _): (Vec<StoredRecord>, _) = read_records(&share.folder)?;
            let done = of_share.iter().skip(share.n_before);
            let done = done.filter(|record| matches!(record.outcome, Outcome::Done(_)));
            finished.extend(done.map(|record| record.cell_id.clone()));
            let Some(status) = share.ended.filter(|status| !status.success()) else { continue };
            all_done = false;
            progress.note(&format!(
                "share {} on {} did not finish its cells ({status}); what it left undone is tried once more here; see {}",
                share.shard,
                share.device,
                share.log.display()
            ));
        }
        if all_done {
            let folder = self.folder();
            fs::remove_dir_all(&folder).with_context(|| format!("{}: cannot remove", folder.display()))?;
        }
        // Read again, with what was taken over.
        drop(records);
        Ok((RecordFile::open(self.out)?, finished))
    }

    fn folder(&self) -> PathBuf {
        self.out.join(FOLDER)
    }

    fn experiment(&self) -> PathBuf {
        self.folder().join(RESOLVED_CONFIG)
    }

    /// Starts a share; none where all of its cells are on record.
    fn start(
        &self,
        plan: &Plan,
        shard: Shard,
        device: &str,
        spec: &ExperimentSpec,
        progress: &Progress,
    ) -> anyhow::Result<Option<Running>> {
        let name = format!("{}-of-{}", shard.index, shard.n);
        let (folder, log) = (self.folder().join(&name), self.folder().join(name + ".log"));
        let mut records = claim_folder(&folder, spec, None)?;
        if !self.args.rerun {
            // What is on record in the whole is on record in each share.
            records.merge(self.out)?;
        }
        drop(records);
        let (before, _): (Vec<StoredRecord>, _) = read_records(&folder)?;
        if Counts::of(plan, &[&before]).is_finished() {
            return Ok(None);
        }
        let cannot_write = || format!("{}: cannot write", log.display());
        let output = File::create(&log).with_context(cannot_write)?;
        let mut command = Command::new(std::env::current_exe().context("this program does not know where it lies")?);
        command.args(self.arguments(shard, device, &folder)).stdin(Stdio::null());
        // Records name what was asked for.
        command.env(machine::WHOLE_COMMAND, serde_json::to_string(&machine::command())?);
        command.stdout(output.try_clone().with_context(cannot_write)?).stderr(output);
        #[cfg(target_os = "linux")]
        end_with_this_process(&mut command);
        let child = command.spawn().with_context(|| format!("share {shard}: its process cannot be started"))?;
        let n_cells = plan.cells().count();
        progress.note(&format!(
            "{device}: share {shard}, {n_cells} cell(s), in {} MiB; {} has what it says while it runs",
            self.mib(shard),
            log.display()
        ));
        let (device, n_before) = (device.to_owned(), before.len());
        Ok(Some(Running { device, shard, n_cells, n_before, folder, log, child, ended: None }))
    }

    /// Memory of a share.
    fn mib(&self, shard: Shard) -> u64 {
        ((self.memory.bytes / shard.n as u64) >> 20).clamp(1, 999_999_999)
    }

    fn arguments(&self, shard: Shard, device: &str, folder: &Path) -> Vec<OsString> {
        let threads = (self.threads / shard.n).max(1);
        let mut arguments: Vec<OsString> = vec!["run".into(), self.experiment().into(), "--out".into(), folder.into()];
        let named = [
            ("--shard", shard.to_string()),
            ("--device", device.to_owned()),
            ("--threads", threads.to_string()),
            ("--memory", format!("{}M", self.mib(shard))),
        ];
        arguments.extend(named.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
        arguments.extend(self.args.of_shares());
        arguments
    }
}

/// Has the system end a process when the one that starts it ends, however that comes about: its folder is free for the next run then.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "what runs between fork and exec must not allocate; this is one system call")]
fn end_with_this_process(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;

    let end = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
    // SAFETY: one system call, which neither allocates nor takes a lock.
    unsafe { command.pre_exec(end) };
}

/// Waits for all processes, whose states say how many cells are over; `file` has all of them together.
fn wait(running: &mut [Running], bar: &Bar, file: &Path) -> anyhow::Result<()> {
    let (began, mut n_shown) = (Instant::now(), 0);
    loop {
        for share in running.iter_mut().filter(|share| share.ended.is_none()) {
            share.ended = share.child.try_wait().context("a share cannot be waited for")?;
        }
        let states: Vec<SweepState> = running.iter().filter_map(|share| state_of(&share.folder)).collect();
        let of_all = SweepState::of_all(&states, began.elapsed());
        let n_over = of_all.n_on_record + of_all.n_finished + of_all.n_failed;
        bar.advance(n_over.saturating_sub(n_shown) as u64);
        n_shown = n_shown.max(n_over);
        of_all.write(file);
        if running.iter().all(|share| share.ended.is_some()) {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Has the state of the run count all cells, of which its own part knows those alone that shares have left.
pub(super) fn count_all_cells(out: &Path, n_cells: usize, summary: &Summary, elapsed: Duration) {
    let Some(state) = state_of(out) else { return };
    let &Summary { finished, resumed, failed, .. } = summary;
    let counts = SweepState { n_cells, n_finished: finished, n_on_record: resumed, n_failed: failed, ..state };
    SweepState { elapsed_seconds: elapsed.as_secs_f64(), ..counts }.write(&out.join(PROGRESS_FILE));
}

/// What a share says of itself; nothing before its first word.
fn state_of(folder: &Path) -> Option<SweepState> {
    serde_json::from_slice(&fs::read(folder.join(PROGRESS_FILE)).ok()?).ok()
}

//! `run --devices`: an experiment dealt out to several devices of one machine, a process for each. Processes share no memory, so that
//! one that is out of memory, or whose driver fails, takes no other with it.
//!
//! ```text
//! DIR/records.jsonl, tables           the whole
//! DIR/devices/1-of-2                  a share as `run --shard 1/2` leaves it; gone when all are done
//! DIR/devices/1-of-2.log              what its process has printed
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::run::RunArgs;
use crate::config::ExperimentSpec;
use crate::plan::Plan;
use crate::plan::select::Shard;
use crate::progress::sweep::{PROGRESS_FILE, SweepState};
use crate::progress::{Bar, Progress};
use crate::record::{RecordFile, StoredRecord};
use crate::runner::claim_folder;
use crate::runner::exports::CHECKPOINTS;

/// Between two looks at the processes.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The shares of an experiment, in the folder of the whole.
pub(super) struct Shares<'a> {
    /// What the whole is run with.
    pub(super) args: &'a RunArgs,
    /// The experiment.
    pub(super) config: &'a Path,
    /// As it was read and limited.
    pub(super) spec: &'a ExperimentSpec,
    /// CPU threads of all.
    pub(super) threads: usize,
    /// The folder of the whole.
    pub(super) out: &'a Path,
}

/// A share and its process.
struct Running {
    device: String,
    shard: Shard,
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

impl Shares<'_> {
    /// Runs the cells of `plan` that `records` do not have, each share on its device, and takes over what they measured: the records
    /// with that. What a share did not finish is left to the caller.
    ///
    /// # Errors
    /// A folder that cannot be written, or a process that cannot be started.
    pub(super) fn run(
        &self,
        plan: &Plan,
        mut records: RecordFile<StoredRecord>,
        progress: &Progress,
    ) -> anyhow::Result<RecordFile<StoredRecord>> {
        let n = self.args.devices.len().min(plan.n_units());
        let shards = (1..=n).map(|index| Shard { index, n });
        let mut running = Vec::new();
        for (shard, device) in shards.zip(&self.args.devices) {
            let started = self.start(plan.clone().shard(shard).cells().count(), shard, device, progress)?;
            running.push(started);
        }
        let bar = progress.bar(&format!("{n} shares of the cells"), plan.cells().count() as u64);
        wait(&mut running, &bar)?;
        bar.finish();
        let mut all_done = true;
        for share in &running {
            let status = share.ended.context("a share is over")?;
            records.merge(&share.folder)?;
            take_checkpoints(&share.folder, self.out)?;
            if !status.success() {
                all_done = false;
                progress.note(&format!(
                    "share {} on {} did not finish all of its cells ({status}); they are tried once more below; see {}",
                    share.shard,
                    share.device,
                    share.log.display()
                ));
            }
        }
        if all_done {
            let folder = self.folder();
            fs::remove_dir_all(&folder).with_context(|| format!("{}: cannot remove", folder.display()))?;
        }
        // Read again, with what was taken over.
        drop(records);
        RecordFile::open(self.out)
    }

    fn folder(&self) -> PathBuf {
        self.out.join("devices")
    }

    fn start(&self, n_cells: usize, shard: Shard, device: &str, progress: &Progress) -> anyhow::Result<Running> {
        let name = format!("{}-of-{}", shard.index, shard.n);
        let (folder, log) = (self.folder().join(&name), self.folder().join(name + ".log"));
        // What is on record in the whole is on record in each share.
        claim_folder(&folder, self.spec, None)?.merge(self.out)?;
        let output = File::create(&log).with_context(|| format!("{}: cannot write", log.display()))?;
        let child = Command::new(std::env::current_exe().context("this program does not know where it lies")?)
            .args(self.arguments(shard, device, &folder))
            .stdin(Stdio::null())
            .stdout(output.try_clone().with_context(|| format!("{}: cannot write", log.display()))?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("share {shard}: its process cannot be started"))?;
        progress.note(&format!("{device}: share {shard}, {n_cells} cells; see {}", log.display()));
        Ok(Running { device: device.to_owned(), shard, folder, log, child, ended: None })
    }

    fn arguments(&self, shard: Shard, device: &str, folder: &Path) -> Vec<OsString> {
        let threads = (self.threads / self.args.devices.len()).max(1);
        let mut arguments: Vec<OsString> = vec!["run".into(), self.config.into(), "--out".into(), folder.into()];
        let named =
            [("--shard", shard.to_string()), ("--device", device.to_owned()), ("--threads", threads.to_string())];
        arguments.extend(named.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
        arguments.extend(self.args.of_shares(self.args.devices.len()));
        arguments
    }
}

/// Waits for all processes, whose states say how many cells are over.
fn wait(running: &mut [Running], bar: &Bar) -> anyhow::Result<()> {
    let mut n_shown = 0;
    loop {
        for share in running.iter_mut().filter(|share| share.ended.is_none()) {
            share.ended = share.child.try_wait().context("a share cannot be waited for")?;
        }
        let n_over: usize = running.iter().map(|share| n_over(&share.folder)).sum();
        bar.advance(n_over.saturating_sub(n_shown) as u64);
        n_shown = n_shown.max(n_over);
        if running.iter().all(|share| share.ended.is_some()) {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Cells of a share that are over; none before it has said so.
fn n_over(folder: &Path) -> usize {
    let state = fs::read(folder.join(PROGRESS_FILE)).ok();
    let state: Option<SweepState> = state.and_then(|text| serde_json::from_slice(&text).ok());
    state.map_or(0, |state| state.n_on_record + state.n_finished + state.n_failed)
}

/// Moves the models that a share kept beside those of the whole.
fn take_checkpoints(share: &Path, out: &Path) -> anyhow::Result<()> {
    let (from, to) = (share.join(CHECKPOINTS), out.join(CHECKPOINTS));
    if !from.is_dir() {
        return Ok(());
    }
    let place = || format!("{}: cannot take over the models of {}", to.display(), from.display());
    fs::create_dir_all(&to).with_context(place)?;
    for entry in fs::read_dir(&from).with_context(place)? {
        let entry = entry.with_context(place)?;
        let target = to.join(entry.file_name());
        if !target.exists() {
            fs::rename(entry.path(), &target).with_context(place)?;
        }
    }
    Ok(())
}

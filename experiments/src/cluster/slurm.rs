//! SLURM's own commands: what it takes, and what it says of its tasks.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use itertools::Itertools as _;
use serde::Serialize;

/// What SLURM says of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Number of its job.
    pub job: u64,
    /// Its place in the array: the number of a share.
    pub share: usize,
    /// SLURM's word: `RUNNING`.
    pub state: String,
    /// How long it has run, and its node or why it waits.
    pub detail: String,
}

/// States that a task does not leave by itself.
const ENDED: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

impl Task {
    /// Whether it waits, runs, or is to run again.
    pub fn is_alive(&self) -> bool {
        !ENDED.contains(&self.state.as_str())
    }

    /// `RUNNING 1:23 node7`.
    pub fn text(&self) -> String {
        format!("{} {}", self.state, self.detail).trim_end().to_owned()
    }
}

/// Checks that sbatch is there.
///
/// # Errors
/// No such command, with what to do.
pub fn check() -> anyhow::Result<()> {
    match Command::new("sbatch").arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("sbatch --version: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "no `sbatch` on the PATH: this machine submits nothing to SLURM; print the script with --dry-run, or run the shares \
             yourself with `experiments run FILE --shard 1/4` and so on, and join them with `experiments merge`"
        ),
        Err(error) => Err(error).context("sbatch cannot be run"),
    }
}

/// Submits a script from the folder that it lies in; the number of the job.
///
/// # Errors
/// What sbatch says.
pub fn submit(script: &Path) -> anyhow::Result<u64> {
    let folder = crate::files::folder_of(script);
    let name = script.file_name().unwrap_or_default();
    let mut command = Command::new("sbatch");
    command.arg("--parsable").arg(name).current_dir(folder);
    let said = said_by(command).with_context(|| format!("{}: not submitted", script.display()))?;
    // `123`, or `123;cluster`; what a cluster greets with stands before.
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let id = last.split(';').next().unwrap_or_default().trim();
    id.parse().map_err(|_| anyhow!("sbatch --parsable said {said:?}, which is no number of a job; see `squeue --me`"))
}

/// Tasks of the user's jobs of this name: those that wait and run, and those that ended a moment ago.
///
/// # Errors
/// SLURM does not answer.
pub fn queue(job_name: &str) -> anyhow::Result<Vec<Task>> {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--array", "--states=all", "--format=%F|%K|%T|%M|%R"]);
    command.arg(format!("--name={job_name}"));
    Ok(said_by(command)?.lines().filter_map(queued).collect())
}

/// `7|3|RUNNING|1:23|node7`.
fn queued(line: &str) -> Option<Task> {
    let (job, share, state, time, place) = line.trim().splitn(5, '|').collect_tuple()?;
    let detail = if state == "PENDING" { place.to_owned() } else { format!("{time} {place}") };
    Some(Task { job: job.parse().ok()?, share: share.parse().ok()?, state: state.to_owned(), detail })
}

/// Tasks of these jobs, by the accounts, which not every cluster keeps.
///
/// # Errors
/// No accounts, or they do not answer.
pub fn accounts(jobs: &[u64]) -> anyhow::Result<Vec<Task>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = Command::new("sacct");
    command.args(["--noheader", "--allocations", "--parsable2", "--format=JobID,State,Elapsed,NodeList"]);
    command.arg(format!("--jobs={}", jobs.iter().join(",")));
    Ok(said_by(command)?.lines().filter_map(accounted).collect())
}

/// `7_3|CANCELLED by 1000|00:01:23|node7`. Tasks that never began have no number of their own.
fn accounted(line: &str) -> Option<Task> {
    let (id, state, time, node) = line.trim().split('|').collect_tuple()?;
    let (job, share) = id.split_once('_')?;
    let state = state.split_whitespace().next()?.to_owned();
    Some(Task { job: job.parse().ok()?, share: share.parse().ok()?, state, detail: format!("{time} {node}") })
}

/// What a command prints.
fn said_by(mut command: Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{name} cannot be run"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, text(&output.stderr));
    Ok(text(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(job: u64, share: usize, state: &str, detail: &str) -> Task {
        Task { job, share, state: state.into(), detail: detail.into() }
    }

    #[test]
    fn lines_of_squeue_and_sacct_are_tasks() {
        assert_eq!(queued("7|3|RUNNING|1:23|node7"), Some(task(7, 3, "RUNNING", "1:23 node7")));
        let waits = task(7, 12, "PENDING", "(JobArrayTaskLimit)");
        assert_eq!(queued("7|12|PENDING|0:00|(JobArrayTaskLimit)"), Some(waits));
        // No array, or another program's words.
        for line in ["7|N/A|RUNNING|1:23|node7", "", "slurm is down", "7|3|RUNNING"] {
            assert_eq!(queued(line), None, "{line}");
        }
        assert_eq!(accounted("7_3|CANCELLED by 1000|00:01:23|n"), Some(task(7, 3, "CANCELLED", "00:01:23 n")));
        assert_eq!(accounted("7_[4-8%2]|PENDING|00:00:00|None assigned"), None);
        assert_eq!(accounted("8|COMPLETED|00:00:00|n"), None);
    }

    #[test]
    fn a_task_lives_unless_it_has_ended() {
        for state in ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "A_STATE_TO_COME"] {
            assert!(task(1, 1, state, "").is_alive(), "{state}");
        }
        assert!(ENDED.iter().all(|state| !task(1, 1, state, "").is_alive()));
    }
}

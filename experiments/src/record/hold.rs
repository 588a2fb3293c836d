//! One run at a time writes a file of records.
//!
//! The system's own lock is released with the process, however it ends. On file systems without locks (Lustre by default, some
//! NFS mounts) a file `NAME.lock` beside the records is created instead, which only one run can do; a killed run leaves it. A task of
//! SLURM that runs again (preempted, or its node lost) takes over what it left itself: SLURM runs a task in one place at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::StoredRecord;
use super::file::Line as _;

/// Held while a run writes.
#[derive(Debug)]
pub(super) enum Hold {
    /// By the system's lock on the open file.
    System,
    /// By a lock file, removed at the end.
    LockFile(PathBuf),
}

impl Hold {
    /// Takes `file`, which lies at `path`, for this run.
    ///
    /// # Errors
    /// Another run holds it, or left its lock file behind.
    pub(super) fn take(file: &File, path: &Path) -> anyhow::Result<Self> {
        let lock_file = path.with_extension("lock");
        let task = Task::from_env();
        match file.try_lock() {
            Ok(()) if lock_file.exists() => Self::take_over(path, lock_file, task.as_ref()),
            Ok(()) => Ok(Self::System),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another run is writing to it; wait for its end or choose another folder with --out",
                    path.display()
                );
            }
            Err(TryLockError::Error(_)) => Self::take_without_locks(path, lock_file, task.as_ref()),
        }
    }

    fn take_without_locks(path: &Path, lock_file: PathBuf, task: Option<&Task>) -> anyhow::Result<Self> {
        match OpenOptions::new().write(true).create_new(true).open(&lock_file) {
            Ok(mut file) => {
                let hold = Self::LockFile(lock_file);
                // Who holds it is for people and for a task that runs again; that it is there is what counts.
                let _ = file.write_all(holder(task).as_bytes()).and_then(|()| file.sync_all());
                Ok(hold)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::take_over(path, lock_file, task),
            Err(error) => Err(error).with_context(|| format!("{}: cannot create the lock file", lock_file.display())),
        }
    }

    /// Takes a lock file that an earlier run of this very task has left.
    fn take_over(path: &Path, lock_file: PathBuf, task: Option<&Task>) -> anyhow::Result<Self> {
        if task.is_none() || Task::that_holds(&lock_file).as_ref() != task {
            return refuse(path, &lock_file);
        }
        let place = || format!("{}: cannot take over the lock file", lock_file.display());
        fs::write(&lock_file, holder(task)).with_context(place)?;
        Ok(Self::LockFile(lock_file))
    }
}

/// A task of an array of SLURM's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    job: String,
    index: String,
}

impl Task {
    /// The one that this process is.
    fn from_env() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self { job: variable("SLURM_ARRAY_JOB_ID")?, index: variable("SLURM_ARRAY_TASK_ID")? })
    }

    /// The one that a lock file names.
    fn that_holds(lock_file: &Path) -> Option<Self> {
        let holder = fs::read_to_string(lock_file).ok()?;
        let (_, task) = holder.trim().rsplit_once(" as task ")?;
        let (index, job) = task.split_once(" of SLURM job ")?;
        Some(Self { job: job.to_owned(), index: index.to_owned() })
    }
}

/// Removes the lock file in `folder` where a task of one of `jobs` left it, which have ended; says whether there was one.
///
/// # Errors
/// A file that cannot be removed.
pub fn release_hold(folder: &Path, jobs: &[u64]) -> anyhow::Result<bool> {
    let lock_file = folder.join(StoredRecord::FILE).with_extension("lock");
    let holder = Task::that_holds(&lock_file);
    let has_ended = holder.is_some_and(|task| jobs.iter().any(|job| job.to_string() == task.job));
    if has_ended {
        fs::remove_file(&lock_file)
            .with_context(|| format!("{}: cannot remove; remove it, its run has ended", lock_file.display()))?;
    }
    Ok(has_ended)
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::LockFile(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// `process 123 on host since 2026-01-31 12:00:00 UTC`, and where it is a task of SLURM, ` as task 4 of SLURM job 56`.
fn holder(task: Option<&Task>) -> String {
    let now = chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC");
    let task = task.map_or_else(String::new, |task| format!(" as task {} of SLURM job {}", task.index, task.job));
    format!("process {} on {} since {now}{task}", std::process::id(), host())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "an unnamed host".to_owned() } else { name.trim().to_owned() }
}

fn refuse<T>(path: &Path, lock_file: &Path) -> anyhow::Result<T> {
    let holder = fs::read_to_string(lock_file).unwrap_or_default();
    let holder = if holder.trim().is_empty() { "a run that did not say who it is" } else { holder.trim() };
    let gone = if is_gone(holder) { ", which no longer runs" } else { "" };
    bail!(
        "{}: held by {holder}{gone}; wait for its end, choose another folder with --out, or, where that run was killed, remove \
         {}",
        path.display(),
        lock_file.display()
    )
}

/// Whether the holder was a process of this machine that is not there any more.
fn is_gone(holder: &str) -> bool {
    let process = holder.strip_prefix("process ").and_then(|rest| rest.split_once(" on "));
    let Some((id, rest)) = process else { return false };
    let is_here = rest.split_once(" since ").is_some_and(|(at, _)| at == host());
    is_here && Path::new("/proc/self").exists() && id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn records() -> (tempfile::TempDir, PathBuf, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        let file = File::create(&path).unwrap();
        (folder, path, file)
    }

    #[test]
    fn without_locks_only_one_run_creates_the_lock_file() {
        let (folder, path, file) = records();
        let lock_file = folder.path().join("records.lock");
        let first = Hold::take_without_locks(&path, lock_file.clone(), None).unwrap();
        let error = Hold::take_without_locks(&path, lock_file.clone(), None).unwrap_err().to_string();
        let expected = format!("records.jsonl: held by process {} on {} since ", std::process::id(), host());
        assert!(error.contains(&expected), "{error}");
        assert!(!error.contains("no longer runs"), "{error}");
        // A run that has locks respects it, too: it may see the folder through another mount.
        let error = Hold::take(&file, &path).unwrap_err().to_string();
        assert!(error.ends_with(&format!("where that run was killed, remove {}", lock_file.display())), "{error}");
        drop(first);
        assert!(!lock_file.exists());
        assert!(matches!(Hold::take(&file, &path).unwrap(), Hold::System));
    }

    #[test]
    fn a_holder_that_is_gone_is_said_to_be() {
        let (folder, path, file) = records();
        // No process has this number: the kernel's largest is 4194304.
        let holder = format!("process 4294967295 on {} since 2026-01-01 00:00:00 UTC", host());
        fs::write(folder.path().join("records.lock"), holder).unwrap();
        let error = Hold::take(&file, &path).unwrap_err().to_string();
        assert_eq!(error.contains(", which no longer runs;"), cfg!(target_os = "linux"), "{error}");
        fs::write(folder.path().join("records.lock"), "process 4294967295 on elsewhere.example since 2026").unwrap();
        assert!(!Hold::take(&file, &path).unwrap_err().to_string().contains("no longer runs"));
        fs::write(folder.path().join("records.lock"), "").unwrap();
        assert!(Hold::take(&file, &path).unwrap_err().to_string().contains("a run that did not say who it is"));
    }

    #[test]
    fn a_task_that_runs_again_takes_over_its_own_lock_file() {
        let (folder, path, _file) = records();
        let lock_file = folder.path().join("records.lock");
        let take = |job: &str, index: &str| {
            let task = Task { job: job.to_owned(), index: index.to_owned() };
            Hold::take_without_locks(&path, lock_file.clone(), Some(&task))
        };
        // A kill leaves the file.
        std::mem::forget(take("56", "4").unwrap());
        let error = take("56", "5").unwrap_err().to_string();
        assert!(error.contains(" as task 4 of SLURM job 56"), "{error}");
        assert!(take("57", "4").is_err() && Hold::take_without_locks(&path, lock_file.clone(), None).is_err());
        drop(take("56", "4").unwrap());
        assert!(!lock_file.exists());
        // A job that has ended is not waited for; one that is not known to have, and a run of other kind, are.
        std::mem::forget(take("56", "4").unwrap());
        assert!(!release_hold(folder.path(), &[5, 57]).unwrap() && lock_file.exists());
        assert!(release_hold(folder.path(), &[57, 56]).unwrap() && !lock_file.exists());
        std::mem::forget(Hold::take_without_locks(&path, lock_file.clone(), None).unwrap());
        assert!(!release_hold(folder.path(), &[56]).unwrap() && lock_file.exists());
    }

    #[test]
    fn the_systems_lock_is_taken_once() {
        let (_folder, path, file) = records();
        let _held = Hold::take(&file, &path).unwrap();
        let other = OpenOptions::new().append(true).open(&path).unwrap();
        let error = Hold::take(&other, &path).unwrap_err().to_string();
        assert!(error.ends_with("another run is writing to it; wait for its end or choose another folder with --out"));
    }
}

//! One run at a time writes a file of records.
//!
//! The system's own lock is released with the process, however it ends. On file systems without locks (Lustre by default, some
//! NFS mounts) a file `NAME.lock` beside the records is created instead, which only one run can do; a killed run leaves it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

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
        match file.try_lock() {
            Ok(()) if lock_file.exists() => refuse(path, &lock_file),
            Ok(()) => Ok(Self::System),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another run is writing to it; wait for its end or choose another folder with --out",
                    path.display()
                );
            }
            Err(TryLockError::Error(_)) => Self::take_without_locks(path, lock_file),
        }
    }

    fn take_without_locks(path: &Path, lock_file: PathBuf) -> anyhow::Result<Self> {
        match OpenOptions::new().write(true).create_new(true).open(&lock_file) {
            Ok(mut file) => {
                let hold = Self::LockFile(lock_file);
                // Who holds it is for people; that it is there is what counts.
                let _ = file.write_all(holder().as_bytes()).and_then(|()| file.sync_all());
                Ok(hold)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => refuse(path, &lock_file),
            Err(error) => Err(error).with_context(|| format!("{}: cannot create the lock file", lock_file.display())),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::LockFile(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// `process 123 on host since 2026-01-31 12:00:00 UTC`.
fn holder() -> String {
    let now = chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC");
    format!("process {} on {} since {now}", std::process::id(), host())
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
        let first = Hold::take_without_locks(&path, lock_file.clone()).unwrap();
        let error = Hold::take_without_locks(&path, lock_file.clone()).unwrap_err().to_string();
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
    fn the_systems_lock_is_taken_once() {
        let (_folder, path, file) = records();
        let _held = Hold::take(&file, &path).unwrap();
        let other = OpenOptions::new().append(true).open(&path).unwrap();
        let error = Hold::take(&other, &path).unwrap_err().to_string();
        assert!(error.ends_with("another run is writing to it; wait for its end or choose another folder with --out"));
    }
}

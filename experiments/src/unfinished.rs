//! Folders that are filled under another name, and get their own when they are whole.
//!
//! Beside each lies a file with the ending `.lock`, which its process holds: the system releases it with the process, however that
//! ends. So a folder that a kill left is told from one that another run fills, by no clock and no number of a process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::NamedTempFile;

use crate::files::{folder_of, held_in, is_left, is_old, sync_folder};

const LOCK: &str = "lock";

/// A folder in the making. It is removed with this, unless it got its name.
#[derive(Debug)]
pub(crate) struct Unfinished {
    folder: PathBuf,
    /// Removed after the folder: while there is a folder, there is a lock.
    lock: NamedTempFile,
}

impl Unfinished {
    /// A new empty folder in `parent`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(crate) fn new_in(parent: &Path, prefix: &str) -> io::Result<Self> {
        let lock = held_in(parent, prefix, &format!(".{LOCK}"))?;
        let folder = lock.path().with_extension("");
        fs::create_dir(&folder)?;
        Ok(Self { folder, lock })
    }

    /// The folder to fill.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Gives the filled folder its name.
    ///
    /// # Errors
    /// A name that something has already; the folder is then as it was.
    pub(crate) fn rename(&self, target: &Path) -> io::Result<()> {
        fs::rename(&self.folder, target)?;
        sync_folder(folder_of(target))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone if it got its name. Tried twice: removing opens the folder, and open files that were short may be there again.
        // What stays is swept by the next run that fills such a folder.
        let _ = fs::remove_dir_all(&self.folder).or_else(|_| fs::remove_dir_all(&self.folder));
        self.lock.disable_cleanup(self.folder.exists());
    }
}

/// Removes what killed runs left in `parent` with this prefix, and says which folders are being filled.
///
/// # Errors
/// A folder that cannot be read, or one that cannot be removed.
pub(crate) fn sweep(parent: &Path, prefix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut held = Vec::new();
    let cannot_read = || format!("{}: cannot read the folder", parent.display());
    for entry in fs::read_dir(parent).with_context(cannot_read)?.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        if path.extension().is_some_and(|end| end == LOCK) {
            // Another run may have swept it meanwhile. Some file systems lock only what is open for writing.
            let Ok(lock) = File::options().write(true).open(&path) else { continue };
            let folder = path.with_extension("");
            if is_left(&lock) {
                remove(&folder)?;
                let _ = fs::remove_file(&path);
            } else {
                held.push(folder);
            }
        } else if entry.metadata().is_ok_and(|metadata| metadata.is_dir() && is_old(&metadata))
            && !path.with_added_extension(LOCK).exists()
        {
            // Of a program that had no such locks.
            remove(&path)?;
        }
    }
    Ok(held)
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| {
            format!("{}: left by a run that was killed, and cannot be removed; remove it", folder.display())
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let fill = || {
            let folder = Unfinished::new_in(parent.path(), ".a-").unwrap();
            fs::write(folder.path().join("file"), "x").unwrap();
            folder
        };
        drop(fill());
        assert!(names(parent.path()).is_empty(), "{:?}", names(parent.path()));
        fill().rename(&parent.path().join("a")).unwrap();
        assert_eq!((names(parent.path()), names(&parent.path().join("a"))), (vec!["a".into()], vec!["file".into()]));
        assert!(fill().rename(&parent.path().join("a")).is_err(), "what is there is kept");
        assert_eq!(names(parent.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_a_kill_left_is_removed_at_once_and_what_lives_never() {
        let parent = tempfile::tempdir().unwrap();
        let living = Unfinished::new_in(parent.path(), ".a-").unwrap();
        let other = Unfinished::new_in(parent.path(), ".b-").unwrap();
        // A kill leaves both, or the lock alone, before the folder is made or behind its new name.
        fs::create_dir(parent.path().join(".a-left")).unwrap();
        fs::write(parent.path().join(".a-left.lock"), "").unwrap();
        fs::write(parent.path().join(".a-alone.lock"), "").unwrap();
        // The clock jumps: for this one's age, the living folder is as old as can be.
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let open = |path: &Path| File::open(path).unwrap();
        open(living.path()).set_modified(long_ago).unwrap();
        open(&living.path().with_added_extension(LOCK)).set_modified(long_ago).unwrap();
        // Without a lock, by a program of before: one of today, and one of long ago.
        fs::create_dir(parent.path().join(".a-new")).unwrap();
        fs::create_dir(parent.path().join(".a-old")).unwrap();
        open(&parent.path().join(".a-old")).set_modified(long_ago).unwrap();
        assert_eq!(sweep(parent.path(), ".a-").unwrap(), [living.path().to_owned()]);
        let name = |folder: &Unfinished| folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        let of = |folder: &Unfinished| [name(folder), format!("{}.lock", name(folder))];
        let mut expected = [of(&living), of(&other)].concat();
        expected.push(".a-new".to_owned());
        expected.sort();
        assert_eq!(names(parent.path()), expected);
    }
}

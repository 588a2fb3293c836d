//! Files that are whole or not there, also after a power loss.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

/// How temporary files begin. What begins so is removed where no process holds it.
const TEMPORARY: &str = ".awq-partial-";

/// Where a file system has no locks, what was not touched for so long belongs to no running program.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A temporary file in `folder`, for a rename is whole only within one file system. One that a killed process leaves is removed
/// by [`sweep`].
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn temporary_in(folder: &Path, suffix: &str) -> io::Result<NamedTempFile> {
    held_in(folder, TEMPORARY, suffix)
}

/// A new file in `folder` that this process holds while it is open, or until its end, however that comes.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn held_in(folder: &Path, prefix: &str, suffix: &str) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // As open to others as the umask lets an ordinary file be; a temporary file is private otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(prefix).suffix(suffix);
    loop {
        let file = builder.tempfile_in(folder)?;
        // Elsewhere a lock keeps this process from opening the file again.
        let is_taken = cfg!(unix) && matches!(file.as_file().try_lock(), Err(TryLockError::WouldBlock));
        // Between its creation and its lock another process may have taken it for one that was left.
        if !is_taken && file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes the temporary files in `folder` that killed processes left. What cannot be removed does no harm.
pub(crate) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if name.to_string_lossy().starts_with(TEMPORARY) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            // Held until it is removed. Some file systems lock only what is open for writing.
            let opened = File::options().write(true).open(&path);
            if opened.is_ok_and(|file| is_left(&file)) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// Whether no process holds a file of [`held_in`]; then this one does.
pub(crate) fn is_left(file: &File) -> bool {
    let no_locks = TryLockError::Error(io::ErrorKind::Unsupported.into());
    let locked = if cfg!(unix) { file.try_lock() } else { Err(no_locks) };
    match locked {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => file.metadata().is_ok_and(|metadata| is_old(&metadata)),
    }
}

/// Whether something was not changed for a day, as the machine's clock has it.
pub(crate) fn is_old(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age > ABANDONED)
}

/// Writes `path`: a reader sees the old content or the new, and what is there when this returns is on the disk.
///
/// # Errors
/// A folder that cannot be written, or a full disk.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut file = temporary_in(folder, ".tmp")?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// The folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Forces names that were made or changed in a folder to the disk.
///
/// # Errors
/// A folder that is gone.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened as a file.
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        // Some file systems over a network have no such thing.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        write_durably(&path, b"first, which is longer").unwrap();
        write_durably(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
        assert!(write_durably(&folder.path().join("no/a.toml"), b"").is_err());
        assert_eq!(folder_of(Path::new("a.toml")), Path::new("."));
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [".awq-partial-left.tmp", ".partial-of-another-program", "records.jsonl"] {
            fs::write(path(name), "").unwrap();
        }
        fs::create_dir(path(".awq-partial-folder")).unwrap();
        let living = temporary_in(folder.path(), ".tmp").unwrap();
        sweep(folder.path());
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let mut expected = [
            path(".awq-partial-folder"),
            living.path().to_owned(),
            path(".partial-of-another-program"),
            path("records.jsonl"),
        ];
        expected.sort();
        assert_eq!(names, expected);
        sweep(&path("no such folder"));
    }
}

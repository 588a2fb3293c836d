//! Folders that hold assets under any name: what is wanted is found by its sha256.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::hashing::Hashes;

/// Levels of folders below a given one that are looked into.
const DEPTH: usize = 3;

/// Folders given by `--assets` or `AWQ_ASSETS`.
#[derive(Debug)]
pub(crate) struct AssetFolders {
    folders: Vec<PathBuf>,
}

impl AssetFolders {
    /// # Errors
    /// A folder that does not exist.
    pub(crate) fn new(folders: Vec<PathBuf>) -> anyhow::Result<Self> {
        for folder in &folders {
            ensure!(
                folder.is_dir(),
                "{}: no such folder; give existing folders to --assets and AWQ_ASSETS",
                folder.display()
            );
        }
        Ok(Self { folders })
    }

    /// A file whose content has this sha256, whatever its name. Files of that name are tried first, then files with
    /// that extension, then all others, so that a folder of large files is hashed only when nothing else fits.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub(crate) fn find(&self, name: &str, sha256: &str, hashes: &Hashes) -> anyhow::Result<Option<PathBuf>> {
        let mut files = Vec::new();
        for folder in &self.folders {
            list(folder, DEPTH, &mut files)?;
        }
        files.sort_by_key(|path| unlikeness(path, name));
        for path in files {
            if hashes.of_file(&path)? == sha256 {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// 0 for a file called `name`, 1 for one with the extension of `name`, 2 for any other.
fn unlikeness(path: &Path, name: &str) -> u8 {
    if path.file_name().is_some_and(|own| own == name) {
        0
    } else if path.extension() == Path::new(name).extension() {
        1
    } else {
        2
    }
}

fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let cannot_read = || format!("{}: cannot read the asset folder", folder.display());
    let mut entries = Vec::new();
    for entry in folder.read_dir().with_context(cannot_read)? {
        entries.push(entry.with_context(cannot_read)?.path());
    }
    // Reading order is the file system's own; sorted, the same file is found on every machine.
    entries.sort();
    for path in entries {
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() && depth > 0 {
            list(&path, depth - 1, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::assets::hashing::sha256_of;
    use crate::assets::progress::Progress;

    #[track_caller]
    fn check_found(at: &str, found: bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(at);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "wanted").unwrap();
        std::fs::write(folder.path().join("wanted.txt"), "same name, other content").unwrap();
        let folders = AssetFolders::new(vec![folder.path().to_owned()]).unwrap();
        let hashes = Hashes::new(Progress::Quiet);
        let expected = found.then(|| path.clone());
        assert_eq!(folders.find("wanted.txt", &sha256_of(b"wanted"), &hashes).unwrap(), expected);
    }

    #[test]
    fn content_counts_and_not_the_name() {
        check_found("another.bin", true);
        check_found("deep/wanted.txt", true);
    }

    #[test]
    fn three_folders_down_and_no_further() {
        check_found("1/2/3/wanted.txt", true);
        check_found("1/2/3/4/wanted.txt", false);
    }

    #[test]
    fn files_of_the_same_name_come_first() {
        assert_eq!(unlikeness(Path::new("a/wiki.raw"), "wiki.raw"), 0);
        assert_eq!(unlikeness(Path::new("a/other.raw"), "wiki.raw"), 1);
        assert_eq!(unlikeness(Path::new("a/wiki.txt"), "wiki.raw"), 2);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error() {
        let error = AssetFolders::new(vec!["no/such/folder".into()]).unwrap_err();
        let expected = "no/such/folder: no such folder; give existing folders to --assets and AWQ_ASSETS";
        assert_eq!(error.to_string(), expected);
    }
}

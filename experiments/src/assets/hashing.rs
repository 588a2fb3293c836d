//! sha256 of files, each computed once in a run; of large ones once until they change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::files;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// Hashes of files from this size on are kept between runs: hashing a model of 140 GB takes minutes, and so does a folder of
/// `--assets` with many smaller files.
const KEPT_FROM_BYTES: u64 = 4 << 20;
/// A file that changed so shortly before it was hashed could change again within one tick of the file system's clock.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it was when it was hashed: path, length in bytes, time of the last change.
type Seen = (PathBuf, u64, SystemTime);

/// The hashes computed so far. A file that changed since is hashed again.
#[derive(Debug)]
pub(crate) struct Hashes {
    known: Mutex<BTreeMap<Seen, String>>,
    /// Where hashes of large files are kept, a file each.
    kept: Option<PathBuf>,
    progress: Progress,
}

impl Hashes {
    /// None computed yet, and none kept.
    pub(crate) fn new(progress: Progress) -> Self {
        Self { known: Mutex::default(), kept: None, progress }
    }

    /// Those that are kept in `folder`, which need not exist.
    pub(crate) fn kept_in(folder: PathBuf, progress: Progress) -> Self {
        Self { kept: Some(folder), ..Self::new(progress) }
    }

    /// Lowercase hexadecimal sha256 of the file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn of_file(&self, path: &Path) -> anyhow::Result<String> {
        let metadata = path.metadata().with_context(|| format!("{}: cannot read", path.display()))?;
        ensure!(metadata.is_file(), "{}: not a file", path.display());
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let seen = (path.to_owned(), metadata.len(), modified);
        if let Some(hash) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&seen) {
            return Ok(hash.clone());
        }
        let kept = self.kept.as_deref().filter(|_| metadata.len() >= KEPT_FROM_BYTES);
        let kept = kept.and_then(|folder| Some(folder.join(sha256_of(identity(path, &metadata)?.as_bytes()))));
        let hash = match kept.as_deref().and_then(kept_hash) {
            Some(hash) => hash,
            None => {
                let mut hasher = Sha256::new();
                self.feed(&mut hasher, path, metadata.len())?;
                let hash = hex(hasher);
                if let Some(file) = kept {
                    keep(&file, &hash);
                }
                hash
            }
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(seen, hash.clone());
        Ok(hash)
    }

    /// Takes note of the sha256 of a file that was hashed while it was written.
    pub(crate) fn learn(&self, path: &Path, sha256: &str) {
        let Ok(metadata) = path.metadata() else { return };
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let seen = (path.to_owned(), metadata.len(), modified);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(seen, sha256.to_owned());
    }

    /// sha256 of the contents of a folder's files, one after the other in name order. Folders inside are left out.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub(crate) fn of_folder(&self, folder: &Path) -> anyhow::Result<String> {
        let mut hasher = Sha256::new();
        for path in files_in(folder)? {
            let bytes = path.metadata().with_context(|| format!("{}: cannot read", path.display()))?.len();
            self.feed(&mut hasher, &path, bytes)?;
        }
        Ok(hex(hasher))
    }

    /// [`Self::of_folder`] or [`Self::of_file`], by what `path` is.
    ///
    /// # Errors
    /// Something that cannot be read.
    pub(crate) fn of_path(&self, path: &Path) -> anyhow::Result<String> {
        if path.is_dir() { self.of_folder(path) } else { self.of_file(path) }
    }

    fn feed(&self, hasher: &mut Sha256, path: &Path, bytes: u64) -> anyhow::Result<()> {
        let cannot_read = || format!("{}: cannot read", path.display());
        let mut file = File::open(path).with_context(cannot_read)?;
        let shown = self.progress.local_work(&format!("checking {}", path.display()), bytes);
        let mut chunk = vec![0; CHUNK];
        loop {
            let n_read = file.read(&mut chunk).with_context(cannot_read)?;
            if n_read == 0 {
                return Ok(());
            }
            hasher.update(&chunk[..n_read]);
            shown.advance(n_read as u64);
        }
    }
}

/// What changes whenever a file's content does: where it lies, its length, and the time of its last change, which no program
/// can set. `None` where the system does not tell, or the change is too recent to be told from another.
#[cfg(unix)]
fn identity(path: &Path, metadata: &std::fs::Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let changed = SystemTime::UNIX_EPOCH
        .checked_add(Duration::new(metadata.ctime().try_into().ok()?, metadata.ctime_nsec().try_into().ok()?))?;
    if SystemTime::now().duration_since(changed).ok()? < SETTLED {
        return None;
    }
    let path = path.canonicalize().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    Some(format!("{} {device} {inode} {} {seconds} {nanoseconds}", path.display(), metadata.len()))
}

#[cfg(not(unix))]
fn identity(_: &Path, _: &std::fs::Metadata) -> Option<String> {
    None
}

fn kept_hash(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().filter(|hash| is_sha256(hash))
}

/// A cache that cannot be written costs time and no more.
fn keep(file: &Path, hash: &str) {
    let folder = file.parent().unwrap_or(file);
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        files::sweep(folder);
        files::write_durably(file, hash.as_bytes())
    });
    let _ = written;
}

/// Lowercase hexadecimal sha256 of `bytes`.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// Lowercase hexadecimal digest.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` looks like a sha256: 64 hexadecimal digits in lower case.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The files directly in `folder`, in name order.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = || format!("{}: cannot read the folder", folder.display());
    let mut files = Vec::new();
    for entry in folder.read_dir().with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hashes_are_sha256_and_follow_the_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        let hashes = Hashes::new(Progress::Quiet);
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(hashes.of_file(&path).unwrap(), OF_ABC);
        assert_eq!(sha256_of(b"abc"), OF_ABC);
        std::fs::write(&path, "abcd").unwrap();
        assert_ne!(hashes.of_file(&path).unwrap(), OF_ABC);
    }

    #[cfg(unix)]
    #[test]
    fn hashes_of_large_files_are_kept_until_they_change() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("large");
        std::fs::File::create(&path).unwrap().set_len(KEPT_FROM_BYTES).unwrap();
        let hash = || Hashes::kept_in(cache.path().join("hashes"), Progress::Quiet).of_file(&path).unwrap();
        let kept = || cache.path().join("hashes").read_dir().map_or(0, Iterator::count);
        let first = hash();
        assert_eq!(kept(), 0, "a file that was just written is not settled");
        std::thread::sleep(SETTLED);
        assert_eq!((hash(), kept()), (first.clone(), 1));
        let entry = cache.path().join("hashes").read_dir().unwrap().next().unwrap().unwrap().path();
        std::fs::write(&entry, OF_ABC).unwrap();
        assert_eq!(hash(), OF_ABC, "what is kept is used");
        std::fs::write(&entry, "cut").unwrap();
        assert_eq!(hash(), first, "what is damaged is not");
        // The same length, and the old time of modification put back.
        let modified = path.metadata().unwrap().modified().unwrap();
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"x").unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(hash(), first);
    }

    #[test]
    fn a_folder_is_its_files_in_name_order() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("2"), "c").unwrap();
        std::fs::write(folder.path().join("1"), "ab").unwrap();
        std::fs::create_dir(folder.path().join("0")).unwrap();
        assert_eq!(Hashes::new(Progress::Quiet).of_path(folder.path()).unwrap(), OF_ABC);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Hashes::new(Progress::Quiet).of_file(Path::new("no/such/file")).unwrap_err();
        assert!(format!("{error:#}").starts_with("no/such/file: cannot read: "), "{error:#}");
    }

    #[test]
    fn only_64_lowercase_digits_are_a_sha256() {
        assert!(is_sha256(OF_ABC));
        assert!(!is_sha256(&OF_ABC.to_uppercase()));
        assert!(!is_sha256(&OF_ABC[1..]));
        assert!(!is_sha256(""));
    }
}

//! A file that packages of a registry carry in parts: joined in the cache.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::hashing::Hashes;
use super::{Partial, cannot_write};
use crate::config::sources::RegistryParts;

/// Where the joined file is, or will be.
pub(super) fn cached(wanted: &RegistryParts, cache: &Path) -> PathBuf {
    cache.join("joined").join(&wanted.sha256).join(&wanted.file)
}

/// Joins `parts`, in their order.
///
/// # Errors
/// A part that cannot be read, a cache that cannot be written, or a file that is not the one that was meant.
pub(super) fn join(
    wanted: &RegistryParts,
    parts: &[PathBuf],
    cache: &Path,
    hashes: &Hashes,
) -> anyhow::Result<PathBuf> {
    let target = cached(wanted, cache);
    let partial = Partial::new(cache)?;
    let joined = partial.path().join(&wanted.file);
    let mut file = File::create(&joined).with_context(|| cannot_write(&joined))?;
    for part in parts {
        let mut from = File::open(part).with_context(|| format!("{}: cannot read", part.display()))?;
        io::copy(&mut from, &mut file).with_context(|| cannot_write(&joined))?;
    }
    file.sync_all().with_context(|| cannot_write(&joined))?;
    let found = hashes.of_file(&joined)?;
    ensure!(
        found == wanted.sha256,
        "{}: the sha256 of its parts together is {found}, expected {}; correct their order or the key `sha256`",
        wanted.file,
        wanted.sha256
    );
    let folder = target.parent().unwrap_or(&target).to_owned();
    partial.finish(&folder, |_| hashes.of_file(&target).is_ok_and(|found| found == wanted.sha256))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::assets::{Progress, sha256_of};

    #[test]
    fn parts_are_joined_in_their_order_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let part = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let parts = [part("b", "first "), part("a", "second")];
        let wanted = |sha256| RegistryParts { file: "model.gguf".into(), sha256, parts: Vec::new() };
        let cache = folder.path().join("cache");
        let hashes = Hashes::new(Progress::Quiet);
        let right = wanted(sha256_of(b"first second"));
        let path = join(&right, &parts, &cache, &hashes).unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), path), ("first second", cached(&right, &cache)));
        let swapped = wanted(sha256_of(b"secondfirst "));
        let error = join(&swapped, &parts, &cache, &hashes).unwrap_err().to_string();
        assert!(error.starts_with("model.gguf: the sha256 of its parts together is "), "{error}");
        assert!(!cached(&swapped, &cache).exists());
        // What is damaged is replaced.
        std::fs::write(cached(&right, &cache), "damaged").unwrap();
        join(&right, &parts, &cache, &hashes).unwrap();
        assert_eq!(std::fs::read(cached(&right, &cache)).unwrap(), b"first second");
    }
}

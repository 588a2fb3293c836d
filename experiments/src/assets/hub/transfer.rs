//! One content of the hub, from the network into the cache: locked, resumed, hashed while it arrives, whole or not at all.
//!
//! What has arrived is kept in `ETAG.incomplete`, as `huggingface_hub` does, and an attempt goes on at its end.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::header::CONTENT_RANGE;
use ureq::http::{Response, StatusCode};

use super::super::hashing::{Hashes, hex, is_sha256};
use super::super::progress::Transfer;
use super::client::{Announced, Client, Failure};
use super::layout::{CachedRepo, HubRepo};

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// A file of the hub on its way into the cache.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) repo: &'a HubRepo,
    pub(super) name: &'a str,
    /// sha256 that it must have.
    pub(super) pin: Option<&'a str>,
}

impl Wanted<'_> {
    /// Brings the content into the cache unless it is there, and gives its sha256. What is in the cache already is only ever
    /// replaced, by content that is known to be right; nothing is removed from it.
    pub(super) fn fetch(
        &self,
        client: &Client,
        announced: &Announced,
        cached: &CachedRepo<'_>,
        hashes: &Hashes,
    ) -> Result<String, Failure> {
        let blob = cached.blob(&announced.etag);
        let folder = blob.parent().unwrap_or(&blob);
        std::fs::create_dir_all(folder).with_context(|| cannot_write(folder))?;
        let lock = Lock::take(&cached.lock(&announced.etag), || {
            client.progress.note(&format!("{}: another process downloads it; waiting", self.repo.place(self.name)));
        });
        if let Some(sha256) = self.there(announced, &blob, hashes)? {
            return Ok(sha256);
        }
        let mut part = Part::open(&blob, &lock)?;
        self.receive(client, announced, &mut part)?;
        let sha256 = part.sha256();
        if is_sha256(&announced.etag) && sha256 != announced.etag {
            part.restart()?;
            let problem = format!("sha256 is {sha256}, but the hub announced {}; removed it", announced.etag);
            return Err(Failure::passing(anyhow!(problem)));
        }
        let wrong_pin = self.pin.filter(|&pin| pin != sha256);
        if let (Some(pin), true) = (wrong_pin, blob.exists()) {
            part.remove()?;
            return Err(wrong_pin_error(&sha256, pin).into());
        }
        part.place(&blob)?;
        match wrong_pin {
            Some(pin) => Err(wrong_pin_error(&sha256, pin).into()),
            None => Ok(sha256),
        }
    }

    /// sha256 of the content, if it is in the cache and nothing speaks against it.
    fn there(&self, announced: &Announced, blob: &Path, hashes: &Hashes) -> anyhow::Result<Option<String>> {
        let Ok(metadata) = blob.metadata() else { return Ok(None) };
        if announced.n_bytes.is_some_and(|n_bytes| n_bytes != metadata.len()) {
            return Ok(None);
        }
        let sha256 = hashes.of_file(blob)?;
        let is_right = if is_sha256(&announced.etag) {
            sha256 == announced.etag
        } else {
            self.pin.is_none_or(|pin| pin == sha256)
        };
        Ok(is_right.then_some(sha256))
    }

    fn receive(&self, client: &Client, announced: &Announced, part: &mut Part) -> Result<(), Failure> {
        let before = part.n_bytes;
        if announced.n_bytes.is_none_or(|n_bytes| part.n_bytes > n_bytes) {
            part.restart()?;
        }
        if announced.n_bytes == Some(part.n_bytes) && part.n_bytes > 0 {
            return Ok(());
        }
        let repo = self.repo.at(&announced.commit);
        let response = client.get(&repo, &repo.file_url(&client.endpoint, self.name), part.n_bytes)?;
        part.expect(&response)?;
        let shown = client.progress.transfer(&format!("downloading {}", self.name), announced.n_bytes);
        let ended = part.append(response.into_body(), announced.n_bytes, &shown);
        ended.map_err(|failure| match failure {
            Failure::Passing { error, after, .. } => {
                Failure::Passing { error, after, n_bytes: part.n_bytes.saturating_sub(before) }
            }
            last => last,
        })
    }
}

pub(super) fn wrong_pin_error(sha256: &str, pin: &str) -> anyhow::Error {
    anyhow!("sha256 is {sha256}, expected {pin}; correct the pin or the revision")
}

/// What to do about a hub cache that cannot be written.
pub(super) fn cannot_write(path: &Path) -> String {
    format!("{}: cannot write; free space there, or set HF_HOME to another folder", path.display())
}

/// The right to write a content, among processes that ask for it.
#[derive(Debug)]
enum Lock {
    /// Held until this is dropped.
    Held { _file: File },
    /// The file system has no locks.
    Missing,
}

impl Lock {
    /// Waits for whoever has it, and calls `waiting` before.
    fn take(path: &Path, waiting: impl FnOnce()) -> Self {
        let open = || {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            OpenOptions::new().write(true).create(true).truncate(false).open(path)
        };
        let Ok(file) = open() else { return Self::Missing };
        let taken = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        if taken.is_ok() { Self::Held { _file: file } } else { Self::Missing }
    }
}

/// What has arrived of a content, and its digest.
#[derive(Debug)]
struct Part {
    file: File,
    path: PathBuf,
    digest: Sha256,
    n_bytes: u64,
    /// Without a lock, a part of this process alone, which is removed with this.
    own: Option<tempfile::TempPath>,
}

impl Part {
    fn open(blob: &Path, lock: &Lock) -> anyhow::Result<Self> {
        let folder = blob.parent().unwrap_or(blob);
        let (file, path, own) = match lock {
            Lock::Held { .. } => {
                let path = blob.with_added_extension("incomplete");
                let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
                (opened.with_context(|| cannot_write(&path))?, path, None)
            }
            Lock::Missing => {
                let made = tempfile::Builder::new().suffix(".incomplete").tempfile_in(folder);
                let (file, own) = made.with_context(|| cannot_write(folder))?.into_parts();
                (file, own.to_path_buf(), Some(own))
            }
        };
        let mut part = Self { file, path, digest: Sha256::new(), n_bytes: 0, own };
        let mut chunk = vec![0; CHUNK];
        loop {
            let n_read = part.file.read(&mut chunk).with_context(|| format!("{}: cannot read", part.path.display()))?;
            if n_read == 0 {
                return Ok(part);
            }
            part.digest.update(&chunk[..n_read]);
            part.n_bytes += n_read as u64;
        }
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.with_context(|| cannot_write(&self.path))?;
        (self.digest, self.n_bytes) = (Sha256::new(), 0);
        Ok(())
    }

    /// Makes this part end where the answer begins.
    fn expect(&mut self, response: &Response<Body>) -> Result<(), Failure> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // The whole file, whatever was asked for.
            return Ok(self.restart()?);
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
        if first == Some(self.n_bytes) {
            return Ok(());
        }
        let asked = self.n_bytes;
        self.restart()?;
        let sent = range.unwrap_or("no range").to_owned();
        Err(Failure::passing(anyhow!("the server was asked for bytes from {asked} on and sent {sent}; beginning anew")))
    }

    /// Adds what `body` brings, up to `expected` bytes in all.
    fn append(&mut self, body: Body, expected: Option<u64>, shown: &Transfer) -> Result<(), Failure> {
        let mut reader = body.into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            shown.set_done(self.n_bytes);
            let got = self.n_bytes;
            let so_far = || match expected {
                Some(expected) => format!("got {got} bytes, expected {expected}"),
                None => format!("got {got} bytes"),
            };
            let n_read = match reader.read(&mut chunk) {
                Ok(n_read) => n_read,
                Err(error) => {
                    let cut = format!("the connection was cut: {}", so_far());
                    return Err(Failure::passing(anyhow!(error).context(cut)));
                }
            };
            if n_read == 0 {
                let is_whole = expected.is_none_or(|expected| expected == got);
                return if is_whole {
                    Ok(())
                } else {
                    Err(Failure::passing(anyhow!("the connection was cut: {}", so_far())))
                };
            }
            if expected.is_some_and(|expected| got + n_read as u64 > expected) {
                self.restart()?;
                return Err(Failure::passing(anyhow!("the server sends more than it announced; beginning anew")));
            }
            self.file.write_all(&chunk[..n_read]).with_context(|| cannot_write(&self.path))?;
            self.digest.update(&chunk[..n_read]);
            self.n_bytes += n_read as u64;
        }
    }

    fn sha256(&self) -> String {
        hex(self.digest.clone())
    }

    /// Makes the whole content appear at `blob`, in place of what is there.
    fn place(self, blob: &Path) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| cannot_write(blob))?;
        let placed = match self.own {
            Some(own) => own.persist(blob).map_err(|error| error.error),
            None => std::fs::rename(&self.path, blob),
        };
        placed.with_context(|| cannot_write(blob))
    }

    fn remove(self) -> anyhow::Result<()> {
        let Some(own) = self.own else {
            return std::fs::remove_file(&self.path).with_context(|| cannot_write(&self.path));
        };
        own.close().with_context(|| cannot_write(&self.path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_lock_waits_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/etag.lock");
        let held = Lock::take(&path, || panic!("nobody has it"));
        assert!(matches!(held, Lock::Held { .. }));
        let (sender, waits) = mpsc::channel();
        let second = std::thread::spawn({
            let path = path.clone();
            move || matches!(Lock::take(&path, || sender.send(()).unwrap()), Lock::Held { .. })
        });
        waits.recv().unwrap();
        assert!(!second.is_finished());
        drop(held);
        assert!(second.join().unwrap());
    }

    #[test]
    fn without_locks_each_process_writes_a_part_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("locks"), "no folder").unwrap();
        let lock = Lock::take(&folder.path().join("locks/etag.lock"), || panic!("nobody has it"));
        assert!(matches!(lock, Lock::Missing));
        let blob = folder.path().join("etag");
        let parts = [Part::open(&blob, &lock).unwrap(), Part::open(&blob, &lock).unwrap()];
        assert_ne!(parts[0].path, parts[1].path);
        let [mut first, second] = parts;
        first.file.write_all(b"whole").unwrap();
        first.place(&blob).unwrap();
        drop(second);
        let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(std::fs::read(&blob).unwrap(), b"whole");
    }
}

//! Logs of blocks, beside the records: nine tenths of what a record says, which tables do not need.
//!
//! `blocks.jsonl.zst` holds a zstd frame a record, each of one line: the JSON of what happened in its blocks. Frames are
//! independent, so that `zstd -dc` shows all and one can be appended. The record has the sha256 of its line in place of it.
//! A frame reaches the disk before its record does: what a record names is there, and a frame that none names does no harm.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use awq_core::log::BlockLog;
use sha2::{Digest, Sha256};

use super::Quantization;
use crate::files::{folder_of, sync_folder};

/// Name of the file.
pub const FILE: &str = "blocks.jsonl.zst";

/// Logs are written once: small is better than soon.
const LEVEL: i32 = 19;

/// Bytes of one line and of all. A frame of some bytes may stand for any number; a hundred blocks of a hundred experts have 40 MB.
const MAX_LINE: usize = 256 << 20;
const MAX_LINES: usize = 1 << 30;

/// The logs of a folder by their sha256, as JSON.
#[derive(Debug, Default)]
pub(super) struct BlockLogs {
    by_sha256: BTreeMap<String, String>,
    /// Bytes up to the end of the last whole frame.
    n_whole: u64,
}

impl BlockLogs {
    /// Reads what a folder holds, which may be nothing; a last frame that a kill cut short is left out, and so is one that is damaged.
    ///
    /// # Errors
    /// A file that cannot be read, or that would take more memory than logs of blocks do.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Self::of(&bytes).with_context(|| format!("{}: cannot read", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("{}: cannot read", path.display())),
        }
    }

    fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut logs = Self::default();
        let (mut rest, mut room) = (bytes, MAX_LINES);
        while !rest.is_empty() {
            let start = bytes.len() - rest.len();
            let text = match next_frame(&mut rest, room.min(MAX_LINE)) {
                Ok(text) => text,
                // It is no frame that a kill cut short: the file must stay as it is.
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(error),
                // Damaged where whole frames follow, else cut short.
                Err(_) => match position_of(FRAME_START, &bytes[start + 1..]) {
                    Some(next) => {
                        rest = &bytes[start + 1 + next..];
                        continue;
                    }
                    None => break,
                },
            };
            room -= text.len();
            logs.n_whole = (bytes.len() - rest.len()) as u64;
            logs.by_sha256.insert(sha256(&text), text);
        }
        Ok(logs)
    }

    /// The logs of this sha256, as one line of JSON without its end.
    pub(super) fn json(&self, sha256: &str) -> Option<&str> {
        self.by_sha256.get(sha256).map(|line| line.trim_end_matches('\n'))
    }

    /// Puts the logs of a record in their place; says whether they are there.
    pub(super) fn attach(&self, quantization: &mut Quantization) -> bool {
        let Some(sha256) = &quantization.blocks_sha256 else { return true };
        let json = self.by_sha256.get(sha256).and_then(|text| serde_json::from_str::<Vec<BlockLog>>(text).ok());
        let is_there = json.is_some();
        quantization.blocks = json.unwrap_or_default();
        is_there
    }
}

/// What every zstd frame begins with.
const FRAME_START: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

fn position_of(pattern: [u8; 4], bytes: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Decompresses one frame of at most `limit` bytes and moves on behind it.
fn next_frame(rest: &mut &[u8], limit: usize) -> io::Result<String> {
    let mut text = String::new();
    let frame = zstd::stream::read::Decoder::with_buffer(rest)?.single_frame();
    frame.take(limit as u64 + 1).read_to_string(&mut text)?;
    if text.len() > limit {
        let problem =
            "logs of blocks of more than 256 MiB in a record, or 1 GiB in all, which no run writes; remove the file";
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file to append to, opened when there is something to append.
#[derive(Debug)]
pub struct BlockFile {
    path: PathBuf,
    file: Option<File>,
}

impl BlockFile {
    /// Of a folder whose records this run holds.
    pub(super) fn new(folder: &Path) -> Self {
        Self { path: folder.join(FILE), file: None }
    }

    /// The quantization with its logs appended to the file instead; `None` where it has none.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(super) fn detach(&mut self, quantization: &Quantization) -> anyhow::Result<Option<Quantization>> {
        if quantization.blocks.is_empty() {
            return Ok(None);
        }
        let text = serde_json::to_string(&quantization.blocks).context("logs of blocks cannot be written as JSON")?;
        let sha256 = self.append(&text)?;
        Ok(Some(Quantization { blocks: Vec::new(), blocks_sha256: Some(sha256), ..quantization.clone() }))
    }

    /// Appends JSON as one line, forces it to the disk, and returns the sha256 of the line.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(super) fn append(&mut self, json: &str) -> anyhow::Result<String> {
        let line = format!("{json}\n");
        let advice = || {
            format!("{}: cannot append (is the disk full?); free space and run again to resume", self.path.display())
        };
        let frame = zstd::bulk::compress(line.as_bytes(), LEVEL).with_context(advice)?;
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path).with_context(advice)?,
        };
        // A frame that is cut short is cut off when the file is opened next.
        file.write_all(&frame).and_then(|()| file.sync_data()).with_context(advice)?;
        self.file = Some(file);
        Ok(sha256(&line))
    }
}

/// Opens the file for appending, without a last frame that a kill cut short.
fn open(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let n_whole = BlockLogs::of(&bytes)?.n_whole;
    if n_whole < bytes.len() as u64 {
        file.set_len(n_whole)?;
    }
    if is_new {
        sync_folder(folder_of(path))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn quantization(n_blocks: usize) -> Quantization {
        let block = |block_idx| BlockLog { block_idx, seconds: 0.1 + block_idx as f64, ..BlockLog::default() };
        Quantization {
            method_version: None,
            calibration_text_sha256: None,
            bits_per_weight: 4.0,
            full_precision: None,
            codes_sha256: "c".into(),
            n_calibration_sequences: 0,
            calibration_overlap_tokens: 0,
            blocks: (0..n_blocks).map(block).collect(),
            blocks_sha256: None,
        }
    }

    #[test]
    fn what_is_detached_is_attached_again() {
        let folder = tempfile::tempdir().unwrap();
        let all = [quantization(3), quantization(5), quantization(3)];
        let mut file = BlockFile::new(folder.path());
        let detached: Vec<Quantization> = all.iter().map(|one| file.detach(one).unwrap().unwrap()).collect();
        assert!(detached.iter().all(|one| one.blocks.is_empty()));
        let logs = BlockLogs::read(folder.path()).unwrap();
        for (mut one, whole) in detached.into_iter().zip(all) {
            assert!(logs.attach(&mut one));
            assert_eq!(one.blocks, whole.blocks);
        }
        assert_eq!(BlockFile::new(folder.path()).detach(&quantization(0)).unwrap(), None);
    }

    #[test]
    fn a_frame_cut_short_anywhere_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = BlockFile::new(folder.path()).detach(&quantization(2)).unwrap().unwrap();
        let n_first = std::fs::metadata(&path).unwrap().len();
        BlockFile::new(folder.path()).detach(&quantization(4)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n_bytes in n_first..whole.len() as u64 {
            std::fs::write(&path, &whole[..n_bytes as usize]).unwrap();
            let logs = BlockLogs::read(folder.path()).unwrap();
            assert_eq!(logs.n_whole, n_first, "cut at {n_bytes}");
            assert!(logs.attach(&mut first.clone()));
            // Going on writes behind the last whole frame.
            let third = BlockFile::new(folder.path()).detach(&quantization(6)).unwrap().unwrap();
            let logs = BlockLogs::read(folder.path()).unwrap();
            assert!(logs.attach(&mut first.clone()) && logs.attach(&mut third.clone()));
        }
    }

    #[test]
    fn a_damaged_frame_costs_none_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut ends = vec![0];
        let detached = [2, 4, 6].map(|n_blocks| {
            let detached = BlockFile::new(folder.path()).detach(&quantization(n_blocks)).unwrap().unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len() as usize);
            detached
        });
        let whole = std::fs::read(&path).unwrap();
        for frame in 0..2 {
            for at in [ends[frame], ends[frame] + 5, ends[frame + 1] - 1] {
                let mut damaged = whole.clone();
                damaged[at] ^= 0xff;
                std::fs::write(&path, &damaged).unwrap();
                let fourth = BlockFile::new(folder.path()).detach(&quantization(8)).unwrap().unwrap();
                assert!(std::fs::read(&path).unwrap().starts_with(&damaged), "frame {frame}, byte {at}");
                let logs = BlockLogs::read(folder.path()).unwrap();
                let others = detached.iter().enumerate().filter(|(other, _)| *other != frame);
                assert!(
                    others.chain([(3, &fourth)]).all(|(_, one)| logs.attach(&mut one.clone())),
                    "frame {frame}, byte {at}"
                );
            }
        }
    }

    #[test]
    fn a_frame_that_stands_for_too_much_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        io::copy(&mut io::repeat(b' ').take(MAX_LINE as u64 + 1), &mut bomb).unwrap();
        let bomb = bomb.finish().unwrap();
        assert!(bomb.len() < 100_000, "{}", bomb.len());
        std::fs::write(&path, &bomb).unwrap();
        let expected = "logs of blocks of more than 256 MiB in a record";
        let error = BlockLogs::read(folder.path()).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        let error = BlockFile::new(folder.path()).detach(&quantization(2)).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        assert_eq!(std::fs::read(&path).unwrap(), bomb);
    }

    #[test]
    fn logs_that_are_gone_are_told_apart_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut detached = BlockFile::new(folder.path()).detach(&quantization(2)).unwrap().unwrap();
        std::fs::write(folder.path().join(FILE), b"no frame").unwrap();
        let logs = BlockLogs::read(folder.path()).unwrap();
        assert!(!logs.attach(&mut detached));
        assert!(logs.attach(&mut quantization(2)), "an old record has its logs itself");
    }
}

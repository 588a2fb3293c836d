//! The file of records: one JSON object a line, appended with one write and a sync.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::blocks::{self, BlockFile, BlockLogs};
use super::hold::Hold;
use super::{Quantization, SCHEMA_VERSION};
use crate::files::{self, folder_of, sync_folder, temporary_in};

/// A kind of record, with a file of its own.
pub trait Line: DeserializeOwned {
    /// What is written as such a line.
    type Written: Serialize;

    /// Name of the file.
    const FILE: &'static str;

    /// Layout of the record, see [`SCHEMA_VERSION`].
    fn schema(&self) -> u32;

    /// What has logs of blocks that are kept apart, in a kind of record that has it.
    fn quantization(&mut self) -> Option<&mut Quantization> {
        None
    }

    /// What is to be written, once its logs of blocks are appended to their own file; `None` where it has none.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    fn detached(_written: &Self::Written, _blocks: &mut BlockFile) -> anyhow::Result<Option<Self::Written>> {
        Ok(None)
    }
}

/// A whole line that is not a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
    /// The line; what is not UTF-8 in it is replaced.
    pub text: String,
}

/// The append-only file of records, held by one run at a time.
#[derive(Debug)]
pub struct RecordFile<R> {
    path: PathBuf,
    file: File,
    on_record: Vec<R>,
    notes: Vec<String>,
    pub(super) blocks: BlockFile,
    hold: Hold,
    /// The file before bad lines were set aside: a run that opened it a moment ago finds it locked, not free.
    _replaced: Option<File>,
}

impl<R: Line> RecordFile<R> {
    /// Opens the file of these records in `folder` for appending and reads what it already holds.
    ///
    /// A last line that a kill or a full disk cut short is cut off. A whole line that is not a record is moved to
    /// `NAME.bad.jsonl`, with its number and what is wrong. Every other line is kept as it is.
    ///
    /// # Errors
    /// If the file cannot be opened for writing, another run is writing to it, or a newer program wrote a record.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(R::FILE);
        let is_new = !path.exists();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(|| {
            format!("{}: cannot open for appending; choose a writable folder with --out", path.display())
        })?;
        let hold = Hold::take(&file, &path)?;
        if is_new {
            sync_folder(folder).with_context(|| format!("{}: cannot write the folder", folder.display()))?;
        }
        files::sweep(folder);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("{}: cannot read", path.display()))?;
        let whole = whole_lines(&bytes);
        let Lines { mut records, bad } = Lines::parse(&path, whole)?;
        let mut notes = Vec::from_iter(attach_blocks(&mut records, folder)?);
        if bytes.len() > whole.len() {
            file.set_len(whole.len() as u64)
                .with_context(|| format!("{}: cannot cut off the incomplete record", path.display()))?;
            notes
                .push(format!("{}: the last record was cut short and is dropped; its cell runs again", path.display()));
        }
        let mut replaced = None;
        if !bad.is_empty() {
            let aside = set_aside(&path, &bad)
                .with_context(|| format!("{}: cannot set lines aside that are no records", path.display()))?;
            let numbers = bad.iter().map(|bad| bad.line).collect();
            let rest = without_lines(&path, whole, &numbers, &hold)
                .with_context(|| format!("{}: cannot write without lines that are no records", path.display()))?;
            replaced = Some(std::mem::replace(&mut file, rest));
            let moved = |bad: &BadLine| format!("{}, moved to {}", describe(&path, bad), aside.display());
            notes.extend(bad.iter().map(moved));
        }
        let blocks = BlockFile::new(folder);
        Ok(Self { path, file, on_record: records, notes, blocks, hold, _replaced: replaced })
    }

    /// The records that were in the file when it was opened.
    pub fn on_record(&self) -> &[R] {
        &self.on_record
    }

    /// What was found wrong with the file, and mended: a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record and forces it to the disk, after its logs of blocks.
    ///
    /// # Errors
    /// If it cannot be written whole (a full disk): the file is then cut back to the records that it held before.
    pub fn append(&mut self, record: &R::Written) -> anyhow::Result<()> {
        let detached = R::detached(record, &mut self.blocks)?;
        let mut line =
            serde_json::to_string(detached.as_ref().unwrap_or(record)).context("a record cannot be written as JSON")?;
        line.push('\n');
        self.append_line(line.as_bytes())
    }

    /// Appends a line with its end and forces it to the disk.
    ///
    /// # Errors
    /// If it cannot be written whole: the file is then cut back.
    pub(super) fn append_line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let before =
            self.file.seek(SeekFrom::End(0)).with_context(|| format!("{}: cannot seek", self.path.display()))?;
        let written = self.file.write_all(line).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Leave whole lines only; if even this fails, the next `open` drops the cut line.
            let _ = self.file.set_len(before);
            return Err(error).with_context(|| {
                format!(
                    "{}: cannot append a record (is the disk full?); free space and run again to resume",
                    self.path.display()
                )
            });
        }
        Ok(())
    }
}

impl<R> RecordFile<R> {
    /// Replaces what the file holds.
    ///
    /// # Errors
    /// If it cannot be written: the file is then as it was.
    pub(super) fn rewrite(&mut self, content: &[u8]) -> std::io::Result<()> {
        let file = rewritten(&self.path, content, &self.hold)?;
        self._replaced = Some(std::mem::replace(&mut self.file, file));
        Ok(())
    }
}

/// Reads all records of a finished or interrupted experiment, without opening the file for writing. The second list has a
/// sentence for each whole line that is not a record.
///
/// # Errors
/// If the file is missing, or a newer program wrote a record.
pub fn read_records<R: Line>(folder: &Path) -> anyhow::Result<(Vec<R>, Vec<String>)> {
    let path = folder.join(R::FILE);
    let bytes =
        std::fs::read(&path).with_context(|| format!("{}: cannot read; run the experiment first", path.display()))?;
    let Lines { mut records, bad } = Lines::parse(&path, whole_lines(&bytes))?;
    let left_out = bad.iter().map(|bad| format!("{}, left out", describe(&path, bad)));
    let notes = left_out.chain(attach_blocks(&mut records, folder)?).collect();
    Ok((records, notes))
}

/// Puts logs of blocks that are kept apart in their places. A sentence where some are missing.
fn attach_blocks<R: Line>(records: &mut [R], folder: &Path) -> anyhow::Result<Option<String>> {
    let mut apart: Vec<&mut Quantization> = records
        .iter_mut()
        .filter_map(Line::quantization)
        .filter(|quantization| quantization.blocks_sha256.is_some())
        .collect();
    if apart.is_empty() {
        return Ok(None);
    }
    let logs = BlockLogs::read(folder)?;
    let n_missing = apart.iter_mut().map(|quantization| logs.attach(quantization)).filter(|is_there| !is_there).count();
    Ok((n_missing > 0).then(|| {
        format!(
            "{}: the logs of blocks of {n_missing} record(s) are not in it: figures of blocks and statistics of steps lack them; \
             keep it beside {}, or run these cells in another folder",
            folder.join(blocks::FILE).display(),
            R::FILE
        )
    }))
}

/// `records.jsonl:5: not a record (missing field `schema`)`.
fn describe(path: &Path, bad: &BadLine) -> String {
    format!("{}:{}: not a record ({})", path.display(), bad.line, bad.reason)
}

/// Everything up to the last line feed. Bytes, not text: what follows may end in the middle of a character.
pub(super) fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    &bytes[..end]
}

/// The lines of a file, told apart.
pub(super) struct Lines<R> {
    records: Vec<R>,
    bad: Vec<BadLine>,
}

impl<R: Line> Lines<R> {
    pub(super) fn parse(path: &Path, whole: &[u8]) -> anyhow::Result<Self> {
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        for (index, line) in whole.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            match serde_json::from_slice::<R>(line) {
                _ if line.is_empty() => (),
                Ok(record) if record.schema() == SCHEMA_VERSION => records.push(record),
                Ok(record) => {
                    ensure!(
                        record.schema() < SCHEMA_VERSION,
                        "{}:{}: record schema {}, this program reads {SCHEMA_VERSION}; use the newer program that wrote it, or \
                         another folder",
                        path.display(),
                        index + 1,
                        record.schema()
                    );
                    let reason = format!("record schema {}, this program reads {SCHEMA_VERSION}", record.schema());
                    bad.push(BadLine::new(index, reason, line));
                }
                Err(error) => bad.push(BadLine::new(index, error.to_string(), line)),
            }
        }
        Ok(Self { records, bad })
    }

    /// How many lines are no records.
    pub(super) fn n_bad(&self) -> usize {
        self.bad.len()
    }
}

impl BadLine {
    fn new(index: usize, reason: String, line: &[u8]) -> Self {
        Self { line: index + 1, reason, text: String::from_utf8_lossy(line).into_owned() }
    }
}

/// Appends bad lines to the file for them, which is where this says.
fn set_aside(path: &Path, bad: &[BadLine]) -> std::io::Result<PathBuf> {
    let aside = path.with_extension("bad.jsonl");
    let mut file = OpenOptions::new().append(true).create(true).open(&aside)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for BadLine { line, reason, text } in bad {
        let entry = json!({ "file": name, "line": line, "reason": reason, "text": text });
        file.write_all(format!("{entry}\n").as_bytes())?;
    }
    file.sync_all()?;
    Ok(aside)
}

/// Replaces the file by one without some of its lines, as [`rewritten`] does.
fn without_lines(
    path: &Path,
    whole: &[u8],
    numbers: &std::collections::BTreeSet<usize>,
    hold: &Hold,
) -> std::io::Result<File> {
    let lines = whole.split_inclusive(|&byte| byte == b'\n').enumerate();
    let kept: Vec<&[u8]> = lines.filter(|(index, _)| !numbers.contains(&(index + 1))).map(|(_, line)| line).collect();
    rewritten(path, &kept.concat(), hold)
}

/// Replaces the file as a whole, and opens it for appending, locked before it gets its name.
fn rewritten(path: &Path, content: &[u8], hold: &Hold) -> std::io::Result<File> {
    let folder = folder_of(path);
    let mut temporary = temporary_in(folder, ".tmp")?;
    temporary.write_all(content)?;
    temporary.as_file().sync_all()?;
    let file = OpenOptions::new().read(true).append(true).open(temporary.path())?;
    if matches!(hold, Hold::System) {
        // Its own lock is handed over, under the hold on the file that it replaces.
        temporary.as_file().unlock()?;
        file.lock()?;
    }
    temporary.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)?;
    Ok(file)
}

//! Moves the logs of blocks out of records that were written before they were kept apart.

use anyhow::Context;

use super::blocks;
use super::file::{Line as _, RecordFile};
use super::{Quantization, StoredRecord};

/// What became of the logs of blocks that lay in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Records whose logs were moved.
    pub n_moved: usize,
    /// Records that spell their logs otherwise than this program does, and are left as they are.
    pub n_left: usize,
}

impl RecordFile<StoredRecord> {
    /// Moves the logs of blocks that lie in records to [`blocks::FILE`]. Nothing else in a record changes, not a byte: its
    /// numbers stay as they were written. A kill leaves the records as they were, or all of them moved.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn compact(&mut self) -> anyhow::Result<Compacted> {
        let shown = self.path().display().to_string();
        let text = std::fs::read_to_string(self.path()).with_context(|| format!("{shown}: cannot read"))?;
        let mut compacted = Compacted::default();
        let mut lines = String::new();
        for line in text.split_inclusive('\n') {
            let mut record: StoredRecord = serde_json::from_str(line)
                .with_context(|| format!("{shown}: not a record; run the experiment again"))?;
            let inline = record.quantization().filter(|quantization| !quantization.blocks.is_empty());
            match inline.map(|quantization| moved(line, quantization, &mut self.blocks)).transpose()? {
                None => lines += line,
                Some(None) => {
                    compacted.n_left += 1;
                    lines += line;
                }
                Some(Some(line)) => {
                    compacted.n_moved += 1;
                    lines += &line;
                }
            }
        }
        if compacted.n_moved > 0 {
            self.rewrite(lines.as_bytes()).with_context(|| format!("{shown}: cannot write (is the disk full?)"))?;
        }
        Ok(compacted)
    }
}

/// The line with a sha256 in place of the logs, which are appended to their file; `None` where they are spelled otherwise.
fn moved(line: &str, quantization: &Quantization, blocks: &mut blocks::BlockFile) -> anyhow::Result<Option<String>> {
    let json = serde_json::to_string(&quantization.blocks).context("logs of blocks cannot be written as JSON")?;
    let inline = format!("\"blocks\":{json}");
    if line.matches(&inline).count() != 1 {
        return Ok(None);
    }
    let sha256 = blocks.append(&json)?;
    Ok(Some(line.replacen(&inline, &format!("\"blocks_sha256\":\"{sha256}\""), 1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::record::read_records;
    use crate::report::tests::records;

    #[test]
    fn records_of_before_say_the_same_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(StoredRecord::FILE);
        let lines: Vec<String> = records().iter().map(|record| serde_json::to_string(record).unwrap()).collect();
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let before = read_records::<StoredRecord>(folder.path()).unwrap();
        let mut file = RecordFile::<StoredRecord>::open(folder.path()).unwrap();
        let n_quantized = lines.iter().filter(|line| line.contains("\"blocks\":[{")).count();
        assert!(n_quantized > 1);
        assert_eq!(file.compact().unwrap(), Compacted { n_moved: n_quantized, n_left: 0 });
        // What was moved is not moved again; and the file is still held, and goes on.
        assert_eq!(file.compact().unwrap(), Compacted::default());
        file.append(&records()[0]).unwrap();
        drop(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("\"blocks\":") && text.lines().count() == lines.len() + 1);
        let (after, notes) = read_records::<StoredRecord>(folder.path()).unwrap();
        assert_eq!(notes, before.1);
        let bare = |mut record: StoredRecord| {
            if let Some(quantization) = record.quantization() {
                quantization.blocks_sha256 = None;
            }
            record
        };
        assert_eq!(after[..lines.len()].iter().cloned().map(bare).collect::<Vec<_>>(), before.0);
        assert_eq!(bare(after[lines.len()].clone()), before.0[0]);
    }

    #[test]
    fn logs_that_are_spelled_otherwise_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(StoredRecord::FILE);
        let line = serde_json::to_string(&records()[0]).unwrap().replace("\"blocks\":[", "\"blocks\": [") + "\n";
        std::fs::write(&path, &line).unwrap();
        let mut file = RecordFile::<StoredRecord>::open(folder.path()).unwrap();
        assert_eq!(file.compact().unwrap(), Compacted { n_moved: 0, n_left: 1 });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line);
    }

    #[test]
    fn missing_logs_are_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = RecordFile::<StoredRecord>::open(folder.path()).unwrap();
        records().iter().for_each(|record| file.append(record).unwrap());
        drop(file);
        std::fs::remove_file(folder.path().join(blocks::FILE)).unwrap();
        let (records, notes) = read_records::<StoredRecord>(folder.path()).unwrap();
        assert!(!records.is_empty());
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("blocks.jsonl.zst: the logs of blocks of 4 record(s) are not in it"), "{}", notes[0]);
    }
}

//! Takes over records of another folder: of another share of the same experiment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;

use super::blocks::BlockLogs;
use super::file::{Line as _, Lines, RecordFile, whole_lines};
use super::{Outcome, StoredRecord};
use crate::plan::CellId;

/// What became of the records of another folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Records that were taken over.
    pub n_new: usize,
    /// Records that were there already.
    pub n_known: usize,
    /// Records of cells that have a newer one here, or numbers where they say of a failure.
    pub n_left: usize,
    /// Lines that are no records.
    pub n_bad: usize,
    /// Records whose logs of blocks the other folder has lost; they are taken over without.
    pub n_without_blocks: usize,
}

impl RecordFile<StoredRecord> {
    /// Appends the records of `folder` that this file does not hold, byte for byte and in their order, with their logs of blocks. The
    /// last record of a cell is the one that counts, so a cell that has numbers here takes over no failure, and nothing that is
    /// older than its own record; a failure here gives way to any numbers. The other folder is left as it is; lines in it that are no records stay there.
    ///
    /// # Errors
    /// A file that cannot be read or written, or a newer program's record.
    pub fn merge(&mut self, folder: &Path) -> anyhow::Result<Merged> {
        let path = folder.join(StoredRecord::FILE);
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()));
        let (own, theirs) = (read(self.path())?, read(&path)?);
        let theirs = whole_lines(&theirs);
        // A record of a newer program is an error before anything is written.
        let n_bad = Lines::<StoredRecord>::parse(&path, theirs)?.n_bad();
        let lines = || own.split_inclusive(|&byte| byte == b'\n');
        let known: BTreeSet<&[u8]> = lines().collect();
        let own_records = lines().filter_map(|line| serde_json::from_slice::<StoredRecord>(line).ok());
        let mut standing: BTreeMap<CellId, (bool, u64)> =
            own_records.map(|one| (one.cell_id.clone(), rank(&one))).collect();
        let logs = BlockLogs::read(folder)?;
        let mut merged = Merged { n_bad, ..Merged::default() };
        for line in theirs.split_inclusive(|&byte| byte == b'\n') {
            let Ok(mut record) = serde_json::from_slice::<StoredRecord>(line) else { continue };
            if known.contains(line) {
                merged.n_known += 1;
                continue;
            }
            if standing.get(&record.cell_id).is_some_and(|&own| own > rank(&record)) {
                merged.n_left += 1;
                continue;
            }
            standing.insert(record.cell_id.clone(), rank(&record));
            if let Some(sha256) = record.quantization().and_then(|quantization| quantization.blocks_sha256.clone()) {
                match logs.json(&sha256) {
                    Some(json) => drop(self.blocks.append(json)?),
                    None => merged.n_without_blocks += 1,
                }
            }
            self.append_line(line)?;
            merged.n_new += 1;
        }
        Ok(merged)
    }
}

/// Of two records of one cell the one with the higher rank counts: whether it has numbers, then when it was made.
fn rank(record: &StoredRecord) -> (bool, u64) {
    (matches!(record.outcome, Outcome::Done(_)), record.provenance.unix_time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::record::{Failed, Stage, read_records};
    use crate::report::tests::records;

    #[test]
    fn shares_make_the_whole_again() {
        let [whole, first, second] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let records = records();
        let mut file = RecordFile::<StoredRecord>::open(whole.path()).unwrap();
        records.iter().for_each(|record| file.append(record).unwrap());
        for (folder, of_share) in [(&first, &records[..3]), (&second, &records[3..])] {
            let mut file = RecordFile::<StoredRecord>::open(folder.path()).unwrap();
            of_share.iter().for_each(|record| file.append(record).unwrap());
        }
        let merged = tempfile::tempdir().unwrap();
        let mut file = RecordFile::<StoredRecord>::open(merged.path()).unwrap();
        assert_eq!(file.merge(first.path()).unwrap(), Merged { n_new: 3, ..Merged::default() });
        assert_eq!(file.merge(second.path()).unwrap(), Merged { n_new: records.len() - 3, ..Merged::default() });
        // Again is nothing new.
        assert_eq!(file.merge(second.path()).unwrap(), Merged { n_known: records.len() - 3, ..Merged::default() });
        drop(file);
        let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(StoredRecord::FILE)).unwrap();
        assert_eq!(bytes(&merged), bytes(&whole));
        let read = |folder: &tempfile::TempDir| read_records::<StoredRecord>(folder.path()).unwrap();
        assert_eq!(read(&merged), read(&whole));
    }

    #[test]
    fn a_line_that_is_no_record_and_lost_logs_stop_nothing() {
        let share = tempfile::tempdir().unwrap();
        let mut file = RecordFile::<StoredRecord>::open(share.path()).unwrap();
        records().iter().for_each(|record| file.append(record).unwrap());
        drop(file);
        std::fs::remove_file(share.path().join(super::super::blocks::FILE)).unwrap();
        let path = share.path().join(StoredRecord::FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("not a record\n{text}{{\"cut")).unwrap();
        let merged = tempfile::tempdir().unwrap();
        let mut file = RecordFile::<StoredRecord>::open(merged.path()).unwrap();
        let Merged { n_new, n_without_blocks, n_bad, .. } = file.merge(share.path()).unwrap();
        assert_eq!((n_new, n_bad), (records().len(), 1));
        assert!(n_without_blocks > 1);
    }

    #[test]
    fn the_newest_record_of_a_cell_counts_in_whichever_order_folders_come() {
        let cell = records().swap_remove(0);
        let at = |unix_time| {
            let mut record = cell.clone();
            record.provenance.unix_time = unix_time;
            let folder = tempfile::tempdir().unwrap();
            RecordFile::<StoredRecord>::open(folder.path()).unwrap().append(&record).unwrap();
            folder
        };
        let (older, newer) = (at(100), at(200));
        for shares in [[&older, &newer], [&newer, &older]] {
            let merged = tempfile::tempdir().unwrap();
            let mut file = RecordFile::<StoredRecord>::open(merged.path()).unwrap();
            let counts = shares.map(|share| file.merge(share.path()).unwrap());
            drop(file);
            let (records, _) = read_records::<StoredRecord>(merged.path()).unwrap();
            assert_eq!(records.last().unwrap().provenance.unix_time, 200, "{counts:?}");
        }
        // The whole ran a cell again after its share did.
        let mut whole = RecordFile::<StoredRecord>::open(newer.path()).unwrap();
        assert_eq!(whole.merge(older.path()).unwrap(), Merged { n_left: 1, ..Merged::default() });
        // And the other way round.
        let mut whole = RecordFile::<StoredRecord>::open(older.path()).unwrap();
        let _newer = whole.merge(at(300).path()).unwrap();
        assert_eq!(whole.merge(at(250).path()).unwrap(), Merged { n_left: 1, ..Merged::default() });
    }

    #[test]
    fn a_failure_takes_no_numbers_away_however_new_it_is() {
        let cell = records().swap_remove(0);
        let folder = |unix_time, is_failed| {
            let mut record = cell.clone();
            record.provenance.unix_time = unix_time;
            if is_failed {
                record.outcome = Outcome::Failed(Failed { stage: Stage::Evaluate, error: "lost".into() });
            }
            let folder = tempfile::tempdir().unwrap();
            RecordFile::<StoredRecord>::open(folder.path()).unwrap().append(&record).unwrap();
            folder
        };
        let (numbers, failure) = (folder(100, false), folder(200, true));
        for shares in [[&numbers, &failure], [&failure, &numbers]] {
            let merged = tempfile::tempdir().unwrap();
            let mut file = RecordFile::<StoredRecord>::open(merged.path()).unwrap();
            let counts = shares.map(|share| file.merge(share.path()).unwrap());
            drop(file);
            let (records, _) = read_records::<StoredRecord>(merged.path()).unwrap();
            assert!(matches!(records.last().unwrap().outcome, Outcome::Done(_)), "{counts:?}");
        }
    }
}

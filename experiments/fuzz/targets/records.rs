//! Records with their logs of blocks, read by a report and by a run that goes on.
#![no_main]

use experiments::record::{RecordFile, StoredRecord, read_records};
use experiments_fuzz::folder_of;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 2] = ["records.jsonl", "blocks.jsonl.zst"];

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &FILES);
    let read = read_records::<StoredRecord>(folder).map(|(records, _)| records.len());
    if let Ok(file) = RecordFile::<StoredRecord>::open(folder) {
        assert_eq!(Ok(file.on_record().len()), read.map_err(|error| error.to_string()));
    }
    let _ = std::fs::remove_file(folder.join("records.bad.jsonl"));
});

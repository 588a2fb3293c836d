//! One file, or an index with its shards.
#![no_main]

use awq_core::load::SafetensorsCheckpoint;
use experiments_fuzz::{folder_of, read_all};
use libfuzzer_sys::fuzz_target;

const SHARDS: [&str; 3] = ["model.safetensors.index.json", "a.safetensors", "b.safetensors"];

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["model.safetensors"]);
    if let Ok(checkpoint) = SafetensorsCheckpoint::open_folder(folder) {
        read_all(&checkpoint);
    }
    let _ = std::fs::remove_file(folder.join("model.safetensors"));
    if let Ok(checkpoint) = SafetensorsCheckpoint::open_folder(folder_of(input, &SHARDS)) {
        read_all(&checkpoint);
    }
});

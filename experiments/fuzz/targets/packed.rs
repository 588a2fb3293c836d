//! A packed checkpoint of this program.
#![no_main]

use awq_core::load::PackedCheckpoint;
use experiments_fuzz::{folder_of, read_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["quantization.json", "model.safetensors"]);
    if let Ok(checkpoint) = PackedCheckpoint::open_folder(folder) {
        read_all(&checkpoint);
    }
});

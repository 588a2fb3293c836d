//! A folder in Hugging Face layout, as it is or as another tool has quantized it.
#![no_main]

use awq_core::load::check_folder;
use awq_core::model::wiring_of;
use awq_core::open::open_tensors;
use experiments_fuzz::{folder_of, read_all};
use libfuzzer_sys::fuzz_target;

/// The third is one of those in which tools put their settings.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "quantize_config.json"];

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &FILES);
    let _ = check_folder(folder);
    if let Ok((config, checkpoint)) = open_tensors(folder) {
        let _ = wiring_of(&config, checkpoint.as_ref());
        read_all(checkpoint.as_ref());
    }
});

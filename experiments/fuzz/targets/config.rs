//! `config.json` of any family, and the wiring that follows from it.
#![no_main]

use std::sync::Arc;

use awq_core::load::{MemoryCheckpoint, ModelConfig};
use awq_core::model::wiring_of;
use awq_core::open::{check_config, in_parts};
use experiments_fuzz::folder_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["config.json"]);
    let _ = check_config(folder);
    if let Ok(config) = ModelConfig::from_hugging_face(&folder.join("config.json")) {
        let _ = (config.longest_sequence(), config.rope().frequencies(), config.rope().angles(0..3));
        let nothing = in_parts(&config, Arc::new(MemoryCheckpoint::default()));
        if let Ok(wiring) = wiring_of(&config, nothing.as_ref()) {
            let _ = wiring.tensors(&config);
        }
    }
});

//! A GGUF file: configuration, tensors, tokenizer and wiring.
#![no_main]

use awq_core::model::wiring_of;
use awq_core::open::open_model;
use experiments_fuzz::{folder_of, read_all, use_tokenizer};
use libfuzzer_sys::fuzz_target;

const PARTS: [&str; 2] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &PARTS);
    if let Ok(model) = open_model(&folder.join(PARTS[0])) {
        let _ = wiring_of(&model.config, model.checkpoint.as_ref());
        read_all(model.checkpoint.as_ref());
        use_tokenizer(&model.tokenizer);
    }
});

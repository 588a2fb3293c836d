//! `tokenizer.json` with its `tokenizer_config.json`.
#![no_main]

use std::sync::LazyLock;

use awq_core::load::{ModelConfig, Tokenizer};
use experiments_fuzz::{config_of, folder_of, use_tokenizer};
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<ModelConfig> = LazyLock::new(|| config_of("LlamaForCausalLM"));

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["tokenizer.json", "tokenizer_config.json"]);
    if let Ok(tokenizer) = Tokenizer::from_folder(folder, &CONFIG) {
        use_tokenizer(&tokenizer);
    }
});

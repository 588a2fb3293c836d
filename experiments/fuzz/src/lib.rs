//! What all targets share: a folder in which each input is a file or several, and a limit of memory.

use std::alloc::System;
use std::path::Path;
use std::sync::{LazyLock, Once};
use std::{fs, panic, thread};

use awq_core::load::{Checkpoint, ModelConfig, Tokenizer};
use cap::Cap;
use tempfile::TempDir;

/// Bytes that readers may hold at once. An input has less than a megabyte; what asks for more ends the process, which counts as a fault.
const MAX_BYTES: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MAX_BYTES);

/// What stands between two files of an input.
const SEPARATOR: &[u8] = b"\n%%%%\n";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    allow_panics_of_libraries();
    TempDir::new().expect("TMPDIR can be written")
});

/// libFuzzer's hook ends the process where a panic begins, even where the program makes an error of it, as it does of those of the
/// tokenizers library, and of that of templates on its own thread.
pub fn allow_panics_of_libraries() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let is_in = |library: &str| panic.location().is_some_and(|location| location.file().contains(library));
            let is_caught = is_in("/tokenizers-") || is_in("/minijinja-") && thread::current().name() == Some("template");
            if !is_caught {
                hook(panic);
            }
        }));
    });
}

/// Writes an input, cut at its separators, to files of these names, and returns their folder. Names without a part are absent.
pub fn folder_of(input: &[u8], names: &[&str]) -> &'static Path {
    let folder = FOLDER.path();
    let mut rest = Some(input);
    for name in names {
        let path = folder.join(name);
        match rest {
            Some(bytes) => {
                let end = bytes.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
                fs::write(path, &bytes[..end.unwrap_or(bytes.len())]).expect("TMPDIR has room");
                rest = end.map(|end| &bytes[end + SEPARATOR.len()..]);
            }
            None => drop(fs::remove_file(path)),
        }
    }
    folder
}

/// Reads all that a checkpoint has.
pub fn read_all(checkpoint: &dyn Checkpoint) {
    for name in checkpoint.names().into_iter().chain(checkpoint.beside()) {
        let shape = checkpoint.shape(&name);
        let _ = (checkpoint.stored_type(&name), checkpoint.file_of(&name), checkpoint.is_integer(&name));
        if let Ok(values) = checkpoint.read_any_f32(&name)
            && let Some(shape) = shape
        {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: values of another shape");
        }
        let _ = checkpoint.read_f32(&name);
        let _ = checkpoint.read_quantized(&name);
        let _ = checkpoint.read_codes(&name);
    }
    let _ = (checkpoint.notes(), checkpoint.bytes_on_disk());
}

/// Puts texts through a tokenizer and back.
pub fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["", "Hello, world! It's 2026\u{2014}\u{e9}\u{4f60}\u{1f600}  \n\n\tx <s></s><unk>", "\0\u{ff}"] {
        for ids in [tokenizer.encode_with_special(text), tokenizer.encode_literally_with_special(text)] {
            let _ = ids.and_then(|ids| tokenizer.decode(&ids));
        }
    }
    for id in [0, 1, 2, 3, 255, 1 << 20, u32::MAX] {
        let _ = (tokenizer.token(id), tokenizer.is_special(id), tokenizer.decode(&[id]));
    }
    let _ = (tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos(), tokenizer.vocab_size(), tokenizer.to_json());
}

/// Facts of a small model of a class, for readers of other files than `config.json`.
pub fn config_of(architecture: &str) -> ModelConfig {
    let folder = TempDir::new().expect("TMPDIR can be written");
    let file = folder.path().join("config.json");
    let json = serde_json::json!({
        "architectures": [architecture], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(&file, json.to_string()).expect("TMPDIR has room");
    ModelConfig::from_hugging_face(&file).expect("a sound configuration")
}

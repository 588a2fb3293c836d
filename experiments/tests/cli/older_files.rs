//! Models in the files that came before safetensors and `tokenizer.json`: pickled weights, a SentencePiece model.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use crate::support::{N_CELLS, N_WORDS, Workshop, tokenizer};

/// A file of the tests of `awq-core`.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../awq-core/tests").join(name)).unwrap()
}

/// The model `llama-tiny`, pickled in two shards.
fn pickled() -> Workshop {
    let workshop = Workshop::new();
    fs::remove_file(workshop.path("model/model.safetensors")).unwrap();
    workshop.write("model/config.json", fixture("fixtures/llama-tiny/config.json"));
    for name in ["-00001-of-00002.bin", "-00002-of-00002.bin", ".bin.index.json"] {
        let name = format!("pytorch_model{name}");
        workshop.write(&format!("model/{name}"), fixture(&format!("pickled/llama-sharded/{name}")));
    }
    workshop.write("model/tokenizer.json", tokenizer(N_WORDS).to_string());
    workshop
}

#[test]
fn pickled_weights_give_the_numbers_of_safetensors() {
    let workshop = pickled();
    // The model has 32 positions.
    workshop.change_experiment("seq_len = 32", "seq_len = 28");
    workshop.change_experiment("seq_len = 64", "seq_len = 28");
    workshop.finish("pickled", &[]);
    assert!(workshop.read("pickled/records.jsonl").contains("pytorch_model-00002-of-00002.bin"));
    for name in ["-00001-of-00002.bin", "-00002-of-00002.bin", ".bin.index.json"] {
        fs::remove_file(workshop.path(&format!("model/pytorch_model{name}"))).unwrap();
    }
    workshop.write("model/model.safetensors", fixture("fixtures/llama-tiny/model.safetensors"));
    workshop.finish("safetensors", &[]);
    let values = |folder: &str| -> Vec<Json> {
        workshop.results(folder).into_values().map(|result| result["done"]["measurements"].clone()).collect()
    };
    assert_eq!(values("pickled").len(), N_CELLS);
    assert_eq!(values("pickled"), values("safetensors"));
}

#[test]
fn what_is_quantized_from_older_files_can_be_read_again() {
    let workshop = pickled();
    fs::remove_file(workshop.path("model/tokenizer.json")).unwrap();
    workshop.write("model/tokenizer.model", fixture("tokenizers/llama.model"));
    let inspected = workshop.run(&["inspect", "model", "--json", "--group-size", "16"]);
    assert_eq!(inspected.code, Some(0), "{inspected:?}");
    let quantize = ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "16", "--out", "packed"];
    let quantized = workshop.run(&quantize);
    assert_eq!(quantized.code, Some(0), "{quantized:?}");
    let written: Json = serde_json::from_str(&workshop.read("packed/tokenizer.json")).unwrap();
    assert_eq!(written["model"]["type"], "BPE");
    let facts = |folder: &str| -> Json {
        serde_json::from_str(&workshop.run(&["inspect", folder, "--json", "--group-size", "16"]).stdout).unwrap()
    };
    assert_eq!(facts("packed")["tokenizer"], facts("model")["tokenizer"]);
}

#[test]
fn a_pickle_that_would_run_something_is_refused() {
    let workshop = pickled();
    let file = "model/pytorch_model-00002-of-00002.bin";
    let mut bytes = fs::read(workshop.path(file)).unwrap();
    // The name of a class of the pickle, as long as another one.
    let (known, other) = (b"collections\nOrderedDict", b"os\nsystem_or_something_");
    let places: Vec<usize> = (0..bytes.len() - known.len()).filter(|at| bytes[*at..].starts_with(known)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + known.len()].copy_from_slice(other);
    }
    workshop.write(file, bytes);
    let refused = workshop.run(&["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "packed"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("its pickle names os.system_or_something_"), "{}", refused.stderr);
}

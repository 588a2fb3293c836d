//! Every family goes from a folder to a table.

use std::fs;
use std::path::Path;

use crate::support::{N_CELLS, N_WORDS, Workshop, tokenizer};

#[test]
fn every_family_runs_to_the_end() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../awq-core/tests/fixtures");
    for fixture in fs::read_dir(fixtures).unwrap() {
        let fixture = fixture.unwrap();
        let workshop = Workshop::new();
        for file in ["config.json", "model.safetensors"] {
            workshop.write(&format!("model/{file}"), fs::read(fixture.path().join(file)).unwrap());
        }
        workshop.write("model/tokenizer.json", tokenizer(N_WORDS).to_string());
        // These models have 32 positions.
        workshop.change_experiment("seq_len = 32", "seq_len = 28");
        workshop.change_experiment("seq_len = 64", "seq_len = 28");
        workshop.finish("out", &[]);
        let results = workshop.results("out");
        assert_eq!(results.len(), N_CELLS, "{fixture:?}");
        for result in results.values() {
            let perplexity = result["done"]["measurements"][0]["value"].as_f64().unwrap();
            assert!(perplexity > 1.0, "{fixture:?}: {result}");
        }
    }
}

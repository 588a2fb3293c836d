//! Every family goes from a folder to a table.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{N_CELLS, N_WORDS, Workshop, tokenizer};

/// A workshop with the model of a folder, which has 32 positions.
fn workshop_with(fixture: &Path) -> Workshop {
    let workshop = Workshop::new();
    for file in ["config.json", "model.safetensors"] {
        workshop.write(&format!("model/{file}"), fs::read(fixture.join(file)).unwrap());
    }
    workshop.write("model/tokenizer.json", tokenizer(N_WORDS).to_string());
    workshop.change_experiment("seq_len = 32", "seq_len = 28");
    workshop.change_experiment("seq_len = 64", "seq_len = 28");
    workshop
}

/// A folder of the core's tests.
fn folder_of_core(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../awq-core/tests").join(name)
}

#[test]
fn every_family_runs_to_the_end() {
    for fixture in fs::read_dir(folder_of_core("fixtures")).unwrap() {
        let fixture = fixture.unwrap().path();
        let workshop = workshop_with(&fixture);
        workshop.finish("out", &[]);
        let results = workshop.results("out");
        assert_eq!(results.len(), N_CELLS, "{fixture:?}");
        for result in results.values() {
            let perplexity = result["done"]["measurements"][0]["value"].as_f64().unwrap();
            assert!(perplexity > 1.0, "{fixture:?}: {result}");
        }
    }
}

/// Weights that are small floats with scales are a base model of so many bits, and a packed folder says nothing of them.
#[test]
fn models_of_small_floats_are_called_so() {
    for (format, label) in [("fp8-blocks", "base (FP8 32x32)"), ("ct-nvfp4", "base (NVFP4)")] {
        let workshop = workshop_with(&folder_of_core("floats").join(format));
        workshop.finish("out", &[]);
        let table = workshop.read("out/table.md");
        assert!(table.contains(label) && table.contains("is itself a quantized file"), "{format}: {table}");
        let asked = ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--out", "packed"];
        let ran = workshop.run(&asked);
        assert_eq!(ran.code, Some(0), "{format}: {ran:?}");
        let types = label.trim_start_matches("base (").trim_end_matches(')');
        assert!(ran.stderr.contains(&format!("the model is itself quantized ({types} in ")), "{}", ran.stderr);
        let card = workshop.read("packed/README.md");
        assert!(card.contains(&format!("| made of linears stored as | {types} in ")), "{card}");
        assert!(!workshop.read("packed/config.json").contains("quantization_config"), "{format}");
        assert_eq!(workshop.run(&["inspect", "packed"]).code, Some(0), "{format}");
    }
}

/// A packed folder is the whole model again.
#[test]
fn a_tower_for_images_is_named_and_kept() {
    let workshop = workshop_with(&folder_of_core("fixtures/llava-tiny"));
    let said = "language model of LlavaForConditionalGeneration, for texts; left as they are: multi_modal_projector";
    let words = |ran: &str| ran.split_whitespace().collect::<Vec<_>>().join(" ");
    let ran = workshop.run(&["inspect", "model"]);
    assert!(words(&ran.stdout).contains(said), "{}", ran.stdout);
    workshop.write("model/preprocessor_config.json", "{}");
    let asked =
        ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--out", "packed", "--quiet"];
    assert_eq!(workshop.run(&asked).code, Some(0));
    assert_eq!(workshop.read("packed/preprocessor_config.json"), "{}");
    let ran = workshop.run(&["inspect", "packed"]);
    assert!(words(&ran.stdout).contains(said), "{}", ran.stdout);
    let header = fs::read(workshop.path("packed/model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&header[..header.len() / 2]);
    for tensor in ["vision_tower.post_layernorm.weight", "multi_modal_projector.linear_1.bias"] {
        assert!(header.contains(tensor), "{tensor} is gone");
    }
}

/// What such a method folds into activations has no place elsewhere; rounding alone folds nothing.
#[test]
fn a_family_with_scales_behind_activations_is_written_for_others_where_a_method_folds_none() {
    let workshop = workshop_with(&folder_of_core("fixtures/phi-tiny"));
    let quantize = |method: &str, format: &str| {
        let grid = ["--bits", "4", "--group-size", "16", "--calibration", "calibration.txt", "--quiet"];
        workshop
            .run(&[&["quantize", "model", "--method", method, "--format", format, "--out", format][..], &grid].concat())
    };
    let perplexity = |folder: &str| {
        let experiment = workshop.read("experiment.toml").replace("path = \"model\"", &format!("path = \"{folder}\""));
        workshop.write("scored.toml", experiment);
        let out = format!("{folder}-results");
        let ran = workshop.run(&["scored.toml", "--out", &out, "--only", "method=fp"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        workshop.records(&out)[0]["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap()
    };
    for format in ["packed", "gptq"] {
        let ran = quantize("rtn", format);
        assert_eq!(ran.code, Some(0), "{format}: {ran:?}");
    }
    let (expected, found) = (perplexity("packed"), perplexity("gptq"));
    assert!((found / expected).ln().abs() < 1e-4, "{found}, {expected}");
    let ran = quantize("awq", "gptq_v2");
    ran.refused(
        "format `gptq_v2`: in PhiForCausalLM the method folds scales into activations, where other programs have none; choose one of \
         packed",
    );
}

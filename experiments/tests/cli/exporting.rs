//! `quantize --format`: folders that other programs load, read again here as those of others are.

use std::fs;

use serde_json::Value;

use crate::support::{Ran, Workshop};

/// The formats of other programs, and what a base model of one is called.
const FORMATS: [(&str, &str); 5] = [
    ("awq", "AWQ W4"),
    ("gptq", "GPTQ W4"),
    ("gptq_v2", "GPTQ W4"),
    ("compressed-tensors", "compressed-tensors W4"),
    ("compressed-tensors-0.17", "compressed-tensors W4"),
];

fn export(workshop: &Workshop, method: &str, format: &str, more: &[&str]) -> Ran {
    let asked = ["quantize", "model", "--method", method, "--bits", "4", "--group-size", "32", "--format", format];
    let place = ["--calibration", "calibration.txt", "--out", format, "--quiet"];
    workshop.run(&[&asked[..], &place[..], more].concat())
}

fn json(workshop: &Workshop, file: &str) -> Value {
    serde_json::from_str(&workshop.read(file)).unwrap()
}

/// Perplexity of a folder as it is.
fn perplexity(workshop: &Workshop, folder: &str) -> (f64, Value) {
    let experiment = workshop.experiment().replace("path = \"model\"", &format!("path = \"{folder}\""));
    workshop.write("experiment.toml", experiment);
    workshop.finish(&format!("{folder}-results"), &["--only", "method=fp"]);
    let done = workshop.records(&format!("{folder}-results"))[0]["outcome"]["done"].clone();
    (done["measurements"][0]["value"].as_f64().unwrap(), done["storage"].clone())
}

#[test]
fn a_folder_of_each_format_is_the_same_model() {
    let workshop = Workshop::new();
    let packed = export(&workshop, "awq", "packed", &[]);
    assert_eq!(packed.code, Some(0), "{packed:?}");
    let (expected, _) = perplexity(&workshop, "packed");
    for (format, label) in FORMATS {
        let ran = export(&workshop, "awq", format, &[]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains("AWQ W4 g32, 4.625 bits per quantized weight"), "{}", ran.stdout);
        let (found, storage) = perplexity(&workshop, format);
        // Products of codes and scales are rounded to f16 there.
        assert!((found / expected).ln().abs() < 1e-4, "{format}: {found}, {expected}");
        assert_eq!((&storage["types"][0]["name"], &storage["types"][0]["group_size"]), (&label.into(), &32.into()));
        assert_eq!(storage["bits_per_weight"], 4.625, "{format}");
        // Decoded from its codes, as those of this program.
        let generated =
            |folder: &str| workshop.run(&["generate", folder, "--prompt", "w1 w2 w3", "--max-tokens", "20"]);
        let (own, other) = (generated("packed"), generated(format));
        assert!(other.stderr.contains("(8 of 8 linears packed)"), "{other:?}");
        assert_eq!(other.stdout, own.stdout, "{format}");
        let facts = json_of(&workshop.run(&["inspect", format, "--json"]));
        let described = facts["quantized_by"].as_str().unwrap();
        assert!(described.contains("bits 4, group size 32"), "{described}");
        let card = workshop.read(&format!("{format}/README.md"));
        assert!(card.starts_with("# AWQ W4 g32\n") && card.contains("--format"), "{card}");
        assert_eq!(card.contains("| note | GPTQModel.load refuses version 1 of weights"), format == "gptq", "{card}");
    }
}

fn json_of(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn what_a_format_cannot_hold_is_refused_before_the_work() {
    let workshop = Workshop::new();
    let refused = |ran: Ran, expected: &str| {
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    };
    refused(export(&workshop, "hqq", "awq", &[]), "its zero points are codes, those of this method are real numbers");
    let ragged = ["--override", "*.down_proj=w4g48"];
    refused(
        export(&workshop, "rtn", "awq", &ragged),
        "groups of 48 do not divide 128 input channels (--group-size may); choose one of packed, gptq, gptq_v2\n",
    );
    let head = ["--override", "lm_head=w4g32"];
    refused(
        export(&workshop, "rtn", "awq", &head),
        "loaders keep `lm_head` in full precision; choose one of packed, compressed-tensors, ",
    );
    refused(
        export(&workshop, "rtn", "gptq_v2", &head),
        "transformers does not read `lm_head` in it, and draws one at random; choose one of packed, compressed-tensors, ",
    );
    for (format, _) in FORMATS {
        assert!(!workshop.path(format).exists(), "{format}");
    }
    let unknown = export(&workshop, "rtn", "onnx", &[]);
    assert!(unknown.stderr.contains("no format is called `onnx`; choose one of packed, awq, gptq"), "{unknown:?}");
}

#[test]
fn linears_in_full_precision_are_named_to_loaders() {
    let workshop = Workshop::new();
    for (format, _) in FORMATS {
        let ran = export(&workshop, "rtn", format, &["--override", "*.v_proj=fp"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let settings = json(&workshop, &format!("{format}/config.json"))["quantization_config"].to_string();
        let names = ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"];
        let escaped = |name: &str| name.replace('.', "\\\\.");
        for name in names {
            assert!(settings.contains(name) || settings.contains(&escaped(name)), "{format}: {settings}");
        }
        let stored = safetensors_names(&workshop, format);
        assert!(stored.contains(&"model.layers.0.self_attn.v_proj.weight".to_owned()), "{stored:?}");
    }
}

fn safetensors_names(workshop: &Workshop, folder: &str) -> Vec<String> {
    let bytes = fs::read(workshop.path(folder).join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    header.tensors().into_keys().collect()
}

#[test]
fn files_beside_the_weights_come_along() {
    let workshop = Workshop::new();
    let files = [
        ("generation_config.json", "{\"eos_token_id\": 3, \"top_p\": 0.5}"),
        ("chat_template.jinja", "{{ messages }}"),
        ("special_tokens_map.json", "{}"),
    ];
    for (name, content) in files {
        workshop.write(&format!("model/{name}"), content);
    }
    assert_eq!(export(&workshop, "rtn", "gptq", &[]).code, Some(0));
    for (name, content) in files {
        assert_eq!(workshop.read(&format!("gptq/{name}")), content);
    }
    assert_eq!(workshop.read("gptq/tokenizer.json"), workshop.read("model/tokenizer.json"));
    let (before, mut after) = (json(&workshop, "model/config.json"), json(&workshop, "gptq/config.json"));
    after.as_object_mut().unwrap().remove("quantization_config");
    after.as_object_mut().unwrap().remove("model_type");
    let mut before = before;
    before.as_object_mut().unwrap().remove("model_type");
    assert_eq!(before, after);
}

/// A head that is quantized is no longer the embedding.
#[test]
fn a_tied_head_is_untied_where_it_is_quantized() {
    let workshop = Workshop::new();
    let ran = export(&workshop, "rtn", "compressed-tensors", &["--override", "lm_head=w4g32"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let config = json(&workshop, "compressed-tensors/config.json");
    assert_eq!(
        (&config["tie_word_embeddings"], &config["quantization_config"]["ignore"]),
        (&false.into(), &Value::Array(vec![]))
    );
    let names = safetensors_names(&workshop, "compressed-tensors");
    assert!(names.contains(&"lm_head.weight_packed".to_owned()), "{names:?}");
    assert_eq!(workshop.run(&["inspect", "compressed-tensors"]).code, Some(0));
}

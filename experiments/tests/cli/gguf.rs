//! `quantize --format gguf`: one file, which is read here as those of llama.cpp are.

use serde_json::{Value, json};

use crate::support::{Ran, Workshop};

/// A byte-level tokenizer of the characters of the texts, with a merge, and a special token.
fn tokenizer() -> Value {
    let letters =
        ["<|end|>", "w", "\u{120}", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "\u{10a}", ".", "\u{120}w"];
    let vocab: serde_json::Map<String, Value> =
        letters.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{
            "id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        }],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["\u{120}", "w"]]
        }
    })
}

fn workshop() -> Workshop {
    let workshop = Workshop::new();
    workshop.write("model/tokenizer.json", tokenizer().to_string());
    workshop.write("model/tokenizer_config.json", json!({ "chat_template": "{{ messages }}" }).to_string());
    workshop
}

fn quantize(workshop: &Workshop, grid: &str, format: &str, out: &str) -> Ran {
    let place = ["--calibration", "calibration.txt", "--quiet", "--format", format, "--out", out];
    let asked: Vec<&str> = ["quantize", "model"].into_iter().chain(grid.split(' ')).chain(place).collect();
    workshop.run(&asked)
}

/// Perplexity of a model as it is, and the types of its linears.
fn score(workshop: &Workshop, model: &str) -> (f64, String, f64) {
    let experiment = workshop.experiment().replace("path = \"model\"", &format!("path = \"{model}\""));
    workshop.write("experiment.toml", experiment);
    let out = format!("{model}-results");
    workshop.finish(&out, &["--only", "method=fp"]);
    let done = workshop.records(&out)[0]["outcome"]["done"].clone();
    let (value, storage) = (done["measurements"][0]["value"].as_f64().unwrap(), done["storage"].clone());
    (value, storage["types"][0]["name"].as_str().unwrap().to_owned(), storage["bits_per_weight"].as_f64().unwrap())
}

#[test]
fn a_file_is_the_model_that_was_quantized() {
    let workshop = workshop();
    for (index, (grid, expected, bits)) in [
        ("--method awq --bits 4 --group-size 64", "GGUF Q5_0", 5.5),
        ("--method rtn --bits 4 --group-size 32 --symmetry full", "GGUF Q4_0", 4.5),
        ("--method gptq --bits 5 --symmetry restricted", "GGUF Q5_0", 5.5),
        ("--method rtn --bits 8 --group-size 32 --symmetry restricted", "GGUF Q8_0", 8.5),
        ("--method rtn --values e2m1 --group-size 32 --scale-dtype e8m0", "GGUF MXFP4", 4.25),
    ]
    .into_iter()
    .enumerate()
    {
        let (file, packed) = (format!("m{index}.gguf"), format!("packed{index}"));
        let ran = quantize(&workshop, grid, "gguf", &file);
        assert_eq!(ran.code, Some(0), "{grid}: {ran:?}");
        assert!(ran.stdout.starts_with(&file), "{}", ran.stdout);
        let stored = format!(", linears of blocks stored as {expected} in {bits:.3} bits each, ");
        assert!(ran.stdout.contains(&stored), "{}", ran.stdout);
        assert_eq!(quantize(&workshop, grid, "packed", &packed).code, Some(0));
        let (found, name, bits_per_weight) = score(&workshop, &file);
        assert_eq!((name.as_str(), bits_per_weight), (expected, bits), "{grid}");
        let (packed, ..) = score(&workshop, &packed);
        assert!((found / packed).ln().abs() < 1e-6, "{grid}: {found}, {packed}");
    }
    let facts = workshop.run(&["inspect", "m0.gguf", "--json"]);
    assert_eq!(facts.code, Some(0), "{facts:?}");
    let facts: Value = serde_json::from_str(&facts.stdout).unwrap();
    assert!(facts["quantized_by"].as_str().unwrap().starts_with("awq-rs "), "{facts}");
}

#[test]
fn a_tied_head_is_a_tensor_of_its_own_where_it_is_quantized() {
    let workshop = workshop();
    let grid = "--method rtn --bits 4 --group-size 32 --symmetry full --override lm_head=w8 --override *.v_proj=fp";
    let ran = quantize(&workshop, grid, "gguf", "m.gguf");
    // An override of 8 bits keeps the symmetry.
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let facts = workshop.run(&["inspect", "m.gguf"]);
    assert_eq!(facts.code, Some(0), "{facts:?}");
    assert!(std::fs::read(workshop.path("m.gguf")).unwrap().windows(13).any(|name| name == b"output.weight"));
}

#[test]
fn what_a_file_cannot_hold_is_refused_before_the_work() {
    let workshop = Workshop::new();
    let refused = |grid: &str, out: &str, expected: &str| {
        let ran = quantize(&workshop, grid, "gguf", out);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!workshop.path(out).exists());
    };
    let plain = "--method rtn --bits 4 --group-size 32";
    refused(plain, "model-gguf", "the name of a GGUF file ends with .gguf; choose such a name with --out");
    refused(
        plain,
        "m.gguf",
        "its tokenizer is of the kind WordLevel, and only BPE is written to GGUF files; choose one of packed, awq",
    );
    workshop.write("model/tokenizer.json", tokenizer().to_string());
    refused(
        "--method rtn --bits 8",
        "m.gguf",
        "8 bits with free zero points to 255 (7 bits, or --symmetry restricted)",
    );
    refused("--method hqq --bits 4 --group-size 32", "m.gguf", "its zero points are codes");
    refused("--method rtn --bits 4 --group-size 48", "m.gguf", "groups of 48 are not made of blocks of 32 inputs");
    workshop.write("there.gguf", "");
    let ran = quantize(&workshop, plain, "gguf", "there.gguf");
    assert!(ran.stderr.contains("there.gguf: exists already; choose another file with --out"), "{ran:?}");
}

/// A scaled model computes what it did, and the matrix has a row for each linear of a block.
#[test]
fn a_model_in_floats_is_exported_with_what_its_linears_see() {
    let workshop = workshop();
    let export = |more: &str, out: &str| {
        let asked = ["export", "model", "--calibration", "calibration.txt", "--quiet", "--out", out];
        let asked: Vec<&str> = asked.into_iter().chain(more.split(' ').filter(|word| !word.is_empty())).collect();
        workshop.run(&asked)
    };
    for (more, out) in [
        ("--float f32", "plain.gguf"),
        ("--float f32 --scales-for w4g32 --imatrix scaled-imatrix.gguf", "scaled.gguf"),
        ("--imatrix plain-imatrix.gguf", "halves.gguf"),
    ] {
        let ran = export(more, out);
        assert_eq!(ran.code, Some(0), "{more}: {ran:?}");
    }
    let (plain, name, _) = score(&workshop, "plain.gguf");
    assert_eq!(name, "GGUF F32");
    let (scaled, ..) = score(&workshop, "scaled.gguf");
    assert!((scaled / plain).ln().abs() < 1e-4, "{scaled}, {plain}");
    let (halves, name, _) = score(&workshop, "halves.gguf");
    assert!((halves / plain).ln().abs() < 1e-2 && name == "GGUF F16", "{halves}, {plain}");
    for file in ["plain-imatrix.gguf", "scaled-imatrix.gguf"] {
        let bytes = std::fs::read(workshop.path(file)).unwrap();
        let count = |text: &[u8]| bytes.windows(text.len()).filter(|window| *window == text).count();
        assert_eq!((count(b".weight.in_sum2"), count(b".weight.counts"), count(b"imatrix.chunk_count")), (14, 14, 1));
    }
    let taken = export("--imatrix plain-imatrix.gguf", "more.gguf");
    assert!(
        taken.stderr.contains("plain-imatrix.gguf: exists already; choose another file with --imatrix"),
        "{taken:?}"
    );
    let same = export("--imatrix ./more.gguf", "more.gguf");
    same.refused("./more.gguf: --out and --imatrix name one file; choose another with --imatrix");
    let wrong = export("--scales-for 4", "more.gguf");
    assert!(wrong.stderr.contains("--scales-for 4: not a grid such as w4g32"), "{wrong:?}");
}

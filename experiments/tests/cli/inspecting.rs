//! `inspect` and `list`, and models by their names on the hub.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{N_BLOCKS, N_CELLS, Ran, Workshop};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// Puts the files of `model` into the hub's cache, as `owner/name` at `main`.
fn put_on_the_hub(workshop: &Workshop) {
    let repo = workshop.path("home/.cache/huggingface/hub/models--owner--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for entry in fs::read_dir(workshop.path("model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_folder_is_described_without_its_tensors() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["inspect", "model", "--group-size", "48"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    for words in [
        "model: Hugging Face folder",
        "LlamaForCausalLM (llama)",
        "vocabulary 40, context 128",
        "self_attn.q_proj   64   64         2  2, ragged: the last has 16 weights",
        "chat template no\n",
    ] {
        assert!(ran.stdout.contains(words), "no {words:?}: {}", ran.stdout);
    }
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= 100), "{}", ran.stdout);

    // The same where the values of the tensors are not numbers.
    workshop.write_model("model", |_, values| values.fill(f32::NAN));
    assert_eq!(workshop.run(&["inspect", "model", "--group-size", "48"]).stdout, ran.stdout);

    let facts = json(&workshop.run(&["inspect", "model", "--json", "--bits", "3", "--group-size", "64"]));
    assert_eq!((facts["is"].as_str(), facts["shapes"]["n_blocks"].as_u64()), (Some("model"), Some(N_BLOCKS as u64)));
    let quantized = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64);
    assert_eq!(facts["parameters"]["quantized"], quantized);
    assert_eq!(facts["parameters"]["total"], quantized + 40 * 64 + 5 * 64);
    // A scale of 16 bits and a zero point of 3 for 64 weights.
    assert_eq!(facts["quantization"]["bits_per_weight"], 3.0 + 19.0 / 64.0);
}

#[test]
fn what_does_not_open_is_named_as_far_as_it_is_known() {
    let workshop = Workshop::new();
    let config = workshop.read("model/config.json");
    workshop.write("model/config.json", config.replace("LlamaForCausalLM", "MambaForCausalLM"));
    let ran = workshop.run(&["inspect", "model"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.starts_with("model: does not open\n\narchitecture  MambaForCausalLM\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("\nunsupported   model/config.json: "), "{}", ran.stdout);

    let settings = r#""quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}, "#;
    workshop.write("model/config.json", config.replacen('{', &format!("{{{settings}"), 1));
    let facts = json(&workshop.run(&["inspect", "model", "--json"]));
    assert_eq!(facts["quantized_by"], "gptq: bits 4, group size 64");
    assert_eq!(facts["architecture"], "LlamaForCausalLM");

    workshop.run(&["inspect", "nothing"]).refused(
        "nothing: no such model; give a folder, a .gguf file, `bundled`, owner/name of the hub, or a folder of results",
    );
}

#[test]
fn a_packed_folder_says_how_it_was_made() {
    let workshop = Workshop::new();
    let quantize = ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--out", "packed"];
    assert_eq!(workshop.run(&quantize).code, Some(0));
    let facts = json(&workshop.run(&["inspect", "packed", "--json"]));
    assert_eq!((&facts["files"], &facts["packed"]["method"]), (&"packed folder".into(), &"RTN".into()));
    assert_eq!(
        (&facts["quantization"]["grid"], &facts["packed"]["bits_per_weight"]),
        (&"W4 g32".into(), &4.625.into())
    );
    assert!(
        facts["unsupported"][0].as_str().unwrap().starts_with("quantize: it is quantized already (RTN)"),
        "{facts}"
    );
    let estimated = json(&workshop.run(&["inspect", "model", "--json", "--group-size", "32"]));
    let written = fs::metadata(workshop.path("packed/model.safetensors")).unwrap().len();
    // The tiny model's embedding stays f32, which is counted as 16 bits, and the header is as large as a fifth of the tensors.
    let estimated = estimated["quantization"]["packed_bytes"].as_u64().unwrap();
    assert!((0.4..1.0).contains(&(estimated as f64 / written as f64)), "{estimated} for {written}");
}

#[test]
fn a_packed_folder_has_the_grids_of_its_linears() {
    let workshop = Workshop::new();
    let grids = ["--override", "*.down_proj=w8", "--override", "*.v_proj=fp", "--override", "lm_head=w8g16"];
    let quantize = ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--out", "packed"];
    assert_eq!(workshop.run(&[&quantize[..], &grids].concat()).code, Some(0));
    let ran = workshop.run(&["inspect", "packed"]);
    for words in [
        "quantized     RTN W4 g32 (*.down_proj W8 g32, *.v_proj FP, lm_head W8 g16)\n",
        "self_attn.v_proj   32   64         2  FP      -\n",
        "mlp.down_proj      64  128         2  W8 g32  4\n",
        "lm_head            40   64         1  W8 g16  4\n",
        "decoding, packed",
    ] {
        assert!(ran.stdout.contains(words), "no {words:?}: {}", ran.stdout);
    }

    // No kernel takes a table of values.
    let nf4 = ["quantize", "model", "--method", "rtn", "--values", "nf4", "--group-size", "32", "--out", "nf4"];
    assert_eq!(workshop.run(&nf4).code, Some(0));
    let ran = workshop.run(&["inspect", "nf4"]);
    assert!(ran.stdout.contains("decoding, dequantized") && !ran.stdout.contains("decoding, packed"), "{}", ran.stdout);
}

#[test]
fn a_folder_of_results_says_what_was_asked_and_what_is_there() {
    let workshop = Workshop::new();
    workshop.finish("out", &["--quiet"]);
    let ran = workshop.run(&["inspect", "out"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("question      Does the program survive?\n"), "{}", ran.stdout);
    let cells = format!("cells         {N_CELLS} asked, {N_CELLS} finished, 0 failed\n");
    assert!(ran.stdout.contains(&cells), "{}", ran.stdout);
    let facts = json(&workshop.run(&["inspect", "out", "--json"]));
    assert_eq!(facts["methods"], serde_json::json!(["FP", "RTN W4 g32", "AWQ W4 g32", "RTN W3 g32", "AWQ W3 g32"]));
    assert_eq!((&facts["models"], &facts["devices"]), (&serde_json::json!(["tiny"]), &serde_json::json!(["flex"])));
}

#[test]
fn a_name_of_the_hub_works_wherever_a_model_does() {
    let workshop = Workshop::new();
    put_on_the_hub(&workshop);
    let by_name = json(&workshop.run(&["inspect", "owner/name", "--json"]));
    let by_path = json(&workshop.run(&["inspect", "model", "--json"]));
    assert_eq!((&by_name["name"], &by_name["parameters"]), (&"owner/name".into(), &by_path["parameters"]));
    for model in ["owner/name", &format!("owner/name@{COMMIT}")] {
        let ran = workshop.run(&["generate", model, "--prompt", "w1 w2", "--max-tokens", "3"]);
        assert_eq!(ran.code, Some(0), "{model}: {ran:?}");
    }
    let quantize = ["quantize", "owner/name", "--method", "rtn", "--bits", "4", "--out", "packed"];
    assert_eq!(workshop.run(&quantize).code, Some(0));

    let missing = workshop.run(&["generate", "owner/other", "--prompt", "w1"]);
    assert_eq!(missing.code, Some(1));
    let words =
        "owner/other: no such path, so it is taken for a name of the hub: model owner/other: owner/other at main: ";
    assert!(missing.stderr.contains(words), "{}", missing.stderr);

    // What exists wins.
    fs::create_dir_all(workshop.path("owner")).unwrap();
    fs::rename(workshop.path("model"), workshop.path("owner/name")).unwrap();
    fs::remove_dir_all(workshop.path("home/.cache/huggingface")).unwrap();
    assert_eq!(workshop.run(&["inspect", "owner/name"]).code, Some(0));
}

#[test]
fn lists_are_printed_one_by_one_and_together() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["list", "methods"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("  awq           Activation-aware Weight Quantization.\n"), "{}", ran.stdout);
    let lists = json(&workshop.run(&["list", "--json"]));
    let names: Vec<&String> = lists.as_object().unwrap().keys().collect();
    assert_eq!(names, ["datasets", "devices", "families", "formats", "methods", "metrics", "presets", "tasks"]);
    workshop
        .run(&["list", "configs"])
        .refused("configs: no such folder; run this where the experiments' files are, in a checkout of the project");
    fs::create_dir(workshop.path("configs")).unwrap();
    fs::copy(workshop.path("experiment.toml"), workshop.path("configs/one.toml")).unwrap();
    // What clusters give tasks is no experiment.
    fs::create_dir(workshop.path("configs/profiles")).unwrap();
    workshop.write("configs/profiles/slurm.toml", "cpus = 1");
    let listed = workshop.run(&["list", "configs"]).stdout;
    let place = Path::new("configs").join("one.toml");
    assert!(listed.ends_with(&format!("  {}  Does the program survive?\n", place.display())), "{listed}");
}

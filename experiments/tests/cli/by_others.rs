//! `[[checkpoints]]`: models that other programs have quantized, in the tables of the model that they were made of.

use serde_json::{Value, json};

use crate::support::{N_CELLS, N_WORDS, Workshop, error_of, tokenizer};

/// The workshop with an AWQ folder `theirs` of its model, and an experiment that scores it beside ours.
fn workshop(more: &str) -> Workshop {
    let workshop = Workshop::new();
    let asked = ["quantize", "model", "--method", "awq", "--bits", "4", "--group-size", "32", "--format", "awq"];
    let ran = workshop.run(&[&asked[..], &["--calibration", "calibration.txt", "--out", "theirs", "--quiet"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let kl = workshop.experiment().split("[evaluations.perplexity]").nth(1).unwrap().to_owned();
    let section = "[[checkpoints]]\nname = \"AutoAWQ\"\nsource = { path = { path = \"theirs\" } }\n";
    let kl = format!("\n[[evaluations]]\n[evaluations.kl_divergence]{kl}");
    workshop.write("experiment.toml", format!("{}{kl}\n{section}{more}", workshop.experiment()));
    workshop
}

fn of_method(records: &[Value], label: &str) -> Value {
    records.iter().rev().find(|record| record["labels"]["method"] == label).unwrap().clone()
}

fn measured(record: &Value, index: usize) -> f64 {
    record["outcome"]["done"]["measurements"][index]["value"].as_f64().unwrap()
}

#[test]
fn a_checkpoint_of_another_tool_stands_beside_ours() {
    let workshop = workshop("");
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains(&format!("{} cells finished", N_CELLS + 1)), "{}", ran.stderr);
    let records = workshop.records("out");
    let theirs = of_method(&records, "AutoAWQ");
    // As a model of its own it has the same perplexity.
    let alone = workshop.experiment().replace("path = \"model\"", "path = \"theirs\"");
    workshop.write("alone.toml", alone);
    let ran = workshop.run(&["alone.toml", "--out", "alone", "--only", "method=fp", "--quiet"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(measured(&theirs, 0), measured(&workshop.records("alone")[0], 0));
    // Its divergence is from the model that it was made of, not from itself: beyond the noise floor.
    assert!(measured(&theirs, 1) > 3.0 * measured(&of_method(&records, "FP"), 1));
    let made = &theirs["outcome"]["done"]["checkpoint"];
    assert_eq!(made["storage"]["bits_per_weight"], 4.625);
    assert!(made["quantized_by"].as_str().unwrap().contains("bits 4, group size 32"), "{made}");
    let table = workshop.read("out/table.md");
    let row = table.lines().find(|line| line.contains("AutoAWQ")).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("AWQ W4 g32") && row.contains("4.6"), "{row}");
    assert!(row.contains('['), "it is compared with full precision: {row}");

    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains(&format!("{0} of {0} cells are on record", N_CELLS + 1)), "{}", ran.stderr);
    let ran = workshop.finish("only", &["--only", "method=checkpoint"]);
    assert!(ran.stderr.contains("1 cells finished"), "{}", ran.stderr);
}

#[test]
fn one_that_was_replaced_is_measured_again() {
    let workshop = workshop("");
    workshop.finish("out", &[]);
    std::fs::remove_dir_all(workshop.path("theirs")).unwrap();
    let asked = ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--format", "awq"];
    workshop.run(&[&asked[..], &["--out", "theirs", "--quiet"]].concat());
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("checkpoint AutoAWQ changed since (model.safetensors sha256"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("1 cells finished, {N_CELLS} were on record")), "{}", ran.stderr);
}

#[test]
fn one_with_other_tokens_fails_alone() {
    let workshop = workshop("");
    let mut other = tokenizer(N_WORDS);
    let vocab = other["model"]["vocab"].as_object_mut().unwrap();
    (vocab["w3"], vocab["w4"]) = (json!(4), json!(3));
    workshop.write("theirs/tokenizer.json", other.to_string());
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(&format!("{N_CELLS} cells finished, 0 were on record, 1 failed")), "{}", ran.stderr);
    assert_eq!(
        error_of(&of_method(&workshop.records("out"), "AutoAWQ")),
        "AutoAWQ beside tiny: their tokenizers make other tokens of evaluation; give the checkpoint the tokenizer files of the model"
    );
}

#[test]
fn names_and_models_are_checked_first() {
    let refused = |more: &str| {
        let ran = workshop(more).run(&["experiment.toml", "--out", "out"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.stderr.trim_end().rsplit("not a valid experiment: ").next().unwrap().to_owned()
    };
    let another = |name: &str, more: &str| {
        format!("[[checkpoints]]\nname = \"{name}\"\nsource = {{ path = {{ path = \"theirs\" }} }}\n{more}")
    };
    let taken = "a method or another checkpoint of this model has this name; give it another";
    assert_eq!(refused(&another("AutoAWQ", "")), format!("key `checkpoints[1]` (AutoAWQ): {taken}"));
    assert_eq!(refused(&another("RTN", "")), format!("key `checkpoints[1]` (RTN): {taken}"));
    assert_eq!(
        refused(&another("GPTQModel", "model = \"big\"\n")),
        "key `checkpoints[1]` (GPTQModel): no model is named `big`; use one of tiny"
    );
}

#[test]
fn an_experiment_may_have_nothing_else() {
    let workshop = workshop("");
    let experiment = workshop.read("experiment.toml");
    let (before, methods) = experiment.split_once("[grids]").unwrap();
    let after = &methods[methods.find("[[evaluations]]").unwrap()..];
    workshop.write("experiment.toml", format!("{before}{after}"));
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("2 cells finished"), "{}", ran.stderr);
    assert!(workshop.read("out/table.md").contains("AutoAWQ"));
}

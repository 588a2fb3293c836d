//! A model that is replaced in its folder: what was measured on the old one is not taken for the new one's.

use serde_json::Value;

use crate::support::{N_CELLS, Workshop, sha256, tokenizer};

/// Another model in the same folder: every value of its matrices is a little larger.
fn replace(workshop: &Workshop) {
    workshop.write_model("model", |name, values| {
        if name.contains("mlp") {
            values.iter_mut().for_each(|value| *value *= 1.5);
        }
    });
}

/// First digits of the hash of the weights, as messages show them.
fn weights(workshop: &Workshop) -> String {
    sha256(&std::fs::read(workshop.path("model/model.safetensors")).unwrap())[..8].to_owned()
}

fn perplexities(workshop: &Workshop, out: &str) -> Vec<f64> {
    let value = |outcome: &Value| outcome["done"]["measurements"][0]["value"].as_f64().unwrap();
    workshop.results(out).values().map(value).collect()
}

#[test]
fn every_cell_runs_again_and_says_why() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let (old, first) = (weights(&workshop), perplexities(&workshop, "out"));
    replace(&workshop);
    let (new, again) = (weights(&workshop), workshop.finish("out", &[]));
    let why = format!(
        "tiny: 5 cell(s) on record run again: the model changed since (model.safetensors sha256 {old}.. -> {new}..)\n"
    );
    assert!(again.stderr.contains(&why), "{}", again.stderr);
    assert!(again.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", again.stderr);
    assert_eq!(workshop.records("out").len(), 2 * N_CELLS, "records are only appended to");
    workshop.finish("new", &[]);
    assert_eq!(workshop.results("out"), workshop.results("new"));
    assert!(perplexities(&workshop, "out").iter().zip(&first).all(|(now, then)| now != then));
    assert_eq!(workshop.read("out/table.md"), workshop.read("new/table.md"));
    // The newest records hold now.
    let third = workshop.finish("out", &[]);
    assert!(third.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", third.stderr);
    assert!(!third.stderr.contains("run again"), "{}", third.stderr);
}

/// The finished cell of the old model must not stand beside cells of the new one.
#[test]
fn a_model_replaced_between_two_cells() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let first = workshop.read("out/records.jsonl").lines().next().unwrap().to_owned() + "\n";
    workshop.write("out/records.jsonl", &first);
    replace(&workshop);
    let resumed = workshop.finish("out", &[]);
    assert!(resumed.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", resumed.stderr);
    workshop.finish("new", &[]);
    assert_eq!(workshop.read("out/table.md"), workshop.read("new/table.md"));
}

/// Should both stand in one folder nonetheless, no difference is taken between them.
#[test]
fn rows_of_two_models_are_not_paired() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let first = workshop.read("out/records.jsonl").lines().next().unwrap().to_owned() + "\n";
    replace(&workshop);
    workshop.finish("new", &[]);
    let newer: String = workshop.read("new/records.jsonl").lines().skip(1).map(|line| format!("{line}\n")).collect();
    workshop.write("new/records.jsonl", first + &newer);
    assert_eq!(workshop.run(&["report", "new"]).code, Some(0));
    let table = workshop.read("new/table.csv");
    let column = |row: &str, name: &str| {
        let index = table.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
        row.split(',').nth(index).unwrap().to_owned()
    };
    let awq = table.lines().find(|line| line.contains("AWQ")).unwrap();
    assert_eq!(column(awq, "delta_fp"), "", "a difference between two models");
    assert_ne!(column(awq, "delta_baseline"), "", "both are of the new model");
}

#[test]
fn tokenizer_and_configuration_count_and_decoding_does_not() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    workshop.write("model/generation_config.json", "{}");
    workshop.write("model/notes.md", "not part of the model");
    let same = workshop.finish("out", &[]);
    assert!(same.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", same.stderr);
    workshop.write("model/tokenizer.json", tokenizer(40).to_string() + "\n");
    workshop.write("model/tokenizer_config.json", "{}");
    let again = workshop.finish("out", &[]);
    assert!(again.stderr.contains("(tokenizer.json sha256 "), "{}", again.stderr);
    assert!(again.stderr.contains(", tokenizer_config.json is new, sha256 "), "{}", again.stderr);
    assert!(again.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", again.stderr);
}

#[test]
fn verification_says_what_changed() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let old = weights(&workshop);
    replace(&workshop);
    let verified = workshop.run(&["verify", "out", "--quiet"]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    let expected = format!(
        "\nChanged since the record: model.safetensors sha256 {old}.. -> {}..\n0 of 5 cells are identical to the record.\n",
        weights(&workshop)
    );
    assert!(verified.stdout.ends_with(&expected), "{}", verified.stdout);
}

/// A record with another version of its method's code, or with other texts, as an earlier program may have written it.
fn with_earlier_inputs(workshop: &Workshop, edit: fn(&str, &mut Value)) {
    let edited = workshop.records("out").into_iter().map(|mut record| {
        let method = record["labels"]["method"].as_str().unwrap().to_owned();
        edit(&method, &mut record["outcome"]["done"]);
        record.to_string() + "\n"
    });
    workshop.write("out/records.jsonl", edited.collect::<String>());
}

#[test]
fn a_method_of_another_version_runs_again() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let versions: Vec<Value> = workshop
        .records("out")
        .iter()
        .map(|record| record["outcome"]["done"]["quantization"]["method_version"].clone())
        .collect();
    assert_eq!(versions[1..], [1.into(), 1.into(), 1.into(), 1.into()] as [Value; 4]);
    // Records of before there were versions are of the first.
    with_earlier_inputs(&workshop, |_, done| {
        if let Some(quantization) = done["quantization"].as_object_mut() {
            quantization.remove("method_version");
        }
    });
    let same = workshop.finish("out", &[]);
    assert!(same.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", same.stderr);
    with_earlier_inputs(&workshop, |method, done| {
        if method == "AWQ" {
            done["quantization"]["method_version"] = 7.into();
        }
    });
    let again = workshop.finish("out", &[]);
    let why = "tiny: 2 cell(s) on record run again: method `awq` has version 1, then 7\n";
    assert!(again.stderr.contains(why), "{}", again.stderr);
    assert!(again.stderr.ends_with("2 cells finished, 3 were on record, 0 failed\n"), "{}", again.stderr);
    let third = workshop.finish("out", &[]);
    assert!(third.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", third.stderr);
}

/// Texts are read where a cell runs anyway, and then all cells must have had them.
#[test]
fn other_texts_count_where_they_are_read() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    with_earlier_inputs(&workshop, |method, done| {
        if done["quantization"].is_null() {
            done["measurements"][0]["text_sha256"] = "a".repeat(64).into();
        } else if method == "RTN" {
            done["quantization"]["calibration_text_sha256"] = "b".repeat(64).into();
        }
    });
    let shown = workshop.finish("out", &[]);
    assert!(shown.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", shown.stderr);
    workshop.change_experiment("bits = [4, 3]", "bits = [4, 3, 2]");
    let grown = workshop.finish("out", &[]);
    for why in [
        "1 cell(s) on record run again: text evaluation sha256 aaaaaaaa.. -> ",
        "2 cell(s) on record run again: text calibration sha256 bbbbbbbb.. -> ",
    ] {
        assert!(grown.stderr.contains(why), "no {why}: {}", grown.stderr);
    }
    assert!(grown.stderr.ends_with("5 cells finished, 2 were on record, 0 failed\n"), "{}", grown.stderr);
}

/// `main` of a repository moves: the files of another commit are in the cache.
#[test]
fn a_revision_that_moves_is_another_model() {
    let workshop = Workshop::new();
    let hub = "home/.cache/huggingface/hub/models--maker--tiny";
    let commit = |name: &str, digit: &str| {
        let snapshot = format!("{hub}/snapshots/{}", digit.repeat(40));
        std::fs::create_dir_all(workshop.path(&snapshot)).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(workshop.path("model").join(file), workshop.path(&snapshot).join(file)).unwrap();
        }
        std::fs::create_dir_all(workshop.path(&format!("{hub}/refs"))).unwrap();
        workshop.write(&format!("{hub}/refs/{name}"), digit.repeat(40));
    };
    commit("main", "1");
    workshop.change_experiment(
        "source = { path = { path = \"model\" } }",
        "source = { hub = { repo = \"maker/tiny\", revision = \"main\", sha256 = {} } }",
    );
    workshop.finish("out", &[]);
    let same = workshop.finish("out", &[]);
    assert!(same.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", same.stderr);
    replace(&workshop);
    commit("main", "2");
    let moved = workshop.finish("out", &[]);
    assert!(moved.stderr.contains("5 cell(s) on record run again: the model changed since"), "{}", moved.stderr);
    assert!(moved.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", moved.stderr);
    // Gone from the cache, it is not downloaded only to be compared.
    std::fs::remove_dir_all(workshop.path(hub)).unwrap();
    let shown = workshop.finish("out", &[]);
    assert!(shown.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", shown.stderr);
}

//! The file of records: read for as long as it can be, one bad line at a time, by one run at a time.

use serde_json::Value;

use crate::support::{N_CELLS, Workshop};

/// Lines of a file, each with its line feed.
fn lines(workshop: &Workshop, file: &str) -> Vec<String> {
    workshop.read(file).split_inclusive('\n').map(str::to_owned).collect()
}

#[test]
fn one_bad_line_is_set_aside_and_named() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.results("out");
    let mut whole = lines(&workshop, "out/records.jsonl");
    whole[2] = whole[2][..500].to_owned() + "\n";
    workshop.write("out/records.jsonl", whole.concat());

    // A report reads what it can, and writes nothing beside the report.
    let report = workshop.run(&["report", "out"]);
    assert_eq!(report.code, Some(0), "{report:?}");
    let named = "out/records.jsonl:3: not a record (EOF while parsing";
    assert!(report.stderr.contains(named) && report.stderr.ends_with("), left out\n"), "{}", report.stderr);
    assert!(!workshop.path("out/records.bad.jsonl").exists());
    assert_eq!(lines(&workshop, "out/records.jsonl"), whole);

    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains(named), "{}", ran.stderr);
    assert!(ran.stderr.contains(", moved to out/records.bad.jsonl\n"), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("1 cells finished, 4 were on record, 0 failed\n"), "{}", ran.stderr);
    assert_eq!(workshop.results("out"), before);
    let bad: Value = serde_json::from_str(&workshop.read("out/records.bad.jsonl")).unwrap();
    assert_eq!((&bad["file"], &bad["line"]), (&"records.jsonl".into(), &3.into()));
    assert_eq!(bad["text"].as_str().unwrap(), whole[2].trim_end());
    assert!(bad["reason"].as_str().unwrap().starts_with("EOF while parsing"), "{bad}");
    // Good lines are kept byte for byte, and nothing is left to mend.
    let kept = lines(&workshop, "out/records.jsonl");
    assert_eq!(kept[..4], [&whole[..2], &whole[3..]].concat()[..]);
    assert_eq!(kept.len(), N_CELLS);
    assert!(!workshop.finish("out", &[]).stderr.contains("not a record"));
}

#[test]
fn nothing_but_bad_lines() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path("out")).unwrap();
    workshop.write("out/records.jsonl", b"{}\n\xff\xfe\n[1, 2\n\"half".as_slice());
    let ran = workshop.finish("out", &[]);
    for line in [
        "out/records.jsonl:1: not a record (missing field `schema` at line 1 column 2), moved to out/records.bad.jsonl\n",
        "out/records.jsonl:2: not a record (",
        "out/records.jsonl:3: not a record (",
        "out/records.jsonl: the last record was cut short and is dropped; its cell runs again\n",
    ] {
        assert!(ran.stderr.contains(line), "no {line}: {}", ran.stderr);
    }
    assert_eq!(workshop.records("out").len(), N_CELLS);
    assert_eq!(lines(&workshop, "out/records.bad.jsonl").len(), 3);
}

/// What a later program adds to its experiment files, this one need not understand in a record, and the other way round.
#[test]
fn the_cell_of_a_record_is_not_read_again() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let table = workshop.read("out/table.md");
    let changed = workshop.records("out").into_iter().map(|mut record| {
        record["cell"]["model"]["of a later program"] = true.into();
        if record["cell"]["quantization"].is_object() {
            record["cell"]["quantization"]["method"] = serde_json::json!({ "renamed": { "unknown": [1, 2] } });
        }
        record["cell"].as_object_mut().unwrap().remove("evaluations");
        record["a new field"] = 1.into();
        // Records of before there were labels.
        record.as_object_mut().unwrap().remove("labels");
        record.to_string() + "\n"
    });
    let changed: String = changed.collect();
    workshop.write("out/records.jsonl", &changed);
    let resumed = workshop.finish("out", &[]);
    assert!(resumed.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", resumed.stderr);
    assert_eq!(workshop.read("out/records.jsonl"), changed);
    assert_eq!(workshop.read("out/table.md"), table);
}

#[test]
fn records_of_a_newer_program_are_left_alone() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let newer = workshop.read("out/records.jsonl").replacen("{\"schema\":1,", "{\"schema\":2,", 1);
    workshop.write("out/records.jsonl", &newer);
    let message = "out/records.jsonl:1: record schema 2, this program reads 1; use the newer program that wrote it, or another folder";
    workshop.run(&["experiment.toml", "--out", "out"]).refused(message);
    workshop.run(&["report", "out"]).refused(message);
    assert_eq!(workshop.read("out/records.jsonl"), newer);
}

#[test]
fn a_record_names_its_cell_and_its_program() {
    let workshop = Workshop::new();
    workshop.finish("out", &["--threads", "1"]);
    let records = workshop.records("out");
    assert_eq!(records[0]["labels"], serde_json::json!({ "model": "tiny", "method": "FP" }));
    assert_eq!(records[4]["labels"], serde_json::json!({ "model": "tiny", "method": "AWQ", "grid": "W3 g32" }));
    let made = &records[0]["provenance"];
    let command = ["experiments", "experiment.toml", "--out", "out", "--threads", "1"];
    assert_eq!(made["command"], serde_json::json!(command));
    assert!(made["build"]["rustc"].as_str().unwrap().starts_with("rustc 1."), "{made}");
    assert!(made.get("gpu").is_none(), "{made}");
    assert_eq!(made["memory_bytes"].is_u64(), cfg!(target_os = "linux"), "{made}");
}

/// The program asks no repository: whatever the environment says, and whether or not there is a git.
#[test]
fn the_commit_is_that_of_the_build() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let mut command = workshop.command(&["experiment.toml", "--out", "elsewhere"]);
    command.env("GIT_DIR", workshop.path("no-repository")).env("PATH", "");
    assert!(command.output().unwrap().status.success());
    let commit = |out: &str| workshop.records(out)[0]["provenance"]["commit"].clone();
    assert_eq!(commit("elsewhere"), commit("out"));
}

#[test]
fn a_lock_file_of_a_system_without_locks_is_respected() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.read("out/records.jsonl");
    workshop.write("out/records.lock", "process 7 on node3 since 2026-01-01 00:00:00 UTC");
    workshop.run(&["experiment.toml", "--out", "out"]).refused(
        "out/records.jsonl: held by process 7 on node3 since 2026-01-01 00:00:00 UTC; wait for its end, choose another folder with \
         --out, or, where that run was killed, remove out/records.lock",
    );
    assert_eq!(workshop.read("out/records.jsonl"), before);
    std::fs::remove_file(workshop.path("out/records.lock")).unwrap();
    workshop.finish("out", &[]);
}

#[test]
fn a_model_that_is_not_there_is_no_fault_of_quantization() {
    let workshop = Workshop::new();
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let stages: Vec<Value> =
        workshop.records("out").iter().map(|record| record["outcome"]["failed"]["stage"].clone()).collect();
    assert_eq!(stages, vec![Value::from("load"); N_CELLS]);
    assert!(workshop.read("out/table.md").contains("tiny FP: load failed: model tiny: "));
}

#[test]
fn whoever_watches_a_run_is_told_how_far_it_is() {
    let workshop = Workshop::new();
    let ran = workshop.finish("out", &["--log", "json"]);
    let lines: Vec<Value> = ran.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert!(messages.contains(&"5 cells finished, 0 were on record, 0 failed"), "{messages:?}");
    assert!(lines.iter().all(|line| line["level"] == "info" && line["time"].as_str().unwrap().ends_with('Z')));
    let state: Value = serde_json::from_str(&workshop.read("out/progress.json")).unwrap();
    assert_eq!((&state["state"], &state["n_cells"], &state["n_finished"]), (&"ended".into(), &5.into(), &5.into()));
    assert_eq!(state["left_seconds"], 0.0);
    assert!(!workshop.path("out/progress.json.partial").exists());

    let ran = workshop.run(&["missing.toml", "--log", "json"]);
    let last: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((ran.code, &last["level"]), (Some(1), &"error".into()));
    assert!(last["message"].as_str().unwrap().starts_with("missing.toml: cannot read"), "{last}");
}

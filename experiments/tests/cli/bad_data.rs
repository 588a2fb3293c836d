//! Texts that are missing, wrong, empty or short: what needs them fails with data set, file and remedy, and is on record.

use serde_json::Value;

use crate::support::{N_CELLS, Workshop, error_of, sha256};

/// Runs, expecting that all cells fail with `error`, at second zero and on record.
#[track_caller]
fn check_all_fail(workshop: &Workshop, error: &str) {
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(&format!("FAILED tiny FP: {error}\n")), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("0 cells finished, 0 were on record, 5 failed\n"), "{}", ran.stderr);
    let records = workshop.records("out");
    assert_eq!(records.iter().map(error_of).collect::<Vec<_>>(), [error; N_CELLS]);
    assert!(ran.stdout.contains("Failed cells:"), "{}", ran.stdout);
}

/// Runs, expecting that quantized cells fail with `error` while full precision is measured.
#[track_caller]
fn check_quantized_fail(workshop: &Workshop, error: &str) {
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.ends_with("1 cells finished, 0 were on record, 4 failed\n"), "{}", ran.stderr);
    let records = workshop.records("out");
    assert!(records[0]["outcome"]["done"].is_object(), "{}", records[0]);
    assert_eq!(records[1..].iter().map(error_of).collect::<Vec<_>>(), [error; N_CELLS - 1]);
}

fn with_calibration(text: &str) -> Workshop {
    let workshop = Workshop::new();
    let before = sha256(workshop.read("calibration.txt").as_bytes());
    workshop.write("calibration.txt", text);
    workshop.change_experiment(&before, &sha256(text.as_bytes()));
    workshop
}

#[test]
fn missing_text() {
    let workshop = Workshop::new();
    let hash = sha256(workshop.read("evaluation.txt").as_bytes());
    std::fs::rename(workshop.path("evaluation.txt"), workshop.path("elsewhere.txt")).unwrap();
    check_all_fail(
        &workshop,
        &format!(
            "data set evaluation: evaluation.txt: no source has it\n  - evaluation.txt (sha256 {hash}) in an asset folder: \
             not found\nPut a file of that sha256 into a folder and give it by --assets DIR or AWQ_ASSETS, or make one of \
             the other sources reachable"
        ),
    );
    // The remedy works: the file has another name there, its content counts. Failed cells run again.
    std::fs::create_dir(workshop.path("assets")).unwrap();
    std::fs::rename(workshop.path("elsewhere.txt"), workshop.path("assets/any-name")).unwrap();
    let ran = workshop.finish("out", &["--assets", "assets"]);
    assert!(ran.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("Failed cells:"), "{}", ran.stdout);
}

#[test]
fn asset_folder_that_is_not_there() {
    let workshop = Workshop::new();
    workshop
        .run(&["experiment.toml", "--out", "out", "--assets", "nowhere"])
        .refused("nowhere: no such folder; give existing folders to --assets and AWQ_ASSETS");
}

#[test]
fn wrong_sha256() {
    let workshop = Workshop::new();
    let expected = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", "another text");
    let found = sha256(b"another text");
    check_all_fail(
        &workshop,
        &format!(
            "data set evaluation: evaluation.txt: its sha256 is {found}, expected {expected}; correct the key `sha256` or \
             get the right file"
        ),
    );
}

#[test]
fn evaluation_text_shorter_than_a_window() {
    let workshop = Workshop::new();
    let before = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", "w1 w2 w3");
    workshop.change_experiment(&before, &sha256(b"w1 w2 w3"));
    check_all_fail(
        &workshop,
        "data set evaluation: the text has 3 tokens, one window takes 64; use a longer text or a shorter window",
    );
}

#[test]
fn window_longer_than_the_model() {
    let workshop = Workshop::new();
    workshop.change_experiment("seq_len = 64", "seq_len = 129");
    check_all_fail(
        &workshop,
        "data set evaluation: sequences of 129 tokens are longer than the 128 positions of the model's configuration; use a shorter \
         seq_len",
    );
}

#[test]
fn empty_calibration_text() {
    check_quantized_fail(
        &with_calibration(" \n"),
        "calibration text calibration is empty; choose another data set or file",
    );
}

#[test]
fn calibration_text_shorter_than_a_sequence() {
    check_quantized_fail(
        &with_calibration("w1 w2 w3"),
        "calibration text calibration has 3 tokens, fewer than one sequence of 32; choose a longer text or lower `seq_len`",
    );
}

#[test]
fn calibration_sequence_longer_than_the_model() {
    let workshop = Workshop::new();
    workshop.change_experiment("seq_len = 32", "seq_len = 129");
    check_quantized_fail(
        &workshop,
        "calibration: sequences of 129 tokens are longer than the 128 positions of the model's configuration; use a shorter seq_len",
    );
}

/// Calibrated on the first of two evaluated texts.
#[test]
fn calibration_on_an_evaluated_text_is_on_record() {
    let workshop = Workshop::new();
    let [calibration, evaluation] =
        ["calibration.txt", "evaluation.txt"].map(|name| sha256(workshop.read(name).as_bytes()));
    workshop.change_experiment("calibration.txt", "evaluation.txt");
    workshop.change_experiment(&calibration, &evaluation);
    let other = format!(
        r#"
[[evaluations]]
[evaluations.perplexity]
dataset = {{ text_file = {{ name = "other", path = "calibration.txt", sha256 = "{calibration}", documents = "none" }} }}
protocol = {{ gptq = {{ seq_len = 64 }} }}
"#
    );
    workshop.write("experiment.toml", workshop.read("experiment.toml") + &other);
    let ran = workshop.finish("out", &[]);
    for record in &workshop.records("out")[1..] {
        let done = &record["outcome"]["done"];
        let overlap = |part: &Value| part["calibration_overlap_tokens"].as_u64();
        assert!(overlap(&done["measurements"][0]) > Some(0), "{done}");
        assert_eq!(overlap(&done["measurements"][1]), Some(0), "{done}");
        assert_eq!(overlap(&done["quantization"]), overlap(&done["measurements"][0]), "{done}");
    }
    // One note a quantized cell, under the table of that text alone.
    let printed = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(printed.matches("its number is optimistic").count(), N_CELLS - 1, "{}", ran.stdout);
}

//! `run --devices`: shares of an experiment in processes of their own.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{N_CELLS, Ran, Workshop, sha256, words};

const TWO: [&str; 7] = ["experiment.toml", "--devices", "flex,flex", "--threads", "2", "--out", "two"];

#[track_caller]
fn says(ran: &Ran, code: i32, said: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    for said in said {
        assert!(ran.stderr.contains(said), "no {said}: {}", ran.stderr);
    }
}

fn summary(finished: usize, on_record: usize, failed: usize) -> String {
    format!("{finished} cells finished, {on_record} were on record, {failed} failed")
}

#[test]
fn devices_that_share_an_experiment_give_what_one_gives() {
    let workshop = Workshop::new();
    workshop.finish("one", &[]);
    says(&workshop.run(&TWO), 0, &["flex: share 1/2, ", "flex: share 2/2, ", &summary(N_CELLS, 0, 0)]);
    assert_eq!(workshop.results("two"), workshop.results("one"), "bit for bit, and every log");
    assert_eq!(workshop.records("two").len(), N_CELLS, "each cell ran once");
    for record in workshop.records("two") {
        let command: Vec<&str> =
            record["provenance"]["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(command[1..], TWO, "what was asked for");
    }
    assert!(workshop.path("two/table.md").is_file() && !workshop.path("two/devices").exists());
    let counted = || {
        let state: serde_json::Value = serde_json::from_str(&workshop.read("two/progress.json")).unwrap();
        ["n_cells", "n_finished", "n_on_record"].map(|key| state[key].as_u64().unwrap() as usize)
    };
    assert_eq!(counted(), [N_CELLS, N_CELLS, 0]);
    says(&workshop.run(&TWO), 0, &[&summary(0, N_CELLS, 0)]);
    assert_eq!(counted(), [N_CELLS, 0, N_CELLS]);
    says(&workshop.run(&[&TWO[..], &["--rerun"]].concat()), 0, &[&summary(N_CELLS, 0, 0)]);
    assert_eq!(counted(), [N_CELLS, N_CELLS, 0]);
    assert_eq!(workshop.records("two").len(), 2 * N_CELLS);
    // A part first, then the rest.
    let part = ["--only", "method=RTN", "--max-windows", "3", "--out", "part"];
    says(&workshop.run(&[&TWO[..5], &part].concat()), 0, &[&summary(2, 0, 0)]);
    let rest = ["--max-windows", "3", "--out", "part"];
    says(&workshop.run(&[&TWO[..5], &rest].concat()), 0, &[&summary(N_CELLS - 2, 2, 0)]);
}

/// The whole writes what is kept of models, and shares do not.
#[test]
fn models_are_kept_once() {
    let workshop = Workshop::new();
    let experiment = workshop.read("experiment.toml");
    workshop
        .write("experiment.toml", experiment + "\n[export]\nformats = [\"packed\"]\nonly = [\"method=RTN, bits=4\"]\n");
    says(&workshop.run(&TWO), 0, &["1 checkpoints written to checkpoints/, 0 were there"]);
    says(&workshop.run(&TWO), 0, &["0 checkpoints written to checkpoints/, 1 were there"]);
}

/// What a share leaves undone is tried by the run itself, and its log stays. Numbers of before stand for none of it.
#[test]
fn cells_that_fail_in_a_share_fail_once_more_and_say_where() {
    let workshop = Workshop::new();
    says(&workshop.run(&TWO), 0, &[]);
    let whole = workshop.results("two");
    workshop.write_model("model", |name, values| {
        if name == "model.layers.1.mlp.down_proj.weight" {
            values[0] = f32::NAN;
        }
    });
    let ran = workshop.run(&[&TWO[..], &["--rerun"]].concat());
    let said = [
        "did not finish its cells (exit status: 1); what it left undone is tried once more here; see two/devices/1-of-2.log",
    ];
    says(&ran, 1, &said);
    says(&ran, 1, &[&summary(0, 0, N_CELLS)]);
    assert!(workshop.read("two/devices/1-of-2.log").contains("down_proj"));
    assert_ne!(workshop.results("two"), whole);
}

/// Killed, it takes its shares along, and what they have done is taken over by the next run, on however many devices.
#[test]
#[cfg(target_os = "linux")]
fn a_run_that_is_killed_loses_no_cell_of_its_shares() {
    let workshop = Workshop::new();
    // A long text, so that there is time between two cells.
    let before = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", words(3, 40_000));
    workshop.change_experiment(&before, &sha256(workshop.read("evaluation.txt").as_bytes()));
    workshop.finish("one", &[]);
    let mut command = workshop.command(&TWO);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let records = workshop.path("two/devices/1-of-2/records.jsonl");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&records).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "no record of a share");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let report = workshop.run(&["report", "two"]);
    assert!(
        report.stderr.contains("cell(s) that shares in two/devices have finished are not counted here"),
        "{}",
        report.stderr
    );
    // Its shares end a moment after it.
    let mut again = workshop.run(&["experiment.toml", "--out", "two"]);
    while again.stderr.contains("cannot take over") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        again = workshop.run(&["experiment.toml", "--out", "two"]);
    }
    says(&again, 0, &[" cells are on record in two/records.jsonl"]);
    assert!(!workshop.path("two/devices").exists());
    assert_eq!(workshop.results("two"), workshop.results("one"));
}

#[test]
fn every_device_is_checked_before_any_work() {
    let workshop = Workshop::new();
    let run = |devices: &str| workshop.run(&["experiment.toml", "--devices", devices, "--out", "out"]);
    says(&run("flex,gpu"), 1, &["device `gpu` is unknown"]);
    says(&run("flex,ndarray"), 1, &["--devices flex,ndarray: their numbers differ in last bits"]);
    let both = workshop.run(&["experiment.toml", "--devices", "flex,flex", "--device", "flex", "--out", "out"]);
    says(&both, 2, &["--devices"]);
    assert!(!workshop.path("out").exists());
    // Nothing to share: one device is enough.
    let one = workshop.run(&["experiment.toml", "--devices", "flex,flex", "--only", "method=fp", "--out", "out"]);
    says(&one, 0, &[&summary(1, 0, 0)]);
}

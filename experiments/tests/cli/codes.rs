//! Smoke runs and the code store: what is quantized once is scored in any way, and stands nowhere else.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{N_BLOCKS, N_CELLS, Ran, Workshop, sha256, words};

/// Runs the program with a code store.
fn run(workshop: &Workshop, arguments: &[&str]) -> Ran {
    let mut command = workshop.command(arguments);
    Ran::of(command.env("AWQ_CODES_GIB", "1").output().unwrap())
}

#[track_caller]
fn finish(workshop: &Workshop, arguments: &[&str]) -> Ran {
    let ran = run(workshop, arguments);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

/// What a run says that quantized nothing.
const FROM_STORE: &str = "codes of 4 of 4 cell(s) are from the code store\n";

#[test]
fn a_smoke_run_has_a_folder_of_its_own_and_spares_the_whole_run_its_quantization() {
    let workshop = Workshop::new();
    let smoke = finish(&workshop, &["experiment.toml", "--max-windows", "3"]);
    assert!(smoke.stderr.contains("results in results/experiment-first-3\n"), "{}", smoke.stderr);
    assert!(smoke.stderr.contains("quantize 4 cell(s), blocks"), "{}", smoke.stderr);
    let table = workshop.read("results/experiment-first-3/table.md");
    assert!(table.contains("3 of 15"), "{table}");

    let whole = finish(&workshop, &["experiment.toml"]);
    assert!(whole.stderr.contains(FROM_STORE) && !whole.stderr.contains("quantize"), "{}", whole.stderr);
    assert!(whole.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", whole.stderr);
    workshop.finish("direct", &[]);
    assert_eq!(workshop.results("results/experiment"), workshop.results("direct"), "bit for bit, and every log");
    assert_eq!(workshop.read("results/experiment-first-3/table.md"), table);
    let from_store: Vec<bool> = workshop
        .records("results/experiment")
        .iter()
        .map(|record| record["outcome"]["done"]["cost"]["codes_from_store"] == true)
        .collect();
    assert_eq!(from_store, [false, true, true, true, true]);

    // Another protocol is another evaluation of the same codes; other codes are another quantization.
    workshop.change_experiment("gptq = { seq_len = 64 }", "llama-cpp = { chunk_len = 64 }");
    let other = finish(&workshop, &["experiment.toml", "--out", "other"]);
    assert!(other.stderr.contains(FROM_STORE) && !other.stderr.contains("quantize"), "{}", other.stderr);
    workshop.change_experiment("n_ratios = 20", "n_ratios = 10");
    let other = finish(&workshop, &["experiment.toml", "--out", "searched"]);
    for line in ["codes of 2 of 4 cell(s) are from the code store\n", "quantize 2 cell(s), blocks"] {
        assert!(other.stderr.contains(line), "no {line}: {}", other.stderr);
    }
}

#[test]
fn a_smoke_run_does_not_take_the_place_of_another_run() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.read("out/table.md");
    workshop.run(&["experiment.toml", "--out", "out", "--max-windows", "2"]).refused(
        "out: holds a run of all windows, which one of the first 2 would take the place of; choose another folder with --out, or \
         leave it out",
    );
    assert_eq!(workshop.read("out/table.md"), before);
    workshop.finish("first", &["--max-windows", "2"]);
    let again = workshop.finish("first", &["--max-windows", "2"]);
    assert!(again.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", again.stderr);
    workshop.run(&["experiment.toml", "--out", "first", "--max-windows", "3"]).refused(
        "first: holds a run of the first 2 windows, which one of the first 3 would take the place of; choose another folder with \
         --out, or leave it out",
    );
}

#[test]
fn figures_of_an_earlier_report_are_removed() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    workshop.write("out/figures/earlier.svg", "<svg/>");
    workshop.write("out/figures/earlier.png", "");
    workshop.write("out/figures/notes.txt", "mine");
    assert_eq!(workshop.run(&["report", "out"]).code, Some(0));
    let names = std::fs::read_dir(workshop.path("out/figures")).unwrap();
    let names: Vec<String> = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.starts_with("earlier")), "{names:?}");
    assert!(
        names.iter().any(|name| name == "notes.txt") && names.iter().any(|name| name.ends_with(".svg")),
        "{names:?}"
    );
}

/// Blocks that are stored of each quantization.
fn stored_blocks(workshop: &Workshop) -> Vec<usize> {
    let folders = std::fs::read_dir(workshop.path("cache/codes")).into_iter().flatten().flatten();
    let n_blocks = |of: PathBuf| {
        std::fs::read_dir(of).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()).count()
    };
    folders.map(|folder| n_blocks(folder.path())).collect()
}

/// Starts a run, and kills it as soon as `is_time`, said the blocks that are stored.
fn kill_when(workshop: &Workshop, is_time: impl Fn(&[usize]) -> bool) {
    let mut command = workshop.command(&["experiment.toml", "--out", "killed", "--quiet"]);
    command.env("AWQ_CODES_GIB", "1").stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(300);
    while !is_time(&stored_blocks(workshop)) {
        assert!(Instant::now() < patience, "no codes appeared");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_kill_after_quantization_costs_no_quantization() {
    let workshop = Workshop::new();
    // A long text, so that there is time to kill before all is scored.
    let before = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", words(3, 12_000));
    workshop.change_experiment(&before, &sha256(workshop.read("evaluation.txt").as_bytes()));
    kill_when(&workshop, |stored| stored == [N_BLOCKS; N_CELLS - 1]);
    let n_records = workshop.records("killed").len();
    assert!(n_records < N_CELLS, "killed too late: {n_records} records");
    let resumed = finish(&workshop, &["experiment.toml", "--out", "killed"]);
    let n_left = N_CELLS - n_records.max(1);
    let line = format!("codes of {n_left} of {n_left} cell(s) are from the code store\n");
    assert!(resumed.stderr.contains(&line) && !resumed.stderr.contains("quantize"), "{}", resumed.stderr);
}

#[test]
fn a_kill_inside_a_pass_costs_no_more_than_a_block() {
    let workshop = Workshop::new();
    kill_when(&workshop, |stored| stored.contains(&1));
    let left = stored_blocks(&workshop);
    assert!(left.iter().sum::<usize>() < N_BLOCKS * (N_CELLS - 1), "killed too late: {left:?}");
    let resumed = finish(&workshop, &["experiment.toml", "--out", "killed"]);
    assert!(
        resumed.stderr.contains("cell(s) go on behind block 1, as far as an earlier run came\n"),
        "{}",
        resumed.stderr
    );
    workshop.finish("direct", &[]);
    assert_eq!(workshop.results("killed"), workshop.results("direct"), "bit for bit, and every log");
}

#[test]
fn verification_quantizes_again() {
    let workshop = Workshop::new();
    finish(&workshop, &["experiment.toml", "--out", "out"]);
    let verified = run(&workshop, &["verify", "out"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(verified.stderr.contains("quantize 4 cell(s), blocks"), "{}", verified.stderr);
}

#[test]
fn a_store_that_cannot_be_written_fails_no_cell() {
    let workshop = Workshop::new();
    std::fs::create_dir_all(workshop.path("cache")).unwrap();
    workshop.write("cache/codes", "in the way");
    let ran = finish(&workshop, &["experiment.toml", "--out", "out"]);
    assert!(ran.stderr.contains("codes: codes cannot be kept ("), "{}", ran.stderr);
    assert!(ran.stderr.contains("); those of this run are in a temporary folder\n"), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", ran.stderr);
    let mut command = workshop.command(&["experiment.toml", "--out", "out"]);
    Ran::of(command.env("AWQ_CODES_GIB", "lots").output().unwrap())
        .refused("AWQ_CODES_GIB=lots: not a number of GiB; unset it, or give one (0 keeps no codes)");
}

//! Nothing already computed is lost: kill -9, torn lines, a full disk, a reader that goes away, two runs at once.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{N_CELLS, Ran, Workshop, sha256, words};

#[test]
fn killed_in_the_middle_of_a_cell() {
    let workshop = Workshop::new();
    // A long text, so that there is time to kill between two cells.
    let before = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", words(3, 40_000));
    workshop.change_experiment(&before, &sha256(workshop.read("evaluation.txt").as_bytes()));
    let mut child = workshop
        .command(&["experiment.toml", "--out", "killed", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(120);
    let n_lines = || {
        std::fs::read(workshop.path("killed/records.jsonl"))
            .map_or(0, |bytes| bytes.iter().filter(|&&byte| byte == b'\n').count())
    };
    while n_lines() < 2 {
        assert!(Instant::now() < patience, "no record appeared");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let kept = workshop.read("killed/records.jsonl");
    let n_kept = kept.lines().count();
    assert!((2..N_CELLS).contains(&n_kept), "killed too late: {n_kept} records");
    let resumed = workshop.finish("killed", &[]);
    assert!(
        resumed.stderr.contains(&format!("{n_kept} of {N_CELLS} cells are on record in killed/records.jsonl\n")),
        "{}",
        resumed.stderr
    );
    assert!(workshop.read("killed/records.jsonl").starts_with(&kept), "finished records were changed");
    workshop.finish("whole", &[]);
    assert_eq!(workshop.results("killed"), workshop.results("whole"));
    assert_eq!(workshop.records("killed").len(), N_CELLS);
}

/// Files and folders in the making have names of their own, and a lock that goes with the process.
#[cfg(unix)]
#[test]
fn what_a_kill_left_is_removed_by_the_next_run() {
    let workshop = Workshop::new();
    let kept = |mut command: std::process::Command| Ran::of(command.env("AWQ_CODES_GIB", "1").output().unwrap());
    let ran = kept(workshop.command(&["experiment.toml", "--out", "out"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let names = || {
        let mut names: Vec<_> = ["", "out", "out/figures", "cache", "cache/partial"]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(workshop.path(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let before = names();
    for left in ["out/.awq-partial-1.tmp", "out/figures/.awq-partial-1.png", "cache/partial/part-1.lock"] {
        workshop.write(left, "");
    }
    std::fs::create_dir(workshop.path("cache/partial/part-1")).unwrap();
    workshop.write("cache/partial/part-1/model.safetensors", "");
    let ran = kept(workshop.command(&["experiment.toml", "--out", "out"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(names(), before);
}

#[test]
fn torn_last_line() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.results("out");
    let whole = workshop.read("out/records.jsonl");
    let last = whole.trim_end().rfind('\n').unwrap() + 1;
    // Cut in the middle of a record, and even of a character.
    let torn = [&whole.as_bytes()[..last + 100], "é".as_bytes()[..1].as_ref()].concat();
    workshop.write("out/records.jsonl", torn);

    assert_eq!(workshop.run(&["report", "out"]).code, Some(0), "reading ignores the torn line");
    let ran = workshop.finish("out", &[]);
    assert!(
        ran.stderr.contains("out/records.jsonl: the last record was cut short and is dropped; its cell runs again\n"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.ends_with("1 cells finished, 4 were on record, 0 failed\n"), "{}", ran.stderr);
    assert!(workshop.read("out/records.jsonl").starts_with(&whole[..last]));
    assert_eq!(workshop.results("out"), before);
}

#[cfg(unix)]
#[test]
fn full_disk_while_appending() {
    let workshop = Workshop::new();
    // Codes are stored by the first run: of the second one only the records grow.
    let with_codes = |mut command: std::process::Command| Ran::of(command.env("AWQ_CODES_GIB", "1").output().unwrap());
    let whole = with_codes(workshop.command(&["experiment.toml", "--out", "whole"]));
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let sizes: Vec<usize> = workshop.read("whole/records.jsonl").lines().map(str::len).collect();
    // Room for the first record and some of the second; `ulimit -f` counts KiB.
    // Times have not always the same number of digits: keep away from both ends.
    let kib = (sizes[0] + sizes[1] - 200) / 1024;
    assert!(kib * 1024 > sizes[0] + 200, "the second record must be cut: {sizes:?}");
    let limited = format!("trap '' XFSZ; ulimit -f {kib}");
    let ran = with_codes(workshop.command_after(&limited, &["experiment.toml", "--out", "out"]));
    ran.refused(
        "out/records.jsonl: cannot append a record (is the disk full?); free space and run again to resume: File too large \
         (os error 27)",
    );
    assert_eq!(workshop.records("out").len(), 1, "whole lines only");
    let resumed = workshop.finish("out", &[]);
    assert!(resumed.stderr.ends_with("4 cells finished, 1 were on record, 0 failed\n"), "{}", resumed.stderr);
    assert_eq!(workshop.results("out"), workshop.results("whole"));
}

#[cfg(unix)]
#[test]
fn full_disk_while_codes_are_stored() {
    let workshop = Workshop::new();
    let limited = "trap '' XFSZ; ulimit -f 12";
    let ran = Ran::of(workshop.command_after(limited, &["experiment.toml", "--out", "out"]).output().unwrap());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("1 cells finished, 0 were on record, 4 failed\n"), "{}", ran.stderr);
    let remedy = "cannot write; free space there or set AWQ_CACHE to another folder: ";
    assert!(ran.stderr.contains("FAILED tiny RTN W4 g32: ") && ran.stderr.contains(remedy), "{}", ran.stderr);
    workshop.finish("out", &[]);
    workshop.finish("whole", &[]);
    assert_eq!(workshop.results("out"), workshop.results("whole"));
}

#[test]
fn report_that_cannot_be_written_hides_no_failure() {
    let workshop = Workshop::new();
    workshop.change_experiment("seq_len = 64", "seq_len = 129");
    std::fs::create_dir_all(workshop.path("out/table.md/in-the-way")).unwrap();
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("0 cells finished, 0 were on record, 5 failed\n"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("error: out: the records are kept, the report is not whole: out/table.md: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn readers_that_go_away() {
    let workshop = Workshop::new();
    let mut child = workshop
        .command(&["experiment.toml", "--out", "out"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(workshop.records("out").len(), N_CELLS);
}

#[test]
fn two_runs_in_one_folder() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.read("out/records.jsonl");
    let held = OpenOptions::new().append(true).open(workshop.path("out/records.jsonl")).unwrap();
    held.lock().unwrap();
    workshop.run(&["experiment.toml", "--out", "out", "--max-windows", "1"]).refused(
        "out/records.jsonl: another run is writing to it; wait for its end or choose another folder with --out",
    );
    assert_eq!(workshop.read("out/records.jsonl"), before);
    assert!(!workshop.read("out/experiment.toml").contains("max_windows"), "the other run's experiment was replaced");
}

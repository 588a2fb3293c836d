//! What documents claim about the repository is true, and what is committed under `results` follows from its records.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "tidy/claims.rs"]
mod claims;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/readme.rs"]
mod readme;
#[path = "tidy/sums.rs"]
mod sums;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use experiments::config::ExperimentSpec;
use experiments::plan::Plan;
use experiments::record::{FIRST_VERSION, Outcome, StoredRecord, blocks, read_records};

/// Lines that a source file may have, tests included.
const MAX_LINES: usize = 500;

/// Runs the program, which must succeed, and returns its standard output.
fn experiments(args: &[&OsStr]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_experiments")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below `folder`, by its path from there, with its content.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// What stands between single backticks and looks like a path: a slash in it or a file's ending, no space, no pattern.
fn paths_named_in(document: &str) -> Vec<&str> {
    let endings = [".rs", ".toml", ".md", ".sh", ".json"];
    document
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|span| span.contains('/') || endings.iter().any(|ending| span.ends_with(ending)))
        .filter(|span| !span.contains([' ', '<', '*', '(', '$', ':']))
        .collect()
}

#[test]
fn paths_are_told_from_other_code() {
    let document =
        "see `src/a.rs`, `B<T>/x`, `a b/c` and `Cargo.toml`\nnot `records` or `https://x.org`, but `scripts/`";
    assert_eq!(paths_named_in(document), ["src/a.rs", "Cargo.toml", "scripts/"]);
}

#[track_caller]
fn check_paths(document: &str) {
    let text = read(document);
    let named = paths_named_in(&text);
    assert!(!named.is_empty(), "{document} names no path: is the rule of this test still right?");
    let missing: Vec<_> = named.into_iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "{document} names paths that do not exist: {missing:?}");
}

#[test]
fn every_path_named_in_the_architecture_exists() {
    check_paths("ARCHITECTURE.md");
}

#[test]
fn every_path_named_in_contributing_exists() {
    check_paths("CONTRIBUTING.md");
}

#[test]
fn every_path_named_in_security_exists() {
    check_paths("SECURITY.md");
}

#[test]
fn every_source_file_is_short() {
    let mut long = Vec::new();
    for package in ["awq-core", "baselines", "experiments"] {
        let sources = files_below(&root().join(package));
        assert!(!sources.is_empty());
        for (path, content) in sources {
            let n_lines = content.iter().filter(|&&byte| byte == b'\n').count();
            if path.extension().is_some_and(|extension| extension == "rs") && n_lines > MAX_LINES {
                long.push(format!("{package}/{}: {n_lines} lines", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "split what has more than {MAX_LINES} lines: {long:#?}");
}

/// Folders of `results` whose records are committed; the runs of whoever works here are their own business.
fn committed_results() -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z", "results"]).current_dir(root()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        eprintln!("committed_results: skipped, this is not a git checkout");
        return Vec::new();
    };
    let listed = String::from_utf8(output.stdout).unwrap();
    let records = listed.split('\0').filter_map(|path| path.strip_suffix("/records.jsonl"));
    records.map(|folder| root().join(folder)).collect()
}

/// Files of a folder that git holds.
fn tracked_below(folder: &Path) -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(folder).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// A clone is small, and stays so where records are made anew. Nearly half are the answers to 3,500 questions of 41 cells
/// (`results/reference/smollm2-tasks`).
#[test]
fn committed_results_are_small() {
    const MAX_BYTES: u64 = 12_000_000;
    let results = root().join("results");
    if committed_results().is_empty() {
        return;
    }
    let size = |path: &PathBuf| std::fs::metadata(results.join(path)).map_or(0, |metadata| metadata.len());
    let n_bytes: u64 = tracked_below(&results).iter().map(size).sum();
    assert!(n_bytes < MAX_BYTES, "results hold {n_bytes} bytes, at most {MAX_BYTES}: see `experiments compact`");
}

/// Whether git holds such a file of a report: what says the same as another one, page, pixels or columns, it does not.
fn is_tracked(path: &Path) -> bool {
    let ignored = read(".gitignore");
    let is_ignored = |ignored: &str| match ignored.strip_prefix("*.") {
        Some(extension) => path.extension() == Some(OsStr::new(extension)),
        None => path.file_name() == Some(OsStr::new(ignored)),
    };
    !ignored.lines().filter_map(|line| line.strip_prefix("results/**/")).any(is_ignored)
}

/// A program of today finds every committed cell under the id that it has today, with the version that its method has.
#[test]
fn committed_records_are_taken_up_again() {
    for committed in committed_results() {
        let (records, notes): (Vec<StoredRecord>, _) = read_records(&committed).unwrap();
        assert_eq!(notes, [""; 0], "{}", committed.display());
        let newest: BTreeMap<_, _> = records.iter().map(|record| (&record.cell_id, record)).collect();
        for cell in Plan::new(&ExperimentSpec::read(&committed.join("experiment.toml")).unwrap()).cells() {
            let place = format!("{}: {} ({})", committed.display(), cell.label(), cell.id().0);
            let record = newest.get(&cell.id()).unwrap_or_else(|| panic!("{place} is not on record"));
            let Outcome::Done(done) = &record.outcome else { panic!("{place} failed") };
            let then = done.quantization.as_ref().map(|then| then.method_version.unwrap_or(FIRST_VERSION));
            assert_eq!(
                then,
                cell.quantization.as_ref().map(|now| now.method.version()),
                "{place}: version of the method"
            );
        }
    }
}

#[test]
fn the_committed_quickstart_needs_no_run() {
    let again = tempfile::tempdir().unwrap();
    let committed = root().join("results/reference/quickstart");
    let copy = |name: &str| std::fs::copy(committed.join(name), again.path().join(name)).unwrap();
    let n_bytes = copy("records.jsonl");
    copy(blocks::FILE);
    copy("experiment.toml");
    let config = again.path().join("experiment.toml");
    experiments(&[config.as_os_str(), "--out".as_ref(), again.path().as_os_str()]);
    let now = std::fs::metadata(again.path().join("records.jsonl")).unwrap().len();
    assert_eq!(now, n_bytes, "cells ran again");
}

#[test]
fn committed_tables_and_figures_follow_from_their_records() {
    for committed in committed_results() {
        let again = tempfile::tempdir().unwrap();
        for name in ["records.jsonl", blocks::FILE, "speed.jsonl", "experiment.toml"] {
            if committed.join(name).exists() {
                std::fs::copy(committed.join(name), again.path().join(name)).unwrap();
            }
        }
        experiments(&["report".as_ref(), again.path().as_os_str()]);
        let (committed_files, new_files) = (files_below(&committed), files_below(again.path()));
        for path in tracked_below(&committed) {
            assert!(
                new_files.contains_key(&path),
                "{}: no report writes it; remove it",
                committed.join(path).display()
            );
        }
        for (path, content) in new_files.into_iter().filter(|(path, _)| is_tracked(path)) {
            let place = committed.join(&path);
            let stored = committed_files.get(&path).unwrap_or_else(|| panic!("{} is not committed", place.display()));
            assert!(
                *stored == content,
                "{} does not follow from its records; run `experiments report` on its folder and commit what it writes",
                place.display()
            );
        }
    }
}

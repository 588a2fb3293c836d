//! What is compiled and tuned is kept, and found again by the next process. CubeCL's place is a process's own, so each test runs
//! itself again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use awq_core::kernel::cube::compiled::{Kept, keep_compiled, list_of_kernels};
use burn::tensor::{Distribution, Tensor};

use crate::{Gpu, has_device};

/// The folder of a process of its own, where it must be kept in.
const FOLDER: &str = "AWQ_GPU_TEST_KEPT";

/// A product whose kernel burn finds by timing several.
fn tune() {
    let square = || Tensor::<Gpu, 2>::random([64, 64], Distribution::Uniform(-1.0, 1.0), &Default::default());
    assert_eq!(square().matmul(square()).to_data().shape.num_elements(), 64 * 64);
}

/// This test again, in a process of its own with `current` for its folder.
fn again(test: &str, folder: &Path, current: &Path) -> Command {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).current_dir(current);
    again.stdout(Stdio::piped()).stderr(Stdio::piped());
    again
}

fn check_passed(child: std::process::Child) {
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Lists that CubeCL keeps (`*.json.log`), with their lines.
fn lists(folder: &Path) -> BTreeMap<PathBuf, Vec<String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut lists(&path));
        } else if path.to_string_lossy().ends_with(".json.log") {
            let mut lines: Vec<_> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            found.insert(path, lines);
        }
    }
    found
}

#[test]
fn a_second_process_finds_what_the_first_has_tuned() {
    let test = "kept::a_second_process_finds_what_the_first_has_tuned";
    if let Some(folder) = std::env::var_os(FOLDER) {
        assert_eq!(keep_compiled(Path::new(&folder)), Kept::There);
        assert_eq!(keep_compiled(Path::new(&folder)), Kept::TooLate, "one place a process");
        return tune();
    }
    if !has_device(test) {
        return;
    }
    let (folder, current) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    check_passed(again(test, folder.path(), current.path()).spawn().unwrap());
    let first = lists(folder.path());
    let tuned =
        |(path, lines): (&PathBuf, &Vec<String>)| path.starts_with(folder.path().join("autotune")) && !lines.is_empty();
    assert!(first.iter().any(tuned), "{first:?}");
    assert_eq!(list_of_kernels(folder.path()).is_some(), cfg!(feature = "cuda"), "{first:?}");
    check_passed(again(test, folder.path(), current.path()).spawn().unwrap());
    // What is tuned or compiled twice becomes another line.
    assert_eq!(lists(folder.path()), first);
}

#[test]
fn processes_that_begin_at_once_do_not_disturb_each_other() {
    let test = "kept::processes_that_begin_at_once_do_not_disturb_each_other";
    if let Some(folder) = std::env::var_os(FOLDER) {
        assert_eq!(keep_compiled(Path::new(&folder)), Kept::There);
        return tune();
    }
    if !has_device(test) {
        return;
    }
    let (folder, current) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let children: Vec<_> = (0..3).map(|_| again(test, folder.path(), current.path()).spawn().unwrap()).collect();
    children.into_iter().for_each(check_passed);
    for (path, lines) in lists(folder.path()) {
        for line in lines {
            assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{}: {line}", path.display());
        }
    }
}

#[test]
fn a_configuration_of_the_users_own_is_followed() {
    let test = "kept::a_configuration_of_the_users_own_is_followed";
    let own = |current: &Path| current.join("cubecl.toml");
    if let Some(folder) = std::env::var_os(FOLDER) {
        let current = std::env::current_dir().unwrap();
        assert_eq!(keep_compiled(Path::new(&folder)), Kept::AsConfigured(own(&current)));
        return tune();
    }
    if !has_device(test) {
        return;
    }
    let (folder, current) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The name of the current folder, as the system has it.
    let current = current.path().canonicalize().unwrap();
    std::fs::write(own(&current), "[autotune]\ncache = \"local\"\n").unwrap();
    check_passed(again(test, folder.path(), &current).spawn().unwrap());
    assert!(lists(folder.path()).is_empty());
    assert!(!lists(&current.join("autotune")).is_empty(), "tuned, and kept where the user wants it");
}

//! `scripts/gpu_check.sh` with programs that do nothing but say how they were called.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Check {
    folder: tempfile::TempDir,
}

impl Check {
    /// Programs of which the tests fail where a file `broken` lies beside them.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let check = Self { folder };
        fs::create_dir(check.path("bin")).unwrap();
        fs::write(check.path("bin/commit.txt"), "0123abc\n").unwrap();
        check.program("experiments", "mkdir -p \"${@: -1}\"");
        check.program("gpu_tests", "[ ! -e \"$(dirname \"$0\")/broken\" ] || { echo what is wrong; exit 3; }");
        check
    }

    fn program(&self, name: &str, line: &str) {
        let path = self.path("bin").join(name);
        let log = self.path("calls");
        fs::write(&path, format!("#!/usr/bin/env bash\necho {name} \"$1\" >>{}\n{line}\n", log.display())).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it; what was called meanwhile, and the lines that it kept.
    fn run(&self, minutes: &str) -> (bool, String, Vec<String>) {
        let _ = fs::remove_file(self.path("calls"));
        let _ = fs::remove_file(self.path("out/summary.txt"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu_check.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(["wgpu", "--bin"]).arg(self.path("bin"));
        command.env("GPU_CHECK_OUT", self.path("out")).env("GPU_CHECK_MINUTES", minutes).env_remove("GPU_CHECK_LARGE");
        let output = command.output().unwrap();
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let summary = fs::read_to_string(self.path("out/summary.txt")).unwrap();
        let words = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        (output.status.success(), calls, summary.lines().map(words).collect())
    }
}

#[test]
fn steps_that_ended_well_are_not_repeated_and_others_are() {
    let check = Check::new();
    fs::write(check.path("bin/broken"), "").unwrap();
    let (is_well, calls, steps) = check.run("0");
    assert!(!is_well);
    assert_eq!(calls.lines().count(), 9);
    assert_eq!(steps[..4], ["commit 0123abc,", "tests-products FAILED", "speed ok", "quickstart-f16 ok"]);
    assert!(calls.contains("experiments configs/speed-gpu.toml\n"), "{calls}");

    fs::remove_file(check.path("bin/broken")).unwrap();
    let (is_well, calls, steps) = check.run("0");
    assert!(is_well);
    assert!(calls.lines().all(|call| call.starts_with("gpu_tests")), "{calls}");
    assert_eq!(steps[1..4], ["tests-products ok", "speed done", "quickstart-f16 done"]);

    // Other programs: what is there is theirs no longer.
    fs::write(check.path("out/speed/of-before"), "").unwrap();
    check.program("gpu_tests", "true");
    let (_, calls, _) = check.run("0");
    assert_eq!(calls.lines().count(), 9);
    assert!(!check.path("out/speed/of-before").exists());
}

#[test]
fn in_a_few_minutes_less_is_measured() {
    let check = Check::new();
    let (is_well, calls, _) = check.run("10");
    assert!(is_well);
    assert!(calls.contains("experiments configs/speed-gpu-short.toml\n"), "{calls}");
}

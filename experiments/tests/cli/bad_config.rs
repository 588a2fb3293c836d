//! Experiments that are refused before anything is opened: each message has file, line, column, path and remedy.

use crate::support::Workshop;

/// `plan` and a run must refuse the changed experiment with the same message, and write nothing.
#[track_caller]
fn check_refused(from: &str, to: &str, message: &str) {
    let workshop = Workshop::new();
    workshop.change_experiment(from, to);
    for arguments in [&["plan", "experiment.toml"][..], &["experiment.toml", "--out", "out"]] {
        workshop.run(arguments).refused(message);
    }
    assert!(!workshop.path("out").exists(), "an output folder appeared");
}

#[test]
fn unknown_key() {
    check_refused(
        "n_ratios = 20",
        "n_ratio = 20",
        "experiment.toml: not a valid experiment, key `methods[1].awq.scale.search.n_ratio`: \
         TOML parse error at line 28, column 46\n   |\n\
         28 | scale = { search = { formula = \"activation\", n_ratio = 20 } }\n   |                                              ^^^^^^^\n\
         unknown field `n_ratio`, expected one of `formula`, `n_ratios`, `arithmetic`",
    );
}

#[test]
fn unknown_method() {
    let workshop = Workshop::new();
    workshop.change_experiment("rtn = {}", "rnt = {}");
    let ran = workshop.run(&["plan", "experiment.toml"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    // The list of what is known goes on: it grows with the registry.
    let start = "error: experiment.toml: not a valid experiment, key `methods[0].rnt`: TOML parse error at line 24, column 1\n\
                 \x20  |\n24 | rnt = {}\n   | ^^^\nunknown field `rnt`, expected one of `rtn`, `awq`, ";
    assert!(ran.stderr.starts_with(start), "expected: {start}\n   found: {}", ran.stderr);
}

#[test]
fn wrong_type() {
    check_refused(
        "bits = [4, 3]",
        "bits = \"4\"",
        "experiment.toml: not a valid experiment, key `grids.bits`: TOML parse error at line 17, column 8\n   |\n\
         17 | bits = \"4\"\n   |        ^^^\n\
         invalid type: string \"4\", expected a sequence",
    );
}

#[test]
fn group_size_zero() {
    check_refused(
        "per_group = 32",
        "per_group = 0",
        "experiment.toml: not a valid experiment, key `grids.granularity[0].per_group`: \
         TOML parse error at line 18, column 30\n   |\n\
         18 | granularity = [{ per_group = 0 }]\n   |                              ^\n\
         invalid value: integer `0`, expected a nonzero u16",
    );
}

#[test]
fn nine_bits() {
    check_refused(
        "bits = [4, 3]",
        "bits = [4, 9]",
        "experiment.toml: not a valid experiment, key `grids.bits`: TOML parse error at line 17, column 8\n   |\n\
         17 | bits = [4, 9]\n   |        ^^^^^^\n\
         bits = 9 is outside 2..=8; choose 2, 3, 4, 5, 6, 7 or 8",
    );
}

#[test]
fn duplicate_cell() {
    check_refused(
        "bits = [4, 3]",
        "bits = [4, 3, 4]",
        "experiment.toml: not a valid experiment: the cell `tiny RTN W4 g32` is asked for twice; remove the repeated entry of \
         models, methods, calibrations, grids.bits or grids.granularity",
    );
}

#[test]
fn evaluation_twice() {
    let workshop = Workshop::new();
    let text = workshop.read("experiment.toml");
    let evaluation = &text[text.find("[[evaluations]]").unwrap()..];
    workshop.write("experiment.toml", format!("{text}\n{evaluation}"));
    workshop
        .run(&["plan", "experiment.toml"])
        .refused("experiment.toml: not a valid experiment: evaluations[1] is the same as an earlier one; remove it");
}

#[test]
fn nothing_to_predict() {
    check_refused(
        "seq_len = 64",
        "seq_len = 1",
        "experiment.toml: not a valid experiment: key `evaluations[0].perplexity.protocol.gptq.seq_len` is 1: nothing is left \
         to predict; use 2 or more",
    );
    check_refused(
        "{ gptq = { seq_len = 64 } }",
        "{ llama-cpp = { chunk_len = 2 } }",
        "experiment.toml: not a valid experiment: key `evaluations[0].perplexity.protocol.llama-cpp.chunk_len` is 2: nothing \
         is left to predict; use 3 or more",
    );
}

#[test]
fn methods_without_calibration() {
    let workshop = Workshop::new();
    let text = workshop.read("experiment.toml");
    let (head, rest) = text.split_once("[calibration]").unwrap();
    let (_, tail) = rest.split_once("[grids]").unwrap();
    workshop.write("experiment.toml", format!("{head}[grids]{tail}"));
    workshop.run(&["experiment.toml"]).refused(
        "experiment.toml: not a valid experiment: method `awq` needs activations, the experiment has no [calibration] \
         section; add one",
    );
}

#[test]
fn missing_experiment() {
    Workshop::new()
        .run(&["plan", "none.toml"])
        .refused("none.toml: cannot read the experiment's TOML file: No such file or directory (os error 2)");
}

#[test]
fn devices_that_are_not_there() {
    let workshop = Workshop::new();
    let refused = |device: &str, message: &str| {
        workshop.run(&["experiment.toml", "--out", "out", "--device", device]).refused(message);
        assert!(!workshop.path("out").exists(), "an output folder appeared");
    };
    refused("gpu", "device `gpu` is unknown; use flex, ndarray, cuda, cuda:N or wgpu");
    refused("flex:1", "device `flex:1`: only cuda devices are numbered; use `flex`");
    if !cfg!(feature = "cuda") {
        refused("cuda:1", "device `cuda:1`: this program was built without it; build with `--features cuda`");
    }
    if !cfg!(feature = "wgpu") {
        refused("wgpu", "device `wgpu`: this program was built without it; build with `--features wgpu`");
    }
    workshop.change_experiment("device = \"flex\"", "device = \"tpu\"");
    let unknown = "device `tpu` is unknown; use flex, ndarray, cuda, cuda:N or wgpu";
    workshop.run(&["experiment.toml", "--out", "out"]).refused(unknown);
    workshop.run(&["plan", "experiment.toml"]).refused(unknown);
    workshop
        .run(&["plan", "experiment.toml", "--device", "flx"])
        .refused("device `flx` is unknown; use flex, ndarray, cuda, cuda:N or wgpu (did you mean flex?)");
    assert_eq!(workshop.run(&["plan", "experiment.toml", "--device", "ndarray"]).stderr, "");
}

#[test]
fn a_plan_for_another_machine_says_so() {
    if cfg!(feature = "cuda") {
        return;
    }
    let planned = Workshop::new().run(&["plan", "experiment.toml", "--device", "cuda:1"]);
    let note = "cannot run here: device `cuda:1`: this program was built without it; build with `--features cuda`\n";
    assert_eq!((planned.code, planned.stderr.as_str()), (Some(0), note));
}

/// Some editors put a byte order mark in front, and end lines as Windows does.
#[test]
fn a_byte_order_mark_and_windows_lines_are_read() {
    let workshop = Workshop::new();
    let (plain, planned) = (workshop.read("experiment.toml"), workshop.run(&["plan", "experiment.toml"]));
    workshop.write("experiment.toml", format!("\u{feff}{}", plain.replace('\n', "\r\n")));
    assert_eq!(workshop.run(&["plan", "experiment.toml"]).stdout, planned.stdout);
    workshop.write("experiment.toml", "\u{feff}quest = 1\n");
    let refused = workshop.run(&["plan", "experiment.toml"]);
    assert!(refused.stderr.contains("TOML parse error at line 1, column 1\n"), "{refused:?}");
    let marked = format!("\u{feff}{plain}");
    workshop.write("experiment.toml", marked.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    workshop
        .run(&["plan", "experiment.toml"])
        .refused("experiment.toml: is UTF-16, as its byte order mark says; convert it with `iconv -f UTF-16 -t UTF-8`");
}

#[test]
fn output_folders_that_cannot_be_written() {
    let workshop = Workshop::new();
    // Nothing may be opened before the folder is known to be good: the model is not even there.
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    workshop.write("file", "in the way");
    let refused = |out: &str, reason: &str| {
        let ran = workshop.run(&["experiment.toml", "--out", out]);
        ran.refused(&format!("{out}: cannot write the output folder; choose another with --out: {reason}"));
        assert!(!ran.stderr.contains("model"), "{ran:?}");
    };
    refused("file", "File exists (os error 17)");
    refused("file/below", "Not a directory (os error 20)");
    if cfg!(target_os = "linux") {
        refused("/proc/results", "No such file or directory (os error 2)");
    }
    assert_eq!(workshop.read("file"), "in the way");
}

//! `quantize`: what would stop it is found before the work, and a run that fails or is killed leaves nothing in the way.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{N_CELLS, Ran, Workshop, error_of};

const BEYOND_F16: &str = "block 0, mlp.up_proj: a scale of output channel 3 does not fit into f16, which ends at 65504 and \
                          begins at 6e-8; set `scale_dtype = \"f32\"`";

/// A model with one weight of 2e6, so that the scale of its group is 133,333 at 4 bits.
fn with_a_large_weight() -> Workshop {
    let workshop = Workshop::new();
    workshop.write_model("model", |name, values| match name {
        "model.layers.0.mlp.up_proj.weight" => values[3 * 64 + 4] = 2e6,
        "model.layers.0.mlp.down_proj.weight" => values.iter_mut().for_each(|value| *value *= 1e-4),
        _ => {}
    });
    workshop
}

fn quantize(workshop: &Workshop, method: &str, more: &[&str]) -> Ran {
    let asked = ["quantize", "model", "--method", method, "--bits", "4", "--group-size", "32"];
    let place = ["--calibration", "calibration.txt", "--out", "packed", "--quiet"];
    workshop.run(&[&asked[..], &place[..], more].concat())
}

/// Names in the folder that a run to `packed` made.
fn left(workshop: &Workshop) -> Vec<String> {
    let names = fs::read_dir(workshop.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("packed")).collect()
}

#[test]
fn a_scale_beyond_f16_is_refused_and_stored_in_f32() {
    let workshop = with_a_large_weight();
    for method in ["rtn", "awq", "gptq", "hqq"] {
        let refused = quantize(&workshop, method, &[]);
        assert_eq!(refused.code, Some(1), "{method}: {refused:?}");
        assert!(refused.stderr.ends_with(&format!("{BEYOND_F16}\n")), "{method}: {}", refused.stderr);
        assert!(left(&workshop).is_empty(), "{method} left {:?}", left(&workshop));
    }
    assert_eq!(quantize(&workshop, "rtn", &["--scale-dtype", "f32"]).code, Some(0));
    for model in [["packed"].as_slice(), &["model", "--quant", "rtn-w4g32-f32"]] {
        let generated = workshop.run(&[&["generate"], model, &["--prompt", "w1 w2", "--max-tokens", "3"]].concat());
        assert_eq!(generated.code, Some(0), "{generated:?}");
    }
    let generated =
        workshop.run(&["generate", "model", "--quant", "rtn-w4g32", "--prompt", "w1 w2", "--max-tokens", "3"]);
    assert!(generated.stderr.ends_with(&format!("{BEYOND_F16}\n")), "{}", generated.stderr);
}

#[test]
fn cells_with_a_scale_beyond_f16_fail_by_name() {
    let workshop = with_a_large_weight();
    workshop.change_experiment("scale_dtype = \"f32\"", "scale_dtype = \"f16\"");
    workshop.change_experiment("bits = [4, 3]", "bits = [4]");
    workshop.change_experiment(
        "rtn = {}\n",
        "rtn = {}\n\n[[methods]]\ngptq = { damp = 0.01, block_size = 128, order = \"natural\", group_grid = \"updated_weights\", \
         range = \"min_max\", hessian = \"f64\" }\n\n[[methods]]\nhqq = { lp_norm = 0.7, beta = 10.0, kappa = 1.01, n_iterations = \
         20, zero_points = \"real\" }\n",
    );
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let records = workshop.records("out");
    assert_eq!(records.len(), N_CELLS);
    assert!(records[0]["outcome"]["done"].is_object(), "full precision has no scales");
    for record in &records[1..] {
        assert_eq!(error_of(record), BEYOND_F16, "{}", record["cell"]["quantization"]["method"]);
    }
}

#[test]
fn a_place_that_cannot_be_used_is_found_first() {
    let workshop = Workshop::new();
    workshop.write("packed", "a file");
    let refused = |out: &str, message: &str| {
        let asked = ["quantize", "nothing", "--method", "rtn", "--bits", "4", "--out", out];
        workshop.run(&asked).refused(message);
    };
    refused("packed", "packed: is a file; choose a folder with --out");
    refused("model", "model: is not empty; choose another folder with --out, or remove this one");
    let inside = workshop.run(&["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "model/packed"]);
    assert!(inside.stderr.contains("model/packed: lies inside the model's folder "), "{inside:?}");
    let below = workshop.run(&["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "packed/new"]);
    assert!(below.stderr.contains("packed/new: cannot create the folder; choose another with --out: "), "{below:?}");
    // A model that does not open leaves nothing either.
    fs::remove_file(workshop.path("packed")).unwrap();
    fs::remove_file(workshop.path("model/model.safetensors")).unwrap();
    assert_eq!(quantize(&workshop, "rtn", &[]).code, Some(1));
    assert!(left(&workshop).is_empty());
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_said_to_be_one_and_leaves_nothing() {
    let workshop = Workshop::new();
    // Codes are stored by the first run: the second one fails where it writes the folder.
    let asked = ["quantize", "model", "--method", "rtn", "--bits", "8", "--out", "packed"];
    let with_codes = |mut command: std::process::Command| Ran::of(command.env("AWQ_CODES_GIB", "1").output().unwrap());
    assert_eq!(with_codes(workshop.command(&asked)).code, Some(0));
    fs::remove_dir_all(workshop.path("packed")).unwrap();
    for (kib, of) in [(0, "README.md"), (16, "tensor ")] {
        let ran = with_codes(workshop.command_after(&format!("trap '' XFSZ; ulimit -f {kib}"), &asked));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let remedy = ": cannot write (is the disk full?); free space, or choose another place: ";
        let error = ran.stderr.lines().last().unwrap();
        assert!(error.contains(of) && error.contains(remedy), "{error}");
        assert!(left(&workshop).is_empty(), "{:?}", left(&workshop));
    }
}

#[test]
fn a_killed_run_does_not_stop_the_next() {
    let workshop = Workshop::new();
    // Enough ratios and blocks of text that there is time to kill.
    let words: String = workshop.read("calibration.txt").repeat(40);
    workshop.write("calibration.txt", words);
    let asked = ["quantize", "model", "--method", "awq", "--bits", "4", "--group-size", "32", "--out", "packed"];
    let mut child = workshop
        .command(&[&asked[..], &["--calibration", "calibration.txt"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while left(&workshop).is_empty() {
        assert!(Instant::now() < patience, "no folder appeared");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if left(&workshop) == ["packed"] {
        return;
    }
    assert!(left(&workshop)[0].starts_with(".packed.partial-"), "{:?}", left(&workshop));
    let again = quantize(&workshop, "rtn", &[]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(left(&workshop), ["packed"]);
    assert!(!workshop.path("packed/.lock").exists());
}

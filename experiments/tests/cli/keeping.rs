//! `[export]`: the checkpoints that an experiment keeps of its models.

use std::fs;

use crate::support::{Workshop, files};

/// The workshop's experiment with f16 scales and an `[export]` section.
fn exporting(section: &str) -> Workshop {
    let workshop = Workshop::new();
    workshop.change_experiment("scale_dtype = \"f32\"", "scale_dtype = \"f16\"");
    let experiment = workshop.read("experiment.toml");
    workshop.write("experiment.toml", experiment + "\n[export]\n" + section);
    workshop
}

fn names(workshop: &Workshop, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(workshop.path(folder)) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Perplexity of a folder as it is.
fn perplexity(workshop: &Workshop, folder: &str) -> f64 {
    let experiment = workshop.experiment().replace("path = \"model\"", &format!("path = \"{folder}\""));
    workshop.write("scored.toml", experiment);
    let ran = workshop.run(&["scored.toml", "--out", "scored", "--only", "method=fp", "--rerun"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    workshop.records("scored").last().unwrap()["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap()
}

#[test]
fn what_was_measured_is_kept_with_its_numbers() {
    let workshop =
        exporting("formats = [\"packed\", \"awq\"]\nonly = [\"method=awq,bits=4\", \"method=rtn,bits=4\"]\n");
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("4 checkpoints written to checkpoints/, 0 were there, 0 left out"), "{}", ran.stderr);
    let kept = ["tiny-awq-w4-g32-awq", "tiny-awq-w4-g32-packed", "tiny-rtn-w4-g32-awq", "tiny-rtn-w4-g32-packed"];
    assert_eq!(names(&workshop, "out/checkpoints"), kept);

    let measured = |label: &str| {
        let of_cell =
            |record: &&serde_json::Value| record["labels"]["method"] == label && record["labels"]["grid"] == "W4 g32";
        let records = workshop.records("out");
        let record = records.iter().find(of_cell).unwrap();
        record["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap()
    };
    assert_eq!(perplexity(&workshop, "out/checkpoints/tiny-awq-w4-g32-packed"), measured("AWQ"));
    assert_eq!(perplexity(&workshop, "out/checkpoints/tiny-rtn-w4-g32-packed"), measured("RTN"));
    let as_others_read = perplexity(&workshop, "out/checkpoints/tiny-awq-w4-g32-awq");
    assert!((as_others_read / measured("AWQ")).ln().abs() < 1e-4);
    let card = workshop.read("out/checkpoints/tiny-awq-w4-g32-awq/README.md");
    assert!(card.starts_with("# AWQ W4 g32\n") && card.contains("## Measured"), "{card}");
    let shown = |value: f64| format!("{value:.3}");
    let of_base = workshop.records("out")[0]["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap();
    assert!(card.contains(&shown(measured("AWQ"))) && card.contains(&shown(of_base)), "{card}");
    assert!(!card.contains(&shown(measured("RTN"))), "another cell's number is on the card: {card}");
    let card = workshop.read("out/checkpoints/tiny-rtn-w4-g32-packed/README.md");
    assert!(card.contains("| calibration | none |"), "rtn looks at no activations: {card}");

    // What is there stays; what was removed is made again, the same.
    let before = files(&workshop.path("out/checkpoints"));
    fs::remove_dir_all(workshop.path("out/checkpoints/tiny-awq-w4-g32-packed")).unwrap();
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("1 checkpoints written to checkpoints/, 3 were there, 0 left out"), "{}", ran.stderr);
    assert_eq!(files(&workshop.path("out/checkpoints")), before);
    assert_eq!(workshop.read("out/exports.jsonl").lines().count(), 5);
}

#[test]
fn a_part_of_the_experiment_keeps_its_own_models() {
    let workshop = exporting("formats = [\"packed\"]\nonly = [\"method=awq\", \"method=rtn,bits=4\"]\n");
    let ran = workshop.finish("out", &["--only", "method=rtn,bits=3"]);
    assert!(!ran.stderr.contains("checkpoints"), "{}", ran.stderr);
    workshop.finish("out", &["--only", "method=awq,bits=3"]);
    assert_eq!(names(&workshop, "out/checkpoints"), ["tiny-awq-w3-g32-packed"]);
    // The base model was measured by another part.
    workshop.finish("out", &["--only", "method=fp"]);
    workshop.finish("out", &["--only", "method=awq,bits=4"]);
    let of_base = workshop.records("out").into_iter().find(|record| record["labels"]["method"] == "FP").unwrap();
    let of_base = of_base["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap();
    let card = workshop.read("out/checkpoints/tiny-awq-w4-g32-packed/README.md");
    assert!(card.contains(&format!("{of_base:.3}")), "{card}");
}

#[test]
fn what_a_format_does_not_hold_is_found_before_any_work() {
    let workshop = exporting("formats = [\"packed\", \"awq\"]\n");
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    ran.refused(
        "experiment.toml: not a valid experiment: key `export`, tiny RTN W3 g32: format `awq`: \
         model.layers.0.mlp.down_proj: it has 4 bits, not 3; choose one of packed, gptq, gptq_v2, compressed-tensors, \
         compressed-tensors-0.17",
    );
    assert_eq!(workshop.read("out/records.jsonl"), "");
}

#[test]
fn another_model_in_the_place_is_not_touched() {
    let workshop = exporting("formats = [\"packed\"]\nonly = [\"method=rtn,bits=4\"]\n");
    fs::create_dir_all(workshop.path("out/checkpoints/tiny-rtn-w4-g32-packed")).unwrap();
    workshop.write("out/checkpoints/tiny-rtn-w4-g32-packed/mine.txt", "mine");
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    ran.refused(
        "out: [export]: out/checkpoints/tiny-rtn-w4-g32-packed: holds another model than tiny RTN W4 g32 as it was measured; move it \
         away, and run again",
    );
    assert!(ran.stderr.contains("5 cells finished"), "{}", ran.stderr);
    assert_eq!(workshop.read("out/checkpoints/tiny-rtn-w4-g32-packed/mine.txt"), "mine");
    assert!(workshop.read("out/table.md").contains("RTN"));
}

/// What is measured of it may be other things; of files that changed, it is another model, be its codes the same.
#[test]
fn what_is_there_is_the_model_and_not_the_question() {
    let workshop = exporting("formats = [\"packed\"]\nonly = [\"method=rtn,bits=4\"]\n");
    workshop.finish("out", &[]);
    let before = files(&workshop.path("out/checkpoints"));
    workshop.change_experiment("seq_len = 64", "seq_len = 32");
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("0 checkpoints written to checkpoints/, 1 were there"), "{}", ran.stderr);
    let note =
        "out/checkpoints/tiny-rtn-w4-g32-packed: is the model that was measured; its card has what was measured before";
    assert!(ran.stderr.contains(note), "{}", ran.stderr);
    assert_eq!(files(&workshop.path("out/checkpoints")), before);

    // Rounding sees no norm.
    workshop.write_model("model", |name, values| {
        if name == "model.norm.weight" {
            values.fill(2.0);
        }
    });
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    ran.refused(
        "out: [export]: out/checkpoints/tiny-rtn-w4-g32-packed: holds another model than tiny RTN W4 g32 as it was measured; move it \
         away, and run again",
    );
}

#[test]
fn a_section_that_asks_for_nothing_is_refused() {
    let refused = |section: &str| {
        let ran = exporting(section).run(&["experiment.toml", "--out", "out"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.stderr.trim_end().rsplit("not a valid experiment").next().unwrap().to_owned()
    };
    assert_eq!(
        refused("formats = []\n"),
        ": key `export.formats` is an empty list; name a format (`experiments list formats`), or remove the section"
    );
    assert_eq!(refused("formats = [\"awq\", \"awq\"]\n"), ": key `export.formats` names `awq` twice; remove one");
    assert_eq!(
        refused("formats = [\"awq\"]\nonly = [\"method=fp\"]\n"),
        ": key `export.only`: full precision alone is selected; name a method"
    );
    assert_eq!(
        refused("formats = [\"awq\"]\nonly = [\"method=gptq\"]\n"),
        ": key `export.only`: no cell has method=gptq; method is one of fp, rtn, awq"
    );
    let unknown = refused("formats = [\"onnx\"]\n");
    assert!(unknown.contains("no format is called `onnx`; choose one of packed, awq, gptq"), "{unknown}");
}

#[test]
fn a_plan_says_what_is_kept() {
    let workshop = exporting("formats = [\"packed\", \"awq\"]\nonly = [\"method=awq,bits=4\", \"method=rtn\"]\n");
    let ran = workshop.run(&["plan", "experiment.toml"]);
    let line = "Checkpoints in checkpoints/: packed, awq of those with method=awq,bits=4 or method=rtn.\n";
    assert!(ran.stdout.contains(line), "{}", ran.stdout);
    let hint = "Measure this machine with `experiments plan --measure` for times that hold here.\n";
    assert!(ran.stdout.ends_with(hint), "{}", ran.stdout);
}

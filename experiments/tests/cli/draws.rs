//! A calibration drawn several times: which cells run, what tables show of them, and draws that cannot differ; and what the
//! records say of the base model's file.

use serde_json::Value;

use crate::support::{N_CELLS, Workshop, error_of, sha256, words};

/// Of the five cells, AWQ's two have two more draws each.
const N_CELLS_OF_3_DRAWS: usize = N_CELLS + 2 * 2;

fn draw_thrice(workshop: &Workshop) {
    workshop.change_experiment("seq_len = 32\n", "seq_len = 32\ndraws = 3\n");
}

#[test]
fn more_draws_leave_what_is_on_record_and_stand_in_one_row() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    let before = workshop.read("out/records.jsonl");
    draw_thrice(&workshop);
    let plan = workshop.run(&["plan", "experiment.toml"]).stdout;
    assert!(plan.contains("tiny AWQ W3 g32, draw 2 ") && plan.contains("9 cells of 1 model(s)."), "{plan}");
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.ends_with("4 cells finished, 5 were on record, 0 failed\n"), "{}", ran.stderr);
    assert!(workshop.read("out/records.jsonl").starts_with(&before));
    assert_eq!(workshop.records("out").len(), N_CELLS_OF_3_DRAWS);

    let codes = |seed: u64| -> Vec<String> {
        let of_seed = |record: &&Value| {
            let quantization = &record["cell"]["quantization"];
            quantization["method"].get("awq").is_some()
                && quantization["calibration"]["sampling"]["random_crops"]["seed"] == seed
        };
        let records = workshop.records("out");
        let codes =
            |record: &Value| record["outcome"]["done"]["quantization"]["codes_sha256"].as_str().unwrap().to_owned();
        records.iter().filter(of_seed).map(codes).collect()
    };
    assert_eq!([0, 1, 2].map(|seed| codes(seed).len()), [2, 2, 2]);
    assert!(codes(0) != codes(1) && codes(1) != codes(2), "the draws quantize alike");

    let table = workshop.read("out/table.md");
    assert_eq!(table.lines().filter(|line| line.starts_with("| AWQ ")).count(), 2, "{table}");
    assert!(table.contains("| draws: low to high |"), "{table}");
    let csv = workshop.read("out/table.csv");
    assert_eq!(csv.lines().count(), 1 + N_CELLS_OF_3_DRAWS);
    let column = csv.lines().next().unwrap().split(',').position(|name| name == "draw");
    assert!(column.is_some(), "{csv}");
    // The same question at once gives the same.
    workshop.finish("at-once", &[]);
    assert_eq!(workshop.results("out"), workshop.results("at-once"));
    assert_eq!(workshop.run(&["verify", "out"]).code, Some(0));
}

#[test]
fn a_text_of_one_sequence_has_one_draw() {
    let workshop = Workshop::new();
    workshop.write("short.txt", words(3, 32));
    let hash = |name: &str| sha256(workshop.read(name).as_bytes());
    workshop.change_experiment("path = \"calibration.txt\"", "path = \"short.txt\"");
    workshop.change_experiment(&hash("calibration.txt"), &hash("short.txt"));
    workshop.change_experiment("bits = [4, 3]", "bits = [3]");
    draw_thrice(&workshop);
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert!(ran.stderr.ends_with("3 cells finished, 0 were on record, 2 failed\n"), "{}", ran.stderr);
    let records = workshop.records("out");
    let failed: Vec<&str> =
        records.iter().filter(|record| record["outcome"].get("failed").is_some()).map(error_of).collect();
    assert_eq!(
        failed,
        [1, 2].map(|draw| format!(
            "draw {draw} of the calibration takes the same sequences as draw 0: the text has no others; remove `draws` or \
             calibrate on a longer text"
        ))
    );
}

#[test]
fn a_record_says_how_the_base_model_is_stored() {
    let workshop = Workshop::new();
    let packed =
        ["quantize", "model", "--method", "rtn", "--bits", "4", "--group-size", "32", "--out", "packed", "--quiet"];
    assert_eq!(workshop.run(&packed).code, Some(0));
    workshop.change_experiment("bits = [4, 3]", "bits = [3]");
    workshop.finish("out", &[]);
    let storage = |out: &str| workshop.records(out)[0]["outcome"]["done"]["storage"].clone();
    assert_eq!(
        (&storage("out")["bits_per_weight"], &storage("out")["types"][0]["name"]),
        (&32.0.into(), &"F32".into())
    );
    let table = workshop.read("out/table.md");
    assert!(table.contains("| FP | - | 32.00 |") && table.contains("The base model is stored in F32."), "{table}");

    workshop.change_experiment("path = \"model\"", "path = \"packed\"");
    workshop.finish("again", &[]);
    let types = &storage("again")["types"];
    assert_eq!((&types[0]["name"], &types[0]["group_size"]), (&"packed RTN W4 g32".into(), &32.into()));
    let table = workshop.read("again/table.md");
    let said = "The base model is itself a quantized file (packed RTN W4 g32 in groups of 32; ";
    assert!(table.contains("| packed RTN W4 g32 | - |") && table.contains(said), "{table}");
    assert!(table.contains("| ln ratio to base [95% CI] |"), "{table}");
}

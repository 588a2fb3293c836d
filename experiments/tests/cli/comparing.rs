//! `experiments compare`: two folders of results, number by number.

use serde_json::Value;

use crate::support::{N_CELLS, Workshop};

/// In place of rounding.
const COARSER: &str = "[[methods]]\n[methods.awq]\nscale = { search = { formula = \"activation\", n_ratios = 3 } }\n\
                       clip = { search = { n_steps = 20, max_shrink = 0.5, n_tokens = 64 } }";

fn compared(workshop: &Workshop, first: &str, second: &str) -> Value {
    let ran = workshop.run(&["compare", first, second, "--format", "json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_run_made_again_is_the_same_and_another_method_is_told_from_noise() {
    let workshop = Workshop::new();
    workshop.finish("first", &[]);
    workshop.finish("again", &[]);
    let again = compared(&workshop, "first", "again");
    let numbers = again["numbers"].as_array().unwrap();
    assert_eq!(numbers.len(), N_CELLS);
    assert!(numbers.iter().all(|number| number["verdict"] == "same"), "{again:#}");
    assert_eq!((&again["settings"], &again["made_with"]), (&Value::Array(vec![]), &Value::Array(vec![])));

    // Two bits in place of four under the same name of a cell are no cell of the first run.
    workshop.change_experiment("bits = [4, 3]", "bits = [4, 2]");
    workshop.finish("fewer", &[]);
    let fewer = compared(&workshop, "first", "fewer");
    assert_eq!(fewer["settings"][0]["key"], "grids.bits");
    assert_eq!(fewer["alone"][0].as_array().unwrap().len(), 2);
    assert_eq!(fewer["numbers"].as_array().unwrap().len(), 3);

    workshop.change_experiment("bits = [4, 2]", "bits = [4, 3]");
    workshop.change_experiment("n_ratios = 20", "n_ratios = 2");
    workshop.finish("coarser", &["--max-windows", "5"]);
    let text = workshop.run(&["compare", "first", "coarser"]).stdout;
    assert!(text.starts_with("coarser held against first\n5 numbers in both: 0 the same bit for bit"), "{text}");
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["methods[1].awq.scale.search.n_ratios", "20", "2"]), "{text}");
    assert!(text.contains("other windows"), "{text}");
    let markdown = workshop.run(&["compare", "first", "coarser", "--format", "markdown"]).stdout;
    assert!(markdown.contains("| evaluations[0].perplexity.max\\_windows | - | 5 |"), "{markdown}");
}

#[test]
fn twins_by_name_are_held_against_themselves() {
    let workshop = Workshop::new();
    // A second AWQ, which differs in what labels do not say.
    workshop.change_experiment("[[methods]]\nrtn = {}", COARSER);
    workshop.finish("first", &[]);
    let itself = compared(&workshop, "first", "first");
    let numbers = itself["numbers"].as_array().unwrap();
    assert_eq!(numbers.len(), N_CELLS);
    assert!(numbers.iter().all(|number| number["verdict"] == "same" && number["same_codes"] != false), "{itself:#}");
    let names: std::collections::BTreeSet<&str> =
        numbers.iter().map(|number| number["cell"].as_str().unwrap()).collect();
    assert_eq!(names.len(), N_CELLS, "{names:?}");
}

#[test]
fn what_holds_no_results_is_refused() {
    let workshop = Workshop::new();
    workshop.finish("first", &[]);
    workshop
        .run(&["compare", "first", "model"])
        .refused("model: no experiment.toml in it; give a folder that an experiment wrote");
}

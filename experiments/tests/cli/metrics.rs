//! Several metrics of one text, from an experiment's file to its tables.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{N_CELLS, Workshop};

/// The experiment with other metrics beside its perplexity.
fn with_metrics(workshop: &Workshop, keys: &[&str]) {
    let experiment = workshop.read("experiment.toml");
    let (rest, evaluation) = experiment.split_once("[[evaluations]]").unwrap();
    let more = |key: &&str| {
        format!("[[evaluations]]{}", evaluation.replace("evaluations.perplexity", &format!("evaluations.{key}")))
    };
    workshop.write(
        "experiment.toml",
        format!("{rest}[[evaluations]]{evaluation}{}", keys.iter().map(more).collect::<String>()),
    );
}

/// Measurements of each cell, by method and grid: cells that are asked for more have other ids.
fn cells(workshop: &Workshop, out: &str) -> BTreeMap<String, Vec<Value>> {
    let measurements = |record: Value| {
        let label = format!("{} {}", record["labels"]["method"], record["labels"]["grid"]);
        (label, record["outcome"]["done"]["measurements"].as_array().unwrap().clone())
    };
    workshop.records(out).into_iter().map(measurements).collect()
}

fn measured<'a>(measurements: &'a [Value], metric: &str) -> &'a Value {
    measurements.iter().find(|measurement| measurement["metric"] == metric).unwrap()
}

#[test]
fn one_run_measures_all_that_is_asked_of_a_text() {
    let workshop = Workshop::new();
    workshop.finish("alone", &[]);
    with_metrics(&workshop, &["next_token_accuracy", "kl_divergence"]);
    let ran = workshop.finish("out", &[]);
    let (alone, cells) = (cells(&workshop, "alone"), cells(&workshop, "out"));
    assert_eq!(cells.len(), N_CELLS);
    for (label, measurements) in &cells {
        let metrics: Vec<&Value> = measurements.iter().map(|one| &one["metric"]).collect();
        assert_eq!(metrics, ["token_perplexity", "next_token_accuracy", "kl_divergence"], "in the order of the file");
        let number = |metric: &str| measured(measurements, metric)["value"].as_f64().unwrap();
        assert_eq!(number("token_perplexity"), measured(&alone[label], "token_perplexity")["value"].as_f64().unwrap());
        assert!((0.0..=1.0).contains(&number("next_token_accuracy")), "{label}");
        assert_eq!(measured(measurements, "kl_divergence")["samples"].as_array().unwrap().len(), 15);
        match label.contains("FP") {
            true => assert_eq!(number("kl_divergence"), 0.0),
            false => assert!(number("kl_divergence") > 1e-6, "{label}: {}", number("kl_divergence")),
        }
    }
    for heading in ["perplexity ", "KL divergence ", "next-token accuracy ", "difference to RTN [95% CI]"] {
        assert!(ran.stdout.contains(heading), "no {heading}: {}", ran.stdout);
    }
    let again = workshop.run(&["verify", "out"]);
    assert!(again.stdout.ends_with("5 of 5 cells are identical to the record.\n"), "{}", again.stdout);
}

#[test]
fn a_table_of_a_metric_that_nobody_measures_is_refused() {
    let workshop = Workshop::new();
    let table = "\n[table]\ntitle = \"T\"\nrows = [\"method\", \"grid\"]\ncolumns = []\nvalues = [\"kl_divergence\"]\n";
    workshop.write("experiment.toml", workshop.read("experiment.toml") + table);
    workshop.run(&["plan", "experiment.toml"]).refused(
        "experiment.toml: not a valid experiment: [table]: `values` names `kl_divergence`, which no evaluation measures; remove \
         it, or add `[evaluations.kl_divergence]`",
    );
}

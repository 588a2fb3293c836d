//! Several metrics of one text, from an experiment's file to its tables.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{N_CELLS, Workshop, words};

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
            true => {
                assert!((1e-9..1e-3).contains(&number("kl_divergence")), "bf16 from f32: {}", number("kl_divergence"))
            }
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

#[test]
fn documents_are_scored_one_by_one_and_weigh_their_words() {
    let workshop = Workshop::new();
    let config = workshop.read("model/config.json");
    workshop.write("model/config.json", config.replacen('{', r#"{"bos_token_id": 3, "#, 1));
    // Windows of 64 tokens: the second document has several, the last one short.
    let documents = [words(1, 9), words(2, 150), words(3, 70)];
    workshop.write("evaluation.txt", documents.join("\n"));
    workshop.write("experiment.toml", workshop.experiment());
    let (head, evaluation) = workshop
        .read("experiment.toml")
        .split_once("[[evaluations]]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let evaluation = evaluation.replace("documents = \"none\"", "documents = \"line\"");
    let evaluation =
        evaluation.replace("{ gptq = { seq_len = 64 } }", "{ lm-eval = { max_len = 64, scores_bos = true } }");
    let of = |key: &str| {
        format!("[[evaluations]]{}", evaluation.replace("evaluations.perplexity", &format!("evaluations.{key}")))
    };
    let keys = ["word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity"];
    workshop.write("experiment.toml", head.clone() + &keys.map(of).concat());
    let ran = workshop.finish("out", &[]);
    for measurements in cells(&workshop, "out").values() {
        let number = |metric: &str| measured(measurements, metric)["value"].as_f64().unwrap();
        let weights = |metric: &str| -> Vec<f64> {
            serde_json::from_value(measured(measurements, metric)["weights"].clone()).unwrap()
        };
        // Words of this text are tokens of this model.
        assert_eq!(weights("word_perplexity"), [9.0, 150.0, 70.0]);
        assert_eq!(weights("byte_perplexity"), documents.each_ref().map(|document| document.len() as f64));
        assert!((number("token_perplexity") / number("word_perplexity") - 1.0).abs() < 1e-12);
        assert!((number("bits_per_byte") / number("byte_perplexity").log2() - 1.0).abs() < 1e-6);
        assert_eq!(measured(measurements, "word_perplexity")["protocol"], "lm-eval");
        assert_eq!(
            (
                &measured(measurements, "bits_per_byte")["n_windows"],
                &measured(measurements, "bits_per_byte")["n_tokens"]
            ),
            (&3.into(), &229.into())
        );
    }
    for phrase in ["word perplexity", "3 documents,", "paired over documents"] {
        assert!(ran.stdout.contains(phrase), "no {phrase}: {}", ran.stdout);
    }
    assert!(workshop.run(&["verify", "out"]).stdout.ends_with("5 of 5 cells are identical to the record.\n"));

    // Windows of a joined text cut words.
    let joined = evaluation.replace("{ lm-eval = { max_len = 64, scores_bos = true } }", "{ gptq = { seq_len = 64 } }");
    workshop.write(
        "experiment.toml",
        head + "[[evaluations]]" + &joined.replace("evaluations.perplexity", "evaluations.word_perplexity"),
    );
    workshop.run(&["plan", "experiment.toml"]).refused(
        "experiment.toml: not a valid experiment: key `evaluations[0].word_perplexity` counts words or bytes of documents, which windows \
         of a joined text cut; use protocol lm-eval",
    );
}

/// What has no codes keeps its number, and codes theirs to the last digits.
#[test]
fn codes_are_multiplied_as_integers_where_that_is_asked_for() {
    let workshop = Workshop::new();
    workshop.finish("f32", &[]);
    let protocol = "protocol = { gptq = { seq_len = 64 } }";
    workshop.change_experiment(protocol, &format!("{protocol}\narithmetic = \"int16\""));
    workshop.finish("int16", &[]);
    let measured = |out: &str| -> Vec<(bool, Value)> {
        let records = workshop.records(out).into_iter();
        let of = |record: Value| {
            let measurement = record["outcome"]["done"]["measurements"][0].clone();
            (record["cell"]["quantization"].is_null(), measurement)
        };
        records.map(of).collect()
    };
    for ((is_base, f32), (_, int16)) in measured("f32").into_iter().zip(measured("int16")) {
        assert_eq!((&f32["arithmetic"], &int16["arithmetic"]), (&Value::Null, &"int16".into()));
        let [f32, int16] = [f32, int16].map(|one| one["value"].as_f64().unwrap().ln());
        let moved = (int16 - f32).abs();
        assert!(if is_base { moved == 0.0 } else { moved > 0.0 && moved < 1e-3 }, "{is_base}: {f32} and {int16}");
    }
    let table = workshop.read("int16/table.md");
    assert!(table.contains("codes were multiplied as integers with activations in 16 bits"), "{table}");
}

//! Tasks from the hub's cache, as its own converter writes them: Parquet at `refs/convert/parquet`.

use std::fs::File;

use polars::prelude::{Column, DataFrame, ParquetWriter};

use crate::support::{N_CELLS, Workshop};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Six questions of PIQA's layout in words that the tiny model knows.
fn write_piqa(workshop: &Workshop) {
    let dataset = workshop.path("home/.cache/huggingface/hub/datasets--baber--piqa");
    let reference = dataset.join("refs/refs/convert/parquet");
    std::fs::create_dir_all(reference.parent().unwrap()).unwrap();
    std::fs::write(reference, COMMIT).unwrap();
    let folder = dataset.join("snapshots").join(COMMIT).join("default/validation");
    std::fs::create_dir_all(&folder).unwrap();
    let words = |step: usize, n: usize| -> Vec<String> {
        (0..6)
            .map(|row| (0..n).map(|at| format!("w{}", 1 + (row * step + 3 * at) % 30)).collect::<Vec<_>>().join(" "))
            .collect()
    };
    let columns = vec![
        Column::new("goal".into(), words(2, 5)),
        Column::new("sol1".into(), words(5, 2)),
        Column::new("sol2".into(), words(7, 3)),
        Column::new("label".into(), [0_i64, 1, 1, 0, 1, 0]),
    ];
    let mut frame = DataFrame::new(6, columns).unwrap();
    ParquetWriter::new(File::create(folder.join("0000.parquet")).unwrap()).finish(&mut frame).unwrap();
}

#[test]
fn a_task_of_the_hub_is_scored_question_by_question() {
    let workshop = Workshop::new();
    write_piqa(&workshop);
    let experiment = workshop.read("experiment.toml");
    let (head, _) = experiment.split_once("[[evaluations]]").unwrap();
    workshop.write("experiment.toml", format!("{head}[tasks]\nnames = [\"piqa\"]\nmax_len = 32\n"));
    let ran = workshop.finish("out", &[]);
    assert!(ran.stdout.contains("accuracy") && ran.stdout.contains("lost : won"), "{}", ran.stdout);
    let records = workshop.records("out");
    assert_eq!(records.len(), N_CELLS);
    for record in &records {
        let measurements = record["outcome"]["done"]["measurements"].as_array().unwrap();
        let names: Vec<&str> = measurements.iter().map(|one| one["metric"].as_str().unwrap()).collect();
        assert_eq!(names, ["accuracy", "normalized_accuracy", "target_nll"]);
        let samples = measurements[0]["samples"].as_array().unwrap();
        assert!(samples.len() == 6 && samples.iter().all(|sample| [0.0, 1.0].contains(&sample.as_f64().unwrap())));
        assert_eq!(measurements[0]["text_sha256"], records[0]["outcome"]["done"]["measurements"][0]["text_sha256"]);
    }
    let csv = workshop.read("out/table.csv");
    assert!(csv.lines().next().unwrap().contains("questions_lost,questions_won,mcnemar_p"));
    // Fewer questions are a limited run, which says so.
    let few = workshop.finish("few", &["--max-windows", "3"]);
    assert!(few.stdout.contains("first 3 of 6 questions"), "{}", few.stdout);
}

#[test]
fn a_task_that_is_nowhere_says_what_to_do() {
    let workshop = Workshop::new();
    let experiment = workshop.read("experiment.toml");
    let (head, _) = experiment.split_once("[[evaluations]]").unwrap();
    workshop.write("experiment.toml", format!("{head}[tasks]\nnames = [\"piqa\"]\nmax_len = 32\n"));
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("piqa") && ran.stderr.contains("--assets"), "{}", ran.stderr);
}

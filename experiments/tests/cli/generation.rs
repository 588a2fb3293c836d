//! Tasks whose answers a model writes, in words that the tiny model knows.

use std::fs::File;

use polars::prelude::{Column, DataFrame, IntoColumn, NamedFrom, ParquetWriter, Series};

use crate::support::{N_CELLS, Workshop};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Parquet of a split, where the hub's client would keep it.
fn write_split(workshop: &Workshop, repo: &str, split: &str, columns: Vec<Column>) {
    let dataset = workshop.path(&format!("home/.cache/huggingface/hub/datasets--{repo}"));
    let reference = dataset.join("refs/refs/convert/parquet");
    std::fs::create_dir_all(reference.parent().unwrap()).unwrap();
    std::fs::write(reference, COMMIT).unwrap();
    let folder = dataset.join("snapshots").join(COMMIT).join(split);
    std::fs::create_dir_all(&folder).unwrap();
    let mut frame = DataFrame::new(columns[0].len(), columns).unwrap();
    ParquetWriter::new(File::create(folder.join("0000.parquet")).unwrap()).finish(&mut frame).unwrap();
}

fn sentences(step: usize, n_rows: usize, n_words: usize) -> Vec<String> {
    let word = |row: usize, at: usize| format!("w{}", 1 + (row * step + 3 * at) % 30);
    (0..n_rows).map(|row| (0..n_words).map(|at| word(row, at)).collect::<Vec<_>>().join(" ")).collect()
}

fn write_gsm8k(workshop: &Workshop) {
    for (split, n_rows) in [("main/test", 6), ("main/train", 30)] {
        let columns = vec![
            Column::new("question".into(), sentences(2, n_rows, 3)),
            Column::new("answer".into(), sentences(5, n_rows, 2)),
        ];
        write_split(workshop, "openai--gsm8k", split, columns);
    }
}

/// The tiny model with room for 400 tokens, and tasks in place of its text.
fn workshop(tasks: &str) -> Workshop {
    let workshop = Workshop::new();
    let config = workshop
        .read("model/config.json")
        .replace("\"max_position_embeddings\":128", "\"max_position_embeddings\":400");
    workshop.write("model/config.json", config);
    let experiment = workshop.read("experiment.toml");
    let (head, _) = experiment.split_once("[[evaluations]]").unwrap();
    workshop.write("experiment.toml", format!("{head}{tasks}"));
    workshop
}

#[test]
fn a_task_is_written_problem_by_problem() {
    let workshop = workshop("[tasks]\nnames = [\"gsm8k\"]\nmax_len = 400\n");
    write_gsm8k(&workshop);
    let ran = workshop.finish("out", &["--threads", "1"]);
    assert!(ran.stdout.contains("strict match") && ran.stdout.contains("lost : won"), "{}", ran.stdout);
    let records = workshop.records("out");
    assert_eq!(records.len(), N_CELLS);
    for record in &records {
        let measurements = record["outcome"]["done"]["measurements"].as_array().unwrap();
        let names: Vec<&str> = measurements.iter().map(|one| one["metric"].as_str().unwrap()).collect();
        assert_eq!(names, ["strict_match", "flexible_extract"]);
        for one in measurements {
            assert_eq!(one["protocol"], "lm-eval-generation-5-shot");
            assert_eq!((one["samples"].as_array().unwrap().len(), one["n_windows_total"].as_u64()), (6, Some(6)));
            assert!(one["n_tokens"].as_u64().unwrap() > 0 && one.get("ran_with").is_none());
        }
    }
    // The same texts at another number of threads, and another hash with fewer examples.
    workshop.finish("again", &["--threads", "2"]);
    assert_eq!(workshop.results("again"), workshop.results("out"));
    workshop.change_experiment("max_len = 400", "max_len = 400\nn_shots = 1");
    workshop.finish("fewer", &["--max-windows", "2"]);
    let hash = |out: &str| workshop.records(out)[0]["outcome"]["done"]["measurements"][0]["text_sha256"].clone();
    assert_ne!(hash("fewer"), hash("out"));
    assert!(workshop.read("fewer/table.md").contains("first 2 of 6 problems"), "{}", workshop.read("fewer/table.md"));
    // Several texts are drawn, each from its own seed: the first problems of a shorter run have the same.
    let written = |out: &str| workshop.records(out)[0]["outcome"]["done"]["measurements"][0]["written"].clone();
    let several = "n_shots = 1\nseveral = { n = 2, temperature = 0.8, top_p = 0.95, seed = 0 }";
    workshop.change_experiment("n_shots = 1", several);
    workshop.finish("drawn", &["--only", "method=fp"]);
    workshop.finish("drawn-fewer", &["--only", "method=fp", "--max-windows", "2"]);
    let (all, few) = (written("drawn"), written("drawn-fewer"));
    assert_eq!(all.as_array().unwrap()[..2], few.as_array().unwrap()[..]);
    assert!(written("fewer").as_array().unwrap().len() == 2 && written("fewer") != few);
    workshop.change_experiment("seed = 0 }", "seed = 1 }");
    workshop.finish("other-seed", &["--only", "method=fp"]);
    assert_ne!(written("other-seed"), all);
}

#[test]
fn programs_need_consent_before_any_work() {
    let workshop = workshop("[tasks]\nnames = [\"gsm8k\", \"humaneval\"]\nmax_len = 2048\n");
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    ran.refused(
        "task humaneval runs Python programs that the model writes, which may do anything that you may; read SECURITY.md, and allow it \
         with --run-generated-code, or leave the task out",
    );
    assert!(!workshop.path("out").exists());
    // What is only planned runs nothing.
    assert_eq!(workshop.run(&["plan", "experiment.toml"]).code, Some(0));
}

#[test]
fn programs_run_with_consent() {
    let workshop = workshop("[tasks]\nnames = [\"mbpp\"]\nmax_len = 400\nn_shots = 0\nmax_questions = 2\n");
    let three = || Series::new("".into(), ["w1", "w2", "w3"]);
    let tests = Series::new("test_list".into(), [three(), three()]);
    let columns = vec![Column::new("text".into(), sentences(3, 2, 3)), tests.into_column()];
    write_split(&workshop, "google-research-datasets--mbpp", "full/test", columns);
    let ran = workshop.run(&["experiment.toml", "--out", "out", "--run-generated-code", "--only", "method=fp"]);
    if ran.stderr.contains("cannot be confined") || ran.stderr.contains("python3") {
        return eprintln!("programs_run_with_consent: skipped, {}", ran.stderr);
    }
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("generated code runs with Python 3"), "{}", ran.stderr);
    let measured = workshop.records("out")[0]["outcome"]["done"]["measurements"].clone();
    // Words of nothing are no program that passes.
    assert_eq!((measured[0]["metric"].as_str(), measured[0]["value"].as_f64()), (Some("pass_at_1"), Some(0.0)));
    assert!(measured[0]["ran_with"].as_str().unwrap().starts_with("Python 3"));
    assert_eq!(measured.as_array().unwrap().len(), 1);
}

#[test]
fn a_model_without_room_says_what_to_do() {
    let tasks = "[tasks]\nnames = [\"gsm8k\"]\nmax_len = 2048\nn_shots = 30\n";
    let workshop = workshop(tasks);
    write_gsm8k(&workshop);
    let error = |workshop: &Workshop| {
        let ran = workshop.run(&["experiment.toml", "--out", "out", "--only", "method=fp"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.stderr
    };
    let room = error(&workshop);
    assert!(
        room.contains("more than the 400 positions of the model's configuration; set `max_len` to 400 or less"),
        "{room}"
    );
    workshop.change_experiment("max_len = 2048", "max_len = 256");
    let none = error(&workshop);
    assert!(
        none.contains("no token of the prompt is left before 256 new ones; raise `max_len`, which is 256"),
        "{none}"
    );
    workshop.write("model/config.json", workshop.read("model/config.json").replace(":400", ":128"));
    workshop.change_experiment("max_len = 256", "max_len = 2048");
    let few = error(&workshop);
    assert!(few.contains("lets a model write 256 tokens, and this one has 128 positions"), "{few}");
}

#[test]
fn data_that_make_no_problems_say_which() {
    let workshop = workshop("[tasks]\nnames = [\"gsm8k\"]\nmax_len = 400\n");
    let error = |workshop: &Workshop| {
        let ran = workshop.run(&["experiment.toml", "--out", "out"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.stderr
    };
    assert!(error(&workshop).contains("task gsm8k: gsm8k: no source has it"));
    write_split(&workshop, "openai--gsm8k", "main/test", vec![Column::new("question".into(), sentences(2, 3, 3))]);
    let lacks = error(&workshop);
    assert!(lacks.contains("row 1: `{{ answer }}`"), "{lacks}");
    write_gsm8k(&workshop);
    write_split(
        &workshop,
        "openai--gsm8k",
        "main/train",
        vec![Column::new("question".into(), sentences(2, 3, 3)), Column::new("answer".into(), sentences(2, 3, 3))],
    );
    let few = error(&workshop);
    assert!(
        few.contains("task gsm8k: 5 examples are asked for, the task has 3 to choose from; lower `n_shots`"),
        "{few}"
    );
}

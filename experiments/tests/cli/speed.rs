//! `[speed]`: what is timed, resumed, reported and refused.

use std::fs;

use serde_json::Value;

use super::support::Workshop;

const KERNELS: &str = r#"
[speed.kernels]
shapes = [{ name = "small", n_out = 24, n_in = 80 }, { name = "tall", n_out = 96, n_in = 32 }]
batch_sizes = [1, 3]
bits = [4, 3]
granularity = [{ per_group = 32 }]
activations = ["f32", "int8"]
n_rounds = 2
distinct_mib = 1
"#;

const DECODE: &str = r#"
[speed.decode]
prompt_tokens = 8
new_tokens = 4
n_repeats = 2

[[speed.decode.formats]]
bits = 4
granularity = { per_group = 32 }
activations = "int16"
head_bits = 8
"#;

/// A workshop whose experiment only times things.
fn workshop(threads: &str, sections: &str) -> Workshop {
    let workshop = Workshop::new();
    let experiment = format!(
        "question = \"How fast?\"\n[run]\ndevice = \"flex\"\n[[models]]\nname = \"tiny\"\nsource = {{ path = {{ path = \"model\" }} }}\n\
         [speed]\n{threads}\n{sections}"
    );
    workshop.write("experiment.toml", experiment);
    workshop
}

fn speed_records(workshop: &Workshop) -> Vec<Value> {
    workshop.read("out/speed.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn kernels_and_models_are_timed_at_every_thread_count() {
    let workshop = workshop("threads = [1, 2]", &format!("{KERNELS}{DECODE}"));
    let ran = workshop.finish("out", &[]);
    let records = speed_records(&workshop);
    // Two shapes at two batch sizes and one model, at two thread counts.
    assert_eq!(records.len(), 2 * (2 * 2 + 1));
    let threads: Vec<u64> = records.iter().map(|record| record["provenance"]["threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    for record in &records {
        let (machine, measured) = (&record["machine"], &record["measured"]);
        assert!(machine["bandwidth"]["copy"].as_f64().unwrap() > 1e6 && machine["peak"]["f32"].as_f64().unwrap() > 1e6);
        let arms = measured.as_object().unwrap().values().next().unwrap()["arms"].as_array().unwrap();
        // Dense f32 and bf16, and two bit widths with two kinds of activations; dense f32 and one format of a model.
        assert_eq!(arms.len(), if measured.get("kernels").is_some() { 2 + 2 * 2 } else { 2 });
        for arm in arms {
            let latency = arm.get("latency").unwrap_or(&arm["step"]);
            let time = |name: &str| latency[name].as_f64().unwrap();
            assert_eq!(latency["n_calls"], 2);
            assert!(0.0 < time("lower_quartile") && time("lower_quartile") <= time("median"), "{latency}");
            assert!(time("median") <= time("upper_quartile"), "{latency}");
        }
    }
    for words in ["W4A16 int16 g32, head W8", "W3A8 int8 g32", "dense bf16", "small [24, 80], 2 threads"] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    for file in
        ["speed-kernels.csv", "speed-kernels.parquet", "speed-decode.csv", "table.md", "table.tex", "report.html"]
    {
        assert!(workshop.path("out").join(file).exists(), "{file}");
    }
    for figure in ["roofline-1-thread", "kernel-speed-up-2-threads", "decode-2-threads"] {
        assert!(workshop.path("out/figures").join(format!("{figure}.png")).exists(), "{figure}");
    }
    // 2 thread counts, 2 shapes, 2 batch sizes, 6 forms, and the heading.
    assert_eq!(workshop.read("out/speed-kernels.csv").lines().count(), 2 * 2 * 2 * 6 + 1);
    assert!(!workshop.path("out/table.csv").exists(), "an experiment without cells has a table of them");
}

#[test]
fn what_is_on_record_is_not_timed_again() {
    let workshop = workshop("threads = [1]", KERNELS);
    workshop.finish("out", &[]);
    let whole = workshop.read("out/speed.jsonl");
    // The last comparison is cut short, as by a kill, and another batch size is asked for.
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    workshop.write("out/speed.jsonl", format!("{}{}", lines[..3].concat(), &lines[3][..40]));
    workshop.change_experiment("batch_sizes = [1, 3]", "batch_sizes = [1, 3, 4]");
    workshop.finish("out", &[]);
    let again = workshop.read("out/speed.jsonl");
    assert!(again.starts_with(&lines[..3].concat()), "records were changed");
    assert_eq!(again.lines().count(), 6);
    // What is no longer asked for is not shown, and stays on record.
    workshop.change_experiment("batch_sizes = [1, 3, 4]", "batch_sizes = [3]");
    workshop.finish("out", &[]);
    assert_eq!(workshop.read("out/speed.jsonl"), again);
    assert_eq!(workshop.read("out/speed-kernels.csv").lines().count(), 2 * 6 + 1);
}

/// A folder that was carried here, or a program that was built again.
#[test]
fn times_of_another_machine_or_commit_are_measured_again_and_say_why() {
    let workshop = workshop("threads = [1]", KERNELS);
    workshop.finish("out", &[]);
    let here = workshop.read("out/speed.jsonl");
    let elsewhere = |line: &str, key: &str, value: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        record["provenance"][key] = value.into();
        record.to_string() + "\n"
    };
    let lines: Vec<&str> = here.split_inclusive('\n').collect();
    let old =
        [elsewhere(lines[0], "cpu", "Slow CPU"), elsewhere(lines[1], "commit", &"0".repeat(40)), lines[2..].concat()]
            .concat();
    workshop.write("out/speed.jsonl", &old);
    // They are shown as what they are,
    assert_eq!(workshop.run(&["report", "out"]).code, Some(0));
    let table = workshop.read("out/table.md");
    assert!(table.contains("Rows of several processors: Slow CPU; "), "{table}");
    assert!(table.contains("Commits 0000000"), "{table}");
    // and do not pass for times of this machine.
    let again = workshop.finish("out", &[]);
    for why in ["1 speed comparison on record, but measured otherwise (CPU Slow CPU -> ", "(commit 0000000 -> "] {
        assert!(again.stderr.contains(why), "{why}: {}", again.stderr);
    }
    let now = workshop.read("out/speed.jsonl");
    assert!(now.starts_with(&old), "records were changed");
    assert_eq!(now.lines().count(), 4 + 2);
    let table = workshop.read("out/table.md");
    assert!(!table.contains("Slow CPU") && !table.contains("0000000"), "{table}");
    workshop.finish("out", &[]);
    assert_eq!(workshop.read("out/speed.jsonl"), now, "the newest records count");
}

#[test]
fn quality_and_speed_stand_in_one_report() {
    let workshop = Workshop::new();
    workshop.write("experiment.toml", workshop.experiment() + "\n[speed]\n" + DECODE);
    workshop.finish("out", &[]);
    let table = workshop.read("out/table.md");
    assert!(table.contains("perplexity per token") && table.contains("decode tokens/s"), "{table}");
    fs::remove_dir_all(workshop.path("model")).unwrap();
    let ran = workshop.run(&["report", "out"]);
    assert_eq!((ran.code, workshop.read("out/table.md")), (Some(0), table));
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let refused = |sections: &str, message: &str| {
        let workshop = workshop("", sections);
        workshop.run(&["experiment.toml", "--out", "out"]).refused(message);
    };
    refused(
        "",
        "experiment.toml: not a valid experiment: [speed]: nothing to time; add a [speed.kernels] or a [speed.decode] section",
    );
    refused(
        &KERNELS.replace("[1, 3]", "[]"),
        "experiment.toml: not a valid experiment: key `speed.kernels.batch_sizes` is an empty list; give at least one entry",
    );
}

/// Hours of quality cells are shown whatever becomes of the timing; and what failed is on record, and tried again.
#[test]
fn what_cannot_be_timed_hides_nothing() {
    let workshop = Workshop::new();
    let too_long = DECODE.replace("prompt_tokens = 8", "prompt_tokens = 5000");
    let one_thread = format!("\n[speed]\nthreads = [1]\n{KERNELS}");
    workshop.write("experiment.toml", workshop.experiment() + &one_thread + &too_long);
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let why = "5000 tokens of a prompt and 4 new ones are more than the 128 positions of the model's configuration; lower \
               `speed.decode.prompt_tokens` or `new_tokens`";
    for line in [
        &format!("FAILED tiny decoding, 1 thread: {why}\n"),
        "5 cells finished, 0 were on record, 0 failed\n",
        "1 comparisons of [speed] failed\n",
    ] {
        assert!(ran.stderr.contains(line), "no {line}: {}", ran.stderr);
    }
    let records = speed_records(&workshop);
    assert_eq!(records.len(), 4 + 1, "the kernels are timed");
    assert_eq!((&records[4]["label"], &records[4]["error"]), (&"tiny decoding, 1 thread".into(), &why.into()));
    for table in ["out/table.md", "out/report.html"] {
        let table = workshop.read(table);
        assert!(table.contains("perplexity per token") && table.contains("W3A8 int8 g32"), "{table}");
        assert!(table.contains("tiny decoding, 1 thread failed: 5000 tokens"), "{table}");
    }
    let again = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(speed_records(&workshop).len(), 4 + 2, "only what failed is tried again");
    workshop.write("experiment.toml", workshop.experiment() + &one_thread + DECODE);
    let mended = workshop.finish("out", &[]);
    assert!(!mended.stdout.contains("failed"), "{}", mended.stdout);
    assert!(!workshop.read("out/table.md").contains("failed"));
}

/// Parts and shares time nothing: their tables are whole without.
#[test]
fn parts_of_an_experiment_that_times_things_are_reported() {
    let workshop = Workshop::new();
    let experiment = workshop.read("experiment.toml");
    workshop.write("experiment.toml", format!("{experiment}\n[speed]\nthreads = [1]\n{KERNELS}"));
    for share in ["1/2", "2/2"] {
        let out = share.replace('/', "-of-");
        let ran = workshop.finish(&out, &["--shard", share]);
        assert!(ran.stderr.contains("nothing of [speed] is timed yet"), "{}", ran.stderr);
    }
    let merged = workshop.run(&["merge", "out", "1-of-2", "2-of-2"]);
    assert_eq!(merged.code, Some(0), "{merged:?}");
    assert!(workshop.read("out/table.md").contains("AWQ"));
    let ran = workshop.finish("out", &[]);
    assert!(ran.stderr.contains("0 cells finished, 5 were on record"), "{}", ran.stderr);
    assert!(!speed_records(&workshop).is_empty());
    assert!(workshop.read("out/table.md").contains("AWQ"));
}

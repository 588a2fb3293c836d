//! What each command does when all is well.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{N_CELLS, Workshop, files};

/// Value of the only measurement, by cell.
fn values(workshop: &Workshop, out: &str) -> BTreeMap<String, f64> {
    let value = |(id, outcome): (String, Value)| (id, outcome["done"]["measurements"][0]["value"].as_f64().unwrap());
    workshop.results(out).into_iter().map(value).collect()
}

#[test]
fn a_run_leaves_records_tables_and_figures() {
    let workshop = Workshop::new();
    let ran = workshop.finish("out", &[]);
    for row in ["FP", "RTN", "AWQ", "W4 g32", "W3 g32", "Does the program survive?"] {
        assert!(ran.stdout.contains(row), "no {row}: {}", ran.stdout);
    }
    for line in ["5 cells, device flex, ", "tiny FP: evaluation: ", "5 cells finished, 0 were on record, 0 failed\n"] {
        assert!(ran.stderr.contains(line), "no {line}: {}", ran.stderr);
    }
    let names: Vec<String> = files(&workshop.path("out"))
        .into_keys()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    for name in
        ["experiment.toml", "records.jsonl", "table.md", "table.csv", "table.tex", "records.parquet", "report.html"]
    {
        assert!(names.iter().any(|found| found == name), "no {name}: {names:?}");
    }
    assert!(names.iter().any(|name| name.ends_with(".svg")) && names.iter().any(|name| name.ends_with(".png")));
    assert!(!names.iter().any(|name| name.starts_with('.')), "a temporary file stayed: {names:?}");

    let records = workshop.records("out");
    assert_eq!(records.len(), N_CELLS);
    let measurement = &records[0]["outcome"]["done"]["measurements"][0];
    assert_eq!((&measurement["n_windows"], &measurement["n_windows_total"]), (&15.into(), &15.into()));
    assert_eq!(measurement["n_tokens"], 15 * 63);
    assert_eq!(records[0]["provenance"]["assets"].as_object().unwrap().len(), 4, "three files and a text");
    // A model of random weights knows nothing: its perplexity is near the 40 words of its vocabulary, or above.
    assert!(values(&workshop, "out").values().all(|&value| value > 30.0 && value < 1000.0));
}

#[test]
fn quiet_prints_nothing_but_the_table() {
    let workshop = Workshop::new();
    let ran = workshop.finish("out", &["--quiet"]);
    assert_eq!(ran.stderr, "");
    assert!(ran.stdout.contains("perplexity"), "{}", ran.stdout);
}

#[test]
fn a_finished_folder_recomputes_nothing() {
    let workshop = Workshop::new();
    let first = workshop.finish("out", &[]);
    let before = workshop.read("out/records.jsonl");
    // Without the model nothing could be computed.
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    let again = workshop.finish("out", &[]);
    assert!(again.stderr.contains("5 of 5 cells are on record in out/records.jsonl\n"), "{}", again.stderr);
    assert!(again.stderr.ends_with("0 cells finished, 5 were on record, 0 failed\n"), "{}", again.stderr);
    assert_eq!(workshop.read("out/records.jsonl"), before);
    assert_eq!(again.stdout, first.stdout);
}

#[test]
fn an_experiment_that_grows_computes_only_what_is_new() {
    let workshop = Workshop::new();
    workshop.change_experiment("bits = [4, 3]", "bits = [4]");
    workshop.finish("out", &[]);
    workshop.change_experiment("bits = [4]", "bits = [4, 3]");
    let grown = workshop.finish("out", &[]);
    assert!(grown.stderr.ends_with("2 cells finished, 3 were on record, 0 failed\n"), "{}", grown.stderr);
    workshop.finish("at-once", &[]);
    assert_eq!(workshop.results("out"), workshop.results("at-once"));
}

#[test]
fn threads_change_nothing() {
    let workshop = Workshop::new();
    workshop.finish("one", &["--threads", "1"]);
    workshop.finish("two", &["--threads", "2"]);
    assert_eq!(workshop.results("one"), workshop.results("two"));
}

#[test]
fn another_backend_agrees() {
    let workshop = Workshop::new();
    workshop.finish("flex", &[]);
    let ran = workshop.finish("ndarray", &["--device", "ndarray"]);
    assert!(ran.stderr.contains("device ndarray"), "{}", ran.stderr);
    assert_eq!(workshop.records("ndarray")[0]["provenance"]["device"], "ndarray");
    let (flex, ndarray) = (values(&workshop, "flex"), values(&workshop, "ndarray"));
    assert_eq!(flex.keys().collect::<Vec<_>>(), ndarray.keys().collect::<Vec<_>>());
    for (id, value) in flex {
        assert!((value / ndarray[&id] - 1.0).abs() < 1e-3, "cell {id}: {value} and {}", ndarray[&id]);
    }
    // Verification goes to the device of the records, not to that of the file.
    let verified = workshop.run(&["verify", "ndarray"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn limited_runs_say_so() {
    let workshop = Workshop::new();
    let ran = workshop.finish("out", &["--max-windows", "3"]);
    assert!(ran.stdout.contains("3 of 15"), "{}", ran.stdout);
    for table in ["out/table.md", "out/table.tex", "out/report.html"] {
        assert!(workshop.read(table).contains("3 of 15"), "{table}: {}", workshop.read(table));
    }
    // The whole run is another question: nothing of the limited one is shown or taken for it.
    let whole = workshop.finish("out", &[]);
    assert!(whole.stderr.ends_with("5 cells finished, 0 were on record, 0 failed\n"), "{}", whole.stderr);
    assert!(!whole.stdout.contains("3 of 15"), "{}", whole.stdout);
}

#[test]
fn reports_are_made_again_byte_for_byte() {
    let workshop = Workshop::new();
    let ran = workshop.finish("out", &[]);
    let before = files(&workshop.path("out"));
    let data = ["records.jsonl", "blocks.jsonl.zst", "experiment.toml", "progress.json"];
    for path in before.keys().filter(|path| !data.iter().any(|name| path.ends_with(name))) {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    let again = workshop.run(&["report", "out"]);
    assert_eq!((again.code, &again.stdout, again.stderr.as_str()), (Some(0), &ran.stdout, ""));
    let after = files(&workshop.path("out"));
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (path, bytes) in before {
        assert!(after[&path] == bytes, "{} differs", path.display());
    }
}

#[test]
fn report_of_another_folder() {
    let workshop = Workshop::new();
    for command in ["report", "verify"] {
        workshop
            .run(&[command, "model"])
            .refused("model: no experiment.toml in it; give a folder that an experiment wrote");
    }
}

#[test]
fn verification_holds_and_sees_tampering() {
    let workshop = Workshop::new();
    workshop.finish("out", &["--threads", "1"]);
    let verified = workshop.run(&["verify", "out"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(verified.stdout.ends_with("5 of 5 cells are identical to the record.\n"), "{}", verified.stdout);
    assert!(!verified.stdout.contains("DIFFERENT"), "{}", verified.stdout);

    let tampered = |edit: fn(&mut Value)| {
        let mut records = workshop.records("out");
        edit(&mut records[N_CELLS - 1]["outcome"]["done"]);
        let lines: Vec<String> = records.iter().map(|record| record.to_string() + "\n").collect();
        std::fs::create_dir_all(workshop.path("tampered")).unwrap();
        workshop.write("tampered/records.jsonl", lines.concat());
        workshop.write("tampered/experiment.toml", workshop.read("out/experiment.toml"));
        let ran = workshop.run(&["verify", "tampered"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stdout.ends_with("4 of 5 cells are identical to the record.\n"), "{}", ran.stdout);
        ran.stdout.lines().find(|line| line.contains("DIFFERENT")).unwrap_or_default().to_owned()
    };
    let value = tampered(|done| done["measurements"][0]["value"] = 12.5.into());
    assert!(value.contains("identical  DIFFERENT"), "{value}");
    let window = tampered(|done| done["measurements"][0]["samples"][7] = 1.0.into());
    assert!(window.contains("identical  DIFFERENT"), "{window}");
    let codes = tampered(|done| done["quantization"]["codes_sha256"] = "0".repeat(64).into());
    assert!(codes.contains("DIFFERENT  identical"), "{codes}");
}

#[test]
fn verification_says_why_a_cell_cannot_run() {
    let workshop = Workshop::new();
    workshop.finish("out", &[]);
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    let ran = workshop.run(&["verify", "out", "--quiet"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("FAILED: model tiny: model: no such model; "), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("0 of 5 cells are identical to the record.\n"), "{}", ran.stdout);
}

#[test]
fn planning_opens_nothing() {
    let workshop = Workshop::new();
    for name in ["model/model.safetensors", "model/config.json", "calibration.txt", "evaluation.txt"] {
        std::fs::remove_file(workshop.path(name)).unwrap();
    }
    let planned = workshop.run(&["plan", "experiment.toml"]);
    assert_eq!((planned.code, planned.stderr.as_str()), (Some(0), ""));
    for line in ["tiny FP ", "tiny RTN W4 g32 ", "tiny AWQ W3 g32 ", "5 cells of 1 model(s)."] {
        assert!(planned.stdout.contains(line), "no {line}: {}", planned.stdout);
    }
}

#[test]
fn a_method_that_needs_more_memory_than_is_allowed_is_refused_before_any_work() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["experiment.toml", "--out", "out", "--memory", "1M"]);
    assert_eq!(ran.code, Some(1));
    let refused = "MiB of memory beside hidden states, 1 MiB are allowed; give more with --memory or `[run] memory`, or choose \
                   another method";
    assert!(ran.stderr.contains("RTN needs about ") && ran.stderr.contains(refused), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 cells finished, 0 were on record, 4 failed"), "{}", ran.stderr);
    let quantized =
        workshop.run(&["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "small", "--memory", "1M"]);
    assert!(quantized.stderr.contains(refused), "{}", quantized.stderr);
    let misspelt = workshop.run(&["experiment.toml", "--out", "out", "--memory", "lots"]);
    assert!(misspelt.stderr.contains("\"lots\" is no amount of memory"), "{}", misspelt.stderr);
}

/// Matrices of GPTQ's and of AWQ's inputs are in memory together where both go through the blocks at once.
#[test]
fn cells_that_fit_only_one_after_the_other_give_what_one_pass_gives() {
    let workshop = Workshop::new();
    workshop.change_experiment("rtn = {}", "gptq = \"in-order\"");
    let together = workshop.finish("together", &[]);
    assert!(!together.stderr.contains("passes"), "{}", together.stderr);
    // The least that is accepted is what the most demanding cell needs alone, somewhat over 200 MiB.
    let run = |kib: u32| workshop.run(&["experiment.toml", "--out", "apart", "--memory", &format!("{kib}K")]);
    let (mut refused, mut accepted) = (200 << 10, 202 << 10);
    assert_eq!((run(refused).code, run(accepted).code), (Some(1), Some(0)));
    let mut least = String::new();
    while accepted - refused > 1 {
        std::fs::remove_dir_all(workshop.path("apart")).unwrap();
        let middle = refused.midpoint(accepted);
        let ran = run(middle);
        match ran.code {
            Some(0) => (accepted, least) = (middle, ran.stderr),
            _ => refused = middle,
        }
    }
    assert!(least.contains("4 cells go through the blocks in 2 passes: together they need more than "), "{least}");
    std::fs::remove_dir_all(workshop.path("apart")).unwrap();
    assert_eq!(run(accepted).code, Some(0));
    assert_eq!(workshop.results("apart"), workshop.results("together"), "bit for bit, and every log");
}

#[test]
fn planned_cells_are_those_recorded() {
    let workshop = Workshop::new();
    let planned = workshop.run(&["plan", "experiment.toml"]).stdout;
    workshop.finish("out", &[]);
    for record in workshop.records("out") {
        let id = record["cell_id"].as_str().unwrap();
        assert!(planned.contains(id), "{id} is not in the plan: {planned}");
    }
}

#[test]
fn a_short_file_runs_as_the_long_one_and_leaves_the_flat_one() {
    let workshop = Workshop::new();
    let methods = "[[methods]]\ngptq = \"act-order\"\n";
    workshop.write("short.toml", format!("question = \"And GPTQ?\"\nextends = \"experiment.toml\"\n{methods}"));
    let flat = workshop.run(&["plan", "short.toml", "--resolved"]);
    assert_eq!((flat.code, flat.stderr.as_str()), (Some(0), ""), "{flat:?}");
    assert!(!flat.stdout.contains("extends") && !flat.stdout.contains("act-order"), "{flat:?}");
    let ran = workshop.run(&["short.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(workshop.read("out/experiment.toml"), flat.stdout);
    // The flat file asks for the same cells: nothing runs again.
    std::fs::copy(workshop.path("out/experiment.toml"), workshop.path("flat.toml")).unwrap();
    let again = workshop.run(&["flat.toml", "--out", "out"]);
    assert!(again.stderr.contains("0 cells finished, 3 were on record, 0 failed\n"), "{again:?}");
    workshop.write("chain.toml", "question = \"?\"\nextends = \"short.toml\"\n");
    for arguments in
        [&["plan", "chain.toml"][..], &["plan", "chain.toml", "--resolved"], &["chain.toml", "--out", "no"]]
    {
        workshop.run(arguments).refused(
            "chain.toml: not a valid experiment, key `extends` at line 2, column 11: short.toml, key `extends` at line 2, \
             column 11: an extended file may not extend another; extend that file directly, or copy what is needed from it",
        );
    }
    assert!(!workshop.path("no").exists(), "an output folder appeared");
}

#[test]
fn the_schema_is_json() {
    let ran = Workshop::new().run(&["schema"]);
    let schema: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &schema["title"]), (Some(0), &"ExperimentFile".into()));
    assert!(schema["properties"]["models"].is_object(), "{schema}");
}

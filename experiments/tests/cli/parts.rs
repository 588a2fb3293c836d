//! Parts of an experiment: selected cells, shares that are merged, cells that run again, a run that stops at a failure, and files
//! derived from others.

use crate::support::{N_CELLS, Workshop};

#[test]
fn shares_in_folders_of_their_own_make_the_whole() {
    let workshop = Workshop::new();
    workshop.finish("whole", &[]);
    let shares: Vec<String> = (1..=2).map(|index| format!("experiment-shard-{index}-of-2")).collect();
    for index in 1..=2 {
        let ran = workshop.run(&["experiment.toml", "--shard", &format!("{index}/2")]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let folders: Vec<String> = shares.iter().map(|share| format!("results/{share}")).collect();
    let n_of = |folder: &str| workshop.records(folder).len();
    assert!(n_of(&folders[0]) > 0 && n_of(&folders[1]) > 0);
    assert_eq!(n_of(&folders[0]) + n_of(&folders[1]), N_CELLS);
    // One share alone is a part of the whole, and the other may follow.
    let merged = workshop.run(&["merge", "merged", &folders[0]]);
    assert_eq!(merged.code, Some(0), "{merged:?}");
    let merged = workshop.run(&["merge", "merged", &folders[0], &folders[1]]);
    assert!(merged.stderr.contains(&format!("{}: 0 records taken over, {} known", folders[0], n_of(&folders[0]))));
    assert_eq!(workshop.results("merged"), workshop.results("whole"));
    assert!(merged.stdout.contains("AWQ") && workshop.path("merged/table.md").is_file());
    // Nothing is left to do.
    let again = workshop.finish("merged", &[]);
    assert!(
        again.stderr.contains(&format!("0 cells finished, {N_CELLS} were on record, 0 failed")),
        "{}",
        again.stderr
    );

    workshop.change_experiment("bits = [4, 3]", "bits = [4, 2]");
    workshop.finish("other", &["--only", "method=fp"]);
    workshop
        .run(&["merge", "merged", "other"])
        .refused("other: no share of the same experiment: grids.bits differ; merge what one file asked");
}

#[test]
fn selected_cells_alone_run_and_the_others_later() {
    let workshop = Workshop::new();
    workshop.finish("out", &["--only", "method=awq,bits=3", "--only", "method=fp"]);
    let labels = |record: &serde_json::Value| {
        format!("{} {}", record["labels"]["method"].as_str().unwrap(), record["labels"]["grid"].as_str().unwrap_or("-"))
    };
    let found: Vec<String> = workshop.records("out").iter().map(labels).collect();
    assert_eq!(found, ["FP -", "AWQ W3 g32"]);
    let rest = workshop.finish("out", &[]);
    assert!(rest.stderr.contains("3 cells finished, 2 were on record, 0 failed"), "{}", rest.stderr);
    workshop
        .run(&["experiment.toml", "--only", "method=gptq"])
        .refused("--only: no cell has method=gptq; method is one of fp, rtn, awq");
    // What is on record runs again where that is asked for.
    let again = workshop.finish("out", &["--rerun", "--only", "method=rtn"]);
    assert!(again.stderr.contains("2 cells finished, 0 were on record, 0 failed"), "{}", again.stderr);
    assert_eq!(workshop.records("out").len(), N_CELLS + 2);
    let report = workshop.run(&["report", "out"]);
    assert_eq!(report.stdout.matches("RTN     W").count(), 2, "{}", report.stdout);
}

#[test]
fn a_run_stops_at_the_first_failure_where_it_should() {
    let workshop = Workshop::new();
    let keys = "name = \"evaluation\"";
    workshop.change_experiment(keys, "name = \"gone\"");
    let experiment = workshop.read("experiment.toml").replace("path = \"evaluation.txt\"", "path = \"gone.txt\"");
    workshop.write("experiment.toml", experiment);
    let all = workshop.run(&["experiment.toml", "--out", "all"]);
    assert!(all.stderr.contains(&format!("0 cells finished, 0 were on record, {N_CELLS} failed")), "{}", all.stderr);
    let one = workshop.run(&["experiment.toml", "--out", "one", "--fail-fast"]);
    assert_eq!(one.code, Some(1));
    assert_eq!(workshop.records("one").len(), 1);
    let words = "stopped at the first cell that failed (--fail-fast); run again to go on";
    assert!(one.stderr.contains(words), "{}", one.stderr);
}

#[test]
fn a_derived_file_asks_what_was_set() {
    let workshop = Workshop::new();
    let derived =
        workshop.run(&["derive", "experiment.toml", "--set", "grids.bits=[2]", "--question", "How \"low\" can it go?"]);
    assert_eq!(derived.code, Some(0), "{derived:?}");
    let expected = workshop
        .read("experiment.toml")
        .replace("[4, 3]", "[2]")
        .replace("\"Does the program survive?\"", "'How \"low\" can it go?'");
    assert_eq!(derived.stdout, expected);
    workshop
        .write("extending.toml", "question = \"Twice?\"\nextends = \"experiment.toml\"\nmethods = [{ rtn = {} }]\n");
    let derived = workshop.run(&["derive", "extending.toml", "--set", "grids.bits=[8]"]);
    workshop.write("elsewhere.toml", &derived.stdout);
    let plan = workshop.run(&["plan", "elsewhere.toml"]).stdout;
    assert!(plan.contains("tiny RTN W8 g32") && plan.contains("2 cells of 1 model(s)"), "{plan}");
    workshop
        .run(&["derive", "experiment.toml", "--set", "grids.width=[2]"])
        .code
        .filter(|&code| code == 1)
        .expect("an unknown key is refused");
}

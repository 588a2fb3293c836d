//! `submit`, `status` and `collect`, before a SLURM of shell scripts; `scripts/check-slurm.py` has the real one.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::support::{N_CELLS, Ran, Workshop, sha256, words};

/// Takes what it is given, notes it, and says the next number.
const SBATCH: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo "slurm 22.05.8"; exit; }
[ -e "$FAKE/refuses" ] && { echo "sbatch: error: invalid partition specified: short" >&2; exit 1; }
echo "$PWD: sbatch $*" >>"$FAKE/calls"
n=$(($(cat "$FAKE/n" 2>/dev/null || echo 40) + 1))
echo "$n" >"$FAKE/n"
cp "$2" "$FAKE/job-$n.sh"
echo "Welcome to the cluster"
echo "$n;main"
"#;

/// Prints a file that a test writes.
const SQUEUE: &str = r#"#!/bin/sh
[ -e "$FAKE/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
echo "squeue $*" >>"$FAKE/calls"
cat "$FAKE/queue" 2>/dev/null || true
"#;

const SACCT: &str = r#"#!/bin/sh
cat "$FAKE/accounts" 2>/dev/null || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
"#;

const PROFILE: &str = r#"
partition = "short"
account = "group"
cpus = 2
memory = "4G"
time = "0:30:00"
max_tasks = 2
max_at_once = 1
setup = ["echo 'set up' $HOME"]
options = ["--constraint=avx512"]
"#;

const SUBMIT: [&str; 6] = ["submit", "experiment.toml", "--profile", "slurm.toml", "--out", "out"];

/// A workshop with a profile, and a SLURM in `fake/`.
fn cluster() -> Workshop {
    let workshop = Workshop::new();
    workshop.write("slurm.toml", PROFILE);
    fs::create_dir(workshop.path("fake")).unwrap();
    for (name, script) in [("sbatch", SBATCH), ("squeue", SQUEUE), ("sacct", SACCT)] {
        let path = format!("fake/{name}");
        workshop.write(&path, script);
        fs::set_permissions(workshop.path(&path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    workshop
}

/// Runs the program where SLURM's commands are.
fn run(workshop: &Workshop, arguments: &[&str]) -> Ran {
    let path = format!("{}:{}", workshop.path("fake").display(), std::env::var("PATH").unwrap());
    Ran::of(workshop.command(arguments).env("PATH", path).env("FAKE", workshop.path("fake")).output().unwrap())
}

/// Runs the program where no command is.
fn run_without_slurm(workshop: &Workshop, arguments: &[&str]) -> Ran {
    Ran::of(workshop.command(arguments).env("PATH", workshop.path("nowhere")).output().unwrap())
}

#[track_caller]
fn submit(workshop: &Workshop) -> Ran {
    let ran = run(workshop, &SUBMIT);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

/// Runs a share as its task would, by the script that was submitted.
fn run_task(workshop: &Workshop, job: u64, share: usize) -> Ran {
    let mut command = Command::new("bash");
    command.arg(workshop.path(&format!("fake/job-{job}.sh"))).current_dir(workshop.path("out/shares"));
    for variable in ["AWQ_ASSETS", "HF_HOME", "HF_TOKEN", "XDG_CACHE_HOME"] {
        command.env_remove(variable);
    }
    command.env("HOME", workshop.path("home")).env("HF_HUB_OFFLINE", "1").env("AWQ_CODES_GIB", "0");
    command.env("SLURM_ARRAY_JOB_ID", job.to_string()).env("SLURM_ARRAY_TASK_ID", share.to_string());
    Ran::of(command.output().unwrap())
}

/// A text without what is of this machine and this test.
fn plain(workshop: &Workshop, text: &str) -> String {
    let folder = fs::canonicalize(workshop.path(".")).unwrap();
    let program = workshop.command(&[]).get_program().to_string_lossy().into_owned();
    let name = text.split_once("--job-name=out-").map_or("", |(_, rest)| rest.split_once('\n').unwrap().0);
    let text = text.replace(&program, "PROGRAM").replace(&folder.display().to_string(), "/here");
    if name.is_empty() { text } else { text.replace(name, "0a1b2c3d") }
}

#[test]
fn the_script_is_what_sbatch_takes() {
    let workshop = cluster();
    // Without SLURM: nothing is submitted, and nothing written.
    let dry = run_without_slurm(&workshop, &[&SUBMIT[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, Some(0), "{dry:?}");
    assert!(!workshop.path("out").exists(), "a dry run wrote");
    insta::assert_snapshot!(plain(&workshop, &dry.stdout), @r##"
    #!/bin/bash
    # Written by `experiments submit`: a share of an experiment for each task. It is submitted from its own folder.
    #SBATCH --job-name=out-0a1b2c3d
    #SBATCH --array=1-2%1
    #SBATCH --requeue
    #SBATCH --open-mode=append
    #SBATCH --output=%a-of-2.log
    #SBATCH --nodes=1
    #SBATCH --ntasks=1
    #SBATCH --cpus-per-task=2
    #SBATCH --mem=4G
    #SBATCH --time=0:30:00
    #SBATCH --partition=short
    #SBATCH --account=group
    #SBATCH --constraint=avx512

    set -e
    cd /here
    echo 'set up' $HOME
    export AWQ_CACHE=/here/cache
    export HF_HUB_CACHE=/here/home/.cache/huggingface/hub
    # In place of this shell, so that signals reach it. Run again, it goes on from its records and stored blocks.
    exec PROGRAM run /here/out/shares/experiment.toml --shard "$SLURM_ARRAY_TASK_ID/2" \
        --out /here/out/shares/"$SLURM_ARRAY_TASK_ID-of-2" --threads 2 --device flex
    "##);

    let submitted = submit(&workshop);
    assert_eq!(workshop.read("out/shares/job.sh"), dry.stdout);
    assert_eq!(workshop.read("fake/job-41.sh"), dry.stdout);
    let calls = plain(&workshop, &workshop.read("fake/calls"));
    assert!(calls.contains("/here/out/shares: sbatch --parsable job.sh\n"), "{calls}");
    insta::assert_snapshot!(submitted.stdout, @"
    job 41: 2 of 2 shares, 5 cells to do
    `experiments status out` shows how far it is, `experiments collect out` makes tables of what is there
    ");
    assert_eq!(
        workshop.read("out/shares/experiment.toml"),
        workshop.run(&["plan", "experiment.toml", "--resolved"]).stdout
    );
}

#[test]
fn tasks_make_the_whole_and_an_edit_in_between_changes_nothing() {
    let workshop = cluster();
    workshop.finish("whole", &[]);
    submit(&workshop);
    workshop.change_experiment("bits = [4, 3]", "bits = [8]");
    let first = run_task(&workshop, 41, 1);
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.stdout.starts_with(&format!("set up {}\n", workshop.path("home").display())), "{}", first.stdout);
    assert!(first.stderr.contains("device flex, 2 threads"), "{}", first.stderr);

    // Where there is no SLURM any more, records tell.
    let status = run_without_slurm(&workshop, &["status", "out"]);
    assert!(status.stderr.starts_with("states of tasks are not known: squeue cannot be run: "), "{}", status.stderr);
    insta::assert_snapshot!(status.stdout, @"
    Does the program survive?
    out, jobs: 41

    share  cells   done  failed  to do  SLURM
    1/2        3      3       0      0  -
    2/2        2      0       0      2  -
    all        5      3       0      2

    Submit it again, with --out out, to run what is missing; `experiments collect out` shows what is there.
    ");
    let part = workshop.run(&["collect", "out"]);
    assert_eq!(part.code, Some(1), "{part:?}");
    assert!(part.stderr.ends_with("share 2/2: of 2 cells 0 failed and 2 are to do\n"), "{}", part.stderr);
    assert!(workshop.path("out/table.md").is_file());

    assert_eq!(run_task(&workshop, 41, 2).code, Some(0));
    let collected = workshop.run(&["collect", "out"]);
    assert_eq!(collected.code, Some(0), "{collected:?}");
    assert_eq!(workshop.results("out"), workshop.results("whole"));
    assert_eq!(workshop.records("out").len(), N_CELLS);
    let status = run(&workshop, &["status", "out"]).stdout;
    assert!(
        status.ends_with("Every cell has its numbers: `experiments collect out` makes tables and figures.\n"),
        "{status}"
    );
}

#[test]
fn a_job_that_is_not_at_its_end_is_not_submitted_again() {
    let workshop = cluster();
    submit(&workshop);
    workshop.write("fake/queue", "41|1|RUNNING|0:12|node7\n41|2|PENDING|0:00|(JobArrayTaskLimit)\n");
    let again = run(&workshop, &SUBMIT);
    again.refused(
        "out: job 41 is not at its end: shares 1 (RUNNING), 2 (PENDING); wait for it (`experiments status out`), or end it with \
         `scancel 41`",
    );
    // Nor while another command is at it.
    let held = fs::OpenOptions::new().append(true).open(workshop.path("out/records.jsonl")).unwrap();
    held.lock().unwrap();
    run(&workshop, &SUBMIT).refused(
        "out/records.jsonl: another run is writing to it; wait for its end or choose another folder with --out",
    );
    drop(held);
    fs::write(workshop.path("fake/down"), "").unwrap();
    run(&workshop, &SUBMIT).refused(
        "what is queued already is not known, and nothing was submitted; try again when SLURM answers: squeue ended with exit \
         status: 1: slurm_load_jobs error: Unable to contact slurm controller",
    );
    assert_eq!(workshop.read("fake/n"), "41\n", "something was submitted");
}

#[test]
fn what_slurm_does_not_take_leaves_no_trace() {
    let workshop = cluster();
    workshop.write("fake/refuses", "");
    let refused = run(&workshop, &SUBMIT);
    let said =
        "job.sh: not submitted: sbatch ended with exit status: 1: sbatch: error: invalid partition specified: short\n";
    assert!(refused.code == Some(1) && refused.stderr.ends_with(said), "{refused:?}");
    let nothing = "out: nothing was submitted in it; give the folder that `experiments submit` named";
    run(&workshop, &["status", "out"]).refused(nothing);
    run(&workshop, &["collect", "out"]).refused(nothing);
    // With another profile it is another number of shares.
    fs::remove_file(workshop.path("fake/refuses")).unwrap();
    workshop.write("slurm.toml", PROFILE.replace("max_tasks = 2", "max_tasks = 1"));
    let taken = submit(&workshop);
    assert!(taken.stdout.starts_with("job 41: 1 of 1 shares, 5 cells to do\n"), "{}", taken.stdout);
}

#[test]
fn shares_that_are_not_finished_are_submitted_again() {
    let workshop = cluster();
    submit(&workshop);
    assert_eq!(run_task(&workshop, 41, 1).code, Some(0));
    // The text of the other one goes away, and its cells fail.
    fs::rename(workshop.path("evaluation.txt"), workshop.path("gone.txt")).unwrap();
    assert_eq!(run_task(&workshop, 41, 2).code, Some(1));
    fs::rename(workshop.path("gone.txt"), workshop.path("evaluation.txt")).unwrap();
    workshop.write("fake/queue", "41|1|COMPLETED|0:12|node7\n41|2|FAILED|0:01|node7\n");
    // A file system without locks keeps the file of a task that was killed.
    workshop
        .write("out/shares/2-of-2/records.lock", "process 1 on elsewhere since 2026-01-01 as task 2 of SLURM job 41");
    // Another number of tasks in the profile splits no share.
    workshop.write("slurm.toml", PROFILE.replace("max_tasks = 2", "max_tasks = 5"));
    let again = submit(&workshop);
    assert!(again.stdout.starts_with("job 42: 1 of 2 shares, 2 cells to do\n"), "{}", again.stdout);
    assert!(workshop.read("fake/job-42.sh").contains("#SBATCH --array=2%1\n"));

    workshop.write("fake/queue", "42|2|RUNNING|0:12|node8\n");
    workshop
        .write("fake/accounts", "41_1|COMPLETED|00:00:12|node7\n41_2|FAILED|00:00:01|node7\n42_2|PENDING|00:00:00|\n");
    insta::assert_snapshot!(run(&workshop, &["status", "out"]).stdout, @"
    Does the program survive?
    out, jobs: 41, 42

    share  cells   done  failed  to do  SLURM
    1/2        3      3       0      0  COMPLETED 00:00:12 node7
    2/2        2      0       2      0  RUNNING 0:12 node8
    all        5      3       2      0

    1 of 2 tasks wait or run; `experiments collect out` shows what is there.
    ");
    let json: Value = serde_json::from_str(&run(&workshop, &["status", "out", "--json"]).stdout).unwrap();
    assert_eq!((&json["shares"][1]["n_failed"], &json["shares"][1]["task"]["state"]), (&2.into(), &"RUNNING".into()));
    assert_eq!((&json["jobs"][1]["id"], &json["jobs"][1]["shares"][0]), (&42.into(), &2.into()));

    assert_eq!(run_task(&workshop, 42, 2).code, Some(0));
    workshop.write("fake/queue", "");
    let finished = submit(&workshop);
    assert_eq!(finished.stdout, "out: every cell has its numbers; `experiments collect out` makes tables\n");
    assert_eq!(workshop.run(&["collect", "out"]).code, Some(0));
    workshop.finish("whole", &[]);
    assert_eq!(workshop.results("out"), workshop.results("whole"));
}

#[test]
fn what_cannot_be_submitted_is_said_before_any_work() {
    let workshop = cluster();
    run_without_slurm(&workshop, &SUBMIT).refused(
        "no `sbatch` on the PATH: this machine submits nothing to SLURM; print the script with --dry-run, or run the shares yourself \
         with `experiments run FILE --shard 1/4` and so on, and join them with `experiments merge`",
    );
    workshop.write("slurm.toml", PROFILE.replace("cpus = 2", "cpus = 2\ncores = 3"));
    let ran = run(&workshop, &SUBMIT);
    assert!(
        ran.stderr.contains("slurm.toml: not a valid profile, key `cores`: TOML parse error at line 5, column 1"),
        "{ran:?}"
    );
    workshop.write("slurm.toml", format!("{PROFILE}\ngpus = 1\n"));
    run(&workshop, &SUBMIT).refused(
        "device `flex`, and slurm.toml gives tasks GPUs that they would not use; leave `gpus` out of it, or give --device cuda",
    );
    workshop.write("slurm.toml", PROFILE);
    workshop
        .run(&["status", "model"])
        .refused("model: nothing was submitted in it; give the folder that `experiments submit` named");
    assert!(!workshop.path("out").exists(), "a folder appeared");

    // Other experiments: one that ran there, and one that was submitted there.
    workshop.finish("out", &["--only", "method=fp"]);
    workshop.change_experiment("bits = [4, 3]", "bits = [4, 2]");
    let other = "out: holds another experiment: grids.bits differ; choose another folder with --out";
    run(&workshop, &SUBMIT).refused(other);
    assert!(!workshop.path("out/shares").exists());
    workshop.change_experiment("bits = [4, 2]", "bits = [4, 3]");
    submit(&workshop);
    workshop.change_experiment("bits = [4, 3]", "bits = [4, 2]");
    run(&workshop, &SUBMIT).refused(other);
    assert_eq!(workshop.read("fake/n"), "41\n");
}

#[test]
fn a_task_that_is_told_to_end_goes_on_when_it_runs_again() {
    let workshop = cluster();
    // A long text, so that there is time between two cells.
    let before = sha256(workshop.read("evaluation.txt").as_bytes());
    workshop.write("evaluation.txt", words(3, 40_000));
    workshop.change_experiment(&before, &sha256(workshop.read("evaluation.txt").as_bytes()));
    workshop.finish("whole", &[]);
    submit(&workshop);
    // SLURM's first signal at a preemption, as soon as a record is there.
    let task = format!(
        "SLURM_ARRAY_JOB_ID=41 SLURM_ARRAY_TASK_ID=1 HOME={} AWQ_CODES_GIB=1 bash ../../fake/job-41.sh & \
         until [ -s 1-of-2/records.jsonl ]; do kill -0 $! || exit 3; sleep 0.01; done; kill -TERM $!; wait $!; echo $?",
        workshop.path("home").display()
    );
    let told = Command::new("bash").arg("-c").arg(task).current_dir(workshop.path("out/shares")).output().unwrap();
    let told = Ran::of(told);
    assert!(told.stdout.ends_with("143\n"), "ended otherwise than by the signal: {told:?}");
    let again = run_task(&workshop, 41, 1);
    assert!(again.stderr.contains(" of 3 cells are on record in "), "{}", again.stderr);
    assert_eq!((again.code, run_task(&workshop, 41, 2).code), (Some(0), Some(0)));
    assert_eq!(workshop.run(&["collect", "out"]).code, Some(0));
    assert_eq!(workshop.results("out"), workshop.results("whole"));
}

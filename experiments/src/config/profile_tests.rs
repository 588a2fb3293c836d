#![allow(clippy::unwrap_used)]

use super::Memory;
use super::profile::{SlurmProfile, TimeLimit};

const WHOLE: &str = r#"
partition = "short,long"
account = "group"
cpus = 8
memory = "32G"
time = "1-12:00:00"
gpus = 1
max_tasks = 16
max_at_once = 4
cache = "/shared/cache"
setup = ["module load cuda/12.4"]
options = ["--constraint=a100", "--qos normal"]
"#;

fn read(text: &str) -> Result<SlurmProfile, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    SlurmProfile::read(&path).map_err(|error| format!("{error:#}").replace(&folder.path().display().to_string(), ""))
}

/// The profile with `from` replaced is refused in these words.
#[track_caller]
fn check_refused(from: &str, to: &str, place: &str, words: &str) {
    assert!(WHOLE.contains(from), "no `{from}` in the profile");
    let error = read(&WHOLE.replace(from, to)).unwrap_err();
    assert!(error.starts_with(&format!("/p.toml: not a valid profile{place}")), "{error}");
    assert!(error.contains(words), "expected: {words}\n   found: {error}");
}

#[test]
fn a_whole_profile_and_the_shortest_one() {
    let whole = read(WHOLE).unwrap();
    assert_eq!((whole.partition.as_ref().unwrap().get(), whole.cpus.get()), ("short,long", 8));
    assert_eq!((whole.memory.bytes(), whole.time.seconds()), (32.0 * 1024.0_f64.powi(3), 36.0 * 3600.0));
    assert!(whole.has_gpus());
    let short = read("cpus = 1\nmemory = \"500\"\ntime = \"30\"\nmax_tasks = 2\n").unwrap();
    assert_eq!((short.memory.bytes(), short.time.seconds()), (500.0 * 1024.0 * 1024.0, 1800.0));
    assert!(!short.has_gpus() && short.setup.is_empty() && short.options.is_empty() && short.max_at_once.is_none());
    assert!(
        read("cpus = 1\nmemory = \"1G\"\ntime = \"1\"\nmax_tasks = 1\noptions = [\"--gres=gpu:a100:1\"]\n")
            .unwrap()
            .has_gpus()
    );
}

#[test]
fn times_and_memory_are_what_slurm_takes_them_for() {
    let seconds = |text: &str| TimeLimit::try_from(text.to_owned()).map(|time| time.seconds());
    let known = [
        ("90", 5400.0),
        ("90:30", 5430.0),
        ("1:30:00", 5400.0),
        ("2-00", 172_800.0),
        ("1-1:30", 91_800.0),
        ("1-01:30:05", 91_805.0),
    ];
    for (text, expected) in known {
        assert_eq!(seconds(text), Ok(expected), "{text}");
    }
    for wrong in ["", "0", "1h", "-5", "1:2:3:4", "1-", "1.5", "1-1-1", "0:00", "1::2", "١٢", "99999999999"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
    for wrong in ["", "0", "0G", "32 G", "32GB", "-1G", "1.5G", "G", "1P"] {
        assert!(Memory::try_from(wrong.to_owned()).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_wrong_is_named_with_file_key_and_line() {
    check_refused("\"32G\"", "\"32 GB\"", ", key `memory`: TOML parse error at line 5, column 10", "such as \"32G\"");
    check_refused("\"1-12:00:00\"", "\"a while\"", ", key `time`: TOML parse error at line 6", "such as \"12:00:00\"");
    check_refused("\"group\"", "\"my group\\n#SBATCH\"", ", key `account`: ", "is no name; give letters");
    check_refused("\"group\"", "\"\"", ", key `account`: ", "\"\" is no name");
    check_refused("cpus = 8", "cpu = 8", ", key `cpu`: ", "unknown field `cpu`, expected one of `partition`");
    check_refused("cpus = 8", "cpus = 0", ", key `cpus`: ", "nonzero");
    check_refused("cpus = 8\n", "", ": ", "missing field `cpus`");
    check_refused("module load", "module load x\\nrm", ", key `setup`: ", "is not one line of shell");
    check_refused("--constraint=a100", "-C a100", ", key `options`: ", "in its long form");
    check_refused("--constraint=a100", "--mem=1G", ", key `options`: ", "`--mem` is what `memory` says; leave it out");
    check_refused(
        "--qos normal",
        "--array 1-2",
        ", key `options`: ",
        "`--array` is what `max_tasks` and `max_at_once` together says",
    );
    check_refused("--qos normal", "--output=x", ", key `options`: ", "`--output` is the program's own choice");
    check_refused(
        "--constraint=a100",
        "--gres=gpu:2",
        ": key `gpus` and one of `options` both ask",
        "leave one of them out",
    );
    check_refused("\"/shared/cache\"", "\"\"", ": key `cache` is empty", "or leave it out for AWQ_CACHE");
    let gone = SlurmProfile::read(std::path::Path::new("no/such.toml")).unwrap_err();
    assert!(format!("{gone:#}").starts_with("no/such.toml: cannot read the profile's TOML file: "), "{gone:#}");
}

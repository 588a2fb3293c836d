//! The README files: options, methods, experiments and the table that they show exist and are the program's own.

use std::collections::BTreeSet;

use experiments::config::ExperimentSpec;
use experiments::eval::registry::MetricKey;
use experiments::registry::MethodSpec;

use super::{experiments, read, root};

/// The door, and the manuals of the folders.
const READMES: [&str; 5] =
    ["README.md", "awq-core/README.md", "configs/README.md", "experiments/README.md", "results/README.md"];

#[test]
fn every_method_is_in_the_list_of_the_readme() {
    let readme = read("configs/README.md");
    for key in MethodSpec::KEYS {
        let row = format!("| `{key}` |");
        assert!(readme.contains(&row), "configs/README.md: the table of methods has no row that begins with {row}");
    }
}

#[test]
fn every_metric_is_in_the_list_of_the_readme() {
    let readme = read("configs/README.md");
    for metric in MetricKey::ALL {
        let row = format!("| `{}` |", metric.key());
        assert!(readme.contains(&row), "configs/README.md: the table of metrics has no row that begins with {row}");
    }
}

#[test]
fn every_experiment_file_is_in_the_list_of_the_readme() {
    let readme = read("configs/README.md");
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let row = format!("| `configs/{name}");
        assert!(
            !name.ends_with(".toml") || readme.contains(&row),
            "configs/README.md: the table of files has no row that begins with {row}"
        );
    }
}

#[test]
fn the_experiments_in_the_readmes_are_valid_files() {
    let mut n_blocks = 0;
    for document in READMES {
        let readme = read(document);
        for block in readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), block).unwrap();
            ExperimentSpec::read(file.path()).unwrap_or_else(|error| panic!("{document}: {error:#}"));
            n_blocks += 1;
        }
    }
    assert!(n_blocks > 0, "no README shows an experiment");
}

#[test]
fn every_option_in_the_readmes_exists() {
    let help: String = [
        "run", "plan", "compare", "merge", "submit", "status", "collect", "derive", "quantize", "export", "generate",
        "chat", "inspect", "list",
    ]
    .map(|command| experiments(&[command.as_ref(), "--help".as_ref()]))
    .join("\n");
    let known: BTreeSet<&str> = help.split_whitespace().collect();
    let of_cargo = ["--release", "--workspace", "--features", "--timings", "--"];
    let mut named = BTreeSet::new();
    for document in READMES {
        let readme = read(document);
        let words = readme.split(|c: char| !c.is_ascii_lowercase() && c != '-');
        for option in
            words.filter(|word| word.starts_with("--") && !word.starts_with("---") && !of_cargo.contains(word))
        {
            assert!(known.contains(option), "{document} names {option}, an option that does not exist");
            named.insert(option.to_owned());
        }
    }
    assert!(named.contains("--out"), "no README names --out: is the rule of this test still right?");
}

/// Where the README shows a table, it is what the program wrote from committed records: labels, caption and all.
#[test]
fn tables_in_the_readme_are_those_of_committed_records() {
    let readme = read("README.md");
    let mut tables = 0;
    for rest in readme.split("<!-- table: ").skip(1) {
        let (path, rest) = rest.split_once(" -->\n").unwrap();
        let (shown, _) = rest.split_once("\n<!-- end of the table -->").unwrap();
        let written = read(path);
        let (_, without_title) = written.split_once("\n\n").unwrap();
        assert_eq!(shown.trim(), without_title.trim(), "README.md shows another table than {path}");
        tables += 1;
    }
    assert!(tables > 0, "README.md shows no table");
}

#[test]
fn the_readme_is_a_door() {
    let n_lines = read("README.md").lines().count();
    assert!(n_lines <= 130, "README.md has {n_lines} lines: the manual is in the folders' own README files");
}

//! The modules of a crate lie in layers, listed in ARCHITECTURE.md: a module imports only from its own line and those above.

use std::collections::BTreeMap;
use std::path::Path;

use super::{files_below, read, root};

/// The line of each module of a crate, from the block that follows the heading.
fn layers(of: &str) -> BTreeMap<String, usize> {
    let document = read("ARCHITECTURE.md");
    let heading = format!("### Layers of `{of}/`");
    let (_, after) = document.split_once(&heading).expect("ARCHITECTURE.md lists the layers");
    let block = after.split("```").nth(1).expect("the layers are a block of text");
    let lines = block.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines.enumerate().flat_map(|(n, line)| line.split_whitespace().map(move |module| (module.to_owned(), n))).collect()
}

/// The listed module that a path of modules lies in: the longest that begins it.
fn module_of<'a>(layers: &'a BTreeMap<String, usize>, path: &[&str]) -> Option<&'a str> {
    (1..=path.len()).rev().find_map(|n| layers.get_key_value(&path[..n].join("/"))).map(|(module, _)| module.as_str())
}

/// Every path that begins with `crate::`, without it. Comments and tests count for nothing.
fn imports(code: &str) -> Vec<Vec<&str>> {
    let code = code.split("\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let rests = lines.flat_map(|line| line.split("crate::").skip(1));
    // `crate::{a, b::c}` is a list of paths.
    let paths = rests.flat_map(|rest| match rest.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap_or_default().split(", ").collect(),
        None => vec![rest],
    });
    let is_in_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let names = |path: &'_ str| path.split(|c| !is_in_path(c)).next().unwrap_or_default().len();
    paths.map(|path| path[..names(path)].split("::").filter(|name| !name.is_empty()).collect()).collect()
}

#[test]
fn paths_are_found_in_code_only() {
    let code = "use crate::grid::{Bits, Grid};\n/// [`crate::awq::Awq`]\nlet x = crate::host::clip::search(y); // crate::load\n";
    assert_eq!(imports(code), [vec!["grid"], vec!["host", "clip", "search"]]);
    assert_eq!(imports("use crate::{device, cli::model};\n"), [vec!["device"], vec!["cli", "model"]]);
    assert!(imports("#[cfg(test)]\nmod tests {\n    use crate::driver::Job;\n}\n").is_empty());
}

#[test]
fn no_module_imports_from_a_layer_above_its_own() {
    // As many imports as there are at least: fewer, and the rule of this test is no longer right.
    let faults: Vec<String> =
        [("awq-core", 150), ("experiments", 200)].into_iter().flat_map(|(of, least)| imports_up(of, least)).collect();
    assert!(faults.is_empty(), "imports that go up:\n{}", faults.join("\n"));
}

fn imports_up(of: &str, least: usize) -> Vec<String> {
    let (layers, folder) = (layers(of), format!("{of}/src"));
    let mut faults = Vec::new();
    let mut n_imports = 0;
    for (file, content) in files_below(&root().join(&folder)) {
        let name = file.to_string_lossy().replace('\\', "/");
        let is_test =
            ["/tests.rs", "_tests.rs", "/testing.rs"].iter().any(|end| name.ends_with(end)) || name.contains("/tests/");
        if ["lib.rs", "main.rs"].contains(&name.as_str())
            || is_test
            || Path::new(&name).extension().is_none_or(|ending| ending != "rs")
        {
            continue;
        }
        let path: Vec<&str> = name.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
        let Some(own) = module_of(&layers, &path) else {
            faults.push(format!("{folder}/{name}: no layer of ARCHITECTURE.md names its module"));
            continue;
        };
        for import in imports(std::str::from_utf8(&content).unwrap()) {
            n_imports += 1;
            match module_of(&layers, &import) {
                None => faults.push(format!("{folder}/{name}: `crate::{}` is in no layer", import.join("::"))),
                Some(other) if layers[other] > layers[own] => {
                    faults.push(format!("{folder}/{name}: {own} imports {other}, which lies above it"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(n_imports > least, "only {n_imports} imports found in {folder}");
    faults
}

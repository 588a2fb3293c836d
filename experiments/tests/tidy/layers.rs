//! The modules of awq-core lie in layers, listed in ARCHITECTURE.md: a module imports only from its own line and those above.

use std::collections::BTreeMap;
use std::path::Path;

use super::{files_below, read, root};

const CRATE: &str = "awq-core/src";

/// The line of each module, from the block that follows the heading.
fn layers() -> BTreeMap<String, usize> {
    let document = read("ARCHITECTURE.md");
    let (_, after) = document.split_once("### Layers of `awq-core/`").expect("ARCHITECTURE.md lists the layers");
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
    let is_in_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let path = |rest: &'_ str| rest.split(|c| !is_in_path(c)).next().unwrap_or_default().len();
    rests.map(|rest| rest[..path(rest)].split("::").filter(|name| !name.is_empty()).collect()).collect()
}

#[test]
fn paths_are_found_in_code_only() {
    let code = "use crate::grid::{Bits, Grid};\n/// [`crate::awq::Awq`]\nlet x = crate::host::clip::search(y); // crate::load\n";
    assert_eq!(imports(code), [vec!["grid"], vec!["host", "clip", "search"]]);
    assert!(imports("#[cfg(test)]\nmod tests {\n    use crate::driver::Job;\n}\n").is_empty());
}

#[test]
fn no_module_imports_from_a_layer_above_its_own() {
    let layers = layers();
    let mut faults = Vec::new();
    let mut n_imports = 0;
    for (file, content) in files_below(&root().join(CRATE)) {
        let name = file.to_string_lossy().replace('\\', "/");
        let is_test = name.ends_with("/tests.rs") || name.ends_with("/testing.rs");
        if name == "lib.rs" || is_test || Path::new(&name).extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        let path: Vec<&str> = name.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
        let Some(own) = module_of(&layers, &path) else {
            faults.push(format!("{CRATE}/{name}: no layer of ARCHITECTURE.md names its module"));
            continue;
        };
        for import in imports(std::str::from_utf8(&content).unwrap()) {
            n_imports += 1;
            match module_of(&layers, &import) {
                None => faults.push(format!("{CRATE}/{name}: `crate::{}` is in no layer", import.join("::"))),
                Some(other) if layers[other] > layers[own] => {
                    faults.push(format!("{CRATE}/{name}: {own} imports {other}, which lies above it"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(n_imports > 150, "only {n_imports} imports found: is the rule of this test still right?");
    assert!(faults.is_empty(), "imports that go up:\n{}", faults.join("\n"));
}

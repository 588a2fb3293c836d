//! No sum on a CPU's path may depend on how threads share the work: records promise the same bits at any number of them.
//!
//! Two things would break this. burn's sum of all elements goes, from 4 Mi elements on, through rayon in burn-flex, which groups
//! terms as threads happen to take them; [`awq_core::backend::QuantBackend::dot_product`] is there instead. And rayon's own
//! `sum` and `reduce` do the same. (burn's sums along one dimension and its matrix products keep their order; the tests of
//! awq-core run them at real sizes.) The rules are read off the text, so they know only the ways in which this is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::root;

/// Files that add all elements with burn, how often, and why that is no danger.
const ALLOWED: [(&str, usize, &str); 2] = [
    (
        "awq-core/src/backend/mod.rs",
        2,
        "the definitions of `dot_product` and `squared_distance`, which CPU backends override",
    ),
    ("experiments/src/bundled/train/mod.rs", 2, "one likelihood a token of a batch: some thousand elements"),
];

/// Every source file but those that only a GPU runs, without its tests, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["awq-core/src", "baselines/src", "experiments/src"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                sources.insert(path.to_string_lossy().replace('\\', "/"), code);
            }
        }
    }
    sources.retain(|path, _| !path.contains("/kernel/cube/") && !path.contains("/speed/"));
    assert!(sources.len() > 100, "only {} files found: is the rule of this test still right?", sources.len());
    sources
}

/// Code without comments and white space.
fn squeezed(code: &str) -> String {
    let without_comments = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    without_comments.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

/// Sums and means of a whole tensor. An iterator's `sum()` has its type written at it or at the variable: nothing can follow it
/// without one, and no variable without a type can take it.
fn burn_sums(code: &str) -> Vec<String> {
    let code = squeezed(code);
    let mut found = Vec::new();
    for call in [".sum()", ".mean()", ".prod()"] {
        for (start, _) in code.match_indices(call) {
            let after = &code[start + call.len()..];
            let statement = code[..start].rfind([';', '{', '}']).map_or(&code[..start], |end| &code[end + 1..start]);
            let has_no_type = statement.starts_with("let") && !statement.split('=').next().unwrap_or("").contains(':');
            let is_value = after.starts_with(['.', '/', '*', '+', '-']);
            if call != ".sum()" || is_value || (has_no_type && after.starts_with(';')) {
                found.push(format!("{statement}{call}"));
            }
        }
    }
    found
}

/// Reductions of a parallel iterator itself; those inside the closures that it runs are in order.
fn parallel_reductions(code: &str) -> Vec<String> {
    const REDUCTIONS: [&str; 5] = [".sum", ".product", ".reduce", ".fold", ".try_reduce"];
    let code = squeezed(code);
    let mut found = Vec::new();
    for (start, _) in code.match_indices("par_").filter(|(start, _)| code[..*start].ends_with(['.', '_'])) {
        let (mut depth, chain) = (0_i32, &code[start..]);
        for (at, c) in chain.char_indices() {
            match c {
                '(' | '{' | '[' => depth += 1,
                ')' | '}' | ']' => depth -= 1,
                ';' if depth == 0 => break,
                '.' if depth == 0 && REDUCTIONS.iter().any(|name| chain[at..].starts_with(name)) => {
                    found.push(chain[..at + 4].to_owned());
                }
                _ => {}
            }
            if depth < 0 {
                break;
            }
        }
    }
    found
}

#[test]
fn the_rules_tell_sums_apart() {
    for burn in [
        "let loss: f64 = (a * b).sum().into_scalar().elem();",
        "x.powi_scalar(2)\n    .sum() / n",
        "let total = errors.sum();",
        "let loss = nll.mean();",
    ] {
        assert_eq!(burn_sums(burn).len(), 1, "{burn}");
    }
    for other in [
        "let total: f64 = sums.iter().sum();",
        "sums.iter().sum::<f64>() / n",
        "fn n(&self) -> usize { self.parts.iter().map(Part::len).sum() }",
        "weight.sum_dim(0)",
        "// (a * b).sum().into_scalar()",
    ] {
        assert_eq!(burn_sums(other), Vec::<String>::new(), "{other}");
    }
    assert_eq!(parallel_reductions("let x: f32 = rows.par_chunks(8).map(|row| row.len()).sum();").len(), 1);
    assert_eq!(parallel_reductions("let x = a.into_par_iter().map(f).reduce(|| 0.0, |a, b| a + b);").len(), 1);
    let in_order = "let x: Vec<f32> = rows.par_chunks(8).map(|row| row.iter().sum()).collect(); x.iter().sum::<f32>()";
    assert_eq!(parallel_reductions(in_order), Vec::<String>::new());
}

#[test]
fn whole_tensors_are_added_in_an_order_of_our_own() {
    let found: BTreeMap<String, Vec<String>> = sources()
        .into_iter()
        .map(|(path, code)| (path, burn_sums(&code)))
        .filter(|(_, sums)| !sums.is_empty())
        .collect();
    let counts: Vec<(&str, usize)> = found.iter().map(|(path, sums)| (path.as_str(), sums.len())).collect();
    let allowed = ALLOWED.map(|(path, n, _)| (path, n));
    assert_eq!(counts, allowed, "use QuantBackend::dot_product, or say in ALLOWED why not: {found:#?}");
}

#[test]
fn no_parallel_iterator_is_reduced() {
    // Bytes combined with `^`, in a measurement of the memory's speed.
    let allowed = "awq-core/src/kernel/bench.rs";
    let found: Vec<(String, Vec<String>)> = sources()
        .into_iter()
        .map(|(path, code)| (path, parallel_reductions(&code)))
        .filter(|(path, reductions)| !reductions.is_empty() && path != allowed)
        .collect();
    assert!(found.is_empty(), "collect the parts and add them one after the other: {found:#?}");
}

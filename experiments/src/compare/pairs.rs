//! Which cell of one folder is held against which of another. Names alone do not tell: cells that differ in a setting which labels do
//! not say are called the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Cell, CellId};

/// Positions of cells in `first` and in `second` that stand for each other, in the order of `first`: those that ask the same, else those
/// that do the same to a model of one name, wherever it lies and whatever is measured of it, else those with a name that no other cell
/// left over has.
pub(super) fn pairs(first: &[&Cell], second: &[&Cell]) -> Vec<(usize, usize)> {
    let Some(model) = first.first().map(|cell| &cell.model) else { return Vec::new() };
    let done = |cell: &Cell| {
        let CellId(done) = Cell { model: model.clone(), evaluations: Vec::new(), ..cell.clone() }.id();
        format!("{done} {}", cell.model.name)
    };
    let keys: [&dyn Fn(&Cell) -> String; 3] = [&|cell| cell.id().0, &done, &Cell::label];
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for key in keys {
        let taken: [BTreeSet<usize>; 2] =
            [pairs.iter().map(|&(index, _)| index).collect(), pairs.iter().map(|&(_, index)| index).collect()];
        let by_key = |cells: &[&Cell], taken: &BTreeSet<usize>| {
            let mut by_key: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for index in (0..cells.len()).filter(|index| !taken.contains(index)) {
                by_key.entry(key(cells[index])).or_default().push(index);
            }
            by_key
        };
        let others = by_key(second, &taken[1]);
        for (key, own) in by_key(first, &taken[0]) {
            if let ([one], Some([other])) = (own.as_slice(), others.get(&key).map(Vec::as_slice)) {
                pairs.push((*one, *other));
            }
        }
    }
    pairs.sort_unstable();
    pairs
}

/// What messages call each cell: its label, with the head of its id where others are called the same.
pub(super) fn names(cells: &[&Cell]) -> Vec<String> {
    let labels: Vec<String> = cells.iter().map(|cell| cell.label()).collect();
    let name = |(cell, label): (&&Cell, &String)| {
        let n = labels.iter().filter(|other| *other == label).count();
        if n > 1 { format!("{label} ({:.6})", cell.id().0) } else { label.clone() }
    };
    cells.iter().zip(&labels).map(name).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::{ExperimentSpec, ModelSource};
    use crate::plan::Plan;

    /// The quickstart, with AWQ's scales alone searched on so many ratios in each of its methods.
    fn plan(n_ratios: &[usize], n_documents: usize) -> Plan {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/quickstart.toml");
        let method = |n: &usize| {
            format!(
                "{{ awq = {{ scale = {{ search = {{ n_ratios = {n}, formula = \"activation\" }} }}, clip = \"off\" }} }}"
            )
        };
        let methods: Vec<String> = n_ratios.iter().map(method).collect();
        let text = std::fs::read_to_string(path)
            .unwrap()
            .replace("[{ rtn = {} }, { awq = \"llm-awq\" }]", &format!("[{}]", methods.join(", ")))
            .replace("n_documents = 200", &format!("n_documents = {n_documents}"));
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Plan::new(&ExperimentSpec::read(file.path()).unwrap())
    }

    fn of_plans(first: &Plan, second: &Plan) -> Vec<(usize, usize)> {
        pairs(&Vec::from_iter(first.cells()), &Vec::from_iter(second.cells()))
    }

    #[test]
    fn twins_by_name_are_told_apart_by_their_settings() {
        let plan_of_two = plan(&[5, 20], 200);
        let n = plan_of_two.cells().count();
        let itself: Vec<(usize, usize)> = (0..n).map(|index| (index, index)).collect();
        assert_eq!(of_plans(&plan_of_two, &plan_of_two), itself);
        // On another text, and in another order.
        assert_eq!(of_plans(&plan_of_two, &plan(&[5, 20], 100)), itself);
        let turned = plan(&[20, 5], 200);
        let (first, second) = (Vec::from_iter(plan_of_two.cells()), Vec::from_iter(turned.cells()));
        let found = of_plans(&plan_of_two, &turned);
        assert_eq!(found.len(), n);
        assert!(found.iter().all(|&(one, other)| first[one].id() == second[other].id()), "{found:?}");
    }

    #[test]
    fn twins_of_a_model_that_lies_elsewhere_are_told_apart() {
        let first = plan(&[5, 20], 200);
        let mut second = plan(&[20, 5], 200);
        let elsewhere: ModelSource = toml::from_str("path = { path = \"elsewhere\" }").unwrap();
        for cell in &mut second.models[0].cells {
            cell.model.source = elsewhere.clone();
        }
        let found = of_plans(&first, &second);
        assert_eq!(found.len(), first.cells().count());
        let (first, second) = (Vec::from_iter(first.cells()), Vec::from_iter(second.cells()));
        assert!(found.iter().all(|&(one, other)| first[one].quantization == second[other].quantization), "{found:?}");
    }

    #[test]
    fn a_name_counts_where_it_is_the_only_one() {
        // One setting changed: the cells are held against each other by name.
        assert_eq!(of_plans(&plan(&[5], 200), &plan(&[20], 200)).len(), plan(&[5], 200).cells().count());
        // Of two that are called the same, neither is the one that is called so in the other folder.
        let found = of_plans(&plan(&[5, 6], 200), &plan(&[20], 200));
        assert_eq!(found, [(0, 0)], "full precision alone");
        // Where one of them is known, the other is left.
        let (first, second) = (plan(&[5, 20], 200), plan(&[5, 6], 200));
        assert_eq!(of_plans(&first, &second).len(), first.cells().count());
    }

    #[test]
    fn twins_have_names_of_their_own() {
        let plan = plan(&[5, 20], 200);
        let cells = Vec::from_iter(plan.cells());
        let names = names(&cells);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), cells.len());
        assert_eq!(names[0], "bundled-3M FP");
        assert_eq!(names[1], format!("bundled-3M AWQ (scale only) W3 per-channel ({:.6})", cells[1].id().0));
    }
}

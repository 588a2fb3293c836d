//! Part of a plan: the cells that a command names ([`Selection`]), or those of one of several shares ([`Shard`]).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use itertools::Itertools as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cell, CellId, Plan, of_one_grid};

/// Cells by what tells them apart: `method=awq,bits=3` are those for which all of it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Selection {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    key: SelectionKey,
    value: String,
}

/// What cells may be selected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SelectionKey {
    Model,
    Method,
    Grid,
    Bits,
    Group,
    Calibration,
    Draw,
}

impl SelectionKey {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Model, "model"),
        (Self::Method, "method"),
        (Self::Grid, "grid"),
        (Self::Bits, "bits"),
        (Self::Group, "group"),
        (Self::Calibration, "calibration"),
        (Self::Draw, "draw"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(key, _)| *key == self).map_or("", |(_, name)| name)
    }

    /// What a cell may be called by, the usual name first; nothing where it has nothing of the kind.
    fn names(self, cell: &Cell) -> Vec<String> {
        let quantization = cell.quantization.as_ref();
        match self {
            Self::Model => vec![cell.model.name.clone()],
            Self::Method => {
                let other = if cell.is_base() { "fp" } else { "checkpoint" };
                let key = quantization.map_or(other, |quantization| quantization.method.key());
                vec![key.to_owned(), cell.method_label()]
            }
            Self::Grid => quantization.map(|_| cell.grid_label()).into_iter().collect(),
            Self::Bits => {
                quantization.map(|quantization| quantization.grid.bits.get().to_string()).into_iter().collect()
            }
            Self::Group => {
                let label = quantization.map(|quantization| quantization.grid.granularity.label());
                let bare = label.as_ref().and_then(|label| label.strip_prefix('g').map(str::to_owned));
                label.into_iter().chain(bare).collect()
            }
            Self::Calibration => quantization.and_then(|q| q.calibration_name.clone()).into_iter().collect(),
            Self::Draw => quantization.and_then(|q| q.draw).map(|draw| draw.index.to_string()).into_iter().collect(),
        }
    }
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut conditions: Vec<Condition> = Vec::new();
        for part in text.split(',') {
            let keys = || SelectionKey::ALL.map(|(_, name)| name).join(", ");
            match (part.split_once('='), conditions.last_mut()) {
                (Some((key, value)), _) => {
                    let known = SelectionKey::ALL.iter().find(|(_, name)| *name == key.trim());
                    let (key, _) =
                        known.ok_or_else(|| format!("`{key}` is nothing that cells differ in; use {}", keys()))?;
                    conditions.push(Condition { key: *key, value: value.trim().to_owned() });
                }
                // Labels have commas, too: `grid=W4 g128 (*.down_proj FP, lm_head W8)`.
                (None, Some(last)) => last.value = format!("{},{}", last.value, part.trim_end()),
                (None, None) => {
                    return Err(format!("`{part}` is no condition such as `method=awq`; keys are {}", keys()));
                }
            }
        }
        Ok(Self { conditions })
    }
}

impl TryFrom<String> for Selection {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Selection> for String {
    fn from(selection: Selection) -> Self {
        selection.to_string()
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions =
            self.conditions.iter().map(|condition| format!("{}={}", condition.key.name(), condition.value));
        f.write_str(&conditions.collect::<Vec<_>>().join(","))
    }
}

impl Selection {
    fn holds(&self, cell: &Cell) -> bool {
        self.conditions.iter().all(|condition| condition.holds(cell))
    }
}

impl Condition {
    fn holds(&self, cell: &Cell) -> bool {
        self.key.names(cell).iter().any(|name| name.eq_ignore_ascii_case(&self.value))
    }
}

/// One of several shares of an experiment's work, each for a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: usize,
    /// Of how many.
    pub n: usize,
}

impl FromStr for Shard {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('/').and_then(|(index, n)| Some((index.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, n)) if (1..=n).contains(&index) => Ok(Self { index, n }),
            _ => Err("give a share as i/n with i from 1 to n, such as 2/4"),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.n)
    }
}

fn is_selected(cell: &Cell, selections: &[Selection]) -> bool {
    selections.is_empty() || selections.iter().any(|selection| selection.holds(cell))
}

impl Plan {
    /// The cells for which one of `selections` holds; all where there is none.
    ///
    /// # Errors
    /// A selection that holds for no cell, with what there is.
    pub fn select(self, selections: &[Selection]) -> Result<Self, String> {
        for selection in selections {
            if !self.cells().any(|cell| selection.holds(cell)) {
                return Err(format!("no cell has {selection}{}", self.alternatives(selection)));
            }
        }
        Ok(self.keep(|cell| is_selected(cell, selections)))
    }

    /// The ids of the cells that [`Self::select`] keeps, of a plan that may be a part, in which a selection may hold for none.
    pub fn selected(&self, selections: &[Selection]) -> BTreeSet<CellId> {
        self.cells().filter(|cell| is_selected(cell, selections)).map(Cell::id).collect()
    }

    /// The cells of one share: those of one calibration and grid, which share most of their work, stay together and are dealt out largest
    /// first, each to the share that has least. The shares of one plan are disjoint, together all of it, and the same wherever they are made.
    pub fn shard(self, shard: Shard) -> Self {
        let mut units = self.units();
        // A stable sort: units of one size stay in the order of the plan.
        units.sort_by_key(|unit| std::cmp::Reverse(unit.len()));
        let mut loads = vec![0; shard.n];
        let mut own = BTreeSet::new();
        for unit in units {
            let least = loads.iter().position_min().unwrap_or(0);
            loads[least] += unit.len();
            if least + 1 == shard.index {
                own.extend(unit.into_iter().map(Cell::id));
            }
        }
        self.keep(|cell| own.contains(&cell.id()))
    }

    /// All but these cells.
    pub fn without(self, cells: &BTreeSet<CellId>) -> Self {
        self.keep(|cell| !cells.contains(&cell.id()))
    }

    /// One cell and full precision of its model, with nothing published.
    pub fn beside_base(&self, one: &Cell) -> Self {
        let id = one.id();
        let is_base = |cell: &Cell| cell.is_base() && cell.model == one.model;
        let kept = self.clone().keep(|cell| is_base(cell) || cell.id() == id);
        Self { references: Vec::new(), table: None, ..kept }
    }

    /// Groups of cells that no share splits: up to so many shares, each has a cell.
    pub fn n_units(&self) -> usize {
        self.units().len()
    }

    /// Each cell in full precision, and the cells of each calibration and grid.
    fn units(&self) -> Vec<Vec<&Cell>> {
        let mut units: Vec<Vec<&Cell>> = Vec::new();
        for model in &self.models {
            units.extend(model.cells.iter().filter(|cell| cell.quantization.is_none()).map(|cell| vec![cell]));
            units.extend(of_one_grid(&model.cells));
        }
        units
    }

    fn keep(mut self, is_kept: impl Fn(&Cell) -> bool) -> Self {
        for model in &mut self.models {
            model.cells.retain(&is_kept);
        }
        self.models.retain(|model| !model.cells.is_empty());
        self
    }

    /// What the conditions that hold for no cell could have named.
    fn alternatives(&self, selection: &Selection) -> String {
        let wrong = selection.conditions.iter().filter(|condition| !self.cells().any(|cell| condition.holds(cell)));
        let names = |condition: &Condition| {
            let of_cell = |cell| condition.key.names(cell).into_iter().next();
            let names: Vec<String> = self.cells().filter_map(of_cell).unique().collect();
            let key = condition.key.name();
            if names.is_empty() {
                format!("; no cell has a {key}")
            } else {
                format!("; {key} is one of {}", names.join(", "))
            }
        };
        wrong.map(names).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::config::ExperimentSpec;

    fn plan(name: &str) -> Plan {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        Plan::new(&ExperimentSpec::read(&root.join("configs").join(name)).unwrap())
    }

    fn labels(plan: &Plan) -> Vec<String> {
        plan.cells().map(Cell::label).collect()
    }

    fn selected(selections: &[&str]) -> Result<Vec<String>, String> {
        let selections: Vec<Selection> = selections.iter().map(|text| text.parse().unwrap()).collect();
        plan("quickstart.toml").select(&selections).map(|plan| labels(&plan))
    }

    #[test]
    fn cells_are_named_by_what_tells_them_apart() {
        let all = labels(&plan("quickstart.toml"));
        assert_eq!(selected(&[]).unwrap(), all);
        assert_eq!(selected(&["method=FP"]).unwrap(), all[..1]);
        let of = |words: &[&str]| -> Vec<String> {
            all.iter().filter(|label| words.iter().all(|word| label.contains(word))).cloned().collect()
        };
        let found = selected(&["method=awq,bits=3"]).unwrap();
        assert_eq!(found, of(&["AWQ", "W3"]));
        assert!(found.len() > 1);
        assert_eq!(selected(&["method=AWQ, bits=3"]).unwrap(), found);
        let groups = selected(&["group=128"]).unwrap();
        assert_eq!((&groups, &selected(&["group=g128"]).unwrap()), (&of(&["g128"]), &groups));
        // Either of two.
        let either = selected(&["bits=2,method=rtn", "method=fp"]).unwrap();
        assert_eq!(either.len(), 1 + of(&["RTN", "W2"]).len());
    }

    #[test]
    fn a_label_may_have_commas() {
        let label = "W4 g128 (model.layers.0.* FP, lm_head W8 g128)";
        let selection: Selection = format!("method=GPTQ act-order, dynamic groups,grid={label}").parse().unwrap();
        let values: Vec<&str> = selection.conditions.iter().map(|condition| condition.value.as_str()).collect();
        assert_eq!(values, ["GPTQ act-order, dynamic groups", label]);
        assert_eq!(selection.to_string().parse(), Ok(selection));
    }

    #[test]
    fn what_names_no_cell_is_an_error_with_what_there_is() {
        let refused = selected(&["method=gptq,bits=3"]).unwrap_err();
        assert_eq!(refused, "no cell has method=gptq,bits=3; method is one of fp, rtn, awq");
        assert_eq!(selected(&["draw=2"]).unwrap_err(), "no cell has draw=2; draw is one of 0");
        assert_eq!(selected(&["calibration=x"]).unwrap_err(), "no cell has calibration=x; no cell has a calibration");
        assert!(
            selected(&["method=awq,bits"]).unwrap_err().starts_with("no cell has method=awq,bits; method is one of fp")
        );
        let unknown = "colour=red".parse::<Selection>().unwrap_err();
        assert!(unknown.starts_with("`colour` is nothing that cells differ in; use model, method"), "{unknown}");
        assert!("awq".parse::<Selection>().unwrap_err().starts_with("`awq` is no condition such as"));
    }

    #[test]
    fn shares_are_disjoint_and_all_of_it() {
        for name in ["quickstart.toml", "paper/figure8a-smollm2.toml"] {
            let all: BTreeSet<_> = plan(name).cells().map(Cell::id).collect();
            for n in [1, 2, 3, 50] {
                let shares: Vec<Vec<_>> =
                    (1..=n).map(|index| plan(name).shard(Shard { index, n }).cells().map(Cell::id).collect()).collect();
                let joined: Vec<_> = shares.concat();
                assert_eq!(joined.len(), all.len(), "{name} in {n}");
                assert_eq!(joined.into_iter().collect::<BTreeSet<_>>(), all, "{name} in {n}");
            }
        }
        // As many as there are groups: none is empty.
        let n = plan("paper/figure8a-smollm2.toml").n_units();
        assert!(n > 3, "{n}");
        for index in 1..=n {
            assert!(plan("paper/figure8a-smollm2.toml").shard(Shard { index, n }).cells().count() > 0, "{index}/{n}");
        }
        let sizes: Vec<usize> = (1..=3)
            .map(|index| plan("paper/figure8a-smollm2.toml").shard(Shard { index, n: 3 }).cells().count())
            .collect();
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 2, "{sizes:?}");
    }

    #[test]
    fn shares_are_counted_from_one() {
        assert_eq!("2/4".parse(), Ok(Shard { index: 2, n: 4 }));
        for wrong in ["0/4", "5/4", "1", "1/0", "a/b", "-1/4"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}

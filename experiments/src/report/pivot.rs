//! [`Pivot`]: rows of the frame laid out along the axes of a published table, with the published numbers in their places.
//! Pure; [`super::paper_table`] writes it, [`super::matrix`] draws it.

use std::collections::{BTreeMap, BTreeSet};

use super::frame::is_reference_of;
use super::row::Row;
use super::standing::Standings;
use crate::config::{ReferenceValue, TableAxis, TableSpec, TableValue};
use crate::plan::Plan;

/// What stands where no calibration, or no grid, has a name.
const NOTHING: &str = "-";

/// The base model along methods until a table is laid out: published full precision finds it by this word.
const BASE: &str = "FP";

/// One table: one metric, protocol and arithmetic, and one text unless texts are an axis.
#[derive(Debug)]
pub struct Pivot<'a> {
    /// Its axes and title.
    pub spec: &'a TableSpec,
    /// The numbers shown of each cell: those of the experiment without other metrics; what is none of a metric stands in the
    /// first table.
    pub values: Vec<TableValue>,
    /// Headings of its rows, a word for each axis of `spec.rows`.
    pub rows: Vec<Vec<String>>,
    /// Headings of its columns, a word for each axis of `spec.columns`.
    pub columns: Vec<Vec<String>>,
    /// What was measured, for captions.
    pub measured: Vec<&'a Row>,
    places: BTreeMap<(usize, usize), Place<'a>>,
}

/// What stands in one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// What we measured.
    pub ours: Option<&'a Row>,
    /// What was published.
    pub published: Option<&'a ReferenceValue>,
    /// Whether there are several methods in the same setting and it is not worse than the best of them, beyond the paired interval.
    pub is_among_best: bool,
}

impl Place<'_> {
    /// Our number.
    pub fn value(&self, value: TableValue) -> Option<f64> {
        let row = self.ours?;
        match value {
            TableValue::Metric(metric) => (metric == row.metric).then_some(row.value),
            TableValue::ChangedSteps => row.changed_steps,
            TableValue::StepRatio => row.step_ratio,
            TableValue::StepRatioOverScale => row.step_ratio_over_scale,
        }
    }

    /// The published number.
    pub fn published(&self, value: TableValue) -> Option<f64> {
        self.published.and_then(|reference| reference.number(value))
    }
}

impl<'a> Pivot<'a> {
    /// The tables of `rows`: one for each metric among the values and each protocol, and for each text unless texts are an axis.
    pub fn all(
        spec: &'a TableSpec,
        plan: &'a Plan,
        rows: &'a [Row],
        texts: &[String],
        standings: &Standings<'_>,
    ) -> Vec<Self> {
        let texts_are_axis = spec.rows.iter().chain(&spec.columns).any(|&axis| axis == TableAxis::Dataset);
        let setting = |row: &'a Row| {
            let text = if texts_are_axis { "" } else { row.dataset.as_str() };
            (text, row.protocol.as_str(), row.seq_len, row.arithmetic.as_str(), row.metric)
        };
        // What stands in a table without a metric is the same of each: the rows of one will do.
        let main = spec.metrics().next().or(rows.first().map(|row| row.metric));
        let is_shown = |row: &&Row| Some(row.metric) == main || spec.metrics().any(|metric| metric == row.metric);
        let mut settings: Vec<_> = Vec::new();
        for found in rows.iter().filter(is_shown).map(setting) {
            if !settings.contains(&found) {
                settings.push(found);
            }
        }
        let order = Order::new(plan, texts);
        let table = |wanted| {
            let measured: Vec<&Row> = rows.iter().filter(|row| setting(row) == wanted).collect();
            let (.., metric) = wanted;
            let is_of_table = |value: &TableValue| match value {
                TableValue::Metric(own) => *own == metric,
                TableValue::ChangedSteps | TableValue::StepRatio | TableValue::StepRatioOverScale => {
                    Some(metric) == main
                }
            };
            let values = spec.values.iter().copied().filter(is_of_table).collect();
            Self::new((spec, values), &order, measured, &plan.references, standings)
        };
        settings.into_iter().map(table).collect()
    }

    fn new(
        (spec, values): (&'a TableSpec, Vec<TableValue>),
        order: &Order,
        measured: Vec<&'a Row>,
        references: &'a [ReferenceValue],
        standings: &Standings<'_>,
    ) -> Self {
        // Where methods are rows and calibrations columns, what needs no calibration stands in every column.
        let repeats = spec.rows.contains(&TableAxis::Calibration) != spec.rows.contains(&TableAxis::Method);
        let everywhere = |words| if repeats { order.everywhere(words) } else { vec![with_calibration(words, NOTHING)] };
        let mut entries: Vec<(BTreeMap<TableAxis, String>, Place<'a>)> = Vec::new();
        for &row in &measured {
            let published = references.iter().find(|reference| is_reference_of(reference, row));
            let is_among_best = standings.is_among_best(row, &rivals(row, &measured));
            let place = Place { ours: Some(row), published, is_among_best };
            entries.extend(everywhere(words_of_row(row)).into_iter().map(|words| (words, place)));
        }
        // What was published and not (yet) measured keeps its place.
        for published in references {
            let is_here = |row: &&Row| is_reference_of(published, row);
            if measured.iter().any(is_here) || !may_stand_with(published, &measured) {
                continue;
            }
            let place = Place { published: Some(published), ..Place::default() };
            entries.extend(everywhere(words_of_reference(published)).into_iter().map(|words| (words, place)));
        }
        let heading = |axes: &[TableAxis], words: &BTreeMap<TableAxis, String>| -> Vec<String> {
            axes.iter().map(|axis| words.get(axis).cloned().unwrap_or_default()).collect()
        };
        // A published number whose text is not told has no place along texts.
        entries.retain(|(words, _)| spec.rows.iter().chain(&spec.columns).all(|axis| words.contains_key(axis)));
        let sorted = |axes: &[TableAxis]| -> Vec<Vec<String>> {
            let mut headings: Vec<Vec<String>> = entries.iter().map(|(words, _)| heading(axes, words)).collect();
            headings.sort_by_cached_key(|heading| order.position(axes, heading));
            headings.dedup();
            headings
        };
        let (mut rows, mut columns) = (sorted(&spec.rows), sorted(&spec.columns));
        let index = |all: &[Vec<String>], one: Vec<String>| all.iter().position(|other| *other == one);
        let mut places = BTreeMap::new();
        for (words, place) in &entries {
            let at = index(&rows, heading(&spec.rows, words)).zip(index(&columns, heading(&spec.columns, words)));
            if let Some(at) = at {
                places.entry(at).or_insert(*place);
            }
        }
        let base = base_word(&measured);
        for (axes, headings) in [(&spec.rows, &mut rows), (&spec.columns, &mut columns)] {
            for (axis, word) in headings.iter_mut().flat_map(|heading| axes.iter().zip(heading)) {
                if *axis == TableAxis::Method && word == BASE {
                    word.clone_from(&base);
                }
            }
        }
        Self { spec, values, rows, columns, measured, places }
    }

    /// What stands at a row and a column; nothing where nobody measured.
    pub fn place(&self, row: usize, column: usize) -> Place<'a> {
        self.places.get(&(row, column)).copied().unwrap_or_default()
    }

    /// Every published number that has a place, in reading order.
    pub fn published(&self) -> impl Iterator<Item = &'a ReferenceValue> {
        self.places.values().filter_map(|place| place.published)
    }
}

/// Whether a row is the base model as it is; a packed checkpoint as it is has a name of its own.
pub(super) fn is_base(row: &Row) -> bool {
    row.grid.is_none() && !row.method.starts_with("packed ")
}

/// What tables call the base model: what its file is, where that is one thing for all models.
fn base_word(measured: &[&Row]) -> String {
    let labels: BTreeSet<&str> = measured.iter().filter(|row| is_base(row)).map(|row| row.method.as_str()).collect();
    match Vec::from_iter(labels).as_slice() {
        [] => BASE.to_owned(),
        [label] => (*label).to_owned(),
        _ => "base model".to_owned(),
    }
}

fn words_of_row(row: &Row) -> BTreeMap<TableAxis, String> {
    let calibration = row.calibration.clone().map(|name| (TableAxis::Calibration, name));
    let others = [
        (TableAxis::Model, row.model.clone()),
        (TableAxis::Method, if is_base(row) { BASE.to_owned() } else { row.method.clone() }),
        (TableAxis::Grid, row.grid.clone().unwrap_or_else(|| NOTHING.to_owned())),
        (TableAxis::Dataset, row.dataset.clone()),
    ];
    others.into_iter().chain(calibration).collect()
}

fn words_of_reference(reference: &ReferenceValue) -> BTreeMap<TableAxis, String> {
    let method = if reference.grid.is_some() { reference.method.clone() } else { BASE.to_owned() };
    let optional = [
        reference.calibration.clone().map(|name| (TableAxis::Calibration, name)),
        reference.dataset.clone().map(|name| (TableAxis::Dataset, name)),
    ];
    let others = [
        (TableAxis::Model, reference.model.clone()),
        (TableAxis::Method, method),
        (TableAxis::Grid, reference.grid.clone().unwrap_or_else(|| NOTHING.to_owned())),
    ];
    others.into_iter().chain(optional.into_iter().flatten()).collect()
}

/// `words` with a calibration's name, where they have none.
fn with_calibration(mut words: BTreeMap<TableAxis, String>, name: &str) -> BTreeMap<TableAxis, String> {
    words.entry(TableAxis::Calibration).or_insert_with(|| name.to_owned());
    words
}

/// Whether a published number belongs to the metric, text and protocol of a table, as far as it tells.
fn may_stand_with(reference: &ReferenceValue, measured: &[&Row]) -> bool {
    let names = |wanted: &Option<String>, found: &dyn Fn(&Row) -> bool| {
        wanted.is_none() || measured.iter().any(|row| found(row))
    };
    measured.iter().any(|row| row.metric == reference.metric())
        && names(&reference.dataset, &|row| reference.dataset.as_ref() == Some(&row.dataset))
        && names(&reference.protocol, &|row| reference.protocol.as_ref() == Some(&row.protocol))
        && reference.seq_len.is_none_or(|len| measured.iter().any(|row| row.seq_len == len.get() as u64))
}

/// Every method on the model, grid, text and calibration of a row, the row itself among them. What needs no calibration
/// competes under each.
fn rivals<'a>(row: &Row, rows: &[&'a Row]) -> Vec<&'a Row> {
    let same_calibration =
        |other: &Row| row.calibration.is_none() || other.calibration.is_none() || row.calibration == other.calibration;
    let is_rival = |other: &&Row| {
        (&other.model, &other.grid, &other.dataset) == (&row.model, &row.grid, &row.dataset) && same_calibration(other)
    };
    rows.iter().copied().filter(is_rival).collect()
}

/// The words of each axis in the order of the experiment file.
struct Order(BTreeMap<TableAxis, Vec<String>>);

impl Order {
    fn new(plan: &Plan, texts: &[String]) -> Self {
        let mut words: BTreeMap<TableAxis, Vec<String>> = BTreeMap::new();
        for cell in plan.cells() {
            for axis in [TableAxis::Model, TableAxis::Method, TableAxis::Grid, TableAxis::Calibration] {
                let word = match cell.place(axis) {
                    nothing if nothing.is_empty() && axis == TableAxis::Calibration => continue,
                    nothing if nothing.is_empty() => NOTHING.to_owned(),
                    word => word,
                };
                words.entry(axis).or_default().push(word);
            }
        }
        words.insert(TableAxis::Dataset, texts.to_vec());
        for known in words.values_mut() {
            let mut seen = BTreeSet::new();
            known.retain(|word| seen.insert(word.clone()));
        }
        Self(words)
    }

    /// `words` under every calibration, where they name none.
    fn everywhere(&self, words: BTreeMap<TableAxis, String>) -> Vec<BTreeMap<TableAxis, String>> {
        let nothing = vec![NOTHING.to_owned()];
        let names = self.0.get(&TableAxis::Calibration).unwrap_or(&nothing);
        match words.contains_key(&TableAxis::Calibration) {
            true => vec![words],
            false => names.iter().map(|name| with_calibration(words.clone(), name)).collect(),
        }
    }

    /// Where a heading stands: by the order of each word, unknown words last.
    fn position(&self, axes: &[TableAxis], heading: &[String]) -> Vec<(usize, String)> {
        let place = |(axis, word): (&TableAxis, &String)| {
            let known = self.0.get(axis).and_then(|words| words.iter().position(|known| known == word));
            (known.unwrap_or(usize::MAX), word.clone())
        };
        axes.iter().zip(heading).map(place).collect()
    }
}

//! A [`Pivot`] as a coloured matrix: how much worse a model is that was calibrated on another text than the one it is scored
//! on. The stronger the colour, the more is lost to the calibration on the text itself.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::header::{Header, wrapped};
use super::looks::mixed;
use super::paper_table::setting;
use super::picture::WIDTH;
use super::picture::sheet::{BLACK, HPos, Sheet, VPos, WHITE};
use super::pivot::Pivot;
use super::row::Row;
use super::tables::{decimals, number, slug};
use crate::config::{DatasetSpec, TableValue};
use crate::eval::metric::Quantity;
use crate::eval::registry::MetricKey;
use crate::record::{Outcome, Record};

/// Geometry, in a figure's own pixels.
const EDGE: f64 = 16.0;
const HEADING_WIDTH: f64 = 330.0;
const HEADING_HEIGHT: f64 = 64.0;
const CELL_HEIGHT: f64 = 108.0;
const LINE_HEIGHT: f64 = 42.0;
const CELL_GAP: f64 = 6.0;

/// Colour of the worst cell; others are mixed with white.
const WORST: RGBColor = RGBColor(213, 94, 0);
/// Share of [`WORST`] in the worst cell: black text stays readable on it.
const DEEPEST: f64 = 0.75;

/// A matrix of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
    /// What its numbers are.
    pub quantity: Quantity,
    /// What stands above it.
    pub header: Header,
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// Heading and cells of each row; `None` where nobody measured.
    pub rows: Vec<(String, Vec<Option<MatrixCell>>)>,
}

/// A number in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixCell {
    /// Our number.
    pub value: f64,
    /// The published one.
    pub published: Option<f64>,
    /// What it is held against.
    pub loss: Loss,
}

/// How a cell stands to the calibration on the text that is scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// The calibration is on the text that is scored.
    Matched,
    /// The number above that of the same method calibrated on the text that is scored.
    AboveMatched(f64),
    /// There is nothing to hold it against.
    Unknown,
}

/// Which kind of text each scored text, and each named calibration, is of.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    texts: BTreeMap<String, String>,
    calibrations: BTreeMap<String, String>,
}

/// What a text is, whatever part of it.
fn kind(dataset: &DatasetSpec) -> String {
    match dataset {
        DatasetSpec::Wikitext2(_) => "wikitext2".to_owned(),
        DatasetSpec::PileVal(_) => "pile".to_owned(),
        DatasetSpec::PileSubset(text) => format!("pile {:?}", text.kind),
        DatasetSpec::Sotu(_) => "sotu".to_owned(),
        DatasetSpec::MobyDick(_) => "moby_dick".to_owned(),
        DatasetSpec::TextFile(file) => format!("file {}", file.name),
        DatasetSpec::Bundled(text) => format!("bundled {:?}", text.topic),
        DatasetSpec::Task(task) => format!("task {}", task.name()),
    }
}

impl Kinds {
    /// Of the records of a report.
    pub fn of(records: &[&Record]) -> Self {
        let mut kinds = Self::default();
        for record in records {
            if let Outcome::Done(done) = &record.outcome {
                for (asked, measured) in record.cell.evaluations.iter().zip(&done.measurements) {
                    kinds.texts.insert(measured.dataset.clone(), kind(&asked.text().dataset));
                }
            }
            let quantization = record.cell.quantization.as_ref();
            let named = quantization.and_then(|q| q.calibration_name.clone().zip(q.calibration.as_ref()));
            if let Some((name, calibration)) = named {
                kinds.calibrations.insert(name, kind(&calibration.dataset));
            }
        }
        kinds
    }

    fn is_matched(&self, row: &Row) -> bool {
        let of_calibration = row.calibration.as_ref().and_then(|name| self.calibrations.get(name));
        of_calibration.is_some() && of_calibration == self.texts.get(&row.dataset)
    }
}

impl Matrix {
    /// The numbers of a table's metric.
    pub fn of(pivot: &Pivot<'_>, caption: &str, kinds: &Kinds) -> Self {
        let loss = |row: &Row| {
            let is_twin = |other: &&&Row| {
                let setting =
                    |row: &Row| (row.model.clone(), row.method.clone(), row.grid.clone(), row.dataset.clone());
                row.calibration.is_some() && setting(other) == setting(row) && kinds.is_matched(other)
            };
            match pivot.measured.iter().find(is_twin) {
                Some(twin) if twin.calibration == row.calibration => Loss::Matched,
                Some(twin) => Loss::AboveMatched(row.value - twin.value),
                None => Loss::Unknown,
            }
        };
        let cell = |row: usize, column: usize| {
            let place = pivot.place(row, column);
            place.ours.map(|ours| MatrixCell {
                value: ours.value,
                published: place.published(TableValue::Metric(ours.metric)),
                loss: loss(ours),
            })
        };
        let cells = |row: usize| (0..pivot.columns.len()).map(|column| cell(row, column)).collect();
        let words = |words: &[String]| words.iter().filter(|word| *word != "-").cloned().collect::<Vec<_>>().join(", ");
        let quantity = pivot.measured.first().map_or(MetricKey::USUAL, |row| row.metric).quantity();
        Self {
            slug: format!("matrix-{}", slug(&setting(pivot))),
            caption: format!(
                "{caption} Rows: method and calibration; columns: text that is scored. Second line and colour: {} above that of \
                 the same method calibrated on the text that is scored.",
                quantity.label
            ),
            quantity,
            header: header(pivot),
            columns: pivot.columns.iter().map(|heading| words(heading)).collect(),
            rows: pivot.rows.iter().enumerate().map(|(row, heading)| (words(heading), cells(row))).collect(),
        }
    }

    /// Draws the matrix below `top` and returns where it ends.
    pub(super) fn draw(&self, sheet: &mut Sheet, top: f64) -> f64 {
        let centered = (HPos::Center, VPos::Center);
        let cell_width = (f64::from(WIDTH) - HEADING_WIDTH - EDGE) / self.columns.len().max(1) as f64;
        let left = |column: usize| HEADING_WIDTH + cell_width * column as f64;
        for (column, heading) in self.columns.iter().enumerate() {
            let at = (left(column) + (cell_width - CELL_GAP) / 2.0, top + HEADING_HEIGHT / 2.0);
            sheet.words(heading, at, centered);
        }
        let cells = self.rows.iter().flat_map(|(_, cells)| cells).flatten();
        let worst = cells.map(|cell| cell.relative_loss(self.quantity)).fold(0.0, f64::max);
        for (row, (heading, cells)) in self.rows.iter().enumerate() {
            let top = top + HEADING_HEIGHT + CELL_HEIGHT * row as f64;
            let middle = top + (CELL_HEIGHT - CELL_GAP) / 2.0;
            draw_lines(sheet, &wrapped(heading, HEADING_WIDTH - 2.0 * EDGE), (EDGE, middle), HPos::Left);
            for (column, cell) in cells.iter().enumerate() {
                let Some(cell) = cell else { continue };
                let (right, bottom) = (left(column) + cell_width - CELL_GAP, top + CELL_HEIGHT - CELL_GAP);
                let share = if worst > 0.0 {
                    DEEPEST * (cell.relative_loss(self.quantity) / worst).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                sheet.rectangle((left(column), top), (right, bottom), mixed(WHITE, WORST, share));
                let edge =
                    [(left(column), top), (right, top), (right, bottom), (left(column), bottom), (left(column), top)];
                sheet.line(&edge, None, mixed(WHITE, BLACK, 0.4), 1.5);
                draw_lines(sheet, &cell.lines(self.quantity), ((left(column) + right) / 2.0, middle), HPos::Center);
            }
        }
        top + HEADING_HEIGHT + CELL_HEIGHT * self.rows.len() as f64 + EDGE
    }
}

/// Lines of words around a middle.
fn draw_lines(sheet: &mut Sheet, lines: &[String], (x, middle): (f64, f64), anchor: HPos) {
    for (index, line) in lines.iter().enumerate() {
        let y = middle + LINE_HEIGHT * (index as f64 - (lines.len() as f64 - 1.0) / 2.0);
        sheet.words(line, (x, y), (anchor, VPos::Center));
    }
}

fn header(pivot: &Pivot<'_>) -> Header {
    let Some(first) = pivot.measured.first() else { return Header::default() };
    let mut limits: Vec<String> = Vec::new();
    for row in pivot.measured.iter().filter(|row| row.limited) {
        let said = format!("{}: first {} of {} windows", row.dataset, row.n_windows, row.n_windows_total);
        if !limits.contains(&said) {
            limits.push(said);
        }
    }
    let mut models: Vec<&str> = pivot.measured.iter().map(|row| row.model.as_str()).collect();
    models.dedup();
    let mut grids: Vec<&str> = pivot.measured.iter().filter_map(|row| row.grid.as_deref()).collect();
    grids.dedup();
    let grid = if grids.len() == 1 { format!(", {}", grids[0]) } else { String::new() };
    Header {
        text: format!(
            "{}{grid}; {}, windows of {} tokens, {}; second line: loss against calibration on the same text",
            models.join(", "),
            first.quantity().label,
            first.seq_len,
            first.arithmetic
        ),
        warning: (!limits.is_empty()).then(|| format!("LIMITED RUN: {}", limits.join("; "))),
    }
}

impl MatrixCell {
    /// How much worse it is than the other, in units of the other.
    fn relative_loss(&self, quantity: Quantity) -> f64 {
        match self.loss {
            Loss::AboveMatched(loss) => quantity.direction.worse_by(loss) / (self.value - loss),
            Loss::Matched | Loss::Unknown => 0.0,
        }
    }

    /// `45.07 (45.07)`, the second number the published one; and `+1.20`, `same text`.
    fn lines(&self, quantity: Quantity) -> Vec<String> {
        let published = self.published.map_or_else(String::new, |published| format!(" ({published})"));
        let first = number(self.value, decimals(quantity.unit, self.value)) + &published;
        match self.loss {
            Loss::Matched => vec![first, "same text".to_owned()],
            Loss::AboveMatched(loss) if loss.is_finite() => vec![first, signed(loss)],
            Loss::AboveMatched(_) | Loss::Unknown => vec![first],
        }
    }
}

/// `+9.90`, `-0.12`, `+33.1`.
pub(super) fn signed(loss: f64) -> String {
    if loss.abs() < 9.995 { format!("{loss:+.2}") } else { format!("{loss:+.1}") }
}

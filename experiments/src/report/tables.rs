//! [`Table`]: the frame as a paper's table, in plain text cells that every output format renders alike.
//!
//! One table holds only numbers that may be compared: one model, one text, one protocol, the same windows.

use std::collections::BTreeSet;

use super::base;
use super::caption::{baseline, of_rows};
use super::draws;
use super::frame::Failure;
use super::row::{Compared, Row, comparison};
use super::standing::Standings;
use crate::eval::metric::Unit;

/// What a report's pages show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The question that the experiment answers.
    pub question: String,
    /// One table a model, text and protocol.
    pub tables: Vec<Table>,
    /// The cells that have no numbers, as `label: stage: error`.
    pub failures: Vec<String>,
}

/// A table of text cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Lower-case name for labels and file names: `smollm2-135m-wikitext2-test-gptq-2048`.
    pub slug: String,
    /// What the numbers are, in words.
    pub caption: String,
    /// Headings.
    pub columns: Vec<Column>,
    /// Cells, as wide as `columns`.
    pub rows: Vec<TableRow>,
    /// What an emphasized cell is, where there are any.
    pub emphasis: Option<&'static str>,
    /// What to know about single rows.
    pub notes: Vec<String>,
}

/// A heading and how its cells stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub heading: String,
    /// Where the cells stand.
    pub align: Align,
}

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRow {
    /// Its cells.
    pub cells: Vec<String>,
    /// The cells to make stand out, by column; the table says why.
    pub emphasized: Vec<usize>,
    /// First row of another section: a rule goes above it.
    pub starts_section: bool,
}

impl Document {
    /// Tables of `rows` (sorted as [`super::frame::rows`] sorts them) with the failed cells below.
    pub fn new(question: &str, rows: &[Row], failures: &[Failure], standings: &Standings<'_>) -> Self {
        Self {
            question: question.to_owned(),
            tables: rows.chunk_by(Row::is_comparable).map(|rows| Table::new(rows, standings)).collect(),
            failures: failures.iter().map(|f| format!("{}: {} failed: {}", f.label, f.stage, f.error)).collect(),
        }
    }
}

/// A column of the table and the text of its cells.
struct Layout {
    heading: String,
    align: Align,
    cell: fn(&Row) -> String,
}

impl Layout {
    fn left(heading: &str, cell: fn(&Row) -> String) -> Self {
        Self { heading: heading.to_owned(), align: Align::Left, cell }
    }

    fn right(heading: &str, cell: fn(&Row) -> String) -> Self {
        Self { heading: heading.to_owned(), align: Align::Right, cell }
    }
}

impl Table {
    /// The caption, and what `mark` means.
    pub fn caption_with(&self, mark: &str) -> String {
        let emphasis = self.emphasis.map_or_else(String::new, |what| format!(" {mark}: {what}."));
        format!("{}{emphasis}", self.caption)
    }

    /// `rows` must not be empty and must be comparable.
    fn new(rows: &[Row], standings: &Standings<'_>) -> Self {
        let first = &rows[0];
        let quantity = first.quantity();
        let comparison = comparison(quantity.estimator);
        let mut layout = vec![
            Layout::left("method", |row| row.method.clone()),
            Layout::left("grid", |row| row.grid.clone().unwrap_or_else(|| "-".to_owned())),
            Layout::right("bits/w", |row| row.bits_per_weight.map_or_else(missing, |bits| format!("{bits:.2}"))),
            Layout::right(quantity.label, |row| value_and_error(row.quantity().unit, row.value, row.standard_error)),
            Layout::right(&format!("{comparison} to {} [95% CI]", base::short_name(rows)), |row| {
                compared(row.quantity().unit, row.to_base())
            }),
        ];
        if let Some(baseline) = baseline(rows) {
            let heading = format!("{comparison} to {baseline} [95% CI]");
            layout.push(Layout::right(&heading, |row| compared(row.quantity().unit, row.to_baseline())));
        }
        if rows.iter().any(|row| row.questions_lost.is_some()) {
            layout.insert(5, Layout::right("lost : won", questions));
        }
        if draws::any(rows) {
            layout.insert(4, Layout::right(draws::HEADING, draws::spread));
        }
        let mut settings = Vec::new();
        if differ(rows, |row| row.calibration.as_deref()) {
            settings.push(Layout::left("calibration", |row| row.calibration.clone().unwrap_or_else(missing)));
        }
        if differ(rows, |row| row.propagation.as_deref()) {
            let words = |row: &Row| row.propagation.as_ref().map_or_else(missing, |name| name.replace('_', " "));
            settings.push(Layout::left("calibration inputs", words));
        }
        layout.splice(2..2, settings);
        if rows.iter().any(|row| row.reference.is_some()) {
            let published =
                |row: &Row| row.reference.map_or_else(missing, |x| number(x, decimals(row.quantity().unit, x)));
            layout.push(Layout::right("paper", published));
            let ours_less = |row: &Row| difference(row.quantity().unit, row.reference_difference);
            layout.push(Layout::right("ours - paper", ours_less));
        }
        let previous = std::iter::once(None).chain(rows.iter().map(Some));
        let table_row = |(row, previous): (&Row, Option<&Row>)| TableRow {
            cells: layout
                .iter()
                .enumerate()
                .map(|(index, column)| {
                    (column.cell)(row) + &if index == 0 { distinction(row, rows) } else { String::new() }
                })
                .collect(),
            emphasized: layout
                .iter()
                .position(|column| {
                    column.heading == quantity.label && standings.is_among_best(row, &on_grid(row, rows))
                })
                .into_iter()
                .collect(),
            starts_section: previous.is_some_and(|previous| previous.grid != row.grid),
        };
        let table_rows: Vec<TableRow> = rows.iter().zip(previous).map(table_row).collect();
        let stands_out = table_rows.iter().any(|row| !row.emphasized.is_empty());
        Self {
            slug: slug(&format!("{}{}", first.setting(), first.unusual_metric())),
            caption: of_rows(rows),
            columns: layout
                .iter()
                .map(|layout| Column { heading: layout.heading.clone(), align: layout.align })
                .collect(),
            rows: table_rows,
            emphasis: stands_out.then_some("not worse than the best on its grid, beyond the paired 95% interval"),
            notes: notes(rows),
        }
    }
}

/// Lower-case letters, digits and single hyphens.
pub fn slug(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join("-")
}

/// Tells apart two cells of one method and grid that differ in a setting: the head of the cell's id.
fn distinction(row: &Row, rows: &[Row]) -> String {
    let shown = |row: &Row| {
        [Some(&row.method), row.grid.as_ref(), row.calibration.as_ref(), row.propagation.as_ref()].map(|x| x.cloned())
    };
    let twins = rows.iter().filter(|other| shown(other) == shown(row)).count();
    if twins > 1 { format!(" ({})", row.cell_id.chars().take(6).collect::<String>()) } else { String::new() }
}

/// Whether more than one value of a setting occurs.
fn differ<'a>(rows: &'a [Row], setting: impl Fn(&'a Row) -> Option<&'a str>) -> bool {
    rows.iter().filter_map(setting).collect::<BTreeSet<_>>().len() > 1
}

/// The rows on the grid of a row, itself among them.
fn on_grid<'a>(row: &Row, rows: &'a [Row]) -> Vec<&'a Row> {
    rows.iter().filter(|other| other.grid == row.grid).collect()
}

fn notes(rows: &[Row]) -> Vec<String> {
    let sources: BTreeSet<&str> = rows.iter().filter_map(|row| row.reference_source.as_deref()).collect();
    let cell = |row: &Row| format!("{} {}", row.method, row.grid.as_deref().unwrap_or_default()).trim_end().to_owned();
    let overlap = |row: &Row| {
        let tokens = row.calibration_overlap_tokens.filter(|&tokens| tokens > 0)?;
        Some(format!(
            "{}: {} calibration tokens also occur in scored windows; its number is optimistic.",
            cell(row),
            grouped(tokens)
        ))
    };
    let left = |row: &Row| {
        let (n_weights, bits) = (row.full_precision_weights?, row.bits_per_weight_of_all?);
        Some(format!(
            "{}: {} weights of linears stay in full precision, which bits/w leaves out; over all linears it is {bits:.2}.",
            cell(row),
            grouped(n_weights)
        ))
    };
    let papers = sources.into_iter().map(|source| format!("Paper: {source}."));
    papers.chain(rows.iter().filter_map(overlap)).chain(rows.iter().filter_map(left)).collect()
}

/// Whether a hyphen between `previous` and `next` stands for the minus of a negative number.
pub(super) fn is_minus(previous: char, next: Option<&char>) -> bool {
    matches!(previous, ' ' | '[') && next.is_some_and(char::is_ascii_digit)
}

pub(crate) fn missing() -> String {
    "-".to_owned()
}

/// `12.345 ± 0.067`.
fn value_and_error(unit: Unit, value: f64, error: Option<f64>) -> String {
    let decimals = decimals(unit, value);
    let error = error.map_or_else(String::new, |error| format!(" ± {}", number(error, decimals)));
    number(value, decimals) + &error
}

/// `+0.412`.
fn difference(unit: Unit, point: Option<f64>) -> String {
    let Some(point) = point else { return missing() };
    let sign = if point >= 0.0 { "+" } else { "" };
    format!("{sign}{}", number(point, decimals(unit, point)))
}

/// `23 : 11, p 0.058`: questions lost to the base model and won, with p of McNemar's exact test.
fn questions(row: &Row) -> String {
    let (Some(lost), Some(won), Some(p)) = (row.questions_lost, row.questions_won, row.mcnemar_p) else {
        return missing();
    };
    let p = if p < 0.001 { "p < 0.001".to_owned() } else { format!("p {p:.3}") };
    format!("{lost} : {won}, {p}")
}

/// `+0.0508 [0.0437, 0.0577]`, of the unit of the metric; from 1 on three decimals.
fn compared(unit: Unit, (point, low, high): Compared) -> String {
    let Some(point) = point else { return missing() };
    let largest = [Some(point), low, high].into_iter().flatten().fold(0.0, |max, x| f64::max(max, x.abs()));
    let decimals = if largest < 1.0 { decimals_below_one(unit) } else { 3 };
    // What rounds to nothing has no sign: not -0.0000.
    let smallest = 0.5 * 10f64.powi(-(decimals as i32));
    let shown = |value: f64| if value.abs() < smallest { 0.0 } else { value };
    let bounds = low.zip(high).map(|(low, high)| (shown(low), shown(high)));
    let interval = bounds.map_or_else(String::new, |(low, high)| format!(" [{low:.decimals$}, {high:.decimals$}]"));
    let point = shown(point);
    format!("{point:+.decimals$}{interval}")
}

/// Decimals that keep about five digits of a number; `None` where only powers of ten are readable.
pub(super) fn decimals(unit: Unit, magnitude: f64) -> Option<usize> {
    match unit {
        Unit::PerToken | Unit::PerWord | Unit::PerByte | Unit::PerAnswer | Unit::NatsPerAnswer => {
            decimals_of_five(magnitude)
        }
        Unit::NatsPerToken | Unit::NatsAtToken if magnitude.abs() >= 1.0 => decimals_of_five(magnitude),
        Unit::NatsPerToken
        | Unit::NatsAtToken
        | Unit::Probability
        | Unit::Fraction
        | Unit::FractionOfQuestions
        | Unit::BitsPerByte => Some(decimals_below_one(unit)),
    }
}

/// Decimals of small numbers, and of comparisons: 4 bits may move a model by a few ten-thousandths of a nat.
fn decimals_below_one(unit: Unit) -> usize {
    match unit {
        Unit::NatsPerToken | Unit::NatsAtToken | Unit::Probability => 5,
        Unit::PerToken
        | Unit::PerWord
        | Unit::PerByte
        | Unit::PerAnswer
        | Unit::NatsPerAnswer
        | Unit::Fraction
        | Unit::FractionOfQuestions
        | Unit::BitsPerByte => 4,
    }
}

/// The same of a number that may have any size.
pub(super) fn decimals_of_five(magnitude: f64) -> Option<usize> {
    match magnitude.abs() {
        x if x < 100.0 => Some(3),
        x if x < 1_000.0 => Some(2),
        x if x < 10_000.0 => Some(1),
        _ => None,
    }
}

pub(super) fn number(value: f64, decimals: Option<usize>) -> String {
    match decimals {
        Some(decimals) => format!("{value:.decimals$}"),
        None if value.is_finite() => format!("{value:.2e}"),
        None => value.to_string(),
    }
}

/// `288,627`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Unit = Unit::PerToken;

    #[test]
    fn numbers_keep_about_five_digits() {
        assert_eq!(value_and_error(UNIT, 17.23456, Some(0.3456)), "17.235 ± 0.346");
        assert_eq!(value_and_error(UNIT, 523.456, None), "523.46");
        assert_eq!(value_and_error(UNIT, 1234.56, Some(12.3)), "1234.6 ± 12.3");
        assert_eq!(value_and_error(UNIT, 123_456.0, Some(1200.0)), "1.23e5 ± 1.20e3");
        assert_eq!(value_and_error(UNIT, f64::INFINITY, None), "inf");
        assert_eq!(value_and_error(UNIT, f64::NAN, None), "NaN");
    }

    #[test]
    fn differences_and_ratios_carry_their_sign() {
        assert_eq!([Some(0.4123), Some(-99.5), None].map(|x| difference(UNIT, x)), ["+0.412", "-99.500", "-"]);
        assert_eq!(compared(UNIT, (Some(0.05084), Some(0.04366), Some(0.0577))), "+0.0508 [0.0437, 0.0577]");
        assert_eq!(compared(UNIT, (Some(-0.001), Some(-0.0021), Some(0.0002))), "-0.0010 [-0.0021, 0.0002]");
        assert_eq!(compared(UNIT, (Some(0.99), Some(0.9), Some(1.1))), "+0.990 [0.900, 1.100]");
        assert_eq!(compared(UNIT, (Some(-0.00003), Some(-0.00042), Some(-0.00001))), "+0.0000 [-0.0004, 0.0000]");
        assert_eq!(compared(UNIT, (Some(0.05), None, None)), "+0.0500");
        assert_eq!(compared(UNIT, (None, None, None)), "-");
    }

    #[test]
    fn names_and_counts() {
        assert_eq!(slug("SmolLM2-135M wikitext2-test gptq 2048"), "smollm2-135m-wikitext2-test-gptq-2048");
        assert_eq!(slug("a/b  (c)"), "a-b-c");
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_288_627)], ["0", "999", "1,000", "1,288,627"]);
    }
}

//! A [`Pivot`] as a published table: ours in each place, the published number and the difference in parentheses; and the
//! same with a column each, as CSV.

use std::collections::BTreeSet;

use super::base;
use super::caption::{arithmetic, commits, limits, noise_floor, protocol, resampling};
use super::draws;
use super::pivot::{Pivot, Place};
use super::row::Row;
use super::tables::{Align, Column, Table, TableRow, decimals, decimals_of_five, missing, number, slug};
use crate::config::{TableAxis, TableValue};

/// The table of text cells that every format renders.
pub fn table(pivot: &Pivot<'_>) -> Table {
    let notes = Notes::of(pivot);
    let mut headings: Vec<String> = pivot.spec.rows.iter().map(|axis| axis.key().to_owned()).collect();
    let shows_values = pivot.values.len() > 1 || headings.is_empty();
    if shows_values {
        headings.push("number".to_owned());
    }
    let n_headings = headings.len();
    let left = headings.into_iter().map(|heading| Column { heading, align: Align::Left });
    let right = pivot.columns.iter().map(|words| Column { heading: column_heading(words), align: Align::Right });
    let columns = left.chain(right).collect();
    let mut rows: Vec<TableRow> = Vec::new();
    for (row_idx, words) in pivot.rows.iter().enumerate() {
        let is_new = row_idx > 0 && words.len() > 1 && words[0] != pivot.rows[row_idx - 1][0];
        for (value_idx, &value) in pivot.values.iter().enumerate() {
            let places = || (0..pivot.columns.len()).map(|column_idx| pivot.place(row_idx, column_idx));
            let mut cells = words.clone();
            if shows_values {
                cells.push(value.heading().to_owned());
            }
            cells.extend(places().map(|place| cell(&place, value, &notes)));
            let stands_out = |place: &Place<'_>| place.is_among_best && matches!(value, TableValue::Metric(_));
            let emphasized = places().enumerate().filter(|(_, place)| stands_out(place));
            rows.push(TableRow {
                cells,
                emphasized: emphasized.map(|(column_idx, _)| n_headings + column_idx).collect(),
                starts_section: is_new && value_idx == 0,
            });
        }
    }
    let stands_out = rows.iter().any(|row| !row.emphasized.is_empty());
    let emphasis = stands_out.then_some(
        "not worse than the best method on its model, grid, text and calibration, beyond the paired 95% interval",
    );
    Table {
        slug: format!("paper-{}", slug(&setting(pivot))),
        caption: caption(pivot),
        columns,
        rows,
        emphasis,
        notes: notes.lines,
    }
}

/// Where a table has its numbers from: text, protocol and arithmetic, and the metric where it is not the usual one.
pub(super) fn setting(pivot: &Pivot<'_>) -> String {
    let Some(first) = pivot.measured.first() else { return String::new() };
    let metric = first.unusual_metric();
    format!("{} {} {} {}{metric}", texts(pivot).join(" "), first.protocol, first.seq_len, first.arithmetic)
}

fn texts(pivot: &Pivot<'_>) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for row in &pivot.measured {
        if !texts.contains(&row.dataset) {
            texts.push(row.dataset.clone());
        }
    }
    texts
}

fn column_heading(words: &[String]) -> String {
    if words.is_empty() { "all".to_owned() } else { words.join(" / ") }
}

/// `6.243 (6.24, +0.003)`, `- (6.24)`, `6.243`.
fn cell(place: &Place<'_>, value: TableValue, notes: &Notes) -> String {
    let ours = place.value(value);
    let text = ours.map_or_else(missing, |ours| shown(ours, value)) + &draws_of(place, value);
    let Some(published) = place.published(value) else { return text };
    let mark = place.published.and_then(|reference| notes.mark(reference.note.as_deref())).unwrap_or_default();
    let published_text = published_as(published, value);
    match ours {
        Some(ours) => {
            let sign = if ours >= published { "+" } else { "" };
            format!("{text} ({published_text}{mark}, {sign}{})", shown_difference(ours - published, ours, value))
        }
        None => format!("{text} ({published_text}{mark})"),
    }
}

/// `; draws 3: 68.412 to 72.204`, of a perplexity that is the mean of several.
fn draws_of(place: &Place<'_>, value: TableValue) -> String {
    let of_draws = place.ours.filter(|row| matches!(value, TableValue::Metric(_)) && draws::any([*row]));
    of_draws.map_or_else(String::new, |row| format!("; draws {}", draws::spread(row)))
}

fn shown(ours: f64, value: TableValue) -> String {
    match value {
        TableValue::ChangedSteps => format!("{:.1}%", 100.0 * ours),
        TableValue::Metric(_) if (1e4..1e7).contains(&ours) => format!("{ours:.0}"),
        _ => number(ours, decimals_of(value, ours)),
    }
}

/// With as many digits as it was published with.
fn published_as(published: f64, value: TableValue) -> String {
    match value {
        // A share such as 0.082 is not exact in binary: 8.2, not 8.200000000000001.
        TableValue::ChangedSteps => format!("{}%", (published * 1e6).round() / 1e4),
        _ => published.to_string(),
    }
}

/// With the digits of our number.
fn shown_difference(difference: f64, ours: f64, value: TableValue) -> String {
    match value {
        TableValue::ChangedSteps => format!("{:.1}%", 100.0 * difference),
        TableValue::Metric(_) if (1e4..1e7).contains(&ours) => format!("{difference:.0}"),
        _ => number(difference, decimals_of(value, ours)),
    }
}

fn decimals_of(value: TableValue, magnitude: f64) -> Option<usize> {
    match value {
        TableValue::Metric(metric) => decimals(metric.quantity().unit, magnitude),
        TableValue::ChangedSteps | TableValue::StepRatio | TableValue::StepRatioOverScale => {
            decimals_of_five(magnitude)
        }
    }
}

fn caption(pivot: &Pivot<'_>) -> String {
    let mut text = limits(&pivot.measured);
    text += pivot.spec.title.trim_end_matches('.');
    let Some(first) = pivot.measured.first() else { return text + ". Nothing is measured yet." };
    let shown = [TableAxis::Model, TableAxis::Grid]
        .into_iter()
        .filter(|axis| !pivot.spec.rows.contains(axis) && !pivot.spec.columns.contains(axis));
    let fixed = shown.filter_map(|axis| only_word(axis, &pivot.measured)).collect::<Vec<_>>().join(", ");
    let fixed = if fixed.is_empty() { String::new() } else { format!(" ({fixed})") };
    text += &format!(
        "{fixed}. {} on {}, protocol {} ({}).",
        capitalized(&first.quantity().words()),
        texts(pivot).join(", "),
        first.protocol,
        protocol(first)
    );
    text += &arithmetic(first);
    text += &noise_floor(pivot.measured.iter().copied());
    text += &base::sentence(pivot.measured.iter().copied());
    text += &draws::sentence(pivot.measured.iter().copied());
    if pivot.published().next().is_some() {
        text += " In parentheses: the published number, and ours minus it.";
    }
    let method = if pivot.measured.iter().any(|row| row.block_len.is_some()) {
        format!(" Intervals are in table.csv: {}.", resampling(&pivot.measured))
    } else {
        String::new()
    };
    text += &format!("{method} {}.", commits(pivot.measured.iter().flat_map(|row| row.versions())));
    text
}

fn capitalized(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The one model or grid of a table.
fn only_word(axis: TableAxis, measured: &[&Row]) -> Option<String> {
    let word = |row: &Row| match axis {
        TableAxis::Model => Some(row.model.clone()),
        _ => row.grid.clone(),
    };
    let words: BTreeSet<String> = measured.iter().filter_map(|row| word(row)).collect();
    (words.len() == 1).then(|| words.into_iter().next()).flatten()
}

/// What is to be known of published numbers, with letters for those of which something is.
struct Notes {
    lines: Vec<String>,
    marked: Vec<String>,
}

impl Notes {
    fn of(pivot: &Pivot<'_>) -> Self {
        let sources: BTreeSet<&str> = pivot.published().map(|reference| reference.source.as_str()).collect();
        let mut marked: Vec<String> = Vec::new();
        for note in pivot.published().filter_map(|reference| reference.note.as_ref()) {
            if !marked.contains(note) {
                marked.push(note.clone());
            }
        }
        let lines = sources.into_iter().map(|source| format!("Published: {source}."));
        let explained = marked.iter().enumerate().map(|(index, note)| format!("{} {note}.", letter(index)));
        Self { lines: lines.chain(explained).collect(), marked }
    }

    /// ` [a]`, for a note.
    fn mark(&self, note: Option<&str>) -> Option<String> {
        let note = note?;
        let index = self.marked.iter().position(|marked| marked == note)?;
        Some(format!(" {}", letter(index)))
    }
}

/// `[a]`, `[b]`, ...; numbers after `[z]`.
fn letter(index: usize) -> String {
    match u8::try_from(index).ok().filter(|index| *index < 26) {
        Some(index) => format!("[{}]", char::from(b'a' + index)),
        None => format!("[{}]", index + 1),
    }
}

/// The table for a spreadsheet: full precision, and the published number and the difference in columns of their own.
pub fn csv(pivot: &Pivot<'_>) -> String {
    let has_published = pivot.published().next().is_some();
    let mut heading: Vec<String> = pivot.spec.rows.iter().map(|axis| axis.key().to_owned()).collect();
    heading.push("number".to_owned());
    for words in &pivot.columns {
        let name = column_heading(words);
        if has_published {
            heading.extend([name.clone(), format!("{name}, published"), format!("{name}, ours - published")]);
        } else {
            heading.push(name);
        }
    }
    let mut text = csv_line(&heading);
    for (row_idx, words) in pivot.rows.iter().enumerate() {
        for &value in &pivot.values {
            let mut cells = words.clone();
            cells.push(value.heading().to_owned());
            for column_idx in 0..pivot.columns.len() {
                let place = pivot.place(row_idx, column_idx);
                let (ours, published) = (place.value(value), place.published(value));
                let plain = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
                cells.push(plain(ours));
                if has_published {
                    cells.extend([plain(published), plain(ours.zip(published).map(|(ours, theirs)| ours - theirs))]);
                }
            }
            text += &csv_line(&cells);
        }
    }
    text
}

fn csv_line(cells: &[String]) -> String {
    let quoted = |cell: &String| match cell.contains([',', '"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    cells.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

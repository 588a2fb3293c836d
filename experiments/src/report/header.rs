//! [`Header`]: what a picture says of itself above its plot: model, text and windows, so that it can be read where it stands
//! alone.

use plotters::style::RGBColor;

use super::base;
use super::caption::{items, length};
use super::picture::WIDTH;
use super::picture::sheet::{BLACK, HPos, Sheet, VPos};
use super::picture::typeface::width_of;
use super::row::Row;
use super::tables::grouped;

/// Geometry, in a figure's own pixels.
const EDGE: f64 = 16.0;
const LINE_HEIGHT: f64 = 44.0;

/// Of what must not be overlooked.
const WARNING: RGBColor = RGBColor(190, 60, 0);

/// Words above a plot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// What was measured.
    pub text: String,
    /// What must not be overlooked: `LIMITED RUN: first 20 of 595 windows`.
    pub warning: Option<String>,
}

impl Header {
    /// Of what cannot be limited.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), warning: None }
    }

    /// Model, text, protocol and windows of rows whose numbers may be compared.
    pub(super) fn of_rows(rows: &[Row]) -> Self {
        let Some(first) = rows.first() else { return Self::default() };
        let base = rows.iter().find(|row| row.grid.is_none()).map(|row| format!(", {}", base::level_name(row)));
        // What is not known is said in captions.
        let is_known = rows.iter().any(|row| row.base_bits_per_weight.is_some());
        let base = base.filter(|name| is_known && name != ", full precision").unwrap_or_default();
        let number = if first.limited { String::new() } else { format!("{} ", grouped(first.n_windows)) };
        let parts = match items(first) {
            "windows" => format!("{number}windows of {} tokens", grouped(first.seq_len)),
            others => format!("{number}{others}, {}", length(first)),
        };
        Self {
            text: format!("{}{base}; {}: {parts}, {}", first.model, first.dataset, first.arithmetic),
            warning: limited(first),
        }
    }

    /// Draws the words and returns where they end.
    pub(super) fn draw(&self, sheet: &mut Sheet) -> f64 {
        let mut top = EDGE / 2.0;
        for (text, color) in [(Some(&self.text), BLACK), (self.warning.as_ref(), WARNING)] {
            for line in wrapped(text.map_or("", String::as_str), f64::from(WIDTH) - 2.0 * EDGE) {
                sheet.colored_words(&line, (EDGE, top + LINE_HEIGHT / 2.0), (HPos::Left, VPos::Center), color);
                top += LINE_HEIGHT;
            }
        }
        top + EDGE / 2.0
    }
}

/// `LIMITED RUN: first 20 of 595 windows`.
pub(super) fn limited(row: &Row) -> Option<String> {
    let (n, total) = (grouped(row.n_windows), grouped(row.n_windows_total));
    let said = || format!("LIMITED RUN: first {n} of {total} {}", items(row));
    row.limited.then(said)
}

/// Lines no wider than `width`, where words are not.
pub(super) fn wrapped(text: &str, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}")).filter(|line| width_of(line) <= width);
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_long_as_fits() {
        let text = "one two three four";
        let lines = wrapped(text, width_of("one two") + 1.0);
        assert_eq!(lines, ["one two", "three", "four"]);
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrapped("unbreakable", 1.0), ["unbreakable"]);
    }
}

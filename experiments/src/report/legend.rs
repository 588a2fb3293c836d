//! The legend: names with their lines and marks, in rows above the plot, where they cover nothing.

use super::figures::Level;
use super::looks::Look;
use super::picture::WIDTH;
use super::picture::sheet::{HPos, Sheet, VPos};
use super::picture::typeface::width_of;

/// Geometry, in a figure's own pixels.
const EDGE: f64 = 16.0;
const ROW_HEIGHT: f64 = 44.0;
const SAMPLE_WIDTH: f64 = 60.0;
/// Between a sample and its name; columns are twice as far apart.
const GAP: f64 = 12.0;

/// What an entry of a legend stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sample {
    /// A line with marks.
    Line(Look),
    /// A level.
    Level(Level),
}

/// Draws the legend below `top` and returns where it ends. An entry that occurs again is drawn once.
pub(super) fn draw(sheet: &mut Sheet, entries: Vec<(Sample, String)>, top: f64) -> f64 {
    let mut unique: Vec<(Sample, String)> = Vec::new();
    for entry in entries {
        if !unique.iter().any(|known| known.1 == entry.1) {
            unique.push(entry);
        }
    }
    if unique.is_empty() {
        return top;
    }
    let widths: Vec<f64> = unique.iter().map(|(_, name)| SAMPLE_WIDTH + GAP + width_of(name) + 2.0 * GAP).collect();
    let columns = columns(&widths);
    for (index, (sample, name)) in unique.iter().enumerate() {
        let left = EDGE + columns[..index % columns.len()].iter().sum::<f64>();
        let y = top + ROW_HEIGHT * ((index / columns.len()) as f64 + 0.5);
        let ends = [(left, y), (left + SAMPLE_WIDTH, y)];
        let middle = (left + SAMPLE_WIDTH / 2.0, y);
        match sample {
            Sample::Line(look) => {
                look.draw_line(sheet, &ends);
                look.draw_mark(sheet, middle);
            }
            Sample::Level(level) => level.draw_line(sheet, &ends),
        }
        sheet.words(name, (left + SAMPLE_WIDTH + GAP, y), (HPos::Left, VPos::Center));
    }
    top + ROW_HEIGHT * unique.len().div_ceil(columns.len()) as f64
}

/// Widths of as many columns as fit, each as wide as its widest entry; fewer where they make no more rows.
fn columns(widths: &[f64]) -> Vec<f64> {
    let columns = |n: usize| -> Vec<f64> {
        (0..n).map(|column| widths.iter().skip(column).step_by(n).copied().fold(0.0, f64::max)).collect()
    };
    // The last column needs no distance to a next one.
    let fits = |n: &usize| columns(*n).iter().sum::<f64>() - 2.0 * GAP <= f64::from(WIDTH) - 2.0 * EDGE;
    let most = (1..=widths.len()).rev().find(fits).unwrap_or(1);
    columns(widths.len().div_ceil(widths.len().div_ceil(most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::picture::sheet::Shape;

    #[test]
    fn a_name_stands_once() {
        let entry = |name: &str| (Sample::Line(Look::of_kind(0, 0)), name.to_owned());
        let mut sheet = Sheet::default();
        let bottom = draw(&mut sheet, vec![entry("A"), entry("B"), entry("A")], 0.0);
        let words = sheet.shapes.iter().filter(|shape| matches!(shape, Shape::Words(_))).count();
        assert_eq!((words, bottom), (2, ROW_HEIGHT));
    }

    #[test]
    fn columns_fit_and_rows_are_even() {
        assert_eq!(columns(&[100.0; 4]).len(), 4);
        assert_eq!(columns(&[300.0; 4]).len(), 2, "four in three columns make two rows all the same");
        assert_eq!(columns(&[2000.0; 2]).len(), 1);
    }
}

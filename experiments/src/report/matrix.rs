//! A [`Pivot`] as a coloured matrix: the stronger the colour, the further a perplexity lies above the lowest of its column.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::paper_table::setting;
use super::picture::{FONT, FONT_SIZE, WIDTH};
use super::pivot::Pivot;
use super::tables::{decimals, number, slug};
use crate::config::TableValue;

/// Geometry, in a figure's own pixels.
const HEADING_WIDTH: u32 = 330;
const HEADING_HEIGHT: u32 = 64;
const CELL_HEIGHT: u32 = 104;
const LINE_HEIGHT: i32 = 38;

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
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// Heading and cells of each row; `None` where nobody measured.
    pub rows: Vec<(String, Vec<Option<MatrixCell>>)>,
}

/// A number in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixCell {
    /// Our perplexity.
    pub perplexity: f64,
    /// The published one.
    pub published: Option<f64>,
    /// Perplexity over the lowest of a quantized model in its column, minus 1.
    pub excess: f64,
    /// Whether the model is quantized; full precision has no colour.
    pub is_quantized: bool,
}

impl Matrix {
    /// The perplexities of a table.
    pub fn of(pivot: &Pivot<'_>, caption: &str) -> Self {
        let ours = |row: usize, column: usize| pivot.place(row, column).value(TableValue::Perplexity);
        let is_quantized =
            |row: usize, column: usize| pivot.place(row, column).ours.is_some_and(|measured| measured.grid.is_some());
        let lowest = |column: usize| {
            let quantized = (0..pivot.rows.len()).filter(|&row| is_quantized(row, column));
            quantized.filter_map(|row| ours(row, column)).fold(f64::INFINITY, f64::min)
        };
        let cell = |row: usize, column: usize| {
            let perplexity = ours(row, column)?;
            let published = pivot.place(row, column).published(TableValue::Perplexity);
            let excess = perplexity / lowest(column) - 1.0;
            Some(MatrixCell { perplexity, published, excess, is_quantized: is_quantized(row, column) })
        };
        let cells = |row: usize| (0..pivot.columns.len()).map(|column| cell(row, column)).collect();
        Self {
            slug: format!("matrix-{}", slug(&setting(pivot))),
            caption: format!(
                "{caption} Colour: how far a number lies above the lowest of a quantized model in its column."
            ),
            columns: pivot.columns.iter().map(|words| words.join(" / ")).collect(),
            rows: pivot.rows.iter().enumerate().map(|(row, words)| (words.join(" / "), cells(row))).collect(),
        }
    }

    /// Height in its own pixels.
    pub(super) fn height(&self) -> u32 {
        HEADING_HEIGHT + CELL_HEIGHT * self.rows.len() as u32 + 16
    }

    /// Draws the matrix.
    pub(super) fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let font = || (FONT, FONT_SIZE * scale).into_font();
        let centered = TextStyle::from(font()).pos(Pos::new(HPos::Center, VPos::Center));
        let left = TextStyle::from(font()).pos(Pos::new(HPos::Left, VPos::Center));
        let pixel = |value: u32| (value * scale) as i32;
        let cell_width = (WIDTH - HEADING_WIDTH - 16) / self.columns.len().max(1) as u32;
        let column_left = |column: usize| pixel(HEADING_WIDTH + cell_width * column as u32);
        for (column, heading) in self.columns.iter().enumerate() {
            let center = (column_left(column) + pixel(cell_width / 2), pixel(HEADING_HEIGHT / 2));
            root.draw(&Text::new(heading.clone(), center, centered.clone()))?;
        }
        let cells = self.rows.iter().flat_map(|(_, cells)| cells).flatten();
        let worst = cells.filter(|cell| cell.is_quantized).map(|cell| cell.excess).fold(0.0, f64::max);
        for (row, (heading, cells)) in self.rows.iter().enumerate() {
            let top = pixel(HEADING_HEIGHT + CELL_HEIGHT * row as u32);
            let middle = top + pixel(CELL_HEIGHT / 2);
            root.draw(&Text::new(heading.clone(), (pixel(16), middle), left.clone()))?;
            for (column, cell) in cells.iter().enumerate() {
                let Some(cell) = cell else { continue };
                let corner = (column_left(column), top);
                let opposite = (corner.0 + pixel(cell_width - 6), top + pixel(CELL_HEIGHT - 6));
                let share = if cell.is_quantized && worst > 0.0 {
                    DEEPEST * (cell.excess / worst).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                root.draw(&Rectangle::new([corner, opposite], mixed_with_white(share).filled()))?;
                root.draw(&Rectangle::new([corner, opposite], BLACK.mix(0.4).stroke_width(scale)))?;
                let center = ((corner.0 + opposite.0) / 2, (corner.1 + opposite.1) / 2);
                let half_line = LINE_HEIGHT / 2 * scale as i32;
                root.draw(&Text::new(first_line(cell), (center.0, center.1 - half_line), centered.clone()))?;
                root.draw(&Text::new(second_line(cell), (center.0, center.1 + half_line), centered.clone()))?;
            }
        }
        Ok(())
    }
}

/// `45.070`, `45.070 (45.07)` with the published number.
fn first_line(cell: &MatrixCell) -> String {
    let published = cell.published.map_or_else(String::new, |published| format!(" ({published})"));
    number(cell.perplexity, decimals(cell.perplexity)) + &published
}

/// `+1.1%`: above the lowest of the column.
fn second_line(cell: &MatrixCell) -> String {
    if cell.excess.is_finite() { format!("{:+.1}%", 100.0 * cell.excess) } else { String::new() }
}

fn mixed_with_white(share: f64) -> RGBColor {
    let mix = |channel: u8| (255.0 + share * (f64::from(channel) - 255.0)).round() as u8;
    RGBColor(mix(WORST.0), mix(WORST.1), mix(WORST.2))
}

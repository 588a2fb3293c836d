//! [`Dots`]: a number and its interval a row, under headings: for settings that have no order.

use plotters::style::RGBColor;

use super::axis::{Axis, rounded};
use super::figures::Level;
use super::header::Header;
use super::legend::{self, Sample};
use super::looks::Look;
use super::picture::WIDTH;
use super::picture::sheet::{BLACK, HPos, Sheet, VPos};
use super::picture::typeface::width_of;

/// Geometry, in a figure's own pixels.
const EDGE: f64 = 16.0;
const HEADING_HEIGHT: f64 = 54.0;
const ROW_HEIGHT: f64 = 48.0;
const AXIS_HEIGHT: f64 = 58.0;
const LABEL_HEIGHT: f64 = 46.0;
const TICK: f64 = 9.0;
const MINOR_TICK: f64 = 5.0;
const GAP: f64 = 18.0;

const GRID: RGBColor = RGBColor(222, 222, 222);

/// A figure of dots.
#[derive(Clone, Debug, PartialEq)]
pub struct Dots {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
    /// What stands above the plot.
    pub header: Header,
    /// What the numbers are.
    pub label: String,
    /// Rows that belong together, each group with an axis of its own.
    pub groups: Vec<DotGroup>,
}

/// Rows under one heading.
#[derive(Clone, Debug, PartialEq)]
pub struct DotGroup {
    /// What the rows have in common.
    pub heading: String,
    /// Of the numbers.
    pub axis: Axis,
    /// The rows, from above.
    pub dots: Vec<Dot>,
    /// Vertical lines to compare with.
    pub levels: Vec<Level>,
}

/// A number and its interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// What it is the number of.
    pub label: String,
    /// Colour and mark.
    pub look: Look,
    /// The number.
    pub value: f64,
    /// Its interval.
    pub bar: Option<(f64, f64)>,
}

impl Dots {
    /// Draws the dots below `top` and returns where they end.
    pub(super) fn draw(&self, sheet: &mut Sheet, top: f64) -> f64 {
        let levels = self.groups.iter().flat_map(|group| &group.levels);
        let entries = levels.map(|level| (Sample::Level(level.clone()), level.name.clone())).collect();
        let mut top = legend::draw(sheet, entries, top);
        let labels = self.groups.iter().flat_map(|group| &group.dots).map(|dot| width_of(&dot.label));
        let left = EDGE + labels.fold(0.0, f64::max) + GAP;
        let right = f64::from(WIDTH) - 2.5 * EDGE;
        for group in &self.groups {
            top = group.draw(sheet, top, left, right);
        }
        // Below the plot, or as far to the left as it needs.
        let middle = ((left + right) / 2.0).min(f64::from(WIDTH) - EDGE - width_of(&self.label) / 2.0);
        sheet.words(&self.label, (middle, top + LABEL_HEIGHT / 2.0), (HPos::Center, VPos::Center));
        top + LABEL_HEIGHT + 4.0
    }
}

impl DotGroup {
    fn draw(&self, sheet: &mut Sheet, top: f64, left: f64, right: f64) -> f64 {
        let middle_left = (HPos::Left, VPos::Center);
        sheet.words(&self.heading, (left, top + HEADING_HEIGHT / 2.0), middle_left);
        let top = top + HEADING_HEIGHT;
        let bottom = top + ROW_HEIGHT * self.dots.len() as f64;
        let x = |position: f64| left + (position - self.axis.low) / (self.axis.high - self.axis.low) * (right - left);
        for &tick in &self.axis.ticks {
            sheet.line(&[(x(tick), top), (x(tick), bottom)], None, GRID, 1.5);
        }
        for level in &self.levels {
            let at = x(self.axis.position(level.value));
            level.draw_line(sheet, &[(at, top), (at, bottom)]);
        }
        sheet.line(&[(left, top), (left, bottom), (right, bottom)], None, BLACK, 2.0);
        let ticks = self.axis.minor_ticks.iter().map(|&tick| (tick, MINOR_TICK));
        for (tick, length) in ticks.chain(self.axis.ticks.iter().map(|&tick| (tick, TICK))) {
            sheet.line(&[(x(tick), bottom), (x(tick), bottom + length)], None, BLACK, 2.0);
        }
        for &tick in &self.axis.ticks {
            sheet.words(&self.axis.tick_label(tick), (x(tick), bottom + TICK + 8.0), (HPos::Center, VPos::Top));
        }
        for (index, dot) in self.dots.iter().enumerate() {
            let y = top + ROW_HEIGHT * (index as f64 + 0.5);
            sheet.words(&dot.label, (EDGE, y), middle_left);
            self.draw_dot(dot, sheet, y, right, &x);
        }
        bottom + AXIS_HEIGHT
    }

    /// A dot with its interval; where it lies beyond the axis, an arrow and the number.
    fn draw_dot(&self, dot: &Dot, sheet: &mut Sheet, y: f64, right: f64, x: &dyn Fn(f64) -> f64) {
        let position = self.axis.position(dot.value);
        if position > self.axis.high {
            let color = dot.look.color;
            sheet.area(vec![(right - 8.0, y - 10.0), (right - 8.0, y + 10.0), (right + 12.0, y)], color);
            sheet.words(&rounded(dot.value), (right - 18.0, y), (HPos::Right, VPos::Center));
            return;
        }
        if let Some((low, high)) = dot.bar {
            let place = |value: f64| {
                let position = self.axis.position(value);
                x(if position.is_finite() { position.clamp(self.axis.low, self.axis.high) } else { self.axis.low })
            };
            sheet.line(&[(place(low), y), (place(high), y)], None, dot.look.color, 3.0);
            for end in [place(low), place(high)] {
                sheet.line(&[(end, y - 7.0), (end, y + 7.0)], None, dot.look.color, 3.0);
            }
        }
        dot.look.draw_mark(sheet, (x(position), y));
    }
}

//! Horizontal bars in groups: one number of several forms of several things, with its spread.

use super::header::Header;
use super::looks::Look;
use super::picture::WIDTH;
use super::picture::sheet::{BLACK, HPos, Sheet, VPos};
use super::picture::typeface::width_of;

/// Geometry, in a figure's own pixels.
const HEADING_HEIGHT: f64 = 62.0;
const ROW_HEIGHT: f64 = 54.0;
const BAR_HEIGHT: f64 = 38.0;
const EDGE: f64 = 16.0;
const GAP: f64 = 14.0;

/// A figure of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
    /// What stands above the bars.
    pub header: Header,
    /// Bars that belong together.
    pub groups: Vec<BarGroup>,
}

/// Bars under one heading.
#[derive(Clone, Debug, PartialEq)]
pub struct BarGroup {
    /// The heading, with the unit of the numbers.
    pub heading: String,
    /// The bars, from above.
    pub bars: Vec<Bar>,
}

/// A number.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is the number of.
    pub label: String,
    /// Its colour.
    pub look: Look,
    /// How long the bar is.
    pub value: f64,
    /// Ends of its whisker.
    pub spread: (f64, f64),
    /// What stands behind the bar.
    pub text: String,
}

impl Bars {
    /// Draws the bars below `top` and returns where they end.
    pub(super) fn draw(&self, sheet: &mut Sheet, top: f64) -> f64 {
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let widest = |text: fn(&Bar) -> &str| bars().map(|bar| width_of(text(bar))).fold(0.0, f64::max);
        // What the words leave.
        let left = EDGE + widest(|bar| &bar.label) + GAP;
        let length = (f64::from(WIDTH) - left - GAP - widest(|bar| &bar.text) - EDGE).max(1.0);
        let longest = bars().map(|bar| bar.value.max(bar.spread.1)).fold(f64::MIN_POSITIVE, f64::max);
        let end = |value: f64| left + value / longest * length;
        let middle_left = (HPos::Left, VPos::Center);
        let mut top = top;
        for group in &self.groups {
            sheet.words(&group.heading, (EDGE, top + HEADING_HEIGHT / 2.0 + 6.0), middle_left);
            top += HEADING_HEIGHT;
            for bar in &group.bars {
                let middle = top + ROW_HEIGHT / 2.0;
                let half = BAR_HEIGHT / 2.0;
                sheet.words(&bar.label, (EDGE, middle), middle_left);
                sheet.rectangle((left, middle - half), (end(bar.value), middle + half), bar.look.color);
                let (low, high) = (end(bar.spread.0), end(bar.spread.1));
                sheet.line(&[(low, middle), (high, middle)], None, BLACK, 2.0);
                for x in [low, high] {
                    sheet.line(&[(x, middle - half / 2.0), (x, middle + half / 2.0)], None, BLACK, 2.0);
                }
                sheet.words(&bar.text, (end(bar.value.max(bar.spread.1)) + GAP, middle), middle_left);
                top += ROW_HEIGHT;
            }
        }
        top + EDGE
    }
}

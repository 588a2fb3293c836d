//! Horizontal bars in groups: one number of several forms of several things, with its spread.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{FONT, FONT_SIZE, PALETTE, WIDTH, text_width};

/// Geometry, in a figure's own pixels.
const HEADING_HEIGHT: u32 = 62;
const ROW_HEIGHT: u32 = 54;
const BAR_HEIGHT: u32 = 38;
const EDGE: u32 = 16;
const GAP: u32 = 14;

/// A figure of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
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
    /// How long the bar is.
    pub value: f64,
    /// Ends of its whisker.
    pub spread: (f64, f64),
    /// What stands behind the bar.
    pub text: String,
}

impl Bars {
    /// Height in its own pixels.
    pub(super) fn height(&self) -> u32 {
        let of_group = |group: &BarGroup| HEADING_HEIGHT + ROW_HEIGHT * group.bars.len() as u32;
        self.groups.iter().map(of_group).sum::<u32>() + EDGE
    }

    /// Draws the bars.
    pub(super) fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let widest = |text: fn(&Bar) -> &str| -> anyhow::Result<u32> {
            bars().try_fold(0, |width, bar| Ok(width.max(text_width(text(bar))?)))
        };
        // What the words leave.
        let left = EDGE + widest(|bar| &bar.label)? + GAP;
        let length = WIDTH.saturating_sub(left + GAP + widest(|bar| &bar.text)? + EDGE).max(1);
        let longest = bars().map(|bar| bar.value.max(bar.spread.1)).fold(f64::MIN_POSITIVE, f64::max);
        let pixel = |value: u32| (value * scale) as i32;
        let end = |value: f64| pixel(left) + (value / longest * f64::from(length * scale)).round() as i32;
        let style = TextStyle::from((FONT, FONT_SIZE * scale).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        let mut top = 0;
        for group in &self.groups {
            // The centre of a line of text lies above that of its lower-case letters.
            let middle = pixel(top + HEADING_HEIGHT / 2 + 6);
            root.draw(&Text::new(group.heading.clone(), (pixel(EDGE), middle), style.clone()))?;
            top += HEADING_HEIGHT;
            for (index, bar) in group.bars.iter().enumerate() {
                let middle = pixel(top + ROW_HEIGHT / 2);
                let half = pixel(BAR_HEIGHT / 2);
                root.draw(&Text::new(bar.label.clone(), (pixel(EDGE), middle + pixel(3)), style.clone()))?;
                let corners = [(pixel(left), middle - half), (end(bar.value), middle + half)];
                root.draw(&Rectangle::new(corners, PALETTE[index % PALETTE.len()].filled()))?;
                let whisker = BLACK.stroke_width(2 * scale);
                let (low, high) = (end(bar.spread.0), end(bar.spread.1));
                root.draw(&PathElement::new(vec![(low, middle), (high, middle)], whisker))?;
                for x in [low, high] {
                    root.draw(&PathElement::new(vec![(x, middle - half / 2), (x, middle + half / 2)], whisker))?;
                }
                let behind = end(bar.value.max(bar.spread.1)) + pixel(GAP);
                root.draw(&Text::new(bar.text.clone(), (behind, middle + pixel(3)), style.clone()))?;
                top += ROW_HEIGHT;
            }
        }
        Ok(())
    }
}

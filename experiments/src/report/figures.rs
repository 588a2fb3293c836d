//! [`Figure`]: what is drawn as lines. Pure; [`super::plots`] draws it.

use plotters::style::RGBColor;

use super::axis::{Axis, Scale};
use super::header::Header;
use super::looks::Look;
use super::picture::sheet::{BLACK, Dashes, Sheet, Spot};
use crate::eval::metric::Unit;

/// Values that differ by more than this factor get a logarithmic axis.
pub(super) const LOG_SPAN: f64 = 3.0;

/// Panels of lines, one or several of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
    /// What stands above the plot.
    pub header: Header,
    /// Panels from left to right, row by row.
    pub panels: Vec<Panel>,
    /// Panels beside each other.
    pub n_columns: usize,
    /// Whether all panels have the same axes: these are labelled at the edges only.
    pub shares_axes: bool,
    /// Where the names of lines stand.
    pub names: Names,
}

/// Where the names of lines stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// In a legend above.
    Above,
    /// At the right ends of lines.
    AtEnds,
}

/// Lines with their axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What tells it from the others; empty of a single one.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Lines with markers.
    pub series: Vec<Series>,
    /// Horizontal lines to compare with.
    pub levels: Vec<Level>,
    /// What lies above the vertical axis, in words: `GPTQ per-channel 850`.
    pub beyond: Vec<String>,
    /// Lines that lie below it as a whole.
    pub below: Vec<String>,
}

/// Points joined by a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Colour, mark and dashes.
    pub look: Look,
    /// Points from left to right.
    pub points: Vec<Point>,
}

/// A point and its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Horizontal value.
    pub x: f64,
    /// Vertical value.
    pub y: f64,
    /// Lower and upper end of its error bar.
    pub bar: Option<(f64, f64)>,
}

/// A line to compare with, or a roof.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Name in the legend.
    pub name: String,
    /// Where it lies.
    pub value: f64,
    /// Horizontal value below which it falls in proportion, where it is the roof of a roofline.
    pub rises_until: Option<f64>,
    /// Its colour.
    pub(crate) color: RGBColor,
    /// Its dashes.
    pub(crate) dashes: Dashes,
}

impl Level {
    /// The first thing to compare with.
    pub(crate) fn base(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, rises_until: None, color: BLACK, dashes: Some((14.0, 9.0)) }
    }

    /// The second.
    pub(crate) fn second(name: impl Into<String>, value: f64) -> Self {
        Self { dashes: Some((3.0, 8.0)), ..Self::base(name, value) }
    }

    /// A method that has one value everywhere, in its colour.
    pub(crate) fn of_method(name: impl Into<String>, value: f64, look: Look) -> Self {
        Self { color: look.color, ..Self::second(name, value) }
    }

    /// A roof that rises until `knee`.
    pub(crate) fn roof(name: impl Into<String>, value: f64, knee: f64) -> Self {
        Self { rises_until: Some(knee), ..Self::base(name, value) }
    }

    /// A line with its look.
    pub(super) fn draw_line(&self, sheet: &mut Sheet, path: &[Spot]) {
        sheet.line(path, self.dashes, self.color, 3.0);
    }

    /// Positions of its corners from left to right; a slope is straight where both axes are logarithmic.
    pub(super) fn corners(&self, x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
        let top = y.position(self.value);
        let right = (x.high, top);
        match self.rises_until.map(|knee| x.position(knee)) {
            None => vec![(x.low, top), right],
            Some(knee) if knee <= x.low => vec![(x.low, top), right],
            // Where the slope leaves the figure below, it begins at the lower edge.
            Some(knee) => {
                let left = x.low.max(knee - (top - y.low));
                vec![(left, top - (knee - left)), (knee.min(x.high), top - (knee - x.high).max(0.0)), right]
                    .into_iter()
                    .filter(|corner| knee <= x.high || corner != &right)
                    .collect()
            }
        }
    }
}

/// The number of a level in its name.
pub(super) fn level_value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::PerToken | Unit::PerWord | Unit::PerAnswer | Unit::NatsPerAnswer => format!("{value:.2}"),
        Unit::FractionOfQuestions => format!("{value:.3}"),
        Unit::NatsPerToken
        | Unit::NatsAtToken
        | Unit::Probability
        | Unit::Fraction
        | Unit::PerByte
        | Unit::BitsPerByte => format!("{value:.4}"),
    }
}

/// Linear, or logarithmic where all is positive and the highest value is more than `log_span` times the lowest.
pub(super) fn scale_of(values: impl Iterator<Item = f64>, log_span: f64) -> Scale {
    let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), y| (min.min(y), max.max(y)));
    if min > 0.0 && max > log_span * min { Scale::Log } else { Scale::Linear }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roof_rises_in_proportion_until_its_knee() {
        let axis = |low: f64, high: f64| Axis { low, high, ..Axis::new("", Scale::Log, std::iter::empty()) };
        let roof = |knee: f64| Level::roof("", 1000.0, knee);
        // Positions are decimal logarithms: the knee at 10 lies at 1, the roof at 3.
        assert_eq!(roof(10.0).corners(&axis(0.0, 2.0), &axis(0.0, 4.0)), [(0.0, 2.0), (1.0, 3.0), (2.0, 3.0)]);
        // It enters through the lower edge.
        assert_eq!(roof(10.0).corners(&axis(-3.0, 2.0), &axis(1.0, 4.0)), [(-1.0, 1.0), (1.0, 3.0), (2.0, 3.0)]);
        // The knee is outside.
        assert_eq!(roof(10.0).corners(&axis(1.5, 2.0), &axis(0.0, 4.0)), [(1.5, 3.0), (2.0, 3.0)]);
        assert_eq!(roof(1000.0).corners(&axis(0.0, 2.0), &axis(0.0, 4.0)), [(0.0, 0.0), (2.0, 2.0)]);
    }

    #[test]
    fn a_log_scale_is_for_positive_values_that_lie_far_apart() {
        let scale = |values: &[f64]| scale_of(values.iter().copied(), LOG_SPAN);
        assert_eq!(scale(&[1.0, 2.9]), Scale::Linear);
        assert_eq!(scale(&[1.0, 3.1]), Scale::Log);
        assert_eq!(scale(&[-0.1, 300.0]), Scale::Linear);
    }
}

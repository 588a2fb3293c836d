//! What is drawn: perplexity and its loss against bits per weight, and the output error of each block. Pure; [`super::plots`] draws.

use itertools::Itertools as _;

use super::axis::{Axis, Scale};
use super::base;
use super::frame::BlockCurve;
use super::row::Row;
use super::tables::slug;

/// Perplexities that differ by more than this factor get a logarithmic axis.
pub(super) const LOG_SPAN: f64 = 3.0;

/// So much more that small values would not be seen, also where some are not positive and must be left out.
const CUT_SPAN: f64 = 1e4;

/// A line plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// File name without extension.
    pub slug: String,
    /// What it shows, in words.
    pub caption: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Lines with markers.
    pub series: Vec<Series>,
    /// Horizontal lines to compare with.
    pub levels: Vec<Level>,
}

/// Points joined by a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Number of its method: chooses colour and shape, so that a method looks alike in every line of a figure.
    pub method: usize,
    /// Number of its grid (and calibration): chooses filling and dashes.
    pub grid: usize,
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

/// A horizontal line, or a roof.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Name in the legend.
    pub name: String,
    /// Where it lies.
    pub value: f64,
    /// Horizontal value below which it falls in proportion, where it is the roof of a roofline.
    pub rises_until: Option<f64>,
}

impl Level {
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

/// Two figures a table that holds quantized rows, a line a method: perplexity against bits per weight, and how much of it
/// is lost to the base model. None where calibrations are compared: their points lie at the same bits.
pub fn perplexity_figures(rows: &[Row]) -> Vec<Figure> {
    if rows.iter().any(|row| row.calibration.is_some()) {
        return Vec::new();
    }
    let figures = |rows: &[Row]| [perplexity_figure(rows), loss_figure(rows)];
    rows.chunk_by(Row::is_comparable).flat_map(figures).flatten().collect()
}

fn perplexity_figure(rows: &[Row]) -> Option<Figure> {
    let level = |name: &str, value: f64| Level { name: format!("{name} ({value:.2})"), value, rises_until: None };
    let base = rows.iter().find(|row| row.grid.is_none()).map(|row| level(&base::level_name(row), row.perplexity));
    let floor = rows.first()?.floor.map(|floor| level("entropy floor", floor));
    let shown = Shown {
        slug: "perplexity",
        label: "perplexity per token",
        caption: "perplexity against stored bits per weight. Bars: 95% interval over windows, not paired; the loss to the \
                  base model has the narrower paired ones.",
        levels: base.into_iter().chain(floor).collect(),
    };
    against_bits(rows, shown, |row| Some((row.perplexity, row.ci_low.zip(row.ci_high))))
}

fn loss_figure(rows: &[Row]) -> Option<Figure> {
    let shown = Shown {
        slug: "perplexity-loss",
        label: "perplexity above the base model",
        caption: "perplexity above that of the base model, against stored bits per weight. Bars: 95% interval of the difference, \
                  paired over windows.",
        levels: Vec::new(),
    };
    against_bits(rows, shown, |row| Some((row.delta_fp?, row.delta_fp_ci_low.zip(row.delta_fp_ci_high))))
}

/// What a figure against bits per weight shows.
struct Shown {
    slug: &'static str,
    label: &'static str,
    caption: &'static str,
    levels: Vec<Level>,
}

/// `value` of each quantized row and its interval against bits per weight; `None` if no row has one.
fn against_bits(
    rows: &[Row],
    shown: Shown,
    value: impl Fn(&Row) -> Option<(f64, Option<(f64, f64)>)>,
) -> Option<Figure> {
    let first = rows.first()?;
    let mut series: Vec<Series> = Vec::new();
    for row in rows.iter().filter(|row| row.grid.is_some()) {
        let Some((y, bar)) = value(row).filter(|(y, _)| y.is_finite()) else { continue };
        let Some(x) = row.bits_per_weight else { continue };
        let point = Point { x, y, bar };
        match series.iter_mut().find(|series| series.name == row.method) {
            Some(series) => series.points.push(point),
            None => {
                series.push(Series { name: row.method.clone(), method: series.len(), grid: 0, points: vec![point] })
            }
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    if series.is_empty() {
        return None;
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let levels = || shown.levels.iter().map(|level| level.value);
    let heights = || points().map(|point| point.y).chain(levels());
    let ends = || points().filter_map(|point| point.bar).flat_map(|(low, high)| [low, high]);
    let all_positive = heights().chain(ends()).all(|y| y > 0.0);
    let (min, max) = if all_positive { span(heights().chain(ends())) } else { span(heights()) };
    let is_log = max > min * if all_positive { LOG_SPAN } else { CUT_SPAN };
    let (scale, unit) = if is_log { (Scale::Log, " (log scale)") } else { (Scale::Linear, "") };
    // A difference that is nothing or less has no logarithm.
    let n_before = points().count();
    if is_log {
        for series in &mut series {
            series.points.retain(|point| point.y > 0.0);
            for bar in series.points.iter_mut().filter_map(|point| point.bar.as_mut()) {
                bar.0 = if bar.0 > 0.0 { bar.0 } else { min };
            }
        }
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let hidden = match n_before - points().count() {
        0 => String::new(),
        n => format!(" Not shown: {n} at zero or below."),
    };
    let bars = points().filter_map(|point| point.bar).flat_map(|(low, high)| [low, high]);
    let values: Vec<f64> = points().map(|point| point.y).chain(bars).chain(levels()).collect();
    let (limited_slug, limited) = if first.limited {
        let said = format!(" LIMITED RUN: first {} of {} windows.", first.n_windows, first.n_windows_total);
        (format!("-first-{}", first.n_windows), said)
    } else {
        (String::new(), String::new())
    };
    Some(Figure {
        slug: format!("{}-{}{limited_slug}", shown.slug, slug(&first.setting())),
        caption: format!(
            "{} on {} (protocol {}, {} tokens a window): {}{hidden}{limited}{}",
            first.model,
            first.dataset,
            first.protocol,
            first.seq_len,
            shown.caption,
            base::sentence(rows)
        ),
        x: Axis::new("bits per weight, scales and zero points counted", Scale::Linear, points().map(|point| point.x)),
        y: Axis::new(&format!("{}{unit}", shown.label), scale, values.into_iter()),
        series,
        levels: shown.levels,
    })
}

/// Lines that can still be told apart.
const MAX_CURVES: usize = 14;

/// One figure a model: relative output error against block index, a line a cell. Where these are too many lines, one a grid
/// (and calibration).
pub fn block_figures(curves: &[BlockCurve]) -> Vec<Figure> {
    let models = curves.iter().map(|curve| curve.model.as_str()).unique();
    let of_model = |model: &str| {
        let curves: Vec<&BlockCurve> = curves.iter().filter(|curve| curve.model == model).collect();
        if curves.len() <= MAX_CURVES {
            return vec![block_figure(model, model, &curves)];
        }
        let settings: Vec<String> = curves.iter().map(|curve| curve.setting()).collect();
        let of_setting = |setting: &str| {
            let curves: Vec<&BlockCurve> = curves.iter().copied().filter(|curve| curve.setting() == setting).collect();
            block_figure(model, &format!("{model} {setting}"), &curves)
        };
        settings.iter().unique().map(|setting| of_setting(setting)).collect()
    };
    models.flat_map(of_model).collect()
}

fn block_figure(model: &str, name: &str, curves: &[&BlockCurve]) -> Figure {
    let methods: Vec<&str> = curves.iter().map(|curve| curve.method.as_str()).unique().collect();
    let settings: Vec<String> = curves.iter().map(|curve| curve.setting()).unique().collect();
    let series = |curve: &&BlockCurve| Series {
        name: format!("{} {}", curve.method, curve.setting()),
        method: methods.iter().position(|name| *name == curve.method).unwrap_or(0),
        grid: settings.iter().position(|name| *name == curve.setting()).unwrap_or(0),
        points: curve
            .relative_errors
            .iter()
            .map(|&(block_idx, y)| Point { x: block_idx as f64, y, bar: None })
            .collect(),
    };
    let values = || curves.iter().flat_map(|curve| &curve.relative_errors);
    Figure {
        slug: format!("block-error-{}", slug(name)),
        caption: format!(
            "{model}: squared error of each block's output on the calibration sequences, over the squared output of the \
             full-precision block on the same input."
        ),
        x: Axis::new("block index", Scale::Linear, values().map(|value| value.0 as f64)).with_whole_ticks(),
        y: Axis::new("relative output error (log scale)", Scale::Log, values().map(|value| value.1)),
        series: curves.iter().map(series).collect(),
        levels: Vec::new(),
    }
}

/// The lowest positive value and the highest.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(min, max), y| (if y > 0.0 { f64::min(min, y) } else { min }, f64::max(max, y)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roof_rises_in_proportion_until_its_knee() {
        let axis = |low: f64, high: f64| Axis { low, high, ..Axis::new("", Scale::Log, std::iter::empty()) };
        let roof = |knee: f64| Level { name: String::new(), value: 1000.0, rises_until: Some(knee) };
        // Positions are decimal logarithms: the knee at 10 lies at 1, the roof at 3.
        assert_eq!(roof(10.0).corners(&axis(0.0, 2.0), &axis(0.0, 4.0)), [(0.0, 2.0), (1.0, 3.0), (2.0, 3.0)]);
        // It enters through the lower edge.
        assert_eq!(roof(10.0).corners(&axis(-3.0, 2.0), &axis(1.0, 4.0)), [(-1.0, 1.0), (1.0, 3.0), (2.0, 3.0)]);
        // The knee is outside.
        assert_eq!(roof(10.0).corners(&axis(1.5, 2.0), &axis(0.0, 4.0)), [(1.5, 3.0), (2.0, 3.0)]);
        assert_eq!(roof(1000.0).corners(&axis(0.0, 2.0), &axis(0.0, 4.0)), [(0.0, 0.0), (2.0, 2.0)]);
    }

    #[test]
    fn too_many_lines_become_a_figure_a_grid() {
        let curve = |method: usize, grid: &str| BlockCurve {
            model: "m".into(),
            method: format!("method {method}"),
            grid: grid.into(),
            calibration: None,
            draw: None,
            relative_errors: vec![(0, 0.1), (1, 0.2)],
        };
        let curves = |n: usize| -> Vec<BlockCurve> {
            ["W4 g64", "W3 g64"].iter().flat_map(|grid| (0..n).map(move |method| curve(method, grid))).collect()
        };
        let slugs = |n| block_figures(&curves(n)).into_iter().map(|figure| figure.slug).collect::<Vec<_>>();
        assert_eq!(slugs(7), ["block-error-m"]);
        assert_eq!(slugs(8), ["block-error-m-w4-g64", "block-error-m-w3-g64"]);
        assert_eq!(block_figures(&curves(8))[1].series.len(), 8);
    }
}

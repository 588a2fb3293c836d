//! What is drawn: perplexity against bits per weight, and the output error of each block. Pure; [`super::plots`] draws.

use super::axis::{Axis, Scale};
use super::frame::BlockCurve;
use super::row::Row;
use super::tables::slug;

/// Perplexities that differ by more than this factor get a logarithmic axis.
const LOG_SPAN: f64 = 3.0;

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

/// A horizontal line.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Name in the legend.
    pub name: String,
    /// Where it lies.
    pub value: f64,
}

/// One figure a table that holds quantized rows: perplexity against bits per weight, a line a method.
pub fn perplexity_figures(rows: &[Row]) -> Vec<Figure> {
    let together = |a: &Row, b: &Row| {
        (&a.model, &a.dataset, &a.protocol, a.seq_len, a.n_windows, a.n_windows_total)
            == (&b.model, &b.dataset, &b.protocol, b.seq_len, b.n_windows, b.n_windows_total)
    };
    rows.chunk_by(together).filter_map(perplexity_figure).collect()
}

fn perplexity_figure(rows: &[Row]) -> Option<Figure> {
    let first = rows.first()?;
    let quantized = || rows.iter().filter(|row| row.grid.is_some() && row.perplexity.is_finite());
    let mut series: Vec<Series> = Vec::new();
    for row in quantized() {
        let point = Point { x: row.bits_per_weight, y: row.perplexity, bar: row.ci_low.zip(row.ci_high) };
        match series.iter_mut().find(|series| series.name == row.method) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: row.method.clone(), points: vec![point] }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    if series.is_empty() {
        return None;
    }
    let full_precision = rows.iter().find(|row| row.grid.is_none());
    let level = |name: &str, value: f64| Level { name: format!("{name} ({value:.2})"), value };
    let levels: Vec<Level> = full_precision
        .map(|row| level("full precision", row.perplexity))
        .into_iter()
        .chain(first.floor.map(|floor| level("entropy floor", floor)))
        .collect();
    let points = || series.iter().flat_map(|series| &series.points);
    let values = || points().flat_map(|p| [Some(p.y), p.bar.map(|bar| bar.0), p.bar.map(|bar| bar.1)]).flatten();
    let all = || values().chain(levels.iter().map(|level| level.value));
    let (min, max) = all().fold((f64::INFINITY, 0.0), |(min, max), y| (f64::min(min, y), f64::max(max, y)));
    let (scale, unit) = if max > LOG_SPAN * min {
        (Scale::Log, "perplexity per token (log scale)")
    } else {
        (Scale::Linear, "perplexity per token")
    };
    let limited = if first.limited {
        format!(" LIMITED RUN: first {} of {} windows.", first.n_windows, first.n_windows_total)
    } else {
        String::new()
    };
    Some(Figure {
        slug: format!(
            "perplexity-{}{}",
            slug(&format!("{} {} {} {}", first.model, first.dataset, first.protocol, first.seq_len)),
            if first.limited { format!("-first-{}", first.n_windows) } else { String::new() }
        ),
        caption: format!(
            "{} on {} (protocol {}, {} tokens a window): perplexity against stored bits per weight. Bars: 95% interval over windows, \
             not paired; the table has the narrower paired differences.{limited}",
            first.model, first.dataset, first.protocol, first.seq_len
        ),
        x: Axis::new("bits per weight, scales and zero points counted", Scale::Linear, points().map(|point| point.x)),
        y: Axis::new(unit, scale, all()),
        series,
        levels,
    })
}

/// One figure a model: relative output error against block index, a line a cell.
pub fn block_figures(curves: &[BlockCurve]) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut models: Vec<&str> = Vec::new();
    for curve in curves {
        if !models.contains(&curve.model.as_str()) {
            models.push(&curve.model);
        }
    }
    for model in models {
        let of_model = || curves.iter().filter(|curve| curve.model == model);
        let values = || of_model().flat_map(|curve| &curve.relative_errors);
        let point = |&(block_idx, error): &(usize, f64)| Point { x: block_idx as f64, y: error, bar: None };
        figures.push(Figure {
            slug: format!("block-error-{}", slug(model)),
            caption: format!(
                "{model}: squared error of each block's output on the calibration sequences, over the squared output of the \
                 full-precision block on the same input."
            ),
            x: Axis::new("block index", Scale::Linear, values().map(|value| value.0 as f64)).with_whole_ticks(),
            y: Axis::new("relative output error (log scale)", Scale::Log, values().map(|value| value.1)),
            series: of_model()
                .map(|curve| Series { name: curve.label.clone(), points: curve.relative_errors.iter().map(point).collect() })
                .collect(),
            levels: Vec::new(),
        });
    }
    figures
}

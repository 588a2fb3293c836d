//! Perplexity against a number of the calibration, a line a method: how much calibration a method needs. Pure;
//! [`super::plots`] draws.

use itertools::Itertools as _;

use super::axis::{Axis, Scale};
use super::base;
use super::figures::{Figure, LOG_SPAN, Point, Series};
use super::row::Row;
use super::tables::slug;
use crate::config::LinesX;

/// Values that lie further apart than this factor get a logarithmic axis.
const LOG_X_SPAN: f64 = 4.0;

/// One figure for each setting whose numbers may be compared, of the rows that looked at a calibration.
pub fn line_figures(rows: &[Row], x: LinesX) -> Vec<Figure> {
    rows.chunk_by(Row::is_comparable).filter_map(|rows| figure(rows, x)).collect()
}

fn figure(rows: &[Row], x: LinesX) -> Option<Figure> {
    let first = rows.first()?;
    let x_of = |row: &Row| match x {
        LinesX::CalibrationSequences => row.n_calibration_sequences,
        LinesX::CalibrationSeqLen => row.calibration_seq_len,
    };
    let shown: Vec<(&Row, f64)> = rows
        .iter()
        .filter(|row| row.propagation.is_some() && row.perplexity.is_finite())
        .filter_map(|row| Some((row, x_of(row)? as f64)))
        .collect();
    let lines: Vec<(&str, &str)> = shown.iter().map(|(row, _)| line_of(row)).unique().collect();
    let methods: Vec<&str> = lines.iter().map(|line| line.0).unique().collect();
    let grids: Vec<&str> = lines.iter().map(|line| line.1).unique().collect();
    let mut series = Vec::new();
    for &(method, grid) in &lines {
        let of_line = || shown.iter().filter(|(row, _)| line_of(row) == (method, grid));
        let index = |names: &[&str], name| names.iter().position(|known| *known == name).unwrap_or(0);
        let line = |name: String, grid_style: usize, points: Vec<Point>| Series {
            name,
            method: index(&methods, method),
            grid: grid_style,
            points: sorted(points),
        };
        let name = if grids.len() > 1 { format!("{method} {grid}") } else { method.to_owned() };
        // Even styles are filled marks; a published line has the hollow ones of the same method.
        let style = 2 * index(&grids, grid);
        let published =
            of_line().filter_map(|(row, x)| Some(Point { x: *x, y: row.reference?, bar: None })).collect::<Vec<_>>();
        series.push(line(name.clone(), style, of_line().map(|(row, x)| point(row, *x)).collect()));
        if !published.is_empty() {
            series.push(line(format!("{name}, published"), style + 1, published));
        }
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let (low, high) = span(points().map(|point| point.x))?;
    let bars = points().filter_map(|point| point.bar).flat_map(|(low, high)| [low, high]);
    let values: Vec<f64> = points().map(|point| point.y).chain(bars).collect();
    let (min, max) = span(values.iter().copied())?;
    let (y_scale, unit) = if max > LOG_SPAN * min { (Scale::Log, " (log scale)") } else { (Scale::Linear, "") };
    let x_scale = if high > LOG_X_SPAN * low { Scale::Log } else { Scale::Linear };
    let (word, label) = match x {
        LinesX::CalibrationSequences => ("calibration-sequences", "calibration sequences"),
        LinesX::CalibrationSeqLen => ("calibration-seq-len", "tokens of a calibration sequence"),
    };
    Some(Figure {
        slug: format!("{word}-{}", slug(&first.setting())),
        caption: caption(rows, label),
        x: Axis::new(label, x_scale, points().map(|point| point.x)).with_ticks_at(points().map(|point| point.x)),
        y: Axis::new(&format!("perplexity per token{unit}"), y_scale, values.into_iter()),
        series,
        levels: Vec::new(),
    })
}

/// Method and grid, whose points are joined.
fn line_of(row: &Row) -> (&str, &str) {
    (&row.method, row.grid.as_deref().unwrap_or_default())
}

/// A row as a point; its bar is the interval of the difference to the base model, which is paired over windows.
fn point(row: &Row, x: f64) -> Point {
    let bar = row.delta_fp.zip(row.delta_fp_ci_low).zip(row.delta_fp_ci_high);
    let bar = bar.map(|((delta, low), high)| (row.perplexity - delta + low, row.perplexity - delta + high));
    Point { x, y: row.perplexity, bar }
}

fn sorted(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

/// Lowest and highest; `None` of nothing.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span: Option<(f64, f64)>, value| {
        let (low, high) = span.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

fn caption(rows: &[Row], label: &str) -> String {
    let first = &rows[0];
    let limited = match first.limited {
        true => format!(" LIMITED RUN: first {} of {} windows.", first.n_windows, first.n_windows_total),
        false => String::new(),
    };
    let without = rows.iter().filter(|row| row.propagation.is_none());
    let levels: Vec<String> = without
        .map(|row| {
            format!(" {} {}: {:.3}.", row.method, row.grid.as_deref().unwrap_or_default(), row.perplexity)
                .replace(" :", ":")
        })
        .collect();
    format!(
        "{} on {} (protocol {}, {} tokens a window): perplexity against {label}. Bars: 95% interval of the difference to the \
         base model, paired over windows.{}{limited}{}",
        first.model,
        first.dataset,
        first.protocol,
        first.seq_len,
        levels.concat(),
        base::sentence(rows)
    )
}

//! A metric against a number of the calibration, a line a method: how much calibration a method needs. What needs none is
//! a level. Pure; [`super::plots`] draws.

use itertools::Itertools as _;

use super::axis::{Axis, Scale};
use super::base;
use super::caption::{items, length};
use super::figures::{Figure, LOG_SPAN, Level, Names, Panel, Point, Series, level_value, scale_of};
use super::header::{Header, limited};
use super::looks::{Look, looks};
use super::row::Row;
use super::series::{self, Named};
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
        .filter(|row| row.propagation.is_some() && row.value.is_finite())
        .filter_map(|row| Some((row, x_of(row)? as f64)))
        .collect();
    let series = series(&shown);
    let points = || series.iter().flat_map(|series| &series.points);
    let (low, high) = span(points().map(|point| point.x))?;
    let levels = levels(rows);
    let bars = points().filter_map(|point| point.bar).flat_map(|(low, high)| [low, high]);
    let levelled = levels.iter().map(|level| level.value);
    let values: Vec<f64> = points().map(|point| point.y).chain(bars).chain(levelled).collect();
    let y_scale = scale_of(values.iter().copied(), LOG_SPAN);
    let unit = if y_scale == Scale::Log { ", log scale" } else { "" };
    let x_scale = if high > LOG_X_SPAN * low { Scale::Log } else { Scale::Linear };
    let (word, label) = match x {
        LinesX::CalibrationSequences => ("calibration-sequences", "calibration sequences"),
        LinesX::CalibrationSeqLen => ("calibration-seq-len", "tokens of a calibration sequence"),
    };
    let panel = Panel {
        title: String::new(),
        x: Axis::new(label, x_scale, points().map(|point| point.x)).with_ticks_at(points().map(|point| point.x)),
        y: Axis::new(&format!("{}{unit}", first.quantity().words()), y_scale, values.into_iter()),
        series,
        levels,
        beyond: Vec::new(),
        below: Vec::new(),
    };
    Some(Figure {
        slug: format!("{word}-{}", slug(&format!("{}{}", first.setting(), first.unusual_metric()))),
        caption: caption(rows, label),
        header: Header::of_rows(rows),
        panels: vec![panel],
        n_columns: 1,
        shares_axes: true,
        names: Names::Above,
    })
}

/// A line a method, and one of its published numbers.
fn series(shown: &[(&Row, f64)]) -> Vec<Series> {
    let names = line_names(&shown.iter().map(|(row, _)| *row).collect::<Vec<_>>());
    let looks = looks(&names);
    let mut series = Vec::new();
    for (name, look) in names.iter().map(|(_, name)| name).zip(looks).unique_by(|(name, _)| *name) {
        let of_line = || shown.iter().zip(&names).filter(|(_, (_, other))| other == name).map(|(shown, _)| shown);
        let published = |(row, x): &(&Row, f64)| Some(Point { x: *x, y: row.reference?, bar: None });
        let published: Vec<Point> = of_line().filter_map(published).collect();
        series.push(line(name.clone(), look, of_line().map(|(row, x)| point(row, *x)).collect()));
        if !published.is_empty() {
            series.push(line(format!("{name}, published"), look.published(), published));
        }
    }
    series
}

/// Registry name, and method with what differs; with the grid where there are several. The calibration is the axis.
fn line_names(rows: &[&Row]) -> Vec<(String, String)> {
    let without_calibration: Vec<Row> = rows.iter().map(|row| Row { calibration: None, ..(*row).clone() }).collect();
    let all: Vec<&dyn Named> = without_calibration.iter().map(|row| row as &dyn Named).collect();
    let one_grid = all.iter().map(|one| one.grid()).all_equal();
    let name = |one: &&dyn Named| {
        let name = series::name(*one, &all);
        (one.key().to_owned(), if one_grid { name } else { format!("{name} {}", one.grid()) })
    };
    all.iter().map(name).collect()
}

fn line(name: String, look: Look, mut points: Vec<Point>) -> Series {
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    Series { name, look, points }
}

/// The base model and what looks at no activations, such as round to nearest: the same at every calibration.
fn levels(rows: &[Row]) -> Vec<Level> {
    let without = rows.iter().filter(|row| row.propagation.is_none() && row.value.is_finite());
    let level = |row: &Row| match &row.grid {
        None => Level::base(
            format!("{} ({})", base::level_name(row), level_value(row.quantity().unit, row.value)),
            row.value,
        ),
        Some(grid) => {
            let look = Look::of_method(row.key(), 0, 1);
            Level::of_method(
                format!("{} {grid} ({})", row.method, level_value(row.quantity().unit, row.value)),
                row.value,
                look,
            )
        }
    };
    without.map(level).collect()
}

/// A row as a point; its bar is the interval of the difference to the base model, which is paired over windows.
fn point(row: &Row, x: f64) -> Point {
    let bar = row.delta_fp.zip(row.delta_fp_ci_low).zip(row.delta_fp_ci_high);
    let bar = bar.map(|((delta, low), high)| (row.value - delta + low, row.value - delta + high));
    Point { x, y: row.value, bar }
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
    format!(
        "{} on {} (protocol {}, {}): {} against {label}. Bars: 95% interval of the difference to the \
         base model, paired over {}.{}{}",
        first.model,
        first.dataset,
        first.protocol,
        length(first),
        first.quantity().label,
        items(first),
        limited(first).map(|said| format!(" {said}.")).unwrap_or_default(),
        base::sentence(rows)
    )
}

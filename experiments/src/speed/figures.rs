//! Speed as figures: rooflines and speed-ups of kernels (as Figure 3 of the AWQ paper), tokens a second of models (as its
//! Figure 9).

use itertools::Itertools as _;

use super::rows::{DecodeRow, KernelRow};
use super::tables::{DENSE, Dense, threads};
use crate::report::axis::{Axis, Scale};
use crate::report::bars::{Bar, BarGroup, Bars};
use crate::report::figures::{Figure, Level, Point, Series};
use crate::report::tables::slug;

/// Two figures a place: a thread count, or a GPU.
pub fn kernel_figures(rows: &[KernelRow]) -> Vec<Figure> {
    let of_place = |place: String| {
        let rows: Vec<&KernelRow> = rows.iter().filter(|row| row.place() == place).collect();
        let speedup = DENSE.iter().find_map(|baseline| speedup(&rows, &place, baseline));
        std::iter::once(roofline(&rows, &place)).chain(speedup)
    };
    rows.iter().map(KernelRow::place).unique().flat_map(of_place).collect()
}

fn roofline(rows: &[&KernelRow], place: &str) -> Figure {
    let intensity = |row: &KernelRow| 2.0 * (row.batch_size * row.n_out * row.n_in) as f64 / row.bytes as f64;
    let series = series(rows, rows, intensity, |row| row.gflop_per_s);
    let memory = median(rows.iter().map(|row| row.copy_gb_per_s.max(row.read_gb_per_s)));
    let roof = |name: &str, of: &str| {
        let peaks = rows.iter().filter(|row| row.form.contains(of)).filter_map(|row| row.peak_gflop_per_s);
        let peak = median(peaks);
        // Below the knee, memory delivers so many bytes a second, each worth `x` operations.
        peak.is_finite().then(|| Level {
            name: format!("{name} ({peak:.0} GFLOP/s)"),
            value: peak,
            rises_until: Some(peak / memory),
        })
    };
    let roofs = match rows[0].gpu {
        Some(_) => [roof("large dense product", ""), None],
        None => [roof("peak of f32", "f32"), roof("peak of int8", "int8")],
    };
    let levels: Vec<Level> = roofs.into_iter().flatten().collect();
    let points = || series.iter().flat_map(|series| &series.points);
    let heights = points().flat_map(|point| [point.bar.map_or(point.y, |bar| bar.0), point.y]);
    Figure {
        slug: slug(&format!("roofline {place}")),
        caption: format!(
            "Roofline, {place}: operations per second of products against operations per byte of stored weight; batch size grows to the \
             right. Points: geometric mean over {} weights, bars: lowest to highest. Memory delivers {memory:.1} GB/s.",
            n_shapes(rows)
        ),
        x: Axis::new("operations per byte of weight (log scale)", Scale::Log, points().map(|point| point.x)),
        y: Axis::new("GFLOP/s (log scale)", Scale::Log, heights.chain(levels.iter().map(|level| level.value))),
        series,
        levels,
    }
}

/// How much faster all are than one of [`DENSE`]; `None` where it was not measured.
fn speedup(rows: &[&KernelRow], place: &str, baseline: &Dense) -> Option<Figure> {
    let Dense { kernel, speedup: value, .. } = baseline;
    let others: Vec<&KernelRow> =
        rows.iter().copied().filter(|row| row.kernel != *kernel && value(row).is_some()).collect();
    if others.is_empty() {
        return None;
    }
    let baseline = kernel.replace('-', " ");
    let series = series(&others, rows, |row| row.batch_size as f64, |row| value(row).unwrap_or(f64::NAN));
    let points = || series.iter().flat_map(|series| &series.points);
    let heights =
        points().flat_map(|point| [point.bar.map_or(point.y, |bar| bar.0), point.bar.map_or(point.y, |bar| bar.1)]);
    Some(Figure {
        slug: slug(&format!("kernel speed-up {place}")),
        caption: format!(
            "How much faster than {baseline}, {place}, against the rows of activations. Points: geometric mean over {} weights, \
             bars: lowest to highest.",
            n_shapes(rows)
        ),
        x: Axis::new("batch size (log scale)", Scale::Log, points().map(|point| point.x))
            .with_ticks_at(points().map(|point| point.x)),
        y: Axis::new(&format!("speed-up over {baseline} (log scale)"), Scale::Log, heights.chain([1.0])),
        levels: vec![Level { name: baseline, value: 1.0, rises_until: None }],
        series,
    })
}

/// A line a form of `rows`, a point a batch size: geometric means over the weights. A form looks alike in every figure of `all`.
fn series(
    rows: &[&KernelRow],
    all: &[&KernelRow],
    x: impl Fn(&KernelRow) -> f64,
    y: impl Fn(&KernelRow) -> f64,
) -> Vec<Series> {
    let kinds: Vec<String> = all.iter().map(|row| row.kernel.clone()).unique().collect();
    let grids: Vec<String> = all.iter().filter(|row| row.bits.is_some()).map(|row| grid(row)).unique().collect();
    let line = |form: &str| {
        let of_form: Vec<&KernelRow> = rows.iter().copied().filter(|row| row.form == form).collect();
        let mut batch_sizes: Vec<u64> = of_form.iter().map(|row| row.batch_size).collect();
        batch_sizes.sort_unstable();
        batch_sizes.dedup();
        let point = |&batch_size: &u64| {
            let at: Vec<&KernelRow> = of_form.iter().copied().filter(|row| row.batch_size == batch_size).collect();
            let values: Vec<f64> = at.iter().map(|row| y(row)).collect();
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            Point {
                x: geometric_mean(at.iter().map(|row| x(row))),
                y: geometric_mean(values.into_iter()),
                bar: Some((low, high)),
            }
        };
        let first = of_form.first();
        let index = |names: &[String], name: Option<String>| {
            names.iter().position(|known| Some(known) == name.as_ref()).unwrap_or(0)
        };
        Series {
            name: form.to_owned(),
            method: index(&kinds, first.map(|row| row.kernel.clone())),
            // Even styles are filled marks.
            grid: 2 * index(&grids, first.map(|row| grid(row))),
            points: batch_sizes.iter().map(point).collect(),
        }
    };
    rows.iter().map(|row| row.form.as_str()).unique().map(line).collect()
}

/// `4 g128`.
fn grid(row: &KernelRow) -> String {
    format!("{} {}", row.bits.unwrap_or_default(), row.granularity.as_deref().unwrap_or_default())
}

fn n_shapes(rows: &[&KernelRow]) -> usize {
    rows.iter().map(|row| (&row.shape, row.n_out, row.n_in)).unique().count()
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value.ln(), n + 1));
    (sum / f64::from(n)).exp()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A figure a thread count: decode steps a second, a group a model.
pub fn decode_figures(rows: &[DecodeRow]) -> Vec<Bars> {
    rows.chunk_by(|a, b| a.threads == b.threads)
        .map(|rows| {
            let count = threads(rows[0].threads);
            let bar = |row: &DecodeRow| Bar {
                label: row.form.clone(),
                value: row.decode_tokens_per_s,
                spread: (row.decode_lower_quartile, row.decode_upper_quartile),
                text: format!("{:.0} ({:.1}x)", row.decode_tokens_per_s, row.decode_speedup),
            };
            let group = |rows: &[DecodeRow]| BarGroup {
                heading: format!("{}, {count}: decode tokens per second", rows[0].model),
                bars: rows.iter().map(bar).collect(),
            };
            Bars {
                slug: slug(&format!("decode {count}")),
                caption: format!(
                    "Decode tokens per second after a prompt of {} tokens, {count}, and how much that is faster than dense f32. Bars: \
                     medians of {} repetitions, whiskers: quartiles.",
                    rows[0].prompt_tokens, rows[0].n_repeats
                ),
                groups: rows.chunk_by(|a, b| a.model == b.model).map(group).collect(),
            }
        })
        .collect()
}

//! Speed as figures: rooflines and speed-ups of kernels (as Figure 3 of the AWQ paper), a panel a weight; tokens a second of
//! models (as its Figure 9).

use itertools::Itertools as _;

use super::rows::{DecodeRow, KernelRow};
use super::tables::{DENSE, Dense, threads};
use crate::report::axis::{Axis, Scale};
use crate::report::bars::{Bar, BarGroup, Bars};
use crate::report::figures::{Figure, Level, Names, Panel, Point, Series};
use crate::report::header::Header;
use crate::report::looks::Look;
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

/// Operations a second against operations a byte, of a weight a panel.
///
/// The machine is not equally fast at all times, and its bounds were measured with every comparison. A point stands as far
/// below the roof drawn, which is of medians, as it was below the roof of its own minute.
fn roofline(rows: &[&KernelRow], place: &str) -> Figure {
    let bandwidth = median(rows.iter().map(|row| own_bandwidth(row)));
    let peak_of =
        |kernel: &str| median(rows.iter().filter(|row| row.kernel == kernel).filter_map(|row| row.peak_gflop_per_s));
    let y = |row: &KernelRow| {
        let x = intensity(row);
        let roof = |bandwidth: f64, peak: Option<f64>| (bandwidth * x).min(peak.unwrap_or(f64::INFINITY));
        let peak = row.peak_gflop_per_s.map(|_| peak_of(&row.kernel));
        Some(row.gflop_per_s / roof(own_bandwidth(row), row.peak_gflop_per_s) * roof(bandwidth, peak))
    };
    let roof = |name: &str, is_of: &dyn Fn(&KernelRow) -> bool| {
        let peak = median(rows.iter().filter(|row| is_of(row)).filter_map(|row| row.peak_gflop_per_s));
        // Below the knee, memory delivers so many bytes a second, each worth `x` operations.
        peak.is_finite().then(|| Level::roof(format!("{name}: {peak:.0} GFLOP/s"), peak, peak / bandwidth))
    };
    let second = |level: Level| Level { dashes: Some((3.0, 8.0)), ..level };
    let levels: Vec<Level> = match rows[0].gpu {
        Some(_) => roof("large dense product", &|_| true).into_iter().collect(),
        None => {
            let f32 = roof("peak of f32", &|row| row.form.contains("f32"));
            let int8 = roof("peak of int8", &|row| row.form.contains("int8")).map(second);
            f32.into_iter().chain(int8).collect()
        }
    };
    let all_points = || rows.iter().filter_map(|row| y(row)).chain(levels.iter().map(|level| level.value));
    let x_axis =
        Axis::new("operations per byte of weight, log scale", Scale::Log, rows.iter().map(|row| intensity(row)));
    let y_axis = Axis::new("GFLOP/s, log scale", Scale::Log, all_points());
    let panels = panels(rows, rows, &intensity, &y, &x_axis.with_ticks(4), &y_axis.with_ticks(5), &levels);
    Figure {
        slug: slug(&format!("roofline {place}")),
        caption: format!(
            "Roofline, {place}, a panel a weight: operations per second of products against operations per byte of stored weight; \
             batch size grows to the right. Points: medians, each as far below the roof drawn as it was below the roof measured in \
             its own minute; a form whose arithmetic has no measured peak (bf16) is held against memory alone. Memory delivers \
             {bandwidth:.1} GB/s, the median over minutes."
        ),
        header: header(rows, place, "roofline"),
        n_columns: panels.len().min(2),
        panels,
        shares_axes: true,
        names: Names::Above,
    }
}

fn own_bandwidth(row: &KernelRow) -> f64 {
    row.copy_gb_per_s.max(row.read_gb_per_s)
}

fn intensity(row: &KernelRow) -> f64 {
    2.0 * (row.batch_size * row.n_out * row.n_in) as f64 / row.bytes as f64
}

/// How much faster all are than one of [`DENSE`], of a weight a panel; `None` where it was not measured.
fn speedup(rows: &[&KernelRow], place: &str, baseline: &Dense) -> Option<Figure> {
    let Dense { kernel, speedup: value, .. } = baseline;
    let others: Vec<&KernelRow> =
        rows.iter().copied().filter(|row| row.kernel != *kernel && value(row).is_some()).collect();
    if others.is_empty() {
        return None;
    }
    let baseline = kernel.replace('-', " ");
    let batch_sizes = || others.iter().map(|row| row.batch_size as f64);
    let x_axis = Axis::new("batch size, log scale", Scale::Log, batch_sizes()).with_ticks_at(batch_sizes());
    let heights = others.iter().filter_map(|row| value(row)).chain([1.0]);
    let y_axis = Axis::new(&format!("speed-up over {baseline}, log scale"), Scale::Log, heights).with_ticks(5);
    let levels = [Level::base(baseline.clone(), 1.0)];
    let panels = panels(&others, rows, &|row| row.batch_size as f64, &|row| value(row), &x_axis, &y_axis, &levels);
    Some(Figure {
        slug: slug(&format!("kernel speed-up {place}")),
        caption: format!(
            "How much faster than {baseline}, {place}, against the rows of activations, a panel a weight. Points: ratios of medians."
        ),
        header: header(rows, place, &format!("speed-up over {baseline}")),
        n_columns: panels.len().min(2),
        panels,
        shares_axes: true,
        names: Names::Above,
    })
}

fn header(rows: &[&KernelRow], place: &str, what: &str) -> Header {
    let cpus = rows.iter().filter(|row| row.gpu.is_none()).map(|row| row.cpu.as_str()).unique().join(", ");
    let machine = if cpus.is_empty() { String::new() } else { format!("{cpus}, ") };
    let granularity = shared_granularity(rows).map(|name| format!("; groups: {name}")).unwrap_or_default();
    Header::new(format!("{machine}{place}: {what}{granularity}"))
}

/// The granularity of all packed forms, where they have one.
fn shared_granularity<'a>(rows: &[&'a KernelRow]) -> Option<&'a str> {
    let mut names = rows.iter().filter_map(|row| row.granularity.as_deref()).unique();
    names.next().filter(|_| names.next().is_none())
}

/// A panel a weight, with a line a form of `rows` and a point a batch size. A form looks alike in every figure of `all`.
fn panels(
    rows: &[&KernelRow],
    all: &[&KernelRow],
    x: &dyn Fn(&KernelRow) -> f64,
    y: &dyn Fn(&KernelRow) -> Option<f64>,
    x_axis: &Axis,
    y_axis: &Axis,
    levels: &[Level],
) -> Vec<Panel> {
    let kinds: Vec<&str> = all.iter().map(|row| row.kernel.as_str()).unique().collect();
    let grids: Vec<String> = all.iter().filter(|row| row.bits.is_some()).map(|row| grid(row)).unique().collect();
    let shared = shared_granularity(all).map(|name| format!(" {name}")).unwrap_or_default();
    let index = |names: &[&str], name: &str| names.iter().position(|known| *known == name).unwrap_or(0);
    let grid_names: Vec<&str> = grids.iter().map(String::as_str).collect();
    let line = |of_form: Vec<&KernelRow>| {
        let first = of_form[0];
        let point = |row: &&KernelRow| Some(Point { x: x(row), y: y(row)?, bar: None });
        let mut points: Vec<Point> = of_form.iter().filter_map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series {
            name: first.form.strip_suffix(shared.as_str()).unwrap_or(&first.form).to_owned(),
            look: Look::of_kind(index(&kinds, &first.kernel), index(&grid_names, &grid(first))),
            points,
        }
    };
    let panel = |shape: (&String, u64, u64)| {
        let here = || rows.iter().copied().filter(|row| (&row.shape, row.n_out, row.n_in) == shape);
        let forms = here().map(|row| row.form.as_str()).unique();
        Panel {
            title: shape.0.clone(),
            x: x_axis.clone(),
            y: y_axis.clone(),
            series: forms.map(|form| line(here().filter(|row| row.form == form).collect())).collect(),
            levels: levels.to_vec(),
            beyond: Vec::new(),
            below: Vec::new(),
        }
    };
    rows.iter().map(|row| (&row.shape, row.n_out, row.n_in)).unique().map(panel).collect()
}

/// `4 g128`.
fn grid(row: &KernelRow) -> String {
    format!("{} {}", row.bits.unwrap_or_default(), row.granularity.as_deref().unwrap_or_default())
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
            let forms: Vec<&str> = rows.iter().map(|row| row.form.as_str()).unique().collect();
            let index = |row: &DecodeRow| forms.iter().position(|form| *form == row.form).unwrap_or(0);
            let bar = |row: &DecodeRow| Bar {
                label: row.form.clone(),
                look: Look::of_kind(index(row), 0),
                value: row.decode_tokens_per_s,
                spread: (row.decode_lower_quartile, row.decode_upper_quartile),
                text: format!("{:.0} ({:.1}x)", row.decode_tokens_per_s, row.decode_speedup),
            };
            let group = |rows: &[DecodeRow]| BarGroup {
                heading: rows[0].model.clone(),
                bars: rows.iter().map(bar).collect(),
            };
            Bars {
                slug: slug(&format!("decode {count}")),
                caption: format!(
                    "Decode tokens per second after a prompt of {} tokens, {count}, and how much that is faster than with dense weights. Bars: \
                     medians of {} repetitions, whiskers: quartiles.",
                    rows[0].prompt_tokens, rows[0].n_repeats
                ),
                header: Header::new(format!(
                    "{}, {count}: decode tokens per second after a prompt of {}",
                    rows.iter().map(|row| row.cpu.as_str()).unique().join(", "),
                    rows[0].prompt_tokens
                )),
                groups: rows.chunk_by(|a, b| a.model == b.model).map(group).collect(),
            }
        })
        .collect()
}

//! Speed as tables: one a weight and thread count, one for all models of a thread count.

use itertools::Itertools as _;

use super::rows::{DecodeRow, KernelRow};
use crate::report::caption::commits;
use crate::report::tables::{Align, Column, Table, TableRow, missing, slug};

/// A column and the text of its cells.
type Layout<R> = (&'static str, Align, fn(&R) -> String);

/// A dense form that others are compared with.
pub(super) struct Dense {
    heading: &'static str,
    /// Name of its kernel.
    pub(super) kernel: &'static str,
    /// How many times faster a row is.
    pub(super) speedup: fn(&KernelRow) -> Option<f64>,
    cell: fn(&KernelRow) -> String,
}

/// The baseline of figures is the first that was measured.
pub(super) const DENSE: [Dense; 4] = [
    Dense {
        heading: "x cuBLAS",
        kernel: "cublas-f16",
        speedup: |row| row.speedup_cublas,
        cell: |row| times(row.speedup_cublas),
    },
    Dense { heading: "x f16", kernel: "dense-f16", speedup: |row| row.speedup_f16, cell: |row| times(row.speedup_f16) },
    Dense { heading: "x f32", kernel: "dense-f32", speedup: |row| row.speedup_f32, cell: |row| times(row.speedup_f32) },
    Dense {
        heading: "x bf16",
        kernel: "dense-bf16",
        speedup: |row| row.speedup_bf16,
        cell: |row| times(row.speedup_bf16),
    },
];

/// A table a weight and a place, a section a batch size.
pub fn kernel_tables(rows: &[KernelRow]) -> Vec<Table> {
    let same =
        |a: &KernelRow, b: &KernelRow| (&a.shape, a.n_out, a.n_in, a.place()) == (&b.shape, b.n_out, b.n_in, b.place());
    const LAYOUT: [Layout<KernelRow>; 8] = [
        ("batch", Align::Right, |row| row.batch_size.to_string()),
        ("weights", Align::Left, |row| row.form.clone()),
        ("MB", Align::Right, |row| significant(1e-6 * row.bytes as f64)),
        ("ms [quartiles]", Align::Right, |row| spread(row.ms, row.ms_lower_quartile, row.ms_upper_quartile)),
        ("GB/s", Align::Right, |row| format!("{:.1}", row.gb_per_s)),
        ("% of copy", Align::Right, |row| percent(Some(row.share_of_copy))),
        ("% of peak", Align::Right, |row| percent(row.share_of_peak)),
        ("bound", Align::Left, |row| row.bound.clone().unwrap_or_else(missing)),
    ];
    rows.chunk_by(same)
        .map(|rows| {
            let first = &rows[0];
            let title = format!("{} [{}, {}], {}", first.shape, first.n_out, first.n_in, first.place());
            let measured = DENSE.iter().filter(|dense| rows.iter().any(|row| (dense.speedup)(row).is_some()));
            let speedups: Vec<Layout<KernelRow>> =
                measured.map(|dense| (dense.heading, Align::Right, dense.cell)).collect();
            let headings: Vec<&str> = speedups.iter().map(|layout| layout.0).collect();
            let peaks = if first.gpu.is_some() { "The peak is that of a large dense product" } else { "Peaks are those of the kernel's own arithmetic" };
            let caption = format!(
                "{title}: time of a product with packed and dense weights that come from memory, the forms taking turns; medians of \
                 {} {}. {}: how much faster than the dense weight. Measured here: copying {}, reading {} GB/s. {peaks}. {}{}. {}.",
                first.n_calls,
                if first.gpu.is_some() { "queues of calls" } else { "calls" },
                headings.join(", "),
                range(rows.iter().map(|row| row.copy_gb_per_s)),
                range(rows.iter().map(|row| row.read_gb_per_s)),
                first.gpu.as_ref().map_or_else(String::new, |_| gpus(rows) + ". "),
                cpus(rows.iter().map(|row| row.cpu.as_str())),
                commits(rows.iter().map(|row| (row.commit.as_str(), row.dirty == Some(true))))
            );
            let layout = [LAYOUT.as_slice(), &speedups].concat();
            table(&format!("speed {title}"), caption, &layout, rows, |a, b| a.batch_size != b.batch_size)
        })
        .collect()
}

/// A table a thread count, a section a model.
pub fn decode_tables(rows: &[DecodeRow]) -> Vec<Table> {
    const LAYOUT: &[Layout<DecodeRow>] = &[
        ("model", Align::Left, |row| row.model.clone()),
        ("weights", Align::Left, |row| row.form.clone()),
        ("MB", Align::Right, |row| significant(1e-6 * row.step_bytes as f64)),
        ("cache MB", Align::Right, |row| significant(1e-6 * row.cache_bytes as f64)),
        ("prefill tokens/s", Align::Right, |row| {
            spread(row.prefill_tokens_per_s, row.prefill_lower_quartile, row.prefill_upper_quartile)
        }),
        ("decode tokens/s", Align::Right, |row| {
            spread(row.decode_tokens_per_s, row.decode_lower_quartile, row.decode_upper_quartile)
        }),
        ("GB/s", Align::Right, |row| format!("{:.1}", row.gb_per_s)),
        ("% of copy", Align::Right, |row| percent(Some(row.share_of_copy))),
        ("x dense", Align::Right, |row| format!("{:.2}", row.decode_speedup)),
    ];
    rows.chunk_by(|a, b| a.threads == b.threads)
        .map(|rows| {
            let first = &rows[0];
            let caption = format!(
                "Prefill of {} tokens and {} single-token steps after it, {}, the forms taking turns; medians [quartiles] of {} \
                 repetitions. MB, cache MB: weights, keys and values that a step reads; GB/s is of both, copying reaches {} here. x dense: decoding against dense weights. {}. {}.",
                first.prompt_tokens,
                first.new_tokens,
                threads(first.threads),
                first.n_repeats,
                range(rows.iter().map(|row| row.copy_gb_per_s)),
                cpus(rows.iter().map(|row| row.cpu.as_str())),
                commits(rows.iter().map(|row| (row.commit.as_str(), row.dirty == Some(true))))
            );
            let slug = format!("speed decode {}", threads(first.threads));
            table(&slug, caption, LAYOUT, rows, |a, b| a.model != b.model)
        })
        .collect()
}

fn table<R>(
    title: &str,
    caption: String,
    layout: &[Layout<R>],
    rows: &[R],
    starts_section: impl Fn(&R, &R) -> bool,
) -> Table {
    let cells = |row: &R| layout.iter().map(|(_, _, cell)| cell(row)).collect();
    let table_row = |(index, row): (usize, &R)| TableRow {
        cells: cells(row),
        emphasized: Vec::new(),
        starts_section: index > 0 && starts_section(&rows[index - 1], row),
    };
    Table {
        slug: slug(title),
        caption,
        columns: layout.iter().map(|&(heading, align, _)| Column { heading: heading.to_owned(), align }).collect(),
        rows: rows.iter().enumerate().map(table_row).collect(),
        emphasis: None,
        notes: Vec::new(),
    }
}

/// The GPU with driver and toolkit, or all of them where rows come from several.
fn gpus(rows: &[KernelRow]) -> String {
    let systems = rows.iter().map(|row| row.gpu_system.as_deref().unwrap_or("GPU, driver unknown"));
    systems.unique().join("; ")
}

/// The processor, or all of them where rows come from several.
fn cpus<'a>(of: impl Iterator<Item = &'a str>) -> String {
    let cpus: Vec<&str> = of.unique().collect();
    match cpus.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("Rows of several processors: {}", several.join("; ")),
    }
}

/// `1 thread`, `2 threads`.
pub(super) fn threads(n: u64) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

/// `1.23 [1.20, 1.31]`.
fn spread(median: f64, lower: f64, upper: f64) -> String {
    format!("{} [{}, {}]", significant(median), significant(lower), significant(upper))
}

/// Three digits or more.
fn significant(value: f64) -> String {
    let decimals = (2 - value.abs().log10().floor() as i32).clamp(0, 6);
    format!("{value:.*}", decimals as usize)
}

/// `4.39`.
fn times(speedup: Option<f64>) -> String {
    speedup.map_or_else(missing, |speedup| format!("{speedup:.2}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(missing, |share| format!("{:.0}", 100.0 * share))
}

/// `47.1`, or `45.0 to 48.2` where it changed from one comparison to the next.
fn range(values: impl Iterator<Item = f64>) -> String {
    let (low, high) =
        values.fold((f64::INFINITY, 0.0), |(low, high), value| (f64::min(low, value), f64::max(high, value)));
    let (low, high) = (format!("{low:.1}"), format!("{high:.1}"));
    if low == high { low } else { format!("{low} to {high}") }
}

//! Speed as tables: one a weight and thread count, one for all models of a thread count.

use std::collections::BTreeSet;

use super::rows::{DecodeRow, KernelRow};
use crate::report::tables::{Align, Column, Table, TableRow, missing, slug};

/// A column and the text of its cells.
type Layout<R> = (&'static str, Align, fn(&R) -> String);

/// A table a weight and thread count, a section a batch size.
pub fn kernel_tables(rows: &[KernelRow]) -> Vec<Table> {
    let same =
        |a: &KernelRow, b: &KernelRow| (&a.shape, a.n_out, a.n_in, a.threads) == (&b.shape, b.n_out, b.n_in, b.threads);
    const LAYOUT: &[Layout<KernelRow>] = &[
        ("batch", Align::Right, |row| row.batch_size.to_string()),
        ("weights", Align::Left, |row| row.form.clone()),
        ("MB", Align::Right, |row| significant(1e-6 * row.bytes as f64)),
        ("ms [quartiles]", Align::Right, |row| spread(row.ms, row.ms_lower_quartile, row.ms_upper_quartile)),
        ("GB/s", Align::Right, |row| format!("{:.1}", row.gb_per_s)),
        ("% of copy", Align::Right, |row| percent(Some(row.share_of_copy))),
        ("% of peak", Align::Right, |row| percent(row.share_of_peak)),
        ("bound", Align::Left, |row| row.bound.clone().unwrap_or_else(missing)),
        ("x f32", Align::Right, |row| format!("{:.2}", row.speedup_f32)),
        ("x bf16", Align::Right, |row| format!("{:.2}", row.speedup_bf16)),
    ];
    rows.chunk_by(same)
        .map(|rows| {
            let first = &rows[0];
            let title = format!("{} [{}, {}], {}", first.shape, first.n_out, first.n_in, threads(first.threads));
            let caption = format!(
                "{title}: time of a product with packed and dense weights that come from memory, the forms taking turns; medians of \
                 {} calls. x f32, x bf16: how much faster than the dense weight. Measured here: copying {}, reading {} GB/s. Peaks are \
                 those of the kernel's own arithmetic. {}. {}.",
                first.n_calls,
                range(rows.iter().map(|row| row.copy_gb_per_s)),
                range(rows.iter().map(|row| row.read_gb_per_s)),
                first.cpu,
                commits(rows.iter().map(|row| (row.commit.as_str(), row.dirty)))
            );
            table(&format!("speed {title}"), caption, LAYOUT, rows, |a, b| a.batch_size != b.batch_size)
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
        ("x f32", Align::Right, |row| format!("{:.2}", row.decode_speedup)),
    ];
    rows.chunk_by(|a, b| a.threads == b.threads)
        .map(|rows| {
            let first = &rows[0];
            let caption = format!(
                "Prefill of {} tokens and {} single-token steps after it, {}, the forms taking turns; medians [quartiles] of {} \
                 repetitions. MB, cache MB: weights, keys and values that a step reads; GB/s is of both, copying reaches {} here. x f32: decoding against dense weights. {}. {}.",
                first.prompt_tokens,
                first.new_tokens,
                threads(first.threads),
                first.n_repeats,
                range(rows.iter().map(|row| row.copy_gb_per_s)),
                first.cpu,
                commits(rows.iter().map(|row| (row.commit.as_str(), row.dirty)))
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

/// `Commit 9840d36`, or all of them.
fn commits<'a>(all: impl Iterator<Item = (&'a str, bool)>) -> String {
    let short = |(commit, dirty): (&str, bool)| {
        commit.chars().take(7).collect::<String>() + if dirty { " (dirty)" } else { "" }
    };
    let commits: BTreeSet<String> = all.map(short).collect();
    let word = if commits.len() == 1 { "Commit" } else { "Commits" };
    format!("{word} {}", commits.into_iter().collect::<Vec<_>>().join(", "))
}

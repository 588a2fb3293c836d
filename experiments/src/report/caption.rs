//! The words under a table: what its numbers are, how sure they are, and where they come from.

use std::collections::BTreeSet;

use super::base;
use super::draws;
use super::pivot::is_base;
use super::row::Row;
use super::tables::{decimals, grouped, number};
use crate::config::{LmEvalGenerationProtocol, LmEvalProtocol, LmEvalTaskProtocol};
use crate::eval::metric::{Direction, Needs};
use crate::stats::Estimator;

/// The caption of a table of comparable rows.
pub(super) fn of_rows(rows: &[Row]) -> String {
    let row = &rows[0];
    let limited = limits(&[row]);
    let (protocol, arithmetic) = (protocol(row), arithmetic(row));
    let quantity = row.quantity();
    let floor = row.floor.map_or_else(String::new, |floor| {
        let (label, better) = (quantity.label, quantity.direction.better());
        let floor = number(floor, decimals(quantity.unit, floor));
        format!(" The process that wrote the text has a {label} of {floor}: no model is expected to be {better}.")
    });
    let noise = noise_floor(rows);
    let base = base::sentence(rows) + &draws::sentence(rows);
    format!(
        "{limited}{} on {}: {}, protocol {} ({protocol}); {} {}, {} tokens {}. \
         {}{arithmetic}{floor}{noise}{base} \
         Bits per weight count scales and zero points. {}.",
        row.model,
        row.dataset,
        quantity.words(),
        row.protocol,
        grouped(row.n_windows),
        items(row),
        grouped(row.n_tokens),
        if items(row) == PROBLEMS { "written" } else { "scored" },
        uncertainty(rows),
        commits(rows.iter().flat_map(Row::versions)),
    )
}

/// What `±`, brackets and ratios are, in words.
fn uncertainty(rows: &[Row]) -> String {
    let to = baseline(rows).map_or_else(String::new, |baseline| format!(" or {baseline}"));
    let (quantity, base) = (rows[0].quantity(), base::full_name(rows));
    let (comparison, paired) = match quantity.estimator {
        Estimator::ExpOfMean => {
            let what = format!("ln of the {} over that of {base}{to}", quantity.label);
            (format!("An ln ratio is {what}, in nats per token: 0.01 is about 1%."), "ratios")
        }
        Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => {
            let (what, better) = (format!("{} minus that of {base}{to}", quantity.label), quantity.direction.better());
            (format!("A difference is the {what}; {better} is better."), "differences")
        }
    };
    let over_tokens = rows[0].protocol == "llama-cpp";
    let error = match (over_tokens, rows[0].block_len) {
        (true, _) => "± is the standard error over tokens taken as independent, as llama.cpp prints it. ",
        (false, Some(_)) => "± is the standard error. ",
        (false, None) => "",
    };
    let rows: Vec<&Row> = rows.iter().collect();
    let intervals = match rows[0].block_len {
        Some(_) => {
            let items = items(rows[0]);
            format!("Brackets are 95% intervals, {paired} paired over {items}: {}. ", resampling(&rows))
        }
        None if quantity.estimator == Estimator::Largest => "A largest value has no interval. ".to_owned(),
        None => format!("A single {} has no interval. ", items(rows[0]).trim_end_matches('s')),
    };
    let questions = if rows.iter().any(|row| row.questions_lost.is_some()) {
        format!(
            " Lost : won counts the questions that {base} alone answers right, and this row alone; p is McNemar's exact test."
        )
    } else {
        String::new()
    };
    format!("{error}{intervals}{comparison}{questions}")
}

/// How intervals were made: `stationary bootstrap of 148 windows in blocks of 1.0 to 5.3 on average (length by
/// Politis and White)`, where the range is over all intervals of `rows`.
pub(super) fn resampling(rows: &[&Row]) -> String {
    let range = |low: String, high: String| if low == high { low } else { format!("{low} to {high}") };
    let n_windows = || rows.iter().map(|row| row.n_windows);
    let windows = range(grouped(n_windows().min().unwrap_or(0)), grouped(n_windows().max().unwrap_or(0)));
    let block_lens = |row: &&Row| [row.block_len, row.log_ratio_fp_block_len, row.log_ratio_baseline_block_len];
    let block_lens = || rows.iter().flat_map(block_lens).flatten();
    let (shortest, longest) = (block_lens().fold(f64::INFINITY, f64::min), block_lens().fold(0.0, f64::max));
    let blocks = range(format!("{shortest:.1}"), format!("{longest:.1}"));
    let items: BTreeSet<&str> = rows.iter().map(|row| items(row)).collect();
    let items = items.into_iter().collect::<Vec<_>>().join(" or ");
    format!("stationary bootstrap of {windows} {items} in blocks of {blocks} on average (length by Politis and White)")
}

/// What the protocol of a row does, in words.
pub(super) fn protocol(row: &Row) -> String {
    match row.protocol.as_str() {
        "gptq" => format!("non-overlapping windows of {} tokens, all but the first token of each scored", row.seq_len),
        "llama-cpp" => format!("chunks of {} tokens, the second half of each scored", row.seq_len),
        LmEvalProtocol::NAME => format!(
            "each document apart, all its tokens scored behind a prefix token and at most {} others, the BOS of the \
             tokenizer, if it adds one, among them",
            row.seq_len
        ),
        LmEvalProtocol::NAME_WITHOUT_BOS => {
            format!(
                "each document apart, all its tokens scored behind a prefix token and at most {} others",
                row.seq_len
            )
        }
        name if name.starts_with(LmEvalTaskProtocol::NAME) => {
            format!(
                "the log-likelihood of each answer behind its question, of which at most {} tokens are seen{}",
                row.seq_len,
                asked_how(name, LmEvalTaskProtocol::NAME)
            )
        }
        name if name.starts_with(LmEvalGenerationProtocol::NAME) => {
            format!(
                "what the model writes on each problem, at most {} tokens with it{}",
                row.seq_len,
                asked_how(name, LmEvalGenerationProtocol::NAME)
            )
        }
        _ => format!("windows of {} tokens", row.seq_len),
    }
}

/// `, 5-shot`: what the name of a protocol says beyond `of`.
fn asked_how(name: &str, of: &str) -> String {
    name.strip_prefix(of).and_then(|rest| rest.strip_prefix('-')).map_or_else(String::new, |how| format!(", {how}"))
}

/// What samples of written texts are of.
const PROBLEMS: &str = "problems";

/// How many tokens a model sees: `512 tokens a window`; of documents and questions the most.
pub(super) fn length(row: &Row) -> String {
    let n_tokens = grouped(row.seq_len);
    match items(row) {
        "windows" => format!("{n_tokens} tokens a window"),
        _ => format!("at most {n_tokens} tokens seen"),
    }
}

/// What samples are of.
pub(super) fn items(row: &Row) -> &'static str {
    match row.protocol.as_str() {
        LmEvalProtocol::NAME | LmEvalProtocol::NAME_WITHOUT_BOS => "documents",
        name if name.starts_with(LmEvalTaskProtocol::NAME) => "questions",
        name if name.starts_with(LmEvalGenerationProtocol::NAME) => PROBLEMS,
        _ => "windows",
    }
}

/// How matrix products were computed, where it is not f32; a sentence after a blank.
pub(super) fn arithmetic(row: &Row) -> String {
    match row.arithmetic.as_str() {
        "f32" => String::new(),
        "f16-tensors" => " Weights and activations in f16, sums, norms and softmax in f32.".to_owned(),
        "bf16-tensors" => " Weights and activations in bf16, sums, norms and softmax in f32.".to_owned(),
        "bf16x3" => " In the scoring pass numbers of f32 were multiplied as sums of three of bf16, where the CPU has tiles (AMX); sums \
                     in f32."
            .to_owned(),
        "int16" => " In the scoring pass codes were multiplied as integers with activations in 16 bits, a scale a token and group, where a \
                    kernel takes them; other products in f32."
            .to_owned(),
        other => format!(" Matrix products of the scoring pass in {other}, sums in f32."),
    }
}

/// What stands for a base model that is held against itself; a sentence after a blank, where one is.
pub(super) fn noise_floor<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let is_apart = |row: &Row| match row.quantity().direction {
        Direction::LowerIsBetter => row.value > 0.0,
        Direction::HigherIsBetter => row.value < 1.0,
    };
    let is_from_itself = |row: &Row| is_base(row) && row.metric.metric().needs() == Needs::BaseLogits;
    let base = rows.into_iter().find(|row| is_from_itself(row) && is_apart(row));
    base.map_or_else(String::new, |row| {
        format!(" The row of {} is its products in bf16 against those in f32: the noise floor.", row.method)
    })
}

/// `Commit 9840d36 (dirty)`, or all of them where numbers come from several: of pairs of a commit and whether it was dirty.
pub(crate) fn commits<'a>(of: impl IntoIterator<Item = (&'a str, bool)>) -> String {
    let short = |(commit, dirty): (&str, bool)| {
        commit.chars().take(7).collect::<String>() + if dirty { " (dirty)" } else { "" }
    };
    let commits: BTreeSet<String> = of.into_iter().map(short).collect();
    let word = if commits.len() == 1 { "Commit" } else { "Commits" };
    format!("{word} {}", commits.into_iter().collect::<Vec<_>>().join(", "))
}

/// The method that rows are compared with, where one of them is.
pub(super) fn baseline(rows: &[Row]) -> Option<&str> {
    rows.iter().find_map(|row| row.baseline.as_deref())
}

/// `LIMITED RUN: first 20 of 595 windows of wikitext2-test, of 2,083 of sotu-test. `: the texts of which not all was scored.
pub(super) fn limits(measured: &[&Row]) -> String {
    let mut parts: Vec<(u64, u64, &str, &str)> = Vec::new();
    for row in measured.iter().filter(|row| row.limited) {
        let part = (row.n_windows, row.n_windows_total, row.dataset.as_str(), items(row));
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    let mut text = String::new();
    let mut said = None;
    for (n, total, dataset, items) in &parts {
        text += match said {
            None => "LIMITED RUN: ",
            Some(_) => ", ",
        };
        if said != Some(n) {
            text += &format!("first {} ", grouped(*n));
        }
        let word = if said.is_none() { items } else { "" };
        text += &format!("of {} {word}{}of {dataset}", grouped(*total), if word.is_empty() { "" } else { " " });
        said = Some(n);
    }
    if text.is_empty() { text } else { text + ". " }
}

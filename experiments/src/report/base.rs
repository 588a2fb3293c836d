//! What the base model is, in words: the model that methods start from, as its file stores it. It may itself be quantized.

use awq_core::model::{Storage, StoredShare};
use itertools::Itertools as _;

use super::row::Row;

/// A model stored in at least so many bits a weight is full precision.
const FULL_PRECISION_BITS: f64 = 16.0;

/// The row's name in tables: `FP`; `base (GGUF Q4_1)` of a quantized file; `base model` where the record does not tell.
pub(super) fn label(storage: Option<&Storage>) -> String {
    match storage {
        Some(storage) if storage.bits_per_weight >= FULL_PRECISION_BITS => "FP".to_owned(),
        Some(storage) => format!("base ({})", storage.types.iter().map(|share| &share.name).join(" + ")),
        None => "base model".to_owned(),
    }
}

/// What stands for the grid of a checkpoint of another program: `AWQ W4 g128`, `GGUF Q4_K + GGUF Q6_K`.
pub(super) fn grid_of(storage: &Storage) -> String {
    // Packed checkpoints have them in their name.
    let groups = |share: &StoredShare| {
        let size = share.group_size.map(|size| format!("g{size}"));
        size.filter(|size| share.name.split_whitespace().all(|word| word != size))
            .map_or_else(String::new, |size| format!(" {size}"))
    };
    match storage.types.as_slice() {
        [only] => format!("{}{}", only.name, groups(only)),
        types => types.iter().map(|share| &share.name).join(" + "),
    }
}

/// `BF16`; `GGUF Q4_K in groups of 32 (86% of the weights), GGUF Q6_K in groups of 16 (14%)`.
pub(super) fn types(storage: &Storage) -> String {
    let total: u64 = storage.types.iter().map(|share| share.n_weights).sum();
    let text = |(index, share): (usize, &StoredShare)| {
        let groups = share.group_size.map_or_else(String::new, |size| format!(" in groups of {size}"));
        let percent = 100.0 * share.n_weights as f64 / total as f64;
        let part = match index {
            _ if storage.types.len() == 1 => String::new(),
            0 => format!(" ({percent:.0}% of the weights)"),
            _ => format!(" ({percent:.0}%)"),
        };
        format!("{}{groups}{part}", share.name)
    };
    storage.types.iter().enumerate().map(text).join(", ")
}

/// Whether the base model of a row is known to be stored in full precision.
fn is_full(row: &Row) -> bool {
    row.base_bits_per_weight.is_some_and(|bits| bits >= FULL_PRECISION_BITS)
}

/// The level that figures draw of an unquantized row: `full precision`, `base (GGUF Q4_1, 5.0 bits)`.
pub(super) fn level_name(row: &Row) -> String {
    match row.base_bits_per_weight {
        _ if is_full(row) && row.method == "FP" => "full precision".to_owned(),
        Some(bits) if row.method.ends_with(')') => {
            format!("{}, {} bits)", row.method.trim_end_matches(')'), short(bits))
        }
        Some(bits) => format!("{} ({} bits)", row.method, short(bits)),
        None => format!("{} (storage not on record)", row.method),
    }
}

/// The base model in a heading.
pub(super) fn short_name(rows: &[Row]) -> &'static str {
    if rows.iter().all(is_full) { "FP" } else { "base" }
}

/// The base model in a sentence.
pub(super) fn full_name(rows: &[Row]) -> &'static str {
    if rows.iter().all(is_full) { "full precision (FP)" } else { "the base model" }
}

/// What the base models of `rows` are, a sentence after a blank.
pub(super) fn sentence<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let mut models: Vec<(&str, Vec<String>)> = Vec::new();
    for row in rows {
        let position = models.iter().position(|(model, _)| *model == row.model);
        let index = position.unwrap_or_else(|| {
            models.push((&row.model, Vec::new()));
            models.len() - 1
        });
        let said = storage_of(row);
        let known = &mut models[index].1;
        if let Some(said) = said.filter(|said| !known.contains(said)) {
            known.push(said);
        }
    }
    let said = |known: &[String]| match known {
        [] => "is stored in a way that is not on record".to_owned(),
        known => known.join(" or "),
    };
    match models.as_slice() {
        [] => String::new(),
        [(_, first)] if first.is_empty() => " How the base model is stored is not on record.".to_owned(),
        [(_, first), others @ ..] if others.iter().all(|(_, other)| other == first) => {
            let subject = if others.is_empty() { "The base model" } else { "Each base model" };
            format!(" {subject} {}.", said(first))
        }
        models => {
            let each = models.iter().map(|(model, known)| format!("{model} {}", said(known))).join("; ");
            format!(" Base models: {each}.")
        }
    }
}

/// `is stored in BF16`.
fn storage_of(row: &Row) -> Option<String> {
    let (types, bits) = (row.base_storage.as_ref()?, row.base_bits_per_weight?);
    Some(match is_full(row) {
        true => format!("is stored in {types}"),
        false => format!(
            "is itself a quantized file ({types}; {} bits per weight), from whose values methods start",
            short(bits)
        ),
    })
}

/// `5.0`, `6.56`.
fn short(bits: f64) -> String {
    let tenths = format!("{bits:.1}");
    if (bits - tenths.parse::<f64>().unwrap_or(bits)).abs() < 1e-9 { tenths } else { format!("{bits:.2}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::{done, plan, records, references, storage};
    use super::*;
    use crate::config::{TableAxis, TableSpec, TableValue};
    use crate::eval::registry::MetricKey;
    use crate::record::Record;
    use crate::report::{terminal_table, write_report};

    #[track_caller]
    fn check(types: &[(&str, u64, f64, Option<usize>)], expected_label: &str, expected_types: &str) {
        let share = |&(name, n_weights, bits_per_weight, group_size): &(&str, u64, f64, Option<usize>)| StoredShare {
            name: name.to_owned(),
            n_weights,
            bits_per_weight,
            group_size,
        };
        let types: Vec<StoredShare> = types.iter().map(share).collect();
        let bits = types.iter().map(|share| share.n_weights as f64 * share.bits_per_weight).sum::<f64>();
        let bits_per_weight = bits / types.iter().map(|share| share.n_weights as f64).sum::<f64>();
        let storage = Storage { types, bits_per_weight };
        assert_eq!((label(Some(&storage)).as_str(), super::types(&storage).as_str()), (expected_label, expected_types));
    }

    #[test]
    fn the_grid_of_a_checkpoint_says_its_groups_once() {
        let grid = |name: &str| {
            let share =
                StoredShare { name: name.to_owned(), n_weights: 10, bits_per_weight: 4.6, group_size: Some(32) };
            grid_of(&Storage { types: vec![share], bits_per_weight: 4.6 })
        };
        assert_eq!(grid("AWQ W4"), "AWQ W4 g32");
        assert_eq!(grid("packed AWQ W4 g32"), "packed AWQ W4 g32");
    }

    #[test]
    fn a_base_model_is_called_what_its_file_is() {
        check(&[("BF16", 10, 16.0, None)], "FP", "BF16");
        check(&[("F32", 10, 32.0, None)], "FP", "F32");
        check(&[("GGUF Q4_1", 10, 5.0, Some(32))], "base (GGUF Q4_1)", "GGUF Q4_1 in groups of 32");
        check(
            &[("GGUF Q4_K", 86, 4.5, Some(32)), ("GGUF Q6_K", 14, 6.5625, Some(16))],
            "base (GGUF Q4_K + GGUF Q6_K)",
            "GGUF Q4_K in groups of 32 (86% of the weights), GGUF Q6_K in groups of 16 (14%)",
        );
        // A few weights in fewer bits, and the whole is no longer full precision.
        check(
            &[("GGUF F16", 99, 16.0, None), ("GGUF Q8_0", 1, 8.5, Some(32))],
            "base (GGUF F16 + GGUF Q8_0)",
            "GGUF F16 (99% of the weights), GGUF Q8_0 in groups of 32 (1%)",
        );
        assert_eq!(label(None), "base model");
    }

    #[test]
    fn bits_keep_the_digits_that_they_need() {
        assert_eq!([5.0, 8.5, 6.5625, 4.83].map(short), ["5.0", "8.5", "6.56", "4.83"]);
    }

    /// Every text that a report of `records` consists of, by file name, and what the terminal shows.
    fn pages(records: &[Record]) -> Vec<(String, String)> {
        let table = TableSpec {
            title: "As a paper has it".into(),
            rows: vec![TableAxis::Method],
            columns: vec![TableAxis::Grid],
            values: vec![TableValue::Metric(MetricKey::USUAL)],
        };
        let plan = crate::plan::Plan { table: Some(table), ..plan(records, references()) };
        let folder = tempfile::tempdir().unwrap();
        let files = write_report(folder.path(), &plan, records, &[]).unwrap();
        let svgs = files.figures.iter().filter(|path| path.extension().is_some_and(|extension| extension == "svg"));
        let texts = [&files.tables[0], &files.tables[1], &files.html, &files.csv, &files.paper_tables[0]];
        let page = |path: &std::path::PathBuf| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
        };
        let mut pages: Vec<_> = texts.into_iter().chain(svgs).map(page).collect();
        pages.push(("terminal".into(), terminal_table(&plan, records, &[]).unwrap()));
        pages
    }

    #[track_caller]
    fn check_pages(records: &[Record], expected: &[(&str, &[&str])]) {
        let pages = pages(records);
        for (file, words) in expected {
            let (_, page) = pages.iter().find(|(name, _)| name == file).unwrap_or_else(|| panic!("no {file}"));
            let flowing = page.split_whitespace().collect::<Vec<_>>().join(" ");
            for words in *words {
                assert!(flowing.contains(words), "{file} lacks {words:?}:\n{page}");
            }
        }
    }

    #[test]
    fn a_quantized_base_model_is_named_in_every_format() {
        let mut records = records();
        for record in &mut records[..5] {
            done(record).storage = Some(storage("GGUF Q4_1", 5.0, Some(32)));
        }
        let said = "The base model is itself a quantized file (GGUF Q4_1 in groups of 32; 5.0 bits per weight)";
        let latex = said.replace('_', "\\_");
        check_pages(
            &records,
            &[
                ("table.md", &["| base (GGUF Q4\\_1) | - | 5.00 | 12.165", "ln ratio to base", &latex]),
                ("table.tex", &["base (GGUF Q4\\_1) & - & 5.00 &", "ln ratio to base", &latex]),
                ("report.html", &["<td>base (GGUF Q4_1)</td><td>-</td><td class=\"r\">5.00</td>", said]),
                ("terminal", &["base (GGUF Q4_1) - 5.00", said]),
                ("table.csv", &["Tiny_1M,base (GGUF Q4_1),", "GGUF Q4_1 in groups of 32,5.0"]),
                // Published full precision stands beside it all the same.
                ("paper-table.md", &["| base (GGUF Q4\\_1) | - | 12.165 (12, +0.165) |", &latex]),
                ("perplexity-tiny-1m-wikitext2-test-gptq-256-first-12.svg", &["base (GGUF Q4_1, 5.0 bits) (12.16)"]),
            ],
        );
        assert!(pages(&records).iter().all(|(_, page)| !page.contains("16.00") && !page.contains("full precision")));
    }

    #[test]
    fn what_is_not_on_record_is_not_made_up() {
        let mut records = records();
        for record in &mut records[..5] {
            done(record).storage = None;
        }
        let said = "How the base model is stored is not on record.";
        check_pages(
            &records,
            &[
                ("table.md", &["| base model | - | - | 12.165", said]),
                ("terminal", &["base model - - 12.165", said]),
                ("paper-table.md", &["| base model | - | 12.165 (12, +0.165) |", said]),
                (
                    "perplexity-tiny-1m-wikitext2-test-gptq-256-first-12.svg",
                    &["base model (storage not on record) (12.16)"],
                ),
            ],
        );
        assert!(pages(&records).iter().all(|(_, page)| !page.contains("16.00")));
    }

    #[test]
    fn models_that_differ_are_told_apart() {
        let mut rows: Vec<Row> = Vec::new();
        for (model, storage) in [("A", Some("BF16")), ("B", None), ("A", None)] {
            let mut row = super::super::frame::rows(&[&records()[1]], &[], "RTN").unwrap().remove(0);
            row.model = model.into();
            (row.base_storage, row.base_bits_per_weight) = (storage.map(str::to_owned), storage.map(|_| 16.0));
            rows.push(row);
        }
        assert_eq!(sentence(&rows[..1]), " The base model is stored in BF16.");
        assert_eq!(sentence(&rows), " Base models: A is stored in BF16; B is stored in a way that is not on record.");
        rows.iter_mut().for_each(|row| (row.base_storage, row.base_bits_per_weight) = (Some("F16".into()), Some(16.0)));
        assert_eq!(sentence(&rows), " Each base model is stored in F16.");
    }
}

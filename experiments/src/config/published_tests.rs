//! Published tables: what they expand to, and rows and columns that no cell would stand beside.

#![allow(clippy::unwrap_used)]

use super::tests::{HEAD, read_all};
use super::*;
use crate::eval::registry::MetricKey;

const REST: &str = r#"
[[models]]
name = "n"
source = { path = { path = "n" } }
[[calibrations]]
name = "few"
dataset = { bundled = { split = "calibration", n_documents = 40 } }
sampling = { random_crops = { n_sequences = 2, seed = 0 } }
seq_len = 64
propagation = "full_precision"
[[calibrations]]
name = "many"
dataset = { bundled = { split = "calibration", n_documents = 40 } }
sampling = { random_crops = { n_sequences = 8, seed = 0 } }
seq_len = 64
propagation = "full_precision"
[[methods]]
rtn = {}
[[methods]]
awq = "llm-awq"
[[methods]]
gptq = "in-order"
calibrations = ["many"]
"#;

const PUBLISHED: &str = r#"[published]
source = "a paper, Table 1"
note = "another tokenizer"
for = { dataset = "bundled-test", protocol = "gptq", seq_len = 64 }
models = ["n", "m"]
rows = [
    { method = "FP16", perplexity = [4.5, 5] },
    { method = "RTN", grid = "W3 g128", perplexity = [6.25, 7.5], notes = { m = "7.6 elsewhere" } },
    { method = "AWQ", grid = "W3 g128", calibration = "few", perplexity = [nan, 5.5], changed_steps = [nan, 0.25] },
    { method = "AWQ", grid = "W3 g128", calibration = "many", perplexity = [nan, 5.25], note = "of its own" },
]
"#;

fn read(published: &str) -> Result<ExperimentSpec, String> {
    read_all(&[HEAD, REST, published].concat())
}

#[test]
fn a_table_says_what_its_numbers_say_one_by_one() {
    let number = |model: &str, method: &str, keys: &str, note: &str| {
        let place = "dataset = \"bundled-test\"\nprotocol = \"gptq\"\nseq_len = 64\nsource = \"a paper, Table 1\"";
        format!("[[reference]]\nmodel = \"{model}\"\nmethod = \"{method}\"\n{keys}\n{place}\nnote = \"{note}\"\n")
    };
    let (all, w3) = ("another tokenizer", "grid = \"W3 g128\"");
    let one_by_one = [
        number("n", "FP16", "perplexity = 4.5", all),
        number("m", "FP16", "perplexity = 5", all),
        number("n", "RTN", &format!("{w3}\nperplexity = 6.25"), all),
        number("m", "RTN", &format!("{w3}\nperplexity = 7.5"), "7.6 elsewhere"),
        number("m", "AWQ", &format!("{w3}\ncalibration = \"few\"\nperplexity = 5.5\nchanged_steps = 0.25"), all),
        number("m", "AWQ", &format!("{w3}\ncalibration = \"many\"\nperplexity = 5.25"), "of its own"),
    ];
    let table = read(PUBLISHED).unwrap();
    assert_eq!(table, read(&one_by_one.concat()).unwrap());
    // What fits no table is added to it.
    let more = number("n", "AWQ", &format!("{w3}\nperplexity = 5.0"), "a letter");
    let both = read(&(PUBLISHED.to_owned() + &more)).unwrap();
    assert_eq!(both.references[..6], table.references);
    assert_eq!(both.references[6].note.as_deref(), Some("a letter"));
}

/// `PUBLISHED` with a mistake in it is refused at a place in it.
#[track_caller]
fn check_refused(from: &str, to: &str, message: &str) {
    assert_eq!(PUBLISHED.matches(from).count(), 1, "{from}");
    let before = [HEAD, REST].concat().lines().count();
    let error = read(&PUBLISHED.replace(from, to)).unwrap_err();
    let error = error.strip_prefix("FILE: not a valid experiment, key `published.").unwrap_or(&error);
    // Lines counted from the table's first.
    let (key, rest) = error.split_once("` at line ").unwrap_or((error, ""));
    let (line, rest) = rest.split_once(", column ").unwrap_or(("0", rest));
    let line = line.parse::<usize>().unwrap().saturating_sub(before);
    assert_eq!(format!("{key} {line}:{rest}"), message);
}

#[test]
fn a_row_or_a_column_that_no_cell_matches_is_refused() {
    check_refused(
        "[\"n\", \"m\"]",
        "[\"n\", \"M\"]",
        "models[1] 5:16: no model of this experiment is named `M`; correct it or remove it; known: `m`, `n`",
    );
    check_refused(
        "[\"n\", \"m\"]",
        "[\"n\", \"n\"]",
        "models[1] 5:16: `n` has a column already; remove one of the two",
    );
    check_refused("[\"n\", \"m\"]", "[]", "models 5:10: is an empty list; name at least one model");
    check_refused(
        "\"RTN\"",
        "\"RTM\"",
        "rows[1].method 8:16: no method of this experiment is labelled `RTM`; correct it or remove it; known: `AWQ`, `GPTQ`, `RTN`",
    );
    check_refused(
        "\"RTN\", grid = \"W3 g128\"",
        "\"RTN\", grid = \"W3g128\"",
        "rows[1].grid 8:30: no grid of this experiment is labelled `W3g128`; correct it or remove it; known: `W3 g128`",
    );
    check_refused(
        "\"RTN\", grid = \"W3 g128\"",
        "\"RTN\"",
        "rows[1] 8:5: `RTN` is measured on grids; add `grid`, such as `W4 g128`",
    );
    check_refused(
        "\"many\"",
        "\"more\"",
        "rows[3].calibration 10:55: no calibration of this experiment is named `more`; correct it or remove it; known: `few`, `many`",
    );
    check_refused(
        "\"AWQ\", grid = \"W3 g128\", calibration = \"few\"",
        "\"GPTQ\", grid = \"W3 g128\", calibration = \"few\"",
        "rows[2] 9:5: no cell of this experiment is `GPTQ W3 g128 few`; remove the row",
    );
    check_refused(
        "seq_len = 64 }",
        "seq_len = 2048 }",
        "for 4:7: no evaluation has this protocol and window; correct it, or remove the table; known: `gptq` with 64 tokens",
    );
    check_refused("\"many\"", "\"few\"", "rows[3] 10:5: `AWQ W3 g128 few` has a row already; remove one of the two");
}

#[test]
fn a_row_of_another_length_is_refused() {
    check_refused(
        "[6.25, 7.5]",
        "[6.25, 7.5, 8]",
        "rows[1].perplexity 8:54: 3 numbers for 2 models; give one for each of `models`, `nan` where there is none",
    );
    check_refused(
        "[6.25, 7.5]",
        "[6.25, inf]",
        "rows[1].perplexity[1] 8:61: is no number that a paper prints; write `nan` where there is none",
    );
    check_refused("perplexity = [6.25, 7.5], ", "", "rows[1] 8:5: the row has no numbers; give `perplexity`");
    check_refused(
        "{ m = ",
        "{ M = ",
        "rows[1].notes.M 8:81: no model of this table is named `M`; correct it or remove it; known: `n`, `m`",
    );
    check_refused(
        "method = \"FP16\"",
        "method = \"FP16\", dataset = \"bundled-test\"",
        "rows[0].dataset 7:34: `for` names the text of all rows already; remove one of the two",
    );
}

#[test]
fn a_table_without_rows_is_refused() {
    let head = &PUBLISHED[..PUBLISHED.find("rows = ").unwrap()];
    let error = read(&format!("{head}rows = []\n")).unwrap_err();
    assert!(error.ends_with("column 8: is an empty list; give at least one row"), "{error}");
}

#[test]
fn rows_may_be_of_a_metric_that_is_no_perplexity() {
    let with = |row: &str| read(&PUBLISHED.replace("{ method = \"FP16\", perplexity = [4.5, 5] }", row));
    let found = with("{ method = \"FP16\", metric = \"perplexity\", value = [4.5, nan] }").unwrap();
    assert_eq!((found.references[0].metric, found.references[0].measured()), (Some(MetricKey::Perplexity), Some(4.5)));
    assert_eq!(found.references[1].model, "n", "a number that is none is left out");
    // Two rows of one cell may be of two metrics.
    let twice = with(
        "{ method = \"FP16\", perplexity = [4.5, 5] }, { method = \"FP16\", metric = \"perplexity\", value = [1, 2] }",
    );
    assert!(twice.is_ok(), "{twice:?}");
    for (row, message) in [
        ("{ method = \"FP16\", value = [4.5, 5] }", "`metric` and `value` go together"),
        ("{ method = \"FP16\", metric = \"perplexity\", perplexity = [4.5, 5] }", "`metric` and `value` go together"),
        ("{ method = \"FP16\", metric = \"pass_at_1\", value = [0.4, 0.5] }", "no evaluation measures `pass_at_1`"),
        ("{ method = \"FP16\", metric = \"perplexity\", value = [4.5] }", "1 numbers for 2 models"),
    ] {
        let error = with(row).unwrap_err();
        assert!(error.contains(message), "{row}: {error}");
    }
}

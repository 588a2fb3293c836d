//! WikiText-2 raw (Merity et al. 2016): Wikipedia articles, one paragraph a row, many rows empty.
//!
//! The rows are those of the Hugging Face data set and are joined by a blank line, as the GPTQ and AWQ code do for
//! perplexity. The test split can also come from the original `wiki.test.raw`; that both give the same text is held by
//! one pinned hash of the joined text.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use polars::prelude::{DataType, ParquetReader, SerReader};

use super::Text;
use crate::assets::{AssetSource, AssetStore, HubFile};
use crate::config::sources::{Wikitext2, WikitextSplit};

/// sha256 of the joined test split: 4,358 rows, 1,296,370 bytes.
const TEST_SHA256: &str = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83";

/// `wiki.test.raw` of the original release.
const RAW_TEST_SHA256: &str = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08";

fn parquet(split: &str, sha256: &str) -> AssetSource {
    AssetSource::Hub(HubFile {
        repo: "Salesforce/wikitext".into(),
        revision: "b08601e04326c79dfdd32d625aee71d232d685c3".into(),
        file: format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet"),
        sha256: Some(sha256.into()),
    })
}

/// # Errors
/// No source has the split, or its content is not the pinned one.
pub(super) fn load(spec: &Wikitext2, store: &AssetStore) -> anyhow::Result<Text> {
    match spec.split {
        WikitextSplit::Test => {
            let raw = AssetSource::Folder { name: "wiki.test.raw".into(), sha256: RAW_TEST_SHA256.into() };
            let hub = parquet("test", "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91");
            let located = store.fetch("wikitext2-test", &[raw, hub])?;
            let rows = if located.source == 0 { raw_rows(&located.path) } else { parquet_rows(&located.path) }?;
            let text = of_lines("wikitext2-test", rows);
            ensure!(
                text.sha256 == TEST_SHA256,
                "{}: sha256 of the joined text is {}, expected {TEST_SHA256}; its rows were not read as intended",
                located.path.display(),
                text.sha256
            );
            Ok(text)
        }
        WikitextSplit::Train => {
            let hub = parquet("train", "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7");
            let located = store.fetch("wikitext2-train", &[hub])?;
            Ok(of_lines("wikitext2-train", parquet_rows(&located.path)?))
        }
    }
}

/// Lines with their line feeds; the blank ones of the file, which hold a space, are empty rows of the data set.
fn of_lines(name: &str, rows: Vec<String>) -> Text {
    Text { blank_line: Some(" \n"), ..Text::new(name, rows, "\n\n") }
}

fn raw_rows(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(rows_of_raw(&text))
}

/// The rows as the data set has them: a blank line is the empty row, any other row keeps its line feed.
fn rows_of_raw(text: &str) -> Vec<String> {
    let row = |line: &str| if line.trim().is_empty() { String::new() } else { line.to_owned() };
    text.split_inclusive('\n').map(row).collect()
}

fn parquet_rows(path: &Path) -> anyhow::Result<Vec<String>> {
    let broken = || format!("{}: not a valid parquet file; remove it, it will be downloaded again", path.display());
    let file = File::open(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let frame = ParquetReader::new(file).finish().with_context(broken)?;
    let Ok(column) = frame.column("text") else {
        bail!("{}: no column `text`; it holds {:?}", path.display(), frame.get_column_names());
    };
    let column = column.cast(&DataType::String).with_context(broken)?;
    let rows = column.str().with_context(broken)?;
    rows.iter()
        .enumerate()
        .map(|(row, text)| text.map(str::to_owned).with_context(|| format!("{}: row {row} is null", path.display())))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polars::prelude::{Column, DataFrame, ParquetWriter};

    use super::*;
    use crate::data::development_store;

    #[test]
    fn blank_lines_are_empty_rows_and_others_keep_their_line_feed() {
        assert_eq!(rows_of_raw(" \n = A = \n \n text \n"), ["", " = A = \n", "", " text \n"]);
        assert_eq!(rows_of_raw(" end"), [" end"]);
        assert_eq!(rows_of_raw(""), [""; 0]);
        // Only the line feed ends a row: the text holds other characters that count as line ends elsewhere.
        assert_eq!(rows_of_raw("a\u{2028}b\u{85}c\r\n"), ["a\u{2028}b\u{85}c\r\n"]);
    }

    fn parquet_file(name: &str, rows: &[Option<&str>]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let column = Column::new(name.into(), rows);
        let mut frame = DataFrame::new(rows.len(), vec![column]).unwrap();
        ParquetWriter::new(file.reopen().unwrap()).finish(&mut frame).unwrap();
        file
    }

    #[test]
    fn parquet_rows_are_read_as_they_are() {
        let file = parquet_file("text", &[Some(""), Some(" = A = \n"), Some(" é \n")]);
        assert_eq!(parquet_rows(file.path()).unwrap(), ["", " = A = \n", " é \n"]);
    }

    #[test]
    fn a_bad_parquet_file_says_what_is_wrong() {
        let error = |file: &tempfile::NamedTempFile| {
            let error = parquet_rows(file.path()).unwrap_err();
            format!("{error:#}").replace(&file.path().display().to_string(), "FILE")
        };
        assert_eq!(error(&parquet_file("words", &[Some("a")])), r#"FILE: no column `text`; it holds ["words"]"#);
        assert_eq!(error(&parquet_file("text", &[Some("a"), None])), "FILE: row 1 is null");
        let truncated = parquet_file("text", &[Some("a")]);
        truncated.as_file().set_len(20).unwrap();
        assert!(error(&truncated).starts_with("FILE: not a valid parquet file; remove it"), "{}", error(&truncated));
    }

    #[test]
    fn the_real_test_split_is_the_pinned_text() {
        let Some((_cache, store)) = development_store("the_real_test_split_is_the_pinned_text") else { return };
        let text = load(&Wikitext2 { split: WikitextSplit::Test }, &store).unwrap();
        assert_eq!((text.documents.len(), text.joined().len()), (4_358, 1_296_370));
        assert_eq!(crate::assets::sha256_of(text.as_file().as_bytes()), RAW_TEST_SHA256);
    }
}

//! Published decoding speeds as a table to stand beside those measured here.

use crate::config::{PublishedSpeed, PublishedTokens};
use crate::report::tables::{Align, Column, Table, TableRow, missing, slug};

/// A table each.
pub fn published_tables(published: &[PublishedSpeed]) -> impl Iterator<Item = Table> {
    published.iter().map(table)
}

fn table(published: &PublishedSpeed) -> Table {
    let column = |heading: &str, align| Column { heading: heading.to_owned(), align };
    let names = [column("machine", Align::Left), column("model", Align::Left)];
    let forms = published.forms.iter().map(|form| column(form, Align::Right));
    let of_machine = |index: usize| published.rows.get(index).map(|row| &row.machine);
    let rows = published.rows.iter().enumerate().map(|(index, row)| TableRow {
        cells: [row.machine.clone(), row.model.clone()].into_iter().chain(row.tokens_per_s.iter().map(words)).collect(),
        emphasized: Vec::new(),
        starts_section: index > 0 && of_machine(index - 1) != of_machine(index),
    });
    Table {
        slug: slug(&format!("published speed {}", published.source)),
        caption: format!(
            "Published, not measured here: decoding in tokens/s ({}). {}. OOM: out of memory.",
            published.protocol, published.source
        ),
        columns: names.into_iter().chain(forms).collect(),
        rows: rows.collect(),
        emphasis: None,
        notes: published.note.iter().cloned().collect(),
    }
}

fn words(tokens: &PublishedTokens) -> String {
    match tokens {
        PublishedTokens::PerSecond(tokens) => tokens.to_string(),
        PublishedTokens::Word(word) if word.is_empty() => missing(),
        PublishedTokens::Word(word) => word.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PublishedSpeedRow;

    #[test]
    fn a_published_table_is_shown_as_it_is() {
        let row = |machine: &str, tokens: [PublishedTokens; 2]| PublishedSpeedRow {
            machine: machine.into(),
            model: "M".into(),
            tokens_per_s: tokens.into(),
        };
        let number = PublishedTokens::PerSecond;
        let published = PublishedSpeed {
            source: "A paper, Figure 9".into(),
            protocol: "batch 1".into(),
            forms: vec!["FP16".into(), "W4".into()],
            rows: vec![
                row("A", [number(52.0), number(15.5)]),
                row("B", [PublishedTokens::Word("OOM".into()), PublishedTokens::Word(String::new())]),
            ],
            note: Some("By bars.".into()),
        };
        let tables: Vec<Table> = published_tables(&[published]).collect();
        let cells: Vec<_> = tables[0].rows.iter().map(|row| row.cells.join(" ")).collect();
        assert_eq!(cells, ["A M 52 15.5", "B M OOM -"]);
        assert!(tables[0].caption.starts_with("Published, not measured here: decoding in tokens/s (batch 1). A paper"));
        assert!(tables[0].rows[1].starts_section && tables[0].notes == ["By bars."]);
    }
}

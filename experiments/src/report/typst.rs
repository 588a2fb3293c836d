//! Tables as Typst, to be `#include`d by a document.

use super::tables::{Align, Document, Table, is_minus};

/// The whole document: one figure each, failed cells as comments.
pub fn render(document: &Document) -> String {
    let mut text = "// Generated from records.jsonl; do not edit.\n".to_owned();
    text += &comment(&document.question);
    for table in &document.tables {
        text += &render_table(table);
    }
    text.extend(document.failures.iter().map(|failure| comment(&format!("FAILED {failure}"))));
    text
}

fn render_table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("    {},\n", cells.join(", "));
    let alignment = |align: Align| match align {
        Align::Left => "left",
        Align::Right => "right",
    };
    let alignments: Vec<&str> = table.columns.iter().map(|column| alignment(column.align)).collect();
    let mut text = format!(
        "\n#figure(\n  table(\n    columns: {},\n    align: ({},),\n    stroke: none,\n    table.hline(),\n",
        table.columns.len(),
        alignments.join(", ")
    );
    let headings: Vec<String> = table.columns.iter().map(|column| content(&column.heading)).collect();
    text += &format!("    table.header({}),\n    table.hline(stroke: 0.5pt),\n", headings.join(", "));
    for row in &table.rows {
        if row.starts_section {
            text += "    table.hline(stroke: 0.5pt),\n";
        }
        let mut cells: Vec<String> = row.cells.iter().map(|cell| content(cell)).collect();
        for &column in &row.emphasized {
            cells[column] = format!("strong{}", cells[column]);
        }
        text += &line(cells);
    }
    let notes: String = table.notes.iter().map(|note| format!(" {}", escape(note))).collect();
    text + &format!(
        "    table.hline(),\n  ),\n  kind: table,\n  caption: [{}{notes}],\n) <tab:{}>\n",
        escape(&table.caption_with("Bold")),
        table.slug
    )
}

fn comment(text: &str) -> String {
    text.lines().map(|line| format!("// {line}\n")).collect()
}

fn content(text: &str) -> String {
    format!("[{}]", escape(text))
}

/// Text in which nothing is markup, and with a minus where a number is negative.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut previous = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '-' if is_minus(previous, chars.peek()) => escaped.push('−'),
            '\n' | '\r' => escaped.push(' '),
            // What may begin or end markup, and what stands for another sign: `--` is a dash, `~` a space.
            '\\' | '*' | '_' | '`' | '#' | '$' | '[' | ']' | '<' | '>' | '@' | '~' | '"' | '\'' | '-' | '+' | '='
            | '/' => {
                escaped.extend(['\\', c]);
            }
            _ => escaped.push(c),
        }
        previous = c;
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_markup_is_text() {
        assert_eq!(escape("50% of a_b *c* #1 <x> [y]"), r"50% of a\_b \*c\* \#1 \<x\> \[y\]");
        assert_eq!(escape("-0.010 [-0.020, 0.001] per-channel -"), r"−0.010 \[−0.020, 0.001\] per\-channel \-");
        assert_eq!(escape("// a\nb"), r"\/\/ a b");
    }
}

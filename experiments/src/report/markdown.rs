//! Tables as GitHub Markdown.

use super::tables::{Align, Document, Table, TableRow};

/// The whole document.
pub fn render(document: &Document) -> String {
    let mut text = format!("# {}\n{}", escape(&document.question), tables(document));
    if !document.failures.is_empty() {
        text += "\n## Failed cells\n\n";
        text.extend(document.failures.iter().map(|failure| format!("- {}\n", escape(failure))));
    }
    text
}

/// Its tables alone.
pub fn tables(document: &Document) -> String {
    document.tables.iter().map(|table| format!("\n{}", render_table(table))).collect()
}

fn render_table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = |align: Align| match align {
        Align::Left => ":--".to_owned(),
        Align::Right => "--:".to_owned(),
    };
    let mut text = line(table.columns.iter().map(|column| escape(&column.heading)).collect());
    text += &line(table.columns.iter().map(|column| rule(column.align)).collect());
    text.extend(table.rows.iter().map(|row| line(cells(row))));
    text += &format!("\n{}\n", escape(&table.caption_with("Bold")));
    text.extend(table.notes.iter().map(|note| format!("\n{}\n", escape(note))));
    text
}

fn cells(row: &TableRow) -> Vec<String> {
    let mut cells: Vec<String> = row.cells.iter().map(|cell| escape(cell)).collect();
    for &column in &row.emphasized {
        cells[column] = format!("**{}**", cells[column]);
    }
    cells
}

/// Keeps names and messages from becoming markup; a line break would end a table row.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '|' | '*' | '_' | '`' | '<' | '\\' => escaped.extend(['\\', c]),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn markup_in_names_is_text() {
        assert_eq!(super::escape("a|b *c* self_attn <x>\nnext"), r"a\|b \*c\* self\_attn \<x> next");
    }
}

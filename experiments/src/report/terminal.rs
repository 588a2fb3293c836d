//! Tables for the terminal: aligned columns, light rules, no colour.

use super::tables::{Align, Document, Table, TableRow};

/// Columns that captions and messages are wrapped to.
const WIDTH: usize = 110;

/// Stands behind a cell that stands out; a blank keeps the others aligned.
const BEST_MARK: &str = " *";

/// The whole document.
pub fn render(document: &Document) -> String {
    let mut text = wrap(&document.question);
    for table in &document.tables {
        text += &format!("\n{}", render_table(table));
    }
    if !document.failures.is_empty() {
        text += "\nFailed cells:\n";
        text.extend(document.failures.iter().map(|failure| wrap(&format!("  {failure}"))));
    }
    text
}

/// One table with its caption.
pub(crate) fn render_table(table: &Table) -> String {
    let heading = table.columns.iter().map(|column| column.heading.clone()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(heading).chain(table.rows.iter().map(|row| marked(row, table))).collect();
    let width_of = |index: usize| rows.iter().map(|cells| cells[index].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.columns.len()).map(width_of).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).zip(&table.columns).map(|((cell, &width), column)| match column.align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rule = |stroke: &str| stroke.repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)) + "\n";
    let mut text = rule("━") + &line(&rows[0]) + &rule("─");
    for (row, cells) in table.rows.iter().zip(&rows[1..]) {
        if row.starts_section {
            text += &rule("╌");
        }
        text += &line(cells);
    }
    text += &rule("━");
    text += &wrap(&table.caption_with(BEST_MARK.trim()));
    text.extend(table.notes.iter().map(|note| wrap(note)));
    text
}

/// The cells of a row; in a column that has emphasized cells, these get a mark and the others a blank as wide.
fn marked(row: &TableRow, table: &Table) -> Vec<String> {
    let mark = |(index, cell): (usize, &String)| {
        let has_marks = table.rows.iter().any(|row| row.emphasized.contains(&index));
        let mark = match row.emphasized.contains(&index) {
            true => BEST_MARK,
            false if has_marks => "  ",
            false => "",
        };
        format!("{cell}{mark}")
    };
    row.cells.iter().enumerate().map(mark).collect()
}

/// Breaks at spaces; keeps the lines and the indentation of the text.
fn wrap(text: &str) -> String {
    let mut wrapped = String::new();
    for paragraph in text.lines() {
        let indent = &paragraph[..paragraph.len() - paragraph.trim_start().len()];
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && indent.len() + line.chars().count() + 1 + word.chars().count() > WIDTH {
                wrapped += &format!("{indent}{line}\n");
                line.clear();
            }
            line += &if line.is_empty() { word.to_owned() } else { format!(" {word}") };
        }
        wrapped += &format!("{indent}{line}\n");
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_at_spaces() {
        let wrapped = wrap(&format!("  {}", "word ".repeat(60)));
        assert!(wrapped.lines().all(|line| line.starts_with("  word") && line.chars().count() <= WIDTH), "{wrapped}");
        assert_eq!(wrapped.split_whitespace().count(), 60);
    }
}

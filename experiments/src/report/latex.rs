//! Tables as LaTeX (booktabs), to be `\input` by a paper.

use super::tables::{Align, Document, Table, is_minus};

/// The whole document: one floating table each, failed cells as comments.
pub fn render(document: &Document) -> String {
    let mut text = "% Generated from records.jsonl; do not edit. Needs \\usepackage{booktabs}.\n".to_owned();
    text += &comment(&document.question);
    for table in &document.tables {
        text += &render_table(table);
    }
    text.extend(document.failures.iter().map(|failure| comment(&format!("FAILED {failure}"))));
    text
}

fn render_table(table: &Table) -> String {
    let columns: String =
        table.columns.iter().map(|column| if column.align == Align::Left { 'l' } else { 'r' }).collect();
    let line = |cells: Vec<String>| format!("  {} \\\\\n", cells.join(" & "));
    let notes: String = table.notes.iter().map(|note| format!(" {}", escape(note))).collect();
    let mut text = format!(
        "\\begin{{table}}[t]\n\\centering\n\\caption{{{}{notes}}}\n\\label{{tab:{}}}\n",
        escape(&table.caption_with("Bold")),
        table.slug
    );
    text += &format!("\\begin{{tabular}}{{{columns}}}\n  \\toprule\n");
    text += &line(table.columns.iter().map(|column| escape(&column.heading)).collect());
    text += "  \\midrule\n";
    for row in &table.rows {
        if row.starts_section {
            text += "  \\midrule\n";
        }
        let mut cells: Vec<String> = row.cells.iter().map(|cell| escape(cell)).collect();
        for &column in &row.emphasized {
            cells[column] = format!("\\textbf{{{}}}", cells[column]);
        }
        text += &line(cells);
    }
    text + "  \\bottomrule\n\\end{tabular}\n\\end{table}\n"
}

fn comment(text: &str) -> String {
    text.lines().map(|line| format!("% {line}\n")).collect()
}

/// Text with every special character of LaTeX taken literally, and a minus where a number is negative.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut previous = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '-' if is_minus(previous, chars.peek()) => escaped.push_str("$-$"),
            '±' => escaped.push_str("$\\pm$"),
            'Δ' => escaped.push_str("$\\Delta$"),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '\n' | '\r' => escaped.push(' '),
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
    fn special_characters_are_literal() {
        assert_eq!(
            escape("50% of a_b & {c}$ #1 \\x ~^"),
            "50\\% of a\\_b \\& \\{c\\}\\$ \\#1 \\textbackslash{}x \\textasciitilde{}\\textasciicircum{}"
        );
    }

    #[test]
    fn only_negative_numbers_get_a_minus() {
        assert_eq!(
            escape("-0.010 [-0.020, 0.001] per-channel 1e-5 -"),
            "$-$0.010 [$-$0.020, 0.001] per-channel 1e-5 -"
        );
    }
}

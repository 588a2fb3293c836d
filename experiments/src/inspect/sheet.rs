//! [`Sheet`]: facts as text, a label at the left and what is said of it at the right, at most 100 columns wide.

/// Columns of a line.
pub(super) const WIDTH: usize = 100;
/// Columns of the labels.
const LABEL: usize = 14;

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Text in the making.
#[derive(Default)]
pub(super) struct Sheet {
    text: String,
}

impl Sheet {
    /// A heading, and a line below it that stays empty.
    pub(super) fn titled(title: &str) -> Self {
        Self { text: wrapped(title, WIDTH).join("\n") + "\n\n" }
    }

    /// Lines under one label.
    pub(super) fn entry(&mut self, label: &str, lines: impl IntoIterator<Item = impl AsRef<str>>) {
        let lines: Vec<String> = lines.into_iter().flat_map(|line| wrapped(line.as_ref(), WIDTH - LABEL)).collect();
        self.lines(label, &lines);
    }

    /// Rows under one label, the columns aligned.
    pub(super) fn table(&mut self, label: &str, rows: &[Vec<String>], align: &[Align]) {
        self.lines(label, &aligned(rows, align));
    }

    /// A line between two parts that stays empty.
    pub(super) fn gap(&mut self) {
        self.text.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn lines(&mut self, label: &str, lines: &[String]) {
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            self.text += format!("{label:<LABEL$}{line}").trim_end();
            self.text.push('\n');
        }
    }
}

/// Rows as lines: two blanks between columns.
pub(super) fn aligned(rows: &[Vec<String>], align: &[Align]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..align.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).zip(align).map(|((cell, &width), align)| match align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `text` in lines of at most `width` columns where its words allow it; lines after the first are indented by two.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ').filter(|word| !word.is_empty()) {
            if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::replace(&mut line, "  ".to_owned()));
            } else if !line.trim().is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines.push(line);
    }
    lines
}

/// `1.3 kB`, `269.1 MB`, `7.0 GB`.
pub(super) fn bytes(n: u64) -> String {
    match n as f64 {
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn lines_are_wrapped_at_words_and_stand_behind_their_label() {
        let mut sheet = Sheet::titled("model");
        sheet.entry("notes", ["word ".repeat(20), "short".to_owned()]);
        let rows = [["a", "1"], ["longer", "1,000"]].map(|row| row.map(str::to_owned).to_vec());
        sheet.table("table", &rows, &[Align::Left, Align::Right]);
        let text = sheet.finish();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_snapshot!(text, @r"
        model

        notes         word word word word word word word word word word word word word word word word word
                        word word word
                      short
        table         a           1
                      longer  1,000
        ");
        assert_eq!(wrapped(&"x".repeat(120), 100), ["x".repeat(120)]);
    }

    #[test]
    fn bytes_have_a_unit_near_their_size() {
        assert_eq!([1_300, 269_060_552, 7_000_000_000].map(bytes), ["1.3 kB", "269.1 MB", "7.0 GB"]);
    }
}

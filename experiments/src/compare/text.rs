//! A [`Comparison`] as tables, for the terminal and as Markdown.

use super::{Comparison, Difference, Number};
use crate::eval::registry::MetricKey;
use crate::report::tables::{Align, Column, Document, Table, TableRow};

impl Comparison {
    /// What differs, as tables.
    pub fn document(&self) -> Document {
        let [first, second] = &self.folders;
        let mut tables = Vec::new();
        tables.extend(differences("settings", "Settings that differ.", &self.settings));
        let caption = "What the records were made with, where it differs.";
        tables.extend(differences("made-with", caption, &self.made_with));
        tables.extend(self.numbers_table());
        tables.extend(self.alone_table());
        let question = format!("{second} held against {first}\n{}", self.summary());
        Document { question, tables, failures: Vec::new() }
    }

    fn alone_table(&self) -> Option<Table> {
        let of_folder = |(folder, cells): (&String, &Vec<String>)| {
            cells.iter().map(|cell| [cell.clone(), folder.clone()]).collect::<Vec<_>>()
        };
        let rows: Vec<[String; 2]> = self.folders.iter().zip(&self.alone).flat_map(of_folder).collect();
        let caption = "Finished cells that only one folder has.".to_owned();
        (!rows.is_empty()).then(|| table("alone", caption, vec![left("cell"), left("only in")], rows))
    }

    fn summary(&self) -> String {
        let (n, n_beyond) = (self.numbers.len(), self.n_beyond_noise());
        let n_same = self.numbers.iter().filter(|number| number.verdict == super::Verdict::Same).count();
        format!("{n} numbers in both: {n_same} the same bit for bit, {n_beyond} different beyond noise.")
    }

    fn numbers_table(&self) -> Option<Table> {
        let several = |of: fn(&Number) -> &String| self.numbers.iter().any(|one| of(one) != of(&self.numbers[0]));
        let (metrics, texts) = (several(|one| &one.metric), several(|one| &one.dataset));
        let right = |heading: &str| Column { align: Align::Right, ..left(heading) };
        let mut columns = vec![left("cell")];
        columns.extend(metrics.then(|| left("metric")));
        columns.extend(texts.then(|| left("text")));
        columns.extend(["first", "second", "change [95% CI]"].map(right));
        columns.extend(["codes", "second is"].map(left));
        let row = |number: &Number| {
            let mut cells = vec![number.cell.clone()];
            cells.extend(metrics.then(|| label(&number.metric)));
            cells.extend(texts.then(|| number.dataset.clone()));
            let interval =
                number.change_interval.map_or_else(String::new, |[low, high]| format!(" [{low:.4}, {high:.4}]"));
            let codes = match number.same_codes {
                None => "-",
                Some(true) => "same",
                Some(false) => "other",
            };
            let unpaired = if number.is_paired { "" } else { ", other windows" };
            cells.extend([
                format!("{:.4}", number.first),
                format!("{:.4}", number.second),
                format!("{:+.4}{interval}", number.change),
                codes.to_owned(),
                format!("{}{unpaired}", number.verdict.words()),
            ]);
            cells
        };
        let first = self.numbers.first()?;
        let of = if metrics { String::new() } else { format!(" {}", label(&first.metric)) };
        let on = if texts { String::new() } else { format!(" on {}", first.dataset) };
        let caption = format!(
            "Numbers of both{of}{on}. A change is ln of the ratio of perplexities, else the difference of the numbers, second to \
             first; its interval is paired over the windows, or of two independent numbers where other windows were scored. Better \
             and worse: beyond that interval."
        );
        Some(table("numbers", caption, columns, self.numbers.iter().map(row)))
    }
}

fn label(metric: &str) -> String {
    MetricKey::of_record(metric).map_or_else(|_| metric.to_owned(), |metric| metric.quantity().label.to_owned())
}

fn differences(slug: &str, caption: &str, of: &[Difference]) -> Option<Table> {
    let shown = |value: &String| if value.is_empty() { "-".to_owned() } else { value.clone() };
    let row = |one: &Difference| [one.key.clone(), shown(&one.first), shown(&one.second)];
    let columns = ["key", "first", "second"].map(left).into();
    (!of.is_empty()).then(|| table(slug, format!("{caption} All else is the same."), columns, of.iter().map(row)))
}

fn left(heading: &str) -> Column {
    Column { heading: heading.to_owned(), align: Align::Left }
}

fn table<R: Into<Vec<String>>>(
    slug: &str,
    caption: String,
    columns: Vec<Column>,
    rows: impl IntoIterator<Item = R>,
) -> Table {
    let row = |cells: R| TableRow { cells: cells.into(), emphasized: Vec::new(), starts_section: false };
    let rows = rows.into_iter().map(row).collect();
    Table { slug: slug.to_owned(), caption, columns, rows, emphasis: None, notes: Vec::new() }
}

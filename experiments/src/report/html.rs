//! The report as one page: no scripts, no other files, figures inline as SVG.

use std::collections::BTreeSet;

use itertools::Itertools as _;

use super::row::Row;
use super::tables::{Align, Document, Table};
use crate::provenance::Gpu;
use crate::record::Record;

/// A table is as wide as it needs, beyond the column of text up to the window; there it scrolls, which a bar and shadows at
/// its edges show.
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;border-top:2px solid;border-bottom:2px solid;white-space:nowrap}\
.wide{overflow-x:auto;width:max-content;max-width:calc(100vw - 3rem);margin-bottom:.5rem;padding-bottom:.2rem;\
background:linear-gradient(to right,#fff 30%,rgba(255,255,255,0)),linear-gradient(to left,#fff 30%,rgba(255,255,255,0)) 100% 0,\
linear-gradient(to right,rgba(0,0,0,.3),rgba(0,0,0,0)),linear-gradient(to left,rgba(0,0,0,.3),rgba(0,0,0,0)) 100% 0;\
background-repeat:no-repeat;background-size:2.5rem 100%,2.5rem 100%,.8rem 100%,.8rem 100%;\
background-attachment:local,local,scroll,scroll;scrollbar-width:auto;scrollbar-color:#777 #ddd}\
th,td{padding:.15rem .6rem;text-align:left}.r{text-align:right}thead{border-bottom:1px solid}\
.s{border-top:1px solid #999}p.note,figcaption{color:#333;font-size:.9rem}figure{margin:2rem 0}svg{max-width:44rem;width:100%;height:auto}\
pre{overflow-x:auto;background:#f4f4f4;padding:.8rem;font-size:.85rem}summary{cursor:pointer;margin:.8rem 0}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.85rem}dd{margin:0;overflow-wrap:anywhere}";

/// What the page is made of.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Tables and failures.
    pub document: &'a Document,
    /// Figures.
    pub drawings: &'a [Drawing],
    /// A row a measurement of each cell, for their times.
    pub cells: &'a [Row],
    /// The records behind all, for their provenance.
    pub records: &'a [&'a Record],
    /// The experiment with all its settings, as TOML; empty where it is not known.
    pub settings: &'a str,
}

/// A drawn figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawing {
    /// The SVG element.
    pub svg: String,
    /// What it shows.
    pub caption: String,
}

/// The whole page.
pub fn render(page: &Page<'_>) -> String {
    let Page { document, drawings, cells, records, settings } = *page;
    let question = escape(&document.question);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{question}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{question}</h1>\n"
    );
    page.extend(document.tables.iter().map(render_table));
    if !document.failures.is_empty() {
        let items: String = document.failures.iter().map(|failure| format!("<li>{}</li>\n", escape(failure))).collect();
        page += &format!("<h2>Failed cells</h2>\n<ul>\n{items}</ul>\n");
    }
    for drawing in drawings {
        page += &format!(
            "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n",
            drawing.svg.trim(),
            escape(&drawing.caption)
        );
    }
    page + &times(cells) + &self::settings(settings) + &provenance(records) + "</body>\n</html>\n"
}

/// Wall times and memory of each cell.
fn times(cells: &[Row]) -> String {
    if cells.is_empty() {
        return String::new();
    }
    let left = ["method", "grid", "calibration", "text"].map(|heading| format!("<th>{heading}</th>"));
    let right = ["quantize s", "capture s", "evaluate s", "tokens/s", "peak GiB"];
    let right = right.map(|heading| format!("<th class=\"r\">{heading}</th>"));
    let row = |row: &Row| {
        let draw = row.draw.map(|draw| format!("draw {draw}"));
        let calibration = row.calibration.iter().cloned().chain(draw).collect::<Vec<_>>().join(", ");
        let nothing = String::new();
        let words = [&row.method, row.grid.as_ref().unwrap_or(&nothing), &calibration, &row.dataset];
        let words = words.map(|word| format!("<td>{}</td>", escape(word)));
        let optional =
            |value: Option<f64>, decimals: usize| value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"));
        let numbers = [
            optional(Some(row.quantize_seconds), 1),
            optional(Some(row.shared_capture_seconds), 1),
            optional(Some(row.evaluate_seconds), 1),
            optional(row.tokens_per_second, 0),
            optional(row.peak_bytes.map(|bytes| bytes as f64 / f64::from(1 << 30)), 2),
        ];
        let numbers = numbers.map(|number| format!("<td class=\"r\">{number}</td>"));
        format!("<tr>{}{}</tr>\n", words.concat(), numbers.concat())
    };
    // Metrics of one text came of one pass.
    let passes =
        cells.iter().unique_by(|row| (&row.cell_id, &row.dataset, &row.protocol, row.seq_len, &row.arithmetic));
    format!(
        "<details>\n<summary>Times and memory of each cell</summary>\n<div class=\"wide\"><table>\n<thead><tr>{}{}</tr></thead>\n<tbody>\n\
         {}</tbody>\n</table></div>\n<p class=\"note\">Capture: of activations, shared by all cells of one pass. Peak: largest memory \
         of the process until the cell ended.</p>\n</details>\n",
        left.concat(),
        right.concat(),
        passes.map(row).collect::<String>()
    )
}

/// The experiment as it was run.
fn settings(toml: &str) -> String {
    if toml.is_empty() {
        return String::new();
    }
    format!("<details>\n<summary>Settings (experiment.toml)</summary>\n<pre>{}</pre>\n</details>\n", escape(toml))
}

fn render_table(table: &Table) -> String {
    let class = |index: usize| if table.columns[index].align == Align::Right { " class=\"r\"" } else { "" };
    let heading = |(index, column): (usize, &super::tables::Column)| {
        format!("<th{}>{}</th>", class(index), escape(&column.heading))
    };
    let mut text = format!(
        "<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        table.columns.iter().enumerate().map(heading).collect::<String>()
    );
    for row in &table.rows {
        let cell = |(index, cell): (usize, &String)| match row.emphasized.contains(&index) {
            true => format!("<td{}><strong>{}</strong></td>", class(index), escape(cell)),
            false => format!("<td{}>{}</td>", class(index), escape(cell)),
        };
        let section = if row.starts_section { " class=\"s\"" } else { "" };
        text += &format!("<tr{section}>{}</tr>\n", row.cells.iter().enumerate().map(cell).collect::<String>());
    }
    text += &format!("</tbody>\n</table></div>\n<p class=\"note\">{}</p>\n", escape(&table.caption_with("Bold")));
    text.extend(table.notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))));
    text
}

/// With what the records were made; each line lists every value that occurs.
fn provenance(records: &[&Record]) -> String {
    let distinct = |value: &dyn Fn(&Record) -> String| records.iter().map(|r| value(r)).collect::<BTreeSet<_>>();
    let mut lines = vec![
        (
            "commit".to_owned(),
            distinct(&|r| {
                format!("{}{}", r.provenance.commit, if r.provenance.dirty == Some(true) { " (dirty)" } else { "" })
            }),
        ),
        ("version".to_owned(), distinct(&|r| format!("{} ({} build)", r.provenance.version, r.provenance.profile))),
        ("Cargo.lock sha256".to_owned(), distinct(&|r| r.provenance.lock_sha256.clone())),
        ("device".to_owned(), distinct(&|r| format!("{}, {} threads", r.provenance.device, r.provenance.threads))),
        ("CPU".to_owned(), distinct(&|r| r.provenance.cpu.clone())),
        ("platform".to_owned(), distinct(&|r| r.provenance.platform.clone())),
    ];
    // What records of before do not say is left out.
    let known =
        |value: &dyn Fn(&Record) -> Option<String>| records.iter().filter_map(|r| value(r)).collect::<BTreeSet<_>>();
    let build = known(&|r| {
        let build = r.provenance.build.as_ref()?;
        Some(format!(
            "{} for {}, target-cpu {}, features {}",
            build.rustc, build.target, build.target_cpu, build.cargo_features
        ))
    });
    let gpu = known(&|r| r.provenance.gpu.as_ref().map(Gpu::label));
    let memory = known(&|r| Some(format!("{:.1} GiB", r.provenance.memory_bytes? as f64 / f64::from(1 << 30))));
    let command = known(&|r| Some(r.provenance.command.join(" ")).filter(|command| !command.is_empty()));
    let more = [("compiler", build), ("GPU", gpu), ("memory", memory), ("command", command)];
    lines.extend(
        more.into_iter().filter(|(_, values)| !values.is_empty()).map(|(name, values)| (name.to_owned(), values)),
    );
    let assets: BTreeSet<_> = records.iter().flat_map(|record| &record.provenance.assets).collect();
    lines.extend(assets.into_iter().map(|(name, sha256)| (name.clone(), BTreeSet::from([format!("sha256 {sha256}")]))));
    let line = |(name, values): (String, BTreeSet<String>)| {
        let values = values.into_iter().collect::<Vec<_>>().join("; ");
        format!("<dt>{}</dt><dd>{}</dd>\n", escape(&name), escape(&values))
    };
    format!("<h2>Provenance</h2>\n<dl>\n{}</dl>\n", lines.into_iter().map(line).collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn markup_in_names_is_text() {
        assert_eq!(super::escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}

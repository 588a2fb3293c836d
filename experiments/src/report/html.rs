//! The report as one page: no scripts, no other files, figures inline as SVG.

use std::collections::BTreeSet;

use super::tables::{Align, Document, Table};
use crate::record::Record;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;border-top:2px solid;border-bottom:2px solid;white-space:nowrap}\
.wide{overflow-x:auto}th,td{padding:.15rem .8rem;text-align:left}.r{text-align:right}thead{border-bottom:1px solid}\
.s{border-top:1px solid #999}p.note,figcaption{color:#333;font-size:.9rem}figure{margin:2rem 0}svg{max-width:44rem;width:100%;height:auto}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.85rem}dd{margin:0;overflow-wrap:anywhere}";

/// A drawn figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawing {
    /// The SVG element.
    pub svg: String,
    /// What it shows.
    pub caption: String,
}

/// The whole page.
pub fn render(document: &Document, drawings: &[Drawing], records: &[&Record]) -> String {
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
    page + &provenance(records) + "</body>\n</html>\n"
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
    let gpu = known(&|r| r.provenance.gpu.as_ref().map(|gpu| format!("{}, driver {}", gpu.name, gpu.driver)));
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

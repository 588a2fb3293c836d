//! Reports: records to tables, figures and a page. Opens no model; the same records give the same files, byte for byte.
//!
//! ```text
//! records --newest--> rows (row.rs, frame.rs) --> DataFrame --> table.csv, records.parquet
//!                                                     |--> Document (tables.rs) --> table.md, table.tex, terminal
//!                                                     |--> Figure (figures.rs) --> figures/*.svg, *.png
//!                                                                                        report.html holds both
//! ```

pub mod axis;
pub mod figures;
pub mod frame;
pub mod html;
pub mod latex;
pub mod markdown;
pub mod plots;
pub mod row;
pub mod tables;
pub mod terminal;

use std::path::{Path, PathBuf};

use anyhow::Context;
use polars::prelude::{CsvWriter, ParquetWriter, SerWriter};
use tempfile::NamedTempFile;

use self::figures::Figure;
use self::html::Drawing;
use self::row::Row;
use self::tables::Document;
use crate::config::ReferenceValue;
use crate::record::Record;

/// Where a report was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFiles {
    /// `table.md`.
    pub markdown: PathBuf,
    /// `table.tex`, for `\input`.
    pub latex: PathBuf,
    /// `table.csv`: the whole frame.
    pub csv: PathBuf,
    /// `records.parquet`: the whole frame.
    pub parquet: PathBuf,
    /// `report.html`: everything on one page.
    pub html: PathBuf,
    /// `figures/*.svg` and `figures/*.png`.
    pub figures: Vec<PathBuf>,
}

/// Writes tables, figures and the page of `records` into `folder`. Each file is replaced as a whole or not at all.
///
/// # Errors
/// A metric that tables do not know, or a file that cannot be written.
pub fn write_report(
    folder: &Path,
    question: &str,
    records: &[Record],
    references: &[ReferenceValue],
) -> anyhow::Result<ReportFiles> {
    let newest = frame::newest(records);
    let mut data =
        Row::to_frame(&frame::rows(&newest, references)?).context("cannot build the frame of the records")?;
    let rows = Row::from_frame(&data).context("cannot read the frame of the records")?;
    let document = document(question, &rows, &newest, references);
    let mut drawn = figures::perplexity_figures(&rows);
    drawn.extend(figures::block_figures(&frame::block_curves(&newest)));

    let (drawings, figures) = write_figures(&folder.join("figures"), &drawn)?;
    let files = ReportFiles {
        markdown: folder.join("table.md"),
        latex: folder.join("table.tex"),
        csv: folder.join("table.csv"),
        parquet: folder.join("records.parquet"),
        html: folder.join("report.html"),
        figures,
    };
    write_whole(&files.markdown, markdown::render(&document).as_bytes())?;
    write_whole(&files.latex, latex::render(&document).as_bytes())?;
    write_whole(&files.html, html::render(&document, &drawings, &newest).as_bytes())?;
    let mut csv = Vec::new();
    CsvWriter::new(&mut csv).finish(&mut data).context("cannot write the frame as CSV")?;
    write_whole(&files.csv, &csv)?;
    let mut parquet = Vec::new();
    ParquetWriter::new(&mut parquet).finish(&mut data).context("cannot write the frame as Parquet")?;
    write_whole(&files.parquet, &parquet)?;
    Ok(files)
}

/// The tables of `records` for a terminal of 110 columns or more.
///
/// # Errors
/// A metric that tables do not know.
pub fn terminal_table(question: &str, records: &[Record], references: &[ReferenceValue]) -> anyhow::Result<String> {
    let newest = frame::newest(records);
    let rows = frame::rows(&newest, references)?;
    Ok(terminal::render(&document(question, &rows, &newest, references)))
}

fn document(question: &str, rows: &[Row], newest: &[&Record], references: &[ReferenceValue]) -> Document {
    let mut document = Document::new(question, rows, &frame::failures(newest));
    if let Some(table) = document.tables.last_mut() {
        let unmatched = frame::unmatched_references(rows, references);
        table.notes.extend(unmatched.iter().map(|label| format!("Published but not measured here: {label}.")));
    }
    document
}

/// Writes each figure in both formats and returns what the page shows.
fn write_figures(folder: &Path, figures: &[Figure]) -> anyhow::Result<(Vec<Drawing>, Vec<PathBuf>)> {
    std::fs::create_dir_all(folder).with_context(|| {
        format!("{}: cannot create the folder; choose a writable folder with --out", folder.display())
    })?;
    let (mut drawings, mut paths) = (Vec::new(), Vec::new());
    for figure in figures {
        let (svg_path, png_path) =
            (folder.join(format!("{}.svg", figure.slug)), folder.join(format!("{}.png", figure.slug)));
        let svg = plots::svg(figure)?;
        write_whole(&svg_path, svg.as_bytes())?;
        // plotters takes the format from the extension, so the temporary file needs it too.
        let temporary = temporary_beside(&png_path, ".png")?;
        plots::write_png(figure, temporary.path())?;
        replace(temporary, &png_path)?;
        drawings.push(Drawing { svg, caption: figure.caption.clone() });
        paths.extend([svg_path, png_path]);
    }
    Ok((drawings, paths))
}

/// Writes `path` so that a reader sees the old content or the new, never a part.
fn write_whole(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let temporary = temporary_beside(path, ".tmp")?;
    std::fs::write(temporary.path(), content)
        .with_context(|| format!("{}: cannot write (is the disk full?)", path.display()))?;
    replace(temporary, path)
}

/// A temporary file in the folder of `path`: a rename is whole only within one file system.
fn temporary_beside(path: &Path, suffix: &str) -> anyhow::Result<NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".report-").suffix(suffix);
    // As open to others as the umask lets an ordinary file be; a temporary file is private otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).with_context(|| {
        format!("{}: cannot write into this folder; choose a writable one with --out", folder.display())
    })
}

fn replace(temporary: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    temporary.persist(path).map(drop).with_context(|| format!("{}: cannot replace the file", path.display()))
}

#[cfg(test)]
mod tests;

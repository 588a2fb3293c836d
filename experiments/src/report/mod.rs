//! Reports: records to tables, figures and a page. Opens no model; the same records give the same files, byte for byte.
//!
//! ```text
//! records --newest--> rows of cells (row.rs, frame.rs) --> DataFrame --> table.csv, records.parquet
//!              |----> rows shown, draws as their mean (draws.rs)
//!                                                     |--> Document (tables.rs) --> table.md and so on (formats.rs), terminal
//!                                                     |--> Pivot (pivot.rs) --> paper-table.md and so on (paper_table.rs), matrix
//!                                                     |--> Picture (bits.rs, blocks.rs, lines.rs) --> figures/*.svg, *.png
//!                                                                                        report.html holds both
//! ```

pub mod axis;
pub mod bars;
mod base;
pub mod bits;
pub mod blocks;
pub mod caption;
pub(crate) mod columns;
pub mod dots;
pub mod doubts;
pub mod draws;
pub mod figures;
pub mod formats;
pub mod frame;
pub mod header;
pub mod html;
pub mod latex;
mod legend;
pub mod lines;
pub mod looks;
pub mod markdown;
pub mod matrix;
pub mod paper_table;
pub mod picture;
pub mod pivot;
pub mod plots;
mod predictors;
pub mod row;
mod series;
pub mod standing;
pub mod tables;
pub mod terminal;
pub mod typst;

use std::path::{Path, PathBuf};

use anyhow::Context;
use polars::prelude::{CsvWriter, DataFrame, ParquetWriter, PolarsResult, SerWriter};
use tempfile::NamedTempFile;

use self::formats::{TABLE_FORMATS, TableFormat};
use self::html::{Drawing, Page};
use self::matrix::{Kinds, Matrix};
use self::picture::Picture;
use self::pivot::Pivot;
use self::row::Row;
use self::standing::Standings;
use self::tables::{Document, Table};
use crate::config::{FigureSpec, ReferenceValue};
use crate::files::{self, folder_of, temporary_in};
use crate::plan::{Cell, Plan};
use crate::record::{RESOLVED_CONFIG, Record};
use crate::speed;
use crate::speed::record::{SpeedLine, told_apart};
use crate::speed::rows::{DecodeRow, KernelRow, decode_rows, kernel_rows};

/// Where a report was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFiles {
    /// `table.md`, `table.tex` and so on: a file for each of [`TABLE_FORMATS`], in that order.
    pub tables: Vec<PathBuf>,
    /// `table.csv`: the whole frame, of an experiment that has cells.
    pub csv: PathBuf,
    /// `records.parquet`: the whole frame, of an experiment that has cells.
    pub parquet: PathBuf,
    /// `report.html`: everything on one page.
    pub html: PathBuf,
    /// `speed-kernels` and `speed-decode`, each as `.csv` and `.parquet`, where speed was measured.
    pub speed: Vec<PathBuf>,
    /// `paper-table` in each of [`TABLE_FORMATS`], and as `.csv`, where the experiment lays out a table.
    pub paper_tables: Vec<PathBuf>,
    /// `figures/*.svg` and `figures/*.png`.
    pub figures: Vec<PathBuf>,
}

/// What `plan` asks and records answer, worked out once to be written and shown: intervals of a large experiment take half a minute.
pub struct Report<'r> {
    plan: &'r Plan,
    newest: &'r [&'r Record],
    rows: &'r draws::Rows<'r>,
    pivots: Vec<Pivot<'r>>,
    /// Tables of what was measured, and failures.
    document: Document,
    predictors: Vec<Table>,
    kernels: Vec<KernelRow>,
    decoding: Vec<DecodeRow>,
}

/// Works out a report and hands it to `user`.
///
/// # Errors
/// A metric that this program does not know, or an error of `user`.
pub fn with_report<C, R>(
    plan: &Plan,
    records: &[Record<C>],
    speed: &[SpeedLine],
    user: impl FnOnce(&Report<'_>) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let asked = asked(plan, records);
    let newest = frame::newest(&asked);
    let rows = draws::rows(&newest, &plan.references, &plan.baseline)?;
    let means: Vec<&Record> = rows.records.iter().map(|record| &**record).collect();
    let pivots = pivots(plan, &rows.shown, &means);
    let mut document = document(plan, &rows.shown, &means, &pivots);
    let (timed, not_timed) = told_apart(speed);
    document.failures.extend(not_timed);
    user(&Report {
        plan,
        newest: &newest,
        rows: &rows,
        pivots,
        document,
        predictors: predictors::tables(&rows.shown),
        kernels: kernel_rows(&timed),
        decoding: decode_rows(&timed),
    })
}

impl Report<'_> {
    /// Writes tables, figures and the page into `folder`. Each file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<ReportFiles> {
        files::sweep(folder);
        let (kernels, decoding) = (&self.kernels, &self.decoding);
        let mut document = self.document.clone();
        document.tables.extend(self.predictors.clone());
        document.tables.extend(speed_tables(kernels, decoding, self.plan));
        let (drawings, figures) = write_figures(&folder.join("figures"), &self.pictures())?;
        let files = ReportFiles {
            tables: write_tables(folder, "table", &document)?,
            csv: folder.join("table.csv"),
            parquet: folder.join("records.parquet"),
            html: folder.join("report.html"),
            speed: write_speed_frames(folder, kernels, decoding)?,
            paper_tables: write_paper_tables(folder, self.plan, &self.pivots)?,
            figures,
        };
        let tables = paper_tables(&self.pivots).chain(document.tables.clone()).collect();
        let page = Document { tables, ..document };
        // Absent where a report is made of records alone.
        let settings = std::fs::read_to_string(folder.join(RESOLVED_CONFIG)).unwrap_or_default();
        let cells = &self.rows.cells;
        let page = Page { document: &page, drawings: &drawings, cells, records: self.newest, settings: &settings };
        write_whole(&files.html, html::render(&page).as_bytes())?;
        if self.plan.cells().next().is_some() {
            let mut data = frame_of(cells).context("cannot build the frame of the records")?;
            write_frame(&mut data, &files.csv, &files.parquet)?;
        }
        Ok(files)
    }

    /// The tables, for a terminal of 110 columns or more; one laid out as a published table may be wider.
    pub fn terminal(&self) -> String {
        let mut document = self.document.clone();
        document.tables.extend(self.predictors.clone());
        document.tables.extend(paper_tables(&self.pivots));
        document.tables.extend(speed_tables(&self.kernels, &self.decoding, self.plan));
        terminal::render(&document)
    }

    fn pictures(&self) -> Vec<Picture> {
        let rows = &self.rows.shown;
        let mut pictures: Vec<Picture> = own_figures(self.plan, rows, &self.pivots, self.newest);
        // The experiment's own figure shows the same numbers along what it compares.
        if pictures.is_empty() {
            pictures.extend(bits::value_figures(rows));
        }
        pictures.extend(predictors::figures(rows).into_iter().map(Picture::Lines));
        pictures.extend(blocks::block_figures(&frame::block_curves(self.newest)).into_iter().map(Picture::Lines));
        pictures.extend(speed::figures::decode_figures(&self.decoding).into_iter().map(Picture::Bars));
        pictures.extend(speed::figures::kernel_figures(&self.kernels).into_iter().map(Picture::Lines));
        pictures
    }
}

/// The frame of `rows`, without the columns that only overrides of grids, or only tasks, fill where there are none.
fn frame_of(rows: &[Row]) -> PolarsResult<DataFrame> {
    let mut frame = Row::to_frame(rows)?;
    if rows.iter().all(|row| row.full_precision_weights.is_none()) {
        frame = frame.drop_many(["full_precision_weights", "bits_per_weight_of_all"]);
    }
    if rows.iter().all(|row| row.questions_lost.is_none()) {
        frame = frame.drop_many(["questions_lost", "questions_won", "mcnemar_p"]);
    }
    Ok(frame)
}

fn write_frame(data: &mut DataFrame, csv_path: &Path, parquet_path: &Path) -> anyhow::Result<()> {
    let mut csv = Vec::new();
    CsvWriter::new(&mut csv).finish(data).context("cannot write the frame as CSV")?;
    write_whole(csv_path, &csv)?;
    let mut parquet = Vec::new();
    ParquetWriter::new(&mut parquet).finish(data).context("cannot write the frame as Parquet")?;
    write_whole(parquet_path, &parquet)
}

fn write_speed_frames(folder: &Path, kernels: &[KernelRow], decoding: &[DecodeRow]) -> anyhow::Result<Vec<PathBuf>> {
    let mut frames = Vec::new();
    if !kernels.is_empty() {
        frames.push(("speed-kernels", KernelRow::to_frame(kernels).context("cannot build the frame of kernels")?));
    }
    if !decoding.is_empty() {
        frames.push(("speed-decode", DecodeRow::to_frame(decoding).context("cannot build the frame of decoding")?));
    }
    let mut paths = Vec::new();
    for (name, mut data) in frames {
        let path = |extension: &str| folder.join(format!("{name}.{extension}"));
        write_frame(&mut data, &path("csv"), &path("parquet"))?;
        paths.extend([path("csv"), path("parquet")]);
    }
    Ok(paths)
}

/// What was timed, and published speeds where anything was.
fn speed_tables(kernels: &[KernelRow], decoding: &[DecodeRow], plan: &Plan) -> impl Iterator<Item = Table> {
    let published = if decoding.is_empty() { &[] } else { plan.published_speed.as_slice() };
    let measured = speed::tables::decode_tables(decoding).into_iter().chain(speed::tables::kernel_tables(kernels));
    measured.chain(speed::published::published_tables(published)).collect::<Vec<_>>().into_iter()
}

/// What was measured of one cell, beside its base model, as Markdown tables: for a model's card.
///
/// # Errors
/// A metric that this program does not know.
pub fn cell_tables<C>(plan: &Plan, records: &[Record<C>], cell: &Cell) -> anyhow::Result<String> {
    let plan = plan.beside_base(cell);
    let asked = asked(&plan, records);
    let newest = frame::newest(&asked);
    let rows = frame::rows(&newest, &[], &plan.baseline)?;
    Ok(markdown::tables(&document(&plan, &rows, &newest, &[])))
}

/// The records of the cells that `plan` asks for, in its order and with its names for calibrations. A folder may hold
/// records of an earlier version of the question; those are not shown.
fn asked<C>(plan: &Plan, records: &[Record<C>]) -> Vec<Record> {
    let of_cell = |cell: &Cell| {
        let id = cell.id();
        let records = records.iter().filter(move |record| record.cell_id == id);
        records.map(|record| record.of_cell(cell)).collect::<Vec<_>>()
    };
    plan.cells().flat_map(of_cell).collect()
}

fn document(plan: &Plan, rows: &[Row], records: &[&Record], pivots: &[Pivot<'_>]) -> Document {
    let mut document = Document::new(&plan.question, rows, &frame::failures(records), &Standings::new(records));
    if let Some(table) = document.tables.last_mut() {
        // A table laid out as the published one has a place for them, measured or not.
        let has_place = |reference: &ReferenceValue| {
            pivots.iter().flat_map(Pivot::published).any(|placed| std::ptr::eq(placed, reference))
        };
        let unmatched = frame::unmatched_references(rows, &plan.references).into_iter();
        let nowhere = unmatched.filter(|reference| !has_place(reference));
        table.notes.extend(nowhere.map(|reference| format!("Published but not measured here: {}.", reference.label())));
    }
    document
}

/// The tables that the experiment lays out itself.
fn pivots<'a>(plan: &'a Plan, rows: &'a [Row], records: &[&Record]) -> Vec<Pivot<'a>> {
    let Some(spec) = &plan.table else { return Vec::new() };
    Pivot::all(spec, plan, rows, &frame::texts(records), &Standings::new(records))
}

fn paper_tables(pivots: &[Pivot<'_>]) -> impl Iterator<Item = Table> {
    pivots.iter().map(paper_table::table)
}

/// `paper-table` in each of [`TABLE_FORMATS`] and as `.csv`; where there are several tables, each has a CSV file of its own.
fn write_paper_tables(folder: &Path, plan: &Plan, pivots: &[Pivot<'_>]) -> anyhow::Result<Vec<PathBuf>> {
    if pivots.is_empty() {
        return Ok(Vec::new());
    }
    let document =
        Document { question: plan.question.clone(), tables: paper_tables(pivots).collect(), failures: Vec::new() };
    let mut files = write_tables(folder, "paper-table", &document)?;
    for (index, pivot) in pivots.iter().enumerate() {
        let number = if pivots.len() > 1 { format!("-{}", index + 1) } else { String::new() };
        let path = folder.join(format!("paper-table{number}.csv"));
        write_whole(&path, paper_table::csv(pivot).as_bytes())?;
        files.push(path);
    }
    Ok(files)
}

/// The tables of `document` as `NAME.md` and so on, in each of [`TABLE_FORMATS`].
fn write_tables(folder: &Path, name: &str, document: &Document) -> anyhow::Result<Vec<PathBuf>> {
    let write = |format: &TableFormat| {
        let path = folder.join(format!("{name}.{}", format.extension));
        write_whole(&path, (format.render)(document).as_bytes()).map(|()| path)
    };
    TABLE_FORMATS.iter().map(write).collect()
}

/// The figure that the experiment asks for.
fn own_figures(plan: &Plan, rows: &[Row], pivots: &[Pivot<'_>], newest: &[&Record]) -> Vec<Picture> {
    match &plan.figure {
        None => Vec::new(),
        Some(FigureSpec::Lines(lines)) => lines::line_figures(rows, lines.x).into_iter().map(Picture::Lines).collect(),
        Some(FigureSpec::Matrix(_)) => {
            let kinds = Kinds::of(newest);
            let matrix = |pivot| Matrix::of(pivot, &paper_table::table(pivot).caption, &kinds);
            pivots.iter().map(|pivot| Picture::Matrix(matrix(pivot))).collect()
        }
    }
}

/// Writes each figure in both formats and returns what the page shows. The folder holds no other pictures then.
fn write_figures(folder: &Path, pictures: &[Picture]) -> anyhow::Result<(Vec<Drawing>, Vec<PathBuf>)> {
    std::fs::create_dir_all(folder).with_context(|| {
        format!("{}: cannot create the folder; choose a writable folder with --out", folder.display())
    })?;
    let (mut drawings, mut paths) = (Vec::new(), Vec::new());
    for picture in pictures {
        let (svg_path, png_path) =
            (folder.join(format!("{}.svg", picture.slug())), folder.join(format!("{}.png", picture.slug())));
        let svg = picture.svg()?;
        write_whole(&svg_path, svg.as_bytes())?;
        // plotters takes the format from the extension, so the temporary file needs it too.
        let temporary = temporary_beside(&png_path, ".png")?;
        picture.write_png(temporary.path())?;
        replace(temporary, &png_path)?;
        drawings.push(Drawing { svg, caption: picture.caption().to_owned() });
        paths.extend([svg_path, png_path]);
    }
    sweep(folder, &paths)?;
    Ok((drawings, paths))
}

/// Removes pictures of earlier reports, of what is no longer asked: beside those of this one they would pass for its own.
fn sweep(folder: &Path, kept: &[PathBuf]) -> anyhow::Result<()> {
    let problem = || format!("{}: cannot remove figures of an earlier report", folder.display());
    for entry in std::fs::read_dir(folder).with_context(problem)? {
        let path = entry.with_context(problem)?.path();
        let is_picture = path.extension().is_some_and(|extension| extension == "svg" || extension == "png");
        if is_picture && !kept.contains(&path) {
            std::fs::remove_file(&path).with_context(problem)?;
        }
    }
    Ok(())
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
    let folder = folder_of(path);
    temporary_in(folder, suffix).with_context(|| {
        format!("{}: cannot write into this folder; choose a writable one with --out", folder.display())
    })
}

fn replace(temporary: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    temporary.persist(path).map(drop).with_context(|| format!("{}: cannot replace the file", path.display()))
}

#[cfg(test)]
mod draws_tests;
#[cfg(test)]
mod figure_tests;
#[cfg(test)]
mod metric_tests;
#[cfg(test)]
mod paper_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
pub(crate) use self::tests::{terminal_table, write_report};
#[cfg(test)]
mod uncertainty_tests;

//! Whether texts tell what tasks lose: rank correlations over the quantized cells of an experiment, and the accuracy against the
//! divergence.
//!
//! Several metrics of a text cost a minute, tasks an hour: who may judge a quantization by the first wants to know how far they agree.

use std::collections::BTreeMap;

use itertools::Itertools as _;

use super::axis::{Axis, Scale};
use super::figures::{Figure, Level, Names, Panel, Point, Series, level_value};
use super::header::Header;
use super::looks::looks;
use super::pivot::is_base;
use super::row::Row;
use super::series::{self, Named};
use super::tables::{Align, Column, Table, TableRow, missing, slug};
use crate::eval::metric::{Direction, Unit};
use crate::stats::spearman;

/// Cells without which an order says nothing.
const LEAST_CELLS: usize = 8;

/// What stands for all tasks together.
const ALL_TASKS: &str = "all tasks";

/// A number of each quantized cell, worse where it is larger.
struct Losses<'a> {
    name: String,
    first: &'a Row,
    by_cell: BTreeMap<&'a str, f64>,
}

/// Both sides of one model.
struct Sides<'a> {
    texts: Vec<Losses<'a>>,
    tasks: Vec<Losses<'a>>,
}

impl<'a> Sides<'a> {
    /// Of rows of one model, sorted as [`super::frame::rows`] sorts them; `None` where there is nothing to compare.
    fn of(rows: &'a [Row]) -> Option<Self> {
        let (mut texts, mut tasks): (Vec<Losses<'_>>, Vec<Losses<'_>>) = (Vec::new(), Vec::new());
        for rows in rows.chunk_by(Row::is_comparable) {
            let losses = Losses::of(rows)?;
            match losses.first.quantity().unit {
                Unit::FractionOfQuestions => tasks.push(losses),
                Unit::NatsPerAnswer | Unit::PerAnswer => {}
                _ => texts.push(losses),
            }
        }
        // Of a task's accuracies the normalized one, which leaderboards show, stands for it.
        let is_better_known = |one: &Losses<'_>| one.first.quantity().name.contains("normalized");
        let normalized: Vec<String> =
            tasks.iter().filter(|one| is_better_known(one)).map(|one| one.first.dataset.clone()).collect();
        tasks.retain(|one| is_better_known(one) || !normalized.contains(&one.first.dataset));
        for task in &mut tasks {
            task.name.clone_from(&task.first.dataset);
        }
        if texts.is_empty() || tasks.is_empty() || tasks[0].by_cell.len() < LEAST_CELLS {
            return None;
        }
        if tasks.len() > 1 {
            tasks.push(Losses::mean(&tasks));
        }
        Some(Self { texts, tasks })
    }
}

impl<'a> Losses<'a> {
    /// Of comparable rows.
    fn of(rows: &'a [Row]) -> Option<Self> {
        let first = rows.first()?;
        let quantity = first.quantity();
        let sign = match quantity.direction {
            Direction::HigherIsBetter => -1.0,
            Direction::LowerIsBetter => 1.0,
        };
        let quantized = rows.iter().filter(|row| !is_base(row) && row.value.is_finite());
        let by_cell = quantized.map(|row| (row.cell_id.as_str(), sign * row.value)).collect();
        Some(Self { name: format!("{} on {}", quantity.label, first.dataset), first, by_cell })
    }

    /// The mean over tasks, of cells that have all.
    fn mean(tasks: &[Self]) -> Self {
        let mean = |cell: &&'a str| {
            let of_tasks: Vec<f64> = tasks.iter().filter_map(|task| task.by_cell.get(cell).copied()).collect();
            (of_tasks.len() == tasks.len()).then(|| (*cell, of_tasks.iter().sum::<f64>() / tasks.len() as f64))
        };
        let by_cell = tasks[0].by_cell.keys().filter_map(mean).collect();
        Self { name: ALL_TASKS.into(), first: tasks[0].first, by_cell }
    }

    /// Rank correlation over cells that both have.
    fn correlation(&self, other: &Self) -> Option<f64> {
        let both: (Vec<f64>, Vec<f64>) =
            self.by_cell.iter().filter_map(|(cell, loss)| Some((*loss, *other.by_cell.get(cell)?))).unzip();
        spearman(&both.0, &both.1)
    }
}

/// The rows of each model.
fn of_models(rows: &[Row]) -> impl Iterator<Item = Vec<Row>> + '_ {
    rows.iter()
        .map(|row| &row.model)
        .unique()
        .map(|model| rows.iter().filter(|row| row.model == *model).cloned().collect())
}

/// A table a model that has texts and tasks on enough cells.
pub(super) fn tables(rows: &[Row]) -> Vec<Table> {
    of_models(rows).filter_map(|rows| Some(table(&Sides::of(&rows)?))).collect()
}

fn table(sides: &Sides<'_>) -> Table {
    let n_cells = sides.tasks[0].by_cell.len();
    let row = |text: &Losses<'_>| {
        let cell = |task| text.correlation(task).map_or_else(missing, |rho| format!("{rho:.2}"));
        TableRow {
            cells: std::iter::once(text.name.clone()).chain(sides.tasks.iter().map(cell)).collect(),
            emphasized: Vec::new(),
            starts_section: false,
        }
    };
    let headings = std::iter::once(("what a text says", Align::Left))
        .chain(sides.tasks.iter().map(|task| (task.name.as_str(), Align::Right)));
    let model = &sides.tasks[0].first.model;
    Table {
        slug: slug(&format!("{model} rank correlations")),
        caption: format!(
            "{model}: rank correlation (Spearman) of what a text says with the accuracy on tasks, over {n_cells} quantized \
             cells; 1 where both order them alike. Of {n_cells} cells without any connection one in twenty lies beyond \
             ±{:.2}. Accuracies have errors of their own, which lower it. The normalized accuracy stands for a task that has \
             one; {ALL_TASKS}: the mean of the accuracies.",
            1.96 / ((n_cells - 1) as f64).sqrt(),
        ),
        columns: headings.map(|(heading, align)| Column { heading: heading.to_owned(), align }).collect(),
        rows: sides.texts.iter().map(row).collect(),
        emphasis: None,
        notes: Vec::new(),
    }
}

/// The mean accuracy against the divergence from the base model, or the perplexity where no divergence was measured.
pub(super) fn figures(rows: &[Row]) -> Vec<Figure> {
    of_models(rows).filter_map(|rows| figure(&rows)).collect()
}

fn figure(rows: &[Row]) -> Option<Figure> {
    let sides = Sides::of(rows)?;
    let is_divergence = |one: &&Losses<'_>| one.first.quantity().name == "kl_divergence";
    let text = sides.texts.iter().find(is_divergence).or(sides.texts.first())?;
    let all = sides.tasks.last()?;
    let shown = |cell: &str| rows.iter().find(|row| row.cell_id == cell);
    let cells: Vec<(&Row, Point)> = (text.by_cell.iter())
        .filter_map(|(cell, x)| Some((shown(cell)?, Point { x: *x, y: -*all.by_cell.get(cell)?, bar: None })))
        .collect();
    let named: Vec<&dyn Named> = cells.iter().map(|(row, _)| *row as &dyn Named).collect();
    let names: Vec<(String, String)> =
        named.iter().map(|one| (one.key().to_owned(), series::name(*one, &named))).collect();
    let mut lines: Vec<Series> = Vec::new();
    for ((name, look), (_, point)) in names.iter().map(|(_, name)| name).zip(looks(&names)).zip(&cells) {
        match lines.iter_mut().find(|line| line.name == *name) {
            Some(line) => line.points.push(*point),
            None => lines.push(Series { name: name.clone(), look, points: vec![*point] }),
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.x.total_cmp(&b.x)));
    let levels: Vec<Level> = base_accuracy(rows, &sides).into_iter().collect();
    let model = &text.first.model;
    let x_words = text.first.quantity().words();
    let panel = Panel {
        title: String::new(),
        x: Axis::new(&format!("{x_words}, log scale"), Scale::Log, cells.iter().map(|(_, point)| point.x)),
        y: Axis::new(
            "mean accuracy of the tasks",
            Scale::Linear,
            cells.iter().map(|(_, point)| point.y).chain(levels.iter().map(|level| level.value)),
        ),
        series: lines,
        levels,
        beyond: Vec::new(),
        below: Vec::new(),
    };
    let tasks = sides.tasks.iter().map(|task| task.name.as_str()).filter(|name| *name != ALL_TASKS).join(", ");
    let comparable: Vec<Row> = rows.iter().filter(|row| row.is_comparable(text.first)).cloned().collect();
    Some(Figure {
        slug: format!("accuracy-against-{}", slug(&format!("{} {model}", text.first.quantity().label))),
        caption: format!(
            "{model}: mean accuracy over {tasks} against the {} on {}, a mark a grid, for each method.",
            text.first.quantity().label,
            text.first.dataset,
        ),
        header: Header::of_rows(&comparable),
        panels: vec![panel],
        n_columns: 1,
        shares_axes: true,
        names: Names::Above,
    })
}

/// The mean accuracy of the base model, where it has all tasks.
fn base_accuracy(rows: &[Row], sides: &Sides<'_>) -> Option<Level> {
    let tasks: Vec<&Losses<'_>> = sides.tasks.iter().filter(|task| task.name != ALL_TASKS).collect();
    let of_task = |task: &&Losses<'_>| rows.iter().find(|row| is_base(row) && row.is_comparable(task.first));
    let accuracies: Vec<f64> = tasks.iter().filter_map(of_task).map(|row| row.value).collect();
    let mean = accuracies.iter().sum::<f64>() / tasks.len() as f64;
    let word = format!("base model ({})", level_value(Unit::FractionOfQuestions, mean));
    (accuracies.len() == tasks.len()).then(|| Level::base(word, mean))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::{AWQ, RTN, done, grid, record, rows};
    use super::*;
    use crate::eval::registry::MetricKey;
    use crate::record::{Measurement, Record};

    /// Two methods on four grids: the more a cell loses on the text, the fewer questions it answers, but for one pair.
    fn records() -> Vec<Record> {
        let cells = [(4, 128), (4, 64), (3, 128), (3, 64)].into_iter().flat_map(|(bits, group)| {
            [(RTN, 1.0), (AWQ, 0.6)].map(|(method, share)| {
                let loss = share * 0.9_f64.powi(i32::from(group == 64)) * if bits == 4 { 0.1 } else { 0.5 };
                (record(Some((method, grid(bits, group))), loss), loss)
            })
        });
        let base = (record(None, 0.0), 0.0);
        std::iter::once(base).chain(cells).map(|(record, loss)| with_task(record, loss)).collect()
    }

    fn with_task(mut record: Record, loss: f64) -> Record {
        let is_odd = (0.29..0.31).contains(&loss);
        let measurements = &mut done(&mut record).measurements;
        let accuracy = if is_odd { 0.4 } else { 0.6 - 0.3 * loss };
        let metric = MetricKey::Accuracy.quantity().name.to_owned();
        let of_task = Measurement {
            metric,
            dataset: "piqa".into(),
            protocol: "lm-eval-task".into(),
            value: accuracy,
            samples: vec![accuracy; measurements[0].samples.len()],
            ..measurements[0].clone()
        };
        measurements.push(of_task);
        record
    }

    #[test]
    fn texts_are_held_against_tasks() {
        let rows = rows(&records(), &[]);
        let tables = tables(&rows);
        let [table] = tables.as_slice() else { panic!("{tables:?}") };
        let cells: Vec<&[String]> = table.rows.iter().map(|row| row.cells.as_slice()).collect();
        assert_eq!(cells, [["perplexity on wikitext2-test", "0.93"]]);
        assert!(
            table.caption.contains("over 8 quantized cells") && table.caption.contains("±0.74"),
            "{}",
            table.caption
        );
        let figures = figures(&rows);
        let [figure] = figures.as_slice() else { panic!("{figures:?}") };
        let series = &figure.panels[0].series;
        assert_eq!(series.iter().map(|line| line.points.len()).collect::<Vec<_>>(), [4, 4]);
        assert!(series.iter().all(|line| line.points.is_sorted_by(|a, b| a.x <= b.x)));
        assert_eq!(figure.panels[0].levels.len(), 1);
    }

    #[test]
    fn few_cells_or_one_side_alone_say_nothing() {
        let few = rows(&records()[..7], &[]);
        assert!(tables(&few).is_empty() && figures(&few).is_empty());
        let texts: Vec<Row> = rows(&records(), &[]).into_iter().filter(|row| row.dataset != "piqa").collect();
        assert!(tables(&texts).is_empty() && figures(&texts).is_empty());
    }
}

//! Figures of perplexity from synthetic records: what is drawn where, and what is named instead.

#![allow(clippy::unwrap_used)]

use super::tests::{records, rows};
use super::*;

#[test]
fn a_loss_is_drawn_also_where_it_is_none() {
    let mut rows = rows(&records(), &[]);
    spread_over_grids(&mut rows);
    rows[1].log_ratio_fp = Some(-0.01);
    let figure = lines(&rows, 1);
    assert_eq!(figure.panels[0].y.scale, axis::Scale::Linear);
    let n_points: usize = figure.panels.iter().flat_map(|panel| &panel.series).map(|series| series.points.len()).sum();
    assert_eq!(n_points, 4);
    assert!(figure.panels[0].y.low < -0.01);
}

#[test]
fn what_is_of_no_use_is_named_instead_of_drawn() {
    let mut rows = rows(&records(), &[]);
    rows[4].log_ratio_fp = Some(5.0);
    let Picture::Dots(dots) = &bits::value_figures(&rows)[1] else { panic!("two grids") };
    assert_eq!(dots.label, "ln ratio to FP, nats per token");
    let said = format!("Above the scale: {} W3 g64 5.", rows[4].method);
    assert!(dots.caption.contains(&said), "{}", dots.caption);
    let group = dots.groups.iter().find(|group| group.heading.starts_with("W3 g64")).unwrap();
    assert!(group.axis.low < 0.0 && group.axis.high < 1.0, "{:?}", group.axis);
    let svg = Picture::Dots(dots.clone()).svg().unwrap();
    assert!(svg.contains("aria-label=\"5\""));
}

#[test]
fn panels_by_bits_where_few_bits_lose_much() {
    let mut rows = rows(&records(), &[]);
    spread_over_grids(&mut rows);
    let titles = |figure: &figures::Figure| figure.panels.iter().map(|panel| panel.title.clone()).collect::<Vec<_>>();
    assert_eq!(titles(&lines(&rows, 0)), [""]);
    // All of 3 bits lies far above: nothing is named instead of drawn.
    (rows[3].value, rows[4].value) = (5e5, 6e6);
    let figure = lines(&rows, 0);
    assert_eq!(titles(&figure), ["codes of 4 bits", "codes of 3 bits, log scale"]);
    assert!(figure.panels.iter().all(|panel| panel.beyond.is_empty()));
    assert_eq!(figure.panels[0].levels.len(), 1);
    assert_eq!(figure.panels[1].levels, [], "the base model is far below");
    assert_eq!(titles(&lines(&rows, 1)), ["codes of 4 bits", "codes of 3 bits"]);
}

/// Each row on a grid of its own, so that lines are drawn.
fn spread_over_grids(rows: &mut [Row]) {
    for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.grid.is_some()) {
        row.grid = Some(format!("grid {index}"));
    }
}

/// The figure of perplexity, or the one of losses.
fn lines(rows: &[Row], index: usize) -> figures::Figure {
    match &bits::value_figures(rows)[index] {
        Picture::Lines(figure) => figure.clone(),
        other => panic!("{}", other.caption()),
    }
}

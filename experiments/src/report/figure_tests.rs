//! Figures of perplexity from synthetic records: what is drawn where, and what is named instead.

#![allow(clippy::unwrap_used)]

use super::tests::{records, rows};
use super::*;

#[test]
fn losses_over_many_decades_get_a_log_axis_also_where_one_is_not_positive() {
    let mut rows = rows(&records(), &[]);
    spread_over_grids(&mut rows);
    rows[1].delta_fp = Some(-0.01);
    let linear = lines_of_losses(&rows);
    assert_eq!((linear.panels[0].y.scale, n_points(&linear)), (axis::Scale::Linear, 4));
    // Most lies far above: nothing is named instead of drawn.
    (rows[2].delta_fp, rows[3].delta_fp, rows[4].delta_fp) = (Some(400.0), Some(5e6), Some(6e6));
    rows.iter_mut().for_each(|row| row.bits = row.bits.map(|_| 3));
    let log = lines_of_losses(&rows);
    assert_eq!((log.panels[0].y.scale, n_points(&log)), (axis::Scale::Log, 3));
    assert!(log.caption.contains("Not shown: 1 at zero or below."), "{}", log.caption);
}

#[test]
fn what_is_of_no_use_is_named_instead_of_drawn() {
    let mut rows = rows(&records(), &[]);
    rows[4].delta_fp = Some(5e6);
    let Picture::Dots(dots) = &bits::perplexity_figures(&rows)[1] else { panic!("two grids") };
    let said = format!("Above the scale: {} W3 g64 5·10⁶.", rows[4].method);
    assert!(dots.caption.contains(&said), "{}", dots.caption);
    let group = dots.groups.iter().find(|group| group.heading.starts_with("W3 g64")).unwrap();
    assert!(group.axis.position(group.dots[0].value) < group.axis.high && group.axis.high < 100.0, "{:?}", group.axis);
    let svg = Picture::Dots(dots.clone()).svg().unwrap();
    assert!(svg.contains("aria-label=\"5·10⁶\""));
}

#[test]
fn panels_by_bits_where_few_bits_lose_much() {
    let mut rows = rows(&records(), &[]);
    spread_over_grids(&mut rows);
    let near = lines_of_losses(&rows);
    let titles = |figure: &figures::Figure| figure.panels.iter().map(|panel| panel.title.clone()).collect::<Vec<_>>();
    let losses = rows.iter().filter_map(|row| row.delta_fp);
    assert!(losses.clone().fold(0.0, f64::max) > 10.0 * losses.fold(f64::INFINITY, f64::min));
    assert_eq!(titles(&near), ["codes of 4 bits", "codes of 3 bits, log scale"]);
    rows.iter_mut().for_each(|row| row.delta_fp = row.delta_fp.map(|_| 1.0));
    assert_eq!(titles(&lines_of_losses(&rows)), [""]);
}

/// Each row on a grid of its own, so that lines are drawn.
fn spread_over_grids(rows: &mut [Row]) {
    for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.grid.is_some()) {
        row.grid = Some(format!("grid {index}"));
    }
}

fn lines_of_losses(rows: &[Row]) -> figures::Figure {
    match &bits::perplexity_figures(rows)[1] {
        Picture::Lines(figure) => figure.clone(),
        other => panic!("{}", other.caption()),
    }
}

fn n_points(figure: &figures::Figure) -> usize {
    figure.panels.iter().flat_map(|panel| &panel.series).map(|series| series.points.len()).sum()
}

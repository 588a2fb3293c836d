//! The output error of each block, a line a quantized cell: a panel a grid, or a method where calibrations are compared. Pure.

use std::cmp::Reverse;

use itertools::Itertools as _;

use super::axis::{Axis, Scale};
use super::figures::{Figure, Names, Panel, Point, Series};
use super::frame::BlockCurve;
use super::header::Header;
use super::looks::{Look, looks};
use super::series::{self, Named};
use super::tables::slug;

/// A line that lies below the lowest points of half of all lines by so much is named instead of drawn: the others would be
/// pressed together.
const FAR_BELOW: f64 = 100.0;

/// Lines of one panel beyond which their names stand at their ends.
const MAX_IN_LEGEND: usize = 6;

/// One figure a model.
pub fn block_figures(curves: &[BlockCurve]) -> Vec<Figure> {
    let models = curves.iter().map(|curve| curve.model.as_str()).unique();
    models.map(|model| figure(model, &curves.iter().filter(|curve| curve.model == model).collect::<Vec<_>>())).collect()
}

/// A curve with its name and look.
struct Line<'a> {
    curve: &'a BlockCurve,
    name: String,
    look: Look,
}

fn figure(model: &str, curves: &[&BlockCurve]) -> Figure {
    let all: Vec<&dyn Named> = curves.iter().map(|curve| *curve as &dyn Named).collect();
    let names: Vec<(String, String)> = all.iter().map(|one| (one.key().to_owned(), series::name(*one, &all))).collect();
    let looks = looks(&names);
    let lines: Vec<Line<'_>> = curves
        .iter()
        .zip(names.into_iter().zip(looks))
        .map(|(curve, ((_, name), look))| Line { curve, name, look })
        .collect();
    let panels = panels(&lines);
    let by_method = panels.len() > 1 && curves.iter().map(|curve| curve.grid.as_str()).all_equal();
    let n_columns = match panels.len() {
        n @ 1..=3 => n,
        4 => 2,
        _ => 3,
    };
    let crowded = panels.iter().map(|(_, lines)| lines.len()).max().unwrap_or(0) > MAX_IN_LEGEND;
    // Names at the ends of lines need the width of the figure.
    let (names, n_columns) = if crowded && panels.len() <= 2 { (Names::AtEnds, 1) } else { (Names::Above, n_columns) };
    let limit = median(curves.iter().map(|curve| lowest(curve))) / FAR_BELOW;
    let is_drawn = |curve: &BlockCurve| curve.relative_errors.iter().any(|&(_, y)| y >= limit);
    let values = || curves.iter().filter(|curve| is_drawn(curve)).flat_map(|curve| &curve.relative_errors);
    let n_ticks = [7, 7, 4, 3][n_columns];
    let x = Axis::new("block index", Scale::Linear, values().map(|value| value.0 as f64)).with_whole_ticks(n_ticks);
    let y = Axis::new("relative output error, log scale", Scale::Log, values().map(|value| value.1));
    let y = y.with_ticks(if panels.len() > 3 { 4 } else { 6 });
    let panel = |(title, lines): (String, Vec<&Line<'_>>)| Panel {
        title,
        x: x.clone(),
        y: y.clone(),
        series: lines.iter().filter(|line| is_drawn(line.curve)).map(|line| series_of(line, by_method)).collect(),
        levels: Vec::new(),
        beyond: Vec::new(),
        below: lines.iter().filter(|line| !is_drawn(line.curve)).map(|line| line.name.clone()).collect(),
    };
    let draw = curves.iter().find_map(|curve| curve.draw);
    let of_draw =
        draw.map(|draw| format!(" Of several draws of a calibration, draw {draw} is shown.")).unwrap_or_default();
    let grids: Vec<&str> = curves.iter().map(|curve| curve.grid.as_str()).unique().collect();
    let grid = if grids.len() == 1 { format!(", {}", grids[0]) } else { String::new() };
    Figure {
        slug: format!("block-error-{}", slug(model)),
        caption: format!(
            "{model}: squared error of each block's output on the calibration sequences, over the squared output of the \
             full-precision block on the same input.{of_draw}{}",
            series::explanation(lines.iter().map(|line| &line.name))
        ),
        header: Header::new(format!("{model}{grid}; outputs on the calibration sequences")),
        panels: panels.into_iter().map(panel).collect(),
        n_columns,
        shares_axes: true,
        names,
    }
}

/// A panel a grid; of one grid, a panel a method where calibrations are compared, with the lines that have none in each.
fn panels<'l, 'c>(lines: &'l [Line<'c>]) -> Vec<(String, Vec<&'l Line<'c>>)> {
    let grids: Vec<&str> = lines.iter().map(|line| line.curve.grid.as_str()).unique().collect();
    if grids.len() > 1 {
        let of_grid = |grid: &str| (grid.to_owned(), lines.iter().filter(|line| line.curve.grid == grid).collect());
        // Many grids stand in their own order, which is a table of them; few are best read from the most bits.
        let is_table = grids.len() > 3;
        let in_order =
            grids.into_iter().sorted_by_key(|grid| Reverse(if is_table { None } else { grid.split(' ').next() }));
        return in_order.map(of_grid).collect();
    }
    let compared: Vec<&str> = lines
        .iter()
        .filter(|line| line.curve.calibration.is_some())
        .map(|line| line.curve.method.as_str())
        .unique()
        .collect();
    if compared.len() < 2 || lines.len() <= MAX_IN_LEGEND {
        return vec![(String::new(), lines.iter().collect())];
    }
    let of_method = |method: &str| {
        let belongs = |line: &&Line<'_>| line.curve.method == method || line.curve.calibration.is_none();
        (method.to_owned(), lines.iter().filter(belongs).collect())
    };
    compared.into_iter().map(of_method).collect()
}

/// The line as it is drawn; where a panel is of one method, the calibration is its name.
fn series_of(line: &Line<'_>, by_method: bool) -> Series {
    let point = |&(block_idx, y): &(usize, f64)| Point { x: block_idx as f64, y, bar: None };
    Series {
        name: line.curve.calibration.clone().filter(|_| by_method).unwrap_or_else(|| line.name.clone()),
        look: line.look,
        points: line.curve.relative_errors.iter().map(point).collect(),
    }
}

fn lowest(curve: &BlockCurve) -> f64 {
    curve.relative_errors.iter().map(|&(_, y)| y).fold(f64::INFINITY, f64::min)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.sorted_by(f64::total_cmp).collect();
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(method: usize, grid: &str, calibration: Option<&str>) -> BlockCurve {
        BlockCurve {
            model: "m".into(),
            method: format!("method {method}"),
            method_key: ["rtn", "awq", "gptq", "quip"][method % 4].into(),
            grid: grid.into(),
            calibration: calibration.map(str::to_owned),
            propagation: None,
            draw: None,
            relative_errors: vec![(0, 0.1), (1, 0.2)],
        }
    }

    fn titles(figure: &Figure) -> Vec<(&str, usize)> {
        figure.panels.iter().map(|panel| (panel.title.as_str(), panel.series.len())).collect()
    }

    #[test]
    fn each_grid_has_a_panel() {
        let curves: Vec<BlockCurve> =
            ["W4 g64", "W3 g64"].iter().flat_map(|grid| (0..3).map(move |method| curve(method, grid, None))).collect();
        let figures = block_figures(&curves);
        assert_eq!((figures.len(), figures[0].slug.as_str()), (1, "block-error-m"));
        assert_eq!(titles(&figures[0]), [("W4 g64", 3), ("W3 g64", 3)]);
        let looks = |panel: usize| figures[0].panels[panel].series.iter().map(|series| series.look).collect::<Vec<_>>();
        assert_eq!(looks(0), looks(1));
    }

    #[test]
    fn calibrations_are_compared_within_a_method_and_with_what_needs_none() {
        let calibrations = ["1", "2", "4", "8"];
        let mut curves = vec![curve(0, "W3 g64", None)];
        curves.extend(calibrations.iter().flat_map(|name| [1, 2].map(|method| curve(method, "W3 g64", Some(name)))));
        let figures = block_figures(&curves);
        assert_eq!(titles(&figures[0]), [("method 1", 5), ("method 2", 5)]);
        let names = figures[0].panels[1].series.iter().map(|series| series.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["method 0", "1", "2", "4", "8"]);
    }

    #[test]
    fn a_line_far_below_all_others_is_named_instead_of_drawn() {
        let mut curves: Vec<BlockCurve> = (0..3).map(|method| curve(method, "W3 g64", None)).collect();
        curves[1].relative_errors = vec![(0, 1e-7), (1, 2e-7)];
        let panel = &block_figures(&curves)[0].panels[0];
        assert_eq!((panel.series.len(), panel.below.as_slice()), (2, ["method 1".to_owned()].as_slice()));
        assert!(panel.y.low > -2.0, "{:?}", panel.y);
    }

    #[test]
    fn crowded_lines_are_named_at_their_ends() {
        let curves: Vec<BlockCurve> = (0..8).map(|method| curve(method, "W3 g64", None)).collect();
        assert_eq!(block_figures(&curves)[0].names, Names::AtEnds);
        assert_eq!(block_figures(&curves[..6])[0].names, Names::Above);
    }
}

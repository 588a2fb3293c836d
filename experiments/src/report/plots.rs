//! Draws a [`Figure`]: its legend, and each panel with its axes, levels and lines.

use plotters::style::RGBColor;

use super::axis::Axis;
use super::figures::{Figure, Names, Panel, Series};
use super::header::wrapped;
use super::legend::{self, Sample};
use super::looks::mixed;
use super::picture::WIDTH;
use super::picture::sheet::{BLACK, HPos, Sheet, Spot, VPos};
use super::picture::typeface::width_of;

/// Geometry, in a figure's own pixels.
const EDGE: f64 = 16.0;
const AXIS_LABEL: f64 = 50.0;
const TICK: f64 = 9.0;
const MINOR_TICK: f64 = 5.0;
const TICK_GAP: f64 = 8.0;
const X_TICKS_HEIGHT: f64 = 52.0;
const TITLE_HEIGHT: f64 = 46.0;
const LINE_HEIGHT: f64 = 42.0;
/// Between panels.
const GAP: f64 = 22.0;

/// Height of a panel's plot where there is one row of panels, two, or more.
const PLOT_HEIGHTS: [f64; 3] = [540.0, 400.0, 300.0];

const GRID: RGBColor = RGBColor(222, 222, 222);

/// Lines of many points have marks at some of them only, no nearer to each other on average.
const MARK_DISTANCE: f64 = 70.0;
const MAX_MARKED: usize = 8;

/// Draws the figure below `top` and returns where it ends.
pub(super) fn draw(figure: &Figure, sheet: &mut Sheet, top: f64) -> f64 {
    let [series, levels] = entries(figure);
    let top = legend::draw(sheet, series, top);
    let top = legend::draw(sheet, levels, top) + 8.0;
    let layout = Layout::of(figure, top);
    for (index, panel) in figure.panels.iter().enumerate() {
        layout.frame(index).draw(panel, sheet);
    }
    let left = layout.left_of(0);
    let (middle, bottom) = ((left + layout.right()) / 2.0, layout.bottom());
    if let Some(panel) = figure.panels.first() {
        sheet.words(&panel.x.label, (middle, bottom + AXIS_LABEL / 2.0), (HPos::Center, VPos::Center));
        sheet.upward_words(&panel.y.label, (EDGE + AXIS_LABEL / 2.0 - 8.0, (top + bottom - X_TICKS_HEIGHT) / 2.0));
    }
    bottom + AXIS_LABEL
}

/// Entries of the legend: of lines, and of levels.
fn entries(figure: &Figure) -> [Vec<(Sample, String)>; 2] {
    let series = figure.panels.iter().flat_map(|panel| &panel.series);
    let series = series.filter(|_| figure.names == Names::Above);
    let series = series.map(|series| (Sample::Line(series.look), series.name.clone()));
    let levels = figure.panels.iter().flat_map(|panel| &panel.levels);
    let levels = levels.map(|level| (Sample::Level(level.clone()), level.name.clone()));
    [series.collect(), levels.collect()]
}

/// Where panels lie.
struct Layout<'a> {
    figure: &'a Figure,
    top: f64,
    /// Room for the labels of vertical ticks.
    y_ticks: f64,
    /// Room for names at the ends of lines.
    names: f64,
    plot_width: f64,
    plot_height: f64,
}

impl<'a> Layout<'a> {
    fn of(figure: &'a Figure, top: f64) -> Self {
        let tick_widths = figure
            .panels
            .iter()
            .flat_map(|panel| panel.y.ticks.iter().map(|&tick| width_of(&panel.y.tick_label(tick))));
        let y_ticks = tick_widths.fold(0.0, f64::max) + TICK + TICK_GAP;
        let names = match figure.names {
            Names::Above => 0.0,
            Names::AtEnds => {
                let series = figure.panels.iter().flat_map(|panel| &panel.series);
                series.map(|series| width_of(&series.name)).fold(0.0, f64::max) + 56.0
            }
        };
        let columns = figure.n_columns as f64;
        let with_ticks = if figure.shares_axes { 1.0 } else { columns };
        let room = f64::from(WIDTH) - 2.0 * EDGE - AXIS_LABEL - y_ticks * with_ticks - GAP * (columns - 1.0) - names;
        let n_rows = figure.panels.len().div_ceil(figure.n_columns.max(1));
        let plot_height = PLOT_HEIGHTS[n_rows.clamp(1, PLOT_HEIGHTS.len()) - 1];
        // The last label of a horizontal axis sticks out by half.
        Self { figure, top, y_ticks, names, plot_width: (room - EDGE) / columns, plot_height }
    }

    /// Words above the plot of a panel, where panels are as wide as the figure.
    fn beyond_height(&self, panel: &Panel) -> f64 {
        LINE_HEIGHT * beyond_lines(panel, self.plot_width).len() as f64
    }

    /// Where a row of panels begins.
    fn top_of(&self, row: usize) -> f64 {
        let panels = self.figure.panels.iter().take(row * self.figure.n_columns).step_by(self.figure.n_columns);
        self.top + row as f64 * self.row_height() + panels.map(|panel| self.beyond_height(panel)).sum::<f64>()
    }

    fn row_height(&self) -> f64 {
        let x_ticks = if self.figure.shares_axes { 0.0 } else { X_TICKS_HEIGHT };
        self.title_height() + self.plot_height + x_ticks + if self.figure.shares_axes { 8.0 } else { 4.0 }
    }

    fn title_height(&self) -> f64 {
        if self.figure.panels.iter().all(|panel| panel.title.is_empty()) { 0.0 } else { TITLE_HEIGHT }
    }

    fn left_of(&self, column: usize) -> f64 {
        let column = column as f64;
        let ticks = if self.figure.shares_axes { self.y_ticks } else { self.y_ticks * (column + 1.0) };
        EDGE + AXIS_LABEL + ticks + column * (self.plot_width + GAP)
    }

    fn right(&self) -> f64 {
        self.left_of(self.figure.n_columns - 1) + self.plot_width
    }

    /// Where the panels end, with the labels of their ticks.
    fn bottom(&self) -> f64 {
        let n_rows = self.figure.panels.len().div_ceil(self.figure.n_columns);
        self.top_of(n_rows) + if self.figure.shares_axes { X_TICKS_HEIGHT } else { 0.0 }
    }

    fn frame(&self, index: usize) -> Frame {
        let (row, column) = (index / self.figure.n_columns, index % self.figure.n_columns);
        let beyond = self.figure.panels.get(index).map_or(0.0, |panel| self.beyond_height(panel));
        let top = self.top_of(row) + self.title_height() + beyond;
        let left = self.left_of(column);
        let is_lowest = index + self.figure.n_columns >= self.figure.panels.len();
        Frame {
            left,
            right: left + self.plot_width,
            top,
            bottom: top + self.plot_height,
            names: self.names > 0.0,
            y_labels: !self.figure.shares_axes || column == 0,
            x_labels: !self.figure.shares_axes || is_lowest,
        }
    }
}

/// Where the plot of a panel lies, and what is written at its edges.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    names: bool,
    y_labels: bool,
    x_labels: bool,
}

impl Frame {
    fn draw(&self, panel: &Panel, sheet: &mut Sheet) {
        self.draw_axes(panel, sheet);
        for level in &panel.levels {
            let path: Vec<Spot> =
                level.corners(&panel.x, &panel.y).into_iter().map(|at| self.spot(panel, at)).collect();
            level.draw_line(sheet, &path);
        }
        panel.series.iter().for_each(|series| self.draw_line(panel, series, sheet));
        panel.series.iter().enumerate().for_each(|(index, series)| self.draw_points(panel, series, index, sheet));
        if self.names {
            self.draw_names(panel, sheet);
        }
        self.draw_beyond(panel, sheet);
    }

    fn spot(&self, panel: &Panel, (x, y): (f64, f64)) -> Spot {
        (self.x(&panel.x, x), self.y(&panel.y, y))
    }

    fn x(&self, axis: &Axis, position: f64) -> f64 {
        self.left + (position - axis.low) / (axis.high - axis.low) * (self.right - self.left)
    }

    fn y(&self, axis: &Axis, position: f64) -> f64 {
        self.bottom - (position - axis.low) / (axis.high - axis.low) * (self.bottom - self.top)
    }

    fn draw_axes(&self, panel: &Panel, sheet: &mut Sheet) {
        for &tick in &panel.y.ticks {
            let y = self.y(&panel.y, tick);
            sheet.line(&[(self.left, y), (self.right, y)], None, GRID, 1.5);
        }
        if !panel.title.is_empty() {
            let beyond = LINE_HEIGHT * beyond_lines(panel, self.right - self.left).len() as f64;
            let middle = ((self.left + self.right) / 2.0, self.top - beyond - TITLE_HEIGHT / 2.0);
            sheet.words(&panel.title, middle, (HPos::Center, VPos::Center));
        }
        sheet.line(&[(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], None, BLACK, 2.0);
        let minor = |ticks: &[f64], length: f64| ticks.iter().map(move |&tick| (tick, length)).collect::<Vec<_>>();
        let both = |axis: &Axis| [minor(&axis.minor_ticks, MINOR_TICK), minor(&axis.ticks, TICK)].concat();
        for (tick, length) in both(&panel.x) {
            let x = self.x(&panel.x, tick);
            sheet.line(&[(x, self.bottom), (x, self.bottom + length)], None, BLACK, 2.0);
        }
        for (tick, length) in both(&panel.y) {
            let y = self.y(&panel.y, tick);
            sheet.line(&[(self.left - length, y), (self.left, y)], None, BLACK, 2.0);
        }
        if self.x_labels {
            for &tick in &panel.x.ticks {
                let at = (self.x(&panel.x, tick), self.bottom + TICK + TICK_GAP);
                sheet.words(&panel.x.tick_label(tick), at, (HPos::Center, VPos::Top));
            }
        }
        if self.y_labels {
            for &tick in &panel.y.ticks {
                let at = (self.left - TICK - TICK_GAP, self.y(&panel.y, tick));
                sheet.words(&panel.y.tick_label(tick), at, (HPos::Right, VPos::Center));
            }
        }
    }

    /// The line of a series, cut off where it leaves the plot.
    fn draw_line(&self, panel: &Panel, series: &Series, sheet: &mut Sheet) {
        let at = |point: &super::figures::Point| (panel.x.position(point.x), panel.y.position(point.y));
        let mut path: Vec<Spot> = Vec::new();
        for ends in series.points.windows(2) {
            let Some((from, to)) = inside(at(&ends[0]), at(&ends[1]), &panel.y) else { continue };
            let (from, to) = (self.spot(panel, from), self.spot(panel, to));
            if path.last() != Some(&from) {
                series.look.draw_line(sheet, &path);
                path = vec![from];
            }
            path.push(to);
        }
        series.look.draw_line(sheet, &path);
    }

    /// The points of a series; those above the plot are arrows at its edge.
    fn draw_points(&self, panel: &Panel, series: &Series, index: usize, sheet: &mut Sheet) {
        let color = series.look.color;
        let max_marks = ((self.right - self.left) / MARK_DISTANCE).max(1.0) as usize;
        let n_points = series.points.len();
        let every = if n_points <= MAX_MARKED { 1 } else { n_points.div_ceil(max_marks) };
        for (nth, point) in series.points.iter().enumerate() {
            let position = panel.y.position(point.y);
            let x = self.x(&panel.x, panel.x.position(point.x));
            if position > panel.y.high {
                sheet.area(vec![(x - 10.0, self.top + 14.0), (x + 10.0, self.top + 14.0), (x, self.top - 6.0)], color);
                continue;
            }
            if let Some((low, high)) = point.bar {
                let place = |value: f64| {
                    let position =
                        if value > 0.0 || panel.y.position(1.0) == 1.0 { panel.y.position(value) } else { panel.y.low };
                    self.y(&panel.y, position.clamp(panel.y.low, panel.y.high))
                };
                sheet.line(&[(x, place(high)), (x, place(low))], None, color, 2.0);
                for y in [place(high), place(low)] {
                    sheet.line(&[(x - 6.0, y), (x + 6.0, y)], None, color, 2.0);
                }
            }
            // Series begin at points of their own, so that marks do not cover each other.
            if (nth + every - index % every).is_multiple_of(every) {
                series.look.draw_mark(sheet, (x, self.y(&panel.y, position)));
            }
        }
    }

    /// Names at the right ends of lines, moved apart where they would touch.
    fn draw_names(&self, panel: &Panel, sheet: &mut Sheet) {
        let ends = panel.series.iter().filter_map(|series| {
            let last = series.points.last()?;
            let y = panel.y.position(last.y).clamp(panel.y.low, panel.y.high);
            Some((series, self.spot(panel, (panel.x.position(last.x), y))))
        });
        let mut ends: Vec<(&Series, Spot)> = ends.collect();
        ends.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let places =
            apart(&ends.iter().map(|end| end.1.1).collect::<Vec<_>>(), LINE_HEIGHT - 4.0, self.top, self.bottom);
        for ((series, end), y) in ends.into_iter().zip(places) {
            let begin = self.right + 36.0;
            sheet.line(&[end, (self.right + 6.0, end.1), (begin - 6.0, y)], None, series.look.color, 1.5);
            let color = mixed(series.look.color, BLACK, 0.35);
            sheet.colored_words(&series.name, (begin, y), (HPos::Left, VPos::Center), color);
        }
    }

    /// What lies above the plot, in words above it; what lies below, within it.
    fn draw_beyond(&self, panel: &Panel, sheet: &mut Sheet) {
        let lines = beyond_lines(panel, self.right - self.left);
        for (index, line) in lines.iter().rev().enumerate() {
            let y = self.top - LINE_HEIGHT * (index as f64 + 0.5) - 4.0;
            sheet.words(line, (self.left, y), (HPos::Left, VPos::Center));
        }
        if !panel.below.is_empty() {
            let at = (self.left + 12.0, self.top + LINE_HEIGHT / 2.0);
            sheet.words(&format!("below: {}", panel.below.join(", ")), at, (HPos::Left, VPos::Center));
        }
    }
}

/// What lies above a plot, in lines of some width.
fn beyond_lines(panel: &Panel, width: f64) -> Vec<String> {
    if panel.beyond.is_empty() {
        return Vec::new();
    }
    wrapped(&format!("Off the scale: {}.", panel.beyond.join("; ")), width)
}

/// The part of a piece of a line that lies inside of an axis, from its first end to its second.
fn inside(from: Spot, to: Spot, axis: &Axis) -> Option<(Spot, Spot)> {
    let cut = |(x0, y0): Spot, (x1, y1): Spot, edge: f64| (x0 + (x1 - x0) * (edge - y0) / (y1 - y0), edge);
    let limited = |end: Spot, other: Spot| match end.1 {
        y if y > axis.high => (other.1 <= axis.high).then(|| cut(end, other, axis.high)),
        y if y < axis.low => (other.1 >= axis.low).then(|| cut(end, other, axis.low)),
        _ => Some(end),
    };
    limited(from, to).zip(limited(to, from))
}

/// Places at least `distance` apart, each as near to its own of `wanted` (ascending) as its neighbours let it, between `top`
/// and `bottom` where there is room.
fn apart(wanted: &[f64], distance: f64, top: f64, bottom: f64) -> Vec<f64> {
    // Neighbours that touch become one group around its mean; groups that touch become one.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for &place in wanted {
        groups.push((place, 1));
        while let [.., (a, n_a), (b, n_b)] = groups.as_slice() {
            if b - a >= distance * (*n_a + *n_b) as f64 / 2.0 {
                break;
            }
            let n = n_a + n_b;
            let mean = (a * *n_a as f64 + b * *n_b as f64) / n as f64;
            groups.truncate(groups.len() - 2);
            groups.push((mean, n));
        }
    }
    let members = |(center, n): (f64, usize)| {
        let first = center - distance * (n as f64 - 1.0) / 2.0;
        (0..n).map(move |index| first + distance * index as f64)
    };
    let mut places: Vec<f64> = groups.into_iter().flat_map(members).collect();
    for index in (0..places.len()).rev() {
        let limit = bottom - distance * (places.len() - 1 - index) as f64;
        places[index] = places[index].min(limit);
    }
    for (index, place) in places.iter_mut().enumerate() {
        *place = place.max(top + distance * index as f64);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::axis::Scale;

    #[test]
    fn names_do_not_touch() {
        assert_eq!(apart(&[0.0, 100.0], 40.0, 0.0, 200.0), [0.0, 100.0]);
        assert_eq!(apart(&[99.0, 101.0], 40.0, 0.0, 200.0), [80.0, 120.0]);
        let crowded = apart(&[5.0, 6.0, 7.0, 190.0, 195.0], 40.0, 0.0, 200.0);
        assert!(crowded.windows(2).all(|pair| pair[1] - pair[0] >= 40.0 - 1e-9), "{crowded:?}");
        assert!(crowded[0] >= 0.0 && crowded[4] <= 200.0, "{crowded:?}");
    }

    #[test]
    fn lines_end_at_the_edge() {
        let axis = Axis { low: 0.0, high: 10.0, ..Axis::new("", Scale::Linear, std::iter::empty()) };
        assert_eq!(inside((0.0, 5.0), (1.0, 15.0), &axis), Some(((0.0, 5.0), (0.5, 10.0))));
        assert_eq!(inside((0.0, 12.0), (1.0, 15.0), &axis), None);
        assert_eq!(inside((0.0, -10.0), (1.0, 20.0), &axis).map(|ends| (ends.0.1, ends.1.1)), Some((0.0, 10.0)));
    }
}

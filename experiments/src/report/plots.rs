//! Draws a [`Figure`]: its legend, its axes and its lines.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::figures::{Figure, Point, Series};
use super::picture::{FONT, FONT_SIZE, PALETTE, WIDTH, text_width};

/// Below the legend, in the figure's own pixels.
const PLOT_HEIGHT: u32 = 640;

/// Dash and gap in pixels; `None` is a solid line.
type Dashes = Option<(u32, u32)>;

/// Of the first, second, ... level.
const LEVEL_DASHES: [Dashes; 2] = [Some((14, 8)), Some((4, 6))];

/// Of the first, second, ... pair of grids.
const LINE_DASHES: [Dashes; 3] = [None, Some((16, 8)), Some((6, 6))];

/// Distance of neighbouring error bars at one place, in pixels.
const BAR_SHIFT: f64 = 7.0;

type Pixel = (i32, i32);

/// Height of the figure in its own pixels.
///
/// # Errors
/// If text cannot be measured.
pub(super) fn height(figure: &Figure) -> anyhow::Result<u32> {
    Ok(Legend::of(figure)?.height() + PLOT_HEIGHT)
}

/// Draws the figure.
pub(super) fn draw<DB: DrawingBackend>(figure: &Figure, root: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let legend = Legend::of(figure)?;
    let (top, bottom) = root.split_vertically(legend.height() * scale);
    legend.draw(&top, scale)?;
    let font = || (FONT, FONT_SIZE * scale).into_font();
    let mut chart = ChartBuilder::on(&bottom)
        .margin_top(12 * scale)
        .margin_right(36 * scale)
        .margin_left(20 * scale)
        .margin_bottom(8 * scale)
        .x_label_area_size(84 * scale)
        .y_label_area_size(130 * scale)
        .build_cartesian_2d(figure.x.clone(), figure.y.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(BLACK.mix(0.14).stroke_width(scale))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.stroke_width(2 * scale))
        .set_all_tick_mark_size(8 * scale)
        .label_style(font())
        .x_desc(&figure.x.label)
        .y_desc(&figure.y.label)
        .axis_desc_style(font())
        .draw()?;
    let area = chart.plotting_area();
    for (index, level) in figure.levels.iter().enumerate() {
        let corners = level.corners(&figure.x, &figure.y);
        let path: Vec<Pixel> = corners.iter().map(|corner| area.map_coordinate(corner)).collect();
        draw_line(root, &path, level_dashes(index), BLACK.stroke_width(3 * scale), scale)?;
    }
    (0..figure.series.len()).try_for_each(|index| draw_series(root, area, figure, index, scale))?;
    Ok(())
}

type PlotArea<DB> = DrawingArea<DB, Cartesian2d<Axis, Axis>>;

/// Positions of our own axes, with the ticks and labels that they choose.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, position: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (position - self.low) / (self.high - self.low);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, position: &f64) -> String {
        self.tick_label(*position)
    }
}

fn draw_series<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    area: &PlotArea<DB>,
    figure: &Figure,
    index: usize,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let series = &figure.series[index];
    let mark = Mark::of(series);
    // Bars of methods at the same place stand side by side.
    let shift = (index as f64 - (figure.series.len() as f64 - 1.0) / 2.0) * BAR_SHIFT * f64::from(scale);
    let pixel = |point: &Point, y: f64| {
        let (x, y) = area.map_coordinate(&(figure.x.position(point.x), figure.y.position(y)));
        (if point.bar.is_some() { x + shift.round() as i32 } else { x }, y)
    };
    let path: Vec<Pixel> = series.points.iter().map(|point| pixel(point, point.y)).collect();
    draw_line(root, &path, mark.dashes, mark.color.stroke_width(3 * scale), scale)?;
    for point in &series.points {
        let Some((low, high)) = point.bar else { continue };
        let (top, bottom) = (pixel(point, high), pixel(point, low));
        let cap = 7 * scale as i32;
        let style = mark.color.stroke_width(2 * scale);
        root.draw(&PathElement::new(vec![top, bottom], style))?;
        for (x, y) in [top, bottom] {
            root.draw(&PathElement::new(vec![(x - cap, y), (x + cap, y)], style))?;
        }
    }
    path.into_iter().try_for_each(|center| mark.draw(root, center, scale))
}

/// How a series looks; methods differ without colour too.
#[derive(Clone, Copy)]
struct Mark {
    color: RGBColor,
    /// Corners on a circle, and the angle of the first in turns from the right, clockwise.
    corners: u32,
    turn: f64,
    hollow: bool,
    dashes: Dashes,
}

impl Mark {
    fn of(series: &Series) -> Self {
        // Colours begin again after the last, with other shapes.
        let shape = series.method + series.method / PALETTE.len();
        let (corners, turn) = [(32, 0.0), (4, 0.125), (3, 0.75), (4, 0.0), (3, 0.25), (5, 0.75)][shape % 6];
        Self {
            color: PALETTE[series.method % PALETTE.len()],
            corners,
            turn,
            hollow: series.grid % 2 == 1,
            dashes: LINE_DASHES[series.grid / 2 % LINE_DASHES.len()],
        }
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, (x, y): Pixel, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let polygon = |radius: f64| -> Vec<Pixel> {
            let corner = |index: u32| {
                let angle = std::f64::consts::TAU * (self.turn + f64::from(index) / f64::from(self.corners));
                (x + (radius * angle.cos()).round() as i32, y + (radius * angle.sin()).round() as i32)
            };
            (0..self.corners).map(corner).collect()
        };
        // Shapes with few corners need a larger circle to look as large.
        let (radius, border) = match self.corners {
            3 => (13.0, 6.5),
            4 | 5 => (12.0, 4.2),
            _ => (9.5, 3.2),
        };
        root.draw(&Polygon::new(polygon(radius * f64::from(scale)), self.color.filled()))?;
        if self.hollow {
            root.draw(&Polygon::new(polygon((radius - border) * f64::from(scale)), WHITE.filled()))?;
        }
        Ok(())
    }
}

/// Draws `path`, broken into dashes.
fn draw_line<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    path: &[Pixel],
    dashes: Dashes,
    style: ShapeStyle,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let Some((dash, gap)) = dashes else {
        root.draw(&PathElement::new(path.to_vec(), style))?;
        return Ok(());
    };
    let (dash, period) = (f64::from(dash * scale), f64::from((dash + gap) * scale));
    for ends in path.windows(2) {
        let ((x0, y0), (x1, y1)) = (ends[0], ends[1]);
        let (dx, dy) = (f64::from(x1 - x0), f64::from(y1 - y0));
        let length = dx.hypot(dy);
        let at = |distance: f64| {
            let share = (distance / length).min(1.0);
            (x0 + (share * dx).round() as i32, y0 + (share * dy).round() as i32)
        };
        for index in 0..(length / period).ceil() as u32 {
            let start = f64::from(index) * period;
            root.draw(&PathElement::new(vec![at(start), at(start + dash)], style))?;
        }
    }
    Ok(())
}

/// Names with their marks, in rows above the plot, where they cover nothing.
struct Legend {
    rows: Vec<Vec<Entry>>,
}

struct Entry {
    left: u32,
    sample: Sample,
    name: String,
}

enum Sample {
    Series(Mark),
    Level(Dashes),
}

impl Legend {
    const LEFT: u32 = 60;
    const TOP: u32 = 12;
    const ROW_HEIGHT: u32 = 42;
    const SAMPLE_WIDTH: u32 = 64;
    /// Between a sample and its name; columns are twice as far apart.
    const GAP: u32 = 14;

    /// # Errors
    /// If text cannot be measured.
    fn of(figure: &Figure) -> anyhow::Result<Self> {
        let series = figure.series.iter().map(|series| (Sample::Series(Mark::of(series)), &series.name));
        let levels =
            figure.levels.iter().enumerate().map(|(index, level)| (Sample::Level(level_dashes(index)), &level.name));
        let entries: Vec<_> = series.chain(levels).collect();
        let width = |name: &str| -> anyhow::Result<u32> {
            Ok(Self::SAMPLE_WIDTH + Self::GAP + text_width(name)? + 2 * Self::GAP)
        };
        let widths: Vec<u32> = entries.iter().map(|(_, name)| width(name)).collect::<anyhow::Result<_>>()?;
        // As many columns as fit, each as wide as its widest entry.
        let columns = |n: usize| -> Vec<u32> {
            (0..n).map(|column| widths.iter().skip(column).step_by(n).copied().max().unwrap_or(0)).collect()
        };
        let fits = |n: &usize| columns(*n).iter().sum::<u32>() <= WIDTH - Self::LEFT;
        let most = (1..=entries.len().max(1)).rev().find(fits).unwrap_or(1);
        // Fewer columns where they make no more rows.
        let columns = columns(entries.len().div_ceil(entries.len().div_ceil(most).max(1)).max(1));
        let mut rows: Vec<Vec<Entry>> = Vec::new();
        for (index, (sample, name)) in entries.into_iter().enumerate() {
            let column = index % columns.len();
            if column == 0 {
                rows.push(Vec::new());
            }
            let left = Self::LEFT + columns[..column].iter().sum::<u32>();
            if let Some(row) = rows.last_mut() {
                row.push(Entry { left, sample, name: name.clone() });
            }
        }
        Ok(Self { rows })
    }

    fn height(&self) -> u32 {
        Self::TOP + Self::ROW_HEIGHT * self.rows.len() as u32
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let style = TextStyle::from((FONT, FONT_SIZE * scale).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        let rows = (Self::TOP..).step_by(Self::ROW_HEIGHT as usize).zip(&self.rows);
        for (top, entry) in rows.flat_map(|(top, row)| row.iter().map(move |entry| (top, entry))) {
            let y = ((top + Self::ROW_HEIGHT / 2) * scale) as i32;
            let (left, right) = ((entry.left * scale) as i32, ((entry.left + Self::SAMPLE_WIDTH) * scale) as i32);
            match &entry.sample {
                Sample::Series(mark) => {
                    draw_line(area, &[(left, y), (right, y)], mark.dashes, mark.color.stroke_width(3 * scale), scale)?;
                    mark.draw(area, ((left + right) / 2, y), scale)?;
                }
                Sample::Level(dashes) => {
                    draw_line(area, &[(left, y), (right, y)], *dashes, BLACK.stroke_width(3 * scale), scale)?;
                }
            }
            let text_left = right + (Self::GAP * scale) as i32;
            // The centre of a line of text lies above that of its lower-case letters.
            area.draw(&Text::new(entry.name.clone(), (text_left, y + 3 * scale as i32), style.clone()))?;
        }
        Ok(())
    }
}

fn level_dashes(index: usize) -> Dashes {
    LEVEL_DASHES[index % LEVEL_DASHES.len()]
}

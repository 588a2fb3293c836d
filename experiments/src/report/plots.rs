//! Draws a [`Figure`] as PNG and SVG. Fonts come from the crate `dejavu`, so that no system font is needed and every
//! machine draws the same picture.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::axis::Axis;
use super::figures::{Figure, Series};

const FONT: &str = "sans-serif";

/// Size of a figure in its own pixels; a bitmap has [`BITMAP_SCALE`] times as many. Set in a column of 85 mm, the font
/// below is 8 points high.
const WIDTH: u32 = 1000;
const PLOT_HEIGHT: u32 = 640;
const FONT_SIZE: u32 = 30;
const BITMAP_SCALE: u32 = 2;

const MARKER_RADIUS: f64 = 9.0;

/// Okabe and Ito's palette, without its yellow: told apart with any colour vision.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Dash and gap of the first, second, ... level.
const DASHES: [(i32, i32); 2] = [(14, 8), (3, 6)];

/// The figure as SVG text.
///
/// # Errors
/// If the font cannot be read or plotters fails.
pub fn svg(figure: &Figure) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let legend = Legend::of(figure);
        let root = SVGBackend::with_string(&mut text, (WIDTH, legend.height() + PLOT_HEIGHT)).into_drawing_area();
        draw(&root, figure, &legend, 1).with_context(|| format!("figure {}: cannot draw as SVG", figure.slug))?;
    }
    Ok(text)
}

/// Writes the figure as a PNG file; the extension of `path` must be `.png`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_png(figure: &Figure, path: &Path) -> anyhow::Result<()> {
    let legend = Legend::of(figure);
    let size = (WIDTH * BITMAP_SCALE, (legend.height() + PLOT_HEIGHT) * BITMAP_SCALE);
    let root = BitMapBackend::new(path, size).into_drawing_area();
    draw(&root, figure, &legend, BITMAP_SCALE)
        .with_context(|| format!("{}: cannot write the figure; is the folder writable?", path.display()))
}

fn draw<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    figure: &Figure,
    legend: &Legend,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    register_fonts()?;
    root.fill(&WHITE)?;
    let (top, bottom) = root.split_vertically(legend.height() * scale);
    legend.draw(&top, scale)?;
    let font = || (FONT, FONT_SIZE * scale).into_font();
    let mut chart = ChartBuilder::on(&bottom)
        .margin_top(12 * scale)
        .margin_right(36 * scale)
        .margin_left(8 * scale)
        .margin_bottom(8 * scale)
        .x_label_area_size(88 * scale)
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
        let y = figure.y.position(level.value);
        let (from, to) = (area.map_coordinate(&(figure.x.low, y)), area.map_coordinate(&(figure.x.high, y)));
        draw_dashes(root, from, to, index, scale)?;
    }
    for (index, series) in figure.series.iter().enumerate() {
        draw_series(root, area, figure, series, index, scale)?;
    }
    root.present()?;
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
    series: &Series,
    index: usize,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let mark = Mark::of(index);
    let pixel = |x: f64, y: f64| area.map_coordinate(&(x, figure.y.position(y)));
    // Bars of methods at the same place stand side by side.
    let shift = (index as f64 - (figure.series.len() as f64 - 1.0) / 2.0) * 7.0 * f64::from(scale);
    let moved = |(x, y): (i32, i32), has_bar: bool| (if has_bar { x + shift.round() as i32 } else { x }, y);
    let at = |point: &super::figures::Point| moved(pixel(point.x, point.y), point.bar.is_some());
    root.draw(&PathElement::new(series.points.iter().map(at).collect::<Vec<_>>(), mark.color.stroke_width(3 * scale)))?;
    for point in &series.points {
        if let Some((low, high)) = point.bar {
            let (top, bottom) = (moved(pixel(point.x, high), true), moved(pixel(point.x, low), true));
            let cap = 7 * scale as i32;
            let style = mark.color.stroke_width(2 * scale);
            root.draw(&PathElement::new(vec![top, bottom], style))?;
            for (x, y) in [top, bottom] {
                root.draw(&PathElement::new(vec![(x - cap, y), (x + cap, y)], style))?;
            }
        }
    }
    for point in &series.points {
        mark.draw(root, at(point), scale)?;
    }
    Ok(())
}

/// Shape, filling and colour of one series: distinct without colour.
#[derive(Clone, Copy)]
struct Mark {
    color: RGBColor,
    /// Corners on the unit circle and the angle of the first, in turns from the right, clockwise.
    corners: u32,
    turn: f64,
    hollow: bool,
}

impl Mark {
    fn of(index: usize) -> Self {
        let (corners, turn) = [(24, 0.0), (4, 0.125), (3, 0.75), (4, 0.0), (3, 0.25)][index % 5];
        // Odd ones are hollow; after all shapes, the fillings swap.
        let hollow = (index + index / 5) % 2 == 1;
        Self { color: PALETTE[index % PALETTE.len()], corners, turn, hollow }
    }

    fn draw<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        (x, y): (i32, i32),
        scale: u32,
    ) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let radius = MARKER_RADIUS * f64::from(scale) * if self.corners < 24 { 1.2 } else { 1.0 };
        let corner = |index: u32| {
            let angle = std::f64::consts::TAU * (self.turn + f64::from(index) / f64::from(self.corners));
            (x + (radius * angle.cos()).round() as i32, y + (radius * angle.sin()).round() as i32)
        };
        let mut outline: Vec<(i32, i32)> = (0..=self.corners).map(corner).collect();
        root.draw(&Polygon::new(outline.clone(), if self.hollow { WHITE.filled() } else { self.color.filled() }))?;
        // One more corner closes the joint of the outline.
        outline.push(corner(1));
        root.draw(&PathElement::new(outline, self.color.stroke_width(3 * scale)))?;
        Ok(())
    }
}

fn draw_dashes<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    from: (i32, i32),
    to: (i32, i32),
    index: usize,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let (dash, gap) = DASHES[index % DASHES.len()];
    let (dash, gap) = (dash * scale as i32, gap * scale as i32);
    let mut x = from.0;
    while x < to.0 {
        let end = (x + dash).min(to.0);
        root.draw(&PathElement::new(vec![(x, from.1), (end, from.1)], BLACK.stroke_width(3 * scale)))?;
        x += dash + gap;
    }
    Ok(())
}

/// Names with their marks, in rows above the plot, where they cover nothing.
struct Legend {
    /// Rows of entries; an entry is its column's left edge, what it shows and its name.
    rows: Vec<Vec<Entry>>,
}

#[derive(Clone)]
struct Entry {
    left: u32,
    sample: Sample,
    name: String,
}

#[derive(Clone, Copy)]
enum Sample {
    Series(usize),
    Level(usize),
}

impl Legend {
    const ROW_HEIGHT: u32 = 42;
    const SAMPLE_WIDTH: u32 = 56;
    const LEFT: u32 = 138;

    fn of(figure: &Figure) -> Self {
        let series = figure.series.iter().enumerate().map(|(index, series)| (Sample::Series(index), &series.name));
        let levels = figure.levels.iter().enumerate().map(|(index, level)| (Sample::Level(index), &level.name));
        let entries: Vec<_> = series.chain(levels).collect();
        // DejaVu Sans is 0.6 of its size wide on average; equal columns keep the rows readable.
        let longest = entries.iter().map(|(_, name)| name.chars().count() as u32).max().unwrap_or(0);
        let column = Self::SAMPLE_WIDTH + 12 + longest * FONT_SIZE * 6 / 10 + 24;
        let n_columns = ((WIDTH - Self::LEFT) / column).max(1) as usize;
        let place = |(index, &(sample, name)): (usize, &(Sample, &String))| Entry {
            left: Self::LEFT + index as u32 * column,
            sample,
            name: name.clone(),
        };
        Self { rows: entries.chunks(n_columns).map(|row| row.iter().enumerate().map(place).collect()).collect() }
    }

    fn height(&self) -> u32 {
        16 + Self::ROW_HEIGHT * self.rows.len() as u32
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let style = TextStyle::from((FONT, FONT_SIZE * scale).into_font()).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Left,
            plotters::style::text_anchor::VPos::Center,
        ));
        for (row, entries) in self.rows.iter().enumerate() {
            let y = ((12 + Self::ROW_HEIGHT * row as u32 + Self::ROW_HEIGHT / 2) * scale) as i32;
            for entry in entries {
                let (left, right) = ((entry.left * scale) as i32, ((entry.left + Self::SAMPLE_WIDTH) * scale) as i32);
                match entry.sample {
                    Sample::Series(index) => {
                        let mark = Mark::of(index);
                        area.draw(&PathElement::new(vec![(left, y), (right, y)], mark.color.stroke_width(3 * scale)))?;
                        mark.draw(area, ((left + right) / 2, y), scale)?;
                    }
                    Sample::Level(index) => draw_dashes(area, (left, y), (right, y), index, scale)?,
                }
                area.draw(&Text::new(entry.name.clone(), (right + 12 * scale as i32, y), style.clone()))?;
            }
        }
        Ok(())
    }
}

/// Makes the bundled font known to plotters, once.
fn register_fonts() -> anyhow::Result<()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok());
    if *registered { Ok(()) } else { Err(anyhow!("the bundled font DejaVu Sans cannot be read")) }
}

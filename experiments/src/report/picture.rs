//! [`Picture`]: a figure of any kind, as SVG text and as a PNG file. Fonts come from the crate `dejavu`, so that no system
//! font is needed and every machine draws the same picture.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::bars::Bars;
use super::figures::Figure;
use super::matrix::Matrix;
use super::plots;

pub(super) const FONT: &str = "sans-serif";

/// Size of a figure in its own pixels; a bitmap has [`BITMAP_SCALE`] times as many. Set in a column of 85 mm, the font
/// below is 8 points high.
pub(super) const WIDTH: u32 = 1000;
pub(super) const FONT_SIZE: u32 = 30;
const BITMAP_SCALE: u32 = 2;

/// Okabe and Ito's palette, without its yellow and with grey for black: told apart with any colour vision.
pub(super) const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(100, 100, 100),
];

/// A figure of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// Lines with markers.
    Lines(Figure),
    /// Numbers on colours.
    Matrix(Matrix),
    /// Horizontal bars.
    Bars(Bars),
}

impl Picture {
    /// File name without extension.
    pub fn slug(&self) -> &str {
        match self {
            Self::Lines(figure) => &figure.slug,
            Self::Matrix(matrix) => &matrix.slug,
            Self::Bars(bars) => &bars.slug,
        }
    }

    /// What it shows, in words.
    pub fn caption(&self) -> &str {
        match self {
            Self::Lines(figure) => &figure.caption,
            Self::Matrix(matrix) => &matrix.caption,
            Self::Bars(bars) => &bars.caption,
        }
    }

    /// The figure as SVG text.
    ///
    /// # Errors
    /// If the font cannot be read or plotters fails.
    pub fn svg(&self) -> anyhow::Result<String> {
        let height = self.height()?;
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
            self.draw(&root, 1).with_context(|| format!("figure {}: cannot draw as SVG", self.slug()))?;
        }
        Ok(text)
    }

    /// Writes the figure as a PNG file; the extension of `path` must be `.png`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_png(&self, path: &Path) -> anyhow::Result<()> {
        let size = (WIDTH * BITMAP_SCALE, self.height()? * BITMAP_SCALE);
        let root = BitMapBackend::new(path, size).into_drawing_area();
        self.draw(&root, BITMAP_SCALE)
            .with_context(|| format!("{}: cannot write the figure; is the folder writable?", path.display()))
    }

    fn height(&self) -> anyhow::Result<u32> {
        register_fonts()?;
        match self {
            Self::Lines(figure) => plots::height(figure),
            Self::Matrix(matrix) => Ok(matrix.height()),
            Self::Bars(bars) => Ok(bars.height()),
        }
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        root.fill(&WHITE)?;
        match self {
            Self::Lines(figure) => plots::draw(figure, root, scale)?,
            Self::Matrix(matrix) => matrix.draw(root, scale)?,
            Self::Bars(bars) => bars.draw(root, scale)?,
        }
        root.present()?;
        Ok(())
    }
}

/// Width of a line of text in a figure's own pixels; the fonts are registered.
pub(super) fn text_width(text: &str) -> anyhow::Result<u32> {
    let size = (FONT, FONT_SIZE).into_font().box_size(text);
    size.map(|(width, _)| width).map_err(|error| anyhow!("cannot measure text: {error}"))
}

/// Makes the bundled font known to plotters, once.
fn register_fonts() -> anyhow::Result<()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok());
    if *registered { Ok(()) } else { Err(anyhow!("the bundled font DejaVu Sans cannot be read")) }
}

//! [`Picture`]: a figure of any kind, as SVG text and as a PNG file. Both are written from one list of shapes, with letters
//! of the bundled font: no system font is needed and every machine draws the same picture.

pub(super) mod bitmap;
pub(super) mod sheet;
pub(super) mod svg;
pub(super) mod typeface;

use std::path::Path;

use anyhow::Context;

use self::sheet::Sheet;
use super::bars::Bars;
use super::dots::Dots;
use super::figures::Figure;
use super::header::Header;
use super::matrix::Matrix;
use super::plots;

/// Width of a figure in its own pixels.
pub(super) const WIDTH: u32 = 1000;

/// A figure of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// Lines with markers.
    Lines(Figure),
    /// A number a row.
    Dots(Dots),
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
            Self::Dots(dots) => &dots.slug,
            Self::Matrix(matrix) => &matrix.slug,
            Self::Bars(bars) => &bars.slug,
        }
    }

    /// What it shows, in words.
    pub fn caption(&self) -> &str {
        match self {
            Self::Lines(figure) => &figure.caption,
            Self::Dots(dots) => &dots.caption,
            Self::Matrix(matrix) => &matrix.caption,
            Self::Bars(bars) => &bars.caption,
        }
    }

    /// The figure as SVG text.
    ///
    /// # Errors
    /// If the font cannot be read.
    pub fn svg(&self) -> anyhow::Result<String> {
        let (sheet, height) = self.drawn();
        svg::write(&sheet, height, self.slug()).with_context(|| format!("figure {}: cannot draw as SVG", self.slug()))
    }

    /// Writes the figure as a PNG file; the extension of `path` must be `.png`.
    ///
    /// # Errors
    /// If the font cannot be read or the file cannot be written.
    pub fn write_png(&self, path: &Path) -> anyhow::Result<()> {
        let (sheet, height) = self.drawn();
        bitmap::write(&sheet, height, path)
    }

    fn header(&self) -> &Header {
        match self {
            Self::Lines(figure) => &figure.header,
            Self::Dots(dots) => &dots.header,
            Self::Matrix(matrix) => &matrix.header,
            Self::Bars(bars) => &bars.header,
        }
    }

    /// What is drawn, and its height in its own pixels.
    pub(super) fn drawn(&self) -> (Sheet, f64) {
        let mut sheet = Sheet::default();
        let top = self.header().draw(&mut sheet);
        let bottom = match self {
            Self::Lines(figure) => plots::draw(figure, &mut sheet, top),
            Self::Dots(dots) => dots.draw(&mut sheet, top),
            Self::Matrix(matrix) => matrix.draw(&mut sheet, top),
            Self::Bars(bars) => bars.draw(&mut sheet, top),
        };
        (sheet, bottom.ceil())
    }
}

//! Words as outlines of the bundled font DejaVu Sans: every machine draws the same picture, without fonts of its own, and
//! letters stand as far apart as the font asks for, kerning included.

use std::sync::LazyLock;

use ab_glyph::{Font as _, FontRef, GlyphId, OutlineCurve, Point};
use anyhow::anyhow;

use super::sheet::{HPos, VPos, Words};

/// Size of all words in a figure's own pixels: 8 points where a figure is 85 mm wide.
pub(crate) const FONT_SIZE: f64 = 33.0;

/// Height of capitals in sizes.
const CAPITALS: f64 = 0.729;

/// The bundled font.
pub(super) struct Typeface {
    /// Its outlines.
    pub(super) font: FontRef<'static>,
    /// Its units in a size.
    pub(super) units: f64,
}

/// A letter of a line of words.
pub(super) struct Letter {
    /// Its outline.
    pub(super) glyph: GlyphId,
    /// Where it begins, from the beginning of the line, in units of the font.
    pub(super) left: f64,
}

static TYPEFACE: LazyLock<Option<Typeface>> = LazyLock::new(|| {
    let font = FontRef::try_from_slice(dejavu::sans::regular()).ok()?;
    let units = f64::from(font.units_per_em()?);
    Some(Typeface { font, units })
});

/// The bundled font.
///
/// # Errors
/// If it cannot be read.
pub(super) fn typeface() -> anyhow::Result<&'static Typeface> {
    TYPEFACE.as_ref().ok_or_else(|| anyhow!("the bundled font DejaVu Sans cannot be read"))
}

/// Width of a line of words in a figure's own pixels; 0 where the font cannot be read, which drawing then reports.
pub(crate) fn width_of(text: &str) -> f64 {
    TYPEFACE.as_ref().map_or(0.0, |typeface| typeface.width(text))
}

impl Typeface {
    /// Letters from left to right, and the width of all in units of the font.
    pub(super) fn letters(&self, text: &str) -> (Vec<Letter>, f64) {
        let mut letters: Vec<Letter> = Vec::new();
        let mut end = 0.0;
        for character in text.chars() {
            let glyph = self.font.glyph_id(character);
            let kerning = letters.last().map_or(0.0, |last| self.font.kern_unscaled(last.glyph, glyph));
            let left = end + f64::from(kerning);
            end = left + f64::from(self.font.h_advance_unscaled(glyph));
            letters.push(Letter { glyph, left });
        }
        (letters, end)
    }

    fn width(&self, text: &str) -> f64 {
        self.letters(text).1 * FONT_SIZE / self.units
    }

    /// Where words begin on the line that they stand on, from the point that they are anchored at, before they are turned.
    pub(super) fn origin(&self, words: &Words) -> (f64, f64) {
        let left = match words.anchor.0 {
            HPos::Left => 0.0,
            HPos::Center => -0.5 * self.width(&words.text),
            HPos::Right => -self.width(&words.text),
        };
        let below = match words.anchor.1 {
            VPos::Top => 1.0,
            VPos::Center => 0.5,
        };
        (left, below * CAPITALS * FONT_SIZE)
    }

    /// The outline of a letter as data of an SVG path, `units` to a size, `y` downwards; `None` of a blank.
    pub(super) fn path(&self, glyph: GlyphId, units: f64) -> Option<String> {
        let outline = self.font.outline(glyph)?;
        let mut path = PathData { scale: units / self.units, text: String::new(), pen: None };
        for curve in &outline.curves {
            match *curve {
                OutlineCurve::Line(from, to) => path.part(from, 'l', &[to]),
                OutlineCurve::Quad(from, bend, to) => path.part(from, 'q', &[bend, to]),
                OutlineCurve::Cubic(from, one, two, to) => path.part(from, 'c', &[one, two, to]),
            }
        }
        Some(path.text)
    }
}

/// Data of an SVG path: where the pen is, and how it came there.
struct PathData {
    scale: f64,
    text: String,
    pen: Option<(i32, i32)>,
}

impl PathData {
    /// Goes on from `from`, in a new contour where the pen is elsewhere.
    fn part(&mut self, from: Point, command: char, corners: &[Point]) {
        let scaled = |length: f32| (self.scale * f64::from(length)).round() as i32;
        let whole = |point: &Point| (scaled(point.x), -scaled(point.y));
        let from = whole(&from);
        if self.pen != Some(from) {
            self.text += &format!("M{} {}", from.0, from.1);
        }
        self.text.push(command);
        for (index, (x, y)) in corners.iter().map(whole).enumerate() {
            let (dx, dy) = (x - from.0, y - from.1);
            let blank = |number: i32| if number < 0 { "" } else { " " };
            self.text += &format!("{}{dx}{}{dy}", if index == 0 { "" } else { blank(dx) }, blank(dy));
            self.pen = Some((x, y));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_kerned() {
        let apart: f64 = ["A", "V"].map(width_of).iter().sum();
        assert!(width_of("AV") < apart - 0.5, "{} is not less than {apart}", width_of("AV"));
        assert!((width_of("nn") - 2.0 * width_of("n")).abs() < 1e-9);
    }

    #[test]
    fn an_outline_is_closed_contours() {
        let typeface = typeface().unwrap();
        let path = typeface.path(typeface.font.glyph_id('i'), 256.0).unwrap();
        assert_eq!(path.matches('M').count(), 2, "a stem and a dot: {path}");
        assert_eq!(typeface.path(typeface.font.glyph_id(' '), 256.0), None);
    }

    #[test]
    fn words_are_centred_on_their_capitals() {
        let words = Words {
            text: "H".into(),
            at: (0.0, 0.0),
            anchor: (HPos::Right, VPos::Center),
            color: super::super::sheet::BLACK,
            upwards: false,
        };
        let typeface = typeface().unwrap();
        let (left, below) = typeface.origin(&words);
        assert_eq!(left, -width_of("H"));
        let bounds = typeface.font.outline(typeface.font.glyph_id('H')).unwrap().bounds;
        let height = f64::from(bounds.min.y.abs().max(bounds.max.y.abs())) * FONT_SIZE / typeface.units;
        assert!((2.0 * below - height).abs() < 0.1, "{below} is not half of {height}");
    }
}

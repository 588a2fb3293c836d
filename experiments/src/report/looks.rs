//! [`Look`]: colour, mark and dashes of a series. A method has one colour and one mark in every figure; its variants (another
//! order, another calibration) differ in filling, dashes and, where there are many, in lightness.

use itertools::Itertools as _;
use plotters::style::RGBColor;

use super::picture::sheet::{Dashes, Sheet, Spot, WHITE};

/// How a series looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Of lines and marks.
    pub color: RGBColor,
    /// Of points.
    pub(super) mark: Mark,
    /// Whether marks are filled.
    pub filled: bool,
    /// Of the line.
    pub(super) dashes: Dashes,
}

/// Shape of a point: corners on a circle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mark {
    n_corners: u32,
    /// Angle of the first corner in turns from the right, clockwise.
    turn: f64,
    radius: f64,
    /// Between the edges of a hollow mark, along a radius.
    border: f64,
}

const CIRCLE: Mark = Mark { n_corners: 16, turn: 0.0, radius: 9.5, border: 3.2 };
const SQUARE: Mark = Mark { n_corners: 4, turn: 0.125, radius: 12.0, border: 4.2 };
const DIAMOND: Mark = Mark { n_corners: 4, turn: 0.0, radius: 12.5, border: 4.4 };
const UP: Mark = Mark { n_corners: 3, turn: 0.75, radius: 13.0, border: 6.5 };
const DOWN: Mark = Mark { n_corners: 3, turn: 0.25, radius: 13.0, border: 6.5 };
const PENTAGON: Mark = Mark { n_corners: 5, turn: 0.75, radius: 12.0, border: 4.2 };
const HEXAGON: Mark = Mark { n_corners: 6, turn: 0.0, radius: 11.5, border: 4.0 };
const LEFT: Mark = Mark { n_corners: 3, turn: 0.5, radius: 13.0, border: 6.5 };
const RIGHT: Mark = Mark { n_corners: 3, turn: 0.0, radius: 13.0, border: 6.5 };

const GREY: RGBColor = RGBColor(90, 90, 90);
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILION: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const WINE: RGBColor = RGBColor(136, 34, 85);
const OLIVE: RGBColor = RGBColor(120, 120, 40);

/// Colour and mark of each method, by its registry name. The colours are those of Okabe and Ito, told apart with any colour
/// vision, and two of Tol's for what is never drawn beside many others.
const METHODS: [(&str, RGBColor, Mark); 9] = [
    ("rtn", GREY, CIRCLE),
    ("awq", BLUE, SQUARE),
    ("gptq", VERMILION, UP),
    ("awq_gptq", GREEN, DIAMOND),
    ("quip", PURPLE, DOWN),
    ("hqq", SKY, PENTAGON),
    ("gptaq", ORANGE, HEXAGON),
    ("keep_salient", WINE, LEFT),
    ("fixed_scale", OLIVE, RIGHT),
];

const SOLID: Dashes = None;
const LONG: Dashes = Some((16.0, 9.0));
const SHORT: Dashes = Some((5.0, 8.0));

impl Look {
    /// Of variant `variant` (from 0) of `n_variants` of the method with registry name `key`; grey of a name that is none.
    pub(crate) fn of_method(key: &str, variant: usize, n_variants: usize) -> Self {
        let (_, color, mark) = METHODS.into_iter().find(|known| known.0 == key).unwrap_or(("", GREY, PENTAGON));
        Self { color, mark, filled: true, dashes: SOLID }.variant(variant, n_variants)
    }

    /// Of kind `index`, where what is drawn is no method.
    pub(crate) fn of_kind(index: usize, variant: usize) -> Self {
        let (_, color, mark) = METHODS[index % 7];
        let dashes = [SOLID, LONG, SHORT][variant % 3];
        Self { color, mark, filled: variant.is_multiple_of(2), dashes }
    }

    fn variant(self, variant: usize, n_variants: usize) -> Self {
        let dashes = [SOLID, LONG, SHORT][variant % 3];
        let color = if n_variants > 3 {
            let share = variant as f64 / (n_variants - 1) as f64;
            if share < 0.5 {
                mixed(self.color, RGBColor(0, 0, 0), 0.9 * (0.5 - share))
            } else {
                mixed(self.color, WHITE, 0.9 * (share - 0.5))
            }
        } else {
            self.color
        };
        Self { color, dashes, filled: variant.is_multiple_of(2), ..self }
    }

    /// Hollow and dashed: of published numbers beside our own.
    pub(crate) fn published(self) -> Self {
        Self { filled: false, dashes: SHORT, ..self }
    }

    /// A line with this look.
    pub(super) fn draw_line(&self, sheet: &mut Sheet, path: &[Spot]) {
        sheet.line(path, self.dashes, self.color, 3.0);
    }

    /// A point with this look.
    pub(super) fn draw_mark(&self, sheet: &mut Sheet, center: Spot) {
        let Mark { radius, border, .. } = self.mark;
        sheet.area(self.mark.corners(center, radius), self.color);
        if !self.filled {
            sheet.area(self.mark.corners(center, radius - border), WHITE);
        }
    }
}

impl Mark {
    fn corners(&self, (x, y): Spot, radius: f64) -> Vec<Spot> {
        let corner = |index: u32| {
            let angle = std::f64::consts::TAU * (self.turn + f64::from(index) / f64::from(self.n_corners));
            (x + radius * angle.cos(), y + radius * angle.sin())
        };
        (0..self.n_corners).map(corner).collect()
    }
}

/// Which variants of its method each of `(registry name, name in the legend)` is: its look.
pub(super) fn looks(series: &[(String, String)]) -> Vec<Look> {
    let unique: Vec<&(String, String)> = series.iter().unique().collect();
    let look = |one: &(String, String)| {
        let variants: Vec<_> = unique.iter().filter(|other| other.0 == one.0).collect();
        let variant = variants.iter().position(|other| **other == one).unwrap_or(0);
        Look::of_method(&one.0, variant, variants.len())
    };
    series.iter().map(look).collect()
}

/// `color` with a share of another.
pub(super) fn mixed(color: RGBColor, other: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(color.0, other.0), mix(color.1, other.1), mix(color.2, other.2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::MethodSpec;

    #[test]
    fn every_method_has_a_colour_and_a_mark_of_its_own() {
        let looks: Vec<Look> = MethodSpec::KEYS.iter().map(|key| Look::of_method(key, 0, 1)).collect();
        assert_eq!(METHODS.map(|known| known.0).into_iter().sorted().collect::<Vec<_>>(), {
            let mut keys = MethodSpec::KEYS.to_vec();
            keys.sort_unstable();
            keys
        });
        for (a, b) in looks.iter().tuple_combinations() {
            assert!(a.color != b.color && a.mark != b.mark, "{a:?} {b:?}");
        }
    }

    #[test]
    fn variants_share_the_colour_and_differ() {
        let named = |name: &str| ("gptq".to_owned(), name.to_owned());
        let looks = looks(&[named("GPTQ"), named("GPTQ act-order"), named("GPTQ")]);
        assert_eq!(looks[0], looks[2]);
        assert_eq!(looks[0].color, looks[1].color);
        assert!(looks[0].filled != looks[1].filled && looks[0].dashes != looks[1].dashes);
    }

    #[test]
    fn many_variants_are_told_apart() {
        let looks: Vec<Look> = (0..9).map(|variant| Look::of_method("awq", variant, 9)).collect();
        assert!(looks.iter().tuple_combinations().all(|(a, b)| a != b));
    }
}

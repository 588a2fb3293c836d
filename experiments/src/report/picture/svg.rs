//! A [`Sheet`] as SVG text. Letters are outlines, each stored once; what they say is in the label of their group.

use std::collections::BTreeSet;

use ab_glyph::{Font as _, GlyphId};
use plotters::style::RGBColor;
use sha2::{Digest, Sha256};

use super::WIDTH;
use super::sheet::{Shape, Sheet, Spot, Words};
use super::typeface::{FONT_SIZE, Typeface, typeface};

/// The sheet as SVG text. Names of letters begin with a hash of `slug`, so that a page may hold several figures.
///
/// # Errors
/// If the font cannot be read.
pub(super) fn write(sheet: &Sheet, height: f64, slug: &str) -> anyhow::Result<String> {
    let mut writer = Writer { typeface: typeface()?, prefix: prefix(slug), used: BTreeSet::new() };
    let body: String = sheet.shapes.iter().map(|shape| writer.shape(shape)).collect();
    let height = number(height);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         fill=\"none\" stroke-linecap=\"round\" stroke-linejoin=\"round\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n<defs>\n"
    );
    text.extend(writer.used.iter().filter_map(|&glyph| writer.outline(glyph)));
    Ok(text + "</defs>\n" + &body + "</svg>\n")
}

/// Units of outlines in a size of words, so that a corner is a tenth of a pixel off at most.
const UNITS: f64 = 256.0;

struct Writer {
    typeface: &'static Typeface,
    prefix: String,
    used: BTreeSet<u16>,
}

impl Writer {
    fn outline(&self, glyph: u16) -> Option<String> {
        let path = self.typeface.path(GlyphId(glyph), UNITS)?;
        Some(format!("<path id=\"{}{glyph}\" d=\"{path}\"/>\n", self.prefix))
    }

    fn shape(&mut self, shape: &Shape) -> String {
        match shape {
            Shape::Line { path, dashes, color, width } => {
                let dashes =
                    dashes.map(|(dash, gap)| format!(" stroke-dasharray=\"{} {}\"", number(dash), number(gap)));
                format!(
                    "<polyline points=\"{}\" stroke=\"{}\" stroke-width=\"{}\"{}/>\n",
                    points(path),
                    hex(*color),
                    number(*width),
                    dashes.unwrap_or_default()
                )
            }
            Shape::Area { corners, color } => {
                format!("<polygon points=\"{}\" fill=\"{}\"/>\n", points(corners), hex(*color))
            }
            Shape::Words(words) => self.words(words),
        }
    }

    fn words(&mut self, words: &Words) -> String {
        let (letters, _) = self.typeface.letters(&words.text);
        let (left, below) = self.typeface.origin(words);
        let (x, y) = words.at;
        // Words begin at their left end, and stand on the line that they are moved to.
        let place = if words.upwards {
            format!("translate({} {})rotate(-90)", number(x + below), number(y - left))
        } else {
            format!("translate({} {})", number(x + left), number(y + below))
        };
        let drawn: String = letters
            .iter()
            .filter(|letter| self.typeface.font.outline(letter.glyph).is_some())
            .map(|letter| {
                self.used.insert(letter.glyph.0);
                let at = letter.left * UNITS / self.typeface.units;
                format!("<use href=\"#{}{}\" x=\"{at:.0}\"/>", self.prefix, letter.glyph.0)
            })
            .collect();
        format!(
            "<g aria-label=\"{}\" fill=\"{}\" transform=\"{place}scale({:.5})\">{drawn}</g>\n",
            escape(&words.text),
            hex(words.color),
            FONT_SIZE / UNITS
        )
    }
}

fn prefix(slug: &str) -> String {
    let digest = Sha256::digest(slug.as_bytes());
    format!("{}{:02x}", char::from(b'a' + digest[0] % 26), digest[1])
}

fn points(path: &[Spot]) -> String {
    path.iter().map(|&(x, y)| format!("{},{}", number(x), number(y))).collect::<Vec<_>>().join(" ")
}

/// Tenths of a pixel: a hundredth of a millimetre where a figure is 85 mm wide.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    if (red, green, blue) == (0, 0, 0) { "#000".to_owned() } else { format!("#{red:02x}{green:02x}{blue:02x}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

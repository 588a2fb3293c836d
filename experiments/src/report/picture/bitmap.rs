//! A [`Sheet`] as a PNG file: drawn larger, then averaged, so that edges are smooth.

use std::path::Path;

use ab_glyph::{Font as _, PxScale, point};
use anyhow::{Context, anyhow};
use plotters::prelude::{BitMapBackend, DrawingBackend as _};
use plotters::style::{Color as _, RGBColor};

use super::WIDTH;
use super::sheet::{Shape, Sheet, Spot, Words, dashed};
use super::typeface::{FONT_SIZE, Typeface, typeface};

/// Pixels of the file for one of a figure's own: 600 a square inch where a figure is 85 mm wide.
const SCALE: u32 = 2;
/// Pixels drawn for one of the file, along each side.
const SAMPLES: u32 = 2;
/// Pixels drawn for one of a figure's own.
const DRAWN: f64 = (SCALE * SAMPLES) as f64;

/// Writes the sheet as a PNG file; the extension of `path` must be `.png`.
///
/// # Errors
/// If the font cannot be read or the file cannot be written.
pub(super) fn write(sheet: &Sheet, height: f64, path: &Path) -> anyhow::Result<()> {
    let typeface = typeface()?;
    let size = (WIDTH * SCALE, height.ceil() as u32 * SCALE);
    let large_size = (size.0 * SAMPLES, size.1 * SAMPLES);
    let mut large = vec![255; (large_size.0 * large_size.1 * 3) as usize];
    {
        let mut pixels = Pixels { backend: BitMapBackend::with_buffer(&mut large, large_size), size: large_size };
        for shape in &sheet.shapes {
            pixels.shape(shape, typeface).map_err(|error| anyhow!("cannot draw: {error}"))?;
        }
    }
    let small = averaged(&large, size);
    let mut file = BitMapBackend::new(path, size);
    let written = file.blit_bitmap((0, 0), size, &small).and_then(|()| file.present());
    written.with_context(|| {
        format!("{}: cannot write the figure (is the disk full?); choose a writable folder with --out", path.display())
    })
}

/// Each pixel is the mean of the two by two that were drawn for it.
fn averaged(large: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let row_bytes = (width * SAMPLES * 3) as usize;
    let mut small = Vec::with_capacity((width * height * 3) as usize);
    for rows in large.chunks_exact(2 * row_bytes) {
        let (upper, lower) = rows.split_at(row_bytes);
        for (a, b) in upper.chunks_exact(6).zip(lower.chunks_exact(6)) {
            for channel in 0..3 {
                let four = [a[channel], a[channel + 3], b[channel], b[channel + 3]];
                small.push((four.map(u16::from).iter().sum::<u16>() / 4) as u8);
            }
        }
    }
    small
}

struct Pixels<'a> {
    backend: BitMapBackend<'a>,
    size: (u32, u32),
}

type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Pixels<'_> {
    fn shape(&mut self, shape: &Shape, typeface: &Typeface) -> Drawn {
        match shape {
            Shape::Line { path, dashes: None, color, width } => self.line(path, *color, *width),
            Shape::Line { path, dashes: Some(dashes), color, width } => {
                dashed(path, *dashes).iter().try_for_each(|dash| self.line(dash, *color, *width))
            }
            Shape::Area { corners, color } => self.area(corners, *color),
            Shape::Words(words) => self.words(words, typeface),
        }
    }

    /// Each piece as a rectangle, with a disc at every corner.
    fn line(&mut self, path: &[Spot], color: RGBColor, width: f64) -> Drawn {
        let radius = width / 2.0;
        for ends in path.windows(2) {
            let ((x0, y0), (x1, y1)) = (ends[0], ends[1]);
            let length = (x1 - x0).hypot(y1 - y0);
            if length > 0.0 {
                let (dx, dy) = (radius * (y1 - y0) / length, -radius * (x1 - x0) / length);
                self.area(&[(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], color)?;
            }
        }
        for &(x, y) in path {
            let corner = |index: u32| {
                let angle = std::f64::consts::TAU * f64::from(index) / 16.0;
                (x + radius * angle.cos(), y + radius * angle.sin())
            };
            self.area(&(0..16).map(corner).collect::<Vec<_>>(), color)?;
        }
        Ok(())
    }

    fn area(&mut self, corners: &[Spot], color: RGBColor) -> Drawn {
        let pixel = |&(x, y): &Spot| ((x * DRAWN).round() as i32, (y * DRAWN).round() as i32);
        Ok(self.backend.fill_polygon(corners.iter().map(pixel).collect::<Vec<_>>(), &color)?)
    }

    fn words(&mut self, words: &Words, typeface: &Typeface) -> Drawn {
        let (letters, _) = typeface.letters(&words.text);
        let (left, below) = typeface.origin(words);
        let unit = FONT_SIZE * DRAWN / typeface.units;
        let scale = PxScale::from((unit * f64::from(typeface.font.height_unscaled())) as f32);
        let at = ((words.at.0 * DRAWN).round() as i32, (words.at.1 * DRAWN).round() as i32);
        let mut result = Ok(());
        for letter in letters {
            let begin = point((left * DRAWN + unit * letter.left) as f32, (below * DRAWN) as f32);
            let glyph = letter.glyph.with_scale_and_position(scale, begin);
            let Some(outlined) = typeface.font.outline_glyph(glyph) else { continue };
            let corner = outlined.px_bounds().min;
            outlined.draw(|x, y, coverage| {
                let (x, y) = (corner.x.round() as i32 + x as i32, corner.y.round() as i32 + y as i32);
                let (x, y) = if words.upwards { (at.0 + y, at.1 - x) } else { (at.0 + x, at.1 + y) };
                let inside = x >= 0 && y >= 0 && x < self.size.0 as i32 && y < self.size.1 as i32;
                if inside && result.is_ok() {
                    let color = words.color.mix(f64::from(coverage.clamp(0.0, 1.0)));
                    result = self.backend.draw_pixel((x, y), color.to_backend_color());
                }
            });
        }
        Ok(result?)
    }
}

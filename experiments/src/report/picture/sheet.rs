//! [`Sheet`]: what is drawn, as a list of lines, areas and words. Pure; [`super::svg`] and [`super::bitmap`] write it.

use plotters::style::RGBColor;

/// A place in a figure's own pixels, from its upper left corner.
pub(crate) type Spot = (f64, f64);

/// Lengths of dash and gap; `None` is a solid line.
pub(crate) type Dashes = Option<(f64, f64)>;

pub(crate) const BLACK: RGBColor = RGBColor(0, 0, 0);
pub(crate) const WHITE: RGBColor = RGBColor(255, 255, 255);

/// Which point of words lies at a place, along a line of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HPos {
    Left,
    Center,
    Right,
}

/// And across it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VPos {
    Top,
    Center,
}

/// Something drawn; later ones lie above earlier ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// A line through its corners, with round ends.
    Line { path: Vec<Spot>, dashes: Dashes, color: RGBColor, width: f64 },
    /// A filled area.
    Area { corners: Vec<Spot>, color: RGBColor },
    /// A line of words.
    Words(Words),
}

/// A line of words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Words {
    /// The words.
    pub(crate) text: String,
    /// Where the point named by `anchor` lies. Words are as high as their capitals.
    pub(crate) at: Spot,
    /// Which point of the words lies there.
    pub(crate) anchor: (HPos, VPos),
    /// Their colour.
    pub(crate) color: RGBColor,
    /// Whether they run upwards.
    pub(crate) upwards: bool,
}

/// What is drawn, from below.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sheet {
    /// Everything, from below.
    pub(crate) shapes: Vec<Shape>,
}

impl Sheet {
    /// A line through `path`.
    pub(crate) fn line(&mut self, path: &[Spot], dashes: Dashes, color: RGBColor, width: f64) {
        self.shapes.push(Shape::Line { path: path.to_vec(), dashes, color, width });
    }

    /// A filled area.
    pub(crate) fn area(&mut self, corners: Vec<Spot>, color: RGBColor) {
        self.shapes.push(Shape::Area { corners, color });
    }

    /// A filled rectangle between two opposite corners.
    pub(crate) fn rectangle(&mut self, (x0, y0): Spot, (x1, y1): Spot, color: RGBColor) {
        self.area(vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color);
    }

    /// Black words.
    pub(crate) fn words(&mut self, text: &str, at: Spot, anchor: (HPos, VPos)) {
        self.colored_words(text, at, anchor, BLACK);
    }

    /// Words of a colour.
    pub(crate) fn colored_words(&mut self, text: &str, at: Spot, anchor: (HPos, VPos), color: RGBColor) {
        self.shapes.push(Shape::Words(Words { text: text.to_owned(), at, anchor, color, upwards: false }));
    }

    /// Words that run upwards, their middle at `at`.
    pub(crate) fn upward_words(&mut self, text: &str, at: Spot) {
        let anchor = (HPos::Center, VPos::Center);
        self.shapes.push(Shape::Words(Words { text: text.to_owned(), at, anchor, color: BLACK, upwards: true }));
    }
}

/// The dashes of a line. They go on around corners, so that short pieces of a line are dashed too.
pub(super) fn dashed(path: &[Spot], (dash, gap): (f64, f64)) -> Vec<[Spot; 2]> {
    let mut dashes = Vec::new();
    let mut along = 0.0;
    for ends in path.windows(2) {
        let ((x0, y0), (x1, y1)) = (ends[0], ends[1]);
        let length = (x1 - x0).hypot(y1 - y0);
        let at = |distance: f64| (x0 + distance / length * (x1 - x0), y0 + distance / length * (y1 - y0));
        let mut start = -(along % (dash + gap));
        while start < length {
            let (from, to) = (start.max(0.0), (start + dash).min(length));
            if from < to {
                dashes.push([at(from), at(to)]);
            }
            start += dash + gap;
        }
        along += length;
    }
    dashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_go_on_around_corners() {
        let dashes = dashed(&[(0.0, 0.0), (5.0, 0.0), (5.0, 5.0)], (4.0, 2.0));
        assert_eq!(dashes, [[(0.0, 0.0), (4.0, 0.0)], [(5.0, 1.0), (5.0, 5.0)]]);
    }
}

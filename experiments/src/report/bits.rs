//! A metric, and of a perplexity how much of it is lost to the base model: a dot a method where there are one or two grids, else a line a
//! method against bits per weight. Pure.

use itertools::Itertools as _;

use super::axis::{Axis, Scale, rounded};
use super::base;
use super::caption::{items, length};
use super::dots::{Dot, DotGroup, Dots};
use super::figures::{Figure, LOG_SPAN, Level, Names, Panel, Point, Series, level_value, scale_of};
use super::header::{Header, limited};
use super::looks::{Look, looks};
use super::picture::Picture;
use super::row::Row;
use super::series::{self, Named};
use super::tables::slug;
use crate::eval::metric::Quantity;
use crate::stats::Estimator;

/// What lies above so many times the base model's perplexity is of no use to anybody, and would press all else together.
const USEFUL: f64 = 10.0;

/// Grids beyond which lines tell more than dots.
const MAX_DOT_GRIDS: usize = 2;

/// A figure for each setting whose numbers may be compared and that holds quantized rows; of a perplexity two: itself, and
/// the loss to the base model.
pub fn value_figures(rows: &[Row]) -> Vec<Picture> {
    let figures = |rows: &[Row]| -> Vec<Picture> {
        let shown = rows.first().map_or_else(Vec::new, |row| Shown::all(row.quantity(), items(row)));
        shown.iter().filter_map(|shown| picture(rows, shown)).collect()
    };
    rows.chunk_by(Row::is_comparable).flat_map(figures).collect()
}

/// A value and its interval.
type Value = (f64, Option<(f64, f64)>);

/// What a figure shows of each row.
struct Shown {
    slug: String,
    caption: String,
    value: fn(&Row) -> Option<Value>,
    /// The highest value that is of use to anybody, given the base model's.
    limit: fn(f64) -> f64,
    /// Whether values that lie far apart get a logarithmic axis: a ratio is a logarithm already.
    may_be_log: bool,
    /// Whether 0 is nothing lost, so that a linear axis begins there.
    from_zero: bool,
    /// Whether the values are those of the metric itself.
    is_value: bool,
}

impl Shown {
    /// The figures of a metric, whose samples are `items`.
    fn all(quantity: Quantity, items: &str) -> Vec<Self> {
        let label = quantity.label;
        let value = Self {
            slug: slug(label),
            caption: match quantity.estimator {
                Estimator::ExpOfMean => format!(
                    "{label}. Bars: 95% interval over {items}, not paired; the loss to the base model has the narrower paired \
                     ones."
                ),
                Estimator::Largest => format!("{label}."),
                Estimator::Mean | Estimator::RootOfMean => {
                    format!("{label}. Bars: 95% interval over {items}, not paired; tables have paired ones.")
                }
            },
            value: |row| Some((row.value, row.ci_low.zip(row.ci_high))),
            limit: match quantity.estimator {
                Estimator::ExpOfMean => |base| USEFUL * base,
                Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => |_| f64::INFINITY,
            },
            may_be_log: quantity.unit.may_span_decades(),
            from_zero: quantity.unit.begins_at_zero(),
            is_value: true,
        };
        let loss = Self {
            slug: format!("{}-loss", slug(label)),
            caption: format!(
                "ln of the {label} over that of the base model, in nats per token. Bars: 95% interval, paired over {items}."
            ),
            value: |row| Some((row.log_ratio_fp?, row.log_ratio_fp_ci_low.zip(row.log_ratio_fp_ci_high))),
            limit: |_| USEFUL.ln(),
            may_be_log: false,
            from_zero: true,
            is_value: false,
        };
        match quantity.estimator {
            Estimator::ExpOfMean => vec![value, loss],
            Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => vec![value],
        }
    }
}

/// A quantized row with what is drawn of it.
struct Measured<'a> {
    row: &'a Row,
    name: String,
    look: Look,
    y: f64,
    bar: Option<(f64, f64)>,
}

impl Measured<'_> {
    fn ends(&self) -> impl Iterator<Item = f64> {
        [self.y].into_iter().chain(self.bar.into_iter().flat_map(|(low, high)| [low, high]))
    }
}

fn picture(rows: &[Row], shown: &Shown) -> Option<Picture> {
    let first = rows.first()?;
    let measured = measured(rows, shown);
    if measured.is_empty() {
        return None;
    }
    let base = rows.iter().find(|row| row.grid.is_none());
    let limit = base.map_or(f64::INFINITY, |row| (shown.limit)(row.value));
    let n_grids = measured.iter().map(|one| one.row.grid.as_ref()).unique().count();
    let limited_slug = if first.limited { format!("-first-{}", first.n_windows) } else { String::new() };
    let about = About {
        slug: format!("{}-{}{limited_slug}", shown.slug, slug(&first.setting())),
        header: Header::of_rows(rows),
        caption: format!(
            "{} on {} (protocol {}, {}): {}{}",
            first.model,
            first.dataset,
            first.protocol,
            length(first),
            shown.caption,
            series::explanation(measured.iter().map(|one| &one.name))
        ),
        end: format!("{}{}", limited(first).map(|said| format!(" {said}.")).unwrap_or_default(), base::sentence(rows)),
        levels: levels(rows, shown),
        limit,
        label: match shown.is_value {
            true => first.quantity().words(),
            false => format!("ln ratio to {}, nats per token", base::short_name(rows)),
        },
    };
    Some(if n_grids <= MAX_DOT_GRIDS {
        Picture::Dots(about.dots(&measured, shown))
    } else {
        Picture::Lines(about.lines(&measured, shown))
    })
}

fn measured<'a>(rows: &'a [Row], shown: &Shown) -> Vec<Measured<'a>> {
    let quantized = rows.iter().filter(|row| row.grid.is_some() && row.bits_per_weight.is_some());
    let values = quantized.filter_map(|row| Some((row, (shown.value)(row).filter(|(y, _)| y.is_finite())?)));
    let values: Vec<(&Row, Value)> = values.collect();
    let all: Vec<&dyn Named> = values.iter().map(|(row, _)| *row as &dyn Named).collect();
    let names: Vec<(String, String)> = all.iter().map(|one| (one.key().to_owned(), series::name(*one, &all))).collect();
    let looks = looks(&names);
    let one = |((row, (y, bar)), ((_, name), look))| Measured { row, name, look, y, bar };
    values.into_iter().zip(names.into_iter().zip(looks)).map(one).collect()
}

/// The base model, and the floor where it is known; a loss is above the base model anyway.
fn levels(rows: &[Row], shown: &Shown) -> Vec<Level> {
    let Some(unit) = rows.first().map(|row| row.quantity().unit).filter(|_| shown.is_value) else { return Vec::new() };
    let named = |name: &str, value: f64| format!("{name} ({})", level_value(unit, value));
    let base = rows.iter().find(|row| row.grid.is_none());
    let base = base.map(|row| Level::base(named(&base::level_name(row), row.value), row.value));
    let floor = rows.first().and_then(|row| row.floor);
    let floor = floor.map(|floor| Level::second(named("entropy floor", floor), floor));
    base.into_iter().chain(floor).collect()
}

/// What the dots and the lines of a setting have in common.
struct About {
    slug: String,
    header: Header,
    caption: String,
    end: String,
    levels: Vec<Level>,
    /// The highest value of use.
    limit: f64,
    /// What values are.
    label: String,
}

impl About {
    fn dots(self, measured: &[Measured<'_>], shown: &Shown) -> Dots {
        let grids: Vec<&Option<String>> = measured.iter().map(|one| &one.row.grid).unique().collect();
        let mut beyond = Vec::new();
        let mut groups = Vec::new();
        for grid in &grids {
            let of_grid: Vec<&Measured<'_>> = measured.iter().filter(|one| one.row.grid == **grid).collect();
            let range = Range::of(&of_grid, &self, shown, USEFUL);
            beyond.extend(of_grid.iter().filter(|one| one.y > range.limit).map(|one| said(one, true)));
            groups.push(dot_group(&of_grid, &range, &self.label));
        }
        let own = if grids.len() > 1 { " Each grid has a scale of its own." } else { "" };
        Dots {
            slug: self.slug,
            header: self.header,
            caption: format!("{}{own}{}{}", self.caption, off_the_scale(&beyond), self.end),
            label: self.label,
            groups,
        }
    }

    fn lines(self, measured: &[Measured<'_>], shown: &Shown) -> Figure {
        // Where few bits lose very much, each width has a panel: what matters at many bits would be pressed together.
        let bits: Vec<Option<u64>> = measured.iter().map(|one| one.row.bits).unique().collect();
        let values = measured.iter().map(|one| one.row.value);
        let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), y| (low.min(y), high.max(y)));
        let panels: Vec<Vec<&Measured<'_>>> = if high > USEFUL * low {
            bits.iter().map(|bits| measured.iter().filter(|one| one.row.bits == *bits).collect()).collect()
        } else {
            vec![measured.iter().collect()]
        };
        let by_bits = panels.len() > 1;
        let mut beyond = Vec::new();
        let mut drawn = Vec::new();
        for of_panel in panels {
            let range = Range::of(&of_panel, &self, shown, LOG_SPAN);
            beyond.extend(of_panel.iter().filter(|one| one.y > range.limit).map(|one| said(one, true)));
            drawn.push(panel(&of_panel, &range, &self.label, by_bits));
        }
        let own = if by_bits { " Each width of a code has scales of its own." } else { "" };
        Figure {
            slug: self.slug,
            header: self.header,
            caption: format!(
                "{} Against stored bits per weight.{own}{}{}",
                self.caption,
                off_the_scale(&beyond),
                self.end
            ),
            panels: drawn,
            n_columns: 1,
            shares_axes: false,
            names: Names::Above,
        }
    }
}

/// What an axis shows.
struct Range {
    scale: Scale,
    values: Vec<f64>,
    /// What lies above is named instead of drawn.
    limit: f64,
    /// Levels near enough to be drawn.
    levels: Vec<Level>,
}

impl Range {
    /// Up to `limit`, unless most lies above it; logarithmic where the highest value is more than `log_span` times the
    /// lowest.
    fn of(measured: &[&Measured<'_>], about: &About, shown: &Shown, log_span: f64) -> Self {
        let (levels, limit) = (&about.levels, about.limit);
        let n_above = measured.iter().filter(|one| one.y > limit).count();
        let limit = if 2 * n_above > measured.len() { f64::INFINITY } else { limit };
        let below = || measured.iter().filter(|one| one.y <= limit);
        let low = below().map(|one| one.y).fold(f64::INFINITY, f64::min);
        let is_near = |level: &&Level| level.value <= limit && level.value * USEFUL >= low;
        let levels: Vec<Level> = levels.iter().filter(is_near).cloned().collect();
        let ends = below().flat_map(|one| one.ends()).map(|end| end.min(limit));
        let mut values: Vec<f64> = ends.chain(levels.iter().map(|level| level.value)).collect();
        // A difference that is nothing or less has no logarithm, yet values over many decades need it.
        let log_span = if shown.may_be_log { log_span } else { f64::INFINITY };
        let scale = scale_of(values.iter().copied(), log_span);
        if shown.from_zero && scale == Scale::Linear {
            values.push(0.0);
        }
        Self { scale, values, limit, levels }
    }

    fn axis(&self, label: &str, n_ticks: usize) -> Axis {
        Axis::new(label, self.scale, self.values.iter().copied()).with_ticks(n_ticks)
    }

    /// What a heading says of the axis below it.
    fn word(&self) -> &'static str {
        match self.scale {
            Scale::Linear => "",
            Scale::Log => ", log scale",
        }
    }
}

fn dot_group(of_grid: &[&Measured<'_>], range: &Range, label: &str) -> DotGroup {
    let bits = |one: &Measured<'_>| format!("{:.2} bits", one.row.bits_per_weight.unwrap_or_default());
    let grid = of_grid.first().and_then(|one| one.row.grid.clone()).unwrap_or_default();
    let all_alike = of_grid.iter().map(|one| bits(one)).all_equal();
    let dot = |one: &&Measured<'_>| Dot {
        label: if all_alike { one.name.clone() } else { format!("{}, {}", one.name, bits(one)) },
        // A row has its name beside it; its variant needs no look of its own.
        look: Look::of_method(one.row.key(), 0, 1),
        value: one.y,
        bar: one.bar,
    };
    // A method against which others are held stands as a line in all rows.
    let rtn = of_grid.iter().find(|one| one.row.key() == "rtn" && one.y <= range.limit && of_grid.len() > 1);
    let rtn = rtn.map(|one| Level::of_method("RTN", one.y, one.look));
    let heading = if all_alike { of_grid.first().map(|one| format!("{grid}, {} a weight", bits(one))) } else { None };
    DotGroup {
        heading: heading.unwrap_or(grid) + range.word(),
        axis: range.axis(label, 6),
        dots: of_grid.iter().map(dot).collect(),
        levels: range.levels.iter().cloned().chain(rtn).collect(),
    }
}

fn panel(of_panel: &[&Measured<'_>], range: &Range, label: &str, by_bits: bool) -> Panel {
    let names: Vec<&String> = of_panel.iter().map(|one| &one.name).unique().collect();
    let line = |name: &String| {
        let of_line: Vec<&&Measured<'_>> = of_panel.iter().filter(|one| one.name == *name).collect();
        let point =
            |one: &&&Measured<'_>| Point { x: one.row.bits_per_weight.unwrap_or_default(), y: one.y, bar: one.bar };
        let mut points: Vec<Point> = of_line.iter().map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name: name.clone(), look: of_line[0].look, points }
    };
    let bits = of_panel.first().and_then(|one| one.row.bits);
    let xs = of_panel.iter().map(|one| one.row.bits_per_weight.unwrap_or_default());
    let title = bits.filter(|_| by_bits).map(|bits| format!("codes of {bits} bits{}", range.word()));
    let above = of_panel.iter().filter(|one| one.y > range.limit);
    Panel {
        title: title.unwrap_or_default(),
        x: Axis::new("stored bits per weight", Scale::Linear, xs),
        y: if by_bits { range.axis(label, 4) } else { range.axis(&format!("{label}{}", range.word()), 7) },
        series: names.into_iter().map(line).collect(),
        levels: range.levels.clone(),
        beyond: above.map(|one| said(one, !by_bits)).collect(),
        below: Vec::new(),
    }
}

/// `GPTQ W3 per-channel 850`, where a figure says the bits `GPTQ per-channel 850`.
fn said(one: &Measured<'_>, with_bits: bool) -> String {
    let place = if with_bits { one.row.grid.clone() } else { one.row.granularity.clone() };
    format!("{} {} {}", one.name, place.unwrap_or_default(), rounded(one.y))
}

fn off_the_scale(beyond: &[String]) -> String {
    if beyond.is_empty() { String::new() } else { format!(" Above the scale: {}.", beyond.join(", ")) }
}

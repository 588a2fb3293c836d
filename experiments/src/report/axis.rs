//! Axes: range, ticks and tick labels, on a linear or a logarithmic scale. Pure.

/// How values become positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    Linear,
    /// By their decimal logarithm.
    Log,
}

/// One axis of a figure. Positions are values on a linear axis and decimal logarithms on a logarithmic one.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is drawn, with its unit.
    pub label: String,
    /// How values become positions.
    pub scale: Scale,
    /// Position of the lower end.
    pub low: f64,
    /// Position of the upper end.
    pub high: f64,
    /// Positions of the ticks that have labels.
    pub ticks: Vec<f64>,
    /// Positions of smaller ticks without labels, on a logarithmic axis.
    pub minor_ticks: Vec<f64>,
}

/// Free space beyond the outermost values, as a share of their span.
const MARGIN: f64 = 0.06;

/// Ticks to aim at, unless the axis is told otherwise.
const N_TICKS: usize = 7;

/// Values in which a logarithmic axis is labelled in plain digits; with a tick beyond, all its labels are powers of ten.
const PLAIN: std::ops::Range<f64> = 0.001 - 1e-12..99_999.0;

impl Axis {
    /// An axis that holds all `values` (positive ones on a logarithmic scale), with some space around them.
    pub fn new(label: &str, scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let positions = values.map(|value| to_position(scale, value)).filter(|position| position.is_finite());
        let (min, max) = positions.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
        let (min, max) = if min <= max { (min, max) } else { (0.0, 1.0) };
        // A single value still needs an axis of some length.
        let margin = if max > min { MARGIN * (max - min) } else { 0.05 * min.abs().max(1.0) };
        let (low, high) = (min - margin, max + margin);
        let axis = Self { label: label.to_owned(), scale, low, high, ticks: Vec::new(), minor_ticks: Vec::new() };
        axis.with_ticks(N_TICKS)
    }

    /// The same axis with some `n` ticks, at most: as many as its length has room for.
    pub fn with_ticks(mut self, n: usize) -> Self {
        (self.ticks, self.minor_ticks) = match self.scale {
            Scale::Linear => (linear_ticks(self.low, self.high, n), Vec::new()),
            Scale::Log => log_ticks(self.low, self.high, n),
        };
        self
    }

    /// The same axis with some `n` ticks at whole numbers only, for indices.
    pub fn with_whole_ticks(mut self, n: usize) -> Self {
        let step = nice_step((self.high - self.low) / n as f64).max(1.0);
        self.ticks = multiples(step, self.low, self.high);
        self
    }

    /// The same axis with a tick at each of `values`, unless these are too many to be told apart.
    pub fn with_ticks_at(mut self, values: impl Iterator<Item = f64>) -> Self {
        let mut ticks: Vec<f64> = values.map(|value| self.position(value)).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        if ticks.len() <= N_TICKS {
            (self.ticks, self.minor_ticks) = (ticks, Vec::new());
        }
        self
    }

    /// Where a value is drawn.
    pub fn position(&self, value: f64) -> f64 {
        to_position(self.scale, value)
    }

    /// Label of the tick at a position; all of an axis have one form.
    pub fn tick_label(&self, position: f64) -> String {
        match self.scale {
            Scale::Linear => {
                if self.ticks.iter().any(|tick| tick.abs() > PLAIN.end) {
                    let sign = if position < 0.0 { "-" } else { "" };
                    return if position == 0.0 { "0".to_owned() } else { format!("{sign}{}", power(position.abs())) };
                }
                let step = self.ticks.get(..2).map_or(0.1, |pair| pair[1] - pair[0]);
                let decimals = (0..6).find(|&decimals| is_whole(step * 10f64.powi(decimals))).unwrap_or(6);
                format!("{position:.*}", decimals as usize)
            }
            Scale::Log => {
                let value = 10f64.powf(position);
                if self.ticks.iter().all(|tick| PLAIN.contains(&10f64.powf(*tick))) {
                    plain(value)
                } else {
                    power(value)
                }
            }
        }
    }
}

fn to_position(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
    }
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&nice| nice >= step * (1.0 - 1e-9))
        .unwrap_or(step)
}

fn multiples(step: f64, low: f64, high: f64) -> Vec<f64> {
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

fn linear_ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    multiples(nice_step((high - low) / n as f64), low, high)
}

/// Ticks at decades, or at every second, third, ... where these are more than `n`; where they are few, at 1-2-5 steps or
/// finer ones. Smaller ticks are at the whole multiples of decades, or at decades.
fn log_ticks(low: f64, high: f64, n: usize) -> (Vec<f64>, Vec<f64>) {
    const WHOLE: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
    const FACTORS: [&[f64]; 4] = [&[1.0], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]];
    let at = |factors: &[f64]| -> Vec<f64> {
        let decades = low.floor() as i32..=high.floor() as i32;
        let all = decades.flat_map(|decade| factors.iter().map(move |factor| f64::from(decade) + factor.log10()));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let decades = at(FACTORS[0]);
    if decades.len() > n {
        let step = decades.len().div_ceil(n) as f64;
        return (multiples(step, low, high), decades);
    }
    let enough = |ticks: &Vec<f64>| ticks.len() >= n.div_ceil(2).max(2) && ticks.len() <= n + 1;
    match FACTORS.into_iter().map(at).find(enough) {
        Some(ticks) => (ticks, at(WHOLE)),
        // Less than half a decade: the linear ticks of the values.
        None => (linear_ticks(10f64.powf(low), 10f64.powf(high), n).into_iter().map(f64::log10).collect(), Vec::new()),
    }
}

/// `0.02`, `50`, `3000`.
fn plain(value: f64) -> String {
    let decimals = (2.0 - (value.log10() + 1e-9).floor()).clamp(0.0, 5.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `2·10⁻⁵`, `10⁶`.
fn power(value: f64) -> String {
    let exponent = (value.log10() + 1e-9).floor();
    let factor = value / 10f64.powf(exponent);
    let power = format!("10{}", superscript(exponent as i32));
    if (factor - 1.0).abs() < 1e-6 {
        return power;
    }
    let factor = format!("{factor:.1}");
    format!("{}·{power}", factor.trim_end_matches(".0"))
}

/// A number in a picture, to three digits: `35.9`, `1230`, `1.2·10⁶`.
pub(super) fn rounded(value: f64) -> String {
    if PLAIN.contains(&value) { plain(value) } else { power(value) }
}

fn superscript(exponent: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let raised = |c: char| c.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize]);
    exponent.to_string().chars().map(raised).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|&tick| axis.tick_label(tick)).collect()
    }

    #[track_caller]
    fn check(scale: Scale, values: &[f64], expected: &[&str]) {
        let axis = Axis::new("x", scale, values.iter().copied());
        assert_eq!(labels(&axis), expected);
        assert!(values.iter().all(|&value| axis.low < axis.position(value) && axis.position(value) < axis.high));
    }

    #[test]
    fn linear_ticks_are_round_numbers() {
        check(Scale::Linear, &[2.2, 4.5], &["2.5", "3.0", "3.5", "4.0", "4.5"]);
        check(Scale::Linear, &[17.01, 17.06], &["17.01", "17.02", "17.03", "17.04", "17.05", "17.06"]);
        check(Scale::Linear, &[3.0], &["2.85", "2.90", "2.95", "3.00", "3.05", "3.10"]);
        check(Scale::Linear, &[0.0, 400_000.0], &["0", "10⁵", "2·10⁵", "3·10⁵", "4·10⁵"]);
    }

    #[test]
    fn log_ticks_follow_the_span_in_one_form() {
        check(Scale::Log, &[5.0, 3e6], &["10¹", "10²", "10³", "10⁴", "10⁵", "10⁶"]);
        check(Scale::Log, &[12.0, 300.0], &["10", "30", "100", "300"]);
        check(Scale::Log, &[1e-5, 0.3], &["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        check(Scale::Log, &[1e-12, 10.0], &["10⁻¹²", "10⁻¹⁰", "10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]);
        check(Scale::Log, &[5.0, 6.0], &["5", "5.2", "5.4", "5.6", "5.8", "6"]);
    }

    #[test]
    fn smaller_ticks_lie_between_the_labelled_ones() {
        let axis = |values: [f64; 2]| Axis::new("x", Scale::Log, values.into_iter());
        let decades = axis([1.0, 1e5]);
        assert!(decades.minor_ticks.len() > 5 * decades.ticks.len());
        let many = axis([1e-12, 10.0]);
        assert_eq!(many.minor_ticks.len(), 14, "decades");
        for axis in [decades, many] {
            assert!(axis.minor_ticks.iter().all(|tick| axis.low <= *tick && *tick <= axis.high));
        }
        assert!(Axis::new("x", Scale::Linear, [1.0, 9.0].into_iter()).minor_ticks.is_empty());
    }

    #[test]
    fn fewer_ticks_where_there_is_little_room() {
        for values in [[1e-5, 0.3], [12.0, 300.0], [5.0, 6.0], [1e-12, 10.0]] {
            let axis = Axis::new("x", Scale::Log, values.into_iter()).with_ticks(3);
            assert!((1..=4).contains(&axis.ticks.len()), "{values:?}: {:?}", labels(&axis));
        }
    }

    #[test]
    fn indices_have_whole_ticks() {
        let axis = Axis::new("block", Scale::Linear, [0.0, 4.0].into_iter()).with_whole_ticks(8);
        assert_eq!(labels(&axis), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn nothing_to_draw_still_makes_an_axis() {
        let axis = Axis::new("x", Scale::Log, [f64::NAN, 0.0, -1.0].into_iter());
        assert!(axis.low < axis.high);
    }

    #[test]
    fn numbers_in_pictures_are_short() {
        assert_eq!([35.881, 1234.6, 3.0, 0.51234, 1_234_567.0].map(rounded), ["35.9", "1235", "3", "0.512", "1.2·10⁶"]);
    }
}

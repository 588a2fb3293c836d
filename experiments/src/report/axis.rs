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
    /// Positions of the ticks.
    pub ticks: Vec<f64>,
}

/// Free space beyond the outermost values, as a share of their span.
const MARGIN: f64 = 0.06;

/// Ticks to aim at.
const N_TICKS: f64 = 8.0;

impl Axis {
    /// An axis that holds all `values` (positive ones on a logarithmic scale), with some space around them.
    pub fn new(label: &str, scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let positions = values.map(|value| to_position(scale, value)).filter(|position| position.is_finite());
        let (min, max) = positions.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
        let (min, max) = if min <= max { (min, max) } else { (0.0, 1.0) };
        // A single value still needs an axis of some length.
        let margin = if max > min { MARGIN * (max - min) } else { 0.05 * min.abs().max(1.0) };
        let (low, high) = (min - margin, max + margin);
        let ticks = match scale {
            Scale::Linear => linear_ticks(low, high),
            Scale::Log => log_ticks(low, high),
        };
        Self { label: label.to_owned(), scale, low, high, ticks }
    }

    /// The same axis with ticks at whole numbers only, for indices.
    pub fn with_whole_ticks(mut self) -> Self {
        let step = nice_step((self.high - self.low) / N_TICKS).max(1.0);
        self.ticks = multiples(step, self.low, self.high);
        self
    }

    /// The same axis with a tick at each of `values`, unless these are too many to be told apart.
    pub fn with_ticks_at(mut self, values: impl Iterator<Item = f64>) -> Self {
        let mut ticks: Vec<f64> = values.map(|value| self.position(value)).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        if ticks.len() as f64 <= N_TICKS {
            self.ticks = ticks;
        }
        self
    }

    /// Where a value is drawn.
    pub fn position(&self, value: f64) -> f64 {
        to_position(self.scale, value)
    }

    /// Label of the tick at a position.
    pub fn tick_label(&self, position: f64) -> String {
        match self.scale {
            Scale::Linear => {
                if position.abs() > 99_999.0 {
                    let sign = if position < 0.0 { "-" } else { "" };
                    return format!("{sign}{}", log_label(position.abs().log10()));
                }
                let step = self.ticks.get(..2).map_or(0.1, |pair| pair[1] - pair[0]);
                let decimals = (0..6).find(|&decimals| is_whole(step * 10f64.powi(decimals))).unwrap_or(6);
                format!("{position:.*}", decimals as usize)
            }
            Scale::Log => log_label(position),
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

fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    multiples(nice_step((high - low) / N_TICKS), low, high)
}

/// Decades where there are enough of them, else 1-2-5 steps, else finer ones.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    const FACTORS: [&[f64]; 3] = [&[1.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]];
    let ticks = |factors: &[f64]| -> Vec<f64> {
        let decades = low.floor() as i32..=high.floor() as i32;
        let all = decades.flat_map(|decade| factors.iter().map(move |factor| f64::from(decade) + factor.log10()));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let sparse = FACTORS.into_iter().map(ticks).find(|ticks| ticks.len() >= 4);
    // Less than half a decade: the linear ticks of the values.
    let fine = || linear_ticks(10f64.powf(low), 10f64.powf(high)).into_iter().map(f64::log10).collect();
    sparse.unwrap_or_else(fine)
}

/// `0.02`, `50`, `3000`; `2·10⁻⁵` beyond.
fn log_label(position: f64) -> String {
    let value = 10f64.powf(position);
    if (0.001 - 1e-12..99_999.0).contains(&value) {
        let decimals = (2.0 - position.floor()).clamp(0.0, 5.0) as usize;
        let text = format!("{value:.decimals$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let exponent = (position + 1e-9).floor();
    let factor = 10f64.powf(position - exponent);
    let power = format!("10{}", superscript(exponent as i32));
    if (factor - 1.0).abs() < 1e-6 {
        return power;
    }
    let factor = format!("{factor:.1}");
    format!("{}·{power}", factor.trim_end_matches(".0"))
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
    }

    #[test]
    fn log_ticks_follow_the_span() {
        check(Scale::Log, &[5.0, 3e6], &["10", "100", "1000", "10000", "10⁵", "10⁶"]);
        check(Scale::Log, &[12.0, 300.0], &["10", "20", "50", "100", "200"]);
        check(Scale::Log, &[1e-5, 0.3], &["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1"]);
        check(Scale::Log, &[5.0, 6.0], &["5", "5.2", "5.4", "5.6", "5.8", "6"]);
    }

    #[test]
    fn indices_have_whole_ticks() {
        let axis = Axis::new("block", Scale::Linear, [0.0, 4.0].into_iter()).with_whole_ticks();
        assert_eq!(labels(&axis), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn nothing_to_draw_still_makes_an_axis() {
        let axis = Axis::new("x", Scale::Log, [f64::NAN, 0.0, -1.0].into_iter());
        assert!(axis.low < axis.high);
    }
}

//! Progress of long work: bars with ETA on a terminal; elsewhere one plain line at the end of each piece, and one a minute
//! with an ETA until then.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use crate::assets::progress::Progress as Style;
use crate::assets::progress::say;

/// Shows progress on standard error.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    style: Style,
}

impl Progress {
    /// Shows it as `style` says.
    pub fn new(style: Style) -> Self {
        Self { style }
    }

    /// One line for the reader; nothing when quiet.
    pub fn note(&self, line: &str) {
        if self.style != Style::Quiet {
            say(line);
        }
    }

    /// Begins a piece of work of `length` units.
    pub fn bar(&self, label: &str, length: u64) -> Bar {
        let target = if self.style == Style::Bars {
            ProgressDrawTarget::stderr_with_hz(4)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        // A template that does not parse would be a typo in this line; the default look is then good enough.
        if let Ok(style) = ProgressStyle::with_template("{msg:44!} [{bar:30}] {percent:>3}% {elapsed} ETA {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_owned());
        if self.style == Style::Bars {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        let now = Instant::now();
        Bar { bar, label: label.to_owned(), lines: self.style == Style::Lines, start: now, said: Cell::new(now) }
    }
}

/// A piece of work in progress; its bar goes away when this is dropped, after an error too.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    label: String,
    lines: bool,
    start: Instant,
    /// When the last line was written.
    said: Cell<Instant>,
}

/// Time between two lines of one piece of work.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

impl Bar {
    /// `units` more are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
        if self.lines && self.said.get().elapsed() >= BETWEEN_LINES {
            self.said.set(Instant::now());
            say(&underway(&self.label, self.bar.position(), self.bar.length().unwrap_or(0), self.start.elapsed()));
        }
    }

    /// All is done.
    pub fn finish(self) {
        if self.lines {
            say(&format!("{}: {:.1} s", self.label, self.start.elapsed().as_secs_f64()));
        }
    }
}

/// `label: 25% after 1 min, ETA 3 min`, the rest taken to go as fast as what is done.
fn underway(label: &str, done: u64, length: u64, elapsed: Duration) -> String {
    let share = done as f64 / length.max(1) as f64;
    let left = elapsed.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0).max(0.0);
    let minutes = |seconds: f64| (seconds / 60.0).round();
    format!(
        "{label}: {:.0}% after {:.0} min, ETA {:.0} min",
        100.0 * share,
        minutes(elapsed.as_secs_f64()),
        minutes(left)
    )
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_underway_says_share_and_time_left() {
        assert_eq!(underway("quantize", 5, 20, Duration::from_secs(120)), "quantize: 25% after 2 min, ETA 6 min");
        assert_eq!(underway("score", 20, 20, Duration::from_secs(600)), "score: 100% after 10 min, ETA 0 min");
    }
}

//! Progress of long work: bars with ETA on a terminal, one plain line at the start and end of each piece elsewhere.

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
        Bar { bar, label: label.to_owned(), lines: self.style == Style::Lines, start: Instant::now() }
    }
}

/// A piece of work in progress; its bar goes away when this is dropped, after an error too.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    label: String,
    lines: bool,
    start: Instant,
}

impl Bar {
    /// `units` more are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    /// All is done.
    pub fn finish(self) {
        if self.lines {
            say(&format!("{}: {:.1} s", self.label, self.start.elapsed().as_secs_f64()));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

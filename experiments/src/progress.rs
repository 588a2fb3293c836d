//! Progress of long work: bars with ETA on a terminal; elsewhere one plain line at the end of each piece, and one a minute
//! with an ETA until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::sweep::Sweep;
pub use crate::assets::progress::Progress as Style;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod kernels;
pub mod sweep;

/// Shows progress on standard error.
#[derive(Clone, Debug)]
pub struct Progress {
    style: Style,
    sweep: Option<Arc<Sweep>>,
}

impl Progress {
    /// Shows it as `style` says.
    pub fn new(style: Style) -> Self {
        Self { style, sweep: None }
    }

    /// The same in a run of several cells, whose time left is shown as well.
    pub fn within(&self, sweep: Arc<Sweep>) -> Self {
        Self { style: self.style, sweep: Some(sweep) }
    }

    /// The run that the work is part of.
    pub fn sweep(&self) -> Option<&Sweep> {
        self.sweep.as_deref()
    }

    /// One line for the reader; nothing when quiet.
    pub fn note(&self, line: &str) {
        self.style.note(line);
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
        if let Ok(style) =
            ProgressStyle::with_template("{msg:40!} [{bar:20}] {percent:>3}% {elapsed} ETA {eta}{prefix}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_owned());
        if self.style == Style::Bars {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        let (start, sweep) = (Instant::now(), self.sweep.clone());
        let bar = Bar { bar, label: label.to_owned(), style: self.style, start, sweep, is_over: Arc::default() };
        bar.tell_sweep();
        if matches!(self.style, Style::Lines | Style::Json) || self.style == Style::Bars && kernels_may_compile() {
            bar.keep_saying();
        }
        bar
    }
}

/// A piece of work in progress; its bar goes away when this is dropped, after an error too.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    label: String,
    style: Style,
    start: Instant,
    sweep: Option<Arc<Sweep>>,
    is_over: Arc<AtomicBool>,
}

/// Time between two lines of one piece of work.
const BETWEEN_LINES: Duration = Duration::from_secs(60);
/// Until it is seen that a piece is over.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

impl Bar {
    /// `units` more are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
        self.tell_sweep();
    }

    fn tell_sweep(&self) {
        let Some(sweep) = &self.sweep else { return };
        let share = self.bar.position() as f64 / self.bar.length().unwrap_or(0).max(1) as f64;
        sweep.advance(&self.label, share);
        if self.style == Style::Bars {
            self.bar.set_prefix(asides(Some(sweep)));
        }
    }

    /// A line a minute until it is over, also while nothing advances; a bar says then what kernels are compiled.
    fn keep_saying(&self) {
        let (bar, label, style, start) = (self.bar.clone(), self.label.clone(), self.style, self.start);
        let (sweep, is_over) = (self.sweep.clone(), self.is_over.clone());
        let say = move || {
            let mut said = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(BETWEEN_LOOKS);
                if style == Style::Bars {
                    bar.set_prefix(asides(sweep.as_deref()));
                } else if said.elapsed() >= BETWEEN_LINES && !is_over.load(Ordering::Relaxed) {
                    let line = underway(&label, bar.position(), bar.length().unwrap_or(0), start.elapsed());
                    style.note(&(line + &asides(sweep.as_deref())));
                    said = Instant::now();
                }
            }
        };
        // Without a thread there is a line at the end alone.
        let _ = std::thread::Builder::new().name("lines".into()).spawn(say);
    }

    /// All is done.
    pub fn finish(self) {
        if matches!(self.style, Style::Lines | Style::Json) {
            self.style.note(&format!("{}: {:.1} s", self.label, self.start.elapsed().as_secs_f64()));
        }
        if let Some(sweep) = &self.sweep {
            sweep.bar_over();
        }
    }
}

/// What is said beside a piece of work: `; 12 GPU kernels compiled; whole run 23%, ETA 85 min`.
fn asides(sweep: Option<&Sweep>) -> String {
    let of_run = sweep.and_then(Sweep::words).map_or_else(String::new, |words| format!("; {words}"));
    compiled() + &of_run
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn kernels_may_compile() -> bool {
    kernels::are_watched()
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn compiled() -> String {
    kernels::words()
}

/// A CPU's are compiled with the program.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn kernels_may_compile() -> bool {
    false
}

#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn compiled() -> String {
    String::new()
}

/// `label: 25% after 1 min, ETA 3 min`, the rest taken to go as fast as what is done.
fn underway(label: &str, done: u64, length: u64, elapsed: Duration) -> String {
    let share = done as f64 / length.max(1) as f64;
    let left = elapsed.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0).max(0.0);
    let minutes = |seconds: f64| (seconds / 60.0).round();
    let elapsed = minutes(elapsed.as_secs_f64());
    if done == 0 {
        return format!("{label}: begun {elapsed:.0} min ago");
    }
    format!("{label}: {:.0}% after {elapsed:.0} min, ETA {:.0} min", 100.0 * share, minutes(left))
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_underway_says_share_and_time_left() {
        assert_eq!(underway("quantize", 5, 20, Duration::from_secs(120)), "quantize: 25% after 2 min, ETA 6 min");
        assert_eq!(underway("score", 0, 20, Duration::from_secs(120)), "score: begun 2 min ago");
        assert_eq!(underway("score", 20, 20, Duration::from_secs(600)), "score: 100% after 10 min, ETA 0 min");
    }
}

//! Where a transfer's progress goes: a bar with bytes and ETA on a terminal, one plain line a file elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work on a local file of this size takes seconds, and a log that stands still is said why.
const LONG_WORK_BYTES: u64 = 1 << 30;

/// How progress is shown. Never changes what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bars on standard error.
    Bars,
    /// One line for each file, for logs.
    Lines,
    /// The same lines as JSON objects, for programs.
    Json,
    /// Nothing.
    Quiet,
}

impl Progress {
    /// Bars if standard error is a terminal, else lines; nothing if `quiet`.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bars,
            (false, false) => Self::Lines,
        }
    }

    /// Says something that is no error.
    pub(crate) fn note(self, line: &str) {
        match self {
            Self::Quiet => {}
            Self::Bars | Self::Lines => say(line),
            Self::Json => say(&json_line("info", line)),
        }
    }

    fn is_lines(self) -> bool {
        matches!(self, Self::Lines | Self::Json)
    }

    /// Begins to show a transfer of `bytes` bytes, or of an unknown number.
    pub(crate) fn transfer(self, label: &str, bytes: Option<u64>) -> Transfer {
        if self.is_lines() {
            match bytes {
                Some(bytes) => self.note(&format!("{label} ({bytes} bytes)")),
                None => self.note(label),
            }
        }
        self.bar(label, bytes)
    }

    /// Begins to show work on a local file of `bytes` bytes: a bar, and a line in a log where it takes a while.
    pub(crate) fn local_work(self, label: &str, bytes: u64) -> Transfer {
        if self.is_lines() && bytes >= LONG_WORK_BYTES {
            self.note(&format!("{label} ({bytes} bytes)"));
        }
        self.bar(label, Some(bytes))
    }

    fn bar(self, label: &str, bytes: Option<u64>) -> Transfer {
        let target = if self == Self::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(bytes, target);
        let template = match bytes {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
            None => "{msg} {spinner} {bytes} {elapsed}",
        };
        // The templates are constants; a wrong one would show indicatif's default bar.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(label.to_owned());
        if bytes.is_none() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Transfer { bar }
    }
}

/// `{"time":"2026-11-29T15:50:00Z","level":"info","message":"..."}`, on one line whatever the message.
pub(crate) fn json_line(level: &str, message: &str) -> String {
    let time = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string();
    serde_json::json!({ "time": time, "level": level, "message": message }).to_string()
}

/// Writes a line to standard error. A reader that went away (`2>&1 | head`) must not end an experiment, as a panic of
/// `eprintln!` would.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A transfer being shown; its bar goes away when this is dropped.
pub(crate) struct Transfer {
    bar: ProgressBar,
}

impl Transfer {
    /// `bytes` more bytes are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// `bytes` bytes are done in all.
    pub(crate) fn set_done(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_wins_over_a_terminal() {
        assert_eq!(Progress::detect(true), Progress::Quiet);
    }

    #[test]
    fn a_line_of_json_is_one_line() {
        let line = json_line("info", "two\nlines and a \"quote\"");
        assert!(!line.contains('\n'), "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        assert_eq!((&read["level"], &read["message"]), (&"info".into(), &"two\nlines and a \"quote\"".into()));
    }

    #[test]
    fn a_transfer_counts_its_bytes() {
        let transfer = Progress::Quiet.transfer("file", Some(10));
        transfer.advance(3);
        transfer.advance(4);
        assert_eq!(transfer.bar.position(), 7);
        transfer.set_done(10);
        assert_eq!(transfer.bar.position(), 10);
    }
}

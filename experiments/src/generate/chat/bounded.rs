//! A stranger's program at work, given up where it takes too long, too much memory, or says too much.

use std::fmt;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::provenance::peak_resident_bytes;

/// Why it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    TooSlow,
    TooLarge,
    Panicked,
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooSlow => "it does not end",
            Self::TooLarge => "it takes more than 1 GiB of memory",
            Self::Panicked => "it makes the library of templates panic",
        })
    }
}

/// What work may take.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) time: Duration,
    /// By how much the most memory that the process ever held may grow.
    pub(super) memory_bytes: u64,
}

/// Of a rendering, which takes some milliseconds.
pub(super) const OF_TEMPLATE: Bounds = Bounds { time: Duration::from_secs(10), memory_bytes: 1 << 30 };

/// Bytes of the text that a template makes; contexts of models are shorter.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// What is wrong with a longer one.
pub(super) const TOO_LONG: &str = "its text is longer than 64 MiB";

/// How often what is held is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Calls inside calls need room in a build that is not optimised.
const STACK_BYTES: usize = 32 << 20;

/// Does `work` on a thread of its own. One that is given up cannot be stopped: its thread ends with the program, which an error is
/// about to end, or with the work.
pub(super) fn within<T: Send + 'static>(
    bounds: Bounds,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Result<T, GivenUp>> {
    let (started, held_before) = (Instant::now(), peak_resident_bytes());
    let (sender, receiver) = channel();
    // Nobody listens to work that was given up.
    Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn(move || drop(sender.send(work())))?;
    loop {
        match receiver.recv_timeout(INTERVAL) {
            Ok(done) => return Ok(Ok(done)),
            Err(RecvTimeoutError::Disconnected) => return Ok(Err(GivenUp::Panicked)),
            Err(RecvTimeoutError::Timeout) if started.elapsed() > bounds.time => return Ok(Err(GivenUp::TooSlow)),
            Err(RecvTimeoutError::Timeout)
                if peak_resident_bytes() > held_before.saturating_add(bounds.memory_bytes) =>
            {
                return Ok(Err(GivenUp::TooLarge));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// A text that is written up to its limit.
#[derive(Default)]
pub(super) struct LimitedText(Vec<u8>);

impl LimitedText {
    pub(super) fn into_text(self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Write for LimitedText {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(std::io::Error::other(TOO_LONG));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SHORT: Bounds = Bounds { time: Duration::from_millis(50), memory_bytes: u64::MAX };

    #[test]
    fn work_is_done_or_given_up() {
        assert_eq!(within(OF_TEMPLATE, || 3).unwrap(), Ok(3));
        let (sender, receiver) = channel::<()>();
        assert_eq!(within(SHORT, move || receiver.recv().is_ok()).unwrap(), Err(GivenUp::TooSlow));
        drop(sender);
        assert_eq!(within(OF_TEMPLATE, || panic!("on purpose")).unwrap(), Err::<(), _>(GivenUp::Panicked));
    }

    #[test]
    fn a_text_ends_at_its_limit() {
        let mut text = LimitedText::default();
        text.write_all(b"some").unwrap();
        assert_eq!(text.write_all(&vec![b'x'; MAX_TEXT]).unwrap_err().to_string(), TOO_LONG);
        assert_eq!(text.into_text(), "some");
    }
}

//! How many kernels were compiled for a GPU since the program began: while a first run waits for the compiler, nothing else moves.

use std::sync::OnceLock;

static WATCHED: OnceLock<Watched> = OnceLock::new();

struct Watched {
    count: Box<dyn Fn() -> usize + Send + Sync>,
    before: usize,
}

/// Kernels are counted by `count` from now on. One place a process.
pub(crate) fn watch(count: impl Fn() -> usize + Send + Sync + 'static) {
    let before = count();
    let _ = WATCHED.set(Watched { count: Box::new(count), before });
}

/// Whether there is anything to say, now or later.
pub(super) fn are_watched() -> bool {
    WATCHED.get().is_some()
}

/// `; 12 GPU kernels compiled`; nothing where there were none.
pub(super) fn words() -> String {
    WATCHED.get().map_or_else(String::new, Watched::words)
}

impl Watched {
    fn words(&self) -> String {
        match (self.count)().saturating_sub(self.before) {
            0 => String::new(),
            1 => "; 1 GPU kernel compiled".to_owned(),
            n => format!("; {n} GPU kernels compiled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn kernels_are_counted_from_the_beginning_on() {
        let n = Arc::new(AtomicUsize::new(7));
        let counted = n.clone();
        let watched = Watched { count: Box::new(move || counted.load(Ordering::Relaxed)), before: 7 };
        let words = [7, 8, 19, 2].map(|now| {
            n.store(now, Ordering::Relaxed);
            watched.words()
        });
        assert_eq!(words, ["", "; 1 GPU kernel compiled", "; 12 GPU kernels compiled", ""]);
    }
}

//! How much of the work on a block is done: a block of a large model takes minutes.

use std::cell::Cell;

/// Is told each further share of some work that is done, in all no more than 1.
pub type Listener<'a> = dyn Fn(f64) + 'a;

/// A part of a larger work, whose steps know nothing of the rest.
pub struct Part<'a> {
    listener: &'a Listener<'a>,
    whole: f64,
    told: Cell<f64>,
}

impl<'a> Part<'a> {
    /// The share `whole` of what `listener` hears of.
    pub fn new(listener: &'a Listener<'a>, whole: f64) -> Self {
        Self { listener, whole, told: Cell::new(0.0) }
    }

    /// A further share of this part is done; what is beyond all of it, as where a step is tried again, is not passed on.
    pub fn tell(&self, share: f64) {
        let share = share.min(1.0 - self.told.get()).max(0.0);
        self.told.set(self.told.get() + share);
        (self.listener)(self.whole * share);
    }

    /// All of it is done, whatever was told before.
    pub fn finish(self) {
        (self.listener)(self.whole * (1.0 - self.told.get()));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn parts_make_the_whole() {
        let heard = RefCell::new(Vec::new());
        let listener = |share: f64| heard.borrow_mut().push(share);
        let part = Part::new(&listener, 0.5);
        part.tell(0.25);
        part.finish();
        let part = Part::new(&listener, 0.5);
        part.tell(0.75);
        part.tell(0.75);
        part.finish();
        assert_eq!(heard.into_inner(), [0.125, 0.375, 0.375, 0.125, 0.0]);
    }
}

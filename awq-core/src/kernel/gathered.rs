//! Weights whose codes lie in another order of inputs (GPTQ's activation order): the inputs are gathered into it, and the kernel
//! multiplies as ever.

use std::cell::RefCell;

use super::QuantMatmul;

/// A packed weight and, of each of its input channels, which channel of the caller's it is.
pub(super) struct Gathered {
    inner: Box<dyn QuantMatmul>,
    order: Vec<u32>,
}

thread_local! {
    /// Inputs in order; decode steps allocate nothing.
    static ORDERED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Gathered {
    /// `order` has each input channel of `inner` once.
    pub(super) fn new(inner: Box<dyn QuantMatmul>, order: Vec<u32>) -> Self {
        Self { inner, order }
    }
}

impl QuantMatmul for Gathered {
    fn n_in(&self) -> usize {
        self.inner.n_in()
    }

    fn n_out(&self) -> usize {
        self.inner.n_out()
    }

    fn packed_bytes(&self) -> usize {
        self.inner.packed_bytes() + size_of_val(self.order.as_slice())
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        // Taken, not borrowed: while a product waits, its thread may begin another one.
        let mut ordered = ORDERED.take();
        ordered.clear();
        let rows = x.chunks_exact(self.order.len());
        ordered.extend(rows.flat_map(|row| self.order.iter().map(|&channel| row[channel as usize])));
        self.inner.multiply(&ordered, out);
        ORDERED.set(ordered);
    }
}

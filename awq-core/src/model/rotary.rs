//! [`Rotary`]: rotary angles of as many positions as were asked for so far.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData};

use crate::backend::{QuantBackend, RotaryTable};
use crate::load::Rope;

/// The rotary angles of a model on a device: half-split pairing (channel `c` with `c + n_channels / 2`), as Hugging Face's Llama
/// code has it, f32 on every device. Angles are computed elementwise; a low-precision matrix product there would ruin
/// perplexity.
///
/// Models announce up to ten million positions and are run on thousands, so the table grows with the sequences.
pub(super) struct Rotary<B: QuantBackend> {
    rope: Rope,
    device: B::Device,
    /// Of the first positions; `None` before the first sequence.
    table: Mutex<Option<RotaryTable<B>>>,
}

impl<B: QuantBackend> Rotary<B> {
    pub(super) fn new(rope: Rope, device: B::Device) -> Self {
        Self { rope, device, table: Mutex::default() }
    }

    /// The angles of the first `n` positions, `[n, n_channels / 2]`.
    pub(super) fn first(&self, n: usize) -> RotaryTable<B> {
        let mut known = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match known.take() {
            Some(table) if table.cos.dims()[0] >= n => table,
            // Twice as long each time, so that sequences that grow do not make a table each.
            _ => self.table(n.next_power_of_two()),
        };
        known.insert(table).first(n)
    }

    fn table(&self, n: usize) -> RotaryTable<B> {
        let (cos, sin) = self.rope.angles(0..n);
        let shape = [n, self.rope.n_channels / 2];
        let table = |values| Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32));
        RotaryTable { cos: table(cos), sin: table(sin) }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::backend::float_vec;
    use crate::model::tiny::TinySpec;

    #[test]
    fn angles_are_the_same_however_the_table_grew() {
        let rope = TinySpec::GQA.config().rope();
        let rotary = Rotary::<burn::backend::Flex>::new(rope.clone(), Default::default());
        for n in [3, 40, 5, 40, 64, 20_001] {
            let RotaryTable { cos, sin } = rotary.first(n);
            assert_eq!(cos.dims(), [n, rope.n_channels / 2]);
            assert!((float_vec(cos), float_vec(sin)) == rope.angles(0..n), "{n} positions");
        }
    }
}

//! [`Parameters`]: how many values a model has and where, and in what types its files store them.

use awq_core::load::{Checkpoint, ModelConfig};
use awq_core::model::wiring::Wiring;
use serde::Serialize;

use super::linears::n_values;

/// Values of a model, counted once where two tensors are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// Those of linears that methods quantize.
    pub quantized: u64,
    /// Those of the token embedding.
    pub embedding: u64,
    /// Those of the head; 0 where it is the embedding.
    pub head: u64,
    /// Norms, biases, routers, tables of positions.
    pub other: u64,
}

/// Tensors that are stored alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoredAs {
    /// The type: `BF16`, `GGUF Q4_K`, `packed AWQ W4 g128`.
    pub name: String,
    /// Tensors of this type.
    pub n_tensors: usize,
    /// Their values.
    pub n_values: u64,
    /// Bits of each, with the scales and minima of groups; absent for a type that is not known.
    pub bits_per_value: Option<f64>,
}

impl Parameters {
    pub(super) fn of(wiring: &Wiring, config: &ModelConfig) -> Self {
        let mut parameters = Self::default();
        for (name, shape) in wiring.tensors(config) {
            let n = n_values(&shape);
            parameters.total += n;
            let place = if wiring.quantizes(&name) {
                &mut parameters.quantized
            } else if name == wiring.embedding {
                &mut parameters.embedding
            } else if Some(&name) == wiring.head.as_ref() {
                &mut parameters.head
            } else {
                &mut parameters.other
            };
            *place += n;
        }
        parameters
    }
}

impl StoredAs {
    /// Every tensor of the files by its type, that of most values first. Tensors that no decoder reads are among them.
    pub(super) fn of(checkpoint: &dyn Checkpoint) -> Vec<Self> {
        let mut types: Vec<Self> = Vec::new();
        for tensor in checkpoint.names() {
            let n_values = n_values(&checkpoint.shape(&tensor).unwrap_or_default());
            let stored = checkpoint.stored_type(&tensor);
            let bits_per_value = stored.as_ref().map(|stored| stored.bits_per_weight);
            let name = stored.map_or_else(|| "a type that is not known".to_owned(), |stored| stored.name);
            match types.iter_mut().find(|known| known.name == name) {
                Some(known) => {
                    known.n_tensors += 1;
                    known.n_values += n_values;
                }
                None => types.push(Self { name, n_tensors: 1, n_values, bits_per_value }),
            }
        }
        types.sort_by_key(|known| std::cmp::Reverse(known.n_values));
        types
    }
}

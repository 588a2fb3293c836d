//! [`Storage`]: in what types the linears of a model's blocks are stored in its files. What "full precision" is depends on
//! it: the base model may itself be a quantized file.

use serde::{Deserialize, Serialize};

use super::wiring::Wiring;
use crate::load::{Checkpoint, ModelConfig};

/// The types of the linears of all blocks, counted over their weights. Embedding, head, norms and biases are no part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// The types, that of most weights first.
    pub types: Vec<StoredShare>,
    /// Stored bits a weight, the mean over all weights, with the scales and minima of groups.
    pub bits_per_weight: f64,
}

/// A type and how many weights have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredShare {
    /// `BF16`, `GGUF Q4_1`, `packed AWQ W4 g128`.
    pub name: String,
    /// Weights of this type.
    pub n_weights: u64,
    /// Stored bits of each, the mean where short groups take more.
    pub bits_per_weight: f64,
    /// Weights that share a scale; absent where weights are floats, or a scale belongs to a whole row or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
}

impl Storage {
    /// How `checkpoint` stores the linears that `wiring` names, from its headers. `None` where one of them is not there, or
    /// has a type that nothing is known of: then the model cannot be opened.
    pub fn of(wiring: &Wiring, config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Option<Self> {
        let mut types: Vec<StoredShare> = Vec::new();
        for (block_idx, block) in wiring.blocks.iter().enumerate() {
            for (linear, shape) in block.linear_shapes(config) {
                let stored = checkpoint.stored_type(&format!("{}.weight", wiring.linear(block_idx, linear)))?;
                let n_weights = shape.iter().product::<usize>() as u64;
                match types.iter_mut().find(|share| share.name == stored.name) {
                    Some(share) => {
                        share.n_weights += n_weights;
                        let weight = n_weights as f64 / share.n_weights as f64;
                        share.bits_per_weight += (stored.bits_per_weight - share.bits_per_weight) * weight;
                    }
                    None => types.push(StoredShare {
                        name: stored.name,
                        n_weights,
                        bits_per_weight: stored.bits_per_weight,
                        group_size: stored.group_size,
                    }),
                }
            }
        }
        // Types of equally many weights stay in the order of the blocks.
        types.sort_by_key(|share| std::cmp::Reverse(share.n_weights));
        let n_weights: u64 = types.iter().map(|share| share.n_weights).sum();
        let bits: f64 = types.iter().map(|share| share.n_weights as f64 * share.bits_per_weight).sum();
        (n_weights > 0).then(|| Self { types, bits_per_weight: bits / n_weights as f64 })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::super::{tiny, wiring_of};
    use super::*;
    use crate::load::{LoadError, StoredType};

    /// Headers alone: each linear has the type that its name gets.
    struct Headers(fn(&str) -> Option<StoredType>);

    impl Checkpoint for Headers {
        fn names(&self) -> Vec<String> {
            Vec::new()
        }

        fn shape(&self, _: &str) -> Option<Vec<usize>> {
            None
        }

        fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
            panic!("{name} is read, but the types stand in the headers")
        }

        fn stored_type(&self, name: &str) -> Option<StoredType> {
            self.0(name)
        }

        fn source(&self) -> &Path {
            Path::new("headers")
        }

        fn bytes_on_disk(&self) -> u64 {
            0
        }
    }

    fn stored(name: &str, bits_per_weight: f64) -> Option<StoredType> {
        Some(StoredType { name: name.into(), bits_per_weight, group_size: Some(32) })
    }

    fn storage(types: fn(&str) -> Option<StoredType>) -> Option<Storage> {
        let (config, checkpoint) = (tiny::TinySpec::MHA.config(), tiny::checkpoint(&tiny::TinySpec::MHA, 0));
        Storage::of(&wiring_of(&config, &checkpoint).unwrap(), &config, &Headers(types))
    }

    #[test]
    fn bits_are_the_mean_over_weights_and_not_over_tensors() {
        let mixed =
            storage(|name| if name.contains("down_proj") { stored("Q6", 6.5) } else { stored("Q4", 4.5) }).unwrap();
        let (config, checkpoint) = (tiny::TinySpec::MHA.config(), tiny::checkpoint(&tiny::TinySpec::MHA, 0));
        let weights = |wanted: fn(&str) -> bool| -> u64 {
            let names = checkpoint.names().into_iter();
            let linears = names.filter(|name| name.contains("_proj.weight") && wanted(name));
            linears.map(|name| checkpoint.shape(&name).unwrap().iter().product::<usize>() as u64).sum()
        };
        let (down, all) = (weights(|name| name.contains("down_proj")), weights(|_| true));
        assert!(config.n_blocks > 1 && down > 0);
        assert_eq!(
            mixed.types.iter().map(|share| (share.name.as_str(), share.n_weights)).collect::<Vec<_>>(),
            [("Q4", all - down), ("Q6", down)]
        );
        let expected = (4.5 * (all - down) as f64 + 6.5 * down as f64) / all as f64;
        assert!((mixed.bits_per_weight - expected).abs() < 1e-12, "{mixed:?}");
    }

    #[test]
    fn a_type_whose_groups_differ_has_the_mean() {
        let ragged =
            storage(|name| if name.contains("down_proj") { stored("Q4", 4.75) } else { stored("Q4", 4.5) }).unwrap();
        assert_eq!(ragged.types.len(), 1);
        assert!(ragged.types[0].bits_per_weight > 4.5, "{ragged:?}");
        assert!((ragged.types[0].bits_per_weight - ragged.bits_per_weight).abs() < 1e-12, "{ragged:?}");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        assert_eq!(storage(|name| if name.contains("layers.1.") { None } else { stored("Q4", 4.5) }), None);
    }

    #[test]
    fn a_checkpoint_in_memory_is_f32() {
        let (config, checkpoint) = (tiny::TinySpec::MHA.config(), tiny::checkpoint(&tiny::TinySpec::MHA, 0));
        let storage = Storage::of(&wiring_of(&config, &checkpoint).unwrap(), &config, &checkpoint).unwrap();
        assert_eq!((storage.types.len(), storage.bits_per_weight), (1, 32.0));
        assert_eq!((storage.types[0].name.as_str(), storage.types[0].group_size), ("F32", None));
        let json = serde_json::to_string(&storage).unwrap();
        assert_eq!(serde_json::from_str::<Storage>(&json).unwrap(), storage);
    }
}

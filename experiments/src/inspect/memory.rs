//! [`Stage`]: about how much memory each kind of work takes on a CPU, from shapes alone. Working buffers of kernels are not counted.

use awq_core::awq::Awq;
use awq_core::driver::Propagation;
use awq_core::grid::Grid;
use awq_core::load::{Checkpoint, ModelConfig, PackedHeader};
use awq_core::method::MethodSettings;
use awq_core::model::Storage;
use awq_core::model::wiring::Wiring;
use awq_core::rule::GridRule;
use baselines::gptq::Gptq;
use serde::Serialize;

use super::linears::n_values;
use super::parameters::Parameters;
use crate::eval::score::most_bytes;
use crate::need::{CalibrationSize, Need};
use crate::report::tables::grouped;

/// Calibration sequences of the estimate: those of the AWQ and GPTQ papers.
const N_SEQUENCES: usize = 128;
/// Tokens of one.
const SEQ_LEN: usize = 512;
const F32: u64 = 4;

/// A kind of work and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// The work.
    pub work: String,
    /// Bytes in memory at once, about.
    pub bytes: u64,
    /// What they are.
    pub holds: String,
}

/// What the stages are made of, in bytes.
struct Parts {
    /// All that is no part of a block, in f32: embedding, head, last norm.
    held: u64,
    /// The largest block in f32.
    block: u64,
    /// Keys and values of a full context.
    cache: u64,
}

/// How decoding holds quantized linears.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decoding {
    /// Bytes of those whose codes a kernel takes.
    packed: u64,
    /// Weights of those that are dequantized, for no kernel takes them.
    n_dequantized: u64,
    /// All weights of both.
    n_weights: u64,
}

/// Bytes of a float in decoding, which keeps the 16 bits that a file has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floats {
    /// Of linears of blocks.
    linears: u64,
    /// Of all else.
    others: u64,
}

impl Floats {
    pub(super) fn of(wiring: &Wiring, config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Self {
        let bytes = |bits: Option<f64>| if bits == Some(16.0) { 2 } else { F32 };
        let of_linears = Storage::of(wiring, config, checkpoint);
        let has_floats = |storage: &Storage| storage.types.iter().all(|share| share.bits_per_weight == 16.0);
        Self {
            linears: bytes(of_linears.filter(has_floats).map(|storage| storage.bits_per_weight)),
            others: bytes(checkpoint.stored_type(&wiring.embedding).map(|stored| stored.bits_per_weight)),
        }
    }

    fn describe(self) -> &'static str {
        match (self.linears, self.others) {
            (2, 2) => "all in the 16 bits of the file",
            (F32, F32) => "all in f32",
            _ => "in the 16 bits of the file or in f32",
        }
    }
}

impl Decoding {
    /// All of them as codes of `bits_per_weight`.
    pub(super) fn of_kernels(n_weights: u64, bits_per_weight: f64) -> Self {
        Self { packed: (n_weights as f64 * bits_per_weight / 8.0) as u64, n_dequantized: 0, n_weights }
    }

    /// Those of a packed folder.
    pub(super) fn of_packed(header: &PackedHeader) -> Self {
        let weights = |has_kernel: bool| -> u64 {
            let linears = header.linears.values().filter(|linear| linear.has_kernel() == has_kernel);
            linears.map(|linear| n_values(&linear.shape)).sum()
        };
        let (with_kernel, n_dequantized) = (weights(true), weights(false));
        let packed = Self::of_kernels(with_kernel, header.bits_per_weight).packed;
        Self { packed, n_dequantized, n_weights: with_kernel + n_dequantized }
    }
}

/// The stages, the last of them decoding as `decoding` says.
pub(super) fn stages(
    wiring: &Wiring,
    config: &ModelConfig,
    (parameters, grid): (&Parameters, &Grid),
    (decoding, floats): (Decoding, Floats),
    is_packed: bool,
) -> Vec<Stage> {
    let parts = Parts::of(wiring, config);
    let seq_len = SEQ_LEN.min(config.longest_sequence());
    let calibration = format!("calibration of {N_SEQUENCES} x {seq_len}");
    let stage = |work: String, bytes, holds: &str| Stage { work, bytes, holds: holds.to_owned() };
    let mut stages = vec![stage("reading a block".into(), parts.block, "the largest block in f32")];
    if let (false, Ok(grids)) = (is_packed, GridRule::from(*grid).resolve(wiring)) {
        let size = CalibrationSize { n_sequences: N_SEQUENCES, seq_len, propagation: Propagation::FullPrecision };
        let mut of_method = |name: &str, method: &dyn MethodSettings, holds: &str| {
            let need = Need::of_pass(wiring, config, &[(method, &grids)], Some(size));
            stages.push(stage(format!("{name}, {calibration}"), need.memory, holds));
            need.hidden_states
        };
        of_method("AWQ", &Awq::LLM_AWQ, "block, inputs of modules, candidates");
        let hidden_states = of_method("GPTQ", &Gptq::ACT_ORDER, "block, Hessians and their factors in f64");
        let holds = "beside both, in a file where memory ends";
        stages.push(stage("hidden states".into(), hidden_states, holds));
    }
    let resident = parts.held + parts.block;
    let of_scoring = resident + most_bytes(config.vocab_size) as u64;
    stages.push(stage("scoring".into(), of_scoring, "block, embedding, head, states, logits"));
    let cache = format!("cache of {} tokens", grouped(config.longest_sequence() as u64));
    if !is_packed {
        let others = parameters.total.saturating_sub(parameters.quantized);
        let all = parameters.quantized * floats.linears + others * floats.others + parts.cache;
        stages.push(stage("decoding as it is".into(), all, &format!("{}, {cache}", floats.describe())));
    }
    let others = parameters.total.saturating_sub(decoding.n_weights) * floats.others;
    let bytes = decoding.packed + decoding.n_dequantized * F32 + others + parts.cache;
    let (work, holds) = match (decoding.packed, decoding.n_dequantized) {
        (_, 0) => ("decoding, packed", format!("packed linears, {cache}")),
        (0, _) => ("decoding, dequantized", format!("all in f32, for no kernel takes these codes, {cache}")),
        _ => ("decoding, in part packed", format!("packed linears, those without a kernel in f32, {cache}")),
    };
    stages.push(stage(work.into(), bytes, &holds));
    stages
}

impl Parts {
    fn of(wiring: &Wiring, config: &ModelConfig) -> Self {
        let mut blocks = vec![0; wiring.blocks.len()];
        let mut held = 0;
        for (name, shape) in wiring.tensors(config) {
            let block_idx = name.strip_prefix(&format!("{}.", wiring.block_prefix));
            let block_idx = block_idx.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            match block_idx.and_then(|block_idx| blocks.get_mut(block_idx)) {
                Some(block) => *block += n_values(&shape) * F32,
                None => held += n_values(&shape) * F32,
            }
        }
        let kv_width = (config.n_kv_heads * config.head_dim) as u64;
        Self {
            held,
            block: blocks.into_iter().max().unwrap_or(0),
            cache: wiring.blocks.len() as u64 * 2 * kv_width * config.longest_sequence() as u64 * F32,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use awq_core::grid::{Bits, Granularity};
    use awq_core::model::tiny::{self, TinySpec};
    use awq_core::model::wiring_of;

    use super::*;

    #[test]
    fn stages_are_sums_of_what_they_hold() {
        let (config, checkpoint) = (TinySpec::MHA.config(), tiny::checkpoint(&TinySpec::MHA, 0));
        let wiring = wiring_of(&config, &checkpoint).unwrap();
        let parameters = Parameters::of(&wiring, &config);
        let decoding = Decoding::of_kernels(parameters.quantized, 4.0);
        let grid = Grid::awq(Bits::new(4).unwrap(), Granularity::PerChannel);
        let floats = Floats::of(&wiring, &config, &checkpoint);
        let of = |is_packed| stages(&wiring, &config, (&parameters, &grid), (decoding, floats), is_packed);
        let bytes = |work: &str| of(false).iter().find(|stage| stage.work.starts_with(work)).unwrap().bytes;
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        // Four linears of attention, three of the feed-forward module, two norms, the biases of q, k and v.
        let block = 4 * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden + 3 * hidden);
        assert_eq!(bytes("reading a block"), block);
        let n_tokens = 128 * config.longest_sequence().min(512) as u64;
        assert_eq!(bytes("hidden states"), 2 * n_tokens * 4 * hidden);
        assert!(bytes("AWQ") > block && bytes("GPTQ") > block);
        let cache = 2 * 4 * config.n_blocks as u64 * hidden * config.longest_sequence() as u64;
        assert_eq!(bytes("decoding as it is"), 4 * parameters.total + cache);
        let others = parameters.total - parameters.quantized;
        assert_eq!(bytes("decoding, packed"), parameters.quantized / 2 + 4 * others + cache);
        // What is quantized already is not calibrated for.
        let works: Vec<String> = of(true).into_iter().map(|stage| stage.work).collect();
        assert_eq!(works, ["reading a block", "scoring", "decoding, packed"]);
        // What no kernel takes is in f32.
        let without = Decoding { packed: 0, n_dequantized: parameters.quantized, n_weights: parameters.quantized };
        let last = |decoding, floats| {
            let mut stages = stages(&wiring, &config, (&parameters, &grid), (decoding, floats), false);
            let stage = stages.pop().unwrap();
            (stage.work, stage.bytes, stages.pop().unwrap())
        };
        let (work, n_bytes, as_it_is) = last(without, floats);
        assert_eq!((work.as_str(), n_bytes), ("decoding, dequantized", bytes("decoding as it is")));
        assert!(as_it_is.holds.starts_with("all in f32, cache"), "{}", as_it_is.holds);
        // What a file has in 16 bits stays so.
        let (_, n_packed, as_it_is) = last(decoding, Floats { linears: 2, others: 2 });
        assert_eq!(
            (n_packed, as_it_is.bytes),
            (parameters.quantized / 2 + 2 * others + cache, 2 * parameters.total + cache)
        );
        assert!(as_it_is.holds.starts_with("all in the 16 bits of the file, cache"), "{}", as_it_is.holds);
    }
}

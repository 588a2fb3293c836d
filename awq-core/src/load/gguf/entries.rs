//! [`Entries`]: the keys and tables of a file that stand for a model's configuration, as llama.cpp's converter writes them. The other
//! way round: `layout.rs`.

use std::collections::BTreeMap;

use super::header::Value;
use crate::load::class::Class;
use crate::load::{GgufArchitecture, ModelConfig, RopeScaling};

/// Keys and tables in the making.
pub(super) struct Entries<'a> {
    pub(super) config: &'a ModelConfig,
    /// The tensors of the model.
    shapes: &'a BTreeMap<String, Vec<usize>>,
    /// Experts of a block.
    pub(super) n_experts: usize,
    /// The architecture, which its own keys begin with.
    prefix: &'static str,
    /// In the order of the file.
    pub(super) keys: Vec<(String, Value)>,
    /// Tensors that are part of the configuration.
    pub(super) tables: Vec<(&'static str, Vec<f32>)>,
}

impl<'a> Entries<'a> {
    /// What the configuration says of any class.
    pub(super) fn of(
        class: &Class,
        gguf: GgufArchitecture,
        config: &'a ModelConfig,
        shapes: &'a BTreeMap<String, Vec<usize>>,
    ) -> Self {
        let expert = |name: &String| name.split_once(".experts.")?.1.split('.').next()?.parse::<usize>().ok();
        let n_experts = shapes.keys().filter_map(expert).max().map_or(0, |last| last + 1);
        let mut entries = Self { config, shapes, n_experts, prefix: gguf.name, keys: Vec::new(), tables: Vec::new() };
        // Where no key has a window, the positions are so few that it does not matter.
        let window = config.windows.iter().flatten().min().filter(|_| gguf.layout.is_none());
        entries.int("context_length", window.map_or(config.max_positions, |&window| window.min(config.max_positions)));
        entries.int("embedding_length", config.hidden_size);
        entries.int("block_count", config.n_blocks);
        entries.int("feed_forward_length", config.intermediate_size);
        entries.int("attention.head_count", config.n_heads);
        entries.int("attention.head_count_kv", config.n_kv_heads);
        if class.head_dim.is_some() || config.head_dim * config.n_heads != config.hidden_size {
            entries.int("attention.key_length", config.head_dim);
            entries.int("attention.value_length", config.head_dim);
        }
        let of_rms = gguf.layout.is_none() || class.norm_eps.0.is_some_and(|key| key.contains("rms"));
        entries.float(&format!("attention.layer_norm_{}epsilon", if of_rms { "rms_" } else { "" }), config.norm_eps);
        entries.int("vocab_size", config.vocab_size);
        entries.rope();
        if let Some(layout) = gguf.layout {
            (layout.entries)(&mut entries);
        }
        entries
    }

    fn put(&mut self, own: &str, value: Value) {
        self.keys.push((format!("{}.{own}", self.prefix), value));
    }

    pub(super) fn int(&mut self, own: &str, value: usize) {
        // No dimension is larger than the reader's limit of 2^31.
        self.put(own, Value::Int(value as i64));
    }

    pub(super) fn float(&mut self, own: &str, value: f64) {
        self.put(own, Value::Float(value));
    }

    pub(super) fn bool(&mut self, own: &str, value: bool) {
        self.put(own, Value::Bool(value));
    }

    pub(super) fn text(&mut self, own: &str, value: &str) {
        self.put(own, Value::Text(value.to_owned()));
    }

    pub(super) fn table(&mut self, name: &'static str, values: Vec<f32>) {
        self.tables.push((name, values));
    }

    /// A number of the model's own file; `default` where it has none.
    pub(super) fn number(&self, key: &str, default: f64) -> f64 {
        self.config.raw[key].as_f64().unwrap_or(default)
    }

    pub(super) fn whole(&self, key: &str, default: usize) -> usize {
        self.config.raw[key].as_u64().map_or(default, |value| value as usize)
    }

    pub(super) fn switch(&self, key: &str, default: bool) -> bool {
        self.config.raw[key].as_bool().unwrap_or(default)
    }

    /// The window of the blocks that have one.
    pub(super) fn window(&mut self) {
        if let Some(window) = self.config.windows.iter().find_map(|window| *window) {
            self.int("attention.sliding_window", window);
        }
    }

    /// The rows of the first tensor whose name ends so.
    pub(super) fn rows_of(&mut self, own: &str, end: &str) {
        let shape = self.shapes.iter().find(|(name, _)| name.ends_with(end)).map(|(_, shape)| shape);
        if let Some(n_rows) = shape.and_then(|shape| shape.first()) {
            self.int(own, *n_rows);
        }
    }

    /// Rotated channels and their frequencies.
    fn rope(&mut self) {
        let rope = self.config.rope();
        self.int("rope.dimension_count", rope.n_channels);
        self.float("rope.freq_base", rope.theta);
        match &rope.scaling {
            // LongRoPE is its class's matter.
            None | Some(RopeScaling::LongRope { .. }) => {}
            Some(RopeScaling::Linear { factor }) => {
                self.text("rope.scaling.type", "linear");
                self.float("rope.scaling.factor", *factor);
            }
            Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, .. }) => {
                self.text("rope.scaling.type", "yarn");
                self.float("rope.scaling.factor", *factor);
                self.int("rope.scaling.original_context_length", *original_max_positions);
                self.float("rope.scaling.yarn_beta_fast", *beta_fast);
                self.float("rope.scaling.yarn_beta_slow", *beta_slow);
            }
            Some(RopeScaling::PerFrequency { divisors }) => self.table(super::ROPE_FREQS, divisors.clone()),
            Some(formula @ RopeScaling::Llama3 { .. }) => {
                let plain = crate::load::Rope { scaling: None, ..rope.clone() }.frequencies();
                let pairs = plain.iter().enumerate();
                let divisors = pairs.map(|(pair, &plain)| (plain / formula.apply(&rope, plain, pair)) as f32).collect();
                self.table(super::ROPE_FREQS, divisors);
            }
        }
    }
}

//! A checkpoint under other names than its file has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, LoadError, Slices, StoredType};
use crate::quantized::QuantizedWeight;

/// What names of a class begin or go on with in folders of tools that save what stands in memory (GPTQModel 7.7 and HQQ under
/// transformers 5), and what transformers itself writes (`results/interop.md`); the activation that AutoAWQ scales in BLOOM, and what it
/// is called here. `{}` is a number.
const IN_MEMORY: [(&str, &[(&str, &str)]); 4] = [
    (
        "MixtralForCausalLM",
        &[
            (".mlp.gate.", ".block_sparse_moe.gate."),
            (".mlp.experts.{}.gate_proj.", ".block_sparse_moe.experts.{}.w1."),
            (".mlp.experts.{}.down_proj.", ".block_sparse_moe.experts.{}.w2."),
            (".mlp.experts.{}.up_proj.", ".block_sparse_moe.experts.{}.w3."),
        ],
    ),
    ("Phi3ForCausalLM", &[(".mlp.gate_proj.", ".mlp.gate_up_proj.gate."), (".mlp.up_proj.", ".mlp.gate_up_proj.up.")]),
    ("GPTNeoXForCausalLM", &[("lm_head.", "embed_out.")]),
    ("BloomForCausalLM", &[(".mlp.gelu_impl.", ".mlp.act.")]),
];

/// A checkpoint whose tensors have the names of the model's class.
pub(crate) struct RenamedCheckpoint {
    base: Arc<dyn Checkpoint>,
    /// Names in the checkpoint below by those of the class.
    names: BTreeMap<String, String>,
    beside: Vec<String>,
    note: String,
}

impl RenamedCheckpoint {
    /// `names` has the stored name of each tensor of the language model by its new one; `beside` those of all else, as stored.
    pub(super) fn new(
        base: Arc<dyn Checkpoint>,
        names: BTreeMap<String, String>,
        beside: Vec<String>,
        note: String,
    ) -> Self {
        Self { base, names, beside, note }
    }

    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// Whether there is such a tensor: names of the checkpoint below are others.
    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.beside.iter().any(|beside| beside == name)
    }
}

/// The tensors of a model of class `architecture` under the names that transformers writes, where they are stored under those that they
/// have in memory. A tensor whose name is taken keeps its own.
pub(crate) fn with_written_names(architecture: &str, base: Arc<dyn Checkpoint>) -> Arc<dyn Checkpoint> {
    let Some((_, aliases)) = IN_MEMORY.iter().find(|(class, _)| *class == architecture) else { return base };
    let stored = base.names();
    let written = |name: &String| aliases.iter().find_map(|(from, to)| replaced(name, from, to));
    let is_free = |name: &String| stored.binary_search(name).is_err();
    let names: BTreeMap<String, String> = stored
        .iter()
        .map(|name| (written(name).filter(is_free).unwrap_or_else(|| name.clone()), name.clone()))
        .collect();
    let n_renamed = names.iter().filter(|(name, stored)| name != stored).count();
    if n_renamed == 0 {
        return base;
    }
    let source = base.source().display();
    let note = format!("{source}: {n_renamed} tensors are called as in memory, not as transformers writes them");
    let beside = base.beside();
    Arc::new(RenamedCheckpoint::new(base, names, beside, note))
}

/// `name` with `to` in the place of `from`, if it holds that; one that begins without a dot stands at the beginning.
fn replaced(name: &str, from: &str, to: &str) -> Option<String> {
    let Some((before, after)) = from.split_once("{}") else {
        let at = if from.starts_with('.') { name.find(from)? } else { name.starts_with(from).then_some(0)? };
        return Some(format!("{}{to}{}", &name[..at], &name[at + from.len()..]));
    };
    let (head, rest) = name.split_once(before)?;
    let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let tail = rest[n_digits..].strip_prefix(after).filter(|_| n_digits > 0)?;
    Some(format!("{head}{}{tail}", to.replace("{}", &rest[..n_digits])))
}

impl Checkpoint for RenamedCheckpoint {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn beside(&self) -> Vec<String> {
        self.beside.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(self.stored(name)).filter(|_| self.has(name))
    }

    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        self.has(name) && self.base.fits(self.stored(name), expected)
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.base.read_any_f32(self.stored(name))
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        self.base.slices(self.stored(name))
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.base.read_quantized(self.stored(name))
    }

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.base.read_codes(self.stored(name))
    }

    fn is_turned(&self, name: &str) -> bool {
        self.base.is_turned(self.stored(name))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.base.is_readable(self.stored(name))
    }

    fn is_integer(&self, name: &str) -> bool {
        self.base.is_integer(self.stored(name))
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        self.base.is_copy(self.stored(name), self.stored(other))
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.base.stored_type(self.stored(name))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.base.notes();
        notes.push(self.note.clone());
        notes
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(self.stored(name))
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::load::MemoryCheckpoint;

    fn named(architecture: &str, names: &[&str]) -> Arc<dyn Checkpoint> {
        let mut base = MemoryCheckpoint::default();
        for (index, name) in names.iter().enumerate() {
            base.insert(name, &[1], vec![index as f32]);
        }
        with_written_names(architecture, Arc::new(base))
    }

    #[test]
    fn names_of_memory_become_those_that_are_written() {
        let stored = [
            "lm_head.weight",
            "model.layers.3.mlp.experts.11.down_proj.weight",
            "model.layers.3.mlp.experts.11.gate_proj.weight",
            "model.layers.3.mlp.experts.11.up_proj.weight",
            "model.layers.3.mlp.gate.weight",
            "model.layers.3.self_attn.q_proj.weight",
        ];
        let checkpoint = named("MixtralForCausalLM", &stored);
        let expected = [
            "lm_head.weight",
            "model.layers.3.block_sparse_moe.experts.11.w1.weight",
            "model.layers.3.block_sparse_moe.experts.11.w2.weight",
            "model.layers.3.block_sparse_moe.experts.11.w3.weight",
            "model.layers.3.block_sparse_moe.gate.weight",
            "model.layers.3.self_attn.q_proj.weight",
        ];
        assert_eq!(checkpoint.names(), expected);
        assert_eq!(checkpoint.read_f32(expected[1]).unwrap(), [2.0], "w1 is the gate");
        assert_eq!(checkpoint.shape(stored[1]), None);
        assert!(
            checkpoint.notes()[0].ends_with(": 4 tensors are called as in memory, not as transformers writes them")
        );

        let checkpoint = named("GPTNeoXForCausalLM", &["gpt_neox.embed_in.weight", "lm_head.weight"]);
        assert_eq!(checkpoint.names(), ["embed_out.weight", "gpt_neox.embed_in.weight"]);
    }

    #[test]
    fn other_classes_and_names_that_are_taken_stay() {
        assert_eq!(named("LlamaForCausalLM", &["lm_head.weight"]).names(), ["lm_head.weight"]);
        let both = ["embed_out.weight", "lm_head.weight"];
        assert_eq!(named("GPTNeoXForCausalLM", &both).names(), both);
        assert!(named("GPTNeoXForCausalLM", &both[..1]).notes().is_empty());
    }
}

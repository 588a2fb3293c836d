//! The families by name, for whoever asks what can be loaded.

use super::classes;

/// A family that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFamily {
    /// `model_type` of its configuration: `llama`.
    pub model_type: &'static str,
    /// Its class in transformers: `LlamaForCausalLM`.
    pub class: &'static str,
    /// What GGUF files call it (`general.architecture`); `None` where such files are not read.
    pub gguf: Option<&'static str>,
}

/// Every family, in the order of the table of families.
pub fn known_families() -> Vec<KnownFamily> {
    let known = |class: &crate::load::Class| KnownFamily {
        model_type: class.model_type,
        class: class.name,
        gguf: class.gguf.map(|gguf| gguf.name),
    };
    classes().map(known).collect()
}

//! The families by name, for whoever asks what can be loaded.

use super::classes;
use crate::load::multimodal_classes;

/// A family that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFamily {
    /// `model_type` of its configuration: `llama`.
    pub model_type: &'static str,
    /// Its class in transformers: `LlamaForCausalLM`.
    pub class: &'static str,
    /// Whether it is a class of models of texts and images, of which the language model alone is known.
    pub is_multimodal: bool,
    /// What GGUF files call it (`general.architecture`); `None` where such files are not read.
    pub gguf: Option<&'static str>,
}

/// Every family, in the order of the table of families; then those that hold a language model of one of them.
pub fn known_families() -> Vec<KnownFamily> {
    let known = |class: &crate::load::Class| KnownFamily {
        model_type: class.model_type,
        class: class.name,
        is_multimodal: false,
        gguf: class.gguf.map(|gguf| gguf.name),
    };
    let multimodal = multimodal_classes();
    let multimodal =
        multimodal.map(|(class, model_type)| KnownFamily { model_type, class, is_multimodal: true, gguf: None });
    classes().map(known).chain(multimodal).collect()
}

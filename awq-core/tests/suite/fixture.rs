//! The checkpoints of `tests/fixtures` with what PyPI's transformers computes of them (`scripts/make-fixtures.py`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::load::{Checkpoint, LoadError, MemoryCheckpoint, ModelConfig, SafetensorsCheckpoint};
use awq_core::model::{Block, Decoder, NoTap, open_decoder};
use awq_core::open::in_parts;
use safetensors::SafeTensors;

/// One of each family, and of those whose blocks can slide one with windows shorter than its sequences.
pub(crate) const FAMILIES: [&str; 39] = [
    "bigcode-tiny",
    "bloom-tiny",
    "falcon-40b-tiny",
    "falcon-7b-tiny",
    "falcon-rw-tiny",
    "gemma-tiny",
    "gemma2-tiny",
    "gemma3-tiny",
    "gemma3-vl-tiny",
    "gpt2-tiny",
    "granite-tiny",
    "idefics3-tiny",
    "llama-tiny",
    "llava-tiny",
    "mistral-tiny",
    "mistral-window",
    "mixtral-tiny",
    "mpt-tiny",
    "neox-in-turn",
    "neox-tiny",
    "olmo2-tiny",
    "opt-350m-tiny",
    "opt-tiny",
    "phi-qk-norm",
    "phi-tiny",
    "phi3-long",
    "phi3-tiny",
    "qwen2-5-vl-tiny",
    "qwen2-moe-tiny",
    "qwen2-tiny",
    "qwen2-vl-tiny",
    "qwen2-window",
    "qwen3-moe-tiny",
    "qwen3-tiny",
    "smollm3-tiny",
    "smolvlm-tiny",
    "stablelm-parallel",
    "stablelm-qk-norm",
    "stablelm-tiny",
];

/// A checkpoint with token ids and the logits that transformers computes of them.
pub(crate) struct Fixture {
    pub(crate) config: ModelConfig,
    pub(crate) checkpoint: MemoryCheckpoint,
    pub(crate) ids: Vec<Vec<u32>>,
    /// `[sequences, seq, vocab]`, row-major.
    pub(crate) logits: Vec<f32>,
}

pub(crate) fn folder(name: &str) -> PathBuf {
    folder_of("fixtures", name)
}

/// A folder of `tests/pickled`, which `scripts/make-pickled-fixtures.py` makes.
pub(crate) fn pickled_folder(name: &str) -> PathBuf {
    folder_of("pickled", name)
}

/// A folder of `tests/tools`, which `scripts/make-tool-fixtures.py` and `scripts/make-mlx-fixtures.py` make.
pub(crate) fn tool_folder(name: &str) -> PathBuf {
    folder_of("tools", name)
}

/// A folder of `tests/floats`, which `scripts/make-float-fixtures.py` makes.
pub(crate) fn float_folder(name: &str) -> PathBuf {
    folder_of("floats", name)
}

/// A file of `tests/tokenizers`, which `scripts/make-tokenizer-fixtures.py` makes.
pub(crate) fn tokenizer_file(name: &str) -> PathBuf {
    folder_of("tokenizers", name)
}

fn folder_of(set: &str, name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `scripts/gpu_check.sh --bin` runs tests in another checkout than they were built in, from its root.
    let root = if built.exists() { built } else { Path::new("awq-core") };
    root.join("tests").join(set).join(name)
}

impl Fixture {
    pub(crate) fn read(name: &str) -> Self {
        let folder = folder(name);
        Self::with_weights(name, Arc::new(SafetensorsCheckpoint::open_folder(&folder).unwrap()))
    }

    /// The same model with its weights from elsewhere.
    pub(crate) fn with_weights(name: &str, on_disk: Arc<dyn Checkpoint>) -> Self {
        let folder = folder(name);
        let config = ModelConfig::from_hugging_face(&folder.join("config.json")).unwrap();
        let checkpoint = renamed(in_parts(&config, on_disk).as_ref(), |name| Some(name.to_owned()));
        Self::with_expected(config, checkpoint, &folder.join("expected.safetensors"))
    }

    /// With the ids and logits of a file.
    pub(crate) fn with_expected(config: ModelConfig, checkpoint: MemoryCheckpoint, expected: &Path) -> Self {
        let bytes = std::fs::read(expected).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| expected.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        let seq_len = expected.tensor("ids").unwrap().shape()[1];
        let ids: Vec<u32> = words("ids").into_iter().map(u32::from_le_bytes).collect();
        let logits = words("logits").into_iter().map(f32::from_le_bytes).collect();
        Self { config, checkpoint, ids: ids.chunks(seq_len).map(<[u32]>::to_vec).collect(), logits }
    }

    pub(crate) fn open<B: QuantBackend>(&self) -> Result<Box<dyn Decoder<B>>, LoadError> {
        open_decoder(self.config.clone(), Arc::new(self.checkpoint.clone()), &Default::default())
    }

    /// The logits of the model, `[sequences, seq, vocab]`.
    pub(crate) fn run<B: QuantBackend>(&self) -> Vec<f32> {
        self.run_changed::<B>(|block| block)
    }

    /// The logits of the model with each block changed.
    pub(crate) fn run_changed<B: QuantBackend>(
        &self,
        change: impl Fn(Box<dyn Block<B>>) -> Box<dyn Block<B>>,
    ) -> Vec<f32> {
        let decoder = self.open::<B>().unwrap();
        let mut hidden = decoder.embedding().unwrap().embed(&self.ids);
        for block_idx in 0..self.config.n_blocks {
            hidden = change(decoder.block(block_idx).unwrap()).forward(hidden, &mut NoTap);
        }
        let normed = decoder.final_norm(hidden);
        let [batch, seq, width] = normed.dims();
        float_vec(decoder.head(Arithmetic::F32).unwrap().logits(normed.reshape([batch * seq, width])))
    }
}

/// The tensors to which `rename` gives a name.
pub(crate) fn renamed(checkpoint: &dyn Checkpoint, rename: impl Fn(&str) -> Option<String>) -> MemoryCheckpoint {
    let mut copy = MemoryCheckpoint::default();
    for name in checkpoint.names() {
        if let Some(new_name) = rename(&name) {
            copy.insert(&new_name, &checkpoint.shape(&name).unwrap(), checkpoint.read_f32(&name).unwrap());
        }
    }
    copy
}

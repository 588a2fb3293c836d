//! Weights of the bundled model as plain numbers, by their Hugging Face names, and the folder they are stored in.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

/// `config.json` of a Llama-architecture model, as far as the bundled model uses it; names are Hugging Face's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// `["LlamaForCausalLM"]`.
    pub architectures: Vec<String>,
    /// `llama`.
    pub model_type: String,
    /// Tokens, as in tokenizer.json.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest window trained on, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies; pairs are (i, i + head_dim / 2).
    pub rope_theta: f64,
    /// `silu`.
    pub hidden_act: String,
    /// The head is the embedding: true.
    pub tie_word_embeddings: bool,
    /// No biases: false.
    pub attention_bias: bool,
    /// No biases: false.
    pub mlp_bias: bool,
    /// Id of the token before a window.
    pub bos_token_id: u32,
    /// Id of the line feed that ends a document.
    pub eos_token_id: u32,
    /// `float16`.
    pub torch_dtype: String,
}

impl NetworkConfig {
    /// The bundled model's shape: about 3.4 million parameters. 704 = 5 * 128 + 64, so that groups of 128 are ragged.
    pub fn bundled(vocab_size: usize, max_position_embeddings: usize, bos_token_id: u32, eos_token_id: u32) -> Self {
        NetworkConfig {
            architectures: vec!["LlamaForCausalLM".to_owned()],
            model_type: "llama".to_owned(),
            vocab_size,
            hidden_size: 256,
            intermediate_size: 704,
            num_hidden_layers: 4,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 32,
            max_position_embeddings,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            hidden_act: "silu".to_owned(),
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id,
            eos_token_id,
            torch_dtype: "float16".to_owned(),
        }
    }

    /// Name and shape of every tensor, `[out, in]` for linears, `[hidden]` for norms.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let hidden = self.hidden_size;
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ]);
        for block_idx in 0..self.num_hidden_layers {
            let of_block = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![queries, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.o_proj", vec![hidden, queries]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![self.intermediate_size, hidden]),
                ("mlp.up_proj", vec![self.intermediate_size, hidden]),
                ("mlp.down_proj", vec![hidden, self.intermediate_size]),
            ];
            shapes.extend(of_block.map(|(name, shape)| (format!("model.layers.{block_idx}.{name}.weight"), shape)));
        }
        shapes
    }
}

/// One tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// `[out, in]` or `[hidden]`.
    pub shape: Vec<usize>,
    /// As many as the product of `shape`.
    pub values: Vec<f32>,
}

/// Configuration and all tensors of the bundled model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Shapes and constants.
    pub config: NetworkConfig,
    /// By Hugging Face name.
    pub tensors: BTreeMap<String, HostTensor>,
}

impl Weights {
    /// Before training: norms are one, the rest normal with standard deviation `1 / sqrt(in)`, of the projections into
    /// the residual stream a tenth of it. On top, each attention head begins as a weak copier, in the spirit of
    /// Trockman and Kolter, "Mimetic initialization of self-attention layers": its query projection resembles its key
    /// projection, so a token looks for tokens like itself, and its output projection contains the transpose of its
    /// value projection, so what it sees becomes likelier. From independent projections the model was still not
    /// looking back after a million tokens; from these it repeats names after a third of that.
    pub fn initial(config: NetworkConfig, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let n = shape.iter().product();
            let values = match shape.as_slice() {
                [_, n_in] => {
                    let into_residual = name.contains("o_proj") || name.contains("down_proj");
                    let gain = if into_residual { 0.1 } else { 1.0 };
                    normal(&mut rng, n, gain / (*n_in as f32).sqrt())
                }
                _ => vec![1.0; n],
            };
            tensors.insert(name, HostTensor { shape, values });
        }
        for block_idx in 0..config.num_hidden_layers {
            make_heads_copy(&mut tensors, &config, block_idx);
        }
        Weights { config, tensors }
    }

    /// Number of parameters; the tied head counts once.
    pub fn n_parameters(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.values.len()).sum()
    }

    /// Writes `config.json` and `model.safetensors` (f16) into `dir`, which exists.
    ///
    /// # Errors
    /// With the file's path, where it cannot be written.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let config_path = dir.join("config.json");
        let json = serde_json::to_string_pretty(&self.config)?;
        std::fs::write(&config_path, json + "\n").with_context(|| format!("writing {}", config_path.display()))?;

        let halves: BTreeMap<&String, Vec<u8>> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name, tensor.values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()))
            .collect();
        let views = halves
            .iter()
            .map(|(name, bytes)| Ok((name, TensorView::new(Dtype::F16, self.tensors[*name].shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let path = dir.join("model.safetensors");
        // Hugging Face readers ask for this entry.
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        let bytes = safetensors::serialize(views, metadata)?;
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    }

    /// Reads what [`Weights::save`] wrote.
    ///
    /// # Errors
    /// With the file's path, where one is missing, cut short or has a tensor that does not fit `config.json`.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        Self::from_bytes(&read("config.json")?, &read("model.safetensors")?)
            .with_context(|| format!("the model in {}", dir.display()))
    }

    /// The model of the contents of `config.json` and `model.safetensors` (f16).
    ///
    /// # Errors
    /// Where one is malformed, or a tensor is missing, of another type or of another shape than the configuration says.
    pub fn from_bytes(config: &[u8], safetensors: &[u8]) -> anyhow::Result<Self> {
        let config: NetworkConfig = serde_json::from_slice(config).context("config.json")?;
        let stored = SafeTensors::deserialize(safetensors).context("model.safetensors")?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let view = stored.tensor(&name).with_context(|| format!("model.safetensors: {name}"))?;
            anyhow::ensure!(
                view.dtype() == Dtype::F16 && view.shape() == shape,
                "model.safetensors: {name} is {:?} {:?}, expected F16 {shape:?}",
                view.dtype(),
                view.shape()
            );
            let values = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            tensors.insert(name, HostTensor { shape, values });
        }
        Ok(Weights { config, tensors })
    }
}

/// Correlates each head's query with its key projection, and adds its transposed value projection to its output
/// projection.
fn make_heads_copy(tensors: &mut BTreeMap<String, HostTensor>, config: &NetworkConfig, block_idx: usize) {
    const QUERY_LIKE_KEY: f32 = 0.5;
    const OUTPUT_OF_VALUE: f32 = 0.15;
    let NetworkConfig { hidden_size: hidden, head_dim, num_attention_heads: heads, .. } = *config;
    let heads_per_key = heads / config.num_key_value_heads;
    // The row of the key and value projections that row `query_row` of the query projection meets.
    let key_row = |query_row: usize| query_row / head_dim / heads_per_key * head_dim + query_row % head_dim;
    let mut take = |linear: &str| {
        let name = format!("model.layers.{block_idx}.self_attn.{linear}.weight");
        tensors.remove_entry(&name).map(|(name, tensor)| (name, tensor.shape, tensor.values))
    };
    let (Some(mut query), Some(key), Some(value), Some(mut output)) =
        (take("q_proj"), take("k_proj"), take("v_proj"), take("o_proj"))
    else {
        unreachable!("block {block_idx} has all four projections")
    };
    for (i, q) in query.2.iter_mut().enumerate() {
        let of_key = key.2[key_row(i / hidden) * hidden + i % hidden];
        *q = QUERY_LIKE_KEY * of_key + (1.0 - QUERY_LIKE_KEY * QUERY_LIKE_KEY).sqrt() * *q;
    }
    let width = heads * head_dim;
    for (i, o) in output.2.iter_mut().enumerate() {
        *o += OUTPUT_OF_VALUE * value.2[key_row(i % width) * hidden + i / width];
    }
    for (name, shape, values) in [query, key, value, output] {
        tensors.insert(name, HostTensor { shape, values });
    }
}

/// `n` normal numbers of standard deviation `std`, by Box and Muller's method.
fn normal(rng: &mut ChaCha8Rng, n: usize, std: f32) -> Vec<f32> {
    (0..n)
        .map(|_| {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            let angle = std::f64::consts::TAU * rng.random::<f64>();
            std * (radius * angle.cos()) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_saved_model_loads_again_to_within_f16() {
        let weights = Weights::initial(NetworkConfig::bundled(300, 64, 0, 1), 5);
        let dir = tempfile::tempdir().unwrap();
        weights.save(dir.path()).unwrap();
        let loaded = Weights::load(dir.path()).unwrap();
        assert_eq!(loaded.config, weights.config);
        for (name, tensor) in &weights.tensors {
            for (a, b) in tensor.values.iter().zip(&loaded.tensors[name].values) {
                assert!((a - b).abs() <= 1e-3 * a.abs() + 1e-7, "{name}: {a} became {b}");
            }
        }
        // What f16 can hold is stored exactly.
        loaded.save(dir.path()).unwrap();
        assert_eq!(Weights::load(dir.path()).unwrap(), loaded);
    }

    #[test]
    fn broken_files_are_named() {
        let weights = Weights::initial(NetworkConfig::bundled(300, 64, 0, 1), 5);
        let dir = tempfile::tempdir().unwrap();
        weights.save(dir.path()).unwrap();
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(format!("{:#}", Weights::load(dir.path()).unwrap_err()).contains("model.safetensors"));
        std::fs::write(&path, &bytes).unwrap();
        let mut wider = weights.clone();
        wider.config.vocab_size = 301;
        std::fs::write(dir.path().join("config.json"), serde_json::to_vec(&wider.config).unwrap()).unwrap();
        assert!(
            format!("{:#}", Weights::load(dir.path()).unwrap_err())
                .ends_with("model.embed_tokens.weight is F16 [300, 256], expected F16 [301, 256]")
        );
    }
}

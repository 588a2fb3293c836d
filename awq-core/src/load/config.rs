//! The facts of a decoder, read from a Hugging Face `config.json` or from GGUF metadata into one struct.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::class::{Class, Classes};
use super::gguf::Value;
use super::keys::Keys;
use super::rope::{Rope, RopeScaling};
use super::{LoadError, multimodal, read_json, switches, windows};

/// The facts of a decoder that its weights do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The Hugging Face class, such as `LlamaForCausalLM`. Passed on as read: the family registry decides what is known.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub n_blocks: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding. The tokenizer may have fewer tokens.
    pub vocab_size: usize,
    /// Longest sequence the model was trained for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square (or variance) in a norm.
    pub norm_eps: f64,
    /// Channels of a head that are rotated, the first ones; even.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies were stretched for longer contexts, if they were.
    pub rope_scaling: Option<RopeScaling>,
    /// How blocks with a window rotate, where that differs.
    pub local_rope: Option<Rope>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have a bias. Which other linears then have one, too, is the family's matter.
    pub attention_bias: bool,
    /// Whether the linears of the feed-forward module may have a bias.
    pub mlp_bias: bool,
    /// Beginning-of-sequence token.
    pub bos_id: Option<u32>,
    /// Tokens that end a generation; the first is the end-of-sequence token.
    pub eos_ids: Vec<u32>,
    /// One entry a block: to how many tokens one attends at most, itself and those before it; `None` for all of them.
    pub windows: Vec<Option<usize>>,
    /// The file's own keys, for what only one family needs. GGUF: the metadata without its arrays.
    pub raw: Json,
    /// The configuration of the whole, where this is that of its language model.
    pub outer: Option<Json>,
}

impl ModelConfig {
    /// Reads a Hugging Face `config.json`. Absent optional keys get the defaults of the class of transformers, one of `classes`.
    ///
    /// # Errors
    /// [`LoadError::MissingKey`], [`LoadError::BadKey`] or [`LoadError::Json`], naming file and key.
    pub(crate) fn of_hugging_face(file: &Path, classes: Classes<'_>) -> Result<Self, LoadError> {
        let raw: Json = read_json(file)?;
        match multimodal::language_model(file, &raw, classes)? {
            None => Self::from_json(file, raw, classes),
            Some(text) => Ok(Self { outer: Some(raw), ..Self::from_json(file, text, classes)? }),
        }
    }

    /// The same of the keys of `file`, which is for messages only.
    pub(super) fn from_json(file: &Path, raw: Json, classes: Classes<'_>) -> Result<Self, LoadError> {
        let keys = Keys { file, json: &raw };
        let class = class_of(&keys, classes)?;
        switches::check(&keys, class)?;
        let hidden_size = keys.dimension_or(class.hidden_size.0, class.hidden_size.1)?;
        let number = |(names, default): (&[&str], usize)| keys.counted(names[0], keys.dimension_or(names, default)?);
        let (n_blocks, n_heads) = (number(class.n_blocks)?, number(class.n_heads)?);
        let head_dim = keys.counted("head_dim", class.head_dim(&keys, hidden_size / n_heads)?)?;
        let (rope, local_rope) = Rope::from_hugging_face(&keys, class, head_dim)?;
        let (bias_key, has_bias) = class.attention_bias;
        let bias = bias_key.map(|key| keys.optional_bool(key)).transpose()?.flatten();
        let config = Self {
            hidden_size,
            intermediate_size: class.inner_size(&keys, hidden_size)?,
            n_blocks,
            n_heads,
            n_kv_heads: class.kv_heads(&keys, n_heads)?,
            head_dim,
            vocab_size: keys.dimension_or(&["vocab_size"], class.vocab_size)?,
            max_positions: keys.dimension_or(class.max_positions.0, class.max_positions.1)?,
            norm_eps: match class.norm_eps {
                (Some(key), _) if raw.get(key).is_some() => keys.float(key)?,
                (_, default) => default,
            },
            rotary_dim: rope.n_channels,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope,
            tie_word_embeddings: keys.optional_bool("tie_word_embeddings")?.unwrap_or(class.tied_head),
            attention_bias: bias.unwrap_or(has_bias),
            mlp_bias: class.has_mlp_bias_key && keys.optional_bool("mlp_bias")?.unwrap_or(false),
            bos_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_ids: match raw.get("eos_token_id") {
                None => class.eos_id.into_iter().collect(),
                Some(_) => keys.token_ids("eos_token_id")?,
            },
            windows: windows::from_hugging_face(&keys, class, n_blocks)?,
            architecture: class.name.to_owned(),
            raw: Json::Null,
            outer: None,
        };
        config.check(file, class.n_heads.0[0], "num_key_value_heads", "head_dim")?;
        Ok(Self { raw, ..config })
    }

    /// Reads GGUF metadata, which `raw` has checked and without its arrays. `prefix` is the architecture as GGUF spells it.
    /// Whether the head is tied and q, k and v have a bias is told by the tensors alone: both are left `false`.
    pub(super) fn from_gguf(
        file: &Path,
        raw: Json,
        metadata: &BTreeMap<String, Value>,
        prefix: &str,
        architecture: &str,
    ) -> Result<Self, LoadError> {
        let keys = Keys { file, json: &raw };
        let key = |name: &str| format!("{prefix}.{name}");
        let hidden_size = keys.dimension(&[&key("embedding_length")])?;
        let number = |name: &str| keys.counted(&key(name), keys.dimension(&[&key(name)])?);
        let (n_blocks, n_heads) = (number("block_count")?, number("attention.head_count")?);
        let head_dim = keys.optional_dimension(&key("attention.key_length"))?.unwrap_or(hidden_size / n_heads);
        keys.counted(&key("attention.key_length"), head_dim)?;
        let rotary_dim = keys.optional_dimension(&key("rope.dimension_count"))?.unwrap_or(head_dim);
        if rotary_dim != head_dim {
            let problem =
                format!("{rotary_dim}, expected the head width {head_dim}: partly rotated heads are not supported");
            return Err(keys.bad(&key("rope.dimension_count"), problem));
        }
        let value_dim = keys.optional_dimension(&key("attention.value_length"))?.unwrap_or(hidden_size / n_heads);
        if value_dim != head_dim {
            let problem = format!("{value_dim}, expected the width of keys {head_dim}: others are not supported");
            return Err(keys.bad(&key("attention.value_length"), problem));
        }
        keys.check_attention_scale(&key("attention.scale"), head_dim)?;
        let rope = Rope::from_gguf(&keys, prefix, head_dim)?;
        let vocab_size = match (keys.optional_dimension(&key("vocab_size"))?, metadata.get("tokenizer.ggml.tokens")) {
            (Some(vocab_size), _) => vocab_size,
            (None, Some(Value::Texts(tokens))) => tokens.len(),
            (None, _) => return Err(keys.missing(&key("vocab_size"))),
        };
        let config = Self {
            architecture: architecture.to_owned(),
            hidden_size,
            intermediate_size: keys.dimension(&[&key("feed_forward_length")])?,
            n_blocks,
            n_heads,
            n_kv_heads: keys.optional_dimension(&key("attention.head_count_kv"))?.unwrap_or(n_heads),
            head_dim,
            vocab_size,
            max_positions: keys.dimension(&[&key("context_length")])?,
            norm_eps: keys
                .optional_float(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| keys.missing(&key("attention.layer_norm_rms_epsilon")))?,
            rotary_dim: rope.n_channels,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            bos_id: keys.token_ids("tokenizer.ggml.bos_token_id")?.first().copied(),
            eos_ids: ["eos", "eot", "eom"]
                .iter()
                .map(|end| keys.token_ids(&format!("tokenizer.ggml.{end}_token_id")))
                .collect::<Result<Vec<_>, _>>()?
                .concat(),
            // `attention.sliding_window` is not read: llama.cpp applies none in the graphs of `llama` and `qwen2`, and
            // transformers maps the key to nothing for them (both looked up in 2026).
            windows: vec![None; n_blocks],
            raw: Json::Null,
            outer: None,
        };
        config.check(
            file,
            &key("attention.head_count"),
            &key("attention.head_count_kv"),
            &key("attention.key_length"),
        )?;
        Ok(Self { raw, ..config })
    }

    /// Whether the facts are a GGUF file's.
    pub(crate) fn is_from_gguf(&self) -> bool {
        self.raw.get("general.architecture").is_some()
    }

    /// Longest sequence that is run, in tokens: as many as the configuration gives positions, of a model with LongRoPE as many as
    /// it had before the stretch. transformers would go on beyond them where positions are rotated, with a warning at most.
    pub fn longest_sequence(&self) -> usize {
        match &self.rope_scaling {
            Some(RopeScaling::LongRope { original_max_positions, .. }) => {
                self.max_positions.min(*original_max_positions)
            }
            _ => self.max_positions,
        }
    }

    /// How queries and keys are rotated, in blocks for which the family says nothing else.
    pub fn rope(&self) -> Rope {
        Rope { theta: self.rope_theta, scaling: self.rope_scaling.clone(), n_channels: self.rotary_dim }
    }

    /// What every attention layer takes for granted.
    fn check(&self, file: &Path, heads_key: &str, kv_heads_key: &str, head_dim_key: &str) -> Result<(), LoadError> {
        let bad = |key: &str, problem| Err(LoadError::BadKey { file: file.to_owned(), key: key.to_owned(), problem });
        let Self { n_heads, n_kv_heads, head_dim, .. } = *self;
        if !n_heads.is_multiple_of(n_kv_heads) {
            return bad(
                kv_heads_key,
                format!("{n_kv_heads}, expected a divisor of the {n_heads} heads of {heads_key:?}"),
            );
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return bad(head_dim_key, format!("heads are {head_dim} wide, expected an even width"));
        }
        if let Some(RopeScaling::LongRope { short_factors, .. }) = &self.rope_scaling
            && short_factors.len() != self.rotary_dim / 2
        {
            let problem = format!(
                "{} factors, expected {}: one for each pair of a head",
                short_factors.len(),
                self.rotary_dim / 2
            );
            return bad("rope_scaling.short_factor", problem);
        }
        if let Some(RopeScaling::PerFrequency { divisors }) = &self.rope_scaling
            && divisors.len() != self.rotary_dim / 2
        {
            let problem =
                format!("{} divisors, expected {}: one for each pair of a head", divisors.len(), self.rotary_dim / 2);
            return bad("rope_scaling.divisors", problem);
        }
        Ok(())
    }
}

/// The class that the file names, or that its `model_type` belongs to.
fn class_of(keys: &Keys<'_>, classes: Classes<'_>) -> Result<&'static Class, LoadError> {
    const KEY: &str = "architectures";
    let classes = || classes.iter().copied();
    let unknown = |architecture: &str| LoadError::UnknownArchitecture {
        file: keys.file.to_owned(),
        architecture: architecture.to_owned(),
        known: classes().map(|class| class.name.to_owned()).collect(),
    };
    let is_multimodal = keys.get("text_config").is_some() || keys.get("vision_config").is_some();
    let named = |architecture: &str| match is_multimodal {
        true => unknown(&format!("{architecture} (a multimodal model; its language model is not taken out)")),
        false => unknown(architecture),
    };
    let by_type = |model_type: &str| classes().find(|class| class.model_type == model_type);
    let model_type = keys.optional_text("model_type")?;
    let names = match keys.get(KEY) {
        None => Vec::new(),
        Some(value) => {
            let names = value.as_array().and_then(|names| names.iter().map(Json::as_str).collect::<Option<Vec<_>>>());
            names.ok_or_else(|| keys.wrong_type(KEY, value, "a list of class names"))?
        }
    };
    // Of several names, the one of a language model; transformers asks `model_type` alone.
    let class = match (names.iter().find_map(|name| classes().find(|class| class.name == *name)), names.first()) {
        (Some(class), _) => class,
        (None, Some(name)) => return Err(named(name)),
        (None, None) => {
            let model_type = model_type.ok_or_else(|| keys.missing(KEY))?;
            by_type(model_type).ok_or_else(|| named(model_type))?
        }
    };
    match model_type {
        Some(model_type) if model_type != class.model_type => Err(keys.bad(
            "model_type",
            format!(
                "{model_type:?}, but {KEY:?} names {}, whose type is {:?}: transformers goes by the type; correct the wrong one",
                class.name, class.model_type
            ),
        )),
        _ => Ok(class),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn llama() -> Json {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 100000, "bos_token_id": 1, "eos_token_id": [2, 5]
        })
    }

    fn parse(json: &Json) -> Result<ModelConfig, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, json.to_string()).unwrap();
        ModelConfig::from_hugging_face(&file)
    }

    fn with(key: &str, value: Json) -> Json {
        let mut json = llama();
        json[key] = value;
        json
    }

    #[track_caller]
    fn check_error(json: &Json, expected: &str) {
        let message = parse(json).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("config.json: "), "{message}");
    }

    #[test]
    fn llama_config_reads() {
        let config = parse(&llama()).unwrap();
        assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.n_blocks), (9, 3, 64, 30));
        assert_eq!((config.rope_theta, config.norm_eps), (100_000.0, 1e-5));
        assert_eq!((config.bos_id, config.eos_ids.as_slice()), (Some(1), &[2, 5][..]));
        assert!(!config.tie_word_embeddings && !config.attention_bias);
        assert_eq!((config.windows, config.rope_scaling), (vec![None; 30], None));
        assert_eq!(config.raw["rope_theta"], 100_000);
    }

    #[test]
    fn classes_have_their_own_defaults() {
        let opt = parse(&json!({
            "architectures": ["OPTForCausalLM"], "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "vocab_size": 50272, "max_position_embeddings": 2048, "bos_token_id": 2
        }))
        .unwrap();
        assert!(opt.tie_word_embeddings && opt.attention_bias);
        assert_eq!((opt.intermediate_size, opt.n_kv_heads, opt.norm_eps), (3072, 12, 1e-5));

        let qwen2 = parse(&with("architectures", json!(["Qwen2ForCausalLM"]))).unwrap();
        assert!(qwen2.attention_bias && !qwen2.tie_word_embeddings);
        assert_eq!(qwen2.head_dim, 64);

        let qwen3 = parse(&with("architectures", json!(["Qwen3ForCausalLM"]))).unwrap();
        assert_eq!((qwen3.attention_bias, qwen3.head_dim), (false, 128));
        let silent = parse(&json!({ "architectures": ["Qwen3ForCausalLM"] })).unwrap();
        assert_eq!((silent.hidden_size, silent.intermediate_size, silent.n_blocks), (4096, 22_016, 32));
        assert_eq!((silent.n_heads, silent.n_kv_heads, silent.head_dim), (32, 32, 128));
        assert_eq!((silent.vocab_size, silent.max_positions), (151_936, 32_768));
        assert_eq!((silent.norm_eps, silent.rope_theta), (1e-6, 10_000.0));
        assert_eq!((silent.eos_ids, silent.windows), (vec![], vec![None; 32]));

        let silent = parse(&json!({ "architectures": ["MixtralForCausalLM"] })).unwrap();
        assert_eq!((silent.hidden_size, silent.intermediate_size, silent.n_blocks), (4096, 14_336, 32));
        assert_eq!((silent.n_heads, silent.n_kv_heads, silent.head_dim), (32, 8, 128));
        assert_eq!((silent.vocab_size, silent.max_positions), (32_000, 131_072));
        assert_eq!((silent.norm_eps, silent.rope_theta), (1e-5, 1e6));
        assert_eq!((silent.eos_ids, silent.windows), (vec![2], vec![None; 32]));
        assert!(!silent.tie_word_embeddings && !silent.attention_bias);
    }

    #[test]
    fn bad_values_name_file_key_and_expectation() {
        check_error(&with("hidden_size", json!(0)), "key \"hidden_size\": 0, expected a positive integer");
        check_error(&with("hidden_size", json!(u64::MAX)), "expected a positive integer of at most 2^31");
        check_error(&with("num_hidden_layers", json!(1_u64 << 31)), "2147483648, expected at most 16384");
        check_error(&with("num_attention_heads", json!(1 << 15)), "32768, expected at most 16384");
        check_error(&with("head_dim", json!(1 << 20)), "1048576, expected at most 16384");
        check_error(
            &with("num_key_value_heads", json!(4)),
            "key \"num_key_value_heads\": 4, expected a divisor of the 9 heads",
        );
        check_error(&with("head_dim", json!(63)), "expected an even width");
        check_error(&with("rms_norm_eps", Json::Null), "key \"rms_norm_eps\" is missing");
        check_error(&with("vocab_size", json!("many")), "key \"vocab_size\": \"many\", expected a positive integer");
        check_error(&with("architectures", json!("LlamaForCausalLM")), "expected a list of class names");
        check_error(&with("architectures", json!([])), "key \"architectures\" is missing");
        check_error(
            &with("model_type", json!("granite")),
            "key \"model_type\": \"granite\", but \"architectures\" names Llama",
        );
        check_error(
            &with("rope_scaling", json!({"rope_type": "ntk", "factor": 4.0})),
            "\"ntk\", expected one of default, linear, dynamic, llama3, yarn, longrope",
        );
        check_error(&with("eos_token_id", json!(-1)), "expected a token id");
        check_error(&json!([]), "key \"architectures\" is missing");
    }

    #[test]
    fn rope_frequencies_fall_from_one_by_equal_ratios() {
        let frequencies = parse(&llama()).unwrap().rope().frequencies();
        assert_eq!(frequencies.len(), 32);
        assert_eq!(frequencies[0], 1.0);
        let ratio = 100_000_f64.powf(-1.0 / 32.0);
        assert!(frequencies.windows(2).all(|pair| (pair[1] / pair[0] - ratio).abs() < 1e-12));
    }
}

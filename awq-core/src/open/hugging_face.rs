//! A [`ModelConfig`] from the `config.json` of a Hugging Face folder, and back, for models that came from elsewhere.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{class_of, known_classes};
use crate::load::{LoadError, ModelConfig, Rope, RopeScaling, foreign, put_windows};

impl ModelConfig {
    /// Reads a Hugging Face `config.json`. Absent optional keys get the defaults of the transformers class.
    ///
    /// # Errors
    /// [`LoadError::MissingKey`], [`LoadError::BadKey`] or [`LoadError::Json`], naming file and key.
    pub fn from_hugging_face(file: &Path) -> Result<Self, LoadError> {
        Self::of_hugging_face(file, &known_classes())
    }

    /// The `config.json` from which [`ModelConfig::from_hugging_face`] reads this configuration again: the model's own
    /// where it has one.
    ///
    /// Divisors of the rotary frequencies, which GGUF stores in place of a formula, go into a key of our own beside
    /// the formula that they came from. Where none is found, the type is one that only this program knows, so that others
    /// refuse the file.
    pub fn to_hugging_face(&self) -> Json {
        if self.raw.is_object() && !self.is_from_gguf() {
            let mut raw = self.outer.as_ref().unwrap_or(&self.raw).clone();
            // How the weights were stored that this was read from; what is written has them otherwise.
            let without = |keys: Option<&mut Json>| {
                if let Some(keys) = keys.and_then(Json::as_object_mut) {
                    keys.retain(|key, _| !foreign::KEYS.contains(&key.as_str()));
                }
            };
            without(raw.get_mut("text_config"));
            without(Some(&mut raw));
            return raw;
        }
        let rope_scaling = match &self.rope_scaling {
            None => Json::Null,
            Some(scaling @ RopeScaling::PerFrequency { divisors }) => {
                let mut keys = formula_keys(self.llama3_formula(divisors).as_ref().unwrap_or(scaling));
                keys["divisors"] = json!(divisors);
                keys
            }
            Some(formula) => formula_keys(formula),
        };
        let mut keys = Map::new();
        let mut put = |key: &str, value: Json| keys.insert(key.to_owned(), value);
        put("architectures", json!([self.architecture]));
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.n_blocks));
        put("num_attention_heads", json!(self.n_heads));
        put("num_key_value_heads", json!(self.n_kv_heads));
        put("head_dim", json!(self.head_dim));
        put("vocab_size", json!(self.vocab_size));
        put("max_position_embeddings", json!(self.max_positions));
        put("rms_norm_eps", json!(self.norm_eps));
        put("rope_theta", json!(self.rope_theta));
        put("rope_scaling", rope_scaling);
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("attention_bias", json!(self.attention_bias));
        put("mlp_bias", json!(self.mlp_bias));
        put("bos_token_id", json!(self.bos_id));
        put("eos_token_id", json!(self.eos_ids));
        if let Some(class) = class_of(self) {
            put_windows(&mut keys, class, &self.windows);
        }
        Json::Object(keys)
    }

    /// The formula of Llama 3.1 that gives `divisors`. The originals of the ecosystem come first: where several formulas
    /// give the same divisors, any will do.
    fn llama3_formula(&self, divisors: &[f32]) -> Option<RopeScaling> {
        let plain = Rope { scaling: None, ..self.rope() }.frequencies();
        let formulas = ORIGINAL_POSITIONS.iter().flat_map(|&original_max_positions| {
            FACTORS.map(|factor| RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions,
            })
        });
        // Converters compute divisors in f32.
        let is_same = |(pair, frequency): (usize, &f64), formula: &RopeScaling| {
            let divisor = frequency / formula.apply(&self.rope(), *frequency, pair);
            (divisor / f64::from(divisors[pair]) - 1.0).abs() < 1e-5
        };
        formulas.into_iter().find(|formula| plain.iter().enumerate().all(|frequency| is_same(frequency, formula)))
    }
}

/// Stretches of Llama 3.1 and its relatives.
const FACTORS: [f64; 7] = [8.0, 32.0, 16.0, 4.0, 2.0, 64.0, 128.0];
/// Context lengths before the stretch; Llama 3.1's first.
const ORIGINAL_POSITIONS: [usize; 13] =
    [8192, 4096, 16_384, 32_768, 2048, 65_536, 131_072, 1024, 512, 256, 128, 64, 32];

/// What `config.json` says of a formula.
fn formula_keys(scaling: &RopeScaling) -> Json {
    match scaling {
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Yarn { factor, amplitude, beta_fast, beta_slow, original_max_positions, truncate } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": amplitude,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_max_positions,
            "truncate": truncate,
        }),
        RopeScaling::LongRope { short_factors, amplitude, original_max_positions } => json!({
            "rope_type": "longrope",
            "short_factor": short_factors,
            "long_factor": short_factors,
            "attention_factor": amplitude,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::PerFrequency { divisors } => json!({ "rope_type": "per_frequency", "divisors": divisors }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::tiny::TinySpec;

    #[test]
    fn what_is_written_is_read_again() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        for rope_scaling in [None, Some(RopeScaling::Linear { factor: 2.5 }), Some(llama3)] {
            let config = ModelConfig {
                rope_scaling,
                norm_eps: 1e-6,
                rope_theta: 500_000.0,
                bos_id: Some(1),
                eos_ids: vec![2, 5],
                ..TinySpec::GQA.config()
            };
            std::fs::write(&file, config.to_hugging_face().to_string()).unwrap();
            let read = ModelConfig::from_hugging_face(&file).unwrap();
            assert_eq!(ModelConfig { raw: Json::Null, ..read.clone() }, config);
            // Its own keys are kept as they are.
            assert_eq!(read.to_hugging_face(), read.raw);
        }
    }

    /// Also where it names its class by `model_type` alone: no field here has the number of experts.
    #[test]
    fn keys_that_only_one_family_reads_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let json = json!({ "model_type": "mixtral", "num_local_experts": 4 });
        std::fs::write(&file, json.to_string()).unwrap();
        assert_eq!(ModelConfig::from_hugging_face(&file).unwrap().to_hugging_face(), json);
    }

    fn per_frequency(divisors: Vec<f32>) -> ModelConfig {
        let rope_scaling = Some(RopeScaling::PerFrequency { divisors });
        ModelConfig { rope_scaling, rope_theta: 500_000.0, ..TinySpec::GQA.config() }
    }

    fn frequency_bits(config: &ModelConfig) -> Vec<u64> {
        config.rope().frequencies().into_iter().map(f64::to_bits).collect()
    }

    #[test]
    fn divisors_are_kept_bit_for_bit_beside_their_formula() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        for (factor, original_max_positions) in [(8.0, 8192), (32.0, 8192), (16.0, 4096), (8.0, 32)] {
            let formula =
                RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions };
            let plain = Rope { scaling: None, ..per_frequency(vec![]).rope() }.frequencies();
            let divide = |(pair, frequency): (usize, &f64)| {
                (frequency / formula.apply(&per_frequency(vec![]).rope(), *frequency, pair)) as f32
            };
            let config = per_frequency(plain.iter().enumerate().map(divide).collect());
            let json = config.to_hugging_face();
            assert_eq!(json["rope_scaling"]["rope_type"], "llama3");
            assert_eq!(json["rope_scaling"]["factor"], factor);
            std::fs::write(&file, json.to_string()).unwrap();
            let read = ModelConfig::from_hugging_face(&file).unwrap();
            assert_eq!(read.rope_scaling, config.rope_scaling);
            assert_eq!(frequency_bits(&read), frequency_bits(&config));
            assert_eq!(read.to_hugging_face(), json);
        }
    }

    #[test]
    fn windows_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        for (architecture, windows) in [
            ("LlamaForCausalLM", vec![None; 3]),
            ("MistralForCausalLM", vec![None; 3]),
            ("MistralForCausalLM", vec![Some(300); 3]),
            ("Qwen2ForCausalLM", vec![None; 3]),
            ("Qwen2ForCausalLM", vec![None, Some(300), None]),
            ("Qwen2ForCausalLM", vec![Some(300); 3]),
            ("Qwen3ForCausalLM", vec![None, Some(300), None]),
        ] {
            let spec = TinySpec { n_blocks: 3, ..TinySpec::GQA };
            let config = ModelConfig { architecture: architecture.into(), windows: windows.clone(), ..spec.config() };
            std::fs::write(&file, config.to_hugging_face().to_string()).unwrap();
            assert_eq!(ModelConfig::from_hugging_face(&file).unwrap().windows, windows, "{architecture}");
        }
    }

    #[test]
    fn divisors_of_no_formula_have_a_type_that_others_refuse() {
        let n_pairs = TinySpec::GQA.config().head_dim / 2;
        let config = per_frequency((0..n_pairs).map(|pair| 1.0 + 0.3 * (pair % 2) as f32).collect());
        let json = config.to_hugging_face();
        assert_eq!(json["rope_scaling"]["rope_type"], "per_frequency");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, json.to_string()).unwrap();
        let read = ModelConfig::from_hugging_face(&file).unwrap();
        assert_eq!(frequency_bits(&read), frequency_bits(&config));

        let message = |divisors: Json| {
            let mut json = json.clone();
            json["rope_scaling"]["divisors"] = divisors;
            std::fs::write(&file, json.to_string()).unwrap();
            let message = ModelConfig::from_hugging_face(&file).unwrap_err().to_string();
            message.replace(&file.display().to_string(), "config.json")
        };
        let wrong = "config.json: key \"rope_scaling.divisors\": [1.0,-2.0], expected a list of positive numbers";
        assert_eq!(message(json!([1.0, -2.0])), wrong);
        let few = format!(
            "config.json: key \"rope_scaling.divisors\": 1 divisors, expected {n_pairs}: one for each pair of a head"
        );
        assert_eq!(message(json!([1.0])), few);
    }
}

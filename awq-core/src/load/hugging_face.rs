//! A [`ModelConfig`] as the `config.json` of a Hugging Face folder, for models that came from elsewhere.

use serde_json::{Map, Value as Json, json};

use super::{ModelConfig, RopeScaling, windows};

impl ModelConfig {
    /// The `config.json` from which [`ModelConfig::from_hugging_face`] reads this configuration again: the model's own
    /// where it has one. `None` where rotary frequencies are stretched in a way that no key describes (GGUF stores a
    /// divisor for each).
    pub fn to_hugging_face(&self) -> Option<Json> {
        if self.raw.get("architectures").is_some() {
            return Some(self.raw.clone());
        }
        let rope_scaling = match &self.rope_scaling {
            None => Json::Null,
            Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
            Some(RopeScaling::PerFrequency { .. }) => return None,
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
        put("bos_token_id", json!(self.bos_id));
        put("eos_token_id", json!(self.eos_ids));
        windows::put(&mut keys, &self.architecture, &self.windows);
        Some(Json::Object(keys))
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
            std::fs::write(&file, config.to_hugging_face().unwrap().to_string()).unwrap();
            let read = ModelConfig::from_hugging_face(&file).unwrap();
            assert_eq!(ModelConfig { raw: Json::Null, ..read.clone() }, config);
            // Its own keys are kept as they are.
            assert_eq!(read.to_hugging_face().unwrap(), read.raw);
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
        ] {
            let spec = TinySpec { n_blocks: 3, ..TinySpec::GQA };
            let config = ModelConfig { architecture: architecture.into(), windows: windows.clone(), ..spec.config() };
            std::fs::write(&file, config.to_hugging_face().unwrap().to_string()).unwrap();
            assert_eq!(ModelConfig::from_hugging_face(&file).unwrap().windows, windows, "{architecture}");
        }
    }

    #[test]
    fn frequencies_that_no_key_describes_cannot_be_written() {
        let divisors = RopeScaling::PerFrequency { divisors: vec![1.0; 8] };
        let config = ModelConfig { rope_scaling: Some(divisors), ..TinySpec::GQA.config() };
        assert_eq!(config.to_hugging_face(), None);
    }
}

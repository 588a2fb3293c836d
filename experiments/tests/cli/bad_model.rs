//! Checkpoints that are missing, cut off, unknown, mismatched or broken: the cells fail with file, key or layer and remedy,
//! and a sweep over two models finishes the other one.

use serde_json::json;

use crate::support::{N_CELLS, Ran, Workshop, config, error_of};

/// A second, sound model in the same experiment.
fn with_sound_model() -> Workshop {
    let workshop = Workshop::new();
    workshop.write_model("sound", |_, _| ());
    let first = "[[models]]\nname = \"tiny\"\nsource = { path = { path = \"model\" } }\n";
    let second = first.replace("tiny", "sound").replace("\"model\"", "\"sound\"");
    workshop.change_experiment(first, &format!("{first}\n{second}"));
    workshop
}

/// Runs, expecting that every cell of the broken model fails with `error` and every cell of the sound one finishes.
#[track_caller]
fn check_fails_alone(workshop: &Workshop, error: &str) -> Ran {
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.ends_with("5 cells finished, 0 were on record, 5 failed\n"), "{}", ran.stderr);
    let records = workshop.records("out");
    let (broken, sound): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record["cell"]["model"]["name"] == "tiny");
    assert_eq!(broken.into_iter().map(error_of).collect::<Vec<_>>(), [error; N_CELLS]);
    assert!(sound.iter().all(|record| record["outcome"]["done"].is_object()));
    assert_eq!(sound.len(), N_CELLS);
    assert!(ran.stdout.contains("Failed cells:") && ran.stdout.contains("perplexity"), "{}", ran.stdout);
    ran
}

#[test]
fn missing_model() {
    let workshop = with_sound_model();
    std::fs::remove_dir_all(workshop.path("model")).unwrap();
    check_fails_alone(
        &workshop,
        "model tiny: model: no such model; give a folder in Hugging Face layout or a .gguf file, relative to the working \
         directory",
    );
}

#[test]
fn truncated_safetensors() {
    let workshop = with_sound_model();
    let whole = std::fs::read(workshop.path("model/model.safetensors")).unwrap();
    let cut = whole.len() / 2;
    workshop.write("model/model.safetensors", &whole[..cut]);
    check_fails_alone(
        &workshop,
        &format!(
            "model tiny: model/model.safetensors: truncated: at least {} bytes are needed, the file has {cut}; download it \
             again",
            whole.len()
        ),
    );
}

#[test]
fn truncated_gguf() {
    let workshop = with_sound_model();
    // Magic, version 3, one tensor, one key, and a key's name that is announced with 20 bytes and ends after 7.
    let header = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes()].concat();
    let cut = [header.as_slice(), &20_u64.to_le_bytes(), b"general"].concat();
    workshop.write("model.gguf", &cut);
    workshop.change_experiment("\"model\"", "\"model.gguf\"");
    check_fails_alone(
        &workshop,
        "model tiny: model.gguf: truncated: at least 52 bytes are needed, the file has 39; download it again",
    );
}

#[test]
fn unknown_architecture() {
    let workshop = with_sound_model();
    let mut config = config();
    config["architectures"] = json!(["MambaForCausalLM"]);
    workshop.write("model/config.json", config.to_string());
    let ran = check_fails_alone(
        &workshop,
        "model tiny: model/config.json: unknown architecture \"MambaForCausalLM\", expected one of \
         BloomForCausalLM, FalconForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, GPT2LMHeadModel, GPTBigCodeForCausalLM, \
         GPTNeoXForCausalLM, GraniteForCausalLM, LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, MptForCausalLM, Olmo2ForCausalLM, \
         OPTForCausalLM, PhiForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen2MoeForCausalLM, \
         Qwen3MoeForCausalLM, SmolLM3ForCausalLM, StableLmForCausalLM; \
         use a model of a known family",
    );
    assert!(ran.stderr.contains("FAILED tiny AWQ W3 g32: "), "{}", ran.stderr);
}

#[test]
fn missing_key() {
    let workshop = with_sound_model();
    let mut config = config();
    config["rope_scaling"] = json!({"rope_type": "linear"});
    workshop.write("model/config.json", config.to_string());
    check_fails_alone(
        &workshop,
        "model tiny: model/config.json: key \"factor\" is missing; add it, or download the file again",
    );
}

#[test]
fn weights_of_another_shape() {
    let workshop = with_sound_model();
    let mut config = config();
    config["intermediate_size"] = json!(96);
    workshop.write("model/config.json", config.to_string());
    check_fails_alone(
        &workshop,
        "the model cannot be opened: model/model.safetensors: tensor \"model.layers.0.mlp.down_proj.weight\" has shape \
         [64, 128], expected [64, 96]; check that configuration and weights belong to the same model (5 more tensor(s) have \
         another shape than the configuration implies)",
    );
}

#[track_caller]
fn check_not_finite(tensor: &'static str, index: usize, value: f32, context: &str) {
    let workshop = with_sound_model();
    workshop.write_model("model", |name, values| {
        if name == tensor {
            values[index] = value;
        }
    });
    check_fails_alone(
        &workshop,
        &format!(
            "{context}model/model.safetensors: checkpoint holds NaN or infinity in tensor \"{tensor}\" at element {index}; \
             download the file again, or choose another checkpoint"
        ),
    );
}

#[test]
fn nan_and_infinite_weights() {
    check_not_finite("model.layers.1.mlp.down_proj.weight", 17, f32::NAN, "");
    check_not_finite("model.layers.0.self_attn.q_proj.weight", 4095, f32::NEG_INFINITY, "");
    check_not_finite("model.embed_tokens.weight", 0, f32::INFINITY, "the model cannot be opened: ");
}

#[test]
fn weights_that_overflow_on_the_way() {
    let workshop = with_sound_model();
    workshop.write_model("model", |name, values| {
        if name.ends_with("0.mlp.down_proj.weight") {
            values.iter_mut().for_each(|value| *value *= 1e38);
        }
    });
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let records = workshop.records("out");
    assert_eq!(records.len(), 2 * N_CELLS);
    assert_eq!(
        error_of(&records[0]),
        "the model's likelihoods are not finite: it is broken, or overflows in this precision"
    );
    assert!(records[..N_CELLS].iter().all(|record| error_of(record).contains("not finite")));
    assert!(records[N_CELLS..].iter().all(|record| record["outcome"]["done"].is_object()));
    // What was written can be read again.
    assert_eq!(workshop.run(&["report", "out"]).code, Some(0));
}

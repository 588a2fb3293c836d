//! Language models in models of texts and images: names of tensors as versions of transformers write them, and what is beside them.

use std::sync::Arc;

use awq_core::load::{Checkpoint, MemoryCheckpoint, ModelConfig, SafetensorsCheckpoint};
use awq_core::model::{known_families, wiring_of};
use awq_core::open::{in_parts, open_tensors};

use crate::fixture::{Fixture, folder};
use crate::support::{Cpu, check_close};

const MODELS: [(&str, &str); 6] = [
    ("gemma3-vl-tiny", "left as they are: multi_modal_projector (2 tensors), vision_tower (21 tensors)"),
    ("idefics3-tiny", "left as they are: connector (1 tensor), vision_model (21 tensors)"),
    ("llava-tiny", "left as they are: multi_modal_projector (4 tensors), vision_tower (23 tensors)"),
    ("qwen2-5-vl-tiny", "left as they are: visual (18 tensors)"),
    ("qwen2-vl-tiny", "left as they are: visual (19 tensors)"),
    ("smolvlm-tiny", "left as they are: connector (1 tensor), vision_model (21 tensors)"),
];

/// The checkpoint of a fixture with other names.
fn renamed(name: &str, rename: &dyn Fn(&str) -> String) -> (ModelConfig, Arc<dyn Checkpoint>) {
    let config = ModelConfig::from_hugging_face(&folder(name).join("config.json")).unwrap();
    let stored = SafetensorsCheckpoint::open_folder(&folder(name)).unwrap();
    let mut copy = MemoryCheckpoint::default();
    for tensor in stored.names() {
        copy.insert(&rename(&tensor), &stored.shape(&tensor).unwrap(), stored.read_any_f32(&tensor).unwrap());
    }
    let checkpoint = in_parts(&config, Arc::new(copy));
    (config, checkpoint)
}

/// What transformers 4.52 and later call it, and 5 in memory.
fn newer(name: &str) -> String {
    for (from, to) in [
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("visual.", "model.visual."),
        ("model.text_model.", "model.text_model."),
        ("model.vision_model.", "model.vision_model."),
        ("model.connector.", "model.connector."),
        ("model.", "model.language_model."),
    ] {
        if let Some(rest) = name.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    name.to_owned()
}

#[test]
fn newer_names_give_the_same_model() {
    for (name, _) in MODELS {
        let fixture = Fixture::read(name);
        let (config, checkpoint) = renamed(name, &newer);
        let names = fixture.checkpoint.names();
        assert_eq!(checkpoint.names(), names, "{name}");
        let mut copy = MemoryCheckpoint::default();
        for tensor in &names {
            copy.insert(tensor, &checkpoint.shape(tensor).unwrap(), checkpoint.read_f32(tensor).unwrap());
        }
        let again = Fixture { config, checkpoint: copy, ids: fixture.ids.clone(), logits: Vec::new() };
        check_close(name, &again.run::<Cpu>(), &fixture.logits, 1e-4);
    }
}

#[test]
fn towers_are_named_and_are_beside_the_model() {
    for (name, expected) in MODELS {
        let (config, checkpoint) = open_tensors(&folder(name)).unwrap();
        let class = config.outer.as_ref().unwrap()["architectures"][0].as_str().unwrap();
        assert!(known_families().iter().any(|known| known.is_multimodal && known.class == class), "{class}");
        let notes = wiring_of(&config, checkpoint.as_ref()).unwrap().notes;
        let [note] = notes.as_slice() else { panic!("{name}: {notes:?}") };
        assert!(note.ends_with(&format!("the language model of {class}, for texts; {expected}")), "{name}: {note}");
        let (names, beside) = (checkpoint.names(), checkpoint.beside());
        let stored = SafetensorsCheckpoint::open_folder(&folder(name)).unwrap();
        assert_eq!(names.len() + beside.len(), stored.names().len(), "{name}");
        for tensor in beside {
            assert!(!names.contains(&tensor), "{name}: {tensor}");
            assert_eq!(checkpoint.shape(&tensor), stored.shape(&tensor), "{name}: {tensor}");
            assert!(checkpoint.read_any_f32(&tensor).unwrap() == stored.read_any_f32(&tensor).unwrap());
        }
        // What is written is the configuration of the whole.
        assert_eq!(config.to_hugging_face()["architectures"][0], class);
    }
}

/// A tensor that is neither the language model's nor known to be beside it is a weight that nothing would read.
#[test]
fn what_is_neither_is_refused() {
    for (from, to, expected) in [
        ("multi_modal_projector.linear_1.weight", "resampler.linear_1.weight", "resampler.linear_1.weight"),
        // Under two names of one version each.
        ("vision_tower.post_layernorm.weight", "model.language_model.norm.weight", "model.language_model.norm.weight"),
    ] {
        let rename = |name: &str| if name == from { to.to_owned() } else { name.to_owned() };
        let (config, checkpoint) = renamed("llava-tiny", &rename);
        let message = wiring_of(&config, checkpoint.as_ref()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

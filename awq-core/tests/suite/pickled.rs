//! Checkpoints that PyTorch pickled (`scripts/make-pickled-fixtures.py`), against the same tensors in safetensors.

use std::sync::Arc;

use awq_core::load::{Checkpoint, PickledCheckpoint, SafetensorsCheckpoint, check_folder, open_weights};
use half::f16;

use crate::fixture::{Fixture, folder, pickled_folder};
use crate::support::{Cpu, check_close};

fn pickled(name: &str) -> PickledCheckpoint {
    PickledCheckpoint::open_folder(&pickled_folder(name)).unwrap()
}

/// Every tensor of `twin` under the same name (changed by `rename`) with the same values, changed by `store`.
#[track_caller]
fn check_twin(name: &str, twin: &str, dtype: &str, rename: fn(&str) -> &str, store: fn(f32) -> f32) {
    let (checkpoint, twin) = (pickled(name), SafetensorsCheckpoint::open_folder(&folder(twin)).unwrap());
    for tensor in twin.names() {
        let values: Vec<f32> = twin.read_f32(&tensor).unwrap().into_iter().map(store).collect();
        let found = rename(&tensor);
        assert_eq!(checkpoint.shape(found), twin.shape(&tensor), "{tensor}");
        assert_eq!(checkpoint.read_f32(found).unwrap(), values, "{tensor}");
        assert_eq!(checkpoint.stored_type(found).unwrap().name, dtype);
    }
    let files = std::fs::read_dir(pickled_folder(name)).unwrap().map(|entry| entry.unwrap());
    let weights = files.filter(|file| file.path().extension().is_some_and(|end| end == "bin"));
    assert_eq!(checkpoint.bytes_on_disk(), weights.map(|file| file.metadata().unwrap().len()).sum::<u64>());
}

#[test]
fn tensors_are_those_of_the_safetensors_twin() {
    check_twin("llama-single", "llama-tiny", "BF16", |name| name, |value| value);
    check_twin("llama-sharded", "llama-tiny", "F32", |name| name, |value| value);
    check_twin(
        "opt",
        "opt-tiny",
        "F16",
        |name| name.strip_prefix("model.").unwrap(),
        |value| f16::from_f32(value).to_f32(),
    );
}

#[test]
fn logits_are_those_of_transformers() {
    for (name, twin) in [("llama-single", "llama-tiny"), ("llama-sharded", "llama-tiny"), ("opt", "opt-tiny")] {
        let fixture = Fixture::with_weights(twin, open_weights(&pickled_folder(name)).unwrap());
        check_close(name, &fixture.run::<Cpu>(), &fixture.logits, 1e-4);
    }
}

#[test]
fn views_are_what_they_show() {
    let checkpoint = pickled("views");
    let expected = SafetensorsCheckpoint::open_file(&pickled_folder("views").join("expected.safetensors")).unwrap();
    assert_eq!(checkpoint.names(), expected.names());
    for name in expected.names() {
        assert_eq!(checkpoint.shape(&name), expected.shape(&name), "{name}");
        assert_eq!(checkpoint.stored_type(&name), expected.stored_type(&name), "{name}");
        assert_eq!(checkpoint.is_integer(&name), expected.is_integer(&name), "{name}");
        assert_eq!(checkpoint.is_readable(&name), expected.is_readable(&name), "{name}");
        match (checkpoint.read_f32(&name), expected.read_f32(&name)) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
            (Err(found), Err(expected)) => {
                let place = |error: String| error.split_once(": tensor").unwrap().1.to_owned();
                assert_eq!(place(found.to_string()), place(expected.to_string()));
            }
            (found, expected) => panic!("{name}: {found:?}, {expected:?}"),
        }
    }
    let readable = expected.names().into_iter().filter(|name| expected.is_readable(name));
    assert_eq!(readable.count(), 10);
}

#[test]
fn tensors_of_one_storage_are_copies() {
    let checkpoint = pickled("opt");
    assert!(checkpoint.is_copy("lm_head.weight", "decoder.embed_tokens.weight").unwrap());
    assert!(!checkpoint.is_copy("lm_head.weight", "decoder.embed_positions.weight").unwrap());
    let views = pickled("views");
    assert!(!views.is_copy("whole", "transposed").unwrap());
}

#[test]
fn safetensors_are_read_where_both_are_there() {
    let both = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, name: &str| std::fs::copy(from.join(name), both.path().join(name)).unwrap();
    let pickle = pickled_folder("llama-single");
    copy(&pickle, "pytorch_model.bin");
    copy(&folder("llama-tiny"), "config.json");
    check_folder(both.path()).unwrap();
    let source = || open_weights(both.path()).unwrap().source().to_owned();
    assert_eq!(source(), both.path().join("pytorch_model.bin"));
    copy(&folder("llama-tiny"), "model.safetensors");
    check_folder(both.path()).unwrap();
    assert_eq!(source(), both.path().join("model.safetensors"));
}

#[test]
fn a_missing_shard_is_named() {
    let part = tempfile::tempdir().unwrap();
    let sharded = pickled_folder("llama-sharded");
    for name in ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"] {
        std::fs::copy(sharded.join(name), part.path().join(name)).unwrap();
    }
    let error = open_weights(part.path()).err().unwrap().to_string();
    assert!(error.contains("pytorch_model.bin.index.json: shard \"pytorch_model-00002-of-00002.bin\""), "{error}");
    let whole: Arc<dyn Checkpoint> = Arc::new(pickled("llama-sharded"));
    assert_eq!(whole.file_of("lm_head.weight"), sharded.join("pytorch_model-00001-of-00002.bin"));
}

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use awq_core::arithmetic::FloatType;
use awq_core::driver::{Calibration, Job, Propagation, quantize_model};
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::load::{ModelConfig, SafetensorsCheckpoint};
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{open_decoder, wiring_of};
use awq_core::rule::{GridOverride, GridRule};

use super::*;
use crate::registry::MethodSpec;

type Backend = burn::backend::Flex;

fn method(toml: &str) -> MethodSpec {
    toml::from_str(toml).unwrap()
}

/// Every kind of zero point and of transform, and methods that fold scales into norms and biases.
fn methods() -> Vec<MethodSpec> {
    let quip = "rounding = \"ldlq\"\ngrid = \"grouped\"\ndamp = 0.01";
    let gptq =
        "damp = 0.01\nblock_size = 128\norder = \"activation\"\ngroup_grid = \"updated_weights\"\nrange = \"min_max\"";
    vec![
        method("[rtn]"),
        method("[awq]\nscale = { search = { formula = \"activation\", n_ratios = 4 } }\nclip = \"off\""),
        method(&format!("[gptq]\n{gptq}\nhessian = \"f64\"")),
        method(&format!("[quip]\nincoherence = {{ on = {{ rotation = \"hadamard\", seed = 5 }} }}\n{quip}")),
        method("[keep_salient]\nfraction = 0.03\nby = \"activation\""),
    ]
}

/// A tiny model, and what a pass makes of it.
struct Made {
    checkpoint: Arc<dyn Checkpoint>,
    wiring: Wiring,
    codes: Vec<(MethodSpec, StoredCodes)>,
}

fn grid() -> Grid {
    Grid::awq(Bits::new(4).unwrap(), Granularity::PerGroup(NonZeroU16::new(32).unwrap()))
}

fn llama() -> Made {
    let spec = TinySpec::MHA;
    made(spec.config(), Arc::new(tiny::checkpoint(&spec, 3)))
}

/// Its norms have biases.
fn opt() -> Made {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../awq-core/tests/fixtures/opt-tiny");
    let config = ModelConfig::from_hugging_face(&folder.join("config.json")).unwrap();
    made(config, Arc::new(SafetensorsCheckpoint::open_folder(&folder).unwrap()))
}

fn made(config: ModelConfig, checkpoint: Arc<dyn Checkpoint>) -> Made {
    let wiring = wiring_of(&config, checkpoint.as_ref()).unwrap();
    let decoder = open_decoder::<Backend>(config, checkpoint.clone(), &Default::default()).unwrap();
    let sequences: Vec<Vec<u32>> = (0..4).map(|row| (0..16).map(|i| (row * 7 + i * 3) % 16).collect()).collect();
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::Quantized };
    let methods = methods();
    // Linears of other grids, and two in full precision into which scales are folded.
    let other = Some(Grid { bits: Bits::new(8).unwrap(), ..grid() });
    let overrides = [("*.k_proj", other), ("*.v_proj", None), ("mlp.gate_proj", None), ("fc1", None)];
    let named = |name: &str| wiring.blocks[0].layout.linears.iter().any(|facts| facts.name.0.ends_with(name));
    let overrides = (overrides.into_iter())
        .filter(|(linears, _)| named(linears.trim_start_matches('*')))
        .map(|(linears, grid)| GridOverride { linears: linears.to_owned(), grid });
    let grids = GridRule { grid: grid(), overrides: overrides.collect() }.resolve(&wiring).unwrap();
    let jobs: Vec<Job<'_, Backend>> =
        methods.iter().map(|method| Job { method: method.method::<Backend>(), grids: grids.clone() }).collect();
    let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| ()).unwrap();
    let shared_seconds = pass.shared_seconds;
    let models = pass.models.into_iter().map(|model| StoredCodes { model: model.unwrap(), shared_seconds });
    let codes = methods.clone().into_iter().zip(models).collect();
    Made { checkpoint, wiring, codes }
}

fn files() -> BTreeMap<String, String> {
    BTreeMap::from([("model.safetensors".to_owned(), "a".repeat(64)), ("config.json".to_owned(), "b".repeat(64))])
}

fn question<'a>(files: &'a BTreeMap<String, String>, method: &'a MethodSpec, rule: &'a GridRule) -> Question<'a> {
    Question::new(files, (method, rule), Some(("c", Propagation::Quantized)), ("flex", FloatType::F32))
}

#[test]
fn codes_are_kept_bit_for_bit() {
    let (rule, cache) = (GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    for (made, model) in [(llama(), "1"), (opt(), "2")] {
        let files = BTreeMap::from([("model.safetensors".to_owned(), model.repeat(64))]);
        for (method, codes) in &made.codes {
            let question = question(&files, method, &rule);
            let id = question.id().unwrap();
            assert!(store.load(&id, &made.wiring).is_none(), "{}", method.label());
            store.save(&question, codes, &made.wiring, made.checkpoint.clone()).unwrap();
            let kept = store.load(&id, &made.wiring).unwrap();
            assert!(kept.model == codes.model, "{}: what is read is not what was kept", method.label());
            assert_eq!(kept.shared_seconds.to_bits(), codes.shared_seconds.to_bits());
        }
    }
}

#[test]
fn every_part_of_the_question_counts() {
    let (base, grid, all) = (files(), grid(), methods());
    let rule = GridRule::from(grid);
    let id = |question: &Question<'_>| question.id().unwrap();
    let first = id(&question(&base, &all[0], &rule));
    assert_eq!(id(&question(&base, &all[0], &rule)), first);
    let other_grid = GridRule::from(Grid { range_includes_zero: !grid.range_includes_zero, ..grid });
    let left = GridOverride { linears: "mlp.*".into(), grid: None };
    let with_override = GridRule { overrides: vec![left], ..rule.clone() };
    let mut other_files = base.clone();
    other_files.insert("model.safetensors".into(), "d".repeat(64));
    let ask =
        |calibration, device, precision| id(&Question::new(&base, (&all[0], &rule), calibration, (device, precision)));
    let others = [
        id(&question(&base, &all[1], &rule)),
        id(&question(&base, &all[0], &other_grid)),
        id(&question(&base, &all[0], &with_override)),
        id(&question(&other_files, &all[0], &rule)),
        ask(None, "flex", FloatType::F32),
        ask(Some(("other", Propagation::Quantized)), "flex", FloatType::F32),
        ask(Some(("c", Propagation::FullPrecision)), "flex", FloatType::F32),
        ask(Some(("c", Propagation::Quantized)), "ndarray", FloatType::F32),
        ask(Some(("c", Propagation::Quantized)), "flex", FloatType::F16),
    ];
    let distinct: std::collections::BTreeSet<_> = others.iter().chain([&first]).collect();
    assert_eq!(distinct.len(), others.len() + 1, "{others:?}");
    // Which of several equal devices, and files that decide no number, do not count.
    let on = |device| ask(Some(("c", Propagation::Quantized)), device, FloatType::F32);
    assert_eq!(on("cuda:0"), on("cuda:1"));
    let mut with_template = base.clone();
    with_template.insert("chat_template.jinja".into(), "e".repeat(64));
    assert_eq!(id(&question(&with_template, &all[0], &rule)), first);
}

#[test]
fn sequences_are_told_apart_by_tokens_and_bounds() {
    let hash = |sequences: &[&[u32]]| hash_of_sequences(&sequences.iter().map(|ids| ids.to_vec()).collect::<Vec<_>>());
    assert_eq!(hash(&[&[1, 2], &[3]]), hash(&[&[1, 2], &[3]]));
    assert_ne!(hash(&[&[1, 2], &[3]]), hash(&[&[1], &[2, 3]]));
    assert_ne!(hash(&[&[1, 2]]), hash(&[&[2, 1]]));
    assert_ne!(hash(&[&[], &[1]]), hash(&[&[1], &[]]));
}

#[test]
fn damaged_codes_are_removed() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, codes) = &made.codes[0];
    let question = question(&files, method, &rule);
    let id = question.id().unwrap();
    let folder = cache.path().join("codes").join(&id.0);
    let damage = |name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        store.save(&question, codes, &made.wiring, made.checkpoint.clone()).unwrap();
        let mut bytes = fs::read(folder.join(name)).unwrap();
        edit(&mut bytes);
        fs::write(folder.join(name), bytes).unwrap();
        assert!(store.load(&id, &made.wiring).is_none(), "{name}");
        assert!(!folder.exists(), "{name}: damaged codes stay");
    };
    damage("model.safetensors", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    damage("model.safetensors", &|bytes| bytes.truncate(bytes.len() / 2));
    damage("quantization.json", &Vec::clear);
    damage("quantization.json", &|bytes| bytes.push(b' '));
    damage("quantized.json", &|bytes| bytes.truncate(30));
}

#[test]
fn those_not_used_for_longest_are_dropped_first() {
    let (rule, cache) = (GridRule::from(grid()), tempfile::tempdir().unwrap());
    let made = llama();
    let (method, codes) = &made.codes[0];
    let models: Vec<_> =
        ["1", "2", "3", "4"].map(|digit| BTreeMap::from([("m.gguf".to_owned(), digit.repeat(64))])).into();
    let questions: Vec<Question<'_>> = models.iter().map(|files| question(files, method, &rule)).collect();
    let keep = |store: &CodeStore, index: usize| {
        store.save(&questions[index], codes, &made.wiring, made.checkpoint.clone()).unwrap();
        // Times of files are as coarse as some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
    };
    let is_kept = |index: usize| cache.path().join("codes").join(questions[index].id().unwrap().0).exists();
    keep(&CodeStore::new(cache.path(), 1 << 30), 0);
    let one = bytes_in(&cache.path().join("codes").join(questions[0].id().unwrap().0));
    // Room for two and a half.
    let store = CodeStore::new(cache.path(), one * 5 / 2);
    keep(&store, 1);
    assert!(store.load(&questions[0].id().unwrap(), &made.wiring).is_some());
    std::thread::sleep(Duration::from_millis(20));
    keep(&store, 2);
    assert_eq!([0, 1, 2].map(is_kept), [true, false, true], "the one used before last stays");
    // One that is larger than the whole store takes no other's place.
    keep(&CodeStore::new(cache.path(), one / 2), 3);
    assert_eq!([0, 1, 2, 3].map(is_kept), [true, false, true, false]);
}

#[test]
fn the_limit_is_a_number_of_gib() {
    assert_eq!(limit_of("2").unwrap(), 2 << 30);
    assert_eq!(limit_of(" 0.5 ").unwrap(), 1 << 29);
    assert_eq!(limit_of("0").unwrap(), 0);
    for wrong in ["much", "-1", "inf", "NaN"] {
        let error = limit_of(wrong).unwrap_err().to_string();
        assert!(error.starts_with(&format!("AWQ_CODES_GIB={wrong}: not a number of GiB; ")), "{error}");
    }
}

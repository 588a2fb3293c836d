#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use awq_core::arithmetic::FloatType;
use awq_core::driver::{
    BlockCodes, BlockLog, Calibration, Job, Propagation, QuantizedBlock, QuantizedModel, quantize_model,
};
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::load::{ModelConfig, SafetensorsCheckpoint};
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{open_decoder, wiring_of};
use awq_core::rule::{GridOverride, GridRule};

use super::*;
use crate::packed::WEIGHTS;
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
    base: BaseTensors,
    models: Vec<(MethodSpec, QuantizedModel)>,
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
    let wiring = Arc::new(wiring_of(&config, checkpoint.as_ref()).unwrap());
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
    let models = methods.clone().into_iter().zip(pass.models.into_iter().map(Result::unwrap)).collect();
    Made { base: BaseTensors { wiring, checkpoint }, models }
}

/// The blocks of a model from `first` on, as a pass hands them out.
fn blocks(model: &QuantizedModel, first: usize) -> Vec<QuantizedBlock> {
    let block = |(codes, log): (&BlockCodes, &BlockLog)| QuantizedBlock {
        codes: codes.clone(),
        log: log.clone(),
        shared_seconds: 0.1,
    };
    model.blocks().iter().zip(&model.logs).skip(first).map(block).collect()
}

fn keep(store: &CodeStore, question: &Question<'_>, made: &Made, model: &QuantizedModel) -> Codes {
    let mut codes = store.open(question, made.base.clone()).unwrap();
    blocks(model, codes.n_blocks()).into_iter().for_each(|block| codes.keep(block).unwrap());
    codes
}

/// Values of every tensor that a method changed.
fn values(
    checkpoint: &dyn Checkpoint,
    names: &[String],
) -> Vec<(Vec<u32>, Option<awq_core::quantized::QuantizedWeight>)> {
    let bits = |name: &String| checkpoint.read_f32(name).unwrap().into_iter().map(f32::to_bits).collect();
    names.iter().map(|name| (bits(name), checkpoint.read_quantized(name).unwrap())).collect()
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
        for (method, model) in &made.models {
            let (question, label) = (question(&files, method, &rule), method.label());
            let empty = store.open(&question, made.base.clone()).unwrap();
            assert!(empty.n_blocks() == 0 && !empty.is_whole() && empty.begun().is_none(), "{label}");
            keep(&store, &question, &made, model);
            let kept = store.open(&question, made.base.clone()).unwrap();
            assert!(kept.is_whole(), "{label}");
            assert_eq!(kept.logs().cloned().collect::<Vec<_>>(), model.logs, "{label}");
            assert_eq!(
                (kept.sha256().unwrap(), kept.bits_per_weight()),
                (model.codes_sha256(), model.bits_per_weight())
            );
            assert!((kept.shared_seconds() - 0.1 * model.logs.len() as f64).abs() < 1e-12);
            let in_memory = model.clone().into_checkpoint(&made.base.wiring, made.base.checkpoint.clone());
            let names: Vec<String> = in_memory.names();
            assert!(
                values(kept.checkpoint().as_ref(), &names) == values(&in_memory, &names),
                "{label}: what is read is not what was kept"
            );
        }
    }
}

#[test]
fn a_pass_goes_on_behind_the_blocks_that_are_stored() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[1];
    let question = question(&files, method, &rule);
    let mut codes = store.open(&question, made.base.clone()).unwrap();
    codes.keep(blocks(model, 0).remove(0)).unwrap();
    drop(codes);
    let begun = store.open(&question, made.base.clone()).unwrap();
    assert_eq!((begun.n_blocks(), begun.is_whole(), begun.begun().unwrap().n_blocks), (1, false, 1));
    let whole = keep(&store, &question, &made, model);
    assert_eq!(whole.sha256().unwrap(), model.codes_sha256());
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
fn damaged_blocks_are_removed_with_those_behind_them() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    let folder = store.folder().join(question.id().unwrap().0);
    let damage = |block_idx: usize, name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        keep(&store, &question, &made, model);
        let file = block::folder_in(&folder, block_idx).join(name);
        let mut bytes = fs::read(&file).unwrap();
        edit(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let codes = store.open(&question, made.base.clone()).unwrap();
        assert_eq!((codes.n_blocks(), codes.is_damaged()), (block_idx, true), "{name}");
        assert!(!block::folder_in(&folder, 1).exists(), "{name}: a damaged block stays, or one behind it");
    };
    damage(0, "model.safetensors", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    damage(1, "model.safetensors", &|bytes| bytes.truncate(bytes.len() / 2));
    damage(0, "quantization.json", &Vec::clear);
    damage(1, "quantization.json", &|bytes| bytes.push(b' '));
    damage(0, "quantized.json", &|bytes| bytes.truncate(30));
    damage(1, "quantized.json", &|bytes| bytes.iter_mut().filter(|byte| **byte == b'1').for_each(|byte| *byte = b'2'));
}

/// What is no folder gives way, wherever it stands.
#[test]
fn files_and_links_in_place_of_folders_are_replaced() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    let folder = store.folder().join(question.id().unwrap().0);
    let file = |path: &Path| fs::write(path, "not a folder").unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink(cache.path().join("nowhere"), path).unwrap();
    let strays = [
        (true, folder.clone()),
        (false, folder.clone()),
        (true, block::folder_in(&folder, 1)),
        (false, block::folder_in(&folder, 0)),
    ];
    for (is_file, at) in strays {
        keep(&store, &question, &made, model);
        fs::remove_dir_all(&at).unwrap();
        if is_file {
            file(&at)
        } else {
            link(&at)
        }
        assert!(!store.open(&question, made.base.clone()).unwrap().is_whole(), "{}", at.display());
        assert_eq!(keep(&store, &question, &made, model).sha256().unwrap(), model.codes_sha256());
    }
    // A block that is gone, with others behind it.
    fs::remove_dir_all(block::folder_in(&folder, 0)).unwrap();
    let codes = store.open(&question, made.base.clone()).unwrap();
    assert_eq!((codes.n_blocks(), codes.is_damaged()), (0, true));
    assert!(block::folder_in(&folder, 1).exists(), "another run may need it");
    assert_eq!(keep(&store, &question, &made, model).sha256().unwrap(), model.codes_sha256());
}

/// What another run stores while this one opens the same question is not removed.
#[test]
fn blocks_that_are_missing_at_the_end_are_left_to_others() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    let mut first = store.open(&question, made.base.clone()).unwrap();
    let mut second = store.open(&question, made.base.clone()).unwrap();
    assert!(!first.is_damaged() && !second.is_damaged());
    // Both store all blocks, in turns, and a third looks on.
    for block_idx in 0..made.base.wiring.blocks.len() {
        for codes in [&mut first, &mut second] {
            codes.keep(blocks(model, block_idx).remove(0)).unwrap();
            let third = store.open(&question, made.base.clone()).unwrap();
            assert_eq!((third.n_blocks(), third.is_damaged()), (block_idx + 1, false));
        }
    }
    assert!([&first, &second].iter().all(|codes| codes.sha256().unwrap() == model.codes_sha256()));
}

/// By a process that has too many files open, say: what lies there may be as it was written.
#[cfg(unix)]
#[test]
fn blocks_that_cannot_be_read_now_are_kept() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    keep(&store, &question, &made, model);
    let block = block::folder_in(&store.folder().join(question.id().unwrap().0), 1);
    // A link to itself is neither there nor missing, for every user.
    let seal = block.join("sha256");
    fs::rename(&seal, block.join("aside")).unwrap();
    std::os::unix::fs::symlink("sha256", &seal).unwrap();
    let error = format!("{:#}", store.open(&question, made.base.clone()).err().unwrap());
    let expected =
        format!("{}: stored codes cannot be read; run again, or remove them if this stays so: ", block.display());
    assert!(error.starts_with(&expected), "{error}");
    fs::rename(block.join("aside"), &seal).unwrap();
    assert!(store.open(&question, made.base.clone()).unwrap().is_whole());
}

/// Another user's cache, or one on a medium that cannot be written.
#[test]
fn codes_that_can_only_be_read_are_read() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    let stored = CodeStore::new(cache.path(), 1 << 30);
    keep(&stored, &question, &made, model);
    let elsewhere = tempfile::tempdir().unwrap();
    let store = CodeStore::in_scratch(elsewhere.path(), Some(stored.folder())).unwrap();
    let whole = store.open(&question, made.base.clone()).unwrap();
    assert!(whole.is_whole() && whole.sha256().unwrap() == model.codes_sha256());
    // Damage is left as it is, and what is missing is stored elsewhere.
    let last = block::folder_in(&stored.folder().join(question.id().unwrap().0), 1);
    fs::write(last.join(WEIGHTS), "damaged").unwrap();
    assert_eq!(store.open(&question, made.base.clone()).unwrap().n_blocks(), 1);
    assert_eq!(keep(&store, &question, &made, model).sha256().unwrap(), model.codes_sha256());
    assert_eq!(fs::read(last.join(WEIGHTS)).unwrap(), b"damaged");
}

#[test]
fn the_answer_to_another_question_is_not_taken() {
    let (files, cache) = (files(), tempfile::tempdir().unwrap());
    let store = CodeStore::new(cache.path(), 1 << 30);
    let made = llama();
    let (method, model) = &made.models[0];
    let rules = [GridRule::from(grid()), GridRule::from(Grid { range_includes_zero: true, ..grid() })];
    let [own, other] = rules.each_ref().map(|rule| question(&files, method, rule));
    let folder = |question: &Question<'_>| store.folder().join(question.id().unwrap().0);
    keep(&store, &own, &made, model);
    // The whole answer under another name, and one block in the place of another.
    fs::rename(folder(&own), folder(&other)).unwrap();
    assert_eq!(store.open(&other, made.base.clone()).unwrap().n_blocks(), 0);
    keep(&store, &own, &made, model);
    fs::remove_dir_all(block::folder_in(&folder(&own), 1)).unwrap();
    fs::rename(block::folder_in(&folder(&own), 0), block::folder_in(&folder(&own), 1)).unwrap();
    keep(&store, &own, &made, model);
    assert_eq!(keep(&store, &own, &made, model).sha256().unwrap(), model.codes_sha256());
}

#[test]
fn those_not_used_for_longest_are_dropped_first() {
    let (rule, cache) = (GridRule::from(grid()), tempfile::tempdir().unwrap());
    let made = llama();
    let (method, model) = &made.models[0];
    let models: Vec<_> =
        ["1", "2", "3", "4"].map(|digit| BTreeMap::from([("m.gguf".to_owned(), digit.repeat(64))])).into();
    let questions: Vec<Question<'_>> = models.iter().map(|files| question(files, method, &rule)).collect();
    // Times of files are as coarse as some milliseconds.
    let wait = || std::thread::sleep(Duration::from_millis(20));
    let use_codes = |store: &CodeStore, index: usize| {
        let codes = keep(store, &questions[index], &made, model);
        wait();
        codes
    };
    let is_kept = |index: usize| cache.path().join("codes").join(questions[index].id().unwrap().0).exists();
    use_codes(&CodeStore::new(cache.path(), 1 << 30), 0);
    let one = bytes_in(&cache.path().join("codes").join(questions[0].id().unwrap().0));
    // Room for two and a half.
    let store = CodeStore::new(cache.path(), one * 5 / 2);
    for index in [1, 0, 2] {
        use_codes(&store, index);
    }
    assert_eq!([0, 1, 2].map(is_kept), [true; 3], "a pass may need them all");
    store.trim();
    assert_eq!([0, 1, 2].map(is_kept), [true, false, true], "the one used before last stays");
    // One that is larger than the whole store takes no other's place. While any run has it open it stays.
    let codes = use_codes(&CodeStore::new(cache.path(), one / 2), 3);
    let larger = block::folder_in(&store.folder().join(questions[3].id().unwrap().0), 0).join("more");
    fs::write(larger, vec![0; 3 * one as usize]).unwrap();
    store.trim();
    assert_eq!([0, 1, 2, 3].map(is_kept), [true, false, true, cfg!(unix)]);
    assert_eq!(codes.sha256().unwrap(), model.codes_sha256());
    drop(codes);
    store.trim();
    assert_eq!([0, 1, 2, 3].map(is_kept), [true, false, true, false]);
}

/// A run that makes room leaves alone what another one fills.
#[test]
#[cfg(unix)]
fn codes_in_the_making_are_dropped_by_no_run() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let made = llama();
    let (method, model) = &made.models[0];
    let question = question(&files, method, &rule);
    let store = CodeStore::new(cache.path(), 1 << 30);
    let mut codes = store.open(&question, made.base.clone()).unwrap();
    let mut blocks = blocks(model, 0).into_iter();
    codes.keep(blocks.next().unwrap()).unwrap();
    let without_room = CodeStore::new(cache.path(), 1);
    without_room.trim();
    blocks.for_each(|block| codes.keep(block).unwrap());
    let again = store.open(&question, made.base.clone()).unwrap();
    assert!(again.is_whole() && again.sha256().unwrap() == model.codes_sha256());
    drop((codes, again));
    without_room.trim();
    assert_eq!(store.open(&question, made.base.clone()).unwrap().n_blocks(), 0);
}

#[test]
fn a_scratch_store_goes_with_its_last_copy() {
    let (files, rule, cache) = (files(), GridRule::from(grid()), tempfile::tempdir().unwrap());
    let made = llama();
    let (method, model) = &made.models[0];
    let store = CodeStore::scratch(cache.path()).unwrap();
    let question = question(&files, method, &rule);
    let codes = keep(&store, &question, &made, model);
    let folder = store.folder();
    drop(store);
    assert!(folder.exists() && codes.sha256().unwrap() == model.codes_sha256());
    drop(codes);
    assert!(!folder.exists() && fs::read_dir(cache.path().join("partial")).unwrap().next().is_none());
    // A cache in which nothing can be written.
    fs::write(cache.path().join("file"), "").unwrap();
    let elsewhere = CodeStore::scratch(&cache.path().join("file")).unwrap();
    assert!(!elsewhere.folder().starts_with(cache.path()));
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

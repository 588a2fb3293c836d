//! A folder with a tiny model, texts and an experiment over them, and a way to run the program there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Words of the tokenizer, and rows of the model's embedding.
pub const N_WORDS: usize = 40;
const HIDDEN: usize = 64;
const KV_WIDTH: usize = 32;
const INTERMEDIATE: usize = 128;
pub const N_BLOCKS: usize = 2;

/// Cells of [`Workshop::experiment`]: full precision, RTN and AWQ at two bit widths.
pub const N_CELLS: usize = 5;

/// A folder of its own, with everything an experiment needs. Programs run inside it, so that messages hold relative paths.
pub struct Workshop {
    folder: tempfile::TempDir,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Workshop {
    /// With `model/` (f32, tied head, seed 0), `calibration.txt`, `evaluation.txt` and `experiment.toml`.
    pub fn new() -> Self {
        let workshop = Self { folder: tempfile::tempdir().unwrap() };
        workshop.write_model("model", |_, _| ());
        workshop.write("calibration.txt", words(1, 600));
        workshop.write("evaluation.txt", words(2, 1000));
        workshop.write("experiment.toml", workshop.experiment());
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A model folder; `edit` may change the values of each tensor.
    pub fn write_model(&self, folder: &str, mut edit: impl FnMut(&str, &mut Vec<f32>)) {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), config().to_string()).unwrap();
        fs::write(folder.join("tokenizer.json"), tokenizer(N_WORDS).to_string()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let tensors = tensors().into_iter().map(|(name, shape)| {
            let n = shape.iter().product();
            let mut values: Vec<f32> = match shape.len() {
                1 => vec![1.0; n],
                _ => (0..n).map(|_| rng.random_range(-0.3..0.3)).collect(),
            };
            edit(&name, &mut values);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }

    /// The experiment over what the folder holds now: [`N_CELLS`] cells in well under a second.
    pub fn experiment(&self) -> String {
        let sha256 = |name: &str| sha256(&fs::read(self.path(name)).unwrap());
        format!(
            r#"question = "Does the program survive?"

[run]
device = "flex"

[[models]]
name = "tiny"
source = {{ path = {{ path = "model" }} }}

[calibration]
dataset = {{ text_file = {{ name = "calibration", path = "calibration.txt", sha256 = "{}", documents = "none" }} }}
sampling = {{ random_crops = {{ n_sequences = 4, seed = 0 }} }}
seq_len = 32
propagation = "full_precision"

[grids]
bits = [4, 3]
granularity = [{{ per_group = 32 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f32"

[[methods]]
rtn = {{}}

[[methods]]
[methods.awq]
scale = {{ search = {{ formula = "activation", n_ratios = 20 }} }}
clip = {{ search = {{ n_steps = 20, max_shrink = 0.5, n_tokens = 64 }} }}

[[evaluations]]
[evaluations.perplexity]
dataset = {{ text_file = {{ name = "evaluation", path = "evaluation.txt", sha256 = "{}", documents = "none" }} }}
protocol = {{ gptq = {{ seq_len = 64 }} }}
"#,
            sha256("calibration.txt"),
            sha256("evaluation.txt"),
        )
    }

    /// Writes `experiment.toml` with `from`, which must occur, replaced by `to`.
    pub fn change_experiment(&self, from: &str, to: &str) {
        let experiment = self.read("experiment.toml");
        assert!(experiment.contains(from), "the experiment holds no `{from}`");
        self.write("experiment.toml", experiment.replace(from, to));
    }

    /// Runs the program in the folder.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// The program, to be run in the folder, without network and without the user's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// The program behind shell commands that prepare its process.
    pub fn command_after(&self, shell: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\"")).arg(program()).args(arguments);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        for variable in ["AWQ_ASSETS", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "XDG_CACHE_HOME"] {
            command.env_remove(variable);
        }
        // Quantized again by each run: two runs of one model would be one otherwise.
        command.env("AWQ_CODES_GIB", "0");
        command.env("HF_HUB_OFFLINE", "1").env("AWQ_CACHE", self.path("cache")).env("HOME", self.path("home"));
    }

    /// Runs `experiment.toml` into `out`, which must succeed.
    #[track_caller]
    pub fn finish(&self, out: &str, more: &[&str]) -> Ran {
        let ran = self.run(&[&["experiment.toml", "--out", out], more].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran
    }

    /// The records of `out`, as JSON, in the order of the file.
    pub fn records(&self, out: &str) -> Vec<Value> {
        let text = self.read(&format!("{out}/records.jsonl"));
        assert!(text.is_empty() || text.ends_with('\n'), "a record is cut short");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The newest outcome of each cell of `out` with the logs of its blocks, without times, memory and provenance.
    pub fn results(&self, out: &str) -> BTreeMap<String, Value> {
        let logs = self.block_logs(out);
        let result = |record: Value| {
            let mut outcome = record["outcome"].clone();
            if let Some(quantization) = outcome["done"]["quantization"].as_object_mut() {
                let sha256 = quantization.remove("blocks_sha256").expect("a record names the logs of its blocks");
                quantization.insert("blocks".to_owned(), logs[sha256.as_str().unwrap()].clone());
            }
            remove_costs(&mut outcome);
            (record["cell_id"].as_str().unwrap().to_owned(), outcome)
        };
        self.records(out).into_iter().map(result).collect()
    }

    /// The logs of blocks of `out`, as JSON, by the sha256 of their line.
    fn block_logs(&self, out: &str) -> BTreeMap<String, Value> {
        let Ok(bytes) = std::fs::read(self.path(out).join("blocks.jsonl.zst")) else { return BTreeMap::new() };
        let text = String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap();
        text.split_inclusive('\n').map(|line| (sha256(line.as_bytes()), serde_json::from_str(line).unwrap())).collect()
    }
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The program must have refused with exactly this message as the last on standard error.
    #[track_caller]
    pub fn refused(&self, message: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(
            self.stderr.ends_with(&format!("error: {message}\n")),
            "expected: {message}\n   found: {}",
            self.stderr
        );
    }
}

/// The program under test. Cargo names it at run time too, where it may have been moved since.
fn program() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_experiments")
        .map_or_else(|| env!("CARGO_BIN_EXE_experiments").into(), PathBuf::from)
}

fn remove_costs(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| key != "seconds" && key != "cost");
            map.values_mut().for_each(remove_costs);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_costs),
        _ => (),
    }
}

/// The lone stem of a failed record's error.
#[track_caller]
pub fn error_of(record: &Value) -> &str {
    record["outcome"]["failed"]["error"].as_str().unwrap_or_else(|| panic!("not a failed record: {record}"))
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text of `n` random words.
pub fn words(seed: u64, n: usize) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let words: Vec<String> = (0..n).map(|_| word(rng.random_range(1..N_WORDS))).collect();
    words.join(" ")
}

fn word(id: usize) -> String {
    format!("w{id}")
}

/// A `tokenizer.json` with one token a word.
pub fn tokenizer(n_words: usize) -> Value {
    let vocab: BTreeMap<String, usize> = (0..n_words).map(|id| (word(id), id)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    })
}

/// The `config.json` of the tiny model.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": N_WORDS,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
    })
}

/// Names and shapes of the tiny model's tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![N_WORDS, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for block in 0..N_BLOCKS {
        let parts = [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV_WIDTH, HIDDEN]),
            ("self_attn.v_proj", vec![KV_WIDTH, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ];
        tensors.extend(parts.map(|(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape)));
    }
    tensors
}

/// All files below `folder` with their bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

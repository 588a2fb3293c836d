//! [`Rates`]: how fast this machine does each kind of work, measured once on random weights and kept in the cache of
//! assets.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use awq_core::awq::{FixedScale, KeepSalient, SalientBy};
use awq_core::backend::QuantBackend;
use awq_core::capture::InputStats;
use awq_core::driver::{BlockSink, Calibration, Job, Propagation, QuantizedBlock, quantize_blocks};
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::grids::ModelGrids;
use awq_core::kernel::bench;
use awq_core::load::LoadError;
use awq_core::model::layers::Linear;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{CodeProducts, Decoder, LinearName, NoTap, Products, wiring_of, with_products};
use awq_core::pack::PackedWeight;
use awq_core::rotation::RotationKind;
use awq_core::rule::GridRule;
use baselines::gptaq::Gptaq;
use baselines::gptq::Gptq;
use baselines::quip::{Incoherence, IncoherenceSettings, Quip, QuipGrid, QuipRounding};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::work::{BlockShape, Work};
use crate::assets::hex;
use crate::device::{DeviceJob, run_on};
use crate::eval::metric::Metric;
use crate::eval::registry::MetricKey;
use crate::eval::score::score;
use crate::eval::windows::{Items, Windows};
use crate::eval::{BaseModel, ScoringArithmetic};
use crate::files::write_durably;
use crate::progress::Progress;
use crate::provenance::build::QUANTIZATION_SOURCES;
use crate::provenance::machine::cpu;
use crate::registry::MethodSpec;

/// Raised with what is measured.
const SCHEMA: u32 = 2;

/// Seconds of a unit of work, of two kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Of the first kind: a token through a weight, an operation that grows with tokens.
    pub first: f64,
    /// Of the second: a token at a channel, an operation on matrices.
    pub second: f64,
}

impl Pair {
    /// What is left of `seconds` for the second kind, when a unit of the first takes what is known.
    fn beside(first: f64, work: (f64, f64), seconds: f64) -> Self {
        Self { first, second: ((seconds - first * work.0) / work.1).max(0.0) }
    }

    /// The other way round.
    fn behind(second: f64, work: (f64, f64), seconds: f64) -> Self {
        Self { first: ((seconds - second * work.1) / work.0).max(0.0), second }
    }

    /// Seconds of so much of each.
    pub(super) fn seconds(&self, first: f64, second: f64) -> f64 {
        self.first * first + self.second * second
    }
}

/// What was measured on a machine, with a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    schema: u32,
    /// Its processor.
    pub cpu: String,
    /// Device name.
    pub device: String,
    /// CPU threads.
    pub threads: usize,
    /// The day.
    pub measured: String,
    /// Of a token through a block, by arithmetic: a weight, and a channel.
    pub forward: BTreeMap<String, Pair>,
    /// Of a logit: a likelihood, and what divergences add.
    pub logit: Pair,
    /// Of a byte of weights that is read, as in writing a token.
    pub byte: f64,
    /// Of each method, by its key: products, and the rest of its work.
    pub methods: BTreeMap<String, Pair>,
}

impl Rates {
    /// The rates of this machine, where they are known to this program.
    pub fn kept(cache: &Path, device: &str, threads: usize) -> Option<Self> {
        let rates: Self = serde_json::from_slice(&std::fs::read(path(cache, device, threads)).ok()?).ok()?;
        (rates.schema == SCHEMA).then_some(rates)
    }

    /// Measures them, which takes half a minute on two cores, and keeps them.
    ///
    /// # Errors
    /// A device that is not there, or a cache that cannot be written.
    pub fn measure(cache: &Path, device: &str, threads: usize, progress: &Progress) -> anyhow::Result<Self> {
        let rates = run_on(device, FloatType::F32, Measure { sizes: &SIZES, device, threads, progress })?;
        let path = path(cache, device, threads);
        let folder = crate::files::folder_of(&path);
        std::fs::create_dir_all(folder).with_context(|| crate::assets::cannot_write(folder))?;
        write_durably(&path, &serde_json::to_vec_pretty(&rates).context("rates are JSON")?)
            .with_context(|| crate::assets::cannot_write(&path))?;
        Ok(rates)
    }

    /// Floating-point operations a second of products in f32, which are most of a forward pass; `None` where they took no time.
    pub fn flops(&self) -> Option<f64> {
        let of_weight = self.forward.get(ScoringArithmetic::F32.name())?.first;
        (of_weight > 0.0).then(|| 2.0 / of_weight)
    }

    /// Seconds of `tokens` tokens, in sequences of `seq_len`, through a block.
    pub(super) fn forward(
        &self,
        shape: &BlockShape,
        (tokens, seq_len): (f64, f64),
        arithmetic: ScoringArithmetic,
    ) -> f64 {
        let pair = self.forward.get(arithmetic.name()).copied().unwrap_or_default();
        tokens * pair.seconds(shape.weights_of_token(seq_len), shape.hidden as f64)
    }

    /// Seconds of a method's work.
    pub(super) fn method(&self, key: &str, work: Work) -> f64 {
        self.methods.get(key).map_or(0.0, |pair| pair.seconds(work.products, work.others))
    }
}

/// Another processor, number of threads or program has rates of its own.
fn path(cache: &Path, device: &str, threads: usize) -> PathBuf {
    let mut hasher = Sha256::new();
    for part in [&cpu(), device, &threads.to_string(), QUANTIZATION_SOURCES, env!("CARGO_PKG_VERSION")] {
        hasher.update(part);
        hasher.update([0]);
    }
    cache.join("rates").join(format!("{}.json", &hex(hasher)[..16]))
}

/// Tokens of a sequence.
const SEQ_LEN: usize = 512;

/// What takes less is timed twice, seconds.
const SHORT: f64 = 2.0;

/// What rates are measured on.
struct Sizes {
    /// The block that methods are timed on.
    block: TinySpec,
    /// How many sequences go through it: of no fewer tokens than it has channels.
    n_sequences: usize,
    /// Rows and columns of the matrix that products are timed with.
    width: usize,
    /// Of each of two arrays that memory is timed with.
    bytes: usize,
    /// For what is done with logits.
    vocabulary: usize,
}

/// Large enough to fill the kernels, small enough for half a minute on two cores.
const SIZES: Sizes = Sizes {
    block: TinySpec {
        hidden_size: 1280,
        intermediate_size: 2048,
        n_heads: 20,
        n_kv_heads: 20,
        n_blocks: 1,
        ..TinySpec::GQA
    },
    n_sequences: 4,
    width: 2048,
    bytes: 1 << 28,
    vocabulary: 32_768,
};

struct Measure<'a> {
    sizes: &'a Sizes,
    device: &'a str,
    threads: usize,
    progress: &'a Progress,
}

impl DeviceJob for Measure<'_> {
    type Output = Rates;

    fn run<B: QuantBackend>(self, device: B::Device) -> anyhow::Result<Rates> {
        let examples = examples();
        let bar = self
            .progress
            .bar("measure this machine", (2 * ScoringArithmetic::ALL.len() + 1 + examples.len() + 2) as u64);
        let block = Block::<B>::new(self.sizes, &device)?;
        let n_tokens = (self.sizes.n_sequences * SEQ_LEN) as f64;
        let work = (n_tokens * block.shape.weights_of_token(SEQ_LEN as f64), n_tokens * block.shape.hidden as f64);
        let mut forward = BTreeMap::new();
        let mut of_f32 = 0.0;
        for arithmetic in ScoringArithmetic::ALL {
            let product = product::<B>(self.sizes.width, arithmetic, &device)?;
            let seconds = block.forward(arithmetic)?;
            if arithmetic.is_f32() {
                of_f32 = seconds;
            }
            forward.insert(arithmetic.name().to_owned(), Pair::beside(product, work, seconds));
            bar.advance(2);
        }
        let gram = gram::<B>(self.sizes.width, &device);
        bar.advance(1);
        let mut methods: BTreeMap<String, Pair> = BTreeMap::new();
        // The first makes the program's memory grow, which later ones find there.
        if let Some((_, method)) = examples.first() {
            block.quantize(method)?;
        }
        for (key, method) in &examples {
            let mut seconds = block.quantize(method)?;
            if seconds < SHORT {
                seconds = seconds.min(block.quantize(method)?);
            }
            // Capture and the pass through the quantized block are counted for themselves.
            let seconds = (seconds - 2.0 * of_f32).max(0.0);
            let Work { products, others } = block.shape.work(method, n_tokens).alone();
            let work = (products, others);
            let known = |key: &str| methods.get(key).copied().unwrap_or_default();
            let pair = match *key {
                // Rounding is known, candidates are what is left; and these behind Hessians.
                "awq" => Pair::behind(known("rtn").second, work, seconds),
                "awq_gptq" => Pair::beside(known("awq").first, work, seconds),
                _ => Pair::beside(if products > 0.0 { gram } else { 0.0 }, work, seconds),
            };
            methods.insert((*key).to_owned(), pair);
            bar.advance(1);
        }
        let logit = logits::<B>(self.sizes.vocabulary, &device, &mut || bar.advance(1))?;
        bar.finish();
        Ok(Rates {
            schema: SCHEMA,
            cpu: cpu(),
            device: self.device.to_owned(),
            threads: self.threads,
            measured: chrono::Utc::now().format("%Y-%m-%d").to_string(),
            forward,
            logit,
            byte: 1.0 / bench::bandwidth(self.sizes.bytes, 3).read,
            methods,
        })
    }
}

/// The least of a few times.
fn best_of(n: usize, mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..n).map(once).fold(f64::INFINITY, f64::min)
}

/// Numbers between -1 and 1.
fn numbers<B: QuantBackend>(shape: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Seconds of a token through a weight.
fn product<B: QuantBackend>(width: usize, arithmetic: ScoringArithmetic, device: &B::Device) -> anyhow::Result<f64> {
    let name = LinearName("weight");
    let weight = Linear { weight: numbers::<B>([width, width], device), bias: None };
    let products = products::<B>(arithmetic, [(name, &weight)].into_iter())?;
    let x = numbers::<B>([SEQ_LEN, width], device).unsqueeze::<3>();
    let seconds = best_of(4, || {
        let y = products.product(name, &weight, x.clone());
        // Waits for a device that computes beside the host.
        B::squared_distance(&y, &y);
    });
    Ok(seconds / (SEQ_LEN * width * width) as f64)
}

/// What multiplies with linears in an arithmetic; where it multiplies codes, with those of plain rounding.
fn products<'a, B: QuantBackend>(
    arithmetic: ScoringArithmetic,
    linears: impl Iterator<Item = (LinearName, &'a Linear<B>)>,
) -> anyhow::Result<Arc<dyn Products<B>>> {
    let Some(activations) = arithmetic.of_codes() else { return Ok(Arc::new(arithmetic.of_floats())) };
    let grid = grid()?;
    let codes = linears.map(|(name, linear)| (name, B::quantize_weight(B::in_f32(linear.weight.clone()), &grid)));
    Ok(Arc::new(CodeProducts::new(&codes.collect(), activations)))
}

/// What methods round to.
fn grid() -> anyhow::Result<Grid> {
    let group = NonZeroU16::new(128).context("groups have weights")?;
    Ok(Grid::awq(Bits::new(4).context("4 bits")?, Granularity::PerGroup(group)))
}

/// Seconds of a token in an entry of a Gram matrix in f64.
fn gram<B: QuantBackend>(width: usize, device: &B::Device) -> f64 {
    let x = numbers::<B>([width, width], device).unsqueeze::<3>();
    let seconds = best_of(2, || drop(InputStats::new(vec![x.clone()]).gram_f64()));
    seconds / width.pow(3) as f64
}

/// A method of each key, with its usual settings.
pub(super) fn examples() -> Vec<(&'static str, MethodSpec)> {
    let without_preset = |key: &str| match key {
        "gptaq" => Some(MethodSpec::Gptaq(Gptaq { gptq: Gptq::ACT_ORDER, alpha: 0.25 })),
        "quip" => Some(MethodSpec::Quip(Quip {
            incoherence: Incoherence::On(IncoherenceSettings { rotation: RotationKind::Kronecker, seed: 0 }),
            rounding: QuipRounding::Ldlq,
            grid: QuipGrid::Grouped,
            damp: 0.01,
        })),
        "keep_salient" => Some(MethodSpec::KeepSalient(KeepSalient { fraction: 0.01, by: SalientBy::Activation })),
        "fixed_scale" => Some(MethodSpec::FixedScale(FixedScale { fraction: 0.01, scale: 2.0 })),
        _ => None,
    };
    let example = |key: &&'static str| {
        let preset = MethodSpec::presets(key).into_iter().next().map(|(_, method)| method);
        preset.or_else(|| without_preset(key)).map(|method| (*key, method))
    };
    MethodSpec::KEYS.iter().filter_map(example).collect()
}

/// One block and what goes through it.
struct Block<B: QuantBackend> {
    decoder: Box<dyn Decoder<B>>,
    shape: BlockShape,
    grids: ModelGrids,
    sequences: Vec<Vec<u32>>,
}

impl<B: QuantBackend> Block<B> {
    fn new(sizes: &Sizes, device: &B::Device) -> anyhow::Result<Self> {
        let spec = &sizes.block;
        let config = spec.config();
        let wiring = wiring_of(&config, &tiny::checkpoint(spec, 0))?;
        let grids = GridRule::from(grid()?).resolve(&wiring)?;
        Ok(Self {
            decoder: tiny::decoder::<B>(spec, 0, device)?,
            shape: BlockShape::of(&wiring.blocks[0], &config),
            grids,
            sequences: tiny::sequences(spec, sizes.n_sequences, SEQ_LEN, 1),
        })
    }

    /// Seconds of a pass through the block.
    fn forward(&self, arithmetic: ScoringArithmetic) -> anyhow::Result<f64> {
        let block = self.decoder.block(0)?;
        let linears = block.params().linears.iter().map(|(name, linear)| (*name, linear));
        let block = with_products(block.as_ref(), products::<B>(arithmetic, linears)?);
        let hidden = self.decoder.embedding()?.embed(&self.sequences);
        Ok(best_of(3, || {
            let output = block.forward(hidden.clone(), &mut NoTap);
            B::squared_distance(&output, &output);
        }))
    }

    /// Seconds of a method on the block, with all that goes with it.
    fn quantize(&self, method: &MethodSpec) -> anyhow::Result<f64> {
        let propagation = match method.settings().needs().full_precision_inputs {
            true => Propagation::Quantized,
            false => Propagation::FullPrecision,
        };
        let calibration = Calibration { sequences: &self.sequences, propagation };
        let jobs = [Job { method: method.method::<B>(), grids: self.grids.clone() }];
        let start = Instant::now();
        let results = quantize_blocks(self.decoder.as_ref(), Some(calibration), &jobs, &mut Nowhere)?;
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Keeps nothing.
struct Nowhere;

impl BlockSink for Nowhere {
    type Error = LoadError;

    fn keep(&mut self, _: usize, _: QuantizedBlock) -> Result<(), LoadError> {
        Ok(())
    }

    fn keep_head(&mut self, _: usize, _: PackedWeight) -> Result<(), LoadError> {
        Ok(())
    }

    fn passed(&mut self, _: usize, _: f64) {}
}

/// Seconds of a logit.
fn logits<B: QuantBackend>(vocab_size: usize, device: &B::Device, done: &mut dyn FnMut()) -> anyhow::Result<Pair> {
    let spec = TinySpec { n_blocks: 1, vocab_size, ..TinySpec::GQA };
    let decoder = tiny::decoder::<B>(&spec, 0, device)?;
    let windows = tiny::sequences(&spec, 4, SEQ_LEN, 1);
    let windows =
        Windows { n_total: windows.len(), first_targets: vec![1; windows.len()], items: Items::Windows, windows };
    let n_logits = (4 * (SEQ_LEN - 1) * vocab_size) as f64;
    let mut seconds = |metrics: &[MetricKey]| -> anyhow::Result<f64> {
        let metrics: Vec<&dyn Metric> = metrics.iter().map(|metric| metric.metric()).collect();
        let mut base = BaseModel::new(decoder.as_ref(), ScoringArithmetic::F32);
        let start = Instant::now();
        score(decoder.as_ref(), &windows, ScoringArithmetic::F32, &metrics, &mut base, &mut |_| {})?;
        done();
        Ok(start.elapsed().as_secs_f64() / n_logits)
    };
    let first = seconds(&[MetricKey::USUAL])?;
    let both = seconds(&[MetricKey::USUAL, MetricKey::KlDivergence])?;
    Ok(Pair { first, second: (both - first).max(0.0) })
}

#[cfg(test)]
impl Rates {
    /// Of no machine.
    pub(super) fn made_up() -> Self {
        let pair = |first, second| Pair { first, second };
        Self {
            schema: SCHEMA,
            cpu: "some processor".into(),
            device: "flex".into(),
            threads: 2,
            measured: "2026-11-30".into(),
            forward: ScoringArithmetic::ALL
                .map(|one| one.name())
                .map(|name| (name.to_owned(), pair(5e-12, 1e-9)))
                .into(),
            logit: pair(1e-9, 2e-9),
            byte: 1e-10,
            methods: MethodSpec::KEYS.iter().map(|key| ((*key).to_owned(), pair(1e-11, 2e-11))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use itertools::Itertools as _;

    use super::*;

    #[test]
    fn what_is_known_is_taken_off_a_measurement() {
        let pair = Pair::beside(2.0, (10.0, 1.0), 23.0);
        assert_eq!(pair, Pair { first: 2.0, second: 3.0 });
        assert_eq!(Pair::behind(3.0, (10.0, 1.0), 23.0), pair);
        assert_eq!(pair.seconds(10.0, 1.0), 23.0);
        // A measurement below what is known leaves nothing.
        assert_eq!(Pair::beside(2.0, (10.0, 1.0), 19.0), Pair { first: 2.0, second: 0.0 });
    }

    #[test]
    fn every_kind_of_work_is_measured() {
        let sizes = Sizes {
            block: TinySpec { hidden_size: 128, intermediate_size: 128, n_blocks: 1, ..TinySpec::MHA },
            n_sequences: 1,
            width: 64,
            bytes: 1 << 16,
            vocabulary: 64,
        };
        let progress = Progress::new(crate::progress::Style::Quiet);
        let measure = Measure { sizes: &sizes, device: "flex", threads: 2, progress: &progress };
        let rates = measure.run::<burn::backend::Flex>(Default::default()).unwrap();
        assert!(
            rates.forward.keys().eq(["bf16", "bf16x3", "f32", "int16"])
                && rates.forward.values().all(|pair| pair.first > 0.0)
        );
        assert!(rates.methods.keys().map(String::as_str).eq(MethodSpec::KEYS.iter().copied().sorted()));
        assert!(rates.logit.first > 0.0 && rates.byte > 0.0);
        let json = serde_json::to_string(&rates).unwrap();
        assert_eq!(serde_json::from_str::<Rates>(&json).unwrap(), rates);
    }

    #[test]
    fn rates_are_kept_for_one_machine_and_number_of_threads() {
        let cache = tempfile::tempdir().unwrap();
        let rates = Rates::made_up();
        // Of 5e-12 s a weight.
        assert_eq!(rates.flops(), Some(4e11));
        assert_eq!(Rates::kept(cache.path(), "flex", 2), None);
        let file = path(cache.path(), "flex", 2);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, serde_json::to_vec(&rates).unwrap()).unwrap();
        assert_eq!(Rates::kept(cache.path(), "flex", 2), Some(rates.clone()));
        assert_eq!(Rates::kept(cache.path(), "flex", 1), None);
        std::fs::write(&file, serde_json::to_vec(&Rates { schema: SCHEMA + 1, ..rates }).unwrap()).unwrap();
        assert_eq!(Rates::kept(cache.path(), "flex", 2), None);
    }
}

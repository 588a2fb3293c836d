//! Tokens a second of a model: dense and packed forms, taking turns.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::ensure;
use awq_core::decode::{CodesOf, DecodeModel, DecodeOptions, Session};
use awq_core::grid::Grid;
use awq_core::kernel::bench::Latency;
use baselines::rtn::Rtn;

use super::record::{DecodeArm, DecodeTimes, PackedForm};
use crate::assets::AssetStore;
use crate::codes::CodeStore;
use crate::config::{DecodeFormat, DecodeSpeed, ModelSpec};
use crate::generate::head_grid;
use crate::progress::Progress;
use crate::quantize::{Recipe, quantize};
use crate::registry::MethodSpec;
use crate::session::{Machine, Model};

/// A form of a model and its times so far, in seconds.
struct Form {
    packed: Option<PackedForm>,
    head_bits: Option<u8>,
    model: DecodeModel,
    /// See [`DecodeArm::cache_bytes`].
    cache_bytes: usize,
    prefill: Vec<f64>,
    step: Vec<f64>,
}

impl Form {
    fn new(
        packed: Option<PackedForm>,
        head_bits: Option<u8>,
        model: DecodeModel,
        spec: &DecodeSpeed,
    ) -> anyhow::Result<Self> {
        let (n_prompt, n_new) = (spec.prompt_tokens.get(), spec.new_tokens.get());
        let session = Session::new(&model, n_prompt + n_new)?;
        let cache_bytes = session.cache_bytes() * (n_prompt + n_new / 2) / session.capacity();
        Ok(Self { packed, head_bits, cache_bytes, model, prefill: vec![], step: vec![] })
    }
}

/// Times every form of a model. Returns the hashes of its files too.
///
/// # Errors
/// A model that cannot be had, opened or quantized, or whose context is too short.
pub fn measure(
    model: &ModelSpec,
    spec: &DecodeSpeed,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<(DecodeTimes, BTreeMap<String, String>)> {
    let opened = Model::open(model, store, progress)?;
    let config = &opened.opened.config;
    let (n_prompt, n_new) = (spec.prompt_tokens.get(), spec.new_tokens.get());
    let longest = config.longest_sequence();
    ensure!(
        n_prompt + n_new <= longest,
        "{n_prompt} tokens of a prompt and {n_new} new ones are more than the {longest} positions of the model's configuration; lower \
         `speed.decode.prompt_tokens` or `new_tokens`"
    );
    let dense = DecodeModel::load(config.clone(), opened.opened.checkpoint.as_ref(), &DecodeOptions::EXACT)?;
    let codes = CodeStore::from_env(store.cache(), progress)?;
    let mut forms = vec![Form::new(None, None, dense, spec)?];
    for format in &spec.formats {
        forms.push(packed_form(&opened, format, spec, &codes, store, progress)?);
    }
    // Which tokens does not matter, but they should be tokens of the model.
    let prompt: Vec<u32> = (0..n_prompt).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    for repeat in 0..=spec.n_repeats.get() {
        for form in &mut forms {
            let (prefill, step) = time(&form.model, &prompt, n_new)?;
            // The first is a warm-up.
            if repeat > 0 {
                form.prefill.push(prefill);
                form.step.push(step);
            }
        }
    }
    let arm = |form: Form| DecodeArm {
        packed: form.packed,
        head_bits: form.head_bits,
        float_bits: form.model.footprint().float_bits,
        step_bytes: form.model.footprint().step_bytes,
        cache_bytes: form.cache_bytes,
        prefill: Latency::of(form.prefill),
        step: Latency::of(form.step),
    };
    let times = DecodeTimes {
        model: model.name.clone(),
        prompt_tokens: n_prompt,
        new_tokens: n_new,
        arms: forms.into_iter().map(arm).collect(),
    };
    Ok((times, opened.files))
}

fn packed_form(
    opened: &Model,
    format: &DecodeFormat,
    spec: &DecodeSpeed,
    codes: &CodeStore,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<Form> {
    let DecodeFormat { bits, granularity, activations, head_bits } = *format;
    let grid = Grid::awq(bits, granularity);
    let recipe = Recipe { method: MethodSpec::Rtn(Rtn {}), rule: grid.into(), calibration: None };
    let quantized = quantize(opened, &recipe, Machine::in_f32("flex", codes, progress), store)?;
    let options = DecodeOptions { activations, codes: CodesOf::Ours, head: head_bits.map(head_grid) };
    let packed = PackedForm { bits: bits.get(), granularity: granularity.label(), activations, precision: None };
    let model = DecodeModel::load(opened.opened.config.clone(), quantized.checkpoint.as_ref(), &options)?;
    Form::new(Some(packed), head_bits.map(|bits| bits.get()), model, spec)
}

/// Seconds of the prompt's pass, and mean seconds of the steps after it.
fn time(model: &DecodeModel, prompt: &[u32], n_new: usize) -> anyhow::Result<(f64, f64)> {
    let mut session = Session::new(model, prompt.len() + n_new)?;
    let start = Instant::now();
    session.feed(prompt)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for &id in prompt.iter().cycle().take(n_new) {
        session.feed(&[id])?;
    }
    Ok((prefill, start.elapsed().as_secs_f64() / n_new as f64))
}

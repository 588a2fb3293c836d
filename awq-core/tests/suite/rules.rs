//! Models some of whose linears have grids of their own, or none.

use std::collections::BTreeSet;
use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{Awq, ClipStep, FixedScale, Nearest};
use awq_core::backend::float_vec;
use awq_core::capture::CaptureNeeds;
use awq_core::driver::{Calibration, FullPrecisionShare, Job, Propagation, QuantizedModel, quantize_model};
use awq_core::grid::Grid;
use awq_core::load::{Checkpoint, EditedCheckpoint, MemoryCheckpoint};
use awq_core::method::{
    BlockCtx, BlockEdit, LinearMethod, MethodError, MethodSettings, QuantMethod, quantize_each_linear,
};
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::wiring::Wiring;
use awq_core::model::{Decoder, NoTap, open_decoder, wiring_of};
use awq_core::rule::{GridOverride, GridRule};

use crate::support::{Cpu, check_close, grid, group, no_search, numbers, official_awq, tensor};

/// Biases on q, k and v; AWQ scales every linear, `o_proj` through `v_proj`.
const SPEC: TinySpec = TinySpec::MHA;

struct Model {
    base: Arc<MemoryCheckpoint>,
    wiring: Wiring,
    decoder: Box<dyn Decoder<Cpu>>,
}

fn model() -> Model {
    let base = Arc::new(tiny::checkpoint(&SPEC, 7));
    let wiring = wiring_of(&SPEC.config(), base.as_ref()).unwrap();
    let decoder = open_decoder(SPEC.config(), base.clone(), &Default::default()).unwrap();
    Model { base, wiring, decoder }
}

fn rule(default: Grid, overrides: &[(&str, Option<Grid>)]) -> GridRule {
    let one = |(linears, grid): &(&str, Option<Grid>)| GridOverride { linears: (*linears).to_owned(), grid: *grid };
    GridRule { grid: default, overrides: overrides.iter().map(one).collect() }
}

/// Every scale group has linears of several grids or none at all; block 1 is left alone but for one linear.
fn mixed() -> GridRule {
    let other = [
        ("model.layers.1.self_attn.q_proj", Some(grid(3, group(16)))),
        ("model.layers.1.*", None),
        ("self_attn.v_proj", None),
        ("mlp.gate_proj", None),
        ("mlp.up_proj", Some(grid(8, group(32)))),
    ];
    rule(grid(4, group(32)), &other)
}

impl Model {
    fn quantized(&self, method: &dyn QuantMethod<Cpu>, rule: &GridRule, propagation: Propagation) -> QuantizedModel {
        let sequences = tiny::sequences(&SPEC, 4, 24, 3);
        let calibration = Calibration { sequences: &sequences, propagation };
        let jobs = [Job { method, grids: rule.resolve(&self.wiring).unwrap() }];
        let pass = quantize_model(self.decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
        pass.models.into_iter().next().unwrap().unwrap()
    }

    /// A quantized model as it is run.
    fn run(&self, model: &QuantizedModel) -> Box<dyn Decoder<Cpu>> {
        self.decoder.over(Arc::new(self.checkpoint(model))).unwrap()
    }

    fn checkpoint(&self, model: &QuantizedModel) -> EditedCheckpoint {
        model.clone().into_checkpoint(&self.wiring, self.base.clone())
    }
}

fn hidden(decoder: &dyn Decoder<Cpu>) -> Vec<f32> {
    let mut hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&SPEC, 2, 16, 9));
    for block_idx in 0..SPEC.n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    float_vec(hidden)
}

fn methods() -> Vec<Box<dyn QuantMethod<Cpu>>> {
    vec![
        Box::new(no_search()),
        Box::new(official_awq()),
        Box::new(Awq { clip: ClipStep::Off, ..official_awq() }),
        Box::new(FixedScale { fraction: 0.1, scale: 4.0 }),
    ]
}

#[test]
fn each_linear_lies_on_its_own_grid_or_is_as_it_was() {
    let (model, rule) = (model(), mixed());
    for method in methods() {
        let quantized = model.quantized(method.as_ref(), &rule, Propagation::FullPrecision);
        let checkpoint = model.checkpoint(&quantized);
        let edited: BTreeSet<&str> = checkpoint.edited().collect();
        for (block_idx, block) in model.wiring.blocks.iter().enumerate() {
            for facts in &block.layout.linears {
                let name = model.wiring.linear(block_idx, facts.name);
                let weight = format!("{name}.weight");
                let found = checkpoint.read_quantized(&weight).unwrap().map(|weight| weight.grid);
                assert_eq!(found.as_ref(), rule.grid_of(&name, facts.name.0), "{}: {name}", method.label());
                if found.is_none() && !edited.contains(weight.as_str()) {
                    assert_eq!(checkpoint.read_f32(&weight).unwrap(), model.base.read_f32(&weight).unwrap(), "{name}");
                }
            }
        }
        assert!(!edited.contains("model.layers.1.mlp.down_proj.weight"), "{}", method.label());
    }
}

/// A scale that is folded into a linear in full precision is stored with it: the model on disk is the model that was judged.
#[test]
fn a_scale_of_a_group_is_folded_into_its_linears_in_full_precision() {
    let (model, rule) = (model(), mixed());
    for method in methods() {
        for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
            let quantized = model.quantized(method.as_ref(), &rule, propagation);
            let checkpoint = Arc::new(model.checkpoint(&quantized));
            let scales = !quantized.logs[0].scale_searches.is_empty() || method.label().starts_with("s=");
            let is_folded = |name: &str| checkpoint.edited().any(|edited| edited == name);
            for linear in ["self_attn.v_proj", "mlp.gate_proj"] {
                assert_eq!(
                    is_folded(&format!("model.layers.0.{linear}.weight")),
                    scales,
                    "{} {linear}",
                    method.label()
                );
            }
            let read = open_decoder::<Cpu>(SPEC.config(), checkpoint, &Default::default()).unwrap();
            assert_eq!(hidden(read.as_ref()), hidden(model.run(&quantized).as_ref()), "{}", method.label());
        }
    }
}

/// At 8 bits a quantized model computes nearly what the original does, whatever is folded where: a column that is multiplied
/// and not divided shows.
#[test]
fn folding_past_linears_in_full_precision_keeps_the_function() {
    let model = model();
    let exact = hidden(model.decoder.as_ref());
    let largest = exact.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let eight = grid(8, group(16));
    let left = [
        ["self_attn.v_proj", "mlp.gate_proj"],
        ["self_attn.o_proj", "mlp.down_proj"],
        ["self_attn.q_proj", "mlp.up_proj"],
        ["self_attn.*", "nothing"],
        ["mlp.*", "nothing"],
    ];
    for method in methods() {
        for linears in left {
            let overrides: Vec<_> =
                linears.iter().filter(|name| **name != "nothing").map(|name| (*name, None)).collect();
            let quantized = model.quantized(method.as_ref(), &rule(eight, &overrides), Propagation::FullPrecision);
            let found = hidden(model.run(&quantized).as_ref());
            let error = exact.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 0.1 * largest, "{} {linears:?}: {error} of {largest}", method.label());
        }
    }
}

#[test]
fn rounding_one_linear_does_not_depend_on_the_grids_of_others() {
    let (model, rule) = (model(), mixed());
    let plain = model.quantized(&no_search(), &grid(4, group(32)).into(), Propagation::FullPrecision);
    let (plain, mixed) =
        (model.checkpoint(&plain), model.checkpoint(&model.quantized(&no_search(), &rule, Propagation::FullPrecision)));
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"] {
        let name = format!("model.layers.0.{name}.weight");
        assert_eq!(plain.read_quantized(&name).unwrap(), mixed.read_quantized(&name).unwrap(), "{name}");
    }
}

#[test]
fn bits_are_counted_over_what_is_quantized_and_over_all() {
    let model = model();
    let left = rule(grid(4, group(32)), &[("mlp.*", None), ("self_attn.o_proj", Some(grid(8, group(32))))]);
    let quantized = model.quantized(&no_search(), &left, Propagation::FullPrecision);
    // A code, and a scale of 32 bits and a zero point a group of 32. Of four linears of one size one has 8 bits.
    let bits = |bits: f64| bits + (32.0 + bits) / 32.0;
    let expected = 0.75 * bits(4.0) + 0.25 * bits(8.0);
    assert!((quantized.bits_per_weight() - expected).abs() < 1e-12, "{}", quantized.bits_per_weight());
    let share = |quantized: &QuantizedModel, rule: &GridRule| {
        let (grids, checkpoint) = (rule.resolve(&model.wiring).unwrap(), model.checkpoint(quantized));
        FullPrecisionShare::of(&grids, &model.wiring, &SPEC.config(), &checkpoint)
    };
    let share_of_left = share(&quantized, &left).unwrap();
    let n = |n_linears, width| (SPEC.n_blocks * n_linears * SPEC.hidden_size * width) as f64;
    let (attention, mlp) = (n(4, SPEC.hidden_size), n(3, SPEC.intermediate_size));
    assert_eq!(share_of_left.n_weights as f64, mlp);
    // The tiny checkpoint is in f32.
    let of_all = (attention * expected + mlp * 32.0) / (attention + mlp);
    assert!((share_of_left.bits_per_weight_of_all - of_all).abs() < 1e-12, "{share_of_left:?}, {of_all}");
    let whole = GridRule::from(grid(4, group(32)));
    let plain = model.quantized(&no_search(), &whole, Propagation::FullPrecision);
    assert_eq!(share(&plain, &whole), None);
}

/// Plain rounding, of the head as well.
struct Plain;

impl MethodSettings for Plain {
    fn label(&self) -> String {
        "plain".into()
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: false, ..CaptureNeeds::default() }
    }
}

impl QuantMethod<Cpu> for Plain {
    fn quantize_block(&self, ctx: &BlockCtx<'_, Cpu>) -> Result<BlockEdit<Cpu>, MethodError> {
        quantize_each_linear(&Nearest, ctx)
    }

    fn of_head(&self) -> Option<&dyn LinearMethod<Cpu>> {
        Some(&Nearest)
    }
}

#[test]
fn the_head_is_quantized_where_an_override_names_it() {
    let model = model();
    let with_head = rule(grid(4, group(32)), &[("lm_head", Some(grid(8, group(32))))]);
    let quantized = model.quantized(&Plain, &with_head, Propagation::FullPrecision);
    let plain = model.quantized(&Plain, &grid(4, group(32)).into(), Propagation::FullPrecision);
    assert_ne!(quantized.codes_sha256(), plain.codes_sha256());
    // It counts as every quantized weight does.
    let n = |n_rows| (n_rows * SPEC.hidden_size) as f64;
    let (head, all) = (n(SPEC.vocab_size), n(SPEC.n_blocks * (4 * SPEC.hidden_size + 3 * SPEC.intermediate_size)));
    let expected = (plain.bits_per_weight() * all + (8.0 + 40.0 / 32.0) * head) / (all + head);
    assert!((quantized.bits_per_weight() - expected).abs() < 1e-12);
    let checkpoint = Arc::new(model.checkpoint(&quantized));
    let weight = checkpoint.read_quantized("lm_head.weight").unwrap().unwrap();
    assert_eq!(weight.grid, grid(8, group(32)));
    let sha256 = awq_core::driver::codes_sha256(&model.wiring, SPEC.n_blocks, checkpoint.as_ref()).unwrap();
    assert_eq!(sha256, quantized.codes_sha256());
    let rows = || tensor::<Cpu, 2>(&numbers(3 * SPEC.hidden_size, 4), [3, SPEC.hidden_size]);
    let logits = |decoder: &dyn Decoder<Cpu>| float_vec(decoder.head(Arithmetic::F32).unwrap().logits(rows()));
    let read = open_decoder::<Cpu>(SPEC.config(), checkpoint, &Default::default()).unwrap();
    let found = logits(model.run(&quantized).as_ref());
    assert_eq!(logits(read.as_ref()), found);
    assert_ne!(logits(model.decoder.as_ref()), found);
    check_close("a head of 8 bits", &found, &logits(model.decoder.as_ref()), 0.02);
}

#[test]
fn a_method_that_looks_at_activations_does_not_quantize_the_head() {
    let model = model();
    let with_head = rule(grid(4, group(32)), &[("lm_head", Some(grid(8, group(32))))]);
    let sequences = tiny::sequences(&SPEC, 1, 24, 3);
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
    let jobs = [Job { method: &no_search(), grids: with_head.resolve(&model.wiring).unwrap() }];
    let pass = quantize_model(model.decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
    let error = pass.models.into_iter().next().unwrap().unwrap_err().to_string();
    let expected = "lm_head: only methods that need no activations quantize the head (rtn, hqq); remove its override";
    assert!(error.ends_with(expected), "{error}");
}

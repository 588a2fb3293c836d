//! Experts: a module copied is that module, a router is folded and never quantized, and a record names experts
//! without tokens.

use std::sync::Arc;

use awq_core::backend::float_vec;
use awq_core::decode::{DecodeModel, DecodeOptions, Session};
use awq_core::driver::{Calibration, Job, Propagation, QuantizedModel, quantize_model};
use awq_core::load::{Checkpoint, LoadError, MemoryCheckpoint, ModelConfig};
use awq_core::method::QuantMethod;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, NoTap, Storage, open_decoder, wiring_of};
use serde_json::json;

use crate::decode::together;
use crate::fixture::Fixture;
use crate::support::{Cpu, check_close, grid, group, no_search, numbers, official_awq};

const SPEC: TinySpec = TinySpec::GQA;
const N_EXPERTS: usize = 4;

fn config() -> ModelConfig {
    ModelConfig {
        architecture: "MixtralForCausalLM".into(),
        raw: json!({ "num_local_experts": N_EXPERTS, "num_experts_per_tok": 2 }),
        ..SPEC.config()
    }
}

/// The tiny Llama whose feed-forward modules became experts, all of them copies. `router: [experts, hidden]`.
fn copies(router: &[f32]) -> MemoryCheckpoint {
    let llama = tiny::checkpoint(&SPEC, 5);
    let mut mixtral = MemoryCheckpoint::default();
    for name in llama.names() {
        let (shape, values) = (llama.shape(&name).unwrap(), llama.read_f32(&name).unwrap());
        match name.split_once(".mlp.") {
            None => mixtral.insert(&name, &shape, values),
            Some((block, linear)) => {
                let linear = match linear {
                    "gate_proj.weight" => "w1.weight",
                    "up_proj.weight" => "w3.weight",
                    _ => "w2.weight",
                };
                for expert in 0..N_EXPERTS {
                    let name = format!("{block}.block_sparse_moe.experts.{expert}.{linear}");
                    mixtral.insert(&name, &shape, values.clone());
                }
                let shape = [N_EXPERTS, SPEC.hidden_size];
                mixtral.insert(&format!("{block}.block_sparse_moe.gate.weight"), &shape, router.to_vec());
            }
        }
    }
    mixtral
}

fn random_router() -> Vec<f32> {
    numbers(N_EXPERTS * SPEC.hidden_size, 9)
}

/// One logit is not 0: where it is positive expert 0 is taken with expert 1, else experts 1 and 2. Never expert 3.
fn router_without_the_last() -> Vec<f32> {
    let mut router = random_router();
    router[SPEC.hidden_size..].fill(0.0);
    router
}

fn open(config: ModelConfig, checkpoint: MemoryCheckpoint) -> Box<dyn Decoder<Cpu>> {
    open_decoder(config, Arc::new(checkpoint), &Default::default()).unwrap()
}

fn block_outputs(decoder: &dyn Decoder<Cpu>) -> Vec<f32> {
    let mut hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&SPEC, 2, 20, 11));
    for block_idx in 0..SPEC.n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    float_vec(hidden)
}

#[test]
fn experts_that_are_copies_are_the_module_that_they_copy() {
    let expected = block_outputs(open(SPEC.config(), tiny::checkpoint(&SPEC, 5)).as_ref());
    let found = block_outputs(open(config(), copies(&random_router())).as_ref());
    check_close("copied experts", &found, &expected, 1e-5);
}

fn quantize(decoder: &dyn Decoder<Cpu>, method: &dyn QuantMethod<Cpu>, propagation: Propagation) -> QuantizedModel {
    let sequences = tiny::sequences(&SPEC, 4, 24, 3);
    let calibration = Calibration { sequences: &sequences, propagation };
    let jobs = [Job { method, grids: grid(3, group(32)).into() }];
    let pass = quantize_model(decoder, Some(calibration), &jobs, &mut |_| {}).unwrap();
    pass.models.into_iter().next().unwrap().unwrap()
}

#[test]
fn the_router_takes_the_scale_and_keeps_its_precision() {
    let base = Arc::new(copies(&random_router()));
    let decoder = open_decoder::<Cpu>(config(), base.clone(), &Default::default()).unwrap();
    let model = quantize(decoder.as_ref(), &official_awq(), Propagation::FullPrecision);
    let wiring = wiring_of(&config(), base.as_ref()).unwrap();
    let checkpoint = Arc::new(model.clone().into_checkpoint(&wiring, base.clone()));
    let decoded = block_outputs(decoder.over(checkpoint.clone()).unwrap().as_ref());

    let (router, norm) =
        ("model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.post_attention_layernorm.weight");
    assert!(checkpoint.read_quantized(router).unwrap().is_none() && !wiring.quantizes(router));
    assert!(wiring.quantizes("model.layers.1.block_sparse_moe.experts.3.w2.weight"));
    let read = |name| (base.read_f32(name).unwrap(), checkpoint.read_f32(name).unwrap());
    let ((router_before, router_after), (norm_before, norm_after)) = (read(router), read(norm));
    assert_ne!(norm_before, norm_after, "a scale other than 1 was found");
    // Rows of the router times the norm's weight are what they were.
    for (row, (before, after)) in router_before.chunks(64).zip(router_after.chunks(64)).enumerate() {
        let products =
            |router: &[f32], norm: &[f32]| -> Vec<f32> { router.iter().zip(norm).map(|(r, n)| r * n).collect() };
        check_close(&format!("row {row}"), &products(after, &norm_after), &products(before, &norm_before), 1e-6);
    }

    // The same model opened anew.
    let reopened = open_decoder::<Cpu>(config(), checkpoint.clone(), &Default::default()).unwrap();
    assert!(block_outputs(reopened.as_ref()) == decoded);

    // A router is no part of what is counted as quantized.
    let n_weights: u64 = SPEC.config().n_blocks as u64 * (2 * 64 * 64 + 2 * 32 * 64 + N_EXPERTS as u64 * 3 * 64 * 96);
    let storage = Storage::of(&wiring, &config(), checkpoint.as_ref()).unwrap();
    assert_eq!(storage.types.iter().map(|share| share.n_weights).sum::<u64>(), n_weights);
    assert!((storage.bits_per_weight - model.bits_per_weight()).abs() < 1e-9);
}

#[test]
fn packed_experts_decode_as_their_blocks_do() {
    let base = Arc::new(copies(&random_router()));
    let decoder = open_decoder::<Cpu>(config(), base.clone(), &Default::default()).unwrap();
    let model = quantize(decoder.as_ref(), &no_search(), Propagation::FullPrecision);
    let wiring = wiring_of(&config(), base.as_ref()).unwrap();
    let checkpoint = Arc::new(model.into_checkpoint(&wiring, base));
    let ids = tiny::sequences(&SPEC, 1, 30, 5).remove(0);
    let quantized = open_decoder::<Cpu>(config(), checkpoint.clone(), &Default::default()).unwrap();
    let mut hidden = quantized.embedding().unwrap().embed(std::slice::from_ref(&ids));
    for block_idx in 0..SPEC.n_blocks {
        hidden = quantized.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    let rows = quantized.final_norm(hidden).reshape([ids.len(), SPEC.hidden_size]);
    let expected = float_vec(quantized.head(awq_core::arithmetic::Arithmetic::F32).unwrap().logits(rows));

    let decode = DecodeModel::load(config(), checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap();
    let mut session = Session::new(&decode, ids.len()).unwrap();
    let mut found = session.feed_each(&ids[..20]).unwrap();
    ids[20..].iter().for_each(|&id| found.extend(session.feed_each(&[id]).unwrap()));
    check_close("packed experts", &found, &expected, 1e-4);
    // To which experts the tokens of other texts are sent changes no bit of a text.
    let others = tiny::sequences(&SPEC, 3, 30, 6);
    let beside: Vec<&[u32]> = others.iter().chain([&ids]).map(Vec::as_slice).collect();
    let beside = together(&decode, &beside, &[0, 1, 3, 2].map(Some), 4);
    assert!(beside[3] == together(&decode, &[&ids], &[Some(0)], 4)[0]);
    check_close("experts in a batch", &beside[3], &found[3 * SPEC.vocab_size..], 1e-5);

    // q, k, v as one, o, the router, and of each expert gate with up, and down. A step reads two experts of four.
    let footprint = decode.footprint();
    assert_eq!((footprint.n_packed, footprint.n_linears), (2 * (2 + 2 * N_EXPERTS), 2 * (3 + 2 * N_EXPERTS)));
    let all = ModelConfig { raw: json!({ "num_local_experts": 4, "num_experts_per_tok": 4 }), ..config() };
    let all = DecodeModel::load(all, checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap().footprint();
    let expert_bits = (3 * 64 * 96 * 3) as f64;
    let saved = (all.step_bytes - footprint.step_bytes) as f64 * 8.0 / (2.0 * 2.0 * expert_bits);
    assert!((1.0..1.8).contains(&saved), "{all:?}, {footprint:?}: two experts of two blocks less");
}

const UNREACHED: &str = "no token of the calibration is sent to this expert: quantized without activations";

/// It gets no scale and no clipping, and the record says so; the others get theirs.
#[test]
fn an_expert_without_tokens_is_rounded_to_nearest_and_noted() {
    let decoder = open(config(), copies(&router_without_the_last()));
    let awq = quantize(decoder.as_ref(), &official_awq(), Propagation::FullPrecision);
    for log in &awq.logs {
        for linear in &log.linears {
            let is_unreached = linear.linear.contains("experts.3.");
            assert_eq!(linear.notes.iter().any(|note| note == UNREACHED), is_unreached, "{linear:?}");
            let clips = !linear.linear.ends_with("q_proj") && !linear.linear.ends_with("k_proj");
            assert_eq!(linear.clip.is_some(), clips && !is_unreached, "{linear:?}");
        }
        let search = |expert| {
            let group = format!("block_sparse_moe.experts.{expert}.w2");
            log.scale_searches.iter().find(|search| search.group == group).unwrap()
        };
        assert!(search(3).losses.iter().all(|loss| *loss == 0.0) && search(3).ratio == 0.0);
        assert!(search(1).loss_after < search(1).loss_before);
        let all = "block_sparse_moe.experts.*.w1+block_sparse_moe.experts.*.w3";
        assert!(log.scale_searches.iter().any(|search| search.group == all));
    }
    // What looks at no activations has nothing to say of them.
    let plain = quantize(decoder.as_ref(), &no_search(), Propagation::FullPrecision);
    assert!(plain.logs.iter().flat_map(|log| &log.linears).all(|linear| linear.notes.is_empty()));
}

fn error(raw: serde_json::Value) -> LoadError {
    wiring_of(&ModelConfig { raw, ..config() }, &copies(&random_router())).err().unwrap()
}

#[test]
fn numbers_of_experts_that_cannot_be_are_refused() {
    for (raw, expected) in [
        (json!({ "num_local_experts": 0 }), "key \"num_local_experts\": 0, expected a positive integer"),
        (json!({ "num_local_experts": "4" }), "key \"num_local_experts\": \"4\", expected a positive integer"),
        (
            json!({ "num_local_experts": 4, "num_experts_per_tok": 5 }),
            "key \"num_experts_per_tok\": 5, expected at most the 4 experts of \"num_local_experts\"",
        ),
        (
            json!({ "num_local_experts": 1_u64 << 40 }),
            "1099511627776, but the checkpoint has 41 tensors; correct the number",
        ),
        // The class's 8 where the file is silent.
        (json!({}), "no tensor named \"model.layers.0.block_sparse_moe.experts.4.w1.weight\""),
        (
            json!({ "num_local_experts": 3 }),
            "tensor \"model.layers.0.block_sparse_moe.gate.weight\" has shape [4, 64], expected [3, 64]",
        ),
    ] {
        let message = error(raw.clone()).to_string();
        assert!(message.contains(expected), "{raw}: {message}");
    }
}

/// AutoAWQ's one scale for the input of all experts, the shared one among them (`awq/models/qwen2_moe.py`).
#[test]
fn qwen2_moe_scales_its_shared_expert_with_the_others() {
    let decoder = Fixture::read("qwen2-moe-tiny").open::<Cpu>().unwrap();
    let labels = |block_idx: usize| -> Vec<String> {
        decoder.layout(block_idx).scale_groups.iter().map(awq_core::model::ScaleGroup::label).collect()
    };
    assert!(labels(0).contains(&"mlp.gate_proj+mlp.up_proj".to_owned()), "{:?}", labels(0));
    let all = "mlp.experts.*.gate_proj+mlp.experts.*.up_proj+mlp.shared_expert.gate_proj+mlp.shared_expert.up_proj";
    let layout = decoder.layout(1);
    let group = layout.scale_groups.iter().find(|group| group.label() == all).unwrap();
    let followers: Vec<&str> = group.followers.iter().map(|name| name.0).collect();
    assert_eq!((group.linears.len(), followers), (10, vec!["mlp.gate", "mlp.shared_expert_gate"]));
    assert_eq!(labels(1).last().unwrap(), "mlp.shared_expert.down_proj");
}

/// The layout is that of `awq/models/mixtral.py` in AutoAWQ, and the router beside it.
#[test]
fn mixtral_table_is_that_of_autoawq() {
    let decoder = Fixture::read("mixtral-tiny").open::<Cpu>().unwrap();
    let layout = decoder.layout(1);
    let groups: Vec<String> = layout
        .scale_groups
        .iter()
        .map(|group| format!("{:?} -> {} of {}", group.prev_op, group.label(), group.input))
        .collect();
    let expert = |expert: usize| {
        let name = |linear: &str| format!("block_sparse_moe.experts.{expert}.{linear}");
        format!("Linear(LinearName({:?})) -> {} of {}", name("w3"), name("w2"), name("w2"))
    };
    let mut expected = vec![
        "Norm(NormName(\"input_layernorm\")) -> self_attn.q_proj+self_attn.k_proj+self_attn.v_proj of self_attn.q_proj".into(),
        "Linear(LinearName(\"self_attn.v_proj\")) -> self_attn.o_proj of self_attn.o_proj".into(),
        "Norm(NormName(\"post_attention_layernorm\")) -> block_sparse_moe.experts.*.w1+block_sparse_moe.experts.*.w3 of \
         block_sparse_moe.gate"
            .into(),
    ];
    expected.extend((0..4).map(expert));
    assert_eq!(groups, expected);
    assert_eq!(layout.scale_groups[2].linears.len(), 8);
    assert_eq!(layout.scale_groups[2].followers, [awq_core::model::LinearName("block_sparse_moe.gate")]);
}

//! Every family against PyPI's transformers, on the checkpoints that `scripts/make-fixtures.py` made with it.

use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{Awq, ClipStep};
use awq_core::backend::float_vec;
use awq_core::decode::{DecodeModel, DecodeOptions, Session};
use awq_core::driver::{Calibration, Job, Propagation, quantize_model};
use awq_core::fold::fold;
use awq_core::load::{Checkpoint, ModelConfig};
use awq_core::method::QuantMethod;
use awq_core::model::packing::{PackedSequences, Packing};
use awq_core::model::{Decoder, NoTap, PrevOp, ScaleGroup, open_decoder, wiring_of};
use burn::tensor::Tensor;
use serde_json::{Value as Json, json};

use crate::fixture::{FAMILIES, Fixture, folder, renamed};
use crate::support::{Cpu, check_close, grid, group, no_search, numbers, official_awq, tensor};

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_fixture_is_tested() {
    let entries = std::fs::read_dir(folder("")).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, FAMILIES);
}

#[test]
fn logits_are_those_of_transformers() {
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        let difference = largest_difference(&fixture.run::<Cpu>(), &fixture.logits);
        // `--nocapture` shows them: results/families.md has what came out.
        println!("| {name} | {difference:.1e} |");
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
    }
}

/// In one row of tokens, the beginning of each sequence beside the whole.
#[test]
fn packed_sequences_have_the_logits_of_transformers() {
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        let whole = fixture.ids.iter().map(Vec::as_slice);
        let begun = fixture.ids.iter().map(|ids| &ids[..ids.len() / 2]);
        let packing = Packing::of(whole.zip(begun).flat_map(|(whole, begun)| [begun, whole]));
        let n_tokens: usize = fixture.ids.iter().map(Vec::len).sum();
        assert!(packing.tokens().len() <= n_tokens, "{name}: beginnings are not shared");
        let on_device = PackedSequences::<Cpu>::new(&packing, &Default::default());
        let decoder = fixture.open::<Cpu>().unwrap();
        let mut hidden = decoder.embedding().unwrap().embed_packed(&packing);
        for block_idx in 0..fixture.config.n_blocks {
            hidden = decoder.block(block_idx).unwrap().forward_packed(hidden, &on_device);
        }
        let normed = decoder.final_norm(hidden);
        let [_, n_rows, width] = normed.dims();
        let rows = normed.reshape([n_rows, width]);
        let logits = float_vec(decoder.head(Arithmetic::F32).unwrap().logits(rows));
        let vocab = fixture.config.vocab_size;
        let of_token = |row: &usize| &logits[row * vocab..][..vocab];
        let of_whole = packing.sequences().iter().skip(1).step_by(2);
        let packed: Vec<f32> = of_whole.flatten().flat_map(of_token).copied().collect();
        let difference = largest_difference(&packed, &fixture.logits);
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
    }
}

/// All scales of all blocks at once, each into the previous op that the family's table names.
#[test]
fn folding_keeps_logits() {
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        let folded = fixture.run_changed::<Cpu>(|block| {
            let mut params = block.params().clone();
            for group in &block.layout().scale_groups {
                let [_, n_in] = params.linear(group.linears[0]).weight.dims();
                let scale: Vec<f32> = numbers(n_in, 5).iter().map(|x| 16_f32.powf(*x)).collect();
                let scale: Tensor<Cpu, 1> = tensor(&scale, [n_in]);
                params = fold(params, group, &scale);
            }
            block.with_params(params)
        });
        check_close(name, &folded, &fixture.logits, 1e-4);
    }
}

#[test]
fn each_step_of_awq_brings_blocks_closer() {
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        let decoder = fixture.open::<Cpu>().unwrap();
        let calibration = Calibration { sequences: &fixture.ids, propagation: Propagation::FullPrecision };
        let methods: [&dyn QuantMethod<Cpu>; 3] = [&no_search(), &scale_only, &official_awq()];
        let jobs = methods.map(|method| Job { method, grids: grid(3, group(16)).into() });
        let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
        let [plain, scaled, both] = <[_; 3]>::try_from(pass.models).unwrap().map(|model| model.unwrap().logs);
        for ((plain, scaled), both) in plain.iter().zip(&scaled).zip(&both) {
            let labels = decoder.layout(scaled.block_idx).scale_groups.iter().map(ScaleGroup::label);
            assert!(scaled.scale_searches.iter().map(|search| search.group.clone()).eq(labels), "{name}: {scaled:?}");
            assert!(scaled.scale_searches.iter().all(|search| search.loss_after <= search.loss_before), "{name}");
            let [plain, scaled, both] = [plain, scaled, both].map(|log| log.output_mse.unwrap());
            assert!(both < scaled && scaled < plain, "{name}: {both}, {scaled}, {plain}");
        }
    }
}

/// The groups, what judges them and where their scales go are those of the official AWQ code; it clips all but q and k.
#[test]
fn opt_table_is_that_of_the_official_code() {
    use awq_core::model::{Inspect, LinearName, NormName};
    let decoder = Fixture::read("opt-tiny").open::<Cpu>().unwrap();
    let layout = decoder.layout(0);
    let groups: Vec<_> =
        layout.scale_groups.iter().map(|group| (group.label(), group.prev_op, group.inspect)).collect();
    let (norm, linear) = (|name| PrevOp::Norm(NormName(name)), |name| PrevOp::Linear(LinearName(name)));
    assert_eq!(
        groups,
        [
            (
                "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj".to_owned(),
                norm("self_attn_layer_norm"),
                Inspect::Attention
            ),
            ("self_attn.out_proj".into(), linear("self_attn.v_proj"), Inspect::Linear),
            ("fc1".into(), norm("final_layer_norm"), Inspect::Linear),
            ("fc2".into(), linear("fc1"), Inspect::Linear),
        ]
    );
    let clipped: Vec<&str> = layout.linears.iter().filter(|facts| facts.clips).map(|facts| facts.name.0).collect();
    assert_eq!(clipped, ["self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"]);
}

/// Hidden states behind the last block.
fn hidden(decoder: &dyn Decoder<Cpu>, fixture: &Fixture) -> Vec<f32> {
    let mut hidden = decoder.embedding().unwrap().embed(&fixture.ids);
    for block_idx in 0..fixture.config.n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    float_vec(hidden)
}

/// By way of its tensors, scales behind activations and parts of fused tensors among them.
#[test]
fn quantized_models_decode_as_their_blocks_do() {
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    for name in FAMILIES {
        let mut fixture = Fixture::read(name);
        let decoder = fixture.open::<Cpu>().unwrap();
        let calibration = Calibration { sequences: &fixture.ids, propagation: Propagation::FullPrecision };
        let jobs = [Job { method: &scale_only, grids: grid(4, group(16)).into() }];
        let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
        let model = pass.models.into_iter().next().unwrap().unwrap();
        let base = Arc::new(fixture.checkpoint.clone());
        let wiring = wiring_of(&fixture.config, base.as_ref()).unwrap();
        let checkpoint = Arc::new(model.into_checkpoint(&wiring, base));
        let opened = open_decoder::<Cpu>(fixture.config.clone(), checkpoint.clone(), &Default::default()).unwrap();
        let over = decoder.over(checkpoint.clone()).unwrap();
        assert!(hidden(over.as_ref(), &fixture) == hidden(opened.as_ref(), &fixture), "{name}: opened, it is another");

        // As a folder would have it, that was written and is opened.
        let quantized = wiring_of(&fixture.config, checkpoint.as_ref()).unwrap();
        let names: Vec<String> = quantized.tensors(&fixture.config).into_keys().collect();
        let decode = DecodeModel::load(fixture.config.clone(), checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap();
        let mut session = Session::new(&decode, fixture.ids[0].len()).unwrap();
        let mut found = session.feed_each(&fixture.ids[0][..10]).unwrap();
        fixture.ids[0][10..].iter().for_each(|&id| found.extend(session.feed_each(&[id]).unwrap()));
        fixture.checkpoint =
            renamed(checkpoint.as_ref(), |name| names.contains(&name.to_owned()).then(|| name.to_owned()));
        let expected = fixture.run::<Cpu>();
        check_close(name, &found, &expected[..found.len()], 1e-4);
        assert!(largest_difference(&expected, &fixture.logits) > 1e-3, "{name}: nothing was rounded");
    }
}

/// The scale groups of a block: where the inverse goes, what is scaled, what judges.
fn groups(name: &str) -> Vec<String> {
    let decoder = Fixture::read(name).open::<Cpu>().unwrap();
    let group = |group: &ScaleGroup| {
        let prev_op = match group.prev_op {
            PrevOp::Norm(norm) => norm.0,
            PrevOp::Linear(linear) => linear.0,
        };
        format!("{prev_op} -> {} by {:?}", group.label(), group.inspect)
    };
    decoder.layout(0).scale_groups.iter().map(group).collect()
}

/// AutoAWQ's groups (`awq/models/gemma2.py`, `awq/models/phi3.py`), with the parts of fused tensors in their place.
#[test]
fn scales_go_where_the_tables_of_families_say() {
    const QKV: &str = "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj";
    for (name, expected) in [
        (
            "gemma2-tiny",
            vec![
                format!("input_layernorm -> {QKV} by Attention"),
                "pre_feedforward_layernorm -> mlp.gate_proj+mlp.up_proj by Mlp".into(),
                "mlp.up_proj -> mlp.down_proj by Linear".into(),
            ],
        ),
        // Nothing before q, k, v, gate and up takes a scale.
        ("olmo2-tiny", vec!["mlp.up_proj -> mlp.down_proj by Linear".into()]),
        (
            "phi3-long",
            vec![
                "input_layernorm -> self_attn.qkv_proj.q+self_attn.qkv_proj.k+self_attn.qkv_proj.v by Attention".into(),
                "self_attn.qkv_proj.v -> self_attn.o_proj by Linear".into(),
                "post_attention_layernorm -> mlp.gate_up_proj.gate+mlp.gate_up_proj.up by Mlp".into(),
                "mlp.gate_up_proj.up -> mlp.down_proj by Linear".into(),
            ],
        ),
        (
            "falcon-7b-tiny",
            vec![
                "input_layernorm -> self_attention.query_key_value.q+self_attention.query_key_value.k+\
                 self_attention.query_key_value.v+mlp.dense_h_to_4h by Both"
                    .into(),
                "mlp.act -> mlp.dense_4h_to_h by Linear".into(),
            ],
        ),
        (
            "neox-tiny",
            vec![
                "input_layernorm -> attention.query_key_value.q+attention.query_key_value.k+attention.query_key_value.v by \
                 Attention"
                    .into(),
                "post_attention_layernorm -> mlp.dense_h_to_4h by Mlp".into(),
                "mlp.act -> mlp.dense_4h_to_h by Linear".into(),
            ],
        ),
        (
            "gpt2-tiny",
            vec![
                "ln_1 -> attn.c_attn.q+attn.c_attn.k+attn.c_attn.v by Attention".into(),
                "attn.c_attn.v -> attn.c_proj.transposed by Linear".into(),
                "ln_2 -> mlp.c_fc.transposed by Mlp".into(),
                "mlp.act -> mlp.c_proj.transposed by Linear".into(),
            ],
        ),
        (
            "mpt-tiny",
            vec![
                "norm_1 -> attn.Wqkv.q+attn.Wqkv.k+attn.Wqkv.v by Attention".into(),
                "attn.Wqkv.v -> attn.out_proj by Linear".into(),
                "norm_2 -> ffn.up_proj by Mlp".into(),
                "ffn.act -> ffn.down_proj by Linear".into(),
            ],
        ),
        // As in Falcon 7B, one norm feeds both modules.
        (
            "stablelm-parallel",
            vec![
                format!("input_layernorm -> {QKV}+mlp.gate_proj+mlp.up_proj by Both"),
                "self_attn.v_proj -> self_attn.o_proj by Linear".into(),
                "mlp.up_proj -> mlp.down_proj by Linear".into(),
            ],
        ),
    ] {
        assert_eq!(groups(name), expected, "{name}");
    }
}

/// Each key that a family reads itself moves the logits.
#[test]
fn keys_of_one_family_matter() {
    for (name, key, value) in [
        ("granite-tiny", "embedding_multiplier", json!(2.0)),
        ("granite-tiny", "attention_multiplier", json!(1.0)),
        ("granite-tiny", "residual_multiplier", json!(1.0)),
        ("granite-tiny", "logits_scaling", json!(1.0)),
        ("smollm3-tiny", "no_rope_layers", json!([1, 1, 1])),
        ("smollm3-tiny", "no_rope_layers", json!([0, 0])),
        ("stablelm-parallel", "hidden_act", json!("relu")),
        ("qwen2-moe-tiny", "norm_topk_prob", json!(true)),
        ("qwen3-moe-tiny", "norm_topk_prob", json!(false)),
        ("qwen3-moe-tiny", "num_experts_per_tok", json!(1)),
    ] {
        let mut fixture = Fixture::read(name);
        fixture.config.raw[key] = value;
        assert!(largest_difference(&fixture.run::<Cpu>(), &fixture.logits) > 0.01, "{name}: {key}");
    }
    check_refused(
        "falcon-7b-tiny",
        "num_ln_in_parallel_attn",
        json!(2),
        "2, expected 1, or 2 with \"new_decoder_architecture\": others do not run in transformers",
    );
    check_refused(
        "falcon-40b-tiny",
        "parallel_attn",
        json!(false),
        "false, but models with \"new_decoder_architecture\" have modules side by side; set it to true",
    );
    let fixed = |found: &str, expected: &str| {
        format!("{found}, expected {expected}: other models of this class are not supported")
    };
    check_refused("bloom-tiny", "apply_residual_connection_post_layernorm", json!(true), &fixed("true", "false"));
    check_refused("mpt-tiny", "expansion_ratio", json!(2), &fixed("2", "4"));
    let mut fixture = Fixture::read("mpt-tiny");
    fixture.config.raw["attn_config"]["clip_qkv"] = json!(6.0);
    let message = fixture.open::<Cpu>().err().unwrap().to_string();
    assert_eq!(message, format!("config.json: key \"attn_config.clip_qkv\": {}", fixed("6.0", "null")));
    check_refused("qwen2-moe-tiny", "mlp_only_layers", json!("0"), "\"0\", expected a list of block indices");
    // Without a list all but each fourth block, or each so many-th.
    let mut fixture = Fixture::read("smollm3-tiny");
    fixture.config.raw["no_rope_layers"] = json!(null);
    fixture.config.raw["no_rope_layer_interval"] = json!(2);
    assert!(largest_difference(&fixture.run::<Cpu>(), &fixture.logits) < 1e-4);
    check_refused("smollm3-tiny", "no_rope_layers", json!([1]), "[1], expected 0 or 1 for each of 2 blocks");
    check_refused("granite-tiny", "logits_scaling", json!(null), "null, expected a positive number");
}

const POSITIONS: &str = "model.decoder.embed_positions.weight";

/// Row `p + 2` is position `p`'s: rows 0 and 1 are never read, and a table that is off by two gives other logits.
#[test]
fn opt_positions_count_from_an_offset_of_two() {
    let mut fixture = Fixture::read("opt-tiny");
    let expected = fixture.run::<Cpu>();
    let (table, width) = (fixture.checkpoint.read_f32(POSITIONS).unwrap(), fixture.config.hidden_size);
    let shape = [table.len() / width, width];

    let mut first_rows_changed = table.clone();
    first_rows_changed[..2 * width].fill(1e3);
    fixture.checkpoint.insert(POSITIONS, &shape, first_rows_changed);
    assert_eq!(fixture.run::<Cpu>(), expected);

    let mut shifted = table;
    shifted.rotate_left(2 * width);
    fixture.checkpoint.insert(POSITIONS, &shape, shifted);
    assert!(largest_difference(&fixture.run::<Cpu>(), &expected) > 0.1);
}

#[test]
fn opt_checkpoints_saved_without_a_head_have_shorter_names() {
    let mut fixture = Fixture::read("opt-tiny");
    let expected = fixture.run::<Cpu>();
    fixture.checkpoint = renamed(&fixture.checkpoint, |name| Some(name.trim_start_matches("model.").to_owned()));
    assert!(fixture.checkpoint.shape("decoder.layers.0.fc1.weight").is_some());
    assert_eq!(fixture.run::<Cpu>(), expected);
}

#[test]
fn opt_head_of_its_own_is_used() {
    let mut fixture = Fixture::read("opt-tiny");
    let embedding = fixture.checkpoint.read_f32("model.decoder.embed_tokens.weight").unwrap();
    let doubled = embedding.iter().map(|w| 2.0 * w).collect();
    let expected: Vec<f32> = fixture.run::<Cpu>().iter().map(|logit| 2.0 * logit).collect();
    fixture.checkpoint.insert("lm_head.weight", &[fixture.config.vocab_size, fixture.config.hidden_size], doubled);
    // Whether the configuration ties it or not: a head that is stored is used.
    for tie_word_embeddings in [true, false] {
        fixture.config.tie_word_embeddings = tie_word_embeddings;
        assert!(fixture.run::<Cpu>() == expected, "tie_word_embeddings = {tie_word_embeddings}");
    }
}

#[test]
fn opt_without_biases_is_opt_with_biases_of_zero() {
    let mut fixture = Fixture::read("opt-tiny");
    let is_linear_bias =
        |name: &str| name.ends_with("_proj.bias") || name.ends_with("fc1.bias") || name.ends_with("fc2.bias");
    let without = renamed(&fixture.checkpoint, |name| (!is_linear_bias(name)).then(|| name.to_owned()));
    for name in fixture.checkpoint.names().iter().filter(|name| is_linear_bias(name)) {
        let shape = fixture.checkpoint.shape(name).unwrap();
        fixture.checkpoint.insert(name, &shape, vec![0.0; shape[0]]);
    }
    let expected = fixture.run::<Cpu>();
    assert!(largest_difference(&expected, &fixture.logits) > 0.1);

    fixture.checkpoint = without;
    for attention_bias in [true, false] {
        fixture.config.attention_bias = attention_bias;
        assert!(fixture.run::<Cpu>() == expected, "attention_bias = {attention_bias}");
    }
}

#[track_caller]
fn check_refused(name: &str, key: &str, value: Json, problem: &str) {
    let mut fixture = Fixture::read(name);
    fixture.config.raw[key] = value;
    let message = fixture.open::<Cpu>().err().unwrap().to_string();
    assert_eq!(message, format!("config.json: key {key:?}: {problem}"));
}

#[test]
fn other_models_of_a_known_class_are_refused() {
    let other = |found: &str, expected: &str| {
        format!("{found}, expected {expected}: other models of this class are not supported")
    };
    check_refused("opt-tiny", "word_embed_proj_dim", json!(-16), "-16, expected a positive integer");
    check_refused("opt-tiny", "activation_function", json!("gelu"), &other("\"gelu\"", "\"relu\""));
    check_refused("opt-tiny", "layer_norm_elementwise_affine", json!(false), &other("false", "true"));
    for name in ["llama-tiny", "mistral-tiny", "qwen2-tiny"] {
        check_refused(name, "hidden_act", json!("gelu"), &other("\"gelu\"", "\"silu\""));
    }
}

#[test]
fn what_gemma_cannot_compute_is_refused() {
    check_refused("gemma2-tiny", "query_pre_attn_scalar", json!(null), "null, expected a positive number");
    check_refused("gemma2-tiny", "final_logit_softcapping", json!(-1), "-1, expected a positive number or null");
    check_refused(
        "gemma3-tiny",
        "hidden_activation",
        json!("mish"),
        "\"mish\", expected one of relu, silu, swish, gelu, gelu_new, gelu_pytorch_tanh",
    );
    check_refused(
        "gemma-tiny",
        "hidden_activation",
        json!("gelu"),
        "expected \"gelu_pytorch_tanh\" or null: transformers 5 does not look at it",
    );
}

/// Each part of a Gemma that other families lack moves its logits.
#[test]
fn caps_scales_and_bases_of_gemma_matter() {
    for (name, key, value) in [
        ("gemma2-tiny", "attn_logit_softcapping", json!(null)),
        ("gemma2-tiny", "final_logit_softcapping", json!(null)),
        ("gemma2-tiny", "query_pre_attn_scalar", json!(12)),
    ] {
        let mut fixture = Fixture::read(name);
        fixture.config.raw[key] = value;
        assert!(largest_difference(&fixture.run::<Cpu>(), &fixture.logits) > 0.01, "{name}: {key}");
    }
    let mut fixture = Fixture::read("gemma3-tiny");
    fixture.config.local_rope = None;
    assert!(largest_difference(&fixture.run::<Cpu>(), &fixture.logits) > 0.01);
}

/// As the first checkpoints of GPT-2 were saved.
#[test]
fn gpt2_checkpoints_saved_without_a_head_have_shorter_names() {
    let mut fixture = Fixture::read("gpt2-tiny");
    let expected = fixture.run::<Cpu>();
    fixture.checkpoint = renamed(&fixture.checkpoint, |name| Some(name.trim_start_matches("transformer.").to_owned()));
    assert!(fixture.checkpoint.shape("h.0.mlp.c_fc.transposed.weight").is_some());
    assert_eq!(fixture.run::<Cpu>(), expected);
}

/// What the first Gemma's files call `gelu` is the formula with a tangent.
#[test]
fn gemmas_first_name_of_its_activation_is_known() {
    let mut fixture = Fixture::read("gemma-tiny");
    fixture.config.raw["hidden_act"] = json!("gelu");
    assert!(largest_difference(&fixture.run::<Cpu>(), &fixture.logits) < 1e-4);
}

#[test]
fn opt_heads_that_do_not_fill_the_width_are_refused() {
    let mut fixture = Fixture::read("opt-tiny");
    fixture.config = ModelConfig { n_heads: 3, n_kv_heads: 3, head_dim: 10, ..fixture.config };
    assert_eq!(
        fixture.open::<Cpu>().err().unwrap().to_string(),
        "config.json: key \"num_attention_heads\": 3, expected a divisor of hidden_size, 32"
    );
}

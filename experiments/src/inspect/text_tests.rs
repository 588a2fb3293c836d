//! Facts as they are shown.

use insta::assert_snapshot;
use serde_json::json;

use super::super::{FailedCell, Parameters};
use super::*;

fn model() -> ModelFacts {
    let row = |name: &str, shape, count, n_groups, ragged| LinearRow {
        name: name.into(),
        shape,
        grid: Some("W4 g100".into()),
        count,
        n_groups,
        ragged,
    };
    let stage = |work: &str, bytes, holds: &str| Stage { work: work.into(), bytes, holds: holds.into() };
    ModelFacts {
        name: "model".into(),
        files: "Hugging Face folder",
        bytes_on_disk: 93_000_000_000,
        architecture: "MixtralForCausalLM".into(),
        family: Some("mixtral"),
        shapes: Shapes {
            hidden_size: 4096,
            intermediate_size: 14_336,
            n_blocks: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            vocab_size: 32_000,
            context: 131_072,
            has_tied_head: false,
            n_experts: 8,
            n_active_experts: Some(2),
        },
        parameters: Parameters { total: 1000, quantized: 700, embedding: 140, head: 140, other: 20 },
        stored: vec![StoredAs { name: "BF16".into(), n_tensors: 995, n_values: 1000, bits_per_value: Some(16.0) }],
        packed: None,
        quantized_by: None,
        quantization: GridFacts {
            grid: "W4 g100".into(),
            linears: vec![
                row("self_attn.q_proj", [4096, 4096], 32, 41, Some(96)),
                row("block_sparse_moe.experts.*.w1", [14_336, 4000], 256, 40, None),
            ],
            bits_per_weight: 4.2,
            packed_bytes: 24_000_000_000,
            scale_groups: vec!["self_attn.q_proj".into()],
            unscaled: vec!["block_sparse_moe.experts.*.w1".into()],
        },
        memory: vec![
            stage("reading a block", 5_600_000_000, "the largest block in f32"),
            stage("scoring", 7_900_000_000, "block, embedding, head, states, logits"),
        ],
        tokenizer: TokenizerFacts {
            kind: "BPE",
            vocab_size: 32_000,
            n_special: 3,
            bos: Some("<s>".into()),
            eos: None,
            adds_bos: true,
            adds_suffix: false,
        },
        has_chat_template: true,
        notes: vec!["a note".into()],
        unsupported: Vec::new(),
    }
}

#[test]
fn a_model_is_a_page() {
    assert_snapshot!(model().text(), @r#"
    model: Hugging Face folder, 93.0 GB

    architecture  MixtralForCausalLM (mixtral)
    shapes        32 blocks of 4,096 channels, 14,336 inside the feed-forward module
                  32 heads of 128 channels, 8 of keys and values
                  vocabulary 32,000, context 131,072
                  8 experts a block, 2 for each token
    parameters    1,000  all
                    700  linears that methods quantize
                    140  embedding
                    140  head
                     20  norms, biases and the rest
    stored as     BF16  995 tensors  1,000 values  16.00 bits each

    W4 g100       linear                           out    in  how many  groups a row
                  self_attn.q_proj                4096  4096        32  41, ragged: the last has 96 weights
                  block_sparse_moe.experts.*.w1  14336  4000       256  40
                  4.200 bits a weight with scales and zero points, about 24.0 GB packed on disk
    AWQ scales    self_attn.q_proj
                  none for block_sparse_moe.experts.*.w1

    memory        about, on a CPU; buffers of kernels are not counted
                  reading a block  5.6 GB  the largest block in f32
                  scoring          7.9 GB  block, embedding, head, states, logits

    tokenizer     BPE, 32,000 tokens, 3 of them special
                  BOS "<s>", no EOS; puts BOS before a text
    chat template yes
    notes         a note
    "#);
}

#[test]
fn a_packed_folder_says_how_it_was_made() {
    let packed = PackedFacts {
        method: "AWQ".into(),
        settings: json!({ "awq": {} }),
        grids: "W4 g100 (*.down_proj W8 g100)".into(),
        bits_per_weight: 4.25,
        calibration: None,
        commit: "0123abc".into(),
        codes_sha256: "ff00".into(),
    };
    let text = ModelFacts { packed: Some(packed), ..model() }.text();
    let (_, after) = text.split_once("16.00 bits each\n\n").expect("the linears come after the types");
    let (quantized, _) = after.split_once("AWQ scales").expect("the scales come after the linears");
    assert_snapshot!(quantized, @r#"
    quantized     AWQ W4 g100 (*.down_proj W8 g100)
                  settings {"awq":{}}
                  without calibration
                  by commit 0123abc
                  codes ff00

    W4 g100       linear                           out    in  how many  groups a row
                  self_attn.q_proj                4096  4096        32  41, ragged: the last has 96 weights
                  block_sparse_moe.experts.*.w1  14336  4000       256  40
                  4.250 bits a weight with scales and zero points
    "#);
}

#[test]
fn what_does_not_open_and_results_are_pages_too() {
    let unreadable = UnreadableFacts {
        name: "model".into(),
        architecture: Some("MambaForCausalLM".into()),
        model_type: None,
        quantized_by: Some("gptq: bits 4".into()),
        error: "config.json: no".into(),
    };
    assert_snapshot!(unreadable.text(), @r"
    model: does not open

    architecture  MambaForCausalLM
    quantized by  gptq: bits 4
    unsupported   config.json: no
    ");
    let failed = FailedCell { cell: "tiny AWQ W4 g32".into(), stage: "quantize", error: "no text".into() };
    let results = RecordsFacts {
        name: "out".into(),
        question: Some("Why?".into()),
        n_asked: Some(4),
        n_finished: 2,
        failed: vec![failed],
        n_others: 1,
        models: vec!["tiny".into()],
        methods: vec!["FP".into(), "RTN W4 g32".into()],
        measured: vec!["token_perplexity on wikitext2-test".into()],
        commits: vec!["0123abc".into()],
        devices: vec!["flex".into()],
        unix_times: Some((0, 86_460)),
        notes: Vec::new(),
    };
    assert_snapshot!(results.text(), @r"
    out: results of an experiment

    question      Why?
    cells         4 asked, 2 finished, 1 failed, 1 on record that are not asked for
    models        tiny
    methods       FP, RTN W4 g32
    measured      token_perplexity on wikitext2-test
    commits       0123abc
    devices       flex
    made          1970-01-01 00:00 UTC to 1970-01-02 00:01 UTC
    failed        tiny AWQ W4 g32, quantize: no text
    ");
}

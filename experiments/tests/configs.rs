//! Every experiment file of this repository parses, plans and tells editors where its schema is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use experiments::config::{ExperimentSpec, json_schema};
use experiments::device;
use experiments::plan::{Plan, passes};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every TOML file below `configs`, with the number of folders between them.
fn config_files() -> Vec<(PathBuf, usize)> {
    let mut files = Vec::new();
    let mut folders = vec![(root().join("configs"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push((path, depth + 1));
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                files.push((path, depth));
            }
        }
    }
    files.sort();
    assert!(files.len() >= 5, "only {} experiment files found", files.len());
    files
}

#[test]
fn every_file_parses_and_plans() {
    for (path, _) in config_files() {
        let spec = ExperimentSpec::read(&path).unwrap_or_else(|error| panic!("{error:#}"));
        if let Err(error) = device::check(&spec.run.device, spec.run.precision) {
            // A GPU that this program or this machine lacks is no mistake of the file.
            let is_gpu = ["cuda", "wgpu"].iter().any(|gpu| spec.run.device.starts_with(gpu));
            assert!(is_gpu && !format!("{error}").contains("unknown"), "{}: {error:#}", path.display());
        }
        let plan = Plan::new(&spec);
        let n_runs: usize = spec.methods.iter().map(|entry| spec.calibrations_of(entry).len()).sum();
        let n_quantized = spec.models.len() * n_runs * spec.grids.as_ref().map_or(0, |grids| grids.grids().len());
        let n_full = if spec.evaluations.is_empty() { 0 } else { spec.models.len() };
        assert_eq!(plan.cells().count(), n_full + n_quantized, "{}", path.display());
        assert!(plan.describe().starts_with(&format!("Question: {}\n", spec.question)));
    }
}

#[test]
fn passes_serve_every_cell_once_and_split_no_grid() {
    for (path, _) in config_files() {
        for model in Plan::new(&ExperimentSpec::read(&path).unwrap()).models {
            let passes = passes(&model.cells);
            let mut served: Vec<_> = passes.iter().flatten().map(|cell| cell.id()).collect();
            served.sort();
            let mut asked: Vec<_> =
                model.cells.iter().filter(|cell| cell.quantization.is_some()).map(|cell| cell.id()).collect();
            asked.sort();
            assert_eq!(served, asked, "{}", path.display());
            let mut of_grid = BTreeMap::new();
            for (index, pass) in passes.iter().enumerate() {
                let parts: Vec<_> = pass.iter().filter_map(|cell| cell.quantization.as_ref()).collect();
                assert!(parts.windows(2).all(|pair| pair[0].calibration == pair[1].calibration), "{}", path.display());
                let one_grid = parts.windows(2).all(|pair| pair[0].grid == pair[1].grid);
                assert!(parts.len() <= 16 || one_grid, "{}: {} cells in a pass", path.display(), parts.len());
                for part in parts {
                    let before = of_grid.insert((part.calibration.clone(), part.grid), index);
                    assert!(before.is_none_or(|before| before == index), "{}: a grid is split", path.display());
                }
            }
        }
    }
}

#[test]
fn every_file_names_the_schema_in_its_first_line() {
    for (path, depth) in config_files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let up = if depth == 0 { "./".to_owned() } else { "../".repeat(depth) };
        let expected = format!("#:schema {up}experiment.schema.json");
        assert_eq!(text.lines().next(), Some(expected.as_str()), "{}", path.display());
    }
}

#[test]
fn the_schema_file_is_that_of_the_types() {
    let path = root().join("configs/experiment.schema.json");
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == json_schema(),
        "configs/experiment.schema.json is not what the types say; write it again:\n\
         cargo run --release -p experiments -- schema > configs/experiment.schema.json"
    );
}

/// A published number that no cell can match would only ever be a footnote.
#[test]
fn every_published_number_stands_beside_a_cell() {
    for (path, _) in config_files() {
        let spec = ExperimentSpec::read(&path).unwrap();
        let plan = Plan::new(&spec);
        for reference in &spec.references {
            let matches = plan.cells().any(|cell| {
                let grid = reference.grid.as_deref().unwrap_or_default();
                let same_method = grid.is_empty() || cell.method_label() == reference.method;
                let calibration = cell.quantization.as_ref().and_then(|q| q.calibration_name.as_ref());
                let same_calibration = reference.calibration.is_none() || reference.calibration.as_ref() == calibration;
                cell.model.name == reference.model && cell.grid_label() == grid && same_method && same_calibration
            });
            assert!(matches, "{}: no cell for the published {reference:?}", path.display());
        }
    }
}

#[test]
fn the_quickstart_plans_these_cells() {
    let spec = ExperimentSpec::read(&root().join("configs/quickstart.toml")).unwrap();
    insta::assert_snapshot!(Plan::new(&spec).describe(), @"
    Question: How much does AWQ recover of what rounding to 3 and 2 bits costs a small language model?

    a10ac21cc05649cc  bundled-3M FP                  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    fc3fadeeac238665  bundled-3M RTN W3 per-channel  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    a5a454e53fdd2df4  bundled-3M AWQ W3 per-channel  scores about 32k tokens, roughly 6 s on a 200 GFLOP/s CPU
    a99b2a293215bc66  bundled-3M RTN W2 per-channel  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    30c85201221a3b85  bundled-3M AWQ W2 per-channel  scores about 32k tokens, roughly 6 s on a 200 GFLOP/s CPU
    c261c51b3e24a197  bundled-3M RTN W3 g128         scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    af83dea448f88dab  bundled-3M AWQ W3 g128         scores about 32k tokens, roughly 6 s on a 200 GFLOP/s CPU
    86bf12721fcc3f58  bundled-3M RTN W2 g128         scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    33caa282d3f8cc59  bundled-3M AWQ W2 g128         scores about 32k tokens, roughly 6 s on a 200 GFLOP/s CPU

    9 cells of 1 model(s).
    bundled-3M: 3M parameters by its name, 11 MiB in f32. Needs about 9 MiB (one block in f32 and the packed results of a pass) and up to 2 GiB of hidden states and logits.
    ");
}

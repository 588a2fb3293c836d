//! Every experiment file of this repository parses, plans and tells editors where its schema is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use experiments::config::profile::{SlurmProfile, profile_schema};
use experiments::config::{ExperimentSpec, json_schema};
use experiments::device;
use experiments::plan::select::Shard;
use experiments::plan::{Plan, passes};
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every experiment's file below `configs`, with the number of folders between them.
fn config_files() -> Vec<(PathBuf, usize)> {
    let mut files = Vec::new();
    let mut folders = vec![(root().join("configs"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What clusters give tasks is no experiment.
                if !path.ends_with("profiles") {
                    folders.push((path, depth + 1));
                }
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
        let n_quantized = spec.models.len() * n_runs * spec.grids.as_ref().map_or(0, |grids| grids.rules().len());
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
fn shares_hold_every_cell_once_and_split_no_grid() {
    for (path, _) in config_files() {
        let plan = Plan::new(&ExperimentSpec::read(&path).unwrap());
        let mut share_of_cell = BTreeMap::new();
        let mut share_of_grid = BTreeMap::new();
        for index in 1..=3 {
            for cell in plan.clone().shard(Shard { index, n: 3 }).cells() {
                assert_eq!(share_of_cell.insert(cell.id(), index), None, "{}", path.display());
                let Some(part) = &cell.quantization else { continue };
                let grid = (cell.model.name.clone(), part.calibration.clone(), part.rule());
                let before = share_of_grid.insert(grid, index);
                assert!(before.is_none_or(|before| before == index), "{}: a grid is split", path.display());
            }
        }
        assert_eq!(share_of_cell.len(), plan.cells().count(), "{}", path.display());
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

#[test]
fn profiles_are_sound_and_their_schema_is_that_of_the_types() {
    let folder = root().join("configs/profiles");
    let profile = SlurmProfile::read(&folder.join("slurm.toml")).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(profile.max_tasks.get() > 1);
    let text = std::fs::read_to_string(folder.join("slurm.toml")).unwrap();
    assert_eq!(text.lines().next(), Some("#:schema ./slurm.schema.json"));
    // Every key is there, if only in a comment.
    let schema: serde_json::Value = serde_json::from_str(&profile_schema()).unwrap();
    for key in schema["properties"].as_object().unwrap().keys() {
        let is_said = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
        assert!(text.lines().any(is_said), "configs/profiles/slurm.toml does not show `{key}`");
    }
    let stored = std::fs::read_to_string(folder.join("slurm.schema.json")).unwrap_or_default();
    assert!(
        stored == profile_schema(),
        "configs/profiles/slurm.schema.json is not what the types say; write it again:\n\
         cargo run -p experiments -- schema slurm-profile > configs/profiles/slurm.schema.json"
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

/// First 8 hex digits of the sha256 of lines.
fn digest(lines: impl IntoIterator<Item = String>) -> String {
    let digest = Sha256::digest(lines.into_iter().collect::<Vec<_>>().join("\n"));
    digest.iter().take(4).fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").unwrap();
        digits
    })
}

/// Each file's cells (ids and labels, in their order), published numbers (in any order), and all else that it resolves to.
/// However a file is shortened, its line stays.
#[test]
fn every_file_resolves_to_the_plan_that_it_had_in_full() {
    let root = root().join("configs");
    let line = |(path, _): &(PathBuf, usize)| {
        let mut spec = ExperimentSpec::read(path).unwrap();
        let plan = Plan::new(&spec);
        let cells = digest(plan.cells().map(|cell| format!("{} {}", cell.id().0, cell.label())));
        let mut published: Vec<_> = spec.references.iter().map(|one| serde_json::to_string(one).unwrap()).collect();
        published.sort();
        let (n_cells, n_published, published) = (plan.cells().count(), published.len(), digest(published));
        spec.references.clear();
        let rest = digest([toml::to_string(&spec).unwrap()]);
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        format!("{name:38} {n_cells:3} {cells}  {n_published:2} {published}  {rest}")
    };
    let lines: Vec<_> = config_files().iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    gemma3-270m.toml                         9 9890e52c   0 e3b0c442  fe3b44f7
    gpu-synthetic.toml                       6 c88c64f0   0 e3b0c442  5bbbdfa9
    llama7b.toml                             5 ee7bd29e   5 08bfa7c3  921dea4b
    paper/calibration-length-bundled.toml   10 d2de81e4   0 e3b0c442  f293dd00
    paper/calibration-length-smollm2.toml   32 7b6c8cfe   0 e3b0c442  67ce57e0
    paper/figure10.toml                      0 e3b0c442   0 e3b0c442  133bd3ee
    paper/figure2.toml                       4 c1cdb785   3 8b757a67  4f48335e
    paper/figure3.toml                       0 e3b0c442   0 e3b0c442  bab1132d
    paper/figure8a-bundled.toml             14 99a4f477   0 e3b0c442  93ded52b
    paper/figure8a-smollm2.toml             38 97863ba6   0 e3b0c442  1c7821f0
    paper/figure8a.toml                     15 5bfb3be1  14 7509d83e  bc4a8fac
    paper/figure8b-bundled.toml              5 6042041b   0 e3b0c442  1f6c7ff7
    paper/figure8b-smollm2.toml             13 a94dd6e7   0 e3b0c442  bd454206
    paper/figure8b.toml                      5 2df5e1c2   8 376d964f  58861cdb
    paper/figure9.toml                       0 e3b0c442   0 e3b0c442  ce54a388
    paper/table1-bundled.toml               11 40cbb095   0 e3b0c442  6a4e2233
    paper/table1-smollm2.toml               17 d178035a   0 e3b0c442  1a51ad07
    paper/table1.toml                       33 3aa81e54  33 8d337723  069b1b95
    paper/table10.toml                       0 e3b0c442   0 e3b0c442  3901c6f1
    paper/table2-bundled.toml                6 f32b08c0   0 e3b0c442  92d02137
    paper/table2-smollm2.toml               16 5aa4ad7a   0 e3b0c442  4c8ee350
    paper/table2.toml                        6 3b91f972   5 348f7952  c04ac2b6
    paper/table3-bundled.toml                5 f9c38448   0 e3b0c442  134ec6ad
    paper/table3-smollm2.toml               11 ac61809a   0 e3b0c442  e5764de9
    paper/table3.toml                       25 4ed5d0ee  25 3548c52d  9619fc03
    paper/table4-bundled.toml               13 81366b28   0 e3b0c442  96f5362e
    paper/table4-smollm2.toml               21 2a18627a   0 e3b0c442  e1f43c35
    paper/table4.toml                       63 1bef6158  63 93473a85  e4cfc314
    paper/table5-bundled.toml                3 09c5ceb3   0 e3b0c442  e3f40977
    paper/table5-smollm2.toml                7 46b2a8ef   0 e3b0c442  4801399f
    paper/table5.toml                        6 e33711bb   6 e92e16e1  61761ef2
    paper/table8-gsm8k.toml                 12 388c3912  12 09569ded  529c9f19
    paper/table8-mbpp.toml                   4 e51b5bcf   8 6c77695b  a097a2a7
    paper/table8-smollm2.toml                5 8fe01a22   0 e3b0c442  edeb7657
    paper/table9-bundled.toml                4 92704632   0 e3b0c442  760e4a9b
    paper/table9-smollm2.toml                8 ae25c110   0 e3b0c442  1aa0c212
    paper/table9.toml                       20 ea8f3541  20 8b6fd6e2  96f5b683
    quickstart.toml                          9 780545ee   0 e3b0c442  2c52ceb5
    smollm2-gptq.toml                        5 e1382c8d   0 e3b0c442  ec7cbbd9
    smollm2-methods.toml                    52 281be141   0 e3b0c442  aca176c9
    smollm2-reference.toml                  11 a5300480   0 e3b0c442  24701550
    smollm2-registry.toml                    9 6e3c3673   0 e3b0c442  24649db0
    smollm2-sweep.toml                      19 987bf145   0 e3b0c442  c6739e03
    smollm2-tasks.toml                      41 a06c0f61   0 e3b0c442  4658ccc5
    smollm2-wikitext.toml                    5 98b40869   0 e3b0c442  2c1fbaa4
    smollm2.toml                             9 f96f02a2   0 e3b0c442  cc01598f
    speed-gpu-short.toml                     0 e3b0c442   0 e3b0c442  983e828f
    speed-gpu.toml                           0 e3b0c442   0 e3b0c442  a588afdd
    speed.toml                               0 e3b0c442   0 e3b0c442  68c627f4
    stories260k.toml                         7 26ed9993   0 e3b0c442  8ce8e2aa
    ");
}

#[test]
fn the_quickstart_plans_these_cells() {
    let spec = ExperimentSpec::read(&root().join("configs/quickstart.toml")).unwrap();
    insta::assert_snapshot!(Plan::new(&spec).describe(), @"
    Question: How much does AWQ recover of what rounding to 3 and 2 bits costs a small language model?

    a10ac21cc05649cc  bundled-3M FP                  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    fc3fadeeac238665  bundled-3M RTN W3 per-channel  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    a5a454e53fdd2df4  bundled-3M AWQ W3 per-channel  scores about 32k tokens, roughly 5 s on a 200 GFLOP/s CPU
    a99b2a293215bc66  bundled-3M RTN W2 per-channel  scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    30c85201221a3b85  bundled-3M AWQ W2 per-channel  scores about 32k tokens, roughly 5 s on a 200 GFLOP/s CPU
    c261c51b3e24a197  bundled-3M RTN W3 g128         scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    af83dea448f88dab  bundled-3M AWQ W3 g128         scores about 32k tokens, roughly 5 s on a 200 GFLOP/s CPU
    86bf12721fcc3f58  bundled-3M RTN W2 g128         scores about 32k tokens, roughly 1 s on a 200 GFLOP/s CPU
    33caa282d3f8cc59  bundled-3M AWQ W2 g128         scores about 32k tokens, roughly 5 s on a 200 GFLOP/s CPU

    9 cells of 1 model(s). In all roughly 26 s on a 200 GFLOP/s CPU, less what cells of one pass share.
    bundled-3M: 3M parameters by its name, 11 MiB in f32. Needs about 202 MiB (as much as 6 blocks in f32, and the program) and up to 2 GiB of hidden states and logits.
    ");
}

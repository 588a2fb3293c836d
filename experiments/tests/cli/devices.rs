//! `run --devices`: shares of an experiment in processes of their own.

use crate::support::{N_CELLS, Workshop};

#[test]
fn devices_that_share_an_experiment_give_what_one_gives() {
    let workshop = Workshop::new();
    workshop.finish("one", &[]);
    let arguments = ["experiment.toml", "--devices", "flex,flex", "--threads", "2", "--out", "two"];
    let ran = workshop.run(&arguments);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for said in
        ["flex: share 1/2, ", "flex: share 2/2, ", &format!("{N_CELLS} cells finished, 0 were on record, 0 failed")]
    {
        assert!(ran.stderr.contains(said), "no {said}: {}", ran.stderr);
    }
    assert_eq!(workshop.results("two"), workshop.results("one"), "bit for bit, and every log");
    assert_eq!(workshop.records("two").len(), N_CELLS, "each cell ran once");
    assert!(workshop.path("two/table.md").is_file() && !workshop.path("two/devices").exists());
    let again = workshop.run(&arguments);
    let said = format!("0 cells finished, {N_CELLS} were on record, 0 failed");
    assert!(again.code == Some(0) && again.stderr.contains(&said), "{again:?}");
    let anew = workshop.run(&[&arguments[..], &["--rerun"]].concat());
    let said = format!("{N_CELLS} cells finished, 0 were on record, 0 failed");
    assert!(anew.code == Some(0) && anew.stderr.contains(&said), "{anew:?}");
    assert_eq!(workshop.records("two").len(), 2 * N_CELLS);
}

/// What a share leaves undone is tried by the run itself, and its log stays.
#[test]
fn cells_that_fail_in_a_share_fail_once_more_and_say_where() {
    let workshop = Workshop::new();
    workshop.write_model("model", |name, values| {
        if name == "model.layers.1.mlp.down_proj.weight" {
            values[0] = f32::NAN;
        }
    });
    let ran = workshop.run(&["experiment.toml", "--devices", "flex,flex", "--out", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for said in
        ["did not finish all of its cells", "tried once more below; see out/devices/1-of-2.log", "0 cells finished"]
    {
        assert!(ran.stderr.contains(said), "no {said}: {}", ran.stderr);
    }
    assert!(workshop.read("out/devices/1-of-2.log").contains("down_proj"));
}

#[test]
fn every_device_is_checked_before_any_work() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["experiment.toml", "--devices", "flex,gpu", "--out", "out"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("device `gpu` is unknown"), "{ran:?}");
    assert!(!workshop.path("out").exists());
    let both = workshop.run(&["experiment.toml", "--devices", "flex,flex", "--device", "flex", "--out", "out"]);
    assert!(both.code == Some(2) && both.stderr.contains("--devices"), "{both:?}");
}

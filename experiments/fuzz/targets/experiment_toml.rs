//! An experiment's file, the one that it extends, and a cluster's profile.
#![no_main]

use experiments::config::ExperimentSpec;
use experiments::config::profile::SlurmProfile;
use experiments::plan::Plan;
use experiments_fuzz::folder_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["x.toml", "base.toml"]);
    let file = folder.join("x.toml");
    let _ = SlurmProfile::read(&file);
    if let Ok(spec) = ExperimentSpec::read(&file) {
        let plan = Plan::new(&spec);
        let text = spec.to_toml().expect("what was read can be written");
        std::fs::write(&file, text).expect("TMPDIR has room");
        let again = ExperimentSpec::read(&file).expect("what was written can be read");
        assert_eq!(Plan::new(&again).models, plan.models);
    }
});

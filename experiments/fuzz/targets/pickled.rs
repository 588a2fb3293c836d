//! What `torch.save` writes: a zip archive with a pickle.
#![no_main]

use awq_core::load::PickledCheckpoint;
use experiments_fuzz::{folder_of, read_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(checkpoint) = PickledCheckpoint::open_folder(folder_of(input, &["pytorch_model.bin"])) {
        read_all(&checkpoint);
    }
});

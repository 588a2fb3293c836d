//! Prints the sha256 of each tensor of a model's folder or GGUF file, as f32 in little-endian bytes and with both zeros as one, in the
//! way in which a model reads it: what `scripts/interop/check.py` compares with what other programs make of the same.
//!
//! ```text
//! cargo run -p awq-core --example hash_tensors -- FOLDER
//! ```

use std::path::Path;

use awq_core::load::packed::HEADER_FILE;
use awq_core::open::{open_model, open_tensors};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("give a model's folder")?;
    let folder = Path::new(&folder);
    let checkpoint = match folder.is_file() || folder.join(HEADER_FILE).exists() {
        true => open_model(folder)?.checkpoint,
        false => open_tensors(folder)?.1,
    };
    for note in checkpoint.notes() {
        eprintln!("{note}");
    }
    for name in checkpoint.names() {
        if checkpoint.is_readable(&name) {
            let values = checkpoint.read_any_f32(&name)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect();
            println!("{} {name}", hex(&Sha256::digest(&bytes)));
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Blocks one after the other, as they come from host memory.

use crate::backend::QuantBackend;
use crate::load::LoadError;

use super::{Block, Decoder};

/// Calls `work` with the index of each block and the block, in order, until it fails. Where the device computes beside the
/// host ([`QuantBackend::BESIDE_HOST`]), another thread reads, converts and uploads the next block meanwhile: two blocks are
/// in memory then, else one.
///
/// # Errors
/// A block that cannot be read, or what `work` says.
pub fn for_each_block<B: QuantBackend, E: From<LoadError>>(
    decoder: &dyn Decoder<B>,
    mut work: impl FnMut(usize, Box<dyn Block<B>>) -> Result<(), E>,
) -> Result<(), E> {
    let n_blocks = decoder.config().n_blocks;
    if !B::BESIDE_HOST {
        return (0..n_blocks).try_for_each(|block_idx| work(block_idx, decoder.block(block_idx)?));
    }
    std::thread::scope(|scope| {
        let read = |block_idx| (block_idx < n_blocks).then(|| scope.spawn(move || decoder.block(block_idx)));
        let mut reader = read(0);
        for block_idx in 0..n_blocks {
            let Some(reading) = reader.take() else { break };
            let block = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            reader = read(block_idx + 1);
            work(block_idx, block)?;
        }
        Ok(())
    })
}

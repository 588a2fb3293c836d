//! What a method says that it asks of inputs is all that it reads.

use awq_core::capture::{BlockInputs, Capture};
use awq_core::grids::BlockGrids;
use awq_core::method::BlockCtx;
use awq_core::model::tiny::{self, TinySpec};
use burn::backend::Flex;

use super::{fixture, grid, methods, opt};

/// Statistics are added up batch by batch, and nothing else is kept: a method that asks for less than it reads panics here, and sums that
/// depend on what is kept change codes. 60 sequences of 24 tokens are more than any linear has channels, in experts too.
#[test]
fn what_a_method_gathers_is_all_that_it_reads() {
    let mha = tiny::decoder(&TinySpec::MHA, 7, &Default::default()).unwrap();
    for decoder in [mha, opt(), fixture("mixtral-tiny")] {
        let block = decoder.block(0).unwrap();
        let (layout, grids) = (block.layout(), &BlockGrids::from(grid(3)));
        let sequences = tiny::sequences(&TinySpec::MHA, 60, 24, 3);
        let batches: Vec<_> = sequences.chunks(25).map(|some| decoder.embedding().unwrap().embed(some)).collect();
        let drifted: Vec<_> = batches.iter().map(|batch| batch.clone() * 0.9).collect();
        let (full_precision, _) = BlockInputs::capture(block.as_ref(), &batches);
        for method in methods() {
            let needs = method.settings().needs();
            let compared = |inputs: BlockInputs<Flex>| match needs.full_precision_inputs {
                true => inputs.with_full_precision(&full_precision),
                false => inputs,
            };
            let (whole, _) = BlockInputs::capture(block.as_ref(), &drifted);
            let mut capture = Capture::new(block.as_ref(), method.settings().gathers(layout, grids), 60 * 24);
            drifted.iter().for_each(|batch| drop(capture.run(batch.clone())));
            let edit = |inputs: &BlockInputs<Flex>| {
                let (block, linears, inputs) = (block.as_ref(), &layout.linears, Some(inputs));
                let ctx = BlockCtx { block_idx: 0, block, inputs, linears, grids, listener: &|_| {} };
                let edit = method.method::<Flex>().quantize_block(&ctx);
                edit.map(|edit| (edit.linears, edit.log)).map_err(|error| error.to_string())
            };
            let gathered = edit(&compared(capture.finish()));
            assert!(gathered.is_ok() || method.key() == "gptaq", "{}: {gathered:?}", method.label());
            assert_eq!(gathered, edit(&compared(whole)), "{}", method.label());
        }
    }
}

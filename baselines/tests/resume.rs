//! A pass that was cut off gives what an undisturbed one gives, whatever the blocks see.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU16;
use std::sync::Arc;

use awq_core::awq::Awq;
use awq_core::driver::{
    Begun, BlockSink, Calibration, Job, Propagation, QuantizedBlock, quantize_blocks, quantize_model,
};
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::load::{Checkpoint, EditedCheckpoint, LoadError};
use awq_core::method::QuantMethod;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{open_decoder, wiring_of};
use awq_core::pack::PackedWeight;
use baselines::gptaq::Gptaq;
use baselines::gptq::Gptq;
use baselines::rtn::Rtn;
use burn::backend::Flex;

const SPEC: TinySpec = TinySpec { n_blocks: 4, ..TinySpec::GQA };

/// Keeps blocks until it fails; another pass begins with what it has.
struct Cut {
    base: Arc<dyn Checkpoint>,
    kept: Vec<Vec<QuantizedBlock>>,
    n_until_cut: usize,
}

#[derive(Debug)]
struct Full;

impl From<LoadError> for Full {
    fn from(error: LoadError) -> Self {
        panic!("{error}")
    }
}

impl BlockSink for Cut {
    type Error = Full;

    fn begun(&self, job_idx: usize) -> Option<Begun> {
        let wiring = wiring_of(&SPEC.config(), self.base.as_ref()).unwrap();
        let tensors = |(idx, block): (usize, &QuantizedBlock)| -> Arc<dyn Checkpoint> {
            Arc::new(block.codes.tensors(&wiring, idx, self.base.as_ref()))
        };
        let edits: Vec<_> = self.kept[job_idx].iter().enumerate().map(tensors).collect();
        let n_blocks = edits.len();
        Some(Begun { n_blocks, checkpoint: Arc::new(EditedCheckpoint::new(self.base.clone(), edits)) })
    }

    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> Result<(), Full> {
        if self.n_until_cut == 0 {
            return Err(Full);
        }
        self.n_until_cut -= 1;
        self.kept[job_idx].push(block);
        Ok(())
    }

    fn keep_head(&mut self, _: usize, _: PackedWeight) -> Result<(), Full> {
        Ok(())
    }

    fn passed(&mut self, _: usize, _: f64) {}
}

const GPTQ: &str = r#"
damp = 0.01
block_size = 128
order = "activation"
group_grid = "updated_weights"
range = "min_max"
hessian = "f64"
"#;
const AWQ: &str = r#"
scale = { search = { formula = "activation", n_ratios = 4, arithmetic = "f32" } }
clip = "off"
"#;

#[test]
fn a_pass_that_was_cut_off_goes_on_where_it_was() {
    let checkpoint = tiny::checkpoint(&SPEC, 7);
    let decoder = open_decoder::<Flex>(SPEC.config(), Arc::new(checkpoint.clone()), &Default::default()).unwrap();
    let sequences = tiny::sequences(&SPEC, 4, 24, 3);
    let gptq: Gptq = toml::from_str(GPTQ).unwrap();
    let gptaq = Gptaq { gptq: gptq.clone(), alpha: 0.25 };
    let awq: Awq = toml::from_str(AWQ).unwrap();
    // AWQ needs whole blocks, GPTAQ inputs that drift.
    let cases: [(_, [&dyn QuantMethod<Flex>; 3]); 3] = [
        (Propagation::FullPrecision, [&awq, &gptq, &Rtn {}]),
        (Propagation::Quantized, [&awq, &gptq, &gptaq]),
        (Propagation::QuantizedPerStage, [&Rtn {}, &gptq, &gptaq]),
    ];
    for (propagation, methods) in cases {
        let grid = Grid::awq(Bits::new(3).unwrap(), Granularity::PerGroup(NonZeroU16::new(32).unwrap()));
        let jobs = methods.map(|method| Job { method, grids: grid.into() });
        let calibration = Some(Calibration { sequences: &sequences, propagation });
        let whole = quantize_model(decoder.as_ref(), calibration, &jobs, &mut |_| {}).unwrap();
        // In the middle of a block, at its end, and before the first.
        for n_until_cut in [4, 6, 0] {
            let mut sink = Cut { base: Arc::new(checkpoint.clone()), kept: vec![Vec::new(); 3], n_until_cut };
            assert!(quantize_blocks(decoder.as_ref(), calibration, &jobs, &mut sink).is_err());
            assert_eq!(sink.kept.iter().map(Vec::len).sum::<usize>(), n_until_cut);
            sink.n_until_cut = usize::MAX;
            quantize_blocks(decoder.as_ref(), calibration, &jobs, &mut sink).unwrap();
            for (method_idx, (kept, model)) in sink.kept.iter().zip(&whole.models).enumerate() {
                let (model, case) = (model.as_ref().unwrap(), format!("{propagation:?}, {method_idx}, {n_until_cut}"));
                let codes: Vec<_> = kept.iter().map(|block| block.codes.clone()).collect();
                assert!(codes == model.blocks(), "{case}: other codes");
                for (block, log) in kept.iter().zip(&model.logs) {
                    assert_eq!((block.log.output_mse, block.log.block_idx), (log.output_mse, log.block_idx), "{case}");
                    assert_eq!((&block.log.linears, &block.log.scale_searches), (&log.linears, &log.scale_searches));
                }
            }
        }
    }
}

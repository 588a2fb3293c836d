//! Activations collected from full-precision blocks, and the statistics that methods ask of them.
//!
//! Statistics are f32, whatever the activations are. Where a method asks for statistics alone, they are added up while the block runs,
//! so that memory does not grow with the calibration ([`Gathered`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;

use crate::backend::QuantBackend;
use crate::model::{Block, BlockLayout, LinearName, Tap};
use crate::shared::Shared;

mod stats;
mod sums;

use self::stats::Gathering;
pub use self::stats::InputStats;
pub use self::sums::{Gathered, Statistic};

/// What a method looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureNeeds {
    /// The inputs of every linear on the calibration sequences. A method that needs none runs without calibration.
    pub inputs: bool,
    /// Also what every linear sees in the full-precision model, where blocks see the outputs of quantized ones.
    pub full_precision_inputs: bool,
}

/// What is kept of the inputs of each linear, by the name under which the layout captures them; of others nothing is.
pub type GatheredOfBlock = BTreeMap<LinearName, Gathered>;

/// The whole inputs of all linears, and of modules that are judged by them.
pub fn whole_inputs(layout: &BlockLayout) -> GatheredOfBlock {
    let of_linears = layout.linears.iter().map(|facts| facts.input);
    let names = of_linears.chain(layout.scale_groups.iter().map(|group| group.input));
    names.map(|name| (name, Gathered::whole())).collect()
}

/// What serves both.
pub fn gather_both(mut one: GatheredOfBlock, other: GatheredOfBlock) -> GatheredOfBlock {
    for (name, gathered) in other {
        let of_both = one.remove(&name).unwrap_or_default().and(gathered);
        one.insert(name, of_both);
    }
    one
}

/// Everything captured of one block, and what methods have made of it.
#[derive(Debug)]
pub struct BlockInputs<B: QuantBackend> {
    by_linear: BTreeMap<LinearName, InputStats<B>>,
    shared: Shared,
    /// Whether no further job looks at them.
    for_the_last_time: AtomicBool,
}

impl<B: QuantBackend> BlockInputs<B> {
    /// Runs `block` on batches of hidden states and keeps what every linear sees, nothing in an expert that no token is
    /// sent to. Returns the block's outputs too.
    pub fn capture(block: &dyn Block<B>, hidden: &[Tensor<B, 3>]) -> (Self, Vec<Tensor<B, 3>>) {
        let n_tokens: usize = hidden.iter().map(|batch| batch.dims()[0] * batch.dims()[1]).sum();
        let mut capture = Capture::new(block, whole_inputs(block.layout()), n_tokens);
        let outputs = hidden.iter().map(|batch| capture.run(batch.clone())).collect();
        (capture.finish(), outputs)
    }

    /// From the inputs of each linear, by the name under which the layout captures them.
    pub fn from_batches(seen: BTreeMap<LinearName, Vec<Tensor<B, 3>>>) -> Self {
        let by_linear = seen.into_iter().map(|(linear, batches)| (linear, InputStats::new(batches))).collect();
        Self { by_linear, shared: Shared::default(), for_the_last_time: AtomicBool::new(false) }
    }

    /// Adds what each linear sees of the same tokens in the full-precision model; both must have been kept whole.
    #[must_use]
    pub fn with_full_precision(self, full_precision: &Self) -> Self {
        let add = |(linear, stats): (LinearName, InputStats<B>)| match full_precision.get(linear) {
            Some(reference) => (linear, stats.with_full_precision(reference.batches().to_vec())),
            None => (linear, stats),
        };
        Self { by_linear: self.by_linear.into_iter().map(add).collect(), ..self }
    }

    /// The inputs captured under a name.
    pub fn get(&self, linear: LinearName) -> Option<&InputStats<B>> {
        self.by_linear.get(&linear)
    }

    /// Says that no job looks at them after this one.
    pub(crate) fn look_for_the_last_time(&self) {
        self.for_the_last_time.store(true, Ordering::Relaxed);
    }

    /// A method will not look at the inputs captured under this name again: matrices as large as they are need not wait for the end of
    /// the block, if no other job looks at them either.
    pub fn done_with(&self, linear: LinearName) {
        if let (true, Some(stats)) = (self.for_the_last_time.load(Ordering::Relaxed), self.get(linear)) {
            stats.let_go();
        }
    }

    /// What the cells of a sweep share about this block. A method asks with a key that holds everything that the answer
    /// depends on but the block and these inputs.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// A block that runs batch by batch while what its linears see is gathered.
pub struct Capture<'a, B: QuantBackend> {
    block: &'a dyn Block<B>,
    gathered: GatheredOfBlock,
    n_tokens: usize,
    seen: BTreeMap<LinearName, Gathering<B>>,
}

impl<'a, B: QuantBackend> Capture<'a, B> {
    /// Gathers so much of each linear of `block`, of `n_tokens` in all.
    pub fn new(block: &'a dyn Block<B>, gathered: GatheredOfBlock, n_tokens: usize) -> Self {
        Self { block, gathered, n_tokens, seen: BTreeMap::new() }
    }

    /// What the block puts out for a batch of hidden states.
    pub fn run(&mut self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let Self { block, gathered, n_tokens, seen } = self;
        if seen.is_empty() {
            // Also of an expert that no token is sent to.
            let layout = block.layout();
            let of_linears = layout.linears.iter().map(|facts| (facts.input, facts.name));
            let of_groups = layout.scale_groups.iter().map(|group| (group.input, group.linears[0]));
            for (input, linear) in of_linears.chain(of_groups) {
                let Some(asked) = gathered.get(&input) else { continue };
                let [_, n_in] = block.params().linear(linear).weight.dims();
                let new = || Gathering::new(asked.clone(), n_in, *n_tokens, hidden.device());
                seen.entry(input).or_insert_with(new);
            }
        }
        block.forward(hidden, &mut Gatherings(seen))
    }

    /// What was gathered: nothing where no batch came.
    pub fn finish(self) -> BlockInputs<B> {
        let by_linear = self.seen.into_iter().map(|(linear, gathering)| (linear, gathering.finish())).collect();
        BlockInputs { by_linear, shared: Shared::default(), for_the_last_time: AtomicBool::new(false) }
    }
}

struct Gatherings<'a, B: QuantBackend>(&'a mut BTreeMap<LinearName, Gathering<B>>);

impl<B: QuantBackend> Tap<B> for Gatherings<'_, B> {
    fn see(&mut self, linear: LinearName, input: &Tensor<B, 3>) {
        if let Some(gathering) = self.0.get_mut(&linear) {
            gathering.see(input);
        }
    }
}

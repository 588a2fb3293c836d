//! A module with other weights, computed as its difference from a pass with the original ones.
//!
//! With `W' = W + D` and `x' = x + d`, `x' W'^T = x W^T + x' D^T + d W^T`. The first term is remembered. The others are small, so
//! that the bf16 inputs of their products, twice as fast as f32, change a loss by a thousandth of it or less: rounding is relative to
//! the difference and not to the output. A hundredth was seen where few tokens make up the loss.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::model::layers::Linear;
use crate::model::{Block, BlockParams, Inspect, LinearName, Products};

/// What the linears of a module saw and gave.
type Calls<B> = BTreeMap<LinearName, Call<B>>;

#[derive(Debug)]
struct Call<B: QuantBackend> {
    /// `[batch, seq, in]`; `None` of a linear that always sees the same.
    input: Option<Tensor<B, 3>>,
    /// `[batch, seq, out]`.
    output: Tensor<B, 3>,
}

/// Weights as products in bf16 read them.
pub(super) type Weights<B> = BTreeMap<LinearName, <B as QuantBackend>::Bf16Weight>;

/// Passes of a module with its original weights, in f32.
#[derive(Debug)]
pub(super) struct RecordedPasses<B: QuantBackend> {
    module: Inspect,
    passes: Vec<Pass<B>>,
    /// Of the linears whose inputs may change.
    weights: Arc<Weights<B>>,
}

/// One of them, on some of the inputs.
#[derive(Debug)]
pub(super) struct Pass<B: QuantBackend> {
    input: Tensor<B, 3>,
    output: Tensor<B, 3>,
    calls: Arc<Calls<B>>,
}

impl<B: QuantBackend> RecordedPasses<B> {
    /// Runs a module of `block` on its (normed) inputs, `[batch, seq, in]` each. The linears that are `changing` see the module's inputs.
    pub(super) fn new(block: &dyn Block<B>, module: Inspect, changing: &[LinearName], inputs: &[Tensor<B, 3>]) -> Self {
        let passes: Vec<_> = inputs.iter().map(|x| Pass::record(block, module, changing, x.clone())).collect();
        let calls = passes.iter().flat_map(|pass| pass.calls.iter());
        let moved: BTreeSet<_> = calls.filter(|(_, call)| call.input.is_some()).map(|(&name, _)| name).collect();
        let weight = |name| (name, B::bf16_weight(block.params().linear(name).weight.clone()));
        Self { module, weights: Arc::new(moved.into_iter().map(weight).collect()), passes }
    }

    /// Bytes of what one pass remembers, about: as many times those of its first tokens as it has tokens.
    pub(super) fn bytes_of_pass(
        block: &dyn Block<B>,
        module: Inspect,
        changing: &[LinearName],
        input: &Tensor<B, 3>,
    ) -> usize {
        let pass = Pass::record(block, module, changing, input.clone().narrow(1, 0, 1));
        let n = |x: &Tensor<B, 3>| x.shape().num_elements();
        let calls: usize = pass.calls.values().map(|call| call.input.as_ref().map_or(0, n) + n(&call.output)).sum();
        size_of::<f32>() * (n(&pass.input) + n(&pass.output) + calls) * input.dims()[1]
    }

    /// Number of values that the module put out.
    pub(super) fn n_values(&self) -> usize {
        self.passes.iter().map(|pass| pass.output.shape().num_elements()).sum()
    }

    pub(super) fn passes(&self) -> &[Pass<B>] {
        &self.passes
    }

    /// Of some passes, the sum over their outputs of the squared change where weights of `block` change by `changes`, `[out, in]` each.
    /// Their linears must see what they saw.
    pub(super) fn squared_changes(
        &self,
        block: &dyn Block<B>,
        changes: &Arc<Weights<B>>,
        some: &[Pass<B>],
    ) -> Vec<f64> {
        each(some, |pass| {
            let (calls, originals) = (pass.calls.clone(), self.weights.clone());
            let differences = Differences { calls, originals, changes: changes.clone() };
            let params = BlockParams { products: Arc::new(differences), ..block.params().clone() };
            pass.squared_distance(self.module, block.with_params(params).as_ref())
        })
    }

    /// Sum over all outputs of their squared difference from those of another block.
    pub(super) fn squared_distance(&self, block: &dyn Block<B>) -> f64 {
        each(&self.passes, |pass| pass.squared_distance(self.module, block)).into_iter().sum()
    }
}

/// A pass a task: between its products, which share out their rows, much is done by one thread. What is added is collected first, as the
/// order of the sum must not depend on threads.
fn each<B: QuantBackend>(passes: &[Pass<B>], of_pass: impl Fn(&Pass<B>) -> f64 + Send + Sync) -> Vec<f64> {
    passes.par_iter().map(of_pass).collect()
}

impl<B: QuantBackend> Pass<B> {
    fn record(block: &dyn Block<B>, module: Inspect, changing: &[LinearName], input: Tensor<B, 3>) -> Self {
        let recorder = Arc::new(Recorder { changing: changing.to_vec(), calls: Mutex::default() });
        let params = BlockParams { products: recorder.clone(), ..block.params().clone() };
        let output = module.run(block.with_params(params).as_ref(), input.clone());
        let calls = std::mem::take(&mut *recorder.calls.lock().unwrap_or_else(PoisonError::into_inner));
        Self { input, output, calls: Arc::new(calls) }
    }

    fn squared_distance(&self, module: Inspect, block: &dyn Block<B>) -> f64 {
        B::squared_distance(&module.run(block, self.input.clone()), &self.output)
    }
}

/// Remembers each product.
#[derive(Debug)]
struct Recorder<B: QuantBackend> {
    changing: Vec<LinearName>,
    calls: Mutex<Calls<B>>,
}

impl<B: QuantBackend> Products<B> for Recorder<B> {
    fn product(&self, name: LinearName, linear: &Linear<B>, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let output = linear.forward(input.clone(), Arithmetic::F32);
        let call = Call { input: (!self.changing.contains(&name)).then_some(input), output: output.clone() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(name, call);
        output
    }
}

/// Products of changed weights, as differences from those that were recorded.
#[derive(Debug)]
struct Differences<B: QuantBackend> {
    calls: Arc<Calls<B>>,
    originals: Arc<Weights<B>>,
    changes: Arc<Weights<B>>,
}

impl<B: QuantBackend> Products<B> for Differences<B> {
    fn product(&self, name: LinearName, _: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        // Routers see what they saw, so that experts are given the same tokens and no linear is new.
        let call = &self.calls[&name];
        let (x, weight) = match (self.changes.get(&name), &call.input) {
            (Some(change), _) => (x, change),
            (None, Some(input)) => (x - input.clone(), &self.originals[&name]),
            (None, None) => return call.output.clone(),
        };
        let [batch, seq, n_in] = x.dims();
        B::matmul_bf16(x.reshape([batch * seq, n_in]), weight).reshape(call.output.shape()) + call.output.clone()
    }
}

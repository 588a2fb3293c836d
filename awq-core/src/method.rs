//! [`QuantMethod`]: a function from what is known of a block to an edit of it.
//!
//! A method changes no model, sees no evaluation data, and cannot choose grid, calibration or seed: they come with the
//! context.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backend::{QuantBackend, float_vec};
use crate::capture::{BlockInputs, CaptureNeeds, Gathered, GatheredOfBlock, InputStats, Statistic, whole_inputs};
use crate::grid::Grid;
use crate::grids::BlockGrids;
use crate::log::{BlockLog, LinearLog};
use crate::model::{Block, BlockLayout, LinearFacts, LinearName};
use crate::numbers::of_table;
use crate::progress::{Listener, Part};
use crate::quantized::{QuantizedWeight, StoredParts};

/// What a method is given of one block.
#[derive(Clone, Copy)]
pub struct BlockCtx<'a, B: QuantBackend> {
    /// Index of the block in the model.
    pub block_idx: usize,
    /// The full-precision block.
    pub block: &'a dyn Block<B>,
    /// What its linears see on the calibration sequences; `None` where the method needs nothing.
    pub inputs: Option<&'a BlockInputs<B>>,
    /// The linears to quantize, of all of the block or of one stage of it. Those that stay in full precision are none of them.
    pub linears: &'a [LinearFacts],
    /// The grid of each linear of the block.
    pub grids: &'a BlockGrids,
    /// Hears how much of the work on these linears is done.
    pub listener: &'a Listener<'a>,
}

impl<'a, B: QuantBackend> BlockCtx<'a, B> {
    /// The captured inputs of a linear, by the name under which the layout captures them.
    ///
    /// # Errors
    /// If the run has no calibration.
    pub fn input(&self, captured_as: LinearName) -> Result<&'a InputStats<B>, MethodError> {
        self.inputs
            .and_then(|inputs| inputs.get(captured_as))
            .ok_or(MethodError::NoCalibration { block_idx: self.block_idx, linear: captured_as.0 })
    }

    /// The grid of a linear that is quantized.
    ///
    /// # Panics
    /// If it stays in full precision: it is none of `linears`.
    pub fn grid(&self, linear: LinearName) -> &'a Grid {
        self.grids.of(linear).unwrap_or_else(|| panic!("{linear}: a linear in full precision has no grid"))
    }

    /// The context of one of `linears`.
    pub fn linear(&self, facts: &LinearFacts) -> LinearCtx<'a, B> {
        LinearCtx {
            block_idx: self.block_idx,
            linear: facts.name,
            weight: self.block.params().linear(facts.name).weight.clone(),
            input: self.inputs.and_then(|inputs| inputs.get(facts.input)),
            input_scale: None,
            grid: self.grid(facts.name),
            listener: &|_| {},
        }
    }
}

/// What a method is given of one linear.
#[derive(Clone)]
pub struct LinearCtx<'a, B: QuantBackend> {
    /// Index of the block in the model.
    pub block_idx: usize,
    /// Name of the linear in the block.
    pub linear: LinearName,
    /// `[out, in]`.
    pub weight: Tensor<B, 2>,
    /// What it sees on the calibration sequences, before `input_scale`.
    pub input: Option<&'a InputStats<B>>,
    /// `[in]`; where present, the weight was multiplied by it and the input is to be divided by it.
    pub input_scale: Option<Tensor<B, 1>>,
    /// The grid to round to.
    pub grid: &'a Grid,
    /// Hears how much of the work on this linear is done, of methods that tell.
    pub listener: &'a Listener<'a>,
}

impl<B: QuantBackend> LinearCtx<'_, B> {
    /// `X^T X / n_tokens` of what the linear sees, `input_scale` divided out, row-major `[in, in]`, undamped. Sums are taken in
    /// `precision`.
    ///
    /// # Errors
    /// If the run has no calibration, or activations are not finite.
    pub fn gram(&self, precision: Precision) -> Result<Arc<Vec<f64>>, MethodError> {
        let input =
            self.input.ok_or(MethodError::NoCalibration { block_idx: self.block_idx, linear: self.linear.0 })?;
        let mut gram = match precision {
            Precision::F32 => Arc::new(float_vec(input.gram()).into_iter().map(f64::from).collect()),
            Precision::F64 => input.gram_f64(),
        };
        if self.input_scale.is_some() {
            self.divide_by_input_scale(Arc::<Vec<f64>>::make_mut(&mut gram).as_mut_slice());
        }
        if gram.iter().any(|entry| !entry.is_finite()) {
            return Err(self.not_finite("an activation"));
        }
        Ok(gram)
    }

    /// [`InputStats::drift`] of what the linear sees, `input_scale` divided out; `None` where nothing can drift: the run has no
    /// calibration, or blocks see the outputs of full-precision ones.
    pub fn drift(&self) -> Option<Vec<f64>> {
        let mut drift = self.input?.drift()?.as_ref().clone();
        self.divide_by_input_scale(&mut drift);
        Some(drift)
    }

    fn divide_by_input_scale(&self, matrix: &mut [f64]) {
        let Some(scale) = &self.input_scale else { return };
        let scale: Vec<f64> = float_vec(scale.clone()).into_iter().map(f64::from).collect();
        for (row, row_scale) in matrix.chunks_mut(scale.len()).zip(&scale) {
            row.iter_mut().zip(&scale).for_each(|(entry, col_scale)| *entry /= row_scale * col_scale);
        }
    }

    /// A seed of this linear's own for one purpose, from a method's seed.
    pub fn seed(&self, seed: u64, purpose: &str) -> u64 {
        // The 64-bit FNV-1a hash.
        let place = format!("{seed} {} {} {purpose}", self.block_idx, self.linear);
        place.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Whether the linear is in an expert that no token of the calibration is sent to: activations then say nothing of
    /// it.
    pub fn is_unreached(&self) -> bool {
        self.input.is_some_and(|input| input.n_tokens() == 0)
    }

    /// An error for a value of this linear that is not finite.
    pub fn not_finite(&self, what: &'static str) -> MethodError {
        MethodError::NotFinite { block_idx: self.block_idx, linear: self.linear.0.into(), what }
    }

    /// An error for a combination that this linear cannot have.
    pub fn unsupported(&self, what: impl Into<String>) -> MethodError {
        MethodError::Unsupported { block_idx: self.block_idx, linear: self.linear.0.into(), what: what.into() }
    }
}

/// Floating-point type of a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 64 bits.
    F64,
}

of_table!(Precision: F32, F64);

impl Precision {
    /// The statistic that [`LinearCtx::gram`] reads.
    pub const fn gram(self) -> Statistic {
        match self {
            Self::F32 => Statistic::Gram,
            Self::F64 => Statistic::GramF64,
        }
    }
}

/// What a method wants done to a block. The driver applies it: folds first, then weights.
#[derive(Debug)]
pub struct BlockEdit<B: QuantBackend> {
    /// Scales to fold into the previous op, by index of the layout's scale groups, `[in]` each.
    pub scales: Vec<(usize, Tensor<B, 1>)>,
    /// Quantized weights (of the scaled linears, where there are scales).
    pub linears: BTreeMap<LinearName, QuantizedWeight>,
    /// What happened.
    pub log: BlockLog,
}

/// The shapes of what a method works on in a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingShapes {
    /// Channels of each input that linears share.
    pub inputs: Vec<usize>,
    /// `[out, in]` of each linear.
    pub linears: Vec<[usize; 2]>,
    /// Tokens of the calibration.
    pub n_tokens: u64,
}

impl WorkingShapes {
    /// Weights of the largest linear.
    pub fn largest_linear(&self) -> u64 {
        self.linears.iter().map(|[n_out, n_in]| (n_out * n_in) as u64).max().unwrap_or(0)
    }

    /// Entries of the largest matrix between the channels of an input.
    pub fn largest_gram(&self) -> u64 {
        self.inputs.iter().map(|n| (n * n) as u64).max().unwrap_or(0)
    }
}

/// What a method says of itself, whatever the backend. The struct that is parsed from a configuration implements it.
pub trait MethodSettings {
    /// The label in tables; settings that make it another method are named in it.
    fn label(&self) -> String;

    /// What must be captured for it.
    fn needs(&self) -> CaptureNeeds;

    /// What it asks of the inputs of a block's linears, if it needs inputs: the rest is not there when it runs. Whole inputs serve
    /// any method; where statistics are enough, memory does not grow with the calibration.
    fn gathers(&self, layout: &BlockLayout, _grids: &BlockGrids) -> GatheredOfBlock {
        whole_inputs(layout)
    }

    /// Bytes that it holds while it quantizes a block, about, beside the block, what is gathered of its inputs, and codes.
    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        3 * 4 * shapes.largest_linear()
    }

    /// Whether it decides on all linears of a block at once, so that the stages of a block cannot be quantized one by one.
    fn needs_whole_block(&self) -> bool {
        false
    }

    /// Whether it can quantize a linear outside of blocks, the head, of which no activations are known.
    fn quantizes_head(&self) -> bool {
        false
    }

    /// What it stores of linears beside codes, scales and zero points that are codes.
    fn stores(&self) -> StoredParts {
        StoredParts::default()
    }

    /// Whether it can round to a grid.
    ///
    /// # Errors
    /// Why it cannot, and which grid to choose instead, in words.
    fn supports(&self, _grid: &Grid) -> Result<(), String> {
        Ok(())
    }

    /// What is wrong with the settings, where their types cannot tell.
    ///
    /// # Errors
    /// The key, its value and what it should be, in words.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A quantization method.
pub trait QuantMethod<B: QuantBackend>: MethodSettings + Send + Sync {
    /// Decides what becomes of one block.
    ///
    /// # Errors
    /// Activations or weights that the method cannot handle, with block and linear.
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError>;

    /// What quantizes the head; `None` where [`MethodSettings::quantizes_head`] says that it cannot.
    fn of_head(&self) -> Option<&dyn LinearMethod<B>> {
        None
    }
}

/// A method that looks at one linear at a time.
pub trait LinearMethod<B: QuantBackend>: Send + Sync {
    /// Quantizes one linear.
    ///
    /// # Errors
    /// Activations or weights that the method cannot handle, with block and linear.
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError>;
}

/// `statistics` of what each linear of a block sees that is quantized.
pub fn gather_of_quantized(
    layout: &BlockLayout,
    grids: &BlockGrids,
    statistics: impl IntoIterator<Item = Statistic> + Clone,
) -> GatheredOfBlock {
    let quantized = layout.linears.iter().filter(|facts| grids.of(facts.name).is_some());
    quantized.map(|facts| (facts.input, Gathered::of(statistics.clone()))).collect()
}

/// The block edit of a method that treats every linear alone.
///
/// # Errors
/// The first error of a linear.
pub fn quantize_each_linear<B: QuantBackend>(
    method: &dyn LinearMethod<B>,
    ctx: &BlockCtx<'_, B>,
) -> Result<BlockEdit<B>, MethodError> {
    let mut edit = BlockEdit { scales: Vec::new(), linears: BTreeMap::new(), log: BlockLog::default() };
    let n_weights = |facts: &LinearFacts| ctx.block.params().linear(facts.name).weight.shape().num_elements() as f64;
    let total: f64 = ctx.linears.iter().map(n_weights).sum();
    for (idx, facts) in ctx.linears.iter().enumerate() {
        let part = Part::new(ctx.listener, n_weights(facts) / total);
        let listener = |share: f64| part.tell(share);
        let (weight, log) = method.quantize_linear(&LinearCtx { listener: &listener, ..ctx.linear(facts) })?;
        if let (Some(inputs), false) =
            (ctx.inputs, ctx.linears[idx + 1..].iter().any(|later| later.input == facts.input))
        {
            inputs.done_with(facts.input);
        }
        edit.linears.insert(facts.name, weight);
        edit.log.linears.push(log);
        part.finish();
    }
    Ok(edit)
}

/// Why a method could not quantize a block.
#[derive(Debug, Error)]
pub enum MethodError {
    /// The method looks at activations, the run has none.
    #[error(
        "block {block_idx}, {linear}: this method needs activations; add a [calibration] section to the experiment"
    )]
    NoCalibration {
        /// Index of the block.
        block_idx: usize,
        /// Name of the linear.
        linear: &'static str,
    },
    /// Activations, weights or losses that are not finite.
    #[error(
        "block {block_idx}, {linear}: {what} is not finite; the checkpoint is damaged or overflows in this precision (try f32)"
    )]
    NotFinite {
        /// Index of the block.
        block_idx: usize,
        /// Name of the linear or group.
        linear: String,
        /// What it was.
        what: &'static str,
    },
    /// A scale or zero point that its storage type cannot hold.
    #[error(
        "block {block_idx}, {linear}: {what} does not fit into f16, which ends at 65504 and begins at 6e-8; set \
         `scale_dtype = \"f32\"`"
    )]
    ScaleRange {
        /// Index of the block.
        block_idx: usize,
        /// Name of the linear.
        linear: &'static str,
        /// Which scale or zero point.
        what: String,
    },
    /// A Hessian that no damping within reason makes invertible.
    #[error(
        "block {block_idx}, {linear}: the Hessian is not positive definite after damping by {damp} of its mean diagonal; use more calibration tokens or a larger `damp`"
    )]
    NotPositiveDefinite {
        /// Index of the block.
        block_idx: usize,
        /// Name of the linear.
        linear: &'static str,
        /// The last damping that was tried, relative to the mean of the diagonal.
        damp: f64,
    },
    /// A combination that has no meaning.
    #[error("block {block_idx}, {linear}: {what}")]
    Unsupported {
        /// Index of the block.
        block_idx: usize,
        /// Name of the linear or group.
        linear: String,
        /// What does not go together, and what to do instead.
        what: String,
    },
}

//! The layout of GPTQ checkpoints with activation order, as what others' kernels read: a baseline to compare with.
//!
//! A word holds the codes of 8 consecutive input channels of one output; words lie `[n_in / 8][n_out]`, scales
//! `[n_groups][n_out]`, zero points 8 outputs a word `[n_groups][n_out / 8]`. With activation order the channels of a group
//! are anywhere, so each channel names its group and every code fetches scale and zero point anew. That is what the layout
//! costs; the loop over it is as good as it gets otherwise: neighbouring threads read neighbouring words, sums are f32.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::KernelError;
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Codes of a word.
const PER_WORD: usize = 8;
/// Outputs of a cube: the threads of a warp read 128 bytes that lie side by side.
const N_COLUMNS: usize = 32;
/// Parts that the input channels are divided into.
const N_SLICES: usize = 8;

/// Sizes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GptqFacts {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
}

/// A 4-bit weight in GPTQ's layout, in the memory of a device.
#[derive(Clone, Debug)]
pub struct GptqWeight<B: Backend> {
    pub(super) facts: GptqFacts,
    pub(super) words: Tensor<B, 1, Int>,
    pub(super) scales: Tensor<B, 1>,
    pub(super) zero_points: Tensor<B, 1, Int>,
    pub(super) group_of: Tensor<B, 1, Int>,
    scale_bytes: usize,
}

impl<B: Backend> GptqWeight<B> {
    /// Whether the layout has a place for codes, scales and zero points of a weight.
    pub fn holds(weight: &QuantizedWeight) -> bool {
        let whole = |n: usize| n > 0 && n.is_multiple_of(PER_WORD);
        let n_groups = weight.n_in.div_ceil(weight.group_len().max(1));
        weight.grid.bits.get() == 4
            && weight.grid.values.is_none()
            && whole(weight.n_in)
            && whole(weight.n_out)
            && weight.scale.len() == weight.n_out * n_groups
            && matches!(weight.zero_point, ZeroPoints::Codes(_))
    }

    /// Repacks and uploads a weight, with scales of type `dtype`, that of the activations.
    ///
    /// # Errors
    /// A weight that the layout does not hold (not 4 bits, channels that are no multiples of 8, zero points that are no codes,
    /// one scale for all rows), or a transform other than permuted inputs.
    pub fn new(weight: &QuantizedWeight, dtype: DType, device: &B::Device) -> Result<Self, KernelError> {
        let (n_out, n_in, bits) = (weight.n_out, weight.n_in, weight.grid.bits.get());
        let n_groups = n_in.div_ceil(weight.group_len().max(1));
        let order: Vec<usize> = match &weight.transform {
            WeightTransform::Identity => (0..n_in).collect(),
            WeightTransform::PermutedInputs(order) => order.iter().map(|&channel| channel as usize).collect(),
            _ => return Err(KernelError::Transformed),
        };
        let (ZeroPoints::Codes(codes_of_zero), true) = (&weight.zero_point, Self::holds(weight)) else {
            return Err(KernelError::NotGptq(n_out, n_in, bits));
        };
        let mut words = vec![0_u32; n_in / PER_WORD * n_out];
        let mut group_of = vec![0_u32; n_in];
        for (place, &channel) in order.iter().enumerate() {
            group_of[channel] = (place / weight.group_len()) as u32;
            let (word, shift) = (channel / PER_WORD, 4 * (channel % PER_WORD));
            for out_idx in 0..n_out {
                words[word * n_out + out_idx] |= u32::from(weight.codes[out_idx * n_in + place]) << shift;
            }
        }
        let mut scales = vec![0.0_f32; n_groups * n_out];
        let mut zero_points = vec![0_u32; n_groups * n_out / PER_WORD];
        for out_idx in 0..n_out {
            for group in 0..n_groups {
                let (from, to) = (out_idx * n_groups + group, group * n_out + out_idx);
                scales[to] = weight.scale[from];
                zero_points[to / PER_WORD] |= u32::from(codes_of_zero[from]) << (4 * (to % PER_WORD));
            }
        }
        let ints = |words: Vec<u32>| {
            let n = words.len();
            let words: Vec<i32> = words.into_iter().map(u32::cast_signed).collect();
            Tensor::from_data(TensorData::new(words, [n]), (device, DType::I32))
        };
        let n_scales = scales.len();
        Ok(Self {
            facts: GptqFacts { n_out, n_in },
            words: ints(words),
            scales: Tensor::from_data(TensorData::new(scales, [n_scales]), (device, dtype)),
            zero_points: ints(zero_points),
            group_of: ints(group_of),
            scale_bytes: dtype.size(),
        })
    }

    /// Bytes that a product reads, each once.
    pub fn packed_bytes(&self) -> usize {
        let ints = [&self.words, &self.zero_points, &self.group_of].map(|tensor| tensor.shape().num_elements());
        size_of::<u32>() * ints.iter().sum::<usize>() + self.scale_bytes * self.scales.shape().num_elements()
    }
}

/// Tensors of a weight on the device: words, scales, zero points, group of each channel.
pub(super) type Parts<R> = [CubeTensor<R>; 4];

/// `x w^T` for `x: [n, n_in]`; returns `[n, n_out]` of the type of `x`.
pub(super) fn launch<R: CubeRuntime>(x: CubeTensor<R>, weight: Parts<R>, facts: &GptqFacts) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let (client, device, dtype) = (x.client.clone(), x.device.clone(), x.dtype);
    let n = x.meta.shape()[0];
    let out = client.empty(n * facts.n_out * dtype.size());
    let out = CubeTensor::new_contiguous(client.clone(), device, [n, facts.n_out].into(), out, dtype);
    let [words, scales, zero_points, group_of] = weight;
    let cubes = CubeCount::Static(facts.n_out.div_ceil(N_COLUMNS) as u32, n as u32, 1);
    // SAFETY: `GptqWeight::new` makes every tensor as long as `facts` says and every group one that has scales; threads read
    // rows of `x` below `n` and columns below `n_out`, and write there.
    unsafe {
        gptq_matvec::launch_unchecked::<R>(
            &client,
            cubes,
            CubeDim::new_2d(N_COLUMNS as u32, N_SLICES as u32),
            x.into_array_arg(),
            words.into_array_arg(),
            scales.into_array_arg(),
            zero_points.into_array_arg(),
            group_of.into_array_arg(),
            out.clone().into_array_arg(),
            facts.n_in as u32,
            facts.n_out as u32,
            dtype.into(),
        );
    }
    out
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its interface to the device")]
fn gptq_matvec<F: Float>(
    x: &Array<F>,
    words: &Array<u32>,
    scales: &Array<F>,
    zero_points: &Array<u32>,
    group_of: &Array<u32>,
    out: &mut Array<F>,
    n_in: u32,
    n_out: u32,
    #[define(F)] _dtype: StorageType,
) {
    let column = CUBE_POS_X * comptime!(N_COLUMNS as u32) + UNIT_POS_X;
    let row = CUBE_POS_Y;
    let mut sum = 0.0f32;
    if column < n_out {
        let shift = column % 8u32 * 4u32;
        let mut place = UNIT_POS_Y;
        while place < n_in / 8u32 {
            let word = words[(place * n_out + column) as usize];
            #[unroll]
            for i in 0..PER_WORD {
                let channel = place * 8u32 + i as u32;
                let at = group_of[channel as usize] * n_out + column;
                let zero_point = (zero_points[(at / 8u32) as usize] >> shift) & 15u32;
                let code = (word >> comptime!(4 * i as u32)) & 15u32;
                let weight = f32::cast_from(scales[at as usize]) * (f32::cast_from(code) - f32::cast_from(zero_point));
                sum = fma(f32::cast_from(x[(row * n_in + channel) as usize]), weight, sum);
            }
            place += comptime!(N_SLICES as u32);
        }
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(N_COLUMNS * N_SLICES));
    shared[(UNIT_POS_Y * comptime!(N_COLUMNS as u32) + UNIT_POS_X) as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0u32 && column < n_out {
        let mut total = 0.0f32;
        #[unroll]
        for slice in 0..N_SLICES {
            total += shared[slice * N_COLUMNS + UNIT_POS_X as usize];
        }
        out[(row * n_out + column) as usize] = F::cast_from(total);
    }
}

//! The order in which GPU kernels read packed weights: units of 32 input channels of one row, so that neighbouring threads
//! read neighbouring words and a unit lies within one group. Weights are repacked into it once, at load.
//!
//! A unit of `b`-bit codes is `b` words. A word holds codes of even channels in its lower half and those of odd channels in its
//! upper half, so that one shift and one mask find the codes of two neighbours, 16 bits apart. Of 3 bits five fit into a half, and
//! the highest bits of the three words hold the codes of the last two channels, a bit each. Where `b` is 2 or 4 the words of a
//! unit are one vector,
//! `[row][unit][word]`. Vectors of three words would be cut in three loads that skip; at 3 bits all first words of a row come
//! first, then all second ones: `[row][word][unit]`.
//!
//! Scales and zero points, `[row][group]`, are one word where that is exact: the exponent and the ten highest bits of the
//! mantissa of the scale as f32 in the upper 18 bits (any positive f16), the zero point's code in the lower 14. Otherwise they
//! are two f32. Rows are filled up to a multiple of [`ROW_TILE`] with zeros, so that no kernel reads beyond the end.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::KernelError;
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Input channels of a unit.
pub(crate) const UNIT: usize = 32;
/// Rows that the packed weight is filled up to a multiple of.
pub(crate) const ROW_TILE: usize = 8;
/// Mantissa bits of an f32 that a scale in one word does without.
const CUT_BITS: u32 = 13;
/// Bits of the zero point in such a word.
const ZERO_BITS: u32 = 14;

/// Codes of a unit whose bits lie side by side. Those of the other two of 3 bits are scattered over the words.
pub(crate) const fn n_together(bits: usize) -> usize {
    if bits == 3 { 30 } else { UNIT }
}

/// The lowest bit of code `i` of a unit, counted through its words; its others follow, a word further each where it is
/// scattered.
pub(crate) const fn code_bit(bits: usize, i: usize) -> usize {
    let of_half = 16 / bits;
    let place = if i < n_together(bits) { 32 * (i / 2 / of_half) + bits * (i / 2 % of_half) } else { 15 };
    place + 16 * (i % 2)
}

/// Bit `bit` of code `i` of a unit, counted through its words.
pub(crate) const fn bit_of(bits: usize, i: usize, bit: usize) -> usize {
    code_bit(bits, i) + if i < n_together(bits) { bit } else { 32 * bit }
}

/// Sizes of a packed weight: all that a kernel must know beside the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnitFacts {
    /// Output channels.
    pub n_out: usize,
    /// Input channels.
    pub n_in: usize,
    /// Bits of a code: 2, 3 or 4.
    pub bits: usize,
    /// Units of a row; the last is filled up with zero codes.
    pub n_units: usize,
    /// Units of a group.
    pub units_per_group: usize,
    /// Groups of a row.
    pub n_groups: usize,
    /// Whether scale and zero point are two f32 in place of one word.
    pub wide: bool,
}

impl UnitFacts {
    /// Words that lie side by side and are read as one vector.
    pub(crate) const fn vector_words(&self) -> usize {
        if self.bits == 3 { 1 } else { self.bits }
    }

    /// Whether products on tensor cores take such a weight: zero points are codes, and scales have no more than the mantissa
    /// of an f16.
    pub const fn on_tensor_cores(&self) -> bool {
        !self.wide
    }

    /// Index of word `word` of a unit of a row.
    const fn word_index(&self, row: usize, unit: usize, word: usize) -> usize {
        let vector = self.vector_words();
        ((row * (self.bits / vector) + word / vector) * self.n_units + unit) * vector + word % vector
    }

    /// Words of scale and zero point of a group.
    const fn param_words(&self) -> usize {
        if self.wide { 2 } else { 1 }
    }
}

/// A weight in units, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitWeight {
    facts: UnitFacts,
    words: Vec<u32>,
    params: Vec<u32>,
}

impl UnitWeight {
    /// Repacks a weight.
    ///
    /// # Errors
    /// A weight that is empty or transformed, codes of more than 4 bits, or groups that are not whole units.
    pub fn new(weight: &QuantizedWeight) -> Result<Self, KernelError> {
        let facts = facts(weight)?;
        let n_rows = facts.n_out.next_multiple_of(ROW_TILE);
        let mut words = vec![0; n_rows * facts.n_units * facts.bits];
        let rows = words.par_chunks_mut(facts.n_units * facts.bits).zip(weight.codes.par_chunks(facts.n_in));
        rows.for_each(|(packed, codes)| {
            for (channel, &code) in codes.iter().enumerate() {
                for bit in 0..facts.bits {
                    let at = bit_of(facts.bits, channel % UNIT, bit);
                    packed[facts.word_index(0, channel / UNIT, at / 32)] |= (u32::from(code) >> bit & 1) << (at % 32);
                }
            }
        });
        let mut params = vec![0; n_rows * facts.n_groups * facts.param_words()];
        // A per-tensor grid has one scale for all rows.
        let n_stored = weight.scale.len();
        for (i, packed) in params.chunks_exact_mut(facts.param_words()).take(facts.n_out * facts.n_groups).enumerate() {
            let (scale, zero_point) = (weight.scale[i % n_stored], weight.zero_point.get(i % n_stored));
            match packed {
                [word] => *word = (scale.to_bits() >> CUT_BITS) << ZERO_BITS | zero_point as u32,
                both => both.copy_from_slice(&[scale.to_bits(), zero_point.to_bits()]),
            }
        }
        Ok(Self { facts, words, params })
    }

    /// The weights that the codes stand for, row-major `[n_out, n_in]`: the layout's definition.
    pub fn dequantize(&self) -> Vec<f32> {
        let facts = &self.facts;
        let mut weight = vec![0.0; facts.n_out * facts.n_in];
        weight.par_chunks_mut(facts.n_in).enumerate().for_each(|(row, weight)| {
            for (channel, w) in weight.iter_mut().enumerate() {
                let unit = channel / UNIT;
                let bit = |bit| {
                    let at = bit_of(facts.bits, channel % UNIT, bit);
                    (self.words[facts.word_index(row, unit, at / 32)] >> (at % 32) & 1) << bit
                };
                let code = (0..facts.bits).map(bit).fold(0, |code, bit| code | bit);
                let (scale, zero_point) = self.params(row * facts.n_groups + unit / facts.units_per_group);
                *w = (code as f32 - zero_point) * scale;
            }
        });
        weight
    }

    /// Scale and zero point of one group.
    fn params(&self, group: usize) -> (f32, f32) {
        if self.facts.wide {
            return (f32::from_bits(self.params[2 * group]), f32::from_bits(self.params[2 * group + 1]));
        }
        let word = self.params[group];
        (f32::from_bits(word >> ZERO_BITS << CUT_BITS), (word & ((1 << ZERO_BITS) - 1)) as f32)
    }

    /// Its sizes.
    pub fn facts(&self) -> &UnitFacts {
        &self.facts
    }

    /// The weight in the memory of a device.
    pub fn upload<B: Backend>(self, device: &B::Device) -> DeviceWeight<B> {
        let tensor = |words: Vec<u32>| {
            let n_words = words.len();
            let words: Vec<i32> = words.into_iter().map(u32::cast_signed).collect();
            Tensor::from_data(TensorData::new(words, [n_words]), (device, DType::I32))
        };
        DeviceWeight { facts: self.facts, words: tensor(self.words), params: tensor(self.params) }
    }
}

fn facts(weight: &QuantizedWeight) -> Result<UnitFacts, KernelError> {
    let (n_out, n_in, bits) = (weight.n_out, weight.n_in, weight.grid.bits.get());
    if n_out == 0 || n_in == 0 {
        return Err(KernelError::Empty(n_out, n_in));
    }
    if weight.transform != WeightTransform::Identity {
        return Err(KernelError::Transformed);
    }
    if let Some(values) = weight.grid.values {
        return Err(KernelError::Codebook(values.facts().name));
    }
    if bits > 4 {
        return Err(KernelError::TooManyBits(bits));
    }
    let group_len = weight.group_len();
    if group_len < n_in && !group_len.is_multiple_of(UNIT) {
        return Err(KernelError::BrokenUnits(group_len));
    }
    let fits = |scale: &f32| *scale >= 0.0 && scale.to_bits().trailing_zeros() >= CUT_BITS;
    let compact = matches!(weight.zero_point, ZeroPoints::Codes(_)) && weight.scale.iter().all(fits);
    let n_units = n_in.div_ceil(UNIT);
    Ok(UnitFacts {
        n_out,
        n_in,
        bits: usize::from(bits),
        n_units,
        units_per_group: group_len.div_ceil(UNIT),
        n_groups: n_in.div_ceil(group_len),
        wide: !compact,
    })
}

/// A [`UnitWeight`] in the memory of a device.
#[derive(Clone, Debug)]
pub struct DeviceWeight<B: Backend> {
    pub(crate) facts: UnitFacts,
    pub(crate) words: Tensor<B, 1, Int>,
    pub(crate) params: Tensor<B, 1, Int>,
}

impl<B: Backend> DeviceWeight<B> {
    /// Repacks and uploads a weight.
    ///
    /// # Errors
    /// As [`UnitWeight::new`].
    pub fn new(weight: &QuantizedWeight, device: &B::Device) -> Result<Self, KernelError> {
        Ok(UnitWeight::new(weight)?.upload(device))
    }

    /// Where it is.
    pub fn device(&self) -> B::Device {
        self.words.device()
    }

    /// Its sizes.
    pub fn facts(&self) -> &UnitFacts {
        &self.facts
    }

    /// Bytes that a product reads.
    pub fn packed_bytes(&self) -> usize {
        size_of::<u32>() * (self.words.shape().num_elements() + self.params.shape().num_elements())
    }

    /// The weight in host memory again.
    pub fn download(&self) -> UnitWeight {
        UnitWeight { facts: self.facts, words: word_vec(&self.words), params: word_vec(&self.params) }
    }
}

/// The words of a tensor of 32-bit integers.
fn word_vec<B: Backend>(words: &Tensor<B, 1, Int>) -> Vec<u32> {
    let words = words.to_data().convert::<i32>().into_vec::<i32>();
    // An integer tensor converts to i32 whatever its storage type is, so the only failure would be a bug in burn.
    let words = words.unwrap_or_else(|error| panic!("an integer tensor has no i32 values: {error:?}"));
    words.into_iter().map(i32::cast_unsigned).collect()
}

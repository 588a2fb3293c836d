//! Quantization grids: which codes exist and what they stand for, which slice of a weight shares one scale, and how both are
//! chosen.
//!
//! A [`Grid`] is an axis of an experiment of its own: a method rounds *onto* a grid and can never change it.
//! The same words mean different things in different code bases (`style`: "symmetric", "range"), so every convention
//! here is a named type:
//!
//! | convention | scale | zero point | codes |
//! |---|---|---|---|
//! | [`Symmetry::Asymmetric`] (AWQ, GPTQ default) | `max(max - min, FLOOR) / (2^b - 1)` | `clamp(round(-min / scale), 0, 2^b - 1)` | `0 ..= 2^b - 1` |
//! | [`Symmetry::SymmetricFullRange`] (GPTQ `sym`) | `2 amax / (2^b - 1)` | `2^(b-1)` | `0 ..= 2^b - 1` |
//! | [`Symmetry::SymmetricRestricted`] (AWQ without zero point) | `amax / (2^(b-1) - 1)` | `2^(b-1)` | `1 ..= 2^b - 1` |
//!
//! A weight is restored as `(code - zero_point) * scale`. Rounding is half to even everywhere.
//!
//! The codes of a grid with a [`Codebook`] stand for the values of a table instead: a weight is restored as
//! `values[code] * scale`, its scale comes from the group's largest magnitude, and it has no zero point.

use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codebook::Codebook;
use crate::numbers::of_table;

mod fitted;
mod groups;
mod rounding;

pub use fitted::FittedGrid;
pub use groups::Groups;

/// Smallest width of a group's range: keeps the scale of a constant group away from zero (the AWQ code's constant).
pub const RANGE_FLOOR: f32 = 1e-5;

/// Number of bits of one code, 2 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Bits(u8);

impl Bits {
    /// `None` unless `bits` is 2 to 8.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 2 && bits <= 8 { Some(Self(bits)) } else { None }
    }

    /// The bit count as a number.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Largest code, `2^b - 1`.
    #[inline]
    pub const fn max_code(self) -> u8 {
        ((1u16 << self.0) - 1) as u8
    }
}

impl TryFrom<u8> for Bits {
    type Error = String;

    fn try_from(bits: u8) -> Result<Self, String> {
        Self::new(bits).ok_or_else(|| format!("bits = {bits} is outside 2..=8; choose 2, 3, 4, 5, 6, 7 or 8"))
    }
}

impl From<Bits> for u8 {
    #[inline]
    fn from(bits: Bits) -> u8 {
        bits.0
    }
}

impl JsonSchema for Bits {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bits".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "minimum": 2, "maximum": 8, "description": "Number of bits of one code"})
    }
}

/// Which weights share one scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// One scale for the whole matrix.
    PerTensor,
    /// One scale for each output channel (row).
    PerChannel,
    /// One scale for each run of this many input channels in a row. The last group may be shorter (576 = 4 x 128 + 64).
    PerGroup(NonZeroU16),
}

impl Granularity {
    /// Input channels of one group in a row of `n_in` weights.
    pub fn group_len(self, n_in: usize) -> usize {
        match self {
            Self::PerTensor | Self::PerChannel => n_in,
            Self::PerGroup(size) => usize::from(size.get()).min(n_in),
        }
    }

    /// Groups in a row of `n_in` weights, a ragged last one included.
    pub fn n_groups(self, n_in: usize) -> usize {
        n_in.div_ceil(self.group_len(n_in).max(1))
    }

    /// `g128`, `per-channel`, `per-tensor`: the label used in tables.
    pub fn label(self) -> String {
        match self {
            Self::PerTensor => "per-tensor".into(),
            Self::PerChannel => "per-channel".into(),
            Self::PerGroup(size) => format!("g{size}"),
        }
    }
}

/// Where the zero of a grid lies; see the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Symmetry {
    /// Free zero point, the range is the group's own minimum and maximum.
    Asymmetric,
    /// Fixed zero point, all `2^b` codes used.
    SymmetricFullRange,
    /// Fixed zero point, the lowest code is left out so that the grid is its own mirror image.
    SymmetricRestricted,
}

/// Storage type of a scale. It changes numbers (a scale is rounded *before* it divides the weight), so it is part of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleDtype {
    /// 16-bit IEEE float, what checkpoints store.
    F16,
    /// 32-bit float, for comparisons with references that never round scales.
    F32,
    /// A power of two in 8 bits, the largest that is not above the scale (OCP Microscaling Formats). With a codebook only.
    E8m0,
    /// An 8-bit float with 3 bits of mantissa, over one f32 scale of the whole matrix, with which the largest reaches 448 (NVFP4). With a
    /// codebook only.
    E4m3,
}

of_table!(ScaleDtype: F16, F32, E8m0, E4m3);

impl ScaleDtype {
    /// Bits of one stored scale.
    pub const fn bits(self) -> u32 {
        self.number().bits()
    }

    /// Bits of what all scales of a matrix are over.
    pub const fn bits_of_matrix(self) -> u32 {
        match self {
            Self::E4m3 => u32::BITS,
            Self::F16 | Self::F32 | Self::E8m0 => 0,
        }
    }

    /// Whether such scales go with a codebook alone.
    const fn needs_codebook(self) -> bool {
        matches!(self, Self::E8m0 | Self::E4m3)
    }
}

/// A quantization grid: codes that are spaced evenly, or those of a codebook ([`Grid::of_codebook`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Bits of one code.
    pub bits: Bits,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// Whether a group's range is widened to hold zero (GPTQ's code does, AWQ's does not). Symmetric grids always hold it.
    pub range_includes_zero: bool,
    /// How scales are stored.
    pub scale_dtype: ScaleDtype,
    /// What codes stand for; `None` where they are spaced evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Codebook>,
}

impl Grid {
    /// A grid of the values of a codebook. Its zero is fixed, as on a symmetric grid.
    pub const fn of_codebook(values: Codebook, granularity: Granularity, scale_dtype: ScaleDtype) -> Self {
        Self {
            bits: values.bits(),
            granularity,
            symmetry: Symmetry::SymmetricFullRange,
            range_includes_zero: false,
            scale_dtype,
            values: Some(values),
        }
    }

    /// What contradicts itself, of a grid that was read.
    ///
    /// # Errors
    /// The keys and what is wrong with them, in words.
    pub fn check(&self) -> Result<(), String> {
        match self.values {
            Some(values) if *self != Self::of_codebook(values, self.granularity, self.scale_dtype) => Err(format!(
                "values = \"{}\" is a table of {} bits without zero points, and other keys say otherwise",
                values.facts().key,
                values.bits().get()
            )),
            None if self.scale_dtype.needs_codebook() => Err(format!(
                "scale_dtype = \"{}\" goes with `values` only: codes that are spaced evenly would not reach the ends of a \
                 group's range; use f16",
                self.scale_dtype.number().name()
            )),
            _ => Ok(()),
        }
    }

    /// The grid of the official AWQ code: asymmetric, over each group's own range, with scales in f16.
    pub const fn awq(bits: Bits, granularity: Granularity) -> Self {
        Self {
            bits,
            granularity,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: false,
            scale_dtype: ScaleDtype::F16,
            values: None,
        }
    }

    /// `W4 g128`, with the departures from an asymmetric grid named: `W4 g128 sym-full`; `NF4 g64` of a codebook.
    pub fn label(&self) -> String {
        if let Some(values) = self.values {
            return self.codebook_label(values);
        }
        let symmetry = match self.symmetry {
            Symmetry::Asymmetric => "",
            Symmetry::SymmetricFullRange => " sym-full",
            Symmetry::SymmetricRestricted => " sym-restricted",
        };
        format!("W{} {}{symmetry}", self.bits.get(), self.granularity.label())
    }

    fn codebook_label(&self, values: Codebook) -> String {
        let group = self.granularity.label();
        match (values, self.scale_dtype, group.as_str()) {
            (Codebook::E2m1, ScaleDtype::E8m0, "g32") => "MXFP4 g32".into(),
            (Codebook::E2m1, ScaleDtype::E4m3, "g16") => "NVFP4 g16".into(),
            (_, ScaleDtype::E8m0 | ScaleDtype::E4m3, _) => {
                format!("{} {group} {}", values.facts().name, self.scale_dtype.number().name())
            }
            (_, ScaleDtype::F16 | ScaleDtype::F32, _) => format!("{} {group}", values.facts().name),
        }
    }

    /// Smallest code in use: 1 on a restricted grid, else 0.
    pub fn min_code(&self) -> u8 {
        u8::from(self.symmetry == Symmetry::SymmetricRestricted)
    }

    /// The grid on a matrix, whose scales may be over one that is the matrix's.
    pub fn fitted(&self, matrix: &[f32]) -> FittedGrid {
        FittedGrid { grid: *self, over: fitted::over(self, matrix) }
    }

    /// [`FittedGrid::group_params`] where scales are over no scale of a matrix.
    pub fn group_params(&self, min: f32, max: f32) -> GroupParams {
        self.group_params_over(min, max, 1.0)
    }

    /// Scale and zero point of a group whose weights span `min ..= max`; a scale is stored as its product with `over`.
    fn group_params_over(&self, min: f32, max: f32, over: f32) -> GroupParams {
        let (min, max) = if self.range_includes_zero { (min.min(0.0), max.max(0.0)) } else { (min, max) };
        let max_code = f32::from(self.bits.max_code());
        let middle = f32::from(self.bits.max_code() / 2 + 1);
        let amax = min.abs().max(max.abs());
        if let Some(values) = self.values {
            return GroupParams { scale: self.codebook_scale(values, amax, over), zero_point: 0.0 };
        }
        let scale = match self.symmetry {
            Symmetry::Asymmetric => (max - min).max(RANGE_FLOOR) / max_code,
            Symmetry::SymmetricFullRange => (2.0 * amax).max(RANGE_FLOOR) / max_code,
            Symmetry::SymmetricRestricted => amax.max(RANGE_FLOOR) / (middle - 1.0),
        };
        let scale = self.scale_dtype.round(scale);
        let zero_point = match self.symmetry {
            Symmetry::Asymmetric => (-min / scale).round_ties_even().clamp(0.0, max_code),
            _ => middle,
        };
        GroupParams { scale, zero_point }
    }

    fn codebook_scale(&self, values: Codebook, amax: f32, over: f32) -> f32 {
        let amax = match self.scale_dtype {
            // As bitsandbytes: a group of zeros has the scale 0.
            ScaleDtype::F32 | ScaleDtype::E8m0 => amax,
            ScaleDtype::F16 => amax.max(RANGE_FLOOR),
            ScaleDtype::E4m3 => return fitted::e4m3_scale(values, amax, over),
        };
        self.scale_dtype.round(amax / values.facts().unit)
    }

    /// Scale and zero point of a group from its own minimum and maximum.
    pub fn group_params_of(&self, group: &[f32]) -> GroupParams {
        let (min, max) = extrema(group);
        self.group_params(min, max)
    }
}

impl ScaleDtype {
    /// What is stored for a scale, as f32.
    pub fn round(self, scale: f32) -> f32 {
        self.number().round(scale)
    }
}

/// What turns the codes of one group into weights: `(code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupParams {
    /// Step between neighbouring codes.
    pub scale: f32,
    /// The code that means zero; a whole number.
    pub zero_point: f32,
}

/// Parameters of a group from its extrema.
#[inline(always)]
pub(crate) fn group_params(group: &[f32], grid: &FittedGrid) -> GroupParams {
    let (min, max) = extrema(group);
    grid.group_params(min, max)
}

#[inline(always)]
fn extrema(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
        }
    }
    let min = low.iter().chain(rest).fold(f32::INFINITY, |a, &b| a.min(b));
    let max = high.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    (min, max)
}

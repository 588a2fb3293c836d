//! Products with packed weights.
//!
//! On a GPU, a [`DeviceWeight`] is multiplied by `crate::backend::QuantBackend::packed_matmul`; its layout is in `units.rs`,
//! its kernels are in `cube/`. The rest is about the CPU.
//!
//! A [`QuantMatmul`] is a weight in the order in which its kernel reads it, packed once. [`KERNELS`] lists the kernels, the
//! best first; each runs where its instructions are found at run time.
//!
//! | activations | what is done to them | label | error of a product against the dequantized weight |
//! |---|---|---|---|
//! | [`Activations::F32`] | nothing | `W4A16 f32` | f32 rounding |
//! | [`Activations::Int16`] | 16-bit integers, a scale for each row and group | `W4A16 int16` | `<= sum over groups of amax / 65278 * sum abs(w)` |
//! | [`Activations::Int8`] | 8-bit integers, a scale for each row and group | `W4A8 int8` | `<= sum over groups of amax / 254 * sum abs(w)` |
//!
//! `amax` is the largest magnitude of the row's activations in a group. Codes are multiplied as integers; zero points
//! multiply the sum of a group's activations. Groups longer than 128 input channels are cut into runs of 128 here.
//!
//! All kernels share one layout (`tiles.rs`) and one body for each kind of activations (`float.rs`, `integer.rs`; `words.rs` multiplies many
//! rows of 16 bits, `tiled.rs` many rows of either kind where the CPU has AMX, with the same bits), written in the vector operations of
//! `lanes.rs`; an instruction set is one file that implements them.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions are unsafe to call until their presence is known")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions are unsafe to call until their presence is known")]
mod avx512;
pub mod bench;
#[cfg(feature = "cube")]
pub mod cube;
pub mod dense;
mod float;
mod fused;
mod gathered;
mod integer;
mod lanes;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code, reason = "vector instructions are unsafe to call until their presence is known")]
mod neon;
mod portable;
mod product;
mod reference;
mod rows;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions are unsafe to call until their presence is known")]
mod tiled;
mod tiles;
mod units;
mod words;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use fused::Fused;
use gathered::Gathered;
use lanes::Lanes;
use reference::Reference;
pub use units::{DeviceWeight, UnitFacts, UnitWeight};
use words::WordLanes;

use crate::quantized::QuantizedWeight;
use crate::transform::WeightTransform;

/// A `[n_out, n_in]` weight, packed for one kernel.
pub trait QuantMatmul: Send + Sync {
    /// Input channels.
    fn n_in(&self) -> usize;

    /// Output channels.
    fn n_out(&self) -> usize;

    /// Bytes of the packed weight, all of which a product reads.
    fn packed_bytes(&self) -> usize;

    /// [`Self::matmul`] without its checks.
    #[doc(hidden)]
    fn multiply(&self, x: &[f32], out: &mut [f32]);

    /// `out = x w^T` for row-major `x: [n_rows, n_in]` and `out: [n_rows, n_out]`, on rayon's current pool; the number of
    /// threads does not change a bit. A row with a value that is not finite gives products that are not finite.
    ///
    /// # Panics
    /// If the lengths are not those of the same number of rows.
    fn matmul(&self, x: &[f32], out: &mut [f32]) {
        let (n_in, n_out) = (self.n_in(), self.n_out());
        assert!(
            x.len().is_multiple_of(n_in) && out.len() == x.len() / n_in * n_out,
            "{} activations and {} products do not fit a [{n_out}, {n_in}] weight",
            x.len(),
            out.len()
        );
        if !x.is_empty() {
            self.multiply(x, out);
        }
    }
}

/// What a kernel does to activations before it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// Nothing.
    F32,
    /// Rounds them to 16-bit integers, with a scale for each row and group.
    Int16,
    /// Rounds them to 8-bit integers, with a scale for each row and group.
    Int8,
}

impl Activations {
    /// `W4A16 f32`: the label in tables.
    pub fn label(self, bits: u8) -> String {
        match self {
            Self::F32 => format!("W{bits}A16 f32"),
            Self::Int16 => format!("W{bits}A16 int16"),
            Self::Int8 => format!("W{bits}A8 int8"),
        }
    }
}

/// Why a weight cannot be packed for a kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KernelError {
    /// No kernel has this name.
    #[error("unknown kernel `{0}`; known are {known}", known = names())]
    Unknown(String),
    /// The CPU lacks an instruction.
    #[error("kernel `{0}` needs instructions that this CPU has not; choose another, or let the best be found")]
    Unavailable(&'static str),
    /// Something lies between the codes and the weight.
    #[error("a weight with a transform (kept or rotated inputs) has no packed kernel; dequantize it")]
    Transformed,
    /// Codes stand for the values of a table.
    #[error("codes of a table of values ({0}) have no packed kernel; dequantize the weight")]
    Codebook(&'static str),
    /// The weight is empty.
    #[error("a [{0}, {1}] weight is empty")]
    Empty(usize, usize),
    /// Only kernels for 2, 3 and 4 bits read units.
    #[error("GPU kernels multiply codes of 2, 3 or 4 bits, not {0}; dequantize the weight")]
    TooManyBits(u8),
    /// A unit would lie in two groups.
    #[error("GPU kernels take groups of a multiple of 32 input channels, not {0}; dequantize the weight")]
    BrokenUnits(usize),
    /// GPTQ's layout has no place for it.
    #[error(
        "GPTQ's layout holds 4-bit codes, zero points that are codes, a scale a row and group, and multiples of 8 channels; this \
         [{0}, {1}] weight of {2} bits does not fit it"
    )]
    NotGptq(usize, usize, u8),
}

/// One way to multiply with packed weights.
pub struct Kernel {
    /// Its key in configurations and tables.
    pub name: &'static str,
    /// What it does to activations.
    pub activations: Activations,
    available: fn() -> bool,
    build: Build,
    /// Work by its instructions, see [`bench::peak`]: floats, bytes.
    arithmetic: (bench::Arithmetic, bench::Arithmetic),
}

/// Packs a weight; `None` where the CPU lacks an instruction.
type Build = fn(&QuantizedWeight) -> Option<Box<dyn QuantMatmul>>;

/// Every kernel of this architecture, the fastest of each kind of activations first. `reference` is the last.
pub const KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel::tiled("amx-int16", Activations::Int16, |weight| tiled::Tiled::boxed(weight, Activations::Int16)),
    #[cfg(target_arch = "x86_64")]
    Kernel::tiled("amx-int8", Activations::Int8, |weight| tiled::Tiled::boxed(weight, Activations::Int8)),
    #[cfg(target_arch = "x86_64")]
    Kernel::int16_by_words::<avx512::Avx512>("avx512-int16"),
    #[cfg(target_arch = "x86_64")]
    Kernel::f32::<avx512::Avx512>("avx512-f32"),
    #[cfg(target_arch = "x86_64")]
    Kernel::int8::<avx512::Avx512>("avx512-int8"),
    #[cfg(target_arch = "x86_64")]
    Kernel::int16_by_words::<avx2::Avx2>("avx2-int16"),
    #[cfg(target_arch = "x86_64")]
    Kernel::f32::<avx2::Avx2>("avx2-f32"),
    #[cfg(target_arch = "x86_64")]
    Kernel::int8::<avx2::Avx2>("avx2-int8"),
    #[cfg(target_arch = "aarch64")]
    Kernel::int16::<neon::Neon>("neon-int16"),
    #[cfg(target_arch = "aarch64")]
    Kernel::f32::<neon::Neon>("neon-f32"),
    #[cfg(target_arch = "aarch64")]
    Kernel::int8::<neon::Neon>("neon-int8"),
    Kernel::int16_by_words::<portable::Portable>("portable-int16"),
    Kernel::f32::<portable::Portable>("portable-f32"),
    Kernel::int8::<portable::Portable>("portable-int8"),
    Kernel {
        name: "reference",
        activations: Activations::F32,
        available: || true,
        build: |weight| Some(Box::new(Reference::new(weight))),
        arithmetic: (bench::multiply_floats::<portable::Portable>, bench::multiply_bytes::<portable::Portable>),
    },
];

impl Kernel {
    const fn f32<L: Lanes>(name: &'static str) -> Self {
        Self::fused::<L>(name, Activations::F32, |weight| Fused::<L>::boxed(weight, Activations::F32, None))
    }

    #[cfg(target_arch = "aarch64")]
    const fn int16<L: Lanes>(name: &'static str) -> Self {
        Self::fused::<L>(name, Activations::Int16, |weight| Fused::<L>::boxed(weight, Activations::Int16, None))
    }

    /// The same with 16-bit products for many rows.
    const fn int16_by_words<L: WordLanes>(name: &'static str) -> Self {
        Self::fused::<L>(name, Activations::Int16, |weight| {
            Fused::<L>::boxed(weight, Activations::Int16, Some(words::multiply::<L>))
        })
    }

    const fn int8<L: Lanes>(name: &'static str) -> Self {
        Self::fused::<L>(name, Activations::Int8, |weight| Fused::<L>::boxed(weight, Activations::Int8, None))
    }

    const fn fused<L: Lanes>(name: &'static str, activations: Activations, build: Build) -> Self {
        let arithmetic = (bench::multiply_floats::<L> as bench::Arithmetic, bench::multiply_bytes::<L> as _);
        Self { name, activations, available: || L::detect().is_some(), arithmetic, build }
    }

    /// By tiles, where rows are many.
    #[cfg(target_arch = "x86_64")]
    const fn tiled(name: &'static str, activations: Activations, build: Build) -> Self {
        let arithmetic =
            (bench::multiply_floats::<avx512::Avx512> as bench::Arithmetic, tiled::multiply_bytes_by_tiles as _);
        Self { name, activations, available: tiled::is_available, arithmetic, build }
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<&'static Self, KernelError> {
        let found = KERNELS.iter().find(|kernel| kernel.name == name);
        found.ok_or_else(|| KernelError::Unknown(name.into()))
    }

    /// The fastest kernel on this CPU with these activations.
    pub fn best(activations: Activations) -> &'static Self {
        let mut found = KERNELS.iter().filter(|kernel| kernel.activations == activations && kernel.is_available());
        found.next().unwrap_or(&KERNELS[KERNELS.len() - 1])
    }

    /// Whether this CPU has its instructions.
    pub fn is_available(&self) -> bool {
        (self.available)()
    }

    /// Packs a weight for this kernel.
    ///
    /// # Errors
    /// If the CPU lacks its instructions, or it does not take such weights.
    pub fn pack(&self, weight: &QuantizedWeight) -> Result<Box<dyn QuantMatmul>, KernelError> {
        if weight.n_in == 0 || weight.n_out == 0 {
            return Err(KernelError::Empty(weight.n_out, weight.n_in));
        }
        if let Some(values) = weight.grid.values {
            return Err(KernelError::Codebook(values.facts().name));
        }
        let build = |weight| (self.build)(weight).ok_or(KernelError::Unavailable(self.name));
        match &weight.transform {
            WeightTransform::Identity => build(weight),
            WeightTransform::PermutedInputs(order) => {
                let in_order = QuantizedWeight { transform: WeightTransform::Identity, ..weight.clone() };
                Ok(Box::new(Gathered::new(build(&in_order)?, order.clone())))
            }
            WeightTransform::KeptInputs(_) | WeightTransform::Rotated(_) => Err(KernelError::Transformed),
        }
    }
}

fn names() -> String {
    KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ")
}

//! [`Fused`]: a packed matrix and the instruction set that multiplies with it.

use rayon::prelude::*;

use super::float::Float;
use super::integer::Integer;
use super::lanes::Lanes;
use super::product::multiply;
use super::rows::{Block, FloatRows, IntegerRows, Width, blocks};
use super::tiles::Tiles;
use super::{Activations, QuantMatmul, words};
use crate::quantized::QuantizedWeight;

/// Runs an expression with the stored bits of a code as a constant.
macro_rules! with_bits {
    ($bits:expr, $BITS:ident => $body:expr) => {
        match $bits {
            2 => {
                const $BITS: usize = 2;
                $body
            }
            3 => {
                const $BITS: usize = 3;
                $body
            }
            4 => {
                const $BITS: usize = 4;
                $body
            }
            _ => {
                const $BITS: usize = 8;
                $body
            }
        }
    };
}

pub(super) use with_bits;

/// Rows from which blocks are prepared in parallel.
const PARALLEL_FROM: usize = 32;

/// Another way to multiply with many rows, bit for bit the same.
pub(super) type OfMany<L> = fn(L, &Tiles, &[f32], &mut [f32]);

/// A packed `[n_out, n_in]` matrix for one instruction set and one precision of activations.
pub(super) struct Fused<L> {
    lanes: L,
    tiles: Tiles,
    activations: Activations,
    of_many: Option<OfMany<L>>,
}

impl<L: Lanes> Fused<L> {
    /// Packs a weight; `None` where the CPU lacks an instruction.
    pub(super) fn boxed(
        weight: &QuantizedWeight,
        activations: Activations,
        of_many: Option<OfMany<L>>,
    ) -> Option<Box<dyn QuantMatmul>> {
        Some(Box::new(Self::new(weight, activations, of_many)?))
    }

    /// Packs a weight; `None` where the CPU lacks an instruction.
    pub(super) fn new(weight: &QuantizedWeight, activations: Activations, of_many: Option<OfMany<L>>) -> Option<Self> {
        let lanes = L::detect()?;
        Some(Self { lanes, tiles: Tiles::new(weight, L::COMPACT), activations, of_many })
    }

    /// Its proof of instructions, and its matrix.
    pub(super) fn parts(&self) -> (L, &Tiles) {
        (self.lanes, &self.tiles)
    }

    fn multiply_floats(&self, x: &[f32], out: &mut [f32]) {
        let rows = prepare(x.len() / self.tiles.n_in, self.block_rows(), |block| {
            FloatRows::new(x, self.tiles.n_in, block, &self.tiles.segments)
        });
        with_bits!(self.tiles.bits, BITS => multiply::<L, Float<BITS>>(self.lanes, &self.tiles, &rows, out));
    }

    fn multiply_integers(&self, x: &[f32], out: &mut [f32], width: Width) {
        let rows = prepare(x.len() / self.tiles.n_in, self.block_rows(), |block| {
            IntegerRows::new(self.lanes, x, self.tiles.n_in, block, &self.tiles.segments, width)
        });
        match width {
            Width::Eight => {
                with_bits!(self.tiles.bits, BITS => multiply::<L, Integer<BITS, 1>>(self.lanes, &self.tiles, &rows, out));
            }
            Width::Sixteen => {
                with_bits!(self.tiles.bits, BITS => multiply::<L, Integer<BITS, 2>>(self.lanes, &self.tiles, &rows, out));
            }
        }
    }

    /// Most rows of a block: their sums must fit into registers, and int16 needs two sums a row.
    fn block_rows(&self) -> usize {
        if self.activations == Activations::Int16 { L::MAX_ROWS.min(4) } else { L::MAX_ROWS }
    }
}

fn prepare<R: Send>(n_rows: usize, max: usize, new: impl Fn(Block) -> R + Sync) -> Vec<R> {
    let blocks = blocks(n_rows, max);
    if n_rows < PARALLEL_FROM {
        return blocks.into_iter().map(new).collect();
    }
    blocks.into_par_iter().map(&new).collect()
}

impl<L: Lanes> QuantMatmul for Fused<L> {
    fn n_in(&self) -> usize {
        self.tiles.n_in
    }

    fn n_out(&self) -> usize {
        self.tiles.n_out
    }

    fn packed_bytes(&self) -> usize {
        self.tiles.bytes()
    }

    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        if let Some(multiply) = self.of_many.filter(|_| words::pays(x.len() / self.tiles.n_in)) {
            return multiply(self.lanes, &self.tiles, x, out);
        }
        match self.activations {
            Activations::F32 => self.multiply_floats(x, out),
            Activations::Int16 => self.multiply_integers(x, out, Width::Sixteen),
            Activations::Int8 => self.multiply_integers(x, out, Width::Eight),
        }
    }
}

//! What the lanes of a plane hold of the matrices that a tensor core multiplies, and the multiplication.

use burn_cubecl::cubecl;
use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::super::units::{code_bit, n_together};
use super::unpack::scattered;

/// Lanes of a plane.
pub(super) const N_LANES: usize = 32;
/// Two values of an activation's type: a register.
pub(super) type Pair<F> = Vector<F, Const<2>>;

/// A vector of activations as pairs of neighbours, from channel `first` of a unit on; zeros beyond the last channel, where there
/// may be such channels.
#[cube]
pub(super) fn read_pairs<F: Float, X: Size>(
    x: &Array<Vector<F, X>>,
    at: u32,
    exists: bool,
    pairs: &mut Array<Pair<F>>,
    #[comptime] first: usize,
    #[comptime] all_exist: bool,
    #[comptime] native: bool,
) {
    let x_width = X::value();
    let index = at as usize / x_width;
    if comptime!(native && x_width > 1) {
        // As words, for compilers take vectors of 16-bit values apart and put them together again.
        let n_words = comptime!(x_width / 2);
        let size!(Words) = n_words;
        let mut words = Vector::<u32, Words>::new(0u32);
        // Loads behind branches would wait for each other.
        if comptime!(all_exist) {
            words = Vector::<u32, Words>::reinterpret(x[index]);
        } else {
            if exists {
                words = Vector::<u32, Words>::reinterpret(x[index]);
            }
        }
        #[unroll]
        for i in 0..n_words {
            pairs[comptime!(first / 2 + i)] = Pair::<F>::reinterpret(words[i]);
        }
    } else {
        let mut values = Vector::<F, X>::new(F::new(0.0));
        if comptime!(all_exist) {
            values = x[index];
        } else {
            if exists {
                values = x[index];
            }
        }
        #[unroll]
        for i in 0..x_width {
            let pair_idx = comptime!((first + i) / 2);
            let mut pair = pairs[pair_idx];
            pair[comptime!((first + i) % 2)] = values[i];
            pairs[pair_idx] = pair;
        }
    }
}

/// The codes of the channels `2 pair` and `2 pair + 1`, in the lower and the upper half of a word.
#[cube]
pub(super) fn pair_bits(
    codes: &Array<u32>,
    #[comptime] first: usize,
    #[comptime] bits: usize,
    #[comptime] pair: usize,
) -> u32 {
    let bit = comptime!(code_bit(bits, 2 * pair));
    let shift = comptime!((bit % 32) as u32);
    if comptime!(2 * pair < n_together(bits)) {
        (codes[comptime!(first + bit / 32)] >> shift) & comptime!(((1u32 << bits) - 1) * 0x1_0001)
    } else {
        scattered(codes, first, shift, 0x1_0001u32)
    }
}

/// Each of a pair of codes plus `base`, a power of two as which both halves of `magic` are read.
#[cube]
pub(super) fn as_floats<F: Float>(pair: u32, magic: u32, #[comptime] base: u32, #[comptime] native: bool) -> Pair<F> {
    if comptime!(native) {
        Pair::<F>::reinterpret(pair | magic)
    } else {
        // WGSL's compiler (naga 29) takes the bits of two f16 for two f32.
        let base = comptime!(base as f32);
        let mut floats = Pair::<F>::empty();
        floats[0] = F::cast_from(f32::cast_from(pair & 0xffffu32) + base);
        floats[1] = F::cast_from(f32::cast_from(pair >> 16u32) + base);
        floats
    }
}

/// `c += a b^T` of the 16 by 16 matrix `a` and the 8 by 16 matrix `b` that a plane holds. Lane `4 g + t` has the elements
/// `(g, 2t..)`, `(g + 8, 2t..)`, `(g, 2t + 8..)`, `(g + 8, 2t + 8..)` of `a`, `(g, 2t..)` and `(g, 2t + 8..)` of `b`, and
/// `(g, 2t..)` and `(g + 8, 2t..)` of `c`, two of a row each (PTX ISA, "Matrix Fragments for mma.m16n8k16").
#[cube]
pub(super) fn multiply_add<F: Float>(
    a: &Array<Pair<F>>,
    b: &Array<Pair<F>>,
    c: &mut Array<Vector<f32, Const<2>>>,
    shared: &mut SharedMemory<f32>,
    #[comptime] native: bool,
) {
    if comptime!(native) {
        MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize).execute_inplace(a, b, c);
    } else {
        exchange_and_multiply_add(a, b, c, shared);
    }
}

/// Values of a lane that others need where the device has no such instruction.
pub(super) const EXCHANGED: usize = 12;

/// [`multiply_add`] through shared memory. Every plane of the cube must call it equally often.
#[cube]
fn exchange_and_multiply_add<F: Float>(
    a: &Array<Pair<F>>,
    b: &Array<Pair<F>>,
    c: &mut Array<Vector<f32, Const<2>>>,
    shared: &mut SharedMemory<f32>,
) {
    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize * comptime!(EXCHANGED * N_LANES);
    #[unroll]
    for i in 0..EXCHANGED {
        let pair = if comptime!(i < 8) { a[comptime!(i / 2)] } else { b[comptime!((i - 8) / 2)] };
        shared[plane + comptime!(i * N_LANES) + lane] = f32::cast_from(pair[comptime!(i % 2)]);
    }
    sync_cube();
    #[unroll]
    for half in 0..2usize {
        let mut sums = c[half];
        let left = plane + comptime!(2 * half * N_LANES) + lane / 4 * 4;
        let right = plane + comptime!(8 * N_LANES) + lane % 4 * 8;
        for k in 0..16usize {
            // Two of a row in a lane, two lanes on the next two channels, and the upper eight in other pairs.
            let holder = k % 8 / 2;
            let weight = shared[left + (k / 8 * 4 + k % 2) * N_LANES + holder];
            let of_b = right + (k / 8 * 2 + k % 2) * N_LANES + holder;
            sums[0] = fma(weight, shared[of_b], sums[0]);
            sums[1] = fma(weight, shared[of_b + 4], sums[1]);
        }
        c[half] = sums;
    }
    sync_cube();
}

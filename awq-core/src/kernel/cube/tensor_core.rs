//! Rows of activations times packed weights, on tensor cores (`mma.m16n8k16`: 16 outputs, 8 rows, 16 channels).
//!
//! A cube computes 16 outputs for some tiles of 8 rows; its planes (warps) divide the input channels among them, a quad of
//! units (128 channels) at a time, and add up at the end. Which of the 16 channels of a multiplication is which does not
//! matter as long as both factors agree, so each lane takes a whole unit: lane `4 g + t` holds unit `t` of the quad, of the
//! outputs `g` and `g + 8` and of row `g`, which is where the instruction wants them. Codes go from memory to registers to the
//! tensor cores; nothing passes through shared memory.
//!
//! Two codes at a time become floats: under the bits of 2^10 (f16) or 2^7 (bf16) a code is the lowest bits of the mantissa.
//! Code minus zero point is exact. Where groups are whole quads their scale multiplies f32 sums; otherwise the weight is
//! rounded to the activations' type first, as when it is dequantized.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::super::UnitFacts;
use super::super::units::UNIT;
use super::fragment::{EXCHANGED, N_LANES, Pair, as_floats, multiply_add, pair_bits, read_pairs};
use super::unpack::params_of;

/// Outputs of a cube.
const N_OUTS: usize = 16;
/// Rows of a tile.
const N_ROWS: usize = 8;
/// Planes of a cube: few where there are cubes enough to keep the device busy, many where planes would otherwise go through a
/// long row one step after the other.
const N_PLANES: [usize; 2] = [8, 16];
/// Planes that a multiprocessor holds at a time, with the registers that this kernel needs.
const RESIDENT_PLANES: usize = 32;
/// Multiprocessors of a device that does not tell.
const MANY_MULTIPROCESSORS: usize = 128;
/// Bytes of shared memory that every device has.
const SHARED_BYTES: usize = 32 << 10;
/// Units whose channels are multiplied together.
const QUAD: usize = 4;
/// Pairs of codes of a unit. Two are a lane's part of a multiplication.
const N_PAIRS: usize = UNIT / 2;
const N_STEPS: usize = N_PAIRS / 2;

/// What one cube computes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Tiles of 8 rows.
    n_tiles: usize,
    /// Planes, which divide a row among them.
    n_planes: usize,
    /// Whether every plane has whole units to multiply in every step.
    whole: bool,
    /// Bits of a code.
    bits: usize,
    /// Words that are read as one vector.
    vector_words: usize,
    /// Whether the units of a quad have one scale.
    shared_scale: bool,
    /// The power of two under whose bits a code is put.
    base: u32,
    /// Whether the device has the instruction; otherwise lanes exchange their values and multiply them one by one.
    native: bool,
}

/// Whether a device multiplies activations of `dtype` so.
pub(super) fn is_native<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> bool {
    let kind = match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => return false,
    };
    let (a_type, cd_type) = (ElemType::Float(kind).into(), ElemType::Float(FloatKind::F32).into());
    let config = MmaConfig { a_type, b_type: a_type, cd_type, m: 16, n: 8, k: 16 };
    client.properties().features.matmul.mma.contains(&config) && client.properties().hardware.plane_size_max == 32
}

/// `x w^T` for `x: [n, n_in]` of f16 or bf16; returns `[n, n_out]` of that type.
pub(super) fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    words: CubeTensor<R>,
    params: CubeTensor<R>,
    facts: &UnitFacts,
) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let (client, device, dtype) = (x.client.clone(), x.device.clone(), x.dtype);
    let n = x.meta.shape()[0];
    let (magic, base) = if dtype == DType::BF16 { (0x4300_4300_u32, 1 << 7) } else { (0x6400_6400, 1 << 10) };
    let n_tiles = n.div_ceil(N_ROWS).next_power_of_two().min(8);
    let n_cubes = facts.n_out.div_ceil(N_OUTS) * n.div_ceil(N_ROWS * n_tiles);
    let hardware = &client.properties().hardware;
    let n_multiprocessors = hardware.num_streaming_multiprocessors.map_or(MANY_MULTIPROCESSORS, |n| n as usize);
    let n_planes = n_planes(n_cubes, n_tiles, facts.n_units, n_multiprocessors, hardware.max_units_per_cube as usize);
    let tile = Tile {
        n_tiles,
        n_planes,
        whole: facts.n_in.is_multiple_of(UNIT * QUAD * n_planes),
        bits: facts.bits,
        vector_words: facts.vector_words(),
        shared_scale: facts.n_groups == 1 || facts.units_per_group.is_multiple_of(QUAD),
        base,
        native: is_native(&client, dtype),
    };
    let widths = client.io_optimized_vector_sizes(dtype.size());
    let x_width = widths.filter(|width| *width <= 8 && facts.n_in.is_multiple_of(*width)).max().unwrap_or(1);
    let out = client.empty(n * facts.n_out * dtype.size());
    let out = CubeTensor::new_contiguous(client.clone(), device, [n, facts.n_out].into(), out, dtype);
    let cubes = CubeCount::Static(facts.n_out.div_ceil(N_OUTS) as u32, n.div_ceil(N_ROWS * tile.n_tiles) as u32, 1);
    // SAFETY: threads read units below `n_units` of rows below `n_out`, rows of `x` below `n` and channels below `n_in`, and
    // write outputs below `n_out` of rows below `n`.
    unsafe {
        tensor_core::launch_unchecked::<R>(
            &client,
            cubes,
            CubeDim::new_2d(N_LANES as u32, n_planes as u32),
            tile.vector_words,
            x_width,
            x.into_array_arg(),
            words.into_array_arg(),
            params.into_array_arg(),
            out.clone().into_array_arg(),
            n as u32,
            facts.n_in as u32,
            facts.n_out as u32,
            facts.n_units as u32,
            facts.units_per_group as u32,
            facts.n_groups as u32,
            magic,
            tile,
            dtype.into(),
        );
    }
    out
}

/// More planes, where the device has room for them and a row enough quads.
fn n_planes(n_cubes: usize, n_tiles: usize, n_units: usize, n_multiprocessors: usize, most_threads: usize) -> usize {
    let [few, many] = N_PLANES;
    let is_idle = n_cubes * few < n_multiprocessors * RESIDENT_PLANES;
    let fits = many * N_LANES <= most_threads && many * N_LANES * 4 * n_tiles * size_of::<f32>() <= SHARED_BYTES;
    if is_idle && fits && n_units >= many * QUAD { many } else { few }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its interface to the device")]
fn tensor_core<F: Float, W: Size, X: Size>(
    x: &Array<Vector<F, X>>,
    words: &Array<Vector<u32, W>>,
    params: &Array<u32>,
    out: &mut Array<F>,
    n: u32,
    n_in: u32,
    n_out: u32,
    n_units: u32,
    units_per_group: u32,
    n_groups: u32,
    // As a constant it would cost an instruction of its own for each pair.
    magic: u32,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: StorageType,
) {
    let n_tiles = comptime!(tile.n_tiles);
    let n_sums = comptime!(4 * tile.n_tiles);
    let bits = comptime!(tile.bits);
    let x_width = X::value();
    let (lane, plane) = (UNIT_POS_X, UNIT_POS_Y);
    let (of_row, of_quad) = (lane / 4u32, lane % 4u32);
    let first_out = CUBE_POS_X * comptime!(N_OUTS as u32);
    let first_row = CUBE_POS_Y * comptime!((N_ROWS * tile.n_tiles) as u32);
    // Outputs beyond the last compute what the last does, and are not written.
    let out_a = u32::min(first_out + of_row, n_out - 1u32);
    let out_b = u32::min(first_out + of_row + 8u32, n_out - 1u32);

    let mut shared = SharedMemory::<f32>::new(comptime!(shared_len(tile)));
    let mut sums = Array::<f32>::new(n_sums);
    #[unroll]
    for i in 0..n_sums {
        sums[i] = 0.0f32;
    }
    let mut product = Array::<Vector<f32, Const<2>>>::new(2usize);
    let mut codes = Array::<u32>::new(comptime!(2 * tile.bits));
    let mut next = Array::<u32>::new(comptime!(2 * tile.bits));
    let mut pairs = Array::<Pair<F>>::new(N_PAIRS);
    let mut b = Array::<Pair<F>>::new(2usize);

    // Every plane makes as many steps as any other: units beyond the last are multiplied by activations of 0.
    let n_steps = n_units.div_ceil(comptime!((QUAD * tile.n_planes) as u32));
    let mut unit = plane * comptime!(QUAD as u32) + of_quad;
    let first_unit = u32::min(unit, n_units - 1u32);
    read_units(words, out_a, out_b, first_unit, n_units, &mut next, tile);
    let mut next_params_a = params[(out_a * n_groups + first_unit / units_per_group) as usize];
    let mut next_params_b = params[(out_b * n_groups + first_unit / units_per_group) as usize];
    for _ in 0..n_steps {
        #[unroll]
        for i in 0..comptime!(2 * tile.bits) {
            codes[i] = next[i];
        }
        let params_a = params_of(next_params_a);
        let params_b = params_of(next_params_b);
        // While these codes are multiplied, the next are on their way, with their parameters.
        let next_unit = unit + comptime!((QUAD * tile.n_planes) as u32);
        let read_unit = u32::min(next_unit, n_units - 1u32);
        read_units(words, out_a, out_b, read_unit, n_units, &mut next, tile);
        next_params_a = params[(out_a * n_groups + read_unit / units_per_group) as usize];
        next_params_b = params[(out_b * n_groups + read_unit / units_per_group) as usize];
        let base = comptime!(tile.base as f32);
        let zero_a = Pair::<F>::new(F::cast_from(params_a.zero + base));
        let zero_b = Pair::<F>::new(F::cast_from(params_b.zero + base));
        let mut scale_a = params_a.scale;
        let mut scale_b = params_b.scale;
        let pair_scale_a = Pair::<F>::new(F::cast_from(scale_a));
        let pair_scale_b = Pair::<F>::new(F::cast_from(scale_b));
        if comptime!(!tile.shared_scale) {
            scale_a = 1.0f32;
            scale_b = 1.0f32;
        }

        let mut weights = Sequence::<Array<Pair<F>>>::new();
        #[unroll]
        for step in 0..N_STEPS {
            let mut a = Array::<Pair<F>>::new(4usize);
            #[unroll]
            for half in 0..2usize {
                let pair = comptime!(2 * step + half);
                let (codes_a, codes_b) = (pair_bits(&codes, 0usize, bits, pair), pair_bits(&codes, bits, bits, pair));
                let mut weight_a = as_floats::<F>(codes_a, magic, tile.base, tile.native) - zero_a;
                let mut weight_b = as_floats::<F>(codes_b, magic, tile.base, tile.native) - zero_b;
                if comptime!(!tile.shared_scale) {
                    weight_a *= pair_scale_a;
                    weight_b *= pair_scale_b;
                }
                a[comptime!(2 * half)] = weight_a;
                a[comptime!(2 * half + 1)] = weight_b;
            }
            weights.push(a);
        }

        #[unroll]
        for t in 0..n_tiles {
            // Rows beyond the last compute what the last does, and are not written.
            let row = u32::min(first_row + comptime!((N_ROWS * t) as u32) + of_row, n - 1u32);
            #[unroll]
            for j in 0..comptime!(UNIT / x_width) {
                let first = comptime!(j * x_width);
                let channel = unit * comptime!(UNIT as u32) + comptime!(first as u32);
                read_pairs(x, row * n_in + channel, channel < n_in, &mut pairs, first, tile.whole, tile.native);
            }
            product[0] = Vector::new(0.0f32);
            product[1] = Vector::new(0.0f32);
            #[unroll]
            for step in 0..N_STEPS {
                b[0] = pairs[comptime!(2 * step)];
                b[1] = pairs[comptime!(2 * step + 1)];
                multiply_add(weights.index(step), &b, &mut product, &mut shared, tile.native);
            }
            #[unroll]
            for i in 0..2usize {
                sums[comptime!(4 * t + i)] = fma(scale_a, product[0][i], sums[comptime!(4 * t + i)]);
                sums[comptime!(4 * t + 2 + i)] = fma(scale_b, product[1][i], sums[comptime!(4 * t + 2 + i)]);
            }
        }
        unit = next_unit;
    }

    #[unroll]
    for i in 0..n_sums {
        shared[(plane as usize * n_sums + i) * N_LANES + lane as usize] = sums[i];
    }
    sync_cube();
    // Thread by thread a sum of each lane, in an order that does not change from run to run.
    #[unroll]
    for round in 0..comptime!(n_sums.div_ceil(tile.n_planes)) {
        let i = plane + comptime!((round * tile.n_planes) as u32);
        if i < comptime!(n_sums as u32) {
            let mut total = 0.0f32;
            #[unroll]
            for of in 0..comptime!(tile.n_planes) {
                total += shared[(comptime!(of * n_sums) + i as usize) * N_LANES + lane as usize];
            }
            let out_idx = first_out + of_row + i % 4u32 / 2u32 * 8u32;
            let row = first_row + i / 4u32 * 8u32 + of_quad * 2u32 + i % 2u32;
            if out_idx < n_out && row < n {
                out[(row * n_out + out_idx) as usize] = F::cast_from(total);
            }
        }
    }
}

/// The words of one unit of two outputs.
#[cube]
fn read_units<W: Size>(
    words: &Array<Vector<u32, W>>,
    out_a: u32,
    out_b: u32,
    unit: u32,
    n_units: u32,
    to: &mut Array<u32>,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.bits / tile.vector_words);
    #[unroll]
    for i in 0..vectors {
        let vector_a = words[((out_a as usize * vectors + i) * n_units as usize) + unit as usize];
        let vector_b = words[((out_b as usize * vectors + i) * n_units as usize) + unit as usize];
        #[unroll]
        for w in 0..comptime!(tile.vector_words) {
            let word = comptime!(i * tile.vector_words + w);
            to[word] = vector_a[w];
            to[comptime!(tile.bits + word)] = vector_b[w];
        }
    }
}

/// Floats of shared memory: the sums of all planes and, where lanes exchange values, those.
const fn shared_len(tile: Tile) -> usize {
    let (sums, exchanged) = (4 * tile.n_tiles, if tile.native { 0 } else { EXCHANGED });
    tile.n_planes * N_LANES * if sums > exchanged { sums } else { exchanged }
}

#[cfg(test)]
mod tests {
    use super::n_planes;

    #[test]
    fn a_device_is_filled_by_cubes_or_else_by_planes() {
        // An H100 has 132 multiprocessors. [4096, 4096] are 256 cubes, [14336, 4096] 896, [8192, 28672] 512.
        let on_h100 = |n_cubes, n_tiles, n_in: usize| n_planes(n_cubes, n_tiles, n_in / 32, 132, 1024);
        assert_eq!([on_h100(256, 1, 4096), on_h100(896, 1, 4096), on_h100(512, 1, 28672)], [16, 8, 16]);
        assert_eq!(on_h100(256, 4, 4096), 16);
        assert_eq!(on_h100(256, 8, 4096), 8, "no room for the sums of 64 rows");
        assert_eq!(on_h100(256, 1, 1024), 8, "half of the planes would have nothing to do");
        assert_eq!(n_planes(256, 1, 128, 132, 256), 8, "a device with small cubes");
    }
}

//! A few rows of activations times packed weights.
//!
//! A cube computes a [`Tile`] of outputs: its units (threads) divide the input channels among them, 32 at a time, and add
//! up at the end. Neighbours read neighbouring words, 16 bytes each at 4 bits. A unit's codes become floats once and are
//! multiplied by every row of the tile; a row's activations are read once and multiplied by every output. Scale and zero
//! point of a group come in at the end of its 32 codes, `scale (sum x code - zero sum x)`, so that a code costs a mask, an
//! addition that makes it a float, and a multiplication for each row.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::Plane;
use cubecl::prelude::*;

use super::super::UnitFacts;
use super::super::units::{ROW_TILE, UNIT};
use super::unpack::{CHUNK, MAGIC, field, group_params, scattered, small_float};

/// What one cube computes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    /// Outputs. Divides [`ROW_TILE`].
    n_outs: usize,
    /// Rows of activations.
    n_rows: usize,
    /// Units (threads), a power of two and no fewer than `n_outs * n_rows`.
    n_threads: u32,
    /// Threads of the smallest plane (warp) that adds up by itself; 0 where the device has no such operation.
    plane_size: u32,
    /// Bits of a code.
    bits: usize,
    /// Words that are read as one vector.
    vector_words: usize,
    /// Whether scale and zero point are two words.
    wide: bool,
    /// Whether the last unit of a row reaches beyond the input channels.
    ragged: bool,
}

impl Tile {
    fn new(facts: &UnitFacts, n_rows: usize, plane_size: u32) -> Self {
        let (n_rows, n_outs) = match n_rows {
            1 => (1, 4),
            2 => (2, 4),
            3..=4 => (4, 4),
            5..=8 => (8, 4),
            // More sums than these would not stay in registers.
            _ => (16, 2),
        };
        debug_assert!(ROW_TILE.is_multiple_of(n_outs), "a tile would read beyond the last row");
        Self {
            n_outs,
            n_rows,
            n_threads: n_threads(facts.n_units),
            plane_size,
            bits: facts.bits,
            vector_words: facts.vector_words(),
            wide: facts.wide,
            ragged: !facts.n_in.is_multiple_of(UNIT),
        }
    }
}

/// The threads that leave the fewest without a unit in the last of their rounds over a row, 128 where that is a tie: enough
/// for every SM to hold many cubes, and 128 sums a thread still fit into shared memory where planes cannot add up.
fn n_threads(n_units: usize) -> u32 {
    let idle = |threads: &u32| n_units.next_multiple_of(*threads as usize);
    [128, 64, 32].into_iter().min_by_key(idle).unwrap_or(32)
}

/// `x w^T` for `x: [n, n_in]`; returns `[n, n_out]` of the type of `x`.
pub(super) fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    words: CubeTensor<R>,
    params: CubeTensor<R>,
    facts: &UnitFacts,
) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let (client, device, dtype) = (x.client.clone(), x.device.clone(), x.dtype);
    let n = x.meta.shape()[0];
    let properties = client.properties();
    let plane_size =
        if properties.features.plane.contains(Plane::Ops) { properties.hardware.plane_size_min } else { 0 };
    let tile = Tile::new(facts, n, plane_size);
    let widths = client.io_optimized_vector_sizes(dtype.size());
    let x_width = widths.filter(|width| *width <= CHUNK && facts.n_in.is_multiple_of(*width)).max().unwrap_or(1);
    let shape = [n, facts.n_out].into();
    let out = client.empty(n * facts.n_out * dtype.size());
    let out = CubeTensor::new_contiguous(client.clone(), device, shape, out, dtype);
    let cubes = CubeCount::Static(facts.n_out.div_ceil(tile.n_outs) as u32, n.div_ceil(tile.n_rows) as u32, 1);
    // SAFETY: threads read whole units of rows that the packed weight holds (filled up to `ROW_TILE`), rows of `x` below `n`
    // and channels below `n_in`, and write outputs below `n_out` of rows below `n`.
    unsafe {
        matvec::launch_unchecked::<R>(
            &client,
            cubes,
            CubeDim::new_1d(tile.n_threads),
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
            MAGIC,
            tile,
            dtype.into(),
        );
    }
    out
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its interface to the device")]
fn matvec<F: Float, W: Size, X: Size>(
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
    magic: u32,
    #[comptime] tile: Tile,
    #[define(F)] _dtype: StorageType,
) {
    let n_outs = comptime!(tile.n_outs);
    let n_rows = comptime!(tile.n_rows);
    let n_sums = comptime!(tile.n_outs * tile.n_rows);
    let bits = comptime!(tile.bits);
    let vectors = comptime!(tile.bits / tile.vector_words);
    let x_width = X::value();
    // Codes in place cost a multiplication for each activation, codes shifted down a shift for each code.
    let in_place = comptime!(tile.n_rows < tile.n_outs);

    let first_out = CUBE_POS_X * n_outs as u32;
    let first_row = CUBE_POS_Y * n_rows as u32;
    let mut sums = Array::<f32>::new(n_sums);
    #[unroll]
    for i in 0..n_sums {
        sums[i] = 0.0f32;
    }
    let mut dots = Array::<f32>::new(n_sums);
    let mut x_sums = Array::<f32>::new(n_rows);
    let mut unit_words = Array::<u32>::new(comptime!(n_outs * bits));
    let mut codes = Array::<f32>::new(comptime!(n_outs * CHUNK));

    let mut unit = UNIT_POS;
    while unit < n_units {
        #[unroll]
        for r in 0..n_outs {
            #[unroll]
            for i in 0..vectors {
                let line = (first_out as usize + r) * vectors + i;
                let vector = words[line * n_units as usize + unit as usize];
                #[unroll]
                for w in 0..comptime!(tile.vector_words) {
                    unit_words[r * bits + i * comptime!(tile.vector_words) + w] = vector[w];
                }
            }
        }
        #[unroll]
        for i in 0..n_sums {
            dots[i] = 0.0f32;
        }
        #[unroll]
        for m in 0..n_rows {
            x_sums[m] = 0.0f32;
        }
        // In chunks, so that no more codes are floats at a time than registers hold.
        #[unroll]
        for chunk in 0..comptime!(UNIT / CHUNK) {
            #[unroll]
            for r in 0..n_outs {
                #[unroll]
                for i in 0..CHUNK {
                    let place = comptime!(field(bits, chunk * CHUNK + i, in_place));
                    let code = if comptime!(place.is_scattered) {
                        scattered(&unit_words, comptime!(r * bits), comptime!(place.shift), 1u32)
                    } else {
                        (unit_words[r * bits + comptime!(place.word)] >> comptime!(place.shift)) & comptime!(place.mask)
                    };
                    codes[r * CHUNK + i] = small_float(code, magic);
                }
            }
            #[unroll]
            for m in 0..n_rows {
                // Rows beyond the last compute what the last does, and are not written.
                let row = u32::min(first_row + m as u32, n - 1u32);
                #[unroll]
                for j in 0..comptime!(CHUNK / x_width) {
                    let channel = unit * comptime!(UNIT as u32) + comptime!((chunk * CHUNK + j * x_width) as u32);
                    let index = (row * n_in + channel) as usize / x_width;
                    let mut values = Vector::<F, X>::new(F::new(0.0));
                    if comptime!(tile.ragged) {
                        if channel < n_in {
                            values = x[index];
                        }
                    } else {
                        values = x[index];
                    }
                    #[unroll]
                    for t in 0..x_width {
                        let i = comptime!(j * x_width + t);
                        let at = comptime!(field(bits, chunk * CHUNK + i, in_place).at);
                        let value = f32::cast_from(values[t]);
                        x_sums[m] += value;
                        let value = value * comptime!(1.0 / (1u32 << at) as f32);
                        #[unroll]
                        for r in 0..n_outs {
                            dots[m * n_outs + r] = fma(codes[r * CHUNK + i], value, dots[m * n_outs + r]);
                        }
                    }
                }
            }
        }
        #[unroll]
        for r in 0..n_outs {
            let group = (first_out + r as u32) * n_groups + unit / units_per_group;
            let group = group_params(params, group as usize, comptime!(tile.wide));
            #[unroll]
            for m in 0..n_rows {
                let i = comptime!(m * n_outs + r);
                sums[i] = fma(group.scale, fma(-group.zero, x_sums[m], dots[i]), sums[i]);
            }
        }
        unit += comptime!(tile.n_threads);
    }

    let total = add_up(&sums, n_sums, tile);
    let out_idx = first_out + UNIT_POS % n_outs as u32;
    let row = first_row + UNIT_POS / n_outs as u32;
    if UNIT_POS < n_sums as u32 && out_idx < n_out && row < n {
        out[(row * n_out + out_idx) as usize] = F::cast_from(total);
    }
}

/// Adds up each of the sums over all threads; thread `i` gets sum `i`, those beyond get 0. The order does not change from
/// run to run.
#[cube]
fn add_up(sums: &Array<f32>, #[comptime] n_sums: usize, #[comptime] tile: Tile) -> f32 {
    let mut total = 0.0f32;
    if comptime!(tile.plane_size > 0) {
        let mut shared =
            SharedMemory::<f32>::new(comptime!((tile.n_threads.div_ceil(tile.plane_size)) as usize * n_sums));
        #[unroll]
        for i in 0..n_sums {
            let sum = plane_sum(sums[i]);
            if UNIT_POS_PLANE == 0u32 {
                shared[(UNIT_POS / PLANE_DIM) as usize * n_sums + i] = sum;
            }
        }
        sync_cube();
        if UNIT_POS < n_sums as u32 {
            for plane in 0..comptime!(tile.n_threads) / PLANE_DIM {
                total += shared[plane as usize * n_sums + UNIT_POS as usize];
            }
        }
    } else {
        let n_threads = comptime!(tile.n_threads as usize);
        let mut shared = SharedMemory::<f32>::new(comptime!(tile.n_threads as usize * n_sums));
        #[unroll]
        for i in 0..n_sums {
            shared[i * n_threads + UNIT_POS as usize] = sums[i];
        }
        sync_cube();
        let mut half = comptime!(tile.n_threads / 2).runtime();
        while half > 0u32 {
            if UNIT_POS < half {
                #[unroll]
                for i in 0..n_sums {
                    let at = i * n_threads + UNIT_POS as usize;
                    shared[at] = shared[at] + shared[at + half as usize];
                }
            }
            sync_cube();
            half /= 2u32;
        }
        if UNIT_POS < n_sums as u32 {
            total = shared[UNIT_POS as usize * n_threads];
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::n_threads;

    #[test]
    fn threads_divide_a_row_evenly() {
        // 4096, 11008, 14336, 576 and 32 input channels.
        let found = [128, 344, 448, 18, 1].map(n_threads);
        assert_eq!(found, [128, 32, 64, 32, 32]);
    }
}

//! Packed weights to floats in memory. A thread makes 8 values of one row: 16 bytes to write in f16.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::UnitFacts;
use super::super::units::{UNIT, code_bit, n_together};
use super::unpack::{CHUNK, MAGIC, group_params, scattered, small_float};

/// Threads of a cube.
const N_THREADS: u32 = 256;
/// Most cubes along one axis that every device takes.
const MAX_CUBES: u32 = 65_535;
const CHUNKS: u32 = (UNIT / CHUNK) as u32;
/// Pairs of neighbours in a word of 3-bit codes.
const OF_WORD: u32 = 5;

/// How codes lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// Bits of a code.
    bits: usize,
    /// Words that lie side by side.
    vector_words: usize,
    /// Whether scale and zero point are two words.
    wide: bool,
}

/// The weights, `[n_out, n_in]` of `dtype`.
pub(super) fn launch<R: CubeRuntime>(
    words: CubeTensor<R>,
    params: CubeTensor<R>,
    facts: &UnitFacts,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (words.client.clone(), words.device.clone());
    let widths = client.io_optimized_vector_sizes(dtype.size());
    let width = widths.filter(|width| *width <= CHUNK && facts.n_in.is_multiple_of(*width)).max().unwrap_or(1);
    let shape = [facts.n_out, facts.n_in].into();
    let out = client.empty(facts.n_out * facts.n_in * dtype.size());
    let out = CubeTensor::new_contiguous(client.clone(), device, shape, out, dtype);
    let n_cubes = ((facts.n_out * facts.n_units) as u32 * CHUNKS).div_ceil(N_THREADS);
    let cubes = CubeCount::Static(n_cubes.min(MAX_CUBES), n_cubes.div_ceil(MAX_CUBES), 1);
    let layout = Layout { bits: facts.bits, vector_words: facts.vector_words(), wide: facts.wide };
    // SAFETY: threads beyond the last chunk of the last row do nothing; the others read words and parameters of their own
    // row and write channels below `n_in` of it.
    unsafe {
        dequantize::launch_unchecked::<R>(
            &client,
            cubes,
            CubeDim::new_1d(N_THREADS),
            width,
            words.into_array_arg(),
            params.into_array_arg(),
            out.clone().into_array_arg(),
            facts.n_in as u32,
            facts.n_out as u32,
            facts.n_units as u32,
            facts.units_per_group as u32,
            facts.n_groups as u32,
            layout,
            dtype.into(),
        );
    }
    out
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its interface to the device")]
#[allow(clippy::collapsible_if, reason = "only the outer condition is known when the kernel is compiled")]
fn dequantize<F: Float, X: Size>(
    words: &Array<u32>,
    params: &Array<u32>,
    out: &mut Array<Vector<F, X>>,
    n_in: u32,
    n_out: u32,
    n_units: u32,
    units_per_group: u32,
    n_groups: u32,
    #[comptime] layout: Layout,
    #[define(F)] _dtype: StorageType,
) {
    let width = X::value();
    let place = ABSOLUTE_POS as u32;
    let (row, chunk) = (place / (n_units * CHUNKS), place % (n_units * CHUNKS));
    if row < n_out {
        let unit = chunk / CHUNKS;
        // The words that the codes of the chunk lie in: one, or any of the three of 3 bits.
        let n_words = comptime!(if layout.bits == 3 { 3usize } else { 1usize });
        let first_bit = chunk % CHUNKS * comptime!((CHUNK * layout.bits) as u32);
        let mut first_word = first_bit / 32u32;
        if comptime!(layout.bits == 3) {
            first_word = 0u32;
        }
        let mut of_chunk = Array::<u32>::new(n_words);
        #[unroll]
        for word in 0..n_words {
            of_chunk[word] = words[word_index(row, unit, first_word + comptime!(word as u32), n_units, layout)];
        }
        // Of 2 bits a chunk is one half of each half of a word.
        let shift = first_bit % 32u32 / 2u32;
        let group = group_params(params, (row * n_groups + unit / units_per_group) as usize, comptime!(layout.wide));
        #[unroll]
        for j in 0..comptime!(CHUNK / width) {
            let mut values = Vector::<F, X>::empty();
            #[unroll]
            for t in 0..width {
                let i = comptime!(j * width + t);
                let code = if comptime!(layout.bits == 3) {
                    code_of_3(&of_chunk, chunk % CHUNKS, i)
                } else {
                    (of_chunk[0] >> (shift + comptime!(code_bit(layout.bits, i) as u32)))
                        & comptime!((1u32 << layout.bits) - 1)
                };
                values[t] = F::cast_from((small_float(code, MAGIC) - group.zero) * group.scale);
            }
            let channel = chunk * comptime!(CHUNK as u32) + comptime!((j * width) as u32);
            if channel < n_in {
                out[(row * n_in + channel) as usize / width] = values;
            }
        }
    }
}

/// Code `i` of a chunk of a unit of 3 bits.
#[cube]
fn code_of_3(of_unit: &Array<u32>, chunk: u32, #[comptime] i: usize) -> u32 {
    let pair = chunk * comptime!((CHUNK / 2) as u32) + comptime!((i / 2) as u32);
    let upper = comptime!((16 * (i % 2)) as u32);
    // By selecting: an index that is not constant would put the words into memory.
    let second_or_third = select(pair < comptime!(2 * OF_WORD), of_unit[1], of_unit[2]);
    let word = select(pair < comptime!(OF_WORD), of_unit[0], second_or_third);
    let code = (word >> (pair % comptime!(OF_WORD) * 3u32 + upper)) & 7u32;
    let last = scattered(of_unit, 0usize, comptime!(15 + upper), 1u32);
    select(pair < comptime!((n_together(3) / 2) as u32), code, last)
}

/// Index of a word of a unit, as `units.rs` has it.
#[cube]
fn word_index(row: u32, unit: u32, word: u32, n_units: u32, #[comptime] layout: Layout) -> usize {
    let vector_words = comptime!(layout.vector_words as u32);
    let line = row * comptime!((layout.bits / layout.vector_words) as u32) + word / vector_words;
    ((line * n_units + unit) * vector_words + word % vector_words) as usize
}

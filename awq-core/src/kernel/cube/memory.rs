//! What a device's memory does: arrays copied and read by kernels of their own, one a copy, which nothing fuses or leaves out.

use std::time::Instant;

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::super::bench::{Bandwidth, Latency};
use super::bench::DeviceError;

/// Threads of a cube.
const N_THREADS: usize = 256;
/// Vectors that a thread has under way at a time.
const N_UNDER_WAY: usize = 8;
/// Times that a reading thread has so many: it writes one word for all of them.
const N_ROUNDS: usize = 4;
/// Copies that are queued before the device is waited for: milliseconds of work, against the microseconds that waiting costs.
const N_COPIES: usize = 20;
/// Bytes of an array, if there is room for it.
const ARRAY_BYTES: usize = 256 << 20;

/// Arrays that take turns, each copied into one of its own.
struct Arrays<R: CubeRuntime> {
    client: ComputeClient<R>,
    pairs: Vec<(Handle, Handle)>,
    /// A word for each reading thread.
    sums: Handle,
    n_vectors: usize,
    width: usize,
}

/// Copies and reads arrays that have `bytes` together, and as many again that are copied into: bytes a second, medians of
/// `n_rounds`. It should be several times what caches hold.
///
/// # Errors
/// A device that fails, or whose copies are not what was copied.
pub(super) fn bandwidth<R: CubeRuntime>(
    client: ComputeClient<R>,
    bytes: usize,
    n_rounds: usize,
) -> Result<Bandwidth, DeviceError> {
    let arrays = Arrays::new(client, bytes)?;
    let seconds = |call: &dyn Fn(usize)| -> Result<f64, DeviceError> {
        let mut seconds = Vec::with_capacity(n_rounds);
        // The first compiles.
        for round in 0..=n_rounds {
            arrays.wait()?;
            let start = Instant::now();
            (0..N_COPIES).for_each(call);
            arrays.wait()?;
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64() / N_COPIES as f64);
            }
        }
        Ok(Latency::of(seconds).median)
    };
    let (copy, read) = (seconds(&|i| arrays.copy(i))?, seconds(&|i| arrays.read(i))?);
    arrays.check()?;
    let array = arrays.n_bytes() as f64;
    Ok(Bandwidth { copy: 2.0 * array / copy, read: array / read })
}

impl<R: CubeRuntime> Arrays<R> {
    fn new(client: ComputeClient<R>, bytes: usize) -> Result<Self, DeviceError> {
        let widths = client.io_optimized_vector_sizes(size_of::<u32>());
        let width = widths.filter(|width| *width <= 4).max().unwrap_or(1);
        let of_cube = N_THREADS * N_UNDER_WAY * N_ROUNDS * width * size_of::<u32>();
        let largest = usize::try_from(client.properties().memory.max_page_size).unwrap_or(usize::MAX);
        let n_cubes = (bytes.min(ARRAY_BYTES).min(largest) / of_cube).max(1);
        let n_vectors = n_cubes * N_THREADS * N_UNDER_WAY * N_ROUNDS;
        let n_arrays = (bytes / (n_cubes * of_cube)).max(1);
        let pair = |array: usize| {
            let words: Vec<u8> = (0..n_vectors * width).flat_map(|i| word(array, i).to_le_bytes()).collect();
            (client.create_from_slice(&words), client.empty(words.len()))
        };
        let pairs = (0..n_arrays).map(pair).collect();
        let sums = client.empty(n_cubes * N_THREADS * size_of::<u32>());
        let arrays = Self { client, pairs, sums, n_vectors, width };
        arrays.wait()?;
        Ok(arrays)
    }

    /// Of one array.
    fn n_bytes(&self) -> usize {
        self.n_vectors * self.width * size_of::<u32>()
    }

    fn pair(&self, i: usize) -> &(Handle, Handle) {
        &self.pairs[i % self.pairs.len()]
    }

    fn copy(&self, i: usize) {
        let (from, to) = self.pair(i).clone();
        let n_cubes = self.n_vectors / (N_THREADS * N_UNDER_WAY);
        // SAFETY: the vectors of all threads are `n_vectors`, which both arrays have.
        unsafe {
            copy::launch_unchecked::<R>(
                &self.client,
                CubeCount::Static(n_cubes as u32, 1, 1),
                CubeDim::new_1d(N_THREADS as u32),
                self.width,
                ArrayArg::from_raw_parts(from, self.n_vectors),
                ArrayArg::from_raw_parts(to, self.n_vectors),
            );
        }
    }

    fn read(&self, i: usize) {
        let n_cubes = self.n_vectors / (N_THREADS * N_UNDER_WAY * N_ROUNDS);
        // SAFETY: the vectors of all threads are `n_vectors`, which the array has, and there is a sum for each thread.
        unsafe {
            read::launch_unchecked::<R>(
                &self.client,
                CubeCount::Static(n_cubes as u32, 1, 1),
                CubeDim::new_1d(N_THREADS as u32),
                self.width,
                ArrayArg::from_raw_parts(self.pair(i).0.clone(), self.n_vectors),
                ArrayArg::from_raw_parts(self.sums.clone(), n_cubes * N_THREADS),
            );
        }
    }

    fn wait(&self) -> Result<(), DeviceError> {
        block_on(self.client.sync()).map_err(|error| DeviceError(format!("{error:?}")))
    }

    fn words(&self, handle: &Handle) -> Result<Vec<u32>, DeviceError> {
        let bytes = self.client.read_one(handle.clone()).map_err(|error| DeviceError(format!("{error:?}")))?;
        Ok(bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }

    /// Every array was copied, and the last one that was read is the one whose sum there is.
    fn check(&self) -> Result<(), DeviceError> {
        for (array, (_, to)) in self.pairs.iter().enumerate().take(N_COPIES) {
            let copied = self.words(to)?;
            if let Some(i) = (0..copied.len()).find(|&i| copied[i] != word(array, i)) {
                return Err(DeviceError(format!("word {i} of a copied array of {} is {:#x}", copied.len(), copied[i])));
            }
        }
        let last = (N_COPIES - 1) % self.pairs.len();
        let sum = |words: &mut dyn Iterator<Item = u32>| words.fold(0, u32::wrapping_add);
        let expected = sum(&mut (0..self.n_vectors * self.width).map(|i| word(last, i)));
        let found = sum(&mut self.words(&self.sums)?.into_iter());
        if found != expected {
            return Err(DeviceError(format!(
                "the words of an array that was read have the sum {found}, not {expected}"
            )));
        }
        Ok(())
    }
}

/// A word of an array that no other word resembles.
const fn word(array: usize, i: usize) -> u32 {
    (i as u32).wrapping_mul(2_654_435_761).wrapping_add(array as u32)
}

#[cube(launch_unchecked)]
fn copy<W: Size>(from: &Array<Vector<u32, W>>, to: &mut Array<Vector<u32, W>>) {
    let first = CUBE_POS_X as usize * comptime!(N_THREADS * N_UNDER_WAY) + UNIT_POS as usize;
    let mut under_way = Array::<Vector<u32, W>>::new(N_UNDER_WAY);
    #[unroll]
    for i in 0..N_UNDER_WAY {
        under_way[i] = from[first + comptime!(i * N_THREADS)];
    }
    #[unroll]
    for i in 0..N_UNDER_WAY {
        to[first + comptime!(i * N_THREADS)] = under_way[i];
    }
}

#[cube(launch_unchecked)]
fn read<W: Size>(from: &Array<Vector<u32, W>>, sums: &mut Array<u32>) {
    let mut first = CUBE_POS_X as usize * comptime!(N_THREADS * N_UNDER_WAY * N_ROUNDS) + UNIT_POS as usize;
    let mut sum = Vector::<u32, W>::new(0u32);
    for _ in 0..N_ROUNDS {
        #[unroll]
        for i in 0..N_UNDER_WAY {
            sum += from[first + comptime!(i * N_THREADS)];
        }
        first += comptime!(N_THREADS * N_UNDER_WAY);
    }
    let mut total = 0u32;
    #[unroll]
    for i in 0..W::value() {
        total += sum[i];
    }
    sums[ABSOLUTE_POS] = total;
}

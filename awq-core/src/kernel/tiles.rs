//! The order in which kernels read packed weights: tiles of 16 outputs, so that a vector holds one input channel's codes
//! of 16 rows and no sum crosses lanes. One layout serves every bit count and instruction set.

use half::f16;
use rayon::prelude::*;

use crate::numbers::Number;
use crate::quantized::{QuantizedWeight, ZeroPoints};

/// Outputs of one tile.
pub(super) const TILE: usize = 16;
/// Input channels whose codes are stored together: `bits` lines.
pub(super) const CHUNK: usize = 32;
/// Input channels that the codes of one line's lane can multiply at once.
pub(super) const QUAD: usize = 4;
/// Quads of a chunk.
pub(super) const QUADS: usize = CHUNK / QUAD;
/// Most input channels that share a scale here. Longer groups are cut: activations get a scale of their own for each
/// segment, and 32-bit sums cannot overflow.
pub(super) const SEGMENT: usize = 128;

/// A cache line: 4 bytes for each output of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// A run of input channels with one scale per output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// First input channel.
    pub(super) start: usize,
    /// Input channels.
    pub(super) len: usize,
    /// Chunks that hold them; the last is filled up with zeros.
    pub(super) n_chunks: usize,
}

/// Scales and zero points of a tile's outputs in one segment, when scales are f16 and zero points are codes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Compact {
    pub(super) scale: [u16; TILE],
    pub(super) zero_point: [u8; TILE],
}

impl Compact {
    /// The same values.
    pub(super) fn widen(&self) -> Wide {
        Wide {
            scale: self.scale.map(|scale| f16::from_bits(scale).to_f32()),
            zero_point: self.zero_point.map(f32::from),
        }
    }
}

/// Scales and zero points of a tile's outputs in one segment, of any value.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Wide {
    pub(super) scale: [f32; TILE],
    pub(super) zero_point: [f32; TILE],
}

/// `[tile][segment]`.
pub(super) enum Params {
    Compact(Vec<Compact>),
    Wide(Vec<Wide>),
}

/// A packed `[n_out, n_in]` matrix.
pub(super) struct Tiles {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    /// Bits of a stored code, see [`stored_bits`].
    pub(super) bits: usize,
    pub(super) segments: Vec<Segment>,
    chunks_per_tile: usize,
    /// `[tile][chunk][line]`; outputs beyond `n_out` have zero codes and scales.
    pub(super) lines: Vec<Line>,
    pub(super) params: Params,
}

/// A run of bits of every code: `width` bits at `offset` of the code, in `width` lines of a chunk from `first_line` on.
#[derive(Clone, Copy)]
pub(super) struct Plane {
    pub(super) width: usize,
    pub(super) offset: usize,
    pub(super) first_line: usize,
}

/// Codes are cut into planes of 8, 4, 2 or 1 bits, which fill bytes without a gap: the lowest, then others.
pub(super) const fn planes(bits: usize) -> (Plane, &'static [Plane]) {
    const fn plane(width: usize, offset: usize) -> Plane {
        Plane { width, offset, first_line: offset }
    }
    match bits {
        2 => (plane(2, 0), &[]),
        3 => (plane(2, 0), const { &[plane(1, 2)] }),
        4 => (plane(4, 0), &[]),
        _ => (plane(8, 0), &[]),
    }
}

/// Bits that a code of `bits` bits takes: 5 to 7 bits take a byte.
pub(super) const fn stored_bits(bits: u8) -> usize {
    match bits {
        2..=4 => bits as usize,
        _ => 8,
    }
}

impl Tiles {
    /// Packs codes, scales and zero points. `compact` allows f16 scales where they are exact.
    pub(super) fn new(weight: &QuantizedWeight, compact: bool) -> Self {
        let (n_out, n_in, bits) = (weight.n_out, weight.n_in, stored_bits(weight.grid.bits.get()));
        let segments = segments(n_in, weight.group_len());
        let chunks_per_tile: usize = segments.iter().map(|segment| segment.n_chunks).sum();
        let n_tiles = n_tiles(n_out);
        let mut lines = vec![Line([0; 64]); n_tiles * chunks_per_tile * bits];
        lines.par_chunks_mut((chunks_per_tile * bits).max(1)).enumerate().for_each(|(tile, lines)| {
            let mut chunks = lines.chunks_exact_mut(bits);
            for segment in &segments {
                for chunk_start in (0..segment.len).step_by(CHUNK) {
                    let Some(chunk) = chunks.next() else { return };
                    let len = CHUNK.min(segment.len - chunk_start);
                    for lane in 0..TILE.min(n_out.saturating_sub(tile * TILE)) {
                        let first = (tile * TILE + lane) * n_in + segment.start + chunk_start;
                        pack_lane(chunk, lane, &weight.codes[first..first + len], bits);
                    }
                }
            }
        });
        Self { n_out, n_in, bits, chunks_per_tile, params: params(weight, &segments, compact), segments, lines }
    }

    /// Lines of one tile.
    pub(super) fn lines_per_tile(&self) -> usize {
        self.chunks_per_tile * self.bits
    }

    /// The chunks of some tiles.
    #[inline(always)]
    pub(super) fn lines_of<const BITS: usize, const TILES: usize>(
        &self,
        first_tile: usize,
    ) -> [&[[Line; BITS]]; TILES] {
        let len = self.lines_per_tile();
        let mut tiles: [&[[Line; BITS]]; TILES] = [&[]; TILES];
        for (tile, lines) in tiles.iter_mut().enumerate() {
            *lines = self.lines[(first_tile + tile) * len..][..len].as_chunks().0;
        }
        tiles
    }

    /// Bytes that a product reads.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
            + match &self.params {
                Params::Compact(params) => size_of_val(params.as_slice()),
                Params::Wide(params) => size_of_val(params.as_slice()),
            }
    }
}

/// Tiles come in pairs, so that the bodies which multiply two at a time need no other for a last one.
fn n_tiles(n_out: usize) -> usize {
    n_out.div_ceil(TILE).next_multiple_of(2)
}

fn segments(n_in: usize, group_len: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    for group in (0..n_in).step_by(group_len.max(1)) {
        let group_end = (group + group_len).min(n_in);
        for start in (group..group_end).step_by(SEGMENT) {
            let len = SEGMENT.min(group_end - start);
            segments.push(Segment { start, len, n_chunks: len.div_ceil(CHUNK) });
        }
    }
    segments
}

/// Writes up to [`CHUNK`] codes of one output. Byte `b` of quad `q` is input channel `4 q + b`; a plane of `width` bits has
/// `8 / width` quads a line, lowest bits first.
fn pack_lane(chunk: &mut [Line], lane: usize, codes: &[u8], bits: usize) {
    for (i, &code) in codes.iter().enumerate() {
        let (quad, byte) = (i / QUAD, i % QUAD);
        let (first, others) = planes(bits);
        for plane in std::iter::once(&first).chain(others) {
            let quads_per_line = 8 / plane.width;
            let part = usize::from(code) >> plane.offset & ((1 << plane.width) - 1);
            let line = &mut chunk[plane.first_line + quad / quads_per_line];
            line.0[lane * QUAD + byte] |= (part << (quad % quads_per_line * plane.width)) as u8;
        }
    }
}

fn params(weight: &QuantizedWeight, segments: &[Segment], compact: bool) -> Params {
    let (n_tiles, groups) = (n_tiles(weight.n_out), weight.grid.granularity.groups(weight.n_out, weight.n_in));
    let wide: Vec<Wide> = (0..n_tiles * segments.len())
        .map(|i| {
            let (tile, segment) = (i / segments.len(), &segments[i % segments.len()]);
            let mut params = Wide { scale: [0.0; TILE], zero_point: [0.0; TILE] };
            for lane in 0..TILE.min(weight.n_out.saturating_sub(tile * TILE)) {
                let index = groups.group_of((tile * TILE + lane) * weight.n_in + segment.start);
                (params.scale[lane], params.zero_point[lane]) = (weight.scale[index], weight.zero_point.get(index));
            }
            params
        })
        .collect();
    let is_half = |scale: &f32| Number::F16.round(*scale) == *scale;
    if !compact || matches!(weight.zero_point, ZeroPoints::Real(_)) || !weight.scale.iter().all(is_half) {
        return Params::Wide(wide);
    }
    let narrow = |params: &Wide| Compact {
        scale: params.scale.map(|scale| f16::from_f32(scale).to_bits()),
        zero_point: params.zero_point.map(|zero_point| zero_point as u8),
    };
    Params::Compact(wide.iter().map(narrow).collect())
}

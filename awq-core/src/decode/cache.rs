//! [`KvCache`]: keys and values of the tokens so far, laid out for a decode step.

use std::ops::Range;

use super::Heads;

/// Positions whose keys lie together, so that one vector holds a channel of all of them.
pub(super) const TILE: usize = 16;

/// Keys and values of one block. Those that a window has left behind are kept, so that tokens can be taken back.
pub(super) struct KvCache {
    heads: Heads,
    /// Tiles of one head.
    n_tiles: usize,
    /// `[n_kv_heads, n_tiles, head_dim, TILE]`: scores of a tile are one sum over channels, without sums across a vector.
    keys: Vec<f32>,
    /// `[n_kv_heads, capacity, head_dim]`.
    values: Vec<f32>,
}

impl KvCache {
    pub(super) fn new(heads: Heads, capacity: usize) -> Self {
        let n_tiles = capacity.div_ceil(TILE);
        let n_values = heads.n_kv * n_tiles * TILE * heads.dim;
        Self { heads, n_tiles, keys: vec![0.0; n_values], values: vec![0.0; n_values] }
    }

    /// Stores the (rotated) key and the value of `position`, each `[n_kv_heads * head_dim]`.
    pub(super) fn store(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let dim = self.heads.dim;
        let (tile_idx, lane) = (position / TILE, position % TILE);
        let heads = key.chunks_exact(dim).zip(value.chunks_exact(dim));
        for (head, (key, value)) in heads.enumerate() {
            let tile = (head * self.n_tiles + tile_idx) * dim * TILE;
            for (channel, &k) in key.iter().enumerate() {
                self.keys[tile + channel * TILE + lane] = k;
            }
            let row = (head * self.n_tiles * TILE + position) * dim;
            self.values[row..row + dim].copy_from_slice(value);
        }
    }

    /// Tiles with the keys of `positions` of a key head, the first of which begins a tile; the last tile may hold others, too.
    pub(super) fn keys(&self, kv_head: usize, positions: Range<usize>) -> &[f32] {
        let tile_len = self.heads.dim * TILE;
        let tiles = positions.start / TILE..positions.end.div_ceil(TILE);
        &self.keys[kv_head * self.n_tiles * tile_len..][tiles.start * tile_len..tiles.end * tile_len]
    }

    /// Values of `positions` of a key head, `[positions.len(), head_dim]`.
    pub(super) fn values(&self, kv_head: usize, positions: Range<usize>) -> &[f32] {
        let dim = self.heads.dim;
        &self.values[kv_head * self.n_tiles * TILE * dim..][positions.start * dim..positions.end * dim]
    }

    /// Bytes of a cache with room for `capacity` positions.
    pub(super) fn bytes_of(heads: Heads, capacity: usize) -> usize {
        2 * heads.n_kv * capacity.next_multiple_of(TILE) * heads.dim * size_of::<f32>()
    }

    pub(super) fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<f32>()
    }
}

//! [`KvCache`]: keys and values of the tokens so far, laid out for a decode step.

use super::Heads;

/// Positions whose keys lie together, so that one vector holds a channel of all of them.
pub(super) const TILE: usize = 16;

/// Keys and values of one block.
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

    /// Tiles with the keys of the first `n` positions of a key head; the last one may hold others, too.
    pub(super) fn keys(&self, kv_head: usize, n: usize) -> &[f32] {
        let tile_len = self.heads.dim * TILE;
        &self.keys[kv_head * self.n_tiles * tile_len..][..n.div_ceil(TILE) * tile_len]
    }

    /// Values of the first `n` positions of a key head, `[n, head_dim]`.
    pub(super) fn values(&self, kv_head: usize, n: usize) -> &[f32] {
        &self.values[kv_head * self.n_tiles * TILE * self.heads.dim..][..n * self.heads.dim]
    }

    pub(super) fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<f32>()
    }
}

//! Rows of tables that are looked up: of tokens and of positions. A row that nothing looks up may hold anything.

use std::collections::BTreeSet;

use super::wiring::Wiring;
use crate::load::{Checkpoint, LoadError, ModelConfig, check_shape, check_values, read_any_exact_shape};

/// The embedding. Where a head of its own stands beside it, rows of ids that no text has (the table was padded, a token never
/// trained) are read by nothing, and some checkpoints hold NaN there.
pub(crate) struct TokenRows {
    /// `[vocab, width]`, see [`Wiring::embedding_width`].
    pub(crate) values: Vec<f32>,
    /// Ids whose row is not finite.
    pub(crate) unusable_ids: BTreeSet<u32>,
}

impl TokenRows {
    /// # Errors
    /// A tensor that is missing or misshapen, or one that is the head, too, and not finite.
    pub(crate) fn read(checkpoint: &dyn Checkpoint, wiring: &Wiring, config: &ModelConfig) -> Result<Self, LoadError> {
        let width = wiring.embedding_width(config);
        let shape = [config.vocab_size, width];
        let name = &wiring.embedding;
        if wiring.head.is_none() {
            let values = crate::load::read_exact_shape(checkpoint, name, &shape)?;
            return Ok(Self { values, unusable_ids: BTreeSet::new() });
        }
        let values = read_any_exact_shape(checkpoint, name, &shape)?;
        let is_unusable = |row: &[f32]| !row.iter().all(|value| value.is_finite());
        let rows = values.chunks(width).zip(0..);
        let unusable_ids = rows.filter(|(row, _)| is_unusable(row)).map(|(_, id)| id).collect();
        Ok(Self { values, unusable_ids })
    }
}

/// Ids whose row of the embedding is not finite, a slice of it in memory at a time. See [`TokenRows`].
///
/// # Errors
/// A tensor that is missing or misshapen, or one that is the head, too, and not finite.
pub(crate) fn unusable_ids(
    checkpoint: &dyn Checkpoint,
    wiring: &Wiring,
    config: &ModelConfig,
) -> Result<BTreeSet<u32>, LoadError> {
    let (name, shape) = (&wiring.embedding, [config.vocab_size, wiring.embedding_width(config)]);
    if wiring.head.is_none() {
        return check_values(checkpoint, name, &shape).map(|()| BTreeSet::new());
    }
    check_shape(checkpoint, name, &shape)?;
    let (mut unusable, mut n_rows) = (BTreeSet::new(), 0);
    for slice in checkpoint.slices(name)? {
        let slice = slice?;
        let rows = slice.chunks(shape[1]).zip(n_rows..);
        unusable.extend(rows.filter(|(row, _)| !row.iter().all(|value| value.is_finite())).map(|(_, id)| id));
        n_rows += (slice.len() / shape[1]) as u32;
    }
    Ok(unusable)
}

/// The rows of a position table that positions have, `[max_positions, hidden]`: all but the first `first_row`.
///
/// # Errors
/// A tensor that is missing or misshapen, or a row that is not finite.
pub(crate) fn position_rows(
    checkpoint: &dyn Checkpoint,
    name: &str,
    first_row: usize,
    config: &ModelConfig,
) -> Result<Vec<f32>, LoadError> {
    let hidden = config.hidden_size;
    let mut rows = read_any_exact_shape(checkpoint, name, &[first_row + config.max_positions, hidden])?;
    rows.drain(..first_row * hidden);
    match rows.iter().position(|value| !value.is_finite()) {
        None => Ok(rows),
        Some(index) => {
            let index = index + first_row * hidden;
            Err(LoadError::NonFinite { file: checkpoint.file_of(name), name: name.to_owned(), index })
        }
    }
}

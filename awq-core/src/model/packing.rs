//! [`Packing`]: sequences of unlike lengths as one row of tokens, in which a prefix that neighbours share stands once.
//!
//! Answers to one question share the question: linears and norms, which see tokens one by one, compute it once. Attention alone
//! mixes tokens, and sees each sequence whole.

use burn::tensor::{Int, Tensor, TensorData};

use crate::backend::{AttentionShape, QuantBackend};
use crate::model::rotary::Rotary;

/// Sequences over one row of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    sequences: Vec<Vec<usize>>,
}

impl Packing {
    /// Packs `sequences`: what one has in common with the one before it, from the first token on, is shared.
    pub fn of<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut tokens, mut positions, mut packed) = (Vec::new(), Vec::new(), Vec::<Vec<usize>>::new());
        for sequence in sequences {
            let before: &[usize] = packed.last().map_or(&[], Vec::as_slice);
            let n_shared = before.iter().zip(sequence).take_while(|&(&row, id)| tokens[row] == *id).count();
            let n_before = tokens.len();
            let mut rows = before[..n_shared].to_vec();
            rows.extend(n_before..n_before + sequence.len() - n_shared);
            tokens.extend(&sequence[n_shared..]);
            positions.extend(n_shared..sequence.len());
            packed.push(rows);
        }
        Self { tokens, positions, sequences: packed }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of each token in the sequences that it is part of.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The tokens of each sequence, as indices.
    pub fn sequences(&self) -> &[Vec<usize>] {
        &self.sequences
    }
}

/// A [`Packing`] on a device, for attention: sequences of about one length are seen together.
pub struct PackedSequences<B: QuantBackend> {
    groups: Vec<Group<B>>,
    /// Where each token stands among the rows of all groups, one behind the other.
    places: Tensor<B, 1, Int>,
}

/// Sequences that attention sees together, each filled up behind its end, where no token of its own looks.
struct Group<B: QuantBackend> {
    n_sequences: usize,
    len: usize,
    /// Token of each row, `[n_sequences * len]`.
    rows: Tensor<B, 1, Int>,
}

/// A sequence joins a group as long as it is at least this share of the group's longest.
const ALIKE: f64 = 0.8;

impl<B: QuantBackend> PackedSequences<B> {
    /// The sequences of `packing`.
    pub fn new(packing: &Packing, device: &B::Device) -> Self {
        let mut by_length: Vec<&[usize]> = packing.sequences.iter().map(Vec::as_slice).collect();
        by_length.sort_by_key(|sequence| std::cmp::Reverse(sequence.len()));
        let mut places = vec![usize::MAX; packing.tokens.len()];
        let (mut groups, mut first_row, mut rest) = (Vec::new(), 0, by_length.as_slice());
        while let [longest, ..] = rest {
            let len = longest.len();
            let is_alike = |sequence: &&[usize]| sequence.len() as f64 >= ALIKE * len as f64;
            let (alike, others) = rest.split_at(rest.iter().take_while(|sequence| is_alike(sequence)).count());
            let mut rows = Vec::with_capacity(alike.len() * len);
            for sequence in alike {
                for (offset, &token) in sequence.iter().enumerate() {
                    places[token] = first_row + rows.len() + offset;
                }
                let last = sequence.last().copied().unwrap_or(0);
                rows.extend(sequence.iter().copied().chain(std::iter::repeat(last)).take(len));
            }
            first_row += rows.len();
            groups.push(Group { n_sequences: alike.len(), len, rows: indices(&rows, device) });
            rest = others;
        }
        Self { groups, places: indices(&places, device) }
    }

    /// Attention of each sequence over itself; queries, keys and values are `[1, tokens, width]`.
    pub(super) fn attention(
        &self,
        [q, k, v]: [Tensor<B, 3>; 3],
        rotary: Option<&Rotary<B>>,
        shape: &AttentionShape,
    ) -> Tensor<B, 3> {
        let mixed: Vec<Tensor<B, 3>> = self
            .groups
            .iter()
            .map(|group| {
                let of_group = |x: &Tensor<B, 3>| {
                    let width = x.dims()[2];
                    x.clone().select(1, group.rows.clone()).reshape([group.n_sequences, group.len, width])
                };
                let table = rotary.map(|rotary| rotary.first(group.len));
                let mixed = B::causal_attention(of_group(&q), of_group(&k), of_group(&v), table.as_ref(), shape);
                let width = mixed.dims()[2];
                mixed.reshape([1, group.n_sequences * group.len, width])
            })
            .collect();
        Tensor::cat(mixed, 1).select(1, self.places.clone())
    }
}

/// Indices as a tensor.
pub fn indices<B: QuantBackend>(indices: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::backend::Flex;
    use proptest::prelude::*;

    use super::*;
    use crate::backend::float_vec;
    use crate::model::tiny::{self, TinySpec};
    use crate::model::{Block, NoTap, open_decoder};

    fn packing(sequences: &[Vec<u32>]) -> Packing {
        Packing::of(sequences.iter().map(Vec::as_slice))
    }

    #[test]
    fn neighbours_share_what_they_begin_with() {
        let packed = packing(&[vec![7, 8, 1], vec![7, 8, 2, 3], vec![7, 9], vec![7, 8]]);
        assert_eq!(packed.tokens(), [7, 8, 1, 2, 3, 9, 8]);
        assert_eq!(packed.positions(), [0, 1, 2, 2, 3, 1, 1]);
        let sequences: [&[usize]; 4] = [&[0, 1, 2], &[0, 1, 3, 4], &[0, 5], &[0, 6]];
        assert_eq!(packed.sequences(), sequences);
    }

    proptest! {
        #[test]
        fn sequences_come_back(sequences in prop::collection::vec(prop::collection::vec(0..3_u32, 1..8), 1..8)) {
            let packed = packing(&sequences);
            let tokens = |rows: &Vec<usize>| rows.iter().map(|&row| packed.tokens()[row]).collect::<Vec<_>>();
            prop_assert_eq!(packed.sequences().iter().map(tokens).collect::<Vec<_>>(), sequences);
            for rows in packed.sequences() {
                prop_assert!(rows.iter().enumerate().all(|(position, &row)| packed.positions()[row] == position));
            }
        }
    }

    #[test]
    fn packed_sequences_give_what_each_gives_alone() {
        const SPEC: TinySpec = TinySpec::GQA;
        let decoder =
            open_decoder::<Flex>(SPEC.config(), std::sync::Arc::new(tiny::checkpoint(&SPEC, 5)), &Default::default());
        let decoder = decoder.unwrap();
        let long = tiny::sequences(&SPEC, 1, 30, 11).remove(0);
        let other = tiny::sequences(&SPEC, 1, 9, 12).remove(0);
        // Two branches of one prefix, a short one, and another text.
        let sequences = [long.clone(), [&long[..20], &other[..5]].concat(), long[..3].to_vec(), other];
        let packed = packing(&sequences);
        assert_eq!(packed.tokens().len(), 30 + 5 + 9);
        let on_device = PackedSequences::new(&packed, &Default::default());
        type Forward<'f> = &'f dyn Fn(&dyn Block<Flex>, Tensor<Flex, 3>) -> Tensor<Flex, 3>;
        let run = |mut hidden, forward: Forward<'_>| {
            for block_idx in 0..SPEC.n_blocks {
                hidden = forward(decoder.block(block_idx).unwrap().as_ref(), hidden);
            }
            float_vec(hidden)
        };
        let together = run(decoder.embedding().unwrap().embed_packed(&packed), &|block, hidden| {
            block.forward_packed(hidden, &on_device)
        });
        let width = SPEC.config().hidden_size;
        for (sequence, rows) in sequences.iter().zip(packed.sequences()) {
            let alone = run(decoder.embedding().unwrap().embed(std::slice::from_ref(sequence)), &|block, hidden| {
                block.forward(hidden, &mut NoTap)
            });
            for (position, &row) in rows.iter().enumerate() {
                let (ours, expected) = (&together[row * width..][..width], &alone[position * width..][..width]);
                let close = ours.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()));
                assert!(close, "position {position}: {ours:?} is not {expected:?}");
            }
        }
    }
}

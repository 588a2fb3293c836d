//! [`Batch`]: windows that pass through a model together.

use awq_core::backend::QuantBackend;
use awq_core::model::packing::{PackedSequences, Packing, indices};
use awq_core::model::{Block, Embedding, NoTap};
use burn::tensor::Tensor;

/// Windows that pass through a model together: of one length and first target, or packed.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    windows: &'a [Vec<u32>],
    first_targets: &'a [usize],
    packing: Option<Packing>,
}

/// Hidden states of a batch, and how its tokens make up sequences.
pub(super) struct BatchStates<B: QuantBackend> {
    /// `[windows, seq, hidden]`, or `[1, tokens, hidden]` of a packed batch.
    pub(super) hidden: Tensor<B, 3>,
    packed: Option<PackedSequences<B>>,
}

impl<'a> Batch<'a> {
    /// Windows that are all of one length, and of which the same positions are scored.
    pub(super) fn alike(windows: &'a [Vec<u32>], first_targets: &'a [usize]) -> Self {
        Self { windows, first_targets, packing: None }
    }

    /// Windows of any lengths, of which those behind one another may begin alike.
    pub(super) fn packed(windows: &'a [Vec<u32>], first_targets: &'a [usize]) -> Self {
        Self { windows, first_targets, packing: Some(Packing::of(windows.iter().map(|window| fed(window)))) }
    }

    /// Tokens that pass through a model.
    pub fn n_tokens(&self) -> usize {
        match &self.packing {
            None => self.windows.iter().map(|window| fed(window).len()).sum(),
            Some(packing) => packing.tokens().len(),
        }
    }

    /// Tokens that are scored, window by window.
    pub fn targets(&self) -> Vec<u32> {
        let windows = self.windows.iter().zip(self.first_targets);
        windows.flat_map(|(window, &first)| &window[first..]).copied().collect()
    }

    /// How many of them each window has.
    pub fn n_targets(&self) -> impl Iterator<Item = usize> {
        self.windows.iter().zip(self.first_targets).map(|(window, &first)| window.len() - first)
    }

    pub(super) fn embed<B: QuantBackend>(&self, embedding: &Embedding<B>) -> BatchStates<B> {
        match &self.packing {
            None => {
                let inputs: Vec<Vec<u32>> = self.windows.iter().map(|window| fed(window).to_vec()).collect();
                BatchStates { hidden: embedding.embed(&inputs), packed: None }
            }
            Some(packing) => {
                let hidden = embedding.embed_packed(packing);
                let packed = Some(PackedSequences::new(packing, &hidden.device()));
                BatchStates { hidden, packed }
            }
        }
    }

    /// The rows of hidden states that predict the targets, `[targets, hidden]`: those at position `p` predict the token at `p + 1`.
    pub(super) fn predicting<B: QuantBackend>(&self, hidden: Tensor<B, 3>) -> Tensor<B, 2> {
        let [n_windows, _, width] = hidden.dims();
        match &self.packing {
            None => {
                let n_targets = self.n_targets().next().unwrap_or(0);
                let first = self.first_targets.first().map_or(0, |first| first - 1);
                hidden.narrow(1, first, n_targets).reshape([n_windows * n_targets, width])
            }
            Some(packing) => {
                let of_window = |(rows, &first): (&Vec<usize>, &usize)| rows[first - 1..].to_vec();
                let rows: Vec<usize> = packing.sequences().iter().zip(self.first_targets).flat_map(of_window).collect();
                let (n, device) = (rows.len(), hidden.device());
                hidden.select(1, indices(&rows, &device)).reshape([n, width])
            }
        }
    }
}

impl<B: QuantBackend> BatchStates<B> {
    /// Passes through a block.
    pub(super) fn advance(&mut self, block: &dyn Block<B>) {
        // Hand the only reference over, so that the block can work in place.
        let empty = Tensor::empty([1, 1, 1], &self.hidden.device());
        let input = std::mem::replace(&mut self.hidden, empty);
        self.hidden = match &self.packed {
            None => block.forward(input, &mut NoTap),
            Some(sequences) => block.forward_packed(input, sequences),
        };
    }
}

/// Tokens of a window that a model is fed: the last one predicts nothing that is scored.
fn fed(window: &[u32]) -> &[u32] {
    &window[..window.len() - 1]
}

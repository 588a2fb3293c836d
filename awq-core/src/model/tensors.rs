//! What becomes of each tensor of a checkpoint: it is read, or is on a short list of tensors that no decoder needs, or it is an
//! error. Names, shapes and types are those of headers, so all of a model is checked before any of it is read.

use std::collections::BTreeMap;

use super::LinearName;
use super::layers::NormKind;
use super::wiring::{Positions, Projections, Wiring};
use crate::load::{Checkpoint, LoadError, ModelConfig, read_exact_shape};

impl Wiring {
    /// Every tensor that the decoder reads, with its row-major shape.
    pub fn tensors(&self, config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
        let hidden = config.hidden_size;
        let width = self.embedding_width(config);
        let mut tensors = BTreeMap::from([(self.embedding.clone(), vec![config.vocab_size, width])]);
        if let Some(Projections { to_stream, from_stream, .. }) = &self.projections {
            tensors.insert(to_stream.clone(), vec![hidden, width]);
            tensors.insert(from_stream.clone(), vec![width, hidden]);
        }
        if let Positions::Learned { tensor, first_row } = &self.positions {
            tensors.insert(tensor.clone(), vec![first_row + config.max_positions, hidden]);
        }
        if let Some(bias) = &self.head_bias {
            tensors.insert(bias.clone(), vec![config.vocab_size]);
        }
        if let Some(head) = &self.head {
            tensors.insert(head.clone(), vec![config.vocab_size, width]);
        }
        let mut norm = |name: &str, kind: NormKind, n_channels: usize| {
            tensors.insert(format!("{name}.weight"), vec![n_channels]);
            if kind.has_bias() {
                tensors.insert(format!("{name}.bias"), vec![n_channels]);
            }
        };
        for name in self.final_norm.iter().chain(&self.embedding_norm) {
            norm(name, self.norm, hidden);
        }
        for (block_idx, block) in self.blocks.iter().enumerate() {
            for name in block.norms() {
                let kind = block.norm_kind(name, self.norm);
                if kind != NormKind::Scale || self.scaled_activations {
                    norm(&self.block_norm(block_idx, name), kind, block.n_channels(name, config));
                }
            }
        }
        for (block_idx, block) in self.blocks.iter().enumerate() {
            for (linear, [n_out, n_in]) in block.linear_shapes(config).into_iter().chain(block.kept_shapes(config)) {
                let name = self.linear(block_idx, linear);
                tensors.insert(format!("{name}.weight"), vec![n_out, n_in]);
                if self.biased.contains(&linear) {
                    tensors.insert(format!("{name}.bias"), vec![n_out]);
                }
            }
        }
        tensors
    }

    /// Settles what only the tensors tell (head, biases) and holds every tensor of `checkpoint` against the decoder.
    ///
    /// # Errors
    /// Tensors that are missing, misshapen or of a type that is not read, or weights that nothing would read.
    pub(super) fn settled(mut self, config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Self, LoadError> {
        self.notes.extend(checkpoint.notes());
        self.settle_head(checkpoint)?;
        self.settle_scales(checkpoint);
        let denied = self.settle_biases(config, checkpoint)?;
        let tensors = self.tensors(config);
        check_present(&tensors, checkpoint)?;
        self.check_others(&tensors, &denied, config, checkpoint)?;
        Ok(self)
    }

    /// A head that is the embedding may be stored all the same, as a copy, as another matrix (which counts, as in transformers 5), or
    /// as the only one of the two.
    fn settle_head(&mut self, checkpoint: &dyn Checkpoint) -> Result<(), LoadError> {
        if self.head.is_some() || checkpoint.shape(HEAD).is_none() {
            return Ok(());
        }
        if checkpoint.shape(&self.embedding).is_none() {
            self.embedding = HEAD.to_owned();
        } else if checkpoint.shape(HEAD) != checkpoint.shape(&self.embedding)
            || !checkpoint.is_copy(HEAD, &self.embedding)?
        {
            self.head = Some(HEAD.to_owned());
            self.notes.push(format!(
                "{}: config.json ties the head to the embedding, but another {HEAD} is stored: the stored one is used, as \
                 transformers 5 does (4 used the embedding)",
                checkpoint.source().display()
            ));
        }
        Ok(())
    }

    /// Only what this program or AutoAWQ has quantized has scales behind activations.
    pub(super) fn settle_scales(&mut self, checkpoint: &dyn Checkpoint) {
        let mut blocks = self.blocks.iter().enumerate();
        self.scaled_activations = blocks.any(|(block_idx, block)| {
            let mut scales =
                block.norms().into_iter().filter(|name| block.norm_kind(*name, self.norm) == NormKind::Scale);
            scales.any(|name| checkpoint.shape(&format!("{}.weight", self.block_norm(block_idx, name))).is_some())
        });
    }

    /// Keeps as biased the linears whose bias is there, in all blocks. Returns those that have one which the configuration denies:
    /// transformers does not read it.
    fn settle_biases(
        &mut self,
        config: &ModelConfig,
        checkpoint: &dyn Checkpoint,
    ) -> Result<Vec<LinearName>, LoadError> {
        let mut denied = Vec::new();
        for linear in self.quantizable() {
            let has_linear =
                |block_idx: &usize| self.blocks[*block_idx].layout.linears.iter().any(|it| it.name == linear);
            let biases: Vec<String> = (0..self.blocks.len())
                .filter(has_linear)
                .map(|block_idx| format!("{}.bias", self.linear(block_idx, linear)))
                .collect();
            let without: Vec<&String> = biases.iter().filter(|name| checkpoint.shape(name).is_none()).collect();
            let may_have_one = self.biased.contains(&linear);
            if without.len() == biases.len() {
                self.biased.retain(|name| *name != linear);
                if may_have_one && !config.is_from_gguf() {
                    self.notes.push(format!(
                        "{}: the configuration gives {linear} a bias, none is stored: it is zero, as in transformers",
                        checkpoint.source().display(),
                    ));
                }
            } else if !may_have_one {
                denied.push(linear);
            } else if let Some(name) = without.first() {
                // In some blocks alone: the checkpoint is not whole.
                checkpoint.read_any_f32(name)?;
            }
        }
        Ok(denied)
    }

    fn check_others(
        &mut self,
        tensors: &BTreeMap<String, Vec<usize>>,
        denied: &[LinearName],
        config: &ModelConfig,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(), LoadError> {
        let is_denied = |name: &str| {
            let linear = name.strip_suffix(".bias").and_then(|name| self.in_block(name));
            linear.is_some_and(|(_, linear)| denied.iter().any(|denied| denied.0 == linear))
        };
        let (mut unread, mut notes) = (Vec::new(), Vec::new());
        for name in checkpoint.names().into_iter().filter(|name| !tensors.contains_key(name)) {
            // In a GGUF file no key denies a bias.
            if is_denied(&name) && !config.is_from_gguf() {
                continue;
            }
            match self.reason_to_ignore(&name, checkpoint) {
                Some(Reason::Known) => {}
                Some(Reason::Guessed) => notes.push(format!(
                    "{}: tensor {name:?} is no weight of a decoder and is not read",
                    checkpoint.source().display()
                )),
                None => unread.push(name),
            }
        }
        for linear in denied.iter().filter(|_| !config.is_from_gguf()) {
            notes.push(format!(
                "{}: the configuration gives {linear} no bias, but one is stored: it is not read, as in transformers",
                checkpoint.source().display()
            ));
        }
        self.notes.extend(notes);
        if unread.is_empty() {
            return Ok(());
        }
        Err(LoadError::UnreadTensors {
            file: checkpoint.source().to_owned(),
            n_tensors: unread.len(),
            names: unread.into_iter().take(3).collect(),
            architecture: config.architecture.clone(),
        })
    }

    /// Why a tensor may stay unread; `None` for one that may be a weight.
    fn reason_to_ignore(&self, name: &str, checkpoint: &dyn Checkpoint) -> Option<Reason> {
        // The head here is a copy of the embedding: another one would have been read.
        let is_parameter = name.ends_with(".weight") || name.ends_with(".bias");
        if BUFFERS.iter().any(|end| name.ends_with(end)) || name == HEAD || checkpoint.is_integer(name) && !is_parameter
        {
            return Some(Reason::Known);
        }
        let is_in_block = name.starts_with(&format!("{}.", self.block_prefix));
        let n_dims = checkpoint.shape(name).map_or(0, |shape| shape.len());
        (!is_in_block && n_dims < 2 && !is_parameter).then_some(Reason::Guessed)
    }
}

pub(super) const HEAD: &str = "lm_head.weight";

/// Ends of the names of buffers that transformers has stored at some time, or that other programs do.
const BUFFERS: &[&str] = &[
    // Rotary angles are computed.
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    // Causal masks, and the number that hides a position in them.
    ".attn.bias",
    ".attn.masked_bias",
    ".self_attn.bias",
    ".self_attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    // 0, 1, 2, ...
    "position_ids",
];

/// Why a tensor is not read.
enum Reason {
    /// It is known to be computed, constant or a copy.
    Known,
    /// It does not look like a weight: the user is told.
    Guessed,
}

/// What can be wrong with a tensor that is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Missing,
    Misshapen,
    Unreadable,
}

impl Fault {
    fn of(name: &str, shape: &[usize], checkpoint: &dyn Checkpoint) -> Option<Self> {
        match checkpoint.shape(name) {
            None => Some(Self::Missing),
            Some(found) if found != shape => Some(Self::Misshapen),
            Some(_) => (!checkpoint.is_readable(name)).then_some(Self::Unreadable),
        }
    }

    /// The end of a sentence on several tensors.
    fn described(self) -> &'static str {
        match self {
            Self::Missing => "are missing",
            Self::Misshapen => "have another shape than the configuration implies",
            Self::Unreadable => "are stored in a type that is not read",
        }
    }
}

/// The first tensor that is missing, else misshapen, else unreadable, and how many more have the same fault.
fn check_present(tensors: &BTreeMap<String, Vec<usize>>, checkpoint: &dyn Checkpoint) -> Result<(), LoadError> {
    let faults: Vec<(&String, &Vec<usize>, Fault)> =
        tensors.iter().filter_map(|(name, shape)| Some((name, shape, Fault::of(name, shape, checkpoint)?))).collect();
    for fault in [Fault::Missing, Fault::Misshapen, Fault::Unreadable] {
        let mut found = faults.iter().filter(|(.., of_tensor)| *of_tensor == fault);
        let Some((name, shape, _)) = found.next() else { continue };
        // What reading says, which touches no value of such a tensor.
        let Err(first) = read_exact_shape(checkpoint, name, shape) else { continue };
        return Err(match found.count() {
            0 => first,
            n_more => LoadError::Several { first: Box::new(first), n_more, fault: fault.described() },
        });
    }
    Ok(())
}

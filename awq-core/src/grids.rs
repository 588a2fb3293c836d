//! [`ModelGrids`]: what a [`GridRule`] comes to for the linears of a model. An override that changes nothing is refused.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::grid::Grid;
use crate::model::wiring::Wiring;
use crate::model::{LinearFacts, LinearName, holder_of};
use crate::rule::{GridOverride, GridRule, HEAD};

/// An override that cannot be meant.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// It names nothing.
    #[error(
        "grids.overrides: no linear of this model matches `{pattern}`; correct the pattern or remove it; linears are {known}"
    )]
    Unmatched {
        /// The pattern.
        pattern: String,
        /// A few names that exist.
        known: String,
    },
    /// It says of the head what holds anyhow.
    #[error("grids.overrides: `lm_head` stays in full precision unless an override gives it a grid; remove this one")]
    HeadAnyhow,
    /// Earlier ones take all that it names.
    #[error(
        "grids.overrides: every linear that matches `{pattern}` is taken by an earlier override; put it before them"
    )]
    Hidden {
        /// The pattern.
        pattern: String,
    },
    /// No linear is left.
    #[error("grids.overrides: every linear of this model is left in full precision; leave one or more to quantize")]
    NothingLeft,
}

impl GridRule {
    /// The grid of a linear, by its names in the checkpoint and in the block; `None` where it stays in full precision.
    pub fn grid_of(&self, full_name: &str, name: &str) -> Option<&Grid> {
        match self.overrides.iter().find(|one| one.matches(full_name, name)) {
            Some(found) => found.grid.as_ref(),
            None => Some(&self.grid),
        }
    }

    /// The grids of a model's linears.
    ///
    /// # Errors
    /// An override that changes nothing, or a rule that leaves nothing to quantize.
    pub fn resolve(&self, wiring: &Wiring) -> Result<ModelGrids, RuleError> {
        let linears: Vec<(usize, LinearName, String)> = (wiring.blocks.iter().enumerate())
            .flat_map(|(block_idx, block)| block.layout.linears.iter().map(move |facts| (block_idx, facts.name)))
            .map(|(block_idx, name)| (block_idx, name, wiring.linear(block_idx, name)))
            .collect();
        self.check(&linears)?;
        let mut blocks = vec![BlockGrids::from(self.grid); wiring.blocks.len()];
        for (block_idx, name, full_name) in linears {
            let grid = self.grid_of(&full_name, name.0);
            if grid != Some(&self.grid) {
                blocks[block_idx].others.insert(name, grid.copied());
            }
        }
        Ok(ModelGrids { default: self.grid.into(), blocks, head: self.head().copied() })
    }

    fn check(&self, linears: &[(usize, LinearName, String)]) -> Result<(), RuleError> {
        for (index, one) in self.overrides.iter().enumerate() {
            let earlier = &self.overrides[..index];
            if one.linears == HEAD {
                match (one.grid, earlier.iter().any(|other| other.linears == HEAD)) {
                    (Some(_), false) => continue,
                    (Some(_), true) => return Err(RuleError::Hidden { pattern: one.linears.clone() }),
                    (None, _) => return Err(RuleError::HeadAnyhow),
                }
            }
            let mut matched = linears.iter().filter(|(_, name, full)| one.matches(full, name.0)).peekable();
            if matched.peek().is_none() {
                return Err(RuleError::Unmatched { pattern: one.linears.clone(), known: examples(linears) });
            }
            if matched.all(|(_, name, full)| earlier.iter().any(|other| other.matches(full, name.0))) {
                return Err(RuleError::Hidden { pattern: one.linears.clone() });
            }
        }
        let is_quantized = |(_, name, full): &(usize, LinearName, String)| self.grid_of(full, name.0).is_some();
        if linears.iter().any(is_quantized) || linears.is_empty() { Ok(()) } else { Err(RuleError::NothingLeft) }
    }
}

impl GridOverride {
    fn matches(&self, full_name: &str, name: &str) -> bool {
        let by_own_name = matches(&self.linears, full_name) || matches(&self.linears, name);
        by_own_name
            || holder_of(name).is_some_and(|holder| {
                let in_model = &full_name[..full_name.len() - (name.len() - holder.len())];
                matches(&self.linears, in_model) || matches(&self.linears, holder)
            })
    }
}

/// Names of the linears of the first block, as the checkpoint has them.
fn examples(linears: &[(usize, LinearName, String)]) -> String {
    const N_SHOWN: usize = 7;
    let first = linears.iter().take_while(|(block_idx, ..)| *block_idx == 0).map(|(_, _, full)| full.as_str());
    first.take(N_SHOWN).collect::<Vec<_>>().join(", ") + ", ..."
}

/// Whether `pattern`, in which `*` stands for any characters, is all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        // The earliest place leaves most for the parts that follow.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The grids of a model's linears.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelGrids {
    default: BlockGrids,
    /// One for each block; none where all are alike.
    blocks: Vec<BlockGrids>,
    head: Option<Grid>,
}

impl From<Grid> for ModelGrids {
    fn from(grid: Grid) -> Self {
        Self { default: grid.into(), blocks: Vec::new(), head: None }
    }
}

impl ModelGrids {
    /// The grid of the head; `None` where it stays in full precision.
    pub fn head(&self) -> Option<&Grid> {
        self.head.as_ref()
    }

    /// The grids of one block.
    pub fn block(&self, block_idx: usize) -> &BlockGrids {
        self.blocks.get(block_idx).unwrap_or(&self.default)
    }
}

/// The grids of a block's linears.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockGrids {
    default: Grid,
    /// Linears that have another grid; `None` is full precision.
    others: BTreeMap<LinearName, Option<Grid>>,
}

impl From<Grid> for BlockGrids {
    fn from(grid: Grid) -> Self {
        Self { default: grid, others: BTreeMap::new() }
    }
}

impl BlockGrids {
    /// The grid of a linear; `None` where it stays in full precision.
    pub fn of(&self, linear: LinearName) -> Option<&Grid> {
        match self.others.get(&linear) {
            Some(other) => other.as_ref(),
            None => Some(&self.default),
        }
    }

    /// Those of `linears` that are quantized.
    pub fn quantized(&self, linears: &[LinearFacts]) -> Vec<LinearFacts> {
        linears.iter().filter(|facts| self.of(facts.name).is_some()).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::grid::{Bits, Granularity};
    use crate::model::{tiny, wiring_of};

    fn grid(bits: u8) -> Grid {
        Grid::awq(Bits::new(bits).unwrap(), Granularity::PerChannel)
    }

    fn rule(overrides: &[(&str, Option<u8>)]) -> GridRule {
        let one = |(linears, bits): &(&str, Option<u8>)| GridOverride {
            linears: (*linears).to_owned(),
            grid: bits.map(grid),
        };
        GridRule { grid: grid(4), overrides: overrides.iter().map(one).collect() }
    }

    fn wiring() -> Wiring {
        let spec = tiny::TinySpec::MHA;
        wiring_of(&spec.config(), &tiny::checkpoint(&spec, 0)).unwrap()
    }

    #[test]
    fn the_first_override_that_matches_decides() {
        let rule = rule(&[("model.layers.0.*", None), ("*.down_proj", Some(8)), ("*", Some(3))]);
        let grids = rule.resolve(&wiring()).unwrap();
        let bits = |block, name| grids.block(block).of(LinearName(name)).map(|grid| grid.bits.get());
        assert_eq!((bits(0, "mlp.down_proj"), bits(0, "self_attn.q_proj")), (None, None));
        assert_eq!((bits(1, "mlp.down_proj"), bits(1, "self_attn.q_proj")), (Some(8), Some(3)));
        let linears = &wiring().blocks[0].layout.linears.clone();
        assert_eq!((grids.block(0).quantized(linears).len(), grids.block(1).quantized(linears).len()), (0, 7));
    }

    #[test]
    fn names_in_the_block_match_in_every_block() {
        let grids = rule(&[("mlp.up_proj", Some(8))]).resolve(&wiring()).unwrap();
        let bits = |block, name| grids.block(block).of(LinearName(name)).unwrap().bits.get();
        assert_eq!((bits(0, "mlp.up_proj"), bits(1, "mlp.up_proj"), bits(1, "mlp.gate_proj")), (8, 8, 4));
    }

    #[test]
    fn a_tensor_that_holds_several_linears_stands_for_all_of_them() {
        let one = |linears: &str| GridOverride { linears: linears.to_owned(), grid: None };
        let (q, gate) = ("self_attn.qkv_proj.q", "mlp.gate_up_proj.gate");
        let in_model = |name: &str| format!("model.layers.1.{name}");
        for pattern in ["*.qkv_proj", "self_attn.qkv_proj", "model.layers.1.self_attn.qkv_proj", "*.qkv_proj.q", "*.q"]
        {
            assert!(one(pattern).matches(&in_model(q), q), "{pattern}");
            assert!(!one(pattern).matches(&in_model(gate), gate), "{pattern}");
        }
        assert!(!one("model.layers.2.self_attn.qkv_proj").matches(&in_model(q), q));
        // GPT-2's matrices lie the other way, and are one linear each.
        assert!(one("*.c_proj").matches("transformer.h.0.mlp.c_proj.transposed", "mlp.c_proj.transposed"));
        // No part of anything: its last name is its own.
        assert!(!one("self_attn").matches("model.layers.0.self_attn.q_proj", "self_attn.q_proj"));
    }

    #[test]
    fn an_override_that_changes_nothing_is_refused() {
        let error = |overrides: &[_]| rule(overrides).resolve(&wiring()).unwrap_err().to_string();
        let unmatched = error(&[("*.dwn_proj", Some(8))]);
        assert!(
            unmatched.starts_with(
                "grids.overrides: no linear of this model matches `*.dwn_proj`; correct the pattern or remove it; \
                 linears are model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, "
            ),
            "{unmatched}"
        );
        assert_eq!(
            error(&[("mlp.*", Some(8)), ("*.down_proj", None)]),
            "grids.overrides: every linear that matches `*.down_proj` is taken by an earlier override; put it before them"
        );
        assert_eq!(
            error(&[("mlp.*", None), ("self_attn.*", None)]),
            "grids.overrides: every linear of this model is left in full precision; leave one or more to quantize"
        );
    }

    #[test]
    fn the_head_is_quantized_by_its_own_name_alone() {
        let head = |overrides: &[_]| rule(overrides).resolve(&wiring()).map(|grids| grids.head().copied());
        assert_eq!(head(&[("*", Some(8))]), Ok(None));
        assert_eq!(head(&[("lm_head", Some(8))]), Ok(Some(grid(8))));
        assert_eq!(head(&[("lm_head", None)]), Err(RuleError::HeadAnyhow));
        let twice = head(&[("lm_head", Some(8)), ("lm_head", Some(4))]);
        assert_eq!(twice, Err(RuleError::Hidden { pattern: HEAD.into() }));
    }

    #[test]
    fn labels_name_the_overrides() {
        assert_eq!(rule(&[]).label(), grid(4).label());
        let label = rule(&[("*.down_proj", Some(8)), ("model.layers.0.*", None)]).label();
        assert_eq!(label, "W4 per-channel (*.down_proj W8 per-channel, model.layers.0.* FP)");
    }

    /// The definition: a `*` takes some characters, and the rest must match the rest.
    fn matches_slowly(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| matches_slowly(rest, &text[taken..])),
            Some((first, rest)) => text.split_first().is_some_and(|(c, text)| c == first && matches_slowly(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_defined(pattern in "[ab*.]{0,8}", text in "[ab.]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), matches_slowly(&chars(&pattern), &chars(&text)));
        }
    }
}

//! What methods must know of a block. A family has it as const data, a [`BlockTable`]; each block of a model has a
//! [`BlockLayout`] made from such a table, in which experts have their numbers. Blocks of one model may differ.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;

use super::{Block, NoTap};
use crate::backend::QuantBackend;

/// Hugging Face name of a linear inside its block, e.g. `self_attn.q_proj`. In a [`BlockTable`] a name with `{}` in it
/// stands for that linear of every expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearName(pub &'static str);

/// Names that were put together at run time.
static INTERNED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

impl LinearName {
    /// The name that `text` spells. One copy of it is kept for as long as the program runs.
    pub fn interned(text: &str) -> Self {
        let mut names = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(text) {
            return Self(known);
        }
        let name: &'static str = String::leak(text.to_owned());
        names.insert(name);
        Self(name)
    }

    /// The name with the number of an expert in the place of `{}`.
    pub(crate) fn of_expert(self, expert: usize) -> Self {
        Self::interned(&self.0.replace(EXPERT, &expert.to_string()))
    }

    fn is_of_each_expert(self) -> bool {
        self.0.contains(EXPERT)
    }
}

const EXPERT: &str = "{}";

impl fmt::Display for LinearName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Hugging Face name of a norm inside its block, e.g. `input_layernorm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NormName(pub &'static str);

impl NormName {
    /// The name with a number in the place of `{}`.
    pub(crate) fn numbered(self, number: usize) -> Self {
        Self(LinearName(self.0).of_expert(number).0)
    }
}

/// What is known of one linear of a family.
#[derive(Clone, Copy, Debug)]
pub struct LinearFacts {
    /// Its name.
    pub name: LinearName,
    /// The linear under whose name its input is captured: q, k and v read one tensor, seen once.
    pub input: LinearName,
    /// Whether AWQ's clip search runs on it. Queries and keys are left alone: their products go through a softmax.
    pub clips: bool,
    /// The expert that it belongs to, which sees only the tokens that are sent to it.
    pub expert: Option<usize>,
}

/// Makes the tables of families readable.
pub(super) const fn reads(name: LinearName, input: LinearName, clips: bool) -> LinearFacts {
    LinearFacts { name, input, clips, expert: None }
}

/// The operation whose output a scale is divided out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrevOp {
    /// A norm: its weight (and bias) is divided.
    Norm(NormName),
    /// A linear: its rows (and bias) are divided.
    Linear(LinearName),
}

/// The part of a block whose output error judges a candidate scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inspect {
    /// The attention module, output projection included.
    Attention,
    /// The feed-forward module.
    Mlp,
    /// Both modules, which stand side by side and read one input: the sum of their outputs.
    Both,
    /// The linear itself.
    Linear,
}

impl Inspect {
    /// Runs the inspected module on its (normed) input, `[batch, seq, in]`. A linear alone counts as part of the
    /// feed-forward module, which contains it.
    pub(crate) fn run<B: QuantBackend>(self, block: &dyn Block<B>, input: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Attention => block.attention(input, &mut NoTap),
            Self::Both => block.attention(input.clone(), &mut NoTap) + block.mlp(input, &mut NoTap),
            Self::Mlp | Self::Linear => block.mlp(input, &mut NoTap),
        }
    }
}

/// The facts of a family's block as const data.
#[derive(Clone, Copy, Debug)]
pub struct BlockTable {
    /// See [`BlockLayout::linears`].
    pub linears: &'static [LinearFacts],
    /// See [`BlockLayout::stages`].
    pub stages: &'static [&'static [LinearName]],
    /// See [`BlockLayout::scale_groups`].
    pub scale_groups: &'static [GroupTable],
}

/// A row of [`BlockTable::scale_groups`]. One whose previous op is a linear of every expert stands for a group in each
/// expert; in any other, the linears of all experts share the scale.
#[derive(Clone, Copy, Debug)]
pub struct GroupTable {
    /// See [`ScaleGroup::prev_op`].
    pub prev_op: PrevOp,
    /// See [`ScaleGroup::linears`].
    pub linears: &'static [LinearName],
    /// See [`ScaleGroup::input`].
    pub input: LinearName,
    /// See [`ScaleGroup::followers`].
    pub followers: &'static [LinearName],
    /// See [`ScaleGroup::inspect`].
    pub inspect: Inspect,
}

/// A row whose input is captured under the name of its first linear.
pub(super) const fn scales(prev_op: PrevOp, linears: &'static [LinearName], inspect: Inspect) -> GroupTable {
    GroupTable { prev_op, linears, input: linears[0], followers: &[], inspect }
}

/// Linears that share an input, and so a scale (AWQ).
#[derive(Clone, Debug)]
pub struct ScaleGroup {
    /// Where the inverse scale goes.
    pub prev_op: PrevOp,
    /// The linears.
    pub linears: Vec<LinearName>,
    /// The name under which their input is captured.
    pub input: LinearName,
    /// Linears that read the same input and stay in full precision: they are multiplied by the scale as well.
    pub followers: Vec<LinearName>,
    /// What judges a candidate.
    pub inspect: Inspect,
    label: String,
}

impl ScaleGroup {
    /// `self_attn.q_proj+self_attn.k_proj+self_attn.v_proj`; `*` stands for every expert.
    pub fn label(&self) -> String {
        self.label.clone()
    }
}

/// The facts of a block.
#[derive(Clone, Debug)]
pub struct BlockLayout {
    /// Every quantizable linear, in the order of the forward pass.
    pub linears: Vec<LinearFacts>,
    /// Linears that are quantized together before activations are captured again (GPTQ's true-sequential order).
    pub stages: Vec<Vec<LinearName>>,
    /// AWQ's groups.
    pub scale_groups: Vec<ScaleGroup>,
}

impl ScaleGroup {
    /// Every linear whose weight or bias folding a scale of the group changes.
    pub(crate) fn folded_linears(&self) -> impl Iterator<Item = LinearName> {
        let prev_op = match self.prev_op {
            PrevOp::Linear(name) => Some(name),
            PrevOp::Norm(_) => None,
        };
        self.linears.iter().chain(&self.followers).copied().chain(prev_op)
    }
}

impl BlockTable {
    /// The layout of a block with `n_experts` experts, 0 for a table that names none.
    pub fn layout(&self, n_experts: usize) -> BlockLayout {
        let names = |names: &[LinearName]| {
            expand(names, n_experts, |name| name.is_of_each_expert(), |name, expert| name.of_expert(expert))
        };
        BlockLayout {
            linears: expand(self.linears, n_experts, |facts| facts.name.is_of_each_expert(), LinearFacts::of_expert),
            stages: self.stages.iter().map(|stage| names(stage)).collect(),
            scale_groups: self.scale_groups.iter().flat_map(|group| group.groups(n_experts, names)).collect(),
        }
    }
}

impl LinearFacts {
    fn of_expert(self, expert: usize) -> Self {
        let (name, input) = (self.name.of_expert(expert), self.input.of_expert(expert));
        Self { name, input, expert: Some(expert), ..self }
    }
}

impl GroupTable {
    fn groups(&self, n_experts: usize, names: impl Fn(&[LinearName]) -> Vec<LinearName>) -> Vec<ScaleGroup> {
        let Self { prev_op, linears, input, followers, inspect } = *self;
        let label =
            |names: &[LinearName]| names.iter().map(|name| name.0.replace(EXPERT, "*")).collect::<Vec<_>>().join("+");
        match prev_op {
            PrevOp::Linear(prev) if prev.is_of_each_expert() => (0..n_experts)
                .map(|expert| {
                    let linears: Vec<_> = linears.iter().map(|name| name.of_expert(expert)).collect();
                    let (prev_op, label) = (PrevOp::Linear(prev.of_expert(expert)), label(&linears));
                    let followers = followers.iter().map(|name| name.of_expert(expert)).collect();
                    ScaleGroup { prev_op, linears, input: input.of_expert(expert), followers, inspect, label }
                })
                .collect(),
            _ => {
                let (label, linears, followers) = (label(linears), names(linears), names(followers));
                vec![ScaleGroup { prev_op, linears, input, followers, inspect, label }]
            }
        }
    }
}

/// `rows` with each run of rows that stand for every expert written out, one expert after the other.
fn expand<T: Copy>(
    rows: &[T],
    n_experts: usize,
    is_of_each_expert: impl Fn(&T) -> bool,
    of_expert: impl Fn(T, usize) -> T,
) -> Vec<T> {
    let run = |run: &[T]| match is_of_each_expert(&run[0]) {
        true => (0..n_experts)
            .flat_map(|expert| run.iter().map(move |&row| (row, expert)))
            .map(|(row, expert)| of_expert(row, expert))
            .collect(),
        false => run.to_vec(),
    };
    rows.chunk_by(|a, b| is_of_each_expert(a) == is_of_each_expert(b)).flat_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTENTION: LinearName = LinearName("q");
    const UP: LinearName = LinearName("experts.{}.up");
    const DOWN: LinearName = LinearName("experts.{}.down");
    const TABLE: BlockTable = BlockTable {
        linears: &[reads(ATTENTION, ATTENTION, false), reads(UP, UP, true), reads(DOWN, DOWN, true)],
        stages: &[&[ATTENTION], &[UP], &[DOWN]],
        scale_groups: &[
            GroupTable {
                prev_op: PrevOp::Norm(NormName("norm")),
                linears: &[UP],
                input: LinearName("router"),
                followers: &[LinearName("router")],
                inspect: Inspect::Mlp,
            },
            scales(PrevOp::Linear(UP), &[DOWN], Inspect::Linear),
        ],
    };

    #[test]
    fn experts_get_their_numbers() {
        let layout = TABLE.layout(2);
        let linears: Vec<_> = layout.linears.iter().map(|facts| (facts.name.0, facts.input.0, facts.expert)).collect();
        let of_expert = |name: &'static str, expert| (name, name, Some(expert));
        assert_eq!(
            linears,
            [
                ("q", "q", None),
                of_expert("experts.0.up", 0),
                of_expert("experts.0.down", 0),
                of_expert("experts.1.up", 1),
                of_expert("experts.1.down", 1),
            ]
        );
        let stages: Vec<Vec<&str>> =
            layout.stages.iter().map(|stage| stage.iter().map(|name| name.0).collect()).collect();
        assert_eq!(stages, [vec!["q"], vec!["experts.0.up", "experts.1.up"], vec!["experts.0.down", "experts.1.down"]]);
    }

    /// A norm feeds all experts, a linear its own.
    #[test]
    fn a_scale_belongs_to_all_experts_or_to_one() {
        let groups = TABLE.layout(2).scale_groups;
        let facts: Vec<_> = groups.iter().map(|group| (group.label(), group.prev_op, group.input.0)).collect();
        let linear = |name| PrevOp::Linear(LinearName(name));
        assert_eq!(
            facts,
            [
                ("experts.*.up".to_owned(), PrevOp::Norm(NormName("norm")), "router"),
                ("experts.0.down".to_owned(), linear("experts.0.up"), "experts.0.down"),
                ("experts.1.down".to_owned(), linear("experts.1.up"), "experts.1.down"),
            ]
        );
        assert_eq!(groups[0].linears, [LinearName("experts.0.up"), LinearName("experts.1.up")]);
        assert_eq!(groups[0].followers, [LinearName("router")]);
    }

    #[test]
    fn a_name_is_kept_once() {
        let (a, b) = (LinearName::interned("experts.77.up"), UP.of_expert(77));
        assert!(a == b && std::ptr::eq(a.0, b.0));
        assert_eq!(a, LinearName("experts.77.up"));
    }
}

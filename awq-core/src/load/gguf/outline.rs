//! [`GgufOutline`]: a model as a GGUF file, without the values of its tensors: keys as llama.cpp's converter writes them, names, and
//! which tensors of Hugging Face lie in a tensor of the file. It is the inverse of what the reader does, and is read back by it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::bytes::{self, ALIGNMENT, Row};
use super::entries::Entries;
use super::header::{Header, Stored, TensorInfo, Value};
use super::layout::{Layout, Part};
use super::layouts::LIKE_LLAMA;
use super::tensor::Change;
use crate::formats::gguf::GgmlType;
use crate::load::class::{Class, Classes};
use crate::load::{GgufArchitecture, LoadError, ModelConfig, Tokenizer};

/// A model as a GGUF file, but for the types and values of its tensors.
#[derive(Clone, Debug)]
pub struct GgufOutline {
    /// In the order of the file.
    metadata: Vec<(String, Value)>,
    tensors: Vec<GgufTensor>,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its name there.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// What lies in it.
    pub contents: Contents,
    change: Change,
}

/// What lies in a tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// The rows of tensors of the model, by their names.
    Tensors(Vec<String>),
    /// A table that is part of the configuration.
    Values(Vec<f32>),
}

/// Where a tensor came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its type.
    pub ggml_type: GgmlType,
    /// From the start of the tensor data, a multiple of [`GgufOutline::ALIGNMENT`].
    pub offset: u64,
}

impl GgufTensor {
    /// Whether llama.cpp computes with it in f32 only: norms, biases, positions, routers.
    pub fn is_f32(&self) -> bool {
        let is_one = |part: &str| self.name.contains(part);
        self.shape.len() < 2 || is_one("_norm.") || is_one("position_embd.") || is_one("ffn_gate_inp")
    }

    /// Whether it is the weight of a norm with the one that Hugging Face adds.
    pub fn adds_one(&self) -> bool {
        self.change == Change::OneMore
    }

    /// Whether rows lie in another order than in the model.
    pub fn is_rearranged(&self) -> bool {
        matches!(self.change, Change::Interleaved { .. })
    }

    /// The values that are stored for those of one of its tensors.
    pub fn stored(&self, values: Vec<f32>) -> Vec<f32> {
        match self.adds_one() {
            true => values.into_iter().map(|value| value + 1.0).collect(),
            false => values,
        }
    }

    /// The encoded rows of one of its tensors in the order of the file.
    ///
    /// # Panics
    /// If heads do not divide the rows.
    pub fn arranged(&self, rows: Vec<u8>) -> Vec<u8> {
        let Change::Interleaved { n_heads } = self.change else { return rows };
        let (n_rows, half) = (self.shape[0], self.shape[0] / n_heads / 2);
        assert_eq!(n_rows, 2 * half * n_heads, "{}: rows of {n_heads} heads", self.name);
        let row_len = rows.len() / n_rows;
        let mut arranged = Vec::with_capacity(rows.len());
        for head in rows.chunks(2 * half * row_len) {
            let (first, second) = head.split_at(half * row_len);
            for (first, second) in first.chunks(row_len).zip(second.chunks(row_len)) {
                arranged.extend_from_slice(first);
                arranged.extend_from_slice(second);
            }
        }
        arranged
    }
}

impl GgufOutline {
    /// Bytes that tensors start at multiples of.
    pub const ALIGNMENT: usize = ALIGNMENT;

    /// Of a model of a class, with these tensors. `about` are keys beside those of the model.
    ///
    /// # Errors
    /// What a file does not hold, in words.
    pub(crate) fn new(
        (class, gguf): (&Class, GgufArchitecture),
        config: &ModelConfig,
        shapes: &BTreeMap<String, Vec<usize>>,
        (tokenizer, chat_template): (&Tokenizer, Option<&str>),
        about: &[(&str, String)],
    ) -> Result<Self, String> {
        let text = |key: &str, value: &str| (key.to_owned(), Value::Text(value.to_owned()));
        let mut metadata = vec![text("general.architecture", gguf.name), text("general.type", "model")];
        metadata.extend(about.iter().map(|(key, value)| text(key, value)));
        metadata.push(("general.quantization_version".to_owned(), Value::Int(2)));
        let entries = Entries::of(class, gguf, config, shapes);
        metadata.extend(entries.keys);
        metadata.extend(tokenizer.to_gguf(config)?);
        metadata.extend(chat_template.map(|template| text("tokenizer.chat_template", template)));
        let table = |(name, values): (&str, Vec<f32>)| GgufTensor {
            name: name.to_owned(),
            shape: vec![values.len()],
            contents: Contents::Values(values),
            change: Change::Nothing,
        };
        let mut tensors: Vec<GgufTensor> = entries.tables.into_iter().map(table).collect();
        tensors.extend(of_model(gguf, config, shapes)?);
        Ok(Self { metadata, tensors })
    }

    /// With a key that says more of the model.
    pub fn with_text(mut self, key: &str, text: String) -> Self {
        self.metadata.push((key.to_owned(), Value::Text(text)));
        self
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The header of the file, which is as long for any types and places.
    ///
    /// # Panics
    /// If there is not one place a tensor.
    pub fn header(&self, placed: &[Placed]) -> Vec<u8> {
        assert_eq!(placed.len(), self.tensors.len(), "places of tensors");
        let mut metadata = self.metadata.clone();
        metadata.push(("general.file_type".to_owned(), Value::Int(self.file_type(placed))));
        let rows = self.tensors.iter().zip(placed).map(|(tensor, placed)| Row {
            name: &tensor.name,
            shape: &tensor.shape,
            type_id: placed.ggml_type.id(),
            offset: placed.offset,
        });
        bytes::header(&metadata, &rows.collect::<Vec<_>>())
    }

    /// What llama.cpp calls a file of mostly one type (`llama_ftype`): the one of most weights in blocks.
    fn file_type(&self, placed: &[Placed]) -> i64 {
        let mut weights: BTreeMap<GgmlType, usize> = BTreeMap::new();
        for (tensor, placed) in self.tensors.iter().zip(placed).filter(|(tensor, _)| tensor.name.starts_with("blk.")) {
            *weights.entry(placed.ggml_type).or_default() += tensor.shape.iter().product::<usize>();
        }
        match weights.into_iter().max_by_key(|(_, n)| *n).map(|(ggml_type, _)| ggml_type) {
            Some(GgmlType::F16) => 1,
            Some(GgmlType::Q4_0) => 2,
            Some(GgmlType::Q4_1) => 3,
            Some(GgmlType::Q8_0) => 7,
            Some(GgmlType::Q5_0) => 8,
            Some(GgmlType::Q5_1) => 9,
            Some(GgmlType::Bf16) => 32,
            Some(GgmlType::Tq2_0) => 37,
            Some(GgmlType::Mxfp4) => 38,
            _ => 0,
        }
    }

    /// The configuration as the reader takes it from the file.
    ///
    /// # Errors
    /// What it cannot read.
    pub(crate) fn read_back(&self, classes: Classes<'_>) -> Result<ModelConfig, LoadError> {
        let as_stored = |value: &Value| match value {
            Value::Float(float) => Value::Float(f64::from(*float as f32)),
            value => value.clone(),
        };
        let metadata = self.metadata.iter().map(|(key, value)| (key.clone(), as_stored(value))).collect();
        let info = |tensor: &GgufTensor| {
            let stored = Stored::Known(GgmlType::F32, 0..0);
            (tensor.name.clone(), TensorInfo { shape: tensor.shape.clone(), stored, part: 0 })
        };
        let header = Header { metadata, tensors: self.tensors.iter().map(info).collect() };
        let table = |name: &str| {
            let values = self.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| &tensor.contents);
            Ok(values.and_then(|contents| match contents {
                Contents::Values(values) => Some(values.clone()),
                Contents::Tensors(_) => None,
            }))
        };
        super::config_of(Path::new("the GGUF file"), &header, classes, &table).map(|(config, _)| config)
    }
}

/// Every tensor of the model in its place.
fn of_model(
    gguf: GgufArchitecture,
    config: &ModelConfig,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<Vec<GgufTensor>, String> {
    let layout = gguf.layout.unwrap_or(&LIKE_LLAMA);
    let is_interleaved = gguf.interleaved_rows;
    let mut places = Places { layout, config, shapes, is_interleaved, placed: Vec::new(), names: BTreeSet::new() };
    for (part, name) in layout.model_parts {
        places.add(None, part, Part::One(name));
    }
    for (part, special) in layout.parts {
        places.add(None, part, *special);
    }
    for block in 0..config.n_blocks {
        // Tensors that may lie together or by themselves: by themselves.
        let is_special = |part: &str, name: &str| {
            layout.parts.iter().any(|(special, holds)| {
                *special == part
                    || matches!(holds, Part::One(held) | Part::PlusOne(held) | Part::Row(held) if *held == name)
            })
        };
        for (part, name) in layout.plain_parts.iter().filter(|(part, name)| !is_special(part, name)) {
            places.add(Some(block), part, Part::One(name));
        }
        for (part, special) in layout.parts {
            places.add(Some(block), part, *special);
        }
    }
    match shapes.keys().find(|name| !places.names.contains(*name)) {
        None => Ok(places.placed),
        Some(name) => Err(format!("llama.cpp's `{}` has no tensor for {name}", gguf.name)),
    }
}

/// Tensors that have a place.
struct Places<'a> {
    layout: &'a Layout,
    config: &'a ModelConfig,
    shapes: &'a BTreeMap<String, Vec<usize>>,
    is_interleaved: bool,
    placed: Vec<GgufTensor>,
    /// What lies in them.
    names: BTreeSet<String>,
}

impl Places<'_> {
    /// The weight and the bias of a part, where the model has them and they have no place yet.
    fn add(&mut self, block: Option<usize>, part: &str, special: Part) {
        for kind in ["weight", "bias"] {
            let full = |name: &str| match block {
                Some(block) => format!("{}.{block}.{name}.{kind}", self.layout.blocks),
                None => format!("{name}.{kind}"),
            };
            let names = self.in_part(special, &full);
            let shapes: Vec<&Vec<usize>> = names.iter().filter_map(|name| self.shapes.get(name)).collect();
            if names.is_empty() || shapes.len() < names.len() || names.iter().any(|name| self.names.contains(name)) {
                continue;
            }
            let (first, n) = (shapes[0], shapes.len());
            let n_rows = shapes.iter().filter_map(|shape| shape.first()).sum::<usize>();
            let shape = match special {
                Part::Experts(_) | Part::Heads(_) => std::iter::once(n).chain(first.iter().copied()).collect(),
                _ => std::iter::once(n_rows).chain(first.iter().copied().skip(1)).collect(),
            };
            let change = match special {
                Part::PlusOne(_) => Change::OneMore,
                _ => match super::projected_heads(&names[0], self.config).filter(|_| self.is_interleaved) {
                    Some(n_heads) => Change::Interleaved { n_heads },
                    None => Change::Nothing,
                },
            };
            let name = match block {
                Some(block) => format!("blk.{block}.{part}.{kind}"),
                None => format!("{part}.{kind}"),
            };
            self.names.extend(names.iter().cloned());
            self.placed.push(GgufTensor { name, shape, contents: Contents::Tensors(names), change });
        }
    }

    /// The tensors of the model that lie in a part.
    fn in_part(&self, part: Part, full: &dyn Fn(&str) -> String) -> Vec<String> {
        match part {
            Part::One(name) | Part::PlusOne(name) | Part::Row(name) => vec![full(name)],
            Part::Qkv(names) => names.map(full).to_vec(),
            Part::Halves(names) => names.map(full).to_vec(),
            Part::Experts(name) | Part::Heads(name) => (0..)
                .map(|index| full(&name.replace("{}", &index.to_string())))
                .take_while(|name| self.shapes.contains_key(name))
                .collect(),
            Part::With { name, alone, .. } => {
                let name = full(name);
                vec![if self.shapes.contains_key(&name) { name } else { full(alone) }]
            }
        }
    }
}

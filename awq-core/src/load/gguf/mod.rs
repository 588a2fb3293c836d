//! GGUF files: one memory-mapped file (or its parts) with configuration, tokenizer and (quantized) tensors.
//!
//! Tensors come out as Hugging Face has them: its names, its row-major shapes, its order of the rows of q and k,
//! values dequantized to `f32`. Linears that share a tensor come out one by one, under the names of
//! [`in_parts`](super::in_parts).

mod bytes;
mod codes;
mod dequant;
mod entries;
mod header;
mod imatrix;
mod keys;
mod kind;
mod layout;
pub(crate) mod layouts;
mod names;
mod outline;
mod parts;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use self::codes::codes;
pub(crate) use self::header::{Header, Value};
use self::header::{Stored, TensorInfo};
pub use self::imatrix::{Importance, imatrix_file};
pub(crate) use self::layout::Layout;
use self::layout::{Metadata, Tables};
pub use self::outline::{Contents, GgufOutline, GgufTensor, Placed};
use self::parts::Files;
pub use self::parts::gguf_parts;
use self::tensor::{Change, Tensor, check_shape};
use super::config::ModelConfig;
use super::error::nearest_names;
use super::keys::Keys;
use super::rope::RopeScaling;
use super::slices::slice_len;
use super::{Checkpoint, Class, Classes, GgufArchitecture, LoadError, Slices, StoredType, slices};
use crate::quantized::QuantizedWeight;

/// llama.cpp's divisors of the rotary frequencies: part of the configuration, not a weight.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// The tensors of a memory-mapped GGUF file, or of its parts.
pub struct GgufCheckpoint {
    files: Files,
    /// By Hugging Face name.
    tensors: BTreeMap<String, Tensor>,
}

/// A GGUF file, opened: its header is parsed, no tensor is read yet.
pub(crate) struct GgufFile {
    pub(crate) header: Header,
    pub(crate) config: ModelConfig,
    pub(crate) checkpoint: GgufCheckpoint,
}

/// Opens `file`, a model of one of `classes`, and reads its header.
pub(crate) fn open(file: &Path, classes: Classes<'_>) -> Result<GgufFile, LoadError> {
    let (files, mut header) = Files::open(file)?;
    let file = &*files.first().to_owned();
    let table = |name: &str| header.tensors.get(name).map(|info| files.read(name, info)).transpose();
    let (config, gguf) = config_of(file, &header, classes, &table)?;
    let tensors = renamed(file, std::mem::take(&mut header.tensors), &config, gguf)?;
    Ok(GgufFile { header, config, checkpoint: GgufCheckpoint { files, tensors } })
}

/// The configuration of a model of one of `classes`, and how its class is stored.
fn config_of(
    file: &Path,
    header: &Header,
    classes: Classes<'_>,
    tables: Tables<'_>,
) -> Result<(ModelConfig, GgufArchitecture), LoadError> {
    kind::check(file, &header.metadata)?;
    let (class, gguf) = class_of(header, file, classes)?;
    check_n_blocks(file, header, gguf.name)?;
    let own_keys = gguf.layout.map_or(&[][..], |layout| layout.keys);
    let json = keys::checked(file, &header.metadata, gguf.name, own_keys)?;
    let config = match gguf.layout {
        None => like_llama(file, header, json, tables, class, gguf.name)?,
        Some(layout) => {
            let keys = Keys { file, json: &json };
            layout::config(class, layout, &Metadata { keys, prefix: gguf.name, header, tables })?
        }
    };
    Ok((config, gguf))
}

/// The configuration of a class that has no layout of its own.
fn like_llama(
    file: &Path,
    header: &Header,
    json: Json,
    tables: Tables<'_>,
    class: &Class,
    architecture: &str,
) -> Result<ModelConfig, LoadError> {
    let has_bias = |parts: &[&str]| parts.iter().any(|part| header.tensors.contains_key(&format!("blk.0.{part}.bias")));
    let mut config = ModelConfig::from_gguf(file, json, &header.metadata, architecture, class.name)?;
    config.tie_word_embeddings = !header.tensors.contains_key("output.weight");
    config.attention_bias = has_bias(&["attn_q", "attn_k", "attn_v", "attn_output"]);
    config.mlp_bias = has_bias(&["ffn_gate", "ffn_up", "ffn_down"]);
    if let Some(info) = header.tensors.get(ROPE_FREQS) {
        check_shape(file, ROPE_FREQS, &info.shape, &[config.head_dim / 2])?;
        let divisors = tables(ROPE_FREQS)?.unwrap_or_default();
        config.rope_scaling = Some(per_frequency(file, divisors, config.rope_scaling.as_ref())?);
    }
    Ok(config)
}

/// The tensors of a file, by the names that Hugging Face has for what lies in them.
fn renamed(
    file: &Path,
    infos: BTreeMap<String, TensorInfo>,
    config: &ModelConfig,
    gguf: GgufArchitecture,
) -> Result<BTreeMap<String, Tensor>, LoadError> {
    let mut tensors = BTreeMap::new();
    for (gguf_name, info) in &infos {
        if names::is_rotary_buffer(gguf_name) || tables(gguf).contains(&gguf_name.as_str()) {
            continue;
        }
        let tensor = Tensor { info: info.clone(), change: Change::Nothing };
        let found = match gguf.layout {
            None => names::hugging_face_name(gguf_name).map(|name| vec![(name, tensor)]),
            Some(layout) => layout.tensors(gguf_name, &tensor, config, file, &|name| infos.contains_key(name))?,
        };
        let found = found.ok_or_else(|| LoadError::UnknownTensor {
            file: file.to_owned(),
            name: gguf_name.clone(),
            architecture: gguf.name.to_owned(),
        })?;
        for (name, mut tensor) in found {
            if let Some(n_heads) = projected_heads(&name, config).filter(|_| gguf.interleaved_rows) {
                check_rotary_rows(file, &name, &tensor.info.shape, n_heads * config.head_dim)?;
                tensor.change = Change::Interleaved { n_heads };
            }
            if tensors.insert(name.clone(), tensor).is_some() {
                let problem = format!("tensor {gguf_name:?} holds {name:?}, which another tensor holds as well");
                return Err(LoadError::BadHeader { file: file.to_owned(), problem });
            }
        }
    }
    Ok(tensors)
}

/// Tensors that are part of the configuration.
fn tables(gguf: GgufArchitecture) -> &'static [&'static str] {
    if gguf.layout.is_some() { &layouts::TABLES } else { &[ROPE_FREQS] }
}

/// A block has tensors: a header with more blocks than tensors is damaged, and would take memory for each.
fn check_n_blocks(file: &Path, header: &Header, architecture: &str) -> Result<(), LoadError> {
    let key = format!("{architecture}.block_count");
    let n_tensors = header.tensors.len();
    match header.metadata.get(&key) {
        Some(Value::Int(n_blocks)) if usize::try_from(*n_blocks).is_ok_and(|n_blocks| n_blocks > n_tensors) => {
            let problem = format!("{n_blocks} blocks, but the file has {n_tensors} tensors; download it again");
            Err(LoadError::BadKey { file: file.to_owned(), key, problem })
        }
        _ => Ok(()),
    }
}

fn class_of(
    header: &Header,
    file: &Path,
    classes: Classes<'_>,
) -> Result<(&'static Class, GgufArchitecture), LoadError> {
    const KEY: &str = "general.architecture";
    let architecture = match header.metadata.get(KEY) {
        Some(Value::Text(architecture)) => architecture,
        _ => {
            return Err(LoadError::MissingKey { file: file.to_owned(), key: KEY.to_owned() });
        }
    };
    let known = || classes.iter().filter_map(|class| Some((*class, class.gguf?)));
    // Mixtral is a `llama` with experts.
    let n_experts = header.metadata.get(&format!("{architecture}.expert_count"));
    let has_experts = matches!(n_experts, Some(Value::Int(1..)));
    let is_like = |gguf: &GgufArchitecture| has_experts == gguf.layout.is_some_and(Layout::has_experts);
    let named = || known().filter(|(_, gguf)| gguf.name == architecture);
    named().find(|(_, gguf)| is_like(gguf)).or_else(|| named().next()).ok_or_else(|| LoadError::UnknownArchitecture {
        file: file.to_owned(),
        architecture: architecture.clone(),
        known: known().map(|(_, gguf)| gguf.name.to_owned()).collect::<BTreeSet<_>>().into_iter().collect(),
    })
}

/// The file's own divisors, on top of those of a formula: llama.cpp applies both.
fn per_frequency(file: &Path, mut divisors: Vec<f32>, formula: Option<&RopeScaling>) -> Result<RopeScaling, LoadError> {
    if let Some(index) = divisors.iter().position(|divisor| *divisor <= 0.0) {
        let problem = format!("tensor {ROPE_FREQS:?} divides by {} at element {index}", divisors[index]);
        return Err(LoadError::BadHeader { file: file.to_owned(), problem });
    }
    if let Some(RopeScaling::Linear { factor }) = formula {
        divisors.iter_mut().for_each(|divisor| *divisor = (f64::from(*divisor) * factor) as f32);
    }
    Ok(RopeScaling::PerFrequency { divisors })
}

/// The number of heads that q or k projects to; `None` for any other tensor.
fn projected_heads(name: &str, config: &ModelConfig) -> Option<usize> {
    let (linear, _) = name.rsplit_once('.')?;
    if linear.ends_with(".self_attn.q_proj") {
        Some(config.n_heads)
    } else if linear.ends_with(".self_attn.k_proj") {
        Some(config.n_kv_heads)
    } else {
        None
    }
}

/// Rows can be put in order only if there are `n_rows` of them, as the header's head counts imply.
fn check_rotary_rows(file: &Path, name: &str, shape: &[usize], n_rows: usize) -> Result<(), LoadError> {
    let expected: Vec<usize> =
        std::iter::once(n_rows).chain(shape.iter().copied().skip(1).map(|dim| dim.max(1))).collect();
    check_shape(file, name, shape, &expected)
}

impl GgufCheckpoint {
    fn tensor(&self, name: &str) -> Result<&Tensor, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor {
            file: self.source().to_owned(),
            name: name.to_owned(),
            nearest: nearest_names(name, self.tensors.keys().map(String::as_str)),
        })
    }
}

impl Checkpoint for GgufCheckpoint {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.info.shape.clone())
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name)?;
        Ok(tensor.restored(self.files.read(name, &tensor.info)?))
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        let tensor = self.tensor(name)?;
        let shape = &tensor.info.shape;
        match tensor.change {
            Change::Nothing => self.files.slices(name, &tensor.info, slice_len(shape)),
            _ => Ok(slices::in_memory(self.read_any_f32(name)?, shape)),
        }
    }

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let (Stored::Known(ggml_type, _), &[n_out, n_in]) = (&tensor.info.stored, tensor.info.shape.as_slice()) else {
            return Ok(None);
        };
        Ok(codes(*ggml_type, &self.files.bytes(&tensor.info)?, [n_out, n_in], tensor.change))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|tensor| matches!(tensor.info.stored, Stored::Known(..)))
    }

    fn is_integer(&self, name: &str) -> bool {
        let of = |tensor: &Tensor| matches!(&tensor.info.stored, Stored::Known(ggml_type, _) if ggml_type.is_integer());
        self.tensors.get(name).is_some_and(of)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        let Stored::Known(ggml_type, _) = self.tensors.get(name)?.info.stored else { return None };
        Some(StoredType {
            name: format!("GGUF {ggml_type}"),
            bits_per_weight: ggml_type.bits_per_weight(),
            group_size: ggml_type.group_size(),
        })
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.tensors.get(name).map_or_else(|| self.source(), |tensor| self.files.of(&tensor.info)).to_owned()
    }

    fn source(&self) -> &Path {
        self.files.first()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.files.n_bytes()
    }
}

//! GGUF files: one memory-mapped file with configuration, tokenizer and (quantized) tensors.
//!
//! Tensors come out as Hugging Face has them: its names, its row-major shapes, its order of the rows of q and k,
//! values dequantized to `f32`.

mod dequant;
mod header;
mod keys;
mod kind;
mod names;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;
use std::path::Path;

use self::dequant::dequantize;
pub(super) use self::header::{Header, Value};
use self::header::{Stored, TensorInfo};
use self::types::{GgmlType, type_name};
use super::config::ModelConfig;
use super::error::nearest_names;
use super::map::MappedFile;
use super::rope::RopeScaling;
use super::{Checkpoint, Class, GgufArchitecture, LoadError, StoredType};

/// llama.cpp's divisors of the rotary frequencies: part of the configuration, not a weight.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// The tensors of one memory-mapped GGUF file.
pub struct GgufCheckpoint {
    map: MappedFile,
    /// By Hugging Face name.
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor, and the change of row order it needs.
struct Tensor {
    info: TensorInfo,
    /// Number of heads whose rows are interleaved pairs; `None` where the rows are as Hugging Face has them.
    interleaved_heads: Option<usize>,
}

/// A GGUF file, opened: its header is parsed, no tensor is read yet.
pub(super) struct GgufFile {
    pub(super) header: Header,
    pub(super) config: ModelConfig,
    pub(super) checkpoint: GgufCheckpoint,
}

/// Opens `file` and reads its header.
pub(super) fn open(file: &Path) -> Result<GgufFile, LoadError> {
    let map = MappedFile::open(file)?;
    let mut header = Header::parse(map.bytes(), file)?;
    kind::check(file, &header.metadata)?;
    let (class, gguf) = class_of(&header, file)?;
    check_n_blocks(file, &header, gguf.name)?;
    let tied_head = !header.tensors.contains_key("output.weight");
    let has_bias = |parts: &[&str]| parts.iter().any(|part| header.tensors.contains_key(&format!("blk.0.{part}.bias")));
    let attention_bias = has_bias(&["attn_q", "attn_k", "attn_v", "attn_output"]);
    let mlp_bias = has_bias(&["ffn_gate", "ffn_up", "ffn_down"]);
    let metadata = keys::checked(file, &header.metadata, gguf.name)?;
    let mut config = ModelConfig::from_gguf(file, metadata, &header.metadata, gguf.name, class.name)?;
    config.tie_word_embeddings = tied_head;
    config.attention_bias = attention_bias;
    config.mlp_bias = mlp_bias;
    if let Some(info) = header.tensors.remove(ROPE_FREQS) {
        check_shape(file, ROPE_FREQS, &info.shape, &[config.head_dim / 2])?;
        let divisors = read_stored(&map, ROPE_FREQS, &info.stored)?;
        config.rope_scaling = Some(per_frequency(file, divisors, config.rope_scaling.as_ref())?);
    }
    let mut tensors = BTreeMap::new();
    for (gguf_name, info) in std::mem::take(&mut header.tensors) {
        if names::is_rotary_buffer(&gguf_name) {
            continue;
        }
        let Some(name) = names::hugging_face_name(&gguf_name) else {
            return Err(LoadError::UnknownTensor {
                file: file.to_owned(),
                name: gguf_name,
                architecture: gguf.name.to_owned(),
            });
        };
        let interleaved_heads = match projected_heads(&name, &config) {
            Some(n_heads) if gguf.interleaved_rows => {
                check_rotary_rows(file, &name, &info.shape, n_heads * config.head_dim)?;
                Some(n_heads)
            }
            _ => None,
        };
        tensors.insert(name, Tensor { info, interleaved_heads });
    }
    Ok(GgufFile { header, config, checkpoint: GgufCheckpoint { map, tensors } })
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

fn class_of(header: &Header, file: &Path) -> Result<(&'static Class, GgufArchitecture), LoadError> {
    const KEY: &str = "general.architecture";
    let architecture = match header.metadata.get(KEY) {
        Some(Value::Text(architecture)) => architecture,
        _ => {
            return Err(LoadError::MissingKey { file: file.to_owned(), key: KEY.to_owned() });
        }
    };
    let known = || crate::model::classes().filter_map(|class| Some((class, class.gguf?)));
    known().find(|(_, gguf)| gguf.name == architecture).ok_or_else(|| LoadError::UnknownArchitecture {
        file: file.to_owned(),
        architecture: architecture.clone(),
        known: known().map(|(_, gguf)| gguf.name.to_owned()).collect(),
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

fn check_shape(file: &Path, name: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(LoadError::WrongShape {
        file: file.to_owned(),
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

fn read_stored(map: &MappedFile, name: &str, stored: &Stored) -> Result<Vec<f32>, LoadError> {
    let file = || map.path().to_owned();
    Ok(match stored {
        // In bounds: the header checked the range against the file's length.
        Stored::Known(ggml_type, range) => dequantize(*ggml_type, &map.bytes()[range.clone()]),
        Stored::Unknown(type_id) => {
            return Err(LoadError::UnsupportedDtype {
                file: file(),
                name: name.to_owned(),
                dtype: type_name(*type_id),
                known: GgmlType::known(),
            });
        }
    })
}

impl Checkpoint for GgufCheckpoint {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.info.shape.clone())
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor {
            file: self.map.path().to_owned(),
            name: name.to_owned(),
            nearest: nearest_names(name, self.tensors.keys().map(String::as_str)),
        })?;
        let values = read_stored(&self.map, name, &tensor.info.stored)?;
        Ok(match tensor.interleaved_heads {
            Some(n_heads) => {
                let row_len = tensor.info.shape.get(1).copied().unwrap_or(1);
                names::interleaved_rows_to_halves(&values, n_heads, row_len)
            }
            None => values,
        })
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

    fn source(&self) -> &Path {
        self.map.path()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

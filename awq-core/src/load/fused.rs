//! Tensors that hold the rows of several linears, as the linears that they hold.
//!
//! A family names them ([`Fused`]), and everything else, from calibration to packed folders, knows only their parts: the part `q`
//! of `self_attn.qkv_proj` is a linear called `self_attn.qkv_proj.q`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, LoadError, ModelConfig, StoredType};
use crate::quantized::QuantizedWeight;

/// A tensor of each block that holds the rows of several linears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused {
    /// Its name in a block, without `.weight`.
    pub(crate) name: &'static str,
    /// What the name of each linear ends with, and its rows.
    pub(crate) parts: &'static [(&'static str, RowsOf)],
}

/// The rows of a part, in its order.
type RowsOf = fn(&ModelConfig) -> Vec<usize>;

/// `checkpoint` with the parts of fused tensors in their place, where the class of `config` has some. Parts that are stored as
/// such, as in a folder that this program has packed, are left as they are.
pub fn in_parts(config: &ModelConfig, checkpoint: Arc<dyn Checkpoint>) -> Arc<dyn Checkpoint> {
    let class = crate::model::classes().find(|class| class.name == config.architecture);
    match class.map_or(&[][..], |class| class.fused) {
        [] => checkpoint,
        fused => Arc::new(PartsCheckpoint { base: checkpoint, fused, config: config.clone() }),
    }
}

/// See [`in_parts`].
struct PartsCheckpoint {
    base: Arc<dyn Checkpoint>,
    fused: &'static [Fused],
    config: ModelConfig,
}

/// Rows of a tensor of the checkpoint below.
struct Part {
    /// Name of the tensor that holds them.
    fused: String,
    rows: Vec<usize>,
}

impl PartsCheckpoint {
    /// The part called `name`, `{block}.{fused}.{part}.weight`, of a tensor that is there.
    fn part(&self, name: &str) -> Option<Part> {
        let (linear, kind) = name.rsplit_once('.')?;
        let (fused_linear, part) = linear.rsplit_once('.')?;
        let fused = self.fused.iter().find(|fused| is_called(fused_linear, fused.name))?;
        let (_, rows) = fused.parts.iter().find(|(known, _)| *known == part)?;
        let fused = format!("{fused_linear}.{kind}");
        self.base.shape(&fused)?;
        Some(Part { fused, rows: rows(&self.config) })
    }

    /// The fused tensor called `name`.
    fn fused(&self, name: &str) -> Option<&'static Fused> {
        let (linear, _) = name.rsplit_once('.')?;
        self.fused.iter().find(|fused| is_called(linear, fused.name))
    }

    /// Rows of all parts.
    fn n_rows(&self, name: &str) -> usize {
        let parts = self.fused(name).map_or(&[][..], |fused| fused.parts);
        parts.iter().map(|(_, rows)| rows(&self.config).len()).sum()
    }

    /// The tensor that holds `name`.
    fn holder(&self, name: &str) -> String {
        self.part(name).map_or_else(|| name.to_owned(), |part| part.fused)
    }
}

/// Whether a linear of a model is called `name` in its block.
fn is_called(linear: &str, name: &str) -> bool {
    linear.strip_suffix(name).is_some_and(|block| block.ends_with('.'))
}

impl Checkpoint for PartsCheckpoint {
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for name in self.base.names() {
            match (self.fused(&name), name.rsplit_once('.')) {
                (Some(fused), Some((linear, kind))) => {
                    names.extend(fused.parts.iter().map(|(part, _)| format!("{linear}.{part}.{kind}")));
                }
                _ => names.push(name),
            }
        }
        names.sort();
        names
    }

    /// Of a part of a tensor with other rows than the configuration implies, the shape of that tensor: it fits nothing.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Some(part) = self.part(name) else { return self.base.shape(name) };
        let mut shape = self.base.shape(&part.fused)?;
        if shape.first() == Some(&self.n_rows(&part.fused)) {
            shape[0] = part.rows.len();
        }
        Some(shape)
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let Some(part) = self.part(name) else { return self.base.read_any_f32(name) };
        let values = self.base.read_any_f32(&part.fused)?;
        let shape = self.base.shape(&part.fused).unwrap_or_default();
        let n_rows = self.n_rows(&part.fused);
        if shape.first() != Some(&n_rows) {
            let expected = std::iter::once(n_rows).chain(shape.iter().skip(1).copied()).collect();
            return Err(LoadError::WrongShape { file: self.file_of(name), name: part.fused, expected, found: shape });
        }
        let row_len: usize = shape.iter().skip(1).product();
        Ok(part.rows.into_iter().flat_map(|row| &values[row * row_len..][..row_len]).copied().collect())
    }

    fn is_readable(&self, name: &str) -> bool {
        self.base.is_readable(&self.holder(name))
    }

    fn is_integer(&self, name: &str) -> bool {
        self.base.is_integer(&self.holder(name))
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.base.stored_type(&self.holder(name))
    }

    fn notes(&self) -> Vec<String> {
        self.base.notes()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(&self.holder(name))
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        match self.part(name) {
            Some(_) => Ok(None),
            None => self.base.read_quantized(name),
        }
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::load::MemoryCheckpoint;
    use crate::model::tiny::TinySpec;

    const QKV: &str = "model.layers.0.self_attn.qkv_proj";

    fn checkpoint(n_rows: usize) -> Arc<dyn Checkpoint> {
        let config = ModelConfig { architecture: "Phi3ForCausalLM".into(), ..TinySpec::GQA.config() };
        let mut base = MemoryCheckpoint::default();
        base.insert(&format!("{QKV}.weight"), &[n_rows, 2], (0..2 * n_rows).map(|i| i as f32).collect());
        base.insert("model.norm.weight", &[2], vec![1.0, 2.0]);
        in_parts(&config, Arc::new(base))
    }

    /// 64 rows of queries, 32 of keys, 32 of values.
    #[test]
    fn parts_are_rows_of_what_holds_them() {
        let checkpoint = checkpoint(128);
        let [k, q, v] = ["k", "q", "v"].map(|part| format!("{QKV}.{part}.weight"));
        assert_eq!(checkpoint.names(), [k.as_str(), &q, &v, "model.norm.weight"]);
        assert_eq!(checkpoint.shape(&q), Some(vec![64, 2]));
        assert_eq!(checkpoint.read_f32(&k).unwrap(), (128..192).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(checkpoint.read_f32(&v).unwrap()[0], 192.0);
        assert_eq!(checkpoint.read_f32("model.norm.weight").unwrap(), [1.0, 2.0]);
        assert_eq!(checkpoint.shape(&format!("{QKV}.bias")), None);
        assert_eq!(checkpoint.shape(&format!("{QKV}.q.bias")), None);
        assert_eq!(checkpoint.stored_type(&q).unwrap().name, "F32");
    }

    #[test]
    fn other_rows_than_the_configuration_implies_are_an_error() {
        let checkpoint = checkpoint(120);
        assert_eq!(checkpoint.shape(&format!("{QKV}.q.weight")), Some(vec![120, 2]));
        let error = checkpoint.read_f32(&format!("{QKV}.q.weight")).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{QKV}.weight\" has shape [120, 2], expected [128, 2]")), "{error}");
    }

    /// As in a folder that was packed.
    #[test]
    fn parts_that_are_stored_are_read() {
        let config = ModelConfig { architecture: "Phi3ForCausalLM".into(), ..TinySpec::GQA.config() };
        let (mut base, name) = (MemoryCheckpoint::default(), format!("{QKV}.q.weight"));
        base.insert(&name, &[1, 2], vec![5.0, 6.0]);
        let checkpoint = in_parts(&config, Arc::new(base));
        assert_eq!((checkpoint.names(), checkpoint.shape(&name)), (vec![name.clone()], Some(vec![1, 2])));
        assert_eq!(checkpoint.read_f32(&name).unwrap(), [5.0, 6.0]);
    }
}

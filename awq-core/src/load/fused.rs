//! Tensors that hold the rows of several linears, as the linears that they hold.
//!
//! A family names them ([`Fused`]), and everything else, from calibration to packed folders, knows only their parts: the part `q`
//! of `self_attn.qkv_proj` is a linear called `self_attn.qkv_proj.q`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Checkpoint, LoadError, ModelConfig, Slices, StoredType, slices};
use crate::quantized::QuantizedWeight;

/// A tensor of each block that holds the rows of several linears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused {
    /// Its name in a block, without `.weight`.
    pub(crate) name: &'static str,
    /// Which way it lies.
    pub(crate) order: Order,
    /// What the name of each linear ends with, and its rows.
    pub(crate) parts: &'static [(&'static str, RowsOf)],
}

/// Which way a fused tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[out, in]`, as everywhere.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` has it. A tensor that holds one linear is then fused as well, so that the linear has a
    /// name of its own.
    InOut,
}

/// The rows of a part.
type RowsOf = fn(&ModelConfig) -> Rows;

/// Runs of rows that lie equally far apart. Numbers are a configuration's, which may be damaged: nothing is made of each row
/// before a tensor with so many is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    start: usize,
    run_len: usize,
    stride: usize,
    n_runs: usize,
}

impl Rows {
    /// One run.
    pub(crate) fn run(start: usize, len: usize) -> Self {
        Self { start, run_len: len, stride: len, n_runs: 1 }
    }

    fn len(self) -> usize {
        self.run_len * self.n_runs
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.n_runs).flat_map(move |run| {
            let start = self.start + run * self.stride;
            start..start + self.run_len
        })
    }
}

/// Rows of a tensor with all queries, then all keys, then all values.
pub(crate) mod by_kind {
    use super::Rows;
    use crate::load::ModelConfig;

    pub(crate) fn queries(config: &ModelConfig) -> Rows {
        Rows::run(0, config.n_heads * config.head_dim)
    }

    pub(crate) fn keys(config: &ModelConfig) -> Rows {
        Rows::run(config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim)
    }

    pub(crate) fn values(config: &ModelConfig) -> Rows {
        Rows::run((config.n_heads + config.n_kv_heads) * config.head_dim, config.n_kv_heads * config.head_dim)
    }
}

/// Rows of a tensor that has, for each key head, the queries that it serves, itself and its values.
pub(crate) mod by_key_head {
    use super::Rows;
    use crate::load::ModelConfig;

    pub(crate) fn queries(config: &ModelConfig) -> Rows {
        rows(config, 0, config.n_heads / config.n_kv_heads)
    }

    pub(crate) fn keys(config: &ModelConfig) -> Rows {
        rows(config, config.n_heads / config.n_kv_heads, 1)
    }

    pub(crate) fn values(config: &ModelConfig) -> Rows {
        rows(config, config.n_heads / config.n_kv_heads + 1, 1)
    }

    /// Those of some heads of each group.
    fn rows(config: &ModelConfig, first_head: usize, n_heads: usize) -> Rows {
        let (in_group, dim) = (config.n_heads / config.n_kv_heads + 2, config.head_dim);
        Rows { start: first_head * dim, run_len: n_heads * dim, stride: in_group * dim, n_runs: config.n_kv_heads }
    }
}

/// `checkpoint` with the parts of `fused` tensors in their place. Parts that are stored as such, as in a folder that this program has
/// packed, are left as they are.
pub(crate) fn in_parts(
    fused: &'static [Fused],
    config: &ModelConfig,
    checkpoint: Arc<dyn Checkpoint>,
) -> Arc<dyn Checkpoint> {
    match fused {
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
    order: Order,
    rows: Rows,
}

impl PartsCheckpoint {
    /// The part called `name`, `{block}.{fused}.{part}.weight`, of a tensor that is there.
    fn part(&self, name: &str) -> Option<Part> {
        let (linear, kind) = name.rsplit_once('.')?;
        let (fused_linear, part) = linear.rsplit_once('.')?;
        let fused = self.fused.iter().find(|fused| is_called(fused_linear, fused.name))?;
        let (_, rows) = fused.parts.iter().find(|(known, _)| *known == part)?;
        let name = format!("{fused_linear}.{kind}");
        self.base.shape(&name)?;
        let order = if self.base.is_turned(&name) { Order::OutIn } else { fused.order };
        Some(Part { fused: name, order, rows: rows(&self.config) })
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

    fn beside(&self) -> Vec<String> {
        self.base.beside()
    }

    /// Of a part of a tensor with other rows than the configuration implies, the shape of that tensor: it fits nothing.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Some(part) = self.part(name) else { return self.base.shape(name) };
        let mut shape = self.base.shape(&part.fused)?;
        if part.order == Order::InOut {
            shape.reverse();
        }
        if shape.first() == Some(&self.n_rows(&part.fused)) {
            shape[0] = part.rows.len();
        }
        Some(shape)
    }

    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        match self.part(name) {
            Some(_) => self.shape(name).is_some_and(|found| found == expected),
            None => self.base.fits(name, expected),
        }
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let Some(part) = self.part(name) else { return self.base.read_any_f32(name) };
        let values = self.base.read_any_f32(&part.fused)?;
        let shape = self.base.shape(&part.fused).unwrap_or_default();
        let n_rows = self.n_rows(&part.fused);
        let rows_at = if part.order == Order::InOut { shape.len().saturating_sub(1) } else { 0 };
        if shape.get(rows_at) != Some(&n_rows) {
            let mut expected = shape.clone();
            if let Some(rows) = expected.get_mut(rows_at) {
                *rows = n_rows;
            }
            return Err(LoadError::WrongShape { file: self.file_of(name), name: part.fused, expected, found: shape });
        }
        let row_len = values.len() / n_rows;
        Ok(match part.order {
            Order::OutIn => part.rows.iter().flat_map(|row| &values[row * row_len..][..row_len]).copied().collect(),
            Order::InOut => part.rows.iter().flat_map(|row| values[row..].iter().step_by(n_rows)).copied().collect(),
        })
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        match self.part(name) {
            Some(_) => Ok(slices::in_memory(self.read_any_f32(name)?, &self.shape(name).unwrap_or_default())),
            None => self.base.slices(name),
        }
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

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        let Some(part) = self.part(name) else { return self.base.read_codes(name) };
        let whole = self
            .base
            .read_codes(&part.fused)?
            .filter(|whole| part.order == Order::OutIn && whole.n_out == self.n_rows(&part.fused));
        Ok(whole.and_then(|whole| whole.rows(part.rows.iter())))
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
        crate::open::in_parts(&config, Arc::new(base))
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

    /// Two key heads, each with two heads of queries of 16 channels.
    #[test]
    fn rows_may_lie_by_the_key_heads_that_they_belong_to() {
        let config = TinySpec::GQA.config();
        let rows = [by_key_head::queries(&config), by_key_head::keys(&config), by_key_head::values(&config)];
        let [q, k, v] = rows.map(|rows| rows.iter().collect::<Vec<_>>());
        assert_eq!(rows.map(Rows::len), [64, 32, 32]);
        assert_eq!((q.len(), k.len(), v.len()), (64, 32, 32));
        assert_eq!([q[0], q[31], q[32], k[0], k[16], v[0], v[16]], [0, 31, 64, 32, 96, 48, 112]);
        let mut all = [q, k, v].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..128));
    }

    /// Columns of `[in, out]`.
    #[test]
    fn a_transposed_tensor_is_turned() {
        let config = ModelConfig { architecture: "GPT2LMHeadModel".into(), ..TinySpec::MHA.config() };
        let mut base = MemoryCheckpoint::default();
        base.insert("h.0.attn.c_attn.weight", &[2, 192], (0..384).map(|i| i as f32).collect());
        base.insert("h.0.attn.c_attn.bias", &[192], (0..192).map(|i| i as f32).collect());
        let checkpoint = crate::open::in_parts(&config, Arc::new(base));
        assert_eq!(checkpoint.shape("h.0.attn.c_attn.k.weight"), Some(vec![64, 2]));
        let k = checkpoint.read_f32("h.0.attn.c_attn.k.weight").unwrap();
        assert_eq!(k[..4], [64.0, 256.0, 65.0, 257.0]);
        assert_eq!(checkpoint.read_f32("h.0.attn.c_attn.v.bias").unwrap()[0], 128.0);
    }

    /// No memory is taken for what is not there.
    #[test]
    fn damaged_numbers_fit_nothing() {
        let config = ModelConfig { architecture: "Phi3ForCausalLM".into(), ..TinySpec::GQA.config() };
        let config = ModelConfig { n_heads: 1 << 31, n_kv_heads: 1 << 31, head_dim: 1 << 30, ..config };
        let mut base = MemoryCheckpoint::default();
        base.insert(&format!("{QKV}.weight"), &[128, 2], vec![0.0; 256]);
        let checkpoint = crate::open::in_parts(&config, Arc::new(base));
        assert_eq!(checkpoint.shape(&format!("{QKV}.v.weight")), Some(vec![128, 2]));
        assert!(checkpoint.read_f32(&format!("{QKV}.v.weight")).is_err());
    }

    /// As in a folder that was packed.
    #[test]
    fn parts_that_are_stored_are_read() {
        let config = ModelConfig { architecture: "Phi3ForCausalLM".into(), ..TinySpec::GQA.config() };
        let (mut base, name) = (MemoryCheckpoint::default(), format!("{QKV}.q.weight"));
        base.insert(&name, &[1, 2], vec![5.0, 6.0]);
        let checkpoint = crate::open::in_parts(&config, Arc::new(base));
        assert_eq!((checkpoint.names(), checkpoint.shape(&name)), (vec![name.clone()], Some(vec![1, 2])));
        assert_eq!(checkpoint.read_f32(&name).unwrap(), [5.0, 6.0]);
    }
}

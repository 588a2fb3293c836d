//! What the settings of a tool say of weights that are stored as integers.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::formats::gptq::Gptq;
use crate::grid::Bits;
use crate::load::LoadError;
use crate::load::foreign::{described, is_empty};

/// How the weights of a folder are stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    /// The file that says so.
    pub(super) file: PathBuf,
    pub(super) layout: Layout,
    /// The maker's name in tables: `GPTQ`.
    pub(super) label: &'static str,
    /// Bits that codes may have; linears may differ.
    pub(super) bits: Vec<Bits>,
    /// Inputs that may share a scale; `None` for all of a row.
    pub(super) group_sizes: Vec<Option<usize>>,
    /// Whether zero points are stored bits that count: they are not where they are all the middle code.
    pub(super) has_zero_points: bool,
    /// Whether groups may have an order of their own.
    pub(super) has_input_order: bool,
    /// Whether inputs of linears are rounded as well by the programs that the file is made for.
    pub(super) rounds_activations: bool,
    /// Method, settings and tool in words.
    pub(crate) described: String,
}

/// Which tensors a linear has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// [`crate::formats::awq`].
    Awq,
    /// [`crate::formats::gptq`].
    Gptq { version: Gptq, is_symmetric: bool },
    /// [`crate::formats::compressed`], codes in one string of bits where words do not tell.
    Compressed { is_dense: bool },
}

const REMEDY: &str = "give the model that this one was made from";

/// The scheme of `settings`, which stand under `key` in `file`; `None` where they are another method's, or of a layout that is not
/// read.
///
/// # Errors
/// A setting of a known layout that is not understood.
pub(crate) fn scheme(file: &Path, key: &str, settings: &Json) -> Result<Option<Scheme>, LoadError> {
    let reader = Reader { file, settings, key };
    let method = settings["quant_method"].as_str().or_else(|| settings["method"].as_str());
    match method {
        Some("awq") => reader.awq(),
        Some("gptq") => reader.gptq(),
        Some("auto-round" | "intel/auto-round") => reader.auto_round(),
        Some("compressed-tensors") => reader.compressed(),
        // Files beside config.json of earlier versions, AutoAWQ's and AutoGPTQ's.
        None if settings["w_bit"].is_number() => reader.awq(),
        None if settings["bits"].is_number() && file.ends_with("quantize_config.json") => reader.gptq(),
        _ => Ok(None),
    }
}

struct Reader<'a> {
    file: &'a Path,
    settings: &'a Json,
    key: &'a str,
}

impl Reader<'_> {
    fn bad(&self, key: &str, problem: &str) -> LoadError {
        self.bad_value(key, &self.settings[key], problem)
    }

    fn bad_value(&self, key: &str, value: &Json, problem: &str) -> LoadError {
        let problem = format!("{value}: {problem}; {REMEDY}");
        LoadError::BadKey { file: self.file.to_owned(), key: format!("{}.{key}", self.key), problem }
    }

    fn scheme(&self, layout: Layout, label: &'static str, like: &[(&Json, &str, &str)]) -> Result<Scheme, LoadError> {
        let (mut bits, mut group_sizes) = (Vec::new(), Vec::new());
        for (index, (settings, bits_key, group_key)) in like.iter().enumerate() {
            let found = settings[*bits_key].as_u64().and_then(|n| u8::try_from(n).ok()).and_then(Bits::new);
            let (value, is_first) = (&settings[*group_key], index == 0);
            // compressed-tensors names a strategy where rows have one scale; what else is silent says nothing of groups.
            let size = match value {
                Json::Null if !is_first && !settings["strategy"].is_string() => None,
                value => group_size(value),
            };
            match found {
                Some(found) if !bits.contains(&found) => bits.push(found),
                None if is_first => return Err(self.bad_value(bits_key, &settings[*bits_key], "expected 2 to 8 bits")),
                // Of the settings of single linears those count that are there.
                _ => {}
            }
            match size {
                Some(size) if !group_sizes.contains(&size) => group_sizes.push(size),
                None if is_first => {
                    return Err(self.bad_value(group_key, value, "expected a number of inputs, or -1 for a row"));
                }
                _ => {}
            }
        }
        Ok(Scheme {
            file: self.file.to_owned(),
            layout,
            label,
            bits,
            group_sizes,
            has_zero_points: true,
            has_input_order: false,
            rounds_activations: false,
            described: described(self.settings, self.key),
        })
    }

    /// The first of `keys` that is a text, in lower case.
    fn text(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.settings[*key].as_str()).map(str::to_lowercase)
    }

    fn awq(&self) -> Result<Option<Scheme>, LoadError> {
        let (bits, group) = match self.settings["w_bit"].is_number() {
            true => ("w_bit", "q_group_size"),
            false => ("bits", "group_size"),
        };
        match self.text(&["version", "checkpoint_format", "format"]).as_deref() {
            None | Some("gemm") => {}
            Some(_) => return Ok(None),
        }
        if self.settings[bits] != 4 {
            return Err(self.bad(bits, "expected 4 bits, which is all that the layout has"));
        }
        self.scheme(Layout::Awq, "AWQ", &[(self.settings, bits, group)]).map(Some)
    }

    fn gptq(&self) -> Result<Option<Scheme>, LoadError> {
        let version = match self.text(&["checkpoint_format", "format"]).as_deref() {
            None | Some("gptq") => Gptq::V1,
            Some("gptq_v2") => Gptq::V2,
            Some(_) => return Ok(None),
        };
        if let Some(key) = ["adapter", "rotation"].iter().find(|key| !is_empty(&self.settings[**key])) {
            return Err(self.bad(key, "what it adds to the weights is not read"));
        }
        let pack = &self.settings["pack_dtype"];
        if !(pack.is_null() || pack == "int32") {
            return Err(self.bad("pack_dtype", "words of int32 are read"));
        }
        let is_symmetric = self.settings["sym"] == true;
        let dynamic = self.settings["dynamic"].as_object().into_iter().flat_map(|rules| rules.values());
        let like: Vec<_> =
            std::iter::once(self.settings).chain(dynamic).map(|one| (one, "bits", "group_size")).collect();
        let scheme = self.scheme(Layout::Gptq { version, is_symmetric }, "GPTQ", &like)?;
        let has_input_order = self.settings["desc_act"] == true;
        Ok(Some(Scheme { has_zero_points: !is_symmetric, has_input_order, ..scheme }))
    }

    fn auto_round(&self) -> Result<Option<Scheme>, LoadError> {
        let is_symmetric = self.settings["sym"] == true;
        let packing = self.text(&["packing_format", "backend"]).unwrap_or_default();
        let layout = match packing.trim_start_matches("auto_round:") {
            packing if packing.contains("awq") => Layout::Awq,
            packing if packing.contains("gptq") => Layout::Gptq { version: Gptq::V1, is_symmetric },
            _ => return Ok(None),
        };
        let data_type = &self.settings["data_type"];
        if !(data_type.is_null() || data_type == "int") {
            return Err(self.bad("data_type", "integers are read"));
        }
        let extra = self.settings["extra_config"].as_object().into_iter().flat_map(|linears| linears.values());
        let like: Vec<_> = std::iter::once(self.settings).chain(extra).map(|one| (one, "bits", "group_size")).collect();
        let scheme = self.scheme(layout, "AutoRound", &like)?;
        let has_zero_points = layout == Layout::Awq || !is_symmetric;
        let rounds_activations = self.settings["act_bits"].as_u64().is_some_and(|bits| bits < 16);
        Ok(Some(Scheme { has_zero_points, rounds_activations, ..scheme }))
    }

    fn compressed(&self) -> Result<Option<Scheme>, LoadError> {
        let Some(groups) = self.settings["config_groups"].as_object().filter(|groups| !groups.is_empty()) else {
            return Ok(None);
        };
        if groups.values().any(|group| group["weights"]["type"] != "int") {
            return Ok(None);
        }
        let format = self.settings["format"].as_str().unwrap_or_default();
        if !["pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"].contains(&format) {
            return Err(self.bad("format", "not read of weights that are integers"));
        }
        if let Some(key) = ["sparsity_config", "transform_config"].iter().find(|key| !is_empty(&self.settings[**key])) {
            return Err(self.bad(key, "what it does to the weights is not read"));
        }
        let weights: Vec<&Json> = groups.values().map(|group| &group["weights"]).collect();
        for weights in &weights {
            if !["tensor", "channel", "group"].iter().any(|known| weights["strategy"] == *known) {
                return Err(self.bad_value("config_groups", &weights["strategy"], "a strategy that is not read"));
            }
        }
        let like: Vec<_> = weights.iter().map(|weights| (*weights, "num_bits", "group_size")).collect();
        let layout = Layout::Compressed { is_dense: is_dense(self.settings["version"].as_str()) };
        let scheme = self.scheme(layout, "compressed-tensors", &like)?;
        let has_zero_points = weights.iter().any(|weights| weights["symmetric"] == false);
        let has_input_order = weights.iter().any(|weights| weights["actorder"] == "group");
        // Keys and values of attention are activations, too.
        let rounds_activations = !is_empty(&self.settings["kv_cache_scheme"])
            || groups
                .values()
                .any(|group| ["input_activations", "output_activations"].iter().any(|key| !is_empty(&group[*key])));
        Ok(Some(Scheme { has_zero_points, has_input_order, rounds_activations, ..scheme }))
    }
}

/// `None` where the value is no size; `Some(None)` for a whole row.
fn group_size(value: &Json) -> Option<Option<usize>> {
    match value.as_i64() {
        Some(-1 | 0) => Some(None),
        Some(size) => usize::try_from(size).ok().map(Some),
        None => value.is_null().then_some(None),
    }
}

/// Whether a version of compressed-tensors is 0.18 or later; those that do not say it are taken to be.
fn is_dense(version: Option<&str>) -> bool {
    let Some(version) = version else { return true };
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(0), Some(minor)) => minor >= 18,
        _ => true,
    }
}

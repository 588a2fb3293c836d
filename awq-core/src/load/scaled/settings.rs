//! What `quantization_config` says of weights that are small floats with scales. A setting that is not known is an error with its
//! name: it may change what the bytes stand for.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::load::LoadError;
use crate::load::foreign::{described, is_empty};

/// How the weights of a folder may be stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    /// The file that says so.
    pub(super) file: PathBuf,
    /// Whose arithmetic restores weights.
    pub(super) maker: Maker,
    /// How 8-bit weights may share scales; linears may differ.
    pub(super) layouts: Vec<ScaleLayout>,
    /// Method and settings in words.
    pub(crate) described: String,
    /// Whether inputs of linears, or keys and values, are rounded as well by the programs that the file is made for.
    pub(super) rounds_activations: bool,
}

/// Who has written a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// 8-bit floats as transformers (`fp8`, `fbgemm_fp8`) and those that it reads have them: products in f32.
    Transformers,
    /// Blocks of 4-bit floats of experts, as gpt-oss has them.
    GptOss,
    /// compressed-tensors: products in the type of the scales.
    CompressedTensors,
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleLayout {
    /// All of a matrix.
    Tensor,
    /// A row.
    Channel,
    /// So many of a row.
    Group(usize),
    /// A block of so many rows and columns.
    Block([usize; 2]),
}

const KEYS: [&str; 2] = ["quantization_config", "compression_config"];
const REMEDY: &str = "give the model that this one was made from, or convert it to bf16 with the program that wrote it";

/// The scheme of `config`, read from `file`; `None` where it has no such settings, or others.
///
/// # Errors
/// A setting of a known method that is not understood.
pub(crate) fn scheme(file: &Path, config: &Json) -> Result<Option<Scheme>, LoadError> {
    let nested = config.get("text_config").unwrap_or(&Json::Null);
    let mut found = [config, nested].into_iter().flat_map(|json| KEYS.map(|key| (key, &json[key])));
    let Some((key, settings)) = found.find(|(_, settings)| settings.as_object().is_some_and(|map| !map.is_empty()))
    else {
        return Ok(None);
    };
    let reader = Reader { file, settings, path: key.to_owned() };
    let scheme = |maker, layouts, rounds_activations| Scheme {
        file: file.to_owned(),
        maker,
        layouts,
        described: described(settings, key),
        rounds_activations,
    };
    Ok(match settings["quant_method"].as_str() {
        Some("fp8") => {
            reader.only(&[
                ("quant_method", &|_| true),
                ("activation_scheme", &|value| value == "dynamic" || value == "static"),
                ("weight_block_size", &|value| value.is_null() || pair(value).is_some()),
                ("fmt", &|value| value == "e4m3" || value == "float8_e4m3fn"),
                ("scale_fmt", &|value| value == "float" || value == "ue8m0"),
                ("expert_dtype", &|value| value == "fp8"),
                ("modules_to_not_convert", &|_| true),
                ("ignored_layers", &|_| true),
                ("modules_to_convert", &is_empty),
                ("kv_cache_scheme", &|_| true),
                ("dequantize", &|_| true),
            ])?;
            let blocks = pair(&settings["weight_block_size"]).map(ScaleLayout::Block);
            // Written without the key, the size is that of transformers.
            let blocks = match settings.get("weight_block_size") {
                None => Some(ScaleLayout::Block([128, 128])),
                Some(_) => blocks,
            };
            Some(scheme(Maker::Transformers, blocks.into_iter().chain([ScaleLayout::Tensor]).collect(), true))
        }
        Some("fbgemm_fp8") => {
            reader.only(&[
                ("quant_method", &|_| true),
                ("activation_scale_ub", &|_| true),
                ("modules_to_not_convert", &|_| true),
            ])?;
            Some(scheme(Maker::Transformers, vec![ScaleLayout::Channel], true))
        }
        Some("mxfp4") => {
            reader.only(&[
                ("quant_method", &|_| true),
                ("modules_to_not_convert", &|_| true),
                ("dequantize", &|_| true),
            ])?;
            Some(scheme(Maker::GptOss, Vec::new(), false))
        }
        Some("compressed-tensors") if has_float_weights(settings) => {
            let (layouts, rounds_activations) = reader.compressed_tensors()?;
            Some(scheme(Maker::CompressedTensors, layouts, rounds_activations))
        }
        _ => None,
    })
}

/// Whether every group of linears has weights that are floats.
fn has_float_weights(settings: &Json) -> bool {
    let groups = settings["config_groups"].as_object();
    groups.is_some_and(|groups| !groups.is_empty() && groups.values().all(|group| group["weights"]["type"] == "float"))
}

/// `[128, 128]`, or `"128x128"` as compressed-tensors has written it.
fn pair(value: &Json) -> Option<[usize; 2]> {
    let sizes = match value {
        Json::String(text) => text.split('x').map(|size| size.parse().ok().filter(|size| *size > 0)).collect(),
        value => value.as_array()?.iter().map(size).collect::<Option<Vec<_>>>(),
    };
    sizes?.try_into().ok()
}

fn size(value: &Json) -> Option<usize> {
    value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
}

/// A key, and whether a value of it is understood.
type Understood<'a> = (&'a str, &'a dyn Fn(&Json) -> bool);

/// Settings, and the keys under which they stand.
struct Reader<'a> {
    file: &'a Path,
    settings: &'a Json,
    path: String,
}

impl<'a> Reader<'a> {
    fn below(&self, key: &str) -> Reader<'a> {
        Reader { file: self.file, settings: &self.settings[key], path: format!("{}.{key}", self.path) }
    }

    fn bad(&self, key: &str, value: &Json) -> LoadError {
        let problem = format!("{value}: not understood of weights that are small floats; {REMEDY}");
        LoadError::BadKey { file: self.file.to_owned(), key: format!("{}.{key}", self.path), problem }
    }

    /// # Errors
    /// A key beside `keys`, or one of them with a value that is not understood.
    fn only(&self, keys: &[Understood<'_>]) -> Result<(), LoadError> {
        for (key, value) in self.settings.as_object().into_iter().flatten() {
            let known = keys.iter().find(|(known, _)| known == key);
            if !known.is_some_and(|(_, is_understood)| is_understood(value)) {
                return Err(self.bad(key, value));
            }
        }
        Ok(())
    }

    /// How weights may share scales, and whether more than weights is rounded.
    fn compressed_tensors(&self) -> Result<(Vec<ScaleLayout>, bool), LoadError> {
        const FORMATS: [&str; 6] = [
            "float-quantized",
            "naive-quantized",
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
            "mxfp8-quantized",
            "mixed-precision",
        ];
        let is_format = |value: &Json| value.as_str().is_some_and(|format| FORMATS.contains(&format));
        self.only(&[
            ("quant_method", &|_| true),
            ("format", &is_format),
            ("config_groups", &|_| true),
            ("quantization_status", &|value| value == "compressed" || value == "frozen"),
            ("global_compression_ratio", &|_| true),
            ("ignore", &|_| true),
            ("kv_cache_scheme", &|_| true),
            ("sparsity_config", &|value| is_empty(value) || value["format"] == "dense"),
            ("transform_config", &is_empty),
            // What auto-round 0.16 writes beside it, null for most models.
            ("moe_sparsity_config", &is_empty),
            ("version", &|_| true),
            ("run_compressed", &|_| true),
            ("dequantize", &|_| true),
        ])?;
        let groups = self.below("config_groups");
        let mut layouts = Vec::new();
        let mut rounds_activations = !is_empty(&self.settings["kv_cache_scheme"]);
        for name in groups.settings.as_object().into_iter().flatten().map(|(name, _)| name) {
            let group = groups.below(name);
            group.only(&[
                ("targets", &|_| true),
                ("weights", &|_| true),
                ("input_activations", &|_| true),
                ("output_activations", &|_| true),
                ("format", &|value| value.is_null() || is_format(value)),
            ])?;
            rounds_activations |= !is_empty(&group.settings["input_activations"]);
            layouts.extend(group.below("weights").layout()?);
        }
        Ok((layouts, rounds_activations))
    }

    /// How weights share scales; `None` for those of 4 bits, whose tensors say it.
    fn layout(&self) -> Result<Option<ScaleLayout>, LoadError> {
        let weights = self.settings;
        let is_scale_type = |value: &Json| value.is_null() || value == "torch.float8_e4m3fn" || value == "torch.uint8";
        self.only(&[
            ("num_bits", &|value| value == 4 || value == 8),
            ("type", &|value| value == "float"),
            ("symmetric", &|value| *value == true),
            ("strategy", &|value| value.is_string()),
            ("group_size", &|value| value.is_null() || value == -1 || size(value).is_some()),
            ("block_structure", &|value| value.is_null() || pair(value).is_some()),
            ("dynamic", &|value| *value == false),
            ("actorder", &|value| value.is_null() || *value == false),
            ("scale_dtype", &is_scale_type),
            ("zp_dtype", &|_| true),
            ("observer", &|_| true),
            ("observer_kwargs", &|_| true),
        ])?;
        if weights["num_bits"] == 4 {
            return Ok(None);
        }
        let layout = match weights["strategy"].as_str() {
            Some("tensor") => Some(ScaleLayout::Tensor),
            Some("channel") => Some(ScaleLayout::Channel),
            Some("group") => size(&weights["group_size"]).map(ScaleLayout::Group),
            Some("block") => pair(&weights["block_structure"]).map(ScaleLayout::Block),
            _ => None,
        };
        layout.map(Some).ok_or_else(|| self.bad("strategy", &weights["strategy"]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn of(settings: Json) -> Result<Option<Scheme>, String> {
        let config = json!({ "quantization_config": settings });
        scheme(Path::new("config.json"), &config).map_err(|error| error.to_string())
    }

    fn compressed(weights: Json, more: &[(&str, Json)]) -> Json {
        let mut settings = json!({
            "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } }
        });
        more.iter().for_each(|(key, value)| settings[*key] = value.clone());
        settings
    }

    #[test]
    fn layouts_are_those_that_settings_name() {
        let layouts = |settings| of(settings).unwrap().unwrap().layouts;
        let qwen = json!({
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 64],
            "modules_to_not_convert": ["lm_head"]
        });
        assert_eq!(layouts(qwen), [ScaleLayout::Block([128, 64]), ScaleLayout::Tensor]);
        let silent = json!({ "quant_method": "fp8", "ignored_layers": ["lm_head"], "activation_scheme": "static" });
        assert_eq!(layouts(silent), [ScaleLayout::Block([128, 128]), ScaleLayout::Tensor]);
        assert_eq!(layouts(json!({ "quant_method": "fbgemm_fp8" })), [ScaleLayout::Channel]);
        let weights =
            |strategy: &str| json!({ "num_bits": 8, "type": "float", "strategy": strategy, "group_size": 32 });
        assert_eq!(layouts(compressed(weights("tensor"), &[])), [ScaleLayout::Tensor]);
        assert_eq!(layouts(compressed(weights("channel"), &[])), [ScaleLayout::Channel]);
        assert_eq!(layouts(compressed(weights("group"), &[])), [ScaleLayout::Group(32)]);
        let by_text = json!({ "num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x64" });
        assert_eq!(layouts(compressed(by_text, &[])), [ScaleLayout::Block([128, 64])]);
    }

    /// As the hub has them from llm-compressor of 2024 on, and from AutoFP8.
    #[test]
    fn settings_of_published_models_are_understood() {
        let weights = json!({
            "actorder": null, "block_structure": null, "dynamic": false, "group_size": null, "num_bits": 8,
            "observer": "minmax", "observer_kwargs": {}, "strategy": "channel", "symmetric": true, "type": "float"
        });
        let sparsity = json!({ "format": "dense", "global_sparsity": 0.14, "sparsity_structure": "unstructured" });
        let more = [
            ("sparsity_config", sparsity),
            ("quantization_status", json!("frozen")),
            ("global_compression_ratio", json!(1.46)),
            ("ignore", json!(["lm_head"])),
            ("moe_sparsity_config", Json::Null),
            ("kv_cache_scheme", json!({ "num_bits": 8, "type": "float", "dynamic": false })),
        ];
        let scheme = of(compressed(weights, &more)).unwrap().unwrap();
        assert!(scheme.rounds_activations && scheme.layouts == [ScaleLayout::Channel]);
        let auto = json!({
            "activation_scheme": "static", "ignored_layers": ["lm_head"], "kv_cache_scheme": "static", "quant_method": "fp8"
        });
        assert!(of(auto).unwrap().is_some());
    }

    /// What has integers for weights is another matter, and none of this one's.
    #[test]
    fn other_methods_are_not_taken() {
        assert_eq!(of(json!({ "quant_method": "gptq", "bits": 4 })), Ok(None));
        assert_eq!(of(compressed(json!({ "num_bits": 4, "type": "int" }), &[])), Ok(None));
        assert_eq!(of(json!({})), Ok(None));
    }

    #[test]
    fn settings_that_are_not_understood_are_named() {
        let float8 = || json!({ "num_bits": 8, "type": "float", "strategy": "channel" });
        let with = |key: &str, value: Json| {
            let mut weights = float8();
            weights[key] = value;
            compressed(weights, &[])
        };
        for (settings, expected) in [
            (json!({ "quant_method": "fp8", "fmt": "e5m2" }), "quantization_config.fmt\": \"e5m2\": not understood"),
            (json!({ "quant_method": "fp8", "rotation": 1 }), "quantization_config.rotation\": 1: not understood"),
            (
                json!({ "quant_method": "fp8", "weight_block_size": [128] }),
                "quantization_config.weight_block_size\": [128]",
            ),
            (
                compressed(float8(), &[("sparsity_config", json!({ "format": "24" }))]),
                "quantization_config.sparsity_config\"",
            ),
            (
                compressed(float8(), &[("transform_config", json!({ "a": 1 }))]),
                "quantization_config.transform_config\"",
            ),
            (compressed(float8(), &[("format", json!("dense"))]), "quantization_config.format\": \"dense\""),
            (with("symmetric", json!(false)), "config_groups.group_0.weights.symmetric\": false"),
            (with("num_bits", json!(6)), "config_groups.group_0.weights.num_bits\": 6"),
            (with("strategy", json!("attn_head")), "config_groups.group_0.weights.strategy\": \"attn_head\""),
        ] {
            let message = of(settings).unwrap_err();
            assert!(message.starts_with("config.json: key \"quantization_config"), "{message}");
            assert!(message.contains(expected) && message.ends_with(REMEDY), "{message}");
        }
    }
}

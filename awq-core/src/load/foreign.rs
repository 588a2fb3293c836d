//! Folders that another tool has quantized: how, where it is read; else they are named as such, before anything in them is missed.

use std::path::Path;

use serde_json::Value as Json;

use super::{Checkpoint, LoadError, integers, libraries, read_json, scaled};

/// Keys under which tools write their settings into `config.json`, and files of their own beside it.
pub(crate) const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
const FILES: [&str; 4] =
    ["quantization_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"];

/// Settings that are worth a word, by the names that tools give them.
const SETTINGS: [(&str, &str); 13] = [
    ("bits", "bits"),
    ("w_bit", "bits"),
    ("wbits", "bits"),
    ("group_size", "group size"),
    ("q_group_size", "group size"),
    ("format", "format"),
    ("version", "version"),
    ("checkpoint_format", "format"),
    ("packing_format", "format"),
    ("data_type", "data type"),
    ("mode", "mode"),
    ("desc_act", "act-order"),
    ("sym", "symmetric"),
];

/// Keys that tell which tool wrote the settings.
const TOOLS: [&str; 4] = ["quantizer", "autoround_version", "modelopt_version", "packing_format"];

/// Ends of names of tensors that hold a quantized weight, and who writes them.
const PARTS: [(&str, &str); 9] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors, or fp8"),
    (".weight_scale_inv", "fp8"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".W_q", "HQQ"),
    ("._data._data", "quanto"),
];

/// How the weights of a folder are stored by another tool, where that is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scheme {
    /// Small floats with scales.
    Floats(scaled::Scheme),
    /// Integers with scales and zero points.
    Integers(integers::Scheme),
    /// As the library that quantized them saves them.
    Library(libraries::Scheme),
}

/// Whether the value of a setting stands for "none".
pub(crate) fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(all) => all.is_empty(),
        Json::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

impl Scheme {
    /// Method, settings and tool in words.
    pub(crate) fn described(&self) -> &str {
        match self {
            Self::Floats(scheme) => &scheme.described,
            Self::Integers(scheme) => &scheme.described,
            Self::Library(scheme) => &scheme.described,
        }
    }
}

/// How the weights are stored, where settings say it.
///
/// # Errors
/// Other settings of another tool in `config.json` or beside it.
pub(crate) fn check_settings(folder: &Path, config_file: &Path, config: &Json) -> Result<Option<Scheme>, LoadError> {
    if let Some(scheme) = scaled::scheme(config_file, config)? {
        return Ok(Some(Scheme::Floats(scheme)));
    }
    let scheme = |file: &Path, key: &str, settings: &Json| match integers::scheme(file, key, settings)? {
        Some(scheme) => Ok(Some(Scheme::Integers(scheme))),
        None => match libraries::scheme(file, key, settings) {
            Some(scheme) => Ok(Some(Scheme::Library(scheme))),
            None => Err(quantized(file, &described(settings, key))),
        },
    };
    let nested = config.get("text_config").unwrap_or(&Json::Null);
    // MLX writes its settings under two keys, and reads this one.
    for config in [config, nested].iter().filter(|config| config["quantization_config"]["quant_method"].is_null()) {
        if let Some(scheme) = libraries::scheme(config_file, "quantization", &config["quantization"]) {
            return Ok(Some(Scheme::Library(scheme)));
        }
    }
    for (settings, key) in [config, nested].iter().flat_map(|config| KEYS.iter().map(move |key| (&config[*key], *key)))
    {
        if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
            return scheme(config_file, key, settings);
        }
    }
    match FILES.iter().map(|name| folder.join(name)).find(|file| file.exists()) {
        Some(file) => scheme(&file, "quant_method", &read_json(&file)?),
        None => Ok(None),
    }
}

/// # Errors
/// Tensors as another tool writes them.
pub(crate) fn check_tensors(checkpoint: &dyn Checkpoint) -> Result<(), LoadError> {
    let names = checkpoint.names();
    let of_tool = |(end, tool): &(&str, &'static str)| {
        names
            .iter()
            .find(|name| name.ends_with(end))
            .map(|name| format!("{tool}, to go by its tensors (such as {name:?})"))
    };
    match PARTS.iter().find_map(of_tool) {
        Some(method) => Err(quantized(checkpoint.source(), &method)),
        None => Ok(()),
    }
}

/// `awq: bits 4, group size 128 (by gptqmodel:7.7.0)`.
pub(super) fn described(settings: &Json, key: &str) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let method = ["quant_method", "method", "quant_type"].iter().find_map(|name| settings[*name].as_str());
    let flags = [("load_in_4bit", "bitsandbytes, 4 bit"), ("load_in_8bit", "bitsandbytes, 8 bit")];
    let method = method.or(settings["quant_algo"].as_str());
    let by_flag = flags.iter().find(|(flag, _)| settings[*flag] == true).map(|(_, method)| *method);
    let method = method.or(by_flag).unwrap_or(match key {
        // MLX gives bits, group size and a mode alone, under two keys.
        "quantization" => "MLX",
        "quantization_config" if settings["mode"].is_string() => "MLX",
        "quant_method" => "GPTQ",
        _ => "a method that is not named",
    });
    let known = |value: &Json| value.is_string() || value.is_number() || value.is_boolean();
    let mut said: Vec<String> = Vec::new();
    for (name, shown) in SETTINGS {
        if known(&settings[name]) && !said.iter().any(|one| one.starts_with(shown)) {
            said.push(format!("{shown} {}", text(&settings[name])));
        }
    }
    // compressed-tensors keeps them by group of layers.
    let groups = settings["config_groups"].as_object().into_iter().flat_map(|groups| groups.values());
    for weights in groups.map(|group| &group["weights"]) {
        for (name, shown) in [("num_bits", "bits"), ("group_size", "group size")] {
            if known(&weights[name]) && !said.iter().any(|one| one.starts_with(shown)) {
                said.push(format!("{shown} {}", text(&weights[name])));
            }
        }
    }
    let meta = settings.get("meta").unwrap_or(&Json::Null);
    let tool = TOOLS.iter().flat_map(|name| [&settings[*name], &meta[*name]]).find(|value| !value.is_null());
    let tool = tool.map(|tool| match tool {
        Json::Array(tools) => tools.iter().map(text).collect::<Vec<_>>().join(", "),
        one => text(one),
    });
    // AutoRound writes in other tools' layouts, too.
    let by_auto_round = settings["autoround_version"].as_str().map(|version| format!("auto-round {version}"));
    let by_method = match method {
        _ if by_auto_round.is_some() => by_auto_round,
        // AutoAWQ's is the only configuration that names its kernel's layout so.
        "awq" if settings["version"].is_string() => Some("AutoAWQ".to_owned()),
        "auto-round" | "intel/auto-round" => tool.clone().map(|version| format!("auto-round {version}")),
        "compressed-tensors" => Some("llm-compressor or compressed-tensors".to_owned()),
        _ => None,
    };
    let tool = by_method.or(tool);
    let settings = if said.is_empty() { String::new() } else { format!(": {}", said.join(", ")) };
    let tool = tool.map_or_else(String::new, |tool| format!(" (by {tool})"));
    format!("{method}{settings}{tool}")
}

fn quantized(file: &Path, method: &str) -> LoadError {
    LoadError::QuantizedByOthers { file: file.to_owned(), method: method.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_tool_is_named_by_what_it_writes() {
        for (settings, expected) in [
            (
                json!({ "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true }),
                "awq: bits 4, group size 128, version gemm (by AutoAWQ)",
            ),
            (
                json!({ "quant_method": "awq", "bits": 4, "version": "gemm", "autoround_version": "0.16.1" }),
                "awq: bits 4, version gemm (by auto-round 0.16.1)",
            ),
            (
                json!({ "quant_method": "gptq", "bits": 4, "sym": true, "autoround_version": "0.16.1" }),
                "gptq: bits 4, symmetric true (by auto-round 0.16.1)",
            ),
            (
                json!({ "quant_method": "gptq", "bits": 4, "group_size": 64, "meta": { "quantizer": ["gptqmodel:7.7.0"] } }),
                "gptq: bits 4, group size 64 (by gptqmodel:7.7.0)",
            ),
            (
                json!({ "quant_method": "auto-round", "bits": 4, "autoround_version": "0.16.1" }),
                "auto-round: bits 4 (by auto-round 0.16.1)",
            ),
            (
                json!({
                    "quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": { "group_0": { "weights": { "num_bits": 3, "group_size": 64 } } }
                }),
                "compressed-tensors: format pack-quantized, bits 3, group size 64 (by llm-compressor or compressed-tensors)",
            ),
            (
                json!({
                    "quant_method": "auto-round", "packing_format": "auto_round:llm_compressor", "data_type": "mx_fp", "bits": 4,
                    "group_size": 32, "autoround_version": "0.16.1"
                }),
                "auto-round: bits 4, group size 32, format auto_round:llm_compressor, data type mx_fp (by auto-round 0.16.1)",
            ),
            (
                json!({
                    "quant_method": "gptq", "checkpoint_format": "gptq_p", "bits": 3, "group_size": 32,
                    "meta": { "quantizer": ["gptqmodel:7.7.0"] }
                }),
                "gptq: bits 3, group size 32, format gptq_p (by gptqmodel:7.7.0)",
            ),
            (json!({ "load_in_4bit": true }), "bitsandbytes, 4 bit"),
            (json!({ "quant_method": "fp8" }), "fp8"),
        ] {
            assert_eq!(described(&settings, "quantization_config"), expected);
        }
    }
}

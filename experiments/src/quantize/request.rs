//! What the command line asks of a quantization in a word or two. Settings are those of the method's presets
//! ([`MethodSpec::presets`]); what an experiment's file must say beside them is as the authors' code has it.

use std::num::{NonZeroU16, NonZeroUsize};

use anyhow::{Context, bail};
use awq_core::codebook::Codebook;
use awq_core::driver::Propagation;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::load::ModelConfig;
use awq_core::rule::GridRule;

use super::Recipe;
use crate::config::{CalibrationSpec, DatasetSpec, GridChange, GridKeys, OverrideSpec, RandomCrops, SamplingSpec};
use crate::registry::MethodSpec;

/// Calibration sequences, as in the configurations that come with the program.
const N_SEQUENCES: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");
/// Tokens of one, as in the AWQ code.
const SEQ_LEN: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not 0");
const SEED: u64 = 42;

/// What the command line asks of a quantization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Registry name of the method: `awq`; of a preset that is not its first: `awq:llm-awq-bf16`.
    pub method: String,
    /// What codes stand for.
    pub codes: Codes,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Where zero lies, of evenly spaced codes.
    pub symmetry: Symmetry,
    /// Type in which scales are stored.
    pub scale_dtype: ScaleDtype,
    /// What becomes of some linears; the first that matches decides.
    pub overrides: Vec<OverrideSpec>,
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// One of evenly spaced values.
    Even(Bits),
    /// A value of a table.
    Of(Codebook),
}

impl std::str::FromStr for Request {
    type Err = String;

    /// Parses `awq-w4g128`, `gptq:act-order-w4g128` or `rtn-nf4g64`; without a group size every output channel is a group. Scales
    /// are f16, with `-f32`, `-e8m0` or `-e4m3` at the end of that type.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not METHOD-wBITSgGROUP, such as awq-w4g128, or rtn-w8 for one group a channel");
        let dtypes = [("-f32", ScaleDtype::F32), ("-e8m0", ScaleDtype::E8m0), ("-e4m3", ScaleDtype::E4m3)];
        let (rest, scale_dtype) = (dtypes.into_iter())
            .find_map(|(suffix, dtype)| Some((text.strip_suffix(suffix)?, dtype)))
            .unwrap_or((text, ScaleDtype::F16));
        let (method, grid) = rest.rsplit_once('-').ok_or_else(wrong)?;
        let (codes, granularity) = codes_and_group(grid).ok_or_else(wrong)?;
        let granularity = granularity.unwrap_or(Granularity::PerChannel);
        Ok(Self {
            method: method.to_owned(),
            codes: codes?,
            granularity,
            symmetry: Symmetry::Asymmetric,
            scale_dtype,
            overrides: Vec::new(),
        })
    }
}

/// `w4g128`, `w8` or `nf4g64`: codes, whose bits may be out of range, and the group where one is given.
fn codes_and_group(text: &str) -> Option<(Result<Codes, String>, Option<Granularity>)> {
    let (codes, group_size) = match text.split_once('g') {
        Some((codes, group_size)) => (codes, Some(group_size)),
        None => (text, None),
    };
    let granularity = match group_size {
        None => None,
        Some(size) => Some(Granularity::PerGroup(size.parse::<NonZeroU16>().ok()?)),
    };
    let codes = match Codebook::named(codes) {
        Some(values) => Ok(Codes::Of(values)),
        None => Bits::try_from(codes.strip_prefix('w')?.parse::<u8>().ok()?).map(Codes::Even),
    };
    Some((codes, granularity))
}

impl std::str::FromStr for OverrideSpec {
    type Err = String;

    /// Parses `*.down_proj=w8g64`, `*.down_proj=w8`, which keeps the group, or `model.layers.0.*=fp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not LINEARS=GRID, such as *.down_proj=w8g64, or *.down_proj=fp for full precision");
        let (linears, grid) = text.split_once('=').ok_or_else(wrong)?;
        let grid = if grid == "fp" {
            GridChange::FullPrecision
        } else {
            let (codes, granularity) = codes_and_group(grid).ok_or_else(wrong)?;
            let (bits, values) = match codes? {
                Codes::Even(bits) => (Some(bits), None),
                Codes::Of(values) => (None, Some(values)),
            };
            GridChange::Keys(GridKeys { bits, values, granularity, ..GridKeys::default() })
        };
        Ok(Self { linears: linears.to_owned(), grid })
    }
}

impl Request {
    /// The recipe for a model: the method's preset, its grid, and sequences of `text` where the method looks at any.
    ///
    /// # Errors
    /// A method that is unknown or has no preset, or a preset that it does not have.
    pub fn recipe(
        &self,
        config: &ModelConfig,
        text: impl FnOnce() -> anyhow::Result<DatasetSpec>,
    ) -> anyhow::Result<Recipe> {
        let method = self.method()?;
        let calibration = if method.settings().needs().inputs {
            let seq_len = NonZeroUsize::new(config.longest_sequence()).map_or(SEQ_LEN, |longest| longest.min(SEQ_LEN));
            Some(CalibrationSpec {
                dataset: text()?,
                sampling: SamplingSpec::RandomCrops(RandomCrops {
                    n_sequences: N_SEQUENCES,
                    seed: SEED,
                    first_token: 0,
                }),
                seq_len,
                propagation: propagation(&method),
            })
        } else {
            None
        };
        let (granularity, scale_dtype) = (self.granularity, self.scale_dtype);
        // AWQ's code leaves the range of a group as it is, GPTQ's widens it to hold zero.
        let even = |bits| Grid {
            bits,
            granularity,
            symmetry: self.symmetry,
            range_includes_zero: matches!(method, MethodSpec::Gptq(_)),
            scale_dtype,
            values: None,
        };
        let grid = match self.codes {
            Codes::Even(bits) => even(bits),
            Codes::Of(values) => Grid::of_codebook(values, granularity, scale_dtype),
        };
        // Beside a table of values, codes that are spaced evenly are as they would be in its place.
        let base = |one: &OverrideSpec| match &one.grid {
            GridChange::Keys(GridKeys { bits: Some(bits), .. }) => even(*bits),
            _ => grid,
        };
        let overrides = self.overrides.iter().map(|one| one.on(base(one))).collect();
        Ok(Recipe { method, rule: GridRule { grid, overrides }, calibration })
    }

    /// The method with the settings of its preset.
    fn method(&self) -> anyhow::Result<MethodSpec> {
        let (key, wanted) = match self.method.split_once(':') {
            Some((key, name)) => (key, Some(name)),
            None => (self.method.as_str(), None),
        };
        let presets = MethodSpec::presets(key);
        if presets.is_empty() {
            let known = MethodSpec::KEYS.iter().copied().filter(|key| !MethodSpec::presets(key).is_empty());
            bail!(
                "method `{key}` cannot be asked for on the command line; choose one of {}, or write an experiment's file",
                known.collect::<Vec<_>>().join(", ")
            );
        }
        let names: Vec<&str> = presets.iter().map(|(name, _)| *name).collect();
        let is_wanted = |(name, _): &(&str, MethodSpec)| wanted.is_none_or(|wanted| wanted == *name);
        let preset = presets.into_iter().find(is_wanted).map(|(_, method)| method);
        preset.with_context(|| {
            let wanted = wanted.unwrap_or_default();
            format!("method `{key}` has no preset `{wanted}`; choose one of {}", names.join(", "))
        })
    }
}

/// What blocks after the first see where nobody says it: methods that round by GPTQ are made for quantized inputs.
fn propagation(method: &MethodSpec) -> Propagation {
    match method {
        MethodSpec::Gptq(_) | MethodSpec::AwqGptq(_) => Propagation::Quantized,
        _ => Propagation::FullPrecision,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use awq_core::model::tiny::TinySpec;

    #[test]
    fn requests_are_spelled_as_in_tables() {
        let even = |bits| Codes::Even(Bits::new(bits).unwrap());
        let parsed: Request = "awq-w4g128".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.codes, parsed.granularity.label()), ("awq", even(4), "g128".into()));
        let parsed: Request = "awq_gptq-w3".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.granularity), ("awq_gptq", Granularity::PerChannel));
        let parsed: Request = "hqq-w2g64-f32".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.codes, parsed.scale_dtype), ("hqq", even(2), ScaleDtype::F32));
        for wrong in ["awq-w4-f16", "awq", "awq-4g128", "awq-w4g", "awq-w4g0", "awq-wg128", "awq-w4x128"] {
            assert!(wrong.parse::<Request>().unwrap_err().contains("such as awq-w4g128"), "{wrong}");
        }
        assert_eq!(
            "rtn-w9g8".parse::<Request>().unwrap_err(),
            "bits = 9 is outside 2..=8; choose 2, 3, 4, 5, 6, 7 or 8"
        );
    }

    fn recipe(request: &str) -> anyhow::Result<Recipe> {
        let text = || super::super::calibration_text("bundled");
        request.parse::<Request>().unwrap().recipe(&TinySpec::GQA.config(), text)
    }

    #[test]
    fn a_method_is_that_of_its_preset_and_the_first_where_none_is_named() {
        let mut n_presets = 0;
        for key in MethodSpec::KEYS {
            for (index, (name, method)) in MethodSpec::presets(key).into_iter().enumerate() {
                assert!(method.settings().check().is_ok() && method.key() == *key, "{key}:{name}");
                let named = recipe(&format!("{key}:{name}-w4g64")).unwrap();
                assert_eq!(named.method, method);
                assert_eq!(named.calibration.is_some(), method.settings().needs().inputs);
                assert_eq!(recipe(&format!("{key}-w4g64")).unwrap().method == method, index == 0, "{key}:{name}");
                n_presets += 1;
            }
        }
        assert!(n_presets >= 8, "only {n_presets} presets");
        let error = recipe("gptq:actorder-w4g64").unwrap_err().to_string();
        assert_eq!(
            error,
            "method `gptq` has no preset `actorder`; choose one of in-order, act-order, act-order-dynamic"
        );
    }

    #[test]
    fn tables_of_values_and_overrides_have_short_names() {
        let label = |request: &str, overrides: &[&str]| {
            let mut request: Request = request.parse().unwrap();
            request.overrides = overrides.iter().map(|text| text.parse().unwrap()).collect();
            request.recipe(&TinySpec::GQA.config(), || bail!("no text")).unwrap().rule.label()
        };
        assert_eq!(label("rtn-nf4g64-f32", &[]), "NF4 g64");
        assert_eq!(label("rtn-e2m1g32-e8m0", &[]), "MXFP4 g32");
        assert_eq!(label("rtn-e2m1g16-e4m3", &[]), "NVFP4 g16");
        assert_eq!(label("rtn-ternaryg64", &[]), "ternary g64");
        assert_eq!(
            label("rtn-w4g64", &["*.down_proj=w8", "*.up_proj=nf4g32", "mlp.*=fp"]),
            "W4 g64 (*.down_proj W8 g64, *.up_proj NF4 g32, mlp.* FP)"
        );
        assert_eq!(label("rtn-nf4g64", &["*.down_proj=w8g32"]), "NF4 g64 (*.down_proj W8 g32)");
        for wrong in ["*.down_proj", "*.down_proj=", "*.down_proj=8", "*.down_proj=w8g0", "*.down_proj=FP"] {
            let error = wrong.parse::<OverrideSpec>().unwrap_err();
            assert!(error.starts_with(&format!("`{wrong}` is not LINEARS=GRID, such as")), "{error}");
        }
        assert!("*=w9".parse::<OverrideSpec>().unwrap_err().contains("bits = 9 is outside 2..=8"));
    }

    #[test]
    fn what_goes_with_a_method_is_as_its_authors_have_it() {
        let of = |request: &str| {
            let recipe = recipe(request).unwrap();
            (recipe.rule.grid.range_includes_zero, recipe.calibration.map(|calibration| calibration.propagation))
        };
        assert_eq!(of("rtn-w4g64"), (false, None));
        assert_eq!(of("hqq-w4g64"), (false, None));
        assert_eq!(of("awq-w4g64"), (false, Some(Propagation::FullPrecision)));
        assert_eq!(of("gptq-w4g64"), (true, Some(Propagation::Quantized)));
        assert_eq!(of("awq_gptq-w4g64"), (false, Some(Propagation::Quantized)));
    }

    #[test]
    fn a_text_is_asked_for_only_where_it_is_needed() {
        let request: Request = "rtn-w4g64".parse().unwrap();
        let recipe = request.recipe(&TinySpec::GQA.config(), || bail!("no text")).unwrap();
        assert_eq!((recipe.calibration, recipe.rule.label()), (None, "W4 g64".to_owned()));
        let request: Request = "keep_salient-w4g64".parse().unwrap();
        let error = request.recipe(&TinySpec::GQA.config(), || bail!("no text")).unwrap_err().to_string();
        assert!(
            error.starts_with("method `keep_salient` cannot be asked for on the command line; choose one of rtn, awq,")
        );
    }
}

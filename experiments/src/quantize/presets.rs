//! The settings with which the command line runs a method: those that the method's authors use. Experiments say every
//! setting in their file.

use std::num::{NonZeroU16, NonZeroUsize};

use anyhow::{Context, bail};
use awq_core::driver::Propagation;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::load::ModelConfig;

use super::Recipe;
use crate::config::{CalibrationSpec, DatasetSpec, RandomCrops, SamplingSpec};
use crate::registry::MethodSpec;

/// A method as the command line runs it.
struct Preset {
    /// Its registry name.
    key: &'static str,
    /// Its settings, as in an experiment's file.
    settings: &'static str,
    /// See [`Grid::range_includes_zero`]; AWQ's code and GPTQ's differ.
    range_includes_zero: bool,
    /// What later blocks see.
    propagation: Propagation,
}

const PRESETS: &[Preset] = &[
    Preset { key: "rtn", settings: "rtn = {}", range_includes_zero: false, propagation: Propagation::FullPrecision },
    Preset {
        key: "awq",
        settings: "[awq]
scale = { search = { formula = \"activation\", n_ratios = 20 } }
clip = { search = { n_steps = 20, max_shrink = 0.5, n_tokens = 512 } }",
        range_includes_zero: false,
        propagation: Propagation::FullPrecision,
    },
    Preset {
        key: "gptq",
        settings: "[gptq]
damp = 0.01
block_size = 128
order = \"natural\"
group_grid = \"updated_weights\"
range = \"min_max\"
hessian = \"f64\"",
        range_includes_zero: true,
        propagation: Propagation::Quantized,
    },
    Preset {
        key: "hqq",
        settings: "[hqq]
lp_norm = 0.7
beta = 10.0
kappa = 1.01
n_iterations = 20
zero_points = \"real\"",
        range_includes_zero: false,
        propagation: Propagation::FullPrecision,
    },
];

/// Calibration sequences, as in the configurations that come with the program.
const N_SEQUENCES: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");
/// Tokens of one, as in the AWQ code.
const SEQ_LEN: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not 0");
const SEED: u64 = 42;

/// What the command line asks of a quantization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Registry name of the method.
    pub method: String,
    /// Bits of a code.
    pub bits: Bits,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Type in which scales are stored.
    pub scale_dtype: ScaleDtype,
}

impl std::str::FromStr for Request {
    type Err = String;

    /// Parses `awq-w4g128`; without a group size every output channel is a group, with `-f32` at the end scales are f32.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not METHOD-wBITSgGROUP, such as awq-w4g128, or rtn-w8 for one group a channel");
        let (method, grid) = text.rsplit_once("-w").ok_or_else(wrong)?;
        let (grid, scale_dtype) = match grid.strip_suffix("-f32") {
            Some(grid) => (grid, ScaleDtype::F32),
            None => (grid, ScaleDtype::F16),
        };
        let (bits, group_size) = match grid.split_once('g') {
            Some((bits, group_size)) => (bits, Some(group_size)),
            None => (grid, None),
        };
        let granularity = match group_size {
            None => Granularity::PerChannel,
            Some(size) => Granularity::PerGroup(size.parse::<NonZeroU16>().map_err(|_| wrong())?),
        };
        let bits = Bits::try_from(bits.parse::<u8>().map_err(|_| wrong())?)?;
        Ok(Self { method: method.to_owned(), bits, granularity, scale_dtype })
    }
}

impl Request {
    /// The recipe for a model: the method's preset, its grid, and sequences of `text` where the method looks at any.
    ///
    /// # Errors
    /// A method that is unknown or has no preset.
    pub fn recipe(
        &self,
        config: &ModelConfig,
        text: impl FnOnce() -> anyhow::Result<DatasetSpec>,
    ) -> anyhow::Result<Recipe> {
        let Some(preset) = PRESETS.iter().find(|preset| preset.key == self.method) else {
            let known: Vec<&str> = PRESETS.iter().map(|preset| preset.key).collect();
            bail!(
                "method `{}` cannot be asked for on the command line; choose one of {}, or write an experiment's file",
                self.method,
                known.join(", ")
            );
        };
        let method = preset.method()?;
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
                propagation: preset.propagation,
            })
        } else {
            None
        };
        let grid = Grid {
            bits: self.bits,
            granularity: self.granularity,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: preset.range_includes_zero,
            scale_dtype: self.scale_dtype,
        };
        Ok(Recipe { method, grid, calibration })
    }
}

impl Preset {
    fn method(&self) -> anyhow::Result<MethodSpec> {
        toml::from_str(self.settings).with_context(|| format!("the preset of method `{}` does not parse", self.key))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use awq_core::model::tiny::TinySpec;

    #[test]
    fn requests_are_spelled_as_in_tables() {
        let parsed: Request = "awq-w4g128".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.bits.get(), parsed.granularity.label()), ("awq", 4, "g128".into()));
        let parsed: Request = "awq_gptq-w3".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.granularity), ("awq_gptq", Granularity::PerChannel));
        let parsed: Request = "hqq-w2g64-f32".parse().unwrap();
        assert_eq!((parsed.method.as_str(), parsed.bits.get(), parsed.scale_dtype), ("hqq", 2, ScaleDtype::F32));
        for wrong in ["awq-w4-f16", "awq", "awq-4g128", "awq-w4g", "awq-w4g0", "awq-wg128", "awq-w4x128"] {
            assert!(wrong.parse::<Request>().unwrap_err().contains("such as awq-w4g128"), "{wrong}");
        }
        assert_eq!(
            "rtn-w9g8".parse::<Request>().unwrap_err(),
            "bits = 9 is outside 2..=8; choose 2, 3, 4, 5, 6, 7 or 8"
        );
    }

    #[test]
    fn presets_are_methods_of_the_registry() {
        let config = TinySpec::GQA.config();
        for preset in PRESETS {
            assert_eq!(preset.method().unwrap().key(), preset.key);
            let request = Request { method: preset.key.into(), ..("x-w4g64").parse().unwrap() };
            let recipe = request.recipe(&config, || super::super::calibration_text("bundled")).unwrap();
            assert_eq!(recipe.calibration.is_some(), recipe.method.settings().needs().inputs);
            assert!(recipe.method.settings().check().is_ok());
        }
    }

    #[test]
    fn a_text_is_asked_for_only_where_it_is_needed() {
        let request: Request = "rtn-w4g64".parse().unwrap();
        let recipe = request.recipe(&TinySpec::GQA.config(), || bail!("no text")).unwrap();
        assert_eq!((recipe.calibration, recipe.grid.label()), (None, "W4 g64".to_owned()));
        let request: Request = "keep_salient-w4g64".parse().unwrap();
        let error = request.recipe(&TinySpec::GQA.config(), || bail!("no text")).unwrap_err().to_string();
        assert!(
            error.starts_with("method `keep_salient` cannot be asked for on the command line; choose one of rtn, awq,")
        );
    }
}

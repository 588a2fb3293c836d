//! Packed checkpoints: a quantized model on disk in this project's own layout, read without the model it was made from.
//!
//! A folder as Hugging Face's (`config.json`, `tokenizer.json`, `model.safetensors`) with a [`PackedHeader`] beside, in
//! `quantization.json`. In place of each quantized `{linear}.weight` the safetensors file has:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `{linear}.codes` | U32 | `[n_out, words]` | [`PackLayout::Stream`]: a row is one string of bits, lowest first |
//! | `{linear}.scales` | F16, F32 | `[n_out, n_groups]`, `[1, 1]` per tensor | `weight = (code - zero_point) * scale`, with a codebook `values[code] * scale` |
//! | `{linear}.zero_points` | U8; F16, F32 | as `scales` | codes that mean zero; a float type for real numbers |
//! | `{linear}.input_order` | U32 | `[n_in]` | only with permuted inputs: column `j` of the codes is channel `input_order[j]` |
//! | `{linear}.kept_inputs` | U32 | `[n_kept]` | only with kept inputs: their channels |
//! | `{linear}.kept_weights` | F16, F32 | `[n_out, n_kept]` | and their weights |
//! | `{linear}.input_scales` | F16, F32 | `[n_in]` | only with rotations, whose kinds and seeds are in the header |
//!
//! Floats have the smallest of these types that holds every value exactly, so nothing is lost. All other tensors are there
//! under their own names. As a [`Checkpoint`], the folder has `{linear}.weight` again, dequantized when it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Checkpoint, LoadError, SafetensorsCheckpoint, Slices, StoredType, read_json, weight_slices};
use crate::grid::{Granularity, Grid};
use crate::pack::PackLayout;
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::rotation::{Rotation, RotationKind};
use crate::rule::{GridOverride, GridRule};
use crate::transform::{KeptInputs, RotatedWeight, WeightTransform};

/// Name of the header's file.
pub const HEADER_FILE: &str = "quantization.json";
/// The layout that this program writes and reads.
pub const LAYOUT_VERSION: u32 = 1;

/// What stands in `quantization.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedHeader {
    /// [`LAYOUT_VERSION`] of the program that wrote it.
    pub layout_version: u32,
    /// The method's label, e.g. `AWQ`.
    pub method: String,
    /// The method's settings, as an experiment's file has them.
    pub settings: Json,
    /// The grid that was asked for.
    pub grid: Grid,
    /// Linears for which another grid was asked, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<GridOverride>,
    /// Stored bits per quantized weight: codes, scales, zero points and what transforms keep.
    pub bits_per_weight: f64,
    /// What it was calibrated on, as an experiment's file has it.
    pub calibration: Option<Json>,
    /// See [`crate::driver::QuantizedModel::codes_sha256`].
    pub codes_sha256: String,
    /// Version of the program that wrote it.
    pub version: String,
    /// Commit of the program that wrote it, `unknown` outside a checkout.
    pub commit: String,
    /// The quantized linears by name, without `.weight`.
    pub linears: BTreeMap<String, PackedLinear>,
}

/// One quantized linear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedLinear {
    /// `[n_out, n_in]`.
    pub shape: [usize; 2],
    /// The grid it lies on.
    pub grid: Grid,
    /// What lies between codes and weight.
    pub transform: PackedTransform,
}

/// The part of a [`WeightTransform`] that is not a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PackedTransform {
    /// Nothing.
    Identity,
    /// See [`WeightTransform::PermutedInputs`].
    PermutedInputs,
    /// See [`WeightTransform::KeptInputs`].
    KeptInputs,
    /// See [`WeightTransform::Rotated`].
    Rotated {
        /// On the output channels.
        output: (RotationKind, u64),
        /// On the input channels.
        input: (RotationKind, u64),
    },
}

impl PackedLinear {
    /// Whether kernels take its codes as they are: nothing lies between codes and weights, and codes are spaced evenly.
    pub fn has_kernel(&self) -> bool {
        self.transform == PackedTransform::Identity && self.grid.values.is_none()
    }
}

impl PackedHeader {
    /// The grids that were asked for.
    pub fn rule(&self) -> GridRule {
        GridRule { grid: self.grid, overrides: self.overrides.clone() }
    }

    /// Reads the header of `folder`.
    ///
    /// # Errors
    /// A file that is missing or no JSON, another layout version, or a key that the layout does not know.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Version {
            layout_version: Option<u32>,
        }
        let file = folder.join(HEADER_FILE);
        // The version first: what else is there depends on it.
        let version = read_json::<Version>(&file)?.layout_version;
        match version {
            Some(LAYOUT_VERSION) => read_json(&file),
            Some(found) => Err(LoadError::BadKey {
                file,
                key: "layout_version".into(),
                problem: format!(
                    "{found}, this program reads {LAYOUT_VERSION}: quantize the model again with this program"
                ),
            }),
            None => Err(LoadError::MissingKey { file, key: "layout_version".into() }),
        }
    }
}

/// A packed checkpoint on disk.
pub struct PackedCheckpoint {
    header: PackedHeader,
    header_file: PathBuf,
    tensors: SafetensorsCheckpoint,
}

impl PackedCheckpoint {
    /// Opens the folder that `experiments quantize` wrote.
    ///
    /// # Errors
    /// As [`PackedHeader::read`] and [`SafetensorsCheckpoint::open_folder`], or a linear that lacks one of its tensors.
    pub fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        let header = PackedHeader::read(folder)?;
        let tensors = SafetensorsCheckpoint::open_folder(folder)?;
        let checkpoint = Self { header, header_file: folder.join(HEADER_FILE), tensors };
        for (name, linear) in &checkpoint.header.linears {
            for part in parts(&linear.transform) {
                checkpoint.tensors.raw(&format!("{name}.{part}"))?;
            }
            checkpoint.check_shapes(name, linear)?;
        }
        Ok(checkpoint)
    }

    /// Shapes and types of codes, scales and zero points, from the headers.
    fn check_shapes(&self, name: &str, linear: &PackedLinear) -> Result<(), LoadError> {
        let ([n_out, n_in], grid) = (linear.shape, linear.grid);
        if n_out == 0 || n_in == 0 {
            return Err(self.bad(name, format!("shape {:?} has no weight", linear.shape)));
        }
        grid.check().map_err(|problem| self.bad(name, problem))?;
        let n_words = PackLayout::Stream.words_per_row(n_in, grid.bits);
        self.check(&format!("{name}.codes"), &[n_out, n_words], Dtype::U32)?;
        for part in ["scales", "zero_points"] {
            super::check_shape(&self.tensors, &format!("{name}.{part}"), &scales_shape(linear))?;
        }
        Ok(())
    }

    /// The header.
    pub fn header(&self) -> &PackedHeader {
        &self.header
    }

    /// The linear whose weight is called `name`.
    fn linear<'n>(&self, name: &'n str) -> Option<(&'n str, &PackedLinear)> {
        let linear = name.strip_suffix(".weight")?;
        self.header.linears.get(linear).map(|packed| (linear, packed))
    }

    fn read_packed(&self, name: &str, linear: &PackedLinear) -> Result<QuantizedWeight, LoadError> {
        let ([n_out, n_in], grid) = (linear.shape, linear.grid);
        let scales_shape = scales_shape(linear);
        let tensor = |part: &str| format!("{name}.{part}");
        let n_words = PackLayout::Stream.words_per_row(n_in, grid.bits);
        let words = self.words(&tensor("codes"), &[n_out, n_words])?;
        Ok(QuantizedWeight {
            n_out,
            n_in,
            grid,
            codes: PackLayout::Stream.unpack(&words, n_in, grid.bits),
            scale: self.floats(&tensor("scales"), &scales_shape)?,
            zero_point: self.zero_points(name, &scales_shape, grid.bits.max_code())?,
            transform: self.transform(name, linear)?,
        })
    }

    /// Stored bits a weight: of all linears together, as the quantized model itself was listed, where they share a grid.
    fn bits_per_weight(&self, name: &str, linear: &PackedLinear) -> Option<f64> {
        if self.header.overrides.is_empty() {
            return Some(self.header.bits_per_weight);
        }
        let [n_out, n_in] = linear.shape;
        let stored_bits = match linear.transform {
            PackedTransform::Identity => {
                let n_scales = scales_shape(linear).iter().product();
                let zero_points = self.tensors.raw(&format!("{name}.zero_points")).ok()?;
                let zero_point = match zero_points.dtype {
                    Dtype::U8 => ZeroPoints::Codes(Vec::new()),
                    _ => ZeroPoints::Real(Vec::new()),
                };
                let (codes, scale) = (Vec::new(), vec![0.0; n_scales]);
                let (grid, transform) = (linear.grid, WeightTransform::Identity);
                QuantizedWeight { n_out, n_in, grid, codes, scale, zero_point, transform }.stored_bits()
            }
            _ => self.read_packed(name, linear).ok()?.stored_bits(),
        };
        Some(stored_bits as f64 / (n_out * n_in) as f64)
    }

    fn zero_points(&self, name: &str, shape: &[usize], max_code: u8) -> Result<ZeroPoints, LoadError> {
        let tensor = format!("{name}.zero_points");
        if self.tensors.raw(&tensor)?.dtype != Dtype::U8 {
            return Ok(ZeroPoints::Real(self.floats(&tensor, shape)?));
        }
        self.check(&tensor, shape, Dtype::U8)?;
        let codes = self.tensors.read_bytes(&tensor)?;
        match codes.iter().find(|&&code| code > max_code) {
            Some(code) => Err(self.bad(name, format!("zero point {code} is larger than the largest code {max_code}"))),
            None => Ok(ZeroPoints::Codes(codes)),
        }
    }

    fn transform(&self, name: &str, linear: &PackedLinear) -> Result<WeightTransform, LoadError> {
        let [n_out, n_in] = linear.shape;
        let tensor = |part: &str| format!("{name}.{part}");
        Ok(match &linear.transform {
            PackedTransform::Identity => WeightTransform::Identity,
            PackedTransform::PermutedInputs => {
                let order = self.words(&tensor("input_order"), &[n_in])?;
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if !sorted.iter().copied().eq(0..n_in as u32) {
                    return Err(self.bad(name, "input_order does not hold every input channel once".into()));
                }
                WeightTransform::PermutedInputs(order)
            }
            PackedTransform::KeptInputs => {
                let n_kept = self.tensors.raw(&tensor("kept_inputs"))?.shape.iter().product();
                let channels = self.words(&tensor("kept_inputs"), &[n_kept])?;
                if let Some(channel) = channels.iter().find(|&&channel| channel as usize >= n_in) {
                    return Err(self.bad(name, format!("kept input {channel} is outside the {n_in} input channels")));
                }
                let values = self.floats(&tensor("kept_weights"), &[n_out, n_kept])?;
                WeightTransform::KeptInputs(KeptInputs { channels, values })
            }
            PackedTransform::Rotated { output, input } => {
                let input_scale = self.floats(&tensor("input_scales"), &[n_in])?;
                // Inputs are divided by them.
                if let Some(scale) = input_scale.iter().find(|scale| **scale <= 0.0) {
                    return Err(self.bad(name, format!("input scale {scale}, expected more than 0")));
                }
                WeightTransform::Rotated(Box::new(RotatedWeight {
                    output: Rotation::new(output.0, n_out, output.1),
                    input: Rotation::new(input.0, n_in, input.1),
                    input_scale,
                }))
            }
        })
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        super::read_exact_shape(&self.tensors, name, shape)
    }

    fn words(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>, LoadError> {
        self.check(name, shape, Dtype::U32)?;
        let bytes = self.tensors.read_bytes(name)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Type and shape of a tensor, from the header.
    fn check(&self, name: &str, expected: &[usize], dtype: Dtype) -> Result<(), LoadError> {
        let raw = self.tensors.raw(name)?;
        let (file, name) = (raw.file.to_owned(), name.to_owned());
        if raw.dtype != dtype {
            let (dtype, known) = (format!("{:?}", raw.dtype), format!("{dtype:?}"));
            return Err(LoadError::UnsupportedDtype { file, name, dtype, known });
        }
        if raw.shape != expected {
            return Err(LoadError::WrongShape { file, name, expected: expected.to_vec(), found: raw.shape.to_vec() });
        }
        Ok(())
    }

    fn bad(&self, linear: &str, problem: String) -> LoadError {
        LoadError::BadKey { file: self.header_file.clone(), key: format!("linears.{linear}"), problem }
    }
}

/// Shape of the scales and of the zero points.
fn scales_shape(linear: &PackedLinear) -> [usize; 2] {
    let [n_out, n_in] = linear.shape;
    match linear.grid.granularity {
        Granularity::PerTensor => [1, 1],
        granularity => [n_out, granularity.n_groups(n_in)],
    }
}

/// The tensors of a linear.
fn parts(transform: &PackedTransform) -> Vec<&'static str> {
    let more: &[&str] = match transform {
        PackedTransform::Identity => &[],
        PackedTransform::PermutedInputs => &["input_order"],
        PackedTransform::KeptInputs => &["kept_inputs", "kept_weights"],
        PackedTransform::Rotated { .. } => &["input_scales"],
    };
    [&["codes", "scales", "zero_points"], more].concat()
}

impl Checkpoint for PackedCheckpoint {
    fn names(&self) -> Vec<String> {
        let of_linear = |name: &str| {
            let (linear, part) = name.rsplit_once('.')?;
            self.header.linears.get(linear).filter(|packed| parts(&packed.transform).contains(&part))
        };
        let mut names: Vec<String> =
            self.tensors.names().into_iter().filter(|name| of_linear(name).is_none()).collect();
        names.extend(self.header.linears.keys().map(|linear| format!("{linear}.weight")));
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.linear(name) {
            Some((_, linear)) => Some(linear.shape.to_vec()),
            None => self.tensors.shape(name),
        }
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        match self.linear(name) {
            Some((name, linear)) => Ok(self.read_packed(name, linear)?.dequantize()),
            None => self.tensors.read_any_f32(name),
        }
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        match self.linear(name) {
            Some((name, linear)) => Ok(weight_slices(self.read_packed(name, linear)?)),
            None => self.tensors.slices(name),
        }
    }

    fn is_readable(&self, name: &str) -> bool {
        self.linear(name).is_some() || self.tensors.is_readable(name)
    }

    fn is_integer(&self, name: &str) -> bool {
        self.linear(name).is_none() && self.tensors.is_integer(name)
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        if self.linear(name).is_some() || self.linear(other).is_some() {
            return Ok(false);
        }
        self.tensors.is_copy(name, other)
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.tensors.file_of(name)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        let Some((tensor, linear)) = self.linear(name) else { return self.tensors.stored_type(name) };
        let name = format!("packed {} {}", self.header.method, linear.grid.label());
        Some(StoredType::codes(name, linear.grid, self.bits_per_weight(tensor, linear)?))
    }

    fn notes(&self) -> Vec<String> {
        self.tensors.notes()
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.linear(name).map(|(name, linear)| self.read_packed(name, linear)).transpose()
    }

    fn source(&self) -> &Path {
        self.tensors.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.tensors.bytes_on_disk()
    }
}

//! One weight: where its codes and scales are, and its values.

use rayon::prelude::*;
use safetensors::Dtype;

use super::settings::{Maker, ScaleLayout, Scheme};
use super::values::{E2M1, E4M3, e8m0, nibbles};
use super::{LoadError, SafetensorsCheckpoint, products};
use crate::load::restored::Restored;
use crate::load::stored_dtype::float_type;
use crate::load::{Checkpoint, StoredType, floats};
use crate::numbers::Number;

/// Weights of a group of MXFP4 and of MXFP8.
const MX_GROUP: usize = 32;
/// Weights of a group of NVFP4.
const NV_GROUP: usize = 16;

/// A weight of small floats.
pub(crate) struct Weight {
    /// The tensor of its codes.
    codes: String,
    /// Of the weight.
    shape: Vec<usize>,
    scales: String,
    n_scales: usize,
    scale_bits: usize,
    format: Format,
}

/// What is stored.
#[derive(Clone, Debug, PartialEq)]
enum Format {
    /// E4M3 with a scale for each block of so many rows and columns.
    Fp8 { block: [usize; 2], layout: ScaleLayout, products: Number, is_mx: bool },
    /// E2M1 in groups of a row, with powers of two.
    Mxfp4,
    /// E2M1 in groups of a row, with scales that are over the one in this tensor.
    Nvfp4 { global: String },
    /// E2M1 of `[experts, out, groups, 16]`, of which the weight is `[experts, in, out]`.
    Mxfp4Experts,
}

/// The weight whose codes are the tensor `name`, and what it is called.
///
/// # Errors
/// Codes without scales, or scales that do not belong to them.
pub(super) fn weight(
    base: &SafetensorsCheckpoint,
    name: &str,
    scheme: &Scheme,
) -> Result<Option<(String, Weight)>, LoadError> {
    let codes = base.raw(name)?;
    let shape = codes.shape.to_vec();
    match (codes.dtype, name.rsplit_once('.')) {
        (Dtype::F8_E4M3, Some((linear, "weight"))) if shape.len() == 2 => {
            fp8(base, linear, [shape[0], shape[1]], scheme).map(|weight| Some((name.to_owned(), weight)))
        }
        (Dtype::U8, Some((linear, "weight_packed"))) if shape.len() == 2 => {
            let shape = [shape[0], 2 * shape[1]];
            packed(base, linear, shape, scheme).map(|weight| Some((format!("{linear}.weight"), weight)))
        }
        (Dtype::U8, _) if name.ends_with("_blocks") && scheme.maker == Maker::GptOss => {
            let experts = name.trim_end_matches("_blocks");
            experts_of(base, experts, &shape, name).map(|weight| Some((experts.to_owned(), weight)))
        }
        _ => Ok(None),
    }
}

fn fp8(base: &SafetensorsCheckpoint, linear: &str, shape: [usize; 2], scheme: &Scheme) -> Result<Weight, LoadError> {
    let codes = format!("{linear}.weight");
    let names = ["weight_scale_inv", "weight_scale"].map(|end| format!("{linear}.{end}"));
    // Missing, the first is named, beside what there is.
    let scales = names.iter().find(|name| base.shape(name).is_some()).unwrap_or(&names[0]);
    let stored = base.raw(scales)?;
    let of_layout = |layout: &ScaleLayout| layout.block_of(shape, stored.shape).map(|block| (block, *layout));
    let mut found: Vec<([usize; 2], ScaleLayout)> = scheme.layouts.iter().filter_map(of_layout).collect();
    found.dedup_by_key(|(block, _)| *block);
    let &[(block, layout)] = found.as_slice() else {
        let expected = scheme.layouts.iter().map(|layout| layout.in_words(shape)).collect::<Vec<_>>().join(" or ");
        let problem = format!(
            "tensor {scales:?} has shape {:?}, and {} implies {expected} for {codes:?} of {shape:?}",
            stored.shape, scheme.described
        );
        return Err(LoadError::BadHeader { file: stored.file.to_owned(), problem });
    };
    let products = products(scheme.maker, stored.dtype).ok_or_else(|| wrong_type(base, scales, stored.dtype))?;
    let is_mx = layout == ScaleLayout::Group(MX_GROUP) && stored.dtype == Dtype::U8;
    Ok(Weight {
        codes,
        shape: shape.to_vec(),
        scales: scales.clone(),
        n_scales: stored.shape.iter().product(),
        scale_bits: stored.dtype.bitsize(),
        format: Format::Fp8 { block, layout, products, is_mx },
    })
}

fn packed(base: &SafetensorsCheckpoint, linear: &str, shape: [usize; 2], scheme: &Scheme) -> Result<Weight, LoadError> {
    let [codes, scales, global] =
        ["weight_packed", "weight_scale", "weight_global_scale"].map(|end| format!("{linear}.{end}"));
    let stored = base.raw(&scales)?;
    let (format, group) = match (scheme.maker, stored.dtype) {
        (Maker::CompressedTensors, Dtype::U8) => (Format::Mxfp4, MX_GROUP),
        (Maker::CompressedTensors, Dtype::F8_E4M3) => {
            let (found, of_global) = (base.shape(&global), base.raw(&global)?);
            if of_global.dtype != Dtype::F32 {
                return Err(wrong_type(base, &global, of_global.dtype));
            }
            check_shape(base, &global, found, &[1])?;
            (Format::Nvfp4 { global }, NV_GROUP)
        }
        _ => return Err(wrong_type(base, &scales, stored.dtype)),
    };
    let [n_out, n_in] = shape;
    check_shape(base, &scales, base.shape(&scales), &[n_out, n_in.div_ceil(group)])?;
    // As the reference: it has no groups that end short.
    check_shape(base, &codes, base.shape(&codes), &[n_out, n_in.next_multiple_of(group) / 2])?;
    Ok(Weight { codes, shape: shape.to_vec(), scales, n_scales: n_out * n_in / group, scale_bits: 8, format })
}

fn experts_of(base: &SafetensorsCheckpoint, experts: &str, shape: &[usize], codes: &str) -> Result<Weight, LoadError> {
    let &[n_experts, n_out, n_groups, bytes] = shape else {
        return Err(wrong_shape(base, codes, &[0, 0, 0, MX_GROUP / 2], shape));
    };
    if bytes != MX_GROUP / 2 {
        return Err(wrong_shape(base, codes, &[n_experts, n_out, n_groups, MX_GROUP / 2], shape));
    }
    let scales = format!("{experts}_scales");
    let stored = base.raw(&scales)?;
    if stored.dtype != Dtype::U8 {
        return Err(wrong_type(base, &scales, stored.dtype));
    }
    check_shape(base, &scales, base.shape(&scales), &[n_experts, n_out, n_groups])?;
    Ok(Weight {
        codes: codes.to_owned(),
        shape: vec![n_experts, n_groups * MX_GROUP, n_out],
        scales,
        n_scales: n_experts * n_out * n_groups,
        scale_bits: 8,
        format: Format::Mxfp4Experts,
    })
}

impl ScaleLayout {
    /// Rows and columns of a block of `[out, in]` weights whose scales have this shape; `None` where they have another layout.
    fn block_of(self, [n_out, n_in]: [usize; 2], scales: &[usize]) -> Option<[usize; 2]> {
        let (block, is_it) = match self {
            Self::Tensor => ([n_out, n_in], scales.iter().product::<usize>() == 1),
            Self::Channel => ([1, n_in], scales == [n_out] || scales == [n_out, 1]),
            Self::Group(size) => ([1, size], scales == [n_out, n_in.div_ceil(size)]),
            Self::Block([rows, columns]) => ([rows, columns], scales == [n_out.div_ceil(rows), n_in.div_ceil(columns)]),
        };
        is_it.then_some([block[0].min(n_out).max(1), block[1].min(n_in).max(1)])
    }

    /// The shape of the scales of an `[out, in]` matrix.
    fn in_words(self, [n_out, n_in]: [usize; 2]) -> String {
        match self {
            Self::Tensor => "one scale".to_owned(),
            Self::Channel => format!("{:?}", [n_out, 1]),
            Self::Group(size) => format!("{:?}", [n_out, n_in.div_ceil(size)]),
            Self::Block([rows, columns]) => format!("{:?}", [n_out.div_ceil(rows), n_in.div_ceil(columns)]),
        }
    }
}

impl Restored for Weight {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn codes(&self) -> &str {
        &self.codes
    }

    fn others(&self) -> Vec<&str> {
        let global = match &self.format {
            Format::Nvfp4 { global } => Some(global.as_str()),
            _ => None,
        };
        std::iter::once(self.scales.as_str()).chain(global).collect()
    }

    fn stored_type(&self) -> StoredType {
        let (name, bits, group_size) = match &self.format {
            Format::Fp8 { is_mx: true, .. } => ("MXFP8".to_owned(), 8, Some(MX_GROUP)),
            Format::Fp8 { layout, .. } => match layout {
                ScaleLayout::Tensor => ("FP8 per-tensor".to_owned(), 8, None),
                ScaleLayout::Channel => ("FP8 per-channel".to_owned(), 8, None),
                ScaleLayout::Group(size) => ("FP8".to_owned(), 8, Some(*size)),
                ScaleLayout::Block([rows, columns]) => (format!("FP8 {rows}x{columns}"), 8, None),
            },
            Format::Mxfp4 | Format::Mxfp4Experts => ("MXFP4".to_owned(), 4, Some(MX_GROUP)),
            Format::Nvfp4 { .. } => ("NVFP4".to_owned(), 4, Some(NV_GROUP)),
        };
        let of_tensor = if matches!(self.format, Format::Nvfp4 { .. }) { 32 } else { 0 };
        let n_weights = self.shape.iter().product::<usize>().max(1);
        let of_scales = (self.n_scales * self.scale_bits + of_tensor) as f64 / n_weights as f64;
        StoredType { name, bits_per_weight: f64::from(bits) + of_scales, group_size }
    }

    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        let (codes, scales) = (base.raw(&self.codes)?, scales(base, &self.scales)?);
        let n_in = self.shape.last().copied().unwrap_or(1).max(1);
        let mut values = vec![0.0; self.shape.iter().product()];
        match &self.format {
            Format::Fp8 { block: [rows, columns], products, .. } => {
                let (table, per_row) = (&*E4M3, n_in.div_ceil(*columns));
                let both = values.par_chunks_mut(n_in).zip(codes.bytes.par_chunks(n_in));
                both.enumerate().for_each(|(row, (values, codes))| {
                    let scales = &scales[row / rows * per_row..][..per_row];
                    for ((values, codes), scale) in values.chunks_mut(*columns).zip(codes.chunks(*columns)).zip(scales)
                    {
                        for (value, &code) in values.iter_mut().zip(codes) {
                            *value = products.round(table[usize::from(code)] * scale);
                        }
                    }
                });
            }
            Format::Mxfp4 => restore(&mut values, codes.bytes, &scales, MX_GROUP, |q, s| Number::Bf16.round(q * s)),
            Format::Nvfp4 { global } => {
                let [global] = base.read_any_f32(global)?[..] else {
                    return Err(wrong_shape(base, global, &[1], &[]));
                };
                let restored = |q: f32, s: f32| Number::Bf16.round(q * (s / global));
                restore(&mut values, codes.bytes, &scales, NV_GROUP, restored);
            }
            Format::Mxfp4Experts => {
                let mut rows = vec![0.0; values.len()];
                restore(&mut rows, codes.bytes, &scales, MX_GROUP, |q, s| q * s);
                // `[experts, out, in]` to `[experts, in, out]`, which is what `n_in` counts here.
                let (n_out, width) = (n_in, self.shape[1].max(1));
                let experts = values.par_chunks_mut(n_out * width).zip(rows.par_chunks(n_out * width));
                experts.for_each(|(values, rows)| {
                    for (out, row) in rows.chunks(width).enumerate() {
                        row.iter().enumerate().for_each(|(at, value)| values[at * n_out + out] = *value);
                    }
                });
            }
        }
        Ok(values)
    }
}

/// Values of 4 bits, each group of which has a scale.
fn restore(values: &mut [f32], bytes: &[u8], scales: &[f32], group: usize, restored: impl Fn(f32, f32) -> f32 + Sync) {
    let groups = values.par_chunks_mut(group).zip(bytes.par_chunks(group / 2)).zip(scales);
    groups.for_each(|((values, bytes), &scale)| {
        for (value, code) in values.iter_mut().zip(nibbles(bytes)) {
            *value = restored(E2M1[code], scale);
        }
    });
}

/// Scales as numbers; what is stored in a byte is a power of two, or E4M3.
fn scales(base: &SafetensorsCheckpoint, name: &str) -> Result<Vec<f32>, LoadError> {
    let stored = base.raw(name)?;
    Ok(match stored.dtype {
        Dtype::U8 | Dtype::F8_E8M0 => stored.bytes.iter().map(|byte| e8m0(*byte)).collect(),
        Dtype::F8_E4M3 => stored.bytes.iter().map(|byte| E4M3[usize::from(*byte)]).collect(),
        other => {
            let float = float_type(other).ok_or_else(|| wrong_type(base, name, other))?;
            floats::to_f32(float, stored.bytes)
        }
    })
}

fn check_shape(
    base: &SafetensorsCheckpoint,
    name: &str,
    found: Option<Vec<usize>>,
    expected: &[usize],
) -> Result<(), LoadError> {
    match found {
        Some(found) if found == expected => Ok(()),
        found => Err(wrong_shape(base, name, expected, &found.unwrap_or_default())),
    }
}

fn wrong_shape(base: &SafetensorsCheckpoint, name: &str, expected: &[usize], found: &[usize]) -> LoadError {
    LoadError::WrongShape {
        file: base.file_of(name),
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    }
}

fn wrong_type(base: &SafetensorsCheckpoint, name: &str, dtype: Dtype) -> LoadError {
    LoadError::UnsupportedDtype {
        file: base.file_of(name),
        name: name.to_owned(),
        dtype: format!("{dtype:?}"),
        known: "the types of scales that its maker writes".to_owned(),
    }
}

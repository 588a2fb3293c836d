//! The tensors of a linear, found by their names and held against each other, from headers alone.

use safetensors::Dtype;

use super::settings::{Layout, Scheme};
use super::weight::{Tensors, Weight, words_of, wrong_type};
use crate::formats::gptq::Gptq;
use crate::formats::{awq, gptq};
use crate::grid::Bits;
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::stored_dtype::float_type;
use crate::load::{Checkpoint, LoadError, StoredType};
use crate::pack::PackLayout;

/// The linear whose codes are the tensor `name`, and what its weight is called.
///
/// # Errors
/// Tensors of it that are missing, or that do not belong together.
pub(super) fn weight(
    base: &SafetensorsCheckpoint,
    name: &str,
    scheme: &Scheme,
) -> Result<Option<(String, Weight)>, LoadError> {
    let Some((linear, part)) = name.rsplit_once('.') else { return Ok(None) };
    let finder = Finder { base, linear, scheme };
    let found = match (scheme.layout, part) {
        (Layout::Awq, "qweight") => finder.awq()?,
        (Layout::Gptq { version, .. }, "qweight") => finder.gptq(version)?,
        (Layout::Compressed { is_dense }, "weight_packed") => finder.packed(is_dense)?,
        (Layout::Compressed { .. }, "weight") if base.raw(name)?.dtype == Dtype::I8 => finder.bytes()?,
        _ => return Ok(None),
    };
    Ok(Some((format!("{linear}.weight"), found)))
}

/// Which version the zero points of symmetric weights are stored in; `None` where they are not all one of the two middle codes.
///
/// # Errors
/// A tensor of another type.
pub(super) fn zero_points_say(
    base: &SafetensorsCheckpoint,
    name: &str,
    scheme: &Scheme,
) -> Result<Option<Gptq>, LoadError> {
    let [bits] = scheme.bits[..] else { return Ok(None) };
    let words = words_of(base, name)?;
    let n = base.shape(name).and_then(|shape| shape.last().copied()).unwrap_or(0) * 32 / usize::from(bits.get());
    let codes = if n == 0 { Vec::new() } else { PackLayout::Stream.unpack(&words, n, bits) };
    let middle = bits.max_code() / 2 + 1;
    Ok(match codes.first() {
        Some(&first) if codes.iter().any(|&code| code != first) => None,
        Some(&first) if first == middle => Some(Gptq::V2),
        Some(&first) if first == middle - 1 => Some(Gptq::V1),
        _ => None,
    })
}

/// Finds the tensors of a linear and holds them against each other.
struct Finder<'a> {
    base: &'a SafetensorsCheckpoint,
    linear: &'a str,
    scheme: &'a Scheme,
}

/// What was found of a linear.
struct Found {
    codes: &'static str,
    shape: [usize; 2],
    bits: Bits,
    tensors: Tensors,
    zero_points: Option<&'static str>,
    groups: Option<&'static str>,
    scales: &'static str,
    scales_shape: [usize; 2],
}

impl Finder<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.linear)
    }

    /// A matrix of a type.
    fn matrix(&self, part: &str, dtype: Dtype) -> Result<[usize; 2], LoadError> {
        let raw = self.base.raw(&self.name(part))?;
        if raw.dtype != dtype {
            return Err(wrong_type(&raw, &self.name(part), &format!("{dtype:?}")));
        }
        match *raw.shape {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(self.bad(part, "expected a matrix that is not empty")),
        }
    }

    /// The type of a tensor of scales.
    fn check_scales(&self, part: &str) -> Result<(), LoadError> {
        let raw = self.base.raw(&self.name(part))?;
        match float_type(raw.dtype) {
            Some(_) => Ok(()),
            None => Err(wrong_type(&raw, &self.name(part), "F16, BF16, F32")),
        }
    }

    fn has(&self, part: &str) -> bool {
        self.base.shape(&self.name(part)).is_some()
    }

    /// An error about the shape of a tensor.
    fn bad(&self, part: &str, problem: &str) -> LoadError {
        let (name, shape) = (self.name(part), self.base.shape(&self.name(part)).unwrap_or_default());
        let problem = format!("tensor {name:?} has shape {shape:?}: {problem} ({})", self.scheme.described);
        LoadError::BadHeader { file: self.base.file_of(&name), problem }
    }

    fn expect(&self, part: &str, expected: &[usize]) -> Result<(), LoadError> {
        let (name, found) = (self.name(part), self.base.shape(&self.name(part)).unwrap_or_default());
        if found == expected {
            return Ok(());
        }
        let (file, expected) = (self.base.file_of(&name), expected.to_vec());
        Err(LoadError::WrongShape { file, name, expected, found })
    }

    /// Inputs of a group, of `n_groups` in a row.
    fn group_len(&self, n_in: usize, n_groups: usize, scales: &str) -> Result<usize, LoadError> {
        let lens = self.scheme.group_sizes.iter().map(|size| size.unwrap_or(n_in).min(n_in));
        let mut fitting = lens.filter(|len| *len > 0 && n_in.div_ceil(*len) == n_groups);
        fitting.next().ok_or_else(|| {
            let known: Vec<String> =
                self.scheme.group_sizes.iter().map(|size| size.map_or("-1".into(), |size| size.to_string())).collect();
            self.bad(
                scales,
                &format!("{n_groups} groups of {n_in} inputs, which no group size of {} gives", known.join(", ")),
            )
        })
    }

    fn awq(&self) -> Result<Weight, LoadError> {
        let [n_in, n_words] = self.matrix("qweight", Dtype::I32)?;
        self.check_scales("scales")?;
        let [n_groups, _] = self.matrix("qzeros", Dtype::I32)?;
        let n_out = n_words * awq::PER_WORD;
        self.expect("qzeros", &[n_groups, n_words])?;
        self.expect("scales", &[n_groups, n_out])?;
        let bits = Bits::new(4).filter(|bits| self.scheme.bits.contains(bits));
        let bits = bits.ok_or_else(|| self.bad("qweight", "the layout has 4 bits"))?;
        self.weight(Found {
            codes: "qweight",
            shape: [n_out, n_in],
            bits,
            tensors: Tensors::Awq,
            zero_points: Some("qzeros"),
            groups: None,
            scales: "scales",
            scales_shape: [n_out, n_groups],
        })
    }

    fn gptq(&self, version: Gptq) -> Result<Weight, LoadError> {
        let [n_rows, n_out] = self.matrix("qweight", Dtype::I32)?;
        self.check_scales("scales")?;
        let [n_groups, zero_words] = self.matrix("qzeros", Dtype::I32)?;
        let is_grouped = self.has("g_idx");
        let n_of_groups =
            if is_grouped { self.base.shape(&self.name("g_idx")).unwrap_or_default() } else { Vec::new() };
        let n_in_of = |bits: Bits| match n_of_groups[..] {
            [n_in] => n_in,
            _ => n_rows * 32 / usize::from(bits.get()),
        };
        let words = |n: usize, bits| PackLayout::Stream.words_per_row(n, bits);
        let fits = |bits: &&Bits| {
            gptq::has_bits(**bits) && words(n_out, **bits) == zero_words && words(n_in_of(**bits), **bits) == n_rows
        };
        let Some(&bits) = self.scheme.bits.iter().find(fits) else {
            let problem = format!(
                "with \"qzeros\" of {:?} it has codes of none of the bits that the settings name",
                [n_groups, zero_words,]
            );
            return Err(self.bad("qweight", &problem));
        };
        self.expect("scales", &[n_groups, n_out])?;
        self.weight(Found {
            codes: "qweight",
            shape: [n_out, n_in_of(bits)],
            bits,
            tensors: Tensors::Gptq(version),
            zero_points: Some("qzeros"),
            groups: is_grouped.then_some("g_idx"),
            scales: "scales",
            scales_shape: [n_out, n_groups],
        })
    }

    fn packed(&self, is_dense: bool) -> Result<Weight, LoadError> {
        let [n_out, n_words] = self.matrix("weight_packed", Dtype::I32)?;
        let [rows, n_in] = self.shape_tensor()?;
        if rows != n_out || n_in == 0 {
            return Err(self.bad("weight_packed", &format!("\"weight_shape\" says {:?}", [rows, n_in])));
        }
        // Where both layouts have so many words, the version decides.
        let layouts = if is_dense { PackLayout::ALL } else { [PackLayout::Whole, PackLayout::Stream] };
        let all = self.scheme.bits.iter().flat_map(|bits| layouts.map(|layout| (*bits, layout)));
        let mut fitting = all.filter(|(bits, layout)| layout.words_per_row(n_in, *bits) == n_words);
        let Some((bits, layout)) = fitting.next() else {
            let problem = format!("{n_in} inputs fill other words in the bits that the settings name");
            return Err(self.bad("weight_packed", &problem));
        };
        if fitting.any(|(other, _)| other != bits) {
            return Err(self.bad("weight_packed", "it fits several of the bits that the settings name"));
        }
        let scales_shape = self.scales_shape(n_out)?;
        let zero_points = self.has("weight_zero_point").then_some("weight_zero_point");
        if zero_points.is_some() {
            self.check_zero_points(bits, layout, scales_shape)?;
        }
        self.weight(Found {
            codes: "weight_packed",
            shape: [n_out, n_in],
            bits,
            tensors: Tensors::Packed(layout),
            zero_points,
            groups: self.has("weight_g_idx").then_some("weight_g_idx"),
            scales: "weight_scale",
            scales_shape,
        })
    }

    fn bytes(&self) -> Result<Weight, LoadError> {
        let shape = self.matrix("weight", Dtype::I8)?;
        let bits = Bits::new(8).filter(|bits| self.scheme.bits.contains(bits));
        let bits = bits.ok_or_else(|| self.bad("weight", "bytes have 8 bits, which the settings do not name"))?;
        let scales_shape = self.scales_shape(shape[0])?;
        let zero_points = self.has("weight_zero_point").then_some("weight_zero_point");
        if zero_points.is_some() {
            self.check_zero_points(bits, PackLayout::Stream, scales_shape)?;
        }
        self.weight(Found {
            codes: "weight",
            shape,
            bits,
            tensors: Tensors::Bytes,
            zero_points,
            groups: None,
            scales: "weight_scale",
            scales_shape,
        })
    }

    /// Packed zero points of each group, or signed bytes shaped as the scales.
    fn check_zero_points(&self, bits: Bits, layout: PackLayout, scales: [usize; 2]) -> Result<(), LoadError> {
        let name = self.name("weight_zero_point");
        let raw = self.base.raw(&name)?;
        match raw.dtype {
            Dtype::I32 => self.expect("weight_zero_point", &[layout.words_per_row(scales[0], bits), scales[1]]),
            Dtype::I8 if raw.bytes.len() == scales[0] * scales[1] => Ok(()),
            Dtype::I8 => self.expect("weight_zero_point", &scales),
            _ => Err(wrong_type(&raw, &name, "I32, I8")),
        }
    }

    /// `[n_out, n_groups]`, or `[1, 1]` where one scale is the matrix's.
    fn scales_shape(&self, n_out: usize) -> Result<[usize; 2], LoadError> {
        self.check_scales("weight_scale")?;
        match self.base.shape(&self.name("weight_scale")).unwrap_or_default()[..] {
            [] | [1] | [1, 1] => Ok([1, 1]),
            [rows] if rows == n_out => Ok([n_out, 1]),
            [rows, n_groups] if rows == n_out && n_groups > 0 => Ok([n_out, n_groups]),
            _ => Err(self.bad("weight_scale", &format!("expected scales of {n_out} rows"))),
        }
    }

    /// `weight_shape`.
    fn shape_tensor(&self) -> Result<[usize; 2], LoadError> {
        let name = self.name("weight_shape");
        let raw = self.base.raw(&name)?;
        let values: Vec<i64> = match raw.dtype {
            Dtype::I64 => raw.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            Dtype::I32 => raw.bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect(),
            _ => return Err(wrong_type(&raw, &name, "I64, I32")),
        };
        let sizes: Option<Vec<usize>> = values.iter().map(|value| usize::try_from(*value).ok()).collect();
        // A number of inputs that no tensor of a file could hold would overflow what is computed of it.
        let sizes = sizes.filter(|sizes| sizes.iter().all(|size| u32::try_from(*size).is_ok()));
        let sizes = sizes.and_then(|sizes| <[usize; 2]>::try_from(sizes).ok());
        sizes.ok_or_else(|| self.bad("weight_shape", &format!("it holds {values:?}, expected two sizes")))
    }

    fn weight(&self, found: Found) -> Result<Weight, LoadError> {
        let Found { shape: [n_out, n_in], bits, scales_shape, .. } = found;
        if let Some(groups) = found.groups {
            let raw = self.base.raw(&self.name(groups))?;
            if raw.dtype != Dtype::I32 {
                return Err(wrong_type(&raw, &self.name(groups), "I32"));
            }
            self.expect(groups, &[n_in])?;
        }
        // Groups that a tensor lists need no length, but those of a row that has so many.
        let group_len = match found.groups {
            Some(_) => n_in.div_ceil(scales_shape[1]),
            None => self.group_len(n_in, scales_shape[1], found.scales)?,
        };
        let scale_bits = self.base.raw(&self.name(found.scales))?.dtype.bitsize();
        let zero_bits = if self.scheme.has_zero_points { usize::from(bits.get()) } else { 0 };
        let order_bits = if self.scheme.has_input_order { 32 * n_in } else { 0 };
        let n_scales = scales_shape[0] * scales_shape[1];
        let beside = (n_scales * (scale_bits + zero_bits) + order_bits) as f64 / (n_out as f64 * n_in as f64);
        let stored_type = StoredType {
            name: format!("{} W{}", self.scheme.label, bits.get()),
            bits_per_weight: f64::from(bits.get()) + beside,
            group_size: (scales_shape[1] > 1).then_some(group_len),
        };
        Ok(Weight {
            codes: self.name(found.codes),
            shape: found.shape,
            bits,
            tensors: found.tensors,
            scales: self.name(found.scales),
            zero_points: found.zero_points.map(|part| self.name(part)),
            groups: found.groups.map(|part| self.name(part)),
            shape_tensor: self.has("weight_shape").then(|| self.name("weight_shape")),
            group_len,
            scales_shape,
            stored_type,
        })
    }
}

//! Quantizes one linear from a file, for comparisons with code in other languages (`scripts/check-baselines.py`).
//!
//! ```sh
//! cargo run --release -p baselines --example quantize_linear -- SETTINGS.toml IN.safetensors OUT.safetensors
//! ```
//!
//! `SETTINGS.toml` has `[grid]` and `[method.NAME]`, with the keys of an experiment's file. `IN` has `weight` (f32, `[out, in]`), and
//! for methods that look at them `inputs` and `full_precision_inputs` (f32, `[tokens, in]`). `OUT` gets `codes` (u8, `[out, in]`),
//! `scale` and `zero_point` (f32, row by row), `weight` (f32, `[out, in]`, as a model multiplies with it), and for a rotated
//! weight the dense matrices (f64) and the channel scale of [`RotatedWeight`]. The notes of the log go to standard output.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use awq_core::capture::InputStats;
use awq_core::grid::Grid;
use awq_core::log::LinearLog;
use awq_core::method::{LinearCtx, LinearMethod, MethodError};
use awq_core::model::LinearName;
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::rotation::Rotation;
use awq_core::transform::{RotatedWeight, WeightTransform};
use baselines::gptaq::Gptaq;
use baselines::gptq::Gptq;
use baselines::hqq::Hqq;
use baselines::quip::Quip;
use baselines::rtn::Rtn;
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    grid: Grid,
    method: Method,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    Rtn(Rtn),
    Gptq(Gptq),
    Gptaq(Gptaq),
    Quip(Quip),
    Hqq(Hqq),
}

impl Method {
    fn quantize(&self, ctx: &LinearCtx<'_, Flex>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        match self {
            Self::Rtn(method) => method.quantize_linear(ctx),
            Self::Gptq(method) => method.quantize_linear(ctx),
            Self::Gptaq(method) => method.quantize_linear(ctx),
            Self::Quip(method) => method.quantize_linear(ctx),
            Self::Hqq(method) => method.quantize_linear(ctx),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [settings, from, to] = arguments.as_slice() else {
        return Err("usage: quantize_linear SETTINGS.toml IN.safetensors OUT.safetensors".into());
    };
    let settings: Settings = toml::from_str(&std::fs::read_to_string(settings)?)?;
    let bytes = std::fs::read(from)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let weight = matrix(&file, "weight")?.ok_or("the file has no weight")?;
    let rows = |matrix: Tensor<Flex, 2>| vec![matrix.unsqueeze::<3>()];
    let mut input = matrix(&file, "inputs")?.map(|inputs| InputStats::new(rows(inputs)));
    if let Some(full_precision) = matrix(&file, "full_precision_inputs")? {
        input = input.map(|input| input.with_full_precision(rows(full_precision)));
    }
    let ctx = LinearCtx {
        block_idx: 0,
        linear: LinearName("linear"),
        weight,
        input: input.as_ref(),
        input_scale: None,
        grid: &settings.grid,
        listener: &|_| {},
    };
    let (quantized, log) = settings.method.quantize(&ctx)?;
    log.notes.iter().for_each(|note| println!("{note}"));
    write(&quantized, Path::new(to))
}

/// A matrix of the file, `None` where it has none of that name.
fn matrix(file: &SafeTensors<'_>, name: &str) -> Result<Option<Tensor<Flex, 2>>, Box<dyn Error>> {
    if !file.names().contains(&name) {
        return Ok(None);
    }
    let view = file.tensor(name)?;
    let (Dtype::F32, &[n_rows, n_cols]) = (view.dtype(), view.shape()) else {
        return Err(format!("{name} is {:?} {:?}; give an f32 matrix", view.dtype(), view.shape()).into());
    };
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(Some(Tensor::from_data(TensorData::new(values, [n_rows, n_cols]), &Default::default())))
}

fn write(quantized: &QuantizedWeight, to: &Path) -> Result<(), Box<dyn Error>> {
    let (n_out, n_in) = (quantized.n_out, quantized.n_in);
    let zero_point: Vec<f32> = match &quantized.zero_point {
        ZeroPoints::Codes(codes) => codes.iter().map(|&code| f32::from(code)).collect(),
        ZeroPoints::Real(values) => values.clone(),
    };
    let mut tensors = BTreeMap::from([
        ("codes", (Dtype::U8, vec![n_out, n_in], quantized.codes.clone())),
        ("scale", singles(&quantized.scale)),
        ("zero_point", singles(&zero_point)),
        ("weight", (Dtype::F32, vec![n_out, n_in], singles(&quantized.dequantize()).2)),
    ]);
    if let WeightTransform::Rotated(rotated) = &quantized.transform {
        let RotatedWeight { output, input, input_scale } = rotated.as_ref();
        tensors.insert("output_rotation", dense(output, n_out));
        tensors.insert("input_rotation", dense(input, n_in));
        tensors.insert("input_scale", singles(input_scale));
    }
    let views: Result<BTreeMap<_, _>, _> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>();
    Ok(safetensors::serialize_to_file(views?, None, to)?)
}

type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn singles(values: &[f32]) -> Stored {
    (Dtype::F32, vec![values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A rotation as a matrix: column `j` is the image of the `j`-th unit vector.
fn dense(rotation: &Rotation, n: usize) -> Stored {
    let mut matrix = vec![0.0_f64; n * n];
    for column in 0..n {
        let mut unit = vec![0.0; n];
        unit[column] = 1.0;
        rotation.apply(&mut unit);
        unit.iter().enumerate().for_each(|(row, &value)| matrix[row * n + column] = value);
    }
    (Dtype::F64, vec![n, n], matrix.iter().flat_map(|value| value.to_le_bytes()).collect())
}

//! Baselines that AWQ is compared with. They know grids, calibration statistics and linears, no data set and no experiment.

pub mod awq_gptq;
pub mod gptaq;
pub mod gptq;
mod hessian;
pub mod hqq;
mod linalg;
pub mod quip;
pub mod rtn;
#[cfg(test)]
mod testing;

use awq_core::quantized::QuantizedWeight;

/// Mean squared error of a quantized row-major weight.
fn weight_mse(weight: &[f32], quantized: &QuantizedWeight) -> f64 {
    let squares = weight.iter().zip(quantized.dequantize()).map(|(w, q)| f64::from(q - w).powi(2));
    squares.sum::<f64>() / weight.len().max(1) as f64
}

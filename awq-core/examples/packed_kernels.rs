//! Has every kernel for packed weights compiled for CUDA and kept in a folder, and says which is which:
//! `packed_kernels FOLDER` prints a line a kernel, `4 bits, tensor cores, f16, 16 rows`, a tab, and its number in the order in
//! which CubeCL keeps them. `scripts/gpu_sass.py` runs it on a machine without a GPU and looks at what the compiler made.

use std::path::{Path, PathBuf};

use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::host;
use awq_core::kernel::cube::GptqWeight;
use awq_core::kernel::cube::bench::{Product, Queued};
use awq_core::kernel::cube::compiled::{Kept, keep_compiled, list_of_kernels};
use awq_core::kernel::{DeviceWeight, UnitWeight};
use awq_core::quantized::QuantizedWeight;
use burn::backend::Cuda;
use burn::tensor::DType;

/// Few outputs: a kernel's code does not depend on them.
const N_OUT: usize = 64;
const N_IN: usize = 4096;
const GROUP: u16 = 128;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: packed_kernels FOLDER")?);
    if keep_compiled(&folder) != Kept::There {
        return Err("there is a cubecl.toml above this folder; run it elsewhere".into());
    }
    for bits in [4, 3, 2] {
        let weight = weight(bits)?;
        let units = UnitWeight::new(&weight)?;
        let device = Default::default();
        for dtype in [DType::F16, DType::BF16] {
            let name = format!("{dtype:?}").to_lowercase();
            let mut packed = Product::<Cuda, DeviceWeight<Cuda>>::packed(&units, dtype, 0, &device);
            for n_rows in [1, 2, 4, 8, 16] {
                say(&folder, &format!("{bits} bits, matvec, {name}, {n_rows} rows"), &mut packed, n_rows)?;
            }
            let tensor_core = Product::<Cuda, DeviceWeight<Cuda>>::tensor_core(&units, dtype, 0, &device);
            let mut tensor_core = tensor_core.ok_or("the device has no tensor cores that the kernel knows")?;
            for n_rows in [1, 16, 32, 64] {
                say(&folder, &format!("{bits} bits, tensor cores, {name}, {n_rows} rows"), &mut tensor_core, n_rows)?;
            }
        }
        if GptqWeight::<Cuda>::holds(&weight) {
            let mut gptq = Product::<Cuda, GptqWeight<Cuda>>::gptq(&weight, DType::F16, 0, &device)?;
            say(&folder, &format!("{bits} bits, GPTQ's layout, f16, 1 rows"), &mut gptq, 1)?;
        }
    }
    Ok(())
}

fn weight(bits: u8) -> Result<QuantizedWeight, Error> {
    let values: Vec<f32> = (0..N_OUT * N_IN).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
    let group = Granularity::PerGroup(GROUP.try_into()?);
    Ok(host::grid::quantize(&values, N_OUT, N_IN, &Grid::awq(Bits::new(bits).ok_or("no such bits")?, group)))
}

/// Has a product computed, and names the kernels that are new.
fn say(folder: &Path, label: &str, product: &mut dyn Queued, n_rows: usize) -> Result<(), Error> {
    product.set_batch_size(n_rows)?;
    product.wait()?;
    let before = n_kernels(folder)?;
    product.queue(0)?;
    product.wait()?;
    for number in before..n_kernels(folder)? {
        println!("{label}\t{number}");
    }
    Ok(())
}

fn n_kernels(folder: &Path) -> Result<usize, Error> {
    let Some(list) = list_of_kernels(folder) else { return Ok(0) };
    Ok(std::fs::read_to_string(list)?.lines().count())
}

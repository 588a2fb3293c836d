//! Scales rounded to f16 on the device, which need not have the type: each would wait for the host otherwise.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Threads of a cube.
const N_THREADS: u32 = 256;
/// Most cubes along one axis that every device takes.
const MAX_CUBES: u32 = 65_535;

/// Values of f32 rounded half to even to f16, as f32.
pub(super) fn launch<R: CubeRuntime>(values: CubeTensor<R>) -> CubeTensor<R> {
    let values = into_contiguous(values);
    let (client, device, dtype) = (values.client.clone(), values.device.clone(), values.dtype);
    let shape = values.meta.shape().clone();
    let n = shape.num_elements();
    let out = CubeTensor::new_contiguous(client.clone(), device, shape, client.empty(n * dtype.size()), dtype);
    let n_cubes = (n as u32).div_ceil(N_THREADS);
    let cubes = CubeCount::Static(n_cubes.min(MAX_CUBES), n_cubes.div_ceil(MAX_CUBES), 1);
    // SAFETY: threads beyond the last value do nothing; the others read and write their own.
    unsafe {
        round_to_f16::launch_unchecked::<R>(
            &client,
            cubes,
            CubeDim::new_1d(N_THREADS),
            values.into_array_arg(),
            out.clone().into_array_arg(),
            n as u32,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn round_to_f16(values: &Array<f32>, out: &mut Array<f32>, n: u32) {
    if (ABSOLUTE_POS as u32) < n {
        let bits = u32::reinterpret(values[ABSOLUTE_POS]);
        let magnitude = bits & 0x7fff_ffffu32;
        // Thirteen bits less, half to even; a carry into the exponent is right.
        let mut rounded = (magnitude + 0xfffu32 + ((magnitude >> 13u32) & 1u32)) & 0xffff_e000u32;
        // Below 2^-14 there are multiples of 2^-24 alone.
        if magnitude < 0x3880_0000u32 {
            let steps = f32::reinterpret(magnitude) * 16_777_216.0f32;
            let mut whole = u32::cast_from(steps);
            let rest = steps - f32::cast_from(whole);
            if rest > 0.5f32 {
                whole += 1u32;
            }
            if rest == 0.5f32 {
                whole += whole & 1u32;
            }
            rounded = u32::reinterpret(f32::cast_from(whole) * 5.960_464_477_539_063e-8f32);
        }
        // From half a step behind the largest value on it is infinity, and what is no number stays one.
        if magnitude >= 0x477f_f000u32 {
            rounded = 0x7f80_0000u32;
        }
        if magnitude > 0x7f80_0000u32 {
            rounded = magnitude;
        }
        out[ABSOLUTE_POS] = f32::reinterpret(rounded | (bits & 0x8000_0000u32));
    }
}

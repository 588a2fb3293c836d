//! GPU backends against the CPU: CUDA where the program is built with it, else `wgpu`, for which Mesa's software renderer
//! (lavapipe) will do. Without a device every test says that it is skipped.
#![allow(clippy::unwrap_used)]

mod definitions;
#[path = "../suite/fixture.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod fixture;
mod half;
mod kept;
mod model;
mod products;
#[path = "../suite/support.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod support;

/// The backend under test. The device's default float type is f32.
#[cfg(feature = "cuda")]
type Gpu = burn::backend::Cuda;
#[cfg(not(feature = "cuda"))]
type Gpu = burn::backend::Wgpu;

/// Relative error of burn's f32 matrix product: on CUDA its inputs may be rounded to TF32.
const PRODUCT_TOLERANCE: f32 = if cfg!(feature = "cuda") { 2e-3 } else { 1e-5 };

/// Whether there is a device; says so where there is none.
fn has_device(test: &str) -> bool {
    #[cfg(feature = "cuda")]
    let (found, remedy) = (std::path::Path::new("/proc/driver/nvidia/version").exists(), "no NVIDIA driver");
    #[cfg(not(feature = "cuda"))]
    let (found, remedy) = (
        awq_core::kernel::cube::has_wgpu_adapter(),
        "no Vulkan adapter (Debian: apt-get install mesa-vulkan-drivers libvulkan1)",
    );
    if !found {
        eprintln!("{test}: skipped, {remedy}");
    }
    keep_kernels();
    found
}

/// Where `AWQ_GPU_TEST_KERNELS` names a folder, kernels are kept there: each process would compile them anew, minutes on CUDA.
/// It must be one for this build of the tests, whose kernels CubeCL does not tell from those of another.
fn keep_kernels() {
    if let Some(folder) = std::env::var_os("AWQ_GPU_TEST_KERNELS") {
        // The first test of a process does it for all.
        awq_core::kernel::cube::compiled::keep_compiled(std::path::Path::new(&folder));
    }
}

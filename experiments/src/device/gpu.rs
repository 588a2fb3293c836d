//! What a GPU needs on a machine, found out before burn looks: burn panics where it is missing.

#[cfg(feature = "cuda")]
use anyhow::Context as _;
use anyhow::ensure;
use awq_core::arithmetic::FloatType;
use awq_core::backend::QuantBackend;
use burn::tensor::{IntDType, get_device_settings, set_default_dtypes};

/// A CUDA device whose float tensors have the type `precision`.
#[cfg(feature = "cuda")]
pub(super) fn cuda_device(
    name: &str,
    index: usize,
    precision: FloatType,
) -> anyhow::Result<burn::backend::cuda::CudaDevice> {
    keep_kernels(name)?;
    let device = burn::backend::cuda::CudaDevice::new(index);
    store_as::<burn::backend::Cuda>(name, precision, &device)?;
    Ok(device)
}

/// The graphics device, whose float tensors have the type `precision`.
#[cfg(feature = "wgpu")]
pub(super) fn wgpu_device(name: &str, precision: FloatType) -> anyhow::Result<burn::backend::wgpu::WgpuDevice> {
    keep_kernels(name)?;
    let device = Default::default();
    store_as::<burn::backend::Wgpu>(name, precision, &device)?;
    Ok(device)
}

/// Has what is compiled for a GPU kept; a CPU's name does nothing. Before the first use of a device, which was probed.
pub(super) fn keep_kernels(name: &str) -> anyhow::Result<()> {
    match super::split(name)? {
        #[cfg(feature = "cuda")]
        ("cuda", index) => super::kernels::keep(name, &card(index)?),
        // Drivers of other devices keep kernels themselves, and CubeCL tells devices apart in what tuning finds.
        #[cfg(feature = "wgpu")]
        ("wgpu", _) => super::kernels::keep(name, "wgpu"),
        _ => Ok(()),
    }
}

/// `NVIDIA H200 sm_90 CUDA 13.0`.
#[cfg(feature = "cuda")]
fn card(index: usize) -> anyhow::Result<String> {
    let driver = cuda::library(&DRIVER).context("libcuda is gone")?;
    let card = cuda::card(&driver, index)
        .map_err(|problem| anyhow::anyhow!("cuda:{index}: the NVIDIA driver does not describe it ({problem})"))?;
    Ok(format!("{card} {}", toolkit().unwrap_or_else(|| "CUDA".to_owned())))
}

/// `CUDA 13.0`, as its compiler calls itself.
#[cfg(feature = "cuda")]
pub(super) fn toolkit() -> Option<String> {
    let (major, minor) = cuda::compiler_version(&cuda::library(&COMPILER)?)?;
    Some(format!("CUDA {major}.{minor}"))
}

#[cfg(feature = "cuda")]
const DRIVER: [&str; 3] = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
#[cfg(feature = "cuda")]
const COMPILER: [&str; 5] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11", "nvrtc64_130_0.dll"];

/// Makes `precision` the type of the float tensors of a device. It is fixed by the first tensor there.
fn store_as<B: QuantBackend>(name: &str, precision: FloatType, device: &B::Device) -> anyhow::Result<()> {
    ensure!(
        B::supports_dtype(device, precision.dtype().into()),
        "device `{name}` has no arithmetic in {}; use another `precision`",
        precision.name()
    );
    // Refused where the device has its settings already: of the model before this one, in the same precision.
    let _ = set_default_dtypes::<B>(device, precision.dtype(), IntDType::I32);
    let found = get_device_settings::<B>(device).float_dtype;
    ensure!(
        found == precision.dtype(),
        "device `{name}` is in use with {found:?} tensors; run an experiment in {} in a process of its own",
        precision.name()
    );
    Ok(())
}

/// Whether there is an adapter.
#[cfg(feature = "wgpu")]
pub(super) fn probe_wgpu() -> anyhow::Result<()> {
    ensure!(
        awq_core::kernel::cube::has_wgpu_adapter(),
        "device `wgpu`: no graphics adapter on this machine (on Linux: no Vulkan driver); install the GPU's Vulkan driver, \
         or Mesa's software renderer (Debian: apt-get install mesa-vulkan-drivers libvulkan1), or use --device flex"
    );
    Ok(())
}

/// Whether cuBLAS can be loaded; the binding panics where it cannot.
#[cfg(feature = "cuda")]
pub(crate) fn has_cublas() -> bool {
    let names =
        ["libcublas.so", "libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "cublas64_13.dll", "cublas64_12.dll"];
    cuda::library(&names).is_some()
}

/// Looks for driver, device, compiler and headers, in the places where burn-cuda looks.
#[cfg(feature = "cuda")]
pub(super) fn probe_cuda(name: &str, index: usize) -> anyhow::Result<()> {
    let Some(driver) = cuda::library(&DRIVER) else {
        anyhow::bail!("device `{name}`: no NVIDIA driver (libcuda) on this machine; install it, or use --device flex");
    };
    match cuda::n_devices(&driver) {
        Ok(n) => ensure!(
            index < n,
            "device `{name}`: the NVIDIA driver knows {n} device(s), counted from 0; use another number, or --device flex"
        ),
        Err(problem) => anyhow::bail!(
            "device `{name}`: the NVIDIA driver does not start ({problem}); see what `nvidia-smi` says, or use --device flex"
        ),
    }
    ensure!(
        cuda::library(&COMPILER).is_some(),
        "device `{name}`: kernels are compiled at run time, and CUDA's compiler library (libnvrtc) is not found; install the \
         CUDA toolkit, or put the folder of libnvrtc.so into LD_LIBRARY_PATH"
    );
    let toolkit = cuda::toolkit(std::env::var_os("CUDA_PATH").map(Into::into));
    let missing =
        |header: &&str| !toolkit.as_ref().is_some_and(|toolkit| toolkit.join("include").join(header).is_file());
    if let Some(header) = ["cuda_runtime.h", "cuda_fp16.h"].into_iter().find(missing) {
        anyhow::bail!(
            "device `{name}`: kernels are compiled at run time, and CUDA's header include/{header} is not found in {}; install \
             the CUDA toolkit, or set CUDA_PATH to the folder that has `include`",
            toolkit
                .as_ref()
                .map_or_else(|| "CUDA_PATH, /usr/local/cuda or /opt/cuda".into(), |path| path.display().to_string())
        );
    }
    Ok(())
}

/// The machine's side of CUDA.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "a dynamic library can only be probed by loading it")]
mod cuda {
    use std::ffi::{CStr, c_char, c_int, c_uint};
    use std::path::{Path, PathBuf};

    use libloading::Library;

    /// The first of some libraries that can be loaded.
    pub(super) fn library(names: &[&str]) -> Option<Library> {
        // SAFETY: loading runs the libraries' initialisers only; they are the libraries that burn-cuda loads next.
        names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())
    }

    /// Devices that the driver knows.
    pub(super) fn n_devices(driver: &Library) -> Result<usize, String> {
        let mut n: c_int = 0;
        // SAFETY: the types are those of `cuInit` and `cuDeviceGetCount` in cuda.h; the second writes one int.
        let status = unsafe {
            let init = driver.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit").map_err(|e| e.to_string())?;
            let count = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount");
            match init(0) {
                0 => count.map_err(|e| e.to_string())?(&mut n),
                failed => failed,
            }
        };
        if status == 0 { Ok(usize::try_from(n).unwrap_or(0)) } else { Err(format!("CUDA error {status}")) }
    }

    /// Name and architecture of a device of a driver that was started: `NVIDIA H200 sm_90`.
    pub(super) fn card(driver: &Library, index: usize) -> Result<String, String> {
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        const MAJOR: c_int = 75;
        const MINOR: c_int = 76;
        let index = c_int::try_from(index).map_err(|e| e.to_string())?;
        let (mut device, mut major, mut minor, mut name) = (0, 0, 0, [0; 256]);
        // SAFETY: the types are those of `cuDeviceGet`, `cuDeviceGetName` and `cuDeviceGetAttribute` in cuda.h. Each writes one
        // int, or a text that ends with 0 and is no longer than the buffer, whose last byte stays 0.
        let statuses = unsafe {
            let get = driver.get::<Get>(b"cuDeviceGet").map_err(|e| e.to_string())?;
            let name_of = driver.get::<Name>(b"cuDeviceGetName").map_err(|e| e.to_string())?;
            let attribute = driver.get::<Attribute>(b"cuDeviceGetAttribute").map_err(|e| e.to_string())?;
            let found = get(&mut device, index);
            [
                found,
                name_of(name.as_mut_ptr(), name.len() as c_int - 1, device),
                attribute(&mut major, MAJOR, device),
                attribute(&mut minor, MINOR, device),
            ]
        };
        if let Some(failed) = statuses.into_iter().find(|status| *status != 0) {
            return Err(format!("CUDA error {failed}"));
        }
        let name = CStr::from_bytes_until_nul(name.map(c_char::cast_unsigned).as_slice())
            .map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        Ok(format!("{name} sm_{major}{minor}"))
    }

    /// Version of CUDA's compiler.
    pub(super) fn compiler_version(compiler: &Library) -> Option<(c_int, c_int)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the type is that of `nvrtcVersion` in nvrtc.h, which writes two ints.
        let status = unsafe {
            let version = compiler.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion");
            version.ok()?(&mut major, &mut minor)
        };
        (status == 0).then_some((major, minor))
    }

    /// Where burn-cuda looks for headers.
    pub(super) fn toolkit(cuda_path: Option<PathBuf>) -> Option<PathBuf> {
        let installed = || {
            let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).into_iter().find(|path| path.exists());
            usual.or_else(|| Path::new("/usr/bin/nvcc").exists().then(|| "/usr".into()))
        };
        cuda_path.or_else(installed)
    }
}

//! From a device's name to a burn backend: the one place in this program that names backends.

use anyhow::{bail, ensure};
use awq_core::arithmetic::FloatType;
use awq_core::backend::QuantBackend;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernels;

#[cfg(feature = "cuda")]
pub(crate) use gpu::has_cublas;

/// What the driver calls a GPU, where it tells.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_name(device: &str) -> Option<String> {
    crate::speed::cublas::index(device).and_then(crate::speed::cublas::device_name)
}

/// Only CUDA's driver tells.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu_name(_device: &str) -> Option<String> {
    None
}

/// What compiles kernels for a GPU: `CUDA 13.0`.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_toolkit(device: &str) -> Option<String> {
    crate::speed::cublas::index(device).and_then(|_| gpu::toolkit())
}

/// Only CUDA's is not the driver's own.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu_toolkit(_device: &str) -> Option<String> {
    None
}

/// What to say before work on a device: that kernels have to be compiled, and where they are kept.
///
/// # Errors
/// A name that is unknown, and a cache that cannot be written.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn note(name: &str) -> anyhow::Result<Option<String>> {
    gpu::keep_kernels(name)?;
    Ok(kernels::note())
}

/// Nothing is compiled for a CPU.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
pub(crate) fn note(_name: &str) -> anyhow::Result<Option<String>> {
    Ok(None)
}

/// Work that is generic over the backend.
pub trait DeviceJob {
    /// What comes out.
    type Output;

    /// Runs on one device.
    ///
    /// # Errors
    /// Whatever the job's own errors are.
    fn run<B: QuantBackend>(self, device: B::Device) -> anyhow::Result<Self::Output>;
}

/// Runs a job on the device that `name` stands for: `flex`, `ndarray`, `cuda`, `cuda:N` or `wgpu`. Weights and activations
/// have the type `precision` there.
///
/// # Errors
/// A name that is unknown, a backend that this program was built without, or a device that the machine lacks or that has no
/// such type; each says what to do.
pub fn run_on<J: DeviceJob>(name: &str, precision: FloatType, job: J) -> anyhow::Result<J::Output> {
    check(name, precision)?;
    match split(name)? {
        #[cfg(feature = "flex")]
        ("flex", _) => job.run::<burn::backend::Flex>(Default::default()),
        #[cfg(feature = "ndarray")]
        ("ndarray", _) => job.run::<burn::backend::NdArray<f32>>(Default::default()),
        #[cfg(feature = "cuda")]
        ("cuda", index) => job.run::<burn::backend::Cuda>(gpu::cuda_device(name, index, precision)?),
        #[cfg(feature = "wgpu")]
        ("wgpu", _) => job.run::<burn::backend::Wgpu>(gpu::wgpu_device(name, precision)?),
        (backend, _) => bail!("device `{name}`: {backend} is known by name, but no backend stands for it"),
    }
}

/// Work that is generic over the GPU's backend.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub trait GpuJob {
    /// What comes out.
    type Output;

    /// Runs on one device.
    ///
    /// # Errors
    /// Whatever the job's own errors are.
    fn run<B: awq_core::kernel::cube::GpuBackend>(self, device: B::Device) -> anyhow::Result<Self::Output>;
}

/// Runs a job on the GPU that `name` stands for.
///
/// # Errors
/// As [`run_on`], and a name that is no GPU's.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub fn run_on_gpu<J: GpuJob>(name: &str, precision: FloatType, job: J) -> anyhow::Result<J::Output> {
    check(name, precision)?;
    match split(name)? {
        #[cfg(feature = "cuda")]
        ("cuda", index) => job.run::<burn::backend::Cuda>(gpu::cuda_device(name, index, precision)?),
        #[cfg(feature = "wgpu")]
        ("wgpu", _) => job.run::<burn::backend::Wgpu>(gpu::wgpu_device(name, precision)?),
        _ => bail!("device `{name}` is no GPU"),
    }
}

/// A backend by the name of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What files and the command line call it.
    pub name: &'static str,
    /// Whether this program was built with it.
    pub is_built: bool,
    /// What it is.
    pub about: &'static str,
}

/// Every backend.
pub const BACKENDS: [Backend; 4] = [
    Backend {
        name: "flex",
        is_built: cfg!(feature = "flex"),
        about: "the CPU, burn's default backend and the fast one",
    },
    Backend { name: "ndarray", is_built: cfg!(feature = "ndarray"), about: "the CPU, an independent second backend" },
    Backend { name: "cuda", is_built: cfg!(feature = "cuda"), about: "NVIDIA GPUs; cuda:N is the one of that number" },
    Backend {
        name: "wgpu",
        is_built: cfg!(feature = "wgpu"),
        about: "other GPUs, through Vulkan, Metal or DirectX 12",
    },
];

/// Names of the CPU elsewhere, for which this program has `flex`.
const CPU_ELSEWHERE: [&str; 2] = ["cpu", "host"];

/// Checks the name alone: that it stands for a backend, and that a precision of its own suits it.
///
/// # Errors
/// A name that is unknown, with the nearest one, and a CPU that is to store something else than `f32`.
pub fn check_name(name: &str, precision: FloatType) -> anyhow::Result<()> {
    let (backend, _index) = split(name)?;
    if !BACKENDS.iter().any(|known| known.name == backend) {
        let meant = nearest(backend).map_or_else(String::new, |known| format!(" (did you mean {known}?)"));
        bail!("device `{name}` is unknown; use flex, ndarray, cuda, cuda:N or wgpu{meant}");
    }
    if is_cpu(backend) {
        ensure!(
            precision.is_f32(),
            "device `{name}` stores f32 only, not {}; remove `precision`, or set `arithmetic = \"bf16\"` where products \
             may be rounded",
            precision.name()
        );
    }
    Ok(())
}

/// Whether a device of this name is the CPU.
pub fn is_cpu(name: &str) -> bool {
    matches!(name, "flex" | "ndarray")
}

/// Checks that devices are of one backend: numbers of two are not the same bits, and rows of a table are compared.
///
/// # Errors
/// Two that are not.
pub fn check_one_backend(names: &[String]) -> anyhow::Result<()> {
    let backend = |name: &str| split(name).map(|(backend, _)| backend.to_owned());
    let Some((first, others)) = names.split_first() else { return Ok(()) };
    for other in others {
        ensure!(
            backend(first)? == backend(other)?,
            "--devices {first},{other}: their numbers differ in last bits, and cells are compared; give devices of one kind"
        );
    }
    Ok(())
}

/// Checks that this program was built with the device, whose name is sound.
///
/// # Errors
/// A backend that it was built without.
pub fn check_built(name: &str) -> anyhow::Result<()> {
    let (backend, _index) = split(name)?;
    ensure!(
        BACKENDS.iter().any(|known| known.name == backend && known.is_built),
        "device `{name}`: this program was built without it; build with `--features {backend}`"
    );
    Ok(())
}

/// Checks that this program has the device, that the machine has what it needs, and that it stores `precision`, before any
/// work.
///
/// # Errors
/// As [`run_on`].
pub fn check(name: &str, precision: FloatType) -> anyhow::Result<()> {
    check_name(name, precision)?;
    check_built(name)?;
    match split(name)? {
        #[cfg(feature = "cuda")]
        ("cuda", index) => gpu::probe_cuda(name, index),
        #[cfg(feature = "wgpu")]
        ("wgpu", _) => gpu::probe_wgpu(),
        _ => Ok(()),
    }
}

/// The backend that `wrong` is a slip of: another case, two letters, or another program's name for the CPU.
fn nearest(wrong: &str) -> Option<&'static str> {
    let wrong = wrong.to_lowercase();
    if CPU_ELSEWHERE.contains(&wrong.as_str()) {
        return Some("flex");
    }
    let same_start = |known: &str| known.chars().next() == wrong.chars().next();
    let candidates = BACKENDS.iter().map(|known| known.name).filter(|known| same_start(known));
    candidates
        .map(|known| (strsim::levenshtein(known, &wrong), known))
        .filter(|(slips, _)| *slips <= 2)
        .min()
        .map(|it| it.1)
}

fn split(name: &str) -> anyhow::Result<(&str, usize)> {
    let Some((backend, index)) = name.split_once(':') else { return Ok((name, 0)) };
    if !BACKENDS.iter().any(|known| known.name == backend) {
        // Its number is the smaller mistake.
        return Ok((backend, 0));
    }
    ensure!(backend == "cuda", "device `{name}`: only cuda devices are numbered; use `{backend}`");
    let index = index
        .parse()
        .map_err(|_| anyhow::anyhow!("device `{name}`: `{index}` is not a device number; use cuda:0, cuda:1, ..."))?;
    Ok((backend, index))
}

/// CPU threads that a run gets: as many as were asked for, or all cores.
pub fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Sets the number of CPU threads (all cores by default) for everything that runs afterwards, and returns what is in use.
/// Results do not depend on it.
pub fn set_threads(threads: Option<usize>) -> usize {
    let threads = self::threads(threads);
    // A second call in one process (tests) finds the pool running; its size is then what it was.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    use awq_core::arithmetic::FloatType;

    use super::{check, check_name};

    #[test]
    fn names_are_checked_without_a_device() {
        assert!(check("flex", FloatType::F32).is_ok());
        let error = |name| check(name, FloatType::F32).expect_err("must be refused").to_string();
        assert_eq!(error("gpu"), "device `gpu` is unknown; use flex, ndarray, cuda, cuda:N or wgpu");
        assert_eq!(error("flex:1"), "device `flex:1`: only cuda devices are numbered; use `flex`");
        assert_eq!(error("cuda:x"), "device `cuda:x`: `x` is not a device number; use cuda:0, cuda:1, ...");
        #[cfg(not(feature = "cuda"))]
        assert_eq!(error("cuda:1"), "device `cuda:1`: this program was built without it; build with `--features cuda`");
    }

    #[test]
    fn the_nearest_name_is_offered() {
        let error = |name| check_name(name, FloatType::F32).expect_err("must be refused").to_string();
        for (name, meant) in [
            ("flx", "flex"),
            ("Flex", "flex"),
            ("ndarry", "ndarray"),
            ("CUDA:1", "cuda"),
            ("cdua", "cuda"),
            ("cpu", "flex"),
        ] {
            let expected =
                format!("device `{name}` is unknown; use flex, ndarray, cuda, cuda:N or wgpu (did you mean {meant}?)");
            assert_eq!(error(name), expected);
        }
        for known in ["flex", "ndarray", "cuda", "cuda:7", "wgpu"] {
            assert!(check_name(known, FloatType::F32).is_ok(), "{known}");
        }
    }

    #[test]
    fn a_cpu_stores_f32_only() {
        for device in ["flex", "ndarray"] {
            let error = check(device, FloatType::F16).expect_err("must be refused").to_string();
            let expected = format!(
                "device `{device}` stores f32 only, not f16; remove `precision`, or set `arithmetic = \"bf16\"` where \
                 products may be rounded"
            );
            assert_eq!(error, expected);
        }
    }
}

//! From a device's name to a burn backend: the one place in this program that names backends.

use anyhow::{bail, ensure};
use awq_core::backend::QuantBackend;

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

/// Runs a job on the device that `name` stands for: `flex`, `ndarray`, `cuda`, `cuda:N` or `wgpu`.
///
/// # Errors
/// A name that is unknown, a backend that this program was built without, or one that the machine lacks; each says what to do.
pub fn run_on<J: DeviceJob>(name: &str, job: J) -> anyhow::Result<J::Output> {
    check(name)?;
    match split(name)? {
        #[cfg(feature = "flex")]
        ("flex", _) => job.run::<burn::backend::Flex>(Default::default()),
        #[cfg(feature = "ndarray")]
        ("ndarray", _) => job.run::<burn::backend::NdArray<f32>>(Default::default()),
        #[cfg(feature = "cuda")]
        ("cuda", index) => job.run::<burn::backend::Cuda<f32>>(burn::backend::cuda::CudaDevice::new(index)),
        #[cfg(feature = "wgpu")]
        ("wgpu", _) => job.run::<burn::backend::Wgpu>(Default::default()),
        (backend, _) => bail!("device `{name}`: {backend} is known by name, but no backend stands for it"),
    }
}

/// Checks that this program has the device and, for CUDA, that the machine has a driver, before any work.
///
/// # Errors
/// As [`run_on`].
pub fn check(name: &str) -> anyhow::Result<()> {
    let (backend, _) = split(name)?;
    let built_in = [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    match built_in.iter().find(|(known, _)| *known == backend) {
        None => bail!("device `{name}` is unknown; use flex, ndarray, cuda, cuda:N or wgpu"),
        Some((_, false)) => {
            bail!("device `{name}`: this program was built without it; build with `--features {backend}`")
        }
        #[cfg(feature = "cuda")]
        Some(("cuda", _)) => probe_cuda(),
        Some(_) => Ok(()),
    }
}

fn split(name: &str) -> anyhow::Result<(&str, usize)> {
    let Some((backend, index)) = name.split_once(':') else { return Ok((name, 0)) };
    ensure!(backend == "cuda", "device `{name}`: only cuda devices are numbered; use `{backend}`");
    let index = index
        .parse()
        .map_err(|_| anyhow::anyhow!("device `{name}`: `{index}` is not a device number; use cuda:0, cuda:1, ..."))?;
    Ok((backend, index))
}

/// burn-cuda panics where no driver is installed: look for it first.
#[cfg(feature = "cuda")]
fn probe_cuda() -> anyhow::Result<()> {
    let library = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
    // SAFETY: loading the driver library runs its initialisers only; it is the library that burn-cuda loads next.
    #[allow(unsafe_code, reason = "a dynamic library can only be probed by loading it")]
    let found = library.iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok());
    ensure!(found, "device `cuda`: no NVIDIA driver (libcuda) on this machine; use --device flex");
    Ok(())
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
    use super::check;

    #[test]
    fn names_are_checked_without_a_device() {
        assert!(check("flex").is_ok());
        let error = |name| check(name).expect_err("must be refused").to_string();
        assert_eq!(error("gpu"), "device `gpu` is unknown; use flex, ndarray, cuda, cuda:N or wgpu");
        assert_eq!(error("flex:1"), "device `flex:1`: only cuda devices are numbered; use `flex`");
        assert_eq!(error("cuda:x"), "device `cuda:x`: `x` is not a device number; use cuda:0, cuda:1, ...");
        #[cfg(not(feature = "cuda"))]
        assert_eq!(error("cuda:1"), "device `cuda:1`: this program was built without it; build with `--features cuda`");
    }
}

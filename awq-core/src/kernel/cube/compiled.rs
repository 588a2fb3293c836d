//! Where CubeCL keeps what it compiles and what it finds out about which kernel is fastest.
//!
//! Without a word from us it keeps no compiled kernel, and every process of a CUDA machine compiles each anew, a second a kernel.
//! What it keeps it finds again by a kernel's name and settings alone: not by the kernel's source, nor by the device or the
//! compiler. A folder is therefore for one of each, and whoever names it sees to that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_cubecl::cubecl::config::autotune::AutotuneConfig;
use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::compilation::CompilationConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};

/// What became of the wish to keep kernels in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// They are kept there.
    There,
    /// A configuration of CubeCL's own, in the current folder or above it, says where, and is followed as it stands.
    AsConfigured(PathBuf),
    /// A device of this process was in use already.
    TooLate,
}

/// Has compiled kernels (CUDA alone: other devices' drivers keep their own) and results of tuning kept in `folder`, which must be
/// one for this device, its compiler and this program's kernels. Before the first use of a device.
pub fn keep_compiled(folder: &Path) -> Kept {
    if let Some(file) = std::env::current_dir().ok().and_then(|current| configuration(&current)) {
        return Kept::AsConfigured(file);
    }
    let mut in_use = CubeClRuntimeConfig::storage().lock();
    if in_use.is_some() {
        return Kept::TooLate;
    }
    let cache = || CacheConfig::File(folder.to_owned());
    let config = CubeClRuntimeConfig {
        compilation: CompilationConfig { cache: Some(cache()), ..Default::default() },
        autotune: AutotuneConfig { cache: cache(), ..Default::default() },
        ..Default::default()
    };
    *in_use = Some(Arc::new(config.override_from_env()));
    Kept::There
}

/// CubeCL's list of the kernels that are kept in a folder, a line each: those of CUDA.
pub fn list_of_kernels(folder: &Path) -> Option<PathBuf> {
    let of_versions = std::fs::read_dir(folder.join("cuda")).ok()?;
    of_versions.flatten().map(|version| version.path().join("ptx/toc.json.log")).find(|list| list.is_file())
}

/// The file that CubeCL would read: the nearest of those that it looks for.
fn configuration(current: &Path) -> Option<PathBuf> {
    current.ancestors().find_map(|folder| {
        let whole = CubeClRuntimeConfig::file_names().iter().map(|name| folder.join(name)).find(|path| path.is_file());
        whole.or_else(|| {
            let section = |(name, section): &(&str, &str)| {
                let path = folder.join(name);
                CubeClRuntimeConfig::from_section_file_path(&path, section).is_ok().then_some(path)
            };
            CubeClRuntimeConfig::section_file_names().iter().find_map(section)
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_configuration_is_found() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        // What may lie above the temporary folder is none of ours.
        let above = configuration(root.path());
        assert_eq!(configuration(&inner), above);
        let burn = root.path().join("burn.toml");
        std::fs::write(&burn, "[fusion]\n").unwrap();
        assert_eq!(configuration(&inner), above, "a file of burn's without a section for CubeCL");
        std::fs::write(&burn, "[cubecl.autotune]\nlevel = \"minimal\"\n").unwrap();
        assert_eq!(configuration(&inner), Some(burn));
        let nearer = root.path().join("a/cubecl.toml");
        std::fs::write(&nearer, "").unwrap();
        assert_eq!(configuration(&inner), Some(nearer));
    }
}

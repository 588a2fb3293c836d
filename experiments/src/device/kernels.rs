//! Where what is compiled for a GPU is kept: `gpu/CARD/SOURCES` in the cache of assets, for CubeCL tells apart neither cards nor
//! compilers nor versions of a kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use awq_core::kernel::cube::compiled::{Kept, keep_compiled, list_of_kernels};

use crate::assets::{AssetSettings, cannot_write};
use crate::progress::kernels::watch;

/// 16 hex digits that change with the sources of kernels and of what makes them.
const SOURCES: &str = env!("AWQ_BUILD_KERNEL_SOURCES");

/// File of a folder whose time says when a program last used it.
const USED: &str = "used";

/// A folder that no program has used for so long is removed.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Of this process: CubeCL takes one place a process.
static KEPT: Mutex<Option<Kernels>> = Mutex::new(None);

struct Kernels {
    folder: PathBuf,
    is_new: bool,
    kept: Kept,
}

/// Has kernels, and what tuning finds, kept for devices such as `card`, e.g. `NVIDIA H200 sm_90 NVRTC 13.0`. Before the first use
/// of a device.
///
/// # Errors
/// A cache that cannot be written, and a process that keeps kernels of another card.
pub(super) fn keep(device: &str, card: &str) -> anyhow::Result<()> {
    let cache = AssetSettings::cache_from_env()?.join("gpu");
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kernels) = &*kept {
        ensure!(
            kernels.folder == folder_of(&cache, card),
            "device `{device}` is a {card}, and this process has kernels of another card ({}); use a process for each kind of card",
            kernels.folder.display()
        );
        return Ok(());
    }
    let (folder, is_new) = prepare(&cache, card)?;
    let is_kept = keep_compiled(&folder);
    if is_kept == Kept::There {
        let watched = folder.clone();
        watch(move || list_of_kernels(&watched).map_or(0, |list| n_lines(&list)));
    }
    *kept = Some(Kernels { folder, is_new, kept: is_kept });
    Ok(())
}

/// What to say before the work: where kernels are kept, if they have to be compiled or the user has decided it.
pub(super) fn note() -> Option<String> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let Kernels { folder, is_new, kept } = kept.as_ref()?;
    match kept {
        Kept::There => is_new.then(|| {
            format!(
                "the GPU's kernels are compiled as they are first used: this run takes longer than the next, which finds them in {}",
                folder.display()
            )
        }),
        Kept::AsConfigured(file) => Some(format!("the GPU's kernels are kept as {} says", file.display())),
        Kept::TooLate => None,
    }
}

/// The folder for a card, which is there afterwards, and whether it is new. Those of programs of long ago are removed.
fn prepare(cache: &Path, card: &str) -> anyhow::Result<(PathBuf, bool)> {
    let folder = folder_of(cache, card);
    let used = folder.join(USED);
    let is_new = !used.exists();
    let marked = fs::create_dir_all(&folder).and_then(|()| fs::write(&used, ""));
    marked.with_context(|| cannot_write(&folder))?;
    for other in folder.parent().and_then(|of_card| of_card.read_dir().ok()).into_iter().flatten().flatten() {
        let used = fs::metadata(other.path().join(USED)).and_then(|file| file.modified()).ok();
        let unused = used.and_then(|used| SystemTime::now().duration_since(used).ok());
        if unused.is_some_and(|unused| unused > UNUSED) {
            // What cannot be removed does no harm.
            let _ = fs::remove_dir_all(other.path());
        }
    }
    Ok((folder, is_new))
}

fn folder_of(cache: &Path, card: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    cache.join(card.chars().map(plain).collect::<String>()).join(SOURCES)
}

fn n_lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_is_for_one_card_and_those_of_long_ago_go() {
        let cache = tempfile::tempdir().unwrap();
        let (folder, is_new) = prepare(cache.path(), "NVIDIA H200/x sm_90 NVRTC 13.0").unwrap();
        assert!(is_new);
        assert_eq!(folder, cache.path().join("NVIDIA-H200-x-sm_90-NVRTC-13.0").join(SOURCES));
        assert!(!prepare(cache.path(), "NVIDIA H200/x sm_90 NVRTC 13.0").unwrap().1);

        let beside = |name: &str, days: u64| {
            let other = folder.with_file_name(name);
            fs::create_dir(&other).unwrap();
            let used = fs::File::create(other.join(USED)).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60)).unwrap();
            other
        };
        let (old, young) = (beside("old", 40), beside("young", 20));
        prepare(cache.path(), "NVIDIA H200/x sm_90 NVRTC 13.0").unwrap();
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("file"), "").unwrap();
        let error = prepare(&cache.path().join("file"), "card").unwrap_err().to_string();
        assert!(error.ends_with("cannot write; free space there or set AWQ_CACHE to another folder"), "{error}");
    }
}

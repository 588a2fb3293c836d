//! [`MemoryLimit`]: how much memory a run may take.

use std::path::Path;

use crate::config::Memory;
use crate::provenance::machine::{available_memory_bytes, resident_bytes};

/// The share of free memory that a run takes without being told: what is estimated may be more.
const SHARE: f64 = 0.9;

/// Memory that a run may take. It changes no result: hidden states beyond it go to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// Whether somebody asked for it: then it is kept, or the run refused.
    pub is_asked: bool,
}

impl MemoryLimit {
    /// What is asked for; else nine tenths of what is free.
    pub fn new(asked: Option<&Memory>) -> Self {
        match asked {
            Some(memory) => Self { bytes: memory.bytes() as u64, is_asked: true },
            None => Self { bytes: (free_bytes() as f64 * SHARE) as u64, is_asked: false },
        }
    }
}

/// What this process has and could have: of the machine, and of the groups of processes (cgroups) that it is in, as containers and SLURM
/// set them. All of the address space where the system does not tell.
fn free_bytes() -> u64 {
    let of_machine = available_memory_bytes().map(|available| available.saturating_add(resident_bytes()));
    let of_groups = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|groups| {
        group_limit(&groups, Path::new("/sys/fs/cgroup"), "memory.max").or_else(|| {
            let of_memory = groups.lines().find(|line| line.split(':').nth(1) == Some("memory"))?;
            group_limit(of_memory, Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        })
    });
    of_machine.into_iter().chain(of_groups).min().unwrap_or(u64::MAX)
}

/// The least limit of the groups of `lines` (`0::/a/b`) and of those around them, in `file` below `root`.
fn group_limit(lines: &str, root: &Path, file: &str) -> Option<u64> {
    let folders = lines.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| {
        let own = Path::new(path.trim_start_matches('/'));
        own.ancestors().map(|folder| root.join(folder).join(file)).collect::<Vec<_>>()
    });
    // Without a limit: `max`, or a number beyond all memory.
    folders.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_asked_for_is_the_limit() {
        let asked = MemoryLimit::new(Some(&"3G".parse().unwrap()));
        assert_eq!(asked, MemoryLimit { bytes: 3 << 30, is_asked: true });
        let free = MemoryLimit::new(None);
        assert!(!free.is_asked && free.bytes > 1 << 20, "{free:?}");
    }

    /// A job of SLURM: the limit stands at the job, and its step has none of its own.
    #[test]
    fn the_least_limit_of_all_groups_around_counts() {
        let root = tempfile::tempdir().unwrap();
        let step = root.path().join("slurm/job_7/step_0");
        std::fs::create_dir_all(&step).unwrap();
        std::fs::write(step.join("memory.max"), "max\n").unwrap();
        std::fs::write(root.path().join("slurm/job_7/memory.max"), "4294967296\n").unwrap();
        std::fs::write(root.path().join("slurm/memory.max"), "8589934592\n").unwrap();
        let limit = |groups| group_limit(groups, root.path(), "memory.max");
        assert_eq!(limit("0::/slurm/job_7/step_0\n"), Some(4 << 30));
        assert_eq!(limit("0::/slurm\n"), Some(8 << 30));
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("0::/../other\n"), None);
    }
}

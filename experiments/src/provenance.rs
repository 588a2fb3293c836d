//! With what a record was made: commit, lock file, build, machine, asset hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::assets::hex;

/// Everything needed to make the same number again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Commit of the source tree when the run began; `unknown` outside a checkout.
    pub commit: String,
    /// Whether the tree had uncommitted changes.
    pub dirty: bool,
    /// sha256 of Cargo.lock at build time.
    pub lock_sha256: String,
    /// Version of this program.
    pub version: String,
    /// Cargo profile it was built with.
    pub profile: String,
    /// Backend and device, as asked for.
    pub device: String,
    /// Threads used.
    pub threads: usize,
    /// CPU model name and instruction sets that choose a code path.
    pub cpu: String,
    /// Operating system and architecture.
    pub platform: String,
    /// When the record was written, seconds since the Unix epoch.
    pub unix_time: u64,
    /// sha256 of each asset used, by name.
    pub assets: BTreeMap<String, String>,
}

/// Instruction sets that choose a code path somewhere below us, as /proc/cpuinfo spells them.
const CPU_FLAGS: [&str; 7] = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"];

impl Provenance {
    /// What is known now, at run time, of the program and the machine. Nothing here can fail: what cannot be found out
    /// is `unknown`.
    pub fn collect(device: &str, threads: usize, assets: BTreeMap<String, String>) -> Self {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            commit: tree().commit.clone(),
            dirty: tree().dirty,
            lock_sha256: lock_sha256(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            device: device.to_owned(),
            threads,
            cpu: describe_cpu(&cpu_info),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            unix_time: since_epoch.as_secs(),
            assets,
        }
    }
}

/// State of the source tree.
#[derive(Debug)]
pub struct Tree {
    commit: String,
    dirty: bool,
}

/// The source tree as it was when this was first asked, early in the life of a process: a long run must not be recorded
/// under commits that were made while it ran.
pub fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| Tree {
        commit: git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned()),
        // Files that git does not track are left out: results of the run itself would make every tree dirty.
        dirty: git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changed| !changed.is_empty()),
    })
}

/// Most memory that this process has held so far, in bytes; 0 where the system does not tell.
pub fn peak_resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| peak_of(&status)).unwrap_or(0)
}

/// The line `VmHWM:   123 kB` of /proc/self/status, in bytes.
fn peak_of(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Output of a git command in the tree that this program was built from; nothing if that tree or git is gone.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// sha256 of the lock file as it was when this program was built.
fn lock_sha256() -> String {
    hex(Sha256::new_with_prefix(include_str!("../../Cargo.lock")))
}

/// Model name and those of [`CPU_FLAGS`] that the processor has, e.g. `Some CPU @ 2.00GHz (avx2 avx512f)`.
fn describe_cpu(cpu_info: &str) -> String {
    let value_of = |key: &str| {
        let of_line = |line: &str| {
            line.split_once(':').filter(|(own, _)| own.trim() == key).map(|(_, value)| value.trim().to_owned())
        };
        cpu_info.lines().find_map(of_line)
    };
    let model = value_of("model name").unwrap_or_else(|| "unknown".to_owned());
    let flags = value_of("flags").unwrap_or_default();
    let has: BTreeSet<&str> = flags.split_whitespace().collect();
    let known: Vec<&str> = CPU_FLAGS.into_iter().filter(|flag| has.contains(flag)).collect();
    if known.is_empty() { model } else { format!("{model} ({})", known.join(" ")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_processor_is_described_by_what_matters() {
        let info = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 amx_tile avx512f_not\n\nmodel name\t: Other";
        assert_eq!(describe_cpu(info), "Some CPU (avx2 amx_tile)");
        assert_eq!(describe_cpu("model name : Plain"), "Plain");
        assert_eq!(describe_cpu(""), "unknown");
    }

    #[test]
    fn the_peak_is_read_in_bytes() {
        assert_eq!(peak_of("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2048 * 1024));
        assert_eq!(peak_of("VmHWM:\t many kB\n"), None);
        assert_eq!(peak_of(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_what_is_held() {
        const HELD: usize = 256 << 20;
        // Seen by the optimiser as used, or it would not be held at all.
        let held = std::hint::black_box(vec![1u8; HELD]);
        assert!(peak_resident_bytes() >= HELD as u64);
        drop(held);
    }

    #[test]
    fn a_record_says_what_it_was_made_with() {
        let assets = BTreeMap::from([("model.gguf".to_owned(), "00".to_owned())]);
        let made = Provenance::collect("flex", 3, assets.clone());
        assert_eq!((made.device.as_str(), made.threads, made.assets), ("flex", 3, assets));
        assert!(made.commit == "unknown" || made.commit.len() == 40, "{}", made.commit);
        assert_eq!(made.lock_sha256.len(), 64);
        assert!(made.unix_time > 1_700_000_000);
    }
}

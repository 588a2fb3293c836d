//! What can be found out about the machine while a run goes on. What the system does not tell is left out or `unknown`.
//!
//! The name of the host is not recorded: it tells a stranger who ran something, and changes no number.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Instruction sets that choose a code path somewhere below us, as /proc/cpuinfo spells them.
const CPU_FLAGS: [&str; 7] = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"];

/// The GPU that a run used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// What the driver calls it; `unknown` where it does not tell.
    pub name: String,
    /// The driver's version; `unknown` where it does not tell.
    pub driver: String,
    /// What compiled its kernels, e.g. `CUDA 13.0`; absent where that is the driver, and from records of before it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolkit: Option<String>,
}

impl Gpu {
    /// Of a device by its name; nothing for a CPU.
    pub(super) fn of(device: &str) -> Option<Self> {
        let backend = device.split(':').next().unwrap_or_default();
        if !["cuda", "wgpu"].contains(&backend) {
            return None;
        }
        let unknown = || "unknown".to_owned();
        let driver = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        Some(Self {
            name: crate::device::gpu_name(device).unwrap_or_else(unknown),
            driver: driver_version(&driver).unwrap_or_else(unknown),
            toolkit: crate::device::gpu_toolkit(device),
        })
    }

    /// `NVIDIA H200, driver 580.95.05, CUDA 13.0`.
    pub fn label(&self) -> String {
        let toolkit = self.toolkit.as_ref().map_or_else(String::new, |toolkit| format!(", {toolkit}"));
        format!("{}, driver {}{toolkit}", self.name, self.driver)
    }
}

/// `580.95.05` of /proc/driver/nvidia/version.
fn driver_version(text: &str) -> Option<String> {
    let module = text.lines().find(|line| line.contains("Kernel Module"))?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    module.split_whitespace().find(is_version).map(str::to_owned)
}

/// Model name and those of [`CPU_FLAGS`] that the processor has, e.g. `Some CPU @ 2.00GHz (avx2 avx512f)`.
pub(crate) fn cpu() -> String {
    describe_cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

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

/// Memory of the machine in bytes.
pub(super) fn memory_bytes() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Memory that the machine could still give, in bytes.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Memory that this process holds, in bytes; 0 where the system does not tell.
pub(crate) fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| kib_of(&status, "VmRSS:")).unwrap_or(0)
}

/// Most memory that this process has held so far, in bytes; 0 where the system does not tell.
pub fn peak_resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| kib_of(&status, "VmHWM:")).unwrap_or(0)
}

/// The line `VmHWM:   123 kB` of a file in /proc, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Environment variable of a process that does a part of a command's work: that command, a list of words in JSON.
pub(crate) const WHOLE_COMMAND: &str = "AWQ_WHOLE_COMMAND";

/// The words of the command, without the folder of the program, and with `~` for the user's home folder.
pub(crate) fn command() -> Vec<String> {
    if let Some(words) = std::env::var(WHOLE_COMMAND).ok().and_then(|json| serde_json::from_str(&json).ok()) {
        return words;
    }
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let home = std::env::home_dir().filter(|home| home.parent().is_some());
    shown_command(words, home.as_deref())
}

fn shown_command(words: impl Iterator<Item = String>, home: Option<&Path>) -> Vec<String> {
    let home = home.map(|home| home.to_string_lossy().trim_end_matches('/').to_owned());
    let shown = |(index, word): (usize, String)| match &home {
        _ if index == 0 => Path::new(&word).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Some(home) => without_home(&word, home),
        None => word,
    };
    words.enumerate().map(shown).collect()
}

/// `~/x` for `/home/me/x`, and `--out=~/x` for `--out=/home/me/x`; `/home/mean` is no part of `/home/me`.
fn without_home(word: &str, home: &str) -> String {
    let mut pieces = word.split(home);
    let mut shown = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let ends_here = piece.is_empty() || piece.starts_with(['/', ':', ',']);
        shown += if ends_here { "~" } else { home };
        shown += piece;
    }
    shown
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
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n";
        assert_eq!(kib_of(status, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(kib_of("VmHWM:\t many kB\n", "VmHWM:"), None);
        assert_eq!(kib_of("", "VmHWM:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_what_is_held() {
        const HELD: usize = 256 << 20;
        // Seen by the optimiser as used, or it would not be held at all.
        let held = std::hint::black_box(vec![1u8; HELD]);
        assert!(peak_resident_bytes() >= HELD as u64);
        assert!(memory_bytes().unwrap() >= HELD as u64);
        drop(held);
    }

    #[test]
    fn the_driver_is_read_from_what_the_kernel_says() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder@host)  Tue\n\
                    GCC version:  gcc version 12.3.0\n";
        assert_eq!(driver_version(open).as_deref(), Some("580.95.05"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54  Thu Jul\n";
        assert_eq!(driver_version(closed).as_deref(), Some("535.54"));
        assert_eq!(driver_version(""), None);
        assert_eq!(Gpu::of("flex"), None);
        let gpu = Gpu { name: "NVIDIA H200".into(), driver: "580.95.05".into(), toolkit: Some("CUDA 13.0".into()) };
        assert_eq!(gpu.label(), "NVIDIA H200, driver 580.95.05, CUDA 13.0");
        assert_eq!(Gpu { toolkit: None, ..gpu }.label(), "NVIDIA H200, driver 580.95.05");
    }

    #[test]
    fn a_command_names_no_home_folder() {
        let words =
            ["/home/me/bin/experiments", "run", "/home/me/x.toml", "--out=/home/me", "/home/mean", "/a:/home/me/b"];
        let shown = shown_command(words.map(str::to_owned).into_iter(), Some(Path::new("/home/me/")));
        assert_eq!(shown, ["experiments", "run", "~/x.toml", "--out=~", "/home/mean", "/a:~/b"]);
    }
}

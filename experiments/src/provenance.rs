//! With what a record was made: the program as it was built, the machine as it is, and hashes of the assets.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub(crate) mod build;
pub(crate) mod machine;

pub use self::build::Build;
pub use self::machine::{Gpu, peak_resident_bytes};

/// Everything needed to make the same number again. What is optional is missing from records of before it was known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Commit of the sources that the program was built from; `unknown` where they were in no checkout.
    pub commit: String,
    /// Whether sources differed from that commit; absent where there was none to compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty: Option<bool>,
    /// sha256 of Cargo.lock at build time.
    pub lock_sha256: String,
    /// Version of this program.
    pub version: String,
    /// Cargo profile it was built with.
    pub profile: String,
    /// Compiler and target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Backend and device, as asked for.
    pub device: String,
    /// The GPU, where it ran on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Threads used.
    pub threads: usize,
    /// CPU model name and instruction sets that choose a code path.
    pub cpu: String,
    /// Memory of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub platform: String,
    /// The command, a word an entry, with `~` for the home folder. No secret is ever part of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// When the record was written, seconds since the Unix epoch.
    pub unix_time: u64,
    /// sha256 of each asset used, by name.
    pub assets: BTreeMap<String, String>,
}

impl Provenance {
    /// What is known of the program and the machine. Nothing here can fail: what cannot be found out is `unknown` or absent.
    pub fn collect(device: &str, threads: usize, assets: BTreeMap<String, String>) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            commit: build::COMMIT.to_owned(),
            dirty: build::dirty(),
            lock_sha256: build::lock_sha256(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: build::PROFILE.to_owned(),
            build: Some(Build::of_this_program()),
            device: device.to_owned(),
            gpu: Gpu::of(device),
            threads,
            cpu: machine::cpu(),
            memory_bytes: machine::memory_bytes(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            command: machine::command(),
            unix_time: since_epoch.as_secs(),
            assets,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_says_what_it_was_made_with() {
        let assets = BTreeMap::from([("model.gguf".to_owned(), "00".to_owned())]);
        let made = Provenance::collect("flex", 3, assets.clone());
        assert_eq!((made.device.as_str(), made.threads, &made.assets, &made.gpu), ("flex", 3, &assets, &None));
        assert!(made.commit == "unknown" || made.commit.len() == 40, "{}", made.commit);
        assert_eq!(made.commit == "unknown", made.dirty.is_none());
        assert_eq!(made.lock_sha256.len(), 64);
        assert!(made.unix_time > 1_700_000_000);
        let json = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Provenance>(&json).unwrap(), made);
    }

    #[test]
    fn records_of_before_are_read() {
        let old = r#"{"commit":"0a","dirty":false,"lock_sha256":"1b","version":"0.1.0","profile":"release","device":"flex",
            "threads":2,"cpu":"Some CPU","platform":"linux x86_64","unix_time":1,"assets":{}}"#;
        let read: Provenance = serde_json::from_str(old).unwrap();
        assert_eq!((read.dirty, read.build, read.memory_bytes, read.command), (Some(false), None, None, vec![]));
    }
}

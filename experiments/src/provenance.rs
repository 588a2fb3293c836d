//! With what a record was made: commit, lock file, build, machine, asset hashes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything needed to make the same number again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Commit of the source tree; `unknown` outside a checkout.
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

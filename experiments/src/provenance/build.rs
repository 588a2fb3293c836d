//! What this program was built from and for, embedded by the build script: true of the program wherever it is carried, and
//! whatever becomes of the checkout.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::assets::hex;

/// Commit of the sources, `unknown` where they were in no checkout.
pub(super) const COMMIT: &str = env!("AWQ_BUILD_COMMIT");

/// Cargo profile.
pub(super) const PROFILE: &str = env!("AWQ_BUILD_PROFILE");

/// See [`Build::quantization_sources`].
pub(crate) const QUANTIZATION_SOURCES: &str = env!("AWQ_BUILD_QUANTIZATION_SOURCES");

/// Compiler and target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// What `rustc --version` says.
    pub rustc: String,
    /// Target triple.
    pub target: String,
    /// What `-C target-cpu` says, else `default`.
    pub target_cpu: String,
    /// Instruction sets that the compiler may use everywhere, separated by commas.
    pub target_features: String,
    /// Features of this crate, separated by commas.
    pub cargo_features: String,
    /// Optimisation of this crate: `0` to `3`, `s`, `z`.
    pub opt_level: String,
    /// 16 hex digits that change with every source that decides what quantization gives for given calibration tokens: of a
    /// tree with changes, the commit does not say them.
    pub quantization_sources: String,
}

impl Build {
    /// Of this program.
    pub(super) fn of_this_program() -> Self {
        Self {
            rustc: env!("AWQ_BUILD_RUSTC").to_owned(),
            target: env!("AWQ_BUILD_TARGET").to_owned(),
            target_cpu: env!("AWQ_BUILD_TARGET_CPU").to_owned(),
            target_features: env!("AWQ_BUILD_TARGET_FEATURES").to_owned(),
            cargo_features: env!("AWQ_BUILD_CARGO_FEATURES").to_owned(),
            opt_level: env!("AWQ_BUILD_OPT_LEVEL").to_owned(),
            quantization_sources: QUANTIZATION_SOURCES.to_owned(),
        }
    }
}

/// Whether sources differed from the commit; nothing where there was no commit to compare with.
pub(super) fn dirty() -> Option<bool> {
    env!("AWQ_BUILD_DIRTY").parse().ok()
}

/// sha256 of the lock file.
pub(super) fn lock_sha256() -> String {
    hex(Sha256::new_with_prefix(include_str!("../../../Cargo.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the checkout that these tests were built in.
    fn git(arguments: &[&str]) -> Option<String> {
        let mut command = std::process::Command::new("git");
        command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").arg("-C").arg(env!("CARGO_MANIFEST_DIR"));
        let output = command.args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    #[test]
    fn the_commit_is_one_of_the_checkout() {
        let Some(prefix) = git(&["rev-parse", "--show-prefix"]) else {
            assert_eq!((COMMIT, dirty()), ("unknown", None));
            return;
        };
        if prefix == "experiments/" {
            assert_eq!(git(&["cat-file", "-t", COMMIT]).as_deref(), Some("commit"), "{COMMIT}");
            assert!(dirty().is_some());
        }
    }

    #[test]
    fn the_build_is_described() {
        let build = Build::of_this_program();
        assert!(build.rustc.starts_with("rustc 1."), "{build:?}");
        assert!(build.target.starts_with(std::env::consts::ARCH), "{build:?}");
        assert_eq!(build.cargo_features.contains("flex"), cfg!(feature = "flex"), "{build:?}");
        assert!(!build.cargo_features.contains("default"), "{build:?}");
        assert_eq!(build.opt_level.len(), 1, "{build:?}");
        assert_eq!(QUANTIZATION_SOURCES.len(), 16);
        assert!(!PROFILE.is_empty());
    }
}

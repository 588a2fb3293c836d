//! Embeds what the program is built from and for, as it is now: a run must not ask a checkout that has moved on since.
//!
//! Everything is optional: where git is missing, or the sources lie outside a checkout of their own, the commit is `unknown`
//! and nothing is said about changes. Read by `src/provenance/build.rs`.
#![allow(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What is compiled into the program, from the root of the workspace.
const SOURCES: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "awq-core/Cargo.toml",
    "awq-core/src",
    "baselines/Cargo.toml",
    "baselines/src",
    "experiments/Cargo.toml",
    "experiments/build.rs",
    "experiments/src",
];

/// Sources of kernels for GPUs, and of what they are made by.
const OF_KERNELS: [&str; 4] = ["Cargo.lock", "Cargo.toml", "awq-core/Cargo.toml", "awq-core/src/kernel"];

/// Sources that decide what quantization gives for given calibration tokens.
const OF_QUANTIZATION: [&str; 3] = ["Cargo.lock", "awq-core/src", "baselines/src"];

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let git = Git::of(&root);
    let (commit, dirty) = git.as_ref().map_or(("unknown".to_owned(), ""), |git| {
        git.watch();
        (git.commit.clone(), if git.has_changes() { "true" } else { "false" })
    });
    let facts = [
        ("COMMIT", commit),
        ("DIRTY", dirty.to_owned()),
        ("RUSTC", rustc_version()),
        ("TARGET", var("TARGET")),
        ("TARGET_CPU", target_cpu(&var("CARGO_ENCODED_RUSTFLAGS"))),
        ("TARGET_FEATURES", var("CARGO_CFG_TARGET_FEATURE")),
        ("CARGO_FEATURES", cargo_features()),
        ("PROFILE", profile(Path::new(&var("OUT_DIR")))),
        ("OPT_LEVEL", var("OPT_LEVEL")),
        ("QUANTIZATION_SOURCES", fingerprint(&root, &OF_QUANTIZATION)),
        ("KERNEL_SOURCES", fingerprint(&root, &OF_KERNELS)),
    ];
    for (name, value) in facts {
        println!("cargo:rustc-env=AWQ_BUILD_{name}={value}");
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// A checkout whose root is the workspace: the commit of another repository around it would say nothing.
struct Git {
    root: PathBuf,
    commit: String,
}

impl Git {
    fn of(root: &Path) -> Option<Self> {
        let root = root.canonicalize().ok()?;
        let git = Self { root, commit: String::new() };
        let top = PathBuf::from(git.ask(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
        let commit = git.ask(&["rev-parse", "HEAD"])?;
        (top == git.root).then_some(Self { commit, ..git })
    }

    /// Output of a git command; nothing where it fails. Variables such as `GIT_DIR` would lead to another repository.
    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("git");
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_")) {
            command.env_remove(name);
        }
        let output = command.arg("--no-optional-locks").arg("-C").arg(&self.root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    }

    /// Whether a source differs from the commit, or is new. What a run writes elsewhere makes no program another one.
    fn has_changes(&self) -> bool {
        let status = self.ask(&[&["status", "--porcelain", "--"][..], &SOURCES].concat());
        status.is_none_or(|changed| !changed.is_empty())
    }

    /// Builds again after a commit, a checkout or a reset, each of which adds a line to HEAD's log. The index is left out:
    /// `git status` alone may write it.
    fn watch(&self) {
        for name in ["HEAD", "logs/HEAD"] {
            let path = self.ask(&["rev-parse", "--git-path", name]).map(|path| self.root.join(path));
            // A file that is missing would make every build a new one.
            if let Some(path) = path.filter(|path| path.exists()) {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
}

/// `rustc 1.91.0 (f8297e351 2025-10-28)`.
fn rustc_version() -> String {
    let output = Command::new(var("RUSTC")).arg("--version").output().ok();
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() }
}

/// The processor that the flags of the compiler name; `default` is the target's own.
fn target_cpu(flags: &str) -> String {
    let mut named = flags.split('\u{1f}').filter_map(|flag| flag.rsplit_once("target-cpu=").map(|(_, cpu)| cpu));
    named.next_back().unwrap_or("default").to_owned()
}

/// `flex,ndarray`.
fn cargo_features() -> String {
    let name = |(name, _): (std::ffi::OsString, _)| {
        name.to_str()?.strip_prefix("CARGO_FEATURE_").map(|feature| feature.to_lowercase().replace('_', "-"))
    };
    let names: BTreeSet<String> = env::vars_os().filter_map(name).filter(|name| name != "default").collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

/// The folder of the profile: `release`, `debug`, or a profile's own name. `PROFILE` knows but two.
fn profile(out_dir: &Path) -> String {
    let folder = out_dir.ancestors().nth(3).and_then(Path::file_name);
    folder.map_or_else(|| var("PROFILE"), |name| name.to_string_lossy().into_owned())
}

/// 16 hex digits that change with any of these files.
fn fingerprint(root: &Path, sources: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    for source in sources {
        hash(&root.join(source), &mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn hash(path: &Path, hasher: &mut DefaultHasher) {
    path.file_name().hash(hasher);
    let Ok(entries) = fs::read_dir(path) else {
        fs::read(path).ok().hash(hasher);
        return;
    };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.iter().for_each(|entry| hash(entry, hasher));
}

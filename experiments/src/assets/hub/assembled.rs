//! A model of the hub without the hub: all its files pinned, and all of them in asset folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use awq_core::open::check_config;

use super::super::folder::{self, CONFIG};
use super::super::hashing::{Hashes, is_sha256, sha256_of};
use super::super::search::AssetFolders;
use super::super::{LocatedModel, Partial};
use super::layout::{link_or_copy, stands_for};
use crate::config::sources::HubModel;

/// A folder of links to files of the asset folders, if `model` pins all files of a model and all of them are there. A
/// `config.json` of a model that cannot be read is an error before any weights are searched.
///
/// # Errors
/// A model of an unknown kind, files that cannot be read, a cache that cannot be written.
pub(super) fn model(
    model: &HubModel,
    folders: &AssetFolders,
    cache: &Path,
    hashes: &Hashes,
) -> anyhow::Result<Option<LocatedModel>> {
    let is_pinned = |name: &str| model.sha256.contains_key(name);
    if folder::first_weights(is_pinned).is_none() || folder::missing(is_pinned).is_some() {
        return Ok(None);
    }
    let mut pinned: Vec<(&String, &String)> = model.sha256.iter().collect();
    pinned.sort_by_key(|(name, _)| *name != CONFIG);
    let mut found: Vec<(&String, PathBuf)> = Vec::new();
    for (name, sha256) in pinned {
        ensure!(is_sha256(sha256), "{}: sha256 of `{name}` is not 64 hexadecimal digits in lower case", model.repo);
        let Some(path) = folders.find(name, sha256, hashes)? else { return Ok(None) };
        if name == CONFIG {
            check(&path, cache).with_context(|| model.repo.clone())?;
        }
        found.push((name, path));
    }
    found.sort();
    let listing: String = found.iter().map(|(name, path)| format!("{name} {}\n", path.display())).collect();
    let target = cache.join("assembled").join(sha256_of(listing.as_bytes()));
    let is_right = |folder: &Path| found.iter().all(|(name, path)| stands_for(&folder.join(name), path));
    if !is_right(&target) {
        let partial = Partial::new(cache)?;
        for (name, path) in &found {
            link(path, &partial.path().join(name))?;
        }
        // Shards that are not pinned are not there: then the hub is asked.
        if folder::complete(partial.path()).is_err() {
            return Ok(None);
        }
        partial.finish(&target, is_right)?;
    }
    Ok(Some(LocatedModel { path: target, hashes: model.sha256.clone() }))
}

/// Whatever the file is called in its folder, it is read as a `config.json`.
fn check(config: &Path, cache: &Path) -> anyhow::Result<()> {
    let alone = Partial::new(cache)?;
    link(config, &alone.path().join(CONFIG))?;
    Ok(check_config(alone.path())?)
}

fn link(path: &Path, link: &Path) -> anyhow::Result<()> {
    let linked = || {
        std::fs::create_dir_all(link.parent().unwrap_or(link))?;
        let path = path.canonicalize()?;
        link_or_copy(&path, &path, link)
    };
    linked().with_context(|| format!("{}: cannot link", link.display()))
}

//! A GGUF file of the hub, with all the parts that it may be in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use awq_core::load::gguf_parts;

use super::Hub;
use super::layout::{CachedRepo, HubRepo};
use crate::assets::LocatedModel;
use crate::assets::hashing::Hashes;
use crate::assets::search::AssetFolders;
use crate::config::sources::HubModel;

impl Hub {
    /// The file called `file`, or all parts that belong to it: from the asset folders where it is a pinned file in one part, else
    /// from the cache, else downloaded. All lie in one folder, under their names.
    ///
    /// # Errors
    /// A pin of another file, and what [`Self::file`] says.
    pub(super) fn gguf(
        &self,
        model: &HubModel,
        file: &str,
        folders: &AssetFolders,
        hashes: &Hashes,
    ) -> anyhow::Result<LocatedModel> {
        let repo = HubRepo::model(&model.repo, &model.revision);
        let names = names(file);
        if let Some(unknown) = model.sha256.keys().find(|name| !names.contains(name)) {
            bail!("{}: key `sha256` pins `{unknown}`, which is no part of `{file}`", model.repo);
        }
        if let ([name], Some(sha256)) = (names.as_slice(), model.sha256.get(file))
            && let Some(path) = folders.find(base_name(name), sha256, hashes)?
        {
            let hashes = BTreeMap::from([(base_name(name).to_owned(), sha256.clone())]);
            return Ok(LocatedModel { path, hashes });
        }
        let mut path: Option<PathBuf> = None;
        let mut located = BTreeMap::new();
        for name in &names {
            let pin = model.sha256.get(name).map(String::as_str);
            let (part, sha256) = self.file(&repo, name, pin, hashes)?;
            path.get_or_insert(part);
            located.insert(base_name(name).to_owned(), sha256);
        }
        let path = path.with_context(|| format!("{}: `{file}` has no parts", model.repo))?;
        Ok(LocatedModel { path, hashes: located })
    }
}

/// Whether all parts are in the cache.
pub(super) fn is_cached(cached: &CachedRepo<'_>, file: &str) -> bool {
    names(file).iter().all(|name| cached.file(name).is_some())
}

/// What the repository calls the parts of `file`.
fn names(file: &str) -> Vec<String> {
    gguf_parts(Path::new(file)).into_iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

fn base_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

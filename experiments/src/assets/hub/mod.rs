//! The Hugging Face hub: its files by way of the cache that Python's `huggingface_hub` shares, verified before use.

mod assembled;
mod client;
mod gguf;
mod layout;
mod refusal;
mod transfer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use awq_core::open::check_config;
use hf_hub::Cache;
use serde::Deserialize;

pub(crate) use self::client::Patience;
pub use self::client::Token;
use self::client::{Client, Failure};
use self::layout::{CachedRepo, HubRepo};
use self::transfer::{Wanted, wrong_pin_error};
use super::LocatedModel;
use super::folder::{self, CONFIG, OPTIONAL};
use super::hashing::{Hashes, is_sha256};
use super::progress::Progress;
use super::search::AssetFolders;
use crate::config::names::is_inside;
use crate::config::sources::HubModel;

/// The hub's address, cache and token.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the content of `HF_TOKEN_PATH`, else of `$HF_HOME/token`.
    pub token: Option<Token>,
}

/// A file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `owner/name`.
    pub repo: String,
    /// Commit hash, or a branch.
    pub revision: String,
    /// Path inside the repository.
    pub file: String,
    /// sha256 of its content; absent where what the hub announces is taken.
    pub sha256: Option<String>,
}

impl HubFile {
    /// A split of a data set as the hub's own converter writes it in Parquet, as far as that fits into one file.
    pub(crate) fn converted(repo: &str, config: &str, split: &str) -> Self {
        Self {
            repo: repo.to_owned(),
            revision: "refs/convert/parquet".to_owned(),
            file: format!("{config}/{split}/0000.parquet"),
            sha256: None,
        }
    }

    /// Last part of the path.
    pub(crate) fn base_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of data set {} at {} from the hub", self.file, self.repo, self.revision)
    }
}

/// The hub, online or only its cache.
#[derive(Debug)]
pub(crate) struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

/// Why a cached file is not the wanted one.
enum Mismatch {
    /// It is not what the hub announced: getting it again helps.
    Damaged(anyhow::Error),
    /// It is what the hub announced, so the pin is wrong.
    WrongPin(anyhow::Error),
    /// The hub announced no sha256 (small files): either.
    Unclear(anyhow::Error),
}

impl Hub {
    /// # Errors
    /// An endpoint that is no address.
    pub(crate) fn new(
        settings: HubSettings,
        offline: bool,
        patience: Patience,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let HubSettings { endpoint, cache, token } = settings;
        let client = Client::new(endpoint, token.as_ref(), patience, progress)?;
        Ok(Self { client, cache: Cache::new(cache), offline })
    }

    /// A file of a data set and its sha256.
    ///
    /// # Errors
    /// See [`Self::file`].
    pub(crate) fn data_file(&self, file: &HubFile, hashes: &Hashes) -> anyhow::Result<(PathBuf, String)> {
        let repo = HubRepo::dataset(&file.repo, &file.revision);
        self.file(&repo, &file.file, file.sha256.as_deref(), hashes)
    }

    /// A model's folder, or its GGUF file: from the asset folders if all its files are pinned, from the cache if it is whole there, else
    /// downloaded, small files first. Nothing follows a `config.json` of a model that cannot be read.
    ///
    /// # Errors
    /// A model of an unknown kind, a repository without the files a model needs, and what [`Self::file`] says.
    pub(crate) fn model(
        &self,
        model: &HubModel,
        folders: &AssetFolders,
        cache: &Path,
        hashes: &Hashes,
    ) -> anyhow::Result<LocatedModel> {
        if let Some(file) = &model.file {
            return self.gguf(model, file, folders, hashes);
        }
        if let Some(assembled) = assembled::model(model, folders, cache, hashes)? {
            return Ok(assembled);
        }
        let repo = HubRepo::model(&model.repo, &model.revision);
        let names = match CachedRepo::new(&self.cache, &repo).snapshot().map(|folder| folder::complete(&folder)) {
            Some(Ok(names)) => names,
            Some(Err(error)) if self.offline => {
                return Err(
                    error.context(format!("{} is not whole in the cache and HF_HUB_OFFLINE is set", model.repo))
                );
            }
            None | Some(Err(_)) => self.wanted_files(&repo, model, hashes)?,
        };
        let mut located = BTreeMap::new();
        let mut path = PathBuf::new();
        for name in names {
            let pin = model.sha256.get(&name).map(String::as_str);
            let (file, sha256) = self.file(&repo, &name, pin, hashes)?;
            path = file.parent().unwrap_or(&file).to_owned();
            located.insert(name, sha256);
        }
        if let Some(unknown) = model.sha256.keys().find(|name| !located.contains_key(*name)) {
            bail!("{}: key `sha256` pins `{unknown}`, which is no file of this model", model.repo);
        }
        folder::complete(&path)?;
        Ok(LocatedModel { path, hashes: located })
    }

    /// Whether every file of a model is in the cache.
    pub(crate) fn is_cached(&self, model: &HubModel) -> bool {
        let repo = HubRepo::model(&model.repo, &model.revision);
        let cached = CachedRepo::new(&self.cache, &repo);
        if let Some(file) = &model.file {
            return gguf::is_cached(&cached, file);
        }
        cached.snapshot().is_some_and(|folder| folder::complete(&folder).is_ok())
    }

    /// The names of the files that make the model, in the order to download them. What decides whether the model can be
    /// read, and which files it has, is downloaded for it.
    fn wanted_files(&self, repo: &HubRepo, model: &HubModel, hashes: &Hashes) -> anyhow::Result<Vec<String>> {
        let place = format!("{} at {}", model.repo, model.revision);
        ensure!(
            !self.offline,
            "{place}: not in the cache {}, and HF_HUB_OFFLINE forbids the network; unset it, or download the model elsewhere \
             and give its folder as a `path` source",
            self.cache.path().display()
        );
        let listed = self.listed(repo, &place)?;
        let has = |name: &str| listed.iter().any(|own| own == name);
        if let Some(name) = folder::missing(has) {
            bail!("{place}: the repository has no {name}; choose one in Hugging Face layout");
        }
        let weights = folder::first_weights(has).with_context(|| {
            format!(
                "{place}: the repository has no weights that are read (model.safetensors, pytorch_model.bin, or shards with an \
                 index); choose a revision that has"
            )
        })?;
        let pin = |name: &str| model.sha256.get(name).map(String::as_str);
        let (config, _) = self.file(repo, CONFIG, pin(CONFIG), hashes)?;
        check_config(config.parent().unwrap_or(&config)).with_context(|| format!("{place}: not downloaded"))?;
        let mut names: Vec<String> = folder::required(has).into_iter().map(str::to_owned).collect();
        names.extend(OPTIONAL.iter().filter(|name| has(name)).map(|&name| name.to_owned()));
        names.push(weights.to_owned());
        if folder::is_index(weights) {
            let (index, _) = self.file(repo, weights, pin(weights), hashes)?;
            names.extend(folder::shards(&index)?);
        }
        Ok(names)
    }

    /// The names of all files of a revision.
    fn listed(&self, repo: &HubRepo, place: &str) -> anyhow::Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = repo.listing_url(&self.client.endpoint);
        let listing: Listing = self.client.persist(place, || {
            let mut response = self.client.get(repo, &url, 0)?;
            let cut = |error: anyhow::Error| Failure::passing(error.context("the list of files was cut off"));
            let text = response.body_mut().read_to_string().map_err(|error| cut(anyhow!(error)))?;
            serde_json::from_str(&text).map_err(|error| cut(anyhow!(error)))
        })?;
        Ok(listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect())
    }

    /// One file and its sha256, verified: against the pin, against the hub's own sha256 where it has one (large files),
    /// and against its announced size when it is downloaded.
    ///
    /// # Errors
    /// Not cached and offline; a hub that cannot be reached or refuses; content other than what is pinned.
    fn file(
        &self,
        repo: &HubRepo,
        name: &str,
        pin: Option<&str>,
        hashes: &Hashes,
    ) -> anyhow::Result<(PathBuf, String)> {
        let place = repo.place(name);
        ensure!(is_inside(name), "{place}: no name of a file; use a relative path without `..`");
        let cached = CachedRepo::new(&self.cache, repo);
        if let Some(path) = cached.file(name) {
            match verified(&path, pin, hashes)? {
                Ok(sha256) => return Ok((path, sha256)),
                Err(Mismatch::WrongPin(error)) => return Err(error.context(place)),
                Err(Mismatch::Damaged(error) | Mismatch::Unclear(error)) if self.offline => {
                    let remedy = "wrong file in the cache; unset HF_HUB_OFFLINE to download it again";
                    return Err(error.context(format!("{place}: {remedy}")));
                }
                // Replaced when there is something better.
                Err(Mismatch::Damaged(_) | Mismatch::Unclear(_)) => {}
            }
        }
        ensure!(
            !self.offline,
            "{place}: not in the cache {}, and HF_HUB_OFFLINE forbids the network; unset it or give a folder with the file \
             by --assets DIR",
            self.cache.path().display()
        );
        let wanted = Wanted { repo, name, pin };
        let (path, sha256) = self.client.persist(&place, || {
            let announced = self.client.announced(repo, name)?;
            let sha256 = wanted.fetch(&self.client, &announced, &cached, hashes)?;
            let linked = cached.link(&announced.commit, name, &announced.etag);
            let path = linked.with_context(|| transfer::cannot_write(self.cache.path()))?;
            Ok((path, sha256))
        })?;
        hashes.learn(&path, &sha256);
        Ok((path, sha256))
    }
}

/// sha256 of a cached file, if it is what the hub announced (a large file's blob is named by its sha256) and what is
/// pinned.
fn verified(path: &Path, pin: Option<&str>, hashes: &Hashes) -> anyhow::Result<Result<String, Mismatch>> {
    let found = hashes.of_file(path)?;
    let blob = path.canonicalize().with_context(|| format!("{}: cannot read", path.display()))?;
    let announced = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name));
    if let Some(announced) = announced.filter(|&announced| announced != found) {
        let error =
            anyhow!("sha256 is {found}, but the hub announced {announced}; the download was damaged, run again");
        return Ok(Err(Mismatch::Damaged(error)));
    }
    if let Some(pin) = pin.filter(|&pin| pin != found) {
        let mismatch = if announced.is_some() { Mismatch::WrongPin } else { Mismatch::Unclear };
        return Ok(Err(mismatch(wrong_pin_error(&found, pin))));
    }
    Ok(Ok(found))
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

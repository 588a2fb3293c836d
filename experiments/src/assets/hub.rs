//! The Hugging Face hub through the crate hf-hub, with what that crate leaves out: offline mode, verification, retries.
//!
//! Downloads go to the cache that Python's `huggingface_hub` shares. hf-hub appends to a `.part` file, so a download that
//! is cut off goes on where it stopped; a file whose content then is not what the hub announced is removed and begun anew.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::folder::{self, INDEX, OPTIONAL, REQUIRED, WEIGHTS};
use super::hashing::{Hashes, is_sha256, sha256_of};
use super::progress::{Progress, Transfer};
use super::search::AssetFolders;
use super::{LocatedModel, Partial};
use crate::config::sources::HubModel;

/// Pauses before each new attempt to download a file.
const PAUSES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(2), Duration::from_secs(5)];

/// The hub's address, cache and token.
#[derive(Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the content of `HF_TOKEN_PATH`, else of `$HF_HOME/token`.
    pub token: Option<String>,
}

impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token stays out of logs and messages.
        let token = self.token.as_ref().map(|_| "set");
        let Self { endpoint, cache, .. } = self;
        f.debug_struct("HubSettings").field("endpoint", endpoint).field("cache", cache).field("token", &token).finish()
    }
}

/// A file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `owner/name`.
    pub repo: String,
    /// Commit hash.
    pub revision: String,
    /// Path inside the repository.
    pub file: String,
    /// sha256 of its content.
    pub sha256: String,
}

impl HubFile {
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
    api: Api,
    endpoint: String,
    cache: Cache,
    offline: bool,
    progress: Progress,
    pauses: Vec<Duration>,
}

/// Why a file's content is not the wanted one.
enum Mismatch {
    /// It is not what the hub announced: getting it again helps.
    Damaged(anyhow::Error),
    /// It is what the hub announced, so the pin is wrong.
    WrongPin(anyhow::Error),
    /// The hub announced no sha256 (small files): either.
    Unclear(anyhow::Error),
}

/// How an attempt failed: whether another one makes sense.
enum Failure {
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

impl Hub {
    /// # Errors
    /// A client that cannot be built.
    pub(crate) fn new(settings: HubSettings, offline: bool, progress: Progress) -> anyhow::Result<Self> {
        let HubSettings { endpoint, cache, token } = settings;
        let cache = Cache::new(cache);
        // No retries by the crate: after a failure before the first byte it would append the whole file to its part.
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token)
            .with_progress(false)
            .with_retries(0)
            .build()
            .context("cannot build the client of the Hugging Face hub")?;
        Ok(Self { api, endpoint, cache, offline, progress, pauses: PAUSES.to_vec() })
    }

    /// A pinned file of a data set.
    ///
    /// # Errors
    /// See [`Self::file`].
    pub(crate) fn data_file(&self, file: &HubFile, hashes: &Hashes) -> anyhow::Result<PathBuf> {
        let HubFile { repo, revision, file, sha256 } = file;
        let repo = Repo::with_revision(repo.clone(), RepoType::Dataset, revision.clone());
        Ok(self.file(&repo, file, Some(sha256), hashes)?.0)
    }

    /// A model's folder: from the asset folders if all its files are pinned, from the cache if it is whole there, else
    /// downloaded, small files first.
    ///
    /// # Errors
    /// A repository without the files a model needs, and what [`Self::file`] says.
    pub(crate) fn model(
        &self,
        model: &HubModel,
        folders: &AssetFolders,
        cache: &Path,
        hashes: &Hashes,
    ) -> anyhow::Result<LocatedModel> {
        if let Some(assembled) = assemble(model, folders, cache, hashes)? {
            return Ok(assembled);
        }
        let repo = Repo::with_revision(model.repo.clone(), RepoType::Model, model.revision.clone());
        let names = match self.cached_folder(&repo).map(|folder| folder::complete(&folder)) {
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

    /// The names of the files that make the model, in the order to download them.
    fn wanted_files(&self, repo: &Repo, model: &HubModel, hashes: &Hashes) -> anyhow::Result<Vec<String>> {
        let place = format!("{} at {}", model.repo, model.revision);
        ensure!(
            !self.offline,
            "{place}: not in the cache {}, and HF_HUB_OFFLINE forbids the network; unset it, or download the model elsewhere \
             and give its folder as a `path` source",
            self.cache.path().display()
        );
        let info = self.api.repo(repo.clone()).info().map_err(|error| self.explain(&place, error))?;
        let listed: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        for name in REQUIRED {
            ensure!(listed.contains(&name), "{place}: the repository has no {name}; choose one in Hugging Face layout");
        }
        let mut names: Vec<String> = REQUIRED.map(str::to_owned).to_vec();
        names.extend(OPTIONAL.iter().filter(|name| listed.contains(name)).map(|&name| name.to_owned()));
        if listed.contains(&INDEX) {
            let pin = model.sha256.get(INDEX).map(String::as_str);
            let (index, _) = self.file(repo, INDEX, pin, hashes)?;
            names.push(INDEX.to_owned());
            names.extend(folder::shards(&index)?);
        } else if listed.contains(&WEIGHTS) {
            names.push(WEIGHTS.to_owned());
        } else {
            bail!("{place}: the repository has no safetensors weights; choose a revision that has");
        }
        Ok(names)
    }

    /// One file and its sha256, verified: against the pin, against the hub's own sha256 where it has one (large files),
    /// and against its announced size when it is downloaded.
    ///
    /// # Errors
    /// Not cached and offline; a hub that cannot be reached or refuses; content other than what is pinned.
    fn file(&self, repo: &Repo, name: &str, pin: Option<&str>, hashes: &Hashes) -> anyhow::Result<(PathBuf, String)> {
        let place = format!("{}/{name} at {}", repo.url(), repo.revision());
        if let Some(path) = self.cached(repo, name) {
            match verified(&path, pin, hashes)? {
                Ok(sha256) => return Ok((path, sha256)),
                Err(Mismatch::WrongPin(error)) => return Err(error.context(place)),
                Err(Mismatch::Damaged(error) | Mismatch::Unclear(error)) if self.offline => {
                    let remedy = "wrong file in the cache; unset HF_HUB_OFFLINE to download it again";
                    return Err(error.context(format!("{place}: {remedy}")));
                }
                Err(Mismatch::Damaged(_) | Mismatch::Unclear(_)) => remove(&path)?,
            }
        }
        ensure!(
            !self.offline,
            "{place}: not in the cache {}, and HF_HUB_OFFLINE forbids the network; unset it or give a folder with the file \
             by --assets DIR",
            self.cache.path().display()
        );
        let api = self.api.repo(repo.clone());
        let mut pauses = self.pauses.iter();
        loop {
            let failure = match self.download(&api, repo, name, &place) {
                Ok(path) => match verified(&path, pin, hashes)? {
                    Ok(sha256) => return Ok((path, sha256)),
                    Err(Mismatch::WrongPin(error)) => Failure::Final(error.context(place.clone())),
                    Err(Mismatch::Damaged(error)) => {
                        remove(&path)?;
                        Failure::Passing(error.context(format!("{place}: removed what was downloaded")))
                    }
                    Err(Mismatch::Unclear(error)) => {
                        remove(&path)?;
                        Failure::Final(error.context(format!("{place}: removed what was downloaded")))
                    }
                },
                Err(failure) => failure,
            };
            match (failure, pauses.next()) {
                (Failure::Passing(_), Some(&pause)) => std::thread::sleep(pause),
                (Failure::Passing(error), None) => {
                    return Err(error.context(format!("{place}: gave up after {} attempts", self.pauses.len() + 1)));
                }
                (Failure::Final(error), _) => return Err(error),
            }
        }
    }

    /// One attempt, going on from what an earlier one left.
    fn download(&self, api: &ApiRepo, repo: &Repo, name: &str, place: &str) -> Result<PathBuf, Failure> {
        let explain = |error: ApiError| {
            let again = http_status(&error).is_none_or(|status| status == 429 || status >= 500);
            let explained = self.explain(place, error);
            if again { Failure::Passing(explained) } else { Failure::Final(explained) }
        };
        let metadata = self.api.metadata(&api.url(name)).map_err(explain)?;
        let part = self.cache.repo(repo.clone()).blob_path(metadata.etag()).with_extension("part");
        // A part that is already whole cannot be resumed: the server has no bytes after its end.
        if part.metadata().is_ok_and(|part| part.len() >= metadata.size() as u64) {
            std::fs::remove_file(&part).map_err(|error| {
                Failure::Final(anyhow!(error).context(format!("{}: cannot remove", part.display())))
            })?;
        }
        let bar = Bar { progress: self.progress, label: format!("downloading {name}"), shown: None };
        let path = api.download_with_progress(name, bar).map_err(explain)?;
        let found = path.metadata().map_or(0, |metadata| metadata.len());
        if found != metadata.size() as u64 {
            remove(&path).map_err(Failure::Final)?;
            let (expected, remedy) = (metadata.size(), "removed it; run again");
            return Err(Failure::Passing(anyhow!("{place}: got {found} bytes, expected {expected}; {remedy}")));
        }
        Ok(path)
    }

    /// The snapshot folder of a revision, if the cache knows it: by its commit hash or through a ref.
    fn cached_folder(&self, repo: &Repo) -> Option<PathBuf> {
        let cached = self.cache.repo(repo.clone());
        let by_commit = cached.pointer_path(repo.revision());
        if by_commit.is_dir() {
            return Some(by_commit);
        }
        let refs = self.cache.path().join(repo.folder_name()).join("refs").join(repo.revision());
        let commit = std::fs::read_to_string(refs).ok()?;
        Some(cached.pointer_path(commit.trim())).filter(|folder| folder.is_dir())
    }

    /// Whether every file of a model is in the cache.
    pub(crate) fn is_cached(&self, model: &HubModel) -> bool {
        let repo = Repo::with_revision(model.repo.clone(), RepoType::Model, model.revision.clone());
        self.cached_folder(&repo).is_some_and(|folder| folder::complete(&folder).is_ok())
    }

    fn cached(&self, repo: &Repo, name: &str) -> Option<PathBuf> {
        self.cached_folder(repo).map(|folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// A failed request with what to do about it.
    fn explain(&self, place: &str, error: ApiError) -> anyhow::Error {
        let endpoint = &self.endpoint;
        let remedy = match http_status(&error) {
            Some(401 | 403) => format!(
                "{endpoint} refuses access; if the repository is gated, accept its terms there, then set HF_TOKEN or run \
                 `hf auth login`"
            ),
            Some(404) => format!("{endpoint} does not have it; check repository, revision and file name"),
            _ => {
                format!("cannot get it from {endpoint}; check the network, HF_ENDPOINT and the free space of the cache")
            }
        };
        anyhow!(error).context(format!("{place}: {remedy}"))
    }
}

/// The status code of a refused request. The crate does not re-export the type that holds it.
fn http_status(error: &ApiError) -> Option<u16> {
    let text = error.to_string();
    text.split_once("http status: ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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
        let error = anyhow!("sha256 is {found}, expected {pin}; correct the pin or the revision");
        let mismatch = if announced.is_some() { Mismatch::WrongPin } else { Mismatch::Unclear };
        return Ok(Err(mismatch(error)));
    }
    Ok(Ok(found))
}

/// Removes a file from the hub's cache: the link in the snapshot and the blob it points to.
fn remove(path: &Path) -> anyhow::Result<()> {
    let cannot_remove = || format!("{}: not what was expected, and cannot be removed", path.display());
    let blob = path.canonicalize().with_context(cannot_remove)?;
    std::fs::remove_file(path).with_context(cannot_remove)?;
    if blob.exists() {
        std::fs::remove_file(blob).with_context(cannot_remove)?;
    }
    Ok(())
}

/// A folder of links to files of the asset folders, if `model` pins all files of a model and all of them are there.
fn assemble(
    model: &HubModel,
    folders: &AssetFolders,
    cache: &Path,
    hashes: &Hashes,
) -> anyhow::Result<Option<LocatedModel>> {
    let weights_pinned = [WEIGHTS, INDEX].iter().any(|&name| model.sha256.contains_key(name));
    if !weights_pinned || !REQUIRED.iter().all(|&name| model.sha256.contains_key(name)) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (name, sha256) in &model.sha256 {
        ensure!(is_sha256(sha256), "{}: sha256 of `{name}` is not 64 hexadecimal digits in lower case", model.repo);
        let Some(path) = folders.find(name, sha256, hashes)? else { return Ok(None) };
        found.push((name, path));
    }
    let listing: String = found.iter().map(|(name, path)| format!("{name} {}\n", path.display())).collect();
    let target = cache.join("assembled").join(sha256_of(listing.as_bytes()));
    let partial = Partial::new(cache)?;
    for (name, path) in &found {
        let link = partial.path().join(name);
        link_file(path, &link).with_context(|| format!("{}: cannot link", link.display()))?;
    }
    // Shards that are not pinned are not there: then the hub is asked.
    if folder::complete(partial.path()).is_err() {
        return Ok(None);
    }
    partial.finish(&target)?;
    Ok(Some(LocatedModel { path: target, hashes: model.sha256.clone() }))
}

#[cfg(unix)]
fn link_file(path: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(path.canonicalize()?, link)
}

#[cfg(not(unix))]
fn link_file(path: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::copy(path, link).map(|_| ())
}

/// Shows a download of hf-hub, which announces the size twice and a resumed file's first bytes at once.
struct Bar {
    progress: Progress,
    label: String,
    shown: Option<Transfer>,
}

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, size: usize, _filename: &str) {
        if self.shown.is_none() {
            self.shown = Some(self.progress.transfer(&self.label, Some(size as u64)));
        }
    }

    fn update(&mut self, size: usize) {
        if let Some(transfer) = &self.shown {
            transfer.advance(size as u64);
        }
    }

    fn finish(&mut self) {
        self.shown = None;
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;

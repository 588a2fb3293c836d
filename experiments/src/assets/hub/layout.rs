//! Where the hub's files lie: its addresses, and the cache that Python's `huggingface_hub` shares, with content in `blobs`,
//! a folder of links for each commit in `snapshots`, and the commits of branches in `refs`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use crate::config::names::is_inside;
use crate::files::{self, folder_of};
use crate::unfinished::{self, Unfinished};

/// How folders begin in which a link is made.
const LINK: &str = ".awq-link-";

/// A revision of a repository.
#[derive(Clone, Debug)]
pub(super) struct HubRepo {
    /// What the hub calls this kind of repository: `models` or `datasets`.
    kind: &'static str,
    id: String,
    repo: Repo,
}

impl HubRepo {
    /// Of a model.
    pub(super) fn model(id: &str, revision: &str) -> Self {
        Self {
            kind: "models",
            id: id.to_owned(),
            repo: Repo::with_revision(id.into(), RepoType::Model, revision.into()),
        }
    }

    /// Of a data set.
    pub(super) fn dataset(id: &str, revision: &str) -> Self {
        let repo = Repo::with_revision(id.into(), RepoType::Dataset, revision.into());
        Self { kind: "datasets", id: id.to_owned(), repo }
    }

    /// The same repository at a commit.
    pub(super) fn at(&self, commit: &str) -> Self {
        if self.kind == "models" { Self::model(&self.id, commit) } else { Self::dataset(&self.id, commit) }
    }

    /// `owner/name`.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn revision(&self) -> &str {
        self.repo.revision()
    }

    /// The revision, if it is a commit's hash.
    pub(super) fn commit(&self) -> Option<&str> {
        let revision = self.revision();
        (revision.len() == 40 && revision.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(revision)
    }

    /// The repository's path at the hub: `owner/name`, or `datasets/owner/name`.
    pub(super) fn address(&self) -> String {
        if self.kind == "models" { self.id.clone() } else { format!("{}/{}", self.kind, self.id) }
    }

    /// Where the hub lists the revision's files.
    pub(super) fn listing_url(&self, endpoint: &str) -> String {
        format!("{endpoint}/api/{}/{}/revision/{}", self.kind, self.id, encoded(self.revision(), ""))
    }

    /// Where the hub has a file.
    pub(super) fn file_url(&self, endpoint: &str, name: &str) -> String {
        format!("{endpoint}/{}/resolve/{}/{}", self.address(), encoded(self.revision(), ""), encoded(name, "/"))
    }

    /// For messages.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}/{name} at {}", self.address(), self.revision())
    }
}

/// With everything but letters, digits, `-._~` and `kept` as `%XX`.
fn encoded(text: &str, kept: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) {
            encoded.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Whether a server's word can be the name of a file in the cache.
pub(super) fn is_plain_name(name: &str) -> bool {
    is_inside(name) && !name.contains('/')
}

/// A repository's part of the cache.
#[derive(Debug)]
pub(super) struct CachedRepo<'a> {
    cache: &'a Cache,
    repo: &'a HubRepo,
}

impl<'a> CachedRepo<'a> {
    pub(super) fn new(cache: &'a Cache, repo: &'a HubRepo) -> Self {
        Self { cache, repo }
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join(self.repo.repo.folder_name())
    }

    /// Where the content called `etag` is kept.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// What `huggingface_hub` locks, too, while it downloads that content.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.cache.path().join(".locks").join(self.repo.repo.folder_name()).join(format!("{etag}.lock"))
    }

    /// The snapshot folder of the revision, if the cache knows it: by its commit hash or through a ref.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        let cached = self.cache.repo(self.repo.repo.clone());
        let by_commit = cached.pointer_path(self.repo.revision());
        if by_commit.is_dir() {
            return Some(by_commit);
        }
        let commit = std::fs::read_to_string(self.folder().join("refs").join(self.repo.revision())).ok()?;
        let commit = Some(commit.trim()).filter(|commit| is_plain_name(commit))?;
        Some(cached.pointer_path(commit)).filter(|folder| folder.is_dir())
    }

    /// A file of the revision, if it is there.
    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        self.snapshot().map(|folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// Makes the revision stand for a commit. One that does already is left alone: a full disk would cost it.
    fn create_ref(&self, commit: &str) -> std::io::Result<()> {
        let path = self.folder().join("refs").join(self.repo.revision());
        if std::fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        let folder = folder_of(&path);
        std::fs::create_dir_all(folder)?;
        files::sweep(folder);
        files::write_durably(&path, commit.as_bytes())
    }

    /// Makes the file `name` of `commit` stand for the content called `etag`, and the revision for the commit.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> std::io::Result<PathBuf> {
        let cached = self.cache.repo(self.repo.repo.clone());
        if self.repo.revision() != commit {
            self.create_ref(commit)?;
        }
        let (snapshot, blob) = (cached.pointer_path(commit), self.blob(etag));
        let link = snapshot.join(name);
        if stands_for(&link, &blob) {
            return Ok(link);
        }
        std::fs::create_dir_all(folder_of(&link))?;
        // Made under another name first: another process may be reading the old one. Not in the snapshot, where a kill would leave
        // what programs that share the cache take for files of the model.
        let _ = unfinished::sweep(&self.folder(), LINK);
        let made = Unfinished::new_in(&self.folder(), LINK)?;
        let new = made.path().join("link");
        // From the file up to `snapshots`, so that the whole cache can be moved.
        let up = "../".repeat(1 + name.split('/').count());
        link_or_copy(Path::new(&format!("{up}blobs/{etag}")), &blob, &new)?;
        std::fs::rename(new, &link)?;
        Ok(link)
    }
}

/// Whether the file `link` is a link to `path`, or a copy of it where there are no links.
pub(super) fn stands_for(link: &Path, path: &Path) -> bool {
    let same_length = || Some(link.metadata().ok()?.len() == path.metadata().ok()?.len());
    match (link.canonicalize(), path.canonicalize()) {
        (Ok(link), Ok(path)) if link == path => true,
        (Ok(_), Ok(_)) => !cfg!(unix) && same_length() == Some(true),
        _ => false,
    }
}

/// A link `link` with the text `to`, which means `path`; a copy where the file system has no links.
pub(super) fn link_or_copy(to: &Path, path: &Path, link: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(to, link).is_ok() {
        return Ok(());
    }
    #[cfg(not(unix))]
    let _ = to;
    std::fs::copy(path, link).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_hub() {
        let model = HubRepo::model("owner/name", "refs/pr/1");
        assert_eq!(model.listing_url("https://h"), "https://h/api/models/owner/name/revision/refs%2Fpr%2F1");
        assert_eq!(
            model.file_url("https://h", "a b/c?.json"),
            "https://h/owner/name/resolve/refs%2Fpr%2F1/a%20b/c%3F.json"
        );
        let set = HubRepo::dataset("owner/set", "main");
        assert_eq!(set.file_url("https://h", "x.zst"), "https://h/datasets/owner/set/resolve/main/x.zst");
        assert_eq!(set.listing_url("https://h"), "https://h/api/datasets/owner/set/revision/main");
        assert_eq!(set.place("x.zst"), "datasets/owner/set/x.zst at main");
        assert_eq!(set.at("0a").place("x.zst"), "datasets/owner/set/x.zst at 0a");
        assert_eq!((set.commit(), set.at(&"0a".repeat(20)).commit()), (None, Some("0a".repeat(20).as_str())));
    }

    #[test]
    fn a_word_with_a_path_in_it_is_no_name() {
        assert!(is_plain_name("0a1b") && is_plain_name("abc-2"));
        for name in ["", "..", "a/b", "../a", "/a", "a\\b", "-a"] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}

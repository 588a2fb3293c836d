//! Where a quantized model goes, a folder or a file: checked before any work, filled under another name, and named at the end.
//!
//! A run that fails removes what it began. One that is killed leaves a hidden folder, which the next run to the same place removes
//! (`experiments/src/unfinished.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use awq_core::formats::Container;

use crate::files::{folder_of, sync_folder};
use crate::unfinished::{self, Unfinished};

/// How a file is named that holds a whole model.
const GGUF: &str = "gguf";

/// A folder in the making, beside the place that it will have.
#[derive(Debug)]
pub struct Place {
    out: PathBuf,
    partial: Unfinished,
}

/// Checks `--out` alone, before a model is opened.
///
/// # Errors
/// A file, a folder that holds anything, or a folder inside the model's own. Where it is to be a file, anything that is there, or a
/// name of another kind of file.
pub fn check(out: &Path, model: &Path, container: Container) -> anyhow::Result<()> {
    let place = out.display();
    if let Some(prefix) = prefix(out) {
        // Also where a run was killed behind its end. What hinders it is said where the place is claimed.
        let _ = unfinished::sweep(folder_of(out), &prefix);
    }
    if let Ok(target) = fs::read_link(out) {
        ensure!(out.exists(), "{place}: a link to {}, which is not there; choose another with --out", target.display());
    }
    if container == Container::File {
        let is_named = out.extension().is_some_and(|end| end == GGUF);
        ensure!(is_named, "{place}: the name of a GGUF file ends with .{GGUF}; choose such a name with --out");
        ensure!(!out.exists(), "{place}: exists already; choose another file with --out, or remove this one");
    } else if out.exists() {
        ensure!(out.is_dir(), "{place}: is a file; choose a folder with --out");
        let is_empty = fs::read_dir(out).with_context(|| cannot_create(out))?.next().is_none();
        ensure!(is_empty, "{place}: is not empty; choose another folder with --out, or remove this one");
    }
    let nearest = out.ancestors().skip(1).find(|folder| folder.is_dir());
    if let (Some(Ok(nearest)), Ok(model)) = (nearest.map(Path::canonicalize), model.canonicalize()) {
        ensure!(
            !(model.is_dir() && nearest.starts_with(&model)),
            "{place}: lies inside the model's folder {}; choose another place with --out",
            model.display()
        );
    }
    Ok(())
}

fn cannot_create(folder: &Path) -> String {
    format!("{}: cannot create the folder; choose another with --out", folder.display())
}

impl Place {
    /// Creates a folder beside `out`, where `needed_bytes` must be free.
    ///
    /// # Errors
    /// A place that cannot be written, that another run is writing to, or that is too small.
    pub fn claim(out: &Path, needed_bytes: u64) -> anyhow::Result<Self> {
        let problem = || cannot_create(out);
        let parent = folder_of(out);
        fs::create_dir_all(parent).with_context(problem)?;
        let prefix = prefix(out).with_context(problem)?;
        if !unfinished::sweep(parent, &prefix).with_context(problem)?.is_empty() {
            bail!("{}: another run is writing to it; wait for its end or choose another with --out", out.display());
        }
        let free_bytes = fs4::available_space(parent).with_context(problem)?;
        ensure!(
            free_bytes >= needed_bytes,
            "{}: needs about {} free, {} has {}; free space, or choose another place with --out",
            out.display(),
            gigabytes(needed_bytes),
            parent.display(),
            gigabytes(free_bytes)
        );
        let partial = Unfinished::new_in(parent, &prefix).with_context(problem)?;
        Ok(Self { out: out.to_owned(), partial })
    }

    /// The folder to fill.
    pub fn folder(&self) -> &Path {
        self.partial.path()
    }

    /// The file to fill, of a model in one file.
    pub fn file(&self) -> PathBuf {
        self.partial.path().join("model").with_extension(GGUF)
    }

    /// Gives the filled [`Self::file`] its name, and removes the folder.
    ///
    /// # Errors
    /// A place that something was put into meanwhile.
    pub fn finish_file(self) -> anyhow::Result<()> {
        let out = self.out.display();
        ensure!(!self.out.exists(), "{out}: something has been put there meanwhile; choose another file with --out");
        fs::rename(self.file(), &self.out)
            .and_then(|()| sync_folder(folder_of(&self.out)))
            .with_context(|| format!("{out}: cannot give it this name"))
    }

    /// Gives the filled folder its name.
    ///
    /// # Errors
    /// A place that something was put into meanwhile.
    pub fn finish(self) -> anyhow::Result<()> {
        let problem = || format!("{}: cannot give it this name; choose another with --out", self.out.display());
        if self.out.exists() {
            // An empty folder, as it was at the start; one that is not empty is kept.
            fs::remove_dir(&self.out).with_context(problem)?;
        }
        self.partial.rename(&self.out).with_context(problem)
    }
}

/// How the folder is called that becomes `out`.
fn prefix(out: &Path) -> Option<String> {
    Some(format!(".{}.partial-", out.file_name()?.to_string_lossy()))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn message(result: anyhow::Result<impl std::fmt::Debug>, folder: &Path) -> String {
        let folder = folder.canonicalize().unwrap();
        format!("{:#}", result.unwrap_err()).replace(&folder.display().to_string(), "DIR")
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/new/one");
        let place = Place::claim(&out, 1).unwrap();
        fs::write(place.folder().join("file"), "x").unwrap();
        assert!(!out.exists());
        drop(place);
        assert!(names(&folder.path().join("a/new")).is_empty(), "a failed run leaves nothing");
        fs::create_dir(&out).unwrap();
        let place = Place::claim(&out, 1).unwrap();
        fs::write(place.folder().join("file"), "x").unwrap();
        place.finish().unwrap();
        assert_eq!(
            (names(&folder.path().join("a/new")), names(&out)),
            (vec!["one".to_owned()], vec!["file".to_owned()])
        );
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/model.gguf");
        let place = Place::claim(&out, 1).unwrap();
        fs::write(place.file(), "x").unwrap();
        assert!(!out.exists());
        place.finish_file().unwrap();
        assert_eq!(
            (names(&folder.path().join("new")), fs::read(&out).unwrap()),
            (vec!["model.gguf".into()], b"x".into())
        );
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_a_living_one_is_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir(folder.path().join(".out.partial-1")).unwrap();
        fs::write(folder.path().join(".out.partial-1.lock"), "").unwrap();
        fs::create_dir(folder.path().join(".other.partial-1")).unwrap();
        let living = Place::claim(&out, 1).unwrap();
        assert!(!folder.path().join(".out.partial-1").exists());
        assert!(folder.path().join(".other.partial-1").exists());
        let again = message(Place::claim(&out, 1), folder.path());
        assert!(
            again.ends_with("out: another run is writing to it; wait for its end or choose another with --out"),
            "{again}"
        );
        living.finish().unwrap();
        assert!(out.is_dir());
    }

    #[test]
    fn places_that_cannot_be_used_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let model = base.join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        fs::write(base.join("file"), "").unwrap();
        let refused = |out: &str| message(check(&base.join(out), &model, Container::Folder), &base);
        assert_eq!(refused("model"), "DIR/model: is not empty; choose another folder with --out, or remove this one");
        assert_eq!(refused("file"), "DIR/file: is a file; choose a folder with --out");
        assert_eq!(
            refused("model/packed/new"),
            "DIR/model/packed/new: lies inside the model's folder DIR/model; choose another place with --out"
        );
        assert!(check(&base.join("model-packed"), &model, Container::Folder).is_ok());
        assert!(check(&base.join("file-packed"), &base.join("file"), Container::Folder).is_ok());
        let of_file = |out: &str| message(check(&base.join(out), &model, Container::File), &base);
        assert_eq!(of_file("file"), "DIR/file: the name of a GGUF file ends with .gguf; choose such a name with --out");
        fs::write(base.join("there.gguf"), "").unwrap();
        assert_eq!(
            of_file("there.gguf"),
            "DIR/there.gguf: exists already; choose another file with --out, or remove this one"
        );
        fs::remove_file(base.join("there.gguf")).unwrap();
        assert!(check(&base.join("new.gguf"), &model, Container::File).is_ok());
        let no_folder = message(Place::claim(&base.join("file/out"), 1), &base);
        assert!(
            no_folder.starts_with("DIR/file/out: cannot create the folder; choose another with --out: "),
            "{no_folder}"
        );
        let full = message(Place::claim(&base.join("out"), u64::MAX), &base);
        assert!(full.starts_with("DIR/out: needs about 18446744073.7 GB free, DIR has "), "{full}");
        assert!(full.ends_with("; free space, or choose another place with --out"), "{full}");
        assert_eq!(names(&base), ["file", "model"]);
    }
}

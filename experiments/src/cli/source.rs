//! From a word on the command line to the place that a model comes from.

use std::path::{Path, PathBuf};

use crate::config::names::{is_gguf_file, is_inside, is_repository};
use crate::config::{Bundled, HubModel, ModelSource, PathModel};

/// The word for the model that comes with the program.
pub(super) const BUNDLED: &str = "bundled";
/// What the hub calls the newest commit.
const NEWEST: &str = "main";

/// The source that `model` stands for: `bundled`, a path that exists, `owner/name` or `owner/name/file.gguf` of the hub, with or
/// without `@revision`, and for anything else a path again, whose absence is then the error. So is what would lie in a folder that
/// exists: it is a slip of a path more likely than a name of the hub.
pub(super) fn source_of(model: &str) -> ModelSource {
    let path = || ModelSource::Path(PathModel { path: PathBuf::from(model) });
    if model == BUNDLED {
        return ModelSource::Bundled(Bundled {});
    }
    if Path::new(model).symlink_metadata().is_ok() {
        return path();
    }
    match hub_model(model) {
        Some(named) if model.contains('@') || !owner(&named).is_dir() => ModelSource::Hub(named),
        _ => path(),
    }
}

fn owner(model: &HubModel) -> &Path {
    Path::new(model.repo.split('/').next().unwrap_or_default())
}

/// The repository of the hub, or GGUF file of one, that `name` spells, if it spells one.
fn hub_model(name: &str) -> Option<HubModel> {
    let (repo, revision) = name.split_once('@').unwrap_or((name, NEWEST));
    let (repo, file) = match repo.match_indices('/').nth(1) {
        Some((end, _)) => (&repo[..end], Some(&repo[end + 1..])),
        None => (repo, None),
    };
    let is_file = Path::new(repo).extension().is_some_and(|end| ["gguf", "safetensors"].iter().any(|e| end == *e));
    let spells_one = repo.contains('/') && is_repository(repo) && is_inside(revision) && !is_file;
    (spells_one && file.is_none_or(is_gguf_file)).then(|| HubModel {
        repo: repo.to_owned(),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
        sha256: Default::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_hub(word: &str, repo: &str, revision: &str) {
        let expected =
            HubModel { repo: repo.into(), revision: revision.into(), file: None, sha256: Default::default() };
        assert_eq!(source_of(word), ModelSource::Hub(expected));
    }

    #[test]
    fn a_name_of_the_hub_has_an_owner() {
        check_hub("owner/name", "owner/name", "main");
        check_hub("owner/name@v1.0", "owner/name", "v1.0");
        check_hub("owner/name@refs/pr/1", "owner/name", "refs/pr/1");
        let ModelSource::Hub(found) = source_of("owner/name/q4/m.gguf@v1") else { panic!("a file of a repository") };
        assert_eq!((found.repo.as_str(), found.revision.as_str()), ("owner/name", "v1"));
        assert_eq!(found.file.as_deref(), Some("q4/m.gguf"));
        for path in [
            "name",
            "./owner/name",
            "../name",
            "a/b/c",
            "/a/b",
            "owner/",
            "a/b.gguf",
            "owner/name@",
            "a/b@../c",
            "a/b/../m.gguf",
        ] {
            assert_eq!(source_of(path), ModelSource::Path(PathModel { path: path.into() }), "{path}");
        }
    }

    #[test]
    fn what_exists_wins_over_a_name_of_the_hub() {
        // Tests run in the folder of the crate.
        for path in ["src/cli", "src/slip"] {
            assert_eq!(source_of(path), ModelSource::Path(PathModel { path: path.into() }));
        }
        check_hub("src/slip@main", "src/slip", "main");
        assert_eq!(source_of("bundled"), ModelSource::Bundled(Bundled {}));
    }
}

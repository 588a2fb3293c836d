//! Where assets are looked for and kept, as environment variables and the command line say.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;

use super::hub::{HubSettings, Token};
use super::progress::Progress;

/// Settings of an [`AssetStore`](super::AssetStore). They decide where a file is read from, never what is in it.
#[derive(Clone, Debug)]
pub struct AssetSettings {
    /// Folder for what registries and the executable provide.
    pub cache: PathBuf,
    /// Folders that are searched by sha256 before anything is downloaded.
    pub folders: Vec<PathBuf>,
    /// The Hugging Face hub.
    pub hub: HubSettings,
    /// Use only what is on this machine.
    pub offline: bool,
    /// How downloads are shown.
    pub progress: Progress,
}

impl AssetSettings {
    /// From the folders of `--assets` and the environment: `AWQ_CACHE` (else `$XDG_CACHE_HOME/awq-experiments`, else
    /// `~/.cache/awq-experiments`), `AWQ_ASSETS` (folders separated as in `PATH`), `HF_HUB_OFFLINE`, and what
    /// [`HubSettings`] names. Folders of the command line come first.
    ///
    /// # Errors
    /// No cache folder is set and the home folder is unknown.
    pub fn from_env(assets: &[PathBuf], progress: Progress) -> anyhow::Result<Self> {
        Self::from_vars(assets, progress, &environment)
    }

    /// The folder alone, as [`Self::from_env`] finds it.
    ///
    /// # Errors
    /// None is set and the home folder is unknown.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn cache_from_env() -> anyhow::Result<PathBuf> {
        Ok(Self::from_vars(&[], Progress::Quiet, &environment)?.cache)
    }

    fn from_vars(
        assets: &[PathBuf],
        progress: Progress,
        var: &dyn Fn(&str) -> Option<OsString>,
    ) -> anyhow::Result<Self> {
        let user_cache = var("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| var("HOME").or_else(|| var("USERPROFILE")).map(|home| PathBuf::from(home).join(".cache")));
        let no_home = "none of AWQ_CACHE, XDG_CACHE_HOME and HOME is set; set AWQ_CACHE to a folder for downloads";
        let cache = match (var("AWQ_CACHE"), &user_cache) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(cache)) => cache.join("awq-experiments"),
            (None, None) => anyhow::bail!(no_home),
        };
        let mut folders = assets.to_vec();
        if let Some(listed) = var("AWQ_ASSETS") {
            folders.extend(std::env::split_paths(&listed).filter(|folder| !folder.as_os_str().is_empty()));
        }
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));

        let hf_home = var("HF_HOME").map(PathBuf::from).or_else(|| user_cache.map(|cache| cache.join("huggingface")));
        let hub_cache = var("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
            .context("none of HF_HOME, XDG_CACHE_HOME and HOME is set; set HF_HOME to a folder for the hub's files")?;
        let token_file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hf_home.map(|home| home.join("token")));
        let token =
            text("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok()).and_then(|token| Token::new(&token));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { cache, folders, hub: HubSettings { endpoint, cache: hub_cache, token }, offline, progress })
    }
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> anyhow::Result<AssetSettings> {
        let var = |name: &str| vars.iter().find(|(own, _)| *own == name).map(|(_, value)| OsString::from(value));
        AssetSettings::from_vars(&["given".into()], Progress::Quiet, &var)
    }

    #[test]
    fn the_cache_follows_the_first_variable_set() {
        let cache = |vars: &[(&str, &str)]| settings(vars).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/awq-experiments"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/awq-experiments"));
        assert_eq!(cache(&[("HOME", "/h"), ("AWQ_CACHE", "/c")]), PathBuf::from("/c"));
        let error = settings(&[]).unwrap_err().to_string();
        assert!(error.ends_with("set AWQ_CACHE to a folder for downloads"), "{error}");
    }

    #[test]
    fn folders_of_the_command_line_come_first() {
        let found = settings(&[("HOME", "/h"), ("AWQ_ASSETS", "/a::/b")]).unwrap();
        assert_eq!(found.folders, ["given", "/a", "/b"].map(PathBuf::from));
    }

    #[test]
    fn the_hub_variables_are_respected() {
        let found = settings(&[("HOME", "/h")]).unwrap();
        assert_eq!(found.hub.endpoint, "https://huggingface.co");
        assert_eq!(found.hub.cache, PathBuf::from("/h/.cache/huggingface/hub"));
        assert!(!found.offline);
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), " from-file\n").unwrap();
        let path = home.path().to_str().unwrap();
        let vars = [("HOME", "/h"), ("HF_HOME", path), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "yes")];
        let found = settings(&vars).unwrap();
        assert_eq!(found.hub.endpoint, "http://mirror");
        assert_eq!(found.hub.cache, home.path().join("hub"));
        assert_eq!(found.hub.token, Token::new("from-file"));
        assert!(found.offline);
        let found =
            settings(&[("HOME", "/h"), ("HF_HOME", path), ("HF_TOKEN", "own"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!(found.hub.token, Token::new("own"));
        assert!(!found.offline);
    }
}

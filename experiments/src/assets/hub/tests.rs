//! The hub client against a server on this machine that plays the hub, with its habits and its failures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::fake::{COMMIT, Fault, Play, Ranges, Server};
use super::*;
use crate::assets::folder::tests::{INDEX, LLAMA, WEIGHTS};
use crate::assets::hashing::sha256_of;

mod files;

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

fn small_model() -> Play {
    Play {
        files: BTreeMap::from([
            ("config.json", LLAMA.into()),
            ("tokenizer.json", b"{\"a\": 1}".to_vec()),
            ("README.md", b"not wanted".to_vec()),
            (WEIGHTS, weights()),
        ]),
        announced: BTreeMap::from([(WEIGHTS, sha256_of(&weights()))]),
        ..Play::default()
    }
}

fn spec() -> HubModel {
    HubModel { repo: "owner/name".into(), revision: COMMIT.into(), file: None, sha256: BTreeMap::new() }
}

fn model(hub: &Hub, spec: &HubModel, cache: &Path) -> Result<LocatedModel, String> {
    let folders = AssetFolders::new(vec![]).unwrap();
    hub.model(spec, &folders, cache, &Hashes::new(Progress::Quiet)).map_err(|error| format!("{error:#}"))
}

/// Files in the cache, whole and incomplete.
fn blobs(cache: &Path) -> Vec<PathBuf> {
    let blobs = cache.join("models--owner--name/blobs");
    if blobs.is_dir() { crate::assets::files_in(&blobs).unwrap() } else { vec![] }
}

/// Beside a file that is not wanted.
#[test]
fn all_parts_of_a_gguf_file_are_downloaded() {
    let parts = ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"];
    let file = |name: &'static str, content: &[u8]| (name, content.to_vec());
    let server = Server::start(Play {
        files: BTreeMap::from([file(parts[0], b"one"), file(parts[1], b"second"), file("q8.gguf", b"other")]),
        ..Play::default()
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), false);
    for given in parts {
        let wanted = HubModel { file: Some(given.into()), ..spec() };
        assert_eq!(hub.is_cached(&wanted), given == parts[1], "the first asks for both");
        let located = model(&hub, &wanted, cache.path()).unwrap();
        assert_eq!(std::fs::read(&located.path).unwrap(), b"one");
        assert_eq!(std::fs::read(located.path.with_file_name("m-00002-of-00002.gguf")).unwrap(), b"second");
        let hashes = [("m-00001-of-00002.gguf", &b"one"[..]), ("m-00002-of-00002.gguf", &b"second"[..])];
        assert_eq!(located.hashes, hashes.map(|(name, content)| (name.to_owned(), sha256_of(content))).into());
        assert_eq!(model(&server.hub(cache.path(), true), &wanted, cache.path()), Ok(located));
    }
    assert_eq!(server.transfers().len(), 2);
    let pinned = |name: &str, content: &[u8]| HubModel {
        file: Some(parts[0].into()),
        sha256: BTreeMap::from([(name.into(), sha256_of(content))]),
        ..spec()
    };
    assert!(model(&hub, &pinned(parts[1], b"second"), cache.path()).is_ok());
    let error = model(&hub, &pinned(parts[1], b"three"), cache.path()).unwrap_err();
    assert!(error.contains("q4/m-00002-of-00002.gguf") && error.contains(&sha256_of(b"three")), "{error}");
    let error = model(&hub, &pinned("q8.gguf", b"other"), cache.path()).unwrap_err();
    assert!(error.ends_with("pins `q8.gguf`, which is no part of `q4/m-00001-of-00002.gguf`"), "{error}");
}

/// A file in one part needs no hub where it is pinned.
#[test]
fn a_pinned_gguf_file_is_taken_from_the_asset_folders() {
    let server = Server::start(Play::default());
    let (cache, assets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(assets.path().join("m.gguf"), "one").unwrap();
    let folders = AssetFolders::new(vec![assets.path().to_owned()]).unwrap();
    let sha256 = BTreeMap::from([("q4/m.gguf".to_owned(), sha256_of(b"one"))]);
    let wanted = HubModel { file: Some("q4/m.gguf".into()), sha256, ..spec() };
    let hub = server.hub(cache.path(), true);
    let located = hub.model(&wanted, &folders, cache.path(), &Hashes::new(Progress::Quiet)).unwrap();
    assert_eq!(located.hashes, BTreeMap::from([("m.gguf".to_owned(), sha256_of(b"one"))]));
    assert_eq!(std::fs::read(located.path).unwrap(), b"one");
}

#[test]
fn a_model_is_downloaded_once_and_found_offline() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(located.hashes["config.json"], sha256_of(LLAMA.as_bytes()));
    assert_eq!(server.transfers().len(), 3);
    assert!(server.tokens().iter().all(|token| token.as_deref() == Some("Bearer secret")));
    assert_eq!(model(&server.hub(cache.path(), false), &spec(), cache.path()), Ok(located.clone()));
    assert_eq!(model(&server.hub(cache.path(), true), &spec(), cache.path()), Ok(located));
    assert_eq!(server.transfers(), []);
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    let server = Server::start(Play { cuts: [LLAMA.len(), 8, 1000].into(), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    let of_weights: Vec<usize> =
        server.transfers().into_iter().filter(|(_, name)| name == WEIGHTS).map(|(first, _)| first).collect();
    assert_eq!(of_weights, [0, 1000]);
}

#[test]
fn a_run_that_gave_up_is_resumed_by_the_next() {
    let server = Server::start(Play { cuts: [LLAMA.len(), 8, 10, 10, 10, 10].into(), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    let expected =
        format!("owner/name/{WEIGHTS} at {COMMIT}: gave up after 4 attempts; run again to go on where it stopped: ");
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("the connection was cut: got 40 bytes, expected 400000"), "{error}");
    server.transfers();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(server.transfers(), [(40, WEIGHTS.to_owned())]);
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
}

#[track_caller]
fn check_recovers_from_part(content: Vec<u8>) {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--owner--name/blobs");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(sha256_of(&weights())).with_extension("incomplete"), content).unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(blobs(cache.path()).len(), 3);
}

#[test]
fn whatever_a_killed_run_left_is_no_obstacle() {
    check_recovers_from_part(weights()[..500].to_vec());
    check_recovers_from_part(b"not these bytes".to_vec());
    check_recovers_from_part(vec![0; weights().len()]);
    check_recovers_from_part(weights());
    check_recovers_from_part([weights(), weights()].concat());
}

#[test]
fn a_cached_file_that_was_truncated_is_downloaded_again() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    std::fs::write(located.path.join(WEIGHTS), "truncated").unwrap();
    let error = model(&server.hub(cache.path(), true), &spec(), cache.path()).unwrap_err();
    assert!(
        error.contains("wrong file in the cache; unset HF_HUB_OFFLINE to download it again: sha256 is "),
        "{error}"
    );
    assert_eq!(model(&server.hub(cache.path(), false), &spec(), cache.path()), Ok(located.clone()));
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn content_that_the_hub_did_not_announce_is_never_used() {
    let announced = BTreeMap::from([(WEIGHTS, sha256_of(b"other"))]);
    let server = Server::start(Play { announced, ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    assert!(error.contains("gave up after 4 attempts; run again to go on where it stopped: "), "{error}");
    assert!(error.contains(&format!("but the hub announced {}", sha256_of(b"other"))), "{error}");
    let whole = blobs(cache.path()).into_iter().filter(|path| path.extension().is_none()).count();
    assert_eq!(whole, 2);
}

#[test]
fn a_wrong_pin_is_an_error_at_once_and_removes_nothing() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), false);
    let pinning =
        |name: &str, content: &[u8]| HubModel { sha256: BTreeMap::from([(name.into(), sha256_of(content))]), ..spec() };
    let wrong = |name: &str| {
        let error = model(&hub, &pinning(name, b"pin"), cache.path()).unwrap_err();
        assert!(error.starts_with(&format!("owner/name/{name} at {COMMIT}: ")), "{error}");
        let end = format!("expected {}; correct the pin or the revision", sha256_of(b"pin"));
        assert!(error.ends_with(&end), "{error}");
    };
    // In an empty cache: what the hub announced is kept, so that a corrected pin needs no second download.
    wrong(WEIGHTS);
    assert_eq!((server.transfers().len(), blobs(cache.path()).len()), (3, 3));
    let located = model(&hub, &spec(), cache.path()).unwrap();
    assert_eq!(server.transfers(), []);
    // In a full one, with and without a sha256 of the hub's own.
    let before = blobs(cache.path());
    wrong(WEIGHTS);
    wrong("config.json");
    assert_eq!(blobs(cache.path()), before);
    assert_eq!(model(&server.hub(cache.path(), true), &spec(), cache.path()), Ok(located));
    let error = model(&hub, &pinning("model.bin", b"pin"), cache.path()).unwrap_err();
    assert_eq!(error, "owner/name: key `sha256` pins `model.bin`, which is no file of this model");
}

#[test]
fn a_damaged_small_file_gives_way_to_the_pinned_one() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), false);
    let located = model(&hub, &spec(), cache.path()).unwrap();
    std::fs::write(located.path.join("tokenizer.json"), "{\"b\": 2}").unwrap();
    let pinned = HubModel { sha256: located.hashes.clone(), ..spec() };
    assert_eq!(model(&hub, &pinned, cache.path()), Ok(located.clone()));
    assert_eq!(std::fs::read(located.path.join("tokenizer.json")).unwrap(), b"{\"a\": 1}");
}

#[track_caller]
fn check_refused(play: Play, offline: bool, expected: &str) {
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), offline), &spec(), cache.path()).unwrap_err();
    assert!(error.contains(expected), "{error}");
    assert_eq!(blobs(cache.path()), Vec::<PathBuf>::new());
}

#[test]
fn refusals_say_what_to_do() {
    let without = |name| {
        let mut play = small_model();
        play.files.remove(name);
        play
    };
    let refusing = |status, headers| Play { refusal: Some(Fault::Status(status, headers)), ..small_model() };
    check_refused(refusing(404, &[]), false, "does not have it; check repository, revision and file name (status 404");
    check_refused(refusing(500, &[]), false, "gave up after 4 attempts; run again to go on where it stopped: ");
    check_refused(without("tokenizer.json"), false, "the repository has no tokenizer.json");
    check_refused(without(WEIGHTS), false, "the repository has no weights that are read");
    check_refused(small_model(), true, "HF_HUB_OFFLINE forbids the network; unset it");
}

/// What is said of a refusal with the hub's own code.
#[track_caller]
fn check_code(status: u16, headers: &'static [(&'static str, &'static str)], expected: &str) {
    check_refused(Play { refusal: Some(Fault::Status(status, headers)), ..small_model() }, false, expected);
}

#[test]
fn codes_of_the_hub_are_told_apart() {
    check_code(
        401,
        &[("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "Repository not found")],
        "has no such repository, or a private one; correct `owner/name`, or set HF_TOKEN or run `hf auth login` if it is private \
         (status 401 Unauthorized: Repository not found)",
    );
    check_code(403, &[("X-Error-Code", "GatedRepo")], "/owner/name, then set HF_TOKEN or run `hf auth login`");
    check_code(
        404,
        &[("X-Error-Code", "RevisionNotFound")],
        &format!("has no revision `{COMMIT}` of it; correct the key"),
    );
    check_code(404, &[("X-Error-Code", "EntryNotFound")], "has no such file in this revision");
    check_code(401, &[], "refuses the token; it may have expired");
    check_code(429, &[("Retry-After", "3600")], "the server asks to wait 3600 s; run again then: ");
}

#[test]
fn a_passing_fault_is_waited_out() {
    let faults = [Fault::Status(503, &[]), Fault::Status(429, &[("Retry-After", "1")]), Fault::Silence];
    let server = Server::start(Play { faults: faults.into(), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    // A second that the server asked for, and a second of silence.
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let listing = format!("GET /api/models/owner/name/revision/{COMMIT}");
    assert_eq!(server.requests()[..4], [listing.as_str(); 4]);
}

#[test]
fn a_server_that_stays_silent_is_given_up() {
    let server = Server::start(Play { refusal: Some(Fault::Silence), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    let gave_up =
        "gave up after 4 attempts; run again to go on where it stopped: cannot get it from 127.0.0.1; check the";
    assert!(error.contains(gave_up), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let other = Server::start(small_model());
    let elsewhere = Some(format!("{}/kept/", other.endpoint));
    let server = Server::start(Play { elsewhere, ..small_model() });
    other.play.lock().unwrap().cuts = [1000].into();
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    assert!(server.tokens().iter().all(|token| token.as_deref() == Some("Bearer secret")));
    assert_eq!(other.transfers(), [(0, WEIGHTS.to_owned()), (1000, WEIGHTS.to_owned())]);
    assert_eq!(other.tokens(), [None, None]);
}

#[test]
fn a_relative_redirect_keeps_the_token() {
    let server = Server::start(Play { elsewhere: Some("/kept/".into()), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    assert!(server.tokens().iter().all(|token| token.as_deref() == Some("Bearer secret")));
    assert!(server.requests().contains(&format!("GET /kept/{WEIGHTS}")));
}

#[test]
fn redirects_to_nowhere_and_without_end_are_refused() {
    for (elsewhere, expected) in [
        ("ftp://127.0.0.1/", "redirects to what is no http address"),
        ("http://[", "redirects to what is no address"),
        ("/owner/name/resolve/main/", "redirects without end"),
    ] {
        let server = Server::start(Play { elsewhere: Some(elsewhere.into()), ..small_model() });
        let cache = tempfile::tempdir().unwrap();
        let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_server_may_ignore_ranges_or_get_them_wrong() {
    for (ranges, expected) in [(Ranges::Ignored, vec![0, 1000]), (Ranges::Wrong, vec![0, 1000, 0])] {
        let server = Server::start(Play { cuts: [LLAMA.len(), 8, 1000].into(), ranges, ..small_model() });
        let cache = tempfile::tempdir().unwrap();
        let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
        assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
        let of_weights: Vec<usize> =
            server.transfers().into_iter().filter(|(_, name)| name == WEIGHTS).map(|(first, _)| first).collect();
        assert_eq!(of_weights, expected);
    }
}

#[test]
fn names_that_a_server_sends_cannot_leave_the_cache() {
    let announced = BTreeMap::from([(WEIGHTS, "../../evil".to_owned())]);
    let server = Server::start(Play { announced, ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    assert!(error.contains("the server announces `../../evil`, which is no hash"), "{error}");
    assert_eq!(blobs(cache.path()).len(), 2);
    let climbing = HubFile {
        repo: "owner/name".into(),
        revision: COMMIT.into(),
        file: "../x".into(),
        sha256: Some(sha256_of(b"")),
    };
    let error = server.hub(cache.path(), false).data_file(&climbing, &Hashes::new(Progress::Quiet)).unwrap_err();
    assert!(error.to_string().contains("no name of a file"), "{error}");
}

#[test]
fn two_cold_starts_at_once_share_one_download() {
    let server = Server::start(Play { pause: Duration::from_millis(200), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let start = || model(&server.hub(cache.path(), false), &spec(), cache.path());
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(start);
        (start(), other.join().unwrap())
    });
    assert_eq!(first, second);
    assert_eq!(std::fs::read(first.unwrap().path.join(WEIGHTS)).unwrap(), weights());
    let mut transfers = server.transfers();
    transfers.sort();
    let once = ["config.json", WEIGHTS, "tokenizer.json"].map(|name| (0, name.to_owned()));
    assert_eq!(transfers, once);
}

#[test]
fn a_cache_on_a_file_system_without_locks_works() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    std::fs::write(cache.path().join(".locks"), "no folder").unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(blobs(cache.path()).len(), 3);
}

#[test]
fn a_model_of_an_unknown_kind_costs_no_download() {
    let mut play = small_model();
    play.files.insert("config.json", LLAMA.replace("LlamaForCausalLM", "MambaForCausalLM").into());
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    assert!(error.starts_with(&format!("owner/name at {COMMIT}: not downloaded: ")), "{error}");
    assert!(error.contains("MambaForCausalLM"), "{error}");
    assert_eq!(server.transfers(), [(0, "config.json".to_owned())]);
}

#[test]
fn a_branch_is_found_again_by_its_commit() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let main = HubModel { revision: "main".into(), ..spec() };
    let located = model(&server.hub(cache.path(), false), &main, cache.path()).unwrap();
    let repo = cache.path().join("models--owner--name");
    assert_eq!(located.path, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(model(&server.hub(cache.path(), true), &main, cache.path()), Ok(located));
}

#[test]
fn a_wholly_pinned_model_is_assembled_from_asset_folders() {
    let server = Server::start(Play { refusal: Some(Fault::Status(500, &[])), ..Play::default() });
    let cache = tempfile::tempdir().unwrap();
    let assets = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 3] =
        [("config.json", LLAMA.as_bytes()), ("tokenizer.json", b"[]"), (WEIGHTS, b"weights")];
    for (name, content) in files {
        std::fs::write(assets.path().join(format!("renamed-{name}")), content).unwrap();
    }
    let sha256 = files.map(|(name, content)| (name.to_owned(), sha256_of(content)));
    let pinned = HubModel { sha256: sha256.into(), ..spec() };
    let folders = AssetFolders::new(vec![assets.path().to_owned()]).unwrap();
    let hub = server.hub(cache.path(), false);
    let located = hub.model(&pinned, &folders, cache.path(), &Hashes::new(Progress::Quiet)).unwrap();
    assert_eq!(located.hashes, pinned.sha256);
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), b"weights");
}

#[test]
fn a_pinned_model_of_an_unknown_kind_is_refused_before_its_weights_are_searched() {
    let assets = tempfile::tempdir().unwrap();
    let config = LLAMA.replace("LlamaForCausalLM", "MambaForCausalLM");
    std::fs::write(assets.path().join("c.json"), &config).unwrap();
    let content = [("config.json", config.as_bytes()), ("tokenizer.json", b"[]"), (WEIGHTS, b"not there")];
    let sha256 = content.map(|(name, content)| (name.to_owned(), sha256_of(content)));
    let pinned = HubModel { sha256: sha256.into(), ..spec() };
    let folders = AssetFolders::new(vec![assets.path().to_owned()]).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let error = assembled::model(&pinned, &folders, cache.path(), &Hashes::new(Progress::Quiet)).unwrap_err();
    assert!(format!("{error:#}").contains("MambaForCausalLM"), "{error:#}");
}

#[test]
fn the_token_is_not_printed() {
    let settings = HubSettings { endpoint: "http://e".into(), cache: "c".into(), token: Token::new(" hf_secret\n") };
    assert_eq!(format!("{settings:?}"), r#"HubSettings { endpoint: "http://e", cache: "c", token: Some(***) }"#);
    let hub = Hub::new(settings.clone(), false, Patience::default(), Progress::Quiet).unwrap();
    assert!(!format!("{hub:?}").contains("secret"), "{hub:?}");
    let settings = HubSettings { token: Token::new("hf_sec\nret"), ..settings };
    let error = Hub::new(settings, false, Patience::default(), Progress::Quiet).unwrap_err().to_string();
    assert!(error.ends_with("set HF_TOKEN again") && !error.contains("hf_"), "{error}");
}

#[test]
fn an_endpoint_is_an_address() {
    for endpoint in ["", "huggingface.co", "ftp://h", "https://"] {
        let settings = HubSettings { endpoint: endpoint.into(), cache: "c".into(), token: None };
        let error = Hub::new(settings, false, Patience::default(), Progress::Quiet).unwrap_err().to_string();
        assert!(error.starts_with(&format!("HF_ENDPOINT: `{endpoint}` is no address")), "{error}");
    }
}

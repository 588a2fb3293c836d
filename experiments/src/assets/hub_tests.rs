//! The hub client against a server on this machine that plays the hub, with its habits and its failures.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does.
#[derive(Default)]
struct Play {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Files announced with a sha256, and which.
    announced: BTreeMap<&'static str, String>,
    /// After how many bytes to cut each of the next transfers off.
    cuts: VecDeque<usize>,
    /// Status to refuse everything with.
    refuse: Option<u16>,
    /// First byte and file of each transfer asked for.
    transfers: Vec<(usize, String)>,
    tokens: Vec<String>,
}

struct Server {
    endpoint: String,
    play: Arc<Mutex<Play>>,
}

impl Server {
    fn start(play: Play) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let play = Arc::new(Mutex::new(play));
        let shared = Arc::clone(&play);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away early is part of the play.
                let _ = answer(stream.unwrap(), &shared);
            }
        });
        Self { endpoint, play }
    }

    fn hub(&self, cache: &Path, offline: bool) -> Hub {
        let settings =
            HubSettings { endpoint: self.endpoint.clone(), cache: cache.to_owned(), token: Some("secret".into()) };
        let hub = Hub::new(settings, offline, Progress::Quiet).unwrap();
        Hub { pauses: vec![Duration::ZERO; 3], ..hub }
    }

    fn transfers(&self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.play.lock().unwrap().transfers)
    }
}

fn answer(mut stream: TcpStream, play: &Mutex<Play>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let mut range = String::new();
    let mut play = play.lock().unwrap();
    for line in lines {
        let line = line?;
        match line.to_lowercase().split_once(": ") {
            Some(("range", value)) => range = value.to_owned(),
            Some(("authorization", _)) => play.tokens.push(line.split_once(": ").unwrap().1.to_owned()),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let mut refuse =
        |status: u16| write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if let Some(status) = play.refuse {
        return refuse(status);
    }
    if path.starts_with("/api/models/owner/name/revision/") {
        let siblings: Vec<_> = play.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"siblings": siblings, "sha": COMMIT}).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    }
    let name = path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, name)| name.to_owned());
    let Some((name, body)) = name.and_then(|name| play.files.get(name.as_str()).cloned().map(|body| (name, body)))
    else {
        return refuse(404);
    };
    let etag = play.announced.get(name.as_str()).cloned().unwrap_or_else(|| format!("{:040x}", body.len()));
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    if first >= body.len() {
        return refuse(416);
    }
    let end = last.parse::<usize>().map_or(body.len(), |last| last + 1);
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \"{etag}\"\r\n\
         X-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        end - first,
        end - 1,
        body.len()
    )?;
    let mut sent = end - first;
    if last.is_empty() {
        play.transfers.push((first, name));
        sent = play.cuts.pop_front().unwrap_or(sent).min(sent);
    }
    stream.write_all(&body[first..first + sent])
}

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

fn small_model() -> Play {
    Play {
        files: BTreeMap::from([
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{\"a\": 1}".to_vec()),
            ("README.md", b"not wanted".to_vec()),
            (WEIGHTS, weights()),
        ]),
        announced: BTreeMap::from([(WEIGHTS, sha256_of(&weights()))]),
        ..Play::default()
    }
}

fn spec() -> HubModel {
    HubModel { repo: "owner/name".into(), revision: COMMIT.into(), sha256: BTreeMap::new() }
}

fn model(hub: &Hub, spec: &HubModel, cache: &Path) -> Result<LocatedModel, String> {
    let folders = AssetFolders::new(vec![]).unwrap();
    hub.model(spec, &folders, cache, &Hashes::new(Progress::Quiet)).map_err(|error| format!("{error:#}"))
}

/// Files left in the cache that are neither whole files nor locks.
fn leftovers(cache: &Path) -> Vec<PathBuf> {
    let blobs = cache.join("models--owner--name/blobs");
    let kept = |path: &PathBuf| path.extension().is_none_or(|extension| extension != "lock");
    if blobs.is_dir() { crate::assets::files_in(&blobs).unwrap().into_iter().filter(kept).collect() } else { vec![] }
}

#[test]
fn a_model_is_downloaded_once_and_found_offline() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(located.hashes["config.json"], sha256_of(b"{}"));
    assert_eq!(server.transfers().len(), 3);
    assert!(server.play.lock().unwrap().tokens.iter().all(|token| token == "Bearer secret"));
    assert_eq!(model(&server.hub(cache.path(), false), &spec(), cache.path()), Ok(located.clone()));
    assert_eq!(model(&server.hub(cache.path(), true), &spec(), cache.path()), Ok(located));
    assert_eq!(server.transfers(), []);
}

#[test]
fn shards_are_taken_from_the_index() {
    let mut play = small_model();
    play.files.remove(WEIGHTS);
    play.files.insert(INDEX, br#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}"#.to_vec());
    play.files.insert("1.safetensors", b"one".to_vec());
    play.files.insert("2.safetensors", b"second".to_vec());
    play.files.insert("3.safetensors", b"not in the index".to_vec());
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    assert_eq!(names, ["1.safetensors", "2.safetensors", "config.json", INDEX, "tokenizer.json"]);
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    let server = Server::start(Play { cuts: [2, 8, 1000].into(), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    let of_weights: Vec<usize> =
        server.transfers().into_iter().filter(|(_, name)| name == WEIGHTS).map(|(first, _)| first).collect();
    assert_eq!(of_weights, [0, 1000]);
}

#[test]
fn a_run_that_gave_up_is_resumed_by_the_next() {
    let server = Server::start(Play { cuts: [2, 8, 10, 10, 10, 10].into(), ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    let expected = format!("owner/name/{WEIGHTS} at {COMMIT}: gave up after 4 attempts: ");
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("check the network, HF_ENDPOINT and the free space of the cache"), "{error}");
    server.transfers();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(server.transfers(), [(40, WEIGHTS.to_owned())]);
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
}

#[track_caller]
fn check_recovers_from_part(content: Vec<u8>) {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--owner--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(sha256_of(&weights())).with_extension("part"), content).unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert_eq!(std::fs::read(located.path.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(leftovers(cache.path()).len(), 3);
}

#[test]
fn whatever_a_killed_run_left_is_no_obstacle() {
    check_recovers_from_part(weights()[..500].to_vec());
    check_recovers_from_part(b"not these bytes".to_vec());
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
fn content_that_the_hub_did_not_announce_is_removed() {
    let announced = BTreeMap::from([(WEIGHTS, sha256_of(b"other"))]);
    let server = Server::start(Play { announced, ..small_model() });
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap_err();
    assert!(error.contains("gave up after 4 attempts: "), "{error}");
    assert!(error.contains(&format!("but the hub announced {}", sha256_of(b"other"))), "{error}");
    assert_eq!(leftovers(cache.path()).len(), 2);
}

#[test]
fn a_wrong_pin_is_an_error_at_once() {
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    for (name, n_downloads, n_kept) in [(WEIGHTS, 3, 3), ("config.json", 1, 2)] {
        let pinned = HubModel { sha256: BTreeMap::from([(name.into(), sha256_of(b"pin"))]), ..spec() };
        let error = model(&server.hub(cache.path(), false), &pinned, cache.path()).unwrap_err();
        assert!(error.starts_with(&format!("owner/name/{name} at {COMMIT}: ")), "{error}");
        assert!(
            error.ends_with(&format!("expected {}; correct the pin or the revision", sha256_of(b"pin"))),
            "{error}"
        );
        assert_eq!((server.transfers().len(), leftovers(cache.path()).len()), (n_downloads, n_kept));
    }
    let pinned = HubModel { sha256: BTreeMap::from([("model.bin".into(), sha256_of(b"pin"))]), ..spec() };
    let error = model(&server.hub(cache.path(), false), &pinned, cache.path()).unwrap_err();
    assert_eq!(error, "owner/name: key `sha256` pins `model.bin`, which is no file of this model");
}

#[track_caller]
fn check_refused(play: Play, offline: bool, expected: &str) {
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let error = model(&server.hub(cache.path(), offline), &spec(), cache.path()).unwrap_err();
    assert!(error.contains(expected), "{error}");
    assert_eq!(leftovers(cache.path()), Vec::<PathBuf>::new());
}

#[test]
fn refusals_say_what_to_do() {
    let without = |name| {
        let mut play = small_model();
        play.files.remove(name);
        play
    };
    let refusing = |status| Play { refuse: Some(status), ..small_model() };
    check_refused(refusing(404), false, "does not have it; check repository, revision and file name");
    check_refused(refusing(401), false, "if the repository is gated, accept its terms there, then set HF_TOKEN");
    check_refused(refusing(500), false, "check the network, HF_ENDPOINT");
    check_refused(without("tokenizer.json"), false, "the repository has no tokenizer.json");
    check_refused(without(WEIGHTS), false, "the repository has no safetensors weights");
    check_refused(small_model(), true, "HF_HUB_OFFLINE forbids the network; unset it");
}

#[test]
fn a_wholly_pinned_model_is_assembled_from_asset_folders() {
    let server = Server::start(Play { refuse: Some(500), ..Play::default() });
    let cache = tempfile::tempdir().unwrap();
    let assets = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 3] = [("config.json", b"{}"), ("tokenizer.json", b"[]"), (WEIGHTS, b"weights")];
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
fn the_token_is_not_printed() {
    let settings = HubSettings { endpoint: "e".into(), cache: "c".into(), token: Some("secret".into()) };
    assert_eq!(format!("{settings:?}"), r#"HubSettings { endpoint: "e", cache: "c", token: Some("set") }"#);
}

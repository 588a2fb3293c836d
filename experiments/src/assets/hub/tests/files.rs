//! Which files of a repository are taken.

use super::*;

/// Programs that share the cache list what lies in a snapshot, and a full disk must not cost a revision that is known.
#[cfg(unix)]
#[test]
fn a_killed_run_leaves_nothing_in_a_snapshot_and_a_known_revision_is_left_alone() {
    use std::os::unix::fs::MetadataExt;
    let server = Server::start(small_model());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), false);
    let main = HubModel { revision: "main".into(), ..spec() };
    model(&hub, &main, cache.path()).unwrap();
    let repo = cache.path().join("models--owner--name");
    let inode = || repo.join("refs/main").metadata().unwrap().ino();
    let (before, link) = (inode(), repo.join("snapshots").join(COMMIT).join("config.json"));
    // As a kill leaves it while a link is made.
    std::fs::create_dir(repo.join(".awq-link-left")).unwrap();
    std::fs::write(repo.join(".awq-link-left.lock"), "").unwrap();
    std::fs::write(repo.join("refs/.awq-partial-left.tmp"), "").unwrap();
    std::fs::remove_file(&link).unwrap();
    model(&hub, &main, cache.path()).unwrap();
    assert!(link.is_file());
    assert_eq!(inode(), before, "the ref was written again");
    std::fs::write(repo.join("refs/main"), "").unwrap();
    std::fs::remove_file(&link).unwrap();
    model(&hub, &main, cache.path()).unwrap();
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<_> = repo.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "refs", "snapshots"]);
    assert_eq!(repo.join("refs").read_dir().unwrap().count(), 1);
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
fn pickled_weights_are_taken_where_there_are_no_others() {
    let mut play = small_model();
    play.files.insert("pytorch_model.bin", b"pickled".to_vec());
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    assert!(!located.hashes.contains_key("pytorch_model.bin"));
    let mut play = small_model();
    play.files.remove(WEIGHTS);
    play.files.insert("pytorch_model.bin.index.json", br#"{"weight_map": {"a": "1.bin"}}"#.to_vec());
    play.files.insert("1.bin", b"one".to_vec());
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    assert_eq!(names, ["1.bin", "config.json", "pytorch_model.bin.index.json", "tokenizer.json"]);
}

#[test]
fn older_files_of_a_tokenizer_are_taken_where_there_is_no_other() {
    let mut play = small_model();
    play.files.remove("tokenizer.json");
    for name in ["merges.txt", "vocab.json", "tokenizer.model", "added_tokens.json"] {
        play.files.insert(name, b"{}".to_vec());
    }
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    assert_eq!(names, ["added_tokens.json", "config.json", "merges.txt", WEIGHTS, "tokenizer.model", "vocab.json"]);
}

#[test]
fn what_the_loader_reads_beside_the_weights_is_taken_along() {
    let mut play = small_model();
    for name in ["chat_template.jinja", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"] {
        play.files.insert(name, b"{}".to_vec());
    }
    let server = Server::start(play);
    let cache = tempfile::tempdir().unwrap();
    let located = model(&server.hub(cache.path(), false), &spec(), cache.path()).unwrap();
    let names: Vec<&str> = located.hashes.keys().map(String::as_str).collect();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    assert!(names.iter().all(|name| located.path.join(name).is_file()));
}

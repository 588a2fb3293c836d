use std::path::Path;

use super::super::gguf_parts;
use super::open_file;
use super::{counting, small_model};
use crate::load::Checkpoint;
use crate::load::testing::GgufWriter;

/// Of two parts, as `llama-gguf-split` makes them: the first has all keys, the second none but those of parts.
fn parts() -> [GgufWriter; 2] {
    let first = small_model("llama").u32("split.no", 0).u32("split.count", 2).u32("split.tensors.count", 5);
    let second = GgufWriter::new().u32("split.no", 1).u32("split.count", 2).u32("split.tensors.count", 5);
    [first, second.f32_tensor("output_norm.weight", &[8], &counting(8))]
}

/// What opening `given` says where files of these names lie beside each other.
fn opened(files: &[(&str, &GgufWriter)], given: &str) -> Result<(Vec<f32>, u64), String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, writer) in files {
        std::fs::write(folder.path().join(name), writer.bytes()).unwrap();
    }
    let opened = open_file(&folder.path().join(given)).map_err(|error| error.to_string())?;
    assert_eq!(opened.config.n_blocks, 1);
    let checkpoint = opened.checkpoint;
    assert_eq!(checkpoint.names().len(), 5);
    assert_eq!(checkpoint.source(), folder.path().join(files[0].0));
    assert_eq!(checkpoint.file_of("model.norm.weight"), folder.path().join(files[1].0));
    assert_eq!(checkpoint.read_f32("model.embed_tokens.weight").unwrap(), counting(24));
    Ok((checkpoint.read_f32("model.norm.weight").unwrap(), checkpoint.bytes_on_disk()))
}

const FIRST: &str = "m-00001-of-00002.gguf";
const SECOND: &str = "m-00002-of-00002.gguf";

#[test]
fn a_model_in_parts_is_opened_by_any_of_them() {
    let [first, second] = parts();
    for given in [FIRST, SECOND] {
        let (norm, n_bytes) = opened(&[(FIRST, &first), (SECOND, &second)], given).unwrap();
        assert_eq!(norm, counting(8));
        assert_eq!(n_bytes, (first.bytes().len() + second.bytes().len()) as u64);
    }
}

#[track_caller]
fn check_error(files: &[(&str, &GgufWriter)], given: &str, expected: &str) {
    let message = opened(files, given).unwrap_err();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_model_whose_parts_do_not_fit_is_refused() {
    let [first, second] = parts();
    check_error(&[(FIRST, &first)], FIRST, "key \"split.count\": part 2 of 2 is missing: ");
    check_error(&[(FIRST, &first)], FIRST, "m-00002-of-00002.gguf; put all parts into one folder");
    check_error(&[(SECOND, &second)], SECOND, "part 1 of 2 is missing");
    check_error(
        &[("a.gguf", &first)],
        "a.gguf",
        "one of 2 parts, and its name does not end as theirs do, with -00001-of-00002.gguf",
    );
    check_error(
        &[(FIRST, &second), (SECOND, &first)],
        FIRST,
        "m-00001-of-00002.gguf: key \"split.no\": this is not part 1 of 2, as its name has it",
    );
    check_error(&[(FIRST, &first), (SECOND, &small_model("llama"))], FIRST, "this is not part 2 of 2");
    let again = second.clone().f32_tensor("token_embd.weight", &[3, 8], &counting(24));
    check_error(
        &[(FIRST, &first), (SECOND, &again)],
        FIRST,
        "m-00002-of-00002.gguf: bad header: tensor \"token_embd.weight\" stands in another part as well",
    );
    let more = second.f32_tensor("output.weight", &[3, 8], &counting(24));
    check_error(&[(FIRST, &first), (SECOND, &more)], FIRST, "key \"split.tensors.count\": 5, but the parts have 6");
    // A part of which nothing is left but its first bytes.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FIRST), first.bytes()).unwrap();
    std::fs::write(folder.path().join(SECOND), b"GGUF").unwrap();
    let message = open_file(&folder.path().join(FIRST)).err().unwrap().to_string();
    assert!(message.contains("m-00002-of-00002.gguf") && message.contains("truncated"), "{message}");
}

#[test]
fn names_of_parts_name_each_other() {
    let names = |name: &str| -> Vec<String> {
        let parts = gguf_parts(Path::new(name));
        parts.into_iter().map(|part| part.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("a/m-00002-of-00002.GGUF"), ["a/m-00001-of-00002.GGUF", "a/m-00002-of-00002.GGUF"]);
    assert_eq!(names("x-00001-of-00001.gguf"), ["x-00001-of-00001.gguf"]);
    for whole in ["m.gguf", "m-00003-of-00002.gguf", "m-0001-of-0002.gguf", "m-00001-of-0000x.gguf", "-of-.gguf", "é"]
    {
        assert_eq!(names(whole), [whole]);
    }
}

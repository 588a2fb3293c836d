//! Validation split of the Pile (Gao et al. 2020), which the AWQ code calibrates on: 214,670 documents of mixed kind.
//!
//! The whole split is kept in memory (about 1.3 GB), as the sampling rules draw from all of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::Text;
use crate::assets::{AssetSource, AssetStore, HubFile};
use crate::config::sources::PileVal;

/// # Errors
/// No source has the file, or it is not the pinned one.
pub(super) fn load(_spec: &PileVal, store: &AssetStore) -> anyhow::Result<Text> {
    Ok(Text::new("pile-val", load_kind(None, store)?, "\n\n"))
}

/// The documents of one kind (the key `pile_set_name`), or of all.
///
/// # Errors
/// No source has the file, it is not the pinned one, or it holds no such document.
pub(super) fn load_kind(kind: Option<&str>, store: &AssetStore) -> anyhow::Result<Vec<String>> {
    let source = AssetSource::Hub(HubFile {
        repo: "mit-han-lab/pile-val-backup".into(),
        revision: "2f5e46ae6a69cf0dce4b12f78241c408936ca0e4".into(),
        file: "val.jsonl.zst".into(),
        sha256: Some("264c875d8bbd355d8daa9d032b75fd8fb91606218bb84dd1155b203fcd5fab92".into()),
    });
    let path = store.fetch("pile-val", &[source])?.path;
    let file = File::open(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    documents(file, kind).with_context(|| path.display().to_string())
}

/// The key `text` of each line of a zstd-compressed JSON Lines file, without outer white space: the AWQ code strips it.
/// Only those of one kind, where one is given.
fn documents(compressed: impl Read, kind: Option<&str>) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
        meta: Option<Meta>,
    }
    #[derive(Deserialize)]
    struct Meta {
        pile_set_name: String,
    }
    let lines = BufReader::new(zstd::stream::read::Decoder::new(compressed).context("not a zstd file")?).lines();
    let mut documents = Vec::new();
    for (line_idx, line) in lines.enumerate() {
        let place = || format!("line {}", line_idx + 1);
        let line = line.with_context(|| format!("{}: cannot decompress; the file is damaged", place()))?;
        let Line { text, meta } = serde_json::from_str(&line).with_context(place)?;
        if kind.is_none_or(|kind| meta.is_some_and(|meta| meta.pile_set_name == kind)) {
            documents.push(text.trim().to_owned());
        }
    }
    ensure!(
        !documents.is_empty(),
        "the file holds no document{}",
        kind.map(|kind| format!(" of the kind {kind}")).unwrap_or_default()
    );
    Ok(documents)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn compressed(text: &str) -> Vec<u8> {
        zstd::stream::encode_all(text.as_bytes(), 1).unwrap()
    }

    #[test]
    fn each_line_is_a_stripped_document() {
        let lines = "{\"text\": \" a\\nb\\n\", \"meta\": {\"pile_set_name\": \"x\"}}\n{\"text\": \"\"}\n";
        assert_eq!(documents(compressed(lines).as_slice(), None).unwrap(), ["a\nb", ""]);
        assert_eq!(documents(compressed(lines).as_slice(), Some("x")).unwrap(), ["a\nb"]);
        let error = documents(compressed(lines).as_slice(), Some("y")).unwrap_err();
        assert_eq!(error.to_string(), "the file holds no document of the kind y");
    }

    #[test]
    fn bad_files_name_the_line() {
        let error = |bytes: &[u8]| format!("{:#}", documents(bytes, None).unwrap_err());
        assert!(error(&compressed("{\"text\": \"a\"}\n{\"words\": 1}\n")).starts_with("line 2: missing field `text`"));
        assert_eq!(error(&compressed("")), "the file holds no document");
        let lines: String = (0..1000).map(|i| format!("{{\"text\": \"{}\"}}\n", i * i)).collect();
        let whole = compressed(&lines);
        let truncated = error(&whole[..whole.len() / 2]);
        assert!(truncated.contains("cannot decompress; the file is damaged"), "{truncated}");
        assert!(error(b"no zstd").contains("cannot decompress"), "{}", error(b"no zstd"));
    }
}

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
    let source = AssetSource::Hub(HubFile {
        repo: "mit-han-lab/pile-val-backup".into(),
        revision: "2f5e46ae6a69cf0dce4b12f78241c408936ca0e4".into(),
        file: "val.jsonl.zst".into(),
        sha256: "264c875d8bbd355d8daa9d032b75fd8fb91606218bb84dd1155b203fcd5fab92".into(),
    });
    let path = store.fetch("pile-val", &[source])?.path;
    let file = File::open(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let documents = documents(file).with_context(|| path.display().to_string())?;
    Ok(Text::new("pile-val", documents, "\n\n"))
}

/// The key `text` of each line of a zstd-compressed JSON Lines file, without outer white space: the AWQ code strips it.
fn documents(compressed: impl Read) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
    }
    let lines = BufReader::new(zstd::stream::read::Decoder::new(compressed).context("not a zstd file")?).lines();
    let mut documents = Vec::new();
    for (line_idx, line) in lines.enumerate() {
        let place = || format!("line {}", line_idx + 1);
        let line = line.with_context(|| format!("{}: cannot decompress; the file is damaged", place()))?;
        let Line { text } = serde_json::from_str(&line).with_context(place)?;
        documents.push(text.trim().to_owned());
    }
    ensure!(!documents.is_empty(), "the file holds no document");
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
        assert_eq!(documents(compressed(lines).as_slice()).unwrap(), ["a\nb", ""]);
    }

    #[test]
    fn bad_files_name_the_line() {
        let error = |bytes: &[u8]| format!("{:#}", documents(bytes).unwrap_err());
        assert!(error(&compressed("{\"text\": \"a\"}\n{\"words\": 1}\n")).starts_with("line 2: missing field `text`"));
        assert_eq!(error(&compressed("")), "the file holds no document");
        let lines: String = (0..1000).map(|i| format!("{{\"text\": \"{}\"}}\n", i * i)).collect();
        let whole = compressed(&lines);
        let truncated = error(&whole[..whole.len() / 2]);
        assert!(truncated.contains("cannot decompress; the file is damaged"), "{truncated}");
        assert!(error(b"no zstd").contains("cannot decompress"), "{}", error(b"no zstd"));
    }
}

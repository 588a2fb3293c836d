//! Any text file, pinned by its sha256. Its bytes are taken as they are, line ends and a byte order mark included, as
//! llama-perplexity and Python's `encoding="utf-8"` take them.

use super::Text;
use crate::assets::AssetStore;
use crate::config::sources::{DocumentSeparator, TextFile};
use crate::encoding::read_utf8;

/// # Errors
/// A file that is not there, has another content or is not UTF-8.
pub(super) fn load(spec: &TextFile, store: &AssetStore) -> anyhow::Result<Text> {
    let path = store.named_file(&spec.path, &spec.sha256)?.path;
    let text = read_utf8(&path)?;
    let (documents, separator) = cut(text, spec.documents);
    Ok(Text::new(spec.name.clone(), documents, separator))
}

/// The documents and what stands between them when they are joined again.
fn cut(text: String, documents: DocumentSeparator) -> (Vec<String>, &'static str) {
    match documents {
        DocumentSeparator::None => (vec![text], ""),
        DocumentSeparator::Line => {
            (text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect(), "\n")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_one_document_or_one_a_line() {
        let text = "a\n\n b \n \nc".to_owned();
        assert_eq!(cut(text.clone(), DocumentSeparator::None), (vec![text.clone()], ""));
        assert_eq!(cut(text, DocumentSeparator::Line), (vec!["a".into(), " b ".into(), "c".into()], "\n"));
    }

    #[test]
    fn files_of_the_asset_folders_are_found_by_hash() {
        let Some((_cache, store)) = super::super::development_store("files_of_the_asset_folders_are_found_by_hash")
        else {
            return;
        };
        let c4 = TextFile {
            name: "c4".into(),
            path: "c4-584-docs.txt".into(),
            sha256: "2daf1ef16e02dbd337f86296acd4c3f2eb703800ad21fd1f48b40280c699cd41".into(),
            documents: DocumentSeparator::Line,
        };
        assert_eq!(load(&c4, &store).unwrap().documents.len(), 584);
    }

    fn read(bytes: &[u8]) -> Result<Text, String> {
        use crate::assets::{AssetSettings, AssetStore, Progress, sha256_of};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.txt");
        std::fs::write(&path, bytes).unwrap();
        let settings = AssetSettings::from_env(&[], Progress::Quiet).unwrap();
        let settings = AssetSettings { cache: folder.path().to_owned(), folders: vec![], ..settings };
        let sha256 = sha256_of(bytes);
        let spec = TextFile { name: "t".into(), path: path.clone(), sha256, documents: DocumentSeparator::None };
        let read = load(&spec, &AssetStore::new(settings).unwrap());
        read.map_err(|error| format!("{error:#}").replace(&path.display().to_string(), "t.txt"))
    }

    #[test]
    fn text_in_another_encoding_is_an_error() {
        assert_eq!(
            read(b"caf\xe9").unwrap_err(),
            "t.txt: is not UTF-8: byte 4 (0xe9) begins no character; if it is Latin-1 or Windows-1252, convert it with \
             `iconv -f WINDOWS-1252 -t UTF-8`"
        );
        assert_eq!(
            read(b"\xff\xfec\0a\0").unwrap_err(),
            "t.txt: is UTF-16, as its byte order mark says; convert it with `iconv -f UTF-16 -t UTF-8`"
        );
    }

    #[test]
    fn bytes_are_taken_as_they_are() {
        let text = read(b"\xef\xbb\xbfa\r\nb\rc\0").unwrap();
        assert_eq!(text.documents, ["\u{feff}a\r\nb\rc\0"]);
    }
}

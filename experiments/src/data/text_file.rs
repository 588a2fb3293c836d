//! Any text file, pinned by its sha256.

use anyhow::Context;

use super::Text;
use crate::assets::AssetStore;
use crate::config::sources::{DocumentSeparator, TextFile};

/// # Errors
/// A file that is not there, has another content or is not UTF-8.
pub(super) fn load(spec: &TextFile, store: &AssetStore) -> anyhow::Result<Text> {
    let path = store.named_file(&spec.path, &spec.sha256)?.path;
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read as UTF-8", path.display()))?;
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

    #[test]
    fn text_that_is_not_utf8_is_an_error() {
        use crate::assets::{AssetSettings, Progress};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        std::fs::write(&path, b"caf\xe9").unwrap();
        let settings = AssetSettings::from_env(&[], Progress::Quiet).unwrap();
        let settings = AssetSettings { cache: folder.path().to_owned(), folders: vec![], ..settings };
        let sha256 = "dafd66c0b98965e688be1fc12942c09f0350e6be0685017c3f234e97d0adc92e".into();
        let spec = TextFile { name: "t".into(), path: path.clone(), sha256, documents: DocumentSeparator::None };
        let error = load(&spec, &crate::assets::AssetStore::new(settings).unwrap()).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("{}: cannot read as UTF-8: ", path.display())), "{error:#}");
    }
}

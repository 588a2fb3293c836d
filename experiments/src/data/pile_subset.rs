//! One kind of document of the Pile's validation split: PubMed abstracts or Enron mails, between which the AWQ paper tests how
//! a method takes calibration on the wrong text (Figure 8b). The two splits of a kind are this project's own.

use super::{Text, pile_val};
use crate::assets::AssetStore;
use crate::config::sources::{PileKind, PileSplit, PileSubset};

/// # Errors
/// No source has the file, or it is not the pinned one.
pub(super) fn load(spec: &PileSubset, store: &AssetStore) -> anyhow::Result<Text> {
    let (kind, name) = match spec.kind {
        PileKind::PubmedAbstracts => ("PubMed Abstracts", "pile-pubmed-abstracts"),
        PileKind::EnronEmails => ("Enron Emails", "pile-enron-emails"),
    };
    let documents = pile_val::load_kind(Some(kind), store)?;
    let split_name = match spec.split {
        PileSplit::Calibration => "calibration",
        PileSplit::Test => "test",
    };
    Ok(Text::new(format!("{name}-{split_name}"), every_other(documents, spec.split), "\n\n"))
}

fn every_other(documents: Vec<String>, split: PileSplit) -> Vec<String> {
    let first = match split {
        PileSplit::Calibration => 0,
        PileSplit::Test => 1,
    };
    documents.into_iter().skip(first).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_splits_share_no_document_and_leave_none_out() {
        let documents = || ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        assert_eq!(every_other(documents(), PileSplit::Calibration), ["a", "c", "e"]);
        assert_eq!(every_other(documents(), PileSplit::Test), ["b", "d"]);
    }
}

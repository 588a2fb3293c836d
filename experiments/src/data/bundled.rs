//! Text in the bundled language, of which the true entropy is known.

use super::Text;
use crate::config::sources::{BundledSplit, BundledText};

/// The documents of `spec` as `document` makes them: text and true information content in nats of the document of a
/// number. Each ends with a line feed, which the model has learnt as the end of a document and which is no news.
pub(super) fn load(spec: &BundledText, document: impl Fn(u32) -> (String, f64)) -> Text {
    let split = match spec.split {
        BundledSplit::Calibration => "calibration",
        BundledSplit::Test => "test",
    };
    let (documents, nats): (Vec<String>, Vec<f64>) =
        (0..spec.n_documents.get()).map(document).map(|(text, nats)| (text + "\n", nats)).unzip();
    let text = Text::new(format!("bundled-{split}"), documents, "");
    Text { true_nats: Some(nats.iter().sum()), ..text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn documents_are_lines_and_their_information_adds_up() {
        let spec = BundledText { split: BundledSplit::Test, n_documents: 3.try_into().unwrap() };
        let text = load(&spec, |document_idx| (format!("document {document_idx}."), f64::from(document_idx) + 0.5));
        assert_eq!(text.joined(), "document 0.\ndocument 1.\ndocument 2.\n");
        assert_eq!((text.name.as_str(), text.true_nats), ("bundled-test", Some(4.5)));
    }
}

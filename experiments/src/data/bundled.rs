//! Text in the bundled language, of which the true entropy is known.

use super::Text;
use crate::config::sources::{BundledSplit, BundledText, BundledTopic};

/// The documents of `spec` as `document` makes them: text and true information content in nats of the document of a
/// number. Each ends with a line feed, which the model has learnt as the end of a document and which is no news.
///
/// Of documents that were picked by their topic the entropy is not told: whoever knows the topic knows more than `document`.
pub(super) fn load(spec: &BundledText, document: impl Fn(u32) -> (String, f64)) -> Text {
    let split = match spec.split {
        BundledSplit::Calibration => "calibration",
        BundledSplit::Test => "test",
    };
    let topic = spec.topic.map(word);
    let is_wanted = |(text, _): &(String, f64)| topic.is_none_or(|topic| topic_of(text) == Some(topic));
    let wanted = (0..=u32::MAX).map(document).filter(is_wanted).take(spec.n_documents.get() as usize);
    let (documents, nats): (Vec<String>, Vec<f64>) = wanted.map(|(text, nats)| (text + "\n", nats)).unzip();
    match topic {
        Some(topic) => Text::new(format!("bundled-{topic}-{split}"), documents, ""),
        None => {
            let text = Text::new(format!("bundled-{split}"), documents, "");
            Text { true_nats: Some(nats.iter().sum()), ..text }
        }
    }
}

fn word(topic: BundledTopic) -> &'static str {
    match topic {
        BundledTopic::Harbor => "harbor",
        BundledTopic::Bridge => "bridge",
    }
}

/// The topic that a document announces in its first sentence: "this is a merry story of the harbor."
fn topic_of(document: &str) -> Option<&str> {
    let (_, rest) = document.split_once("story of the ")?;
    rest.split(|c: char| !c.is_alphabetic()).next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bundled::Split;

    fn spec(n_documents: u32, topic: Option<BundledTopic>) -> BundledText {
        BundledText { split: BundledSplit::Test, n_documents: n_documents.try_into().unwrap(), topic }
    }

    #[test]
    fn documents_are_lines_and_their_information_adds_up() {
        let document = |document_idx| (format!("document {document_idx}."), f64::from(document_idx) + 0.5);
        let text = load(&spec(3, None), document);
        assert_eq!(text.joined(), "document 0.\ndocument 1.\ndocument 2.\n");
        assert_eq!((text.name.as_str(), text.true_nats), ("bundled-test", Some(4.5)));
    }

    #[test]
    fn a_topic_picks_its_documents_in_their_order() {
        let document = |document_idx| {
            let document = Split::Test.document(document_idx);
            (document.text, document.nats)
        };
        let all = load(&spec(300, None), document).documents;
        for (topic, word) in [(BundledTopic::Harbor, "harbor"), (BundledTopic::Bridge, "bridge")] {
            let picked = load(&spec(3, Some(topic)), document);
            assert_eq!((picked.name.clone(), picked.true_nats), (format!("bundled-{word}-test"), None));
            let first = all.iter().filter(|text| text.contains(&format!("story of the {word}"))).take(3);
            assert_eq!(picked.documents.iter().collect::<Vec<_>>(), first.collect::<Vec<_>>());
        }
    }
}

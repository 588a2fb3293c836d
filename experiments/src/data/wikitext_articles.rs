//! The articles of WikiText as lm-eval scores them: its data set `EleutherAI/wikitext_document_level` cuts the file at the headings of
//! articles, and its task turns the tokens of each back into prose. Right values: task `wikitext`, version 2, of lm-eval 0.4.13.

use std::sync::LazyLock;

use regex::Regex;

use crate::eval::Document;
use crate::eval::documents::n_words;

/// Brackets and quotation marks, with blanks inside them.
static PAIRS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let pairs = [
        (r"\(\s*([^\)]*?)\s*\)", "($1)"),
        (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
        (r"\{\s*([^}]*?)\s*\}", "{$1}"),
        (r#""\s*([^"]*?)\s*""#, "\"$1\""),
        (r"'\s*([^']*?)\s*'", "'$1'"),
    ];
    pairs.map(|(pattern, with)| (Regex::new(pattern).expect("a constant pattern"), with)).into()
});

/// Before the pairs.
const BEFORE: [(&str, &str); 10] = [
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
];

/// Behind them.
const AFTER: [(&str, &str); 8] = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \u{b0} ", "\u{b0}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
];

/// The articles of a file. Words and bytes are those of the article as the file has it.
pub(super) fn documents(file: &str) -> Vec<Document> {
    let document =
        |article: String| Document { text: as_prose(&article), n_words: n_words(&article), n_bytes: article.len() };
    articles(file).into_iter().map(document).collect()
}

/// Each with its heading, `= Title =`; a heading inside an article has two or more signs at each end.
fn articles(file: &str) -> Vec<String> {
    let is_heading = |line: &str| {
        let line = line.replace("= = =", "===").replace("= =", "==");
        let line = line.trim();
        line.starts_with("= ") && line.ends_with(" =")
    };
    let mut articles: Vec<Vec<&str>> = vec![Vec::new()];
    for line in file.split('\n') {
        match articles.last_mut() {
            Some(article) if !is_heading(line) => article.push(line),
            _ => articles.push(vec![line]),
        }
    }
    articles.into_iter().map(|lines| lines.join("\n")).filter(|article| !article.trim().is_empty()).collect()
}

fn as_prose(article: &str) -> String {
    let replaced = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    let text = BEFORE.into_iter().fold(article.to_owned(), replaced);
    let text = PAIRS.iter().fold(text, |text, (pattern, with)| pattern.replace_all(&text, *with).into_owned());
    AFTER.into_iter().fold(text, replaced)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::sources::{DatasetSpec, Wikitext2, WikitextSplit};
    use crate::data::{development_store, load};

    /// Right values: the same steps by lm-eval's own functions on the same file (`scripts/compare-lm-eval.py`).
    #[test]
    fn the_real_test_split_has_62_articles() {
        let Some((_cache, store)) = development_store("the_real_test_split_has_62_articles") else { return };
        let test = DatasetSpec::Wikitext2(Wikitext2 { split: WikitextSplit::Test });
        let file = load(&test, &store).unwrap().as_file();
        let documents = documents(&file);
        let n_words: usize = documents.iter().map(|document| document.n_words).sum();
        assert_eq!((documents.len(), n_words), (62, 241_335));
    }

    #[test]
    fn articles_begin_at_their_headings() {
        let file = " \n = A = \n \n text \n = = B = = \n more \n = C = \n end \n";
        assert_eq!(articles(file), [" = A = \n \n text \n = = B = = \n more ", " = C = \n end \n"]);
    }

    #[test]
    fn tokens_become_prose() {
        let article =
            " = A = \n \n He ( b . 1990 ) said : \" no \" , at 3 @.@ 5 @-@ 4 ° C ; the boys ' . \n = = B = = \n";
        let expected = " = A =\n\nHe (b. 1990) said: \"no\", at 3.5-4°C; the boys'.\n== B ==\n";
        assert_eq!(as_prose(article), expected);
    }
}

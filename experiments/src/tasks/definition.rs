//! [`Definition`]: a task's file. Its templates and expressions are Jinja, over the columns of a row of data.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::Asked;
use super::asker::Asker;
use super::examples::{Example, Examples, RowId};
use super::generation::{Generation, JudgeTemplate};
use crate::config::RegistryFile;
use crate::eval::registry::MetricKey;

/// What stands in the file of a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Name in tables: `PIQA`.
    pub label: String,
    /// The metrics that lm-eval reports of it, and others that make sense.
    pub metrics: Vec<MetricKey>,
    /// What a question is.
    form: Form,
    /// What stands before questions where that is asked for.
    pub(crate) examples: Option<Examples>,
    /// Where the data are; the first that can be had is used.
    pub(crate) files: Vec<DataFile>,
}

/// What a question is made of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Form {
    /// One context, and answers behind it.
    Choices {
        /// Template of the context.
        context: String,
        /// Expression: a list of answers.
        answers: String,
        /// Expression: the index of the right one, or its label.
        target: String,
        /// Expression: the labels of the answers, where the target is one of them.
        labels: Option<String>,
    },
    /// One ending behind several contexts.
    Contexts {
        /// Expression: a list of contexts.
        contexts: String,
        /// Template of the ending.
        ending: String,
        /// Expression: the index of the right one, or its label.
        target: String,
        /// Expression: the labels of the contexts, where the target is one of them.
        labels: Option<String>,
    },
    /// One ending behind one context.
    Completion {
        /// Template of the context.
        context: String,
        /// Template of the ending.
        ending: String,
    },
    /// A text that the model writes.
    Generation(Generation),
}

/// What `of` makes of each of the numbered rows.
fn each<T>(
    rows: &[(usize, &Map<String, Json>)],
    of: impl Fn(&Map<String, Json>) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    rows.iter().map(|(number, row)| of(row).with_context(|| format!("row {number}"))).collect()
}

/// A file of a task's data.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataFile {
    /// Where it is.
    #[serde(flatten)]
    pub(crate) place: DataPlace,
    /// Columns that the templates speak of and the file lacks, each an expression over those that it has.
    #[serde(default)]
    pub(super) columns: BTreeMap<String, String>,
    /// Expression: whether a row is one of the task, where not all are.
    pub(super) only: Option<String>,
}

/// Where a file of a task's data is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DataPlace {
    /// A split of a data set of the hub, which the hub itself converts to Parquet.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Its configuration, `default` where it has one.
        config: String,
        /// Its split.
        split: String,
    },
    /// A file inside a package of PyPI or npm.
    Registry(RegistryFile),
    /// A JSON Lines file in an asset folder.
    Folder {
        /// Its usual name.
        name: String,
        /// sha256 of its content.
        sha256: String,
    },
}

/// What stands between a context and an answer.
pub(super) const DELIMITER: &str = " ";

impl Definition {
    /// # Errors
    /// A key that there is not, one that is missing, or a template that is none.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let definition: Self = toml::from_str(text)?;
        ensure!(!definition.metrics.is_empty(), "key `metrics` is an empty list");
        let of_examples = definition.examples.iter().flat_map(|examples| &examples.files);
        for file in definition.files.iter().chain(of_examples) {
            definition.asker(Some(file))?;
        }
        Ok(definition)
    }

    /// Whether there are several answers to choose from.
    pub fn has_choices(&self) -> bool {
        matches!(self.form, Form::Choices { .. } | Form::Contexts { .. })
    }

    /// Whether the model writes its answer.
    pub fn is_written(&self) -> bool {
        matches!(self.form, Form::Generation(_))
    }

    /// Whether what the model writes is run.
    pub fn runs_programs(&self) -> bool {
        matches!(&self.form, Form::Generation(form) if matches!(form.judge, JudgeTemplate::Program { .. }))
    }

    /// Examples that lm-eval shows unless told otherwise.
    pub fn n_shots(&self) -> u16 {
        self.examples.as_ref().map_or(0, |examples| examples.n)
    }

    /// What `rows` of `file` ask, and which rows do.
    ///
    /// # Errors
    /// As [`Asker::question`], with the number of the row.
    pub(crate) fn asked(&self, file: &DataFile, rows: &[Map<String, Json>]) -> anyhow::Result<(Asked, Vec<RowId>)> {
        let asker = self.asker(Some(file))?;
        let rows = asker.rows(rows)?;
        let asked = match self.form {
            Form::Generation(_) => Asked::Problems(each(&rows, |row| asker.problem(row))?),
            _ => Asked::Questions(each(&rows, |row| asker.question(row))?),
        };
        Ok((asked, rows.into_iter().map(|(_, row)| RowId::of(row)).collect()))
    }

    /// Rows as examples.
    ///
    /// # Errors
    /// As [`Self::asked`].
    pub(crate) fn examples(&self, file: Option<&DataFile>, rows: &[Map<String, Json>]) -> anyhow::Result<Vec<Example>> {
        let asker = self.asker(file)?;
        each(&asker.rows(rows)?, |row| Ok(Example { text: asker.example(row)?, row: RowId::of(row) }))
    }

    /// What makes questions of the rows of `file`; of rows that are as the templates have them without one.
    pub(super) fn asker<'d>(&'d self, file: Option<&'d DataFile>) -> anyhow::Result<Asker<'d>> {
        Asker::new(&self.form, file)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::tasks::{Answer, Question};

    fn question(form: &str, columns: &str, row: Json) -> anyhow::Result<Question> {
        let text = format!(
            "label = \"x\"\nmetrics = [\"accuracy\"]\n{form}\n[[files]]\nfolder = {{ name = \"x\", sha256 = \"y\" }}\n{columns}"
        );
        let definition = Definition::read(&text)?;
        definition.asker(Some(&definition.files[0]))?.question(row.as_object().unwrap())
    }

    const CHOICES: &str = "[form.choices]\ncontext = \"Q: {{ q }}\\n\"\nanswers = \"a\"\ntarget = \"t\"";

    #[test]
    fn a_row_becomes_a_question() {
        let found = question(CHOICES, "", json!({"q": "why", "a": ["\u{e9}", "no"], "t": "1"})).unwrap();
        let answer =
            |text: &str, n_chars| Answer { context: "Q: why\n".into(), continuation: format!(" {text}"), n_chars };
        assert_eq!(found, Question { answers: vec![answer("\u{e9}", 1), answer("no", 2)], target: 1 });
        let labelled = format!("{CHOICES}\nlabels = \"l\"");
        let row = json!({"q": "", "a": ["x", "y"], "t": "B", "l": ["A", "B"]});
        assert_eq!(question(&labelled, "", row).unwrap().target, 1);
    }

    #[test]
    fn columns_of_other_layouts_are_made() {
        let columns = "columns = { q = \"nested.stem\", a = \"nested.choices | map(attribute='text') | list\" }";
        let row = json!({"nested": {"stem": "s", "choices": [{"text": "x"}, {"text": "y"}]}, "t": 0});
        let found = question(CHOICES, columns, row).unwrap();
        assert_eq!((found.answers[0].context.as_str(), found.answers[1].continuation.as_str()), ("Q: s\n", " y"));
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        let error = |row| format!("{:#}", question(CHOICES, "", row).unwrap_err());
        assert!(error(json!({"a": ["x", "y"], "t": 0})).contains("`Q: {{ q }}"));
        assert_eq!(error(json!({"q": "", "t": 0})), "`a`: the row has no such column");
        assert_eq!(error(json!({"q": "", "a": "x", "t": 0})), "`a` is a string, expected a list");
        assert_eq!(error(json!({"q": "", "a": ["x"], "t": 0})), "`a` has 1 entries, expected two or more");
        assert_eq!(error(json!({"q": "", "a": ["x", ""], "t": 0})), "`a` has an empty entry, which cannot be scored");
        assert_eq!(error(json!({"q": "", "a": ["x", "y"], "t": 2})), "`t` is 2, which is none of 2 answers");
        assert_eq!(error(json!({"q": "", "a": ["x", "y"], "t": "B"})), "`t` is B, which is none of 2 answers");
    }

    #[test]
    fn bad_definitions_are_refused() {
        let error = |form| format!("{:#}", question(form, "", json!({})).unwrap_err());
        let unclosed = "[form.completion]\ncontext = \"{{ a\"\nending = \"b\"";
        assert!(error(unclosed).starts_with("`{{ a`"), "{}", error(unclosed));
        assert!(error("[form.completion]\ncontext = \"a\"").contains("missing field `ending`"));
        assert!(
            error("[form.completion]\ncontext = \"a\"\nending = \"b\"\nend = \"c\"").contains("end, available keys")
        );
    }
}

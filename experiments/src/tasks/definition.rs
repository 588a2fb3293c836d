//! [`Definition`]: a task's file. Its templates and expressions are Jinja, over the columns of a row of data.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail, ensure};
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{Answer, Question};
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
    /// Where the data are; the first that can be had is used.
    pub(crate) files: Vec<DataFile>,
}

/// What a question is made of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Form {
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
    columns: BTreeMap<String, String>,
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
    /// A JSON Lines file in an asset folder.
    Folder {
        /// Its usual name.
        name: String,
        /// sha256 of its content.
        sha256: String,
    },
}

/// What stands between a context and an answer.
const DELIMITER: &str = " ";

impl Definition {
    /// # Errors
    /// A key that there is not, one that is missing, or a template that is none.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let definition: Self = toml::from_str(text)?;
        ensure!(!definition.metrics.is_empty(), "key `metrics` is an empty list");
        for file in &definition.files {
            definition.asker(file)?;
        }
        Ok(definition)
    }

    /// Whether there are several answers to choose from.
    pub fn has_choices(&self) -> bool {
        !matches!(self.form, Form::Completion { .. })
    }

    /// What makes questions of the rows of `file`.
    pub(crate) fn asker<'d>(&'d self, file: &'d DataFile) -> anyhow::Result<Asker<'d>> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("regex_replace", regex_replace);
        let asker = Asker { environment, columns: &file.columns, form: &self.form };
        asker.check()?;
        Ok(asker)
    }
}

/// Makes questions of rows.
pub(crate) struct Asker<'d> {
    environment: Environment<'d>,
    columns: &'d BTreeMap<String, String>,
    form: &'d Form,
}

impl<'d> Asker<'d> {
    fn check(&self) -> anyhow::Result<()> {
        let (templates, mut expressions): (Vec<&str>, Vec<&str>) = match self.form {
            Form::Choices { context, answers, target, labels } => (
                vec![context],
                [Some(answers), Some(target), labels.as_ref()].into_iter().flatten().map(String::as_str).collect(),
            ),
            Form::Contexts { contexts, ending, target, labels } => (
                vec![ending],
                [Some(contexts), Some(target), labels.as_ref()].into_iter().flatten().map(String::as_str).collect(),
            ),
            Form::Completion { context, ending } => (vec![context, ending], Vec::new()),
        };
        expressions.extend(self.columns.values().map(String::as_str));
        for template in templates {
            self.environment.template_from_str(template).map_err(|error| bad(template, &error))?;
        }
        expressions.into_iter().try_for_each(|expression| self.compiled(expression).map(drop))
    }

    fn compiled(&self, expression: &'d str) -> anyhow::Result<Expression<'_, 'd>> {
        self.environment.compile_expression(expression).map_err(|error| bad(expression, &error))
    }

    /// # Errors
    /// A column that the row lacks, or a value of another kind than the task needs.
    pub(crate) fn question(&self, row: &Map<String, Json>) -> anyhow::Result<Question> {
        let mut columns: BTreeMap<&str, Value> =
            row.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))).collect();
        for (name, expression) in self.columns {
            let value = self.value(expression, &Value::from_serialize(row))?;
            columns.insert(name, value);
        }
        let columns = Value::from_serialize(&columns);
        let answer = |context: &str, answer: &str, delimiter: &str| Answer {
            context: context.to_owned(),
            continuation: format!("{delimiter}{answer}"),
            n_chars: answer.chars().count(),
        };
        match self.form {
            Form::Choices { context, answers, target, labels } => {
                let context = self.text(context, &columns)?;
                let answers = self.texts(answers, &columns)?;
                let target = self.target(target, labels.as_deref(), answers.len(), &columns)?;
                let answers = answers.iter().map(|one| answer(&context, one, DELIMITER)).collect();
                Ok(Question { answers, target })
            }
            Form::Contexts { contexts, ending, target, labels } => {
                let (contexts, ending) = (self.texts(contexts, &columns)?, self.text(ending, &columns)?);
                let target = self.target(target, labels.as_deref(), contexts.len(), &columns)?;
                let answers = contexts.iter().map(|context| answer(context, &ending, DELIMITER)).collect();
                Ok(Question { answers, target })
            }
            Form::Completion { context, ending } => {
                let (context, ending) = (self.text(context, &columns)?, self.text(ending, &columns)?);
                Ok(Question { answers: vec![answer(&context, &ending, "")], target: 0 })
            }
        }
    }

    fn value(&self, expression: &'d str, columns: &Value) -> anyhow::Result<Value> {
        let value = self.compiled(expression)?.eval(columns).map_err(|error| bad(expression, &error))?;
        ensure!(!value.is_undefined(), "`{expression}`: the row has no such column");
        Ok(value)
    }

    fn text(&self, template: &'d str, columns: &Value) -> anyhow::Result<String> {
        let template_error = |error: Error| bad(template, &error);
        self.environment.template_from_str(template).map_err(template_error)?.render(columns).map_err(template_error)
    }

    fn texts(&self, expression: &'d str, columns: &Value) -> anyhow::Result<Vec<String>> {
        let value = self.value(expression, columns)?;
        let texts: Vec<String> = match value.kind() {
            ValueKind::Seq => value.try_iter()?.map(|text| text.to_string()).collect(),
            kind => bail!("`{expression}` is a {kind}, expected a list"),
        };
        ensure!(texts.len() > 1, "`{expression}` has {} entries, expected two or more", texts.len());
        ensure!(texts.iter().all(|text| !text.is_empty()), "`{expression}` has an empty entry, which cannot be scored");
        Ok(texts)
    }

    fn target(&self, target: &'d str, labels: Option<&'d str>, n: usize, columns: &Value) -> anyhow::Result<usize> {
        let value = self.value(target, columns)?;
        let index = match labels {
            Some(labels) => self.texts(labels, columns)?.iter().position(|label| *label == value.to_string()),
            None => value.to_string().trim().parse().ok(),
        };
        index.filter(|&index| index < n).with_context(|| format!("`{target}` is {value}, which is none of {n} answers"))
    }
}

fn bad(source: &str, error: &Error) -> anyhow::Error {
    anyhow!("`{source}`: {error}")
}

/// Python's `re.sub(pattern, replacement, text)`, with patterns of Rust's crate `regex`.
fn regex_replace(text: &str, pattern: &str, replacement: &str) -> Result<String, Error> {
    let regex = Regex::new(pattern).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    Ok(regex.replace_all(text, regex::NoExpand(replacement)).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn question(form: &str, columns: &str, row: Json) -> anyhow::Result<Question> {
        let text = format!(
            "label = \"x\"\nmetrics = [\"accuracy\"]\n{form}\n[[files]]\nfolder = {{ name = \"x\", sha256 = \"y\" }}\n{columns}"
        );
        let definition = Definition::read(&text)?;
        definition.asker(&definition.files[0])?.question(row.as_object().unwrap())
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

    #[test]
    fn patterns_are_replaced_as_python_does() {
        assert_eq!(regex_replace("a [b] c [d]$1", "\\[.*?\\]", "$0").unwrap(), "a $0 c $0$1");
        assert!(regex_replace("a", "[", "").is_err());
    }
}

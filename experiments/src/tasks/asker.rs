//! [`Asker`]: rows of data to questions, problems and examples. Templates and expressions are Jinja, over the columns of a row.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::definition::{DELIMITER, DataFile, Form};
use super::generation::{Generation, Judge, JudgeTemplate, Problem};
use super::{Answer, Question};

/// Makes questions of rows.
pub(super) struct Asker<'d> {
    environment: Environment<'d>,
    file: Option<&'d DataFile>,
    form: &'d Form,
    until: Arc<Vec<String>>,
}

impl<'d> Asker<'d> {
    /// For the rows of `file`.
    ///
    /// # Errors
    /// A template or an expression that is none.
    pub(super) fn new(form: &'d Form, file: Option<&'d DataFile>) -> anyhow::Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("regex_replace", regex_replace);
        let until = match form {
            Form::Generation(form) => Arc::new(form.until.clone()),
            _ => Arc::default(),
        };
        let asker = Self { environment, file, form, until };
        asker.check()?;
        Ok(asker)
    }

    /// Columns that are made, each of an expression.
    fn made(&self) -> impl Iterator<Item = (&'d String, &'d String)> + use<'d> {
        self.file.into_iter().flat_map(|file| &file.columns)
    }

    /// What says which rows are of the task.
    fn only(&self) -> Option<&'d str> {
        self.file.and_then(|file| file.only.as_deref())
    }

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
            Form::Generation(Generation { prompt, target, judge, .. }) => {
                let of_judge = match judge {
                    JudgeTemplate::Answer(_) => Vec::new(),
                    JudgeTemplate::Program { before, after } => vec![before, after],
                };
                (
                    [Some(prompt), target.as_ref()].into_iter().flatten().chain(of_judge).map(String::as_str).collect(),
                    Vec::new(),
                )
            }
        };
        expressions.extend(self.made().map(|(_, expression)| expression.as_str()));
        expressions.extend(self.only());
        for template in templates {
            self.environment.template_from_str(template).map_err(|error| bad(template, &error))?;
        }
        expressions.into_iter().try_for_each(|expression| self.compiled(expression).map(drop))
    }

    fn compiled(&self, expression: &'d str) -> anyhow::Result<Expression<'_, 'd>> {
        self.environment.compile_expression(expression).map_err(|error| bad(expression, &error))
    }

    /// The rows that are of the task, with their numbers from 1 on.
    pub(super) fn rows<'r>(
        &self,
        rows: &'r [Map<String, Json>],
    ) -> anyhow::Result<Vec<(usize, &'r Map<String, Json>)>> {
        let mut of_task = Vec::new();
        for (row, number) in rows.iter().zip(1..) {
            let is_of_task = match self.only() {
                None => true,
                Some(only) => {
                    let value = self.value(only, &Value::from_serialize(row));
                    value.with_context(|| format!("row {number}"))?.is_true()
                }
            };
            if is_of_task {
                of_task.push((number, row));
            }
        }
        ensure!(!of_task.is_empty(), "no row of the file is one of the task");
        Ok(of_task)
    }

    /// The columns that templates speak of.
    fn columns(&self, row: &Map<String, Json>) -> anyhow::Result<Value> {
        let mut columns: BTreeMap<&str, Value> =
            row.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))).collect();
        for (name, expression) in self.made() {
            let value = self.value(expression, &Value::from_serialize(row))?;
            columns.insert(name, value);
        }
        Ok(Value::from_serialize(&columns))
    }

    /// # Errors
    /// A column that the row lacks, or a task whose answers are not written.
    pub(super) fn problem(&self, row: &Map<String, Json>) -> anyhow::Result<Problem> {
        let Form::Generation(form) = self.form else { bail!("the task has questions, no problems") };
        let columns = self.columns(row)?;
        let judge = match &form.judge {
            JudgeTemplate::Answer(rules) => {
                let target = form.target.as_ref().context("a task that judges answers needs a `target`")?;
                Judge::Answer { reference: self.text(target, &columns)?, rules: rules.clone() }
            }
            JudgeTemplate::Program { before, after } => {
                Judge::Program { before: self.text(before, &columns)?, after: self.text(after, &columns)? }
            }
        };
        Ok(Problem {
            prompt: self.text(&form.prompt, &columns)?,
            until: self.until.clone(),
            max_new_tokens: form.max_new_tokens,
            judge,
        })
    }

    /// A row with its right answer.
    ///
    /// # Errors
    /// As [`Self::question`] and [`Self::problem`].
    pub(super) fn example(&self, row: &Map<String, Json>) -> anyhow::Result<String> {
        let Form::Generation(Generation { prompt, target, delimiter, .. }) = self.form else {
            let question = self.question(row)?;
            let Answer { context, continuation, .. } = &question.answers[question.target];
            return Ok(format!("{context}{continuation}"));
        };
        let columns = self.columns(row)?;
        let target = target.as_ref().context("a task that shows examples needs a `target`")?;
        Ok(format!("{}{delimiter}{}", self.text(prompt, &columns)?, self.text(target, &columns)?))
    }

    /// # Errors
    /// A column that the row lacks, a value of another kind than the task needs, or a task whose answers are written.
    pub(super) fn question(&self, row: &Map<String, Json>) -> anyhow::Result<Question> {
        let columns = self.columns(row)?;
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
            Form::Generation(_) => bail!("the task has problems, no questions"),
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

    use super::*;

    #[test]
    fn patterns_are_replaced_as_python_does() {
        assert_eq!(regex_replace("a [b] c [d]$1", "\\[.*?\\]", "$0").unwrap(), "a $0 c $0$1");
        assert!(regex_replace("a", "[", "").is_err());
    }
}

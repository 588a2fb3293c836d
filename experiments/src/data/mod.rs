//! Texts to calibrate and evaluate on, one data set a file.

mod bundled;
pub mod calibration;
mod moby_dick;
mod pile_subset;
mod pile_val;
mod sotu;
mod tasks;
mod text_file;
mod wikitext2;
mod wikitext_articles;

use std::collections::BTreeMap;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::assets::{AssetStore, hex, sha256_of};
use crate::bundled::Split;
use crate::config::sources::{BundledSplit, DatasetSpec};
use crate::config::{ProtocolSpec, ScoredText};
use crate::eval::Document;
use crate::eval::windows::ScoredAs;
use crate::tasks::{Asked, Example, RowId, TaskName};

/// A task as a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskText {
    name: TaskName,
    asked: Asked,
    /// Which row asks each.
    rows: Vec<RowId>,
    /// Rows with answers, once a protocol shows some.
    examples: Option<Vec<Example>>,
}

impl TaskText {
    /// What is asked behind `n_shots` examples.
    fn behind(&self, n_shots: u16) -> anyhow::Result<Asked> {
        let (Some(examples), Some(of_task)) = (&self.examples, &self.name.definition().examples) else {
            anyhow::ensure!(n_shots == 0, "the examples of task {} are not loaded", self.name.name());
            return Ok(self.asked.clone());
        };
        let prefixes = of_task.prefixes(examples, n_shots, &self.rows);
        let prefixes = prefixes.with_context(|| format!("task {}", self.name.name()))?;
        Ok(self.asked.clone().behind(&prefixes))
    }
}

/// A text as documents and how they are joined.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Name in tables and messages, e.g. `wikitext2-test`.
    pub name: String,
    /// The documents (rows, lines, speeches), in the data set's order.
    pub documents: Vec<String>,
    /// What stands between two documents in the joined text.
    pub separator: &'static str,
    /// Where documents are the lines of one file with articles, each with its own line end: what an empty one was in that file.
    pub blank_line: Option<&'static str>,
    /// sha256 of the joined text in UTF-8.
    pub sha256: String,
    /// What a task asks, which has no documents.
    pub task: Option<TaskText>,
    /// True information content of the whole text in nats, where it is known: no model can lose less on average.
    pub true_nats: Option<f64>,
}

impl Text {
    /// Hashes as it goes, so that a large text is never joined only for that.
    pub(crate) fn new(name: impl Into<String>, documents: Vec<String>, separator: &'static str) -> Self {
        let mut hasher = Sha256::new();
        for (document_idx, document) in documents.iter().enumerate() {
            if document_idx > 0 {
                hasher.update(separator);
            }
            hasher.update(document);
        }
        Self {
            name: name.into(),
            documents,
            separator,
            blank_line: None,
            task: None,
            sha256: hex(hasher),
            true_nats: None,
        }
    }

    /// A task.
    fn of_task(name: TaskName, (asked, rows): (Asked, Vec<RowId>)) -> Self {
        let sha256 = tasks::sha256_of_asked(&asked);
        let task = Some(TaskText { name, asked, rows, examples: None });
        Self { sha256, task, ..Self::new(name.name(), Vec::new(), "") }
    }

    /// The documents with the separator between them.
    pub fn joined(&self) -> String {
        self.documents.join(self.separator)
    }

    /// The text as a protocol reads it.
    ///
    /// # Errors
    /// A text that is no task, for a protocol of tasks, or fewer examples than it shows.
    pub(crate) fn scored(&self, protocol: &ProtocolSpec) -> anyhow::Result<ScoredAs> {
        Ok(match protocol {
            ProtocolSpec::Gptq(_) => ScoredAs::Joined(self.joined()),
            ProtocolSpec::LlamaCpp(_) => ScoredAs::Joined(self.as_file()),
            ProtocolSpec::LmEval(_) => ScoredAs::Documents(self.scored_documents()),
            ProtocolSpec::LmEvalTask(_) | ProtocolSpec::LmEvalGeneration(_) => {
                let task = self.task.as_ref().with_context(|| format!("{} is no task", self.name))?;
                ScoredAs::Asked(task.behind(protocol.n_shots())?)
            }
        })
    }

    /// Documents to be scored one by one. Those of WikiText are its articles, of many lines each.
    fn scored_documents(&self) -> Vec<Document> {
        match self.blank_line {
            Some(_) => wikitext_articles::documents(&self.as_file()),
            None => self.documents.iter().cloned().map(Document::new).collect(),
        }
    }

    /// sha256 of that.
    ///
    /// # Errors
    /// As [`Self::scored`].
    pub(crate) fn scored_sha256(&self, protocol: &ProtocolSpec) -> anyhow::Result<String> {
        Ok(match protocol {
            ProtocolSpec::LmEvalTask(_) | ProtocolSpec::LmEvalGeneration(_) if protocol.n_shots() > 0 => {
                match self.scored(protocol)? {
                    ScoredAs::Asked(asked) => tasks::sha256_of_asked(&asked),
                    ScoredAs::Joined(_) | ScoredAs::Documents(_) => self.sha256.clone(),
                }
            }
            ProtocolSpec::Gptq(_) | ProtocolSpec::LmEvalTask(_) | ProtocolSpec::LmEvalGeneration(_) => {
                self.sha256.clone()
            }
            ProtocolSpec::LlamaCpp(_) => sha256_of(self.as_file().as_bytes()),
            ProtocolSpec::LmEval(_) => {
                let mut hasher = Sha256::new();
                for document in self.scored_documents() {
                    hasher.update((document.text.len() as u64).to_le_bytes());
                    hasher.update(document.text);
                }
                hex(hasher)
            }
        })
    }

    /// The text as its file has it, which programs that know no data sets (llama.cpp) read; else [`Self::joined`].
    pub fn as_file(&self) -> String {
        match self.blank_line {
            Some(blank) => self.documents.iter().map(|line| if line.is_empty() { blank } else { line }).collect(),
            None => self.joined(),
        }
    }
}

/// Loads a data set, downloading it if need be.
///
/// # Errors
/// A source that cannot be reached or a file that is not what is pinned; each names the data set.
pub fn load(spec: &DatasetSpec, store: &AssetStore) -> anyhow::Result<Text> {
    match spec {
        DatasetSpec::Wikitext2(spec) => wikitext2::load(spec, store).context("data set wikitext2"),
        DatasetSpec::PileVal(spec) => pile_val::load(spec, store).context("data set pile_val"),
        DatasetSpec::PileSubset(spec) => pile_subset::load(spec, store).context("data set pile_subset"),
        DatasetSpec::MobyDick(spec) => moby_dick::load(spec, store).context("data set moby_dick"),
        DatasetSpec::Sotu(spec) => sotu::load(spec, store).context("data set sotu"),
        DatasetSpec::Task(task) => {
            let asked = tasks::load(*task, store).with_context(|| format!("task {}", task.name()))?;
            Ok(Text::of_task(*task, asked))
        }
        DatasetSpec::TextFile(spec) => text_file::load(spec, store).with_context(|| format!("data set {}", spec.name)),
        DatasetSpec::Bundled(spec) => {
            let split = match spec.split {
                BundledSplit::Calibration => Split::Calibration,
                BundledSplit::Test => Split::Test,
            };
            Ok(bundled::load(spec, |document_idx| {
                let document = split.document(document_idx);
                (document.text, document.nats)
            }))
        }
    }
}

/// Texts by their specification, loaded once.
pub struct Texts<'a> {
    store: &'a AssetStore,
    loaded: BTreeMap<DatasetSpec, Text>,
}

impl<'a> Texts<'a> {
    /// None is loaded yet.
    pub fn new(store: &'a AssetStore) -> Self {
        Self { store, loaded: BTreeMap::new() }
    }

    /// The text that `spec` says.
    ///
    /// # Errors
    /// As [`load`].
    pub fn get(&mut self, spec: &DatasetSpec) -> anyhow::Result<&Text> {
        if !self.loaded.contains_key(spec) {
            let text = load(spec, self.store)?;
            self.loaded.insert(spec.clone(), text);
        }
        Ok(&self.loaded[spec])
    }

    /// The text that is scored, with the examples that its protocol shows.
    ///
    /// # Errors
    /// As [`load`], of the text and of the examples.
    pub(crate) fn get_scored(&mut self, spec: &ScoredText) -> anyhow::Result<&Text> {
        self.get(&spec.dataset)?;
        if let Some(TaskText { name, examples, .. }) =
            self.loaded.get_mut(&spec.dataset).and_then(|it| it.task.as_mut())
            && spec.protocol.n_shots() > 0
            && examples.is_none()
        {
            let loaded = tasks::load_examples(*name, self.store);
            *examples = Some(loaded.with_context(|| format!("task {}", name.name()))?);
        }
        Ok(&self.loaded[&spec.dataset])
    }
}

/// Settings of the asset folders that development machines have; `None`, with a printed line, where there are none.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
fn development_store(test: &str) -> Option<(tempfile::TempDir, AssetStore)> {
    use crate::assets::{AssetSettings, Progress};
    if std::env::var_os("AWQ_ASSETS").is_none() {
        eprintln!("{test}: skipped, AWQ_ASSETS is not set");
        return None;
    }
    let cache = tempfile::tempdir().unwrap();
    let settings = AssetSettings::from_env(&[], Progress::Quiet).unwrap();
    let settings = AssetSettings { cache: cache.path().to_owned(), offline: true, ..settings };
    Some((cache, AssetStore::new(settings).unwrap()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_joined_text() {
        let text = Text::new("t", vec!["a".into(), String::new(), "b".into()], "\n\n");
        assert_eq!(text.joined(), "a\n\n\n\nb");
        let mut hasher = Sha256::new();
        hasher.update("a\n\n\n\nb");
        assert_eq!(text.sha256, hex(hasher));
        assert_eq!(Text::new("t", vec![], "\n").joined(), "");
    }
}

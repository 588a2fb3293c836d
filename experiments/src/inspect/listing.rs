//! [`List`]: what there is to choose from, read from the registries themselves: their schemas hold the names and a sentence on each.

use std::path::Path;

use anyhow::{Context, bail};
use awq_core::formats::{self, FORMATS};
use awq_core::model::known_families;
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde_json::Value as Json;

use super::sheet::{WIDTH, wrapped};
use crate::config::DatasetSpec;
use crate::device::BACKENDS;
use crate::encoding::read_utf8;
use crate::eval::registry::MetricKey;
use crate::registry::MethodSpec;
use crate::tasks::TaskName;

/// A list with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct List {
    /// What is listed: `methods`.
    pub of: &'static str,
    /// How an entry is used, in a sentence.
    pub usage: &'static str,
    /// The entries.
    pub entries: Vec<Listed>,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name, as files or the command line have it.
    pub name: String,
    /// A word on it.
    pub about: String,
}

impl List {
    /// Quantization methods.
    pub fn methods() -> Self {
        let usage = "by key in an experiment's `methods`; `quantize --method` takes those that have presets";
        Self { of: "methods", usage, entries: described::<MethodSpec>() }
    }

    /// Presets of methods: named settings.
    pub fn presets() -> Self {
        let of_method = |key: &'static str| {
            MethodSpec::presets(key).into_iter().map(move |(name, method)| (key, name, method)).collect::<Vec<_>>()
        };
        let entry = |(key, name, method): (&str, &str, MethodSpec)| Listed {
            name: format!("{key}:{name}"),
            about: settings(&serde_json::to_value(&method).unwrap_or_default()[key]),
        };
        Self {
            of: "presets",
            usage: "`quantize --method awq:llm-awq`, `methods = [{ awq = \"llm-awq\" }]`; the first is what the method alone means",
            entries: MethodSpec::KEYS.iter().copied().flat_map(of_method).map(entry).collect(),
        }
    }

    /// Layouts of quantized models.
    pub fn formats() -> Self {
        let own = Listed {
            name: formats::PACKED.into(),
            about: "this program's own layout: every grid and every method, for `generate`, `chat` and experiments"
                .into(),
        };
        let others = FORMATS.iter().map(|format| Listed { name: format.key().into(), about: format.about().into() });
        let entries = std::iter::once(own).chain(others).collect();
        Self { of: "formats", usage: "`quantize --format`", entries }
    }

    /// Model families.
    pub fn families() -> Self {
        let about = |class: &str, gguf: Option<&str>, is_multimodal| match gguf {
            Some(gguf) => format!("{class}; GGUF files of `{gguf}`"),
            None if is_multimodal => format!("{class}; its language model, on texts"),
            None => format!("{class}; no GGUF files"),
        };
        let families = known_families().into_iter();
        let entries = families
            .map(|one| Listed { name: one.model_type.into(), about: about(one.class, one.gguf, one.is_multimodal) });
        Self {
            of: "families",
            usage: "`model_type` of config.json, and the class in transformers",
            entries: entries.collect(),
        }
    }

    /// Data sets.
    pub fn datasets() -> Self {
        let usage = "by key in `dataset = { ... }` of calibrations and evaluations";
        Self { of: "datasets", usage, entries: described::<DatasetSpec>() }
    }

    /// Tasks.
    pub fn tasks() -> Self {
        let about = |task: &TaskName| {
            let metrics: Vec<&str> = task.definition().metrics.iter().map(|metric| metric.key()).collect();
            format!("{} {}", task.about(), metrics.join(", "))
        };
        let entries = TaskName::ALL.iter().map(|task| Listed { name: task.name().into(), about: about(task) });
        Self { of: "tasks", usage: "by name in `[tasks]`, with the metrics of each", entries: entries.collect() }
    }

    /// Metrics.
    pub fn metrics() -> Self {
        Self { of: "metrics", usage: "by key in an experiment's `evaluations`", entries: described::<MetricKey>() }
    }

    /// Devices.
    pub fn devices() -> Self {
        let about = |about: &str, name: &str, is_built: bool| match is_built {
            true => about.to_owned(),
            false => format!("{about} (not in this program; build with `--features {name}`)"),
        };
        let entries = BACKENDS
            .iter()
            .map(|one| Listed { name: one.name.into(), about: about(one.about, one.name, one.is_built) });
        Self { of: "devices", usage: "`device` in `[run]`, or `--device`", entries: entries.collect() }
    }

    /// Experiments' files in `folder` and the folders in it, with their questions.
    ///
    /// # Errors
    /// No such folder.
    pub fn configs(folder: &Path) -> anyhow::Result<Self> {
        if !folder.is_dir() {
            bail!(
                "{}: no such folder; run this where the experiments' files are, in a checkout of the project",
                folder.display()
            );
        }
        let mut entries = Vec::new();
        add_configs(folder, &mut entries)?;
        Ok(Self {
            of: "configs",
            usage: "`experiments FILE` runs one, `experiments plan FILE` says what it takes",
            entries,
        })
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let width = self.entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0) + 2;
        let mut text = wrapped(&format!("{}: {}", self.of, self.usage), WIDTH).join("\n") + "\n";
        for entry in &self.entries {
            for (index, line) in wrapped(&entry.about, WIDTH - width - 2).into_iter().enumerate() {
                let name = if index == 0 { entry.name.as_str() } else { "" };
                text += format!("  {name:<width$}{line}").trim_end();
                text.push('\n');
            }
        }
        text
    }
}

/// The variants of an enum by the names that files give them, each with the first paragraph of its documentation.
fn described<T: JsonSchema>() -> Vec<Listed> {
    let schema = schema_for!(T).to_value();
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    let entry = |variant: &Json| {
        let name = variant["const"].as_str().or_else(|| variant["required"][0].as_str())?;
        let about = variant["description"].as_str().unwrap_or_default().split("\n\n").next().unwrap_or_default();
        Some(Listed { name: name.to_owned(), about: about.replace('\n', " ") })
    };
    variants.filter_map(entry).collect()
}

/// `damp 0.01, order natural`: settings in a line.
fn settings(value: &Json) -> String {
    let Json::Object(table) = value else { return value.as_str().map_or_else(|| value.to_string(), str::to_owned) };
    let one = |(key, value): (&String, &Json)| match value {
        Json::Object(_) => format!("{key} ({})", settings(value)),
        _ => format!("{key} {}", settings(value)),
    };
    match table.is_empty() {
        true => "no settings".to_owned(),
        false => table.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

/// Adds the experiments of `folder`, in name order, those of its folders after its own.
fn add_configs(folder: &Path, entries: &mut Vec<Listed>) -> anyhow::Result<()> {
    let cannot_read = || format!("{}: cannot read", folder.display());
    let mut paths = Vec::new();
    for entry in folder.read_dir().with_context(cannot_read)? {
        paths.push(entry.with_context(cannot_read)?.path());
    }
    paths.sort();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    for file in files.iter().filter(|path| path.extension().is_some_and(|end| end == "toml")) {
        // A file that is not sound is listed with what is wrong.
        let question = read_utf8(file).and_then(|text| Ok(toml::from_str::<toml::Table>(&text)?));
        let about = match question.map(|table| table.get("question").and_then(|it| it.as_str()).map(str::to_owned)) {
            Ok(question) => question.unwrap_or_else(|| "asks no question".to_owned()),
            Err(error) => format!("cannot be read: {error:#}"),
        };
        entries.push(Listed { name: file.display().to_string(), about });
    }
    // What clusters give tasks is no experiment.
    let mut experiments = folders.iter().filter(|folder| !folder.ends_with("profiles"));
    experiments.try_for_each(|folder| add_configs(folder, entries))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn registries_are_listed_whole_and_with_a_word_on_each() {
        let names = |list: &List| list.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&List::methods()), MethodSpec::KEYS);
        assert_eq!(names(&List::metrics()), MetricKey::ALL.iter().map(|metric| metric.key()).collect::<Vec<_>>());
        assert_eq!(names(&List::devices()), BACKENDS.map(|backend| backend.name));
        assert_eq!(List::families().entries.len(), known_families().len());
        let n_presets = MethodSpec::KEYS.iter().map(|key| MethodSpec::presets(key).len()).sum::<usize>();
        assert_eq!(List::presets().entries.len(), n_presets);
        for list in
            [List::methods(), List::families(), List::datasets(), List::metrics(), List::devices(), List::presets()]
        {
            assert!(!list.entries.is_empty(), "{} are none", list.of);
            for entry in &list.entries {
                assert!(!entry.about.is_empty(), "{}: nothing on {}", list.of, entry.name);
            }
            assert!(list.text().lines().all(|line| line.chars().count() <= WIDTH), "{}", list.text());
        }
        assert!(names(&List::datasets()).contains(&"wikitext2".to_owned()), "{:?}", List::datasets());
    }

    #[test]
    fn a_list_is_a_table() {
        let entry = |name: &str, about: &str| Listed { name: name.into(), about: about.into() };
        let entries = vec![entry("one", "short"), entry("another", &"word ".repeat(20))];
        let list = List { of: "things", usage: "by name", entries };
        assert_snapshot!(list.text(), @r"
        things: by name
          one      short
          another  word word word word word word word word word word word word word word word word word word
                     word word
        ");
    }

    #[test]
    fn settings_are_words() {
        let value = serde_json::json!({ "damp": 0.01, "scale": { "search": { "n_ratios": 20 } }, "clip": "off" });
        assert_snapshot!(settings(&value), @"clip off, damp 0.01, scale (search (n_ratios 20))");
        assert_eq!(settings(&serde_json::json!({})), "no settings");
    }

    #[test]
    fn experiments_are_listed_with_their_questions() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("more")).unwrap();
        std::fs::write(folder.path().join("b.toml"), "question = \"B?\"").unwrap();
        std::fs::write(folder.path().join("more/a.toml"), "question = \"A?\"").unwrap();
        std::fs::write(folder.path().join("c.toml"), "question = ").unwrap();
        std::fs::write(folder.path().join("notes.md"), "no experiment").unwrap();
        let entries = List::configs(folder.path()).unwrap().entries;
        let ends = entries.iter().map(|entry| entry.name.rsplit('/').next().unwrap()).collect::<Vec<_>>();
        assert_eq!(ends, ["b.toml", "c.toml", "a.toml"]);
        assert_eq!((entries[0].about.as_str(), entries[2].about.as_str()), ("B?", "A?"));
        assert!(entries[1].about.starts_with("cannot be read: "), "{}", entries[1].about);
        let missing = List::configs(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.ends_with("in a checkout of the project"), "{missing}");
    }
}

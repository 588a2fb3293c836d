//! Questions of a task, from its data: JSON Lines, plain or compressed by gzip, or Parquet.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use polars::prelude::{AnyValue, DataFrame, Field, ParquetReader, SerReader};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use crate::assets::{AssetSource, AssetStore, HubFile, hex};
use crate::tasks::{Asked, DataFile, DataPlace, Example, Judge, Problem, Question, RowId, TaskName};

/// Bytes that a file may decompress to.
const MAX_BYTES: u64 = 1 << 30;

/// What a task asks, in the order of its data, and which rows do.
///
/// # Errors
/// Data that no source has, or a row that makes no question.
pub(super) fn load(task: TaskName, store: &AssetStore) -> anyhow::Result<(Asked, Vec<RowId>)> {
    let definition = task.definition();
    let (path, file) = locate(task.name(), &definition.files, store)?;
    let rows = read(&path).with_context(|| path.display().to_string())?;
    definition.asked(file, &rows).with_context(|| path.display().to_string())
}

/// The rows that a task has for examples.
///
/// # Errors
/// A task without examples, data that no source has, or a row that makes no example.
pub(super) fn load_examples(task: TaskName, store: &AssetStore) -> anyhow::Result<Vec<Example>> {
    let definition = task.definition();
    let Some(examples) = &definition.examples else {
        bail!("the task is asked without examples here; set `n_shots` to 0");
    };
    if !examples.rows.is_empty() {
        return definition.examples(None, &examples.rows);
    }
    let (path, file) = locate(&format!("examples of {}", task.name()), &examples.files, store)?;
    let rows = read(&path).with_context(|| path.display().to_string())?;
    definition.examples(Some(file), &rows).with_context(|| path.display().to_string())
}

/// sha256 of all that is scored of what a task asks.
pub(super) fn sha256_of_asked(asked: &Asked) -> String {
    let mut hasher = Sha256::new();
    let mut part = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    match asked {
        Asked::Questions(questions) => questions.iter().for_each(|question| parts_of_question(question, &mut part)),
        Asked::Problems(problems) => problems.iter().for_each(|problem| parts_of_problem(problem, &mut part)),
    }
    hex(hasher)
}

fn parts_of_question(question: &Question, part: &mut impl FnMut(&str)) {
    part(&format!("{} {}", question.answers.len(), question.target));
    for answer in &question.answers {
        part(&answer.context);
        part(&answer.continuation);
    }
}

fn parts_of_problem(problem: &Problem, part: &mut impl FnMut(&str)) {
    part(&problem.prompt);
    match &problem.judge {
        Judge::Answer { reference, .. } => part(reference),
        Judge::Program { before, after } => {
            part(before);
            part(after);
        }
    }
}

/// The first of `files` that can be had, and where it lies.
///
/// # Errors
/// No source has one.
fn locate<'f>(task: &str, files: &'f [DataFile], store: &AssetStore) -> anyhow::Result<(PathBuf, &'f DataFile)> {
    let source = |file: &DataFile| match file.place.clone() {
        DataPlace::Folder { name, sha256 } => AssetSource::Folder { name, sha256 },
        DataPlace::Registry(file) => AssetSource::Registry(file),
        DataPlace::Hub { repo, config, split } => AssetSource::Hub(HubFile::converted(&repo, &config, &split)),
    };
    let sources: Vec<AssetSource> = files.iter().map(source).collect();
    let located = store.fetch(task, &sources)?;
    Ok((located.path, &files[located.source]))
}

/// The rows of a file: Parquet or gzip by the end of its name, else JSON Lines.
///
/// # Errors
/// A file that is neither, or has no rows.
fn read(path: &Path) -> anyhow::Result<Vec<Map<String, Json>>> {
    let rows = match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => of_parquet(path)?,
        Some("gz") => of_lines(&decompressed(path)?)?,
        _ => of_lines(&std::fs::read_to_string(path).context("cannot read")?)?,
    };
    ensure!(!rows.is_empty(), "the file has no rows");
    Ok(rows)
}

/// # Errors
/// A file that is no gzip or no text, or more than [`MAX_BYTES`] of it.
fn decompressed(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).context("cannot read")?;
    let mut text = String::new();
    GzDecoder::new(file).take(MAX_BYTES + 1).read_to_string(&mut text).context("no text compressed by gzip")?;
    ensure!(
        text.len() as u64 <= MAX_BYTES,
        "decompresses to more than {MAX_BYTES} bytes; decompress it by hand and look"
    );
    Ok(text)
}

fn of_lines(text: &str) -> anyhow::Result<Vec<Map<String, Json>>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| serde_json::from_str(line).with_context(|| format!("line {}", index + 1))).collect()
}

fn of_parquet(path: &Path) -> anyhow::Result<Vec<Map<String, Json>>> {
    let file = File::open(path).context("cannot read")?;
    let frame: DataFrame = ParquetReader::new(file).finish().context("no Parquet file")?;
    let mut rows = vec![Map::new(); frame.height()];
    for column in frame.columns() {
        for (row, index) in rows.iter_mut().zip(0..) {
            let value = json(&column.get(index)?).with_context(|| format!("column {}", column.name()))?;
            row.insert(column.name().to_string(), value);
        }
    }
    Ok(rows)
}

/// A value of a cell. Structs are objects.
fn json(value: &AnyValue<'_>) -> anyhow::Result<Json> {
    Ok(match value {
        AnyValue::Null => Json::Null,
        AnyValue::Boolean(value) => (*value).into(),
        AnyValue::String(text) => (*text).into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::Int8(value) => (*value).into(),
        AnyValue::Int16(value) => (*value).into(),
        AnyValue::Int32(value) => (*value).into(),
        AnyValue::Int64(value) => (*value).into(),
        AnyValue::UInt8(value) => (*value).into(),
        AnyValue::UInt32(value) => (*value).into(),
        AnyValue::UInt64(value) => (*value).into(),
        AnyValue::Float32(value) => (*value).into(),
        AnyValue::Float64(value) => (*value).into(),
        AnyValue::List(series) => Json::Array(series.iter().map(|value| json(&value)).collect::<anyhow::Result<_>>()?),
        AnyValue::Struct(_, _, fields) => object(fields, value._iter_struct_av())?,
        AnyValue::StructOwned(owned) => object(&owned.1, owned.0.iter().cloned())?,
        other => bail!("values of type {} are not read", other.dtype()),
    })
}

fn object<'v>(fields: &[Field], values: impl Iterator<Item = AnyValue<'v>>) -> anyhow::Result<Json> {
    let named = |(field, value): (&Field, AnyValue<'v>)| Ok((field.name().to_string(), json(&value)?));
    Ok(Json::Object(fields.iter().zip(values).map(named).collect::<anyhow::Result<_>>()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use polars::prelude::{Column, IntoColumn, NamedFrom, ParquetWriter, Series, StructChunked};
    use serde_json::json;

    use super::*;
    use crate::data::development_store;
    use crate::tasks::{Answer, fixtures};

    #[test]
    fn parquet_and_lines_give_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (lines, parquet) = (folder.path().join("a.jsonl"), folder.path().join("a.parquet"));
        let endings = [Series::new("".into(), ["x", "y"]), Series::new("".into(), ["z", "\u{e9}"])];
        let choices = [Series::new("text".into(), ["a", "b"]), Series::new("label".into(), ["A", "B"])];
        let choices = StructChunked::from_series("choices".into(), 2, choices.iter()).unwrap();
        let columns = vec![
            choices.into_column(),
            Column::new("goal".into(), ["how", "why"]),
            Column::new("label".into(), [0_i64, 1]),
            Series::new("endings".into(), endings).into_column(),
        ];
        let mut frame = DataFrame::new(2, columns).unwrap();
        ParquetWriter::new(File::create(&parquet).unwrap()).finish(&mut frame).unwrap();
        let rows = [
            json!({"goal": "how", "label": 0, "choices": {"text": "a", "label": "A"}, "endings": ["x", "y"]}),
            json!({"goal": "why", "label": 1, "choices": {"text": "b", "label": "B"}, "endings": ["z", "\u{e9}"]}),
        ];
        std::fs::write(&lines, format!("{}\n\n{}\n", rows[0], rows[1])).unwrap();
        let rows: Vec<_> = rows.iter().map(|row| row.as_object().unwrap().clone()).collect();
        assert_eq!((read(&lines).unwrap(), read(&parquet).unwrap()), (rows.clone(), rows));
        std::fs::write(&lines, "{\"a\": 1}\nnothing\n").unwrap();
        assert!(format!("{:#}", read(&lines).unwrap_err()).starts_with("line 2: "));
        std::fs::write(&parquet, "nothing").unwrap();
        assert!(read(&parquet).unwrap_err().to_string().starts_with("no Parquet file"));
    }

    #[test]
    fn compressed_lines_are_read_and_damaged_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"{\"a\": 1}\n{\"a\": 2}\n").unwrap();
        let bytes = encoder.finish().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap()[1]["a"], 2);
        for damaged in [&bytes[..bytes.len() - 4], b"{}", b""] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path).unwrap_err().to_string(), "no text compressed by gzip");
        }
    }

    #[test]
    fn the_hash_knows_where_texts_end() {
        let question = |context: &str, continuation: &str, target| Question {
            answers: vec![Answer { context: context.into(), continuation: continuation.into(), n_chars: 1 }; 2],
            target,
        };
        let hash = |question: Question| sha256_of_asked(&Asked::Questions(vec![question]));
        let hashes =
            [("ab", "c", 0), ("a", "bc", 0), ("ab", "c", 1)].map(|(a, b, target)| hash(question(a, b, target)));
        assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2]);
    }

    /// Numbers of questions, and how the first begins and goes on, of the files that development machines have.
    #[test]
    fn tasks_of_development_machines_are_read() {
        let Some((_cache, store)) = development_store("tasks_of_development_machines_are_read") else { return };
        let expected = [
            (TaskName::ArcChallenge, 1170, "Question: An astronomer observes", " Planetary density will decrease.", 2),
            (TaskName::ArcEasy, 2376, "Question: Which statement best", " Sunlight is the source", 0),
            (TaskName::Boolq, 3270, "All biomass goes through", " no", 0),
            (TaskName::Hellaswag, 1000, "Pole vault: Pole vault is a sport", " go down a rock and stop.", 3),
            (TaskName::LambadaOpenai, 5153, "In my palm is a clear stone", " signs", 0),
            (TaskName::Piqa, 1838, "Question: How do I ready a guinea pig cage", " Provide the guinea pig", 0),
            (
                TaskName::Winogrande,
                1267,
                "Sarah was a much better surgeon than Maria so Sarah",
                " always got the easier cases.",
                1,
            ),
        ];
        for (task, n, context, continuation, target) in expected {
            let (Asked::Questions(questions), _) = load(task, &store).unwrap() else {
                panic!("{task:?} has questions")
            };
            let first = &questions[0];
            assert_eq!((questions.len(), first.target), (n, target), "{task:?}");
            let Answer { context: found, continuation: behind, .. } = &first.answers[0];
            assert!(found.starts_with(context) && behind.starts_with(continuation), "{task:?}: {found:?} {behind:?}");
        }
    }

    /// The same of problems; of GSM8K all prompts are those of lm-eval on the same files.
    #[test]
    fn problems_of_development_machines_are_read() {
        let Some((_cache, store)) = development_store("problems_of_development_machines_are_read") else { return };
        for (task, n, prompt) in
            [(TaskName::Gsm8k, 1319, "Question: Janet"), (TaskName::Mbpp, 500, "You are an expert")]
        {
            let (Asked::Problems(problems), _) = load(task, &store).unwrap() else { panic!("{task:?} has problems") };
            assert!(problems.len() == n && problems[0].prompt.starts_with(prompt), "{task:?}: {:?}", problems[0]);
        }
        let Ok(examples) = load_examples(TaskName::Gsm8k, &store) else {
            return eprintln!("problems_of_development_machines_are_read: gsm8k_train.jsonl is not there");
        };
        let (asked, rows) = load(TaskName::Gsm8k, &store).unwrap();
        let of_task = TaskName::Gsm8k.definition().examples.as_ref().unwrap();
        let asked = asked.behind(&of_task.prefixes(&examples, 5, &rows).unwrap());
        let Asked::Problems(problems) = asked else { panic!("GSM8K has problems") };
        let prompts: Vec<String> = problems.into_iter().map(|problem| problem.prompt).collect();
        assert_eq!(fixtures::sha256_of_texts(&prompts), fixtures::fixtures().gsm8k.sha256_of_all_prompts);
    }
}

//! [`ExperimentFile`]: what stands in one TOML file. It may stand on another file, whose sections it takes unless it has its
//! own; the result is one [`ExperimentSpec`].

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::Deserialize;

use super::published::PublishedTable;
use super::tasks::TasksSection;
use super::texts::MeasuredText;
use super::{
    CheckpointSpec, DrawnCalibration, EvaluationSpec, ExperimentSpec, ExportSpec, FigureSpec, GridSweep, MethodEntry,
    ModelSpec, NamedCalibration, ReferenceValue, ReportSpec, RunSpec, SpeedSpec, TableSpec, document, place,
};
use crate::plan::Plan;

/// An experiment as a file says it.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{ "required": ["run"] }, { "required": ["extends"] }]))]
pub struct ExperimentFile {
    /// The question this experiment answers, in one sentence. Printed above its tables.
    pub question: String,
    /// Another experiment's file, relative to this one, that extends none itself. Every section but `question` that is not given
    /// here is that file's; sections are taken whole. `calibration` and `calibrations` are one section, and so are `evaluations` and `texts`, and `models`,
    /// `published` and `reference`: with other models, published numbers are not taken.
    pub extends: Option<PathBuf>,
    /// Where and on how many threads it runs, and in what precision. Only the last is part of a cell's identity.
    pub run: Option<RunSpec>,
    /// Models to quantize, or to time.
    pub models: Option<Vec<ModelSpec>>,
    /// What activations are collected on. Absent: only methods that need no activations may run.
    pub calibration: Option<DrawnCalibration>,
    /// Several calibrations to compare, in place of `calibration`; every method runs under each, unless its entry says
    /// otherwise.
    pub calibrations: Option<Vec<NamedCalibration>>,
    /// Grids, as the product of its lists.
    pub grids: Option<GridSweep>,
    /// Methods, each run on every grid. Full precision is always measured.
    pub methods: Option<Vec<MethodEntry>>,
    /// Models that other programs have quantized, scored beside ours.
    pub checkpoints: Option<Vec<CheckpointSpec>>,
    /// What is measured of every quantized model. An experiment without one has a `[speed]` section.
    pub evaluations: Option<Vec<EvaluationSpec>>,
    /// Texts, each by several metrics: evaluations behind those of `evaluations`.
    pub texts: Option<Vec<MeasuredText>>,
    /// Tasks, each by every metric that it has: evaluations behind those of `evaluations` and `texts`.
    pub tasks: Option<TasksSection>,
    /// What is timed.
    pub speed: Option<SpeedSpec>,
    /// What is kept of the quantized models.
    pub export: Option<ExportSpec>,
    /// Published numbers to print beside ours, as a table of rows times models.
    pub published: Option<PublishedTable>,
    /// Published numbers to print beside ours, one by one.
    pub reference: Option<Vec<ReferenceValue>>,
    /// What tables compare with. Absent: RTN.
    pub report: Option<ReportSpec>,
    /// A table laid out as a published one.
    pub table: Option<TableSpec>,
    /// A figure beside those that every run gets.
    pub figure: Option<FigureSpec>,
}

impl ExperimentFile {
    /// Whether published numbers are this file's business: it has some, or models of its own.
    fn owns_published(&self) -> bool {
        self.models.is_some() || self.published.is_some() || self.reference.is_some()
    }

    /// This file's sections, and those of `base` where it has none.
    fn over(self, base: Self) -> Self {
        let (published, reference) =
            if self.owns_published() { (self.published, self.reference) } else { (base.published, base.reference) };
        let (calibration, calibrations) = if self.calibration.is_some() || self.calibrations.is_some() {
            (self.calibration, self.calibrations)
        } else {
            (base.calibration, base.calibrations)
        };
        let (evaluations, texts) = if self.evaluations.is_some() || self.texts.is_some() {
            (self.evaluations, self.texts)
        } else {
            (base.evaluations, base.texts)
        };
        Self {
            question: self.question,
            extends: None,
            run: self.run.or(base.run),
            models: self.models.or(base.models),
            calibration,
            calibrations,
            grids: self.grids.or(base.grids),
            methods: self.methods.or(base.methods),
            checkpoints: self.checkpoints.or(base.checkpoints),
            evaluations,
            texts,
            tasks: self.tasks.or(base.tasks),
            speed: self.speed.or(base.speed),
            export: self.export.or(base.export),
            published,
            reference,
            report: self.report.or(base.report),
            table: self.table.or(base.table),
            figure: self.figure.or(base.figure),
        }
    }

    /// The experiment, and its published table, which is expanded once the experiment is known to be sound.
    fn into_spec(self) -> anyhow::Result<(ExperimentSpec, Option<PublishedTable>)> {
        let of_tasks = self.tasks.map(TasksSection::evaluations).transpose()?;
        let mut evaluations = self.evaluations.unwrap_or_default();
        for text in self.texts.into_iter().flatten() {
            evaluations.extend(text.evaluations()?);
        }
        evaluations.extend(of_tasks.into_iter().flatten());
        let spec = ExperimentSpec {
            question: self.question,
            run: self
                .run
                .context("section `[run]` is missing; say which device it runs on, such as `device = \"flex\"`")?,
            models: self.models.unwrap_or_default(),
            calibration: self.calibration,
            calibrations: self.calibrations.unwrap_or_default(),
            grids: self.grids,
            methods: self.methods.unwrap_or_default(),
            checkpoints: self.checkpoints.unwrap_or_default(),
            evaluations,
            speed: self.speed,
            export: self.export,
            references: self.reference.unwrap_or_default(),
            report: self.report,
            table: self.table,
            figure: self.figure,
        };
        Ok((spec, self.published))
    }
}

/// A file that has been read.
struct Document {
    path: PathBuf,
    text: String,
    file: ExperimentFile,
}

impl Document {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let (text, file) = document::read(path, "experiment")?;
        Ok(Self { path: path.to_owned(), text, file })
    }

    /// The file that this one extends.
    fn base(&self) -> anyhow::Result<Option<Self>> {
        let Some(named) = &self.file.extends else { return Ok(None) };
        let base = self.path.parent().unwrap_or(Path::new("")).join(named);
        let read = || {
            let base = Self::read(&base)?;
            if base.file.extends.is_some() {
                bail!(
                    "{}, {}: an extended file may not extend another; extend that file directly, or copy what is needed from it",
                    base.path.display(),
                    base.place("extends")
                );
            }
            Ok(Some(base))
        };
        read().with_context(|| format!("{}: {NOT_VALID}, {}", self.path.display(), self.place("extends")))
    }

    /// ``key `grids.bits` at line 12, column 8``.
    fn place(&self, key: &str) -> String {
        let position =
            place::position_of(&self.text, key).map_or_else(String::new, |position| format!(" at {position}"));
        format!("key `{key}`{position}")
    }
}

const NOT_VALID: &str = "not a valid experiment";

impl ExperimentSpec {
    /// Reads and checks a TOML file, and the one that it extends, if it does.
    ///
    /// # Errors
    /// A file that cannot be read, a key or type that the schema does not know (with line, column and path), or values that
    /// contradict each other; each names the file (or both) and the remedy.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let own = Document::read(path)?;
        let base = own.base()?;
        let files = match &base {
            None => path.display().to_string(),
            Some(base) => format!("{} (extends {})", path.display(), base.path.display()),
        };
        let (merged, publisher) = match &base {
            Some(base) => {
                let publisher = if own.file.owns_published() { &own } else { base };
                (own.file.clone().over(base.file.clone()), publisher)
            }
            None => (own.file.clone(), &own),
        };
        let (mut spec, published) = merged.into_spec().with_context(|| format!("{files}: {NOT_VALID}"))?;
        spec.check().with_context(|| format!("{files}: {NOT_VALID}"))?;
        if let Some(published) = published {
            let numbers = published.numbers(&Plan::new(&spec)).map_err(|wrong| {
                let place = publisher.place(&wrong.path);
                let of = if base.is_some() { format!(" of {}", publisher.path.display()) } else { String::new() };
                anyhow::anyhow!("{files}: {NOT_VALID}, {place}{of}: {}", wrong.problem)
            })?;
            spec.references.splice(..0, numbers);
        }
        Ok(spec)
    }
}

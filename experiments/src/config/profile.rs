//! [`SlurmProfile`]: what a cluster gives a task of an experiment, as a TOML file that `submit --profile` names.
//!
//! Nothing in it changes a number. What is checked here is what SLURM would refuse, or take for something else.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Memory, document, whole_number};

/// What each task of an experiment gets from SLURM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlurmProfile {
    /// Partition, or several behind one another with commas; the cluster's own choice when absent.
    pub partition: Option<Word>,
    /// Account that is charged; your own when absent.
    pub account: Option<Word>,
    /// CPU cores of a task, and threads that it runs on.
    pub cpus: NonZeroUsize,
    /// Memory of a task: `"32G"`. `experiments plan` says about how much an experiment needs.
    pub memory: Memory,
    /// How long a task may take: `"12:00:00"`, `"2-00:00:00"`. One that runs out of time goes on where it was when the experiment
    /// is submitted again.
    pub time: TimeLimit,
    /// GPUs of a task; a task uses one. None when absent.
    pub gpus: Option<NonZeroUsize>,
    /// Tasks at most. Cells that share work stay together: there are no more tasks than groups of such cells.
    pub max_tasks: NonZeroUsize,
    /// Tasks that may run at once; as many as there is room for when absent.
    pub max_at_once: Option<NonZeroUsize>,
    /// Folder for downloads and quantized codes that every node sees: a task that moves to another node goes on from codes in it.
    /// `AWQ_CACHE`, or its default, as it is at submission when absent.
    pub cache: Option<PathBuf>,
    /// Lines of shell before the program: `"module load cuda/12.4"`. One that fails ends the task.
    #[serde(default)]
    pub setup: Vec<ShellLine>,
    /// More options of sbatch: `"--constraint=a100"`.
    #[serde(default)]
    pub options: Vec<SbatchOption>,
}

impl SlurmProfile {
    /// Reads and checks a profile.
    ///
    /// # Errors
    /// A file that cannot be read, or a key or value that is not sound; with file, key, line and remedy.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let (_, profile): (_, Self) = document::read(path, "profile")?;
        ensure!(
            profile.gpus.is_none() || !profile.options.iter().any(SbatchOption::asks_for_gpus),
            "{}: not a valid profile: key `gpus` and one of `options` both ask for GPUs; leave one of them out",
            path.display()
        );
        ensure!(
            profile.cache.as_deref() != Some(Path::new("")),
            "{}: not a valid profile: key `cache` is empty; name a folder, or leave it out for AWQ_CACHE as it is at submission",
            path.display()
        );
        Ok(profile)
    }

    /// Whether its tasks get a GPU.
    pub fn has_gpus(&self) -> bool {
        self.gpus.is_some() || self.options.iter().any(SbatchOption::asks_for_gpus)
    }
}

/// The JSON Schema of profiles, generated from the types.
pub fn profile_schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(SlurmProfile)).unwrap_or_default() + "\n"
}

/// A name without blanks or quotes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Word(String);

/// A time as SLURM writes it: minutes, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM` or `D-HH:MM:SS`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct TimeLimit(String);

/// One line of shell.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct ShellLine(String);

/// An option of sbatch that no key of the profile stands for: `--constraint=a100`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct SbatchOption(String);

/// Options of sbatch that the program writes, with the keys that say what they are.
const OWN_OPTIONS: [(&str, &str); 14] = [
    ("account", "`account`"),
    ("array", "`max_tasks` and `max_at_once` together"),
    ("chdir", ""),
    ("cpus-per-task", "`cpus`"),
    ("job-name", ""),
    ("mem", "`memory`"),
    ("no-requeue", ""),
    ("nodes", ""),
    ("ntasks", ""),
    ("open-mode", ""),
    ("output", ""),
    ("partition", "`partition`"),
    ("requeue", ""),
    ("time", "`time`"),
];

impl Word {
    /// The name.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_plain = |c: char| c.is_alphanumeric() || "._-+,:@/".contains(c);
        match !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
            true => Ok(Self(text)),
            false => Err(format!("{text:?} is no name; give letters, digits and any of . _ - + , : @ /")),
        }
    }
}

impl TimeLimit {
    /// As it was written.
    pub fn get(&self) -> &str {
        &self.0
    }

    /// In seconds.
    pub fn seconds(&self) -> f64 {
        seconds(&self.0).unwrap_or(f64::NAN)
    }
}

impl TryFrom<String> for TimeLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match seconds(&text) {
            Some(n) if n > 0.0 => Ok(Self(text)),
            _ => Err(format!(
                "{text:?} is no time; give hours, minutes and seconds, such as \"12:00:00\", or \"2-00:00:00\" for days"
            )),
        }
    }
}

fn seconds(text: &str) -> Option<f64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(whole_number(days)?), rest),
        None => (None, text),
    };
    let parts: Vec<f64> = rest.split(':').map(whole_number).collect::<Option<_>>()?;
    let of_day = match (days.is_some(), parts.as_slice()) {
        (true, [hours]) => hours * 3600.0,
        (true, [hours, minutes]) => hours * 3600.0 + minutes * 60.0,
        (false, [minutes]) => minutes * 60.0,
        (false, [minutes, seconds]) => minutes * 60.0 + seconds,
        (_, [hours, minutes, seconds]) => hours * 3600.0 + minutes * 60.0 + seconds,
        _ => return None,
    };
    Some(days.unwrap_or(0.0) * 86400.0 + of_day)
}

impl ShellLine {
    /// The line, without its end.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ShellLine {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.contains(['\n', '\r', '\0']) || text.trim().is_empty() {
            true => Err(format!("{text:?} is not one line of shell; give each line as an entry of its own")),
            false => Ok(Self(text)),
        }
    }
}

impl SbatchOption {
    /// As sbatch takes it.
    pub fn get(&self) -> &str {
        &self.0
    }

    fn asks_for_gpus(&self) -> bool {
        ["--gres", "--gpus"].iter().any(|gpus| self.0.starts_with(gpus))
    }
}

impl TryFrom<String> for SbatchOption {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = text.strip_prefix("--").and_then(|rest| rest.split(['=', ' ']).next()).unwrap_or_default();
        if name.is_empty() || text.contains(['\n', '\r', '\0']) {
            return Err(format!(
                "{text:?} is no option of sbatch; give it whole and in its long form, such as \"--constraint=a100\""
            ));
        }
        match OWN_OPTIONS.iter().find(|(own, _)| *own == name) {
            Some((_, "")) => Err(format!("`--{name}` is the program's own choice; leave it out")),
            Some((_, key)) => Err(format!("`--{name}` is what {key} says; leave it out")),
            None => Ok(Self(text)),
        }
    }
}

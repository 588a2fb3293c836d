//! An experiment as tasks of a cluster: its shares in one folder, what was submitted of them, and how far each is.
//!
//! ```text
//! DIR/experiment.toml, records.jsonl, tables   the whole, made by `collect`
//! DIR/shares/experiment.toml                   what was submitted, which tasks read
//! DIR/shares/job.sh                            the newest script
//! DIR/shares/submitted.json                    jobs with their shares
//! DIR/shares/2-of-8/, DIR/shares/2-of-8.log    a share as `run --shard 2/8` leaves it, and what it printed
//! ```

pub mod script;
pub mod slurm;
pub mod status;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::ExperimentSpec;
use crate::files::{folder_of, sync_folder, write_durably};
use crate::plan::select::Shard;
use crate::record::RESOLVED_CONFIG;

const SUBMITTED: &str = "submitted.json";
const SCRIPT: &str = "job.sh";

/// Layout of [`Submitted`]; raised when a key changes meaning.
const SCHEMA: u32 = 1;

/// What was submitted of an experiment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submitted {
    schema: u32,
    /// Shares in all, the same in every job.
    pub n_shares: usize,
    /// What SLURM calls every job of this folder.
    pub job_name: String,
    /// Jobs, oldest first.
    pub jobs: Vec<Job>,
}

/// A job: an array of tasks, each a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// SLURM's number of it.
    pub id: u64,
    /// Its shares, from 1.
    pub shares: Vec<usize>,
    /// When it was submitted, in seconds since the Unix epoch.
    pub unix_time: u64,
}

/// The shares of an experiment, in the folder of its results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Absolute.
    folder: PathBuf,
    /// What was submitted of them.
    pub submitted: Submitted,
}

impl Shares {
    /// Of an experiment that is to be submitted for the first time, in `out`, an absolute path.
    pub fn new(out: &Path, n_shares: usize) -> Self {
        let submitted = Submitted { schema: SCHEMA, n_shares, job_name: job_name(out), jobs: Vec::new() };
        Self { folder: out.join("shares"), submitted }
    }

    /// Of the experiment that was submitted in `out`; `None` where no job was.
    ///
    /// # Errors
    /// A file that cannot be read, or that a newer program wrote.
    pub fn open(out: &Path) -> anyhow::Result<Option<Self>> {
        let folder = std::path::absolute(out)?.join("shares");
        let path = folder.join(SUBMITTED);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        let broken = || {
            format!(
                "{}: not what `submit` writes; move the folder {} away to begin anew, or merge its shares with `merge`",
                path.display(),
                folder.display()
            )
        };
        let submitted: Submitted = serde_json::from_slice(&text).with_context(broken)?;
        ensure!(
            submitted.schema == SCHEMA,
            "{}: schema {}, this program reads {SCHEMA}; use the program that wrote it",
            path.display(),
            submitted.schema
        );
        ensure!(submitted.n_shares > 0, broken());
        // What SLURM did not take is forgotten.
        Ok((!submitted.jobs.is_empty()).then_some(Self { folder, submitted }))
    }

    /// Where all of it lies, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the whole experiment, that they lie in.
    pub fn collected_in(&self) -> &Path {
        folder_of(&self.folder)
    }

    /// The share of this number, from 1.
    pub fn shard(&self, index: usize) -> Shard {
        Shard { index, n: self.submitted.n_shares }
    }

    /// Every share.
    pub fn all(&self) -> impl Iterator<Item = Shard> {
        (1..=self.submitted.n_shares).map(|index| self.shard(index))
    }

    /// Where a share's records are.
    pub fn folder_of(&self, shard: Shard) -> PathBuf {
        self.folder.join(name_of(&shard.index.to_string(), shard.n))
    }

    /// What a share's task has printed.
    pub fn log_of(&self, shard: Shard) -> PathBuf {
        self.folder.join(name_of(&shard.index.to_string(), shard.n) + ".log")
    }

    /// The experiment that was submitted, which tasks read.
    pub fn experiment_file(&self) -> PathBuf {
        self.folder.join(RESOLVED_CONFIG)
    }

    /// The script of the newest job.
    pub fn script_file(&self) -> PathBuf {
        self.folder.join(SCRIPT)
    }

    /// Numbers of all jobs.
    pub fn job_ids(&self) -> Vec<u64> {
        self.submitted.jobs.iter().map(|job| job.id).collect()
    }

    /// Writes what a job reads. The experiment is that of the first job: what its tasks read does not change under them.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, spec: &ExperimentSpec, script: &str) -> anyhow::Result<()> {
        let place = || format!("{}: cannot write; choose another folder with --out", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(place)?;
        if self.submitted.jobs.is_empty() {
            write_durably(&self.experiment_file(), spec.to_toml()?.as_bytes()).with_context(place)?;
        }
        write_durably(&self.script_file(), script.as_bytes()).with_context(place)?;
        self.save()?;
        sync_folder(&self.folder).with_context(place)
    }

    /// Notes a job that SLURM has taken.
    ///
    /// # Errors
    /// A folder that cannot be written; the job runs all the same.
    pub fn add_job(&mut self, job: Job) -> anyhow::Result<()> {
        let id = job.id;
        self.submitted.jobs.push(job);
        self.save().with_context(|| format!("job {id} is submitted, and not noted: `scancel {id}` ends it"))
    }

    fn save(&self) -> anyhow::Result<()> {
        let path = self.folder.join(SUBMITTED);
        let text = serde_json::to_string_pretty(&self.submitted)? + "\n";
        write_durably(&path, text.as_bytes()).with_context(|| format!("{}: cannot write", path.display()))
    }
}

/// `2-of-8`; of all tasks where `index` is what SLURM puts in its place.
fn name_of(index: &str, n: usize) -> String {
    format!("{index}-of-{n}")
}

/// What SLURM calls jobs of a folder: its last name, and what tells it from others of that name. Jobs are found again by it without
/// any file of ours.
fn job_name(out: &Path) -> String {
    let last = out.file_name().unwrap_or_default().to_string_lossy();
    let plain: String = last.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    let digest = Sha256::digest(out.as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{digits}", plain.chars().take(40).collect::<String>())
}

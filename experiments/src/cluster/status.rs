//! [`Status`]: how far each share of a submitted experiment is, from records alone, and what SLURM says of its tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::slurm::Task;
use super::{Job, Shares};
use crate::plan::select::Shard;
use crate::plan::{CellId, Plan};
use crate::record::{Line as _, Outcome, StoredRecord, read_records};

/// How far a submitted experiment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The question of the experiment.
    pub question: String,
    /// Jobs that were submitted, oldest first.
    pub jobs: Vec<Job>,
    /// Every share.
    pub shares: Vec<ShareStatus>,
    /// What is wrong with files, or why SLURM says nothing.
    pub notes: Vec<String>,
}

/// How far a share is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShareStatus {
    /// `2/8`.
    pub share: String,
    /// Where its records are.
    pub folder: PathBuf,
    /// What its task printed.
    pub log: PathBuf,
    /// Its cells, and how they stand.
    #[serde(flatten)]
    pub cells: Counts,
    /// What SLURM says of its newest task, where it does.
    pub task: Option<Task>,
}

/// Cells by what their newest records say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All.
    pub n_cells: usize,
    /// With numbers.
    pub n_done: usize,
    /// Failed.
    pub n_failed: usize,
    /// Without a record.
    pub n_to_do: usize,
}

impl Counts {
    /// Of the cells of `plan`, by the records of one folder or several: a cell has its numbers if one of them has.
    pub fn of(plan: &Plan, folders: &[&[StoredRecord]]) -> Self {
        let newest = |records: &&'_ [StoredRecord]| -> BTreeMap<CellId, bool> {
            let is_done = |record: &StoredRecord| matches!(record.outcome, Outcome::Done(_));
            records.iter().map(|record| (record.cell_id.clone(), is_done(record))).collect()
        };
        let newest: Vec<BTreeMap<CellId, bool>> = folders.iter().map(newest).collect();
        let mut counts = Self::default();
        for cell in plan.cells() {
            counts.n_cells += 1;
            let id = cell.id();
            match newest.iter().filter_map(|folder| folder.get(&id)).max() {
                Some(true) => counts.n_done += 1,
                Some(false) => counts.n_failed += 1,
                None => counts.n_to_do += 1,
            }
        }
        counts
    }

    /// Whether every cell has its numbers.
    pub fn is_finished(&self) -> bool {
        self.n_done == self.n_cells
    }

    fn plus(self, other: Self) -> Self {
        Self {
            n_cells: self.n_cells + other.n_cells,
            n_done: self.n_done + other.n_done,
            n_failed: self.n_failed + other.n_failed,
            n_to_do: self.n_to_do + other.n_to_do,
        }
    }
}

/// A folder as a command takes it.
fn shown(folder: &Path) -> String {
    let text = folder.display().to_string();
    shlex::try_quote(&text).map_or_else(|_| text.clone(), Into::into)
}

/// The records of a folder, and what is wrong with its files; none of a folder that no run has begun.
///
/// # Errors
/// Records of a newer program.
pub fn records_in(folder: &Path) -> anyhow::Result<(Vec<StoredRecord>, Vec<String>)> {
    if folder.join(StoredRecord::FILE).is_file() { read_records(folder) } else { Ok(Default::default()) }
}

impl Status {
    /// From the records of all shares, and of the folder that they are collected in, where cells may have run as well.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn of(shares: &Shares, plan: &Plan) -> anyhow::Result<Self> {
        let (of_whole, mut notes) = records_in(shares.collected_in())?;
        let mut of_share = |shard: Shard| {
            let folder = shares.folder_of(shard);
            let (records, of_files) = records_in(&folder)?;
            notes.extend(of_files);
            let cells = Counts::of(&plan.clone().shard(shard), &[&records, &of_whole]);
            anyhow::Ok(ShareStatus { share: shard.to_string(), folder, log: shares.log_of(shard), cells, task: None })
        };
        let of_shares = shares.all().map(&mut of_share).collect::<anyhow::Result<_>>()?;
        Ok(Self { question: plan.question.clone(), jobs: shares.submitted.jobs.clone(), shares: of_shares, notes })
    }

    /// With what SLURM says: of each share its newest job's task, and of this what is said first.
    pub fn with_tasks(mut self, tasks: impl IntoIterator<Item = Task>) -> Self {
        for task in tasks {
            let Some(share) = task.share.checked_sub(1).and_then(|index| self.shares.get_mut(index)) else { continue };
            if share.task.as_ref().is_none_or(|known| known.job < task.job) {
                share.task = Some(task);
            }
        }
        self
    }

    /// Numbers of the shares with cells that have no numbers yet.
    pub fn unfinished(&self) -> Vec<usize> {
        let shares = self.shares.iter().enumerate();
        shares.filter(|(_, share)| !share.cells.is_finished()).map(|(index, _)| index + 1).collect()
    }

    /// Tasks that wait or run.
    pub fn alive(&self) -> impl Iterator<Item = &Task> {
        self.shares.iter().filter_map(|share| share.task.as_ref()).filter(|task| task.is_alive())
    }

    /// For the terminal; `folder` is what the user calls it.
    pub fn text(&self, folder: &Path) -> String {
        let all = self.shares.iter().fold(Counts::default(), |sum, share| sum.plus(share.cells));
        let of_share = |share: &ShareStatus| {
            let task = share.task.as_ref().map_or_else(|| "-".to_owned(), Task::text);
            (share.share.clone(), share.cells, task)
        };
        let rows: Vec<_> = self.shares.iter().map(of_share).chain([("all".to_owned(), all, String::new())]).collect();
        let width = rows.iter().map(|(share, ..)| share.len()).max().unwrap_or(0).max("share".len());
        let ids: Vec<String> = self.jobs.iter().map(|job| job.id.to_string()).collect();
        let jobs = if ids.is_empty() { "no job yet".to_owned() } else { format!("jobs: {}", ids.join(", ")) };
        let mut text = format!("{}\n{}, {jobs}\n\n", self.question, folder.display());
        text += &format!("{:width$}  cells   done  failed  to do  SLURM\n", "share");
        for (share, Counts { n_cells, n_done, n_failed, n_to_do }, task) in rows {
            let row = format!("{share:width$}  {n_cells:5}  {n_done:5}  {n_failed:6}  {n_to_do:5}  {task}");
            text += row.trim_end();
            text.push('\n');
        }
        text + &format!("\n{}\n", self.next_step(&all, folder))
    }

    fn next_step(&self, all: &Counts, folder: &Path) -> String {
        let folder = shown(folder);
        let collect = format!("`experiments collect {folder}`");
        if all.is_finished() {
            return format!("Every cell has its numbers: {collect} makes tables and figures.");
        }
        match self.alive().count() {
            0 => {
                format!("Submit it again, with --out {folder}, to run what is missing; {collect} shows what is there.")
            }
            n => format!("{n} of {} tasks wait or run; {collect} shows what is there.", self.shares.len()),
        }
    }
}

//! [`Sweep`]: how far a whole run of an experiment is, for its lines and bars, and for whoever watches `progress.json`.
//!
//! The time left is the work left, as a plan estimates it, at the speed of the same kind of work in this run: quantizing and scoring
//! are measured apart. Until a kind has begun its speed is that of products in f32, as `plan --measure` found it here, or else the plan's
//! assumption.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::plan::CellId;
use crate::plan::cost::{Estimate, Kind, duration};

/// File of a run that says how far it is.
pub const PROGRESS_FILE: &str = "progress.json";

/// Time between two states of the file.
const BETWEEN_STATES: Duration = Duration::from_secs(5);

/// What `progress.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepState {
    /// When it was written, UTC.
    pub updated: String,
    /// Id of the run's process.
    pub pid: u32,
    /// `running` or `ended`. A run that was killed leaves `running`, and `updated` stands still.
    pub state: String,
    /// All cells of the run.
    pub n_cells: usize,
    /// Those that were on record when it began.
    pub n_on_record: usize,
    /// Those that it has finished.
    pub n_finished: usize,
    /// Those that failed.
    pub n_failed: usize,
    /// What it is at.
    pub stage: String,
    /// How much of that is done, 0 to 1.
    pub stage_share: f64,
    /// Seconds since it began.
    pub elapsed_seconds: f64,
    /// Seconds that the rest will take, about.
    pub left_seconds: f64,
}

impl SweepState {
    /// Of runs side by side, parts of one that began so long ago.
    pub(crate) fn of_all(states: &[Self], elapsed: Duration) -> Self {
        let sum = |of: fn(&Self) -> usize| states.iter().map(of).sum::<usize>();
        let stages = states.iter().filter(|state| state.state == "running").map(|state| state.stage.as_str());
        Self {
            updated: now(),
            pid: std::process::id(),
            state: "running".to_owned(),
            n_cells: sum(|state| state.n_cells),
            n_on_record: sum(|state| state.n_on_record),
            n_finished: sum(|state| state.n_finished),
            n_failed: sum(|state| state.n_failed),
            stage: stages.collect::<Vec<_>>().join("; "),
            stage_share: states.iter().map(|state| state.stage_share).sum::<f64>() / states.len().max(1) as f64,
            elapsed_seconds: elapsed.as_secs_f64(),
            left_seconds: states.iter().map(|state| state.left_seconds).fold(0.0, f64::max),
        }
    }

    /// A state that cannot be written is no reason to end a run.
    pub(crate) fn write(&self, file: &Path) {
        let partial = file.with_extension("json.partial");
        let written = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        let _ = written.and_then(|json| std::fs::write(&partial, json)).and_then(|()| std::fs::rename(&partial, file));
    }
}

fn now() -> String {
    chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The state of a run, shared by its bars.
#[derive(Debug)]
pub struct Sweep {
    inner: Mutex<Inner>,
    file: PathBuf,
}

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// Work left of the cells that have not ended.
    left: BTreeMap<CellId, Estimate>,
    /// Speed of a kind that has not begun, in floating-point operations a second.
    flops: f64,
    n_cells: usize,
    n_on_record: usize,
    n_finished: usize,
    n_failed: usize,
    has_ended: bool,
    /// Work and seconds of stages that are over, by kind.
    spent: [(f64, f64); 2],
    stage: Option<Stage>,
    label: String,
    share: f64,
}

/// What is under way.
#[derive(Debug)]
struct Stage {
    kind: Kind,
    cells: Vec<CellId>,
    began: Instant,
    /// Bars that it will show, and those that are over.
    n_bars: usize,
    n_over: usize,
}

impl Sweep {
    /// A run of `n_cells` cells, of which `left` have to be run, at a speed of about `flops`; `file` is where its state goes.
    pub(crate) fn new(file: PathBuf, n_cells: usize, left: BTreeMap<CellId, Estimate>, flops: f64) -> Arc<Self> {
        let inner = Inner {
            began: Instant::now(),
            n_cells,
            n_on_record: n_cells - left.len(),
            n_finished: 0,
            n_failed: 0,
            has_ended: false,
            left,
            flops,
            spent: [(0.0, 0.0); 2],
            stage: None,
            label: String::new(),
            share: 0.0,
        };
        let sweep = Arc::new(Self { inner: Mutex::new(inner), file });
        sweep.write();
        let watched = Arc::downgrade(&sweep);
        // Where no thread can be had, the state is written at the end of each cell.
        let _ = std::thread::Builder::new().name("progress".into()).spawn(move || keep_writing(&watched));
        sweep
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stage begins, which works on `cells` and shows `n_bars` bars.
    pub(crate) fn begin(&self, kind: Kind, cells: Vec<CellId>, n_bars: usize) {
        self.inner().stage = Some(Stage { kind, cells, began: Instant::now(), n_bars: n_bars.max(1), n_over: 0 });
    }

    /// A bar of the stage is so far.
    pub(super) fn advance(&self, label: &str, share: f64) {
        let mut inner = self.inner();
        label.clone_into(&mut inner.label);
        inner.share = share;
    }

    /// A bar of the stage is over.
    pub(super) fn bar_over(&self) {
        let mut inner = self.inner();
        inner.share = 0.0;
        if let Some(stage) = &mut inner.stage {
            stage.n_over += 1;
        }
    }

    /// The stage is over, with its work done.
    pub fn end_stage(&self) {
        let mut inner = self.inner();
        let Some(stage) = inner.stage.take() else { return };
        let work = inner.work_of(&stage);
        let spent = &mut inner.spent[stage.kind as usize];
        spent.0 += work;
        spent.1 += stage.began.elapsed().as_secs_f64();
        for cell in &stage.cells {
            if let Some(left) = inner.left.get_mut(cell) {
                *left.of(stage.kind) = 0.0;
            }
        }
    }

    /// Codes of a cell are there already.
    pub fn has_codes(&self, cell: &CellId) {
        if let Some(left) = self.inner().left.get_mut(cell) {
            *left.of(Kind::Quantize) = 0.0;
        }
    }

    /// A cell is on record.
    pub fn cell_ended(&self, cell: &CellId, is_finished: bool) {
        let mut inner = self.inner();
        inner.left.remove(cell);
        if is_finished {
            inner.n_finished += 1;
        } else {
            inner.n_failed += 1;
        }
        drop(inner);
        self.write();
    }

    /// The run is over.
    pub fn end(&self) {
        let mut inner = self.inner();
        inner.has_ended = true;
        inner.stage = None;
        inner.label.clear();
        drop(inner);
        self.write();
    }

    /// `whole run 23%, ETA 85 min`; nothing for a single cell, whose stages say it.
    pub fn words(&self) -> Option<String> {
        let inner = self.inner();
        let (elapsed, left) = (inner.began.elapsed().as_secs_f64(), inner.left_seconds());
        let is_several = inner.n_cells - inner.n_on_record > 1;
        let percent = 100.0 * elapsed / (elapsed + left).max(1e-9);
        is_several.then(|| format!("whole run {percent:.0}%, ETA {}", duration(left)))
    }

    /// What the file says now.
    pub fn state(&self) -> SweepState {
        let inner = self.inner();
        SweepState {
            updated: now(),
            pid: std::process::id(),
            state: if inner.has_ended { "ended" } else { "running" }.to_owned(),
            n_cells: inner.n_cells,
            n_on_record: inner.n_on_record,
            n_finished: inner.n_finished,
            n_failed: inner.n_failed,
            stage: inner.label.clone(),
            stage_share: inner.share,
            elapsed_seconds: inner.began.elapsed().as_secs_f64(),
            left_seconds: inner.left_seconds(),
        }
    }

    fn write(&self) {
        self.state().write(&self.file);
    }
}

impl Drop for Sweep {
    /// A run that an error ends is over, too.
    fn drop(&mut self) {
        if !self.inner().has_ended {
            self.end();
        }
    }
}

impl Inner {
    fn work_of(&self, stage: &Stage) -> f64 {
        stage.cells.iter().filter_map(|cell| self.left.get(cell)).map(|left| left.get(stage.kind)).sum()
    }

    fn left_seconds(&self) -> f64 {
        [Kind::Quantize, Kind::Score].into_iter().map(|kind| self.left_seconds_of(kind)).sum()
    }

    fn left_seconds_of(&self, kind: Kind) -> f64 {
        let mut left: f64 = self.left.values().map(|left| left.get(kind)).sum();
        let (mut work, mut seconds) = self.spent[kind as usize];
        if let Some(stage) = self.stage.as_ref().filter(|stage| stage.kind == kind) {
            let share = ((stage.n_over as f64 + self.share) / stage.n_bars as f64).clamp(0.0, 1.0);
            let done = self.work_of(stage) * share;
            left -= done;
            work += done;
            seconds += stage.began.elapsed().as_secs_f64();
        }
        let flops = if work > 0.0 && seconds > 0.0 { work / seconds } else { self.flops };
        // The sum over nothing is -0.
        (left / flops).abs()
    }
}

fn keep_writing(sweep: &Weak<Sweep>) {
    loop {
        std::thread::sleep(BETWEEN_STATES);
        match sweep.upgrade() {
            Some(sweep) if !sweep.inner().has_ended => sweep.write(),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sweep(folder: &std::path::Path) -> Arc<Sweep> {
        let estimate = Estimate { quantize: 4e11, score: 2e11 };
        let left = ["a", "b"].map(|id| (CellId(id.into()), estimate));
        Sweep::new(folder.join(PROGRESS_FILE), 3, left.into(), 2e11)
    }

    fn written(folder: &std::path::Path) -> SweepState {
        serde_json::from_slice(&std::fs::read(folder.join(PROGRESS_FILE)).unwrap()).unwrap()
    }

    #[test]
    fn the_time_left_is_the_work_left_at_the_speed_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let sweep = sweep(folder.path());
        let ids = [CellId("a".into()), CellId("b".into())];
        // Two of each at 2e11 a second.
        assert_eq!(written(folder.path()).left_seconds, 6.0);
        sweep.begin(Kind::Quantize, ids.to_vec(), 1);
        sweep.advance("quantize", 0.5);
        assert!(sweep.state().left_seconds < 2.1, "half of it took next to nothing: {:?}", sweep.state());
        sweep.bar_over();
        sweep.end_stage();
        sweep.begin(Kind::Score, ids[..1].to_vec(), 2);
        // A second text of two.
        sweep.bar_over();
        sweep.inner().stage.as_mut().unwrap().began = Instant::now() - Duration::from_secs(10);
        let left = sweep.state().left_seconds;
        assert!((left - 30.0).abs() < 0.5, "half a cell took 10 s, one and a half are left: {left}");
        sweep.bar_over();
        sweep.end_stage();
        sweep.cell_ended(&ids[0], true);
        sweep.cell_ended(&ids[1], false);
        let state = written(folder.path());
        assert_eq!((state.n_cells, state.n_on_record, state.n_finished, state.n_failed), (3, 1, 1, 1));
        assert_eq!((state.left_seconds.to_bits(), state.state.as_str()), (0, "running"));
        drop(sweep);
        assert_eq!(written(folder.path()).state, "ended");
    }

    #[test]
    fn codes_that_are_there_are_no_work() {
        let folder = tempfile::tempdir().unwrap();
        let sweep = sweep(folder.path());
        sweep.has_codes(&CellId("a".into()));
        assert_eq!(sweep.state().left_seconds, 4.0);
        assert_eq!(sweep.words().unwrap(), "whole run 0%, ETA 4 s");
    }

    #[test]
    fn a_folder_that_is_gone_ends_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let sweep = sweep(folder.path());
        drop(folder);
        sweep.cell_ended(&CellId("a".into()), true);
    }
}

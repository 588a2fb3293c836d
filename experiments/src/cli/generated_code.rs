//! The user's consent to run what a model writes.

use anyhow::bail;
use clap::Args;

use crate::config::DatasetSpec;
use crate::plan::Cell;
use crate::progress::Progress;
use crate::sandbox::Sandbox;

/// Whether generated code may run.
#[derive(Args, Debug)]
pub(super) struct GeneratedCodeArgs {
    /// Run the Python programs that models write on the problems of tasks such as mbpp and humaneval, confined as far as this machine
    /// permits: SECURITY.md says what that protects, and what it does not.
    #[arg(long)]
    run_generated_code: bool,
}

impl GeneratedCodeArgs {
    /// What gives consent.
    pub(super) const FLAG: &'static str = "--run-generated-code";

    /// What runs the programs that `cells` ask for; `None` where they ask for none.
    ///
    /// # Errors
    /// A cell that asks for one without consent, or on a machine that cannot confine it: before any work.
    pub(super) fn sandbox<'c>(
        &self,
        cells: impl IntoIterator<Item = &'c Cell>,
        progress: &Progress,
    ) -> anyhow::Result<Option<Sandbox>> {
        if !self.check_consent(cells)? {
            return Ok(None);
        }
        let sandbox = Sandbox::find()?;
        progress.note(&format!("generated code runs with {}", sandbox.about()));
        Ok(Some(sandbox))
    }

    /// Whether `cells` ask for programs that run.
    ///
    /// # Errors
    /// They do, without consent.
    pub(super) fn check_consent<'c>(&self, cells: impl IntoIterator<Item = &'c Cell>) -> anyhow::Result<bool> {
        let mut texts =
            cells.into_iter().flat_map(|cell| &cell.evaluations).map(|evaluation| &evaluation.text().dataset);
        let task = texts.find_map(|dataset| match dataset {
            DatasetSpec::Task(task) if task.definition().runs_programs() => Some(*task),
            _ => None,
        });
        match task {
            Some(task) if !self.run_generated_code => bail!(
                "task {} runs Python programs that the model writes, which may do anything that you may; read SECURITY.md, and allow it \
                 with --run-generated-code, or leave the task out",
                task.name()
            ),
            task => Ok(task.is_some()),
        }
    }

    /// Whether consent was given.
    pub(super) fn is_given(&self) -> bool {
        self.run_generated_code
    }
}

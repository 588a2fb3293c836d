//! [`Standings`]: which of several rows are not worse than the best of them, beyond what their windows can tell.

use super::frame::{BOOTSTRAP, arithmetic_name, same_windows};
use super::row::Row;
use crate::record::{Measurement, Outcome, Record};
use crate::stats::{self, Estimator, Paired};

/// The samples behind the rows of a report, to compare any two of them.
#[derive(Clone, Debug)]
pub struct Standings<'a> {
    records: &'a [&'a Record],
}

impl<'a> Standings<'a> {
    /// Of the records that the rows are made of ([`super::draws::Rows`]).
    pub fn new(records: &'a [&'a Record]) -> Self {
        Self { records }
    }

    /// Whether `row` is quantized, has rivals (of which it is one itself), and the paired interval of the difference of its
    /// samples' mean to that of the best of them does not lie on the worse side of 0. Rows of one window, and largest values, have no interval: none of them is.
    pub fn is_among_best(&self, row: &Row, rivals: &[&Row]) -> bool {
        let worse_by = |difference: f64| row.quantity().direction.worse_by(difference);
        let best_first = |a: &&&Row, b: &&&Row| worse_by(a.value).total_cmp(&worse_by(b.value));
        let Some(best) = rivals.iter().min_by(best_first) else { return false };
        if row.grid.is_none() || rivals.len() < 2 {
            return false;
        }
        if row.quantity().estimator == Estimator::Largest {
            return false;
        }
        let (Some(own), Some(best)) = (self.measurement(row), self.measurement(best)) else { return false };
        let paired = || stats::difference_of_means(own.weighted_samples(), best.weighted_samples(), BOOTSTRAP).ok();
        let holds_nothing = |paired: Paired| worse_by(paired.interval.low).min(worse_by(paired.interval.high)) <= 0.0;
        same_windows(own, best) && paired().is_some_and(holds_nothing)
    }

    fn measurement(&self, row: &Row) -> Option<&'a Measurement> {
        let record = self.records.iter().find(|record| record.cell_id.0 == row.cell_id)?;
        let Outcome::Done(done) = &record.outcome else { return None };
        done.measurements.iter().find(|measurement| {
            measurement.metric == row.quantity().name
                && (measurement.dataset.as_str(), measurement.protocol.as_str()) == (&row.dataset, &row.protocol)
                && (measurement.seq_len as u64, measurement.n_windows as u64) == (row.seq_len, row.n_windows)
                && arithmetic_name(&record.cell, measurement) == row.arithmetic
        })
    }
}

//! Jobs on a tab: what those that have not ended may still cost, and what they have cost so far.

use serde::{Deserialize, Serialize};

use super::{Tab, TabError};
use crate::amount::{Amount, SUPPLY_MAX};
use crate::job::JobId;
use crate::meter::MeterError;

/// Most jobs under way under one deal.
pub const JOBS_OPEN_MAX: usize = 256;

/// What a job that has not ended costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenJob {
    /// At most.
    pub(super) most: Amount,
    /// So far.
    pub(super) counted: Amount,
}

impl Tab {
    /// Notes a job that costs at most `most`. From then on the escrow has to have that.
    ///
    /// # Errors
    /// [`TabError::ManyJobs`].
    pub fn begin_job(&mut self, job: JobId, most: Amount) -> Result<(), TabError> {
        if self.open_jobs.len() >= JOBS_OPEN_MAX && !self.open_jobs.contains_key(&job) {
            return Err(TabError::ManyJobs);
        }
        self.open_jobs.entry(job).or_insert(OpenJob { most, counted: Amount::ZERO });
        Ok(())
    }

    /// Counts what a job has cost so far, in all.
    ///
    /// # Errors
    /// [`TabError::Job`]; nothing has changed then.
    pub fn count_job(&mut self, job: &JobId, cost: Amount) -> Result<(), TabError> {
        let open = self.open_jobs.get_mut(job).ok_or(TabError::Job)?;
        if cost < open.counted || cost > open.most {
            return Err(TabError::Job);
        }
        self.jobs = self.jobs.checked_add(cost.saturating_sub(open.counted)).ok_or(MeterError::Overflow)?;
        open.counted = cost;
        Ok(())
    }

    /// Ends a job, with what was counted of it.
    pub fn end_job(&mut self, job: &JobId) {
        self.open_jobs.remove(job);
    }

    /// What was counted of a job that has not ended.
    pub fn job(&self, job: &JobId) -> Option<Amount> {
        self.open_jobs.get(job).map(|open| open.counted)
    }

    /// Counts jobs that the other side alone has counted.
    pub fn add_missed_jobs(&mut self, cost: Amount) {
        self.jobs = self.jobs.checked_add(cost).unwrap_or(SUPPLY_MAX);
    }

    /// Takes over from `ours`, which jobs are under way and what they may cost: another's word for that would put money aside for nothing.
    pub fn keep_open_jobs(&mut self, ours: &Self) {
        let theirs = std::mem::take(&mut self.open_jobs);
        for (job, open) in &ours.open_jobs {
            let counted = theirs.get(job).map_or(open.counted, |theirs| theirs.counted.min(open.most));
            self.open_jobs.insert(*job, OpenJob { most: open.most, counted: counted.max(open.counted) });
        }
    }

    /// Jobs that have not ended.
    pub fn open_jobs(&self) -> impl Iterator<Item = &JobId> {
        self.open_jobs.keys()
    }

    /// What jobs that have not ended may still cost.
    pub fn reserved(&self) -> Amount {
        let left = self.open_jobs.values().map(|open| open.most.saturating_sub(open.counted).0);
        Amount(left.fold(0, u128::saturating_add)).min(SUPPLY_MAX)
    }
}

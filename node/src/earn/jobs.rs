//! What jobs cost, on the tabs of the deals that pay for them.

use std::sync::Arc;

use spare_market::amount::Amount;
use spare_market::deal::DealId;
use spare_market::job::{ComputePrices, JOBS_UNPAID_MAX, JobId, Order, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::Signed;

use super::{Cell, Earner, internal, no_deal, not_a_signer, record_key, refused};
use crate::crash;
use crate::frames::{Refusal, RefusalCode};
use crate::meta::{Batch, Table};

impl Earner {
    /// Puts an order's job on its deal's tab, if the escrow has what the job can cost. Durable when it returns.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn begin_job(&self, owner: &PublicKey, order: &Signed<Order>, work: &Work) -> Result<(), Refusal> {
        let (id, job) = (order.value().v1().deal, order.value().job_id());
        let (cell, deal) = self.open_deal(owner, id)?;
        if !deal.signers.contains(&order.signer()) {
            return Err(not_a_signer());
        }
        if self.unpaid_jobs(id) > JOBS_UNPAID_MAX {
            return Err(Refusal::new(
                RefusalCode::PaymentDue,
                "jobs have cost more than is paid; send a voucher",
            ));
        }
        let prices = deal.terms.compute.ok_or_else(|| no_deal("the deal's terms have no prices of jobs"))?;
        if deal.collateral < order.value().v1().penalty {
            let why = format!("of the deal's collateral {} credits are left", deal.collateral);
            return Err(Refusal::new(RefusalCode::BadOrder, why));
        }
        let mut record = cell.lock();
        let most = prices.cost_max(work);
        if record.tab.job(&job).is_none() && record.tab.left(&deal, self.period()) < most {
            let why = format!(
                "the job may cost {most} credits, and the deal's escrow does not have that beside what else it pays; top it up"
            );
            return Err(Refusal::new(RefusalCode::Unfunded, why));
        }
        let mut next = record.clone();
        next.tab.begin_job(job, most).map_err(|error| Refusal::new(RefusalCode::Busy, error.to_string()))?;
        let mut batch = Batch::default();
        self.meta.commit(batch.put(Table::Deals, &record_key(id), &next)).map_err(internal)?;
        *record = next;
        Ok(())
    }

    fn job_cell(&self, id: DealId) -> Option<Arc<Cell>> {
        self.deals.lock().expect("no holder panics").get(&id).cloned()
    }

    /// Checks that `owner` has a deal under which jobs can be ordered, with money in it: bytes are not taken for nothing.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn check_job_deal(&self, owner: &PublicKey, id: DealId) -> Result<(), Refusal> {
        let (_, deal) = self.open_deal(owner, id)?;
        if deal.terms.compute.is_none() {
            return Err(no_deal("the deal's terms have no prices of jobs"));
        }
        if deal.escrow == Amount::ZERO {
            return Err(Refusal::new(RefusalCode::Unfunded, "the deal's escrow is empty; top it up"));
        }
        Ok(())
    }

    /// The prices of jobs under a deal.
    pub fn job_prices(&self, id: DealId) -> Option<ComputePrices> {
        self.job_cell(id)?.lock().terms.compute
    }

    /// Jobs on tabs that have not ended.
    pub fn open_jobs(&self) -> Vec<(DealId, JobId)> {
        let of = |(id, cell): (DealId, Arc<Cell>)| {
            let jobs: Vec<JobId> = cell.lock().tab.open_jobs().copied().collect();
            jobs.into_iter().map(move |job| (id, job))
        };
        self.all().into_iter().flat_map(of).collect()
    }

    /// What was counted of a job that has not ended.
    pub fn job(&self, id: DealId, job: &JobId) -> Option<Amount> {
        self.job_cell(id)?.lock().tab.job(job)
    }

    /// Counts what a job has cost so far. Durable when it returns, since the client may promise that much from then on: a tab that knew of less after a
    /// crash would refuse the promise.
    ///
    /// # Errors
    /// The refusal of the tab, or of the records.
    pub fn count_job(&self, id: DealId, job: &JobId, cost: Amount, is_end: bool) -> Result<(), Refusal> {
        let Some(cell) = self.job_cell(id) else { return Err(no_deal("the deal is over")) };
        let mut record = cell.lock();
        // What ended before a crash is counted.
        let Some(counted) = record.tab.job(job) else { return Ok(()) };
        let mut next = record.clone();
        // A second run, after a crash, of work that is not deterministic may cost less than the first one had.
        next.tab.count_job(job, cost.max(counted)).map_err(refused)?;
        if is_end {
            next.tab.end_job(job);
        }
        crash::point("provider before count");
        let mut batch = Batch::default();
        self.meta.commit(batch.put(Table::Deals, &record_key(id), &next)).map_err(internal)?;
        *record = next;
        Ok(())
    }

    /// Ends a job with what was counted of it.
    ///
    /// # Errors
    /// The refusal of the records.
    pub fn end_job(&self, id: DealId, job: &JobId) -> Result<(), Refusal> {
        let counted = self.job(id, job).unwrap_or_default();
        self.count_job(id, job, counted, true)
    }

    /// What jobs have cost under a deal that no voucher pays.
    pub fn unpaid_jobs(&self, id: DealId) -> Amount {
        self.job_cell(id).map_or(Amount::ZERO, |cell| cell.lock().tab.unpaid_jobs())
    }
}

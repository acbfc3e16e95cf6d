//! Money for jobs: a deal whose terms have prices of jobs, with what a job can cost in its escrow, and what jobs cost on its tab.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::deal::{Deal, DealId, Status, Terms};
use spare_market::job::{ComputePrices, JOBS_UNPAID_MAX, JobId, Order, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::Signed;
use spare_market::tx::Action;

use super::{Cell, DealError, Deals, Pay, Record, record_key};
use crate::meta::{Batch, Table};
use crate::unix_now_s;

/// Jobs like this one for which money is put aside, so that not each of many little ones tops up. But only where that is a small part of the money there
/// is: one of [`FUND_GENEROUSLY`].
const FUND_JOBS: u128 = 64;
const FUND_GENEROUSLY: u128 = 20;
/// Jobs like this one for which money is put aside where there is enough.
const FUND_JOBS_WANTED: u128 = 4;
/// Unpaid cost of jobs after which a voucher is sent while they run.
const PAY_JOBS_AT: Amount = Amount(JOBS_UNPAID_MAX.0 / 4);

/// Collateral that a job may still be lost of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Locked {
    job: JobId,
    /// Unix time in seconds until which the job's result can be disputed.
    until_s: u64,
    penalty: Amount,
}

/// What a job needs of its deal.
pub struct Hire<'a> {
    /// The provider's node.
    pub node: PublicKey,
    /// The work.
    pub work: &'a Work,
    /// The most that it may cost.
    pub cost_max: Amount,
    /// What the provider is to lose if its result is wrong, as far as it pledges that much.
    pub penalty: Amount,
    /// Whether it has to pledge that much.
    pub is_secured: bool,
    /// Unix time in seconds until which the result can be disputed.
    pub disputable_until_s: u64,
}

/// What is known of an order whose job is on a tab.
#[derive(Debug, Clone, Copy)]
pub enum OpenOrder {
    /// It is under way.
    Open,
    /// There is a receipt: what it cost.
    Ended(Amount),
    /// Nothing.
    Unknown,
}

/// A deal that is to pay for a job, and what it lacks.
enum Found {
    /// A deal, with what its escrow and its collateral have left.
    Deal(Arc<Cell>, Amount, Amount),
    Terms(Box<Signed<Terms>>),
}

impl Deals {
    /// Finds or makes a deal that pays for a job, has its escrow cover what that can cost, and puts the order that `sign` makes of the deal on its tab.
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn hire(
        &self,
        hire: &Hire<'_>,
        sign: impl FnOnce(DealId, Amount) -> Signed<Order>,
    ) -> Result<(Arc<Cell>, Signed<Order>, ComputePrices), DealError> {
        let _opening = self.opening.lock().await;
        let (cell, prices, pledged) = match self.find(hire).await? {
            Found::Deal(cell, left, pledged) => {
                let prices = cell.lock().terms.compute.ok_or(DealError::NoDeal)?;
                let cost = prices.cost_max(hire.work);
                if left < cost {
                    let amount = self.affordable(cost, left)?;
                    self.wallet.send(Action::TopUp { deal: cell.id, amount }).await?;
                }
                (cell, prices, pledged)
            }
            Found::Terms(terms) => {
                let v1 = terms.value().v1().clone();
                let prices = v1.compute.ok_or(DealError::NoDeal)?;
                // A deal without money is none, and a free job needs a deal.
                let cost = prices.cost_max(hire.work).max(Amount(1));
                let escrow = self.affordable(cost, Amount::ZERO)?;
                self.wallet.send(Action::Open { terms: terms.raw().clone(), escrow }).await?;
                let pledged = v1.collateral;
                let cell = Cell::new(terms.value().deal_id(), Record::new(v1));
                self.keep(&cell);
                (cell, prices, pledged)
            }
        };
        let penalty = hire.penalty.min(pledged);
        let order = sign(cell.id, penalty);
        let job = order.value().job_id();
        let locked = Locked { job, until_s: hire.disputable_until_s, penalty };
        let mut record = cell.lock();
        let mut next = record.clone();
        next.tab.begin_job(job, prices.cost_max(hire.work))?;
        if penalty > Amount::ZERO {
            next.locked.push(locked);
        }
        self.meta.commit(Batch::default().put(Table::Deals, &record_key(cell.id), &next))?;
        *record = next;
        drop(record);
        Ok((cell, order, prices))
    }

    /// What is put aside for jobs that cost `cost` each, beside `left`: for many, if that is little; for one, if there is no more.
    fn affordable(&self, cost: Amount, left: Amount) -> Result<Amount, DealError> {
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let times = |n: u128| Amount(cost.0.saturating_mul(n)).saturating_sub(left);
        let (generous, wanted, least) = (times(FUND_JOBS), times(FUND_JOBS_WANTED), times(1));
        match () {
            () if generous.0 <= free.0 / FUND_GENEROUSLY => Ok(generous),
            () if wanted <= free => Ok(wanted),
            () if least <= free => Ok(least),
            () => Err(DealError::Funds { needed: least, free }),
        }
    }

    /// An open deal that can pay, with what its escrow has beyond what it owes; or terms for one.
    async fn find(&self, hire: &Hire<'_>) -> Result<Found, DealError> {
        for cell in self.of_node(&hire.node) {
            let Some(deal) = self.on_ledger(cell.id)?.filter(|deal| deal.status == Status::Open) else {
                continue;
            };
            let mut record = cell.lock();
            record.follow(&deal);
            record.locked.retain(|locked| locked.until_s > unix_now_s());
            let is_cheap = record.terms.compute.is_some_and(|p| p.cost_max(hire.work) <= hire.cost_max);
            let pledged = record.pledged(&deal);
            let is_enough = !hire.is_secured || pledged >= hire.penalty;
            if is_cheap && is_enough && deal.signers.contains(&self.node_key.public()) {
                let left = record.tab.left(&deal, self.period());
                drop(record);
                return Ok(Found::Deal(cell, left, pledged));
            }
        }
        let offered = self.peers.book.get(&hire.node).and_then(|provider| provider.ask.compute);
        let terms = self.peers.with_session(&hire.node, async |session| session.terms().await).await?;
        let terms = terms.check::<Terms>(self.network)?;
        let v1 = terms.value().v1();
        let is_meant = terms.signer() == hire.node && v1.node == hire.node && v1.client == self.account;
        let (Some(asked), Some(offered)) = (v1.compute, offered) else { return Err(DealError::NoCompute) };
        let cost = asked.cost_max(hire.work);
        if !is_meant || cost > offered.prices.cost_max(hire.work) || cost > hire.cost_max {
            return Err(DealError::Terms);
        }
        if hire.is_secured && v1.collateral < hire.penalty {
            return Err(DealError::Collateral { pledged: v1.collateral, needed: hire.penalty });
        }
        Ok(Found::Terms(Box::new(terms)))
    }

    /// Counts what a job has cost so far, and pays when enough is unpaid, or the job is over.
    ///
    /// # Errors
    /// [`DealError`]; what was counted stays counted.
    pub async fn count_job(
        &self,
        cell: &Cell,
        job: &JobId,
        cost: Amount,
        is_end: bool,
    ) -> Result<(), DealError> {
        let unpaid = {
            let mut record = cell.lock();
            if let Some(counted) = record.tab.job(job).filter(|counted| is_end || *counted < cost) {
                let mut next = record.clone();
                // A provider that was started again says less than it had counted.
                next.tab.count_job(job, cost.max(counted))?;
                if is_end {
                    next.tab.end_job(job);
                }
                self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &next))?;
                *record = next;
            }
            record.tab.unpaid_jobs()
        };
        if unpaid >= PAY_JOBS_AT || (is_end && unpaid > Amount::ZERO) {
            self.pay(cell, Pay::Used).await?;
        }
        Ok(())
    }

    /// Ends a job with what was counted of it, and pays for that.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn end_job(&self, cell: &Cell, job: &JobId) -> Result<(), DealError> {
        let counted = cell.lock().tab.job(job).unwrap_or_default();
        self.count_job(cell, job, counted, true).await
    }

    /// Lets go of the collateral that was locked for a job whose result nobody will dispute.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn unlock(&self, cell: &Cell, job: &JobId) -> Result<(), DealError> {
        let mut record = cell.lock();
        let mut next = record.clone();
        next.locked.retain(|locked| locked.job != *job);
        if next.locked.len() < record.locked.len() {
            self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &next))?;
            *record = next;
        }
        Ok(())
    }

    /// Takes jobs off tabs that a crash left there: those that `is_open` does not know, and those of which it knows what they cost in the end.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn end_jobs(&self, is_open: impl Fn(&JobId) -> OpenOrder) -> Result<(), DealError> {
        for cell in self.cells() {
            let mut record = cell.lock();
            let mut next = record.clone();
            for job in record.tab.open_jobs() {
                match is_open(job) {
                    OpenOrder::Open => continue,
                    // What it says cannot be less than was counted, or it is as was counted.
                    OpenOrder::Ended(cost) => drop(next.tab.count_job(job, cost)),
                    OpenOrder::Unknown => {}
                }
                next.tab.end_job(job);
            }
            if next != *record {
                self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &next))?;
                *record = next;
            }
        }
        Ok(())
    }

    /// The deal `id` of this node's.
    pub fn cell(&self, id: DealId) -> Option<Arc<Cell>> {
        self.cells().into_iter().find(|cell| cell.id == id)
    }
}

impl Record {
    /// What the deal's collateral has beyond what earlier jobs may cost of it.
    fn pledged(&self, deal: &Deal) -> Amount {
        let locked = self.locked.iter().map(|locked| locked.penalty.0).fold(0, u128::saturating_add);
        deal.collateral.saturating_sub(Amount(locked))
    }
}

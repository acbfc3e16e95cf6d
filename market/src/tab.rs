//! The tab: what a client owes a provider under a deal, as either of them keeps it.
//!
//! Both sides run the same tab over the same heads, so they agree on what storage costs to the last pico-credit. Reading is counted by each
//! side as it happens: the client counts what arrived, the provider what it sent. A connection that broke, or a node that was killed, makes the
//! two differ a little, so the provider forgives a small difference once a period, and asks for payment when more is open.

mod jobs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, SUPPLY_MAX, StorageDue};
use crate::deal::{Deal, DealId, Funding, TermsV1, funding};
use crate::head::{AnchoredHead, HeadError};
use crate::job::{JOBS_UNPAID_MAX, JobId};
use crate::meter::{Meter, MeterError};
use crate::voucher::{Known, VoucherError, VoucherV1};

pub use jobs::JOBS_OPEN_MAX;
use jobs::OpenJob;

/// Bytes read and not paid for, above which a provider serves no further reads: nobody works unpaid beyond this.
pub const READ_STEP_BYTES: u64 = 256 << 20;
/// Periods within which a provider lets one period pass unpaid that its client says it was away in, though it knows of nothing: a line that was down.
pub const DOUBT_PERIODS: u64 = 30;
/// Difference between the two counts of bytes read that a provider forgives once a period.
pub const READ_SLACK_BYTES: u64 = 16 << 20;

/// What a client owes a provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tab {
    head: Option<AnchoredHead>,
    meter: Meter,
    read_bytes: u64,
    /// What jobs have cost so far.
    jobs: Amount,
    /// Jobs that have not ended.
    open_jobs: BTreeMap<JobId, OpenJob>,
    promised: Option<VoucherV1>,
    /// The period in which a difference was last forgiven.
    forgiven_in: Option<u64>,
    /// Since which period, and how often since then, storage was not paid as not shown, for no reason that the provider knows.
    doubted: (u64, u64),
    base: Base,
}

/// From where a tab counts: what the ledger settled by claims, and what is not owed since then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    /// The deal's epoch.
    epoch: u32,
    /// The last period that a claim settled.
    through: Option<u64>,
    /// What was paid by then.
    paid: Amount,
    /// Bytes read that are part of it.
    read_bytes: u64,
    /// What jobs cost that is part of it.
    jobs: Amount,
    /// The meter's sum that is not owed any more, or never was: settled, or not shown.
    skipped: StorageDue,
}

/// Why a head or voucher does not go on a tab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TabError {
    /// The head does not follow.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The head or voucher is about a time that is summed already, or costs beyond any money.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The head has another price than the terms.
    #[error("the head has another price than the deal's terms")]
    Price,
    /// The voucher does not improve on one that is known.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// The voucher promises less than is due.
    #[error("the voucher promises {promised} pico-credits, {due} are due")]
    Short {
        /// What it promises.
        promised: u128,
        /// What is due.
        due: u128,
    },
    /// The voucher leaves out too much of what was read.
    #[error("the voucher pays for {paid} bytes read, {read} were")]
    Reads {
        /// Bytes that it pays for.
        paid: u64,
        /// Bytes read.
        read: u64,
    },
    /// The voucher pays for more jobs than there were.
    #[error("the voucher pays {paid} pico-credits for jobs, which have cost {cost}")]
    Jobs {
        /// What it pays for jobs.
        paid: u128,
        /// What they have cost.
        cost: u128,
    },
    /// The voucher leaves out storage that was paid for already, or that there never was.
    #[error("the voucher leaves out more than is unpaid")]
    Skipped,
    /// More jobs at once than may be.
    #[error("{JOBS_OPEN_MAX} jobs under one deal are under way; wait for one to end")]
    ManyJobs,
    /// The job is not under way, or has cost more, or less, than is said.
    #[error("the job is not under way, or has cost more than it can or less than it had")]
    Job,
    /// A tab that somebody else kept claims more than can have come about.
    #[error("more is claimed than this deal can have cost")]
    Implausible,
}

impl Tab {
    /// The newest head that both sides signed.
    pub fn head(&self) -> Option<&AnchoredHead> {
        self.head.as_ref()
    }

    /// Bytes of all shards under the newest head.
    pub fn bytes(&self) -> u64 {
        self.head.map_or(0, |head| head.head.bytes)
    }

    /// The newest voucher.
    pub fn promised(&self) -> Option<&VoucherV1> {
        self.promised.as_ref()
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Bytes read that no voucher pays for.
    pub fn unpaid_read_bytes(&self) -> u64 {
        self.read_bytes.saturating_sub(self.promised.map_or(self.base.read_bytes, |v| v.read_bytes))
    }

    /// What jobs have cost so far.
    pub fn jobs(&self) -> Amount {
        self.jobs
    }

    /// What jobs have cost that no voucher pays.
    pub fn unpaid_jobs(&self) -> Amount {
        self.jobs.saturating_sub(self.known().jobs)
    }

    /// Goes on under `head`. Periods have `period_s` seconds.
    ///
    /// # Errors
    /// [`TabError`]; nothing has changed then.
    pub fn take_head(
        &mut self,
        deal: DealId,
        terms: &TermsV1,
        head: AnchoredHead,
        period_s: u32,
    ) -> Result<(), TabError> {
        head.check_supersedes(deal, self.head.as_ref())?;
        if head.head.price != terms.price {
            return Err(TabError::Price);
        }
        self.meter.take(&head.head, period_s)?;
        self.head = Some(head);
        Ok(())
    }

    /// Counts bytes read.
    pub fn add_read(&mut self, bytes: u64) {
        self.read_bytes = self.read_bytes.saturating_add(bytes);
    }

    /// What all periods before `period`, all reading and all jobs cost.
    ///
    /// # Errors
    /// [`TabError::Meter`] when `period` is before the newest head's.
    pub fn owed(&self, terms: &TermsV1, period: u64) -> Result<Amount, TabError> {
        self.total(terms, period, self.read_bytes, self.jobs, self.base.skipped)
    }

    fn total(
        &self,
        terms: &TermsV1,
        period: u64,
        read_bytes: u64,
        jobs: Amount,
        skipped: StorageDue,
    ) -> Result<Amount, TabError> {
        let storage = self.meter.storage_before(period)?.saturating_sub(skipped).floor();
        let reads = terms.read_price.cost(read_bytes.saturating_sub(self.base.read_bytes));
        let jobs = jobs.saturating_sub(self.base.jobs);
        let total = self.base.paid.checked_add(storage);
        let total = total.and_then(|sum| sum.checked_add(reads)).and_then(|sum| sum.checked_add(jobs));
        Ok(total.ok_or(MeterError::Overflow)?)
    }

    /// The deal's epoch, as far as this tab goes.
    pub fn epoch(&self) -> u32 {
        self.base.epoch
    }

    /// Goes on from what the ledger settled by claims, if that is news. Vouchers from before its epoch are void.
    pub fn follow(&mut self, deal: &Deal) {
        let is_new_epoch = deal.epoch > self.base.epoch;
        let is_claimed =
            deal.claiming.is_some_and(|claiming| claiming.is_on()) && deal.paid_through > self.base.through;
        if !is_new_epoch && !is_claimed {
            return;
        }
        let next = deal.paid_through.map_or(0, |through| through.saturating_add(1));
        // What is too long ago is as for the oldest period that the meter can tell, and so on both sides.
        let settled = self.storage_before(next);
        if is_new_epoch {
            // What went by before claims began is not to be had. That counts as left out, else whoever pays a little again each time goes on for ever.
            let given_up = self.unpaid_since().map_or(0, |since| next.saturating_sub(since));
            self.doubt(next, given_up);
            self.promised = None;
        }
        self.base = Base {
            epoch: deal.epoch,
            through: deal.paid_through,
            paid: deal.paid,
            read_bytes: deal.read_bytes,
            jobs: deal.jobs,
            skipped: settled.unwrap_or_default().max(self.base.skipped),
        };
    }

    /// What storage before `period` cost. What is too long ago is as for the oldest period that the meter can tell.
    fn storage_before(&self, period: u64) -> Result<StorageDue, MeterError> {
        self.meter.storage_before(period.max(self.meter.oldest()))
    }

    /// Does not pay for `period`: what is stored was not shown in it.
    ///
    /// # Errors
    /// [`TabError::Meter`] when that is too long ago.
    pub fn skip(&mut self, period: u64) -> Result<(), TabError> {
        let cost = self.meter.storage_before(period + 1)?.saturating_sub(self.meter.storage_before(period)?);
        self.base.skipped = self.base.skipped.checked_add(cost).ok_or(MeterError::Overflow)?;
        Ok(())
    }

    /// What a period costs under the newest head.
    pub fn rate(&self) -> StorageDue {
        self.meter.rate()
    }

    /// What is owed and not paid while `period` runs, or the first later one that the tab can still tell.
    pub fn open(&self, deal: &Deal, period: u64) -> Amount {
        // What is beyond any money is beyond every escrow.
        let owed = self.owed(&deal.terms, period.max(self.promised_before())).unwrap_or(SUPPLY_MAX);
        owed.saturating_sub(deal.paid)
    }

    /// What the deal's escrow has beyond what is owed, and what jobs under way may cost.
    pub fn left(&self, deal: &Deal, period: u64) -> Amount {
        deal.escrow.saturating_sub(self.open(deal, period)).saturating_sub(self.reserved())
    }

    /// How long the deal's escrow lasts when `extra_bytes` more are stored from now on.
    pub fn funding(&self, deal: &Deal, period: u64, extra_bytes: u64, period_s: u32) -> Funding {
        let bytes = self.bytes().saturating_add(extra_bytes);
        match StorageDue::of(deal.terms.price, bytes, period_s.into()) {
            Some(rate) => funding(deal.escrow.saturating_sub(self.reserved()), self.open(deal, period), rate),
            None => Funding { periods: 0, in_grace: true },
        }
    }

    /// Whether the newest head is newer than the ledger's.
    pub fn is_ahead_of(&self, deal: &Deal) -> bool {
        let seq = |head: Option<&AnchoredHead>| head.map_or(0, |head| head.head.seq);
        seq(self.head()) > seq(deal.head.as_ref())
    }

    /// The voucher that pays for everything before `period`, or `None` when one that is known promises as much.
    ///
    /// # Errors
    /// [`TabError::Meter`] when `period` is before the newest head's.
    pub fn next_voucher(
        &self,
        deal: DealId,
        terms: &TermsV1,
        epoch: u32,
        period: u64,
    ) -> Result<Option<VoucherV1>, TabError> {
        let voucher = self.voucher(deal, epoch, period, self.owed(terms, period)?);
        Ok(voucher.check_improves(deal, epoch, self.known()).is_ok().then_some(voucher))
    }

    /// A voucher for a pico-credit more than is owed, in `period`: where claims pay for all there is, it says that the client is back.
    ///
    /// # Errors
    /// [`TabError::Meter`] when `period` is before the newest head's.
    pub fn sign_of_life(
        &self,
        deal: DealId,
        terms: &TermsV1,
        epoch: u32,
        period: u64,
    ) -> Result<Option<VoucherV1>, TabError> {
        let total = self.owed(terms, period)?.max(self.known().total).checked_add(Amount(1));
        Ok(total.map(|total| self.voucher(deal, epoch, period, total)))
    }

    /// A voucher that promises `total` for everything before `period`.
    fn voucher(&self, deal: DealId, epoch: u32, period: u64, total: Amount) -> VoucherV1 {
        let paid_through = period.checked_sub(1);
        let (read_bytes, jobs, skipped) = (self.read_bytes, self.jobs, self.base.skipped);
        VoucherV1 { deal, epoch, paid_through, read_bytes, jobs, skipped, total }
    }

    /// The last period that is promised or settled.
    pub fn promised_through(&self) -> Option<u64> {
        self.known().through
    }

    /// The first period of which storage is neither promised nor settled, if anything was stored.
    pub fn unpaid_since(&self) -> Option<u64> {
        let charged = self.meter.charged_since()?;
        Some(self.promised_through().map_or(charged, |through| charged.max(through.saturating_add(1))))
    }

    /// The first period that is not promised, as far as the meter can still tell it: a voucher before it pays for reading and for no
    /// storage that was not promised already.
    pub fn promised_before(&self) -> u64 {
        let next = self.known().through.map_or(0, |through| through.saturating_add(1));
        next.max(self.meter.period())
    }

    /// Notes that `voucher` was signed by this side.
    pub fn promise(&mut self, voucher: VoucherV1) {
        self.promised = Some(voucher);
    }

    /// Whether the client left out more than one period within [`DOUBT_PERIODS`] for no reason that the provider knows. What is left out is not to be
    /// had, so vouchers are taken all the same; but the ledger judges better from then on.
    pub fn has_doubts(&self, now: u64) -> bool {
        now < self.doubted.0.saturating_add(DOUBT_PERIODS) && self.doubted.1 > 1
    }

    /// Counts `periods` that were left out for no known reason.
    fn doubt(&mut self, now: u64, periods: u64) {
        if periods > 0 && now >= self.doubted.0.saturating_add(DOUBT_PERIODS) {
            self.doubted = (now, 0);
        }
        self.doubted.1 = self.doubted.1.saturating_add(periods);
    }

    /// What is promised by the newest voucher or was settled, whichever is more, and the last period that is paid for or settled.
    fn known(&self) -> Known {
        let Base { paid: total, jobs, through, .. } = self.base;
        let settled = Known { total, jobs, through };
        self.promised.map_or(settled, |v| Known {
            total: v.total.max(total),
            jobs: v.jobs.max(jobs),
            through: v.paid_through.max(through),
        })
    }

    /// Takes a voucher at the provider in period `now`, if it pays for what it says it pays for. It may leave out storage that was
    /// not shown: the provider knows that it was away in `absent_periods` periods, and doubts the rest.
    ///
    /// # Errors
    /// [`TabError`]; nothing has changed then.
    pub fn take_voucher(
        &mut self,
        deal: DealId,
        terms: &TermsV1,
        epoch: u32,
        voucher: VoucherV1,
        now: u64,
        absent_periods: u64,
    ) -> Result<(), TabError> {
        let known = self.known();
        voucher.check_improves(deal, epoch, known)?;
        self.check_covers(terms, &voucher)?;
        let skipped = voucher.skipped.saturating_sub(self.base.skipped);
        let excused = self.meter.rate().checked_mul(absent_periods).unwrap_or_default();
        self.doubt(now, skipped.saturating_sub(excused).periods_of(self.meter.rate()));
        self.base.skipped = self.base.skipped.max(voucher.skipped);
        // What the client did not see arrive is forgiven once a period, by this side's clock.
        if voucher.read_bytes > self.read_bytes {
            self.read_bytes = voucher.read_bytes;
        } else if voucher.paid_through > known.through && self.forgiven_in < Some(now) {
            self.read_bytes = voucher.read_bytes;
            self.forgiven_in = Some(now);
        }
        self.promised = Some(voucher);
        Ok(())
    }

    /// Checks that `voucher` pays for the storage through its period, and for reading but for a small difference.
    ///
    /// # Errors
    /// [`TabError`].
    pub fn check_covers(&self, terms: &TermsV1, voucher: &VoucherV1) -> Result<(), TabError> {
        if voucher.total > SUPPLY_MAX {
            return Err(MeterError::Overflow.into());
        }
        if voucher.read_bytes.saturating_add(READ_SLACK_BYTES) < self.read_bytes {
            return Err(TabError::Reads { paid: voucher.read_bytes, read: self.read_bytes });
        }
        if voucher.jobs > self.jobs {
            return Err(TabError::Jobs { paid: voucher.jobs.0, cost: self.jobs.0 });
        }
        let next = voucher.paid_through.map_or(0, |through| through.saturating_add(1));
        // Before the newest head nothing is known of a price any more; such a voucher came late and is superseded by the next one.
        let next = next.max(self.meter.period());
        let paid_before = self.known().through.map_or(0, |through| through.saturating_add(1));
        let unpaid = self.meter.storage_before(next)?.saturating_sub(self.storage_before(paid_before)?);
        if voucher.skipped.saturating_sub(self.base.skipped) > unpaid {
            return Err(TabError::Skipped);
        }
        // What jobs have cost beyond what this voucher pays stays open: the client may not know yet how far they are.
        let due = self.total(terms, next, voucher.read_bytes, voucher.jobs, voucher.skipped)?;
        if voucher.total < due {
            return Err(TabError::Short { promised: voucher.total.0, due: due.0 });
        }
        Ok(())
    }

    /// This tab as the other side kept it, for a client that lost its own. The head and the newest voucher were checked to be this client's.
    /// The rest is a provider's word: it has to stand under that head, and may claim no more than that head's rate since the last period paid
    /// for, one step of reading, and `tolerance` for what was stored meanwhile and removed again.
    ///
    /// # Errors
    /// [`TabError::Implausible`].
    pub fn check_plausible(
        &self,
        deal: &Deal,
        began: u64,
        now: u64,
        period_s: u32,
        tolerance: Amount,
    ) -> Result<(), TabError> {
        let terms = &deal.terms;
        // What the ledger settled stands on the ledger.
        let mut settled = self.clone();
        settled.base = Base::default();
        settled.follow(deal);
        let not_shown = self.promised.map_or(StorageDue::ZERO, |v| v.skipped);
        let is_settled = Base { skipped: settled.base.skipped, ..self.base } == settled.base;
        if !is_settled || self.base.skipped > settled.base.skipped.max(not_shown) {
            return Err(TabError::Implausible);
        }
        let (from, rate) = self.head.map_or((0, StorageDue::ZERO), |h| (h.head.from, h.head.rate(period_s)));
        if self.meter.period() != from || self.meter.rate() != rate {
            return Err(TabError::Implausible);
        }
        // Money does not bound this where reading is free.
        if self.unpaid_read_bytes() > READ_STEP_BYTES + READ_SLACK_BYTES {
            return Err(TabError::Implausible);
        }
        // A job stands still once more than a step is unpaid; what ends meanwhile comes on top.
        let most_unpaid = Amount(2 * JOBS_UNPAID_MAX.0);
        if self.unpaid_jobs() > most_unpaid || self.open_jobs.len() > JOBS_OPEN_MAX {
            return Err(TabError::Implausible);
        }
        let Known { total: promised, through, .. } = self.known();
        let since = through.map_or(began, |through| through.saturating_add(1));
        // With the running period, so that its peak counts.
        let next = now.max(from).saturating_add(1);
        let most = rate.checked_mul(next.saturating_sub(since).saturating_add(2));
        let most = most.and_then(|most| promised.checked_add(most.floor()));
        let most = most.and_then(|most| most.checked_add(terms.read_price.cost(READ_STEP_BYTES)));
        let most = most.and_then(|most| most.checked_add(self.unpaid_jobs()));
        match (self.owed(terms, next), most.and_then(|most| most.checked_add(tolerance))) {
            (Ok(owed), Some(most)) if owed <= most => Ok(()),
            _ => Err(TabError::Implausible),
        }
    }
}

/// A deal as one side sees it at one moment.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The deal.
    pub id: DealId,
    /// The deal on the ledger.
    pub on_ledger: Deal,
    /// What is owed.
    pub tab: Tab,
    /// How long the escrow lasts.
    pub funding: Funding,
    /// Owed and not paid, promised or not.
    pub open: Amount,
}

impl Standing {
    /// How deal `id` stands while `period` runs.
    pub fn of(id: DealId, on_ledger: Deal, tab: Tab, period: u64, period_s: u32) -> Self {
        let (funding, open) = (tab.funding(&on_ledger, period, 0, period_s), tab.open(&on_ledger, period));
        Self { id, on_ledger, tab, funding, open }
    }

    /// Promised by vouchers so far.
    pub fn promised(&self) -> Amount {
        self.tab.promised().map_or(Amount::ZERO, |voucher| voucher.total)
    }

    /// Promised and not paid.
    pub fn pending(&self) -> Amount {
        self.promised().saturating_sub(self.on_ledger.paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::{ReadPrice, StoragePrice};
    use crate::head::HeadV1;
    use crate::keys::PublicKey;
    use proptest::prelude::*;

    const DEAL: DealId = DealId([1; 32]);
    const PERIOD_S: u32 = 3600;
    const GIB: u64 = 1 << 30;

    fn terms() -> TermsV1 {
        let key = PublicKey::Ed25519([2; 32]);
        TermsV1 {
            client: key,
            provider: key,
            node: key,
            price: StoragePrice(100),
            read_price: ReadPrice(1 << 30),
            compute: None,
            collateral: Amount::ZERO,
            expires_s: 0,
            salt: [0; 16],
        }
    }

    fn head(seq: u64, from: u64, bytes: u64) -> AnchoredHead {
        let set_root = if bytes == 0 { [0; 32] } else { [1; 32] };
        let head = HeadV1 {
            deal: DEAL,
            seq,
            set_root,
            bytes,
            price: terms().price,
            from,
            until: from + 30,
            index_hash: [0; 32],
        };
        AnchoredHead { head, hash: [seq as u8; 32] }
    }

    fn under(heads: &[AnchoredHead]) -> Tab {
        let mut tab = Tab::default();
        heads.iter().for_each(|head| tab.take_head(DEAL, &terms(), *head, PERIOD_S).unwrap());
        tab
    }

    #[test]
    fn jobs_are_counted_as_they_go_and_what_they_may_cost_is_kept() {
        let (terms, job, other) = (terms(), JobId([1; 32]), JobId([2; 32]));
        let mut tab = Tab::default();
        assert_eq!(tab.count_job(&job, Amount(1)), Err(TabError::Job), "not begun");
        tab.begin_job(job, Amount(100)).unwrap();
        tab.begin_job(other, Amount(50)).unwrap();
        assert_eq!(tab.reserved(), Amount(150));
        tab.count_job(&job, Amount(30)).unwrap();
        tab.count_job(&job, Amount(40)).unwrap();
        tab.begin_job(job, Amount(100)).unwrap();
        assert_eq!((tab.job(&job), tab.reserved()), (Some(Amount(40)), Amount(110)), "begun once");
        assert_eq!(tab.count_job(&job, Amount(39)), Err(TabError::Job), "less than before");
        assert_eq!(tab.count_job(&job, Amount(101)), Err(TabError::Job), "more than it can");
        assert_eq!((tab.jobs(), tab.unpaid_jobs()), (Amount(40), Amount(40)));
        let deal = Deal::open(terms.clone(), Amount(1000), terms.client);
        assert_eq!(tab.left(&deal, 0), Amount(1000 - 40 - 110));
        let voucher = tab.next_voucher(DEAL, &terms, 0, tab.promised_before()).unwrap().unwrap();
        assert_eq!((voucher.jobs, voucher.total), (Amount(40), Amount(40)));
        tab.promise(voucher);
        assert_eq!(tab.unpaid_jobs(), Amount::ZERO);
        tab.end_job(&job);
        assert_eq!((tab.jobs(), tab.reserved(), tab.job(&job)), (Amount(40), Amount(50), None));
        for i in 1..JOBS_OPEN_MAX {
            let mut id = [9; 32];
            id[..8].copy_from_slice(&(i as u64).to_le_bytes());
            tab.begin_job(JobId(id), Amount(1)).unwrap();
        }
        assert_eq!(tab.begin_job(job, Amount(1)), Err(TabError::ManyJobs));
        tab.begin_job(other, Amount(1)).unwrap();
    }

    #[test]
    fn a_tab_promises_what_is_over_and_takes_what_covers_it() {
        let terms = terms();
        let mut client = under(&[head(1, 5, 2 * GIB)]);
        let mut provider = client.clone();
        assert_eq!(client.next_voucher(DEAL, &terms, 0, 5), Ok(None), "nothing is over");
        client.add_read(10);
        provider.add_read(10);
        let reads = client.next_voucher(DEAL, &terms, 0, client.promised_before()).unwrap().unwrap();
        assert_eq!((reads.total, reads.paid_through), (Amount(10), Some(4)), "reading alone");
        client.promise(reads);
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, reads, 5, 0), Ok(()));
        let storage = client.next_voucher(DEAL, &terms, 0, 8).unwrap().unwrap();
        assert_eq!((storage.total, storage.paid_through), (Amount(610), Some(7)));
        let short = VoucherV1 { total: Amount(609), ..storage };
        let error = TabError::Short { promised: 609, due: 610 };
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, short, 8, 0), Err(error));
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, storage, 8, 0), Ok(()));
        assert!(matches!(
            provider.take_voucher(DEAL, &terms, 0, storage, 8, 0),
            Err(TabError::Voucher(VoucherError::NotHigher { .. }))
        ));
        let dear =
            AnchoredHead { head: HeadV1 { price: StoragePrice(101), ..head(2, 8, GIB).head }, hash: [2; 32] };
        assert_eq!(provider.take_head(DEAL, &terms, dear, PERIOD_S), Err(TabError::Price));
    }

    #[test]
    fn a_small_difference_of_reads_is_forgiven_once_a_period_and_a_large_one_never() {
        let terms = terms();
        let mut provider = under(&[head(1, 5, GIB)]);
        let voucher = |through: u64, read_bytes: u64, more: u128| VoucherV1 {
            deal: DEAL,
            epoch: 0,
            paid_through: Some(through),
            read_bytes,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total: Amount(u128::from(through - 4) * 100 + u128::from(read_bytes) + more),
        };
        provider.add_read(READ_SLACK_BYTES + 1);
        let error = TabError::Reads { paid: 0, read: READ_SLACK_BYTES + 1 };
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher(5, 0, 0), 6, 0), Err(error));
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher(5, 1, 0), 6, 0), Ok(()));
        assert_eq!(provider.read_bytes(), 1, "forgiven");
        // Further vouchers in the same period, for earlier or later ones, forgive nothing.
        provider.add_read(READ_SLACK_BYTES);
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher(6, 1, 0), 6, 0), Ok(()));
        assert_eq!(provider.unpaid_read_bytes(), READ_SLACK_BYTES);
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher(7, 1, 0), 7, 0), Ok(()));
        assert_eq!(provider.unpaid_read_bytes(), 0);
    }

    #[test]
    fn a_period_that_was_not_shown_is_not_paid_and_its_provider_may_have_doubts() {
        let terms = terms();
        let mut client = under(&[head(1, 5, 2 * GIB)]);
        let mut provider = client.clone();
        let mut known = client.clone();
        // Two periods, of which one was missed.
        client.skip(6).unwrap();
        let voucher = client.next_voucher(DEAL, &terms, 0, 8).unwrap().unwrap();
        assert_eq!((voucher.total, voucher.paid_through), (Amount(400), Some(7)), "three periods but one");
        assert_eq!(known.take_voucher(DEAL, &terms, 0, voucher, 8, 1), Ok(()), "it was away");
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher, 8, 0), Ok(()));
        assert!(!provider.has_doubts(8), "one is nothing");
        client.promise(voucher);
        client.skip(8).unwrap();
        let again = client.next_voucher(DEAL, &terms, 0, 10).unwrap().unwrap();
        assert_eq!(again.total, Amount(600));
        assert_eq!(known.take_voucher(DEAL, &terms, 0, again, 10, 0), Ok(()));
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, again, 10, 0), Ok(()), "money is money");
        assert!(provider.has_doubts(10) && !known.has_doubts(10), "not twice so soon");
        assert!(!provider.has_doubts(8 + DOUBT_PERIODS), "and not for ever");
        // Several at once.
        client.promise(again);
        client.skip(10).unwrap();
        client.skip(11).unwrap();
        let two = client.next_voucher(DEAL, &terms, 0, 13).unwrap().unwrap();
        let later = 100;
        assert_eq!(known.take_voucher(DEAL, &terms, 0, two, later, 0), Ok(()));
        assert!(known.has_doubts(later));
        // A total that leaves out what its voucher does not say is short.
        let unsaid = VoucherV1 { skipped: StorageDue::ZERO, total: Amount(two.total.0 + 1), ..two };
        let short = under(&[head(1, 5, 2 * GIB)]).take_voucher(DEAL, &terms, 0, unsaid, 13, 9);
        assert!(matches!(short, Err(TabError::Short { .. })));
    }

    #[test]
    fn nothing_is_left_out_that_is_paid_or_never_was() {
        let terms = terms();
        let voucher = |through: Option<u64>, skipped: u64, total: u128| VoucherV1 {
            deal: DEAL,
            epoch: 0,
            paid_through: through,
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: StorageDue::of(terms.price, skipped * GIB, PERIOD_S.into()).unwrap(),
            total: Amount(total),
        };
        // Before anything was stored.
        let early = Tab::default().take_voucher(DEAL, &terms, 0, voucher(None, 1, 1), 5, 0);
        assert_eq!(early, Err(TabError::Skipped));
        // Three periods of one GiB, paid, and two more of which one may be left out, or both, but no more.
        let mut provider = under(&[head(1, 5, GIB)]);
        assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher(Some(7), 0, 300), 8, 0), Ok(()));
        for (skipped, total, taken) in [(3, 301, Err(TabError::Skipped)), (2, 301, Ok(())), (1, 400, Ok(()))]
        {
            let mut provider = provider.clone();
            let voucher = voucher(Some(9), skipped, total);
            assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher, 10, 9), taken);
            assert_eq!(provider.check_covers(&terms, &voucher).is_ok(), taken.is_ok());
        }
        // Also not by what is signed beforehand.
        assert_eq!(provider.check_covers(&terms, &voucher(Some(11), 5, 301)), Err(TabError::Skipped));
    }

    #[test]
    fn whoever_lets_claims_begin_again_and_again_is_doubted() {
        let terms = terms();
        let mut deal = Deal::open(terms.clone(), Amount(1 << 60), terms.client);
        let mut provider = under(&[head(1, 5, GIB)]);
        for epoch in 1..3 {
            // A period stayed unpaid, and was given up when claims began.
            deal.epoch = epoch;
            deal.paid_through = Some(4 + u64::from(epoch));
            provider.follow(&deal);
            assert_eq!((provider.epoch(), provider.has_doubts(7)), (epoch, epoch > 1));
        }
    }

    #[test]
    fn both_sides_go_on_from_what_claims_settled() {
        let terms = terms();
        let mut deal = Deal::open(terms.clone(), Amount(1 << 60), terms.client);
        let mut client = under(&[head(1, 5, 2 * GIB)]);
        client.add_read(30);
        let old = client.next_voucher(DEAL, &terms, 0, 7).unwrap().unwrap();
        client.promise(old);
        let mut provider = client.clone();
        // The ledger paid the voucher, then claims for periods 8 and 9 with their cost; nobody showed anything for period 7.
        deal.claiming = Some(crate::claim::Claiming { since_tick: 3, until_tick: None });
        (deal.epoch, deal.paid, deal.paid_through, deal.read_bytes) = (1, old.total, Some(7), 30);
        client.follow(&deal);
        assert_eq!(client.promised(), None, "vouchers of the epoch before are void");
        (deal.paid, deal.paid_through) = (Amount(old.total.0 + 404), Some(9));
        for tab in [&mut client, &mut provider] {
            tab.follow(&deal);
            tab.follow(&deal);
            assert_eq!(tab.owed(&terms, 10), Ok(deal.paid));
            assert_eq!(tab.owed(&terms, 12), Ok(Amount(deal.paid.0 + 400)), "what comes is owed");
            assert_eq!(tab.unpaid_read_bytes(), 0);
        }
        assert_eq!(client.next_voucher(DEAL, &terms, 1, 10), Ok(None));
        let back = client.next_voucher(DEAL, &terms, 1, 11).unwrap().unwrap();
        assert_eq!((back.total, back.epoch), (Amount(deal.paid.0 + 200), 1));
        assert_eq!(provider.take_voucher(DEAL, &terms, 1, back, 11, 0), Ok(()));
        // Also when a head came meanwhile, in the period after what was settled.
        let mut late = under(&[head(1, 5, 2 * GIB), head(2, 11, 4 * GIB), head(3, 12, GIB)]);
        late.follow(&deal);
        assert_eq!(late.owed(&terms, 13), Ok(Amount(deal.paid.0 + 200 + 400 + 400)));
        assert!(late.check_plausible(&deal, 5, 13, PERIOD_S, Amount::ZERO).is_ok());
        let mut inflated = late.clone();
        inflated.base.paid = Amount(deal.paid.0 + 1);
        assert_eq!(inflated.check_plausible(&deal, 5, 13, PERIOD_S, Amount(50)), Err(TabError::Implausible));
    }

    #[test]
    fn a_tab_that_somebody_else_kept_has_to_be_plausible() {
        // A step of reading, which is tolerated, costs nothing here.
        let terms = TermsV1 { read_price: ReadPrice(0), ..terms() };
        let mut honest = under(&[head(1, 5, GIB)]);
        honest.promise(honest.next_voucher(DEAL, &terms, 0, 9).unwrap().unwrap());
        let deal = Deal::open(terms.clone(), Amount::ZERO, terms.client);
        let check = |tab: &Tab, now| tab.check_plausible(&deal, 5, now, PERIOD_S, Amount(50));
        assert_eq!(check(&honest, 9), Ok(()));
        assert_eq!(check(&honest, 50), Ok(()), "unpaid for long");
        // A meter that ran under other heads than the one it shows.
        let mut inflated = under(&[head(1, 4, 1000 * GIB), head(2, 5, GIB)]);
        inflated.promise(*honest.promised().unwrap());
        assert_eq!(check(&inflated, 9), Err(TabError::Implausible));
        let peak = under(&[head(1, 5, 1000 * GIB), head(2, 5, GIB)]);
        assert_eq!(check(&peak, 5), Err(TabError::Implausible));
        let other_rate = Tab { head: Some(head(2, 5, 3 * GIB)), ..honest };
        assert_eq!(check(&other_rate, 9), Err(TabError::Implausible));
    }

    proptest! {
        /// Both sides run their own tab over the same heads and reads; every voucher that one signs the other takes, and the last one is the sum.
        #[test]
        fn both_sides_agree(steps in prop::collection::vec((0u64..3, 0u64..1 << 40, 0u64..1 << 20, any::<bool>()), 1..20)) {
            let terms = terms();
            let (mut client, mut provider) = (Tab::default(), Tab::default());
            let mut now = 0;
            for (i, (wait, bytes, read, pays)) in steps.into_iter().enumerate() {
                now += wait;
                let head = head(i as u64 + 1, now, bytes);
                client.take_head(DEAL, &terms, head, PERIOD_S).unwrap();
                provider.take_head(DEAL, &terms, head, PERIOD_S).unwrap();
                client.add_read(read);
                provider.add_read(read);
                if pays && let Some(voucher) = client.next_voucher(DEAL, &terms, 0, now).unwrap() {
                    client.promise(voucher);
                    prop_assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher, now, 0), Ok(()));
                }
            }
            now += 1;
            if let Some(voucher) = client.next_voucher(DEAL, &terms, 0, now).unwrap() {
                client.promise(voucher);
                prop_assert_eq!(provider.take_voucher(DEAL, &terms, 0, voucher, now, 0), Ok(()));
                prop_assert_eq!(provider.owed(&terms, now), Ok(voucher.total));
            }
            prop_assert_eq!(client.owed(&terms, now), provider.owed(&terms, now));
        }
    }
}

//! The tab: what a client owes a provider under a deal, as either of them keeps it.
//!
//! Both sides run the same tab over the same heads, so they agree on what storage costs to the last pico-credit. Reading is counted by each
//! side as it happens: the client counts what arrived, the provider what it sent. A connection that broke, or a node that was killed, makes the
//! two differ a little, so the provider forgives a small difference once a period, and asks for payment when more is open.

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, StorageDue};
use crate::deal::{DealId, Funding, TermsV1, funding};
use crate::head::{AnchoredHead, HeadError};
use crate::meter::{Meter, MeterError};
use crate::voucher::{VoucherError, VoucherV1};

/// Bytes read and not paid for, above which a provider serves no further reads: nobody works unpaid beyond this.
pub const READ_STEP_BYTES: u64 = 256 << 20;
/// Difference between the two counts of bytes read that a provider forgives once a period.
pub const READ_SLACK_BYTES: u64 = 64 << 20;

/// What a client owes a provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tab {
    head: Option<AnchoredHead>,
    meter: Meter,
    read_bytes: u64,
    promised: Option<VoucherV1>,
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

    /// Bytes read that no voucher pays for.
    pub fn unpaid_read_bytes(&self) -> u64 {
        self.read_bytes.saturating_sub(self.promised.map_or(0, |v| v.read_bytes))
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

    /// What all periods before `period`, and all reading, cost.
    ///
    /// # Errors
    /// [`TabError::Meter`] when `period` is before the newest head's.
    pub fn owed(&self, terms: &TermsV1, period: u64) -> Result<Amount, TabError> {
        Ok(self.meter.total(period, self.read_bytes, terms.read_price)?)
    }

    /// What a period costs under the newest head.
    pub fn rate(&self) -> StorageDue {
        self.meter.rate()
    }

    /// How long `escrow` lasts, of which `paid` was paid before, when `extra_bytes` more are stored from now on.
    pub fn funding(
        &self,
        terms: &TermsV1,
        escrow: Amount,
        paid: Amount,
        period: u64,
        extra_bytes: u64,
        period_s: u32,
    ) -> Funding {
        let bytes = self.bytes().saturating_add(extra_bytes);
        let owed = self.owed(terms, period.max(self.meter.period()));
        match (owed, StorageDue::of(terms.price, bytes, period_s.into())) {
            (Ok(owed), Some(rate)) => funding(escrow, owed.saturating_sub(paid), rate),
            _ => Funding { periods: 0, in_grace: true },
        }
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
        let total = self.owed(terms, period)?;
        let paid_through = period.checked_sub(1);
        let voucher = VoucherV1 { deal, epoch, paid_through, read_bytes: self.read_bytes, total };
        let (known, through) = self.promised.map_or((Amount::ZERO, None), |v| (v.total, v.paid_through));
        Ok(voucher.check_improves(deal, epoch, known, through).is_ok().then_some(voucher))
    }

    /// Notes that `voucher` was signed by this side.
    pub fn promise(&mut self, voucher: VoucherV1) {
        self.promised = Some(voucher);
    }

    /// Takes a voucher at the provider, if it pays for what it says it pays for.
    ///
    /// # Errors
    /// [`TabError`]; nothing has changed then.
    pub fn take_voucher(
        &mut self,
        deal: DealId,
        terms: &TermsV1,
        epoch: u32,
        voucher: VoucherV1,
    ) -> Result<(), TabError> {
        let (known, through) = self.promised.map_or((Amount::ZERO, None), |v| (v.total, v.paid_through));
        voucher.check_improves(deal, epoch, known, through)?;
        self.check_covers(terms, &voucher)?;
        // What the client did not see arrive is forgiven once a period, as far as it is little.
        let is_new_period = voucher.paid_through > through;
        if voucher.read_bytes > self.read_bytes || is_new_period {
            self.read_bytes = voucher.read_bytes;
        }
        self.promised = Some(voucher);
        Ok(())
    }

    /// Checks that `voucher` pays for the storage through its period, and for reading but for a small difference.
    ///
    /// # Errors
    /// [`TabError`].
    pub fn check_covers(&self, terms: &TermsV1, voucher: &VoucherV1) -> Result<(), TabError> {
        if voucher.read_bytes.saturating_add(READ_SLACK_BYTES) < self.read_bytes {
            return Err(TabError::Reads { paid: voucher.read_bytes, read: self.read_bytes });
        }
        let next = voucher.paid_through.map_or(0, |through| through.saturating_add(1));
        // Before the newest head nothing is known of a price any more; such a voucher came late and is superseded by the next one.
        let next = next.max(self.meter.period());
        let due = self.meter.total(next, voucher.read_bytes, terms.read_price)?;
        if voucher.total < due {
            return Err(TabError::Short { promised: voucher.total.0, due: due.0 });
        }
        Ok(())
    }

    /// This tab as the other side kept it, for a client that lost its own. The head and the newest voucher were checked to be this client's.
    /// The rest is a provider's word, which is taken only as far as the last period paid for, and the rate since, bear it out.
    ///
    /// # Errors
    /// [`TabError::Implausible`].
    pub fn check_plausible(&self, terms: &TermsV1, began: u64, period: u64) -> Result<(), TabError> {
        let promised = self.promised.map_or(Amount::ZERO, |v| v.total);
        let since = self.promised.and_then(|v| v.paid_through).map_or(began, |through| through + 1);
        let now = period.max(self.meter.period());
        let most = self.rate().checked_mul(now.saturating_sub(since).saturating_add(2));
        let most = most.and_then(|most| promised.checked_add(most.floor()));
        let most = most.and_then(|most| most.checked_add(terms.read_price.cost(READ_STEP_BYTES)));
        match (self.owed(terms, now), most) {
            (Ok(owed), Some(most)) if owed <= most => Ok(()),
            _ => Err(TabError::Implausible),
        }
    }
}

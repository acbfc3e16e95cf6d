//! Paying: reads are counted as they arrive, vouchers promise what the tab says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spare_market::amount::Amount;
use spare_market::job::JOBS_UNPAID_MAX;
use spare_market::keys::PublicKey;
use spare_market::signed::{Signed, SignedBytes};
use spare_market::standing::{Fault, Place};
use spare_market::tab::{READ_SLACK_BYTES, READ_STEP_BYTES};
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::tree::{GROUP_BYTES, Root, VerifyError};

use super::{Cell, DealError, Deals, record_key};
use crate::crash;
use crate::frames::RefusalCode;
use crate::meta::{Batch, Table};
use crate::peers::PeerError;
use crate::standings::fault_of;

/// Unpaid bytes read after which a voucher is sent without waiting for the period to end.
const PAY_READS_BYTES: u64 = READ_STEP_BYTES / 8;
/// Of what was read, the part that may be counted by the provider alone is one of this many, beside a step.
const READS_TRUSTED: u64 = 16;

/// Bytes of a read, put on the deal's account when it ends, however it ends.
struct ReadCount<'a> {
    cell: Arc<Cell>,
    received: &'a AtomicU64,
    before: u64,
}

impl Drop for ReadCount<'_> {
    fn drop(&mut self) {
        let bytes = self.received.load(Ordering::Relaxed) - self.before;
        self.cell.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a voucher is to pay for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pay {
    /// Reading and jobs alone: storage is paid for after a good audit.
    Used,
    /// Reading alone, which the provider says is due.
    Demanded,
    /// Reading, and storage in all periods that are over.
    All,
}

impl Deals {
    /// Reads bytes `range` of a shard as [`Peers::read`] does, and pays for it.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn read(
        self: &Arc<Self>,
        node: &PublicKey,
        root: Root,
        shard_bytes: u64,
        range: std::ops::Range<u64>,
        received: &AtomicU64,
    ) -> Result<Vec<u8>, PeerError> {
        let covering = self.covering(node, &root).ok().flatten();
        let cell = covering.or_else(|| self.live(node).ok().flatten().map(|(cell, _)| cell));
        let count = || {
            let cell = cell.clone()?;
            Some(ReadCount { cell, received, before: received.load(Ordering::Relaxed) })
        };
        let counting = count();
        let mut result = self.peers.read(node, root, shard_bytes, range.clone(), received).await;
        drop(counting);
        let Some(cell) = &cell else { return result };
        let place = Place { root, shard_bytes, start: range.start, end: range.end };
        let is_due =
            matches!(&result, Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::PaymentDue);
        let is_unfunded =
            matches!(&result, Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::Unfunded);
        let goes_on = (is_due && self.pay(cell, Pay::Demanded).await.is_ok())
            || (is_unfunded && self.top_up(std::slice::from_ref(cell)).await.is_ok());
        if goes_on {
            let _counting = count();
            result = self.peers.read(node, root, shard_bytes, range, received).await;
        }
        match &result {
            // It was paid, or there is money, and it refuses all the same.
            Err(PeerError::Refused(refusal))
                if goes_on && matches!(refusal.code, RefusalCode::PaymentDue | RefusalCode::Unfunded) =>
            {
                self.peers.standings.failed(&cell.node, place, Fault::Refused, &refusal.detail);
            }
            result => self.judge(cell, place, result),
        }
        let on_tab = cell.lock().tab.unpaid_read_bytes();
        let unpaid = cell.read_bytes.load(Ordering::Relaxed).saturating_add(on_tab);
        if unpaid >= PAY_READS_BYTES && cell.turn.try_lock().is_ok() {
            let (deals, cell) = (self.clone(), cell.clone());
            tokio::spawn(async move {
                if let Err(error) = deals.pay(&cell, Pay::Used).await {
                    tracing::debug!(node = %cell.node, %error, "a voucher was not taken");
                }
            });
        }
        result
    }

    /// Has what came of a read held for or against its provider. A read is a read, whatever it was for.
    pub(crate) fn judge(&self, cell: &Cell, mut place: Place, result: &Result<Vec<u8>, PeerError>) {
        let standings = &self.peers.standings;
        let error = match result {
            Ok(_) => return standings.answered(&cell.node, &place),
            Err(error) => error,
        };
        if let PeerError::SignedWrongBytes { read, .. } = error {
            let kept = self
                .evidence(cell, &place.root, (**read).clone())
                .map(|evidence| evidence.map(|evidence| standings.keep_evidence(&evidence)));
            match kept {
                Ok(Some(Ok(name))) => {
                    tracing::warn!(node = %cell.node, name, "a provider signed wrong bytes; `spare audit` shows the evidence")
                }
                Ok(None) => {}
                Ok(Some(Err(error))) | Err(error) => tracing::error!(%error, "evidence could not be kept"),
            }
        }
        if let PeerError::WrongBytes(VerifyError::WrongGroup { offset }) = error {
            let end = (offset + GROUP_BYTES as u64).min(place.shard_bytes);
            // Of a long read this alone is asked for again: if it is wrong once more, and signed, that is evidence.
            place = Place { start: *offset, end, ..place };
            cell.audit.lock().expect("no holder panics").suspect = Some(place);
        }
        // Of a line that is down nobody else is to blame.
        let Some(fault) = fault_of(error) else { return };
        if fault != Fault::Silent || self.peers.others_answer(&cell.node) {
            standings.failed(&cell.node, place, fault, &error.to_string());
        }
    }

    /// Promises what is owed so far, and hands the promise to the provider.
    ///
    /// # Errors
    /// [`DealError`]; the promise is handed over another time then.
    pub async fn pay(&self, cell: &Cell, what: Pay) -> Result<(), DealError> {
        let _turn = cell.turn.lock().await;
        for is_last_try in [false, true] {
            let vouchers = self.sign_vouchers(cell, what)?;
            let has_all = vouchers.is_empty();
            let handing = self.peers.with_session(&cell.node, async |session| {
                if vouchers.is_empty() { Ok(()) } else { session.vouchers(vouchers).await }
            });
            let refusal = match handing.await {
                Ok(()) if has_all && what == Pay::Demanded && !is_last_try => {
                    // The provider wants payment, and by what is known here it has it: it has counted more.
                    self.reconcile(cell).await?;
                    continue;
                }
                Ok(()) if has_all => return Ok(()),
                Ok(()) => {
                    let mut record = cell.lock();
                    record.is_delivered = true;
                    crash::point("client after voucher");
                    return Ok(self.meta.note(Batch::default().put(
                        Table::Deals,
                        &record_key(cell.id),
                        &*record,
                    ))?);
                }
                Err(PeerError::Refused(refusal)) if !is_last_try => refusal,
                Err(error) => return Err(error.into()),
            };
            match refusal.code {
                // Another node of this account has promised more. What it promised counts here, too.
                RefusalCode::StaleVoucher => self.take_over(cell).await?,
                RefusalCode::BadVoucher => self.reconcile(cell).await?,
                _ => return Err(PeerError::Refused(refusal).into()),
            }
        }
        Ok(())
    }

    /// Takes the provider's count of bytes read and of what jobs cost, if it is a little higher than this node's: what was under way when a connection
    /// broke, or this node was killed, is counted there alone.
    async fn reconcile(&self, cell: &Cell) -> Result<(), DealError> {
        let id = cell.id;
        let state = self.peers.with_session(&cell.node, async |session| session.deal_state(id).await).await?;
        let mut record = cell.lock();
        let now = self.period();
        let (ours, theirs) = (record.tab.read_bytes(), state.tab.read_bytes());
        let missed = theirs.saturating_sub(ours);
        // The budget grows back.
        let elapsed = now.saturating_sub(record.reconciled_in);
        let before = record.reconciled_bytes.saturating_sub(elapsed.saturating_mul(READ_SLACK_BYTES));
        let most = READ_STEP_BYTES + ours / READS_TRUSTED;
        if before.saturating_add(missed) > most {
            return Err(DealError::State("it counts far more bytes read than arrived here"));
        }
        let mut next = record.clone();
        next.tab.add_read(missed);
        let missed_jobs = state.tab.jobs().saturating_sub(record.tab.jobs());
        let jobs_before =
            record.reconciled_jobs.saturating_sub(Amount(u128::from(elapsed) * JOBS_UNPAID_MAX.0));
        let jobs = jobs_before.checked_add(missed_jobs).unwrap_or(missed_jobs);
        if jobs > Amount(2 * JOBS_UNPAID_MAX.0 + record.tab.jobs().0 / u128::from(READS_TRUSTED)) {
            return Err(DealError::State("it counts far more for jobs than was ordered from here"));
        }
        next.tab.add_missed_jobs(missed_jobs);
        next.reconciled_jobs = jobs;
        (next.reconciled_bytes, next.reconciled_in) = (before + missed, now);
        self.meta.note(Batch::default().put(Table::Deals, &record_key(id), &next))?;
        *record = next;
        Ok(())
    }

    /// The newest voucher, and some for the periods to come; none if the provider has all there is. Noted before they are sent.
    fn sign_vouchers(&self, cell: &Cell, what: Pay) -> Result<Vec<SignedBytes>, DealError> {
        let Some(deal) = self.on_ledger(cell.id)? else { return Ok(Vec::new()) };
        let period = self.period();
        let mut record = cell.lock();
        let mut next = record.clone();
        next.follow(&deal);
        next.tab.add_read(cell.read_bytes.swap(0, Ordering::Relaxed));
        let sign = |v: VoucherV1| Signed::new(Voucher::V1(v), self.network, &self.node_key).raw().clone();
        let before = match what {
            Pay::Used | Pay::Demanded => next.tab.promised_before(),
            Pay::All => period.max(next.tab.promised_before()),
        };
        if what == Pay::All {
            // What was not shown while it was asked for is not paid, once.
            let promised = next.tab.promised_through().max(next.presigned_through);
            let (over, running) = next.failed_in.iter().partition(|failed| **failed < before);
            next.failed_in = running;
            let over: Vec<u64> = over;
            for failed in over.into_iter().filter(|failed| Some(*failed) > promised) {
                // What is too long ago to be told is paid.
                let _ = next.tab.skip(failed);
            }
        }
        let mut owed = next.tab.next_voucher(cell.id, &next.terms, deal.epoch, before)?;
        let is_claimed = deal.claiming.is_some_and(|claiming| claiming.is_on());
        if owed.is_none() && what == Pay::All && is_claimed && next.is_delivered {
            owed = next.tab.sign_of_life(cell.id, &next.terms, deal.epoch, before)?;
        }
        if let Some(voucher) = owed {
            next.tab.promise(voucher);
            next.voucher = Some(sign(voucher));
            next.is_delivered = false;
        }
        let mut vouchers: Vec<SignedBytes> = Vec::new();
        if !next.is_delivered {
            vouchers.extend(next.voucher.clone());
            let ahead = if what == Pay::All { self.presign_periods as u64 } else { 0 };
            for ahead in 1..=ahead {
                let voucher = next.tab.next_voucher(cell.id, &next.terms, deal.epoch, before + ahead)?;
                next.presigned_through =
                    next.presigned_through.max(voucher.and_then(|voucher| voucher.paid_through));
                vouchers.extend(voucher.map(sign));
            }
            crash::point("client before voucher");
        }
        if next != *record {
            self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &next))?;
        }
        *record = next;
        Ok(vouchers)
    }
}

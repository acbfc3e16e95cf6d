//! Looking after deals as time passes: vouchers whose time has come are taken and redeemed, deals that ran dry or cover nothing are closed, the newest
//! head is defended while a deal is closing, and what no deal covers any more is let go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spare_market::amount::{Amount, StoragePrice};
use spare_market::block::Ledger;
use spare_market::deal::{Deal, DealId, Status};
use spare_market::keys::PublicKey;
use spare_market::signed::SignedBytes;
use spare_market::tx::Action;
use spare_market::voucher::{Voucher, VoucherV1};
use tokio::time::{sleep, timeout};

use super::{Cell, EarnError, Earner, Record, record_key};
use crate::market::{SubmitError, Wallet};
use crate::meta::{Batch, Table};
use crate::{sets, unix_now_s};

/// Periods after which a promise is put on the ledger, if nothing calls for it earlier.
const REDEEM_AFTER_PERIODS: u64 = 24;
/// How often the deals are looked through, at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Periods after which a deal that covers nothing is closed, which gives its escrow back.
const IDLE_PERIODS: u64 = 24;

impl Earner {
    /// Looks after all deals, for as long as the node runs: takes vouchers whose time has come, redeems them, closes deals that ran dry,
    /// defends the newest head when a deal is closing, settles, and deletes what no deal covers.
    pub async fn run(self: Arc<Self>, wallet: Arc<Wallet>) {
        let every = Duration::from_secs(self.period_s().into()) / 4;
        let every = every.clamp(LOOK_EVERY.0, LOOK_EVERY.1);
        let mut height = self.chain.height();
        let mut swept_at: Option<Instant> = None;
        loop {
            let is_sweeping = swept_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY.1);
            if is_sweeping {
                swept_at = Some(Instant::now());
            }
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look(is_sweeping)).await;
            match looked {
                Err(error) => tracing::error!(%error, "looking through the deals ended abnormally"),
                Ok(Ok(actions)) => {
                    for taken in wallet.send_all(actions).await {
                        match taken {
                            Ok(_) => {}
                            Err(error) => tracing::info!(%error, "a deal's transaction was not taken"),
                        }
                    }
                }
                Ok(Err(error)) => tracing::error!(%error, "the deals could not be looked through"),
            }
            // A block may have closed a deal.
            sleep(LOOK_EVERY.0).await;
            let something = async {
                tokio::select! { _ = height.changed() => {} () = self.wake.notified() => {} }
            };
            let _ = timeout(every, something).await;
        }
    }

    /// What is to be told to the ledger now.
    fn look(&self, is_sweeping: bool) -> Result<Vec<Action>, EarnError> {
        self.note_running()?;
        let mut actions = Vec::new();
        for (id, cell) in self.all() {
            // Whatever is wrong with one deal leaves the others alone.
            if let Err(error) = self.look_at(id, &cell, &mut actions) {
                tracing::error!(deal = %id, %error, "a deal could not be looked after");
            }
        }
        actions.extend(self.claim()?);
        if is_sweeping {
            self.take_up_unasked()?;
            // What else is to be done does not wait for the disk.
            if let Err(error) = self.sweep() {
                tracing::error!(%error, "what is no longer needed could not be deleted");
            }
        }
        Ok(actions)
    }

    /// Adds what is to be told to the ledger of one deal.
    fn look_at(&self, id: DealId, cell: &Cell, actions: &mut Vec<Action>) -> Result<(), EarnError> {
        let Some(deal) = self.on_ledger(id)? else { return self.end(id, cell) };
        actions.extend(self.answers(id, &deal)?);
        let mut record = cell.lock();
        record.follow(&deal);
        self.take_due(id, &deal, &mut record)?;
        actions.extend(self.due_actions(id, &deal, &mut record)?);
        Ok(())
    }

    /// Takes up deals on the ledger whose clients never asked for anything, so that they are closed some day and give back what is pledged.
    fn take_up_unasked(&self) -> Result<(), EarnError> {
        let node = self.node_key.public();
        let unasked: Vec<(DealId, PublicKey)> = {
            let known = self.all();
            self.chain.view(|l| {
                let deals = l.state().deals_of(&self.account);
                let own = deals.filter(|(id, deal)| deal.terms.node == node && !known.contains_key(id));
                own.map(|(id, deal)| (id, deal.terms.client)).collect()
            })?
        };
        for (id, client) in unasked {
            // One client's are bounded.
            let _ = self.deal(&client, id);
        }
        Ok(())
    }

    /// Takes vouchers that were signed beforehand, once their period is over.
    fn take_due(&self, id: DealId, deal: &Deal, record: &mut Record) -> Result<(), EarnError> {
        let now = self.period();
        let parse = |raw: &SignedBytes| {
            let voucher = raw.clone().check::<Voucher>(self.network).ok()?;
            Some(*voucher.value().v1())
        };
        let is_due = |v: &VoucherV1| v.paid_through.is_none_or(|through| through < now);
        let (due, ahead): (Vec<_>, Vec<_>) =
            record.ahead.drain(..).partition(|raw| parse(raw).is_none_or(|v| is_due(&v)));
        record.ahead = ahead;
        if due.is_empty() {
            return Ok(());
        }
        for raw in due {
            let taken = parse(&raw).map(|v| {
                let before = record.tab.promised_through();
                let absent = self.absent_periods(before, v.paid_through);
                record.tab.take_voucher(id, &record.terms, deal.epoch, v, now, absent)
            });
            match taken {
                Some(Ok(())) => record.voucher = Some(raw),
                // The client was here all along and signed newer ones, or stores more by now.
                Some(Err(error)) => {
                    tracing::debug!(%error, "a voucher that was signed beforehand is of no use")
                }
                None => {}
            }
        }
        Ok(self.meta.note(Batch::default().put(Table::Deals, &record_key(id), record))?)
    }

    fn due_actions(&self, id: DealId, deal: &Deal, record: &mut Record) -> Result<Vec<Action>, EarnError> {
        let mut actions = Vec::new();
        let now = self.period();
        let funding = self.funding(record, deal, 0);
        let is_charged = record.tab.bytes() > 0 && record.terms.price > StoragePrice(0);
        let is_dry = is_charged && funding.in_grace && record.tab.left(deal, now) == Amount::ZERO;
        let is_closing = deal.status != Status::Open;
        let idle_since = record.tab.head().map_or(record.redeemed_in, |head| head.head.from);
        let is_empty = record.tab.bytes() == 0 && record.tab.open_jobs().next().is_none();
        let is_idle = is_empty && now >= idle_since + IDLE_PERIODS;
        let open = unpaid(record, deal);
        let is_large = open.0 > deal.escrow.0 / 2;
        let is_old = now >= record.redeemed_in + REDEEM_AFTER_PERIODS;
        // What was promised is paid before claims end, and then is not lost if they begin again.
        let is_back = deal.claiming.is_some_and(|claiming| claiming.is_on()) && record.keeps_up();
        let is_due = is_large || is_old || is_dry || is_closing || is_back;
        if open > Amount::ZERO && deal.escrow > Amount::ZERO && is_due {
            actions.extend(record.voucher.clone().map(|voucher| Action::Redeem { voucher }));
            record.redeemed_in = now;
            self.meta.note(Batch::default().put(Table::Deals, &record_key(id), record))?;
        }
        if is_back {
            tracing::info!(deal = %id, "vouchers come in time again: claims on the ledger end");
            actions.push(Action::EndClaims { deal: id });
        }
        let is_to_be_anchored = self.look_at_anchored(id, deal, record)?;
        let newer = record.head.clone().filter(|_| record.tab.is_ahead_of(deal));
        if newer.is_none() {
            record.is_releasing = false;
        }
        match deal.status {
            Status::Open if is_dry || is_idle => {
                tracing::info!(deal = %id, is_dry, is_idle, "a deal is being closed");
                actions.push(Action::Close { deal: id, head: newer });
            }
            Status::Open => {
                actions.extend(self.start_claims(id, deal, record)?);
                let anchors = |action: &Action| matches!(action, Action::Anchor { .. });
                if is_to_be_anchored && !actions.iter().any(anchors) {
                    actions.extend(newer.map(|head| Action::Anchor { head }));
                }
            }
            Status::Closing { .. } => {
                actions.extend(newer.map(|head| Action::Anchor { head }));
                let ticks = self.chain.view(|l: &Ledger| l.state().totals().ticks)?;
                let is_disputed = self.chain.view(|l: &Ledger| l.state().is_disputed(&id))?;
                if deal.can_be_settled(ticks, unix_now_s()) && !is_disputed {
                    actions.push(Action::Settle { deal: id });
                }
            }
        }
        Ok(actions)
    }

    /// Puts the newest voucher of every deal on the ledger. Returns how much was promised beyond what was paid.
    ///
    /// # Errors
    /// The first that was not taken, other than that there was nothing to pay.
    pub async fn withdraw(self: &Arc<Self>, wallet: &Wallet) -> Result<Amount, SubmitError> {
        let mut sum = Amount::ZERO;
        let mut actions = Vec::new();
        for (id, cell) in self.all() {
            let record = cell.lock().clone();
            let Some(deal) = self.on_ledger(id)? else { continue };
            let open = unpaid(&record, &deal);
            if open > Amount::ZERO && deal.escrow > Amount::ZERO {
                actions.extend(record.voucher.map(|voucher| Action::Redeem { voucher }));
                sum = sum.checked_add(open).unwrap_or(sum);
            }
        }
        for taken in wallet.send_all(actions).await {
            match taken {
                // The background work was faster.
                Err(SubmitError::NotTaken(refused))
                    if matches!(refused.code.as_str(), "stale_voucher" | "escrow_empty") => {}
                taken => drop(taken?),
            }
        }
        Ok(sum)
    }

    /// A deal is off the ledger: what it covered is let go.
    fn end(&self, id: DealId, cell: &Cell) -> Result<(), EarnError> {
        let mut record = cell.lock();
        let owner = record.terms.client;
        let _owner = self.owner_lock(&owner);
        let mut batch = Batch::default();
        let mut released_bytes = 0;
        self.forget_anchored(id, &[], &mut record, &mut batch)?;
        for member in sets::all(&self.meta, id)? {
            batch.delete(Table::Sets, &sets::key(id, &member.root));
            released_bytes += self.release(&owner, &member.root, member.bytes, id, &mut batch)?;
        }
        batch.delete(Table::Notices, &id.0);
        self.meta.commit(batch.delete(Table::Deals, &record_key(id)))?;
        self.stored(&owner, released_bytes);
        self.deals.lock().expect("no holder panics").remove(&id);
        tracing::info!(deal = %id, "a deal is over");
        Ok(())
    }
}

/// What the newest voucher promises beyond what the ledger has paid.
fn unpaid(record: &Record, deal: &Deal) -> Amount {
    record.tab.promised().map_or(Amount::ZERO, |v| v.total.saturating_sub(deal.paid))
}

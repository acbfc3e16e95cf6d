//! The exchange of heads: compute the set, propose, send, note. Each deal has one exchange at a time, its *turn*.

use std::collections::BTreeMap;
use std::sync::Arc;

use spare_market::amount::Amount;
use spare_market::deal::{DealId, Status};
use spare_market::head::{AnchoredHead, HEAD_PERIODS_MAX, Head, HeadV1, head_hash};
use spare_market::keys::PublicKey;
use spare_market::signed::{Signable, Signed};
use spare_market::tx::Action;
use spare_proofs::encode::from_bytes;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;

use super::{Cell, DealError, Deals, Proposal, record_key};
use crate::frames::RefusalCode;
use crate::limits::HEAD_CHANGES_MAX;
use crate::market::SubmitError;
use crate::meta::{Batch, Table};
use crate::peers::PeerError;
use crate::{crash, sets};

/// Periods after which a newer head of a deal with collateral goes on the ledger.
const EXPOSED_PERIODS: u64 = 24;
/// Times that an exchange takes a deal over from another node of this account that goes on with it.
const TAKE_OVERS_MAX: u32 = 2;

/// What is to change under a deal's head.
#[derive(Debug, Clone, Default)]
pub struct HeadChange {
    /// Shards to be covered.
    pub add: Vec<Member>,
    /// Shards to be covered no more, and so to be deleted.
    pub remove: Vec<Root>,
}

impl Deals {
    /// Sends what earlier exchanges with `node` left open, so that it is known what is covered.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn finish_all(&self, node: &PublicKey) -> Result<(), DealError> {
        for cell in self.of_node(node) {
            let _turn = cell.turn.lock().await;
            self.finish(&cell).await?;
        }
        Ok(())
    }

    /// Has heads countersigned that cover what `changes` says, one provider each. What is covered already, or not covered, is passed over;
    /// so is what a closing deal covers, which goes with it. Returns what failed.
    pub async fn exchange(
        &self,
        changes: BTreeMap<PublicKey, HeadChange>,
        index_hash: [u8; 32],
    ) -> Vec<(PublicKey, DealError)> {
        let mut failures = Vec::new();
        let by_deal = match self.by_deal(changes, &mut failures) {
            Ok(by_deal) => by_deal,
            Err(error) => {
                failures.push((self.account, error));
                return failures;
            }
        };
        let mut turns = Vec::new();
        for (_, (cell, change)) in by_deal {
            let turn = cell.turn.clone().lock_owned().await;
            turns.push((cell, change, turn));
        }
        // What an earlier exchange left open comes first.
        let finishing = turns.iter().map(|(cell, _, _)| self.finish(cell));
        let finished = futures::future::join_all(finishing).await;
        let mut open: Vec<(&Arc<Cell>, &HeadChange, u32)> = Vec::new();
        for ((cell, change, _), finished) in turns.iter().zip(finished) {
            match finished {
                Ok(()) => open.push((cell, change, 0)),
                Err(error) => failures.push((cell.node, error)),
            }
        }
        while !open.is_empty() {
            let mut batch = Batch::default();
            let mut proposed = Vec::new();
            for (cell, change, taken_over) in open {
                match self.propose(cell, change, index_hash, &mut batch) {
                    Ok(true) => proposed.push((cell, change, taken_over)),
                    Ok(false) => {}
                    Err(error) => failures.push((cell.node, error)),
                }
            }
            crash::point("client before proposal");
            if let Err(error) = self.meta.commit(&batch) {
                // What may not last must not be sent, now or later.
                proposed.iter().for_each(|(cell, ..)| cell.lock().proposal = None);
                failures.push((self.account, error.into()));
                return failures;
            }
            crash::point("client after proposal");
            let sending = proposed.iter().map(|(cell, ..)| self.send(cell));
            let sent = futures::future::join_all(sending).await;
            open = Vec::new();
            for ((cell, change, mut taken_over), sent) in proposed.into_iter().zip(sent) {
                let went_on = match sent {
                    Ok(()) => Ok(()),
                    // Another node of this account may have gone on with the deal. What is wanted is then wanted on top of that.
                    Err(DealError::Peer(PeerError::Refused(refusal)))
                        if taken_over < TAKE_OVERS_MAX && refusal.is_of_head() =>
                    {
                        taken_over += 1;
                        self.take_over(cell).await.map_err(|_| PeerError::Refused(refusal).into())
                    }
                    Err(error) => Err(error),
                };
                match went_on {
                    Ok(()) => open.push((cell, change, taken_over)),
                    Err(error) => failures.push((cell.node, error)),
                }
            }
        }
        failures
    }

    /// Sorts changes by deal: what is to be covered goes under the open deal with its provider, what is not any more under the one that covers it.
    fn by_deal(
        &self,
        changes: BTreeMap<PublicKey, HeadChange>,
        failures: &mut Vec<(PublicKey, DealError)>,
    ) -> Result<BTreeMap<DealId, (Arc<Cell>, HeadChange)>, DealError> {
        let mut by_deal: BTreeMap<DealId, (Arc<Cell>, HeadChange)> = BTreeMap::new();
        for (node, change) in changes {
            if !change.add.is_empty() {
                match self.live(&node)? {
                    Some((cell, _)) => {
                        let entry = by_deal.entry(cell.id).or_insert_with(|| (cell, HeadChange::default()));
                        entry.1.add = change.add;
                    }
                    None => failures.push((node, DealError::NoDeal)),
                }
            }
            for root in change.remove {
                let Some(cell) = self.covering(&node, &root)? else { continue };
                let is_open = self.on_ledger(cell.id)?.is_some_and(|deal| deal.status == Status::Open);
                if is_open {
                    by_deal
                        .entry(cell.id)
                        .or_insert_with(|| (cell, HeadChange::default()))
                        .1
                        .remove
                        .push(root);
                }
            }
        }
        Ok(by_deal)
    }

    /// Signs the next head of a deal, as far as `change` still needs one, and has `batch` make it durable. A head takes a part of a long change.
    fn propose(
        &self,
        cell: &Cell,
        change: &HeadChange,
        index_hash: [u8; 32],
        batch: &mut Batch,
    ) -> Result<bool, DealError> {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for member in &change.add {
            if add.len() < HEAD_CHANGES_MAX
                && !self.meta.has(Table::Sets, &sets::key(cell.id, &member.root))?
            {
                add.push(*member);
            }
        }
        for root in &change.remove {
            if remove.len() < HEAD_CHANGES_MAX && self.meta.has(Table::Sets, &sets::key(cell.id, root))? {
                remove.push(*root);
            }
        }
        if add.is_empty() && remove.is_empty() {
            return Ok(false);
        }
        self.sign_head(cell, add, remove, index_hash, batch)?;
        Ok(true)
    }

    fn sign_head(
        &self,
        cell: &Cell,
        mut add: Vec<Member>,
        remove: Vec<Root>,
        index_hash: [u8; 32],
        batch: &mut Batch,
    ) -> Result<(), DealError> {
        add.sort_unstable();
        add.dedup();
        let sum = sets::commitment(&self.meta, cell.id, &add, &remove)?;
        let sum = sum.ok_or(DealError::State("the shards to be covered are no set"))?;
        let mut record = cell.lock();
        let from = self.period().max(record.tab.head().map_or(0, |head| head.head.from));
        let head = HeadV1 {
            deal: cell.id,
            seq: record.next_seq,
            set_root: sum.hash,
            bytes: sum.bytes,
            price: record.terms.price,
            from,
            until: from + HEAD_PERIODS_MAX,
            index_hash,
        };
        let signed = Signed::new(Head::V1(head), self.network, &self.node_key);
        record.next_seq += 1;
        record.proposal = Some(Proposal { head: signed.raw().clone(), add, remove });
        batch.put(Table::Deals, &record_key(cell.id), &*record);
        Ok(())
    }

    /// Sends what an earlier exchange left open, if anything. Needs the turn.
    async fn finish(&self, cell: &Cell) -> Result<(), DealError> {
        if cell.lock().proposal.is_none() {
            return Ok(());
        }
        match self.send(cell).await {
            // It is dropped, and its number with it.
            Err(DealError::Peer(refusal)) if is_final(&refusal) => {
                tracing::info!(node = %cell.node, %refusal, "a head was refused");
                Ok(())
            }
            sent => sent,
        }
    }

    /// Sends the proposal of a deal and notes the answer. A refusal drops the proposal; after anything else it can be sent again. Needs the turn.
    async fn send(&self, cell: &Cell) -> Result<(), DealError> {
        let proposal = cell.lock().proposal.clone().ok_or(DealError::NoDeal)?;
        let add: Vec<Root> = proposal.add.iter().map(|m| m.root).collect();
        let remove = proposal.remove.clone();
        let asking = self
            .peers
            .with_session(&cell.node, async |session| session.head(&proposal.head, add, remove).await);
        let full = match asking.await {
            // Anything else that it says may pass, and it may have countersigned before.
            Err(error @ PeerError::Refused(_)) if is_final(&error) => {
                let mut record = cell.lock();
                record.proposal = None;
                self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &*record))?;
                return Err(error.into());
            }
            answer => answer?,
        };
        crash::point("client before countersigned");
        full.check_countersignature(self.network, &cell.node)?;
        let head: Head = from_bytes(&full.head.bytes, Head::MAX_BYTES).expect("this node signed these bytes");
        let anchored = AnchoredHead { head: *head.v1(), hash: head_hash(&full.head.bytes) };
        let on_ledger = self.on_ledger(cell.id)?;
        let mut record = cell.lock();
        let mut next = record.clone();
        if let Some(deal) = &on_ledger {
            next.follow(deal);
        }
        next.tab.take_head(cell.id, &record.terms, anchored, self.period_s())?;
        (next.head, next.proposal) = (Some(full), None);
        let mut batch = Batch::default();
        for member in &proposal.add {
            batch.put(Table::Sets, &sets::key(cell.id, &member.root), &member.bytes);
        }
        for root in &proposal.remove {
            batch.delete(Table::Sets, &sets::key(cell.id, root));
        }
        // Not synced: after a power cut the proposal is sent again, and answered with the same bytes.
        self.meta.note(batch.put(Table::Deals, &record_key(cell.id), &next))?;
        *record = next;
        drop(record);
        cell.subtract_uncovered(proposal.add.iter().map(|m| m.bytes).sum());
        crash::point("client after countersigned");
        Ok(())
    }

    /// Renews a deal's head, if it does not hold for much longer.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn renew(&self, cell: &Arc<Cell>, index_hash: [u8; 32]) -> Result<(), DealError> {
        let _turn = cell.turn.lock().await;
        self.finish(cell).await?;
        let is_due = cell.head().is_some_and(|h| self.period() + HEAD_PERIODS_MAX / 3 >= h.head.until);
        if !is_due || cell.head().is_some_and(|h| h.head.bytes == 0) {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.sign_head(cell, Vec::new(), Vec::new(), index_hash, &mut batch)?;
        self.meta.commit(&batch)?;
        match self.send(cell).await {
            // Another node of this account has gone on with the deal.
            Err(DealError::Peer(PeerError::Refused(refusal))) if refusal.is_of_head() => {
                self.take_over(cell).await
            }
            sent => sent,
        }
    }

    /// Has the newest head of a deal with collateral on the ledger, so that challengers can ask about it: once it stood for a period, and at most once in
    /// a while.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn expose(&self, cell: &Arc<Cell>) -> Result<(), DealError> {
        let Some(deal) = self.on_ledger(cell.id)? else { return Ok(()) };
        let now = self.period();
        let is_settled = cell.head().is_some_and(|head| head.head.from < now && head.head.bytes > 0);
        let stood = deal.head.is_none_or(|head| now >= head.head.from + EXPOSED_PERIODS);
        if deal.collateral == Amount::ZERO || deal.status != Status::Open || !is_settled || !stood {
            return Ok(());
        }
        let _turn = cell.turn.lock().await;
        let Some(head) = self.unanchored(cell, &deal) else { return Ok(()) };
        match self.wallet.send(Action::Anchor { head }).await {
            // The provider was faster.
            Err(SubmitError::NotTaken(refused)) if refused.code == "stale_head" => Ok(()),
            sent => Ok(sent.map(drop)?),
        }
    }
}

/// Whether a head was looked at and refused for good.
fn is_final(error: &PeerError) -> bool {
    use RefusalCode::{BadHead, ForkedHead, NoDeal, NotHere, StaleHead, TooLarge, Unfunded};
    let final_codes = [BadHead, ForkedHead, NoDeal, NotHere, StaleHead, TooLarge, Unfunded];
    matches!(error, PeerError::Refused(refusal) if final_codes.contains(&refusal.code))
}

//! Taking over deals that another node of this account made or went on with, as after a recovery: nothing of the provider's word is taken that
//! this account did not sign, but for what is bounded.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use spare_market::amount::Amount;
use spare_market::deal::{Deal, DealId, Status, TERMS_LIFE_MAX_S};
use spare_market::head::AnchoredHead;
use spare_market::keys::PublicKey;
use spare_market::signed::SignedBytes;
use spare_market::tab::Tab;
use spare_market::tx::Action;
use spare_market::voucher::Voucher;
use spare_proofs::sumtree::Member;
use tokio::time::timeout;

use super::{Cell, DealError, Deals, Record, record_key};
use crate::chain::ChainError;
use crate::frames::DealState;
use crate::limits::SET_PAGE_MAX;
use crate::meta::{Batch, MetaError, Table};
use crate::peers::PeerError;
use crate::sets;

const TAKES_OVER_KEY: &[u8] = b"takes over deals";
/// Deals that are taken over at once, each from another provider.
const TAKE_OVERS_AT_ONCE: usize = 32;
/// Most shards that are taken over from a provider's word about a deal.
const ADOPT_SHARDS_MAX: usize = 1 << 20;
/// Of a deal's escrow, the part that a provider may claim without proof from a client that lost its records is one of this many.
const ADOPT_TOLERANCE: u128 = 10;
/// Longest time for fetching what a provider has of a deal.
const ADOPT_WITHIN: Duration = Duration::from_secs(60);

/// What a provider has of a deal.
struct Theirs {
    state: DealState,
    members: Vec<Member>,
}

/// A deal that is being taken over, until dropped.
struct Adopting<'a>(&'a Deals, DealId);

impl<'a> Adopting<'a> {
    fn begin(deals: &'a Deals, id: DealId) -> Option<Self> {
        let is_first = deals.adopting.lock().expect("no holder panics").insert(id);
        is_first.then(|| Self(deals, id))
    }
}

impl Drop for Adopting<'_> {
    fn drop(&mut self) {
        self.0.adopting.lock().expect("no holder panics").remove(&self.1);
    }
}

impl Deals {
    /// From now on, also over restarts, this node looks after the deals that other nodes of its account made: it was recovered from a seed.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn take_over_from_now_on(&self) -> Result<(), MetaError> {
        self.meta.commit(Batch::default().put(Table::State, TAKES_OVER_KEY, &true))
    }

    /// Whether that was said.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn takes_over(&self) -> Result<bool, MetaError> {
        Ok(self.meta.get(Table::State, TAKES_OVER_KEY)? == Some(true))
    }

    /// Takes over deals that other nodes of this account made, if this node does that, and those of its own that it did not come to note.
    /// Providers that are away keep theirs for later.
    ///
    /// # Errors
    /// When the local records or the ledger cannot be used.
    pub async fn take_over_foreign(&self) -> Result<(), DealError> {
        let takes_over = self.takes_over()?;
        // What is being opened just now is not foreign.
        let foreign = {
            let _opening = self.opening.lock().await;
            self.foreign(takes_over)?
        };
        futures::stream::iter(foreign)
            .for_each_concurrent(TAKE_OVERS_AT_ONCE, async |(id, node)| match self.adopt(id).await {
                Ok(()) => tracing::info!(%node, deal = %id, "a deal is taken over"),
                Err(error) => tracing::info!(%node, deal = %id, %error, "a deal could not be taken over"),
            })
            .await;
        Ok(())
    }

    /// The open deal with `node`. One that another node of this account made is taken over.
    pub(super) async fn live_or_adopted(
        &self,
        node: &PublicKey,
    ) -> Result<Option<(Arc<Cell>, Deal)>, DealError> {
        if let Some(live) = self.live(node)? {
            return Ok(Some(live));
        }
        let Some(id) = self.foreign(true)?.into_iter().find(|(_, of)| of == node).map(|(id, _)| id) else {
            return Ok(None);
        };
        self.adopt(id).await?;
        Ok(self.live(node)?)
    }

    /// Open deals of this account, those of other nodes included or not, of which this node keeps no record, with their providers.
    pub(super) fn foreign(&self, of_others: bool) -> Result<Vec<(DealId, PublicKey)>, ChainError> {
        let known: HashSet<DealId> = self.cells().iter().map(|cell| cell.id).collect();
        self.chain.view(|l| {
            let own = l.state().deals_of(&self.account);
            let own = own.filter(|(id, deal)| deal.terms.client == self.account && !known.contains(id));
            let me = self.node_key.public();
            let own = own.filter(|(_, deal)| of_others || deal.signers.contains(&me));
            let open = own.filter(|(_, deal)| deal.status == Status::Open);
            open.map(|(id, deal)| (id, deal.terms.node)).collect()
        })
    }

    async fn adopt(&self, id: DealId) -> Result<(), DealError> {
        let _alone = Adopting::begin(self, id).ok_or(DealError::State("it is being taken over just now"))?;
        let adopted = timeout(ADOPT_WITHIN, self.adopt_alone(id)).await;
        adopted.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))
    }

    async fn adopt_alone(&self, id: DealId) -> Result<(), DealError> {
        let deal = self.on_ledger(id)?.ok_or(DealError::NoDeal)?;
        if self.cells().iter().any(|cell| cell.id == id) {
            return Ok(());
        }
        let cell = Cell::new(id, Record::new(deal.terms.clone()));
        let theirs = self.fetch(&cell, &deal).await?;
        if !deal.signers.contains(&self.node_key.public()) {
            // Whoever puts money into a deal signs for it.
            self.wallet.send(Action::TopUp { deal: id, amount: Amount(1) }).await?;
        }
        self.take(&cell, theirs)?;
        self.keep(&cell);
        Ok(())
    }

    /// Takes what the provider has of a deal, if it is newer than what is known here: another node of this account has gone on with it.
    pub(super) async fn take_over(&self, cell: &Cell) -> Result<(), DealError> {
        let deal = self.on_ledger(cell.id)?.ok_or(DealError::NoDeal)?;
        let fetching = timeout(ADOPT_WITHIN, self.fetch(cell, &deal));
        let theirs = fetching.await.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))?;
        let is_newer = {
            let record = cell.lock();
            let seq = |tab: &Tab| tab.head().map_or(0, |h| h.head.seq);
            let total = |tab: &Tab| tab.promised().map_or(Amount::ZERO, |v| v.total);
            let (ours, tab) = (&record.tab, &theirs.state.tab);
            // What this node signed itself is on its own tab already. A provider that refused a head and shows it countersigned later is up to
            // something.
            let me = self.node_key.public();
            let by_other = |signed: Option<&SignedBytes>| signed.is_some_and(|signed| signed.signer != me);
            let head = by_other(theirs.state.head.as_ref().map(|full| &full.head));
            let voucher = by_other(theirs.state.voucher.as_ref());
            (head && seq(tab) > seq(ours)) || (voucher && seq(tab) == seq(ours) && total(tab) > total(ours))
        };
        if !is_newer {
            return Err(DealError::State("it says that there is something newer, and shows nothing newer"));
        }
        self.take(cell, theirs)
    }

    /// Fetches what the provider has of a deal, and checks that this account signed it and that it hangs together.
    async fn fetch(&self, cell: &Cell, deal: &Deal) -> Result<Theirs, DealError> {
        let (id, node) = (cell.id, cell.node);
        let theirs = self.peers.with_session(&node, async |session| {
            let state = session.deal_state(id).await?;
            let mut members: Vec<Member> = Vec::new();
            loop {
                let after = members.last().map(|m| m.root);
                let (page, more) = session.deal_set(id, after).await?;
                if more && page.len() < SET_PAGE_MAX || members.len() > ADOPT_SHARDS_MAX {
                    return Err(PeerError::Protocol("a set of shards in pages that are no pages"));
                }
                members.extend(page);
                if !more {
                    return Ok(Theirs { state, members });
                }
            }
        });
        let theirs = theirs.await?;
        let DealState { head, voucher, tab } = &theirs.state;
        let signer = |by: PublicKey| deal.signers.contains(&by);
        let anchored = match head {
            None => None,
            Some(full) => {
                let signed = full.check(self.network, &node)?;
                if !signer(signed.signer()) || signed.value().v1().deal != id {
                    return Err(DealError::State("its head is not this account's"));
                }
                Some(AnchoredHead::of(&signed))
            }
        };
        let promised = match voucher {
            None => None,
            Some(raw) => {
                let signed = raw.clone().check::<Voucher>(self.network)?;
                if !signer(signed.signer()) || signed.value().v1().deal != id {
                    return Err(DealError::State("its voucher is not this account's"));
                }
                Some(*signed.value().v1())
            }
        };
        if tab.head() != anchored.as_ref() || tab.promised() != promised.as_ref() {
            return Err(DealError::State("its tab is not under its head and voucher"));
        }
        let began = self.genesis.period_at(deal.terms.expires_s.saturating_sub(2 * TERMS_LIFE_MAX_S));
        let tolerance = Amount(deal.escrow.0 / ADOPT_TOLERANCE);
        tab.check_plausible(deal, began, self.period(), self.period_s(), tolerance)?;
        let sum = sets::sum(theirs.members.clone());
        let (root, bytes) = anchored.map_or(([0; 32], 0), |h| (h.head.set_root, h.head.bytes));
        if sum.is_none_or(|sum| (sum.hash, sum.bytes) != (root, bytes)) {
            return Err(DealError::State("its set of shards is not its head's"));
        }
        Ok(theirs)
    }

    /// Goes on from what was fetched. A promise of this node's own that is higher stays.
    fn take(&self, cell: &Cell, theirs: Theirs) -> Result<(), DealError> {
        let Theirs { state: DealState { head, voucher, tab }, members } = theirs;
        let mut record = cell.lock();
        let mut next = record.clone();
        next.next_seq = next.next_seq.max(tab.head().map_or(1, |h| h.head.seq + 1));
        let ours = record.tab.promised().copied();
        (next.tab, next.head, next.proposal) = (tab, head, None);
        next.tab.keep_open_jobs(&record.tab);
        let theirs = next.tab.promised().map_or(Amount::ZERO, |v| v.total);
        match ours.filter(|ours| ours.total > theirs) {
            Some(ours) => next.tab.promise(ours),
            None => (next.voucher, next.is_delivered) = (voucher, true),
        }
        let mut batch = Batch::default();
        for gone in sets::all(&self.meta, cell.id)? {
            batch.delete(Table::Sets, &sets::key(cell.id, &gone.root));
        }
        for member in &members {
            batch.put(Table::Sets, &sets::key(cell.id, &member.root), &member.bytes);
        }
        self.meta.commit(batch.put(Table::Deals, &record_key(cell.id), &next))?;
        *record = next;
        // Counted by the provider, too.
        cell.read_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }
}

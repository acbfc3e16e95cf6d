//! The client's side of deals: opening and funding them, having heads countersigned, promising payment.
//!
//! ```text
//! ensure:    terms -> Open on the ledger, or a top-up, so that what is to be stored is funded beyond the locked grace
//! exchange:  compute the set -> propose (one synced write) -> send -> countersigned -> note
//! pay:       tab -> voucher -> note -> send
//! ```
//!
//! **Goals.** Never two heads of one number: a signed head is durable before it leaves this node, and a refused head's number is not used again. A
//! proposal whose answer was lost is sent again as the same bytes. One exchange at a time in each deal.
//! **Non-goals.** Choosing providers; that is `put`'s.

mod adopt;
mod exchange;
mod fund;
mod hire;
mod pay;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::deal::{Deal, DealId, Status, TermsV1};
use spare_market::dispute::Stage;
use spare_market::genesis::Genesis;
use spare_market::head::{AnchoredHead, FullHead};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, SignedBytes, SignedError};
use spare_market::standing::Place;
use spare_market::tab::{Standing, Tab, TabError};
use spare_market::tx::Action;
use spare_proofs::sumtree::{Member, SumTree};
use spare_proofs::tree::Root;

use crate::chain::{Chain, ChainError};
use crate::evidence::{Evidence, SignedRead};
use crate::home::Identity;
use crate::market::{NotTaken, SubmitError, Wallet};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::peers::{PeerError, Peers};
use crate::sets;
use crate::unix_now_s;

pub use exchange::HeadChange;
pub use hire::{Hire, OpenOrder};
pub use pay::Pay;

const KEY_PREFIX: &[u8] = b"client ";
/// Most periods of failed audits that are remembered for a deal.
const FAILED_KEPT_MAX: usize = 64;

/// Why a deal could not be made, or its provider did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum DealError {
    /// The account has too little money.
    #[error(
        "{needed} credits have to be put aside for this, and the account has {free} free. Credits come from the market's operator: `spare market fund ACCOUNT AMOUNT`, with the account that `spare balance` shows"
    )]
    Funds {
        /// What is needed.
        needed: Amount,
        /// What is free.
        free: Amount,
    },
    /// The provider asks more than its ask said, or than may be paid.
    #[error("its terms are dearer than its ask")]
    Terms,
    /// The provider makes no deals about jobs.
    #[error("its terms have no prices of jobs")]
    NoCompute,
    /// Nobody could judge the provider's results.
    #[error("a dispute about its results would have no verifiers: it is the only one that there is")]
    NoVerifiers,
    /// The provider pledges too little.
    #[error(
        "it pledges {pledged} credits for a deal, and for checking jobs at this rate {needed} are needed; check more often, or ask others"
    )]
    Collateral {
        /// What it pledges.
        pledged: Amount,
        /// What is needed.
        needed: Amount,
    },
    /// The provider's terms or head do not hold.
    #[error("it signed wrongly: {0}")]
    Signed(#[from] SignedError),
    /// What the provider says of the deal does not hold.
    #[error("what it says of the deal does not hold: {0}")]
    State(&'static str),
    /// The tab does not take it.
    #[error(transparent)]
    Tab(#[from] TabError),
    /// There is no deal with this provider.
    #[error("there is no open deal with it")]
    NoDeal,
    /// The provider did not answer, or refused.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The ledger did not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The local records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl DealError {
    /// Whether another provider would not do better.
    pub fn concerns_all(&self) -> bool {
        match self {
            Self::Submit(SubmitError::NotTaken(refused)) => {
                refused.code == "funds" || refused.code == "spend_cap"
            }
            Self::Funds { .. } | Self::Submit(_) | Self::Chain(_) | Self::Meta(_) => true,
            _ => false,
        }
    }
}

/// A head that was signed and is not known to be countersigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proposal {
    head: SignedBytes,
    add: Vec<Member>,
    remove: Vec<Root>,
}

/// A deal as its client keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    terms: TermsV1,
    tab: Tab,
    head: Option<FullHead>,
    /// The number of the next head.
    next_seq: u64,
    proposal: Option<Proposal>,
    voucher: Option<SignedBytes>,
    /// Whether the provider has the newest voucher.
    is_delivered: bool,
    /// Bytes read that the provider alone has counted, and that are on the tab all the same.
    reconciled_bytes: u64,
    /// What jobs cost that the provider alone has counted, and that is on the tab all the same.
    reconciled_jobs: Amount,
    /// The period in which that was last the case.
    reconciled_in: u64,
    /// Periods, not paid for yet, in which audits were tried and none was good.
    failed_in: Vec<u64>,
    /// The last period for which a voucher was signed beforehand, in this epoch: what is in the provider's hands is not left out any more.
    presigned_through: Option<u64>,
    /// Collateral that jobs may still be lost of.
    locked: Vec<hire::Locked>,
}

impl Record {
    /// Goes on from what the ledger settled by claims.
    fn follow(&mut self, deal: &Deal) {
        let epoch = self.tab.epoch();
        self.tab.follow(deal);
        if self.tab.epoch() != epoch {
            self.presigned_through = None;
        }
        if self.tab.promised().is_none() {
            (self.voucher, self.is_delivered) = (None, true);
        }
    }

    fn new(terms: TermsV1) -> Self {
        Self {
            terms,
            tab: Tab::default(),
            head: None,
            next_seq: 1,
            proposal: None,
            voucher: None,
            is_delivered: true,
            reconciled_bytes: 0,
            reconciled_jobs: Amount::ZERO,
            reconciled_in: 0,
            failed_in: Vec::new(),
            presigned_through: None,
            locked: Vec::new(),
        }
    }
}

/// A deal with a provider.
pub struct Cell {
    /// The deal.
    pub id: DealId,
    /// The provider's node.
    pub node: PublicKey,
    record: Mutex<Record>,
    /// Held during an exchange with the provider.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Bytes on their way to the provider, or there, that no head covers yet. At least.
    uncovered_bytes: AtomicU64,
    /// Bytes read that are not on the tab yet.
    read_bytes: AtomicU64,
    /// How the last audit went.
    pub audit: Mutex<AuditState>,
}

/// How audits of a deal went.
#[derive(Debug, Clone, Default)]
pub struct AuditState {
    /// The period of the last good audit.
    pub good_in: Option<u64>,
    /// Good audits since the node started.
    pub good: u64,
    /// When what failed was asked again last.
    pub asked_again_at: Option<std::time::Instant>,
    /// Where a long read brought wrong bytes: read again by itself, so that what is signed becomes evidence.
    pub suspect: Option<Place>,
}

impl Cell {
    fn new(id: DealId, record: Record) -> Arc<Self> {
        Arc::new(Self {
            id,
            node: record.terms.node,
            record: Mutex::new(record),
            turn: Arc::default(),
            uncovered_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            audit: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }

    fn subtract_uncovered(&self, bytes: u64) {
        let less = |known: u64| Some(known.saturating_sub(bytes));
        let _ = self.uncovered_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Notes how an audit in `period` went, for what is paid.
    pub(crate) fn audited(&self, period: u64, is_good: bool) {
        let mut record = self.lock();
        let known = record.failed_in.iter().position(|failed| *failed == period);
        match (is_good, known) {
            (true, Some(at)) => drop(record.failed_in.remove(at)),
            (false, None) if self.audit.lock().expect("no holder panics").good_in != Some(period) => {
                record.failed_in.push(period);
                let over = record.failed_in.len().saturating_sub(FAILED_KEPT_MAX);
                record.failed_in.drain(..over);
            }
            _ => {}
        }
    }

    /// The newest head that both sides signed.
    pub fn head(&self) -> Option<AnchoredHead> {
        self.lock().tab.head().copied()
    }
}

/// The deals of which this node is the client.
pub struct Deals {
    network: NetworkId,
    genesis: Genesis,
    account: PublicKey,
    node_key: SigningSecret,
    meta: Arc<Meta>,
    chain: Arc<Chain>,
    wallet: Arc<Wallet>,
    peers: Arc<Peers>,
    /// Seconds of storage that are paid for in advance.
    fund_s: u64,
    /// Periods for which vouchers are signed beforehand.
    presign_periods: usize,
    /// The period in which this node was started.
    started_in: u64,
    cells: Mutex<BTreeMap<(PublicKey, DealId), Arc<Cell>>>,
    /// Held while deals are opened or topped up.
    opening: tokio::sync::Mutex<()>,
    /// Deals that are being taken over.
    adopting: Mutex<HashSet<DealId>>,
}

fn record_key(id: DealId) -> Vec<u8> {
    [KEY_PREFIX, &id.0].concat()
}

impl Deals {
    /// The deals in `meta`.
    ///
    /// # Errors
    /// When the local records cannot be read.
    pub fn open(
        identity: &Identity,
        meta: Arc<Meta>,
        chain: Arc<Chain>,
        wallet: Arc<Wallet>,
        peers: Arc<Peers>,
        fund_s: u64,
        presign_periods: usize,
    ) -> Result<Self, DealError> {
        let genesis = chain.view(|l| l.genesis().clone())?;
        let started_in = genesis.period_at(unix_now_s());
        let mut cells = BTreeMap::new();
        for (rest, record) in meta.all::<Record>(Table::Deals, KEY_PREFIX)? {
            if let Ok(id) = rest.as_slice().try_into().map(DealId) {
                cells.insert((record.terms.node, id), Cell::new(id, record));
            }
        }
        Ok(Self {
            network: identity.network,
            genesis,
            account: identity.account,
            node_key: identity.node_key(),
            meta,
            chain,
            wallet,
            peers,
            fund_s,
            presign_periods,
            started_in,
            cells: Mutex::new(cells),
            opening: tokio::sync::Mutex::default(),
            adopting: Mutex::default(),
        })
    }

    /// The running period.
    pub fn period(&self) -> u64 {
        self.genesis.period_at(unix_now_s())
    }

    /// The period in which this node was started.
    pub(crate) fn started_in(&self) -> u64 {
        self.started_in
    }

    /// Length of a period in seconds.
    pub fn period_s(&self) -> u32 {
        self.genesis.v1().period_s
    }

    /// All deals that this node keeps.
    pub fn cells(&self) -> Vec<Arc<Cell>> {
        self.cells.lock().expect("no holder panics").values().cloned().collect()
    }

    fn on_ledger(&self, id: DealId) -> Result<Option<Deal>, ChainError> {
        self.chain.view(|l| l.state().deal(&id).cloned())
    }

    fn of_node(&self, node: &PublicKey) -> Vec<Arc<Cell>> {
        let cells = self.cells.lock().expect("no holder panics");
        let all = (*node, DealId([0; 32]))..=(*node, DealId([0xff; 32]));
        cells.range(all).map(|(_, cell)| cell.clone()).collect()
    }

    /// The open deal with `node`, with what the ledger says of it.
    fn live(&self, node: &PublicKey) -> Result<Option<(Arc<Cell>, Deal)>, ChainError> {
        for cell in self.of_node(node) {
            if let Some(deal) = self.on_ledger(cell.id)?.filter(|deal| deal.status == Status::Open) {
                return Ok(Some((cell, deal)));
            }
        }
        Ok(None)
    }

    fn keep(&self, cell: &Arc<Cell>) {
        self.cells.lock().expect("no holder panics").insert((cell.node, cell.id), cell.clone());
    }

    /// The deal with `node` whose head covers `root`, if any: an open one rather than one that is closing.
    ///
    /// # Errors
    /// When the local records or the ledger cannot be used.
    pub fn covering(&self, node: &PublicKey, root: &Root) -> Result<Option<Arc<Cell>>, DealError> {
        let mut found = None;
        for cell in self.of_node(node) {
            if self.meta.has(Table::Sets, &sets::key(cell.id, root))? {
                let is_open = self.on_ledger(cell.id)?.is_some_and(|deal| deal.status == Status::Open);
                if is_open {
                    return Ok(Some(cell));
                }
                found = Some(cell);
            }
        }
        Ok(found)
    }

    /// Whether another node of this account has an open deal with `node` that is not taken over.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn has_foreign(&self, node: &PublicKey) -> Result<bool, ChainError> {
        Ok(self.foreign(true)?.iter().any(|(_, of)| of == node))
    }

    /// Begins to close a deal. What it covers goes with it.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn close(&self, cell: &Cell) -> Result<(), DealError> {
        let deal = self.on_ledger(cell.id)?.ok_or(DealError::NoDeal)?;
        let head = self.unanchored(cell, &deal);
        match self.wallet.send(Action::Close { deal: cell.id, head }).await {
            Err(SubmitError::NotTaken(NotTaken { code, .. })) if code == "closing" => Ok(()),
            sent => Ok(sent.map(drop)?),
        }
    }

    /// The newest head of a deal, if the ledger has an older one.
    fn unanchored(&self, cell: &Cell, deal: &Deal) -> Option<FullHead> {
        let record = cell.lock();
        record.head.clone().filter(|_| record.tab.is_ahead_of(deal))
    }

    /// What a closing deal calls for: the newest head if the ledger has an older one, and settling when its time is over. Forgets deals that
    /// are over.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn wind_up(&self, cell: &Cell) -> Result<(), DealError> {
        let Some(deal) = self.on_ledger(cell.id)? else { return self.forget(cell) };
        if deal.status == Status::Open {
            return Ok(());
        }
        let mut actions: Vec<Action> =
            self.unanchored(cell, &deal).into_iter().map(|head| Action::Anchor { head }).collect();
        // Nobody settles a deal before these are dealt with.
        let overdue = self.chain.view(|l| {
            let tick = l.state().totals().ticks;
            let challenges =
                l.state().challenges_of(cell.id).filter(|(_, challenge)| challenge.is_over(tick));
            challenges.map(|(challenger, _)| challenger).collect::<Vec<_>>()
        })?;
        actions.extend(overdue.into_iter().map(|challenger| Action::Forfeit { deal: cell.id, challenger }));
        let ticks = self.chain.view(|l| l.state().totals().ticks)?;
        let disputes = self.chain.view(|l| {
            let tick = l.state().totals().ticks;
            let open = l.state().disputes_of(&cell.id).filter(|(_, dispute)| dispute.is_open());
            open.map(|(job, dispute)| (job, dispute.stage(tick) == Stage::Due)).collect::<Vec<_>>()
        })?;
        actions.extend(
            disputes.iter().filter(|(_, is_due)| *is_due).map(|(job, _)| Action::Decide { job: *job }),
        );
        if deal.can_be_settled(ticks, unix_now_s()) && disputes.is_empty() {
            actions.push(Action::Settle { deal: cell.id });
        }
        for taken in self.wallet.send_all(actions).await {
            match taken {
                // The provider was faster.
                Err(SubmitError::NotTaken(refused))
                    if matches!(
                        refused.code.as_str(),
                        "no_such_deal" | "not_due" | "stale_head" | "no_such_challenge"
                    ) => {}
                taken => drop(taken?),
            }
        }
        Ok(())
    }

    fn forget(&self, cell: &Cell) -> Result<(), DealError> {
        let mut batch = Batch::default();
        for member in sets::all(&self.meta, cell.id)? {
            batch.delete(Table::Sets, &sets::key(cell.id, &member.root));
        }
        self.meta.commit(batch.delete(Table::Deals, &record_key(cell.id)))?;
        self.cells.lock().expect("no holder panics").remove(&(cell.node, cell.id));
        Ok(())
    }

    /// How all deals stand, and how their audits went.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn standings(&self) -> Result<Vec<(Standing, AuditState)>, ChainError> {
        let mut standings = Vec::new();
        for cell in self.cells() {
            let Some(on_ledger) = self.on_ledger(cell.id)? else { continue };
            let mut tab = cell.lock().tab.clone();
            tab.follow(&on_ledger);
            let standing = Standing::of(cell.id, on_ledger, tab, self.period(), self.period_s());
            standings.push((standing, cell.audit.lock().expect("no holder panics").clone()));
        }
        Ok(standings)
    }

    /// Whether a deal's head covers `root`.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn covers(&self, cell: &Cell, root: &Root) -> Result<bool, MetaError> {
        self.meta.has(Table::Sets, &sets::key(cell.id, root))
    }

    /// Evidence of a read of `root` that a provider signed, if its newest head covers that.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn evidence(
        &self,
        cell: &Cell,
        root: &Root,
        read: SignedRead,
    ) -> Result<Option<Evidence>, MetaError> {
        let members = sets::all(&self.meta, cell.id)?;
        let position =
            members.iter().take_while(|member| member.root < *root).map(|member| member.bytes).sum();
        let Some(head) = cell.lock().head.clone() else { return Ok(None) };
        let proof = SumTree::new(members).ok().and_then(|set| set.prove(position));
        let Some(member) = proof.filter(|proof| proof.member.root == *root) else { return Ok(None) };
        let (network, node) = (self.network, cell.node);
        let evidence = Evidence::WrongBytes { network, node, head, position, member, read };
        Ok(evidence.check(network).is_ok().then_some(evidence))
    }

    /// A shard under a deal's head, and a place in it, drawn so that each byte is as likely.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn draw(&self, cell: &Cell) -> Result<Option<(Member, u64)>, MetaError> {
        let members = sets::all(&self.meta, cell.id)?;
        let total = members.iter().map(|m| m.bytes).sum();
        let Some(mut position) = spare_proofs::draw::positions(&rand::random(), total, 1).pop() else {
            return Ok(None);
        };
        for member in members {
            if position < member.bytes {
                return Ok(Some((member, position)));
            }
            position -= member.bytes;
        }
        Ok(None)
    }
}

//! The client's side of deals: opening and funding them, having heads countersigned, promising payment.
//!
//! ```text
//! ensure:    terms -> Open on the ledger, or a top-up, so that what is to be stored is funded beyond the locked grace
//! exchange:  compute the set -> propose (one synced write) -> send -> countersigned -> note
//! pay:       tab -> voucher -> note -> send
//! ```
//!
//! **Goals.** Never two heads of one number: a number is durable before its head is signed, and a refused head's number is not used again. A
//! proposal whose answer was lost is sent again as the same bytes. One exchange at a time in each deal.
//! **Non-goals.** Choosing providers; that is `put`'s.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, StorageDue, StoragePrice};
use spare_market::deal::{Deal, DealId, Funding, GRACE_PERIODS, Status, TERMS_LIFE_MAX_S, Terms, TermsV1};
use spare_market::genesis::Genesis;
use spare_market::head::{AnchoredHead, FullHead, HEAD_PERIODS_MAX, Head, HeadV1, head_hash};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signable, Signed, SignedBytes, SignedError};
use spare_market::tab::{READ_STEP_BYTES, Tab, TabError};
use spare_market::tx::Action;
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::encode::from_bytes;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::time::timeout;

use crate::chain::{Chain, ChainError};
use crate::crash;
use crate::frames::{DealState, RefusalCode};
use crate::home::Identity;
use crate::limits::{HEAD_CHANGES_MAX, SET_PAGE_MAX, STALL_TIMEOUT};
use crate::market::{NotTaken, SubmitError, Wallet};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::peers::{PeerError, Peers};
use crate::sets;
use crate::unix_now_s;

const KEY_PREFIX: &[u8] = b"client ";
const TAKES_OVER_KEY: &[u8] = b"takes over deals";
/// A deal's escrow is made to last for this many bytes at least, so that storing little things does not top up again and again. But only
/// where that is a small part of the money there is: one of [`FUND_GENEROUSLY`].
const FUND_BYTES_MIN: u64 = 256 << 20;
const FUND_GENEROUSLY: u128 = 20;
/// Unpaid bytes read after which a voucher is sent without waiting for the period to end.
const PAY_READS_BYTES: u64 = READ_STEP_BYTES / 8;
/// Of what was read, the part that may be counted by the provider alone is one of this many, beside a step.
const READS_TRUSTED: u64 = 16;
/// Of a deal's escrow, the part that a provider may claim without proof from a client that lost its records is one of this many.
const ADOPT_TOLERANCE: u128 = 10;
/// Times that an exchange takes a deal over from another node of this account that goes on with it.
const TAKE_OVERS_MAX: u32 = 2;
/// Longest time for fetching what a provider has of a deal.
const ADOPT_WITHIN: Duration = Duration::from_secs(60);
/// Heads that are exchanged at once, each with another provider.
const EXCHANGES_AT_ONCE: usize = 32;
/// Most shards that are taken over from a provider's word about a deal.
const ADOPT_SHARDS_MAX: usize = 1 << 20;

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
}

impl Record {
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
    /// Bad ones since the last good one, and why the last one was bad.
    pub failing: Option<(u32, String)>,
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

    /// The newest head that both sides signed.
    pub fn head(&self) -> Option<AnchoredHead> {
        self.lock().tab.head().copied()
    }
}

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

/// What a provider has of a deal.
struct Theirs {
    state: DealState,
    members: Vec<Member>,
}

/// What a voucher is to pay for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pay {
    /// Reading alone: storage is paid for after a good audit.
    Reads,
    /// Reading, and storage in all periods that are over.
    All,
}

/// What is to change under a deal's head.
#[derive(Debug, Clone, Default)]
pub struct HeadChange {
    /// Shards to be covered.
    pub add: Vec<Member>,
    /// Shards to be covered no more, and so to be deleted.
    pub remove: Vec<Root>,
}

/// A deal as it is reported.
#[derive(Debug, Clone)]
pub struct Bought {
    /// The deal.
    pub id: DealId,
    /// What was agreed.
    pub terms: TermsV1,
    /// The deal on the ledger.
    pub on_ledger: Deal,
    /// The newest head.
    pub head: Option<AnchoredHead>,
    /// Bytes of all shards under it.
    pub bytes: u64,
    /// Cost of a period under it.
    pub rate: StorageDue,
    /// Promised so far.
    pub promised: Amount,
    /// How long the escrow lasts.
    pub funding: Funding,
    /// How audits went.
    pub audit: AuditState,
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
    cells: Mutex<BTreeMap<(PublicKey, DealId), Arc<Cell>>>,
    /// Held while deals are opened or topped up.
    opening: tokio::sync::Mutex<()>,
    /// Deals that are being taken over.
    adopting: Mutex<HashSet<DealId>>,
}

fn record_key(id: DealId) -> Vec<u8> {
    [KEY_PREFIX, &id.0].concat()
}

/// What a deal needs before more can be stored under it.
enum Need {
    Nothing(DealId),
    TopUp(Arc<Cell>, Amounts),
    Open(Box<Signed<Terms>>, Amounts),
}

/// What may be put aside, from what is best to what will just do.
#[derive(Clone, Copy)]
struct Amounts {
    /// For more than is stored, so that the next little thing needs nothing.
    generous: Amount,
    /// For what is to be stored, for the time that is paid for in advance.
    wanted: Amount,
    /// For what is stored now, and a moment.
    least: Amount,
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
            cells: Mutex::new(cells),
            opening: tokio::sync::Mutex::default(),
            adopting: Mutex::default(),
        })
    }

    /// The running period.
    pub fn period(&self) -> u64 {
        self.genesis.period_at(unix_now_s())
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

    /// Makes sure that a shard of `shard_bytes` more is funded at each of `nodes`: opens deals, and tops up others. An escrow is made to last
    /// for `expect_bytes` more, if there is money for that. Says of each node which deal to store under.
    ///
    /// # Errors
    /// [`DealError::Funds`], or the ledger cannot be used.
    pub async fn ensure(
        &self,
        nodes: &[PublicKey],
        shard_bytes: u64,
        expect_bytes: u64,
        price_max: StoragePrice,
    ) -> Result<Vec<Result<DealId, DealError>>, DealError> {
        let _opening = self.opening.lock().await;
        let needs = nodes.iter().map(async |node| {
            let needed = timeout(STALL_TIMEOUT, self.need(*node, shard_bytes, expect_bytes, price_max)).await;
            needed.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))
        });
        let needs: Vec<Result<Need, DealError>> = futures::future::join_all(needs).await;
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let sum = |level: fn(&Amounts) -> Amount| {
            let amount = |need: &Need| match need {
                Need::Nothing(_) => 0,
                Need::TopUp(_, amounts) | Need::Open(_, amounts) => level(amounts).0,
            };
            needs.iter().flatten().map(amount).sum::<u128>()
        };
        let level: fn(&Amounts) -> Amount = match () {
            () if sum(|a| a.generous) <= free.0 / FUND_GENEROUSLY => |a| a.generous,
            () if sum(|a| a.wanted) <= free.0 => |a| a.wanted,
            () if sum(|a| a.least) <= free.0 => |a| a.least,
            () => return Err(DealError::Funds { needed: Amount(sum(|a| a.least)), free }),
        };
        let action = |need: &Need| match need {
            Need::Nothing(_) => None,
            Need::TopUp(cell, amounts) => Some(Action::TopUp { deal: cell.id, amount: level(amounts) }),
            Need::Open(terms, amounts) => {
                Some(Action::Open { terms: terms.raw().clone(), escrow: level(amounts) })
            }
        };
        let actions: Vec<Action> = needs.iter().flatten().filter_map(action).collect();
        let mut outcomes = self.wallet.send_all(actions).await.into_iter();
        let outcome = |need: Result<Need, DealError>| {
            let cell = match need? {
                Need::Nothing(id) => return Ok(id),
                Need::TopUp(cell, _) => {
                    outcomes.next().expect("each action has an outcome")?;
                    cell
                }
                Need::Open(terms, _) => {
                    outcomes.next().expect("each action has an outcome")?;
                    let v1 = terms.value().v1().clone();
                    let cell = Cell::new(terms.value().deal_id(), Record::new(v1));
                    let record = cell.lock().clone();
                    self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &record))?;
                    self.keep(&cell);
                    cell
                }
            };
            cell.uncovered_bytes.fetch_add(shard_bytes, Ordering::Relaxed);
            Ok(cell.id)
        };
        Ok(needs.into_iter().map(outcome).collect())
    }

    async fn need(
        &self,
        node: PublicKey,
        shard_bytes: u64,
        expect_bytes: u64,
        price_max: StoragePrice,
    ) -> Result<Need, DealError> {
        if let Some((cell, deal)) = self.live_or_adopted(&node).await? {
            let uncovered = cell.uncovered_bytes.load(Ordering::Relaxed);
            let record = cell.lock();
            if record.terms.price > price_max {
                return Err(DealError::Terms);
            }
            let funding = |extra| {
                let tab = &record.tab;
                tab.funding(&record.terms, deal.escrow, deal.paid, self.period(), extra, self.period_s())
            };
            let extra = uncovered.saturating_add(shard_bytes);
            if funding(extra).periods > 0 {
                drop(record);
                cell.uncovered_bytes.fetch_add(shard_bytes, Ordering::Relaxed);
                return Ok(Need::Nothing(cell.id));
            }
            let bytes = record.tab.bytes().saturating_add(extra);
            let owed = record.tab.owed(&record.terms, self.period()).unwrap_or(Amount::ZERO);
            let left = deal.escrow.saturating_sub(owed.saturating_sub(deal.paid));
            let amounts = self.amounts(&record.terms, bytes, bytes.saturating_add(expect_bytes), left);
            drop(record);
            return Ok(Need::TopUp(cell, amounts));
        }
        let offered = self.peers.book.get(&node);
        let terms = self.peers.with_session(&node, async |session| session.terms().await).await?;
        let terms = terms.check::<Terms>(self.network)?;
        let v1 = terms.value().v1();
        let is_meant = terms.signer() == node && v1.node == node && v1.client == self.account;
        let is_as_asked =
            offered.is_some_and(|p| v1.price <= p.ask.price && v1.read_price <= p.ask.read_price);
        if !is_meant || !is_as_asked || v1.price > price_max || v1.collateral > Amount::ZERO {
            return Err(DealError::Terms);
        }
        let amounts = self.amounts(v1, shard_bytes, shard_bytes.max(expect_bytes), Amount::ZERO);
        Ok(Need::Open(Box::new(terms), amounts))
    }

    /// What may be put aside beside `left` for `bytes` that are stored now, of `expected` in all.
    fn amounts(&self, terms: &TermsV1, bytes: u64, expected: u64, left: Amount) -> Amounts {
        let periods = self.fund_periods();
        let more = |periods, bytes| {
            let more = self.cost(terms, periods, bytes).saturating_sub(left);
            // A free deal costs nothing; any other needs something, since it lacks something.
            Amount(more.0.max(u128::from(left > Amount::ZERO)))
        };
        Amounts {
            generous: more(periods, (expected + expected / 2).max(FUND_BYTES_MIN)),
            wanted: more(periods, expected),
            least: more(2, bytes),
        }
    }

    fn fund_periods(&self) -> u64 {
        (self.fund_s / u64::from(self.period_s())).max(2)
    }

    /// What it costs to store `bytes` for `periods` and the grace, and to read them once.
    fn cost(&self, terms: &TermsV1, periods: u64, bytes: u64) -> Amount {
        let rate = StorageDue::of(terms.price, bytes, self.period_s().into());
        let due = rate.and_then(|rate| rate.checked_mul(periods + GRACE_PERIODS)).map(StorageDue::floor);
        let due = due.unwrap_or(spare_market::amount::SUPPLY_MAX);
        // Rounding must not leave it one unit short.
        let margin = Amount(u128::from(terms.price > StoragePrice(0)));
        [terms.read_price.cost(bytes), margin]
            .into_iter()
            .fold(due, |sum, more| sum.checked_add(more).unwrap_or(sum))
    }

    /// The open deal with `node`. One that another node of this account made is taken over.
    async fn live_or_adopted(&self, node: &PublicKey) -> Result<Option<(Arc<Cell>, Deal)>, DealError> {
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
    fn foreign(&self, of_others: bool) -> Result<Vec<(DealId, PublicKey)>, ChainError> {
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

    /// From now on, also over restarts, this node looks after the deals that other nodes of its account made: it was recovered from a seed.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn take_over_from_now_on(&self) -> Result<(), MetaError> {
        self.meta.commit(Batch::default().put(Table::State, TAKES_OVER_KEY, &true))
    }

    /// Takes over deals that other nodes of this account made, if this node does that, and those of its own that it did not come to note.
    /// Providers that are away keep theirs for later.
    ///
    /// # Errors
    /// When the local records or the ledger cannot be used.
    pub async fn take_over_foreign(&self) -> Result<(), DealError> {
        let takes_over = self.meta.get(Table::State, TAKES_OVER_KEY)? == Some(true);
        // What is being opened just now is not foreign.
        let foreign = {
            let _opening = self.opening.lock().await;
            self.foreign(takes_over)?
        };
        futures::stream::iter(foreign)
            .for_each_concurrent(EXCHANGES_AT_ONCE, async |(id, node)| match self.adopt(id).await {
                Ok(()) => tracing::info!(%node, deal = %id, "a deal is taken over"),
                Err(error) => tracing::info!(%node, deal = %id, %error, "a deal could not be taken over"),
            })
            .await;
        Ok(())
    }

    async fn adopt(&self, id: DealId) -> Result<(), DealError> {
        if !self.adopting.lock().expect("no holder panics").insert(id) {
            return Err(DealError::State("it is being taken over just now"));
        }
        let adopted = timeout(ADOPT_WITHIN, self.adopt_alone(id)).await;
        self.adopting.lock().expect("no holder panics").remove(&id);
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
    async fn take_over(&self, cell: &Cell) -> Result<(), DealError> {
        let deal = self.on_ledger(cell.id)?.ok_or(DealError::NoDeal)?;
        let fetching = timeout(ADOPT_WITHIN, self.fetch(cell, &deal));
        let theirs = fetching.await.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))?;
        let is_newer = {
            let record = cell.lock();
            let seq = |tab: &Tab| tab.head().map_or(0, |h| h.head.seq);
            let total = |tab: &Tab| tab.promised().map_or(Amount::ZERO, |v| v.total);
            let (ours, theirs) = (&record.tab, &theirs.state.tab);
            seq(theirs) > seq(ours) || (seq(theirs) == seq(ours) && total(theirs) > total(ours))
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
        tab.check_plausible(&deal.terms, began, self.period(), self.period_s(), tolerance)?;
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
        Ok(())
    }

    /// Gives up a shard of `shard_bytes` that [`Self::ensure`] made sure of.
    pub fn give_up(&self, node: &PublicKey, shard_bytes: u64) {
        for cell in self.of_node(node) {
            cell.subtract_uncovered(shard_bytes);
        }
    }

    /// The deal with `node` whose head covers `root`, if any.
    ///
    /// # Errors
    /// When the local records fail.
    pub fn covering(&self, node: &PublicKey, root: &Root) -> Result<Option<Arc<Cell>>, MetaError> {
        for cell in self.of_node(node) {
            if self.meta.has(Table::Sets, &sets::key(cell.id, root))? {
                return Ok(Some(cell));
            }
        }
        Ok(None)
    }

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
            Err(DealError::Peer(PeerError::Refused(refusal))) => {
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
            Err(error @ PeerError::Refused(_)) => {
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
        let mut record = cell.lock();
        let mut next = record.clone();
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
        self.send(cell).await
    }

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
        let is_due =
            matches!(&result, Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::PaymentDue);
        if is_due && self.pay(cell, Pay::Reads).await.is_ok() {
            let _counting = count();
            result = self.peers.read(node, root, shard_bytes, range, received).await;
        }
        let unpaid = cell.read_bytes.load(Ordering::Relaxed) + cell.lock().tab.unpaid_read_bytes();
        if unpaid >= PAY_READS_BYTES && cell.turn.try_lock().is_ok() {
            let (deals, cell) = (self.clone(), cell.clone());
            tokio::spawn(async move {
                if let Err(error) = deals.pay(&cell, Pay::Reads).await {
                    tracing::debug!(node = %cell.node, %error, "a voucher was not taken");
                }
            });
        }
        result
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
                Ok(()) if has_all && what == Pay::Reads && !is_last_try => {
                    // The provider wants payment, and by what is known here it has it: it has counted more.
                    self.reconcile_reads(cell).await?;
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
                RefusalCode::BadVoucher => self.reconcile_reads(cell).await?,
                _ => return Err(PeerError::Refused(refusal).into()),
            }
        }
        Ok(())
    }

    /// Takes the provider's count of bytes read, if it is a little higher than this node's: what was under way when a connection broke, or
    /// this node was killed, is counted there alone.
    async fn reconcile_reads(&self, cell: &Cell) -> Result<(), DealError> {
        let id = cell.id;
        let state = self.peers.with_session(&cell.node, async |session| session.deal_state(id).await).await?;
        let mut record = cell.lock();
        let (ours, theirs) = (record.tab.read_bytes(), state.tab.read_bytes());
        let missed = theirs.saturating_sub(ours);
        let most = READ_STEP_BYTES + ours / READS_TRUSTED;
        if record.reconciled_bytes.saturating_add(missed) > most {
            return Err(DealError::State("it counts far more bytes read than arrived here"));
        }
        let mut next = record.clone();
        next.tab.add_read(missed);
        next.reconciled_bytes += missed;
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
        next.tab.add_read(cell.read_bytes.swap(0, Ordering::Relaxed));
        let sign = |v: VoucherV1| Signed::new(Voucher::V1(v), self.network, &self.node_key).raw().clone();
        let before = match what {
            Pay::Reads => next.tab.promised_before(),
            Pay::All => period.max(next.tab.promised_before()),
        };
        if let Some(voucher) = next.tab.next_voucher(cell.id, &next.terms, deal.epoch, before)? {
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

    /// Tops up deals whose money does not last for half the time that is paid for in advance. Says what is missing.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn top_up(&self, cells: &[Arc<Cell>]) -> Result<(), DealError> {
        let _opening = self.opening.lock().await;
        let mut due = Vec::new();
        let half = self.fund_periods() / 2;
        for cell in cells {
            let Some(deal) = self.on_ledger(cell.id)?.filter(|deal| deal.status == Status::Open) else {
                continue;
            };
            let record = cell.lock();
            let (tab, terms) = (&record.tab, &record.terms);
            let funding = tab.funding(terms, deal.escrow, deal.paid, self.period(), 0, self.period_s());
            if funding.periods >= half || tab.bytes() == 0 {
                continue;
            }
            let owed = tab.owed(terms, self.period()).unwrap_or(Amount::ZERO);
            let left = deal.escrow.saturating_sub(owed.saturating_sub(deal.paid));
            let amount = self.cost(terms, self.fund_periods(), tab.bytes()).saturating_sub(left);
            if amount > Amount::ZERO {
                due.push((funding.periods, cell.id, amount));
            }
        }
        // Those that run dry first come first. When the money does not go round, each gets a share.
        due.sort_unstable();
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let (mut left, mut actions) = (free, Vec::new());
        for (i, (_, deal, amount)) in due.iter().enumerate() {
            let share = Amount(left.0 / (due.len() - i) as u128).min(*amount);
            if share > Amount::ZERO {
                left = left.saturating_sub(share);
                actions.push(Action::TopUp { deal: *deal, amount: share });
            }
        }
        let needed = Amount(due.iter().map(|(_, _, amount)| amount.0).sum());
        for taken in self.wallet.send_all(actions).await {
            taken?;
        }
        if needed > free { Err(DealError::Funds { needed, free }) } else { Ok(()) }
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
        let newest = record.tab.head()?.head.seq;
        record.head.clone().filter(|_| newest > deal.head.map_or(0, |head| head.head.seq))
    }

    /// What a closing deal calls for: the newest head if the ledger has an older one, and settling when its time is over. Forgets deals that
    /// are over.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn wind_up(&self, cell: &Cell) -> Result<(), DealError> {
        let Some(deal) = self.on_ledger(cell.id)? else { return self.forget(cell) };
        let Status::Closing { since_tick } = deal.status else { return Ok(()) };
        let mut actions: Vec<Action> =
            self.unanchored(cell, &deal).into_iter().map(|head| Action::Anchor { head }).collect();
        let ticks = self.chain.view(|l| l.state().totals().ticks)?;
        let is_over = ticks >= since_tick + spare_market::deal::CLOSING_PERIODS;
        if is_over && unix_now_s() > deal.terms.expires_s {
            actions.push(Action::Settle { deal: cell.id });
        }
        for taken in self.wallet.send_all(actions).await {
            match taken {
                // The provider was faster.
                Err(SubmitError::NotTaken(refused))
                    if matches!(refused.code.as_str(), "no_such_deal" | "not_due" | "stale_head") => {}
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

    /// All deals, as they are reported.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn bought(&self) -> Result<Vec<Bought>, ChainError> {
        let mut bought = Vec::new();
        for cell in self.cells() {
            let Some(on_ledger) = self.on_ledger(cell.id)? else { continue };
            let record = cell.lock().clone();
            let (tab, terms) = (&record.tab, &record.terms);
            let (escrow, paid) = (on_ledger.escrow, on_ledger.paid);
            bought.push(Bought {
                id: cell.id,
                head: tab.head().copied(),
                bytes: tab.bytes(),
                rate: tab.rate(),
                promised: tab.promised().map_or(Amount::ZERO, |v| v.total),
                funding: tab.funding(terms, escrow, paid, self.period(), 0, self.period_s()),
                audit: cell.audit.lock().expect("no holder panics").clone(),
                on_ledger,
                terms: record.terms,
            });
        }
        Ok(bought)
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

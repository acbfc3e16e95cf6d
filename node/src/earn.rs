//! Earn: the provider's side of deals. Terms -> head -> voucher -> redeem, and what it holds for whom meanwhile.
//!
//! **Participants.** A client asks for terms, opens the deal on the ledger, stores shards, and has heads countersigned and vouchers taken.
//! The ledger pays what vouchers promise.
//!
//! **Goals.** What is countersigned is durable first. A repeated head gets the same bytes back. Nothing is deleted that a head covers. Nobody is
//! served beyond what is funded: a deal's escrow has to outlast a locked grace under all that is stored for it.
//! Who gets no voucher claims on the ledger.
//! **Non-goals.** Judging why no voucher came.
//!
//! Everything here blocks, for the metadata store and at times for the disk.

mod claims;
mod custody;
mod jobs;
mod look;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, ReadPrice, StoragePrice};
use spare_market::deal::{Deal, DealId, Funding, Status, TERMS_LIFE_MAX_S, Terms, TermsV1};
use spare_market::genesis::Genesis;
use spare_market::head::{AnchoredHead, FullHead, Head, HeadError};
use spare_market::job::ComputePrices;
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::tab::{READ_STEP_BYTES, Standing, Tab, TabError};
use spare_market::voucher::{AHEAD_MAX, Voucher, VoucherError};
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::chain::{Chain, ChainError};
use crate::crash;
use crate::frames::{DealState, Notice, Refusal, RefusalCode};
use crate::limits::{DEAL_WAIT, DEALS_PER_CLIENT_MAX, HEAD_CHANGES_MAX, NOTICE_WHY_MAX_BYTES, SET_PAGE_MAX};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::sets;
use crate::shards::{Fresh, ShardError, Volume};
use crate::unix_now_s;

/// How long signed terms can be taken up, in seconds.
const TERMS_LIFE_S: u64 = TERMS_LIFE_MAX_S / 2;

/// How long a refusal waits for a block that may change it.
const BLOCK_MOMENT: Duration = Duration::from_secs(1);
const KEY_PREFIX: &[u8] = b"provider ";

/// A deal as its provider keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    terms: TermsV1,
    tab: Tab,
    head: Option<FullHead>,
    /// The newest voucher on the tab.
    voucher: Option<SignedBytes>,
    /// Vouchers for periods that are not over, earliest first.
    ahead: Vec<SignedBytes>,
    /// The period in which a voucher was last put on the ledger.
    redeemed_in: u64,
    /// Numbers of heads on the ledger whose sets are kept.
    anchored: Vec<u64>,
    /// Whether a head that is not on the ledger removed shards, which can go once it is.
    is_releasing: bool,
    /// The period in which it was last tried to start claims, and how often.
    tried_claims: (u64, u32),
    /// While claims go on: the last period that was over when its voucher came, and for how many in a row that was so.
    kept_up: (u64, u64),
}

/// A deal and whose it is.
struct Cell {
    client: PublicKey,
    record: Mutex<Record>,
    /// Bytes of reads under way, which go on the tab when they end.
    reading_bytes: AtomicU64,
}

impl Cell {
    fn new(record: Record) -> Arc<Self> {
        let (client, reading_bytes) = (record.terms.client, AtomicU64::new(0));
        Arc::new(Self { client, record: Mutex::new(record), reading_bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }
}

/// Why deals cannot be opened or looked after.
#[derive(Debug, thiserror::Error)]
pub enum EarnError {
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Shards could not be deleted.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// Under what a provider makes new deals, and claims under old ones.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Price of storage.
    pub price: StoragePrice,
    /// Price of reading.
    pub read_price: ReadPrice,
    /// Prices of jobs, if any are run.
    pub compute: Option<ComputePrices>,
    /// What is pledged for a new deal, as far as there is money.
    pub collateral: Amount,
    /// Periods without a voucher after which claims on the ledger begin; 0 for never.
    pub claim_after_periods: u64,
}

/// The deals of which this node is the provider.
pub struct Earner {
    network: NetworkId,
    genesis: Genesis,
    account: PublicKey,
    node_key: SigningSecret,
    prices: (StoragePrice, ReadPrice, Option<ComputePrices>),
    collateral: Amount,
    /// Periods without a voucher after which claims begin; 0 for never.
    claim_after_periods: u64,
    /// The tick for which a claim was last tried, and when.
    claim_tried: Mutex<Option<(u64, Instant)>>,
    meta: Arc<Meta>,
    chain: Arc<Chain>,
    volume: Arc<Volume>,
    deals: Mutex<BTreeMap<DealId, Arc<Cell>>>,
    /// Bytes of shards that no head covers, by owner.
    fresh_bytes: Mutex<HashMap<PublicKey, u64>>,
    /// There is something to tell the ledger without delay.
    wake: Notify,
    /// How many vouchers were taken.
    paid: watch::Sender<u64>,
    /// Held while heads of an owner are countersigned or its shards deleted; owners share these.
    owners: Vec<Mutex<()>>,
}

fn record_key(id: DealId) -> Vec<u8> {
    [KEY_PREFIX, &id.0].concat()
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a deal's records failed");
    Refusal::new(RefusalCode::Unavailable, error.to_string())
}

/// A node that just put its money in may be a block ahead of the ledger here.
fn not_a_signer() -> Refusal {
    Refusal::new(RefusalCode::Unfunded, "it is not signed by a node that funded this deal")
}

fn no_deal(why: &str) -> Refusal {
    Refusal::new(RefusalCode::NoDeal, why)
}

fn refused(error: TabError) -> Refusal {
    let code = match error {
        TabError::Head(HeadError::Stale { .. }) => RefusalCode::StaleHead,
        TabError::Head(HeadError::Forked { .. }) => RefusalCode::ForkedHead,
        TabError::Head(_) | TabError::Price | TabError::Meter(_) | TabError::Implausible => {
            RefusalCode::BadHead
        }
        TabError::Voucher(VoucherError::NotHigher { .. } | VoucherError::Backwards) => {
            RefusalCode::StaleVoucher
        }
        TabError::Voucher(_)
        | TabError::Short { .. }
        | TabError::Skipped
        | TabError::Jobs { .. }
        | TabError::Job
        | TabError::ManyJobs
        | TabError::Reads { .. } => RefusalCode::BadVoucher,
    };
    Refusal::new(code, error.to_string())
}

impl Earner {
    /// The deals in `meta`, at the node with `node_key` of `account`, which makes new deals under `offer`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn open(
        account: PublicKey,
        node_key: SigningSecret,
        offer: Offer,
        meta: Arc<Meta>,
        chain: Arc<Chain>,
        volume: Arc<Volume>,
    ) -> Result<Self, EarnError> {
        let (network, genesis) = chain.view(|l| (l.network(), l.genesis().clone()))?;
        let mut deals = BTreeMap::new();
        for (rest, record) in meta.all::<Record>(Table::Deals, KEY_PREFIX)? {
            if let Ok(id) = rest.as_slice().try_into() {
                deals.insert(DealId(id), Cell::new(record));
            }
        }
        let mut fresh_bytes = HashMap::new();
        for (key, Fresh::V1 { shard_bytes, .. }) in meta.all::<Fresh>(Table::Fresh, b"")? {
            if let Some((owner, _)) = sets::split_shard_key(&key) {
                *fresh_bytes.entry(owner).or_default() += shard_bytes;
            }
        }
        Ok(Self {
            network,
            genesis,
            account,
            node_key,
            prices: (offer.price, offer.read_price, offer.compute),
            collateral: offer.collateral,
            claim_after_periods: offer.claim_after_periods,
            claim_tried: Mutex::default(),
            meta,
            chain,
            volume,
            deals: Mutex::new(deals),
            fresh_bytes: Mutex::new(fresh_bytes),
            wake: Notify::new(),
            paid: watch::Sender::new(0),
            owners: (0..64).map(|_| Mutex::default()).collect(),
        })
    }

    /// Changes when a voucher was taken.
    pub fn paid(&self) -> watch::Receiver<u64> {
        self.paid.subscribe()
    }

    /// Where the shards are.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    fn period(&self) -> u64 {
        self.genesis.period_at(unix_now_s())
    }

    fn period_s(&self) -> u32 {
        self.genesis.v1().period_s
    }

    fn owner_lock(&self, owner: &PublicKey) -> MutexGuard<'_, ()> {
        let byte = owner.to_bytes()[1];
        self.owners[usize::from(byte) % self.owners.len()].lock().expect("no holder panics")
    }

    fn all(&self) -> BTreeMap<DealId, Arc<Cell>> {
        self.deals.lock().expect("no holder panics").clone()
    }

    /// The deals of `owner` that this node keeps.
    fn of_owner(&self, owner: &PublicKey) -> Vec<(DealId, Arc<Cell>)> {
        let deals = self.deals.lock().expect("no holder panics");
        deals.iter().filter(|(_, cell)| cell.client == *owner).map(|(id, cell)| (*id, cell.clone())).collect()
    }

    fn on_ledger(&self, id: DealId) -> Result<Option<Deal>, ChainError> {
        self.chain.view(|l| l.state().deal(&id).cloned())
    }

    /// Terms that the account `client` can take up.
    pub fn terms(&self, client: PublicKey) -> Signed<Terms> {
        let (price, read_price, compute) = self.prices;
        let free = self.chain.view(|l| l.state().account(&self.account).free);
        let terms = TermsV1 {
            client,
            provider: self.account,
            node: self.node_key.public(),
            price,
            read_price,
            compute,
            // Half of what is there, so that strangers who open deals do not lock up all of it.
            collateral: self.collateral.min(Amount(free.unwrap_or_default().0 / 2)),
            expires_s: unix_now_s() + TERMS_LIFE_S,
            salt: rand::random(),
        };
        Signed::new(Terms::V1(terms), self.network, &self.node_key)
    }

    /// Waits until the ledger here knows a deal that the asker says is on it.
    pub async fn await_deal(&self, id: DealId) {
        let mut height = self.chain.height();
        let known =
            async { while matches!(self.on_ledger(id), Ok(None)) && height.changed().await.is_ok() {} };
        let _ = timeout(DEAL_WAIT, known).await;
    }

    /// The deal `id` of the account `owner` with this node, with what the ledger says of it.
    fn deal(&self, owner: &PublicKey, id: DealId) -> Result<(Arc<Cell>, Deal), Refusal> {
        let deal = self
            .on_ledger(id)
            .map_err(internal)?
            .ok_or_else(|| no_deal("there is no such deal on the ledger"))?;
        if deal.terms.client != *owner || deal.terms.node != self.node_key.public() {
            return Err(no_deal("the deal is not between the two of us"));
        }
        let mut deals = self.deals.lock().expect("no holder panics");
        if let Some(cell) = deals.get(&id).cloned() {
            // A record is never waited for while all deals are locked.
            drop(deals);
            cell.lock().follow(&deal);
            return Ok((cell, deal));
        }
        let of_owner = deals.values().filter(|cell| cell.client == *owner);
        if of_owner.count() >= DEALS_PER_CLIENT_MAX {
            return Err(Refusal::new(
                RefusalCode::TooLarge,
                format!("a client has at most {DEALS_PER_CLIENT_MAX} deals"),
            ));
        }
        let record = Record {
            terms: deal.terms.clone(),
            tab: Tab::default(),
            head: None,
            voucher: None,
            ahead: Vec::new(),
            redeemed_in: self.period(),
            anchored: Vec::new(),
            is_releasing: false,
            tried_claims: (0, 0),
            kept_up: (0, 0),
        };
        self.meta.note(Batch::default().put(Table::Deals, &record_key(id), &record)).map_err(internal)?;
        let cell = Cell::new(record);
        deals.insert(id, cell.clone());
        Ok((cell, deal))
    }

    fn open_deal(&self, owner: &PublicKey, id: DealId) -> Result<(Arc<Cell>, Deal), Refusal> {
        let (record, deal) = self.deal(owner, id)?;
        if deal.status != Status::Open {
            return Err(no_deal("the deal is closing"));
        }
        Ok((record, deal))
    }

    /// Checks that a further shard of `owner` is paid for under a deal.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn admit(&self, owner: &PublicKey, id: DealId, shard_bytes: u64) -> Result<(), Refusal> {
        let (record, deal) = self.open_deal(owner, id)?;
        let record = record.lock();
        let fresh = self.fresh_bytes.lock().expect("no holder panics").get(owner).copied().unwrap_or(0);
        self.check_funded(&record, &deal, fresh.saturating_add(shard_bytes))
    }

    fn check_funded(&self, record: &Record, deal: &Deal, extra_bytes: u64) -> Result<(), Refusal> {
        let funding = self.funding(record, deal, extra_bytes);
        if !funding.in_grace {
            return Ok(());
        }
        let why = format!("the deal's escrow of {} credits does not last for it; top it up", deal.escrow);
        Err(Refusal::new(RefusalCode::Unfunded, why))
    }

    fn funding(&self, record: &Record, deal: &Deal, extra_bytes: u64) -> Funding {
        record.tab.funding(deal, self.period(), extra_bytes, self.period_s())
    }

    /// Countersigns the next head of a deal. What it removes is for [`Self::delete_soon`], or for the next sweep.
    ///
    /// # Errors
    /// The refusal to send; nothing has changed then.
    pub fn head(
        &self,
        owner: &PublicKey,
        raw: SignedBytes,
        add: &[Root],
        remove: &[Root],
    ) -> Result<FullHead, Refusal> {
        let bad = |why: String| Refusal::new(RefusalCode::BadHead, why);
        if add.len() > HEAD_CHANGES_MAX || remove.len() > HEAD_CHANGES_MAX {
            let why = format!("a head adds at most {HEAD_CHANGES_MAX} shards, and removes as many");
            return Err(Refusal::new(RefusalCode::TooLarge, why));
        }
        let signed = raw.check::<Head>(self.network).map_err(|e| bad(e.to_string()))?;
        let (id, head) = (signed.value().v1().deal, AnchoredHead::of(&signed));
        head.head.check_bounds().map_err(|e| refused(e.into()))?;
        let (cell, deal) = self.deal(owner, id)?;
        let mut record = cell.lock();
        if let Some(full) =
            record.head.as_ref().filter(|_| record.tab.head().is_some_and(|h| h.hash == head.hash))
        {
            return Ok(full.clone());
        }
        if deal.status != Status::Open {
            return Err(no_deal("the deal is closing"));
        }
        if !deal.signers.contains(&signed.signer()) {
            return Err(not_a_signer());
        }
        let now = self.period();
        if head.head.from.abs_diff(now) > 1 {
            return Err(bad(format!("it holds from period {}, and now is period {now}", head.head.from)));
        }
        let mut next = record.clone();
        let _owner = self.owner_lock(owner);
        let mut batch = Batch::default();
        self.keep_superseded(id, &deal, &mut next, &mut batch)?;
        next.tab.take_head(id, &record.terms, head, self.period_s()).map_err(refused)?;
        next.is_releasing |= !remove.is_empty();
        let changed = self.changed_set(owner, id, add, remove, &mut batch)?;
        let sum = sets::commitment(&self.meta, id, &changed.add, remove).map_err(internal)?;
        if sum.is_none_or(|sum| (sum.hash, sum.bytes) != (head.head.set_root, head.head.bytes)) {
            return Err(bad("it covers another set of shards than is known here".into()));
        }
        if next.tab.rate() > record.tab.rate() {
            self.check_funded(&next, &deal, 0)?;
        }
        // What the client could not read is not to be held any more.
        let notice: Option<Notice> = self.meta.get(Table::Notices, &id.0).map_err(internal)?;
        if notice.is_some_and(|notice| remove.contains(&notice.place.root)) {
            batch.delete(Table::Notices, &id.0);
        }
        let full = FullHead::countersign(signed.raw().clone(), self.network, &self.node_key);
        next.head = Some(full.clone());
        crash::point("provider before head");
        self.meta.commit(batch.put(Table::Deals, &record_key(id), &next)).map_err(internal)?;
        crash::point("provider after head");
        *record = next;
        self.no_longer_fresh(owner, changed.fresh_bytes);
        self.stored(owner, changed.released_bytes);
        Ok(full)
    }

    /// Takes vouchers of one deal.
    ///
    /// # Errors
    /// The refusal to send, for the first that does not hold.
    pub fn vouchers(&self, owner: &PublicKey, raws: Vec<SignedBytes>) -> Result<(), Refusal> {
        let bad = |why: String| Refusal::new(RefusalCode::BadVoucher, why);
        if raws.len() > AHEAD_MAX + 1 {
            let why = format!("at most {} vouchers at once", AHEAD_MAX + 1);
            return Err(Refusal::new(RefusalCode::TooLarge, why));
        }
        let mut ahead: Option<Vec<SignedBytes>> = None;
        let mut of_deal = None;
        for raw in raws {
            let signed = raw.check::<Voucher>(self.network).map_err(|e| bad(e.to_string()))?;
            let voucher = *signed.value().v1();
            if *of_deal.get_or_insert(voucher.deal) != voucher.deal {
                return Err(bad("vouchers of several deals are sent one deal at a time".into()));
            }
            let (cell, deal) = self.deal(owner, voucher.deal)?;
            if !deal.signers.contains(&signed.signer()) {
                return Err(not_a_signer());
            }
            let mut record = cell.lock();
            let is_over = voucher.paid_through.is_none_or(|through| through < self.period());
            if record.voucher.as_ref() == Some(signed.raw()) {
                continue;
            }
            let mut next = record.clone();
            if is_over {
                let now = self.period();
                let before = record.tab.promised_through();
                let absent = self.absent_periods(before, voucher.paid_through);
                match next.tab.take_voucher(voucher.deal, &record.terms, deal.epoch, voucher, now, absent) {
                    // Another node of the client was faster, or it was signed beforehand: what it promises is known.
                    Err(TabError::Voucher(VoucherError::NotHigher { total, known })) if total == known => {
                        continue;
                    }
                    taken => taken.map_err(refused)?,
                }
                next.voucher = Some(signed.raw().clone());
                next.note_kept_up(voucher.paid_through, now);
                if voucher.paid_through > before {
                    // What was wrong is mended.
                    let mut batch = Batch::default();
                    self.meta.note(batch.delete(Table::Notices, &voucher.deal.0)).map_err(internal)?;
                }
            } else {
                record.tab.check_covers(&record.terms, &voucher).map_err(refused)?;
                let ahead = ahead.get_or_insert_default();
                ahead.push(signed.raw().clone());
                next.ahead = ahead.clone();
            }
            crash::point("provider before voucher");
            let batch = &mut Batch::default();
            self.meta.note(batch.put(Table::Deals, &record_key(voucher.deal), &next)).map_err(internal)?;
            crash::point("provider after voucher");
            *record = next;
            self.paid.send_modify(|taken| *taken += 1);
        }
        Ok(())
    }

    /// The deal on which a read of `bytes` of a shard of `owner` is to be counted by [`Self::has_read`], unless too much is unpaid or the escrow
    /// does not have it.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn may_read(&self, owner: &PublicKey, root: &Root, bytes: u64) -> Result<Option<DealId>, Refusal> {
        let deals = self.of_owner(owner);
        let covering = deals
            .iter()
            .find(|(id, _)| matches!(self.meta.has(Table::Sets, &sets::key(*id, root)), Ok(true)));
        let Some((id, cell)) = covering.or(deals.last()) else { return Ok(None) };
        let Some(deal) = self.on_ledger(*id).map_err(internal)? else { return Ok(None) };
        let record = cell.lock();
        if record.terms.read_price == ReadPrice(0) {
            return Ok(None);
        }
        let reading = cell.reading_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let unpaid = record.tab.unpaid_read_bytes();
        if unpaid > 0 && unpaid.saturating_add(reading) > READ_STEP_BYTES {
            let why = format!("{unpaid} bytes were read and not paid for; send a voucher");
            return Err(Refusal::new(RefusalCode::PaymentDue, why));
        }
        let open = record.tab.open(&deal, self.period());
        if open.checked_add(record.terms.read_price.cost(reading)).is_none_or(|open| open > deal.escrow) {
            let why = format!("the deal's escrow of {} credits does not have it; top it up", deal.escrow);
            return Err(Refusal::new(RefusalCode::Unfunded, why));
        }
        cell.reading_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Some(*id))
    }

    /// Counts a read that ended: `sent_bytes` of the `bytes` that it was to be.
    pub fn has_read(&self, id: DealId, bytes: u64, sent_bytes: u64) {
        let cell = self.deals.lock().expect("no holder panics").get(&id).cloned();
        if let Some(cell) = cell {
            cell.reading_bytes.fetch_sub(bytes, Ordering::Relaxed);
            cell.lock().tab.add_read(sent_bytes);
        }
    }

    /// Waits for the ledger to grow, for a moment.
    pub async fn await_block(&self) {
        let _ = timeout(BLOCK_MOMENT, self.chain.height().changed()).await;
    }

    /// How a deal stands.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn state(&self, owner: &PublicKey, id: DealId) -> Result<DealState, Refusal> {
        let (record, _) = self.deal(owner, id)?;
        let record = record.lock().clone();
        Ok(DealState { head: record.head, voucher: record.voucher, tab: record.tab })
    }

    /// Keeps what a client says of its audits of a deal: the newest, until a voucher for storage comes.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn take_notice(&self, owner: &PublicKey, mut notice: Notice) -> Result<(), Refusal> {
        self.deal(owner, notice.deal)?;
        notice.why.truncate(notice.why.floor_char_boundary(NOTICE_WHY_MAX_BYTES));
        tracing::warn!(client = %owner, shard = %notice.place.root, why = notice.why, strikes_at_s = notice.strikes_at_s,
            "a client could not read what is stored here; nothing is paid meanwhile");
        self.meta.note(Batch::default().put(Table::Notices, &notice.deal.0, &notice)).map_err(internal)
    }

    /// What clients say of their audits, as far as it holds.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn notices(&self) -> Result<Vec<Notice>, MetaError> {
        let all = self.meta.all::<Notice>(Table::Notices, b"")?;
        Ok(all.into_iter().map(|(_, notice)| notice).collect())
    }

    /// A page of the shards under a deal's newest head, and whether there are more.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn set(
        &self,
        owner: &PublicKey,
        id: DealId,
        after: Option<Root>,
    ) -> Result<(Vec<Member>, bool), Refusal> {
        self.deal(owner, id)?;
        let mut page = sets::page(&self.meta, id, after.as_ref(), SET_PAGE_MAX + 1).map_err(internal)?;
        let more = page.len() > SET_PAGE_MAX;
        page.truncate(SET_PAGE_MAX);
        Ok((page, more))
    }

    /// How all deals stand.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn standings(&self) -> Result<Vec<Standing>, ChainError> {
        let mut standings = Vec::new();
        for (id, cell) in self.all() {
            let Some(on_ledger) = self.on_ledger(id)? else { continue };
            let mut tab = cell.lock().tab.clone();
            tab.follow(&on_ledger);
            standings.push(Standing::of(id, on_ledger, tab, self.period(), self.period_s()));
        }
        Ok(standings)
    }
}

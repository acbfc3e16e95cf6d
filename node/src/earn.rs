//! Earn: the provider's side of deals. Terms -> head -> voucher -> redeem, and what it holds for whom meanwhile.
//!
//! **Participants.** A client asks for terms, opens the deal on the ledger, stores shards, and has heads countersigned and vouchers taken.
//! The ledger pays what vouchers promise.
//!
//! **Goals.** What is countersigned is durable first. A repeated head gets the same bytes back. Nothing is deleted that a head covers. Nobody is
//! served beyond what is funded: a deal's escrow has to outlast a locked grace under all that is stored for it.
//! **Non-goals.** Claims on the ledger without the client's voucher.
//!
//! Everything here blocks, for the metadata store and at times for the disk.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, ReadPrice, StoragePrice};
use spare_market::block::Ledger;
use spare_market::deal::{Deal, DealId, Funding, Status, TERMS_LIFE_MAX_S, Terms, TermsV1};
use spare_market::genesis::Genesis;
use spare_market::head::{AnchoredHead, FullHead, Head, HeadError};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::tab::{READ_STEP_BYTES, Standing, Tab, TabError};
use spare_market::tx::Action;
use spare_market::voucher::{AHEAD_MAX, Voucher, VoucherError, VoucherV1};
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::time::{sleep, timeout};

use crate::chain::{Chain, ChainError};
use crate::crash;
use crate::frames::{DealState, Refusal, RefusalCode};
use crate::limits::{DEAL_WAIT, DEALS_PER_CLIENT_MAX, FRESH_LIFE_S, HEAD_CHANGES_MAX, SET_PAGE_MAX};
use crate::market::{SubmitError, Wallet};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::sets;
use crate::shards::{Fresh, ShardError, ShardRecord, Volume, shard_key};
use crate::unix_now_s;

/// How long signed terms can be taken up, in seconds.
const TERMS_LIFE_S: u64 = TERMS_LIFE_MAX_S / 2;
/// Periods after which a promise is put on the ledger, if nothing calls for it earlier.
const REDEEM_AFTER_PERIODS: u64 = 24;
/// How often the deals are looked through, at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Periods after which a deal that covers nothing is closed, which gives its escrow back.
const IDLE_PERIODS: u64 = 24;
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

/// The deals of which this node is the provider.
pub struct Earner {
    network: NetworkId,
    genesis: Genesis,
    account: PublicKey,
    node_key: SigningSecret,
    prices: (StoragePrice, ReadPrice),
    meta: Arc<Meta>,
    chain: Arc<Chain>,
    volume: Arc<Volume>,
    deals: Mutex<BTreeMap<DealId, Arc<Cell>>>,
    /// Bytes of shards that no head covers, by owner.
    fresh_bytes: Mutex<HashMap<PublicKey, u64>>,
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
        TabError::Voucher(_) | TabError::Short { .. } | TabError::Reads { .. } => RefusalCode::BadVoucher,
    };
    Refusal::new(code, error.to_string())
}

impl Earner {
    /// The deals in `meta`, at the node with `node_key` of `account`, which asks `prices`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn open(
        account: PublicKey,
        node_key: SigningSecret,
        prices: (StoragePrice, ReadPrice),
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
            prices,
            meta,
            chain,
            volume,
            deals: Mutex::new(deals),
            fresh_bytes: Mutex::new(fresh_bytes),
            owners: (0..64).map(|_| Mutex::default()).collect(),
        })
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
        let (price, read_price) = self.prices;
        let terms = TermsV1 {
            client,
            provider: self.account,
            node: self.node_key.public(),
            price,
            read_price,
            collateral: Amount::ZERO,
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
        if let Some(record) = deals.get(&id) {
            return Ok((record.clone(), deal));
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

    /// Counts a shard that was stored.
    pub fn stored(&self, owner: &PublicKey, shard_bytes: u64) {
        *self.fresh_bytes.lock().expect("no holder panics").entry(*owner).or_default() += shard_bytes;
    }

    fn no_longer_fresh(&self, owner: &PublicKey, bytes: u64) {
        let mut fresh = self.fresh_bytes.lock().expect("no holder panics");
        if let Some(known) = fresh.get_mut(owner) {
            *known = known.saturating_sub(bytes);
        }
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
        next.tab.take_head(id, &record.terms, head, self.period_s()).map_err(refused)?;
        let _owner = self.owner_lock(owner);
        let mut batch = Batch::default();
        let changed = self.changed_set(owner, id, add, remove, &mut batch)?;
        let sum = sets::commitment(&self.meta, id, &changed.add, remove).map_err(internal)?;
        if sum.is_none_or(|sum| (sum.hash, sum.bytes) != (head.head.set_root, head.head.bytes)) {
            return Err(bad("it covers another set of shards than is known here".into()));
        }
        if next.tab.rate() > record.tab.rate() {
            self.check_funded(&next, &deal, 0)?;
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

    /// Checks that what a head adds is here, and what it removes is covered, and writes both to `batch`.
    fn changed_set(
        &self,
        owner: &PublicKey,
        id: DealId,
        add: &[Root],
        remove: &[Root],
        batch: &mut Batch,
    ) -> Result<Changed, Refusal> {
        let bad = |why: String| Refusal::new(RefusalCode::BadHead, why);
        let mut changed = Changed::default();
        for root in add {
            if self.meta.has(Table::Sets, &sets::key(id, root)).map_err(internal)? {
                return Err(bad(format!("shard {root} is covered already")));
            }
            let record = self.volume.record(owner, root).map_err(internal)?;
            let ShardRecord::V1 { shard_bytes, .. } = record
                .ok_or_else(|| Refusal::new(RefusalCode::NotHere, format!("shard {root} is not here")))?;
            changed.add.push(Member { root: *root, bytes: shard_bytes });
            if self.meta.has(Table::Fresh, &shard_key(owner, root)).map_err(internal)? {
                changed.fresh_bytes += shard_bytes;
            }
            batch.put(Table::Sets, &sets::key(id, root), &shard_bytes);
            batch.delete(Table::Fresh, &shard_key(owner, root));
        }
        for root in remove {
            let known: Option<u64> = self.meta.get(Table::Sets, &sets::key(id, root)).map_err(internal)?;
            let shard_bytes = known.ok_or_else(|| bad(format!("shard {root} is not covered")))?;
            batch.delete(Table::Sets, &sets::key(id, root));
            changed.released_bytes += self.release(owner, root, shard_bytes, id, batch).map_err(internal)?;
        }
        Ok(changed)
    }

    /// A shard that deal `id` no longer covers may go, unless another deal of its owner covers it. Returns the bytes that may go.
    fn release(
        &self,
        owner: &PublicKey,
        root: &Root,
        shard_bytes: u64,
        id: DealId,
        batch: &mut Batch,
    ) -> Result<u64, MetaError> {
        let others = self.chain.view(|l| l.state().deals_of(owner).map(|(id, _)| id).collect::<Vec<_>>());
        for other in others.unwrap_or_default().into_iter().filter(|other| *other != id) {
            if self.meta.has(Table::Sets, &sets::key(other, root))? {
                return Ok(0);
            }
        }
        batch.put(Table::Fresh, &shard_key(owner, root), &Fresh::V1 { since_s: 0, shard_bytes });
        Ok(shard_bytes)
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
                match next.tab.take_voucher(voucher.deal, &record.terms, deal.epoch, voucher, now) {
                    // Another node of the client was faster, or it was signed beforehand: what it promises is known.
                    Err(TabError::Voucher(VoucherError::NotHigher { total, known })) if total == known => {
                        continue;
                    }
                    taken => taken.map_err(refused)?,
                }
                next.voucher = Some(signed.raw().clone());
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

    /// Deletes shards of `owner` that no head covers, since unix time `until_s` or longer. Returns how many and the disk given back.
    ///
    /// # Errors
    /// When the disk or the metadata store fails.
    pub fn delete(&self, owner: &PublicKey, roots: &[Root], until_s: u64) -> Result<(u32, u64), ShardError> {
        let (mut shards, mut freed) = (0, 0);
        for root in roots {
            let _owner = self.owner_lock(owner);
            let fresh: Option<Fresh> = self.meta.get(Table::Fresh, &shard_key(owner, root))?;
            let Some(Fresh::V1 { shard_bytes, .. }) = fresh else { continue };
            if self.is_covered(owner, root)? {
                // It was stored again while a head came to cover it.
                self.meta.note(Batch::default().delete(Table::Fresh, &shard_key(owner, root)))?;
                self.no_longer_fresh(owner, shard_bytes);
                continue;
            }
            let bytes = self.volume.delete(owner, root, until_s)?;
            if bytes > 0 {
                self.no_longer_fresh(owner, shard_bytes);
                shards += 1;
                freed += bytes;
            }
        }
        Ok((shards, freed))
    }

    fn is_covered(&self, owner: &PublicKey, root: &Root) -> Result<bool, MetaError> {
        for (id, _) in self.of_owner(owner) {
            if self.meta.has(Table::Sets, &sets::key(id, root))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has shards that a head removed deleted in the background.
    pub fn delete_soon(self: Arc<Self>, owner: PublicKey, removed: Vec<Root>) {
        if removed.is_empty() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            if let Err(error) = self.delete(&owner, &removed, 0) {
                tracing::error!(%error, "shards that a head removed could not be deleted");
            }
        });
    }

    /// Deletes what heads removed, and what was stored long ago and never came under one.
    fn sweep(&self) -> Result<(), EarnError> {
        let until_s = unix_now_s().saturating_sub(FRESH_LIFE_S);
        let mut due: BTreeMap<PublicKey, Vec<Root>> = BTreeMap::new();
        self.meta.scan::<Fresh>(Table::Fresh, b"", |key, Fresh::V1 { since_s, .. }| {
            if let Some((owner, root)) = sets::split_shard_key(key).filter(|_| since_s <= until_s) {
                due.entry(owner).or_default().push(root);
            }
            ControlFlow::Continue(())
        })?;
        for (owner, roots) in due {
            self.delete(&owner, &roots, until_s)?;
        }
        Ok(())
    }

    /// How all deals stand.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn standings(&self) -> Result<Vec<Standing>, ChainError> {
        let mut standings = Vec::new();
        for (id, cell) in self.all() {
            let Some(on_ledger) = self.on_ledger(id)? else { continue };
            let tab = cell.lock().tab.clone();
            standings.push(Standing::of(id, on_ledger, tab, self.period(), self.period_s()));
        }
        Ok(standings)
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
            let _ = timeout(every, height.changed()).await;
        }
    }

    /// What is to be told to the ledger now.
    fn look(&self, is_sweeping: bool) -> Result<Vec<Action>, EarnError> {
        let mut actions = Vec::new();
        for (id, cell) in self.all() {
            match self.on_ledger(id)? {
                Some(deal) => {
                    let mut record = cell.lock();
                    self.take_due(id, &deal, &mut record)?;
                    actions.extend(self.due_actions(id, &deal, &mut record)?);
                }
                None => self.end(id, &cell)?,
            }
        }
        if is_sweeping {
            self.sweep()?;
        }
        Ok(actions)
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
            let taken = parse(&raw).map(|v| record.tab.take_voucher(id, &record.terms, deal.epoch, v, now));
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
        let is_idle = record.tab.bytes() == 0 && now >= idle_since + IDLE_PERIODS;
        let open = unpaid(record, deal);
        let is_large = open.0 > deal.escrow.0 / 2;
        let is_old = now >= record.redeemed_in + REDEEM_AFTER_PERIODS;
        if open > Amount::ZERO && deal.escrow > Amount::ZERO && (is_large || is_old || is_dry || is_closing) {
            actions.extend(record.voucher.clone().map(|voucher| Action::Redeem { voucher }));
            record.redeemed_in = now;
            self.meta.note(Batch::default().put(Table::Deals, &record_key(id), record))?;
        }
        let newer = record.head.clone().filter(|_| record.tab.is_ahead_of(deal));
        match deal.status {
            Status::Open if is_dry || is_idle => {
                tracing::info!(deal = %id, is_dry, is_idle, "a deal is being closed");
                actions.push(Action::Close { deal: id, head: newer });
            }
            Status::Open => {}
            Status::Closing { .. } => {
                actions.extend(newer.map(|head| Action::Anchor { head }));
                let ticks = self.chain.view(|l: &Ledger| l.state().totals().ticks)?;
                if deal.can_be_settled(ticks, unix_now_s()) {
                    actions.push(Action::Settle { deal: id });
                }
            }
        }
        Ok(actions)
    }

    /// A deal is off the ledger: what it covered is let go.
    fn end(&self, id: DealId, cell: &Cell) -> Result<(), EarnError> {
        let record = cell.lock();
        let owner = record.terms.client;
        let _owner = self.owner_lock(&owner);
        let mut batch = Batch::default();
        let mut released_bytes = 0;
        for member in sets::all(&self.meta, id)? {
            batch.delete(Table::Sets, &sets::key(id, &member.root));
            released_bytes += self.release(&owner, &member.root, member.bytes, id, &mut batch)?;
        }
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

/// What a head changes.
#[derive(Default)]
struct Changed {
    add: Vec<Member>,
    /// Bytes of those that no head covered before.
    fresh_bytes: u64,
    /// Bytes of what it removes and no other deal covers.
    released_bytes: u64,
}

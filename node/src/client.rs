//! The client's side of a node: what `put`, `get` and `recover` share.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::amount::StoragePrice;
use spare_market::keys::PublicKey;

use crate::catalog::{Catalog, Garbage};
use crate::deals::{DealError, Deals, HeadChange};
use crate::discover::Addresses;
use crate::limits::DELETE_MAX_ROOTS;
use crate::peers::{PeerError, Peers};

/// Providers that are pushed to, or cleaned at, at once.
const CONCURRENT_PEERS: usize = 16;
/// Providers that get a copy of the index at least, as far as that many are known.
const INDEX_HOLDERS_MIN: usize = 16;
/// How long a removal waits for copies of the index.
const COPY_WITHIN: Duration = Duration::from_secs(10);
/// Longest time for bringing one provider up to date with the index.
const PUSH_MAX: Duration = Duration::from_secs(600);
/// How long a put waits for enough providers to become known.
const FIND_PROVIDERS_FOR: Duration = Duration::from_secs(5);

/// What a put or get under way has done so far.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Plaintext bytes done.
    pub done_bytes: AtomicU64,
    /// Shards sent and accepted.
    pub shards_sent: AtomicU64,
    /// Shards found placed by an earlier, unfinished put.
    pub shards_resumed: AtomicU64,
    /// Shards whose provider failed and was replaced.
    pub shards_replaced: AtomicU64,
}

/// A [`Transfer`] at one moment.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TransferState {
    /// `put` or `get`.
    pub kind: String,
    /// The blob's name.
    pub name: String,
    /// Plaintext bytes done.
    pub done_bytes: u64,
    /// Shards sent and accepted.
    pub shards_sent: u64,
    /// Shards found placed by an earlier, unfinished put.
    pub shards_resumed: u64,
    /// Shards whose provider failed and was replaced.
    pub shards_replaced: u64,
}

/// The client's side of a node.
pub struct Client {
    /// Other peers.
    pub peers: Arc<Peers>,
    /// This client's blobs.
    pub catalog: Arc<Catalog>,
    /// This client's deals.
    pub deals: Arc<Deals>,
    /// Held by puts and removals for reading, by recovery for writing: it moves names about.
    pub recovering: tokio::sync::RwLock<()>,
    /// Copies of the newest index entry that have to be made before anything may be deleted that older entries name.
    index_copies: usize,
    /// Highest price of storage that is paid.
    pub price_max: StoragePrice,
    addresses: Arc<Addresses>,
    /// Held while garbage is collected.
    collecting: tokio::sync::Mutex<()>,
    names_in_use: Mutex<HashSet<String>>,
    transfers: Mutex<BTreeMap<u64, Row>>,
    next_transfer: AtomicU64,
}

/// A row of the list of transfers: kind, blob's name, counters.
type Row = (&'static str, String, Arc<Transfer>);

/// A name that a put or rm works on, until dropped.
pub struct NameClaim<'a>(&'a Client, String);

impl Drop for NameClaim<'_> {
    fn drop(&mut self) {
        self.0.names_in_use.lock().expect("no holder panics").remove(&self.1);
    }
}

/// A transfer on the list of those under way, until dropped.
pub struct Listed {
    client: Arc<Client>,
    id: u64,
    /// Its counters.
    pub transfer: Arc<Transfer>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.client.transfers.lock().expect("no holder panics").remove(&self.id);
    }
}

impl Client {
    /// Puts the parts together.
    pub fn new(
        peers: Arc<Peers>,
        catalog: Arc<Catalog>,
        deals: Arc<Deals>,
        addresses: Arc<Addresses>,
        index_copies: usize,
        price_max: StoragePrice,
    ) -> Self {
        Self {
            peers,
            catalog,
            deals,
            recovering: tokio::sync::RwLock::default(),
            index_copies,
            price_max,
            addresses,
            collecting: tokio::sync::Mutex::default(),
            names_in_use: Mutex::default(),
            transfers: Mutex::default(),
            next_transfer: AtomicU64::new(0),
        }
    }

    /// Claims `name` for one writer, or `None` when another has it.
    pub fn claim(&self, name: &str) -> Option<NameClaim<'_>> {
        let fresh = self.names_in_use.lock().expect("no holder panics").insert(name.to_owned());
        fresh.then(|| NameClaim(self, name.to_owned()))
    }

    /// Lists a transfer as under way.
    pub fn list(self: &Arc<Self>, kind: &'static str, name: &str) -> Listed {
        let id = self.next_transfer.fetch_add(1, Ordering::Relaxed);
        let transfer = Arc::new(Transfer::default());
        let row = (kind, name.to_owned(), transfer.clone());
        self.transfers.lock().expect("no holder panics").insert(id, row);
        Listed { client: self.clone(), id, transfer }
    }

    /// Number of transfers of `kind` under way.
    pub fn count(&self, kind: &str) -> usize {
        self.transfers.lock().expect("no holder panics").values().filter(|t| t.0 == kind).count()
    }

    /// All transfers under way.
    pub fn transfers(&self) -> Vec<TransferState> {
        let transfers = self.transfers.lock().expect("no holder panics");
        let state = |(kind, name, t): &Row| TransferState {
            kind: (*kind).to_owned(),
            name: name.clone(),
            done_bytes: t.done_bytes.load(Ordering::Relaxed),
            shards_sent: t.shards_sent.load(Ordering::Relaxed),
            shards_resumed: t.shards_resumed.load(Ordering::Relaxed),
            shards_replaced: t.shards_replaced.load(Ordering::Relaxed),
        };
        transfers.values().map(state).collect()
    }

    /// Asks connected peers for the asks they know.
    pub async fn learn_asks(&self) {
        self.peers.learn_asks(&self.addresses.connected()).await;
    }

    /// Asks connected peers for further providers until `enough` says so or time is up.
    pub async fn find_providers(&self, enough: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !enough(self) && started.elapsed() < FIND_PROVIDERS_FOR {
            self.learn_asks().await;
            if enough(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Everyone who should have a copy of the index log: whoever holds shards, and some more while those are few.
    fn index_holders(&self) -> Vec<PublicKey> {
        let mut candidates = self.peers.candidates();
        let holders = self.catalog.holders().unwrap_or_else(|error| {
            tracing::error!(%error, "the list of blobs cannot be read");
            BTreeSet::new()
        });
        // Holders first, then whoever has answered best.
        candidates.sort_by_key(|c| (!holders.contains(&c.node), std::cmp::Reverse(c.record), c.node));
        let enough = holders.len().max(INDEX_HOLDERS_MIN);
        candidates.into_iter().map(|c| c.node).take(enough).collect()
    }

    /// Brings copies of the index log up to date. Returns as soon as `needed` providers have the newest entry, with their number and the
    /// failures until then; the others are still brought up to date in the background.
    pub async fn push_index(self: &Arc<Self>, needed: usize) -> (usize, Vec<(PublicKey, PeerError)>) {
        let at_once = Arc::new(tokio::sync::Semaphore::new(CONCURRENT_PEERS));
        let mut pushes = tokio::task::JoinSet::new();
        for node in self.index_holders() {
            let (client, at_once) = (self.clone(), at_once.clone());
            pushes.spawn(async move {
                let _permit = at_once.acquire().await.expect("the semaphore is not closed");
                let push = client.catalog.push(&client.peers, &node);
                (node, tokio::time::timeout(PUSH_MAX, push).await.unwrap_or(Err(PeerError::Stalled)))
            });
        }
        let (mut copies, mut failures) = (0, Vec::new());
        while copies < needed {
            match pushes.join_next().await {
                None => break,
                Some(Ok((_, Ok(_)))) => copies += 1,
                Some(Ok((node, Err(error)))) => failures.push((node, error)),
                Some(Err(error)) => tracing::error!(%error, "a push of the index ended abnormally"),
            }
        }
        pushes.detach_all();
        (copies, failures)
    }

    /// Waits until the newest index entry survives this machine, or for a while if providers are away.
    pub async fn copy_index(self: &Arc<Self>) {
        let copying = tokio::time::timeout(COPY_WITHIN, self.push_index(self.index_copies));
        if copying.await.is_err() {
            tracing::warn!("the index could not be copied to enough providers yet");
        }
    }

    /// Brings copies of the index up to date and, once enough are, deletes shards that no longer are in it. Not before: whoever recovers
    /// from an older copy would miss them.
    pub async fn tidy(self: &Arc<Self>) {
        let (copies, failures) = self.push_index(usize::MAX).await;
        let needed = self.index_copies.min(copies + failures.len());
        for (node, error) in failures {
            tracing::debug!(%node, %error, "a copy of the index lags");
        }
        if copies > 0 && copies >= needed {
            self.collect_garbage().await;
        }
    }

    /// Deletes shards that are no longer needed, where their providers can be reached.
    async fn collect_garbage(&self) {
        let _one_at_a_time = self.collecting.lock().await;
        loop {
            let garbage = self.catalog.garbage(DELETE_MAX_ROOTS).unwrap_or_else(|error| {
                tracing::error!(%error, "the list of shards to delete cannot be read");
                BTreeMap::new()
            });
            let more = garbage.values().any(|items| items.len() == DELETE_MAX_ROOTS);
            let deletes = garbage.into_iter().map(|(node, garbage)| self.delete_at(node, garbage));
            let deleted = futures::stream::iter(deletes)
                .buffer_unordered(CONCURRENT_PEERS)
                .fold(0, async |sum, deleted| sum + deleted)
                .await;
            if !more || deleted == 0 {
                return;
            }
        }
    }

    /// Has `node` delete shards: those under a head by a head that removes them, others as they are.
    async fn drop_at(&self, node: PublicKey, garbage: &[Garbage]) -> Result<(), DealError> {
        self.deals.finish_all(&node).await?;
        if self.deals.has_foreign(&node)? {
            return Err(DealError::State("a deal with it is still to be taken over"));
        }
        let (mut remove, mut fresh) = (Vec::new(), Vec::new());
        for Garbage { root, .. } in garbage {
            match self.deals.covering(&node, root)? {
                Some(_) => remove.push(*root),
                None => fresh.push(*root),
            }
        }
        if !fresh.is_empty() {
            self.peers.with_session(&node, async |session| session.delete(&fresh).await).await?;
        }
        if !remove.is_empty() {
            let change = HeadChange { add: Vec::new(), remove };
            let failures = self.deals.exchange(BTreeMap::from([(node, change)]), self.index_hash()).await;
            if let Some((_, error)) = failures.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Hash of the newest entry of this client's index, which heads carry.
    pub fn index_hash(&self) -> [u8; 32] {
        self.catalog.end().map_or([0; 32], |end| end.hash)
    }

    /// Has `node` delete its share of garbage. Returns how many shards are off the list.
    async fn delete_at(&self, node: PublicKey, garbage: Vec<Garbage>) -> usize {
        match self.drop_at(node, &garbage).await {
            Ok(()) => match self.catalog.forget_garbage(&garbage) {
                Ok(()) => garbage.len(),
                Err(error) => {
                    tracing::error!(%error, "deleted shards could not be taken off the list");
                    0
                }
            },
            Err(error) => {
                tracing::debug!(%node, %error, "shards will be deleted later");
                0
            }
        }
    }
}

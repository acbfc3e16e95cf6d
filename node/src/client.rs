//! The client's side of a node: what `put`, `get` and `recover` share.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;

use crate::catalog::{Catalog, Garbage};
use crate::discover::Addresses;
use crate::limits::DELETE_MAX_ROOTS;
use crate::peers::{PeerError, Peers};

/// Providers that are pushed to, or cleaned at, at once.
const CONCURRENT_PEERS: usize = 16;
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
    addresses: Arc<Addresses>,
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
    pub fn new(peers: Arc<Peers>, catalog: Arc<Catalog>, addresses: Arc<Addresses>) -> Self {
        Self {
            peers,
            catalog,
            addresses,
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

    /// Everyone who should have a copy of the index log: all known providers.
    fn index_holders(&self) -> Vec<PublicKey> {
        self.peers.candidates().into_iter().map(|c| c.node).collect()
    }

    /// Brings copies of the index log up to date. Returns how many providers have the newest entry, and the failures.
    pub async fn push_index(&self) -> (usize, Vec<(PublicKey, PeerError)>) {
        let pushes = self
            .index_holders()
            .into_iter()
            .map(|node| async move { (node, self.catalog.push(&self.peers, &node).await) });
        let results: Vec<_> =
            futures::stream::iter(pushes).buffer_unordered(CONCURRENT_PEERS).collect().await;
        let total = results.len();
        let failures: Vec<_> =
            results.into_iter().filter_map(|(node, r)| r.err().map(|e| (node, e))).collect();
        (total - failures.len(), failures)
    }

    /// Deletes shards that are no longer needed, where their providers can be reached. Returns the disk given back.
    pub async fn collect_garbage(&self) -> u64 {
        let mut by_node: BTreeMap<PublicKey, Vec<Garbage>> = BTreeMap::new();
        match self.catalog.garbage(DELETE_MAX_ROOTS) {
            Ok(garbage) => {
                garbage.into_iter().for_each(|item| by_node.entry(item.node).or_default().push(item))
            }
            Err(error) => tracing::error!(%error, "the list of shards to delete cannot be read"),
        }
        let deletes = by_node.into_iter().map(|(node, garbage)| async move {
            let roots = garbage.iter().map(|g| g.root).collect();
            match self.peers.with_session(&node, async |session| session.delete(roots).await).await {
                Ok((_, freed)) => {
                    if let Err(error) = self.catalog.forget_garbage(&garbage) {
                        tracing::error!(%error, "deleted shards could not be taken off the list");
                    }
                    freed
                }
                Err(error) => {
                    tracing::debug!(%node, %error, "shards will be deleted later");
                    0
                }
            }
        });
        futures::stream::iter(deletes)
            .buffer_unordered(CONCURRENT_PEERS)
            .fold(0, async |sum, freed| sum + freed)
            .await
    }
}

//! Recover: seed -> account -> providers' copies of the index log -> the list of blobs.
//!
//! Copies are untrusted. Every entry must be sealed for its place under the account's index key, which no provider has, and must follow the
//! one before; among the copies that hold, the longest wins. A provider can withhold the newest entries, but not invent or move any.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::index::{IndexEntry, LogEnd};
use spare_market::keys::PublicKey;
use spare_market::signed::Signed;

use crate::catalog::CatalogError;
use crate::client::Client;
use crate::limits::{INDEX_ENTRIES_MAX, INDEX_MAX_BYTES, RECOVER_COPIES_AT_ONCE, bulk_timeout};
use crate::meta::MetaError;
use crate::peers::{PeerError, Peers};

/// What recovery found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Recovered {
    /// Blobs now listed.
    pub blobs: usize,
    /// Number of the newest index entry found.
    pub index_seq: u64,
    /// Providers asked.
    pub providers_asked: usize,
    /// Providers that answered.
    pub providers_answered: usize,
}

/// Why recovery failed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// No provider answered.
    #[error(
        "none of the {asked} known providers answered; check that this node has joined the right network (`spare status`)"
    )]
    Nobody {
        /// Providers asked.
        asked: usize,
    },
    /// Providers answered, but none has anything of this account.
    #[error("{answered} providers answered, and none has an index of this account; is it the right seed?")]
    Nothing {
        /// Providers that answered.
        answered: usize,
    },
    /// Puts or removals are under way.
    #[error(
        "puts or removals are under way, which would race with what is recovered; try again when they are done"
    )]
    Busy,
    /// All copies found were unusable.
    #[error("copies of the index were found, but none holds: {0}")]
    Unusable(String),
    /// The local records failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The local records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// Rebuilds the list of blobs from the copies that providers keep.
///
/// # Errors
/// [`RecoverError`].
pub async fn recover(client: &Arc<Client>) -> Result<Recovered, RecoverError> {
    let _alone = client.recovering.try_write().map_err(|_| RecoverError::Busy)?;
    client.find_providers(|_| false).await;
    let nodes: Vec<PublicKey> = client.peers.candidates().into_iter().map(|c| c.node).collect();
    let asking = nodes.into_iter().map(|node| {
        let peers = client.peers.clone();
        async move { (node, end_at(&peers, &node).await) }
    });
    let ends = futures::stream::iter(asking);
    let ends: Vec<(PublicKey, Result<LogEnd, PeerError>)> = ends.buffer_unordered(16).collect().await;
    let asked = ends.len();
    let mut copies: Vec<(PublicKey, LogEnd)> =
        ends.into_iter().filter_map(|(node, end)| Some((node, end.ok()?))).collect();
    let answered = copies.len();
    if answered == 0 {
        return Err(RecoverError::Nobody { asked });
    }
    copies.retain(|(_, end)| end.seq > 0);
    // Where this node has put something before it recovered, providers have copies of that, too. They say nothing new, so the others come first, however short;
    // later on a shorter one is an old one.
    let is_first = !client.deals.takes_over()?;
    let mut ranked = Vec::with_capacity(copies.len());
    for (node, end) in copies {
        let is_own = client.catalog.is_own(&end)?;
        ranked.push(((is_first && is_own, std::cmp::Reverse(end.seq), is_own), node, end));
    }
    ranked.sort_by_key(|(rank, ..)| *rank);
    let copies: Vec<(PublicKey, LogEnd)> = ranked.into_iter().map(|(_, node, end)| (node, end)).collect();
    if copies.is_empty() {
        return Err(RecoverError::Nothing { answered });
    }
    let mut failures = Vec::new();
    // The longest is taken first, whichever arrives first; and one that lets wait does not hold up the next ones.
    let mut fetching = futures::stream::iter(copies)
        .map(async |(node, end)| (node, end, log_at(client, &node, end).await))
        .buffered(RECOVER_COPIES_AT_ONCE);
    while let Some((node, end, log)) = fetching.next().await {
        let adopted = match log {
            Ok(entries) => client.catalog.adopt(&entries).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match adopted {
            Ok(blobs) => {
                client.deals.take_over_from_now_on()?;
                return Ok(Recovered {
                    blobs,
                    index_seq: end.seq,
                    providers_asked: asked,
                    providers_answered: answered,
                });
            }
            Err(error) => failures.push(format!("{}: {error}", &node.to_string()[..12])),
        }
    }
    Err(RecoverError::Unusable(failures.join("; ")))
}

async fn end_at(peers: &Peers, node: &PublicKey) -> Result<LogEnd, PeerError> {
    peers.with_session(node, async |session| session.index_end().await).await
}

/// Fetches the log from its base. Each entry is checked as it arrives: that it extends the one before, and that this account sealed it. So
/// a provider that makes one up is found out at its first entry, however long it says the log is.
async fn log_at(
    client: &Client,
    node: &PublicKey,
    end: LogEnd,
) -> Result<Vec<Signed<IndexEntry>>, PeerError> {
    if end.base == 0 || end.base > end.seq || end.seq - end.base >= INDEX_ENTRIES_MAX {
        return Err(PeerError::Protocol("its copy of the index has an impossible length"));
    }
    let started = Instant::now();
    client
        .peers
        .with_session(node, async |session| {
            let mut entries = Vec::new();
            let mut here = LogEnd::default();
            let mut bytes = 0;
            for seq in end.base..=end.seq {
                let entry = session.index_read(seq).await?.check::<IndexEntry>(client.peers.network())?;
                let IndexEntry::V1(v1) = entry.value();
                if client.catalog.open(v1).is_err() {
                    return Err(PeerError::Protocol("its copy of the index is not sealed by this account"));
                }
                bytes += entry.raw().bytes.len() as u64;
                // Many small entries cost a round trip each.
                let allowed = bulk_timeout(bytes) + Duration::from_secs(entries.len() as u64);
                if bytes > INDEX_MAX_BYTES || started.elapsed() > allowed {
                    return Err(PeerError::Protocol("its copy of the index takes too long"));
                }
                here = here
                    .extend(v1, &entry.raw().bytes)
                    .map_err(|_| PeerError::Protocol("its copy of the index is not one log"))?;
                entries.push(entry);
            }
            if here != end {
                return Err(PeerError::Protocol("its copy of the index ends otherwise than it said"));
            }
            Ok(entries)
        })
        .await
}

//! Recover: seed -> account -> providers' copies of the index log -> the list of blobs.
//!
//! Copies are untrusted. Every entry must be sealed under the account's index key, which no provider has, and must follow the one before;
//! among the copies that hold, the longest wins. A provider can withhold the newest entries, but not invent any.

use std::sync::Arc;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::index::{IndexEntry, LogEnd};
use spare_market::keys::PublicKey;
use spare_market::signed::Signed;

use crate::catalog::CatalogError;
use crate::client::Client;
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
    /// All copies found were unusable.
    #[error("copies of the index were found, but none holds: {0}")]
    Unusable(String),
    /// The local records failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Rebuilds the list of blobs from the copies that providers keep.
///
/// # Errors
/// [`RecoverError`].
pub async fn recover(client: &Arc<Client>) -> Result<Recovered, RecoverError> {
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
    copies.sort_by_key(|(_, end)| std::cmp::Reverse(end.seq));
    if copies.is_empty() {
        return Err(RecoverError::Nothing { answered });
    }
    let mut failures = Vec::new();
    for (node, end) in copies {
        let adopted = match log_at(&client.peers, &node, end).await {
            Ok(entries) => client.catalog.adopt(&entries).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match adopted {
            Ok(blobs) => {
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

/// Fetches the log from its base, each entry checked to extend the one before.
async fn log_at(peers: &Peers, node: &PublicKey, end: LogEnd) -> Result<Vec<Signed<IndexEntry>>, PeerError> {
    peers
        .with_session(node, async |session| {
            let mut entries = Vec::new();
            let mut here = LogEnd::default();
            for seq in end.base..=end.seq {
                let entry = session.index_read(seq).await?.check::<IndexEntry>(peers.network())?;
                let IndexEntry::V1(v1) = entry.value();
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

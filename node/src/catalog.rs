//! This client's blobs: what is stored under which name, and the index log that lets a seed find it all again.
//!
//! Every change is one synced write: the blob's record, the log entry and what the change makes obsolete. Then the entry is pushed to
//! the client's providers. A provider that is away is brought up to date later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use spare_market::index::{BODY_MAX_BYTES, IndexEntry, IndexEntryV1, LogEnd, entry_hash};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::placement::Placement;
use spare_market::signed::Signed;
use spare_proofs::cipher::{OpenError, Secret, open_message, seal_message};
use spare_proofs::encode::{DecodeError, from_bytes, to_bytes};
use spare_proofs::recipe::Recipe;
use spare_proofs::tree::Root;

use crate::home::Identity;
use crate::index_log::{AppendError, IndexLogs};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::peers::{PeerError, Peers};

/// Entries since the base after which a new base is worth writing.
const COMPACT_AFTER_ENTRIES: u64 = 64;
/// Longest recipe that the index carries itself; a longer one is stored as a blob.
pub const INLINE_RECIPE_MAX_BYTES: usize = 2 * 1024;

/// A blob as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobEntry {
    /// Random; leads to the blob key.
    pub blob_id: [u8; 16],
    /// Length.
    pub bytes: u64,
    /// Unix time in seconds of the put.
    pub created_s: u64,
    /// The sealed recipe, or that of the blob which holds the sealed recipe.
    pub recipe: RecipeAt,
    /// Who holds which shard.
    pub placement: Placement,
}

/// Where a blob's recipe is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipeAt {
    /// Here, sealed.
    Inline(Vec<u8>),
    /// Stored as a blob of its own.
    Stored {
        /// That blob's sealed recipe.
        recipe: Vec<u8>,
        /// Who holds that blob's shards.
        placement: Placement,
    },
}

/// The content of an index entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum IndexBody {
    V1(Vec<Change>),
}

/// One change to the set of blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// This name now means this blob.
    Put {
        /// The name.
        name: String,
        /// The blob.
        entry: BlobEntry,
    },
    /// This name means nothing any more.
    Remove {
        /// The name.
        name: String,
    },
}

/// Why the catalog could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The local log refused the entry.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// An entry is not sealed under this account's index key.
    #[error("an index entry does not open: {0}")]
    Open(#[from] OpenError),
    /// An entry does not decode.
    #[error("an index entry does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// The list of all blobs no longer fits one entry.
    #[error("the change does not fit an index entry of {BODY_MAX_BYTES} bytes")]
    TooLarge,
}

/// A shard that is no longer needed and is to be deleted where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Garbage {
    /// Who holds it.
    pub node: PublicKey,
    /// The shard.
    pub root: Root,
}

fn cached_recipe_key(blob_id: &[u8; 16]) -> Vec<u8> {
    [b"recipe ", &blob_id[..]].concat()
}

const GARBAGE_PREFIX: &[u8] = b"garbage ";

impl Garbage {
    fn key(&self) -> Vec<u8> {
        [GARBAGE_PREFIX, &self.node.to_bytes(), self.root.as_bytes()].concat()
    }

    fn from_key(rest: &[u8]) -> Option<Self> {
        let node = PublicKey::Ed25519(rest.get(1..33)?.try_into().ok()?);
        let root = Root::from_bytes(rest.get(33..)?.try_into().ok()?);
        Some(Self { node, root })
    }
}

/// This client's blobs and its index log.
pub struct Catalog {
    meta: Arc<Meta>,
    logs: Arc<IndexLogs>,
    identity: Arc<Identity>,
    node_key: SigningSecret,
    changing: Mutex<()>,
}

impl Catalog {
    /// The catalog in `meta`.
    pub fn new(meta: Arc<Meta>, logs: Arc<IndexLogs>, identity: Arc<Identity>) -> Self {
        let node_key = identity.node_key();
        Self { meta, logs, identity, node_key, changing: Mutex::new(()) }
    }

    /// The metadata store.
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// Seals recipes.
    pub fn recipe_key(&self) -> &Secret {
        &self.identity.recipe_key
    }

    /// The account.
    pub fn account(&self) -> PublicKey {
        self.identity.account
    }

    /// The blob of this name.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn get(&self, name: &str) -> Result<Option<BlobEntry>, MetaError> {
        self.meta.get(Table::Blobs, name.as_bytes())
    }

    /// The sealed recipe of a blob, if this node kept or fetched it before. It can always be fetched again.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn cached_recipe(&self, blob_id: &[u8; 16]) -> Result<Option<Vec<u8>>, MetaError> {
        self.meta.get(Table::State, &cached_recipe_key(blob_id))
    }

    /// Keeps a sealed recipe at hand.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn cache_recipe(&self, blob_id: &[u8; 16], sealed: &Vec<u8>) -> Result<(), MetaError> {
        self.meta.note(Batch::default().put(Table::State, &cached_recipe_key(blob_id), sealed))
    }

    /// All blobs by name.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn all(&self) -> Result<Vec<(String, BlobEntry)>, MetaError> {
        let all = self.meta.all(Table::Blobs, b"")?;
        Ok(all
            .into_iter()
            .map(|(name, entry)| (String::from_utf8_lossy(&name).into_owned(), entry))
            .collect())
    }

    /// Makes a change durable: the record, the log entry, `garbage` and whatever `also` holds, in one synced write.
    ///
    /// # Errors
    /// [`CatalogError`]; nothing has changed then.
    pub fn change(
        &self,
        change: Change,
        garbage: &[Garbage],
        mut also: Batch,
    ) -> Result<LogEnd, CatalogError> {
        let _one_at_a_time = self.changing.lock().expect("no holder panics");
        match &change {
            Change::Put { name, entry } => also.put(Table::Blobs, name.as_bytes(), entry),
            Change::Remove { name } => also.delete(Table::Blobs, name.as_bytes()),
        };
        let replaced = match &change {
            Change::Put { name, .. } | Change::Remove { name } => self.get(name)?,
        };
        if let Some(replaced) = replaced {
            also.delete(Table::State, &cached_recipe_key(&replaced.blob_id));
        }
        Self::add_garbage(&mut also, garbage);
        let end = self.logs.end(&self.account())?;
        let seq = end.seq + 1;
        let compacted =
            (seq > end.base + COMPACT_AFTER_ENTRIES).then(|| self.everything_after(&change)).transpose()?;
        // A list of all blobs that outgrew an entry is not written; the log then just goes on.
        let compacted = compacted.filter(|body| body.len() < BODY_MAX_BYTES - 64);
        let base = if compacted.is_some() || end.base == 0 { seq } else { end.base };
        let body = compacted.unwrap_or_else(|| to_bytes(&IndexBody::V1(vec![change])));
        if body.len() > BODY_MAX_BYTES - 64 {
            return Err(CatalogError::TooLarge);
        }
        let body = seal_message(&self.identity.index_key, &body);
        let entry = IndexEntry::V1(IndexEntryV1 { seq, base, previous: end.hash, body });
        let signed = Signed::new(entry, self.identity.network, &self.node_key);
        Ok(self.logs.append(&self.account(), &signed, also)?)
    }

    /// The body of an entry that stands for all blobs, with `change` made.
    fn everything_after(&self, change: &Change) -> Result<Vec<u8>, MetaError> {
        let mut blobs: BTreeMap<String, BlobEntry> = self.all()?.into_iter().collect();
        apply(&mut blobs, change.clone());
        let changes = blobs.into_iter().map(|(name, entry)| Change::Put { name, entry }).collect();
        Ok(to_bytes(&IndexBody::V1(changes)))
    }

    /// Takes over a log fetched from a provider, base first. Returns how many blobs are listed then.
    ///
    /// A log that this node's own continues changes nothing. Blobs that only a forked log of this node knows are kept, under another
    /// name if theirs is taken.
    ///
    /// # Errors
    /// [`CatalogError`] when an entry was not sealed by this account, or the local records fail.
    pub fn adopt(&self, entries: &[Signed<IndexEntry>]) -> Result<usize, CatalogError> {
        let own = {
            let _one_at_a_time = self.changing.lock().expect("no holder panics");
            let ours = self.end()?;
            let mut blobs = BTreeMap::new();
            let mut behind = true;
            let mut newest = LogEnd::default();
            for entry in entries {
                let IndexEntry::V1(v1) = entry.value();
                let body = open_message(&self.identity.index_key, &v1.body)?;
                let IndexBody::V1(changes) = from_bytes(&body, BODY_MAX_BYTES)?;
                if v1.base == v1.seq {
                    blobs.clear();
                }
                changes.into_iter().for_each(|change| apply(&mut blobs, change));
                newest = LogEnd { seq: v1.seq, base: v1.base, hash: entry_hash(&entry.raw().bytes) };
                behind &= v1.seq != ours.seq || newest.hash == ours.hash;
            }
            let known = self.logs.read(&self.account(), newest.seq)?;
            if known.is_some_and(|known| entry_hash(&known.bytes) == newest.hash) {
                return Ok(self.all()?.len());
            }
            let known = self.all()?;
            let mut batch = Batch::default();
            for (name, _) in &known {
                batch.delete(Table::Blobs, name.as_bytes());
            }
            for (name, entry) in &blobs {
                batch.put(Table::Blobs, name.as_bytes(), entry);
            }
            self.logs.replace(&self.account(), entries, newest, batch)?;
            let forked = ours.seq > 0 && (ours.seq > newest.seq || !behind);
            let is_new = |entry: &BlobEntry| !blobs.values().any(|b| b.blob_id == entry.blob_id);
            known.into_iter().filter(|(_, entry)| forked && is_new(entry)).collect::<Vec<_>>()
        };
        for (name, entry) in own {
            let mut free = name.clone();
            while self.get(&free)?.is_some() {
                free.push_str(" (kept)");
            }
            self.change(Change::Put { name: free, entry }, &[], Batch::default())?;
        }
        Ok(self.all()?.len())
    }

    /// Where this client's log ends.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn end(&self) -> Result<LogEnd, MetaError> {
        self.logs.end(&self.account())
    }

    /// Brings the copy of the log at `node` up to date. Returns whether anything was sent.
    ///
    /// # Errors
    /// [`PeerError`] when the provider did not take it.
    pub async fn push(&self, peers: &Peers, node: &PublicKey) -> Result<bool, PeerError> {
        let ours = self.end().map_err(|_| PeerError::Protocol("the local index cannot be read"))?;
        if ours.seq == 0 {
            return Ok(false);
        }
        peers
            .with_session(node, async |session| {
                let theirs = session.index_end().await?;
                let forked = theirs.seq > ours.seq || (theirs.seq == ours.seq && theirs.hash != ours.hash);
                if forked {
                    return Err(PeerError::Protocol(
                        "another node has gone on with this account's index; `spare recover` takes that over",
                    ));
                }
                let first = if theirs.seq < ours.base { ours.base } else { theirs.seq + 1 };
                for seq in first..=ours.seq {
                    let entry = self.logs.read_checked(&self.account(), seq, peers.network()).ok().flatten();
                    let entry = entry.ok_or(PeerError::Protocol("the local index lost an entry"))?;
                    session.index_append(&entry).await?;
                }
                Ok(first <= ours.seq)
            })
            .await
    }

    /// Shards waiting to be deleted, at most `limit`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn garbage(&self, limit: usize) -> Result<Vec<Garbage>, MetaError> {
        let mut found = Vec::new();
        self.meta.scan::<()>(Table::State, GARBAGE_PREFIX, |rest, ()| {
            found.extend(Garbage::from_key(rest));
            if found.len() < limit {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        })?;
        Ok(found)
    }

    /// Notes shards to be deleted, as part of another write.
    pub fn add_garbage(batch: &mut Batch, garbage: &[Garbage]) {
        for item in garbage {
            batch.put(Table::State, &item.key(), &());
        }
    }

    /// Forgets shards that were deleted.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn forget_garbage(&self, garbage: &[Garbage]) -> Result<(), MetaError> {
        let mut batch = Batch::default();
        for item in garbage {
            batch.delete(Table::State, &item.key());
        }
        self.meta.note(&batch)
    }

    /// Opens a sealed recipe.
    ///
    /// # Errors
    /// [`spare_proofs::recipe::RecipeError`].
    pub fn open_recipe(&self, sealed: &[u8]) -> Result<Recipe, spare_proofs::recipe::RecipeError> {
        Recipe::open(&self.identity.recipe_key, sealed)
    }
}

fn apply(blobs: &mut BTreeMap<String, BlobEntry>, change: Change) {
    match change {
        Change::Put { name, entry } => {
            blobs.insert(name, entry);
        }
        Change::Remove { name } => {
            blobs.remove(&name);
        }
    }
}

/// All shards of a placed recipe, as garbage to be.
pub fn shards_of(recipe: &Recipe, placement: &Placement) -> Vec<Garbage> {
    let Recipe::V1(recipe) = recipe;
    let segments = recipe.segments.iter().enumerate();
    segments
        .flat_map(|(i, s)| {
            placement.holders(i).into_iter().zip(s.roots.clone()).map(|(node, root)| Garbage { node, root })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_market::keys::Seed;
    use spare_market::signed::NetworkId;

    fn open(dir: &std::path::Path) -> Catalog {
        let meta = Arc::new(Meta::open(dir).unwrap());
        let identity =
            Identity::new(&Seed::from_entropy([1; 32]), NetworkId([1; 32]), Secret::new([2; 32]), 0);
        Catalog::new(meta.clone(), Arc::new(IndexLogs::new(meta)), Arc::new(identity))
    }

    fn entry(tag: u8) -> BlobEntry {
        let placement = Placement::new(&[vec![PublicKey::Ed25519([tag; 32])]]);
        BlobEntry {
            blob_id: [tag; 16],
            bytes: 1,
            created_s: 2,
            recipe: RecipeAt::Inline(vec![tag]),
            placement,
        }
    }

    #[test]
    fn a_log_of_many_changes_leads_to_the_same_blobs_elsewhere() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let here = open(dirs[0].path());
        for i in 0..150u8 {
            let change = Change::Put { name: format!("b{}", i % 40), entry: entry(i) };
            here.change(change, &[], Batch::default()).unwrap();
        }
        here.change(Change::Remove { name: "b0".into() }, &[], Batch::default()).unwrap();
        let end = here.end().unwrap();
        assert!(end.base > 1, "the log was compacted");
        let entries: Vec<_> = (end.base..=end.seq)
            .map(|seq| here.logs.read_checked(&here.account(), seq, NetworkId([1; 32])).unwrap().unwrap())
            .collect();
        let there = open(dirs[1].path());
        assert_eq!(there.adopt(&entries).unwrap(), 39);
        assert_eq!(there.all().unwrap(), here.all().unwrap());
        assert_eq!(there.end().unwrap(), end, "and goes on where the other ended");
    }

    #[test]
    fn a_forked_log_gives_way_and_its_blobs_are_kept() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (here, there) = (open(dirs[0].path()), open(dirs[1].path()));
        let put = |catalog: &Catalog, name: &str, tag| {
            catalog
                .change(Change::Put { name: name.into(), entry: entry(tag) }, &[], Batch::default())
                .unwrap();
        };
        let log = |catalog: &Catalog| -> Vec<_> {
            let end = catalog.end().unwrap();
            let read = |seq| {
                catalog.logs.read_checked(&catalog.account(), seq, NetworkId([1; 32])).unwrap().unwrap()
            };
            (end.base..=end.seq).map(read).collect()
        };
        put(&here, "both", 1);
        put(&here, "here", 2);
        put(&there, "both", 3);
        assert_eq!(there.adopt(&log(&here)).unwrap(), 3);
        assert_eq!(there.get("both").unwrap(), Some(entry(1)));
        assert_eq!(there.get("both (kept)").unwrap(), Some(entry(3)));
        // What goes on from here continues the other's log, and the other merely falls behind.
        assert_eq!(here.adopt(&log(&there)).unwrap(), 3);
        assert_eq!(here.end().unwrap(), there.end().unwrap());
        put(&there, "more", 4);
        assert_eq!(there.adopt(&log(&here)).unwrap(), 4, "an older copy takes nothing away");
    }

    #[test]
    fn garbage_is_remembered_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        let item = Garbage { node: PublicKey::Ed25519([1; 32]), root: Root::of(b"x") };
        catalog.change(Change::Remove { name: "none".into() }, &[item], Batch::default()).unwrap();
        assert_eq!(catalog.garbage(10).unwrap(), [item]);
        catalog.forget_garbage(&[item]).unwrap();
        assert!(catalog.garbage(10).unwrap().is_empty());
    }
}

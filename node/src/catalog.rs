//! This client's blobs: what is stored under which name, and the index log that lets a seed find it all again.
//!
//! Every change is one synced write: the blob's record, the log entry and what the change makes obsolete. Then the entry is pushed to
//! the client's providers. A provider that is away is brought up to date later.

use std::collections::{BTreeMap, BTreeSet};
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

use crate::frames::RefusalCode;
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

fn past_key(seq: u64) -> Vec<u8> {
    [b"index past ", &seq.to_be_bytes()[..]].concat()
}

/// Remembers the hash of an entry of this node's own log for good.
fn note_past(batch: &mut Batch, entry: &Signed<IndexEntry>) {
    let IndexEntry::V1(v1) = entry.value();
    batch.put(Table::State, &past_key(v1.seq), &entry_hash(&entry.raw().bytes));
}

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
        let compacted = compacted.filter(|changes| to_bytes(changes).len() < BODY_MAX_BYTES - 64);
        let base = if compacted.is_some() || end.base == 0 { seq } else { end.base };
        let signed = self.entry(&end, base, compacted.unwrap_or_else(|| vec![change]))?;
        note_past(&mut also, &signed);
        Ok(self.logs.append(&self.account(), &signed, also)?)
    }

    /// The entry that says `changes` after `end`.
    fn entry(
        &self,
        end: &LogEnd,
        base: u64,
        changes: Vec<Change>,
    ) -> Result<Signed<IndexEntry>, CatalogError> {
        let body = to_bytes(&IndexBody::V1(changes));
        if body.len() > BODY_MAX_BYTES - 64 {
            return Err(CatalogError::TooLarge);
        }
        let (seq, previous) = (end.seq + 1, end.hash);
        let body = seal_message(&self.body_key(seq, base, &previous), &body);
        let entry = IndexEntry::V1(IndexEntryV1 { seq, base, previous, body });
        Ok(Signed::new(entry, self.identity.network, &self.node_key))
    }

    /// The key that seals the body of the entry in this place, and of no other.
    fn body_key(&self, seq: u64, base: u64, previous: &[u8; 32]) -> Secret {
        let place = [&self.identity.network.0[..], &IndexEntryV1::place(seq, base, previous)].concat();
        self.identity.index_key.derive("spare 2026 index body v1", &place)
    }

    /// Opens an entry: nobody without the index key can have made it, or moved it to another place.
    ///
    /// # Errors
    /// [`CatalogError`] when it was not sealed by this account for this place.
    pub fn open(&self, entry: &IndexEntryV1) -> Result<Vec<Change>, CatalogError> {
        let key = self.body_key(entry.seq, entry.base, &entry.previous);
        let IndexBody::V1(changes) = from_bytes(&open_message(&key, &entry.body)?, BODY_MAX_BYTES)?;
        Ok(changes)
    }

    /// The changes of an entry that stands for all blobs, with `change` made.
    fn everything_after(&self, change: &Change) -> Result<Vec<Change>, MetaError> {
        let mut blobs: BTreeMap<String, BlobEntry> = self.all()?.into_iter().collect();
        apply(&mut blobs, change.clone());
        Ok(blobs.into_iter().map(|(name, entry)| Change::Put { name, entry }).collect())
    }

    /// The hash of this log's entry `seq`, if it was written or taken over here, also when the entry itself is gone.
    ///
    /// # Errors
    /// When the metadata store fails.
    fn past(&self, seq: u64) -> Result<Option<[u8; 32]>, MetaError> {
        self.meta.get(Table::State, &past_key(seq))
    }

    /// Whether a log that ends there is this node's own, or the beginning of it.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn is_own(&self, end: &LogEnd) -> Result<bool, MetaError> {
        Ok(self.past(end.seq)? == Some(end.hash))
    }

    /// Takes over a log fetched from a provider, whose entries, base first, extend one another. Returns how many blobs are listed then.
    ///
    /// A log that this node's own continues changes nothing. If the log does not continue this node's own, two nodes wrote under one
    /// seed: blobs that only this node's log knows are then kept, under another name if theirs is taken.
    ///
    /// # Errors
    /// [`CatalogError`] when an entry was not sealed by this account for its place, or the local records fail. Nothing has changed then.
    pub fn adopt(&self, entries: &[Signed<IndexEntry>]) -> Result<usize, CatalogError> {
        let _one_at_a_time = self.changing.lock().expect("no holder panics");
        let ours = self.end()?;
        let mut blobs = BTreeMap::new();
        let mut continues = ours.seq == 0;
        let mut newest = LogEnd::default();
        for entry in entries {
            let IndexEntry::V1(v1) = entry.value();
            let changes = self.open(v1)?;
            if v1.base == v1.seq {
                blobs.clear();
            }
            changes.into_iter().for_each(|change| apply(&mut blobs, change));
            newest = LogEnd { seq: v1.seq, base: v1.base, hash: entry_hash(&entry.raw().bytes) };
            continues |= newest.seq == ours.seq && newest.hash == ours.hash;
            continues |= v1.seq == ours.seq + 1 && v1.previous == ours.hash;
        }
        let known = self.all()?;
        if self.is_own(&newest)? {
            return Ok(known.len());
        }
        let mut entries = entries.to_vec();
        let is_new = |entry: &BlobEntry| !blobs.values().any(|b| b.blob_id == entry.blob_id);
        let own: Vec<_> = known.iter().filter(|(_, entry)| !continues && is_new(entry)).cloned().collect();
        if !own.is_empty() {
            let mut changes = Vec::new();
            for (mut name, entry) in own {
                while blobs.contains_key(&name) {
                    name.push_str(" (kept)");
                }
                blobs.insert(name.clone(), entry.clone());
                changes.push(Change::Put { name, entry });
            }
            let kept = self.entry(&newest, newest.base, changes)?;
            newest = LogEnd { seq: newest.seq + 1, base: newest.base, hash: entry_hash(&kept.raw().bytes) };
            entries.push(kept);
        }
        let mut batch = Batch::default();
        for (name, _) in &known {
            batch.delete(Table::Blobs, name.as_bytes());
        }
        for (name, entry) in &blobs {
            batch.put(Table::Blobs, name.as_bytes(), entry);
        }
        for entry in &entries {
            note_past(&mut batch, entry);
        }
        self.logs.replace(&self.account(), &entries, newest, batch)?;
        Ok(blobs.len())
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
    /// [`PeerError`] when the provider did not take it, or its copy is of a log that this node does not know.
    pub async fn push(&self, peers: &Peers, node: &PublicKey) -> Result<bool, PeerError> {
        let ours = self.end().map_err(|_| PeerError::Protocol("the local index cannot be read"))?;
        if ours.seq == 0 {
            return Ok(false);
        }
        let sent = self.push_onto(peers, node, ours).await;
        match sent {
            // Another push of this node may have been faster.
            Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::BadIndexEntry => {
                self.push_onto(peers, node, ours).await
            }
            sent => sent,
        }
    }

    async fn push_onto(&self, peers: &Peers, node: &PublicKey, ours: LogEnd) -> Result<bool, PeerError> {
        peers
            .with_session(node, async |session| {
                let theirs = session.index_end().await?;
                let past = self
                    .past(theirs.seq)
                    .map_err(|_| PeerError::Protocol("the local index cannot be read"))?;
                let foreign = match past {
                    Some(hash) => hash != theirs.hash,
                    // Older than what was taken over from others, or empty.
                    None => theirs.seq > ours.seq,
                };
                if foreign {
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

    /// The providers that hold shards of any blob.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn holders(&self) -> Result<BTreeSet<PublicKey>, MetaError> {
        let mut holders = BTreeSet::new();
        self.meta.scan::<BlobEntry>(Table::Blobs, b"", |_, entry| {
            holders.extend(entry.placement.providers());
            if let RecipeAt::Stored { placement, .. } = &entry.recipe {
                holders.extend(placement.providers());
            }
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(holders)
    }

    /// Shards waiting to be deleted, at most `limit` for each provider.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn garbage(&self, limit: usize) -> Result<BTreeMap<PublicKey, Vec<Garbage>>, MetaError> {
        let mut found: BTreeMap<PublicKey, Vec<Garbage>> = BTreeMap::new();
        self.meta.scan::<()>(Table::State, GARBAGE_PREFIX, |rest, ()| {
            if let Some(item) = Garbage::from_key(rest) {
                let items = found.entry(item.node).or_default();
                if items.len() < limit {
                    items.push(item);
                }
            }
            std::ops::ControlFlow::Continue(())
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
        let logs = Arc::new(IndexLogs::new(meta.clone(), identity.account, 0));
        Catalog::new(meta, logs, Arc::new(identity))
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

    fn put(catalog: &Catalog, name: &str, tag: u8) {
        let change = Change::Put { name: name.into(), entry: entry(tag) };
        catalog.change(change, &[], Batch::default()).unwrap();
    }

    fn log(catalog: &Catalog) -> Vec<Signed<IndexEntry>> {
        let end = catalog.end().unwrap();
        let read =
            |seq| catalog.logs.read_checked(&catalog.account(), seq, NetworkId([1; 32])).unwrap().unwrap();
        (end.base..=end.seq).map(read).collect()
    }

    #[test]
    fn a_forked_log_gives_way_and_its_blobs_are_kept() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (here, there) = (open(dirs[0].path()), open(dirs[1].path()));
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
    fn forks_and_old_copies_are_told_apart_across_compaction() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [here, there, third] = [0, 1, 2].map(|i: usize| open(dirs[i].path()));
        put(&here, "first", 1);
        let early = log(&here);
        put(&there, "own", 200);
        (0..100u8).for_each(|i| put(&here, &format!("b{i}"), i));
        assert!(here.end().unwrap().base > 2, "the other's end lies before the base");
        assert_eq!(there.adopt(&log(&here)).unwrap(), 102, "what only the forked log knew is kept");
        assert!(there.get("own").unwrap().is_some());
        assert_eq!(here.adopt(&early).unwrap(), 101, "a copy from before the compaction takes nothing away");
        assert_eq!(third.adopt(&early).unwrap(), 1);
        assert_eq!(
            third.adopt(&log(&here)).unwrap(),
            101,
            "one that fell behind a base has its blobs in the base"
        );
    }

    #[test]
    fn a_body_opens_only_where_it_was_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        put(&catalog, "a", 1);
        put(&catalog, "b", 2);
        let IndexEntry::V1(first) = log(&catalog)[0].value().clone();
        assert_eq!(catalog.open(&first).unwrap().len(), 1);
        for forged in [
            IndexEntryV1 { seq: 7, base: 7, ..first.clone() },
            IndexEntryV1 { base: 7, ..first.clone() },
            IndexEntryV1 { previous: [1; 32], ..first.clone() },
        ] {
            assert!(matches!(catalog.open(&forged), Err(CatalogError::Open(_))));
            // A provider renumbers an old entry and signs it itself.
            let signed = Signed::new(
                IndexEntry::V1(forged),
                NetworkId([1; 32]),
                &Seed::from_entropy([9; 32]).account_key(),
            );
            assert!(matches!(catalog.adopt(&[signed]), Err(CatalogError::Open(_))));
        }
        assert_eq!(catalog.all().unwrap().len(), 2);
    }

    #[test]
    fn garbage_is_remembered_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        let item = Garbage { node: PublicKey::Ed25519([1; 32]), root: Root::of(b"x") };
        catalog.change(Change::Remove { name: "none".into() }, &[item], Batch::default()).unwrap();
        assert_eq!(catalog.garbage(10).unwrap()[&item.node], [item]);
        catalog.forget_garbage(&[item]).unwrap();
        assert!(catalog.garbage(10).unwrap().is_empty());
    }
}

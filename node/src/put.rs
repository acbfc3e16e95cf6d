//! Put: read -> encrypt -> code -> whiten -> place -> transfer -> receipt -> head -> recipe -> index.
//!
//! A put is resumable. What was placed is journalled shard by shard; a repeated put of the same name reads the source again,
//! and a segment whose plaintext is unchanged is recognised by its key and not sent again. If the source was edited in between, the
//! segment's key, and with it every byte and root, is another, and the old shards are deleted.
//!
//! A put is done only when all n shards of every segment are covered by heads that their providers countersigned, and the index entry is on more providers than may be lost.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use spare_market::amount::StoragePrice;
use spare_market::deal::DealId;
use spare_market::keys::PublicKey;
use spare_market::placement::{Candidate, Placement, TooFewProviders, Wish, choose};
use spare_market::receipt::Receipt;
use spare_proofs::cipher::{Secret, SegmentKey};
use spare_proofs::erasure::Erasure;
use spare_proofs::geometry::Geometry;
use spare_proofs::recipe::{Extent, Recipe, RecipeV1, SegmentRecipe, segments_max};
use spare_proofs::segment::SegmentCoder;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::catalog::{
    BlobEntry, Catalog, CatalogError, Change, Garbage, INLINE_RECIPE_MAX_BYTES, RecipeAt, shards_of,
};
use crate::client::{Client, Transfer};
use crate::deals::{DealError, HeadChange};
use crate::get::GetError;
use crate::limits::{
    CELLS_QUEUED_MAX, NAME_MAX_BYTES, PLACE_ROUNDS_MAX, SEGMENTS_IN_FLIGHT, SEGMENTS_PER_HEAD,
};
use crate::meta::{Batch, MetaError, Table};
use crate::peers::PeerError;
use crate::unix_now_s;

/// What to put.
#[derive(Debug, Clone)]
pub struct PutOptions {
    /// The blob's name.
    pub name: String,
    /// The code.
    pub geometry: Geometry,
    /// Whether a blob of that name may be replaced.
    pub replace: bool,
    /// Length of the source, where it is known beforehand.
    pub bytes: Option<u64>,
    /// Highest price of storage that is paid.
    pub price_max: StoragePrice,
}

/// Why a put did not finish. Whatever was placed is kept for the next try.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The name is empty, too long or has control characters.
    #[error(
        "'{0}' cannot be a blob's name: 1 to {NAME_MAX_BYTES} bytes without control characters, not '.' or '..'"
    )]
    BadName(String),
    /// There is a blob of that name.
    #[error("there already is a blob named '{0}'; add --replace to replace it, or choose another name")]
    Exists(String),
    /// Another put or rm of that name is under way.
    #[error("another put or rm of '{0}' is under way")]
    Busy(String),
    /// All providers together have too little room.
    #[error(
        "{stored_bytes} bytes would be stored, and the {providers} known providers have {free_bytes} bytes free together"
    )]
    NoRoom {
        /// Bytes of all shards.
        stored_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
        /// Providers known.
        providers: usize,
    },
    /// Not enough providers.
    #[error("segment {segment}: {source}{failures}")]
    Providers {
        /// Which segment.
        segment: u64,
        /// What is missing.
        source: TooFewProviders,
        /// What happened with those that were tried.
        failures: String,
    },
    /// Providers kept failing.
    #[error(
        "segment {segment}: {missing} shards could not be placed in {PLACE_ROUNDS_MAX} rounds: {failures}"
    )]
    Transfer {
        /// Which segment.
        segment: u64,
        /// Shards without a provider.
        missing: usize,
        /// What happened.
        failures: String,
    },
    /// Storage cannot be paid for: the account has too little money, or the market cannot be reached.
    #[error(transparent)]
    Funds(DealError),
    /// Providers took shards and did not sign for them.
    #[error(
        "providers took shards and did not countersign the head that covers them: {0}. The same put places those shards elsewhere"
    )]
    Heads(String),
    /// The blob is too long.
    #[error(
        "a blob at this code has at most {segments_max} segments of {segment_bytes} bytes; cut the source in parts"
    )]
    TooLong {
        /// Most segments.
        segments_max: usize,
        /// Bytes of each.
        segment_bytes: usize,
    },
    /// The recipe of a blob that is to be removed cannot be read, so its shards cannot be named.
    #[error(
        "its shards cannot be named, since its recipe cannot be read: {0}. Try again when more providers are up, or remove it with --force and leave its shards where they are"
    )]
    Unnameable(GetError),
    /// The source failed.
    #[error("the source could not be read to its end: {0}")]
    Source(std::io::Error),
    /// The blob is stored and listed here, but the index is not yet safe.
    #[error(
        "all shards are stored, but only {copies} of {needed} needed copies of the index were made: {failures}. The blob is listed; this node goes on trying in the background"
    )]
    Index {
        /// Copies made.
        copies: usize,
        /// Copies needed.
        needed: usize,
        /// What happened.
        failures: String,
    },
    /// The local records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// An unfinished put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PutJournal {
    blob_id: [u8; 16],
    geometry: Geometry,
}

/// What is placed of one segment of an unfinished put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SegmentJournal {
    /// Counts changed plaintexts. It goes into the key, so that shards given up for deletion never come back into use.
    attempt: u32,
    /// Recognises unchanged plaintext without keeping its key.
    key_hash: [u8; 32],
    /// For each shard, who holds it and its root.
    placed: Vec<Option<(PublicKey, Root)>>,
    /// Shards whose provider did not confirm them when the put was resumed. They were placed again, and may still lie there.
    lost: Vec<(PublicKey, Root)>,
}

impl SegmentJournal {
    fn new(attempt: u32, key: &SegmentKey, shards: usize) -> Self {
        Self { attempt, key_hash: Self::hash_of(key), placed: vec![None; shards], lost: Vec::new() }
    }

    fn hash_of(key: &SegmentKey) -> [u8; 32] {
        blake3::derive_key("spare 2026 journalled segment v1", &spare_proofs::encode::to_bytes(key))
    }

    /// What is to be deleted once the put is done: everything placed when no recipe names the segment, else only what was lost and not
    /// placed there again.
    fn garbage(&self, is_used: bool) -> Vec<Garbage> {
        let placed = || self.placed.iter().flatten();
        let lost = self.lost.iter().filter(|lost| !placed().any(|p| p == *lost));
        let unused = placed().filter(|_| !is_used);
        lost.chain(unused).map(|(node, root)| Garbage { node: *node, root: *root }).collect()
    }
}

/// A shard to be sent.
struct Job {
    shard: usize,
    node: PublicKey,
    deal: DealId,
}

/// A segment all of whose shards are placed.
struct PlacedSegment {
    recipe: SegmentRecipe,
    holders: Vec<PublicKey>,
}

/// One put under way.
struct Put {
    client: Arc<Client>,
    transfer: Arc<Transfer>,
    /// Key of the journal: the name, with a suffix for the recipe's own blob.
    journal_key: Vec<u8>,
    geometry: Geometry,
    erasure: Arc<Erasure>,
    blob_key: Secret,
    price_max: StoragePrice,
    /// Bytes that each provider is likely to get.
    expect_bytes: u64,
    uncovered: Arc<Mutex<Uncovered>>,
}

/// Shards that are placed and not covered by a head yet.
#[derive(Default)]
struct Uncovered {
    segments: usize,
    shards: BTreeMap<PublicKey, HeadChange>,
}

/// Stores `source` under a name.
///
/// # Errors
/// [`PutError`]; repeating the same put resumes it.
pub async fn put(
    client: &Arc<Client>,
    options: PutOptions,
    source: impl AsyncRead + Unpin + Send,
    transfer: Arc<Transfer>,
) -> Result<BlobEntry, PutError> {
    check_name(&options.name)?;
    let _not_while_recovering = client.recovering.read().await;
    let _claim = client.claim(&options.name).ok_or_else(|| PutError::Busy(options.name.clone()))?;
    let replaced = client.catalog.get(&options.name)?;
    if replaced.is_some() && !options.replace {
        return Err(PutError::Exists(options.name));
    }
    let needed = options.geometry.n();
    client.find_providers(|c| c.peers.candidates().len() >= needed).await;

    check_room(client, &options)?;
    let blob_id = begin_or_resume(client, &options)?;
    let put = Put::new(client, transfer, &options, blob_id);
    let (recipe, placement) = match put.store(source).await {
        Err(error) => {
            forget_if_empty(client, options.name.as_bytes())?;
            return Err(error);
        }
        stored => stored?,
    };
    let entry = put.remember(recipe, placement, blob_id).await?;
    put.cover().await?;
    finish(client, &options.name, entry.clone(), replaced).await?;
    replicate_index(client, options.geometry.parity() + 1).await?;
    Ok(entry)
}

/// Removes a blob, and what an unfinished put of that name has placed. Its shards are deleted where their providers can be reached, elsewhere later. With `force` also a blob whose recipe cannot
/// be read, so that nobody can name its shards any more; they stay where they are.
///
/// # Errors
/// [`PutError::Busy`], [`PutError::Unnameable`], or the local records failed. `Ok(false)` when there is no such blob.
pub async fn remove(client: &Arc<Client>, name: &str, force: bool) -> Result<bool, PutError> {
    let _not_while_recovering = client.recovering.read().await;
    let _claim = client.claim(name).ok_or_else(|| PutError::Busy(name.to_owned()))?;
    let mut batch = Batch::default();
    let is_unfinished = client.catalog.meta().get::<PutJournal>(Table::Puts, name.as_bytes())?.is_some();
    clear_journal(client, name.as_bytes(), 0, &mut batch)?;
    clear_journal(client, &recipe_journal_key(name.as_bytes()), 0, &mut batch)?;
    match client.catalog.get(name)? {
        None if is_unfinished => client.catalog.meta().commit(&batch)?,
        None => return Ok(false),
        Some(entry) => {
            let garbage = match garbage_of(client, &entry).await {
                Err(error) if !force => return Err(PutError::Unnameable(error)),
                garbage => garbage.unwrap_or_default(),
            };
            client.catalog.change(Change::Remove { name: name.to_owned() }, &garbage, batch)?;
        }
    }
    // The removal is durable here. It should survive this machine, too; but it does not fail because providers are away.
    client.copy_index().await;
    let client = client.clone();
    tokio::spawn(async move { client.tidy().await });
    Ok(true)
}

/// Whether `name` can name a blob.
///
/// # Errors
/// [`PutError::BadName`].
pub fn check_name(name: &str) -> Result<(), PutError> {
    let fine = !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.chars().any(char::is_control);
    // These two mean something else in a URL.
    let fine = fine && name != "." && name != "..";
    if fine { Ok(()) } else { Err(PutError::BadName(name.chars().take(40).collect())) }
}

/// Refuses what cannot fit, before anything is sent. What fits together may still not fit the providers one by one.
fn check_room(client: &Client, options: &PutOptions) -> Result<(), PutError> {
    let Some(bytes) = options.bytes else { return Ok(()) };
    let candidates = client.peers.candidates();
    let free_bytes = candidates.iter().fold(0u64, |sum, c| sum.saturating_add(c.free_bytes));
    let (k, n) = (options.geometry.k() as u64, options.geometry.n() as u64);
    let stored_bytes = bytes.div_ceil(k).saturating_mul(n);
    let has_begun = client.catalog.meta().get::<PutJournal>(Table::Puts, options.name.as_bytes())?.is_some();
    if stored_bytes > free_bytes && !has_begun && candidates.len() as u64 >= n {
        return Err(PutError::NoRoom { stored_bytes, free_bytes, providers: candidates.len() });
    }
    Ok(())
}

/// The names of puts that were cut short.
///
/// # Errors
/// When the metadata store fails.
pub fn unfinished(client: &Client) -> Result<Vec<String>, MetaError> {
    let mut names = Vec::new();
    client.catalog.meta().keys(Table::Puts, |key| {
        // Names have no control characters; the keys of segments and of recipes' blobs do.
        if !key.iter().any(|byte| *byte < b' ') {
            names.push(String::from_utf8_lossy(key).into_owned());
        }
    })?;
    Ok(names)
}

/// Finds the journal of an unfinished put of this name and code, or starts one. One of another code is given up.
fn begin_or_resume(client: &Client, options: &PutOptions) -> Result<[u8; 16], PutError> {
    let meta = client.catalog.meta();
    let key = options.name.as_bytes();
    let unfinished: Option<PutJournal> = meta.get(Table::Puts, key)?;
    if let Some(journal) = &unfinished {
        if journal.geometry == options.geometry {
            return Ok(journal.blob_id);
        }
        let mut batch = Batch::default();
        clear_journal(client, key, 0, &mut batch)?;
        clear_journal(client, &recipe_journal_key(key), 0, &mut batch)?;
        meta.commit(&batch)?;
    }
    let journal = PutJournal { blob_id: rand::random(), geometry: options.geometry };
    // Not synced: if a power cut takes it, the put begins anew under another id, and what was placed goes with no head to cover it.
    meta.note(Batch::default().put(Table::Puts, key, &journal))?;
    Ok(journal.blob_id)
}

/// Forgets an unfinished put that has placed nothing: there is nothing to go on with.
fn forget_if_empty(client: &Client, journal_key: &[u8]) -> Result<(), MetaError> {
    let meta = client.catalog.meta();
    let mut is_empty = true;
    meta.scan::<SegmentJournal>(Table::Puts, &[journal_key, b"\0"].concat(), |_, segment| {
        is_empty &= segment.placed.iter().all(Option::is_none) && segment.lost.is_empty();
        if is_empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if is_empty { meta.note(Batch::default().delete(Table::Puts, journal_key)) } else { Ok(()) }
}

fn segment_key(journal_key: &[u8], segment: u64) -> Vec<u8> {
    // Names have no control characters, so no name continues into another's segments.
    [journal_key, b"\0", &segment.to_be_bytes()].concat()
}

/// Clears the journal of a put. Segments from number `used` on, which no recipe names, become garbage.
fn clear_journal(client: &Client, journal_key: &[u8], used: u64, batch: &mut Batch) -> Result<(), MetaError> {
    batch.delete(Table::Puts, journal_key);
    let prefix = [journal_key, b"\0"].concat();
    for (rest, segment) in client.catalog.meta().all::<SegmentJournal>(Table::Puts, &prefix)? {
        let number = rest.as_slice().try_into().map_or(0, u64::from_be_bytes);
        Catalog::add_garbage(batch, &segment.garbage(number < used));
        batch.delete(Table::Puts, &[&prefix[..], &rest].concat());
    }
    Ok(())
}

/// The journal key of the blob that holds a put's recipe.
fn recipe_journal_key(journal_key: &[u8]) -> Vec<u8> {
    [journal_key, b"\x01recipe"].concat()
}

impl Put {
    fn new(client: &Arc<Client>, transfer: Arc<Transfer>, options: &PutOptions, blob_id: [u8; 16]) -> Self {
        let geometry = options.geometry;
        let blob_key = client.catalog.recipe_key().derive("spare 2026 blob key v1", &blob_id);
        Self {
            client: client.clone(),
            transfer,
            journal_key: options.name.clone().into_bytes(),
            geometry,
            erasure: Arc::new(Erasure::new(geometry)),
            blob_key,
            price_max: options.price_max,
            expect_bytes: options.bytes.unwrap_or(0).div_ceil(geometry.k() as u64),
            uncovered: Arc::default(),
        }
    }

    /// Cuts `source` into segments and places them, a few at a time.
    async fn store(&self, source: impl AsyncRead + Unpin + Send) -> Result<(Recipe, Placement), PutError> {
        let segment_bytes = self.geometry.segment_plaintext_max_bytes();
        let segments_max = segments_max(self.geometry);
        let segments = futures::stream::try_unfold((source, 0u64), |(mut source, index)| async move {
            let plaintext = read_segment(&mut source, segment_bytes).await.map_err(PutError::Source)?;
            if index as usize >= segments_max && !plaintext.is_empty() {
                return Err(PutError::TooLong { segments_max, segment_bytes });
            }
            Ok((!plaintext.is_empty()).then_some(((index, plaintext), (source, index + 1))))
        });
        let placed: Vec<PlacedSegment> = segments
            .map_ok(|(index, plaintext)| self.place_segment(index, Arc::new(plaintext)))
            .try_buffered(SEGMENTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let (segments, holders): (Vec<_>, Vec<_>) = placed.into_iter().map(|p| (p.recipe, p.holders)).unzip();
        let whole =
            |(i, s): (usize, &SegmentRecipe)| Extent { segment: i as u32, offset: 0, len: s.plaintext_bytes };
        let extents = segments.iter().enumerate().map(whole).collect();
        Ok((Recipe::V1(RecipeV1 { geometry: self.geometry, segments, extents }), Placement::new(&holders)))
    }

    /// Places all shards of one segment and returns what it takes to read it.
    async fn place_segment(&self, index: u64, plaintext: Arc<Vec<u8>>) -> Result<PlacedSegment, PutError> {
        let (key, mut journal) = self.resume_segment(index, &plaintext).await?;
        let coder = Arc::new(SegmentCoder::new(self.erasure.clone(), &key, plaintext.len()));
        let mut failures = BTreeMap::new();
        for round in 0.. {
            let missing: Vec<usize> =
                (0..self.geometry.n()).filter(|i| journal.placed[*i].is_none()).collect();
            if missing.is_empty() {
                break;
            }
            if round == PLACE_ROUNDS_MAX {
                return Err(PutError::Transfer {
                    segment: index,
                    missing: missing.len(),
                    failures: list(&failures),
                });
            }
            if round > 0 {
                self.transfer.shards_replaced.fetch_add(missing.len() as u64, Ordering::Relaxed);
            }
            let shard_bytes = coder.layout().shard_bytes() as u64;
            let providers = self.choose(index, &journal, &missing, shard_bytes, &failures)?;
            let jobs = self.fund(missing, providers, shard_bytes, &mut failures).await?;
            self.upload(index, &coder, &plaintext, jobs, &mut journal, &mut failures).await?;
        }
        self.transfer.done_bytes.fetch_add(plaintext.len() as u64, Ordering::Relaxed);
        if self.note_uncovered(&journal, coder.layout().shard_bytes() as u64) >= SEGMENTS_PER_HEAD {
            self.cover().await?;
        }
        let (holders, roots) = journal.placed.into_iter().flatten().unzip();
        Ok(PlacedSegment {
            recipe: SegmentRecipe { key, plaintext_bytes: plaintext.len() as u32, roots },
            holders,
        })
    }

    /// Makes sure that each of `providers` is paid for its shard. Those with whom that fails are left out, and noted among the failures.
    async fn fund(
        &self,
        shards: Vec<usize>,
        providers: Vec<PublicKey>,
        shard_bytes: u64,
        failures: &mut BTreeMap<PublicKey, String>,
    ) -> Result<Vec<Job>, PutError> {
        let ensured =
            self.client.deals.ensure(&providers, shard_bytes, self.expect_bytes, self.price_max).await;
        let mut jobs = Vec::new();
        for ((shard, node), deal) in shards.into_iter().zip(providers).zip(ensured.map_err(PutError::Funds)?)
        {
            match deal {
                Ok(deal) => jobs.push(Job { shard, node, deal }),
                // Not this provider's fault: others would not do better.
                Err(error) if error.concerns_all() => return Err(PutError::Funds(error)),
                Err(error) => {
                    tracing::info!(%node, %error, "no deal could be made");
                    failures.insert(node, error.to_string());
                }
            }
        }
        Ok(jobs)
    }

    /// Notes the shards of a segment for the next heads. Returns how many segments wait for that.
    fn note_uncovered(&self, journal: &SegmentJournal, shard_bytes: u64) -> usize {
        let mut uncovered = self.uncovered.lock().expect("no holder panics");
        for (node, root) in journal.placed.iter().flatten() {
            uncovered.shards.entry(*node).or_default().add.push(Member { root: *root, bytes: shard_bytes });
        }
        uncovered.segments += 1;
        uncovered.segments
    }

    /// Has providers sign for the shards that were placed. With those that do not, nothing counts as placed.
    async fn cover(&self) -> Result<(), PutError> {
        let Uncovered { shards, .. } = std::mem::take(&mut *self.uncovered.lock().expect("no holder panics"));
        let failed = self.client.deals.exchange(shards, self.client.index_hash()).await;
        if failed.is_empty() {
            return Ok(());
        }
        let failures: BTreeMap<PublicKey, String> =
            failed.into_iter().map(|(node, error)| (node, error.to_string())).collect();
        let mut batch = Batch::default();
        for journal_key in [self.journal_key.clone(), recipe_journal_key(&self.journal_key)] {
            let prefix = [&journal_key[..], b"\0"].concat();
            let segments = self.client.catalog.meta().all::<SegmentJournal>(Table::Puts, &prefix)?;
            for (rest, mut segment) in segments {
                for placed in &mut segment.placed {
                    if placed.is_some_and(|(node, _)| failures.contains_key(&node)) {
                        segment.lost.extend(placed.take());
                    }
                }
                batch.put(Table::Puts, &[&prefix[..], &rest].concat(), &segment);
            }
        }
        self.client.catalog.meta().note(&batch)?;
        Err(PutError::Heads(list(&failures)))
    }

    async fn key_of(&self, index: u64, attempt: u32, plaintext: Arc<Vec<u8>>) -> SegmentKey {
        let blob_key = self.blob_key.derive("spare 2026 put attempt v1", &attempt.to_le_bytes());
        tokio::task::spawn_blocking(move || SegmentKey::for_plaintext(&blob_key, index, &plaintext))
            .await
            .expect("hashing does not panic")
    }

    /// The segment's key, and what an earlier try placed of it, if its plaintext was the same; checked with the providers.
    async fn resume_segment(
        &self,
        index: u64,
        plaintext: &Arc<Vec<u8>>,
    ) -> Result<(SegmentKey, SegmentJournal), PutError> {
        let journal_key = segment_key(&self.journal_key, index);
        let meta = self.client.catalog.meta();
        let known = meta.get::<SegmentJournal>(Table::Puts, &journal_key)?;
        let attempt = known.as_ref().map_or(0, |known| known.attempt);
        let key = self.key_of(index, attempt, plaintext.clone()).await;
        let Some(mut known) = known else {
            let journal = SegmentJournal::new(attempt, &key, self.geometry.n());
            return Ok((key, journal));
        };
        if known.key_hash != SegmentJournal::hash_of(&key) {
            let key = self.key_of(index, attempt + 1, plaintext.clone()).await;
            let journal = SegmentJournal::new(attempt + 1, &key, self.geometry.n());
            let mut batch = Batch::default();
            Catalog::add_garbage(&mut batch, &known.garbage(false));
            meta.commit(batch.put(Table::Puts, &journal_key, &journal))?;
            return Ok((key, journal));
        }
        let held = self.still_held(&known).await;
        for placed in &mut known.placed {
            if placed.is_some_and(|p| !held.contains(&p)) {
                known.lost.extend(placed.take());
            }
        }
        self.transfer.shards_resumed.fetch_add(held.len() as u64, Ordering::Relaxed);
        Ok((key, known))
    }

    /// Those of the journalled shards that their providers confirm.
    async fn still_held(&self, journal: &SegmentJournal) -> HashSet<(PublicKey, Root)> {
        let mut by_node: BTreeMap<PublicKey, Vec<Root>> = BTreeMap::new();
        for (node, root) in journal.placed.iter().flatten() {
            by_node.entry(*node).or_default().push(*root);
        }
        let checks = by_node.into_iter().map(|(node, roots)| async move {
            // Failure domains give a provider one shard of a segment, so this fits one request.
            let held =
                self.client.peers.with_session(&node, async |session| session.holds(&roots).await).await;
            let held = held.unwrap_or_default();
            roots
                .into_iter()
                .zip(held)
                .filter(|(_, held)| *held)
                .map(|(root, _)| (node, root))
                .collect::<Vec<_>>()
        });
        futures::future::join_all(checks).await.into_iter().flatten().collect()
    }

    /// Chooses a provider for each missing shard, in failure domains apart from those that hold the others.
    fn choose(
        &self,
        index: u64,
        journal: &SegmentJournal,
        missing: &[usize],
        shard_bytes: u64,
        failures: &BTreeMap<PublicKey, String>,
    ) -> Result<Vec<PublicKey>, PutError> {
        let candidates = self.client.peers.candidates();
        let holding: HashSet<PublicKey> = journal.placed.iter().flatten().map(|p| p.0).collect();
        let (taken, open): (Vec<Candidate>, Vec<Candidate>) =
            candidates.into_iter().partition(|c| holding.contains(&c.node));
        let open: Vec<Candidate> = open.into_iter().filter(|c| !failures.contains_key(&c.node)).collect();
        let wish = Wish { providers: missing.len(), shard_bytes, price_max: self.price_max };
        let chosen = choose(&open, &taken, &wish, &rand::random());
        let chosen = chosen.map_err(|mut source| {
            source.needed = self.geometry.n();
            source.found += taken.len();
            source.known += taken.len() + failures.len();
            let failures = if failures.is_empty() {
                String::new()
            } else {
                format!("; tried in vain: {}", list(failures))
            };
            PutError::Providers { segment: index, source, failures }
        })?;
        Ok(chosen.into_iter().map(|c| c.node).collect())
    }

    /// Codes the segment once and sends the wanted shards, each to its provider. Journals what was accepted, notes what failed.
    async fn upload(
        &self,
        index: u64,
        coder: &Arc<SegmentCoder>,
        plaintext: &Arc<Vec<u8>>,
        jobs: Vec<Job>,
        journal: &mut SegmentJournal,
        failures: &mut BTreeMap<PublicKey, String>,
    ) -> Result<(), PutError> {
        let shard_bytes = coder.layout().shard_bytes() as u64;
        let owner = self.client.catalog.account();
        let journal_key = segment_key(&self.journal_key, index);
        let mut senders = Vec::with_capacity(jobs.len());
        let mut uploads = futures::stream::FuturesUnordered::new();
        for Job { shard, node, deal } in jobs {
            let (sender, cells) = mpsc::channel(CELLS_QUEUED_MAX);
            senders.push((shard, sender));
            let peers = self.client.peers.clone();
            uploads
                .push(async move { (shard, node, deal, peers.store(&node, deal, shard_bytes, cells).await) });
        }
        let (coder, plaintext) = (coder.clone(), plaintext.clone());
        let mut coding = tokio::task::spawn_blocking(move || code_into(&coder, &plaintext, senders));
        let mut roots: Option<BTreeMap<usize, Root>> = None;
        let mut receipts = Vec::new();
        loop {
            tokio::select! {
                coded = &mut coding, if roots.is_none() => roots = Some(coded.expect("coding does not panic")),
                upload = uploads.next() => match upload {
                    None if roots.is_some() => return Ok(()),
                    // All uploads failed: the coder has nobody left to send to and ends at once.
                    None => roots = Some((&mut coding).await.expect("coding does not panic")),
                    Some((shard, node, deal, Ok(receipt))) => receipts.push((shard, node, deal, receipt)),
                    Some((shard, node, deal, Err(error))) => {
                        tracing::info!(segment = index, shard, %node, %error, "a shard goes to another provider");
                        self.client.deals.give_up(deal, shard_bytes);
                        failures.insert(node, error.to_string());
                    }
                }
            }
            let Some(roots) = &roots else { continue };
            for (shard, node, deal, receipt) in receipts.drain(..) {
                let expected =
                    Receipt::V1 { owner, root: roots[&shard], shard_bytes, stored_s: stored_s(&receipt) };
                if receipt != expected {
                    self.client.deals.give_up(deal, shard_bytes);
                    failures.insert(node, PeerError::Protocol("its receipt names other bytes").to_string());
                    continue;
                }
                journal.placed[shard] = Some((node, roots[&shard]));
                self.transfer.shards_sent.fetch_add(1, Ordering::Relaxed);
                self.client.catalog.meta().note(Batch::default().put(Table::Puts, &journal_key, journal))?;
            }
        }
    }

    /// Seals the recipe and says where it is: in the index if it is short, else stored as a blob of its own.
    async fn remember(
        &self,
        recipe: Recipe,
        placement: Placement,
        blob_id: [u8; 16],
    ) -> Result<BlobEntry, PutError> {
        let Recipe::V1(v1) = &recipe;
        let bytes = v1.blob_bytes();
        let sealed = recipe.seal(self.client.catalog.recipe_key());
        let recipe = if sealed.len() <= INLINE_RECIPE_MAX_BYTES {
            RecipeAt::Inline(sealed)
        } else {
            let outer = Self {
                client: self.client.clone(),
                transfer: Arc::default(),
                journal_key: recipe_journal_key(&self.journal_key),
                geometry: self.geometry,
                erasure: self.erasure.clone(),
                blob_key: self.blob_key.derive("spare 2026 recipe blob v1", &[]),
                price_max: self.price_max,
                expect_bytes: 0,
                uncovered: self.uncovered.clone(),
            };
            let (recipe, placement) = outer.store(&sealed[..]).await?;
            self.client.catalog.cache_recipe(&blob_id, &sealed)?;
            RecipeAt::Stored { recipe: recipe.seal(self.client.catalog.recipe_key()), placement }
        };
        Ok(BlobEntry { blob_id, bytes, created_s: unix_now_s(), recipe, placement })
    }
}

/// Reads until the segment is full or the source ends.
async fn read_segment(
    source: &mut (impl AsyncRead + Unpin),
    segment_bytes: usize,
) -> std::io::Result<Vec<u8>> {
    // Only what is read takes memory; growing step by step would copy it.
    let mut plaintext = Vec::with_capacity(segment_bytes);
    (&mut *source).take(segment_bytes as u64).read_to_end(&mut plaintext).await?;
    Ok(plaintext)
}

/// Codes row after row and hands each wanted shard's cells to its upload. Returns the wanted shards' roots. Blocks.
fn code_into(
    coder: &SegmentCoder,
    plaintext: &[u8],
    senders: Vec<(usize, mpsc::Sender<Bytes>)>,
) -> BTreeMap<usize, Root> {
    let mut hashers: Vec<blake3::Hasher> = senders.iter().map(|_| blake3::Hasher::new()).collect();
    let mut row = Vec::new();
    for r in 0..coder.layout().rows() {
        row.resize(coder.row_bytes(r), 0);
        coder.code_row(r, plaintext, &mut row);
        let cell_bytes = coder.layout().row(r).cell_bytes;
        for ((shard, sender), hasher) in senders.iter().zip(&mut hashers) {
            // Copied, so that one slow provider does not keep whole rows in memory.
            let cell = Bytes::copy_from_slice(&row[shard * cell_bytes..(shard + 1) * cell_bytes]);
            hasher.update(&cell);
            // An upload that failed has dropped its end; the others go on.
            let _ = sender.blocking_send(cell);
        }
    }
    senders
        .iter()
        .zip(hashers)
        .map(|((shard, _), h)| (*shard, Root::from_bytes(h.finalize().into())))
        .collect()
}

fn stored_s(receipt: &Receipt) -> u64 {
    let Receipt::V1 { stored_s, .. } = receipt;
    *stored_s
}

fn list(failures: &BTreeMap<PublicKey, String>) -> String {
    let shown = failures.iter().map(|(node, why)| format!("{}: {why}", &node.to_string()[..12]));
    shown.take(10).collect::<Vec<_>>().join("; ")
}

/// Makes the finished put durable and clears its journal.
async fn finish(
    client: &Arc<Client>,
    name: &str,
    entry: BlobEntry,
    replaced: Option<BlobEntry>,
) -> Result<(), PutError> {
    let garbage = match &replaced {
        Some(old) => garbage_of(client, old).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the shards of a replaced blob cannot be named, and stay with their providers");
            Vec::new()
        }),
        None => Vec::new(),
    };
    let mut batch = Batch::default();
    let segments_of = |placement: &Placement| {
        let Placement::V1 { segments, .. } = placement;
        segments.len() as u64
    };
    clear_journal(client, name.as_bytes(), segments_of(&entry.placement), &mut batch)?;
    let recipe_segments = match &entry.recipe {
        RecipeAt::Inline(_) => 0,
        RecipeAt::Stored { placement, .. } => segments_of(placement),
    };
    clear_journal(client, &recipe_journal_key(name.as_bytes()), recipe_segments, &mut batch)?;
    client.catalog.change(Change::Put { name: name.to_owned(), entry }, &garbage, batch)?;
    Ok(())
}

/// All shards of a blob, those of its recipe included.
///
/// # Errors
/// When the recipe cannot be read: without it the shards cannot be named.
async fn garbage_of(client: &Arc<Client>, entry: &BlobEntry) -> Result<Vec<Garbage>, GetError> {
    let recipe = crate::get::load_recipe(client, entry).await?;
    let mut garbage = shards_of(&Recipe::V1(recipe), &entry.placement);
    if let RecipeAt::Stored { recipe, placement } = &entry.recipe {
        garbage.extend(shards_of(&client.catalog.open_recipe(recipe)?, placement));
    }
    Ok(garbage)
}

/// Copies the index until it survives the loss that the blob survives.
async fn replicate_index(client: &Arc<Client>, needed: usize) -> Result<(), PutError> {
    let (copies, failures) = client.push_index(needed).await;
    let needed = needed.min(copies + failures.len());
    if copies >= needed && copies > 0 {
        return Ok(());
    }
    let failures = failures.into_iter().map(|(node, error)| (node, error.to_string())).collect();
    Err(PutError::Index { copies, needed: needed.max(1), failures: list(&failures) })
}

//! Put: read -> encrypt -> code -> whiten -> place -> transfer -> receipt -> head -> recipe -> index.
//!
//! A put is resumable. What was placed is journalled shard by shard; a repeated put of the same name reads the source again,
//! and a segment whose plaintext is unchanged is recognised by its key and not sent again. If the source was edited in between, the
//! segment's key, and with it every byte and root, is another, and the old shards are deleted.
//!
//! A put is done only when all n shards of every segment are covered by heads that their providers countersigned, and the index entry is on more providers than may be lost.

mod journal;
mod place;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use spare_market::amount::StoragePrice;
use spare_market::keys::PublicKey;
use spare_market::placement::{Placement, TooFewProviders};
use spare_proofs::cipher::Secret;
use spare_proofs::erasure::Erasure;
use spare_proofs::geometry::Geometry;
use spare_proofs::recipe::{Extent, Recipe, RecipeV1, SegmentRecipe, segments_max};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::catalog::{
    BlobEntry, CatalogError, Change, Garbage, INLINE_RECIPE_MAX_BYTES, RecipeAt, shards_of,
};
use crate::client::{Client, Transfer};
use crate::deals::{DealError, HeadChange};
use crate::get::GetError;
use crate::limits::{NAME_MAX_BYTES, PLACE_ROUNDS_MAX, SEGMENTS_IN_FLIGHT};
use crate::meta::{Batch, MetaError, Table};
use crate::unix_now_s;

pub use journal::unfinished;
use journal::{PutJournal, begin_or_resume, clear_journal, forget_if_empty, recipe_journal_key};
use place::PlacedSegment;

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

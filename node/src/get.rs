//! Get: recipe -> placement -> fetch k verified shards, fastest first -> unwhiten -> decode -> decrypt.
//!
//! A read touches only the rows that hold its bytes. Of each segment it asks the k most promising providers; one that fails is
//! replaced at once, and when some let wait, as many others are asked besides. What arrives is verified in 16 KiB groups against the
//! roots in the recipe, so a wrong byte costs one group and never reaches the reader.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use spare_market::keys::PublicKey;
use spare_market::placement::Placement;
use spare_proofs::erasure::Erasure;
use spare_proofs::recipe::{Recipe, RecipeError, RecipeV1, SegmentRecipe, Slice};
use spare_proofs::segment::{SegmentCoder, SegmentError};

use crate::catalog::{BlobEntry, RecipeAt};
use crate::client::Client;
use crate::limits::{HEDGE_AFTER, SLICES_IN_FLIGHT};

/// Why a blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Too few shards could be fetched.
    #[error("segment {segment}: only {have} of the {needed} shards needed could be fetched. {failures}")]
    Missing {
        /// Which segment.
        segment: usize,
        /// Shards fetched.
        have: usize,
        /// Shards needed.
        needed: usize,
        /// For each shard that is missing, who should have it and what happened.
        failures: String,
    },
    /// The recipe cannot be opened.
    #[error("the recipe cannot be used: {0}")]
    Recipe(#[from] RecipeError),
    /// The placement is another blob's.
    #[error("the record of where the shards are does not fit the recipe")]
    Placement,
    /// The shards do not decode.
    #[error("segment {segment} does not decode: {source}")]
    Segment {
        /// Which segment.
        segment: usize,
        /// Why.
        source: SegmentError,
    },
}

/// A blob ready to be read.
pub struct Reader {
    client: Arc<Client>,
    recipe: RecipeV1,
    placement: Placement,
    erasure: Arc<Erasure>,
}

/// The recipe of a blob, fetched if it is stored as a blob itself.
///
/// # Errors
/// [`GetError`].
pub async fn load_recipe(client: &Arc<Client>, entry: &BlobEntry) -> Result<RecipeV1, GetError> {
    let Recipe::V1(recipe) = match &entry.recipe {
        RecipeAt::Inline(sealed) => client.catalog.open_recipe(sealed)?,
        RecipeAt::Stored { recipe, placement } => {
            if let Ok(Some(sealed)) = client.catalog.cached_recipe(&entry.blob_id) {
                client.catalog.open_recipe(&sealed)?
            } else {
                let sealed = fetch_recipe(client, recipe, placement).await?;
                let opened = client.catalog.open_recipe(&sealed)?;
                if let Err(error) = client.catalog.cache_recipe(&entry.blob_id, &sealed) {
                    tracing::warn!(%error, "a recipe could not be kept at hand");
                }
                opened
            }
        }
    };
    if !entry.placement.fits(recipe.segments.len(), recipe.geometry.n()) {
        return Err(GetError::Placement);
    }
    Ok(recipe)
}

/// The sealed recipe that is stored as a blob itself, whose own recipe is `recipe`.
async fn fetch_recipe(
    client: &Arc<Client>,
    recipe: &[u8],
    placement: &Placement,
) -> Result<Vec<u8>, GetError> {
    let Recipe::V1(outer) = client.catalog.open_recipe(recipe)?;
    if !placement.fits(outer.segments.len(), outer.geometry.n()) {
        return Err(GetError::Placement);
    }
    let len = outer.blob_bytes();
    let reader = Arc::new(Reader::with_recipe(client, outer, placement.clone()));
    let mut parts = std::pin::pin!(reader.read(0..len));
    let mut sealed = Vec::new();
    while let Some(part) = parts.next().await {
        sealed.extend_from_slice(&part?);
    }
    Ok(sealed)
}

impl Reader {
    /// Prepares to read a blob.
    ///
    /// # Errors
    /// [`GetError`] when its recipe cannot be had.
    pub async fn open(client: &Arc<Client>, entry: &BlobEntry) -> Result<Self, GetError> {
        let recipe = load_recipe(client, entry).await?;
        let k = recipe.geometry.k();
        let segments: Vec<Vec<PublicKey>> =
            (0..recipe.segments.len()).map(|s| entry.placement.holders(s)).collect();
        let is_known = |c: &Client, node: &PublicKey| c.peers.book.get(node).is_some();
        client
            .find_providers(|c| {
                segments.iter().all(|holders| holders.iter().filter(|node| is_known(c, node)).count() >= k)
            })
            .await;
        Ok(Self::with_recipe(client, recipe, entry.placement.clone()))
    }

    fn with_recipe(client: &Arc<Client>, recipe: RecipeV1, placement: Placement) -> Self {
        let erasure = Arc::new(Erasure::new(recipe.geometry));
        Self { client: client.clone(), recipe, placement, erasure }
    }

    /// The plaintext of blob bytes `range`, in order.
    pub fn read(self: Arc<Self>, range: Range<u64>) -> impl Stream<Item = Result<Bytes, GetError>> + Send {
        let slices = self.recipe.slices(range.start, range.end);
        futures::stream::iter(slices)
            .map(move |slice| {
                let this = self.clone();
                // A task of its own, so that decoding one slice does not hold up fetching the next.
                let task = tokio::spawn(async move { this.read_slice(slice).await });
                AbortOnDrop(task)
            })
            .buffered(SLICES_IN_FLIGHT)
    }

    async fn read_slice(&self, slice: Slice) -> Result<Bytes, GetError> {
        let segment = &self.recipe.segments[slice.segment];
        let coder = SegmentCoder::new(self.erasure.clone(), &segment.key, segment.plaintext_bytes as usize);
        let (_, rows) = coder.layout().locate(slice.start, slice.end);
        let first_byte = coder.layout().record_plaintext(rows.start * self.recipe.geometry.k()).start;
        let before = self.addresses_of(slice.segment);
        let shards = match self.fetch(&slice, segment, &coder, &rows).await {
            Err(error) => {
                // Providers may have moved: ask around once, and try again if any did.
                self.client.learn_asks().await;
                if self.addresses_of(slice.segment) == before {
                    return Err(error);
                }
                self.fetch(&slice, segment, &coder, &rows).await?
            }
            fetched => fetched?,
        };
        let decoding = tokio::task::spawn_blocking(move || coder.decode(rows, shards));
        let plaintext = decoding
            .await
            .expect("decoding does not panic")
            .map_err(|source| GetError::Segment { segment: slice.segment, source })?;
        Ok(Bytes::from(plaintext).slice(slice.start - first_byte..slice.end - first_byte))
    }

    /// Where the holders of a segment are thought to be.
    fn addresses_of(&self, segment: usize) -> Vec<Option<SocketAddr>> {
        let addr = |node: &PublicKey| self.client.peers.book.get(node)?.direct_addr();
        self.placement.holders(segment).iter().map(addr).collect()
    }

    /// Fetches `rows` of any k shards.
    async fn fetch(
        &self,
        slice: &Slice,
        segment: &SegmentRecipe,
        coder: &SegmentCoder,
        rows: &Range<usize>,
    ) -> Result<Vec<Option<Vec<u8>>>, GetError> {
        let (k, n) = (self.recipe.geometry.k(), self.recipe.geometry.n());
        let holders = self.placement.holders(slice.segment);
        let shard_bytes = coder.layout().shard_bytes() as u64;
        let range = coder.shard_range(rows);
        let range = range.start as u64..range.end as u64;
        let mut waiting = self.fastest_first(&holders, k).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut outstanding: BTreeMap<usize, Progress> = BTreeMap::new();
        let mut shards: Vec<Option<Vec<u8>>> = vec![None; n];
        let mut failures = Vec::new();
        let mut have = 0;
        let mut more = k;
        let mut look = tokio::time::interval(HEDGE_AFTER);
        look.reset();
        while have < k {
            for shard in waiting.by_ref().take(more) {
                let (node, root, range) = (holders[shard], segment.roots[shard], range.clone());
                let progress = Progress::default();
                outstanding.insert(shard, progress.clone());
                asked.push(async move {
                    let result =
                        self.client.deals.read(&node, root, shard_bytes, range, &progress.received).await;
                    (shard, node, result)
                });
            }
            more = tokio::select! {
                answer = asked.next() => match answer {
                    None => break,
                    Some((shard, _, Ok(bytes))) => {
                        outstanding.remove(&shard);
                        shards[shard] = Some(bytes);
                        have += 1;
                        0
                    }
                    Some((shard, node, Err(error))) => {
                        tracing::info!(segment = slice.segment, shard, %node, %error, "a shard could not be fetched");
                        failures.push(format!("shard {shard} at {}: {error}", &node.to_string()[..12]));
                        // One that was silent has been replaced already.
                        usize::from(outstanding.remove(&shard).is_some_and(|p| !p.replaced))
                    }
                },
                _ = look.tick() => {
                    let silent = outstanding.iter_mut().filter_map(|(shard, p)| p.fell_silent().then_some(*shard));
                    // Whoever lets wait is asked last for a while; another is asked besides.
                    silent.inspect(|shard| self.client.peers.note_slow(&holders[*shard])).count()
                }
            };
        }
        if have < k {
            let failures = failures.join("; ");
            return Err(GetError::Missing { segment: slice.segment, have, needed: k, failures });
        }
        Ok(shards)
    }

    /// The shards in the order in which to ask for them: holders that failed lately last, faster ones first, and among equals data
    /// before parity, which saves decoding. Rates within a factor of two count as equal.
    fn fastest_first(&self, holders: &[PublicKey], k: usize) -> Vec<usize> {
        let peers = &self.client.peers;
        let rank = |shard: &usize| {
            let rate = peers.rate(&holders[*shard]).map_or(i32::MAX, |rate| rate.max(1.0).log2() as i32);
            (
                peers.is_cooling(&holders[*shard]),
                *shard >= k && rate == i32::MAX,
                std::cmp::Reverse(rate),
                *shard >= k,
            )
        };
        let mut order: Vec<usize> = (0..holders.len()).collect();
        order.sort_by_key(rank);
        order
    }
}

/// How far a fetch has come.
#[derive(Clone, Default)]
struct Progress {
    received: Arc<AtomicU64>,
    received_before: u64,
    replaced: bool,
}

impl Progress {
    /// Whether nothing arrived since the last look. Said once.
    fn fell_silent(&mut self) -> bool {
        let received = self.received.load(Ordering::Relaxed);
        let silent = received == self.received_before && !self.replaced;
        self.received_before = received;
        self.replaced |= silent;
        silent
    }
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = T;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<T> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|joined| joined.expect("reading does not panic"))
    }
}

//! Placing a segment: choose providers, fund the deals with them, send each its shard, compare its receipt, and have it sign a head.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use spare_market::deal::DealId;
use spare_market::keys::PublicKey;
use spare_market::placement::{Candidate, Wish, choose};
use spare_market::receipt::Receipt;
use spare_proofs::cipher::SegmentKey;
use spare_proofs::recipe::SegmentRecipe;
use spare_proofs::segment::SegmentCoder;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::sync::mpsc;

use super::journal::{SegmentJournal, recipe_journal_key, segment_key};
use super::{Put, PutError, Uncovered, list};
use crate::catalog::Catalog;
use crate::limits::{CELLS_QUEUED_MAX, PLACE_ROUNDS_MAX, SEGMENTS_PER_HEAD};
use crate::meta::{Batch, Table};
use crate::peers::PeerError;

/// A shard to be sent.
struct Job {
    shard: usize,
    node: PublicKey,
    deal: DealId,
}

/// A segment all of whose shards are placed.
pub(super) struct PlacedSegment {
    pub(super) recipe: SegmentRecipe,
    pub(super) holders: Vec<PublicKey>,
}

impl Put {
    /// Places all shards of one segment and returns what it takes to read it.
    pub(super) async fn place_segment(
        &self,
        index: u64,
        plaintext: Arc<Vec<u8>>,
    ) -> Result<PlacedSegment, PutError> {
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
    pub(super) async fn cover(&self) -> Result<(), PutError> {
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
                self.client.catalog.meta().note(Batch::default().put(Table::Puts, &journal_key, journal))?;
                self.transfer.shards_sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
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

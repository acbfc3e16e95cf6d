//! Answering a read: verified groups from disk to the wire, the transcript signed at its end, and what was sent counted on the deal's tab.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use spare_market::deal::DealId;
use spare_market::grant::{Authority, Scope};
use spare_market::keys::PublicKey;
use spare_market::receipt::Transcript;
use spare_market::signed::Signed;
use spare_proofs::tree::{GROUP_BYTES, Item, Root};

use super::{Answerer, SessionEnd, refusal, within};
use crate::earn::Earner;
use crate::frames::{Refusal, RefusalCode, Response, write_frame};
use crate::limits::{READ_WAIT, SHARD_MAX_BYTES, STALL_TIMEOUT, bulk_timeout};
use crate::places::Place;
use crate::shards::{OpenShard, READ_MAX_BYTES, ShardError};
use crate::transport::Wire;

impl Answerer {
    pub(super) async fn read(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        root: Root,
        range: Range<u64>,
        request: &[u8],
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        if let Err(refusal) = self.storage(authority, Scope::Read) {
            return Ok(Err(refusal));
        }
        let Some(place) = self.reads.take_soon(wire.peer, wire.remote_ip.into(), READ_WAIT).await else {
            return Ok(Err(Refusal::new(RefusalCode::Busy, "too many reads are under way")));
        };
        let reading = self.read_at(&place, wire, authority, root, range, request);
        tokio::select! {
            read = reading => read,
            () = place.is_lost() => Err(SessionEnd::GaveWay),
        }
    }

    async fn read_at(
        &self,
        place: &Place<PublicKey>,
        wire: &mut Wire,
        authority: Option<&Authority>,
        root: Root,
        range: Range<u64>,
        request: &[u8],
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, earner) = match self.storage(authority, Scope::Read) {
            Ok((owner, earner)) => (owner, earner.clone()),
            Err(refusal) => return Ok(Err(refusal)),
        };
        // In one piece, since whatever changes threads waits for its turn, and most reads end with their first batch.
        let begun = tokio::task::spawn_blocking(move || Begun::begin(&earner, &owner, &root, range)).await?;
        let Begun { shard, mut meter, first: mut ready, mut batches } = match begun {
            Ok(begun) => begun,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut transcript = Transcript::new(request);
        let shard_bytes = shard.tree().shard_bytes();
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Reading { shard_bytes })).await?;
        let ends_at = tokio::time::Instant::now() + bulk_timeout(shard_bytes);
        loop {
            if tokio::time::Instant::now() > ends_at {
                return Err(SessionEnd::Silent);
            }
            let following = batches.next().map(|items| {
                let shard = shard.clone();
                tokio::task::spawn_blocking(move || Batch::read(&shard, items))
            });
            let send = async {
                ready.entries.iter().for_each(|entry| transcript.add(entry));
                within(STALL_TIMEOUT, wire.send.write_pieces(&mut ready.pieces)).await
            };
            let Some(following) = following else {
                send.await?;
                place.progressed();
                meter.sent_bytes += ready.group_bytes;
                break;
            };
            let (sent, read) = tokio::join!(send, following);
            sent?;
            place.progressed();
            meter.sent_bytes += ready.group_bytes;
            // Rot in the middle of a stream cannot be told apart on the wire: hang up, which signs nothing.
            ready = read?.map_err(|error| SessionEnd::Rot(refusal(error)))?;
        }
        let answer = Signed::new(transcript.finish(), self.network, &self.node_key);
        Ok(Ok(Response::Answered(answer.raw().clone())))
    }
}

/// A read of which nothing was promised yet.
struct Begun {
    shard: Arc<OpenShard>,
    meter: ReadMeter,
    first: Batch,
    /// What comes after the first batch.
    batches: std::vec::IntoIter<Vec<Item>>,
}

impl Begun {
    /// Opens the shard and reads the first batch, so that rot there is a clean refusal.
    fn begin(
        earner: &Arc<Earner>,
        owner: &PublicKey,
        root: &Root,
        range: Range<u64>,
    ) -> Result<Self, Refusal> {
        let bytes = range.end.saturating_sub(range.start).min(SHARD_MAX_BYTES);
        let meter = ReadMeter::start(earner, owner, root, bytes)?;
        let shard = earner.volume().open_shard(owner, root).map_err(refusal)?;
        let shard_bytes = shard.tree().shard_bytes();
        if range.start >= range.end || range.end > shard_bytes {
            return Err(Refusal::new(RefusalCode::BadRange, format!("the shard has {shard_bytes} bytes")));
        }
        let mut batches = batches(&shard.tree().plan(range)).into_iter();
        let first = Batch::read(&shard, batches.next().unwrap_or_default()).map_err(refusal)?;
        Ok(Self { shard: Arc::new(shard), meter, first, batches })
    }
}

/// A stretch of a verified stream, read from disk and checked.
#[derive(Default)]
struct Batch {
    /// What to send, in order.
    pieces: Vec<Bytes>,
    /// What each item adds to the transcript.
    entries: Vec<Vec<u8>>,
    /// Bytes of groups among the pieces.
    group_bytes: u64,
}

impl Batch {
    /// Reads the groups of a part of a plan, which follow one another, and puts the hash pairs between them.
    fn read(shard: &OpenShard, items: Vec<Item>) -> Result<Self, ShardError> {
        let groups = || {
            items.iter().filter_map(|i| {
                if let Item::Group { offset, len } = i { Some((*offset, *len)) } else { None }
            })
        };
        let Some((start, _)) = groups().next() else { return Ok(Self::default()) };
        let end = groups().next_back().map_or(start, |(offset, len)| offset + len as u64);
        let (bytes, hashes) = shard.read_groups(start..end)?;
        // Not copied: the pieces share the buffer, which is used again when the last one is sent.
        let bytes = Bytes::from_owner(bytes);
        let mut hashes = hashes.into_iter();
        let mut batch = Self::default();
        for item in items {
            match item {
                Item::Pair(pair) => {
                    batch.pieces.push(Bytes::copy_from_slice(&pair));
                    batch.entries.push(pair.to_vec());
                }
                Item::Group { offset, len } => {
                    let at = (offset - start) as usize;
                    batch.group_bytes += len as u64;
                    batch.pieces.push(bytes.slice(at..at + len));
                    batch.entries.push(hashes.next().expect("each group has a hash").to_vec());
                }
            }
        }
        Ok(batch)
    }
}

/// Counts what a read sends on the deal's tab, however the read ends.
struct ReadMeter {
    earner: Arc<Earner>,
    deal: Option<DealId>,
    counted_bytes: u64,
    sent_bytes: u64,
}

impl ReadMeter {
    fn start(earner: &Arc<Earner>, owner: &PublicKey, root: &Root, bytes: u64) -> Result<Self, Refusal> {
        // Whole groups are sent.
        let counted_bytes = bytes + 2 * GROUP_BYTES as u64;
        let deal = earner.may_read(owner, root, counted_bytes)?;
        Ok(Self { earner: earner.clone(), deal, counted_bytes, sent_bytes: 0 })
    }
}

impl Drop for ReadMeter {
    fn drop(&mut self) {
        if let Some(deal) = self.deal {
            self.earner.has_read(deal, self.counted_bytes, self.sent_bytes);
        }
    }
}

/// Splits a plan so that the groups of each part are at most [`READ_MAX_BYTES`] long.
fn batches(plan: &[Item]) -> Vec<Vec<Item>> {
    let mut all = vec![Vec::new()];
    let mut bytes = 0;
    for item in plan {
        if let Item::Group { len, .. } = item {
            if bytes + len > READ_MAX_BYTES {
                all.push(Vec::new());
                bytes = 0;
            }
            bytes += len;
        }
        all.last_mut().expect("one part at least").push(*item);
    }
    all
}

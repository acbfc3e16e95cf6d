//! Answering a read: verified groups from disk to the wire, the transcript signed at its end, and what was sent counted on the deal's tab.

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
        range: std::ops::Range<u64>,
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
        range: std::ops::Range<u64>,
        request: &[u8],
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let opened = match self.storage(authority, Scope::Read) {
            Ok((owner, earner)) => {
                let earner = earner.clone();
                let range_bytes = range.end.saturating_sub(range.start);
                let open = move || {
                    let bytes = range_bytes.min(SHARD_MAX_BYTES);
                    let meter = ReadMeter::start(&earner, &owner, &root, bytes)?;
                    Ok((earner.volume().open_shard(&owner, &root).map_err(refusal)?, meter))
                };
                tokio::task::spawn_blocking(open).await?
            }
            Err(refusal) => Err(refusal),
        };
        let (shard, mut meter) = match opened {
            Ok((shard, meter)) => (Arc::new(shard), meter),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let shard_bytes = shard.tree().shard_bytes();
        if range.start >= range.end || range.end > shard_bytes {
            return Ok(Err(Refusal::new(
                RefusalCode::BadRange,
                format!("the shard has {shard_bytes} bytes"),
            )));
        }
        // The first batch is read before anything is promised, so that rot there is a clean refusal.
        let mut batches = batches(&shard.tree().plan(range)).into_iter();
        let mut transcript = Transcript::new(request);
        let mut ready = match read_batch(shard.clone(), batches.next().unwrap_or_default()).await? {
            Ok(batch) => batch,
            Err(error) => return Ok(Err(refusal(error))),
        };
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Reading { shard_bytes })).await?;
        let ends_at = tokio::time::Instant::now() + bulk_timeout(shard_bytes);
        loop {
            if tokio::time::Instant::now() > ends_at {
                return Err(SessionEnd::Silent);
            }
            let following = batches.next().map(|items| read_batch(shard.clone(), items));
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

/// Reads the groups of a part of a plan, which follow one another, and puts the hash pairs between them.
async fn read_batch(
    shard: Arc<OpenShard>,
    items: Vec<Item>,
) -> Result<Result<Batch, ShardError>, SessionEnd> {
    let read = tokio::task::spawn_blocking(move || {
        let groups = || {
            items.iter().filter_map(|i| {
                if let Item::Group { offset, len } = i { Some((*offset, *len)) } else { None }
            })
        };
        let Some((start, _)) = groups().next() else { return Ok(Batch::default()) };
        let end = groups().next_back().map_or(start, |(offset, len)| offset + len as u64);
        let (bytes, hashes) = shard.read_groups(start..end)?;
        // Not copied: the pieces share the buffer, which is used again when the last one is sent.
        let bytes = Bytes::from_owner(bytes);
        let mut hashes = hashes.into_iter();
        let mut batch = Batch::default();
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
    });
    Ok(read.await?)
}

//! Answering about the ledger: blocks, snapshots, and transactions for the sequencer. Anyone may ask; the ledger's own rules say who may do what.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use spare_market::placement::Subnet;
use spare_market::signed::SignedBytes;
use spare_proofs::encode::to_bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Answerer, SessionEnd, send_bulk, too_many, within};
use crate::chain::SnapshotPart;
use crate::frames::{Refusal, RefusalCode, Response, write_frame};
use crate::limits::{
    BLOCK_TRANSFERS_MAX, BLOCK_TRANSFERS_PER_SUBNET_MAX, BLOCKS_PER_ANSWER_BYTES, BLOCKS_WAIT, STALL_TIMEOUT,
    SUBMISSIONS_PER_SUBNET_MAX, bulk_timeout, count_down,
};
use crate::market::{Market, NotTaken, SubmitError};
use crate::transport::Wire;

/// Parts of a snapshot that are read ahead of the wire.
const PARTS_AHEAD: usize = 4;

/// A place among the lists of blocks and the snapshots on their way.
struct TransferSlot<'a>(&'a Mutex<HashMap<Subnet, usize>>, Subnet);

impl Drop for TransferSlot<'_> {
    fn drop(&mut self) {
        count_down(&mut self.0.lock().expect("no holder panics"), &self.1);
    }
}

impl Answerer {
    fn ledger(&self) -> Result<&Market, Refusal> {
        self.market.as_deref().ok_or_else(|| Refusal::new(RefusalCode::NotHere, "this node keeps no ledger"))
    }

    pub(super) async fn blocks(
        &self,
        wire: &mut Wire,
        from: u64,
        wait: bool,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let market = match self.ledger() {
            Ok(market) => market,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut newest = market.chain.height();
        if wait {
            // Whoever is up to date is told of the next block as soon as there is one.
            let _ = timeout(BLOCKS_WAIT, newest.wait_for(|newest| *newest >= from)).await;
        }
        let Some(_slot) = self.transfer_slot(wire.remote_ip.into()) else { return Ok(Err(too_many())) };
        let chain = market.chain.clone();
        let read = tokio::task::spawn_blocking(move || chain.blocks(from.max(1), BLOCKS_PER_ANSWER_BYTES));
        let bytes = match read.await? {
            Ok(blocks) => to_bytes(&blocks),
            Err(error) => return Ok(Err(Refusal::new(RefusalCode::Unavailable, error.to_string()))),
        };
        let height = *newest.borrow();
        send_bulk(wire, &Response::Blocks { len: bytes.len() as u32, height }, &bytes).await?;
        Ok(Ok(Response::Done))
    }

    /// Sends the state after the newest block, a part at a time, so that the whole of it is never in memory.
    pub(super) async fn snapshot(&self, wire: &mut Wire) -> Result<Result<Response, Refusal>, SessionEnd> {
        let market = match self.ledger() {
            Ok(market) => market,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(_slot) = self.transfer_slot(wire.remote_ip.into()) else { return Ok(Err(too_many())) };
        let (sender, mut parts) = mpsc::channel(PARTS_AHEAD);
        let chain = market.chain.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Whoever asked may be gone.
            chain.snapshot(|part| match sender.blocking_send(part) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        });
        let (started, mut sent_bytes) = (Instant::now(), 0);
        while let Some(part) = parts.recv().await {
            let response = match part {
                SnapshotPart::Header(header) => Response::Snapshot { header },
                SnapshotPart::Entries(entries) => Response::Entries(entries),
            };
            within(STALL_TIMEOUT, write_frame(&mut wire.send, &response)).await?;
            sent_bytes += to_bytes(&response).len() as u64;
            if started.elapsed() > bulk_timeout(sent_bytes) {
                return Err(SessionEnd::Silent);
            }
        }
        match reading.await? {
            Ok(()) if sent_bytes == 0 => {
                Ok(Err(Refusal::new(RefusalCode::NotHere, "this node has no block yet")))
            }
            Ok(()) => Ok(Ok(Response::Done)),
            Err(error) => Ok(Err(Refusal::new(RefusalCode::Unavailable, error.to_string()))),
        }
    }

    /// Has the sequencer put a transaction on the ledger.
    pub(super) async fn submit(&self, subnet: Subnet, tx: SignedBytes) -> Result<Response, Refusal> {
        if !self.may_submit(subnet) {
            return Err(Refusal::new(
                RefusalCode::Busy,
                "too many transactions from this network; try again in a minute",
            ));
        }
        match self.ledger()?.submit(tx).await {
            Ok(height) => Ok(Response::Taken { height }),
            Err(SubmitError::NotTaken(NotTaken { code, blame, mut detail })) => {
                detail.truncate(detail.floor_char_boundary(256));
                Ok(Response::NotTaken { code, blame, detail })
            }
            Err(error @ SubmitError::NotTheMarket(_)) => {
                Err(Refusal::new(RefusalCode::NotTheMarket, error.to_string()))
            }
            Err(error) => Err(Refusal::new(RefusalCode::Busy, error.to_string())),
        }
    }

    fn transfer_slot(&self, subnet: Subnet) -> Option<TransferSlot<'_>> {
        let mut transfers = self.block_transfers.lock().expect("no holder panics");
        let here = transfers.get(&subnet).copied().unwrap_or(0);
        if here >= BLOCK_TRANSFERS_PER_SUBNET_MAX || transfers.values().sum::<usize>() >= BLOCK_TRANSFERS_MAX
        {
            return None;
        }
        transfers.insert(subnet, here + 1);
        Some(TransferSlot(&self.block_transfers, subnet))
    }

    /// Counts a transaction from `subnet`, unless it had its share in this minute.
    fn may_submit(&self, subnet: Subnet) -> bool {
        let mut submissions = self.submissions.lock().expect("no holder panics");
        if submissions.0.elapsed() > Duration::from_secs(60) {
            *submissions = (Instant::now(), HashMap::new());
        }
        let count = submissions.1.entry(subnet).or_default();
        *count += 1;
        *count <= SUBMISSIONS_PER_SUBNET_MAX
    }
}

//! Keep: audit -> voucher -> renew -> top up, once a period for each deal.
//!
//! An audit is an ordinary paid read of 16 KiB at a random place, so a provider cannot serve audits and refuse other reads. After a good one the
//! client promises to pay for all periods that are over. After a bad one it tries again in a while, and promises nothing meanwhile.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures::StreamExt;
use spare_proofs::tree::GROUP_BYTES;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::deals::{Cell, DealError, Pay};
use crate::peers::PeerError;

/// Deals that are looked after at once.
const AT_ONCE: usize = 8;
/// How often it is looked whether something is due, at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How often the log says that money is missing.
const WARN_EVERY: Duration = Duration::from_secs(3600);
/// How often deals of other nodes of this account are taken over, where this node does that.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(10);
/// Longest time for an audit.
const AUDIT_WITHIN: Duration = Duration::from_secs(30);
/// Longest time for one deal's audit and voucher.
const ONE_DEAL: Duration = Duration::from_secs(90);
/// Audits that fail in a row before the log says so.
const WARN_AFTER: u32 = 3;

/// Looks after all deals of this client, for as long as the node runs.
pub async fn run(client: Arc<Client>) {
    let period = Duration::from_secs(client.deals.period_s().into());
    let every = (period / 8).clamp(LOOK_EVERY.0, LOOK_EVERY.1);
    let mut topped_up_at: Option<Instant> = None;
    let mut warned_at: Option<Instant> = None;
    tokio::spawn(take_over(client.clone()));
    loop {
        let cells = client.deals.cells();
        futures::stream::iter(&cells)
            .for_each_concurrent(AT_ONCE, async |cell| {
                let (client, looked_after) = (client.clone(), cell.clone());
                // A task of its own, so that whatever goes wrong with one deal leaves the others alone.
                let looking = tokio::spawn(async move {
                    let looking = timeout(ONE_DEAL, look_after(&client, &looked_after));
                    looking.await.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))
                });
                match looking.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(node = %cell.node, %error, "a deal could not be looked after")
                    }
                    Err(error) => {
                        tracing::error!(node = %cell.node, %error, "looking after a deal ended abnormally")
                    }
                }
            })
            .await;
        if topped_up_at.is_none_or(|at| at.elapsed() >= every * 4) {
            topped_up_at = Some(Instant::now());
            match client.deals.top_up(&cells).await {
                Ok(()) => warned_at = None,
                Err(error) if warned_at.is_none_or(|at: Instant| at.elapsed() >= WARN_EVERY) => {
                    warned_at = Some(Instant::now());
                    tracing::warn!(%error, "deals could not be topped up");
                }
                Err(_) => {}
            }
        }
        sleep(every).await;
    }
}

/// Takes deals over, where this node does that. Apart from the rest, since providers may let it wait.
async fn take_over(client: Arc<Client>) {
    loop {
        if let Err(error) = client.deals.take_over_foreign().await {
            tracing::error!(%error, "no deals could be taken over");
        }
        sleep(TAKE_OVER_EVERY).await;
    }
}

async fn look_after(client: &Arc<Client>, cell: &Arc<Cell>) -> Result<(), DealError> {
    client.deals.wind_up(cell).await?;
    let period = client.deals.period();
    let is_due = {
        let audit = cell.audit.lock().expect("no holder panics");
        audit.good_in.is_none_or(|good_in| good_in < period)
    };
    if is_due && cell.head().is_some() && audit(client, cell, period).await {
        client.deals.pay(cell, Pay::All).await?;
    }
    client.deals.renew(cell, client.index_hash()).await
}

/// Reads a random 16 KiB of what the provider holds. Returns whether that went well.
async fn audit(client: &Arc<Client>, cell: &Arc<Cell>, period: u64) -> bool {
    let outcome = match client.deals.draw(cell) {
        // Nothing is stored: nothing is to be shown, and what was stored before is to be paid.
        Ok(None) => Ok(()),
        Ok(Some((member, position))) => {
            let start = position - position % GROUP_BYTES as u64;
            let range = start..(start + GROUP_BYTES as u64).min(member.bytes);
            let received = AtomicU64::new(0);
            let reading = client.deals.read(&cell.node, member.root, member.bytes, range, &received);
            let read = timeout(AUDIT_WITHIN, reading).await.unwrap_or(Err(PeerError::Stalled));
            read.map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    let mut audit = cell.audit.lock().expect("no holder panics");
    match outcome {
        Ok(()) => {
            (audit.good_in, audit.good, audit.failing) = (Some(period), audit.good + 1, None);
            true
        }
        Err(why) => {
            let failed = audit.failing.as_ref().map_or(0, |(failed, _)| *failed) + 1;
            if failed == WARN_AFTER {
                tracing::warn!(node = %cell.node, why, "a provider fails its audits; nothing is paid meanwhile");
            }
            audit.failing = Some((failed, why));
            false
        }
    }
}

//! Keep: audit -> voucher -> renew -> top up, once a period for each deal.
//!
//! An audit is an ordinary paid read of 16 KiB at a random place, so a provider cannot serve audits and refuse other reads. After a good one the
//! client promises to pay for all periods that are over, but for those in which it asked in vain. After a bad one, of whatever read, it asks for
//! the same again in a while, promises nothing meanwhile, and tells the provider what will follow.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures::StreamExt;
use spare_market::standing::{Place, TRIES_MIN};
use spare_proofs::tree::GROUP_BYTES;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::deals::{Cell, DealError, HeadChange, Pay};
use crate::frames::Notice;
use crate::limits::bulk_timeout;
use crate::meta::MetaError;
use crate::peers::PeerError;
use crate::unix_now_s;

/// Deals that are looked after at once.
const AT_ONCE: usize = 8;
/// How often in a period it is looked whether something is due, where periods are short.
const LOOKS_PER_PERIOD: u32 = 8;
/// How often it is looked whether something is due, at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How often the log says that money is missing.
const WARN_EVERY: Duration = Duration::from_secs(3600);
/// How often deals of other nodes of this account are taken over, where this node does that.
const TAKE_OVER_EVERY: Duration = Duration::from_secs(10);
/// Longest time for an audit, unless its bytes may take longer on the slowest line there may be.
const AUDIT_WITHIN: Duration = Duration::from_secs(30);
/// Longest time for one deal's audit and voucher, where nothing is asked again.
const ONE_DEAL: Duration = Duration::from_secs(90);
/// What failed is asked again this often before it is a strike, at most.
const ASKED_AGAIN_MAX: u32 = 48;

/// Looks after all deals of this client, for as long as the node runs.
pub async fn run(client: Arc<Client>) {
    let period = Duration::from_secs(client.deals.period_s().into());
    let every = (period / LOOKS_PER_PERIOD).clamp(LOOK_EVERY.0, LOOK_EVERY.1);
    let mut topped_up_at: Option<Instant> = None;
    let mut warned_at: Option<Instant> = None;
    tokio::spawn(take_over(client.clone()));
    tokio::spawn(ask_again(client.clone(), every));
    loop {
        let cells = client.deals.cells();
        look_after_all(&client, cells.iter().filter(|cell| !is_failing(&client, cell))).await;
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

/// Looks after the deals with providers that fail. Apart from the rest, which is not to wait for those that are silent.
async fn ask_again(client: Arc<Client>, every: Duration) {
    loop {
        let cells = client.deals.cells();
        look_after_all(&client, cells.iter().filter(|cell| is_failing(&client, cell))).await;
        sleep(every).await;
    }
}

/// Whether something is asked again of a deal's provider.
fn is_failing(client: &Client, cell: &Cell) -> bool {
    client.peers.standings.of(&cell.node).contained().is_some()
}

/// Looks after each of `cells` once.
async fn look_after_all(client: &Arc<Client>, cells: impl Iterator<Item = &Arc<Cell>>) {
    futures::stream::iter(cells)
        .for_each_concurrent(AT_ONCE, async |cell| {
            let (client, looked_after) = (client.clone(), cell.clone());
            // A task of its own, so that whatever goes wrong with one deal leaves the others alone.
            let looking = tokio::spawn(async move {
                let standing = client.peers.standings.of(&looked_after.node);
                let again = standing.contained().map_or(Duration::ZERO, |c| asking_takes(&c.place));
                let looking = timeout(ONE_DEAL + again, look_after(&client, &looked_after));
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
}

/// The longest that reading `place` may take.
fn asking_takes(place: &Place) -> Duration {
    AUDIT_WITHIN.max(bulk_timeout(place.end - place.start))
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
    collect_evidence(client, cell).await;
    let period = client.deals.period();
    let period_time = Duration::from_secs(client.deals.period_s().into());
    let is_due = {
        let mut audit = cell.audit.lock().expect("no holder panics");
        if is_failing(client, cell) {
            let spacing = Duration::from_secs(client.peers.standings.spacing_s());
            let every = (spacing / ASKED_AGAIN_MAX).min(period_time / LOOKS_PER_PERIOD);
            let is_due = audit.asked_again_at.is_none_or(|at| at.elapsed() >= every);
            if is_due {
                audit.asked_again_at = Some(Instant::now());
            }
            is_due
        } else {
            audit.asked_again_at = None;
            audit.good_in.is_none_or(|good_in| good_in < period)
        }
    };
    if is_due && cell.head().is_some() && audit(client, cell, period).await {
        client.deals.pay(cell, Pay::All).await?;
    }
    client.deals.renew(cell, client.index_hash()).await?;
    client.deals.expose(cell).await
}

/// Reads what brought wrong bytes in a longer read once more: if they are wrong again, and signed, that is evidence.
async fn collect_evidence(client: &Arc<Client>, cell: &Arc<Cell>) {
    let suspect = cell.audit.lock().expect("no holder panics").suspect.take();
    let Some(Place { root, shard_bytes, start, end }) = suspect else { return };
    let received = AtomicU64::new(0);
    let reading = client.deals.read(&cell.node, root, shard_bytes, start..end, &received);
    // What came of it is judged as that of every read.
    let _ = timeout(AUDIT_WITHIN, reading).await;
}

/// What is to be read: what failed before, if that is this deal's, else a random 16 KiB of what the provider holds. `None` when nothing is stored.
fn place(client: &Client, cell: &Cell) -> Result<Option<Place>, MetaError> {
    let standings = &client.peers.standings;
    if let Some(contained) = standings.of(&cell.node).contained() {
        if client.deals.covers(cell, &contained.place.root)? {
            return Ok(Some(contained.place));
        }
        let is_of_another = client.deals.covering(&cell.node, &contained.place.root);
        if matches!(is_of_another, Ok(None)) {
            // It was removed meanwhile.
            standings.answered(&cell.node, &contained.place);
        }
    }
    Ok(client.deals.draw(cell)?.map(|(member, position)| {
        let start = position - position % GROUP_BYTES as u64;
        let end = (start + GROUP_BYTES as u64).min(member.bytes);
        Place { root: member.root, shard_bytes: member.bytes, start, end }
    }))
}

/// Reads from what the provider holds. Returns whether that went well. Also notes it, and tells the provider if it did not.
async fn audit(client: &Arc<Client>, cell: &Arc<Cell>, period: u64) -> bool {
    let is_good = match place(client, cell) {
        // Nothing is stored: nothing is to be shown, and what was stored before is to be paid.
        Ok(None) => true,
        Ok(Some(Place { root, shard_bytes, start, end })) => {
            let received = AtomicU64::new(0);
            let reading = client.deals.read(&cell.node, root, shard_bytes, start..end, &received);
            let place = Place { root, shard_bytes, start, end };
            match timeout(asking_takes(&place), reading).await {
                Ok(read) => read.is_ok(),
                Err(_) => {
                    client.deals.judge(cell, place, &Err(PeerError::Stalled));
                    false
                }
            }
        }
        Err(error) => {
            tracing::error!(%error, "what is to be audited is not known");
            return false;
        }
    };
    // What was asked in a period and answered in a later one was not answered in the first. Whether a period was missed is only known while this
    // node itself is online.
    let now = client.deals.period().max(period);
    if client.peers.others_answer(&cell.node) {
        // Of the period in which it was started it does not know what came before.
        (period.max(client.deals.started_in() + 1)..now + u64::from(!is_good))
            .for_each(|missed| cell.audited(missed, false));
    }
    if is_good {
        cell.audited(now, true);
        let mut audit = cell.audit.lock().expect("no holder panics");
        (audit.good_in, audit.good) = (Some(now), audit.good + 1);
    } else {
        tell(client, cell).await;
        if let Err(error) = let_go(client, cell).await {
            tracing::debug!(node = %cell.node, %error, "a lost shard could not be taken off a head");
        }
    }
    is_good
}

/// Takes a shard off the deal's head that its provider has lost for good: the provider is paid for what it still has, and not for that.
async fn let_go(client: &Client, cell: &Cell) -> Result<(), DealError> {
    let Some(root) = client.peers.standings.of(&cell.node).lost() else { return Ok(()) };
    if !client.deals.covers(cell, &root)? {
        return Ok(());
    }
    tracing::warn!(node = %cell.node, shard = %root, "a provider has lost a shard; it is not paid for it any more");
    let change = HeadChange { add: Vec::new(), remove: vec![root] };
    let failed = client.deals.exchange([(cell.node, change)].into(), client.index_hash()).await;
    failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Tells the provider what is held against it, and what will follow.
async fn tell(client: &Client, cell: &Cell) {
    let standings = &client.peers.standings;
    let standing = standings.of(&cell.node);
    let Some(contained) = standing.contained().filter(|contained| !contained.is_told) else { return };
    let notice = Notice {
        deal: cell.id,
        place: contained.place,
        fault: contained.fault,
        why: contained.why.clone(),
        since_s: contained.since_s,
        strikes_at_s: standing.strikes_at_s(standings.spacing_s()),
        strikes: standing.strikes(unix_now_s()).count() as u8,
    };
    let telling = client.peers.with_session(&cell.node, async |session| session.notice(notice).await);
    match timeout(AUDIT_WITHIN, telling).await {
        Ok(Ok(()) | Err(PeerError::Refused(_))) => standings.told(&cell.node),
        // Who does not want to hear of it, though it was tried again and again, was told all the same.
        _ if contained.tries > TRIES_MIN && client.peers.others_answer(&cell.node) => {
            standings.told(&cell.node)
        }
        _ => tracing::debug!(node = %cell.node, "a provider could not be told of a failed audit"),
    }
}

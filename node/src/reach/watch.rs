//! Having this node's ports tested, again and again.

use std::sync::Arc;
use std::time::Duration;

use spare_market::keys::PublicKey;
use tokio::time::{sleep, timeout};

use super::{How, Reach, is_private};
use crate::discover::Addresses;
use crate::frames::Service;
use crate::limits::{DIAL_TIMEOUT, HELLO_TIMEOUT};
use crate::peers::Peers;
use crate::unix_now_s;

/// Testers that are asked in a round.
const TESTERS_PER_ROUND: usize = 2;
/// Pause after a round in which nobody could be asked.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause between rounds while a port cannot be reached, so that a change in the router is noticed.
const PROBLEM_PAUSE: Duration = Duration::from_secs(120);
/// Pause between rounds while both can.
const GOOD_PAUSE: Duration = Duration::from_secs(900);

/// Tests until the end. `is_provider` says whether others depend on reaching this node, which it then warns about.
pub(crate) async fn run(reach: Arc<Reach>, peers: Arc<Peers>, addresses: Arc<Addresses>, is_provider: bool) {
    let mut retry = RETRY_PAUSE;
    let mut told = [How::Unknown; 2];
    loop {
        let is_tested = round(&reach, &peers, &addresses).await;
        tell(&reach, &mut told, is_provider);
        let hows = [Service::Libp2p, Service::Direct].map(|s| reach.how(s, unix_now_s()));
        let pause = if !is_tested {
            let pause = retry;
            retry = (retry * 2).min(RETRY_PAUSE_MAX);
            pause
        } else {
            retry = RETRY_PAUSE;
            if hows.iter().all(|how| how.is_dialable()) { GOOD_PAUSE } else { PROBLEM_PAUSE }
        };
        let end = tokio::time::Instant::now() + pause;
        // What AutoNAT, the router or a relay brings meanwhile is told at once, and may call for a test.
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                () = reach.changed.notified() => {
                    tell(&reach, &mut told, is_provider);
                    if is_tested && reach.how(Service::Direct, unix_now_s()) == How::Unknown {
                        sleep(RETRY_PAUSE).await;
                        break;
                    }
                }
            }
        }
    }
}

/// Has both ports tested by some peers. Returns whether any did.
async fn round(reach: &Reach, peers: &Peers, addresses: &Addresses) -> bool {
    let mut testers = addresses.connected();
    // Whoever is seen in this node's own network says nothing about the world outside.
    testers.sort_by_cached_key(|node| (is_private(addresses.ip(node)), rand::random::<u32>()));
    testers.truncate(TESTERS_PER_ROUND);
    let mut is_tested = false;
    for tester in testers {
        for service in [Service::Direct, Service::Libp2p] {
            is_tested |= test(reach, peers, addresses, &tester, service).await;
        }
    }
    is_tested
}

async fn test(
    reach: &Reach,
    peers: &Peers,
    addresses: &Addresses,
    tester: &PublicKey,
    service: Service,
) -> bool {
    let port = reach.port_outside(service);
    let asking = peers.ask_once(tester, async |session| session.dial_back(service, port).await);
    match timeout(2 * (DIAL_TIMEOUT + HELLO_TIMEOUT), asking).await {
        Ok(Ok((ip, outcome))) => {
            let from = addresses.ip(tester);
            reach.found(service, *tester, from, (ip, port).into(), outcome, unix_now_s());
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(%tester, %error, "a peer did not dial back");
            false
        }
        Err(_) => false,
    }
}

/// Logs what changed since it was told last.
fn tell(reach: &Reach, told: &mut [How; 2], is_provider: bool) {
    for (told, port) in told.iter_mut().zip(reach.report(unix_now_s())) {
        if *told == port.how {
            continue;
        }
        *told = port.how;
        let (service, why, advice) = (&port.service, &port.why, port.advice.as_deref().unwrap_or(""));
        match port.how {
            How::Unknown => {}
            How::Unreachable if is_provider => {
                tracing::warn!(
                    "nobody can reach the {service} port {} of this provider: {why}. {advice}",
                    port.port
                );
            }
            how => tracing::info!(?how, "the {service} port {}: {why}", port.port),
        }
    }
}

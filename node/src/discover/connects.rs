//! Connections being made: who waits for them, and until when. A state machine without IO; the swarm tells it what happens.
//!
//! ```text
//! want -> dialling -> connected            a plain dial
//!      -> dialling -> circuit -> connected by way of a relay: once the circuit stands, both sides punch (DCUtR)
//!                             -> failed    no hole within PUNCH_TIMEOUT, or the circuit broke
//! ```
//!
//! The side that is asked for through a relay has nobody waiting, and goes through the same states from the circuit on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;

use crate::limits::{CONNECT_WAITERS_MAX, CONNECTS_MAX, DIAL_TIMEOUT, PUNCH_TIMEOUT};
use crate::reach::{punch_timed_out, short};
use crate::transport::{DialError, node_key};

/// Time for a direct connection to stand on this side, once it stands on the other.
const PUNCHED_WITHIN: Duration = Duration::from_secs(2);

/// Told how a connection came out.
pub(super) type Waiter = oneshot::Sender<Result<(), DialError>>;

struct Connecting {
    waiters: Vec<Waiter>,
    deadline: Instant,
    /// The dial that was made for it; none where another one was under way, or the other side dials.
    dial: Option<ConnectionId>,
    /// Whether a circuit through a relay stands, and holes are being punched.
    circuit: bool,
    /// Why the last attempt failed.
    why: Option<String>,
}

impl Connecting {
    fn finish(self, outcome: &Result<(), DialError>) {
        for waiter in self.waiters {
            // One that gave up waiting is as good.
            let _ = waiter.send(outcome.clone());
        }
    }
}

/// A connection that did not come about.
pub(super) struct Failed {
    pub(super) peer: PeerId,
    /// Why holes were not punched, if that is what failed.
    pub(super) punch: Option<String>,
}

/// All connections being made.
#[derive(Default)]
pub(super) struct Connects(HashMap<PeerId, Connecting>);

impl Connects {
    /// Has `waiter` told once `peer` is connected. Returns whether it has to be dialled: not if that is under way.
    pub(super) fn want(&mut self, peer: PeerId, waiter: Waiter, now: Instant) -> bool {
        if let Some(connecting) = self.0.get_mut(&peer) {
            if connecting.waiters.len() < CONNECT_WAITERS_MAX {
                connecting.waiters.push(waiter);
            }
            return false;
        }
        if self.0.len() >= CONNECTS_MAX {
            // Dropped unanswered, which the asker takes for a failure.
            return false;
        }
        // A circuit takes a dial to the relay and one from the relay.
        let deadline = now + 2 * DIAL_TIMEOUT;
        let connecting =
            Connecting { waiters: vec![waiter], deadline, dial: None, circuit: false, why: None };
        self.0.insert(peer, connecting);
        true
    }

    pub(super) fn dialled(&mut self, peer: PeerId, dial: ConnectionId) {
        if let Some(connecting) = self.0.get_mut(&peer) {
            connecting.dial = Some(dial);
        }
    }

    /// A circuit with `peer` stands. Returns whether holes are to be punched; if not, the circuit is of no use.
    pub(super) fn circuit(&mut self, peer: PeerId, now: Instant) -> bool {
        if !self.0.contains_key(&peer) && self.0.len() >= CONNECTS_MAX {
            return false;
        }
        let connecting = self.0.entry(peer).or_insert_with(|| Connecting {
            waiters: Vec::new(),
            deadline: now,
            dial: None,
            circuit: false,
            why: None,
        });
        if !connecting.circuit {
            connecting.circuit = true;
            connecting.deadline = now + PUNCH_TIMEOUT;
        }
        true
    }

    /// A direct connection with `peer` stands. Returns whether a hole was punched for it.
    pub(super) fn connected(&mut self, peer: &PeerId) -> bool {
        let Some(connecting) = self.0.remove(peer) else { return false };
        let by_punching = connecting.circuit;
        connecting.finish(&Ok(()));
        by_punching
    }

    /// A dial of `peer` failed. While holes are punched others may follow.
    pub(super) fn dial_failed(&mut self, peer: PeerId, dial: ConnectionId, why: String) -> Option<Failed> {
        let connecting = self.0.get_mut(&peer)?;
        connecting.why = Some(why);
        let is_over = !connecting.circuit && connecting.dial.is_none_or(|made| made == dial);
        is_over.then(|| self.fail(peer)).flatten()
    }

    /// The circuit with `peer` ended. The other side may have ended it because it is connected, which this side sees in a moment.
    pub(super) fn circuit_ended(&mut self, peer: &PeerId, now: Instant) {
        if let Some(connecting) = self.0.get_mut(peer).filter(|connecting| connecting.circuit) {
            connecting.deadline = connecting.deadline.min(now + PUNCHED_WITHIN);
            connecting.why.get_or_insert_with(|| "the circuit through the relay ended".to_owned());
        }
    }

    /// Punching was given up, by either side.
    pub(super) fn punch_failed(&mut self, peer: PeerId, why: String) -> Option<Failed> {
        let connecting = self.0.get_mut(&peer).filter(|connecting| connecting.circuit)?;
        connecting.why.get_or_insert(why);
        self.fail(peer)
    }

    /// When [`Self::expired`] is to be asked next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|connecting| connecting.deadline).min()
    }

    /// Connections that have taken too long.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Failed> {
        let late = self.0.iter().filter(|(_, connecting)| connecting.deadline <= now);
        let late: Vec<PeerId> = late.map(|(peer, _)| *peer).collect();
        late.into_iter().filter_map(|peer| self.fail(peer)).collect()
    }

    fn fail(&mut self, peer: PeerId) -> Option<Failed> {
        let mut connecting = self.0.remove(&peer)?;
        let name = node_key(&peer).map_or_else(|| peer.to_string(), |node| short(&node));
        let why = connecting.why.take();
        let (error, punch) = if connecting.circuit {
            let why = why.unwrap_or_else(punch_timed_out);
            (DialError::Punch { peer: name, why: why.clone() }, Some(why))
        } else {
            let why = why.unwrap_or_else(|| "no answer".to_owned());
            (DialError::Failed { addr: name, why }, None)
        };
        connecting.finish(&Err(error));
        Some(Failed { peer, punch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter() -> (Waiter, oneshot::Receiver<Result<(), DialError>>) {
        oneshot::channel()
    }

    #[test]
    fn everybody_who_waits_is_told_once_a_hole_is_punched() {
        let (mut connects, peer, now) = (Connects::default(), PeerId::random(), Instant::now());
        let ((a, mut told_a), (b, mut told_b)) = (waiter(), waiter());
        assert!(connects.want(peer, a, now));
        assert!(!connects.want(peer, b, now), "one dial is enough");
        assert!(connects.circuit(peer, now));
        // A failed attempt does not end it: the other side may get through.
        assert!(connects.dial_failed(peer, ConnectionId::new_unchecked(1), "refused".into()).is_none());
        assert!(told_a.try_recv().is_err());
        assert!(connects.connected(&peer));
        assert!(told_a.try_recv().unwrap().is_ok() && told_b.try_recv().unwrap().is_ok());
        assert!(connects.next_deadline().is_none());
    }

    #[test]
    fn punching_ends_in_time_and_says_why_not() {
        let (mut connects, peer, now) = (Connects::default(), PeerId::random(), Instant::now());
        let (a, mut told) = waiter();
        connects.want(peer, a, now);
        connects.circuit(peer, now);
        assert!(connects.expired(now + PUNCH_TIMEOUT / 2).is_empty());
        let failed = connects.expired(now + PUNCH_TIMEOUT).pop().unwrap();
        assert!(failed.peer == peer && failed.punch.is_some());
        let error = told.try_recv().unwrap().unwrap_err().to_string();
        assert!(error.contains("is behind a NAT, hole punching failed: no packet got through"), "{error}");
    }

    #[test]
    fn a_circuit_that_the_other_side_ends_leaves_time_for_its_connection() {
        let (mut connects, peer, now) = (Connects::default(), PeerId::random(), Instant::now());
        let (a, mut told) = waiter();
        connects.want(peer, a, now);
        connects.circuit(peer, now);
        connects.circuit_ended(&peer, now);
        assert!(connects.expired(now).is_empty());
        assert!(connects.connected(&peer));
        assert!(told.try_recv().unwrap().is_ok());
        connects.circuit(peer, now);
        connects.circuit_ended(&peer, now);
        let failed = connects.expired(now + PUNCHED_WITHIN).pop().unwrap();
        assert_eq!(failed.punch.unwrap(), "the circuit through the relay ended");
    }

    #[test]
    fn a_plain_dial_fails_at_once_and_strangers_cannot_fill_the_table() {
        let (mut connects, peer, now) = (Connects::default(), PeerId::random(), Instant::now());
        let (a, mut told) = waiter();
        connects.want(peer, a, now);
        connects.dialled(peer, ConnectionId::new_unchecked(7));
        assert!(connects.dial_failed(peer, ConnectionId::new_unchecked(8), "another dial".into()).is_none());
        let failed = connects.dial_failed(peer, ConnectionId::new_unchecked(7), "no route".into()).unwrap();
        assert!(failed.punch.is_none());
        assert!(told.try_recv().unwrap().unwrap_err().to_string().contains("no route"));
        for _ in 0..CONNECTS_MAX {
            assert!(connects.circuit(PeerId::random(), now));
        }
        assert!(!connects.circuit(PeerId::random(), now));
        let (a, mut told) = waiter();
        assert!(!connects.want(peer, a, now));
        assert!(matches!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed)), "refused at once");
    }
}

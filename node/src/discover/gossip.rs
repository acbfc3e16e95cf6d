//! How gossip is kept in bounds: what a peer is remembered for, and when it is not listened to any more.
//!
//! Gossipsub's own scores (gossipsub v1.1) count here for one thing: messages that nobody honest passes on, since everybody checks what it passes on.
//! A few of them within a minute graylist a peer, and it is disconnected. All rewards are off, so that nobody earns a right to misbehave; so is the
//! penalty for sharing an address, since homes share one, and connections are bounded by network elsewhere ([`super::gate`]).

use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::gossipsub::{ConfigBuilder, PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams};

use crate::budget::Budgets;
use crate::limits::{
    BUDGET_KEYS_MAX, DEBT_MAX, GOSSIP_IN_ALL, GOSSIP_INVALID_MAX, GOSSIP_PER_PACKET_MAX, GOSSIP_PER_PEER,
    GOSSIP_QUEUE_MAX, GOSSIP_REMEMBERED,
};

/// Score below which a peer is not listened to, and disconnected.
pub(super) const GRAYLIST: f64 = -90.0;
/// Score of a peer that has passed on as many invalid messages as are borne.
pub(super) const MISBEHAVED: f64 = -100.0;
/// What an invalid message's count decays by each second: a tenth is left after a minute.
const INVALID_DECAY: f64 = 0.962;
/// Misbehaviour in the protocol's bookkeeping that is let pass, as that of a node that restarts is.
const BEHAVIOUR_FREE: f64 = 10.0;
const BEHAVIOUR_DECAY: f64 = 0.9;

/// Bounds on packets and queues.
pub(super) fn bound(config: &mut ConfigBuilder) -> &mut ConfigBuilder {
    config.max_publish_messages(GOSSIP_PER_PACKET_MAX).connection_handler_queue_len(GOSSIP_QUEUE_MAX)
}

/// What peers are scored by on the one topic there is.
pub(super) fn scores(topic: TopicHash) -> (PeerScoreParams, PeerScoreThresholds) {
    // The penalty grows with the square of the count.
    let invalid_weight = MISBEHAVED / f64::from(GOSSIP_INVALID_MAX * GOSSIP_INVALID_MAX);
    let topic_params = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: invalid_weight,
        invalid_message_deliveries_decay: INVALID_DECAY,
        ..TopicScoreParams::default()
    };
    let params = PeerScoreParams {
        topics: [(topic, topic_params)].into(),
        app_specific_weight: 1.0,
        ip_colocation_factor_weight: 0.0,
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: BEHAVIOUR_FREE,
        behaviour_penalty_decay: BEHAVIOUR_DECAY,
        slow_peer_weight: 0.0,
        retain_score: GOSSIP_REMEMBERED,
        ..PeerScoreParams::default()
    };
    let thresholds = PeerScoreThresholds {
        gossip_threshold: GRAYLIST / 4.0,
        publish_threshold: GRAYLIST / 2.0,
        graylist_threshold: GRAYLIST,
        accept_px_threshold: 0.0,
        opportunistic_graft_threshold: 0.0,
    };
    (params, thresholds)
}

/// How fast messages come.
pub(super) struct Pace {
    started: Instant,
    by_peer: Budgets<PeerId>,
    in_all: Budgets<()>,
}

/// What is to be done with a message, by how fast they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look at it.
    Listen,
    /// Pass over it: there are too many just now.
    PassOver,
    /// Its peer sends faster than anybody has reason to.
    TooFast,
}

impl Pace {
    pub(super) fn new() -> Self {
        let by_peer = Budgets::new(GOSSIP_PER_PEER, BUDGET_KEYS_MAX, DEBT_MAX);
        Self { started: Instant::now(), by_peer, in_all: Budgets::new(GOSSIP_IN_ALL, 1, DEBT_MAX) }
    }

    /// A message has come from `peer`.
    pub(super) fn message(&mut self, peer: PeerId) -> Verdict {
        self.message_at(peer, self.started.elapsed())
    }

    fn message_at(&mut self, peer: PeerId, now: Duration) -> Verdict {
        if !self.by_peer.take(peer, 1, now) {
            Verdict::TooFast
        } else if !self.in_all.take((), 1, now) {
            Verdict::PassOver
        } else {
            Verdict::Listen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_valid_and_graylist_at_the_bound() {
        let topic = libp2p::gossipsub::IdentTopic::new("t").hash();
        let (params, thresholds) = scores(topic.clone());
        params.validate().unwrap();
        thresholds.validate().unwrap();
        let weight = params.topics[&topic].invalid_message_deliveries_weight;
        let penalty = |count: u32| weight * f64::from(count * count);
        assert!(penalty(GOSSIP_INVALID_MAX) < thresholds.graylist_threshold);
        assert!(penalty(GOSSIP_INVALID_MAX - 1) > thresholds.graylist_threshold, "mistakes are let pass");
    }

    #[test]
    fn a_peer_that_talks_too_fast_is_told_from_a_busy_network() {
        let mut pace = Pace::new();
        let now = Duration::from_secs(1);
        let peers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        let said = |pace: &mut Pace, peer: usize, times: u64| {
            (0..times).map(|_| pace.message_at(peers[peer], now)).collect::<Vec<_>>()
        };
        let first = said(&mut pace, 0, GOSSIP_PER_PEER.burst + 2);
        assert!(first[..GOSSIP_PER_PEER.burst as usize].iter().all(|v| *v == Verdict::Listen));
        assert_eq!(*first.last().unwrap(), Verdict::TooFast);
        let rest = GOSSIP_IN_ALL.burst - GOSSIP_PER_PEER.burst;
        said(&mut pace, 1, rest);
        assert!(said(&mut pace, 2, 5).contains(&Verdict::PassOver));
    }
}

//! What the swarm speaks, and the bounds of each part.

use std::num::NonZeroU32;

use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, autonat, connection_limits, dcutr, gossipsub, identify, kad,
    memory_connection_limits, ping, relay,
};
use spare_market::signed::NetworkId;

use super::direct_only::DirectOnly;
use super::gate::Gate;
use super::mapping::Mapping;
use super::observed::Observed;
use super::probes::Probes;
use super::punching::Punching;
use super::{LOOK_AROUND_INTERVAL, gossip};
use crate::limits::{
    GOSSIP_MAX_BYTES, LIBP2P_CONNECTIONS_MAX, LIBP2P_CONNECTIONS_PER_PEER_MAX, LIBP2P_HANDSHAKES_MAX,
    LIBP2P_MEMORY_MAX_BYTES, RELAY_CIRCUIT_LIFE, RELAY_CIRCUIT_MAX_BYTES, RELAY_CIRCUITS_MAX,
    RELAY_PER_IP_BURST, RELAY_PER_PEER_BURST, RELAY_PER_PEER_MAX, RELAY_RATE_INTERVAL,
    RELAY_RESERVATION_LIFE, RELAY_RESERVATIONS_MAX,
};

/// Over a relayed connection all but the last are there, and of them only identify, ping and DCUtR speak.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // Asked in this order, and the gate has others give way: only for who is within the limits.
    pub(super) connection_limits: connection_limits::Behaviour,
    pub(super) memory_limits: memory_connection_limits::Behaviour,
    pub(super) gate: Gate,
    pub(super) relay: relay::Behaviour,
    pub(super) relayed: relay::client::Behaviour,
    pub(super) dcutr: Punching,
    pub(super) identify: Observed,
    pub(super) ping: ping::Behaviour,
    pub(super) mapping: Toggle<Mapping>,
    pub(super) direct: DirectOnly<Direct>,
}

/// What never goes over a relay.
#[derive(NetworkBehaviour)]
pub(super) struct Direct {
    pub(super) kademlia: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) gossip:
        gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter>,
    pub(super) streams: libp2p_stream::Behaviour,
    pub(super) autonat: autonat::v2::client::Behaviour,
    pub(super) probes: Probes,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Behaviour {
    pub(super) fn new(
        key: &Keypair,
        relayed: relay::client::Behaviour,
        network: NetworkId,
        topic: gossipsub::TopicHash,
        mapping: Option<Mapping>,
    ) -> Fallible<Self> {
        let peer = key.public().to_peer_id();
        let network = &blake3::Hash::from_bytes(network.0).to_hex()[..16];
        let connections = connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(LIBP2P_HANDSHAKES_MAX))
            .with_max_pending_outgoing(Some(64))
            .with_max_established_incoming(Some(LIBP2P_CONNECTIONS_MAX))
            .with_max_established_outgoing(Some(LIBP2P_CONNECTIONS_MAX))
            .with_max_established_per_peer(Some(LIBP2P_CONNECTIONS_PER_PEER_MAX));
        // Without a cache: addresses that lead through a relay would be dialled by whoever looks for a peer.
        let identify = identify::Config::new(format!("/spare/1/{network}"), key.public())
            .with_agent_version(format!("spare/{}", env!("CARGO_PKG_VERSION")))
            .with_cache_size(0);
        let mut relay = relay::Behaviour::new(peer, relay_config());
        // Not by itself: libp2p would have a node behind a NAT be a relay, since it has an address, which leads through a relay.
        relay.set_status(Some(relay::Status::Disable));
        Ok(Self {
            connection_limits: connection_limits::Behaviour::new(connections),
            memory_limits: memory_connection_limits::Behaviour::with_max_bytes(LIBP2P_MEMORY_MAX_BYTES),
            gate: Gate::new(),
            relay,
            relayed,
            dcutr: Punching::new(dcutr::Behaviour::new(peer)),
            identify: Observed::new(identify::Behaviour::new(identify)),
            ping: ping::Behaviour::default(),
            mapping: Toggle::from(mapping),
            direct: DirectOnly::new(Direct::new(key, peer, network, topic)?),
        })
    }
}

impl Direct {
    fn new(key: &Keypair, peer: PeerId, network: &str, topic: gossipsub::TopicHash) -> Fallible<Self> {
        let gossip = gossip::bound(&mut gossipsub::ConfigBuilder::default())
            .max_transmit_size(GOSSIP_MAX_BYTES)
            .validation_mode(gossipsub::ValidationMode::Strict)
            .validate_messages()
            // The same ask is the same message, whoever passes it on.
            .message_id_fn(|message| {
                gossipsub::MessageId::from(blake3::hash(&message.data).as_bytes().to_vec())
            })
            .build()?;
        let mut kademlia =
            kad::Config::new(StreamProtocol::try_from_owned(format!("/spare/1/kad/{network}"))?);
        kademlia.set_periodic_bootstrap_interval(Some(LOOK_AROUND_INTERVAL));
        // Kademlia finds peers here and stores nothing, so that nobody can fill it.
        kademlia
            .set_record_filtering(kad::StoreInserts::FilterBoth)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None);
        // Subscriptions to other topics are not remembered.
        let mut gossip = gossipsub::Behaviour::new_with_subscription_filter(
            gossipsub::MessageAuthenticity::Signed(key.clone()),
            gossip,
            gossipsub::WhitelistSubscriptionFilter([topic.clone()].into()),
        )?;
        let (scores, thresholds) = gossip::scores(topic);
        gossip.with_peer_score(scores, thresholds)?;
        Ok(Self {
            kademlia: kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), kademlia),
            gossip,
            streams: libp2p_stream::Behaviour::new(),
            autonat: autonat::v2::client::Behaviour::default(),
            probes: Probes::new(autonat::v2::server::Behaviour::default()),
        })
    }
}

/// Enough for two peers to find a time, and for nothing else.
fn relay_config() -> relay::Config {
    let rate = |count: u32| NonZeroU32::new(count).expect("rates are above 0");
    let config = relay::Config {
        max_reservations: RELAY_RESERVATIONS_MAX,
        max_reservations_per_peer: 2,
        reservation_duration: RELAY_RESERVATION_LIFE,
        reservation_rate_limiters: Vec::new(),
        max_circuits: RELAY_CIRCUITS_MAX,
        max_circuits_per_peer: RELAY_PER_PEER_MAX,
        max_circuit_duration: RELAY_CIRCUIT_LIFE,
        max_circuit_bytes: RELAY_CIRCUIT_MAX_BYTES,
        circuit_src_rate_limiters: Vec::new(),
    };
    config
        .reservation_rate_per_peer(rate(RELAY_PER_PEER_BURST), RELAY_RATE_INTERVAL)
        .reservation_rate_per_ip(rate(RELAY_PER_IP_BURST), RELAY_RATE_INTERVAL)
        .circuit_src_per_peer(rate(RELAY_PER_PEER_BURST), RELAY_RATE_INTERVAL)
        .circuit_src_per_ip(rate(RELAY_PER_IP_BURST), RELAY_RATE_INTERVAL)
}

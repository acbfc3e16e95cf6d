//! A behaviour that sees no relayed connection: for it, a peer that is reached through a relay is not connected.
//!
//! **Invariant:** what runs inside never sends a byte over a relay, and answers none that came over one. Streams of `spare/1`, gossip and
//! Kademlia run inside, so a shard cannot cross a relay, whatever a peer tries.

use std::collections::HashMap;
use std::task::{Context, Poll};

use either::Either;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::is_relayed;

/// Hides relayed connections from `B`.
pub(super) struct DirectOnly<B> {
    /// What sees direct connections only.
    pub(super) inner: B,
    /// How many direct connections with each peer stand.
    direct: HashMap<PeerId, usize>,
}

impl<B> DirectOnly<B> {
    pub(super) fn new(inner: B) -> Self {
        Self { inner, direct: HashMap::new() }
    }
}

/// A handler that speaks no protocol.
const MUTE: dummy::ConnectionHandler = dummy::ConnectionHandler;

impl<B: NetworkBehaviour> NetworkBehaviour for DirectOnly<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if is_relayed(local) {
            return Ok(());
        }
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if is_relayed(local) {
            return Ok(Either::Right(MUTE));
        }
        self.inner.handle_established_inbound_connection(id, peer, local, remote).map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if is_relayed(address) {
            return Ok(Either::Right(MUTE));
        }
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use).map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        // The counts are made anew, or the inner behaviour would take a peer for connected that is so through a relay only.
        let event = match event {
            FromSwarm::ConnectionEstablished(e) if e.endpoint.is_relayed() => return,
            FromSwarm::ConnectionClosed(e) if e.endpoint.is_relayed() => return,
            FromSwarm::ConnectionEstablished(e) => {
                let count = self.direct.entry(e.peer_id).or_default();
                *count += 1;
                FromSwarm::ConnectionEstablished(ConnectionEstablished { other_established: *count - 1, ..e })
            }
            FromSwarm::ConnectionClosed(e) => {
                crate::limits::count_down(&mut self.direct, &e.peer_id);
                let remaining_established = self.direct.get(&e.peer_id).copied().unwrap_or(0);
                FromSwarm::ConnectionClosed(ConnectionClosed { remaining_established, ..e })
            }
            other => other,
        };
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            Either::Left(event) => self.inner.on_connection_handler_event(peer, id, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx).map(|action| action.map_in(Either::Left))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use libp2p::identity::Keypair;
    use libp2p::swarm::SwarmEvent;
    use libp2p::{Swarm, SwarmBuilder, gossipsub, identify, ping, relay, tls, yamux};
    use libp2p_stream::OpenStreamError;
    use spare_market::signed::NetworkId;

    use super::super::behaviour::Behaviour as Ours;
    use super::*;
    use crate::frames::PROTOCOL;

    const SPARE: libp2p::StreamProtocol = libp2p::StreamProtocol::new(PROTOCOL);

    /// A peer that speaks `spare/1` over relays, too.
    #[derive(NetworkBehaviour)]
    struct Hostile {
        relayed: relay::client::Behaviour,
        identify: identify::Behaviour,
        ping: ping::Behaviour,
        streams: libp2p_stream::Behaviour,
    }

    fn listening<B: NetworkBehaviour>(
        make: impl FnOnce(&Keypair, relay::client::Behaviour) -> B,
    ) -> Swarm<B> {
        let builder = SwarmBuilder::with_new_identity().with_tokio().with_quic();
        let mut swarm = builder
            .with_relay_client(tls::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key, relayed| make(key, relayed))
            .unwrap()
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
        swarm
    }

    fn ours(key: &Keypair, relayed: relay::client::Behaviour) -> Ours {
        let topic = gossipsub::IdentTopic::new("test").hash();
        Ours::new(key, relayed, NetworkId([1; 32]), topic, None).unwrap()
    }

    async fn address<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return address;
            }
        }
    }

    /// Waits for a circuit address, or for a connection.
    async fn until<B: NetworkBehaviour>(
        swarm: &mut Swarm<B>,
        is_it: impl Fn(&SwarmEvent<B::ToSwarm>) -> bool,
    ) {
        while !is_it(&swarm.select_next_some().await) {}
    }

    fn drive<B: NetworkBehaviour + Send>(mut swarm: Swarm<B>)
    where
        B::ToSwarm: Send,
        THandler<B>: Send,
        THandlerInEvent<B>: Send,
    {
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spare_is_neither_asked_nor_answered_over_a_relay() {
        let mut relay = listening(ours);
        let relay_addr = address(&mut relay).await;
        relay.add_external_address(relay_addr.clone());
        relay.behaviour_mut().relay.set_status(Some(relay::Status::Enable));
        let relay_addr = relay_addr.with_p2p(*relay.local_peer_id()).unwrap();
        drive(relay);

        let mut provider = listening(ours);
        provider.listen_on(relay_addr.clone().with(libp2p::multiaddr::Protocol::P2pCircuit)).unwrap();
        until(
            &mut provider,
            |e| matches!(e, SwarmEvent::NewListenAddr { address, .. } if is_relayed(address)),
        )
        .await;
        let provider_id = *provider.local_peer_id();
        let mut asking = provider.behaviour().direct.inner.streams.new_control();
        let mut answered = asking.accept(SPARE).unwrap();
        drive(provider);

        let mut hostile = listening(|key, relayed| Hostile {
            relayed,
            identify: identify::Behaviour::new(identify::Config::new("/x".into(), key.public())),
            ping: ping::Behaviour::default(),
            streams: libp2p_stream::Behaviour::new(),
        });
        let circuit = relay_addr.with(libp2p::multiaddr::Protocol::P2pCircuit);
        hostile.dial(circuit.with_p2p(provider_id).unwrap()).unwrap();
        until(
            &mut hostile,
            |e| matches!(e, SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == provider_id),
        )
        .await;
        let hostile_id = *hostile.local_peer_id();
        let mut control = hostile.behaviour().streams.new_control();
        let mut lured = control.accept(SPARE).unwrap();
        drive(hostile);

        let refused = control.open_stream(provider_id, SPARE).await;
        assert!(matches!(refused, Err(OpenStreamError::UnsupportedProtocol(_))), "{refused:?}");
        // The other way round no stream is opened either, although the peer would take it.
        let asked = asking.open_stream(hostile_id, SPARE);
        let opened = tokio::time::timeout(Duration::from_secs(1), asked).await;
        assert!(!matches!(opened, Ok(Ok(_))), "{opened:?}");
        assert!(tokio::time::timeout(Duration::from_millis(10), lured.next()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_millis(10), answered.next()).await.is_err());
    }
}

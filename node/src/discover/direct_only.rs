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

//! Identify, with what peers say about *this* node's address taken in small doses.
//!
//! libp2p makes every observed address a candidate, which is probed, kept and told to others; a peer can make addresses up without end.
//! Here a candidate comes only from a direct connection that this node dialled, whose far end it chose. The observed address is taken as it
//! is: QUIC dials from the port it listens on, so the port that a NAT gave it is the one through which it can be reached.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId, identify};

use super::{ip_of, is_relayed, udp_addr};
use crate::limits::{CANDIDATES_MAX, CANDIDATES_PER_SUBNET_MAX, CANDIDATES_WINDOW};
use crate::reach::SubnetRate;

/// Wraps identify.
pub(super) struct Observed {
    inner: identify::Behaviour,
    /// Far ends of direct connections that this node dialled.
    dialled: HashMap<ConnectionId, IpAddr>,
    admitted: SubnetRate,
    candidates: VecDeque<Multiaddr>,
}

impl Observed {
    pub(super) fn new(inner: identify::Behaviour) -> Self {
        let admitted = SubnetRate::new(CANDIDATES_WINDOW, CANDIDATES_PER_SUBNET_MAX, CANDIDATES_MAX);
        Self { inner, dialled: HashMap::new(), admitted, candidates: VecDeque::new() }
    }

    /// Whether the observation over `connection` may count: it comes from a peer that this node dialled.
    pub(super) fn is_of_dialled(&self, connection: ConnectionId) -> bool {
        self.dialled.contains_key(&connection)
    }

    fn consider(&mut self, connection: ConnectionId, observed: &Multiaddr) {
        let Some(reporter) = self.dialled.get(&connection) else { return };
        if is_relayed(observed) || udp_addr(observed).is_none() {
            return;
        }
        if self.admitted.admit((*reporter).into(), Instant::now()) {
            self.candidates.push_back(observed.clone());
        }
    }
}

impl NetworkBehaviour for Observed {
    type ConnectionHandler = THandler<identify::Behaviour>;
    type ToSwarm = identify::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
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
        // A connection from a port of its own says nothing about the port that this node listens on.
        if let (false, PortUse::Reuse, Some(ip)) = (is_relayed(address), port_use, ip_of(address)) {
            self.dialled.insert(id, ip);
        }
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ConnectionClosed(closed) = &event {
            self.dialled.remove(&closed.connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(candidate) = self.candidates.pop_front() {
                return Poll::Ready(ToSwarm::NewExternalAddrCandidate(candidate));
            }
            let Poll::Ready(action) = self.inner.poll(cx) else { return Poll::Pending };
            match action {
                ToSwarm::NewExternalAddrCandidate(_) => {}
                ToSwarm::GenerateEvent(event) => {
                    if let identify::Event::Received { connection_id, info, .. } = &event {
                        self.consider(*connection_id, &info.observed_addr);
                    }
                    return Poll::Ready(ToSwarm::GenerateEvent(event));
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

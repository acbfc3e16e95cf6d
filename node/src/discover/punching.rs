//! Hole punching (DCUtR), with a bound on where a peer can have this node send packets.
//!
//! Both sides tell each other where they believe to be, and each then dials all of that at once, for seconds. A peer that names many
//! addresses wants them flooded, so its dial is not made.

use std::collections::HashSet;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId, dcutr};

use crate::limits::PUNCH_ADDRESSES_MAX;

/// A peer named more addresses than it can be at.
#[derive(Debug, thiserror::Error)]
#[error("the peer named {0} addresses to be dialled at once, at most {PUNCH_ADDRESSES_MAX} are")]
struct TooManyAddresses(usize);

/// Wraps DCUtR.
pub(super) struct Punching {
    inner: dcutr::Behaviour,
    /// Dials to where peers say that they are, until they are made.
    dials: HashSet<ConnectionId>,
}

impl Punching {
    pub(super) fn new(inner: dcutr::Behaviour) -> Self {
        Self { inner, dials: HashSet::new() }
    }
}

impl NetworkBehaviour for Punching {
    type ConnectionHandler = THandler<dcutr::Behaviour>;
    type ToSwarm = dcutr::Event;

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
        if self.dials.remove(&id) && addresses.len() > PUNCH_ADDRESSES_MAX {
            return Err(ConnectionDenied::new(TooManyAddresses(addresses.len())));
        }
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
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::DialFailure(failure) = &event {
            self.dials.remove(&failure.connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let action = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &action {
            self.dials.insert(opts.connection_id());
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_have_many_addresses_flooded() {
        let mut punching = Punching::new(dcutr::Behaviour::new(PeerId::random()));
        let addresses = |n: usize| -> Vec<Multiaddr> {
            (1..=n).map(|i| format!("/ip4/192.0.2.{i}/udp/53/quic-v1").parse().unwrap()).collect()
        };
        let mut dial = |id: usize, count: usize, is_punch: bool| {
            let id = ConnectionId::new_unchecked(id);
            if is_punch {
                punching.dials.insert(id);
            }
            punching.handle_pending_outbound_connection(id, None, &addresses(count), Endpoint::Dialer).is_ok()
        };
        assert!(dial(1, PUNCH_ADDRESSES_MAX, true));
        assert!(!dial(2, PUNCH_ADDRESSES_MAX + 1, true));
        assert!(dial(3, PUNCH_ADDRESSES_MAX + 1, false), "other dials have their own bounds");
    }
}

//! The gate: how many libp2p connections one network may begin, and how many of its handshakes are under way. libp2p bounds connections in all and by
//! peer, but keys are free. Before connections are so many that libp2p takes no more, the network that has most makes room for others.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, ListenFailure,
    NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use spare_market::placement::Subnet;

use super::{ip_of, is_relayed};
use crate::budget::Budgets;
use crate::limits::{
    BUDGET_KEYS_MAX, DEBT_MAX, LIBP2P_CONNECTIONS_FREE, LIBP2P_CONNECTIONS_MAX,
    LIBP2P_CONNECTIONS_PER_SUBNET_MAX, LIBP2P_HANDSHAKES_PER_SUBNET, LIBP2P_HANDSHAKES_PER_SUBNET_MAX,
    LIBP2P_MISBEHAVIOUR_COST, count_down,
};

/// Too many connections from one network.
#[derive(Debug, thiserror::Error)]
#[error("too many connections from one network")]
struct Crowded;

/// Counts connections that others began, by network.
pub(super) struct Gate {
    started: Instant,
    handshakes: Counts<()>,
    established: Counts<PeerId>,
    begun: Budgets<Subnet>,
    /// Connections that make room for others.
    closing: VecDeque<(ConnectionId, PeerId)>,
}

/// Connections with `P`, counted by network.
struct Counts<P> {
    of: HashMap<ConnectionId, (Subnet, P)>,
    by_subnet: HashMap<Subnet, usize>,
}

impl<P> Default for Counts<P> {
    fn default() -> Self {
        Self { of: HashMap::new(), by_subnet: HashMap::new() }
    }
}

impl<P> Counts<P> {
    fn insert(&mut self, id: ConnectionId, subnet: Subnet, with: P) {
        *self.by_subnet.entry(subnet).or_default() += 1;
        self.of.insert(id, (subnet, with));
    }

    fn remove(&mut self, id: ConnectionId) -> Option<P> {
        let (subnet, with) = self.of.remove(&id)?;
        count_down(&mut self.by_subnet, &subnet);
        Some(with)
    }

    /// The oldest connection of the network that has most, if that is more than `subnet` has.
    fn oldest_of_heavier(&self, subnet: &Subnet) -> Option<ConnectionId> {
        let (heaviest, most) = self.by_subnet.iter().max_by_key(|(_, count)| **count)?;
        if *most <= self.from(subnet) {
            return None;
        }
        self.of.iter().filter(|(_, (of, _))| of == heaviest).map(|(id, _)| *id).min()
    }

    fn from(&self, subnet: &Subnet) -> usize {
        self.by_subnet.get(subnet).copied().unwrap_or(0)
    }
}

/// The network that a connection comes from; those without an IP address count as one. Who comes through a relay has none, and counts for the relay's
/// network, so that circuits through one relay do not keep out those through another.
fn subnet(local: &Multiaddr, remote: &Multiaddr) -> Subnet {
    let addr = if is_relayed(local) { local } else { remote };
    ip_of(addr).unwrap_or(IpAddr::from([0, 0, 0, 0])).into()
}

impl Gate {
    pub(super) fn new() -> Self {
        let begun = Budgets::new(LIBP2P_HANDSHAKES_PER_SUBNET, BUDGET_KEYS_MAX, DEBT_MAX);
        Self {
            started: Instant::now(),
            handshakes: Counts::default(),
            established: Counts::default(),
            begun,
            closing: VecDeque::new(),
        }
    }

    /// A peer of this network misbehaved: the network gets fewer further connections for a while.
    pub(super) fn misbehaved(&mut self, ip: IpAddr) {
        self.begun.charge(ip.into(), LIBP2P_MISBEHAVIOUR_COST, self.started.elapsed());
    }

    fn admit(&mut self, id: ConnectionId, subnet: Subnet) -> Result<(), ConnectionDenied> {
        let handshakes = self.handshakes.from(&subnet);
        if handshakes >= LIBP2P_HANDSHAKES_PER_SUBNET_MAX
            || handshakes + self.established.from(&subnet) >= LIBP2P_CONNECTIONS_PER_SUBNET_MAX
            || !self.begun.take(subnet, 1, self.started.elapsed())
        {
            return Err(ConnectionDenied::new(Crowded));
        }
        self.handshakes.insert(id, subnet, ());
        Ok(())
    }

    fn shook_hands(&mut self, id: ConnectionId, subnet: Subnet, peer: PeerId) {
        self.handshakes.remove(id);
        self.established.insert(id, subnet, peer);
        if self.established.of.len() + LIBP2P_CONNECTIONS_FREE > LIBP2P_CONNECTIONS_MAX as usize
            && let Some(oldest) = self.established.oldest_of_heavier(&subnet)
            && let Some(peer) = self.established.remove(oldest)
        {
            tracing::debug!(%peer, "libp2p connections are many, and the network that has most makes room");
            self.closing.push_back((oldest, peer));
        }
    }

    fn ended(&mut self, id: ConnectionId) {
        self.handshakes.remove(id);
        self.established.remove(id);
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(id, subnet(local, remote))
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.shook_hands(id, subnet(local, remote), peer);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.ended(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.closing.pop_front() {
            Some((id, peer_id)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) })
            }
            // Connections are made and ended by the swarm, which asks again after each.
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gets_its_share_of_handshakes_and_of_connections() {
        let mut gate = Gate::new();
        let own = "/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap();
        let here = subnet(&own, &"/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap());
        let there = subnet(&own, &"/ip4/10.0.1.1/udp/1/quic-v1".parse().unwrap());
        let id = ConnectionId::new_unchecked;
        for i in 0..LIBP2P_HANDSHAKES_PER_SUBNET_MAX {
            gate.admit(id(i), here).unwrap();
        }
        gate.admit(id(1000), here).unwrap_err();
        gate.admit(id(1001), there).unwrap();
        for i in 0..LIBP2P_CONNECTIONS_PER_SUBNET_MAX {
            if i >= LIBP2P_HANDSHAKES_PER_SUBNET_MAX {
                gate.admit(id(i), here).unwrap();
            }
            gate.shook_hands(id(i), here, PeerId::random());
        }
        gate.admit(id(1002), here).unwrap_err();
        for i in 0..LIBP2P_CONNECTIONS_PER_SUBNET_MAX {
            gate.ended(id(i));
            gate.ended(id(i));
        }
        gate.ended(id(1001));
        assert!(gate.handshakes.by_subnet.is_empty() && gate.established.by_subnet.is_empty());
        assert!(gate.handshakes.of.is_empty() && gate.established.of.is_empty());
        // Who comes through a relay counts for the relay's network.
        let circuit = "/ip4/10.0.2.1/udp/1/quic-v1/p2p-circuit".parse().unwrap();
        assert_eq!(subnet(&circuit, &Multiaddr::empty()), subnet(&own, &"/ip4/10.0.2.9".parse().unwrap()));
        // Misbehaviour of its peers uses up what a network may begin.
        for _ in 0..=LIBP2P_HANDSHAKES_PER_SUBNET.burst / LIBP2P_MISBEHAVIOUR_COST {
            gate.misbehaved(IpAddr::from([10, 0, 1, 9]));
        }
        gate.admit(id(2000), there).unwrap_err();
        gate.admit(id(2000), here).unwrap();
    }

    #[test]
    fn the_heaviest_network_makes_room_before_there_is_none() {
        let mut gate = Gate::new();
        let subnet = |i: usize| Subnet::V4([10, 0, i as u8]);
        let id = ConnectionId::new_unchecked;
        let room = LIBP2P_CONNECTIONS_MAX as usize - LIBP2P_CONNECTIONS_FREE;
        for i in 0..room {
            gate.shook_hands(id(i), subnet(i % 4), PeerId::random());
        }
        assert!(gate.closing.is_empty(), "there is room");
        let newcomer = PeerId::random();
        gate.shook_hands(id(room), subnet(9), newcomer);
        let (closed, _) = gate.closing.pop_front().expect("one makes room");
        assert!(closed < id(4), "the oldest one of its network");
        assert_eq!((gate.established.from(&subnet(9)), gate.established.of.len()), (1, room));
        gate.ended(closed);
        assert_eq!(gate.established.of.len(), room, "and is not counted down twice");
        // Among networks that have one each, nobody gives way.
        let mut gate = Gate::new();
        for i in 0..room + 4 {
            gate.shook_hands(id(i), subnet(i), PeerId::random());
        }
        assert!(gate.closing.is_empty());
    }
}

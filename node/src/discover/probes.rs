//! AutoNAT's answering side, with a bound on the dials that strangers can cause.
//!
//! Whoever asks can have this node dial any address, after sending it 30 kB or more. Each such dial takes one of the swarm's pending dials,
//! of which there is a fixed number, so they are bounded in all at once.

use std::collections::{HashSet, VecDeque};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::autonat::v2::server;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::DialFailure;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::limits::PROBE_DIALS_AT_ONCE_MAX;

/// After this time AutoNAT's own handler has given a request up, and no answer goes out any more.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(15);

/// Wraps AutoNAT's server.
pub(super) struct Probes {
    inner: server::Behaviour,
    dialling: HashSet<ConnectionId>,
    /// Dials that were not made, which the server still waits for. An answer at once would call the asker unreachable.
    passed_over: VecDeque<(Instant, PeerId, ConnectionId)>,
}

impl Probes {
    pub(super) fn new(inner: server::Behaviour) -> Self {
        Self { inner, dialling: HashSet::new(), passed_over: VecDeque::new() }
    }

    fn forget_passed_over(&mut self) {
        while let Some((at, peer, connection_id)) = self.passed_over.front().copied() {
            if at.elapsed() < GIVEN_UP_AFTER {
                return;
            }
            self.passed_over.pop_front();
            let (peer_id, error) = (Some(peer), &DialError::Aborted);
            self.inner.on_swarm_event(FromSwarm::DialFailure(DialFailure { peer_id, error, connection_id }));
        }
    }
}

impl NetworkBehaviour for Probes {
    type ConnectionHandler = THandler<server::Behaviour>;
    type ToSwarm = server::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dialling.remove(&id);
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::DialFailure(failure) = &event {
            self.dialling.remove(&failure.connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.forget_passed_over();
        loop {
            let Poll::Ready(action) = self.inner.poll(cx) else { return Poll::Pending };
            match action {
                ToSwarm::Dial { opts } => {
                    let id = opts.connection_id();
                    if self.dialling.len() < PROBE_DIALS_AT_ONCE_MAX {
                        self.dialling.insert(id);
                        return Poll::Ready(ToSwarm::Dial { opts });
                    }
                    if let Some(peer) = opts.get_peer_id() {
                        self.passed_over.push_back((Instant::now(), peer, id));
                    }
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

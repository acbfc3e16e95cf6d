//! UPnP for both ports: asks the router of a home network to forward them.
//!
//! libp2p's behaviour maps what its swarm listens on, and takes a router's word for it. Here it is told of the direct port as well, and what
//! it maps is a *candidate*, which others have to reach before anybody is told of it.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::swarm::behaviour::NewListenAddr;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId, upnp};

use super::{ip_of, quic_addr, udp_addr};

/// What became of asking the router.
#[derive(Debug)]
pub(super) enum Mapped {
    /// It forwards `outside` to `inside`.
    Added {
        /// Address on this machine.
        inside: SocketAddr,
        /// Address of the router.
        outside: SocketAddr,
    },
    /// It no longer forwards `inside`.
    Gone {
        /// Address on this machine.
        inside: SocketAddr,
    },
    /// No router answers to UPnP.
    NoRouter,
    /// The router has no public address itself.
    BehindAnother,
}

/// Wraps UPnP.
pub(super) struct Mapping {
    inner: upnp::tokio::Behaviour,
    direct_port: u16,
    /// Stands for the direct port, which no swarm listens on.
    direct_listener: ListenerId,
}

impl Mapping {
    pub(super) fn new(direct_port: u16) -> Self {
        Self { inner: upnp::tokio::Behaviour::default(), direct_port, direct_listener: ListenerId::next() }
    }

    fn map_direct(&mut self, ip: IpAddr) {
        let addr = quic_addr(SocketAddr::new(ip, self.direct_port));
        let listener_id = self.direct_listener;
        self.inner.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr: &addr }));
    }

    fn translate(event: upnp::Event) -> Option<Mapped> {
        match event {
            upnp::Event::NewExternalAddr { local_addr, external_addr } => {
                Some(Mapped::Added { inside: udp_addr(&local_addr)?, outside: udp_addr(&external_addr)? })
            }
            upnp::Event::ExpiredExternalAddr { local_addr, .. } => {
                Some(Mapped::Gone { inside: udp_addr(&local_addr)? })
            }
            upnp::Event::GatewayNotFound => Some(Mapped::NoRouter),
            upnp::Event::NonRoutableGateway => Some(Mapped::BehindAnother),
        }
    }
}

impl NetworkBehaviour for Mapping {
    type ConnectionHandler = THandler<upnp::tokio::Behaviour>;
    type ToSwarm = Mapped;

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
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        let listening = match &event {
            FromSwarm::NewListenAddr(new) => ip_of(new.addr),
            _ => None,
        };
        self.inner.on_swarm_event(event);
        if let Some(ip) = listening {
            self.map_direct(ip);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let Poll::Ready(action) = self.inner.poll(cx) else { return Poll::Pending };
            match action {
                ToSwarm::ExternalAddrConfirmed(addr) => {
                    // Of the direct port libp2p must not tell anybody: it does not speak libp2p.
                    if udp_addr(&addr).is_some_and(|addr| addr.port() != self.direct_port) {
                        return Poll::Ready(ToSwarm::NewExternalAddrCandidate(addr));
                    }
                }
                ToSwarm::GenerateEvent(event) => {
                    if let Some(event) = Self::translate(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                other => return Poll::Ready(other.map_out(|_| unreachable!("events were taken before"))),
            }
        }
    }
}

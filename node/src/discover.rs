//! Discovery: libp2p finds peers, spreads asks, and gets through NATs.
//!
//! QUIC transport; identify and ping to know who is there; Kademlia to find further peers; gossipsub to spread signed asks;
//! libp2p streams as the second way for `spare/1`. AutoNAT, UPnP, relays and hole punching (DCUtR) see to it that peers can be reached. Limits on
//! connections and memory are set, since libp2p has none by default. The rest of the node sees [`Addresses`] and [`Links`].
//!
//! The swarm has threads of its own, of a priority below the rest of the node's. libp2p's QUIC answers the first packet of every handshake, which
//! costs a signature, before anything here may refuse it; so strangers can keep these threads busy, but none that serve deals.
//!
//! **Invariant:** a relay carries identify, ping and DCUtR, and nothing else ([`DirectOnly`](direct_only)).

mod behaviour;
mod connects;
mod direct_only;
mod gate;
mod gossip;
mod links;
mod mapping;
mod observed;
mod probes;
mod punching;
mod runner;
mod threads;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, tls, yamux};
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, SignedBytes};
use tokio::sync::{Notify, mpsc};

use crate::asks::AskBook;
use crate::config::Relay;
use crate::limits::HELLO_TIMEOUT;
use crate::reach::{Reach, Router};
use behaviour::Behaviour;
use mapping::Mapping;
use runner::Runner;
use threads::Threads;

pub use links::Links;

/// How long closing waits for peers to be told.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How often Kademlia looks around for further peers.
const LOOK_AROUND_INTERVAL: Duration = Duration::from_secs(120);
/// Wishes for connections that wait for the swarm.
const CONNECTS_QUEUED: usize = 64;

/// The first IP address in `addr`.
pub(crate) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    addr.iter().find_map(|p| match p {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

/// The UDP address that `addr` begins with.
pub(crate) fn udp_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let port =
        addr.iter().nth(1).and_then(|p| if let Protocol::Udp(port) = p { Some(port) } else { None })?;
    Some(SocketAddr::new(ip_of(addr)?, port))
}

/// libp2p over QUIC at `addr`.
pub(crate) fn quic_addr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Udp(addr.port())).with(Protocol::QuicV1)
}

/// Whether `addr` leads through a relay.
pub(crate) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|p| p == Protocol::P2pCircuit)
}

/// The peer that `addr` leads to in the end.
pub(crate) fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    addr.iter().filter_map(|p| if let Protocol::P2p(peer) = p { Some(peer) } else { None }).last()
}

/// Who is connected over libp2p without a relay, and where this node listens.
#[derive(Default)]
pub struct Addresses {
    /// Where each peer's standing connections come from or lead to, the oldest first.
    connected: Mutex<HashMap<PublicKey, Vec<IpAddr>>>,
    listening: Mutex<Vec<Multiaddr>>,
    circuits: Mutex<Vec<Multiaddr>>,
    relaying: Mutex<Relaying>,
    /// Told when a connection stands.
    arrived: Notify,
}

/// What this node does as a relay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Relaying {
    /// Whether it offers itself.
    pub offered: bool,
    /// Peers that can be asked for through it.
    pub reservations: usize,
    /// Circuits since it started.
    pub circuits: u64,
}

impl Addresses {
    /// Whether a libp2p connection with `node` stands.
    pub fn is_connected(&self, node: &PublicKey) -> bool {
        self.connected.lock().expect("no holder panics").contains_key(node)
    }

    /// All peers connected over libp2p.
    pub fn connected(&self) -> Vec<PublicKey> {
        self.connected.lock().expect("no holder panics").keys().copied().collect()
    }

    /// Where `node` was seen, or the unspecified address. Its oldest connection counts: a later one may be a probe from another address of a machine that
    /// has several.
    pub fn ip(&self, node: &PublicKey) -> IpAddr {
        let connected = self.connected.lock().expect("no holder panics");
        connected.get(node).and_then(|ips| ips.first()).copied().unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }

    /// Where `node` was seen, from whom a stream came. Its first stream may be there before the swarm says that it is connected.
    pub async fn ip_of_asker(&self, node: &PublicKey) -> IpAddr {
        let known = async {
            loop {
                let arrived = self.arrived.notified();
                if self.is_connected(node) {
                    return;
                }
                arrived.await;
            }
        };
        // One that is gone already is seen nowhere.
        let _ = tokio::time::timeout(HELLO_TIMEOUT, known).await;
        self.ip(node)
    }

    /// The multiaddrs this node listens on.
    pub fn listening(&self) -> Vec<Multiaddr> {
        self.listening.lock().expect("no holder panics").clone()
    }

    /// The addresses of relays at which this node can be asked for, without its own name at the end.
    pub fn circuits(&self) -> Vec<Multiaddr> {
        self.circuits.lock().expect("no holder panics").clone()
    }

    /// What this node does as a relay.
    pub fn relaying(&self) -> Relaying {
        *self.relaying.lock().expect("no holder panics")
    }

    fn add_listening(&self, address: Multiaddr, peer: PeerId) {
        if let Ok(address) = address.with_p2p(peer) {
            self.listening.lock().expect("no holder panics").push(address);
        }
    }

    fn add_connection(&self, node: PublicKey, ip: IpAddr) {
        let mut connected = self.connected.lock().expect("no holder panics");
        connected.entry(node).or_default().push(ip);
        self.arrived.notify_waiters();
    }

    fn remove_connection(&self, node: &PublicKey, ip: IpAddr) {
        let mut connected = self.connected.lock().expect("no holder panics");
        let Some(ips) = connected.get_mut(node) else { return };
        if let Some(ended) = ips.iter().position(|of| *of == ip) {
            ips.remove(ended);
        }
        if ips.is_empty() {
            connected.remove(node);
        }
    }
}

/// What runs the swarm. Dropping it stops the swarm.
pub struct Discovery {
    /// Who is connected and where.
    pub addresses: Arc<Addresses>,
    /// Opens and accepts libp2p streams.
    pub links: Links,
    /// Sends this node's asks to everyone.
    pub publish: mpsc::Sender<SignedBytes>,
    stop: Arc<Notify>,
    stopped: Arc<Notify>,
    _threads: Threads,
}

impl Discovery {
    /// Closes all connections, and waits for a moment until peers have been told, so that they notice at once.
    pub async fn close(&self) {
        self.stop.notify_one();
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.stopped.notified()).await;
    }
}

/// How the swarm is to be set up.
pub struct Setup {
    /// The node key.
    pub keypair: Keypair,
    /// The network.
    pub network: NetworkId,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Peers to join through.
    pub bootstrap: Vec<Multiaddr>,
    /// Where asks are kept.
    pub book: Arc<AskBook>,
    /// What is known of this node's ports.
    pub reach: Arc<Reach>,
    /// Port of direct transfers, for which the router is asked as well; nothing to ask no router.
    pub upnp_direct_port: Option<u16>,
    /// Whether this node is a relay.
    pub relay: Relay,
    /// Whether others look for this node, so that it needs relays where it cannot be reached. They look for providers.
    pub is_looked_for: bool,
}

/// Starts the swarm, and keeps joining.
///
/// # Errors
/// When the address cannot be listened on, or no further thread can be had.
pub async fn start(setup: Setup) -> anyhow::Result<Discovery> {
    let threads = Threads::start()?;
    threads.handle().spawn(run(setup, threads)).await?
}

/// Runs the swarm on `threads`, on which it is called: libp2p and quinn spawn where they are.
async fn run(setup: Setup, threads: Threads) -> anyhow::Result<Discovery> {
    let hash = blake3::Hash::from_bytes(setup.network.0).to_hex();
    let topic = gossipsub::IdentTopic::new(format!("/spare/1/{hash}/asks"));
    // On loopback there is no router to ask.
    let direct_port = setup.upnp_direct_port.filter(|_| !setup.listen.ip().is_loopback());
    if direct_port.is_none() {
        setup.reach.router(Router::NotAsked);
    }
    let (network, hash) = (setup.network, topic.hash());
    let mut swarm = libp2p::SwarmBuilder::with_existing_identity(setup.keypair.clone())
        .with_tokio()
        .with_quic_config(|mut quic| {
            // As for direct connections: a peer that was killed is noticed in a few seconds.
            quic.keep_alive_interval = Duration::from_secs(3);
            quic.max_idle_timeout = 8_000;
            quic
        })
        .with_relay_client(tls::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relayed| {
            Behaviour::new(key, relayed, network, hash, direct_port.map(Mapping::new))
        })?
        .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build();
    swarm.behaviour_mut().direct.inner.gossip.subscribe(&topic)?;
    swarm.behaviour_mut().direct.inner.kademlia.set_mode(Some(libp2p::kad::Mode::Server));
    swarm.listen_on(quic_addr(setup.listen))?;
    let addresses = Arc::new(Addresses::default());
    let first = wait_until_listening(&mut swarm, &addresses).await?;
    setup.reach.listens(first.port());
    let (connects, wishes) = mpsc::channel(CONNECTS_QUEUED);
    let links = Links::new(swarm.behaviour().direct.inner.streams.new_control(), connects, addresses.clone());
    let (publish, outbox) = mpsc::channel(8);
    let (stop, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let runner = Runner::new(swarm, setup, topic, addresses.clone());
    tokio::spawn(runner.run(outbox, wishes, stop.clone(), stopped.clone()));
    Ok(Discovery { addresses, links, publish, stop, stopped, _threads: threads })
}

async fn wait_until_listening(
    swarm: &mut Swarm<Behaviour>,
    addresses: &Addresses,
) -> anyhow::Result<SocketAddr> {
    let peer = *swarm.local_peer_id();
    let listening = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    let first = udp_addr(&address).ok_or_else(|| anyhow::anyhow!("libp2p listens oddly"))?;
                    addresses.add_listening(address, peer);
                    return Ok(first);
                }
                SwarmEvent::ListenerClosed { reason: Err(error), .. }
                | SwarmEvent::ListenerError { error, .. } => {
                    return Err(anyhow::Error::new(error).context("libp2p cannot listen"));
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), listening).await.map_err(|_| {
        anyhow::anyhow!("libp2p could not listen within 5 s; is the address this machine's own?")
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_where_its_oldest_connection_is() {
        let addresses = Addresses::default();
        let node = PublicKey::Ed25519([1; 32]);
        let [first, second] = [1, 2].map(|tag| IpAddr::from([10, 0, 0, tag]));
        assert!(addresses.ip(&node).is_unspecified() && !addresses.is_connected(&node));
        for ip in [first, second, first] {
            addresses.add_connection(node, ip);
        }
        addresses.remove_connection(&node, first);
        assert_eq!(addresses.ip(&node), second, "the oldest that is left");
        addresses.remove_connection(&node, second);
        assert_eq!(addresses.ip(&node), first);
        addresses.remove_connection(&node, first);
        assert!(!addresses.is_connected(&node));
    }
}

//! Discovery: libp2p finds peers and spreads asks.
//!
//! QUIC transport; identify and ping to know who is there; Kademlia to find further peers; gossipsub to spread signed asks;
//! libp2p streams as the second way for `spare/1`. Limits on connections and memory are set, since libp2p has
//! none by default. The swarm runs in one task; the rest of the node sees [`Addresses`] and a stream control.

mod gate;
mod gossip;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, connection_limits, gossipsub, identify, kad,
    memory_connection_limits, ping,
};
use spare_market::ask::AskError;
use spare_market::grant::GrantError;
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, SignedBytes};
use spare_proofs::encode::{from_bytes, to_bytes};
use tokio::sync::{Notify, mpsc};

use crate::asks::AskBook;
use crate::limits::{
    GOSSIP_MAX_BYTES, IDENTIFY_ADDRESSES_MAX, LIBP2P_CONNECTIONS_MAX, LIBP2P_CONNECTIONS_PER_PEER_MAX,
    LIBP2P_HANDSHAKES_MAX, LIBP2P_MEMORY_MAX_BYTES,
};
use crate::transport::node_key;
use crate::unix_now_s;

/// How long closing waits for peers to be told.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How often the bootstrap peers are dialled while no peer is connected.
const REJOIN_INTERVAL: Duration = Duration::from_secs(2);
/// Asks in a row that no peer wanted to hear, after which connections are made anew. The first few come in quick succession.
const UNHEARD_MAX: u32 = 3;
/// Most known providers that are dialled beside the bootstrap peers.
const REJOIN_PROVIDERS_MAX: usize = 16;
/// How often it is looked for peers that misbehave.
const MISBEHAVIOUR_INTERVAL: Duration = Duration::from_millis(500);
/// How often Kademlia looks around for further peers.
const LOOK_AROUND_INTERVAL: Duration = Duration::from_secs(120);

#[derive(NetworkBehaviour)]
struct Behaviour {
    gate: gate::Gate,
    connection_limits: connection_limits::Behaviour,
    memory_limits: memory_connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    kademlia: kad::Behaviour<kad::store::MemoryStore>,
    gossip: gossipsub::Behaviour<gossipsub::IdentityTransform, gossipsub::WhitelistSubscriptionFilter>,
    streams: libp2p_stream::Behaviour,
}

/// Who is connected over libp2p, and where this node listens.
#[derive(Default)]
pub struct Addresses {
    connected: Mutex<HashMap<PublicKey, IpAddr>>,
    listening: Mutex<Vec<Multiaddr>>,
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

    /// Where `node` was seen, or the unspecified address.
    pub fn ip(&self, node: &PublicKey) -> IpAddr {
        self.connected
            .lock()
            .expect("no holder panics")
            .get(node)
            .copied()
            .unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }

    /// The multiaddrs this node listens on.
    pub fn listening(&self) -> Vec<Multiaddr> {
        self.listening.lock().expect("no holder panics").clone()
    }
}

/// What runs the swarm. Dropping it stops the swarm.
pub struct Discovery {
    /// Who is connected and where.
    pub addresses: Arc<Addresses>,
    /// Opens and accepts libp2p streams.
    pub control: libp2p_stream::Control,
    /// Sends this node's asks to everyone.
    pub publish: mpsc::Sender<SignedBytes>,
    stop: Arc<Notify>,
    stopped: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Discovery {
    /// Closes all connections, and waits for a moment until peers have been told, so that they notice at once.
    pub async fn close(&self) {
        self.stop.notify_one();
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.stopped.notified()).await;
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the swarm on `listen_ip`:`port` and keeps joining through `bootstrap`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(
    keypair: Keypair,
    network: NetworkId,
    listen_ip: IpAddr,
    port: u16,
    bootstrap: Vec<Multiaddr>,
    book: Arc<AskBook>,
) -> anyhow::Result<Discovery> {
    let topic =
        gossipsub::IdentTopic::new(format!("/spare/1/{}/asks", blake3::Hash::from_bytes(network.0).to_hex()));
    let mut swarm = libp2p::SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_quic_config(|mut quic| {
            // As for direct connections: a peer that was killed is noticed in a few seconds.
            quic.keep_alive_interval = Duration::from_secs(3);
            quic.max_idle_timeout = 8_000;
            quic
        })
        .with_behaviour(|key| behaviour(key, network, topic.hash()))?
        .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build();
    swarm.behaviour_mut().gossip.subscribe(&topic)?;
    swarm.behaviour_mut().kademlia.set_mode(Some(kad::Mode::Server));
    let mut listen = Multiaddr::from(listen_ip);
    listen.push(Protocol::Udp(port));
    listen.push(Protocol::QuicV1);
    swarm.listen_on(listen.clone())?;
    let addresses = Arc::new(Addresses::default());
    wait_until_listening(&mut swarm, &addresses).await?;
    let control = swarm.behaviour().streams.new_control();
    let (publish, outbox) = mpsc::channel(8);
    let (stop, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let runner = Runner {
        stop: stop.clone(),
        stopped: stopped.clone(),
        swarm,
        topic,
        addresses: addresses.clone(),
        bootstrap,
        book,
        outbox,
        identified: HashSet::new(),
        unheard: 0,
        pace: gossip::Pace::new(),
    };
    Ok(Discovery { addresses, control, publish, stop, stopped, task: tokio::spawn(runner.run()) })
}

fn behaviour(
    key: &Keypair,
    network: NetworkId,
    topic: gossipsub::TopicHash,
) -> Result<Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    let peer = key.public().to_peer_id();
    let network = &blake3::Hash::from_bytes(network.0).to_hex()[..16];
    let connections = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(LIBP2P_HANDSHAKES_MAX))
        .with_max_pending_outgoing(Some(64))
        .with_max_established_incoming(Some(LIBP2P_CONNECTIONS_MAX))
        .with_max_established_outgoing(Some(LIBP2P_CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(LIBP2P_CONNECTIONS_PER_PEER_MAX));
    let gossip = gossip::bound(&mut gossipsub::ConfigBuilder::default())
        .max_transmit_size(GOSSIP_MAX_BYTES)
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        // The same ask is the same message, whoever passes it on.
        .message_id_fn(|message| gossipsub::MessageId::from(blake3::hash(&message.data).as_bytes().to_vec()))
        .build()?;
    let mut kademlia = kad::Config::new(StreamProtocol::try_from_owned(format!("/spare/1/kad/{network}"))?);
    kademlia.set_periodic_bootstrap_interval(Some(LOOK_AROUND_INTERVAL));
    // Kademlia finds peers here and stores nothing, so that nobody can fill it.
    kademlia
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None);
    let identify = identify::Config::new(format!("/spare/1/{network}"), key.public())
        .with_agent_version(format!("spare/{}", env!("CARGO_PKG_VERSION")));
    // Subscriptions to other topics are not remembered.
    let mut gossip = gossipsub::Behaviour::new_with_subscription_filter(
        gossipsub::MessageAuthenticity::Signed(key.clone()),
        gossip,
        gossipsub::WhitelistSubscriptionFilter([topic.clone()].into()),
    )?;
    let (scores, thresholds) = gossip::scores(topic);
    gossip.with_peer_score(scores, thresholds)?;
    Ok(Behaviour {
        gate: gate::Gate::new(),
        connection_limits: connection_limits::Behaviour::new(connections),
        memory_limits: memory_connection_limits::Behaviour::with_max_bytes(LIBP2P_MEMORY_MAX_BYTES),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        kademlia: kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), kademlia),
        gossip,
        streams: libp2p_stream::Behaviour::new(),
    })
}

async fn wait_until_listening(swarm: &mut Swarm<Behaviour>, addresses: &Addresses) -> anyhow::Result<()> {
    let peer = *swarm.local_peer_id();
    let listening = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    addresses.add_listening(address, peer);
                    return Ok(());
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

impl Addresses {
    fn add_listening(&self, address: Multiaddr, peer: PeerId) {
        if let Ok(address) = address.with_p2p(peer) {
            self.listening.lock().expect("no holder panics").push(address);
        }
    }
}

struct Runner {
    stop: Arc<Notify>,
    stopped: Arc<Notify>,
    swarm: Swarm<Behaviour>,
    topic: gossipsub::IdentTopic,
    addresses: Arc<Addresses>,
    bootstrap: Vec<Multiaddr>,
    book: Arc<AskBook>,
    outbox: mpsc::Receiver<SignedBytes>,
    /// Connected peers that have said where they listen.
    identified: HashSet<PeerId>,
    /// Asks in a row that no peer wanted to hear.
    unheard: u32,
    /// How fast gossip comes.
    pace: gossip::Pace,
}

impl Runner {
    async fn run(mut self) {
        let mut rejoin = tokio::time::interval(REJOIN_INTERVAL);
        let mut looking = tokio::time::interval(MISBEHAVIOUR_INTERVAL);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                _ = rejoin.tick() => self.rejoin(),
                _ = looking.tick() => self.hang_up_on_misbehaviour(),
                () = self.stop.notified() => break,
                ask = self.outbox.recv() => match ask {
                    Some(ask) => self.publish(&ask),
                    None => break,
                },
            }
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // One that is gone already is as good.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        while self.swarm.connected_peers().next().is_some() {
            self.swarm.select_next_some().await;
        }
        self.stopped.notify_one();
    }

    /// Dials the bootstrap peers, and providers known from before, as long as fewer than two peers are connected.
    fn rejoin(&mut self) {
        if self.swarm.connected_peers().count() >= 2 {
            return;
        }
        let known =
            self.book.valid(unix_now_s()).into_iter().filter_map(|p| p.ask.libp2p.first()?.parse().ok());
        let addresses: Vec<Multiaddr> =
            self.bootstrap.iter().cloned().chain(known.take(REJOIN_PROVIDERS_MAX)).collect();
        for address in addresses {
            let peer =
                address.iter().find_map(|p| if let Protocol::P2p(peer) = p { Some(peer) } else { None });
            if peer.is_some_and(|p| p == *self.swarm.local_peer_id() || self.swarm.is_connected(&p)) {
                continue;
            }
            if let Err(error) = self.swarm.dial(address.clone()) {
                tracing::debug!(%address, %error, "a bootstrap peer could not be dialled");
            }
        }
    }

    /// Ends the connections of peers that are not listened to any more.
    fn hang_up_on_misbehaviour(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        peers.into_iter().for_each(|peer| self.hang_up_if_graylisted(peer));
    }

    fn hang_up_if_graylisted(&mut self, peer: PeerId) {
        let score = self.swarm.behaviour().gossip.peer_score(&peer);
        if score.is_some_and(|score| score < gossip::GRAYLIST) {
            if let Some(ip) = node_key(&peer).map(|node| self.addresses.ip(&node)) {
                self.swarm.behaviour_mut().gate.misbehaved(ip);
            }
            tracing::info!(%peer, ?score, "a peer that gossips what nobody should is disconnected");
            // One that is gone already is as good.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn publish(&mut self, ask: &SignedBytes) {
        // Without subscribers there is nobody to tell; late joiners ask for what they missed.
        match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), to_bytes(ask)) {
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => self.unheard += 1,
            Err(error) => tracing::debug!(%error, "an ask was not gossiped"),
            Ok(_) => self.unheard = 0,
        }
        // A peer to which this node's last process seems connected still does not repeat to this one what it subscribes to. Once that
        // connection is over, a fresh one makes it.
        if self.unheard > UNHEARD_MAX {
            self.unheard = 0;
            let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
            tracing::debug!(peers = peers.len(), "nobody listens to asks: connecting anew");
            for peer in peers {
                // One that is gone already is as good.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            self.rejoin();
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                let peer = *self.swarm.local_peer_id();
                self.addresses.add_listening(address, peer);
            }
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                let ip = endpoint.get_remote_address().iter().find_map(|p| match p {
                    Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
                    Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
                    _ => None,
                });
                if let (Some(node), Some(ip)) = (node_key(&peer_id), ip) {
                    self.addresses.connected.lock().expect("no holder panics").insert(node, ip);
                }
                self.hang_up_if_graylisted(peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.identified.remove(&peer_id);
                if let Some(node) = node_key(&peer_id) {
                    self.addresses.connected.lock().expect("no holder panics").remove(&node);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                // What a peer says again later would add up without end.
                if !self.identified.insert(peer_id) {
                    return;
                }
                for address in info.listen_addrs.into_iter().take(IDENTIFY_ADDRESSES_MAX) {
                    self.swarm.behaviour_mut().kademlia.add_address(&peer_id, address);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => {
                let acceptance = match self.pace.message(propagation_source) {
                    gossip::Verdict::Listen => self.judge(&message.data),
                    gossip::Verdict::PassOver => gossipsub::MessageAcceptance::Ignore,
                    gossip::Verdict::TooFast => {
                        let gossip = &mut self.swarm.behaviour_mut().gossip;
                        gossip.set_application_score(&propagation_source, gossip::MISBEHAVED);
                        gossipsub::MessageAcceptance::Ignore
                    }
                };
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            _ => {}
        }
    }

    /// Takes a gossiped ask. Only what holds and is news is passed on.
    fn judge(&self, data: &[u8]) -> gossipsub::MessageAcceptance {
        use crate::asks::RejectedAsk::{Ask, Full, Grant, Old};
        let Ok(raw) = from_bytes::<SignedBytes>(data, GOSSIP_MAX_BYTES) else {
            return gossipsub::MessageAcceptance::Reject;
        };
        match self.book.take(raw, unix_now_s()) {
            Ok(_) => gossipsub::MessageAcceptance::Accept,
            // By another's clock it may hold: that is nothing to hold against whoever passed it on.
            Err(Old | Full | Ask(AskError::NotNow) | Grant(GrantError::Expired(_))) => {
                gossipsub::MessageAcceptance::Ignore
            }
            Err(error) => {
                tracing::debug!(%error, "a gossiped ask was rejected");
                gossipsub::MessageAcceptance::Reject
            }
        }
    }
}

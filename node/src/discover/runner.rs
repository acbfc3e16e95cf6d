//! The task that drives the swarm.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, autonat, dcutr, gossipsub, identify, relay};
use spare_market::ask::AskError;
use spare_market::grant::GrantError;
use spare_market::signed::SignedBytes;
use spare_proofs::encode::{from_bytes, to_bytes};
use tokio::sync::{Notify, mpsc};

use super::behaviour::{Behaviour, BehaviourEvent, DirectEvent};
use super::connects::{Connects, Failed};
use super::links::Connect;
use super::mapping::Mapped;
use super::{Addresses, Setup, gossip, ip_of, is_relayed, peer_of, quic_addr, udp_addr};
use crate::asks::AskBook;
use crate::config::Relay;
use crate::frames::{Dialled, Service};
use crate::limits::{GOSSIP_MAX_BYTES, IDENTIFY_ADDRESSES_MAX, RELAYS_WANTED};
use crate::reach::{How, Reach, Router, is_private};
use crate::transport::node_key;
use crate::unix_now_s;

/// How often the bootstrap peers are dialled while no peer is connected, and how this node is reached is looked after.
const REJOIN_INTERVAL: Duration = Duration::from_secs(2);
/// Asks in a row that no peer wanted to hear, after which connections are made anew. The first few come in quick succession.
const UNHEARD_MAX: u32 = 3;
/// Most known providers that are dialled beside the bootstrap peers.
const REJOIN_PROVIDERS_MAX: usize = 16;
/// How often it is looked for peers that misbehave.
const MISBEHAVIOUR_INTERVAL: Duration = Duration::from_millis(500);
/// For how long a relay that refused is not asked again.
const RELAY_PAUSE: Duration = Duration::from_secs(30);

/// A directly connected peer.
#[derive(Default)]
struct Peer {
    /// Where this node dialled it, if it did.
    dialled: Option<Multiaddr>,
    /// Whether it has said where it listens.
    is_identified: bool,
    /// Whether it says that it is a relay.
    is_relay: bool,
    connections: usize,
}

/// A slot at a relay, asked for or held.
struct Reservation {
    relay: PeerId,
    /// The relay's address, as this node dialled it, and not what the relay says of itself.
    addr: Multiaddr,
    is_held: bool,
}

/// Drives the swarm.
pub(super) struct Runner {
    swarm: Swarm<Behaviour>,
    topic: gossipsub::IdentTopic,
    addresses: Arc<Addresses>,
    bootstrap: Vec<Multiaddr>,
    book: Arc<AskBook>,
    reach: Arc<Reach>,
    relay: Relay,
    is_looked_for: bool,
    peers: HashMap<PeerId, Peer>,
    connects: Connects,
    /// Relayed connections of each peer, to be closed once they have served.
    circuits: HashMap<PeerId, Vec<ConnectionId>>,
    reservations: HashMap<ListenerId, Reservation>,
    /// Relays that refused lately.
    refused: HashMap<PeerId, Instant>,
    /// Addresses that peers are told, since others got through to them.
    announced: HashSet<Multiaddr>,
    is_offered_as_relay: bool,
    /// Asks in a row that no peer wanted to hear.
    unheard: u32,
    /// How fast gossip comes.
    pace: gossip::Pace,
}

impl Runner {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        setup: Setup,
        topic: gossipsub::IdentTopic,
        addresses: Arc<Addresses>,
    ) -> Self {
        let Setup { bootstrap, book, reach, relay, is_looked_for, .. } = setup;
        Self {
            swarm,
            topic,
            addresses,
            bootstrap,
            book,
            reach,
            relay,
            is_looked_for,
            peers: HashMap::new(),
            connects: Connects::default(),
            circuits: HashMap::new(),
            reservations: HashMap::new(),
            refused: HashMap::new(),
            announced: HashSet::new(),
            is_offered_as_relay: false,
            unheard: 0,
            pace: gossip::Pace::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut outbox: mpsc::Receiver<SignedBytes>,
        mut wishes: mpsc::Receiver<Connect>,
        stop: Arc<Notify>,
        stopped: Arc<Notify>,
    ) {
        let mut rejoin = tokio::time::interval(REJOIN_INTERVAL);
        let mut looking = tokio::time::interval(MISBEHAVIOUR_INTERVAL);
        self.offer_as_relay(self.relay == Relay::On);
        // At once, so that whoever wants to be connected with a bootstrap peer finds its dial under way.
        self.rejoin();
        loop {
            let deadline = self.connects.next_deadline();
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle(event),
                _ = rejoin.tick() => {
                    self.rejoin();
                    self.look_after_reach();
                }
                _ = looking.tick() => self.hang_up_on_misbehaviour(),
                () = expiry => {
                    for failed in self.connects.expired(Instant::now()) {
                        self.gave_up(failed);
                    }
                }
                () = stop.notified() => break,
                Some(wish) = wishes.recv() => self.connect(wish),
                ask = outbox.recv() => match ask {
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
        stopped.notify_one();
    }

    /// Dials the bootstrap peers, and providers known from before, as long as fewer than two peers are connected.
    fn rejoin(&mut self) {
        if self.peers.len() >= 2 {
            return;
        }
        let known = self.book.valid(unix_now_s()).into_iter().filter_map(|p| p.plain_addrs().pop());
        let addresses: Vec<Multiaddr> =
            self.bootstrap.iter().cloned().chain(known.take(REJOIN_PROVIDERS_MAX)).collect();
        for address in addresses {
            let peer = peer_of(&address);
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
        let score = self.swarm.behaviour().direct.inner.gossip.peer_score(&peer);
        if score.is_some_and(|score| score < gossip::GRAYLIST) {
            // Who comes through a relay alone is seen nowhere, and the relay's network is not to blame.
            let seen = node_key(&peer).map(|node| self.addresses.ip(&node)).filter(|ip| !ip.is_unspecified());
            if let Some(ip) = seen {
                self.swarm.behaviour_mut().gate.misbehaved(ip);
            }
            tracing::info!(%peer, ?score, "a peer that gossips what nobody should is disconnected");
            // One that is gone already is as good.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn publish(&mut self, ask: &SignedBytes) {
        // Without subscribers there is nobody to tell; late joiners ask for what they missed.
        match self.swarm.behaviour_mut().direct.inner.gossip.publish(self.topic.clone(), to_bytes(ask)) {
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

    /// Makes a direct connection, if there is none.
    fn connect(&mut self, Connect { peer, addresses, waiter }: Connect) {
        if self.peers.contains_key(&peer) {
            // One that gave up waiting is as good.
            let _ = waiter.send(Ok(()));
            return;
        }
        if !self.connects.want(peer, waiter, Instant::now()) {
            return;
        }
        // A peer that is dialled through relays cannot be reached elsewhere, so nothing else is tried.
        let opts = DialOpts::peer_id(peer);
        let opts = if addresses.iter().any(is_relayed) {
            opts.condition(PeerCondition::Always).addresses(addresses).build()
        } else {
            let opts = opts.condition(PeerCondition::DisconnectedAndNotDialing).addresses(addresses);
            opts.extend_addresses_through_behaviour().build()
        };
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => self.connects.dialled(peer, id),
            // Another dial is under way, and counts for this one.
            Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                let failed = self.connects.dial_failed(peer, id, reason(&error));
                failed.into_iter().for_each(|failed| self.gave_up(failed));
            }
        }
    }

    fn gave_up(&mut self, failed: Failed) {
        let Failed { peer, punch } = failed;
        self.close_circuits(&peer);
        if let (Some(why), Some(node)) = (punch, node_key(&peer)) {
            tracing::debug!(%node, %why, "no hole was punched");
            self.reach.punched(node, Err(why));
        }
    }

    fn close_circuits(&mut self, peer: &PeerId) {
        for circuit in self.circuits.remove(peer).unwrap_or_default() {
            self.swarm.close_connection(circuit);
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, listener_id } => self.listens(listener_id, address),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if let Some(reservation) = self.reservations.remove(&listener_id) {
                    if let Err(error) = reason {
                        let (relay, error) = (reservation.relay, root(&error));
                        tracing::debug!(%relay, %error, "a slot at a relay is not to be had");
                        self.refused.insert(relay, Instant::now());
                    }
                    self.tell_relays();
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, connection_id, .. } => {
                self.connected(peer_id, connection_id, &endpoint);
                self.hang_up_if_graylisted(peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, endpoint, connection_id, .. } => {
                self.disconnected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } => {
                let failed = self.connects.dial_failed(peer, connection_id, reason(&error));
                failed.into_iter().for_each(|failed| self.gave_up(failed));
            }
            SwarmEvent::Behaviour(event) => self.behaves(event),
            _ => {}
        }
    }

    fn behaves(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, connection_id, info }) => {
                let is_dialled = self.swarm.behaviour().identify.is_of_dialled(connection_id);
                self.identified(peer_id, is_dialled, info);
            }
            BehaviourEvent::Identify(identify::Event::Pushed { peer_id, info, .. }) => {
                self.identified(peer_id, false, info);
            }
            BehaviourEvent::Mapping(mapped) => self.mapped(&mapped),
            BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result: Err(error) }) => {
                let failed = self.connects.punch_failed(remote_peer_id, root(&error));
                failed.into_iter().for_each(|failed| self.gave_up(failed));
            }
            BehaviourEvent::Relay(event) => self.relays(&event),
            BehaviourEvent::Direct(DirectEvent::Autonat(event)) => self.probed(&event),
            BehaviourEvent::Direct(DirectEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => {
                let acceptance = self.listen(propagation_source, &message.data);
                let gossip = &mut self.swarm.behaviour_mut().direct.inner.gossip;
                gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
            }
            _ => {}
        }
    }

    fn listens(&mut self, listener: ListenerId, address: Multiaddr) {
        if let Some(reservation) = self.reservations.get_mut(&listener) {
            reservation.is_held = true;
            self.tell_relays();
        } else if !is_relayed(&address) {
            if self.relay == Relay::On && ip_of(&address).is_some_and(|ip| !ip.is_loopback()) {
                // Its owner vouches for it.
                self.swarm.add_external_address(address.clone());
            }
            let peer = *self.swarm.local_peer_id();
            self.addresses.add_listening(address, peer);
        }
    }

    fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        if endpoint.is_relayed() {
            self.circuits.entry(peer).or_default().push(id);
            if self.peers.contains_key(&peer) || !self.connects.circuit(peer, Instant::now()) {
                self.close_circuits(&peer);
            }
            return;
        }
        let address = endpoint.get_remote_address();
        let known = self.peers.entry(peer).or_default();
        known.connections += 1;
        if endpoint.is_dialer() && !self.circuits.contains_key(&peer) {
            known.dialled.get_or_insert_with(|| address.clone());
        }
        let (Some(node), Some(ip)) = (node_key(&peer), ip_of(address)) else { return };
        self.addresses.add_connection(node, ip);
        if self.connects.connected(&peer) {
            self.reach.punched(node, Ok(()));
        }
        self.close_circuits(&peer);
    }

    fn disconnected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        if endpoint.is_relayed() {
            if let Some(circuits) = self.circuits.get_mut(&peer) {
                circuits.retain(|circuit| *circuit != id);
                if circuits.is_empty() {
                    self.circuits.remove(&peer);
                    self.connects.circuit_ended(&peer, Instant::now());
                }
            }
            return;
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.connections -= 1;
            if known.connections == 0 {
                self.peers.remove(&peer);
            }
        }
        if let (Some(node), Some(ip)) = (node_key(&peer), ip_of(endpoint.get_remote_address())) {
            self.addresses.remove_connection(&node, ip);
        }
    }

    fn identified(&mut self, peer: PeerId, is_dialled: bool, info: identify::Info) {
        let Some(node) = node_key(&peer) else { return };
        let seen = self.addresses.ip(&node);
        // Over a relay, identify says nothing that is needed.
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.is_relay = info.protocols.contains(&relay::HOP_PROTOCOL_NAME);
        if let (true, Some(observed)) = (is_dialled, udp_addr(&info.observed_addr)) {
            self.reach.observed(seen, observed);
        }
        // What a peer says again later would add up without end.
        if std::mem::replace(&mut known.is_identified, true) {
            return;
        }
        for address in info.listen_addrs.into_iter().take(IDENTIFY_ADDRESSES_MAX) {
            if is_worth_dialling(&address, seen) {
                self.swarm.behaviour_mut().direct.inner.kademlia.add_address(&peer, address);
            }
        }
    }

    fn mapped(&mut self, mapped: &Mapped) {
        match mapped {
            Mapped::Added { inside, outside } => {
                tracing::info!(%inside, %outside, "the router forwards a port by UPnP");
                self.reach.mapped(inside.port(), Some(*outside));
            }
            Mapped::Gone { inside } => self.reach.mapped(inside.port(), None),
            Mapped::NoRouter => self.reach.router(Router::None),
            Mapped::BehindAnother => self.reach.router(Router::BehindAnother),
        }
    }

    /// Notes what an AutoNAT server found. That an address is not this node's own may be why it failed, so failures count only where most
    /// peers see this node.
    fn probed(&mut self, event: &autonat::v2::client::Event) {
        let (Some(node), Some(addr)) = (node_key(&event.server), udp_addr(&event.tested_addr)) else {
            return;
        };
        tracing::debug!(%node, %addr, result = ?event.result, "AutoNAT");
        let outcome = match &event.result {
            Ok(()) => Dialled::Answered,
            Err(_) if self.reach.seen_at() == Some(addr) => Dialled::Silent,
            Err(_) => return,
        };
        let from = self.addresses.ip(&node);
        self.reach.found(Service::Libp2p, node, from, addr, outcome, unix_now_s());
    }

    fn relays(&mut self, event: &relay::Event) {
        let mut relaying = self.addresses.relaying.lock().expect("no holder panics");
        match event {
            relay::Event::ReservationReqAccepted { renewed: false, .. } => relaying.reservations += 1,
            relay::Event::ReservationClosed { .. } | relay::Event::ReservationTimedOut { .. } => {
                relaying.reservations = relaying.reservations.saturating_sub(1);
            }
            relay::Event::CircuitReqAccepted { .. } => relaying.circuits += 1,
            other => tracing::debug!(?other, "relaying"),
        }
    }

    /// Takes a gossiped ask, unless too many come.
    fn listen(&mut self, from: PeerId, data: &[u8]) -> gossipsub::MessageAcceptance {
        match self.pace.message(from) {
            gossip::Verdict::Listen => self.judge(data),
            gossip::Verdict::PassOver => gossipsub::MessageAcceptance::Ignore,
            gossip::Verdict::TooFast => {
                let gossip = &mut self.swarm.behaviour_mut().direct.inner.gossip;
                gossip.set_application_score(&from, gossip::MISBEHAVED);
                gossipsub::MessageAcceptance::Ignore
            }
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

    /// Acts on what is known of libp2p's port: tells others where it is, is a relay, or takes slots at relays.
    fn look_after_reach(&mut self) {
        let now_s = unix_now_s();
        let how = self.reach.how(Service::Libp2p, now_s);
        let proven = if how.is_dialable() { self.reach.proven(Service::Libp2p, now_s) } else { Vec::new() };
        self.announce(proven.into_iter().map(quic_addr).collect());
        self.offer_as_relay(match self.relay {
            Relay::Auto => how.is_dialable(),
            Relay::On => true,
            Relay::Off => false,
        });
        match how {
            How::Punch | How::Unreachable if self.is_looked_for => self.reserve(),
            _ if how.is_dialable() => {
                for listener in self.reservations.keys().copied().collect::<Vec<_>>() {
                    self.swarm.remove_listener(listener);
                }
            }
            _ => {}
        }
    }

    fn announce(&mut self, proven: HashSet<Multiaddr>) {
        for gone in self.announced.difference(&proven) {
            self.swarm.remove_external_address(gone);
        }
        for new in proven.difference(&self.announced) {
            self.swarm.add_external_address(new.clone());
        }
        self.announced = proven;
    }

    fn offer_as_relay(&mut self, is_offered: bool) {
        if self.is_offered_as_relay == is_offered {
            return;
        }
        self.is_offered_as_relay = is_offered;
        let status = if is_offered { relay::Status::Enable } else { relay::Status::Disable };
        self.swarm.behaviour_mut().relay.set_status(Some(status));
        self.addresses.relaying.lock().expect("no holder panics").offered = is_offered;
    }

    /// Asks connected relays for slots, until there are enough.
    fn reserve(&mut self) {
        self.refused.retain(|_, at| at.elapsed() < RELAY_PAUSE);
        let missing = RELAYS_WANTED.saturating_sub(self.reservations.len());
        let is_taken = |peer: &PeerId| self.reservations.values().any(|r| r.relay == *peer);
        let relays = self
            .peers
            .iter()
            .filter(|(peer, known)| known.is_relay && !is_taken(peer) && !self.refused.contains_key(peer));
        let relays: Vec<(PeerId, Multiaddr)> =
            relays.filter_map(|(peer, known)| Some((*peer, known.dialled.clone()?))).take(missing).collect();
        for (relay, addr) in relays {
            // Dialled addresses may end in the peer's name, or not.
            let plain: Multiaddr = addr.iter().take_while(|p| !matches!(p, Protocol::P2p(_))).collect();
            let addr = plain.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(addr.clone()) {
                Ok(listener) => {
                    self.reservations.insert(listener, Reservation { relay, addr, is_held: false });
                }
                Err(error) => {
                    tracing::debug!(%relay, %error, "a relay cannot be listened at");
                    self.refused.insert(relay, Instant::now());
                }
            }
        }
    }

    fn tell_relays(&self) {
        let held = || self.reservations.values().filter(|r| r.is_held);
        *self.addresses.circuits.lock().expect("no holder panics") = held().map(|r| r.addr.clone()).collect();
        self.reach.relays(held().filter_map(|r| node_key(&r.relay)).collect());
    }
}

/// Whether an address that a peer gives is worth a dial from here, where the peer is seen at `seen`: one that means something, or that is
/// in the same network.
fn is_worth_dialling(address: &Multiaddr, seen: IpAddr) -> bool {
    !is_relayed(address) && ip_of(address).is_some_and(|ip| !is_private(ip) || is_private(seen))
}

/// The innermost cause of an error.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().trim_end_matches('.').to_owned()
}

/// Why a dial failed, in as few words as will do.
fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(tried) => {
            let at =
                |addr: &Multiaddr| udp_addr(addr).map_or_else(|| addr.to_string(), |addr| addr.to_string());
            let mut whys: Vec<String> =
                tried.iter().map(|(addr, why)| format!("at {}: {}", at(addr), root(why))).collect();
            whys.truncate(2);
            whys.join("; ")
        }
        other => root(other),
    }
}

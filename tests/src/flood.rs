//! Attacks by numbers: connections that never finish, readers that never read, gossip that nobody should send. What they send is what a real peer
//! would, but for what makes it an attack.
//!
//! Attackers run in threads that get a processor only while nobody else wants it, so that on a machine of few cores it is the attacked node's work that
//! slows others, and not the making of the attack.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, gossipsub};
use quinn_proto::crypto::rustls::QuicClientConfig;
use spare::frames::{Hello, Request, Response, read_frame, write_frame};
use spare::home::Identity;
use spare_market::keys::{PublicKey, Seed};
use spare_market::signed::NetworkId;
use spare_proofs::cipher::Secret;
use spare_proofs::tree::Root;

use crate::hostile::endpoint;

/// How long a slow reader holds on before it tries anew.
const HOLD: Duration = Duration::from_secs(4);

/// A runtime of `threads` threads that run while nothing else does.
///
/// # Panics
/// When it cannot be made.
pub fn attackers(threads: usize) -> tokio::runtime::Runtime {
    std::thread::spawn(yield_to_all).join().expect("threads can be given the lowest priority");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .on_thread_start(yield_to_all)
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

/// Threads that end when this is dropped.
pub struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps all cores busy with nothing, at the priority of the attackers.
///
/// # Panics
/// When threads cannot be started.
#[must_use]
pub fn busy_cores() -> Busy {
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..std::thread::available_parallelism().expect("the system tells").get() {
        let stop = stop.clone();
        std::thread::spawn(move || {
            yield_to_all();
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
    Busy(stop)
}

/// Gives the calling thread the policy SCHED_IDLE (sched(7)): whoever else wants the processor has it at once. The lowest priority of the usual policy
/// keeps it for some milliseconds, which is what is measured here. It needs no privilege.
fn yield_to_all() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let is_set = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    assert!(is_set.is_ok_and(|status| status.success()), "chrt (util-linux) sets a thread's policy");
}

/// Sends the first packet of `count` connections to `to`, in turn from the addresses 127.0.`subnets`.1, and nothing more. `alpn` is what they would
/// speak.
///
/// # Panics
/// When a socket cannot be bound.
pub fn half_open(to: SocketAddr, alpn: &[u8], subnets: std::ops::Range<u8>, count: usize) {
    let identity = Keypair::generate_ed25519();
    let mut tls = libp2p_tls::make_client_config(&identity, None).expect("a key makes a certificate");
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3 ciphers are there");
    let config = quinn_proto::ClientConfig::new(Arc::new(tls));
    let sockets: Vec<UdpSocket> = subnets
        .map(|subnet| UdpSocket::bind(SocketAddr::from(([127, 0, subnet, 1], 0))).expect("a free port"))
        .collect();
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let mut packet = Vec::new();
    for i in 0..count {
        let now = Instant::now();
        let begun = endpoint.connect(now, config.clone(), to, "spare");
        let (handle, mut connection) = begun.expect("an address that can be dialled");
        packet.clear();
        let transmit = connection.poll_transmit(now, 1, &mut packet).expect("a connection begins by sending");
        // A full buffer loses it, as any network may.
        let _ = sockets[i % sockets.len()].send_to(&packet[..transmit.size], to);
        endpoint.handle_event(handle, quinn_proto::EndpointEvent::drained());
    }
}

/// What became of slow readers.
#[derive(Debug, Default)]
pub struct Readers {
    /// Sessions that were opened.
    pub opened: AtomicU64,
    /// Sessions that were turned away.
    pub turned_away: AtomicU64,
    /// Reads that were begun by the provider.
    pub begun: AtomicU64,
    /// Reads that were refused.
    pub refused: AtomicU64,
}

/// Node keys of the account of `seed`, each with a grant of its own.
pub fn node_keys(seed: &Seed, network: NetworkId, count: usize) -> Vec<Identity> {
    let now_s = spare::unix_now_s();
    (0..count).map(|_| Identity::new(seed, network, Secret::new(rand::random()), now_s)).collect()
}

/// Readers of a shard that ask for all of it and take nothing, one for each of `identities` and each of `per_identity`; the i-th identity is at
/// 127.0.(`first_subnet` + i).1. They try anew until told to stop.
pub async fn slow_readers(
    provider: (PublicKey, SocketAddr),
    identities: Vec<Identity>,
    per_identity: usize,
    first_subnet: u8,
    (root, shard_bytes): (Root, u64),
    readers: Arc<Readers>,
    stop: Arc<AtomicBool>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for (i, identity) in identities.into_iter().enumerate() {
        let identity = Arc::new(identity);
        // A connection has its own bound on streams, so a reader of many takes several.
        let connections = per_identity.div_ceil(24).max(1);
        let endpoints: Vec<_> =
            (0..connections).map(|_| endpoint(&identity, first_subnet + i as u8)).collect();
        for j in 0..per_identity {
            let (identity, endpoint) = (identity.clone(), endpoints[j % connections].clone());
            let (readers, stop) = (readers.clone(), stop.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let held = async {
                        let mut wire = endpoint.open(&provider.0, &[provider.1]).await.ok()?;
                        let (network, grant) = (identity.network, Some(identity.grant.clone()));
                        write_frame(&mut wire.send, &Hello::V1 { network, grant }).await.ok()?;
                        read_frame::<Hello>(&mut wire.recv).await.ok()?;
                        readers.opened.fetch_add(1, Ordering::Relaxed);
                        let read = Request::Read { root, start: 0, end: shard_bytes, nonce: rand::random() };
                        write_frame(&mut wire.send, &read).await.ok()?;
                        Some((read_frame::<Response>(&mut wire.recv).await.ok(), wire))
                    };
                    match held.await {
                        None => drop(readers.turned_away.fetch_add(1, Ordering::Relaxed)),
                        Some((Some(Response::Reading { .. }), _wire)) => {
                            readers.begun.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(HOLD).await;
                            continue;
                        }
                        Some(_) => drop(readers.refused.fetch_add(1, Ordering::Relaxed)),
                    }
                    tokio::time::sleep(HOLD / 8).await;
                }
            });
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// How gossip is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Signed as gossip is, but what it says is noise.
    Noise,
    /// Not signed at all.
    Unsigned,
}

/// What became of malformed gossip.
#[derive(Debug, Default)]
pub struct Gossip {
    /// Messages handed to the transport.
    pub sent: AtomicU64,
    /// Connections that were made.
    pub connected: AtomicU64,
    /// Connections that the attacked node ended.
    pub disconnected: AtomicU64,
    /// Connections that were not made.
    pub refused: AtomicU64,
}

/// Gossips malformed messages to `to` as fast as it can, from 127.0.`subnet`.1, until told to stop. Whenever it is disconnected it comes again under
/// another key.
///
/// # Panics
/// When libp2p cannot be started.
pub async fn gossip(
    to: Multiaddr,
    network: NetworkId,
    subnet: u8,
    malformed: Malformed,
    counts: Arc<Gossip>,
    stop: Arc<AtomicBool>,
) {
    let hex = blake3::Hash::from_bytes(network.0).to_hex();
    let topic = gossipsub::IdentTopic::new(format!("/spare/1/{hex}/asks"));
    while !stop.load(Ordering::Relaxed) {
        gossip_until_disconnected(&to, &topic, subnet, malformed, &counts, &stop).await;
    }
}

async fn gossip_until_disconnected(
    to: &Multiaddr,
    topic: &gossipsub::IdentTopic,
    subnet: u8,
    malformed: Malformed,
    counts: &Gossip,
    stop: &AtomicBool,
) {
    let mut swarm = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| {
            let (mode, author) = match malformed {
                Malformed::Noise => {
                    (gossipsub::ValidationMode::Strict, gossipsub::MessageAuthenticity::Signed(key.clone()))
                }
                Malformed::Unsigned => {
                    (gossipsub::ValidationMode::None, gossipsub::MessageAuthenticity::Anonymous)
                }
            };
            let config = gossipsub::ConfigBuilder::default()
                .validation_mode(mode)
                .max_transmit_size(spare::limits::GOSSIP_MAX_BYTES)
                .flood_publish(true)
                .build()?;
            Ok(gossipsub::Behaviour::<gossipsub::IdentityTransform>::new(author, config)?)
        })
        .expect("a behaviour can be made")
        .build();
    swarm.behaviour_mut().subscribe(topic).expect("a topic can be subscribed to");
    let mut from = Multiaddr::from(std::net::IpAddr::from([127, 0, subnet, 1]));
    from.push(Protocol::Udp(0));
    from.push(Protocol::QuicV1);
    swarm.listen_on(from).expect("a free port");
    let mut is_dialling = false;
    while !stop.load(Ordering::Relaxed) {
        if swarm.connected_peers().next().is_none() && !is_dialling && swarm.listeners().next().is_some() {
            is_dialling = swarm.dial(to.clone()).is_ok();
        }
        for _ in 0..16 {
            let noise: [u8; 200] = rand::random();
            if swarm.behaviour_mut().publish(topic.clone(), noise).is_err() {
                break;
            }
            counts.sent.fetch_add(1, Ordering::Relaxed);
        }
        // What is to be sent is only sent when the swarm is asked what is new.
        match tokio::time::timeout(Duration::from_millis(2), swarm.select_next_some()).await {
            Ok(SwarmEvent::ConnectionEstablished { .. }) => {
                counts.connected.fetch_add(1, Ordering::Relaxed);
            }
            Ok(SwarmEvent::ConnectionClosed { .. }) => {
                counts.disconnected.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(SwarmEvent::OutgoingConnectionError { .. }) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                is_dialling = false;
            }
            _ => {}
        }
    }
}

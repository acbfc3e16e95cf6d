//! Ordered two-way streams between authenticated peers: over quinn directly, or over libp2p.
//!
//! Both give a [`Wire`]; what runs over it does not know which. Direct connections use quinn with libp2p's TLS
//! certificates under their own ALPN, so a peer is the same node key on both, and no key log is ever written.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;
use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};

use crate::budget::Budgets;
use crate::frames::{Dialled, Service};
use crate::limits::{
    ACCEPTED_WINDOW_BYTES, BUDGET_KEYS_MAX, BULK_WINDOW_BYTES, CONNECTIONS_BEFORE_RETRY, CONNECTIONS_MAX,
    CONNECTIONS_PER_IP_MAX, CONNECTIONS_PER_SUBNET_MAX, DEBT_MAX, DIAL_TIMEOUT, HANDSHAKES_BEFORE_RETRY,
    HANDSHAKES_MAX, HANDSHAKES_PER_SUBNET, HANDSHAKES_PER_SUBNET_MAX, HELLO_TIMEOUT, IDLE_TIMEOUT,
    INCOMING_BUFFER_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use crate::places::{Bounds, Place, Places};

const ALPN: &[u8] = b"spare/1";
/// What libp2p over QUIC negotiates (libp2p TLS specification).
const LIBP2P_ALPN: &[u8] = b"libp2p";
/// How long closing waits for peers to be told.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Socket buffers that are asked for, each way.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Read buffer of a wire: for frames and hash pairs. Most of a group goes past it, and is not copied once more.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes that went over all wires of this node, control frames included.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes received.
    pub received_bytes: AtomicU64,
    /// Bytes sent.
    pub sent_bytes: AtomicU64,
}

/// An ordered two-way stream with a peer whose node key was proven.
pub struct Wire {
    /// From the peer.
    pub recv: BufReader<Counted<Box<dyn AsyncRead + Send + Unpin>>>,
    /// To the peer.
    pub send: Counted<SendHalf>,
    /// The peer's node key.
    pub peer: PublicKey,
    /// Where the peer was seen.
    pub remote_ip: IpAddr,
    /// The connection, if it is a direct one that was accepted.
    accepted: Option<quinn::Connection>,
}

/// A connection's place among the accepted ones. Its wires share it, so whoever holds it knows whether any is in use.
type ConnectionPlace = Arc<Place<IpAddr>>;

impl Wire {
    /// Makes a wire of the two halves of a stream.
    pub fn new(
        recv: impl AsyncRead + Send + Unpin + 'static,
        send: SendHalf,
        peer: PublicKey,
        remote_ip: IpAddr,
        traffic: &Arc<Traffic>,
    ) -> Self {
        let recv: Box<dyn AsyncRead + Send + Unpin> = Box::new(recv);
        Self {
            recv: BufReader::with_capacity(
                READ_BUFFER_BYTES,
                Counted { inner: recv, traffic: traffic.clone(), moved_bytes: 0, place: None },
            ),
            send: Counted { inner: send, traffic: traffic.clone(), moved_bytes: 0, place: None },
            peer,
            remote_ip,
            accepted: None,
        }
    }

    /// Has it count as use of a direct connection that was accepted.
    fn over(mut self, connection: quinn::Connection, place: &ConnectionPlace) -> Self {
        place.progressed();
        self.recv.get_mut().place = Some(place.clone());
        self.send.place = Some(place.clone());
        self.accepted = Some(connection);
        self
    }

    /// Bytes that went over it, either way.
    pub fn moved_bytes(&self) -> u64 {
        self.recv.get_ref().moved_bytes + self.send.moved_bytes
    }

    /// Lets the peer send far ahead from now on: something long was agreed on.
    pub fn expect_bulk(&self) {
        if let Some(connection) = &self.accepted {
            connection.set_receive_window(BULK_WINDOW_BYTES.into());
        }
    }
}

/// The sending half of a stream.
pub enum SendHalf {
    /// Of a direct connection, which can take bytes over without copying them.
    Direct(quinn::SendStream),
    /// Of anything else.
    Other(Box<dyn AsyncWrite + Send + Unpin>),
}

impl SendHalf {
    /// Wraps a sending half that is not a direct connection's.
    pub fn other(send: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::Other(Box::new(send))
    }

    fn inner(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match self {
            Self::Direct(stream) => Pin::new(stream),
            Self::Other(stream) => Pin::new(stream),
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

impl Counted<SendHalf> {
    /// Sends `bytes`, without copying them where the transport can.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn write_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.count_sent(bytes.len());
        match &mut self.inner {
            SendHalf::Direct(stream) => Ok(stream.write_chunk(bytes).await?),
            SendHalf::Other(stream) => stream.write_all(&bytes).await,
        }
    }
}

impl Counted<SendHalf> {
    /// Sends `pieces` one after another, without copying them where the transport can.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn write_pieces(&mut self, pieces: &mut [Bytes]) -> io::Result<()> {
        self.count_sent(pieces.iter().map(Bytes::len).sum());
        match &mut self.inner {
            SendHalf::Direct(stream) => Ok(stream.write_all_chunks(pieces).await?),
            SendHalf::Other(stream) => {
                for piece in pieces {
                    stream.write_all(piece).await?;
                }
                Ok(())
            }
        }
    }
}

/// A stream whose bytes are counted.
pub struct Counted<S> {
    inner: S,
    traffic: Arc<Traffic>,
    moved_bytes: u64,
    place: Option<ConnectionPlace>,
}

impl<S> Counted<S> {
    fn count_sent(&mut self, bytes: usize) {
        self.traffic.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.count(bytes);
    }

    fn count_received(&mut self, bytes: usize) {
        self.traffic.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.count(bytes);
    }

    fn count(&mut self, bytes: usize) {
        self.moved_bytes += bytes as u64;
        if let Some(place) = self.place.as_ref().filter(|_| bytes > 0) {
            place.progressed();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.count_received(buf.filled().len() - before);
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = &poll {
            self.count_sent(*written);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The node key behind a libp2p peer id, or `None` for another scheme.
pub fn node_key(peer: &PeerId) -> Option<PublicKey> {
    // An ed25519 peer id is its key's protobuf encoding under the identity multihash (libp2p peer-ids spec).
    let multihash = peer.as_ref();
    let key = libp2p::identity::PublicKey::try_decode_protobuf(multihash.digest()).ok()?;
    Some(PublicKey::Ed25519(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The libp2p peer id of a node key, or `None` when the bytes are no valid key.
pub fn peer_id(node: &PublicKey) -> Option<PeerId> {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(node.key_bytes()).ok()?;
    Some(PeerId::from_public_key(&libp2p::identity::PublicKey::from(key)))
}

/// Why a peer could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// Nobody answered in time.
    #[error("no answer from {0} within {seconds} s", seconds = DIAL_TIMEOUT.as_secs())]
    Timeout(String),
    /// The connection failed.
    #[error("{addr}: {why}")]
    Failed {
        /// Where.
        addr: String,
        /// Why.
        why: String,
    },
    /// The node key is not a valid key.
    #[error("the node key is not valid")]
    BadKey,
    /// No address is known.
    #[error("no address is known")]
    NoAddress,
    /// It says of itself that nobody can reach it.
    #[error("{0} says that nobody can reach it; its owner has to see to that")]
    Unreachable(String),
    /// A relay introduced it, but no direct connection came about.
    #[error("{peer} is behind a NAT, hole punching failed: {why}")]
    Punch {
        /// Which peer.
        peer: String,
        /// Why.
        why: String,
    },
}

/// The transport settings of direct connections; the benchmark's raw connections use the same.
pub fn transport_config() -> Arc<quinn::TransportConfig> {
    Arc::new(transport_with(BULK_WINDOW_BYTES))
}

fn transport_with(receive_window: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_PER_CONNECTION_MAX.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window((2u32 << 20).into())
        .receive_window(receive_window.into())
        .send_window(1 << 20)
        .keep_alive_interval(Some(Duration::from_secs(3)))
        .max_idle_timeout(Some(Duration::from_secs(8).try_into().expect("8 s fit")));
    transport
}

/// An endpoint's settings. A node that was killed and started anew ends the connections of its last process as soon as their peers send
/// anything, since it makes the same stateless reset tokens (RFC 9000, section 10.3).
fn endpoint_config(keypair: &Keypair) -> io::Result<quinn::EndpointConfig> {
    let keypair = keypair.clone().try_into_ed25519().map_err(io::Error::other)?;
    let reset_key = ResetKey(blake3::derive_key("spare 2026 stateless reset v1", keypair.secret().as_ref()));
    // Not a secret: it tells connection ids that this node may have given from noise.
    let cid_key = u64::from_le_bytes(
        *blake3::hash(&keypair.public().to_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes"),
    );
    let mut config = quinn::EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    Ok(config)
}

/// Keyed BLAKE3, as the key of stateless reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        // Compared in constant time.
        let is_good = signature.try_into().is_ok_and(|bytes| expected == blake3::Hash::from_bytes(bytes));
        is_good.then_some(()).ok_or(CryptoError)
    }
}

/// The endpoint of direct connections: dials and accepts on one UDP port.
pub struct Direct {
    endpoint: quinn::Endpoint,
    keypair: Keypair,
    traffic: Arc<Traffic>,
    /// Open connections by peer, for asking.
    connections: tokio::sync::Mutex<HashMap<PublicKey, quinn::Connection>>,
    /// Accepted connections, those with a handshake under way included.
    accepted: Arc<Places<IpAddr>>,
    /// Those whose handshake is not finished.
    handshakes: Arc<Places<IpAddr>>,
    begun: Mutex<Begun>,
    started: Instant,
    /// Bytes of socket buffer that the kernel granted.
    pub buffer_bytes: usize,
}

/// How many connections were begun lately.
struct Begun {
    by_subnet: Budgets<Subnet>,
    in_all: Budgets<()>,
}

impl Default for Begun {
    fn default() -> Self {
        let by_subnet = Budgets::new(HANDSHAKES_PER_SUBNET, BUDGET_KEYS_MAX, DEBT_MAX);
        let in_all = Budgets::new(HANDSHAKES_BEFORE_RETRY, 1, DEBT_MAX);
        Self { by_subnet, in_all }
    }
}

impl Direct {
    /// Binds `addr`.
    ///
    /// # Errors
    /// When the port is taken or the socket cannot be set up.
    pub fn bind(addr: SocketAddr, keypair: Keypair, traffic: Arc<Traffic>) -> io::Result<Self> {
        let mut tls = libp2p_tls::make_server_config(&keypair).map_err(io::Error::other)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.key_log = Arc::new(rustls::NoKeyLog);
        let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        // Whoever connects may send little before something long is agreed on: `Wire::expect_bulk`.
        server
            .transport_config(Arc::new(transport_with(ACCEPTED_WINDOW_BYTES)))
            .migration(false)
            .max_incoming(HANDSHAKES_MAX)
            .incoming_buffer_size(INCOMING_BUFFER_BYTES)
            .incoming_buffer_size_total(HANDSHAKES_MAX as u64 * INCOMING_BUFFER_BYTES);
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, None)?;
        // The kernel may grant less; more buffer means fewer losses when the process is busy.
        let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
        // Linux counts its own overhead as well, and says twice what may be used.
        let buffer_bytes = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
        socket.bind(&addr.into())?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let config = endpoint_config(&keypair)?;
        let endpoint = quinn::Endpoint::new(config, Some(server), socket.into(), runtime)?;
        Ok(Self {
            endpoint,
            keypair,
            traffic,
            connections: tokio::sync::Mutex::default(),
            accepted: Places::new(Bounds {
                total: CONNECTIONS_MAX,
                per_holder: CONNECTIONS_PER_IP_MAX,
                per_subnet: CONNECTIONS_PER_SUBNET_MAX,
            }),
            handshakes: Places::new(Bounds {
                total: HANDSHAKES_MAX,
                per_holder: HANDSHAKES_PER_SUBNET_MAX,
                per_subnet: HANDSHAKES_PER_SUBNET_MAX,
            }),
            begun: Mutex::default(),
            started: Instant::now(),
            buffer_bytes,
        })
    }

    /// The address bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Opens a stream to `node`, over the connection that stands or a new one to whichever of `addrs` answers first.
    ///
    /// # Errors
    /// [`DialError`] within [`DIAL_TIMEOUT`].
    pub async fn open(&self, node: &PublicKey, addrs: &[SocketAddr]) -> Result<Wire, DialError> {
        let standing =
            self.connections.lock().await.get(node).filter(|c| c.close_reason().is_none()).cloned();
        let connection = match standing {
            Some(connection) => connection,
            None if addrs.is_empty() => return Err(DialError::NoAddress),
            None => {
                let dials = addrs.iter().map(|addr| Box::pin(self.connect(node, *addr)));
                let (connection, _) = futures::future::select_ok(dials).await?;
                let mut connections = self.connections.lock().await;
                // Those that ended are of no more use.
                connections.retain(|_, standing| standing.close_reason().is_none());
                connections.insert(*node, connection.clone());
                connection
            }
        };
        let addr = connection.remote_address();
        let opening = tokio::time::timeout(DIAL_TIMEOUT, connection.open_bi()).await;
        let (send, recv) = opening
            .map_err(|_| DialError::Timeout(addr.to_string()))?
            .map_err(|e| DialError::Failed { addr: addr.to_string(), why: e.to_string() })?;
        Ok(Wire::new(recv, SendHalf::Direct(send), *node, addr.ip(), &self.traffic))
    }

    async fn connect(&self, node: &PublicKey, addr: SocketAddr) -> Result<quinn::Connection, DialError> {
        self.connect_from(&self.endpoint, node, addr, ALPN).await
    }

    async fn connect_from(
        &self,
        endpoint: &quinn::Endpoint,
        node: &PublicKey,
        addr: SocketAddr,
        alpn: &[u8],
    ) -> Result<quinn::Connection, DialError> {
        let failed = |why: String| DialError::Failed { addr: addr.to_string(), why };
        let peer = peer_id(node).ok_or(DialError::BadKey)?;
        let mut tls =
            libp2p_tls::make_client_config(&self.keypair, Some(peer)).map_err(|e| failed(e.to_string()))?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.key_log = Arc::new(rustls::NoKeyLog);
        let tls = QuicClientConfig::try_from(tls).map_err(|e| failed(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(transport_config());
        // The certificate is checked against the node key, so the server name means nothing.
        let connecting = endpoint.connect_with(config, addr, "spare").map_err(|e| failed(e.to_string()))?;
        match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
            Ok(connection) => connection.map_err(|e| failed(e.to_string())),
            Err(_) => Err(DialError::Timeout(addr.to_string())),
        }
    }

    /// Dials `node` at `addr` from a port that was never used before, hangs up, and says what came of it; nothing, if there is no such port.
    pub async fn dial_once(&self, node: &PublicKey, addr: SocketAddr, service: Service) -> Option<Dialled> {
        let from = SocketAddr::new(self.local_addr().ok()?.ip(), 0);
        if from.is_ipv4() != addr.is_ipv4() {
            return None;
        }
        let endpoint = quinn::Endpoint::client(from).ok()?;
        let alpn = if service == Service::Direct { ALPN } else { LIBP2P_ALPN };
        let outcome = match self.connect_from(&endpoint, node, addr, alpn).await {
            Ok(_) => Dialled::Answered,
            Err(DialError::Timeout(_)) => Dialled::Silent,
            Err(_) => Dialled::Failed,
        };
        endpoint.close(0u32.into(), b"reached");
        let _ = tokio::time::timeout(CLOSE_WITHIN, endpoint.wait_idle()).await;
        Some(outcome)
    }

    /// Accepts connections until the endpoint closes and hands each of their streams to `serve`.
    pub async fn accept(self: Arc<Self>, serve: impl Fn(Wire) + Clone + Send + 'static) {
        while let Some(incoming) = self.endpoint.accept().await {
            let ip = incoming.remote_address().ip();
            if !incoming.remote_address_validated() && self.is_crowded(ip) {
                // Make the sender show that the address is its own, so that nobody uses up another's connections.
                let _ = incoming.retry();
                continue;
            }
            let Some(places) = self.places(ip) else {
                // Silence costs less than a refusal, and whoever means well tries again.
                incoming.ignore();
                continue;
            };
            let (this, serve) = (self.clone(), serve.clone());
            tokio::spawn(async move {
                if let Err(error) = this.serve_connection(incoming, places, serve).await {
                    tracing::debug!(%ip, %error, "a direct connection ended");
                }
            });
        }
    }

    /// Whether so many connections stand or are being made that an address has to be shown to be its sender's.
    fn is_crowded(&self, ip: IpAddr) -> bool {
        let begun = self.begun.lock().expect("no holder panics");
        self.accepted.held_by(&ip) >= CONNECTIONS_BEFORE_RETRY
            || !begun.in_all.owed(&(), self.started.elapsed()).is_zero()
            || self.handshakes.taken() > HANDSHAKES_MAX / 2
            || self.handshakes.held_in(&Subnet::from(ip)) >= HANDSHAKES_PER_SUBNET_MAX / 4
            || self.accepted.taken() > CONNECTIONS_MAX / 2
    }

    /// Places for a connection that begins, if its network may begin one now.
    fn places(&self, ip: IpAddr) -> Option<ConnectionPlaces> {
        let (subnet, now) = (Subnet::from(ip), self.started.elapsed());
        {
            let mut begun = self.begun.lock().expect("no holder panics");
            if !begun.by_subnet.take(subnet, 1, now) {
                return None;
            }
            begun.in_all.charge((), 1, now);
        }
        let handshake = self.handshakes.take(ip, subnet, Instant::now())?;
        let connection = Arc::new(self.accepted.take(ip, subnet, Instant::now())?);
        Some(ConnectionPlaces { handshake, connection })
    }

    async fn serve_connection(
        &self,
        incoming: quinn::Incoming,
        ConnectionPlaces { handshake, connection: place }: ConnectionPlaces,
        serve: impl Fn(Wire),
    ) -> anyhow::Result<()> {
        let ip = incoming.remote_address().ip();
        let connection = tokio::select! {
            shaken = tokio::time::timeout(HELLO_TIMEOUT, incoming.accept()?) => shaken??,
            () = handshake.is_lost() => anyhow::bail!("its place among the handshakes is another network's"),
            () = place.is_lost() => anyhow::bail!("its place is another network's"),
        };
        drop(handshake);
        let peer =
            proven_peer(&connection).ok_or_else(|| anyhow::anyhow!("the peer showed no ed25519 node key"))?;
        loop {
            let accepted = tokio::select! {
                accepted = tokio::time::timeout(IDLE_TIMEOUT, connection.accept_bi()) => accepted,
                () = place.is_lost() => {
                    connection.close(0u32.into(), b"too many connections");
                    anyhow::bail!("its place is another network's");
                }
            };
            let Ok(accepted) = accepted else {
                if Arc::strong_count(&place) > 1 {
                    continue;
                }
                connection.close(0u32.into(), b"idle");
                return Ok(());
            };
            let (send, recv) = accepted?;
            let wire = Wire::new(recv, SendHalf::Direct(send), peer, ip, &self.traffic);
            serve(wire.over(connection.clone(), &place));
        }
    }

    /// Whether the connection that stood with `node` was closed.
    pub async fn is_closed(&self, node: &PublicKey) -> bool {
        self.connections.lock().await.get(node).is_some_and(|c| c.close_reason().is_some())
    }

    /// Has the next stream to `node` go over a new connection.
    pub async fn forget(&self, node: &PublicKey) {
        self.connections.lock().await.remove(node);
    }

    /// Closes all connections, and waits for a moment until peers have been told, so that they notice at once.
    pub async fn close(&self) {
        self.endpoint.close(0u32.into(), b"stopped");
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.endpoint.wait_idle()).await;
    }
}

/// The places of a connection that begins.
struct ConnectionPlaces {
    handshake: Place<IpAddr>,
    connection: ConnectionPlace,
}

fn proven_peer(connection: &quinn::Connection) -> Option<PublicKey> {
    let certificates =
        connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    let certificate = libp2p_tls::certificate::parse(certificates.first()?).ok()?;
    node_key(&certificate.peer_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_keys_and_peer_ids_convert_both_ways() {
        let keypair = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        let peer = keypair.public().to_peer_id();
        let node = node_key(&peer).unwrap();
        assert_eq!(peer_id(&node), Some(peer));
        let ours =
            spare_market::keys::SigningSecret::from_secret(&spare_proofs::cipher::Secret::new([7; 32]))
                .public();
        assert_eq!(node, ours, "libp2p and market agree on the key of a secret");
    }
}

//! Asking other peers: sessions, kept open and reused, and what is remembered of how each peer answered.

mod session;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::Multiaddr;
use spare_market::deal::DealId;
use spare_market::hire::Candidate as Hand;
use spare_market::keys::PublicKey;
use spare_market::placement::{Candidate, Subnet};
use spare_market::receipt::Receipt;
use spare_market::signed::{NetworkId, SignedBytes, SignedError};
use spare_proofs::tree::{Root, VerifyError};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::asks::{AskBook, Provider};
use crate::config::Transport;
use crate::discover::{Addresses, Discovery, Links, is_relayed};
use crate::evidence::SignedRead;
use crate::frames::{FrameError, Refusal};
use crate::limits::{COOL_DOWN, LEARN_TIMEOUT};
use crate::standings::Standings;
use crate::transport::{DialError, Direct, SendHalf, Traffic, Wire};
use crate::unix_now_s;

pub use session::Session;

/// Most peers that are asked for asks at once.
const LEARN_FROM_MAX: usize = 6;
/// Most idle sessions kept for one peer.
const IDLE_SESSIONS_MAX: usize = 8;

/// Why a peer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It could not be reached.
    #[error("unreachable: {0}")]
    Dial(#[from] DialError),
    /// It stopped answering in the middle.
    #[error("it fell silent")]
    Stalled,
    /// The stream broke or carried nonsense.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its bytes are not the shard's.
    #[error("it sent wrong bytes: {0}")]
    WrongBytes(#[from] VerifyError),
    /// Its bytes are not the shard's, and it signed that it sent them.
    #[error("it sent wrong bytes and signed them: {error}")]
    SignedWrongBytes {
        /// Where they are wrong.
        error: VerifyError,
        /// The read.
        read: Box<SignedRead>,
    },
    /// Its signature does not hold.
    #[error("it signed wrongly: {0}")]
    Signature(#[from] SignedError),
    /// It signed something else than was asked.
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    /// The bytes to send ended early.
    #[error("the upload was given up")]
    GivenUp,
}

impl From<std::io::Error> for PeerError {
    fn from(error: std::io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// How a peer has answered so far.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    failed_at: Option<Instant>,
    failures_in_row: u32,
    succeeded_at: Option<Instant>,
    /// Smoothed bytes per second of reads.
    rate: Option<f64>,
}

/// What this node says of itself when it asks.
pub struct Credentials {
    /// This node's own key: it never stores with itself.
    pub node: PublicKey,
    /// The network.
    pub network: NetworkId,
    /// The grant of its account.
    pub grant: SignedBytes,
}

/// Everything needed to ask other peers.
pub struct Peers {
    credentials: Credentials,
    /// Known providers.
    pub book: Arc<AskBook>,
    /// What is held against them.
    pub standings: Arc<Standings>,
    direct: Arc<Direct>,
    links: Links,
    addresses: Arc<Addresses>,
    traffic: Arc<Traffic>,
    transport: Transport,
    idle: Mutex<HashMap<PublicKey, Vec<Session>>>,
    health: Mutex<HashMap<PublicKey, Health>>,
}

/// How long an idle session is kept: less than the answering side keeps it.
const IDLE_TRUST: Duration = Duration::from_secs(60);
/// How long after another peer's answer this node counts as online.
const ONLINE_FOR: Duration = Duration::from_secs(60);
/// How long a session is taken to be alive after it was used.
const FRESH_FOR: Duration = Duration::from_secs(1);

impl Peers {
    /// Puts the parts together.
    pub fn new(
        credentials: Credentials,
        book: Arc<AskBook>,
        standings: Arc<Standings>,
        direct: Arc<Direct>,
        discovery: &Discovery,
        traffic: Arc<Traffic>,
        transport: Transport,
    ) -> Self {
        let (idle, health) = (Mutex::default(), Mutex::default());
        let (links, addresses) = (discovery.links.clone(), discovery.addresses.clone());
        Self { credentials, book, standings, direct, links, addresses, traffic, transport, idle, health }
    }

    /// The network these peers belong to.
    pub fn network(&self) -> NetworkId {
        self.credentials.network
    }

    /// Known providers as candidates for a shard, with their record.
    pub fn candidates(&self) -> Vec<Candidate> {
        let health = self.health.lock().expect("no holder panics");
        let now_s = unix_now_s();
        let providers = self.book.valid(now_s);
        // Where a peer was seen counts for more than what it says.
        let ip = |p: &Provider| {
            Some(self.addresses.ip(&p.node)).filter(|ip| !ip.is_unspecified()).unwrap_or(p.ip())
        };
        let candidate = |p: Provider| Candidate {
            node: p.node,
            subnet: Subnet::from(ip(&p)),
            record: match self.standings.of(&p.node).record_percent(now_s) {
                0 => 0,
                percent => {
                    health.get(&p.node).map_or(percent, |h| percent >> h.failures_in_row.min(6)).max(1)
                }
            },
            free_bytes: p.ask.free_bytes,
            price: p.ask.price,
            operator: if p.ask.operator.is_empty() { p.account.to_string() } else { p.ask.operator },
        };
        providers.into_iter().filter(|p| p.node != self.credentials.node).map(candidate).collect()
    }

    /// Providers, and what they run jobs on.
    pub fn hands(&self) -> Vec<Hand> {
        let compute = |c: &Candidate| self.book.get(&c.node).and_then(|provider| provider.ask.compute);
        let hand = |c: Candidate| Hand {
            compute: compute(&c),
            node: c.node,
            operator: c.operator,
            subnet: c.subnet,
            record: c.record,
        };
        self.candidates().into_iter().map(hand).collect()
    }

    /// Whether `node` failed within the cool-down.
    pub fn is_cooling(&self, node: &PublicKey) -> bool {
        let health = self.health.lock().expect("no holder panics");
        health.get(node).and_then(|h| h.failed_at).is_some_and(|at| at.elapsed() < COOL_DOWN)
    }

    /// Smoothed read rate of `node` in bytes per second, if it was ever read from.
    pub fn rate(&self, node: &PublicKey) -> Option<f64> {
        self.health.lock().expect("no holder panics").get(node).and_then(|h| h.rate)
    }

    /// Whether any peer but `node` answered lately: else this node's own line may be down.
    pub fn others_answer(&self, node: &PublicKey) -> bool {
        let health = self.health.lock().expect("no holder panics");
        let is_recent = |h: &Health| h.succeeded_at.is_some_and(|at| at.elapsed() < ONLINE_FOR);
        health.iter().any(|(other, health)| other != node && is_recent(health))
    }

    /// Notes that `node` lets others wait, so that it is asked last for a while.
    pub fn note_slow(&self, node: &PublicKey) {
        self.health.lock().expect("no holder panics").entry(*node).or_default().failed_at =
            Some(Instant::now());
    }

    fn note_failure(&self, node: &PublicKey) {
        let mut health = self.health.lock().expect("no holder panics");
        let health = health.entry(*node).or_default();
        health.failed_at = Some(Instant::now());
        health.failures_in_row = health.failures_in_row.saturating_add(1);
    }

    fn note_success(&self, node: &PublicKey, read: Option<(u64, Duration)>) {
        let mut health = self.health.lock().expect("no holder panics");
        let health = health.entry(*node).or_default();
        health.failed_at = None;
        health.succeeded_at = Some(Instant::now());
        health.failures_in_row = 0;
        if let Some((bytes, took)) = read {
            let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
            health.rate = Some(health.rate.map_or(rate, |old| 0.8 * old + 0.2 * rate));
        }
    }

    /// Runs `ask` on a session with `node`, kept or new, and keeps the session when it went well.
    ///
    /// # Errors
    /// What dialling or `ask` gives. A refusal does not count as the peer's failure.
    pub async fn with_session<T>(
        &self,
        node: &PublicKey,
        ask: impl AsyncFnOnce(&mut Session) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let mut session = match self.session(node).await {
            Ok(session) => session,
            Err(error) => {
                self.note_failure(node);
                return Err(error);
            }
        };
        let result = ask(&mut session).await;
        match &result {
            Ok(_) => self.note_success(node, None),
            Err(PeerError::Refused(_)) => {}
            Err(PeerError::GivenUp) => return result,
            Err(_) => {
                self.note_failure(node);
                return result;
            }
        }
        if session.in_step {
            session.idle_since = Instant::now();
            let mut idle = self.idle.lock().expect("no holder panics");
            let sessions = idle.entry(*node).or_default();
            if sessions.len() < IDLE_SESSIONS_MAX {
                sessions.push(session);
            }
        }
        result
    }

    /// Runs `ask` on a session of its own, which is not kept, and leaves the peer's record alone. For questions that may be asked before the
    /// peer's ask is known: the session is then over libp2p, and is not what its data should go over later.
    ///
    /// # Errors
    /// What dialling or `ask` gives.
    pub async fn ask_once<T>(
        &self,
        node: &PublicKey,
        ask: impl AsyncFnOnce(&mut Session) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let mut session = Session::start(self.open(node).await?, &self.credentials).await?;
        ask(&mut session).await
    }

    /// A session with `node`: one that was kept, if it still lives, else a new one.
    async fn session(&self, node: &PublicKey) -> Result<Session, PeerError> {
        if self.direct.is_closed(node).await {
            self.forget_connection(node).await;
        }
        let kept = {
            let mut idle = self.idle.lock().expect("no holder panics");
            let sessions = idle.entry(*node).or_default();
            sessions.retain(|s| s.idle_since.elapsed() < IDLE_TRUST);
            sessions.pop()
        };
        if let Some(mut session) = kept {
            if session.is_alive().await {
                return Ok(session);
            }
            self.forget_connection(node).await;
        }
        let wire = self.open(node).await?;
        match Session::start(wire, &self.credentials).await {
            // The connection that stood may be one with the peer's last process.
            Err(PeerError::Frame(FrameError::Io(_)) | PeerError::Stalled) => {
                self.forget_connection(node).await;
                let wire = self.open(node).await?;
                Session::start(wire, &self.credentials).await
            }
            started => started,
        }
    }

    /// Forgets the connection that stands with `node`, and the idle sessions on it. Whatever else uses it goes on.
    async fn forget_connection(&self, node: &PublicKey) {
        self.idle.lock().expect("no holder panics").remove(node);
        self.direct.forget(node).await;
    }

    async fn open(&self, node: &PublicKey) -> Result<Wire, PeerError> {
        let known = self.book.get(node);
        let addrs = known.as_ref().map(|p| p.ask.direct.clone()).unwrap_or_default();
        let dial = known.as_ref().map(Provider::libp2p_addrs).unwrap_or_default();
        let direct = match self.transport {
            Transport::Stream => None,
            // Of a node that offers nothing, such as the market may be, no direct address is known.
            Transport::Auto | Transport::Direct if addrs.is_empty() => None,
            Transport::Direct | Transport::Auto => Some(self.direct.open(node, &addrs).await),
        };
        let is_connected = self.addresses.is_connected(node);
        match direct {
            Some(Ok(wire)) => Ok(wire),
            Some(Err(error)) if self.transport == Transport::Direct => Err(error.into()),
            Some(Err(error)) if !is_connected && !dial.iter().any(is_relayed) => Err(error.into()),
            None if !is_connected && known.is_some() && dial.is_empty() => {
                Err(DialError::Unreachable(node.to_string()).into())
            }
            _ => self.open_stream(node, dial).await,
        }
    }

    async fn open_stream(&self, node: &PublicKey, dial: Vec<Multiaddr>) -> Result<Wire, PeerError> {
        let stream = self.links.open(node, dial).await?;
        let (recv, send) = tokio::io::split(stream.compat());
        Ok(Wire::new(recv, SendHalf::other(send), *node, self.addresses.ip(node), &self.traffic))
    }

    /// Asks some of `nodes` for the asks they know, and takes what is news.
    pub async fn learn_asks(&self, nodes: &[PublicKey]) {
        let learning = nodes.iter().take(LEARN_FROM_MAX).map(async |node| {
            // What is known already, or does not hold, is left out.
            let take = |raw| drop(self.book.take(raw, unix_now_s()));
            let asking = self.with_session(node, async |session| session.asks(take).await);
            match timeout(LEARN_TIMEOUT, asking).await.unwrap_or(Err(PeerError::Stalled)) {
                Ok(()) => {}
                Err(error) => tracing::debug!(%node, %error, "a peer did not tell all its asks"),
            }
        });
        futures::future::join_all(learning).await;
    }

    /// Stores a shard that arrives in `cells` on `node` under `deal` and returns the checked receipt.
    ///
    /// # Errors
    /// [`PeerError`]; `GivenUp` when `cells` ends early.
    pub async fn store(
        &self,
        node: &PublicKey,
        deal: DealId,
        shard_bytes: u64,
        mut cells: mpsc::Receiver<Bytes>,
    ) -> Result<Receipt, PeerError> {
        let network = self.network();
        self.with_session(node, async |session| {
            let receipt = session.store(deal, shard_bytes, &mut cells).await?.check::<Receipt>(network)?;
            if receipt.signer() != *node {
                return Err(PeerError::Protocol("the receipt is another node's"));
            }
            Ok(*receipt.value())
        })
        .await
    }

    /// Reads bytes `range` of a shard of this account from `node`, verified against `root`. Bytes received so far are added to
    /// `received`.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn read(
        &self,
        node: &PublicKey,
        root: Root,
        shard_bytes: u64,
        range: Range<u64>,
        received: &AtomicU64,
    ) -> Result<Vec<u8>, PeerError> {
        let network = self.network();
        let started = Instant::now();
        let bytes = self
            .with_session(node, async |session| {
                session.read(network, root, shard_bytes, range, received).await
            })
            .await?;
        self.note_success(node, Some((bytes.len() as u64, started.elapsed())));
        Ok(bytes)
    }
}

//! Asking other peers: sessions, kept open and reused, and what is remembered of how each peer answered.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p_stream::Control;
use serde::{Serialize, de::DeserializeOwned};
use spare_market::block::Block;
use spare_market::deal::DealId;
use spare_market::head::FullHead;
use spare_market::index::LogEnd;
use spare_market::keys::PublicKey;
use spare_market::placement::{Candidate, Subnet};
use spare_market::receipt::{ReadAnswer, Receipt, Transcript};
use spare_market::signed::{NetworkId, Signed, SignedBytes, SignedError};
use spare_proofs::encode::{from_bytes, to_bytes};
use spare_proofs::sumtree::Member;
use spare_proofs::tree::{GROUP_BYTES, Next, PAIR_BYTES, Root, Verifier, VerifyError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::asks::{AskBook, Provider};
use crate::config::Transport;
use crate::discover::Addresses;
use crate::frames::{
    DealState, FrameError, Hello, PROTOCOL, Refusal, Request, Response, read_frame, write_frame,
};
use crate::limits::{
    ASKS_MAX, ASKS_PER_ANSWER_MAX, BLOCKS_MAX_BYTES, BLOCKS_WAIT, BULK_PIECE_BYTES, COOL_DOWN, DIAL_TIMEOUT,
    HELLO_TIMEOUT, LEARN_TIMEOUT, RECEIPT_TIMEOUT, STALL_TIMEOUT, SUBMIT_TIMEOUT,
};
use crate::market::NotTaken;
use crate::transport::{DialError, Direct, SendHalf, Traffic, Wire, peer_id};
use crate::unix_now_s;

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
    #[error("it fell silent for {} s", STALL_TIMEOUT.as_secs())]
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
    direct: Arc<Direct>,
    control: Control,
    addresses: Arc<Addresses>,
    traffic: Arc<Traffic>,
    transport: Transport,
    idle: Mutex<HashMap<PublicKey, Vec<Session>>>,
    health: Mutex<HashMap<PublicKey, Health>>,
}

/// How long an idle session is kept: less than the answering side keeps it.
const IDLE_TRUST: Duration = Duration::from_secs(60);
/// How long a session is taken to be alive after it was used.
const FRESH_FOR: Duration = Duration::from_secs(1);

impl Peers {
    /// Puts the parts together.
    pub fn new(
        credentials: Credentials,
        book: Arc<AskBook>,
        direct: Arc<Direct>,
        control: Control,
        addresses: Arc<Addresses>,
        traffic: Arc<Traffic>,
        transport: Transport,
    ) -> Self {
        let (idle, health) = (Mutex::default(), Mutex::default());
        Self { credentials, book, direct, control, addresses, traffic, transport, idle, health }
    }

    /// The network these peers belong to.
    pub fn network(&self) -> NetworkId {
        self.credentials.network
    }

    /// Known providers as candidates for a shard, with their record.
    pub fn candidates(&self) -> Vec<Candidate> {
        let health = self.health.lock().expect("no holder panics");
        let providers = self.book.valid(unix_now_s());
        // Where a peer was seen counts for more than what it says.
        let ip = |p: &Provider| {
            Some(self.addresses.ip(&p.node)).filter(|ip| !ip.is_unspecified()).unwrap_or(p.ip())
        };
        let candidate = |p: Provider| Candidate {
            node: p.node,
            subnet: Subnet::from(ip(&p)),
            record: health.get(&p.node).map_or(100, |h| (100 >> h.failures_in_row.min(6)) as u8).max(1),
            free_bytes: p.ask.free_bytes,
            price: p.ask.price,
            operator: if p.ask.operator.is_empty() { p.account.to_string() } else { p.ask.operator },
        };
        providers.into_iter().filter(|p| p.node != self.credentials.node).map(candidate).collect()
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
        let addrs = self.book.get(node).map(|p| p.ask.direct).unwrap_or_default();
        let direct = match self.transport {
            Transport::Stream => None,
            // Of a node that offers nothing, such as the market may be, no direct address is known.
            Transport::Auto | Transport::Direct if addrs.is_empty() => None,
            Transport::Direct | Transport::Auto => Some(self.direct.open(node, &addrs).await),
        };
        match direct {
            Some(Ok(wire)) => Ok(wire),
            Some(Err(error)) if self.transport == Transport::Direct => Err(error.into()),
            Some(Err(error)) if !self.addresses.is_connected(node) => Err(error.into()),
            _ => self.open_stream(node).await,
        }
    }

    async fn open_stream(&self, node: &PublicKey) -> Result<Wire, PeerError> {
        let peer = peer_id(node).ok_or(DialError::BadKey)?;
        let mut control = self.control.clone();
        let protocol = libp2p::StreamProtocol::new(PROTOCOL);
        let opening = timeout(DIAL_TIMEOUT, control.open_stream(peer, protocol)).await;
        let stream = opening
            .map_err(|_| DialError::Timeout(peer.to_string()))?
            .map_err(|e| DialError::Failed { addr: peer.to_string(), why: e.to_string() })?;
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

/// One stream with a peer on which requests are made one after another.
pub struct Session {
    wire: Wire,
    /// Whether the stream stands between requests.
    in_step: bool,
    idle_since: Instant,
}

async fn in_time<T>(work: impl Future<Output = std::io::Result<T>>) -> Result<T, PeerError> {
    timeout(STALL_TIMEOUT, work).await.map_err(|_| PeerError::Stalled)?.map_err(PeerError::from)
}

impl Session {
    /// Exchanges hellos.
    ///
    /// # Errors
    /// [`PeerError`] when the peer does not answer, or answers for another network.
    pub async fn start(mut wire: Wire, credentials: &Credentials) -> Result<Self, PeerError> {
        let hello = Hello::V1 { network: credentials.network, grant: Some(credentials.grant.clone()) };
        let exchange = async {
            write_frame(&mut wire.send, &hello).await?;
            read_frame::<Hello>(&mut wire.recv).await
        };
        let Hello::V1 { network, .. } =
            timeout(HELLO_TIMEOUT, exchange).await.map_err(|_| PeerError::Stalled)??;
        if network != credentials.network {
            return Err(PeerError::Protocol("it belongs to another network"));
        }
        Ok(Self { wire, in_step: true, idle_since: Instant::now() })
    }

    /// Whether the peer still answers on this session. One that rested for longer than a moment is asked for a sign of life: its peer may
    /// have been restarted, which no packet tells.
    async fn is_alive(&mut self) -> bool {
        if !self.wire.recv.buffer().is_empty() {
            return false;
        }
        if self.idle_since.elapsed() < FRESH_FOR {
            return true;
        }
        let question = self.request(&Request::Asks { skip: u32::MAX });
        let answered = matches!(timeout(DIAL_TIMEOUT, question).await, Ok(Ok(Response::Asks { .. })));
        self.in_step = answered;
        answered
    }

    async fn response(&mut self) -> Result<Response, PeerError> {
        self.response_within(STALL_TIMEOUT).await
    }

    async fn response_within(&mut self, limit: Duration) -> Result<Response, PeerError> {
        let response =
            timeout(limit, read_frame(&mut self.wire.recv)).await.map_err(|_| PeerError::Stalled)??;
        match response {
            Response::Refused(refusal) => {
                self.in_step = true;
                Err(refusal.into())
            }
            other => Ok(other),
        }
    }

    async fn request(&mut self, request: &impl Serialize) -> Result<Response, PeerError> {
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, request)).await?;
        self.response().await
    }

    /// Hands all asks that the peer knows to `take`.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn asks(&mut self, take: impl Fn(SignedBytes)) -> Result<(), PeerError> {
        let mut taken = 0;
        loop {
            let request = Request::Asks { skip: taken as u32 };
            let Response::Asks { asks, more } = self.request(&request).await? else {
                return Err(PeerError::Protocol("another answer than asks"));
            };
            if asks.len() > ASKS_PER_ANSWER_MAX {
                return Err(PeerError::Protocol("more asks than an answer may have"));
            }
            self.in_step = true;
            taken += asks.len();
            let end = !more || asks.is_empty() || taken > ASKS_MAX;
            asks.into_iter().for_each(&take);
            if end {
                return Ok(());
            }
        }
    }

    async fn store(
        &mut self,
        deal: DealId,
        shard_bytes: u64,
        cells: &mut mpsc::Receiver<Bytes>,
    ) -> Result<SignedBytes, PeerError> {
        let Response::Ready = self.request(&Request::Store { deal, shard_bytes }).await? else {
            return Err(PeerError::Protocol("another answer than ready"));
        };
        let mut sent = 0;
        while let Some(cell) = cells.recv().await {
            sent += cell.len() as u64;
            in_time(self.wire.send.write_bytes(cell)).await?;
        }
        if sent != shard_bytes {
            return Err(PeerError::GivenUp);
        }
        in_time(self.wire.send.flush()).await?;
        let Response::Stored(receipt) = self.response_within(RECEIPT_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than a receipt"));
        };
        self.in_step = true;
        Ok(receipt)
    }

    async fn read(
        &mut self,
        network: NetworkId,
        root: Root,
        shard_bytes: u64,
        range: Range<u64>,
        received: &AtomicU64,
    ) -> Result<Vec<u8>, PeerError> {
        let request = Request::Read { root, start: range.start, end: range.end, nonce: rand::random() };
        let Response::Reading { shard_bytes: says } = self.request(&request).await? else {
            return Err(PeerError::Protocol("another answer than a shard"));
        };
        if says != shard_bytes {
            return Err(PeerError::Protocol("its shard has another length"));
        }
        let mut transcript = Transcript::new(&to_bytes(&request));
        let mut verifier = Verifier::new(root, shard_bytes, range.clone());
        let first = range.start - range.start % GROUP_BYTES as u64;
        let mut bytes = Vec::with_capacity((range.end - first) as usize + GROUP_BYTES);
        while let Some(next) = verifier.expects() {
            match next {
                Next::Pair => {
                    let mut pair = [0; PAIR_BYTES];
                    in_time(self.wire.recv.read_exact(&mut pair)).await?;
                    verifier.pair(&pair)?;
                    transcript.add(&pair);
                }
                Next::Group { len, .. } => {
                    let start = bytes.len();
                    bytes.resize(start + len, 0);
                    in_time(self.wire.recv.read_exact(&mut bytes[start..])).await?;
                    transcript.add(&verifier.group(&bytes[start..])?);
                    received.fetch_add(len as u64, Ordering::Relaxed);
                }
            }
        }
        let Response::Answered(answer) = self.response().await? else {
            return Err(PeerError::Protocol("another end than a signed answer"));
        };
        let answer = answer.check::<ReadAnswer>(network)?;
        if answer.signer() != self.wire.peer || *answer.value() != transcript.finish() {
            return Err(PeerError::Protocol("its signature covers another answer"));
        }
        self.in_step = true;
        bytes.truncate((range.end - first) as usize);
        bytes.drain(..(range.start - first) as usize);
        Ok(bytes)
    }

    /// Deletes shards of this account; returns how many there were and the disk given back.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn delete(&mut self, roots: &[Root]) -> Result<(u32, u64), PeerError> {
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, &Request::Delete { roots: roots.to_vec() })).await?;
        // Each shard costs the provider a synced write.
        let Response::Deleted { shards, freed_bytes } = self.response_within(RECEIPT_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than deleted"));
        };
        self.in_step = true;
        Ok((shards, freed_bytes))
    }

    /// Which of `roots` the peer holds for this account.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn holds(&mut self, roots: &[Root]) -> Result<Vec<bool>, PeerError> {
        match self.request(&Request::Holds { roots: roots.to_vec() }).await? {
            Response::Holding(held) if held.len() == roots.len() => {
                self.in_step = true;
                Ok(held)
            }
            _ => Err(PeerError::Protocol("another answer than what it holds")),
        }
    }

    /// Where the account's index log ends at this peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn index_end(&mut self) -> Result<LogEnd, PeerError> {
        let Response::IndexEnd(end) = self.request(&Request::IndexEnd).await? else {
            return Err(PeerError::Protocol("another answer than the index's end"));
        };
        self.in_step = true;
        Ok(end)
    }

    /// Appends a signed entry to the account's index log at this peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn index_append<T>(&mut self, entry: &Signed<T>) -> Result<(), PeerError>
    where
        T: spare_market::signed::Signable,
    {
        let bytes = to_bytes(entry.raw());
        let Response::Ready = self.request(&Request::IndexAppend { len: bytes.len() as u32 }).await? else {
            return Err(PeerError::Protocol("another answer than ready"));
        };
        for piece in bytes.chunks(BULK_PIECE_BYTES) {
            in_time(self.wire.send.write_all(piece)).await?;
        }
        in_time(self.wire.send.flush()).await?;
        let Response::Done = self.response_within(RECEIPT_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than done"));
        };
        self.in_step = true;
        Ok(())
    }

    /// Blocks of the ledger from height `from` on; none when there are none yet, after a while.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn blocks(&mut self, from: u64) -> Result<Vec<Block>, PeerError> {
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, &Request::Blocks { from })).await?;
        let Response::Blocks { len } = self.response_within(BLOCKS_WAIT + HELLO_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than blocks"));
        };
        self.bulk(len, BLOCKS_MAX_BYTES).await
    }

    /// Puts a transaction on the ledger, if the peer is the market. Returns the height of its block, or why the ledger refused it.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn submit(&mut self, tx: &SignedBytes) -> Result<Result<u64, NotTaken>, PeerError> {
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, &Request::Submit { tx: tx.clone() })).await?;
        let taken = match self.response_within(SUBMIT_TIMEOUT).await? {
            Response::Taken { height } => Ok(height),
            Response::NotTaken { code, blame, detail } => Err(NotTaken { code, blame, detail }),
            _ => return Err(PeerError::Protocol("another answer than whether it was taken")),
        };
        self.in_step = true;
        Ok(taken)
    }

    /// Terms that the peer offers this account.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn terms(&mut self) -> Result<SignedBytes, PeerError> {
        let Response::Terms(terms) = self.request(&Request::Terms).await? else {
            return Err(PeerError::Protocol("another answer than terms"));
        };
        self.in_step = true;
        Ok(terms)
    }

    /// Has the peer countersign a head.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn head(
        &mut self,
        head: &SignedBytes,
        add: Vec<Root>,
        remove: Vec<Root>,
    ) -> Result<FullHead, PeerError> {
        let request = Request::Head { head: head.clone(), add, remove };
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, &request)).await?;
        // The provider may have to see the deal on the ledger first.
        let Response::Head(full) = self.response_within(RECEIPT_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than a head"));
        };
        self.in_step = true;
        if full.head != *head {
            return Err(PeerError::Protocol("it countersigned another head"));
        }
        Ok(full)
    }

    /// Hands vouchers of one deal to the peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn vouchers(&mut self, vouchers: Vec<SignedBytes>) -> Result<(), PeerError> {
        let Response::Done = self.request(&Request::Vouchers { vouchers }).await? else {
            return Err(PeerError::Protocol("another answer than done"));
        };
        self.in_step = true;
        Ok(())
    }

    /// How a deal of this account stands at the peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn deal_state(&mut self, deal: DealId) -> Result<DealState, PeerError> {
        let Response::DealState(state) = self.request(&Request::DealState { deal }).await? else {
            return Err(PeerError::Protocol("another answer than a deal"));
        };
        self.in_step = true;
        Ok(*state)
    }

    /// A page of the shards under a deal's newest head at the peer, and whether there are more.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn deal_set(
        &mut self,
        deal: DealId,
        after: Option<Root>,
    ) -> Result<(Vec<Member>, bool), PeerError> {
        let Response::DealSet { members, more } = self.request(&Request::DealSet { deal, after }).await?
        else {
            return Err(PeerError::Protocol("another answer than a set of shards"));
        };
        self.in_step = true;
        Ok((members, more))
    }

    /// Reads entry `seq` of the account's index log at this peer.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn index_read(&mut self, seq: u64) -> Result<SignedBytes, PeerError> {
        let Response::IndexEntry { len } = self.request(&Request::IndexRead { seq }).await? else {
            return Err(PeerError::Protocol("another answer than an index entry"));
        };
        self.bulk(len, spare_market::index::BODY_MAX_BYTES + 1024).await
    }

    /// Reads the `len` bytes that an answer announced, at most `max_bytes`, and the end of the answer.
    async fn bulk<T: Serialize + DeserializeOwned>(
        &mut self,
        len: u32,
        max_bytes: usize,
    ) -> Result<T, PeerError> {
        if len as usize > max_bytes {
            return Err(PeerError::Protocol("more bytes than an answer may have"));
        }
        let mut bytes = vec![0; len as usize];
        for piece in bytes.chunks_mut(BULK_PIECE_BYTES) {
            in_time(self.wire.recv.read_exact(piece)).await?;
        }
        let Response::Done = self.response().await? else {
            return Err(PeerError::Protocol("another end than done"));
        };
        self.in_step = true;
        Ok(from_bytes(&bytes, max_bytes).map_err(FrameError::from)?)
    }
}

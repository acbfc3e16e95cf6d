//! Answering other peers: the serving side of `spare/1`.
//!
//! Everything here comes from a stranger. Lengths are checked before they are used, each wait has an end, and each transfer as a whole;
//! sessions and reads are bounded in all, per peer and per network ([`crate::places`]), work that nobody pays for by budgets ([`unpaid`]), and whatever is
//! unfinished when a peer goes away is undone.

mod index;
mod jobs;
mod ledger;
mod read;
mod unpaid;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spare_market::deal::DealId;
use spare_market::grant::{Authority, Scope};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::placement::Subnet;
use spare_market::receipt::Receipt;
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_proofs::tree::Root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::asks::AskBook;
use crate::budget::Budgets;
use crate::earn::Earner;
use crate::frames::{
    FrameError, Hello, Refusal, RefusalCode, Request, Response, decode, read_body, read_frame, write_frame,
};
use crate::index_log::IndexLogs;
use crate::jobs::Jobs;
use crate::judge::Judge;
use crate::limits::{
    BULK_PIECE_BYTES, DELETE_MAX_ROOTS, HELLO_TIMEOUT, IDLE_TIMEOUT, INDEX_TRANSFERS_MAX, JOB_BYTES_SENT_MAX,
    OPENINGS, READS_MAX, READS_PER_PEER_MAX, READS_PER_SUBNET_MAX, SESSIONS_MAX, SESSIONS_PER_PEER_MAX,
    SESSIONS_PER_SUBNET_MAX, SHARD_MAX_BYTES, STALL_TIMEOUT, bulk_timeout,
};
use crate::market::Market;
use crate::places::{Bounds, Place, Places};
use crate::reach::dial_back::DialBack;
use crate::shards::{Incoming, ShardError};
use crate::transport::{Direct, Wire};
use crate::unix_now_s;
use unpaid::{Cost, HELLO_UNITS, Unpaid};

/// Times that a head waits for the ledger, about a second each.
const HEAD_TRIES: usize = 10;

/// Why a session ended other than by the peer hanging up between requests.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the peer fell silent")]
    Silent,
    #[error("the peer's hello was refused: {0}")]
    Hello(Refusal),
    #[error("a read was broken off: {0}")]
    Rot(Refusal),
    #[error("all places were taken, and one of its network went to another")]
    GaveWay,
    #[error("a blocking task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl SessionEnd {
    /// Whether the peer sent what no peer of this protocol sends.
    fn is_malformed(&self) -> bool {
        matches!(self, Self::Frame(FrameError::TooLong(_) | FrameError::Decode(_)))
    }
}

impl From<std::io::Error> for SessionEnd {
    fn from(error: std::io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// Serves sessions.
pub struct Answerer {
    network: NetworkId,
    node_key: SigningSecret,
    grant: SignedBytes,
    earner: Option<Arc<Earner>>,
    jobs: Option<Arc<Jobs>>,
    judge: Option<Arc<Judge>>,
    /// Files of jobs on their way.
    job_bytes_sent: tokio::sync::Semaphore,
    logs: Arc<IndexLogs>,
    book: Arc<AskBook>,
    market: Option<Arc<Market>>,
    sessions: Arc<Places<PublicKey>>,
    /// Reads, each of which has buffers in memory.
    reads: Arc<Places<PublicKey>>,
    unpaid: Unpaid,
    /// Index entries on their way, each of which is in memory whole.
    index_transfers: tokio::sync::Semaphore,
    /// Lists of blocks, each of which is in memory whole, and snapshots on their way.
    block_transfers: Mutex<HashMap<Subnet, usize>>,
    /// Dials askers' ports back, if this node does.
    dial_back: Option<DialBack>,
    /// Transactions submitted in the minute that began then.
    submissions: Mutex<(Instant, HashMap<Subnet, usize>)>,
    /// What is shown to auditors, over all peers.
    shown: Mutex<Budgets<()>>,
    started: Instant,
}

async fn within<T, E: Into<SessionEnd>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, SessionEnd> {
    timeout(limit, work).await.map_err(|_| SessionEnd::Silent)?.map_err(Into::into)
}

impl Answerer {
    /// Puts the parts together. Without an earner the node refuses to store, without a ledger it tells no blocks.
    pub fn new(
        network: NetworkId,
        node_key: SigningSecret,
        grant: SignedBytes,
        earner: Option<Arc<Earner>>,
        logs: Arc<IndexLogs>,
        book: Arc<AskBook>,
        market: Option<Arc<Market>>,
    ) -> Self {
        let index_transfers = tokio::sync::Semaphore::new(INDEX_TRANSFERS_MAX);
        Self {
            network,
            node_key,
            grant,
            earner,
            jobs: None,
            judge: None,
            job_bytes_sent: tokio::sync::Semaphore::new(JOB_BYTES_SENT_MAX),
            logs,
            book,
            market,
            sessions: Places::new(Bounds {
                total: SESSIONS_MAX,
                per_holder: SESSIONS_PER_PEER_MAX,
                per_subnet: SESSIONS_PER_SUBNET_MAX,
            }),
            reads: Places::new(Bounds {
                total: READS_MAX,
                per_holder: READS_PER_PEER_MAX,
                per_subnet: READS_PER_SUBNET_MAX,
            }),
            unpaid: Unpaid::new(),
            index_transfers,
            block_transfers: Mutex::default(),
            dial_back: None,
            submissions: Mutex::new((Instant::now(), HashMap::new())),
            shown: Mutex::new(Budgets::new(OPENINGS, 1, Duration::ZERO)),
            started: Instant::now(),
        }
    }

    /// Has it dial askers' own ports back as well.
    #[must_use]
    pub fn dialling_back(self, direct: Arc<Direct>) -> Self {
        Self { dial_back: Some(DialBack::new(direct)), ..self }
    }

    /// Has it answer about jobs and about disputes as well.
    #[must_use]
    pub fn running(self, jobs: Option<Arc<Jobs>>, judge: Option<Arc<Judge>>) -> Self {
        Self { jobs, judge, ..self }
    }

    /// Serves one stream until the peer hangs up or breaks a rule.
    pub async fn serve(&self, wire: &mut Wire) {
        let (peer, subnet) = (wire.peer, Subnet::from(wire.remote_ip));
        if self.unpaid.is_shunned(&peer, &subnet) {
            tracing::debug!(%peer, "a session was refused: too many malformed frames");
            return;
        }
        let Some(place) = self.sessions.take(peer, subnet, Instant::now()) else {
            tracing::debug!(%peer, "a session was refused: too many");
            return;
        };
        let ended = tokio::select! {
            ended = self.session(wire, subnet, &place) => ended,
            () = place.is_lost() => Err(SessionEnd::GaveWay),
        };
        if let Err(end) = ended {
            if end.is_malformed() {
                self.unpaid.malformed(peer, subnet);
            }
            tracing::debug!(%peer, %end, "a session ended");
        }
    }

    async fn session(
        &self,
        wire: &mut Wire,
        subnet: Subnet,
        place: &Place<PublicKey>,
    ) -> Result<(), SessionEnd> {
        let peer = wire.peer;
        let hello = Cost { units: HELLO_UNITS, is_paid: false };
        if let Err(refusal) = self.unpaid.wait(&peer, &subnet, hello).await {
            return Err(SessionEnd::Hello(refusal));
        }
        self.unpaid.charge(peer, subnet, hello.units, 0);
        let authority = self.hello(wire).await?;
        loop {
            let body = match timeout(IDLE_TIMEOUT, read_body(&mut wire.recv)).await {
                Ok(Ok(Some(body))) => body,
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
            };
            let request = match decode::<Request>(&body) {
                Ok(request) => request,
                Err(error) => {
                    refuse(wire, Refusal::new(RefusalCode::Malformed, error.to_string())).await?;
                    return Err(FrameError::from(error).into());
                }
            };
            place.progressed();
            let cost = Cost::of(&request);
            if let Err(refusal) = self.unpaid.wait(&peer, &subnet, cost).await {
                refuse(wire, refusal).await?;
                continue;
            }
            let moved_bytes = wire.moved_bytes();
            let is_done = self.handle(wire, authority.as_ref(), request, &body).await?;
            if !cost.is_paid {
                let bytes = body.len() as u64 + wire.moved_bytes() - moved_bytes;
                self.unpaid.charge(peer, subnet, cost.units, bytes);
            } else if !is_done {
                self.unpaid.charge(peer, subnet, cost.units, 0);
            }
            place.progressed();
        }
    }

    async fn hello(&self, wire: &mut Wire) -> Result<Option<Authority>, SessionEnd> {
        let Hello::V1 { network, grant } = within(HELLO_TIMEOUT, read_frame(&mut wire.recv)).await?;
        within(
            STALL_TIMEOUT,
            write_frame(
                &mut wire.send,
                &Hello::V1 { network: self.network, grant: Some(self.grant.clone()) },
            ),
        )
        .await?;
        if network != self.network {
            return Err(SessionEnd::Hello(Refusal::new(RefusalCode::OtherNetwork, "")));
        }
        match grant.map(|raw| Authority::from_grant(raw, self.network, wire.peer, unix_now_s())) {
            None => Ok(None),
            Some(Ok(authority)) => Ok(Some(authority)),
            Some(Err(error)) => {
                Err(SessionEnd::Hello(Refusal::new(RefusalCode::NoAuthority, error.to_string())))
            }
        }
    }

    /// Answers a request. Returns whether it was carried out, and not refused.
    async fn handle(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        request: Request,
        body: &[u8],
    ) -> Result<bool, SessionEnd> {
        let result = match request {
            Request::Asks { skip } => {
                let (asks, more) = self.book.page(skip as usize, unix_now_s());
                Ok(Response::Asks { asks, more })
            }
            Request::Store { deal, shard_bytes } => self.store(wire, authority, deal, shard_bytes).await?,
            Request::Read { root, start, end, .. } => {
                self.read(wire, authority, root, start..end, body).await?
            }
            Request::Delete { roots } => self.delete(authority, roots).await?,
            Request::Holds { roots } => self.holds(authority, &roots),
            Request::IndexEnd => self.index_end(authority),
            Request::IndexAppend { len } => self.index_append(wire, authority, len).await?,
            Request::IndexRead { seq } => self.index_read(wire, authority, seq).await?,
            Request::Blocks { from, wait } => self.blocks(wire, from, wait).await?,
            Request::Snapshot => self.snapshot(wire).await?,
            Request::Submit { tx } => self.submit(wire.remote_ip.into(), tx).await,
            Request::Terms => self.terms(authority),
            Request::Head { head, add, remove } => self.head(authority, head, add, remove).await?,
            Request::Vouchers { vouchers } => self.vouchers(authority, vouchers).await?,
            Request::Notice(notice) => {
                self.earning(authority, Scope::Read, move |earner, owner| {
                    earner.take_notice(&owner, notice).map(|()| Response::Done)
                })
                .await?
            }
            Request::Openings { deal, seed, count } => self.openings(deal, seed, count).await?,
            Request::DealState { deal } => {
                self.earning(authority, Scope::Read, move |earner, owner| {
                    earner.state(&owner, deal).map(|state| Response::DealState(Box::new(state)))
                })
                .await?
            }
            Request::DealSet { deal, after } => {
                self.earning(authority, Scope::Read, move |earner, owner| {
                    earner.set(&owner, deal, after).map(|(members, more)| Response::DealSet { members, more })
                })
                .await?
            }
            Request::DialBack { service, port } => match &self.dial_back {
                Some(dial_back) => dial_back.answer(wire.peer, wire.remote_ip, service, port).await,
                None => Err(Refusal::new(RefusalCode::Unavailable, "this node does not dial back")),
            },
            Request::Materials { materials } => self.materials(authority, &materials),
            Request::StoreMaterial { deal, material } => {
                self.store_material(wire, authority, deal, material).await?
            }
            Request::Order { order, work } => self.order(authority, order, work).await?,
            Request::WatchJob { job, seen, stdout_from, stderr_from } => {
                self.watch_job(authority, job, seen, stdout_from, stderr_from).await
            }
            Request::JobBytes { job, material } => self.job_bytes(wire, authority, job, material).await?,
            Request::Case { job, work } => self.case(authority, job, *work).await?,
            Request::CancelJob { job } => {
                self.asking_jobs(authority, Scope::Store, move |jobs, owner| {
                    jobs.cancel(&owner, &job).map(|state| Response::Job(Box::new(state)))
                })
                .await?
            }
        };
        let is_done = result.is_ok();
        let response = result.unwrap_or_else(Response::Refused);
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &response)).await?;
        Ok(is_done)
    }

    /// The account the peer may act for in `scope`, and what this node has of its clients.
    fn storage(
        &self,
        authority: Option<&Authority>,
        scope: Scope,
    ) -> Result<(PublicKey, &Arc<Earner>), Refusal> {
        let account = account(authority, scope)?;
        let earner = self
            .earner
            .as_ref()
            .ok_or_else(|| Refusal::new(RefusalCode::NotAProvider, "this node offers no storage"))?;
        Ok((account, earner))
    }

    /// Asks what this node has of its clients, in a thread that may block.
    async fn earning(
        &self,
        authority: Option<&Authority>,
        scope: Scope,
        ask: impl FnOnce(&Arc<Earner>, PublicKey) -> Result<Response, Refusal> + Clone + Send + 'static,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, earner) = match self.storage(authority, scope) {
            Ok((owner, earner)) => (owner, earner.clone()),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let ask = || {
            let (ask, earner) = (ask.clone(), earner.clone());
            tokio::task::spawn_blocking(move || ask(&earner, owner))
        };
        let answer = ask().await?;
        if !is_unfunded(&answer) {
            return Ok(answer);
        }
        // The asker may see a block that has not arrived here.
        earner.await_block().await;
        Ok(ask().await?)
    }

    /// Shows bytes of a set to anybody, within a budget: an auditor need not be known, and auditing is not to be a flood.
    async fn openings(
        &self,
        deal: DealId,
        seed: [u8; 32],
        count: u8,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let Some(earner) = self.earner.clone() else {
            return Ok(Err(Refusal::new(RefusalCode::NotAProvider, "this node offers no storage")));
        };
        let budget = || {
            let mut shown = self.shown.lock().expect("no holder panics");
            shown.take((), 1, self.started.elapsed())
        };
        if !budget() {
            let why = "auditors were shown as much as this node shows in a minute; try again in a moment";
            return Ok(Err(Refusal::new(RefusalCode::Busy, why)));
        }
        let show = move || {
            let (seq, openings) = earner.openings(deal, seed, count.into())?;
            Ok(Response::Openings { seq, openings })
        };
        Ok(tokio::task::spawn_blocking(show).await?)
    }

    fn terms(&self, authority: Option<&Authority>) -> Result<Response, Refusal> {
        let (client, earner) = self.storage(authority, Scope::Store)?;
        Ok(Response::Terms(earner.terms(client).raw().clone()))
    }

    async fn head(
        &self,
        authority: Option<&Authority>,
        head: SignedBytes,
        add: Vec<Root>,
        remove: Vec<Root>,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let sign = move |earner: &Arc<Earner>, owner: PublicKey| {
            let full = earner.head(&owner, head, &add, &remove)?;
            // The room is given back in a moment; whatever is not is found by the next sweep.
            earner.clone().delete_soon(owner, remove);
            Ok(Response::Head(full))
        };
        for _ in 0..HEAD_TRIES {
            let signed = self.earning(authority, Scope::Store, sign.clone()).await?;
            // Heads that the ledger can be asked about come as fast as it takes them.
            let waits = matches!(&signed, Err(refusal) if refusal.code == RefusalCode::Busy);
            match (&self.earner, waits) {
                (Some(earner), true) => earner.await_block().await,
                _ => return Ok(signed),
            }
        }
        self.earning(authority, Scope::Store, sign).await
    }

    async fn vouchers(
        &self,
        authority: Option<&Authority>,
        vouchers: Vec<SignedBytes>,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        self.earning(authority, Scope::Read, move |earner, owner| {
            earner.vouchers(&owner, vouchers).map(|()| Response::Done)
        })
        .await
    }

    /// Takes a shard. The bytes that follow `Ready` are always consumed, so that the session stays in step.
    async fn store(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        deal: DealId,
        shard_bytes: u64,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, earner) = match self.storage(authority, Scope::Store) {
            Ok((owner, earner)) => (owner, earner.clone()),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if shard_bytes == 0 || shard_bytes > SHARD_MAX_BYTES {
            let why = format!("a shard has 1 to {SHARD_MAX_BYTES} bytes");
            return Ok(Err(Refusal::new(RefusalCode::TooLarge, why)));
        }
        earner.await_deal(deal).await;
        let begin = || {
            let earner = earner.clone();
            tokio::task::spawn_blocking(move || {
                earner.admit(&owner, deal, shard_bytes)?;
                earner.volume().begin(shard_bytes).map_err(refusal)
            })
        };
        let mut begun = begin().await?;
        if is_unfunded(&begun) {
            earner.await_block().await;
            begun = begin().await?;
        }
        let incoming = match begun {
            Ok(incoming) => incoming,
            Err(refusal) => return Ok(Err(refusal)),
        };
        wire.expect_bulk();
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Ready)).await?;
        let received = within(bulk_timeout(shard_bytes), receive(wire, incoming, shard_bytes)).await?;
        let incoming = match received {
            Ok(incoming) => incoming,
            Err(error) => return Ok(Err(refusal(error))),
        };
        let stored_s = unix_now_s();
        let commit = move || {
            let (root, is_new) = incoming.commit(&owner, stored_s)?;
            if is_new {
                earner.stored(&owner, shard_bytes);
            }
            Ok(root)
        };
        let committed = tokio::task::spawn_blocking(commit).await?;
        Ok(committed.map_err(refusal).map(|root| {
            let receipt = Receipt::V1 { owner, root, shard_bytes, stored_s };
            Response::Stored(Signed::new(receipt, self.network, &self.node_key).raw().clone())
        }))
    }

    async fn delete(
        &self,
        authority: Option<&Authority>,
        roots: Vec<Root>,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, earner) = match self.storage(authority, Scope::Store) {
            Ok((owner, earner)) => (owner, earner.clone()),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if roots.len() > DELETE_MAX_ROOTS {
            return Ok(Err(Refusal::new(
                RefusalCode::TooLarge,
                format!("at most {DELETE_MAX_ROOTS} shards at once"),
            )));
        }
        let deleted = tokio::task::spawn_blocking(move || earner.delete(&owner, &roots, u64::MAX));
        Ok(deleted
            .await?
            .map(|(shards, freed_bytes)| Response::Deleted { shards, freed_bytes })
            .map_err(refusal))
    }

    fn holds(&self, authority: Option<&Authority>, roots: &[Root]) -> Result<Response, Refusal> {
        let (owner, earner) = self.storage(authority, Scope::Read)?;
        if roots.len() > DELETE_MAX_ROOTS {
            return Err(Refusal::new(
                RefusalCode::TooLarge,
                format!("at most {DELETE_MAX_ROOTS} shards at once"),
            ));
        }
        let held = roots
            .iter()
            .map(|root| earner.volume().record(&owner, root).map(|r| r.is_some()))
            .collect::<Result<_, _>>();
        held.map(Response::Holding).map_err(|e| refusal(e.into()))
    }
}

fn is_unfunded<T>(answer: &Result<T, Refusal>) -> bool {
    answer.as_ref().is_err_and(|refusal| refusal.code == RefusalCode::Unfunded)
}

fn too_many() -> Refusal {
    Refusal::new(RefusalCode::Busy, "too many index entries, blocks or snapshots are on their way")
}

/// Announces bulk bytes and sends them, at the least rate that a transfer may have.
async fn send_bulk(wire: &mut Wire, announced: &Response, bytes: &[u8]) -> Result<(), SessionEnd> {
    within(STALL_TIMEOUT, write_frame(&mut wire.send, announced)).await?;
    let send = async {
        for piece in bytes.chunks(BULK_PIECE_BYTES) {
            within(STALL_TIMEOUT, wire.send.write_all(piece)).await?;
        }
        within(STALL_TIMEOUT, wire.send.flush()).await
    };
    within(bulk_timeout(bytes.len() as u64), send).await
}

fn account(authority: Option<&Authority>, scope: Scope) -> Result<PublicKey, Refusal> {
    let authority =
        authority.ok_or_else(|| Refusal::new(RefusalCode::NoAuthority, "the hello carried no grant"))?;
    if !authority.allows(scope, unix_now_s()) {
        return Err(Refusal::new(
            RefusalCode::NoAuthority,
            format!("the grant has expired or does not cover {scope:?}"),
        ));
    }
    Ok(authority.account)
}

async fn refuse(wire: &mut Wire, refusal: Refusal) -> Result<(), SessionEnd> {
    within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Refused(refusal))).await
}

fn refusal(error: ShardError) -> Refusal {
    let code = match &error {
        ShardError::NoRoom { .. } => RefusalCode::NoRoom,
        ShardError::NotHere => RefusalCode::NotHere,
        ShardError::Damaged(_)
        | ShardError::Rotten(_)
        | ShardError::OtherVolume(_)
        | ShardError::Io(_)
        | ShardError::Meta(_) => RefusalCode::Unavailable,
    };
    // Known rot was logged when it was found.
    if code == RefusalCode::Unavailable && !matches!(error, ShardError::Rotten(_)) {
        tracing::error!(%error, "storage failed");
    }
    Refusal::new(code, error.to_string())
}

/// Moves the announced bytes from the wire to the file. After a disk error the rest is read and dropped.
///
/// The transport receives ahead while the disk writes. Only whole buffers go to a thread that may block, so that a slow peer never holds
/// one.
async fn receive(
    wire: &mut Wire,
    incoming: Incoming,
    shard_bytes: u64,
) -> Result<Result<Incoming, ShardError>, SessionEnd> {
    let mut incoming = incoming;
    let mut left = shard_bytes as usize;
    while left > 0 {
        let space = incoming.space();
        let len = space.len();
        fill(wire, space).await?;
        left -= len;
        let write = move || incoming.advance(len).map(|()| incoming);
        incoming = match tokio::task::spawn_blocking(write).await? {
            Ok(incoming) => incoming,
            Err(error) => {
                drain(wire, left).await?;
                return Ok(Err(error));
            }
        };
    }
    Ok(Ok(incoming))
}

/// Reads `left` bytes and drops them.
async fn drain(wire: &mut Wire, mut left: usize) -> Result<(), SessionEnd> {
    let mut buffer = vec![0; left.min(64 * 1024)];
    while left > 0 {
        let len = buffer.len().min(left);
        fill(wire, &mut buffer[..len]).await?;
        left -= len;
    }
    Ok(())
}

/// Fills `buffer`; each read has to make progress within the stall time.
async fn fill(wire: &mut Wire, mut buffer: &mut [u8]) -> Result<(), SessionEnd> {
    while !buffer.is_empty() {
        let read = within(STALL_TIMEOUT, wire.recv.read(buffer)).await?;
        if read == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        buffer = &mut buffer[read..];
    }
    Ok(())
}

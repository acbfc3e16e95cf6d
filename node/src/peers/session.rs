//! A session with a peer: the asking side of `spare/1`, one method for each request.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use spare_market::block::Block;
use spare_market::deal::DealId;
use spare_market::head::FullHead;
use spare_market::index::LogEnd;
use spare_market::job::{JobId, Material, Work};
use spare_market::receipt::{ReadAnswer, Transcript};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::state::{Entry, Key};
use spare_proofs::encode::{from_bytes, to_bytes};
use spare_proofs::opening::SetOpening;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::{GROUP_BYTES, Next, PAIR_BYTES, Root, Verifier, group_entry, stream_shape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Credentials, FRESH_FOR, PeerError};
use crate::evidence::SignedRead;
use crate::frames::{
    DealState, Dialled, FrameError, Hello, JobState, Notice, Request, Response, Service, read_frame,
    write_frame,
};
use crate::limits::{
    ASKS_MAX, ASKS_PER_ANSWER_MAX, BLOCKS_MAX_BYTES, BLOCKS_WAIT, BULK_PIECE_BYTES, DIAL_TIMEOUT,
    EVIDENCE_READ_MAX_BYTES, HELLO_TIMEOUT, RECEIPT_TIMEOUT, SNAPSHOT_MAX_BYTES, STALL_TIMEOUT,
    SUBMIT_TIMEOUT, UPLOAD_STALL_TIMEOUT,
};
use crate::market::NotTaken;
use crate::transport::Wire;

/// One stream with a peer on which requests are made one after another.
pub struct Session {
    wire: Wire,
    /// Whether the stream stands between requests.
    pub(super) in_step: bool,
    pub(super) idle_since: Instant,
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
    /// have been killed, which no packet tells before it runs again.
    pub(super) async fn is_alive(&mut self) -> bool {
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

    pub(super) async fn store(
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
            let sending = timeout(UPLOAD_STALL_TIMEOUT, self.wire.send.write_bytes(cell));
            sending.await.map_err(|_| PeerError::Stalled)??;
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

    pub(super) async fn read(
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
        let is_kept = range.end - range.start <= EVIDENCE_READ_MAX_BYTES;
        let (mut stream, mut wrong) = (Vec::new(), None);
        let first = range.start - range.start % GROUP_BYTES as u64;
        let mut bytes = Vec::with_capacity((range.end - first) as usize + GROUP_BYTES);
        for next in stream_shape(shard_bytes, range.clone()) {
            let checked = match next {
                Next::Pair => {
                    let mut pair = [0; PAIR_BYTES];
                    in_time(self.wire.recv.read_exact(&mut pair)).await?;
                    transcript.add(&pair);
                    if is_kept {
                        stream.extend_from_slice(&pair);
                    }
                    if wrong.is_none() { verifier.pair(&pair) } else { Ok(()) }
                }
                Next::Group { offset, len } => {
                    let start = bytes.len();
                    bytes.resize(start + len, 0);
                    in_time(self.wire.recv.read_exact(&mut bytes[start..])).await?;
                    received.fetch_add(len as u64, Ordering::Relaxed);
                    let group = &bytes[start..];
                    if is_kept {
                        stream.extend_from_slice(group);
                    }
                    let checked = if wrong.is_none() { verifier.group(group).map(Some) } else { Ok(None) };
                    let hash = checked.unwrap_or_default();
                    transcript.add(&hash.unwrap_or_else(|| group_entry(shard_bytes, offset, group)));
                    checked.map(drop)
                }
            };
            if let Err(error) = checked {
                // What is to become evidence is received to its end, which is signed.
                if !is_kept {
                    return Err(error.into());
                }
                wrong = Some(error);
            }
        }
        let Response::Answered(raw) = self.response().await? else {
            return Err(PeerError::Protocol("another end than a signed answer"));
        };
        let answer = raw.clone().check::<ReadAnswer>(network)?;
        if answer.signer() != self.wire.peer || *answer.value() != transcript.finish() {
            return Err(PeerError::Protocol("its signature covers another answer"));
        }
        if let Some(error) = wrong {
            let read = SignedRead { request: to_bytes(&request), stream, answer: raw };
            return Err(PeerError::SignedWrongBytes { error, read: Box::new(read) });
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

    /// Blocks of the ledger from height `from` on, and the height of the newest one that the peer has. If there are none yet, the peer may wait
    /// for one for a while.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn blocks(&mut self, from: u64, wait: bool) -> Result<(Vec<Block>, u64), PeerError> {
        self.in_step = false;
        in_time(write_frame(&mut self.wire.send, &Request::Blocks { from, wait })).await?;
        let answer = self.response_within(BLOCKS_WAIT + HELLO_TIMEOUT).await?;
        let Response::Blocks { len, height } = answer else {
            return Err(PeerError::Protocol("another answer than blocks"));
        };
        Ok((self.bulk(len, BLOCKS_MAX_BYTES).await?, height))
    }

    /// The ledger's state at the peer, unchecked, and the header of the block that it says to be after.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn snapshot(&mut self) -> Result<(SignedBytes, Vec<(Key, Entry)>), PeerError> {
        let Response::Snapshot { header } = self.request(&Request::Snapshot).await? else {
            return Err(PeerError::Protocol("another answer than a snapshot"));
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            match self.response().await? {
                Response::Entries(more) => {
                    bytes += to_bytes(&more).len();
                    if more.is_empty() || bytes > SNAPSHOT_MAX_BYTES {
                        return Err(PeerError::Protocol("a snapshot without end"));
                    }
                    entries.extend(more);
                }
                Response::Done => break,
                _ => return Err(PeerError::Protocol("another end than done")),
            }
        }
        self.in_step = true;
        Ok((header, entries))
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

    /// Tells the peer that audits of a deal of this account fail.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn notice(&mut self, notice: Notice) -> Result<(), PeerError> {
        let Response::Done = self.request(&Request::Notice(notice)).await? else {
            return Err(PeerError::Protocol("another answer than done"));
        };
        self.in_step = true;
        Ok(())
    }

    /// Bytes of the set under the head that the ledger has of a deal, which follow from `seed`; unchecked. Also the head's number.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn openings(
        &mut self,
        deal: DealId,
        seed: [u8; 32],
        count: u8,
    ) -> Result<(u64, Vec<SetOpening>), PeerError> {
        let request = Request::Openings { deal, seed, count };
        let Response::Openings { seq, openings } = self.request(&request).await? else {
            return Err(PeerError::Protocol("another answer than openings"));
        };
        self.in_step = true;
        Ok((seq, openings))
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

    /// Has the peer dial one of this node's ports. Returns the address that it sees this node at, and what came of dialling.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn dial_back(&mut self, service: Service, port: u16) -> Result<(IpAddr, Dialled), PeerError> {
        let Response::DialledBack { ip, outcome } =
            self.request(&Request::DialBack { service, port }).await?
        else {
            return Err(PeerError::Protocol("another answer than what dialling back came to"));
        };
        self.in_step = true;
        Ok((ip, outcome))
    }

    /// Which of `materials` the peer has for jobs of this account.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn has_materials(&mut self, materials: &[Material]) -> Result<Vec<bool>, PeerError> {
        match self.request(&Request::Materials { materials: materials.to_vec() }).await? {
            Response::Holding(held) if held.len() == materials.len() => {
                self.in_step = true;
                Ok(held)
            }
            _ => Err(PeerError::Protocol("another answer than what it has")),
        }
    }

    /// Sends bytes that a job needs. `sent` hears how many went out.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn store_material(
        &mut self,
        deal: DealId,
        material: Material,
        bytes: Bytes,
        sent: impl Fn(usize),
    ) -> Result<(), PeerError> {
        let Response::Ready = self.request(&Request::StoreMaterial { deal, material }).await? else {
            return Err(PeerError::Protocol("another answer than ready"));
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(BULK_PIECE_BYTES));
            let len = piece.len();
            let sending = timeout(UPLOAD_STALL_TIMEOUT, self.wire.send.write_bytes(piece));
            sending.await.map_err(|_| PeerError::Stalled)??;
            sent(len);
        }
        in_time(self.wire.send.flush()).await?;
        let Response::Done = self.response_within(RECEIPT_TIMEOUT).await? else {
            return Err(PeerError::Protocol("another answer than done"));
        };
        self.in_step = true;
        Ok(())
    }

    /// Orders work. The same order again is answered with how its job is.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn order(&mut self, order: &SignedBytes, work: &Work) -> Result<JobState, PeerError> {
        self.in_step = false;
        let request = Request::Order { order: order.clone(), work: Box::new(work.clone()) };
        in_time(write_frame(&mut self.wire.send, &request)).await?;
        // The provider may have to see the deal on the ledger first.
        let answer = self.response_within(RECEIPT_TIMEOUT).await?;
        self.job_state(answer)
    }

    /// Has a verifier judge a disputed job. Says of the work's bytes, in its order, which the verifier has.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn case(&mut self, job: JobId, work: &Work) -> Result<Vec<bool>, PeerError> {
        match self.request(&Request::Case { job, work: Box::new(work.clone()) }).await? {
            Response::Holding(held) if held.len() == work.materials().count() => {
                self.in_step = true;
                Ok(held)
            }
            _ => Err(PeerError::Protocol("another answer than what it has")),
        }
    }

    /// How a job is, as soon as that is not what was `seen`, or after a while; with what was printed from the offsets on.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn watch_job(
        &mut self,
        job: JobId,
        seen: u64,
        stdout_from: u64,
        stderr_from: u64,
    ) -> Result<JobState, PeerError> {
        let answer = self.request(&Request::WatchJob { job, seen, stdout_from, stderr_from }).await?;
        self.job_state(answer)
    }

    /// Stops a job.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn cancel_job(&mut self, job: JobId) -> Result<JobState, PeerError> {
        let answer = self.request(&Request::CancelJob { job }).await?;
        self.job_state(answer)
    }

    fn job_state(&mut self, answer: Response) -> Result<JobState, PeerError> {
        let Response::Job(state) = answer else {
            return Err(PeerError::Protocol("another answer than how the job is"));
        };
        self.in_step = true;
        Ok(*state)
    }

    /// Bytes that came out of a job: those that `material` names, and no others.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn job_bytes(&mut self, job: JobId, material: Material) -> Result<Vec<u8>, PeerError> {
        let Response::JobBytes { bytes: says } = self.request(&Request::JobBytes { job, material }).await?
        else {
            return Err(PeerError::Protocol("another answer than bytes of the job"));
        };
        if says != material.bytes {
            return Err(PeerError::Protocol("its bytes have another length"));
        }
        let mut bytes = vec![0; says as usize];
        for piece in bytes.chunks_mut(BULK_PIECE_BYTES) {
            in_time(self.wire.recv.read_exact(piece)).await?;
        }
        let Response::Done = self.response().await? else {
            return Err(PeerError::Protocol("another end than done"));
        };
        self.in_step = true;
        if Material::of(&bytes) != material {
            return Err(PeerError::Protocol("its bytes are not those that its receipt names"));
        }
        Ok(bytes)
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

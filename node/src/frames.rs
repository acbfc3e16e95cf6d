//! `spare/1`: the framed protocol between peers, over any ordered two-way stream.
//!
//! **Participants.** The *asker* opens a stream; the *answerer* serves it. Both are authenticated by node key before the first
//! byte (libp2p's TLS certificates, over quinn and over libp2p alike).
//!
//! **Goals.** The same bytes over every transport; every length known before it is read; one refusal shape with a stable code.
//! **Non-goals.** Multiplexing (the transport has streams), compression.
//!
//! ```text
//! frame    = length (u32, little endian, at most FRAME_MAX_BYTES) | canonical postcard
//! session  = Hello -> <- Hello, then any number of:
//!   Asks                    -> <- Asks
//!   Store                   -> <- Ready;  shard bytes -> <- Stored(Signed Receipt)
//!   Read                    -> <- Reading; verified stream, <- Answered(Signed ReadAnswer)
//!   Delete                  -> <- Deleted
//!   Holds                   -> <- Holding
//!   IndexEnd                -> <- IndexEnd
//!   IndexAppend             -> <- Ready;  entry bytes -> <- Done
//!   IndexRead               -> <- IndexEntry; entry bytes, <- Done
//!   Blocks                  -> <- Blocks; block bytes, <- Done
//!   Snapshot                -> <- Snapshot, any number of <- Entries, <- Done
//!   Submit                  -> <- Taken or NotTaken
//!   Terms                   -> <- Terms(Signed Terms)
//!   Head                    -> <- Head(FullHead)
//!   Vouchers                -> <- Done
//!   DealState               -> <- DealState
//!   DealSet                 -> <- DealSet
//!   Notice                  -> <- Done
//!   Openings                -> <- Openings
//!   DialBack                -> <- DialledBack
//!   Materials               -> <- Holding
//!   StoreMaterial           -> <- Ready;  bytes -> <- Done
//!   Order                   -> <- Job
//!   WatchJob                -> <- Job
//!   JobBytes                -> <- JobBytes; bytes, <- Done
//!   CancelJob               -> <- Job
//!   Case                    -> <- Holding
//! ```
//!
//! Any answer may be `Refused` instead; the session then goes on, except after bulk bytes were cut short.

use std::io;
use std::net::IpAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use spare_market::amount::Amount;
use spare_market::deal::DealId;
use spare_market::head::FullHead;
use spare_market::index::LogEnd;
use spare_market::job::{JobId, Material, Work};
use spare_market::signed::{NetworkId, SignedBytes};
use spare_market::standing::{Fault, Place};
use spare_market::state::{Entry, Key};
use spare_market::tab::Tab;
use spare_proofs::encode::{DecodeError, from_bytes, to_bytes};
use spare_proofs::opening::SetOpening;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::FRAME_MAX_BYTES;

/// The name by which both transports negotiate this protocol.
pub const PROTOCOL: &str = "/spare/1";

/// The first frame in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// The first version.
    V1 {
        /// The network that the peer means.
        network: NetworkId,
        /// Lets the peer act for an account. Without it, only `Asks` is answered.
        grant: Option<SignedBytes>,
    },
}

/// What an asker wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The asks that the answerer knows, after the first `skip`.
    Asks {
        /// How many to pass over.
        skip: u32,
    },
    /// Keep a shard for the asker's account. Until a head covers it, it is kept for a limited time only.
    Store {
        /// The deal that is to cover it.
        deal: DealId,
        /// Its length.
        shard_bytes: u64,
    },
    /// Send the 16 KiB groups that hold bytes `start..end` of a shard of the asker's account.
    Read {
        /// The shard.
        root: Root,
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Makes each signed answer unique.
        nonce: [u8; 16],
    },
    /// Delete shards of the asker's account that no head covers. Others are passed over.
    Delete {
        /// The shards.
        roots: Vec<Root>,
    },
    /// Which of these shards of the asker's account are held?
    Holds {
        /// The shards.
        roots: Vec<Root>,
    },
    /// Where the index log of the asker's account ends.
    IndexEnd,
    /// Append an entry to the index log of the asker's account.
    IndexAppend {
        /// Length of the encoded `SignedBytes` that follows.
        len: u32,
    },
    /// Send entry `seq` of the index log of the asker's account.
    IndexRead {
        /// Its number.
        seq: u64,
    },
    /// Send the ledger's blocks from height `from` on.
    Blocks {
        /// Height of the first.
        from: u64,
        /// Whether the answer waits for a while if there are none yet.
        wait: bool,
    },
    /// Send the ledger's state after its newest block.
    Snapshot,
    /// Put a transaction on the ledger. For the market's node.
    Submit {
        /// The transaction.
        tx: SignedBytes,
    },
    /// Offer terms for a deal with the asker's account.
    Terms,
    /// Countersign the next head of a deal. The same head again is answered with the same bytes.
    Head {
        /// The head, signed by the client.
        head: SignedBytes,
        /// Shards that it covers and the head before does not.
        add: Vec<Root>,
        /// Shards that the head before covers and it does not. They are deleted.
        remove: Vec<Root>,
    },
    /// Take vouchers of one deal: the newest, and any that were signed beforehand.
    Vouchers {
        /// The vouchers, signed by the client.
        vouchers: Vec<SignedBytes>,
    },
    /// How a deal of the asker's account stands, for a client that lost its own records.
    DealState {
        /// The deal.
        deal: DealId,
    },
    /// The shards that the newest head of a deal covers, in order of root.
    DealSet {
        /// The deal.
        deal: DealId,
        /// The last shard of the page before.
        after: Option<Root>,
    },
    /// Audits of a deal of the asker's account fail, and this is what will follow.
    Notice(Notice),
    /// Show bytes of the set under the head that the ledger has of a deal. Anybody may ask, within a budget.
    Openings {
        /// The deal.
        deal: DealId,
        /// Which bytes follow from it.
        seed: [u8; 32],
        /// How many, at most [`CLAIM_DRAWS`](spare_market::claim::CLAIM_DRAWS).
        count: u8,
    },
    /// Dial one of the asker's own ports, at the address that the asker is seen at and no other, and say what came of it.
    DialBack {
        /// What listens there.
        service: Service,
        /// The UDP port.
        port: u16,
    },
    /// Which of these bytes, which jobs of the asker's account need, are here?
    Materials {
        /// The bytes, by hash.
        materials: Vec<Material>,
    },
    /// Keep bytes that a job of the asker's account needs. They are dropped some time after the last job that needs them.
    StoreMaterial {
        /// The deal under which they are to be used.
        deal: DealId,
        /// The bytes.
        material: Material,
    },
    /// Carry out work. The same order again is answered with how its job is.
    Order {
        /// The order, signed by the client.
        order: SignedBytes,
        /// The work.
        work: Box<Work>,
    },
    /// How a job of the asker's account is, as soon as that is news.
    WatchJob {
        /// The job.
        job: JobId,
        /// The version that the asker has seen; 0 for none.
        seen: u64,
        /// Bytes of standard output that the asker has.
        stdout_from: u64,
        /// Bytes of standard error that the asker has.
        stderr_from: u64,
    },
    /// Send bytes that came out of a job of the asker's account.
    JobBytes {
        /// The job.
        job: JobId,
        /// The bytes: what was printed, an output file, or the list of those.
        material: Material,
    },
    /// Stop a job of the asker's account. What it has cost until then is owed.
    CancelJob {
        /// The job.
        job: JobId,
    },
    /// Judge a disputed job of the asker's account. Says which of the work's bytes are here.
    Case {
        /// The job.
        job: JobId,
        /// Its work.
        work: Box<Work>,
    },
}

/// How a job is, at the provider that runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// Changes with everything below.
    pub version: u64,
    /// Where it is.
    pub phase: JobPhase,
    /// Fuel used so far.
    pub fuel: u64,
    /// What it has cost so far, as the provider counts it.
    pub cost: Amount,
    /// What was printed to standard output, from where the asker wanted it; as much as fits.
    pub stdout: Vec<u8>,
    /// The same of standard error.
    pub stderr: Vec<u8>,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobPhase {
    /// Entered when the order is taken: it waits for its turn.
    Waiting {
        /// Jobs that are to be begun before it.
        ahead: u32,
        /// About how long that takes, in seconds, if anything is known of it.
        wait_s: Option<u32>,
        /// What it waits for, in words.
        why: String,
    },
    /// Entered when a place is free: its program is compiled, or found among those that were.
    Compiling,
    /// Entered when its program begins.
    Running,
    /// Entered from running when as much is unpaid as may be: it stands still until a voucher comes.
    Due,
    /// Entered when its program has ended, however: the receipt.
    Ended(SignedBytes),
    /// Entered when the provider could not carry it out, and why. Only what was counted until then is owed.
    Failed(String),
    /// Entered when the client had it stopped.
    Cancelled,
}

impl JobPhase {
    /// Whether nothing changes any more.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Failed(_) | Self::Cancelled)
    }
}

/// A client tells its provider that what it stores cannot be read, before anything follows from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The deal.
    pub deal: DealId,
    /// What was asked for.
    pub place: Place,
    /// How it failed.
    pub fault: Fault,
    /// Why, in words.
    pub why: String,
    /// Unix time in seconds since when.
    pub since_s: u64,
    /// Unix time in seconds from which on it is a strike, if it goes on.
    pub strikes_at_s: u64,
    /// Strikes that count already.
    pub strikes: u8,
}

/// What listens on one of a node's two UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// libp2p: finds peers, and carries `spare/1` where no direct connection can be made.
    Libp2p,
    /// Direct transfers.
    Direct,
}

/// What came of dialling back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dialled {
    /// The asker answered, and proved its node key.
    Answered,
    /// Nothing came back in time.
    Silent,
    /// Something else answered, or the dial failed at once.
    Failed,
}

/// What an answerer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The request was not carried out.
    Refused(Refusal),
    /// Some asks.
    Asks {
        /// The asks.
        asks: Vec<SignedBytes>,
        /// Whether there are more after these.
        more: bool,
    },
    /// Room is reserved: send the bytes.
    Ready,
    /// The shard is durable.
    Stored(SignedBytes),
    /// The verified stream follows.
    Reading {
        /// The shard's length.
        shard_bytes: u64,
    },
    /// Ends a read: the signed transcript.
    Answered(SignedBytes),
    /// How many shards were deleted, and the space given back.
    Deleted {
        /// Shards deleted.
        shards: u32,
        /// Bytes of disk given back.
        freed_bytes: u64,
    },
    /// For each shard asked about, whether it is held.
    Holding(Vec<bool>),
    /// The end of the index log.
    IndexEnd(LogEnd),
    /// An encoded `SignedBytes` of this length follows.
    IndexEntry {
        /// Its length.
        len: u32,
    },
    /// Done.
    Done,
    /// A list of encoded blocks of this length follows.
    Blocks {
        /// Its length.
        len: u32,
        /// Height of the newest block there is.
        height: u64,
    },
    /// The state after this block follows.
    Snapshot {
        /// The block's header, signed by the market.
        header: SignedBytes,
    },
    /// Some entries of the state.
    Entries(Vec<(Key, Entry)>),
    /// The transaction is in a block that is durable.
    Taken {
        /// The block's height.
        height: u64,
    },
    /// The ledger refused the transaction.
    NotTaken {
        /// Stable, for programs.
        code: String,
        /// Who has to change something.
        blame: spare_market::tx::Blame,
        /// For a person.
        detail: String,
    },
    /// Terms that the asker's account can take up.
    Terms(SignedBytes),
    /// The head, signed by both.
    Head(FullHead),
    /// How a deal stands.
    DealState(Box<DealState>),
    /// A page of the shards under a deal's newest head.
    DealSet {
        /// Some shards.
        members: Vec<Member>,
        /// Whether there are more after these.
        more: bool,
    },
    /// Bytes of a set, shown.
    Openings {
        /// The number of the head that they are of.
        seq: u64,
        /// In order of the draws.
        openings: Vec<SetOpening>,
    },
    /// What came of dialling back.
    DialledBack {
        /// The address that the asker is seen at, and was dialled at.
        ip: IpAddr,
        /// The outcome.
        outcome: Dialled,
    },
    /// How a job is.
    Job(Box<JobState>),
    /// As many bytes of a job follow.
    JobBytes {
        /// How many.
        bytes: u64,
    },
}

/// A deal as its provider keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DealState {
    /// The newest head.
    pub head: Option<FullHead>,
    /// The newest voucher.
    pub voucher: Option<SignedBytes>,
    /// What the provider has counted.
    pub tab: Tab,
}

/// Who has to change something before a refused request can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// The asker: repeating the request is useless.
    Asker,
    /// The answerer: another provider, or a later time, may do.
    Answerer,
}

/// Why a request was refused. The number of each variant is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefusalCode {
    /// The peer belongs to another network.
    #[error("other network")]
    OtherNetwork,
    /// The request needs a grant, and there is none, or it does not hold.
    #[error("no authority")]
    NoAuthority,
    /// The node offers no storage.
    #[error("not a provider")]
    NotAProvider,
    /// No room is left.
    #[error("no room")]
    NoRoom,
    /// A length or count exceeds its bound.
    #[error("too large")]
    TooLarge,
    /// The shard or entry is not here.
    #[error("not here")]
    NotHere,
    /// The range is empty or lies outside the shard.
    #[error("bad range")]
    BadRange,
    /// The shard is here, but its bytes have rotted or cannot be read.
    #[error("unavailable")]
    Unavailable,
    /// The entry does not extend the log.
    #[error("bad index entry")]
    BadIndexEntry,
    /// Too much at once.
    #[error("busy")]
    Busy,
    /// The frame does not decode.
    #[error("malformed")]
    Malformed,
    /// The node is not the market.
    #[error("not the market")]
    NotTheMarket,
    /// There is no such deal between the two, or it is closing.
    #[error("no deal")]
    NoDeal,
    /// The deal's money does not last beyond the locked grace.
    #[error("not funded")]
    Unfunded,
    /// The head does not hold.
    #[error("bad head")]
    BadHead,
    /// A newer head is known.
    #[error("stale head")]
    StaleHead,
    /// Another head of this number is known.
    #[error("forked head")]
    ForkedHead,
    /// The voucher does not hold, or pays too little.
    #[error("bad voucher")]
    BadVoucher,
    /// A voucher that promises as much is known.
    #[error("stale voucher")]
    StaleVoucher,
    /// More was used than is paid for.
    #[error("payment due")]
    PaymentDue,
    /// The order or the work cannot be carried out as it is.
    #[error("bad order")]
    BadOrder,
    /// Bytes that the work needs are not here.
    #[error("materials missing")]
    MaterialsMissing,
}

/// A refusal: a stable code and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("refused ({code}): {detail}")]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// Who has to act.
    pub blame: Blame,
    /// For a person.
    pub detail: String,
}

impl Refusal {
    /// Whether a head was refused for what it says.
    pub fn is_of_head(&self) -> bool {
        matches!(self.code, RefusalCode::StaleHead | RefusalCode::ForkedHead | RefusalCode::BadHead)
    }

    /// A refusal with the blame that its code implies.
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        use RefusalCode::*;
        let blame = match code {
            OtherNetwork | NoAuthority | TooLarge | BadRange | BadIndexEntry | Malformed | NoDeal
            | Unfunded | BadHead | StaleHead | ForkedHead | BadVoucher | StaleVoucher | PaymentDue
            | BadOrder | MaterialsMissing => Blame::Asker,
            NotAProvider | NoRoom | NotHere | Unavailable | Busy | NotTheMarket => Blame::Answerer,
        };
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(256));
        Self { code, blame, detail }
    }
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
    /// The announced length exceeds the bound.
    #[error("a frame of {0} bytes is announced, at most {FRAME_MAX_BYTES} are allowed")]
    TooLong(usize),
    /// The content does not decode.
    #[error("a frame does not decode: {0}")]
    Decode(#[from] DecodeError),
}

/// Decodes a frame's content, without its length.
///
/// # Errors
/// [`DecodeError`] when it is not canonical.
pub fn decode<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    from_bytes(body, FRAME_MAX_BYTES)
}

/// Encodes a frame with its length in front.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let body = to_bytes(value);
    assert!(body.len() <= FRAME_MAX_BYTES, "frames are built within their bound");
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Writes one frame and flushes.
///
/// # Errors
/// When the stream fails.
pub async fn write_frame<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    stream.write_all(&encode(value)).await?;
    stream.flush().await
}

/// Reads one frame's content, or `None` when the stream ends before it.
///
/// # Errors
/// [`FrameError`] when the stream fails within the frame or announces too much.
pub async fn read_body(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, FrameError> {
    let mut len = [0; 4];
    if let Err(error) = stream.read_exact(&mut len).await {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error.into()) };
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_MAX_BYTES {
        return Err(FrameError::TooLong(len));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Reads and decodes one frame.
///
/// # Errors
/// [`FrameError`] when there is none, or it does not decode.
pub async fn read_frame<T: Serialize + DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let body = read_body(stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(decode(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_frames() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        // length, variant 1, deal, shard_bytes as a varint
        let store = Request::Store { deal: DealId([0xdd; 32]), shard_bytes: 300 };
        assert_eq!(hex(&encode(&store)), format!("2300000001{}ac02", "dd".repeat(32)));
        // length, variant 2, root, start, end, nonce
        let read = Request::Read { root: Root::from_bytes([0xaa; 32]), start: 1, end: 2, nonce: [0xbb; 16] };
        assert_eq!(hex(&encode(&read)), format!("3300000002{}0102{}", "aa".repeat(32), "bb".repeat(16)));
        // length, variant 0, code 3 (no room), blame 1 (answerer), text
        let refused = Response::Refused(Refusal::new(RefusalCode::NoRoom, "full"));
        assert_eq!(hex(&encode(&refused)), "08000000000301".to_owned() + "04" + &hex(b"full"));
        // length, variant 18, direct, port as a varint
        let dial_back = Request::DialBack { service: Service::Direct, port: 4711 };
        assert_eq!(hex(&encode(&dial_back)), "04000000".to_owned() + "1201e724");
        // length, variant 21, IPv4, address, silent
        let dialled = Response::DialledBack { ip: [192, 0, 2, 1].into(), outcome: Dialled::Silent };
        assert_eq!(hex(&encode(&dialled)), "07000000".to_owned() + "1500c000020101");
        // length, variant 0, network, no grant
        // length, variant 20, deal, hash, bytes as a varint
        let material = Material { root: Root::from_bytes([0xaa; 32]), bytes: 300 };
        let store = Request::StoreMaterial { deal: DealId([0xdd; 32]), material };
        assert_eq!(hex(&encode(&store)), format!("4300000014{}{}ac02", "dd".repeat(32), "aa".repeat(32)));
        // length, variant 22, version, phase 3 (due), fuel, cost, stdout, no stderr
        let state = JobState {
            version: 1,
            phase: JobPhase::Due,
            fuel: 2,
            cost: Amount(3),
            stdout: vec![0xbb],
            stderr: vec![],
        };
        assert_eq!(
            hex(&encode(&Response::Job(Box::new(state)))),
            "08000000".to_owned() + "1601030203" + "01bb00"
        );
        let hello = Hello::V1 { network: NetworkId([1; 32]), grant: None };
        assert_eq!(hex(&encode(&hello)), format!("2200000000{}00", "01".repeat(32)));
    }

    #[tokio::test]
    async fn an_announced_length_is_checked_before_anything_is_allocated() {
        let mut stream = &u32::MAX.to_le_bytes()[..];
        assert!(matches!(read_body(&mut stream).await, Err(FrameError::TooLong(_))));
        let mut nothing = &[][..];
        assert!(matches!(read_body(&mut nothing).await, Ok(None)));
        let mut cut = &[5, 0, 0, 0, 1][..];
        assert!(matches!(read_body(&mut cut).await, Err(FrameError::Io(_))));
    }
}

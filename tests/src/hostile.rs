//! Providers and askers that break the rules, speaking the real protocol over real sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::relay::{Meddling, relay};
use spare::answer::Answerer;
use spare::asks::AskBook;
use spare::chain::Chain;
use spare::config::{Relay, Transport};
use spare::discover::{Discovery, Setup};
use spare::earn::{Earner, Offer};
use spare::frames::{Hello, Refusal, RefusalCode, Request, Response, read_frame, write_frame};
use spare::home::{Identity, Ticket};
use spare::index_log::IndexLogs;
use spare::market::{Follower, Market, Wallet};
use spare::meta::Meta;
use spare::peers::{Credentials, Peers};
use spare::shards::Volume;
use spare::standings::Standings;
use spare::transport::{Direct, SendHalf, Traffic, Wire};
use spare::unix_now_s;
use spare_market::amount::{Amount, ReadPrice, StoragePrice};
use spare_market::ask::{Ask, AskV1};
use spare_market::deal::{Terms, TermsV1};
use spare_market::grant::Authority;
use spare_market::index::{IndexEntry, IndexEntryV1, LogEnd, entry_hash};
use spare_market::keys::{PublicKey, Seed};
use spare_market::receipt::Receipt;
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_proofs::cipher::Secret;
use spare_proofs::encode::{from_bytes, to_bytes};
use spare_proofs::tree::Root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What hostile providers ask.
const OFFER: Offer = Offer {
    price: StoragePrice(1000),
    read_price: ReadPrice(0),
    compute: None,
    collateral: Amount::ZERO,
    claim_after_periods: 0,
};

/// How a provider misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdeed {
    /// Takes the first bytes of a shard, then neither reads nor answers.
    Stall,
    /// Closes the stream in the middle of a shard.
    HangUp,
    /// Offers terabytes and has no room.
    LieAboutRoom,
    /// Signs a receipt for other bytes than it got.
    SignOtherRoot,
    /// Stores honestly, and flips a bit in what it sends.
    FlipBitOnRead,
    /// Answers the hello for another network.
    OtherNetwork,
    /// Sends garbage instead of frames.
    Garbage,
    /// Keeps the first index entry it is given, and then shows it as the newest of a long log.
    ForgeIndex,
    /// Tells asks one by one, slowly, and always knows more.
    DripAsks,
    /// Serves honestly, but for reads.
    Meddle(Meddling),
}

/// A provider in this process, with a signed ask that everyone hears of.
pub struct HostileProvider {
    /// Sessions that it was asked for.
    pub sessions: Arc<AtomicUsize>,
    /// Times that it did what it was made for, where that is not plain to see.
    pub misdeeds: Arc<AtomicUsize>,
    /// Its node key in hex.
    pub node: String,
    _discovery: Discovery,
    _dir: tempfile::TempDir,
}

/// The network and the peers of a ticket.
///
/// # Panics
/// When it is no ticket.
pub fn open_ticket(ticket: &str) -> (NetworkId, Vec<libp2p::Multiaddr>) {
    let Ticket::V1 { genesis, peers } = ticket.parse().expect("a ticket");
    (genesis.network(), peers.iter().map(|p| p.parse().expect("tickets hold multiaddrs")).collect())
}

/// A fresh account and node key for `network`.
pub fn stranger(network: NetworkId) -> Identity {
    Identity::new(&Seed::from_entropy(rand::random()), network, Secret::new(rand::random()), unix_now_s())
}

/// A direct endpoint at 127.0.`subnet`.1 that speaks with `identity`'s node key.
///
/// # Panics
/// When it cannot be bound.
pub fn endpoint(identity: &Identity, subnet: u8) -> Arc<Direct> {
    let addr = SocketAddr::from(([127, 0, subnet, 1], 0));
    Arc::new(
        Direct::bind(addr, identity.libp2p_keypair(), Arc::new(Traffic::default())).expect("a free port"),
    )
}

impl HostileProvider {
    /// Starts a provider at 127.0.`subnet`.1 in the network of `ticket`.
    ///
    /// # Panics
    /// When it cannot start.
    pub async fn start(ticket: &str, subnet: u8, misdeed: Misdeed) -> Self {
        let (network, bootstrap) = open_ticket(ticket);
        let Ticket::V1 { genesis, .. } = ticket.parse().expect("a ticket");
        let identity = stranger(network);
        let dir = tempfile::tempdir().expect("a folder can be made");
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).expect("a store can be made"));
        let book = Arc::new(AskBook::open(network, meta.clone(), unix_now_s()).expect("an empty book opens"));
        let volume = Arc::new(
            Volume::open(&dir.path().join("volume"), meta.clone(), 10 << 30).expect("a volume opens"),
        );
        let logs = Arc::new(IndexLogs::new(meta.clone(), identity.account, 10 << 30));
        let chain = Arc::new(Chain::open(meta.clone(), genesis.clone()).expect("an empty ledger opens"));
        let standings = Arc::new(Standings::open(meta.clone(), 60).expect("nothing is held against anybody"));
        let earner = Earner::open(identity.account, identity.node_key(), OFFER, meta, chain.clone(), volume)
            .expect("no deals yet");
        let honest = Answerer::new(
            network,
            identity.node_key(),
            identity.grant.clone(),
            Some(Arc::new(earner)),
            logs,
            book.clone(),
            None,
        );
        let direct = endpoint(&identity, subnet);
        let addr = direct.local_addr().expect("bound");
        let book_of_peers = book.clone();
        let discovery = spare::discover::start(Setup {
            keypair: identity.libp2p_keypair(),
            network,
            listen: ([127, 0, subnet, 1], 0).into(),
            bootstrap,
            book,
            reach: Arc::default(),
            upnp_direct_port: None,
            relay: Relay::Off,
            is_looked_for: false,
        })
        .await
        .expect("libp2p starts");
        let credentials =
            Credentials { node: identity.node_key().public(), network, grant: identity.grant.clone() };
        let peers = Arc::new(Peers::new(
            credentials,
            book_of_peers,
            standings,
            direct.clone(),
            &discovery,
            Arc::new(Traffic::default()),
            Transport::Auto,
        ));
        let market = Arc::new(Market::start(chain, &genesis, &identity.node_secret));
        tokio::spawn(
            Arc::new(Follower::new(market.clone(), peers.clone(), discovery.addresses.clone(), u64::MAX))
                .run(),
        );
        let wallet = Wallet::new(market, peers, identity.node_key());
        // Nobody makes deals with a node that is not on the ledger.
        wallet.register(identity.grant.clone(), Authority::serial(&identity.grant)).await;
        let publish = discovery.publish.clone();
        let sessions = Arc::new(AtomicUsize::new(0));
        let node = identity.node_key().public().to_string();
        let misdeeds = Arc::new(AtomicUsize::new(0));
        let kept: Mutex<Option<IndexEntryV1>> = Mutex::default();
        let shared = Arc::new((identity, honest, misdeeds.clone(), kept));
        let asking = shared.clone();
        tokio::spawn(async move {
            // Again and again, since a mesh takes a moment to form.
            while publish.send(ask(&asking.0, addr).raw().clone()).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
        let counter = sessions.clone();
        let serve = move |wire: Wire| {
            counter.fetch_add(1, Ordering::Relaxed);
            let shared = shared.clone();
            tokio::spawn(async move {
                let (identity, honest, misdeeds, kept) = &*shared;
                // Whatever ends a hostile session, it ends.
                let _ = misbehave(wire, misdeed, identity, honest, misdeeds, kept).await;
            });
        };
        tokio::spawn(direct.accept(serve));
        Self { sessions, misdeeds, node, _discovery: discovery, _dir: dir }
    }
}

/// An ask that offers far more than anyone else, so that it is chosen first.
fn ask(identity: &Identity, addr: SocketAddr) -> Signed<Ask> {
    let now_s = unix_now_s();
    let ask = AskV1 {
        grant: identity.grant.clone(),
        operator: format!("hostile at {}", addr.ip()),
        direct: vec![addr],
        libp2p: Vec::new(),
        offered_bytes: 1 << 50,
        free_bytes: 1 << 50,
        price: OFFER.price,
        read_price: OFFER.read_price,
        region: String::new(),
        compute: None,
        made_s: now_s,
        valid_until_s: now_s + 600,
    };
    Signed::new(Ask::V1(ask), identity.network, &identity.node_key())
}

async fn misbehave(
    mut wire: Wire,
    misdeed: Misdeed,
    identity: &Identity,
    honest: &Answerer,
    misdeeds: &AtomicUsize,
    kept: &Mutex<Option<IndexEntryV1>>,
) -> anyhow::Result<()> {
    match misdeed {
        Misdeed::FlipBitOnRead => return flip_bits(wire, honest, misdeeds).await,
        Misdeed::ForgeIndex => return forge_index(wire, identity, misdeeds, kept).await,
        Misdeed::DripAsks => return drip_asks(wire, identity, misdeeds).await,
        Misdeed::Meddle(meddling) => return relay(wire, honest, identity, meddling, misdeeds).await,
        Misdeed::Garbage => {
            wire.send.write_all(&[0x5a; 4096]).await?;
            return Ok(wire.send.flush().await?);
        }
        _ => {}
    }
    let Hello::V1 { grant, .. } = read_frame(&mut wire.recv).await?;
    let network = if misdeed == Misdeed::OtherNetwork { NetworkId([0; 32]) } else { identity.network };
    write_frame(&mut wire.send, &Hello::V1 { network, grant: None }).await?;
    loop {
        let request: Request = read_frame(&mut wire.recv).await?;
        if request == Request::Terms {
            let terms = terms(identity, grant.as_ref().map_or(identity.account, |grant| grant.signer));
            write_frame(&mut wire.send, &Response::Terms(terms)).await?;
            continue;
        }
        let Request::Store { shard_bytes, .. } = request else {
            let refusal = Refusal::new(RefusalCode::Busy, "not now");
            write_frame(&mut wire.send, &Response::Refused(refusal)).await?;
            continue;
        };
        if misdeed == Misdeed::LieAboutRoom {
            write_frame(&mut wire.send, &Response::Refused(Refusal::new(RefusalCode::NoRoom, "full")))
                .await?;
            continue;
        }
        write_frame(&mut wire.send, &Response::Ready).await?;
        let take = if misdeed == Misdeed::SignOtherRoot { shard_bytes } else { shard_bytes / 2 };
        let mut bytes = vec![0; take as usize];
        wire.recv.read_exact(&mut bytes).await?;
        match misdeed {
            Misdeed::Stall => std::future::pending().await,
            Misdeed::SignOtherRoot => {
                let receipt = Receipt::V1 {
                    owner: grant.as_ref().map_or(identity.account, |grant| grant.signer),
                    root: Root::of(b"other"),
                    shard_bytes,
                    stored_s: unix_now_s(),
                };
                let receipt = Signed::new(receipt, identity.network, &identity.node_key());
                write_frame(&mut wire.send, &Response::Stored(receipt.raw().clone())).await?;
            }
            _ => return Ok(()),
        }
    }
}

fn terms(identity: &Identity, client: PublicKey) -> SignedBytes {
    let terms = TermsV1 {
        client,
        provider: identity.account,
        node: identity.node_key().public(),
        price: OFFER.price,
        read_price: OFFER.read_price,
        compute: None,
        collateral: Amount::ZERO,
        expires_s: unix_now_s() + 300,
        salt: rand::random(),
    };
    Signed::new(Terms::V1(terms), identity.network, &identity.node_key()).raw().clone()
}

async fn hello(wire: &mut Wire, identity: &Identity) -> anyhow::Result<()> {
    let _: Hello = read_frame(&mut wire.recv).await?;
    let hello = Hello::V1 { network: identity.network, grant: Some(identity.grant.clone()) };
    Ok(write_frame(&mut wire.send, &hello).await?)
}

/// Shows an old entry of the asker's own index, renumbered and signed anew, as the newest of a long log.
async fn forge_index(
    mut wire: Wire,
    identity: &Identity,
    misdeeds: &AtomicUsize,
    kept: &Mutex<Option<IndexEntryV1>>,
) -> anyhow::Result<()> {
    hello(&mut wire, identity).await?;
    let forged = || {
        let old = kept.lock().expect("no holder panics").clone()?;
        let entry = IndexEntryV1 { seq: 1 << 40, base: 1 << 40, ..old };
        Some(Signed::new(IndexEntry::V1(entry), identity.network, &identity.node_key()).raw().clone())
    };
    loop {
        match read_frame(&mut wire.recv).await? {
            Request::IndexEnd => {
                let hash = forged().map(|raw| entry_hash(&raw.bytes));
                let end = hash.map_or(LogEnd::default(), |hash| LogEnd { seq: 1 << 40, base: 1 << 40, hash });
                write_frame(&mut wire.send, &Response::IndexEnd(end)).await?;
            }
            Request::IndexAppend { len } => {
                write_frame(&mut wire.send, &Response::Ready).await?;
                let mut bytes = vec![0; len as usize];
                wire.recv.read_exact(&mut bytes).await?;
                let raw: SignedBytes = from_bytes(&bytes, bytes.len())?;
                let IndexEntry::V1(entry) = raw.check::<IndexEntry>(identity.network)?.value().clone();
                kept.lock().expect("no holder panics").get_or_insert(entry);
                write_frame(&mut wire.send, &Response::Done).await?;
            }
            Request::IndexRead { .. } => {
                let bytes = to_bytes(&forged().expect("an end was shown only with an entry"));
                write_frame(&mut wire.send, &Response::IndexEntry { len: bytes.len() as u32 }).await?;
                wire.send.write_all(&bytes).await?;
                write_frame(&mut wire.send, &Response::Done).await?;
                misdeeds.fetch_add(1, Ordering::Relaxed);
            }
            _ => write_frame(&mut wire.send, &Response::Refused(Refusal::new(RefusalCode::Busy, ""))).await?,
        }
    }
}

/// Always knows one ask more.
async fn drip_asks(mut wire: Wire, identity: &Identity, misdeeds: &AtomicUsize) -> anyhow::Result<()> {
    hello(&mut wire, identity).await?;
    loop {
        let response = match read_frame(&mut wire.recv).await? {
            Request::Asks { .. } => {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                misdeeds.fetch_add(1, Ordering::Relaxed);
                let addr = SocketAddr::from(([127, 0, 0, 1], 1));
                Response::Asks { asks: vec![ask(identity, addr).raw().clone()], more: true }
            }
            _ => Response::Refused(Refusal::new(RefusalCode::Busy, "not now")),
        };
        write_frame(&mut wire.send, &response).await?;
    }
}

/// Lets an honest provider answer, and flips a bit far into each long answer.
async fn flip_bits(wire: Wire, honest: &Answerer, flips: &AtomicUsize) -> anyhow::Result<()> {
    let (inner, outer) = tokio::io::duplex(1 << 20);
    let (inner_recv, inner_send) = tokio::io::split(inner);
    let (mut outer_recv, mut outer_send) = tokio::io::split(outer);
    let mut inside = Wire::new(
        inner_recv,
        SendHalf::other(inner_send),
        wire.peer,
        wire.remote_ip,
        &Arc::new(Traffic::default()),
    );
    let (mut recv, mut send) = (wire.recv, wire.send);
    let tamper = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = outer_recv.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<(), std::io::Error>(());
            }
            // Frames and receipts are short; only shard bytes fill the buffer.
            if read > 8192 {
                buffer[read / 2] ^= 1;
                flips.fetch_add(1, Ordering::Relaxed);
            }
            send.write_all(&buffer[..read]).await?;
            send.flush().await?;
        }
    };
    tokio::select! {
        () = honest.serve(&mut inside) => {}
        _ = tokio::io::copy(&mut recv, &mut outer_send) => {}
        _ = tamper => {}
    }
    Ok(())
}

//! Fuzz targets, one a decoder of bytes that come from outside. Each takes any bytes and must not panic; where bytes decode, encoding
//! the value gives the same bytes back.
//!
//! `tests/tests/decoders.rs` runs them on generated input in every test run, and for as long as `SPARE_FUZZ_SECONDS` says. Inputs are drawn, and not led by
//! what the code does with them.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use futures::FutureExt;
use libp2p::Multiaddr;
use reqwest::header::{HeaderMap, HeaderValue, IF_RANGE, RANGE};
use rustix::time::{ClockId, clock_gettime};
use serde::{Serialize, de::DeserializeOwned};
use spare::catalog::{BlobEntry, Change};
use spare::evidence::{Evidence, SignedRead};
use spare::frames::{DealState, Hello, Request, Response, encode, read_body, read_frame};
use spare::home::{Identity, Ticket};
use spare_market::amount::{Amount, ReadPrice, StorageDue, StoragePrice};
use spare_market::ask::Ask;
use spare_market::block::{Block, Header, Ledger, Operator};
use spare_market::deal::{Deal, DealId, Terms, TermsV1};
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::grant::{Authority, Grant};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::index::{IndexEntry, IndexEntryV1, LogEnd};
use spare_market::job::{ComputePrices, Ended, JobLimits, JobReceipt, Material, Order, OrderV1, Ran, Work};
use spare_market::keys::{PublicKey, Seed, SigningSecret};
use spare_market::meter::Meter;
use spare_market::placement::Placement;
use spare_market::receipt::{ReadAnswer, Receipt};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::state::{Entry, Key};
use spare_market::tab::Tab;
use spare_market::tx::{Action, Tx};
use spare_market::voucher::{Known, Voucher, VoucherV1};
use spare_proofs::cipher::{Secret, SegmentKey, open_message, seal_message};
use spare_proofs::encode::{from_bytes, to_bytes};
use spare_proofs::geometry::Geometry;
use spare_proofs::opening::SetOpening;
use spare_proofs::recipe::{Extent, Recipe, RecipeV1, SegmentRecipe};
use spare_proofs::sumtree::{Member, Sum, SumProof, SumTree};
use spare_proofs::tree::{Item, Next, Opening, PAIR_BYTES, Root, Verifier};

/// A target: its name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("hello", canonical::<Hello>),
    ("request", canonical::<Request>),
    ("response", canonical::<Response>),
    ("frame", frame),
    ("signed", signed),
    ("recipe", recipe),
    ("index", index),
    ("ticket", ticket),
    ("opening", opening),
    ("set_opening", set_opening),
    ("evidence", evidence),
    ("sum_proof", sum_proof),
    ("stream", stream),
    ("config", config),
    ("seed", seed),
    ("ledger", ledger),
    ("blocks", blocks),
    ("snapshot", snapshot),
    ("deal_state", deal_state),
    ("deal_set", deal_set),
    ("address", address),
    ("http", http),
];

const NETWORK: NetworkId = NetworkId([1; 32]);

/// The key under which the targets open sealed bytes.
fn key() -> Secret {
    Secret::new([3; 32])
}

fn canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = from_bytes::<T>(bytes, 1 << 20) {
        assert_eq!(to_bytes(&value), bytes, "only canonical bytes decode");
    }
}

fn signed(bytes: &[u8]) {
    let Ok(raw) = from_bytes::<SignedBytes>(bytes, 1 << 20) else { return };
    let _ = raw.clone().check::<Ask>(NETWORK);
    let _ = raw.clone().check::<Grant>(NETWORK);
    let _ = raw.clone().check::<Receipt>(NETWORK);
    let _ = raw.clone().check::<ReadAnswer>(NETWORK);
    let _ = raw.clone().check::<IndexEntry>(NETWORK);
    let _ = raw.clone().check::<Terms>(NETWORK);
    let _ = raw.clone().check::<Head>(NETWORK);
    let _ = raw.clone().check::<Voucher>(NETWORK);
    let _ = raw.clone().check::<Tx>(NETWORK);
    let _ = raw.clone().check::<Header>(NETWORK);
    let _ = raw.clone().check::<Order>(NETWORK);
    let _ = raw.clone().check::<JobReceipt>(NETWORK);
    let _ = Authority::from_grant(raw.clone(), NETWORK, raw.signer, 0);
    // What a valid signature would cover, as if it held.
    canonical::<Ask>(&raw.bytes);
    canonical::<Grant>(&raw.bytes);
    ledger(&raw.bytes);
    canonical::<Receipt>(&raw.bytes);
    canonical::<IndexEntry>(&raw.bytes);
    if let Ok(Ask::V1(ask)) = from_bytes(&raw.bytes, 1 << 20) {
        let _ = ask.check(u64::MAX / 2);
    }
}

fn recipe(bytes: &[u8]) {
    let _ = Recipe::open(&key(), bytes);
    // Past the seal, as a client's own damaged recipe would be.
    if let Ok(Recipe::V1(v1)) = Recipe::open(&key(), &seal_message(&key(), bytes)) {
        let _ = v1.slices(0, v1.blob_bytes());
        let _ = v1.stored_bytes();
    }
}

fn index(bytes: &[u8]) {
    canonical::<IndexEntry>(bytes);
    canonical::<BlobEntry>(bytes);
    canonical::<Vec<Change>>(bytes);
    if let Ok(IndexEntry::V1(v1)) = from_bytes::<IndexEntry>(bytes, 1 << 20) {
        let _ = LogEnd::default().extend(&v1, bytes);
        let _ = open_message(&key(), &v1.body);
    }
    if let Ok(placement) = from_bytes::<Placement>(bytes, 1 << 20) {
        let _ = placement.holders(0);
    }
}

fn ticket(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(ticket) = Ticket::from_str(text)
    {
        assert_eq!(Ticket::from_str(&ticket.to_string()), Ok(ticket));
    }
    canonical::<Ticket>(bytes);
}

/// The first 16 bytes choose a position and the set's length, the rest is what a provider shows.
fn set_opening(bytes: &[u8]) {
    let Some((place, rest)) = bytes.split_first_chunk::<16>() else { return };
    canonical::<SetOpening>(rest);
    let (position, len) = place.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16"));
    if let Ok(opening) = from_bytes::<SetOpening>(rest, 1 << 20) {
        let set = Sum { bytes: number(len), hash: [0; 32] };
        assert!(opening.verify(&set, number(position)).is_err(), "nothing opens a set of no known hash");
    }
}

/// Evidence, as somebody hands it over in a file.
fn evidence(bytes: &[u8]) {
    canonical::<Evidence>(bytes);
    if let Ok(evidence) = Evidence::from_bytes(bytes) {
        assert!(evidence.check(NETWORK).is_err(), "nobody makes up signatures");
    }
}

/// The first 16 bytes choose a place, the rest is the proof.
fn opening(bytes: &[u8]) {
    let Some((place, rest)) = bytes.split_first_chunk::<16>() else { return };
    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes"));
    if let Ok(opening) = from_bytes::<Opening>(rest, 1 << 20) {
        let _ = opening.verify(Root::of(&[5; 3000]), number(&place[..8]), number(&place[8..]));
    }
}

fn sum_proof(bytes: &[u8]) {
    if let Ok((set, position, proof)) = from_bytes::<(Sum, u64, SumProof)>(bytes, 1 << 20) {
        let _ = proof.verify(&set, position);
    }
}

/// The first 32 bytes are the root, the next 24 choose length and range, the rest is a verified stream.
fn stream(bytes: &[u8]) {
    let Some((root, rest)) = bytes.split_first_chunk::<32>() else { return };
    let Some((place, mut rest)) = rest.split_first_chunk::<24>() else { return };
    let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("8 bytes")) % (64 << 20);
    let (len, start) = (number(&place[..8]), number(&place[8..16]));
    let mut verifier = Verifier::new(Root::from_bytes(*root), len, start..start + number(&place[16..]));
    while let Some(next) = verifier.expects() {
        let want = match next {
            Next::Pair => PAIR_BYTES,
            Next::Group { len, .. } => len,
        };
        let Some((head, tail)) = rest.split_at_checked(want) else { return };
        rest = tail;
        let fine = match next {
            Next::Pair => verifier.pair(head.try_into().expect("a pair's length")).is_ok(),
            Next::Group { .. } => verifier.group(head).is_ok(),
        };
        if !fine {
            return;
        }
    }
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = spare::config::Size::from_str(text);
    let _ = spare::config::Code::from_str(text);
    let _ = toml::from_str::<spare::config::Config>(text);
    for key in
        ["provide.price", "client.max_price", "node.advertise_ip", "node.api_addr", "provide.scrub_rate"]
    {
        let flags = [(key.to_owned(), text.to_owned())];
        let _ = spare::config::load(std::path::Path::new("/nonexistent/config.toml"), |_| None, &flags);
    }
    let flags =
        [("node.operator".to_owned(), text.to_owned()), ("network.peers".to_owned(), text.to_owned())];
    let _ = spare::config::load(std::path::Path::new("/nonexistent/config.toml"), |_| None, &flags);
}

/// A stream of frames, as a peer sends them.
fn frame(bytes: &[u8]) {
    let mut stream = bytes;
    // All bytes are there, so nothing is waited for.
    while let Some(Ok(Some(body))) = read_body(&mut stream).now_or_never() {
        assert!(body.len() <= spare::limits::FRAME_MAX_BYTES);
    }
    let mut stream = bytes;
    while let Some(Ok(_)) = read_frame::<Request>(&mut stream).now_or_never() {}
}

/// A ledger in which nothing has happened.
fn empty_ledger() -> Ledger {
    let market = Seed::from_entropy([1; 32]).account_key().public();
    let genesis = GenesisV1 { market, started_s: 1, period_s: 2, beacon: [6; 32], fee_bps: 3, salt: [4; 32] };
    Ledger::new(Genesis::V1(genesis)).expect("a genesis that can found a network")
}

/// Blocks, as a peer tells them.
fn blocks(bytes: &[u8]) {
    canonical::<Vec<Block>>(bytes);
    let Ok(blocks) = from_bytes::<Vec<Block>>(bytes, 1 << 20) else { return };
    let mut ledger = empty_ledger();
    for block in blocks {
        let _ = ledger.accept(block);
    }
}

/// A ledger's state, as a peer tells it.
fn snapshot(bytes: &[u8]) {
    canonical::<Vec<(Key, Entry)>>(bytes);
    if let Ok((header, entries)) = from_bytes::<(SignedBytes, Vec<(Key, Entry)>)>(bytes, 1 << 20) {
        let _ = Ledger::restore(empty_ledger().genesis().clone(), &header, entries);
    }
}

/// A deal, as its provider tells a client that lost its records.
fn deal_state(bytes: &[u8]) {
    canonical::<DealState>(bytes);
    let Ok(state) = from_bytes::<DealState>(bytes, 1 << 20) else { return };
    let _ = (state.tab.bytes(), state.tab.rate(), state.tab.read_bytes(), state.tab.unpaid_read_bytes());
    let account = Seed::from_entropy([1; 32]).account_key().public();
    let terms = TermsV1 {
        client: account,
        provider: account,
        node: account,
        price: StoragePrice(u64::MAX),
        read_price: ReadPrice(u64::MAX),
        compute: None,
        collateral: Amount(0),
        expires_s: 0,
        salt: [0; 16],
    };
    let mut deal = Deal::open(terms.clone(), Amount(7), account);
    (deal.epoch, deal.paid_through, deal.paid) = (1, Some(3), Amount(5));
    for now in [0, 1, u64::MAX] {
        let _ = state.tab.check_plausible(&deal, 0, now, u32::MAX, Amount(0));
        let _ = state.tab.owed(&terms, now);
    }
    let _ = state.head.map(|head| head.head.check::<Head>(NETWORK));
    let _ = state.voucher.map(|voucher| voucher.check::<Voucher>(NETWORK));
}

/// The shards under a head, as a provider tells them.
fn deal_set(bytes: &[u8]) {
    canonical::<Vec<Member>>(bytes);
    if let Ok(members) = from_bytes::<Vec<Member>>(bytes, 1 << 20) {
        let _ = SumTree::new(members).map(|tree| tree.sum());
    }
}

/// Addresses, as asks, tickets and libp2p tell them.
fn address(bytes: &[u8]) {
    if let Ok(address) = Multiaddr::try_from(bytes.to_vec()) {
        // It reads back, though perhaps as another spelling of itself.
        let _ = Multiaddr::from_str(&address.to_string());
    }
    canonical::<SocketAddr>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (text.parse::<Multiaddr>(), text.parse::<SocketAddr>());
        let flags = [("network.peers".to_owned(), text.to_owned())];
        let _ = spare::config::load(std::path::Path::new("/nonexistent/config.toml"), |_| None, &flags);
    }
}

/// What a program says over HTTP, other than a blob's bytes.
fn http(bytes: &[u8]) {
    let _ = serde_json::from_slice::<spare::api::Funding>(bytes);
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    for if_range in [None, Some(value.clone())] {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, value.clone());
        headers.extend(if_range.map(|tag| (IF_RANGE, tag)));
        for length in [0, 1, 100, u64::MAX] {
            if let Ok(Some(range)) = spare::api::parse_range(&headers, "\"tag\"", length) {
                assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
            }
        }
    }
}

/// A read of a shard.
fn request_of(root: Root) -> Request {
    Request::Read { root, start: 0, end: 300, nonce: [4; 16] }
}

fn seed(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Seed::from_words(text);
    }
}

static OPERATOR: LazyLock<Operator> = LazyLock::new(|| Operator::new(&Secret::new([1; 32])));

/// Everything that the ledger takes, as if its signatures held.
fn ledger(bytes: &[u8]) {
    canonical::<Block>(bytes);
    canonical::<Header>(bytes);
    canonical::<FullHead>(bytes);
    canonical::<(Key, Entry)>(bytes);
    if let Ok(Tx::V1 { action: Action::Open { terms, .. }, .. }) = from_bytes::<Tx>(bytes, 1 << 20) {
        canonical::<Terms>(&terms.bytes);
    }
    if let Ok(genesis) = from_bytes::<Genesis>(bytes, 1 << 20) {
        let _ = Ledger::new(genesis.clone()).map(|ledger| {
            let submitted = vec![SignedBytes { bytes: bytes.to_vec(), ..stray() }];
            ledger.make(u64::MAX, submitted, &OPERATOR)
        });
        let _ = genesis.period_at(u64::MAX);
    }
    if let Ok(head) = from_bytes::<Head>(bytes, 1 << 20)
        && head.v1().check_bounds().is_ok()
    {
        let _ = Meter::default().take(head.v1(), u32::MAX).map(|()| head.v1().rate(u32::MAX));
    }
    if let Ok(voucher) = from_bytes::<Voucher>(bytes, 1 << 20) {
        let known = Known { total: Amount(5), jobs: Amount(2), through: Some(7) };
        let _ = voucher.v1().check_improves(voucher.v1().deal, 0, known);
    }
    if let Ok(order) = from_bytes::<Order>(bytes, 1 << 20) {
        let _ = (order.check(), order.job_id());
    }
    if let Ok(work) = from_bytes::<Work>(bytes, 1 << 20) {
        let prices = ComputePrices { start: 1, gfuel: u64::MAX, gib_gfuel: u64::MAX, output_gib: u64::MAX };
        let _ = (work.check(), work.id(), prices.cost_max(&work));
    }
    if let Ok(JobReceipt::V1 { ran, .. }) = from_bytes::<JobReceipt>(bytes, 1 << 20) {
        let _ = ran.hash();
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Amount::from_str(text).map(|amount| {
            assert_eq!(amount.to_string().parse(), Ok(amount));
            StoragePrice::per_tb_month(amount).map(StoragePrice::to_tb_month)
        });
        let _ = PublicKey::from_str(text);
    }
}

/// A signed record that says nothing.
fn stray() -> SignedBytes {
    let receipt = ReadAnswer::V1 { transcript: [0; 32] };
    Signed::new(receipt, NETWORK, &Seed::from_entropy([1; 32]).account_key()).raw().clone()
}

/// Numbers that are the same in every run.
struct Draw(blake3::OutputReader);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % bound.max(1) as u64) as usize
    }
}

/// Changes `bytes` in one of the ways in which decoders are wont to fail.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], draw: &mut Draw) {
    let at = draw.below(bytes.len() + 1);
    match draw.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, draw.below(256) as u8),
        2 => drop(bytes.drain(at..(at + draw.below(16)).min(bytes.len()))),
        3 => {
            let piece = bytes[at..(at + draw.below(64)).min(bytes.len())].to_vec();
            drop(bytes.splice(at..at, piece));
        }
        4 => {
            let other = &others[draw.below(others.len())];
            let from = draw.below(other.len());
            drop(bytes.splice(at.., other[from..].iter().copied()));
        }
        // The longest varint, and what comes after the longest.
        5 => drop(
            bytes.splice(at..(at + 1).min(bytes.len()), [0xff; 9].into_iter().chain([draw.below(3) as u8])),
        ),
        kind => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = if kind == 6 { *byte ^ (1 << draw.below(8)) } else { draw.below(256) as u8 };
            }
        }
    }
}

/// Time that a processor worked for this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// Runs a target for `time` of a processor's on mutated good encodings and on garbage. Returns how often.
///
/// # Panics
/// When the target does; the input is printed before.
pub fn run((name, target): &Target, time: Duration) -> u64 {
    let (seeds, started) = (seeds(), processor_time());
    let mut draw = Draw(blake3::Hasher::new().update(name.as_bytes()).finalize_xof());
    let mut runs = 0;
    while processor_time() - started < time {
        let mut bytes = match draw.below(16) {
            0 => (0..draw.below(300)).map(|_| draw.below(256) as u8).collect(),
            _ => seeds[draw.below(seeds.len())].clone(),
        };
        (0..=draw.below(6)).for_each(|_| mutate(&mut bytes, &seeds, &mut draw));
        let outcome = std::panic::catch_unwind(|| target(&bytes));
        if let Err(panic) = outcome {
            println!("{name} panics on {}", data_encoding::HEXLOWER.encode(&bytes));
            std::panic::resume_unwind(panic);
        }
        runs += 1;
    }
    runs
}

/// Work, an order of it, and what came out.
fn job(deal: DealId) -> (Work, Order, JobReceipt) {
    let material = Material::of(b"material");
    let limits = JobLimits { fuel: 1, memory_bytes: 2, output_bytes: 3, output_files: 4, log_bytes: 5 };
    let work = Work {
        module: material,
        args: vec!["program".into()],
        env: vec![("NAME".into(), "value".into())],
        stdin: Some(material),
        inputs: vec![("a/b".into(), material), ("c".into(), material)],
        limits,
        seed: [6; 32],
        starts_at_s: 7,
        is_deterministic: true,
    };
    let ran = Ran {
        work: work.id(),
        configuration: [8; 32],
        ended: Ended::Trapped("unreachable".into()),
        fuel: 1,
        memory_peak_bytes: 2,
        stdout: material,
        stderr: material,
        is_log_cut: false,
        outputs: material,
        output_bytes: 3,
    };
    let verifiers = vec![SigningSecret::from_secret(&key()).public()];
    let order =
        OrderV1 { deal, work: work.id(), verifiers, penalty: Amount(8), begin_by_s: 9, salt: [10; 16] };
    let order = Order::V1(order);
    let receipt = JobReceipt::V1 { job: order.job_id(), ran, ended_s: 11 };
    (work, order, receipt)
}

/// Good encodings to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    let identity = Identity::new(&Seed::from_entropy([1; 32]), NETWORK, Secret::new([2; 32]), 0);
    let node_key = identity.node_key();
    let root = Root::of(b"root");
    let body = |frame: Vec<u8>| frame[4..].to_vec();
    let receipt = Receipt::V1 { owner: identity.account, root, shard_bytes: 7, stored_s: 8 };
    let receipt = Signed::new(receipt, NETWORK, &node_key).raw().clone();
    let entry = IndexEntryV1 { seq: 1, base: 1, previous: [0; 32], body: seal_message(&key(), b"body") };
    let geometry = Geometry::new(2, 1).expect("2+1 is a code");
    let segment_key = SegmentKey::for_plaintext(&key(), 0, b"plaintext");
    let segment = SegmentRecipe { key: segment_key, plaintext_bytes: 9, roots: vec![root; 3] };
    let extents = vec![Extent { segment: 0, offset: 0, len: 9 }];
    let recipe = Recipe::V1(RecipeV1 { geometry, segments: vec![segment], extents });
    let tree = spare_proofs::tree::Tree::of(&[5; 3000]);
    let opening = tree.open(1, &[5; 3000]).expect("the leaf exists");
    let market = Genesis::V1(GenesisV1 {
        market: identity.account,
        started_s: 1,
        period_s: 2,
        beacon: [6; 32],
        fee_bps: 3,
        salt: [4; 32],
    });
    let deal = DealId([5; 32]);
    let head = Head::V1(HeadV1 {
        deal,
        seq: 1,
        set_root: [1; 32],
        bytes: 9,
        price: StoragePrice(7),
        from: 1,
        until: 3,
        index_hash: [0; 32],
    });
    let voucher = Voucher::V1(VoucherV1 {
        deal,
        epoch: 0,
        paid_through: Some(8),
        read_bytes: 9,
        jobs: Amount::ZERO,
        skipped: StorageDue::ZERO,
        total: Amount(77),
    });
    let (work, order, job_receipt) = job(deal);
    let full = FullHead::countersign(Signed::new(head, NETWORK, &node_key).raw().clone(), NETWORK, &node_key);
    let voucher_signed = Signed::new(voucher, NETWORK, &node_key).raw().clone();
    let anchor = Tx::V1 { number: 1, action: Action::Anchor { head: full.clone() } };
    let anchor_signed = Signed::new(anchor.clone(), NETWORK, &node_key).raw().clone();
    let account = spare_market::state::Account { free: Amount(5), ..Default::default() };
    let entries = vec![(Key::Account(identity.account), Entry::Account(account))];
    let place = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let long = vec![6; 40_000];
    let long_tree = spare_proofs::tree::Tree::of(&long);
    let mut streamed = [long_tree.root().as_bytes(), &place(&[40_000, 0, 40_000])[..]].concat();
    for item in long_tree.plan(0..40_000) {
        match item {
            Item::Pair(pair) => streamed.extend_from_slice(&pair),
            Item::Group { offset, len } => streamed.extend_from_slice(&long[offset as usize..][..len]),
        }
    }
    let members = (1..4).map(|i| Member { root: Root::from_bytes([i; 32]), bytes: 10 }).collect();
    let set = SumTree::new(members).expect("ascending members are a set");
    let sum_proof = (set.sum(), 15u64, set.prove(15).expect("the position exists"));
    let genesis = GenesisV1 {
        market: identity.account,
        started_s: 1,
        period_s: 2,
        beacon: [6; 32],
        fee_bps: 3,
        salt: [4; 32],
    };
    let ticket =
        Ticket::V1 { genesis: Genesis::V1(genesis), peers: vec!["/ip4/127.0.0.1/udp/1/quic-v1".into()] };
    let shown = SetOpening { member: sum_proof.2.clone(), leaf: opening.clone() };
    let read =
        SignedRead { request: to_bytes(&request_of(root)), stream: vec![7; 100], answer: receipt.clone() };
    let node = node_key.public();
    let member = sum_proof.2.clone();
    let evidence =
        Evidence::WrongBytes { network: NETWORK, node, head: full.clone(), position: 15, member, read };
    let claim = Tx::V1 { number: 2, action: Action::Claim { tick: 3, openings: vec![shown.clone()] } };
    vec![
        body(encode(&Hello::V1 { network: NETWORK, grant: Some(identity.grant.clone()) })),
        body(encode(&request_of(root))),
        body(encode(&Request::Delete { roots: vec![root, root] })),
        body(encode(&Response::Stored(receipt.clone()))),
        body(encode(&Response::Asks { asks: vec![receipt.clone()], more: true })),
        to_bytes(&receipt),
        to_bytes(&identity.grant),
        to_bytes(&IndexEntry::V1(entry)),
        to_bytes(&recipe),
        recipe.seal(&key()),
        to_bytes(&Placement::new(&[vec![identity.account; 3]])),
        [&place(&[3000, 1])[..], &to_bytes(&opening)].concat(),
        streamed,
        to_bytes(&sum_proof),
        ticket.to_string().into_bytes(),
        Seed::from_entropy([1; 32]).words().as_bytes().to_vec(),
        b"10+20".to_vec(),
        b"500GB".to_vec(),
        b"12.5".to_vec(),
        to_bytes(&market),
        to_bytes(&head),
        to_bytes(&voucher),
        to_bytes(&work),
        to_bytes(&order),
        to_bytes(&job_receipt),
        to_bytes(&full),
        to_bytes(&anchor),
        to_bytes(&claim),
        [&place(&[15, 30])[..], &to_bytes(&shown)].concat(),
        to_bytes(&evidence),
        to_bytes(&Block { header: receipt.clone(), txs: vec![receipt.clone()] }),
        to_bytes(&vec![Block { header: receipt.clone(), txs: vec![anchor_signed] }]),
        to_bytes(&(receipt.clone(), entries)),
        to_bytes(&DealState { head: Some(full), voucher: Some(voucher_signed), tab: Tab::default() }),
        to_bytes(&vec![Member { root: Root::from_bytes([1; 32]), bytes: 10 }; 2]),
        to_bytes(&SocketAddr::from(([10, 0, 0, 1], 4711))),
        Multiaddr::from_str("/ip4/10.0.0.1/udp/1/quic-v1").expect("an address").to_vec(),
        b"/ip6/::1/udp/1/quic-v1".to_vec(),
        b"bytes=10-90".to_vec(),
        br#"{"account":"00","amount":"12.5"}"#.to_vec(),
        b"[provide]\nsize = \"10GB\"\n".to_vec(),
    ]
}

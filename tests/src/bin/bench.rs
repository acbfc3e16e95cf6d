//! `make bench`: how fast the program is, as ratios to what this machine can do, measured in the same run.
//!
//! Bounds: raw quinn between two processes with the node's own TLS and transport settings, and bare write+fsync of files as
//! long as shards. Put and get are timed as a user sees them, through the command line. Wire bytes are shard bytes.

use std::hint::black_box;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use libp2p::identity::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use spare_market::amount::{Amount, ReadPrice, SUPPLY_MAX, StorageDue, StoragePrice};
use spare_market::block::{BLOCK_TXS_MAX, Ledger, Operator};
use spare_market::deal::{Terms, TermsV1};
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::grant::{Grant, Scope};
use spare_market::keys::SigningSecret;
use spare_market::signed::{Signed, SignedBytes};
use spare_market::tx::{Action, Tx};
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::cipher::{Secret, SegmentKey};
use spare_proofs::erasure::Erasure;
use spare_proofs::geometry::{CELL_BYTES, Geometry, RECORD_PLAINTEXT_BYTES, TAG_BYTES};
use spare_proofs::segment::SegmentCoder;
use spare_proofs::tree::TreeHasher;
use spare_tests::net::{Net, Node};

const MIB: f64 = (1 << 20) as f64;
const BLOB_BYTES: u64 = 1 << 30;
/// Connections of the raw transfer, as many as a put at 4+2 uses.
const RAW_CONNECTIONS: usize = 6;
const RAW_BYTES: u64 = 1536 << 20;
const ALPN: &[u8] = b"raw";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "raw-receiver") {
        return runtime()?.block_on(raw_receiver());
    }
    println!(
        "All figures are from one run on this machine; MiB/s. 'bound' is the slower of raw quinn and write+fsync.\n"
    );
    if args.get(1).is_some_and(|a| a == "claims") {
        return spare_tests::claims::print_costs();
    }
    if args.get(1).is_some_and(|a| a == "jobs") {
        return spare_tests::jobs::print_speeds();
    }
    library_speeds();
    ledger_speeds()?;
    spare_tests::claims::print_costs()?;
    spare_tests::jobs::print_speeds()?;
    small_puts()?;
    let raw = raw_quinn()?;
    for (k, parity) in [(4, 2), (10, 20)] {
        transfers(k, parity, "direct", raw)?;
    }
    transfers(4, 2, "stream", raw)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

// Raw quinn.

fn endpoint_config() -> anyhow::Result<quinn::ServerConfig> {
    let mut tls = libp2p_tls::make_server_config(&Keypair::generate_ed25519())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(spare::transport::transport_config());
    Ok(server)
}

/// Accepts streams and drops what arrives; says its address on standard output.
async fn raw_receiver() -> anyhow::Result<()> {
    let endpoint = quinn::Endpoint::server(endpoint_config()?, SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("{}", endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await?;
            let (mut send, mut recv) = connection.accept_bi().await?;
            let mut buffer = vec![0; 1 << 16];
            while recv.read(&mut buffer).await?.is_some() {}
            send.write_all(b"done").await?;
            send.finish()?;
            connection.closed().await;
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// MiB/s from this process to another over quinn, nothing else done.
fn raw_quinn() -> anyhow::Result<f64> {
    let sender_before = cpu_seconds(std::process::id());
    let mut receiver =
        Command::new(std::env::current_exe()?).arg("raw-receiver").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let out = receiver.stdout.take().context("standard output is piped")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
    let addr: SocketAddr = line.trim().parse()?;
    let took = runtime()?.block_on(async {
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let mut connections = Vec::new();
        for _ in 0..RAW_CONNECTIONS {
            let mut tls = libp2p_tls::make_client_config(&Keypair::generate_ed25519(), None)?;
            tls.alpn_protocols = vec![ALPN.to_vec()];
            let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
            config.transport_config(spare::transport::transport_config());
            connections.push(endpoint.connect_with(config, addr, "raw")?.await?);
        }
        let started = Instant::now();
        let sends = connections.iter().map(|connection| {
            let connection = connection.clone();
            tokio::spawn(async move {
                let (mut send, mut recv) = connection.open_bi().await?;
                let cell = vec![7; CELL_BYTES];
                for _ in 0..RAW_BYTES / RAW_CONNECTIONS as u64 / CELL_BYTES as u64 {
                    send.write_all(&cell).await?;
                }
                send.finish()?;
                anyhow::Ok(recv.read_to_end(16).await?)
            })
        });
        for send in sends.collect::<Vec<_>>() {
            ensure!(send.await?? == b"done", "the receiver got everything");
        }
        anyhow::Ok(started.elapsed())
    });
    let gib = RAW_BYTES as f64 / MIB / 1024.0;
    let sender = (cpu_seconds(std::process::id()) - sender_before) / gib;
    let receiver_cpu = cpu_seconds(receiver.id()) / gib;
    receiver.kill()?;
    receiver.wait()?;
    let speed = RAW_BYTES as f64 / MIB / took?.as_secs_f64();
    println!(
        "raw quinn, {RAW_CONNECTIONS} connections {speed:>8.0} MiB/s  CPU s per GiB: sender {sender:.1}, receiver {receiver_cpu:.1}"
    );
    Ok(speed)
}

/// MiB/s of writing and fsyncing `files` files of `file_bytes` bytes, four at a time.
fn write_fsync(dir: &Path, files: usize, file_bytes: usize) -> anyhow::Result<f64> {
    let content = vec![0xa5; file_bytes];
    let started = Instant::now();
    std::thread::scope(|scope| {
        let write = |first: usize| {
            for i in (first..files).step_by(4) {
                let mut file = std::fs::File::create(dir.join(format!("bare-{i}")))?;
                file.write_all(&content)?;
                file.sync_all()?;
            }
            std::io::Result::Ok(())
        };
        let writers: Vec<_> = (0..4).map(|first| scope.spawn(move || write(first))).collect();
        writers.into_iter().try_for_each(|w| w.join().expect("a writer does not panic"))
    })?;
    let speed = (files * file_bytes) as f64 / MIB / started.elapsed().as_secs_f64();
    for i in 0..files {
        std::fs::remove_file(dir.join(format!("bare-{i}")))?;
    }
    Ok(speed)
}

// Put and get.

/// CPU seconds of process `pid` so far, from `/proc` (clock ticks of 10 ms), with those of its ended children.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    fields.get(11..15).map_or(0.0, |ticks| ticks.iter().sum::<f64>() / 100.0)
}

struct Cpu {
    client: f64,
    providers: f64,
    command: f64,
}

impl Cpu {
    fn now(net: &Net) -> Self {
        let node = |node: &Node| node.pid().map_or(0.0, cpu_seconds);
        let providers = net.providers.iter().map(node).sum();
        Self { client: node(&net.client), providers, command: cpu_seconds(std::process::id()) }
    }
}

fn transfers(k: usize, parity: usize, transport: &str, raw: f64) -> anyhow::Result<()> {
    let n = k + parity;
    // Beside the build and not in /tmp, which may be memory.
    let base = std::env::current_exe()?.parent().context("a program lies in a folder")?.to_owned();
    let dir = tempfile::tempdir_in(base)?;
    let net = Net::start_in(dir, n as u8, "4GB", &["--set", &format!("node.transport={transport}")]);
    let layout = Geometry::new(k, parity)?.segment(Geometry::new(k, parity)?.segment_plaintext_max_bytes());
    let segments = BLOB_BYTES.div_ceil(layout.plaintext_bytes() as u64) as usize;
    let disk = write_fsync(net.dir.path(), segments * n, layout.shard_bytes())?;
    let bound = raw.min(disk);
    let file = net.file("source", BLOB_BYTES, 1);
    let path = file.to_str().context("paths are UTF-8")?;
    println!("\n{k}+{parity} over {transport}, 1 GiB");
    println!(
        "  write+fsync of {} files of {} MiB {disk:>10.0} MiB/s",
        segments * n,
        layout.shard_bytes() >> 20
    );

    let blob_mib = BLOB_BYTES as f64 / MIB;
    let code = format!("{k}+{parity}");
    let timed = |what: &str, wire_factor: f64, work: &dyn Fn()| {
        // What was written before goes to the disk first, and not on this measurement's time.
        rustix::fs::sync();
        let before = Cpu::now(&net);
        let started = Instant::now();
        work();
        let took = started.elapsed();
        let after = Cpu::now(&net);
        report(what, blob_mib, wire_factor, took, bound, &before, &after);
    };
    timed("put", n as f64 / k as f64, &|| {
        drop(net.client.ok(&["put", path, "--name", "a", "--code", &code]))
    });
    let copy = net.dir.path().join("copy");
    let target = copy.to_str().context("paths are UTF-8")?;
    // The first get finds the shards on the providers' disks, since they are written past the page cache; the second in their memory.
    let get_and_drop = || {
        let mut command = net.client.command(&["get", "a", "-o", "-"]);
        assert!(
            command.stdout(Stdio::null()).status().is_ok_and(|status| status.success()),
            "the blob is read"
        );
    };
    timed("get", 1.0, &get_and_drop);
    timed("get again", 1.0, &get_and_drop);
    timed("get to a synced file", 1.0, &|| drop(net.client.ok(&["get", "a", "-o", target])));
    ensure!(std::fs::read(&copy)? == std::fs::read(&file)?, "the blob came back otherwise");

    let received = || net.client.status()["received_bytes"].as_u64().unwrap_or(0);
    let before = received();
    let (url, token) = net.client.api();
    runtime()?.block_on(async {
        let request =
            reqwest::Client::builder().no_proxy().build()?.get(format!("{url}/blobs/a")).bearer_auth(token);
        let range = format!("bytes={}-{}", BLOB_BYTES / 2, BLOB_BYTES / 2 + (1 << 20) - 1);
        let middle = request.header("Range", range).send().await?.bytes().await?;
        ensure!(middle.len() == 1 << 20, "the range came back");
        anyhow::Ok(())
    })?;
    println!("  1 MiB from the middle moves {:.2} MiB", (received() - before) as f64 / MIB);
    Ok(())
}

fn report(
    what: &str,
    blob_mib: f64,
    wire_factor: f64,
    took: Duration,
    bound: f64,
    before: &Cpu,
    after: &Cpu,
) {
    let wire = blob_mib * wire_factor / took.as_secs_f64();
    let gib = blob_mib / 1024.0;
    let (client, providers) =
        ((after.client - before.client) / gib, (after.providers - before.providers) / gib);
    let command = (after.command - before.command) / gib;
    println!(
        "  {what:<20} {:>6.2} s  blob {:>6.0} MiB/s  wire {wire:>6.0} MiB/s  {:.2} of the bound  CPU s per GiB: client {client:.1}, providers {providers:.1}, command {command:.1}",
        took.as_secs_f64(),
        blob_mib / took.as_secs_f64(),
        wire / bound,
    );
}

// The ledger.

const DEALS: usize = 50;
const VOUCHERS_PER_DEAL: usize = 100;

/// How fast the rules run beside the bare checks of the signatures that they contain, and what a deal costs the ledger.
fn ledger_speeds() -> anyhow::Result<()> {
    let secret = |tag: u64| Secret::new(*blake3::hash(&tag.to_le_bytes()).as_bytes());
    let key = |tag: u64| SigningSecret::from_secret(&secret(tag));
    let operator = Operator::new(&secret(0));
    let (market, client, provider) = (key(0), key(1), key(2));
    let genesis = Genesis::V1(GenesisV1 {
        market: operator.public(),
        started_s: 0,
        period_s: 3600,
        beacon: operator.first_beacon(),
        fee_bps: 300,
        salt: [0; 32],
    });
    let mut ledger = Ledger::new(genesis)?;
    let network = ledger.network();
    let mut numbers = [0; 3];
    let mut tx = |by: usize, action| {
        numbers[by] += 1;
        let signer = [&market, &client, &provider][by];
        Signed::new(Tx::V1 { number: numbers[by], action }, network, signer).raw().clone()
    };
    let grant = |to: &SigningSecret| {
        let scopes = vec![Scope::Provide, Scope::Spend];
        let grant = Grant::V1 {
            delegate: to.public(),
            scopes,
            spend_cap: SUPPLY_MAX,
            serial: 1,
            expires_s: u64::MAX,
        };
        Signed::new(grant, network, to).raw().clone()
    };
    let mut first: Vec<SignedBytes> = [&market, &client, &provider]
        .into_iter()
        .enumerate()
        .map(|(i, who)| tx(i, Action::Register { grant: grant(who) }))
        .collect();
    first.push(tx(0, Action::Fund { account: client.public(), amount: Amount(1 << 60) }));
    let terms = |i: usize| {
        Terms::V1(TermsV1 {
            client: client.public(),
            provider: provider.public(),
            node: provider.public(),
            price: StoragePrice(1000),
            read_price: ReadPrice(0),
            compute: None,
            collateral: Amount(0),
            expires_s: 500,
            salt: [i as u8; 16],
        })
    };
    let open = |i: usize| Action::Open {
        terms: Signed::new(terms(i), network, &provider).raw().clone(),
        escrow: Amount(1 << 50),
    };
    first.extend((0..DEALS).map(|i| tx(1, open(i))));
    let voucher = |deal: usize, total: usize| {
        let (deal, total) = (terms(deal).deal_id(), Amount(total as u128));
        let voucher = Voucher::V1(VoucherV1 {
            deal,
            epoch: 0,
            paid_through: None,
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total,
        });
        Signed::new(voucher, network, &client).raw().clone()
    };
    let redeems: Vec<SignedBytes> = (1..=VOUCHERS_PER_DEAL)
        .flat_map(|total| (0..DEALS).map(move |deal| (deal, total)))
        .map(|(deal, total)| tx(2, Action::Redeem { voucher: voucher(deal, total) }))
        .collect();
    let mut follower = ledger.clone();
    let opened = ledger.make(100, first.clone(), &operator)?;
    ensure!(opened.outcomes.iter().all(Result::is_ok), "all deals open");
    follower.accept(ledger.take(opened.next.context("a block with transactions is made")?))?;

    let bare = Instant::now();
    for redeem in &redeems {
        // A redeeming transaction holds two signatures: its own, and the voucher's.
        redeem.clone().check::<Tx>(network)?;
        redeem.clone().check::<Tx>(network)?;
    }
    let bare = bare.elapsed();
    let (mut made_in, mut replayed_in, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for txs in redeems.chunks(BLOCK_TXS_MAX) {
        let started = Instant::now();
        let made = ledger.make(4000, txs.to_vec(), &operator)?;
        let block = ledger.take(made.next.context("a block with transactions is made")?);
        made_in += started.elapsed();
        ensure!(made.outcomes.iter().all(Result::is_ok), "all vouchers are paid");
        bytes += spare_proofs::encode::to_bytes(&block).len();
        let started = Instant::now();
        follower.accept(block)?;
        replayed_in += started.elapsed();
    }
    let per_s = |took: Duration| redeems.len() as f64 / took.as_secs_f64();
    println!(
        "ledger, vouchers redeemed a second   {:>8.0}  bare checks of the same signatures {:>8.0}  ratio {:.2}",
        per_s(made_in),
        per_s(bare),
        bare.as_secs_f64() / made_in.as_secs_f64()
    );
    println!("  replayed by a follower             {:>8.0}", per_s(replayed_in));
    let open_bytes = spare_proofs::encode::to_bytes(&first[4]).len();
    println!(
        "  bytes on the ledger: opening a deal {open_bytes}, redeeming a voucher {}; a deal redeemed once a month costs the latter\n",
        bytes / redeems.len()
    );
    Ok(())
}

/// Files of the run of small puts.
const SMALL_PUTS: usize = 100;
const SMALL_BYTES: u64 = 100_000;

/// Seconds for 100 small puts where storage costs something, beside the same where it is free. Both make deals and exchange heads; what differs
/// is money: audits that are paid, vouchers, top-ups. Periods of 2 s, so that there are many.
fn small_puts() -> anyhow::Result<()> {
    let mut took = Vec::new();
    for price in ["0", "20"] {
        let net = Net::start_market(6, 2, price);
        let file = net.file("small", SMALL_BYTES, 1);
        let put = |name: &str| {
            let path = file.to_str().expect("paths are UTF-8");
            net.client.ok(&["put", path, "--name", name, "--code", "4+2"]);
        };
        put("first");
        let started = Instant::now();
        (0..SMALL_PUTS).for_each(|i| put(&format!("file {i}")));
        took.push(started.elapsed().as_secs_f64());
    }
    println!(
        "{SMALL_PUTS} puts of {SMALL_BYTES} bytes at 4+2      {:>8.2} s  the same where storage is free {:>6.2} s  ratio {:.2}\n",
        took[1],
        took[0],
        took[0] / took[1]
    );
    Ok(())
}

// Libraries.

/// MiB/s of `work` on `bytes` bytes, the best of several rounds within about half a second.
fn speed(bytes: usize, mut work: impl FnMut()) -> f64 {
    work();
    let started = Instant::now();
    let mut best = Duration::MAX;
    while started.elapsed() < Duration::from_millis(500) {
        let round = Instant::now();
        work();
        best = best.min(round.elapsed());
    }
    bytes as f64 / MIB / best.as_secs_f64()
}

fn line(what: &str, ours: f64, library: f64) {
    println!("{what:<36} {ours:>8.0} MiB/s  library alone {library:>8.0}  ratio {:.2}", ours / library);
}

fn library_speeds() {
    let mut plaintext = vec![0; 640 * RECORD_PLAINTEXT_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut plaintext);
    let key = SegmentKey::for_plaintext(&Secret::new([1; 32]), 0, &plaintext[..100]);

    let shard = &plaintext[..4 << 20];
    let ours = speed(shard.len(), || {
        let mut hasher = TreeHasher::new();
        shard.chunks(CELL_BYTES).for_each(|cell| hasher.update(cell));
        black_box(hasher.finalize().root());
    });
    line(
        "hash a shard, keeping group hashes",
        ours,
        speed(shard.len(), || {
            black_box(blake3::hash(shard));
        }),
    );

    let mut sealed = vec![0; CELL_BYTES];
    let cipher = key.cipher();
    let ours =
        speed(RECORD_PLAINTEXT_BYTES, || cipher.seal(0, &plaintext[..RECORD_PLAINTEXT_BYTES], &mut sealed));
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let bare = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("a key of 32 bytes"));
    let body = sealed.len() - TAG_BYTES;
    let library = speed(RECORD_PLAINTEXT_BYTES, || {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        drop(black_box(bare.seal_in_place_separate_tag(nonce, Aad::empty(), &mut sealed[..body])));
    });
    line("encrypt a record", ours, library);

    for (k, parity) in [(4, 2), (10, 4), (10, 20)] {
        let geometry = Geometry::new(k, parity).expect("a code");
        let erasure = Arc::new(Erasure::new(geometry));
        let mut row = vec![0; geometry.n() * CELL_BYTES];
        row[..k * CELL_BYTES].copy_from_slice(&plaintext[..k * CELL_BYTES]);
        let ours = speed(k * CELL_BYTES, || erasure.encode_row(&mut row, CELL_BYTES));
        let bare = reed_solomon_erasure::galois_8::ReedSolomon::new(k, parity).expect("a code");
        let mut cells: Vec<Vec<u8>> = row.chunks(CELL_BYTES).map(<[u8]>::to_vec).collect();
        let library = speed(k * CELL_BYTES, || bare.encode(&mut cells).expect("equal cells"));
        line(&format!("code a row at {k}+{parity} (data)"), ours, library);

        let segment_bytes = geometry.segment_plaintext_max_bytes();
        let coder = SegmentCoder::new(erasure, &key, segment_bytes);
        let whole = speed(k * CELL_BYTES, || coder.code_row(0, &plaintext[..segment_bytes], &mut row));
        println!("  encrypt + code + whiten that row   {whole:>8.0} MiB/s");
    }
    println!();
}

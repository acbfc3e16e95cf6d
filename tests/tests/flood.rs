//! One provider under attack by numbers, while an honest client reads: connections that are never finished, readers that never read, gossip that
//! nobody should send. Its memory stays within what `limits.rs` adds up to, the attackers are turned away, and the client is served.
//!
//! How long reads take is printed: at rest, beside work that keeps all cores busy and has nothing to do with the provider, and during the attack. The
//! attackers run on the cores of the attacked, as no real ones do, so the second ratio is the one that tells what the attack does: busy cores alone make
//! the slowest reads two or three times as slow, even at a priority that gives way to all. Times are not asserted: what one machine does says little about
//! another.
//!
//! `SPARE_FLOOD_CONNECTIONS` is the number of connections that are never finished, 1,000 without it, 1,000 a second; there is a slow reader for each ten
//! of them. An attack lasts 5 s at least, and `SPARE_FLOOD_SECONDS` if it says more: the connections are begun again and again then.
//! `SPARE_FLOOD_KINDS` picks among `handshakes`, `readers` and `gossip`, all without it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use spare::frames::{Hello, Request, Response, read_frame, write_frame};
use spare::limits::{READS_MAX, SESSIONS_PER_PEER_MAX, memory_max_bytes};
use spare_market::amount::ReadPrice;
use spare_market::deal::DealId;
use spare_market::tab::READ_STEP_BYTES;
use spare_proofs::tree::{GROUP_BYTES, Next, PAIR_BYTES, Root, Verifier};
use spare_tests::flood::{
    Gossip, Malformed, Readers, attackers, busy_cores, gossip, half_open, node_keys, slow_readers,
};
use spare_tests::net::{Net, wait_for};
use spare_tests::stranger::{Stranger, provider_of};
use tokio::io::AsyncReadExt;

/// Reads at rest, and again beside busy cores.
const READS_BEFORE: usize = 5000;
/// Time between connections that the honest client makes.
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(50);
/// The shard that is read: long enough that nobody's window holds it.
const SHARD_BYTES: usize = 4 << 20;

fn connections() -> usize {
    std::env::var("SPARE_FLOOD_CONNECTIONS").map_or(1000, |n| n.parse().unwrap())
}

/// How long the attack lasts at least.
fn at_least() -> Duration {
    Duration::from_secs(std::env::var("SPARE_FLOOD_SECONDS").map_or(0, |n| n.parse().unwrap()))
}

/// Whether a kind of attack is wanted.
fn wants(kind: &str) -> bool {
    std::env::var("SPARE_FLOOD_KINDS").map_or(true, |kinds| kinds.contains(kind))
}

/// A client that reads its shard, and pays for it.
struct Honest {
    client: Stranger,
    addr: SocketAddr,
    deal: DealId,
    read_price: ReadPrice,
    root: Root,
    /// Bytes that were read.
    read_bytes: u64,
    paid_bytes: u64,
}

impl Honest {
    /// Reads 16 KiB at a random place, checked, and returns how long it took.
    async fn read(&mut self) -> Duration {
        let started = Instant::now();
        let (client, root) = (&mut self.client, self.root);
        let start = rand::random::<u32>() as u64 % (SHARD_BYTES / GROUP_BYTES) as u64 * GROUP_BYTES as u64;
        let range = start..start + GROUP_BYTES as u64;
        let request = Request::Read { root, start: range.start, end: range.end, nonce: rand::random() };
        let shard_bytes = match client.ask(request).await {
            Response::Reading { shard_bytes } => shard_bytes,
            other => panic!("an honest read is served, not answered with {other:?}"),
        };
        let mut verifier = Verifier::new(root, shard_bytes, range);
        let mut buffer = vec![0; GROUP_BYTES];
        while let Some(next) = verifier.expects() {
            match next {
                Next::Pair => {
                    let mut pair = [0; PAIR_BYTES];
                    client.wire.recv.read_exact(&mut pair).await.unwrap();
                    verifier.pair(&pair).unwrap();
                }
                Next::Group { len, .. } => {
                    client.wire.recv.read_exact(&mut buffer[..len]).await.unwrap();
                    verifier.group(&buffer[..len]).unwrap();
                }
            }
        }
        let answered: Response = read_frame(&mut client.wire.recv).await.unwrap();
        assert!(matches!(answered, Response::Answered(_)), "{answered:?}");
        self.read_bytes += GROUP_BYTES as u64;
        started.elapsed()
    }

    /// Reads over a connection of its own.
    async fn read_anew(&mut self) -> Duration {
        let started = Instant::now();
        self.client.reconnect(self.addr).await;
        self.read().await;
        started.elapsed()
    }

    /// Pays for what was read, if it is much.
    async fn pay(&mut self) {
        if self.read_bytes - self.paid_bytes > READ_STEP_BYTES / 2 {
            let through = self.client.period().checked_sub(1);
            let total = self.read_price.cost(self.read_bytes).0;
            let voucher = self.client.voucher(self.deal, through, self.read_bytes, total);
            let answer = self.client.ask(Request::Vouchers { vouchers: vec![voucher] }).await;
            assert_eq!(answer, Response::Done);
            self.paid_bytes = self.read_bytes;
        }
    }

    /// Reads both ways until told to stop. New connections are few enough for what one network may begin.
    async fn read_until(&mut self, stop: impl Fn(usize) -> bool) -> [Latency; 2] {
        let (mut standing, mut anew) = (Vec::new(), Vec::new());
        let mut connected_at = Instant::now();
        while !stop(standing.len()) {
            for _ in 0..10 {
                standing.push(self.read().await);
            }
            self.pay().await;
            if anew.is_empty() || connected_at.elapsed() > BETWEEN_CONNECTIONS {
                connected_at = Instant::now();
                anew.push(self.read_anew().await);
            }
        }
        [latency(standing), latency(anew)]
    }
}

struct Latency {
    p50: Duration,
    p99: Duration,
}

impl Latency {
    fn ratio(&self, to: &Self) -> String {
        let ratio = |d: Duration, of: Duration| d.as_secs_f64() / of.as_secs_f64();
        format!("p50 {:.2}, p99 {:.2}", ratio(self.p50, to.p50), ratio(self.p99, to.p99))
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms", self.p50.as_secs_f64() * 1e3, self.p99.as_secs_f64() * 1e3)
    }
}

fn latency(mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    Latency { p50: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

fn resident_bytes(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_under_attack_keeps_its_memory_and_serves_who_is_honest() {
    let count = connections();
    let wave = Duration::from_millis(count as u64).max(Duration::from_secs(5));
    let lasts = wave.max(at_least());
    let net = tokio::task::spawn_blocking(|| Net::start(1)).await.unwrap();
    let (provider, addr) = provider_of(&net);
    let pid = net.providers[0].pid().unwrap();
    let libp2p =
        net.providers[0].status()["libp2p"][0].as_str().unwrap().parse::<libp2p::Multiaddr>().unwrap();
    let libp2p_port = libp2p
        .iter()
        .find_map(|p| if let libp2p::multiaddr::Protocol::Udp(port) = p { Some(port) } else { None });
    let libp2p_addr = SocketAddr::new(addr.ip(), libp2p_port.unwrap());

    // The honest client and the slow readers are clients with deals of their own: nobody else gets bytes at all.
    let bytes: Vec<u8> = (0..SHARD_BYTES as u32).map(|i| (i / 7) as u8).collect();
    let mut client = Stranger::greeted(&net, 30).await;
    client.become_client(&net, "10").await;
    let deal = client.open_deal("5").await;
    let shard = client.store(deal, &bytes).await;
    let read_price = client.terms().await.1.read_price;
    let mut honest =
        Honest { client, addr, deal, read_price, root: shard.root, read_bytes: 0, paid_bytes: 0 };
    let mut attacker = Stranger::greeted(&net, 31).await;
    attacker.become_client(&net, "10").await;
    let deal = attacker.open_deal("5").await;
    attacker.store(deal, &bytes).await;

    let at_rest = honest.read_until(|reads| reads >= READS_BEFORE).await;
    let elsewhere = busy_cores();
    let beside = honest.read_until(|reads| reads >= READS_BEFORE).await;
    drop(elsewhere);
    let resident_before = resident_bytes(pid);

    let stop = Arc::new(AtomicBool::new(false));
    let (readers, gossiped) = (Arc::new(Readers::default()), Arc::new(Gossip::default()));
    let runtime = attackers(2);
    let slow = if wants("readers") { count / 10 } else { 0 };
    let identities = node_keys(&attacker.seed, attacker.me.network, slow.div_ceil(SESSIONS_PER_PEER_MAX));
    let per_identity = slow.div_ceil(identities.len().max(1));
    let reading = runtime.spawn(slow_readers(
        (provider, addr),
        identities,
        per_identity,
        100,
        (shard.root, SHARD_BYTES as u64),
        readers.clone(),
        stop.clone(),
    ));
    let mut gossiping = Vec::new();
    for (i, malformed) in
        [Malformed::Noise, Malformed::Unsigned].into_iter().enumerate().filter(|_| wants("gossip"))
    {
        let attack = gossip(
            libp2p.clone(),
            attacker.me.network,
            140 + i as u8,
            malformed,
            gossiped.clone(),
            stop.clone(),
        );
        gossiping.push(runtime.spawn(attack));
    }
    let sent = Arc::new(AtomicUsize::new(0));
    let flooding = {
        let (sent, stop) = (sent.clone(), stop.clone());
        runtime.spawn_blocking(move || {
            let parts = 20;
            let at_once = if wants("handshakes") { count / parts / 2 } else { 0 };
            while !stop.load(Ordering::Relaxed) {
                half_open(addr, b"spare/1", 150..180, at_once);
                half_open(libp2p_addr, b"libp2p", 150..180, at_once);
                sent.fetch_add(2 * at_once, Ordering::Relaxed);
                std::thread::sleep(wave / parts as u32);
            }
        })
    };
    let peak = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut peak = 0;
            while !stop.load(Ordering::Relaxed) {
                peak = peak.max(resident_bytes(pid));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        })
    };
    let started = Instant::now();
    let is_over = |_| started.elapsed() >= lasts;
    let during = honest.read_until(is_over).await;
    let lasted = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let peak = tokio::task::spawn_blocking(move || peak.join().unwrap()).await.unwrap();
    flooding.await.unwrap();
    reading.await.unwrap();
    for attack in gossiping {
        attack.await.unwrap();
    }
    runtime.shutdown_background();

    let n = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!("the attack lasted {:.1} s", lasted.as_secs_f64());
    println!("connections never finished: {}", sent.load(Ordering::Relaxed));
    println!(
        "{slow} slow readers: {} sessions opened, {} turned away; {} reads begun, {} refused (at most {READS_MAX} at once)",
        n(&readers.opened),
        n(&readers.turned_away),
        n(&readers.begun),
        n(&readers.refused)
    );
    println!(
        "malformed gossip: {} messages sent, {} connections, {} ended and {} refused by the provider",
        n(&gossiped.sent),
        n(&gossiped.connected),
        n(&gossiped.disconnected),
        n(&gossiped.refused)
    );
    for (i, kind) in ["a standing connection", "a new connection"].into_iter().enumerate() {
        let [at_rest, beside, during] = [&at_rest[i], &beside[i], &during[i]];
        println!("reads over {kind}:");
        println!("  at rest             {at_rest}");
        println!("  beside busy cores   {beside}");
        println!("  during the attack   {during}");
        println!("  ratio to rest       {}", during.ratio(at_rest));
        println!("  ratio to busy cores {}", during.ratio(beside));
    }
    let mib = |bytes: usize| bytes >> 20;
    println!(
        "resident memory: {} MiB before, {} MiB at most, {} MiB is the bound",
        mib(resident_before),
        mib(peak),
        mib(memory_max_bytes())
    );

    assert!(peak < memory_max_bytes(), "{peak} bytes of memory");
    assert!(!wants("gossip") || n(&gossiped.disconnected) > 0, "who gossips noise is disconnected");
    assert!(slow == 0 || n(&readers.begun) > 0);
    assert!(!wants("handshakes") || sent.load(Ordering::Relaxed) > 0);
    let log = net.providers[0].log();
    assert!(!log.contains("panicked"), "{log}");
    // When it is over, all is as it was.
    wait_for("the provider to answer", || net.providers[0].run(&["status"]).status.success().then_some(()));
    honest.read_anew().await;
    let hello = Hello::V1 { network: honest.client.me.network, grant: None };
    let mut newcomer = Stranger::arrive(&net, 32).await;
    write_frame(&mut newcomer.wire.send, &hello).await.unwrap();
    read_frame::<Hello>(&mut newcomer.wire.recv).await.unwrap();
}

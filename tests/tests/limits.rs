//! Bounds on peers, driven to their maximum at a real provider: whoever asks too much for nothing is slowed down, whoever sends noise is not listened to,
//! whoever takes nothing is dropped, and nobody else notices. Bounds that take an attack by numbers are in `flood.rs`, those that are pure in the units.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use spare::frames::{Hello, Request, Response, read_frame, write_frame};
use spare::limits::{
    CONNECTIONS_MAX, CONNECTIONS_PER_IP_MAX, GIVE_WAY_AFTER, MALFORMED_PER_PEER, READS_PER_PEER_MAX,
    STALL_TIMEOUT, THROTTLE_MAX, UNPAID_PER_PEER,
};
use spare_tests::flood::node_keys;
use spare_tests::hostile::endpoint;
use spare_tests::net::{Net, PATIENCE};
use spare_tests::stranger::{Stranger, provider_of};
use tokio::io::AsyncWriteExt;

/// Longer than what a stream and a connection hold of it.
const LONG_BYTES: usize = 8 << 20;

async fn start() -> Net {
    tokio::task::spawn_blocking(|| Net::start(1)).await.unwrap()
}

async fn client_with_shard(net: &Net, subnet: u8) -> (Stranger, spare_proofs::tree::Root) {
    let mut client = Stranger::greeted(net, subnet).await;
    client.become_client(net, "10").await;
    let deal = client.open_deal("5").await;
    let bytes: Vec<u8> = (0..LONG_BYTES as u32).map(|i| (i / 11) as u8).collect();
    let member = client.store(deal, &bytes).await;
    (client, member.root)
}

fn read_all(root: spare_proofs::tree::Root) -> Request {
    Request::Read { root, start: 0, end: LONG_BYTES as u64, nonce: rand::random() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_much_for_nothing_is_slowed_down_and_nobody_else() {
    let net = start().await;
    let mut greedy = Stranger::greeted(&net, 40).await;
    let (started, lasts) = (Instant::now(), Duration::from_secs(4));
    let (mut answered, mut longest) = (0, Duration::ZERO);
    // Whatever time it takes to use up what is free; then for a while.
    while started.elapsed() < lasts || answered < UNPAID_PER_PEER.burst {
        let asked = Instant::now();
        assert!(started.elapsed() < PATIENCE);
        greedy.ask(Request::Asks { skip: 0 }).await;
        longest = longest.max(asked.elapsed());
        answered += 1;
    }
    let earned = UNPAID_PER_PEER.per_s as f64 * started.elapsed().as_secs_f64();
    println!("{answered} answers in {:.1} s, the slowest after {longest:?}", started.elapsed().as_secs_f64());
    assert!(answered as f64 <= UNPAID_PER_PEER.burst as f64 + earned + 1.0);
    assert!(longest < THROTTLE_MAX + Duration::from_secs(5), "it waits, and is not hung up on");
    let mut other = Stranger::greeted(&net, 41).await;
    assert!(matches!(other.ask(Request::Asks { skip: 0 }).await, Response::Asks { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_noise_is_not_listened_to_any_more() {
    let net = start().await;
    let (_, addr) = provider_of(&net);
    let mut noisy = Stranger::greeted(&net, 42).await;
    let mut sent = 0;
    loop {
        noisy.wire.send.write_all(&[1, 0, 0, 0, 0xff]).await.unwrap();
        noisy.wire.send.flush().await.unwrap();
        assert!(noisy.is_hung_up_on().await);
        sent += 1;
        assert!(sent <= 10 * MALFORMED_PER_PEER.burst, "a bound is reached");
        noisy.redial(addr).await;
        let hello = Hello::V1 { network: noisy.me.network, grant: None };
        let greeted = write_frame(&mut noisy.wire.send, &hello).await.is_ok();
        if !greeted || read_frame::<Hello>(&mut noisy.wire.recv).await.is_err() {
            break;
        }
    }
    println!("{sent} malformed frames were borne");
    assert!(sent >= MALFORMED_PER_PEER.burst);
    Stranger::greeted(&net, 42).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_dropped() {
    let net = start().await;
    let (mut slow, root) = client_with_shard(&net, 43).await;
    let started = Instant::now();
    assert!(matches!(slow.ask(read_all(root)).await, Response::Reading { .. }));
    // What it writes shows whether anybody is there: nothing is read, but a dropped stream says so.
    while slow.wire.send.write_all(&[0]).await.is_ok() {
        assert!(started.elapsed() < 2 * STALL_TIMEOUT, "it is dropped");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("dropped after {:.1} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() > STALL_TIMEOUT / 2, "and not for a moment's pause");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_its_share_of_reads_and_no_more() {
    let net = start().await;
    let (_, addr) = provider_of(&net);
    let (mut many, root) = client_with_shard(&net, 44).await;
    let mut held = Vec::new();
    for _ in 0..READS_PER_PEER_MAX {
        many.redial(addr).await;
        many.greet(many.me.network, Some(many.me.grant.clone())).await;
        assert!(matches!(many.ask(read_all(root)).await, Response::Reading { .. }));
        let next = many.open_another().await;
        held.push(std::mem::replace(&mut many.wire, next));
    }
    many.greet(many.me.network, Some(many.me.grant.clone())).await;
    let refused = many.refused(read_all(root)).await;
    assert_eq!(refused, spare::frames::RefusalCode::Busy);
    // A read of another client has a place at once: it need not even wait for anybody to give way.
    let (mut other, root) = client_with_shard(&net, 45).await;
    let asked = Instant::now();
    assert!(matches!(other.ask(read_all(root)).await, Response::Reading { .. }));
    println!("another's read began after {:?}, {GIVE_WAY_AFTER:?} at most", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_addresses_that_hold_all_connections_do_not_keep_others_out() {
    let net = start().await;
    let (provider, addr) = provider_of(&net);
    let mut standing = Stranger::greeted(&net, 46).await;
    let crowd = node_keys(&standing.seed, standing.me.network, CONNECTIONS_MAX / CONNECTIONS_PER_IP_MAX);
    let mut tasks = tokio::task::JoinSet::new();
    for (subnet, identity) in (150..).zip(crowd) {
        tasks.spawn(async move {
            let endpoint = endpoint(&identity, subnet);
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS_PER_IP_MAX {
                endpoint.forget(&provider).await;
                let Ok(wire) = endpoint.open(&provider, &[addr]).await else { break };
                held.push(wire);
            }
            (endpoint, held)
        });
    }
    let held = tasks.join_all().await;
    let count: usize = held.iter().map(|(_, held)| held.len()).sum();
    println!("{count} connections are held");
    assert!((CONNECTIONS_MAX - 16..CONNECTIONS_MAX).contains(&count), "all are taken, with those of others");
    for subnet in 47..50 {
        let mut newcomer = Stranger::greeted(&net, subnet).await;
        assert!(matches!(newcomer.ask(Request::Asks { skip: 0 }).await, Response::Asks { .. }));
    }
    assert!(matches!(standing.ask(Request::Asks { skip: 0 }).await, Response::Asks { .. }));
}

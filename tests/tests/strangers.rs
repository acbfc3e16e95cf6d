//! Hostile peers on both sides of `spare/1`: nothing is lost, nobody panics, and honest work goes on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spare::frames::{
    Dialled, Hello, RefusalCode, Request, Response, Service, encode, read_frame, write_frame,
};
use spare::limits::{
    DELETE_MAX_ROOTS, DIAL_BACKS_PER_SUBNET_MAX, FRAME_MAX_BYTES, SESSIONS_PER_PEER_MAX, SHARD_MAX_BYTES,
};
use spare::transport::Direct;
use spare_market::deal::DealId;
use spare_market::signed::NetworkId;
use spare_proofs::tree::Root;
use spare_tests::hostile::{HostileProvider, Misdeed, endpoint, open_ticket, stranger};
use spare_tests::net::{Net, Node, wait_for};
use spare_tests::stranger::{Stranger, code, provider_of};
use tokio::io::AsyncWriteExt;

async fn start(providers: u8) -> Net {
    tokio::task::spawn_blocking(move || Net::start(providers)).await.unwrap()
}

/// A put must go round a provider that breaks the rules.
async fn put_goes_round(misdeed: Misdeed) {
    let net = start(4).await;
    let bad = HostileProvider::start(&net.ticket, 50, misdeed).await;
    tokio::task::spawn_blocking(move || {
        net.wait_for_providers(5);
        let file = net.file("source", 5 << 20, 1);
        // Weighted by room, the hostile one is almost surely among the first four. Silence takes long to tell from slowness.
        let names: &[&str] = if misdeed == Misdeed::Stall { &["a"] } else { &["a", "b"] };
        for name in names {
            let done = net.client.ok(&["put", file.to_str().unwrap(), "--name", name, "--code", "2+2"]);
            assert_eq!(done["shards_sent"], 4);
            let stat = net.client.ok(&["stat", name]);
            let holders = stat["providers"].as_array().unwrap();
            assert!(holders.iter().all(|p| p["node"] != bad.node.as_str()), "{misdeed:?}: {stat}");
            assert!(net.read(name) == std::fs::read(&file).unwrap());
        }
        assert!(bad.sessions.load(Ordering::Relaxed) > 0, "the hostile provider was tried");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_that_stalls() {
    put_goes_round(Misdeed::Stall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_that_hangs_up() {
    put_goes_round(Misdeed::HangUp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_that_lies_about_room() {
    put_goes_round(Misdeed::LieAboutRoom).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_that_signs_another_root() {
    put_goes_round(Misdeed::SignOtherRoot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_of_another_network() {
    put_goes_round(Misdeed::OtherNetwork).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_round_a_provider_that_sends_garbage() {
    put_goes_round(Misdeed::Garbage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_the_way_never_reaches_the_reader() {
    let net = start(3).await;
    let bad = HostileProvider::start(&net.ticket, 50, Misdeed::FlipBitOnRead).await;
    tokio::task::spawn_blocking(move || {
        net.wait_for_providers(4);
        let file = net.file("source", 30 << 20, 1);
        // Which shard it gets is drawn, and parity may never be read; so several blobs, until it was asked.
        wait_for("a bit to be flipped", || {
            let args = ["put", file.to_str().unwrap(), "--name", "a", "--code", "2+2", "--replace"];
            net.client.ok(&args);
            assert!(net.read("a") == std::fs::read(&file).unwrap());
            (bad.misdeeds.load(Ordering::Relaxed) > 0).then_some(())
        });
        assert!(net.read("a") == std::fs::read(&file).unwrap());
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_index_takes_nobody_in() {
    let net = start(3).await;
    let bad = HostileProvider::start(&net.ticket, 50, Misdeed::ForgeIndex).await;
    tokio::task::spawn_blocking(move || {
        net.wait_for_providers(4);
        let file = net.file("source", 1000, 1);
        for name in ["a", "b", "c"] {
            net.client.ok(&["put", file.to_str().unwrap(), "--name", name, "--code", "1+1"]);
        }
        let seed = net.client.home.join("seed.txt");
        let args = ["--join", &net.ticket, "--seed-file", seed.to_str().unwrap()];
        let mut again = Node::init(net.dir.path().join("again"), 201, &args);
        again.start();
        wait_for("the forger to be known", || {
            (again.ok(&["asks"]).as_array().map_or(0, Vec::len) == 4).then_some(())
        });
        let recovered = again.ok(&["recover"]);
        assert_eq!((&recovered["blobs"], &recovered["index_seq"]), (&3.into(), &3.into()));
        assert!(bad.misdeeds.load(Ordering::Relaxed) > 0, "the forgery was looked at");
        // Nor does it spread to honest providers.
        again.ok(&["put", file.to_str().unwrap(), "--name", "d", "--code", "1+1"]);
        assert_eq!(again.ok(&["recover"])["blobs"], 4);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_stops_telling_asks_holds_up_nobody() {
    let net = start(2).await;
    let bad = HostileProvider::start(&net.ticket, 50, Misdeed::DripAsks).await;
    tokio::task::spawn_blocking(move || {
        net.wait_for_providers(3);
        let file = net.file("source", 1000, 1);
        net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "1+1"]);
        // Both ask around first: recovery always, and this put since it lacks providers.
        assert_eq!(net.client.ok(&["recover"])["blobs"], 1);
        let too_few = net.client.fails(&["put", file.to_str().unwrap(), "--name", "b", "--code", "4+4"]);
        assert_eq!(too_few.0, "too_few_providers");
        assert!(bad.misdeeds.load(Ordering::Relaxed) > 0, "it was asked");
    })
    .await
    .unwrap();
}

const NO_DEAL: DealId = DealId([7; 32]);

fn read(start: u64, end: u64) -> Request {
    Request::Read { root: Root::of(b"x"), start, end, nonce: [0; 16] }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_is_refused_by_its_code_and_the_session_goes_on() {
    let net = start(1).await;
    let mut s = Stranger::greeted(&net, 60).await;
    assert_eq!(s.refused(read(0, 1)).await, RefusalCode::NotHere);
    assert_eq!(s.refused(Request::Store { deal: NO_DEAL, shard_bytes: 1 }).await, RefusalCode::NoDeal);
    for shard_bytes in [0, SHARD_MAX_BYTES + 1, u64::MAX] {
        assert_eq!(s.refused(Request::Store { deal: NO_DEAL, shard_bytes }).await, RefusalCode::TooLarge);
    }
    let roots = vec![Root::of(b"x"); DELETE_MAX_ROOTS + 1];
    assert_eq!(s.refused(Request::Delete { roots: roots.clone() }).await, RefusalCode::TooLarge);
    assert_eq!(s.refused(Request::Holds { roots }).await, RefusalCode::TooLarge);
    assert_eq!(s.refused(Request::IndexRead { seq: 1 }).await, RefusalCode::NotHere);
    assert_eq!(s.refused(Request::IndexAppend { len: u32::MAX }).await, RefusalCode::TooLarge);
    assert_eq!(s.ask(Request::IndexAppend { len: 3 }).await, Response::Ready);
    s.wire.send.write_all(&[1, 2, 3]).await.unwrap();
    assert_eq!(code(read_frame(&mut s.wire.recv).await.unwrap()), RefusalCode::BadIndexEntry);

    // A stored shard, asked for outside its bounds, and by another account.
    s.become_client(&net, "10").await;
    let deal = s.open_deal("1").await;
    s.store(deal, b"x").await;
    for (start, end) in [(0, 2), (1, 1), (5, 2), (0, u64::MAX)] {
        assert_eq!(s.refused(read(start, end)).await, RefusalCode::BadRange);
    }
    let mut other = Stranger::greeted(&net, 61).await;
    assert_eq!(other.refused(read(0, 1)).await, RefusalCode::NotHere, "another account's shard");
    let delete = Request::Delete { roots: vec![Root::of(b"x")] };
    assert_eq!(other.ask(delete).await, Response::Deleted { shards: 0, freed_bytes: 0 });
    assert_eq!(s.ask(read(0, 1)).await, Response::Reading { shard_bytes: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_comes_from_a_grant_to_this_node_key_in_this_network() {
    let net = start(1).await;
    let mut s = Stranger::arrive(&net, 62).await;
    s.greet(s.me.network, None).await;
    assert!(matches!(s.ask(Request::Asks { skip: 0 }).await, Response::Asks { .. }), "asks are for everyone");
    assert_eq!(s.refused(Request::Store { deal: NO_DEAL, shard_bytes: 1 }).await, RefusalCode::NoAuthority);
    assert_eq!(s.refused(Request::IndexEnd).await, RefusalCode::NoAuthority);
    let stolen = s.me.grant.clone();
    let mut s = Stranger::arrive(&net, 63).await;
    s.greet(s.me.network, Some(stolen)).await;
    assert!(s.is_hung_up_on().await, "a stolen grant");
    let mut s = Stranger::arrive(&net, 64).await;
    s.greet(NetworkId([7; 32]), Some(s.me.grant.clone())).await;
    assert!(s.is_hung_up_on().await, "another network");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_frames_end_a_session_and_nothing_else() {
    let net = start(1).await;
    let good = encode(&read(0, 1));
    let mut long_frame = ((FRAME_MAX_BYTES + 1) as u32).to_le_bytes().to_vec();
    long_frame.extend_from_slice(&[0; 100]);
    let mut unknown_variant = good.clone();
    unknown_variant[4] = 99;
    let mut trailing = good;
    trailing[0] += 1;
    trailing.push(0);
    let no_such_length = u32::MAX.to_le_bytes().to_vec();
    let bad =
        [long_frame, no_such_length, unknown_variant, trailing, vec![1, 0, 0, 0, 0xff], vec![0, 0, 0, 0]];
    for (i, bytes) in bad.iter().enumerate() {
        for greeted in [false, true] {
            let mut s =
                if greeted { Stranger::greeted(&net, 70).await } else { Stranger::arrive(&net, 70).await };
            s.wire.send.write_all(bytes).await.unwrap();
            s.wire.send.flush().await.unwrap();
            assert!(s.is_hung_up_on().await, "bad frame {i}, greeted: {greeted}");
        }
    }
    // A shard cut short leaves nothing behind.
    let mut s = Stranger::greeted(&net, 71).await;
    s.become_client(&net, "10").await;
    let deal = s.open_deal("1").await;
    assert_eq!(s.ask(Request::Store { deal, shard_bytes: 1 << 20 }).await, Response::Ready);
    s.wire.send.write_all(&[0; 1000]).await.unwrap();
    s.wire.send.shutdown().await.unwrap();
    assert!(s.is_hung_up_on().await);
    let incoming = net.providers[0].home.join("volume/incoming");
    wait_for("the unfinished shard to go away", || {
        (std::fs::read_dir(&incoming).unwrap().count() == 0).then_some(())
    });
    assert_eq!(net.providers[0].log().matches("panicked").count(), 0);
    assert!(net.providers[0].run(&["status"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_its_share_of_sessions_and_no_more() {
    let net = start(1).await;
    let (node, addr) = provider_of(&net);
    let me = stranger(open_ticket(&net.ticket).0);
    // One node key from several endpoints, since each connection has its own bound on streams.
    let endpoints: Vec<Arc<Direct>> = (0..5).map(|i| endpoint(&me, 80 + i)).collect();
    let mut open = Vec::new();
    let mut refused = 0;
    for i in 0..SESSIONS_PER_PEER_MAX + 8 {
        let mut wire = endpoints[i / 16].open(&node, &[addr]).await.unwrap();
        let hello = Hello::V1 { network: me.network, grant: Some(me.grant.clone()) };
        let sent = write_frame(&mut wire.send, &hello).await.is_ok();
        match read_frame::<Hello>(&mut wire.recv).await {
            Ok(_) if sent => open.push(wire),
            _ => refused += 1,
        }
    }
    assert_eq!((open.len(), refused), (SESSIONS_PER_PEER_MAX, 8));
    // Others are served all the while.
    Stranger::greeted(&net, 90).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_back_goes_to_the_asker_alone_and_seldom() {
    let net = start(1).await;
    let mut asker = Stranger::greeted(&net, 60).await;
    let ask = |port| Request::DialBack { service: Service::Direct, port };
    let dialled = |outcome| Response::DialledBack { ip: [127, 0, 60, 1].into(), outcome };
    let port = asker.listen();
    assert_eq!(asker.ask(ask(port)).await, dialled(Dialled::Answered));
    // A port at which this machine says at once that nobody listens, or at which nothing is said.
    let closed = std::net::UdpSocket::bind("127.0.60.1:0").unwrap();
    let silent = asker.ask(ask(closed.local_addr().unwrap().port())).await;
    assert_eq!(silent, dialled(Dialled::Silent));
    assert_eq!(asker.refused(ask(53)).await, RefusalCode::BadRange);
    assert_eq!(asker.refused(ask(0)).await, RefusalCode::BadRange);
    for _ in 2..DIAL_BACKS_PER_SUBNET_MAX {
        assert_eq!(asker.ask(ask(port)).await, dialled(Dialled::Answered));
    }
    assert_eq!(asker.refused(ask(port)).await, RefusalCode::Busy);
    // Others are not held up by it.
    let mut other = Stranger::greeted(&net, 61).await;
    let port = other.listen();
    let Response::DialledBack { outcome, .. } = other.ask(ask(port)).await else { panic!("not dialled") };
    assert_eq!(outcome, Dialled::Answered);
}

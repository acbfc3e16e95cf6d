//! Deals over real processes: what is stored is paid for, what is signed holds, and each lie is refused by its code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::cmp::Ordering;

use serde_json::Value;
use spare::frames::{RefusalCode, Request, Response};
use spare_market::amount::{Amount, StorageDue, StoragePrice};
use spare_market::deal::{DealId, Terms, TermsV1};
use spare_market::grant::{Grant, Scope};
use spare_market::head::{Head, HeadV1};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::tab::READ_SLACK_BYTES;
use spare_market::tx::Action;
use spare_market::voucher::{Voucher, VoucherV1};
use spare_tests::net::{Net, Node, wait_for};
use spare_tests::stranger::Stranger;

const MIB: u64 = 1 << 20;

/// The network, and a stranger who is a client of the first provider with an open deal.
async fn client_of(net: Net, escrow: &str) -> (Net, Stranger, DealId, TermsV1) {
    let mut client = Stranger::greeted(&net, 60).await;
    client.become_client(&net, "100").await;
    let (terms, v1) = client.terms().await;
    let escrow = escrow.parse().unwrap();
    client.submit(Action::Open { terms, escrow }).await.unwrap();
    let deal = Terms::V1(v1.clone()).deal_id();
    (net, client, deal, v1)
}

async fn market(providers: u8, period_s: u32, price: &'static str) -> Net {
    tokio::task::spawn_blocking(move || Net::start_market(providers, period_s, price)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_head_is_refused_by_its_code_and_a_repeated_one_gets_the_same_bytes() {
    let (net, mut client, deal, terms) = client_of(market(1, 3600, "2").await, "10").await;
    let [a, b] = [client.store(deal, b"shard a").await, client.store(deal, b"shard b").await];
    let first = client.head(deal, &terms, 1, &[a]);
    let full = client.exchange(first, &[a], &[]).await.unwrap();
    full.check(client.me.network, &client.provider()).unwrap();
    assert_eq!(client.exchange(first, &[a], &[]).await, Ok(full.clone()), "the same again");

    let second = client.head(deal, &terms, 2, &[a, b]);
    use RefusalCode::{BadHead, ForkedHead, NoDeal, NotHere, StaleHead};
    let bad: [(&str, HeadV1, RefusalCode); 9] = [
        ("forked", HeadV1 { index_hash: [1; 32], ..first }, ForkedHead),
        ("another set", HeadV1 { set_root: [1; 32], ..second }, BadHead),
        ("fewer bytes", HeadV1 { bytes: 7, ..second }, BadHead),
        ("cheaper", HeadV1 { price: StoragePrice(1), ..second }, BadHead),
        ("in the past", HeadV1 { from: 0, until: 1, ..second }, BadHead),
        ("in the future", HeadV1 { from: second.from + 2, until: second.from + 3, ..second }, BadHead),
        ("for ever", HeadV1 { until: u64::MAX, ..second }, BadHead),
        ("number 0", HeadV1 { seq: 0, ..second }, BadHead),
        ("another deal", HeadV1 { deal: DealId([1; 32]), ..second }, NoDeal),
    ];
    for (what, head, code) in bad {
        // Periods may have begun at 0: the past is then the present.
        if what == "in the past" && client.period() < 2 {
            continue;
        }
        assert_eq!(client.exchange(head, &[b], &[]).await, Err(code), "{what}");
    }
    let missing = spare_proofs::sumtree::Member { root: spare_proofs::tree::Root::of(b"none"), bytes: 4 };
    let of_missing = client.head(deal, &terms, 2, &[a, missing]);
    assert_eq!(client.exchange(of_missing, &[missing], &[]).await, Err(NotHere));
    assert_eq!(client.exchange(second, &[a], &[]).await, Err(BadHead), "covered already");
    assert_eq!(client.exchange(second, &[b, b], &[]).await, Err(BadHead), "twice");
    let nothing = client.head(deal, &terms, 2, &[]);
    assert_eq!(client.exchange(nothing, &[b, b], &[]).await, Err(BadHead), "twice, and said to be nothing");
    assert_eq!(client.exchange(second, &[], &[b]).await, Err(BadHead), "not covered");
    let elsewhere = Signed::new(Head::V1(second), NetworkId([9; 32]), &client.me.node_key()).raw().clone();
    assert_eq!(client.exchange_signed(elsewhere, &[b], &[]).await, Err(BadHead), "of another ledger");
    let mut other = Stranger::greeted(&net, 61).await;
    assert_eq!(other.exchange(second, &[b], &[]).await, Err(NoDeal), "a stranger's");

    // What a head covers is not deleted but by another head.
    let deleted = client.ask(Request::Delete { roots: vec![a.root, b.root] }).await;
    assert!(matches!(deleted, Response::Deleted { shards: 1, .. }), "{deleted:?}");
    let b = client.store(deal, b"shard b").await;
    let full = client.exchange(second, &[b], &[]).await.unwrap();
    assert_eq!(client.exchange(first, &[a], &[]).await, Err(StaleHead));
    // Numbers may be skipped. The first shard goes, and its room comes back.
    let fourth = client.head(deal, &terms, 4, &[b]);
    client.exchange(fourth, &[], &[a]).await.unwrap();
    let held = async |client: &mut Stranger| client.ask(Request::Holds { roots: vec![a.root, b.root] }).await;
    while held(&mut client).await != Response::Holding(vec![false, true]) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // Whoever closes with an old head is superseded by the provider's newest.
    client.submit(Action::Close { deal, head: Some(full) }).await.unwrap();
    loop {
        let ledger = net.ledger().await;
        let known = ledger.state().deal(&deal).unwrap().head.unwrap();
        if known.head.seq == 4 {
            break;
        }
        assert_eq!(known.head.seq, 2);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(client.exchange(client.head(deal, &terms, 5, &[]), &[], &[b]).await, Err(NoDeal), "closing");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_stores_or_keeps_more_than_is_funded() {
    let (_net, mut client, deal, terms) = client_of(market(1, 3600, "900").await, "0.0002").await;
    // 900 credits per TB and month are 1.2 millionths an hour and MiB: 0.0002 last for 7 hours of about 23 MiB.
    let store = |shard_bytes| Request::Store { deal, shard_bytes };
    assert_eq!(client.refused(store(40 * MIB)).await, RefusalCode::Unfunded);
    let a = client.store(deal, &vec![1; 12 * MIB as usize]).await;
    assert_eq!(
        client.refused(store(12 * MIB)).await,
        RefusalCode::Unfunded,
        "what no head covers counts, too"
    );
    client.exchange(client.head(deal, &terms, 1, &[a]), &[a], &[]).await.unwrap();
    assert_eq!(client.refused(store(12 * MIB)).await, RefusalCode::Unfunded);
    client.submit(Action::TopUp { deal, amount: Amount(200_000_000) }).await.unwrap();
    client.store(deal, &vec![2; 12 * MIB as usize]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_voucher_is_refused_by_its_code_and_each_good_one_is_paid_once() {
    let (net, mut client, deal, terms) = client_of(market(1, 1, "900").await, "10").await;
    let a = client.store(deal, &vec![1; 4 * MIB as usize]).await;
    let head = client.head(deal, &terms, 1, &[a]);
    client.exchange(head, &[a], &[]).await.unwrap();
    let due = |periods: u64| terms.price.cost(4 * MIB, periods).0;
    while client.period() < head.from + 3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let through = |periods: u64| Some(head.from + periods - 1);
    let hand = async |client: &mut Stranger, voucher: &SignedBytes| {
        client.ask(Request::Vouchers { vouchers: vec![voucher.clone()] }).await
    };
    let code = |response: Response| match response {
        Response::Refused(refusal) => Some(refusal.code),
        _ => None,
    };
    use RefusalCode::{BadVoucher, NoDeal, StaleVoucher};
    let short = client.voucher(deal, through(2), 0, due(2) - 1);
    assert_eq!(code(hand(&mut client, &short).await), Some(BadVoucher), "less than is due");
    let one = client.voucher(deal, through(1), 0, due(1));
    let two = client.voucher(deal, through(2), 0, due(2));
    assert_eq!(hand(&mut client, &two).await, Response::Done);
    assert_eq!(hand(&mut client, &two).await, Response::Done, "the same again");
    assert_eq!(code(hand(&mut client, &one).await), Some(StaleVoucher));
    let v1 = VoucherV1 {
        deal,
        epoch: 0,
        paid_through: through(3),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: StorageDue::ZERO,
        total: Amount(due(3)),
    };
    let elsewhere = Signed::new(Voucher::V1(v1), NetworkId([9; 32]), &client.me.node_key()).raw().clone();
    assert_eq!(code(hand(&mut client, &elsewhere).await), Some(BadVoucher), "of another ledger");
    let void = client.sign(Voucher::V1(VoucherV1 { epoch: 1, ..v1 }));
    assert_eq!(code(hand(&mut client, &void).await), Some(BadVoucher), "of another epoch");
    let nowhere = client.sign(Voucher::V1(VoucherV1 { deal: DealId([1; 32]), ..v1 }));
    assert_eq!(code(hand(&mut client, &nowhere).await), Some(NoDeal));
    let too_many = Request::Vouchers { vouchers: vec![two.clone(); 32] };
    assert_eq!(client.refused(too_many).await, RefusalCode::TooLarge);

    // The provider has its newest voucher paid, once; the ledger takes none from a client, which could void better ones by it.
    let withdrawn = tokio::task::block_in_place(|| net.providers[0].ok(&["withdraw"]));
    assert_eq!(withdrawn["amount"], Amount(due(2)).to_string());
    let again = tokio::task::block_in_place(|| net.providers[0].ok(&["withdraw"]));
    assert_eq!(again["amount"], "0");
    let redeem = |voucher: &SignedBytes| Action::Redeem { voucher: voucher.clone() };
    let refused = [(&two, "not_a_party"), (&one, "not_a_party"), (&elsewhere, "bad_voucher")];
    for (voucher, code) in refused.into_iter().chain([(&void, "not_a_party"), (&nowhere, "no_such_deal")]) {
        assert_eq!(client.submit(redeem(voucher)).await, Err(code.to_owned()));
    }
    let early = client.voucher(deal, Some(client.period() + 60), 0, due(90));
    let mut other = Stranger::greeted(&net, 61).await;
    assert_eq!(other.submit(redeem(&early)).await, Err("unknown_signer".into()));
    other.become_client(&net, "1").await;
    let forged = other.voucher(deal, through(3), 0, due(3));
    assert_eq!(other.submit(redeem(&forged)).await, Err("not_a_party".into()));

    // A voucher that was signed beforehand is of no use before its time, and then it is.
    let ahead = client.period() + 2;
    let early = client.voucher(deal, Some(ahead), 0, due(ahead + 1 - head.from));
    assert_eq!(hand(&mut client, &early).await, Response::Done);
    let ledger = net.ledger().await;
    assert_eq!(ledger.state().deal(&deal).unwrap().paid, Amount(due(2)));
    let expected = Amount(due(ahead + 1 - head.from)).to_string();
    tokio::task::block_in_place(|| {
        wait_for("a voucher's time to come", || {
            net.providers[0].ok(&["withdraw"]);
            let deals = net.providers[0].ok(&["deals"]);
            (deals[0]["paid"] == expected.as_str()).then_some(())
        });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_beyond_a_step_want_payment() {
    let (_net, mut client, deal, terms) = client_of(market(1, 3600, "2").await, "10").await;
    let a = client.store(deal, &vec![1; 40 * MIB as usize]).await;
    client.exchange(client.head(deal, &terms, 1, &[a]), &[a], &[]).await.unwrap();
    let read = async |client: &mut Stranger| {
        let nonce = rand::random();
        let answer = client.ask(Request::Read { root: a.root, start: 0, end: a.bytes, nonce }).await;
        if let Response::Refused(refusal) = answer {
            return Err(refusal.code);
        }
        // Groups, hash pairs between them, and the signed answer.
        let groups = a.bytes / spare_proofs::tree::GROUP_BYTES as u64;
        let mut stream = vec![0; (a.bytes + (groups - 1) * 64) as usize];
        tokio::io::AsyncReadExt::read_exact(&mut client.wire.recv, &mut stream).await.unwrap();
        spare::frames::read_frame::<Response>(&mut client.wire.recv)
            .await
            .map(drop)
            .map_err(|_| RefusalCode::Busy)
    };
    let mut served = 0;
    while read(&mut client).await == Ok(()) {
        served += a.bytes;
        assert!(served < 1 << 30, "nobody asks for payment");
    }
    assert_eq!(read(&mut client).await, Err(RefusalCode::PaymentDue));
    let total = terms.read_price.cost(served).0;
    let through = client.period().checked_sub(1);
    let unpaid = client.voucher(deal, through, served - READ_SLACK_BYTES - 1, total);
    assert_eq!(client.refused(Request::Vouchers { vouchers: vec![unpaid] }).await, RefusalCode::BadVoucher);
    let paid = client.voucher(deal, through, served, total);
    assert_eq!(client.ask(Request::Vouchers { vouchers: vec![paid] }).await, Response::Done);
    assert_eq!(read(&mut client).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_and_grants_that_do_not_hold_open_nothing() {
    let net = market(1, 3600, "2").await;
    let mut client = Stranger::greeted(&net, 60).await;
    let (terms, v1) = client.terms().await;
    let escrow = Amount(1_000_000);
    let open = |terms: &SignedBytes| Action::Open { terms: terms.clone(), escrow };
    assert_eq!(client.submit(open(&terms)).await, Err("unknown_signer".into()));
    let mut forged = client.me.grant.clone();
    forged.bytes[40] ^= 1;
    assert_eq!(client.submit(Action::Register { grant: forged }).await, Err("bad_grant".into()));
    // Another account's grant to another node: the node itself has to begin.
    let other = Stranger::greeted(&net, 61).await;
    let grant = other.me.grant.clone();
    assert_eq!(client.submit(Action::Register { grant }).await, Err("unknown_signer".into()));
    client.become_client(&net, "0.5").await;
    let others_terms = other.sign(Terms::V1(v1.clone()));
    assert_eq!(client.submit(open(&others_terms)).await, Err("bad_terms".into()), "signed by somebody else");
    // The client is a provider, too, and offers itself terms that ended long ago.
    let own = TermsV1 { node: client.me.node_key().public(), provider: client.me.account, ..v1.clone() };
    let expired = client.sign(Terms::V1(TermsV1 { expires_s: 1000, ..own.clone() }));
    assert_eq!(client.submit(open(&expired)).await, Err("terms_expired".into()));
    let endless = client.sign(Terms::V1(TermsV1 { expires_s: u64::MAX, ..own }));
    assert_eq!(client.submit(open(&endless)).await, Err("terms_expired".into()));
    let dear = Action::Open { terms: terms.clone(), escrow: "0.6".parse().unwrap() };
    assert_eq!(client.submit(dear).await, Err("funds".into()));
    client.submit(open(&terms)).await.unwrap();
    assert_eq!(client.submit(open(&terms)).await, Err("deal_exists".into()));
    // A grant without scopes ends what the node may do, and a replayed older one does not bring it back.
    let old = client.me.grant.clone();
    let Grant::V1 { delegate, serial, .. } = spare_proofs::encode::from_bytes(&old.bytes, 256).unwrap();
    assert_eq!(client.submit(Action::Register { grant: old.clone() }).await, Err("old_grant".into()));
    let account = spare_market::keys::Seed::from_entropy([3; 32]).account_key();
    let scopes = vec![Scope::Spend];
    let foreign =
        Grant::V1 { delegate, scopes, spend_cap: Amount(1), serial: serial + 1, expires_s: u64::MAX };
    let foreign = Signed::new(foreign, client.me.network, &account).raw().clone();
    assert_eq!(client.submit(Action::Register { grant: foreign }).await, Err("other_account".into()));
}

fn deal_of(node: &Node, deal: &Value) -> Value {
    let deals = node.ok(&["deals"]);
    deals.as_array().unwrap().iter().find(|d| d["deal"] == *deal).cloned().unwrap_or_default()
}

fn credits(value: &Value) -> f64 {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn storage_is_paid_as_long_as_it_lasts_and_deleting_gives_the_money_back() {
    let mut net = Net::start_market(3, 1, "900");
    let file = net.file("source", 20 * MIB, 1);
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
    let deals = net.client.ok(&["deals"]);
    assert_eq!(deals.as_array().unwrap().len(), 3);
    for deal in deals.as_array().unwrap() {
        assert_eq!(
            (&deal["side"], &deal["state"], &deal["head"]),
            (&"client".into(), &"open".into(), &1.into())
        );
        assert!(credits(&deal["escrow"]) > 0.0);
    }
    wait_for("audits and vouchers", || {
        let deals = net.client.ok(&["deals"]);
        let done = |d: &Value| d["audits"].as_u64() > Some(1) && credits(&d["promised"]) > 0.0;
        deals.as_array().unwrap().iter().all(done).then_some(())
    });
    for provider in &net.providers {
        let withdrawn = provider.ok(&["withdraw"]);
        assert!(credits(&withdrawn["amount"]) > 0.0);
        assert!(credits(&withdrawn["balance"]["earned"]) > 0.0);
        let status = provider.status();
        assert_eq!(status["provider"]["earnings"]["deals"], 1);
    }
    let spending = net.client.status()["spending"].clone();
    assert_eq!(spending["deals"], 3);
    assert!(credits(&spending["month"]) > 0.0);

    // A provider that is away fails its audits, and is promised nothing meanwhile.
    let away = net.providers[2].status()["node"].clone();
    net.providers[2].kill();
    let of_away = || {
        let deals = net.client.ok(&["deals"]);
        deals.as_array().unwrap().iter().find(|d| d["with"] == away).cloned().unwrap()
    };
    wait_for("failed audits to be seen", || of_away()["failing"].is_string().then_some(()));
    let promised = of_away()["promised"].clone();
    let periods = |n: u64| std::thread::sleep(std::time::Duration::from_secs(n));
    periods(3);
    assert_eq!(of_away()["promised"], promised);
    assert!(net.client.status()["spending"]["alerts"][0].as_str().unwrap().contains("fails its audits"));
    net.providers[2].start();
    wait_for("the provider to be paid again", || (of_away()["promised"] != promised).then_some(()));

    // What is removed is free from the next period on, and a deal that covers nothing gives its escrow back.
    let deal = net.client.ok(&["deals"])[0]["deal"].clone();
    let (code, _) = net.client.fails(&["deals", "close", deal.as_str().unwrap()]);
    assert_eq!(code, "deal_in_use");
    net.client.ok(&["rm", "a"]);
    wait_for("heads that cover nothing", || {
        let deals = net.client.ok(&["deals"]);
        deals.as_array().unwrap().iter().all(|d| d["bytes"] == 0 && d["month"] == "0").then_some(())
    });
    wait_for("shards to be deleted", || (0..3).all(|i| net.shard_files(i).is_empty()).then_some(()));
    // The removing period is still paid; after that nothing accrues.
    wait_for("the last promise", || {
        let before = deal_of(&net.client, &deal)["promised"].clone();
        periods(3);
        (deal_of(&net.client, &deal)["promised"] == before).then_some(())
    });
    net.client.ok(&["deals", "close", &deal.as_str().unwrap()[..10]]);
    assert_eq!(deal_of(&net.client, &deal)["state"], "closing");
    assert_eq!(net.client.fails(&["deals", "close", "0123456789"]).0, "no_such_deal");
    let verified = net.client.ok(&["market", "verify"]);
    assert_eq!(verified["holds"], true);
}

#[test]
fn nothing_is_spent_that_was_not_agreed_to_or_is_not_there() {
    let net = Net::start_market(3, 3600, "900");
    let file = net.file("source", 20 * MIB, 1);
    let path = file.to_str().unwrap();
    let mut command = net.client.command(&["put", path, "--code", "2+1"]);
    let output = command.env_remove("SPARE_YES").output().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&error["error"]["code"], output.status.code()), (&"not_confirmed".into(), Some(2)));
    let (code, message) = net.client.fails(&["put", path, "--code", "2+1", "--max-price", "899"]);
    assert_eq!(code, "too_few_providers");
    assert!(message.contains("3 above the highest price"), "{message}");
    assert_eq!(net.client.run(&["put", path, "--max-price", "cheap"]).status.code(), Some(2));
    assert!(net.client.ok(&["deals"]).as_array().unwrap().is_empty());

    // 10 MiB at each for 9 hours and a read come to 0.00013 each.
    let poor = Node::init(net.dir.path().join("poor"), 210, &["--join", &net.ticket]);
    let mut poor = poor;
    poor.start();
    wait_for("the poor client to know all", || {
        (poor.ok(&["asks"]).as_array().map_or(0, Vec::len) == 3).then_some(())
    });
    let (code, message) = poor.fails(&["put", path, "--code", "2+1"]);
    assert_eq!(code, "funds");
    assert!(message.contains("the account has 0 free"), "{message}");
    let account = poor.status()["account"].as_str().unwrap().to_owned();
    net.providers[0].ok(&["market", "fund", &account, "0.001"]);
    wait_for("the money to arrive", || (poor.ok(&["balance"])["free"] == "0.001").then_some(()));
    // Not enough for a month, but for a start.
    poor.ok(&["put", path, "--code", "2+1"]);
    let alerts = poor.status()["spending"]["alerts"].clone();
    assert!(alerts[0].as_str().unwrap().contains("more periods"), "{alerts}");
    let (code, _) = poor.fails(&["put", net.file("more", 60 * MIB, 2).to_str().unwrap(), "--code", "2+1"]);
    assert_eq!(code, "funds");
    let copy = net.dir.path().join("copy");
    poor.ok(&["get", "source", "-o", copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == std::fs::read(&file).unwrap(), "what is stored stays readable");
}

#[test]
fn a_change_of_price_leaves_deals_as_they_are_and_a_deal_that_runs_dry_is_closed() {
    let mut net = Net::start_market(2, 1, "900");
    let file = net.file("source", 4 * MIB, 1);
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "1+1"]);
    let config = net.providers[1].home.join("config.toml");
    let dearer = std::fs::read_to_string(&config)
        .unwrap()
        .replace("price = \"900\"", "price = \"950\"\nread_price = \"0\"");
    assert!(dearer.contains("950"));
    net.providers[1].kill();
    std::fs::write(&config, dearer).unwrap();
    net.providers[1].start();
    let own = |net: &Net| net.providers[1].ok(&["deals"])[0].clone();
    assert_eq!(own(&net)["price"], "900");
    assert_eq!(net.providers[1].status()["provider"]["price"], "950");
    let before = own(&net)["promised"].clone();
    wait_for("payment to go on", || (own(&net)["promised"] != before).then_some(()));

    // A client whose money is nearly gone, and who does not come back.
    let mut poor = Node::init(net.dir.path().join("poor"), 210, &["--join", &net.ticket]);
    poor.start();
    wait_for("the poor client to know all", || {
        (poor.ok(&["asks"]).as_array().map_or(0, Vec::len) == 2).then_some(())
    });
    let account = poor.status()["account"].as_str().unwrap().to_owned();
    // 4 MiB cost 1.4 billionths a second. For reading them, and some more, 21 millionths are put aside at the first provider; the second one asks none.
    net.providers[0].ok(&["market", "fund", &account, "0.000021"]);
    wait_for("the money to arrive", || (poor.ok(&["balance"])["free"] == "0.000021").then_some(()));
    poor.ok(&["put", file.to_str().unwrap(), "--name", "b", "--code", "1+1"]);
    let shards = net.shard_files(1).len();
    assert_eq!(shards, 2);
    drop(poor);
    let of_poor = |node: &Node| {
        let deals = node.ok(&["deals"]);
        deals.as_array().unwrap().iter().find(|d| d["with"] == account.as_str()).cloned()
    };
    let alerts = |node: &Node| node.status()["provider"]["earnings"]["alerts"].to_string();
    wait_for("the provider to be warned", || alerts(&net.providers[1]).contains("has run dry").then_some(()));
    assert_eq!(of_poor(&net.providers[1]).unwrap()["state"], "grace");
    wait_for("the dry deal to be closed", || {
        (of_poor(&net.providers[1])?["state"] == "closing").then_some(())
    });
    assert_eq!(of_poor(&net.providers[0]).unwrap()["state"], "open", "the other one lasts");
    assert_eq!(net.shard_files(1).len(), 2, "what is closing is still kept");
}

#[test]
fn a_recovered_client_takes_its_deals_over_and_pays_on() {
    let mut net = Net::start_market(3, 1, "900");
    let file = net.file("source", 4 * MIB, 1);
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
    wait_for("a first promise", || {
        let deals = net.client.ok(&["deals"]);
        deals.as_array().unwrap().iter().all(|d| d["promised"] != "0").then_some(())
    });
    let before = net.client.ok(&["deals"]);
    net.client.kill();
    let seed = net.client.home.join("seed.txt");
    let args = ["--join", &net.ticket, "--seed-file", seed.to_str().unwrap()];
    let mut again = Node::init(net.dir.path().join("again"), 201, &args);
    again.start();
    wait_for("providers to be known", || {
        (again.ok(&["asks"]).as_array().map_or(0, Vec::len) == 3).then_some(())
    });
    again.ok(&["recover"]);
    wait_for("deals to be taken over", || {
        (again.ok(&["deals"]).as_array().unwrap().len() == 3).then_some(())
    });
    for deal in before.as_array().unwrap() {
        let taken = deal_of(&again, &deal["deal"]);
        // It may have signed a newer one already.
        match taken["head"].as_u64().cmp(&deal["head"].as_u64()) {
            Ordering::Less => panic!("an older head was taken over: {taken}"),
            Ordering::Equal => assert_eq!(taken["head_hash"], deal["head_hash"]),
            Ordering::Greater => {}
        }
        assert_eq!(taken["bytes"], deal["bytes"]);
    }
    wait_for("the recovered client to pay on", || {
        let paid = |d: &Value| credits(&deal_of(&again, &d["deal"])["promised"]) > credits(&d["promised"]);
        before.as_array().unwrap().iter().all(paid).then_some(())
    });
    // It goes on where the other left: puts, replaces and removes.
    again.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "2+1", "--replace"]);
    for deal in before.as_array().unwrap() {
        let head = deal_of(&again, &deal["deal"])["head"].as_u64().unwrap();
        assert!(head > deal["head"].as_u64().unwrap());
    }
    // The first node comes back, and finds that another has gone on with the deals.
    net.client.start();
    net.wait_for_providers(3);
    net.client.ok(&["recover"]);
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "c", "--code", "2+1"]);
    assert!(net.read("c") == std::fs::read(&file).unwrap());
}

//! Providers that lose, refuse, dilute or are away, over real processes: each is caught by whoever looks, and pays what it should and no more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use spare::evidence::Evidence;
use spare_market::amount::{Amount, PICO_PER_CREDIT};
use spare_market::block::Ledger;
use spare_market::claim::{CHALLENGE_BOND, break_even_fault_rate, draw_share};
use spare_market::deal::{Deal, DealId};
use spare_tests::hostile::{HostileProvider, Misdeed};
use spare_tests::net::{Net, Node, wait_for};
use spare_tests::relay::Meddling;
use spare_tests::stranger::Stranger;

/// How long chance may take to draw what is missing. Twenty draws miss a twentieth once in three times, and a challenger that was wrong leaves the deal
/// alone for 24 periods, so a test that allows for five misses in a row would fail once in 200 runs.
const LUCK: Duration = Duration::from_secs(600);

/// Waits for what chance brings about.
fn wait_for_luck<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < LUCK, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn amount(value: &Value) -> u128 {
    value.as_str().unwrap().parse::<Amount>().unwrap().0
}

fn key_of(node: &Node) -> String {
    node.status()["node"].as_str().unwrap().to_owned()
}

/// What `node` says of its deal with the provider `with`.
fn deal_with(node: &Node, with: &str) -> Value {
    let deals = node.ok(&["deals"]);
    deals.as_array().unwrap().iter().find(|deal| deal["with"] == with).unwrap().clone()
}

fn ledger(net: &Net) -> Ledger {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(net.ledger())
}

fn deal_of(ledger: &Ledger, provider: &str) -> (DealId, Deal) {
    let mut deals = ledger.state().deals().filter(|(_, deal)| deal.terms.node.to_string() == provider);
    deals.next().map(|(id, deal)| (id, deal.clone())).unwrap()
}

fn account_of(ledger: &Ledger, node: &Node) -> u128 {
    let account = node.status()["account"].as_str().unwrap().parse().unwrap();
    ledger.state().account(&account).free.0
}

/// Stores `count` blobs of 100 kB, so that two providers have as many shards each.
fn put_blobs(net: &Net, count: u8) {
    for i in 0..count {
        let file = net.file("source", 100_000, i);
        net.client.ok(&["put", file.to_str().unwrap(), "--name", &format!("blob-{i}"), "--code", "1+1"]);
    }
}

/// Deletes a twentieth of the shard files of a provider.
fn lose_a_twentieth(net: &Net, provider: usize) -> Vec<PathBuf> {
    let mut files = net.shard_files(provider);
    files.sort();
    files.truncate(files.len().div_ceil(20));
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    files
}

fn bad_and_good(net: &Net) -> (String, String) {
    (key_of(&net.providers[1]), key_of(&net.providers[0]))
}

#[test]
fn a_client_catches_a_provider_that_lost_a_twentieth_and_does_not_pay_it() {
    let founding = ["--period-s", "2"];
    let providing =
        ["--set", "provide.price=1000", "--set", "provide.read_price=0", "--set", "provide.claim_after=0"];
    let net = Net::found(2, &founding, &providing, &["--set", "client.strike_after_s=5"]);
    put_blobs(&net, 40);
    let (bad, good) = bad_and_good(&net);
    wait_for("both to be paid", || {
        [&bad, &good].iter().all(|p| amount(&deal_with(&net.client, p)["promised"]) > 0).then_some(())
    });
    lose_a_twentieth(&net, 1);
    let started = Instant::now();
    let failing = wait_for_luck("an audit to draw what is missing", || {
        let audits = net.client.ok(&["audit"]);
        audits.as_array().unwrap().iter().find(|audit| audit["node"] == bad.as_str()).cloned()
    });
    println!(
        "caught by its client after {:.0} s of periods of 2 s: {}",
        started.elapsed().as_secs_f64(),
        failing["failing"]
    );
    // The provider is told, and what will follow, before anything does.
    let alert = wait_for("the provider to be told", || {
        let status = net.providers[1].status();
        let alerts = status["provider"]["earnings"]["alerts"].as_array().unwrap().clone();
        alerts.into_iter().find(|alert| alert.as_str().unwrap().contains("could not read shard"))
    });
    println!("the provider's status: {alert}");
    let (promised, bytes) = {
        let deal = deal_with(&net.client, &bad);
        (amount(&deal["promised"]), deal["bytes"].as_u64().unwrap())
    };
    let struck = wait_for("a strike", || {
        let audits = net.client.ok(&["audit"]);
        let audit = audits.as_array().unwrap().iter().find(|audit| audit["node"] == bad.as_str())?.clone();
        (!audit["strikes"].as_array().unwrap().is_empty()).then_some(audit)
    });
    assert!(struck["record_percent"].as_u64().unwrap() <= 25, "it weighs less: {struck}");
    // Nothing was promised meanwhile. What is lost comes off the deal, and what is left is paid again.
    wait_for("the lost shard to come off the deal", || {
        let deal = deal_with(&net.client, &bad);
        (deal["bytes"].as_u64().unwrap() < bytes).then_some(())
    });
    let alerts = net.client.status()["spending"]["alerts"].to_string();
    assert!(alerts.contains("it has lost 1 of your shards"), "{alerts}");
    wait_for("what is left to be paid", || {
        (amount(&deal_with(&net.client, &bad)["promised"]) > promised).then_some(())
    });
    let lead = amount(&deal_with(&net.client, &good)["promised"]) as f64
        - amount(&deal_with(&net.client, &bad)["promised"]) as f64;
    let rate = amount(&deal_with(&net.client, &good)["month"]) as f64 * 2.0 / (730.0 * 3600.0);
    println!("it is behind the other one by {:.1} periods' pay", lead / rate);
    assert!(lead > 0.9 * rate, "{lead} {rate}");
    assert_eq!(net.client.ok(&["audit"]).as_array().unwrap().len(), 1, "nothing is held against the other");
}

#[test]
fn the_ledger_catches_a_provider_that_lost_a_twentieth_after_its_client_is_gone_and_pays_the_honest_one_on() {
    let founding = ["--period-s", "2"];
    let providing = ["--set", "provide.price=1000", "--set", "provide.collateral=0.01"];
    let mut net = Net::found(2, &founding, &providing, &[]);
    for provider in &net.providers {
        net.fund_node(provider, "10");
    }
    put_blobs(&net, 40);
    let (bad, good) = bad_and_good(&net);
    wait_for("both to be paid", || {
        [&bad, &good].iter().all(|p| amount(&deal_with(&net.client, p)["promised"]) > 0).then_some(())
    });
    net.client.kill();
    let claimed = |who: &str| {
        let ledger = ledger(&net);
        let (_, deal) = deal_of(&ledger, who);
        (deal.claiming.is_some(), deal.paid.0, deal.collateral.0)
    };
    wait_for("claims to begin", || [&bad, &good].iter().all(|p| claimed(p).0).then_some(()));
    let before = [claimed(&bad).1, claimed(&good).1];
    wait_for("claims to be paid", || {
        (claimed(&bad).1 > before[0] && claimed(&good).1 > before[1]).then_some(())
    });
    let pledged = claimed(&bad).2;
    assert!(pledged > 0);
    lose_a_twentieth(&net, 1);
    let started = Instant::now();
    wait_for_luck("the ledger to burn", || (claimed(&bad).2 < pledged).then_some(()));
    println!(
        "burned after {:.0} s of periods of 2 s: {} of {pledged} pico-credits of collateral",
        started.elapsed().as_secs_f64(),
        pledged - claimed(&bad).2
    );
    let paid = claimed(&good).1;
    wait_for("the honest one to be paid on", || (claimed(&good).1 > paid).then_some(()));
    assert_eq!(claimed(&good).2, claimed(&good).2.max(pledged), "and nothing of its collateral is gone");
    assert_eq!(ledger(&net).state().totals().burned.0, pledged - claimed(&bad).2);
}

#[test]
fn a_challenger_catches_a_provider_that_lost_a_twentieth_and_both_it_and_the_client_are_paid() {
    let founding = ["--period-s", "2"];
    let providing =
        ["--set", "provide.price=1000", "--set", "provide.collateral=1", "--set", "provide.claim_after=0"];
    let net = Net::found(2, &founding, &providing, &[]);
    for provider in &net.providers {
        net.fund_node(provider, "10");
    }
    put_blobs(&net, 40);
    let (bad, good) = bad_and_good(&net);
    let asking = ["--join", &net.ticket, "--set", "challenge.deals_per_period=8"];
    let mut challenger = Node::init(net.dir.path().join("challenger"), 210, &asking);
    challenger.start();
    net.fund_node(&challenger, "1");
    let asked = |field: &str| challenger.status()["challenger"][field].as_u64().unwrap();
    wait_for("honest deals to be asked about", || (asked("shown") >= 4).then_some(()));
    assert_eq!((asked("challenged"), asked("suspects")), (0, 0));
    let before = deal_of(&ledger(&net), &bad).1.collateral;
    // All that the client has, in deals and free, and what it has spent: only what it gets from others makes that more.
    let wealth = |ledger: &Ledger| {
        let account = net.client.status()["account"].as_str().unwrap().parse().unwrap();
        let money = ledger.state().account(&account);
        let escrow: u128 = ledger.state().deals_of(&account).map(|(_, deal)| deal.escrow.0).sum();
        money.free.0 + money.spent.0 + escrow
    };
    let before_all = wealth(&ledger(&net));
    lose_a_twentieth(&net, 1);
    let started = Instant::now();
    wait_for_luck("a challenge that is not answered", || (asked("won") > 0).then_some(()));
    // What it says that it won and lost is what its account has.
    wait_for("its books to agree with its account", || {
        let status = challenger.status()["challenger"].clone();
        let at_stake = CHALLENGE_BOND.0 * u128::from(status["open"].as_u64().unwrap());
        let lost = amount(&status["lost"]) + at_stake;
        let has = account_of(&ledger(&net), &challenger);
        (has + lost == PICO_PER_CREDIT + amount(&status["earned"])).then_some(())
    });
    let status = challenger.status()["challenger"].clone();
    let ledger = ledger(&net);
    let penalty = Amount(before.0 - deal_of(&ledger, &bad).1.collateral.0);
    println!("won after {:.0} s of periods of 2 s: {status}", started.elapsed().as_secs_f64());
    println!(
        "a challenge breaks even where {:.3}% of a deal is missing, for a bond of {CHALLENGE_BOND} and a penalty of {penalty} credits",
        100.0 * break_even_fault_rate(penalty)
    );
    assert!(amount(&status["earned"]) >= penalty.0 / 2 && penalty > CHALLENGE_BOND);
    assert_eq!(deal_of(&ledger, &good).1.collateral, before, "the honest one loses nothing");
    let alerts = net.providers[1].status()["provider"]["earnings"]["alerts"].to_string();
    assert!(alerts.contains("of its collateral are lost"), "{alerts}");
    assert_eq!(wealth(&ledger) - before_all, penalty.0 - penalty.0 / 2, "the client has the other half");
}

#[test]
fn a_false_alarm_costs_the_challenger_its_bond() {
    let founding = ["--period-s", "2"];
    let providing = ["--set", "provide.price=1000", "--set", "provide.collateral=1"];
    let net = Net::found(2, &founding, &providing, &[]);
    for provider in &net.providers {
        net.fund_node(provider, "10");
    }
    put_blobs(&net, 2);
    let (_, good) = bad_and_good(&net);
    let mut challenger = Node::init(net.dir.path().join("challenger"), 210, &["--join", &net.ticket]);
    challenger.start();
    net.fund_node(&challenger, "1");
    let (deal, _) = wait_for("the head to be on the ledger", || {
        Some(deal_of(&ledger(&net), &good)).filter(|(_, deal)| deal.head.is_some())
    });
    let name = deal.to_string();
    assert_eq!(challenger.fails(&["audit", "challenge", "12345678"]).0, "no_such_deal");
    let (_, message) = net.providers[0].fails(&["audit", "challenge", &name]);
    assert!(message.contains("own_deal"), "{message}");
    let said = challenger.ok(&["audit", "challenge", &name[..12]]);
    assert_eq!(said["bond"], "0.001");
    let status = wait_for("an answer", || {
        let status = challenger.status()["challenger"].clone();
        (status["answered"] == 1).then_some(status)
    });
    assert_eq!((status["lost"].as_str(), status["earned"].as_str()), (Some("0.001"), Some("0")));
    let ledger = ledger(&net);
    assert_eq!(account_of(&ledger, &challenger), 999_000_000_000);
    let (_, deal) = deal_of(&ledger, &good);
    assert_eq!((deal.collateral, deal.challenges), (deal.terms.collateral, 0));
}

/// A blob of which a hostile provider holds a shard, and what the client says of that provider in the end.
async fn audited(meddling: Meddling, then: impl FnOnce(&Net, &HostileProvider, &Value) + Send + 'static) {
    let founding = ["--period-s", "2"];
    let start = move || {
        Net::found(2, &founding, &["--set", "provide.price=1000"], &["--set", "client.strike_after_s=5"])
    };
    let mut net = tokio::task::spawn_blocking(start).await.unwrap();
    let bad = HostileProvider::start(&net.ticket, 50, Misdeed::Meddle(meddling)).await;
    tokio::task::spawn_blocking(move || {
        net.wait_for_providers(3);
        let file = net.file("source", 3 << 20, 1);
        net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
        // Without one of the honest ones there is no way round it.
        net.providers[1].kill();
        wait_for("the hostile one to be asked", || {
            let copy = net.dir.path().join("copy");
            net.client.run(&["get", "a", "-o", copy.to_str().unwrap(), "--force"]);
            (bad.misdeeds.load(Ordering::Relaxed) > 0).then_some(())
        });
        net.providers[1].start();
        let found = wait_for("a strike", || {
            let audits = net.client.ok(&["audit"]);
            let audit = audits.as_array().unwrap().iter().find(|a| a["node"] == bad.node.as_str())?.clone();
            (!audit["strikes"].as_array().unwrap().is_empty()).then_some(audit)
        });
        assert!(net.read("a") == std::fs::read(&file).unwrap(), "the others have it");
        assert!(bad.misdeeds.load(Ordering::Relaxed) > 0);
        then(&net, &bad, &found);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_audits_and_refuses_other_reads_fails_like_who_fails_audits() {
    audited(Meddling::RefuseLong, |net, bad, found| {
        println!("held against it: {}", found["strikes"]);
        let promised = amount(&deal_with(&net.client, &bad.node)["promised"]);
        std::thread::sleep(Duration::from_secs(5));
        let later = amount(&deal_with(&net.client, &bad.node)["promised"]);
        assert_eq!(promised, later, "nothing is promised meanwhile");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_wrong_bytes_are_evidence_that_anybody_checks() {
    audited(Meddling::SignWrongBytes, |net, bad, found| {
        let name = found["evidence"][0].as_str().unwrap();
        let file = net.dir.path().join("evidence");
        net.client.ok(&["audit", "export", name, file.to_str().unwrap()]);
        assert_eq!(net.client.fails(&["audit", "export", "none", "/nowhere"]).0, "no_such_evidence");
        // Somebody else, without a node, and the market.
        let verify = |by: &Node, file: &str| by.ok(&["audit", "verify", file]);
        let nobody = Node::bare(net.dir.path().join("nobody"));
        for by in [&nobody, &net.providers[0]] {
            let said = verify(by, file.to_str().unwrap());
            assert_eq!(
                (said["holds"].as_bool(), said["node"].as_str()),
                (Some(true), Some(bad.node.as_str()))
            );
            println!("{said}");
        }
        // Nobody makes it up: changed anywhere, it shows nothing.
        let good = std::fs::read(&file).unwrap();
        let evidence = Evidence::from_bytes(&good).unwrap();
        let Evidence::WrongBytes { network, .. } = &evidence;
        for at in (0..good.len()).step_by(97) {
            let mut forged = good.clone();
            forged[at] ^= 4;
            let checked = Evidence::from_bytes(&forged).and_then(|evidence| evidence.check(*network));
            assert!(checked.is_err(), "byte {at} means nothing");
        }
        std::fs::write(&file, &good[..good.len() - 1]).unwrap();
        let (_, message) = nobody.fails(&["audit", "verify", file.to_str().unwrap()]);
        assert!(message.contains("shows nothing"), "{message}");
    })
    .await;
}

#[test]
fn a_provider_that_is_away_for_a_period_loses_that_periods_pay_and_nothing_else() {
    let founding = ["--period-s", "4"];
    let providing =
        ["--set", "provide.price=1000", "--set", "provide.read_price=0", "--set", "provide.claim_after=0"];
    let mut net = Net::found(2, &founding, &providing, &[]);
    put_blobs(&net, 2);
    let (away, here) = bad_and_good(&net);
    let promised = |net: &Net, who: &str| amount(&deal_with(&net.client, who)["promised"]);
    let rate = |net: &Net| {
        let month = amount(&deal_with(&net.client, &here)["month"]) as f64;
        month * 4.0 / (730.0 * 3600.0)
    };
    wait_for("both to be paid", || (promised(&net, &away) > 0 && promised(&net, &here) > 0).then_some(()));
    let rate = rate(&net);
    let lead = |net: &Net| (promised(net, &here) as f64 - promised(net, &away) as f64) / rate;
    let before = lead(&net);
    let killed = Instant::now();
    net.providers[1].kill();
    // A whole period, and what is left of the one before.
    std::thread::sleep(Duration::from_secs(9));
    net.providers[1].start();
    let back = promised(&net, &away);
    wait_for("it to be paid again", || (promised(&net, &away) > back).then_some(()));
    // Periods that were begun while it was away or not yet found again.
    let touched = killed.elapsed().as_secs_f64() / 4.0 + 1.0;
    let paid = promised(&net, &away);
    wait_for("it to be paid on", || (promised(&net, &away) > paid).then_some(()));
    // Both are paid for the same periods again when the other one's newest voucher is as new.
    let lost = wait_for("both to be level", || {
        let lost = lead(&net) - before;
        (lost > 0.9 && (lost - lost.round()).abs() < 0.1 && lost <= touched).then_some(lost)
    });
    println!(
        "a provider that was away for 9 s of periods of 4 s, {touched:.1} periods touched, lost {lost:.2} periods' pay"
    );
    assert!(lost > 0.9 && lost <= touched, "{lost}");
    let audits = net.client.ok(&["audit"]);
    let strikes: usize =
        audits.as_array().unwrap().iter().map(|a| a["strikes"].as_array().unwrap().len()).sum();
    assert_eq!(strikes, 0, "no strike: {audits}");
    assert_eq!(net.read("blob-1").len(), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_dilutes_its_set_with_data_of_its_own_making_loses_money() {
    let start = || {
        let founding = ["--period-s", "2"];
        let net = Net::found(1, &founding, &["--set", "provide.price=1000"], &[]);
        net.fund_node(&net.providers[0], "100");
        net
    };
    let net = tokio::task::spawn_blocking(start).await.unwrap();
    // A victim's data, and nine times as much of the provider's own making. Neither client signs a voucher ever.
    let mut deals = Vec::new();
    for (subnet, megabytes) in [(60, 1usize), (61, 9)] {
        let mut client = Stranger::greeted(&net, subnet).await;
        client.become_client(&net, "100").await;
        let (terms, v1) = client.terms().await;
        let deal = spare_market::deal::Terms::V1(v1.clone()).deal_id();
        client.submit(spare_market::tx::Action::Open { terms, escrow: "50".parse().unwrap() }).await.unwrap();
        let shard: Vec<u8> =
            (0..megabytes << 20).map(|i| (i as u32).wrapping_mul(2_654_435_761) as u8 ^ subnet).collect();
        let member = client.store(deal, &shard).await;
        let head = client.head(deal, &v1, 1, &[member]);
        client.exchange(head, &[member], &[]).await.unwrap();
        deals.push((deal, member));
    }
    tokio::task::spawn_blocking(move || {
        // What the provider and the client of its own making have together, but for what that client keeps free.
        let look = || {
            let ledger = ledger(&net);
            let of = |i: usize| ledger.state().deal(&deals[i].0).unwrap().clone();
            let (victims, own) = (of(0), of(1));
            let together = account_of(&ledger, &net.providers[0]) + victims.collateral.0 + own.collateral.0 + own.escrow.0;
            let share = |deal: &Deal| draw_share(deal.head.unwrap().head.rate(2).floor()).0;
            (together, ledger.state().totals().burned.0, share(&victims) + share(&own), victims.paid.0)
        };
        let paid = || deals.iter().all(|(deal, _)| ledger(&net).state().deal(deal).unwrap().paid.0 > 0);
        wait_for("both deals to be claimed for", || paid().then_some(()));
        let honest = look();
        wait_for("honest claims to pay", || (look().0 > honest.0 && look().1 == 0).then_some(()));
        let root = deals[0].1.root.to_string();
        let files = net.shard_files(0);
        let victims = files.iter().find(|file| file.file_name().unwrap().to_str().unwrap().starts_with(&root));
        std::fs::remove_file(victims.unwrap()).unwrap();
        // A tenth of what is claimed for is gone: 88% of claims cannot be shown.
        let first = wait_for("the first burn", || Some(look()).filter(|look| look.1 > 0));
        let later = wait_for_luck("eight more", || Some(look()).filter(|look| look.1 >= first.1 + 8 * first.2));
        println!(
            "diluted nine to one: {} pico-credits of pay for the victim's data since the first burn, {} burned; {} lost together",
            later.3 - first.3,
            later.1 - first.1,
            first.0 as i128 - later.0 as i128
        );
        assert!(later.0 < first.0, "{first:?} {later:?}");
    })
    .await
    .unwrap();
}

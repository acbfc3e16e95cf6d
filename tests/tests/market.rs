//! The market over real processes: credits are issued at one node, and every other node replays the ledger and agrees.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use serde_json::Value;
use spare_tests::net::{Net, Node, wait_for};

fn account(node: &Node) -> String {
    node.status()["account"].as_str().unwrap().to_owned()
}

/// Waits until `node` follows up to the market's newest block, and returns its report.
fn caught_up(net: &Net, node: &Node) -> Value {
    let newest = net.providers[0].ok(&["market", "report"])["height"].as_u64().unwrap();
    wait_for("a node to follow the market", || {
        let report = node.ok(&["market", "report"]);
        (report["height"].as_u64().unwrap() >= newest).then_some(report)
    })
}

#[test]
fn credits_issued_at_the_market_are_seen_by_all_and_anyone_verifies() {
    let net = Net::start(3);
    let (market, client) = (&net.providers[0], &net.client);
    let me = account(client);
    let funded = market.ok(&["market", "fund", &me, "12.5"]);
    // The network starts with 1000 for the client.
    assert_eq!((&funded["free"], &funded["locked"]), (&"1012.5".into(), &"0".into()));
    market.ok(&["market", "fund", &me, "0.000000000001"]);
    caught_up(&net, client);
    assert_eq!(client.ok(&["balance"])["free"], "1012.500000000001");
    assert_eq!(market.ok(&["balance"])["free"], "0");

    assert_eq!(client.fails(&["market", "fund", &me, "5"]).0, "not_the_market");
    assert_eq!(market.run(&["market", "fund", "me", "5"]).status.code(), Some(2), "no account");
    assert_eq!(market.run(&["market", "fund", &me, "1e3"]).status.code(), Some(2), "no amount");
    let too_much = "1267650600228229401";
    assert_eq!(market.fails(&["market", "fund", &me, too_much]).0, "supply");

    // All nodes register by themselves; then all have one root, and a process of its own comes to the same.
    wait_for("all nodes to be registered", || (market.ok(&["market", "report"])["nodes"] == 4).then_some(()));
    let root = caught_up(&net, client)["state_root"].clone();
    for node in net.providers.iter().chain([client]) {
        assert_eq!(caught_up(&net, node)["state_root"], root);
        let verified = node.ok(&["market", "verify"]);
        assert_eq!((&verified["state_root"], &verified["holds"]), (&root, &true.into()));
    }
    let report = client.ok(&["market", "report"]);
    assert_eq!((&report["issued"], &report["fees"]), (&"1012.500000000001".into(), &"0".into()));

    // A late joiner replays everything.
    let mut late = Node::init(net.dir.path().join("late"), 99, &["--join", &net.ticket]);
    late.start();
    wait_for("the late joiner to be registered", || {
        (market.ok(&["market", "report"])["nodes"] == 5).then_some(())
    });
    assert_eq!(caught_up(&net, &late)["issued"], "1012.500000000001");

    // One that begins with a snapshot comes to the same, goes on from there, and replays what was before by other peers' blocks.
    let brief = ["--join", &net.ticket, "--set", "network.snapshot_after=3"];
    let mut brief = Node::init(net.dir.path().join("brief"), 98, &brief);
    brief.start();
    wait_for("the node to be registered", || (market.ok(&["market", "report"])["nodes"] == 6).then_some(()));
    // It may be registered before it knows the ledger.
    let report = caught_up(&net, &brief);
    assert!(brief.log().contains("the ledger begins with a snapshot"), "{}", brief.log());
    assert_eq!(report["state_root"], market.ok(&["market", "report"])["state_root"]);
    assert_eq!(brief.ok(&["market", "verify"])["state_root"], report["state_root"]);
    brief.stop();
    brief.start();
    assert_eq!(caught_up(&net, &brief)["state_root"], report["state_root"]);
}

#[test]
fn a_market_and_a_follower_killed_at_any_moment_lose_and_double_nothing() {
    let rounds = std::env::var("SPARE_KILL_ROUNDS").map_or(12, |n| n.parse().unwrap());
    let mut net = Net::start(2);
    let me = account(&net.client);
    // What the network starts with.
    let (mut acknowledged, mut attempted) = (1000u64, 1000u64);
    for round in 0..rounds {
        // Some credits, one by one, and SIGKILL somewhere in between.
        let mut funding: Vec<_> = (0..4)
            .map(|_| {
                let mut command = net.providers[0].command(&["market", "fund", &me, "1"]);
                command.stdout(std::process::Stdio::null()).spawn().unwrap()
            })
            .collect();
        attempted += funding.len() as u64;
        std::thread::sleep(std::time::Duration::from_millis(round * 7 % 60));
        let kill_client = round % 3 == 2;
        if kill_client {
            net.client.kill()
        } else {
            net.providers[0].kill()
        }
        acknowledged +=
            funding.iter_mut().filter_map(|f| f.wait().ok()).filter(|s| s.success()).count() as u64;
        if kill_client {
            net.client.start()
        } else {
            net.providers[0].start()
        };
        let issued =
            net.providers[0].ok(&["market", "report"])["issued"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(
            (acknowledged..=attempted).contains(&issued),
            "round {round}: {acknowledged} acknowledged, {issued} issued, {attempted} attempted"
        );
    }
    assert!(acknowledged > 1000, "some were acknowledged");
    let root = caught_up(&net, &net.client)["state_root"].clone();
    let verified = net.client.ok(&["market", "verify"]);
    assert_eq!(verified["state_root"], root);
    assert_eq!(net.providers[0].ok(&["market", "report"])["state_root"], root);
}

#[test]
fn prices_are_told_limited_and_explained() {
    let mut net = Net::start(3);
    let dear = [
        "--provide",
        "10GB",
        "--set",
        "provide.price=7.5",
        "--set",
        "node.region=far away",
        "--join",
        &net.ticket,
    ];
    let mut dear = Node::init(net.dir.path().join("dear"), 4, &dear);
    dear.start();
    let twin = ["--provide", "10GB", "--set", "node.operator=twin", "--join", &net.ticket];
    let mut first = Node::init(net.dir.path().join("twin-1"), 5, &twin);
    first.start();
    let mut second = Node::init(net.dir.path().join("twin-2"), 6, &twin);
    second.start();
    net.wait_for_providers(6);
    let of = |asks: &Value, node: &Node| {
        let key = node.status()["node"].clone();
        asks.as_array().unwrap().iter().find(|ask| ask["node"] == key).unwrap().clone()
    };
    let asks = net.client.ok(&["asks"]);
    let ask = of(&asks, &dear);
    assert_eq!(
        (&ask["price"], &ask["read_price"], &ask["region"]),
        (&"7.5".into(), &"1".into(), &"far away".into())
    );
    assert!(ask.get("why").is_none());
    assert_eq!(of(&asks, &net.providers[0])["price"], "2");

    net.client.kill();
    let config = net.client.home.join("config.toml");
    let limited =
        std::fs::read_to_string(&config).unwrap() + "\n[client]\nmax_price = \"5\"\ncode = \"2+2\"\n";
    std::fs::write(&config, limited).unwrap();
    net.client.start();
    net.wait_for_providers(6);
    let asks = net.client.ok(&["asks", "--why"]);
    let why = |node: &Node| of(&asks, node)["why"].as_str().unwrap().to_owned();
    assert_eq!(why(&dear), "asks more than client.max_price");
    let (one, other) = (why(&first), why(&second));
    assert!(
        one.contains("its operator already has") != other.contains("its operator already has"),
        "one of the twins is in the other's way: {one}; {other}"
    );
    let file = net.file("source", 1000, 1);
    let (code, message) = net.client.fails(&["put", file.to_str().unwrap(), "--code", "3+2"]);
    assert_eq!(code, "too_few_providers");
    assert!(message.contains("1 above the highest price"), "{message}");
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a"]);
    let stat = net.client.ok(&["stat", "a"]);
    let dear_key = dear.status()["node"].clone();
    assert!(stat["providers"].as_array().unwrap().iter().all(|p| p["node"] != dear_key));
    let provider = dear.status()["provider"].clone();
    assert_eq!(provider["price"], "7.5");
    assert_eq!(provider["other_prices"], serde_json::json!(["2", "2", "2"]));
}

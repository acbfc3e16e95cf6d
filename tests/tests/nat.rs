//! Homes behind NATs: putting and getting through punched holes, and saying so where none can be punched.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use spare_tests::homes::Homes;
use spare_tests::net::{Node, wait_for, write_random};

const MIB: u64 = 1 << 20;
const FILE_BYTES: u64 = 48 * MIB;

/// A network of a public node, which is the market and offers nothing, providers in homes 1 and 2, and a client in home 3.
struct World {
    // Nodes end before what they live in.
    public: Node,
    providers: Vec<Node>,
    client: Node,
    dir: tempfile::TempDir,
    homes: Homes,
}

/// Builds the homes, or says why the test is skipped.
fn homes(nat: bool) -> Option<Homes> {
    match Homes::build(3, nat) {
        Ok(homes) => Some(homes),
        Err(why) => {
            eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: network namespaces cannot be set up here: {why}");
            eprintln!("*** This test needs root, and Debian's iproute2 and nftables (`make setup`).\n");
            None
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.providers.iter().chain([&self.public, &self.client]) {
                eprintln!("--- log of {}\n{}", node.home.display(), node.log());
            }
        }
    }
}

impl World {
    fn start(homes: Homes) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut public = Node::init_in(path("public"), &homes.public(), &[]);
        public.start();
        let ticket = public.ok(&["ticket"])["ticket"].as_str().unwrap().to_owned();
        let provide = ["--join", &ticket, "--provide", "10GB"];
        let mut providers = Vec::new();
        for home in [1, 2] {
            let mut node = Node::init_in(path(&format!("provider-{home}")), &homes.inside(home), &provide);
            node.start();
            providers.push(node);
        }
        let mut client = Node::init_in(path("client"), &homes.inside(3), &["--join", &ticket]);
        client.start();
        let account = client.status()["account"].as_str().unwrap().to_owned();
        let height = public.ok(&["market", "fund", &account, "1000"])["height"].as_u64();
        wait_for("the client to have money", || {
            (client.ok(&["balance"])["height"].as_u64() >= height).then_some(())
        });
        Self { public, providers, client, dir, homes }
    }

    /// Waits until the client knows both providers as ones that `is_ready` takes.
    fn wait_for_providers(&self, what: &str, is_ready: impl Fn(&Value) -> bool) {
        wait_for(what, || {
            let asks = self.client.ok(&["asks"]);
            (asks.as_array()?.iter().filter(|ask| is_ready(ask)).count() == 2).then_some(())
        });
    }

    fn file(&self, bytes: u64) -> std::path::PathBuf {
        let path = self.dir.path().join("source");
        write_random(&mut std::fs::File::create(&path).unwrap(), bytes, 7).unwrap();
        path
    }

    /// Puts and gets a file, and returns how long each took.
    fn put_and_get(&self, file: &Path) -> (Duration, Duration) {
        let started = Instant::now();
        self.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "1+1"]);
        let put = started.elapsed();
        let copy = self.dir.path().join("copy");
        let started = Instant::now();
        self.client.ok(&["get", "a", "-o", copy.to_str().unwrap()]);
        let got = started.elapsed();
        assert!(std::fs::read(file).unwrap() == std::fs::read(copy).unwrap(), "the same bytes are back");
        (put, got)
    }
}

fn port(node: &Node, service: &str) -> Value {
    let status = node.status();
    let ports = status["reach"].as_array().unwrap().iter();
    ports.clone().find(|port| port["service"] == service).unwrap().clone()
}

fn wire_bytes(node: &Node) -> u64 {
    let status = node.status();
    status["received_bytes"].as_u64().unwrap() + status["sent_bytes"].as_u64().unwrap()
}

#[test]
fn providers_behind_nats_are_reached_through_punched_holes_and_nothing_crosses_the_relay() {
    let Some(homes) = homes(true) else { return };
    let world = World::start(homes);
    world.wait_for_providers("providers to say that they have no direct address", |ask| {
        ask["direct"].as_array().unwrap().is_empty()
    });
    for provider in &world.providers {
        for service in ["libp2p", "direct"] {
            wait_for("a provider to be asked for through the relay", || {
                (port(provider, service)["how"] == "punch").then_some(())
            });
        }
    }
    assert_eq!(port(&world.public, "libp2p")["how"], "public", "{}", port(&world.public, "libp2p"));
    assert_eq!(port(&world.public, "direct")["how"], "public", "{}", port(&world.public, "direct"));
    assert_eq!(world.public.status()["relay"]["reservations"], 2);

    let file = world.file(FILE_BYTES);
    let (on_the_wire, spoken) = (world.homes.public_bytes(), wire_bytes(&world.public));
    let (put, got) = world.put_and_get(&file);
    let on_the_wire = world.homes.public_bytes() - on_the_wire;
    let spoken = wire_bytes(&world.public) - spoken;
    println!(
        "over the relay's card: {on_the_wire} bytes, of spare/1 {spoken} bytes, for 3 x {FILE_BYTES} bytes moved"
    );
    assert!(on_the_wire < FILE_BYTES / 20, "{on_the_wire} bytes crossed the relay");
    assert!(spoken < FILE_BYTES / 20, "the relay itself was sent {spoken} bytes");
    assert!(world.public.status()["relay"]["circuits"].as_u64().unwrap() >= 2, "it introduced them");
    assert!(port(&world.providers[0], "libp2p")["why"].as_str().unwrap().contains("it succeeded"));
    drop(world);

    let Some(homes) = self::homes(false) else { return };
    let world = World::start(homes);
    world.wait_for_providers("providers to say where they are", |ask| {
        !ask["direct"].as_array().unwrap().is_empty()
    });
    let (plain_put, plain_got) = world.put_and_get(&world.file(FILE_BYTES));
    let rate = |took: Duration| FILE_BYTES as f64 / MIB as f64 / took.as_secs_f64();
    println!(
        "through NATs: put {:.0} MiB/s, get {:.0} MiB/s; without: put {:.0} MiB/s, get {:.0} MiB/s; ratios {:.2} and {:.2}",
        rate(put),
        rate(got),
        rate(plain_put),
        rate(plain_got),
        plain_put.as_secs_f64() / put.as_secs_f64(),
        plain_got.as_secs_f64() / got.as_secs_f64(),
    );
}

#[test]
fn where_no_hole_can_be_punched_both_sides_are_told_why() {
    let Some(homes) = homes(true) else { return };
    homes.block_between_homes().unwrap();
    let world = World::start(homes);
    world.wait_for_providers("providers to say that they have no direct address", |ask| {
        ask["direct"].as_array().unwrap().is_empty()
    });
    for provider in &world.providers {
        wait_for("a provider to be asked for through the relay", || {
            (port(provider, "libp2p")["how"] == "punch").then_some(())
        });
    }
    let file = world.file(MIB);
    let started = Instant::now();
    let (code, message) =
        world.client.fails(&["put", file.to_str().unwrap(), "--name", "a", "--code", "1+1"]);
    println!("after {:.1} s, {code}: {message}", started.elapsed().as_secs_f64());
    assert!(message.contains("is behind a NAT, hole punching failed: "), "{code}: {message}");
    let provider = &world.providers[0];
    wait_for("the provider to notice", || (port(provider, "libp2p")["how"] == "unreachable").then_some(()));
    let told = port(provider, "libp2p");
    println!("the provider's status says: {}", told["why"]);
    assert!(told["why"].as_str().unwrap().contains("hole punching failed"), "{told}");
    assert!(told["advice"].as_str().unwrap().contains("forward UDP port 4710"), "{told}");
    assert!(provider.log().contains("nobody can reach"), "the log says so, too");

    let doctor = provider.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    let checks: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "libp2p port").unwrap();
    assert_eq!(check["level"], "problem", "{check}");
    // A client needs no open port.
    let checks = world.client.ok(&["doctor"]);
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "libp2p port").unwrap();
    assert_eq!(check["level"], "ok", "{check}");
}

#[test]
fn a_router_that_speaks_upnp_forwards_both_ports() {
    let Some(mut homes) = homes(true) else { return };
    if std::process::Command::new("miniupnpd").arg("--version").output().is_err() {
        eprintln!("\n*** SKIPPED, NOTHING WAS TESTED: there is no miniupnpd (Debian: miniupnpd-nftables)\n");
        return;
    }
    homes.speak_upnp(1).unwrap();
    let world = World::start(homes);
    let provider = &world.providers[0];
    for service in ["libp2p", "direct"] {
        wait_for("the router to forward, and a peer to get through", || {
            (port(provider, service)["how"] == "mapped").then_some(())
        });
    }
    wait_for("the client to know where", || {
        let asks = world.client.ok(&["asks"]);
        let mut known = asks.as_array()?.iter().filter_map(|ask| ask["direct"][0].as_str());
        known.any(|addr| addr == "198.51.1.2:4711").then_some(())
    });
    let doctor = provider.ok(&["doctor"]);
    assert!(doctor.as_array().unwrap().iter().all(|check| check["level"] != "problem"), "{doctor}");
}

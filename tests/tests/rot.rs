//! One flipped bit in every kind of file that a node keeps: it is caught before anything wrong is served or signed. Either the node does not start and says
//! which file is damaged, or what is affected is refused while the rest works; and with the bit put back, everything is as it was.
//!
//! Every kind is damaged once at every node that keeps it, at a drawn place; `SPARE_ROT_SEEDS` sets how often.
//! `SPARE_ROT_KINDS` is the beginning of the names of kinds to be damaged, all without it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;
use spare::home::Ticket;
use spare_tests::net::{Net, Node, Started, wait_for};

/// Length of the blob whose shards are damaged: long enough that they have trees of several groups.
const BLOB_BYTES: u64 = 300_000;

/// Whose files are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Client,
    Provider,
    /// It is the first provider, too.
    Market,
}

const ALL: [Who; 3] = [Who::Client, Who::Provider, Who::Market];
const PROVIDERS: [Who; 2] = [Who::Provider, Who::Market];

/// A part of a file.
type Part = (PathBuf, Range<usize>);

/// A kind of file.
struct Kind {
    name: &'static str,
    who: &'static [Who],
    /// Whether the node is stopped before by SIGKILL, and not in good order.
    is_killed: bool,
    /// The files of this kind in a node's folder, and the part of each that is meant.
    files: fn(&Path) -> Vec<Part>,
}

fn len(path: &Path) -> usize {
    fs::metadata(path).unwrap().len() as usize
}

fn whole(path: PathBuf) -> Vec<Part> {
    let len = len(&path);
    vec![(path, 0..len)]
}

fn meta(home: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Part> {
    let entries = fs::read_dir(home.join("meta")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| wanted(path.file_name().unwrap().to_str().unwrap()) && len(path) > 0).collect();
    found.sort();
    found.into_iter().flat_map(whole).collect()
}

/// Shard files with a tree, cut into the bytes that were stored and the hashes behind them.
fn shards(home: &Path, part: fn(Range<usize>, usize) -> Range<usize>) -> Vec<Part> {
    let folders = fs::read_dir(home.join("volume/shards")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let long = files.map(|file| file.unwrap().path()).filter(|path| len(path) > 100_000);
    long.map(|path| {
        let len = len(&path);
        // Each 16 KiB of a shard have a hash of 32 bytes behind them.
        let hashes = len.div_ceil((16 << 10) + 32) * 32;
        (path, part(0..len, len - hashes))
    })
    .collect()
}

const KINDS: &[Kind] = &[
    Kind { name: "settings", who: &ALL, is_killed: false, files: |home| whole(home.join("config.toml")) },
    Kind { name: "identity", who: &ALL, is_killed: false, files: |home| whole(home.join("identity.toml")) },
    Kind { name: "seed", who: &ALL, is_killed: false, files: |home| whole(home.join("seed.txt")) },
    Kind { name: "token", who: &ALL, is_killed: false, files: |home| whole(home.join("api.token")) },
    Kind {
        name: "volume id",
        who: &PROVIDERS,
        is_killed: false,
        files: |home| whole(home.join("volume/id")),
    },
    Kind {
        name: "shard bytes",
        who: &PROVIDERS,
        is_killed: false,
        files: |home| shards(home, |all, split| all.start..split),
    },
    Kind {
        name: "shard tree",
        who: &PROVIDERS,
        is_killed: false,
        files: |home| shards(home, |all, split| split..all.end),
    },
    Kind {
        name: "meta table",
        who: &ALL,
        is_killed: false,
        files: |home| meta(home, |n| n.ends_with(".sst")),
    },
    Kind { name: "meta log", who: &ALL, is_killed: false, files: |home| meta(home, |n| n.ends_with(".log")) },
    Kind {
        name: "meta log, killed",
        who: &ALL,
        is_killed: true,
        files: |home| meta(home, |n| n.ends_with(".log")),
    },
    Kind {
        name: "meta manifest",
        who: &ALL,
        is_killed: false,
        files: |home| meta(home, |n| n.starts_with("MANIFEST")),
    },
    Kind {
        name: "meta manifest, killed",
        who: &ALL,
        is_killed: true,
        files: |home| meta(home, |n| n.starts_with("MANIFEST")),
    },
    Kind { name: "meta current", who: &ALL, is_killed: false, files: |home| meta(home, |n| n == "CURRENT") },
    Kind {
        name: "meta current, killed",
        who: &ALL,
        is_killed: true,
        files: |home| meta(home, |n| n == "CURRENT"),
    },
    Kind {
        name: "meta options",
        who: &ALL,
        is_killed: false,
        files: |home| meta(home, |n| n.starts_with("OPTIONS")),
    },
    Kind { name: "meta sum", who: &ALL, is_killed: false, files: |home| whole(home.join("meta.sum")) },
];

/// Numbers that are the same in every run.
struct Draw(blake3::OutputReader);

impl Draw {
    fn new(seed: u64, kind: &str, who: Who) -> Self {
        let text = format!("{seed} {kind} {who:?}");
        Self(blake3::Hasher::new().update(text.as_bytes()).finalize_xof())
    }

    fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % bound as u64) as usize
    }
}

fn node(net: &mut Net, who: Who) -> &mut Node {
    match who {
        Who::Client => &mut net.client,
        Who::Provider => &mut net.providers[1],
        Who::Market => &mut net.providers[0],
    }
}

fn at(net: &Net, who: Who) -> &Node {
    match who {
        Who::Client => &net.client,
        Who::Provider => &net.providers[1],
        Who::Market => &net.providers[0],
    }
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

/// Puts a bit back, unless the file was written anew since.
fn flip_back(path: &Path, at: usize, bit: u8, damaged: &[u8]) {
    if fs::read(path).is_ok_and(|now| now == damaged) {
        flip(path, at, bit);
    }
}

/// Both sides of the deals that a client and a provider both tell of have the same heads, and nobody was promised what its client knows nothing of.
fn agree(net: &Net) {
    let credits = |value: &Value| value.as_str().unwrap().parse::<spare_market::amount::Amount>().unwrap().0;
    let deals = |node: &Node| -> Option<Vec<Value>> {
        let output = node.run(&["deals"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    };
    for provider in &net.providers {
        wait_for("both sides to have the same heads", || {
            // Whoever cannot read its deals says nothing wrong about them.
            let (Some(theirs), Some(bought)) = (deals(provider), deals(&net.client)) else { return Some(()) };
            let mut pairs =
                theirs.iter().filter_map(|t| Some((t, bought.iter().find(|o| o["deal"] == t["deal"])?)));
            pairs
                .all(|(theirs, ours)| {
                    assert!(credits(&ours["promised"]) >= credits(&theirs["promised"]), "{theirs}, {ours}");
                    ["head", "head_hash", "bytes"].iter().all(|field| ours[field] == theirs[field])
                })
                .then_some(())
        });
    }
}

/// Reads a blob, again where a connection was lost: a provider that was just restarted may seem to be there still.
fn read_back(net: &Net, name: &str) -> Vec<u8> {
    let copy = net.dir.path().join("copy");
    let get = ["get", name, "-o", copy.to_str().unwrap(), "--force"];
    wait_for("a read", || net.client.run(&get).status.success().then_some(()));
    fs::read(copy).unwrap()
}

/// Uses everything: what is read is right, what is written is agreed on. What a damaged node refuses, it refuses.
fn use_it(net: &Net, who: Who, content: &[u8], turn: usize) {
    let copy = net.dir.path().join("copy");
    let _ = fs::remove_file(&copy);
    let get = ["get", "a", "-o", copy.to_str().unwrap(), "--force"];
    let got = || net.client.run(&get).status.success();
    // One of two providers is enough, so only the client's own records can be in the way for long. A provider that was just restarted may seem away.
    if who == Who::Client {
        got();
    } else {
        wait_for("a read", || got().then_some(()));
    }
    if copy.exists() {
        assert!(fs::read(&copy).unwrap() == content, "wrong bytes were served");
    }
    let file = net.file("more", 1000 + turn as u64, turn as u8);
    let put = net.client.run(&["put", file.to_str().unwrap(), "--name", "b", "--code", "1+1", "--replace"]);
    if put.status.success() {
        let get = ["get", "b", "-o", copy.to_str().unwrap(), "--force"];
        wait_for("a read", || (who == Who::Client || net.client.run(&get).status.success()).then_some(()));
        if who != Who::Client {
            assert!(fs::read(&copy).unwrap() == fs::read(&file).unwrap());
        }
    }
    let verified = net.client.run(&["market", "verify"]);
    if verified.status.success() {
        let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
        assert_eq!(verified["holds"], true);
    }
    agree(net);
}

/// What a kind of damage has to show in a node that runs with it.
fn check_shown(net: &Net, node: &Node, kind: &str, settings: &Value) {
    let alerts = |name: &str| node.status()["alerts"].to_string().contains(name);
    match kind {
        "settings" => {
            let now = node.ok(&["config", "show"]);
            assert!(now == *settings || alerts("config.toml"), "a changed setting is told: {now}");
        }
        "seed" => {
            let words = fs::read_to_string(node.home.join("seed.txt")).ok();
            let is_whole =
                words.and_then(|words| spare_market::keys::Seed::from_words(&words).ok()).is_some();
            assert!(is_whole || alerts("seed.txt"), "damaged words are told");
        }
        "shard bytes" | "shard tree" => {
            wait_for("the scrub to find the rot", || {
                (node.status()["provider"]["scrub"]["rotten_shards"] == 1).then_some(())
            });
            let advice = node.status()["provider"]["scrub"]["advice"].to_string();
            assert!(advice.contains("refused to readers"), "{advice}");
        }
        _ => {}
    }
    for node in net.providers.iter().chain([&net.client]) {
        let log = node.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn says_what_is_damaged(kind: &Kind, path: &Path, said: &str) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let is_setting =
        ["node.", "provide.", "client.", "network."].iter().any(|section| said.contains(section));
    let is_named = match kind.name {
        "settings" => said.contains(name) || is_setting,
        // The folder is what is not the right one.
        "volume id" => said.contains("volume"),
        meta if meta.starts_with("meta") => {
            said.contains(name) || said.contains(path.parent().unwrap().to_str().unwrap())
        }
        _ => said.contains(name),
    };
    is_named && !said.contains("panicked")
}

#[test]
fn one_flipped_bit_in_every_kind_of_file_is_caught_before_anything_wrong_is_served_or_signed() {
    let mut net = Net::start_scrubbing(2);
    let file = net.file("source", BLOB_BYTES, 1);
    let content = fs::read(&file).unwrap();
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "1+1"]);
    // A restart writes what is in the log to tables.
    for who in ALL {
        node(&mut net, who).stop();
        node(&mut net, who).start();
    }
    let seeds: u64 = std::env::var("SPARE_ROT_SEEDS").map_or(1, |n| n.parse().unwrap());
    let wanted = std::env::var("SPARE_ROT_KINDS").unwrap_or_default();
    let (mut turn, mut refused, mut ran) = (0, 0, 0);
    for kind in KINDS.iter().filter(|kind| kind.name.starts_with(&wanted)) {
        let places = kind.who.iter().flat_map(|who| (0..seeds).map(|seed| (*who, seed)));
        for (who, seed) in places {
            turn += 1;
            let started = Instant::now();
            let mut draw = Draw::new(seed, kind.name, who);
            let damaged = node(&mut net, who);
            let (id, settings) = (damaged.status()["node"].clone(), damaged.ok(&["config", "show"]));
            if kind.is_killed {
                damaged.kill();
            } else {
                assert_eq!(damaged.stop(), Some(0));
            }
            let files = (kind.files)(&damaged.home);
            assert!(!files.is_empty(), "there is a file of kind {}", kind.name);
            let (path, part) = &files[draw.below(files.len())];
            let (byte, bit) = (part.start + draw.below(part.len()), draw.below(8) as u8);
            flip(path, byte, bit);
            let bytes = fs::read(path).unwrap();
            let what = format!(
                "{}, {who:?}, seed {seed}: bit {bit} of byte {byte} in {}",
                kind.name,
                path.display()
            );
            let outcome = match damaged.try_start() {
                Started::Not(said) => {
                    assert!(says_what_is_damaged(kind, path, &said), "{what}: {said}");
                    refused += 1;
                    "refused to start"
                }
                Started::Ailing(said) => {
                    assert!(said.contains("A file of the store is damaged"), "{what}: {said}");
                    use_it(&net, who, &content, turn);
                    node(&mut net, who).stop();
                    ran += 1;
                    "ran, and said that its store is damaged"
                }
                Started::Well => {
                    assert_eq!(damaged.status()["node"], id, "{what}: it is still itself");
                    check_shown(&net, at(&net, who), kind.name, &settings);
                    use_it(&net, who, &content, turn);
                    node(&mut net, who).stop();
                    ran += 1;
                    "ran"
                }
            };
            flip_back(path, byte, bit, &bytes);
            node(&mut net, who).start();
            assert!(read_back(&net, "a") == content, "{what}");
            println!("{what}: {outcome}, {:.1} s", started.elapsed().as_secs_f64());
        }
    }
    println!("{turn} bits flipped: {refused} starts refused, {ran} ran and served nothing wrong");
    // Everything is as it was.
    use_it(&net, Who::Provider, &content, turn + 1);
    let put = ["put", file.to_str().unwrap(), "--name", "c", "--code", "1+1"];
    wait_for("a put", || net.client.run(&put).status.success().then_some(()));
    for provider in &net.providers {
        wait_for("rot that is mended to be forgotten", || {
            (provider.status()["provider"]["scrub"]["rotten_shards"] == 0).then_some(())
        });
    }
}

/// What a crash leaves is no damage: a log that ends in the middle of a record.
#[test]
fn a_log_that_a_crash_tore_is_taken_up_to_there() {
    let mut net = Net::start(2);
    let file = net.file("source", 1000, 1);
    for (turn, who) in ALL.into_iter().enumerate() {
        let name = format!("blob {turn}");
        // Whoever was killed just now may still seem to be away.
        let put = ["put", file.to_str().unwrap(), "--name", &name, "--code", "1+1", "--replace"];
        wait_for("a put", || net.client.run(&put).status.success().then_some(()));
        let torn = node(&mut net, who);
        torn.kill();
        let (path, part) = meta(&torn.home, |n| n.ends_with(".log")).pop().unwrap();
        let log = fs::OpenOptions::new().write(true).open(path).unwrap();
        // The end is a seal or a note: nothing that was acknowledged.
        log.set_len(part.end as u64 - 3).unwrap();
        torn.start();
        assert!(read_back(&net, &name) == fs::read(&file).unwrap());
        agree(&net);
    }
}

/// A ticket is typed, pasted and mailed.
#[test]
fn a_ticket_with_a_flipped_bit_is_none() {
    let net = Net::start(1);
    for i in 0..net.ticket.len() * 8 {
        let mut bytes = net.ticket.clone().into_bytes();
        bytes[i / 8] ^= 1 << (i % 8);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        // Letters may be of either case, and blanks around it are nobody's.
        if text.to_lowercase() != net.ticket && text.trim() != net.ticket {
            assert!(text.parse::<Ticket>().is_err(), "{text}");
        }
    }
}

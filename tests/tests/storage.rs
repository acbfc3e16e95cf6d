//! Putting, getting, losing, resuming and recovering, over real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use spare_tests::net::{Net, Node, wait_for};

const MIB: u64 = 1 << 20;

fn put(net: &Net, name: &str, path: &Path, code: &str) -> Value {
    net.client.ok(&["put", path.to_str().unwrap(), "--name", name, "--code", code])
}

fn all_shard_files(net: &Net) -> impl Iterator<Item = PathBuf> {
    (0..net.providers.len()).flat_map(|i| net.shard_files(i))
}

fn stored_shards(net: &Net) -> u64 {
    all_shard_files(net).count() as u64
}

#[test]
fn blobs_of_any_size_and_name_come_back() {
    let net = Net::start(4);
    // Around a record (65,520 bytes), a row of two, and more than one segment of 40 MiB.
    for bytes in [0, 1, 65_519, 65_520, 65_521, 131_040, 3 * MIB + 7, 41 * MIB] {
        let name = format!("ordner/größe {bytes} % ?#&");
        let file = net.file("source", bytes, 1);
        let done = put(&net, &name, &file, "2+2");
        assert_eq!(done["bytes"], bytes);
        assert!(net.read(&name) == std::fs::read(&file).unwrap(), "{bytes} bytes");
    }
    assert_eq!(net.client.ok(&["ls"]).as_array().unwrap().len(), 8);
    let stat = net.client.ok(&["stat", "ordner/größe 1 % ?#&"]);
    assert_eq!(stat["code"], "2+2");
    assert_eq!(stat["stored_bytes"], 4 * 32, "a shard has 32 bytes at least");
    assert_eq!(stat["shards_to_spare"], 2);
}

#[test]
fn removing_gives_the_room_back_and_replacing_keeps_one() {
    let net = Net::start(3);
    let used = |i: usize| net.providers[i].status()["provider"]["used_bytes"].as_u64().unwrap();
    let before = used(0);
    let (first, second) = (net.file("first", 5 * MIB, 1), net.file("second", 6 * MIB, 2));
    put(&net, "a", &first, "2+1");
    assert!(used(0) > before + 2 * MIB);
    // Refused while most of the file is still to be sent; the reason has to come through all the same.
    let large = net.file("large", 100 * MIB, 3);
    let (code, message) = net.client.fails(&["put", large.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
    assert_eq!(code, "name_exists");
    assert!(message.contains("--replace"), "{message}");
    assert!(net.read("a") == std::fs::read(&first).unwrap(), "a refused put changes nothing");
    net.client.ok(&["put", second.to_str().unwrap(), "--name", "a", "--code", "2+1", "--replace"]);
    assert!(net.read("a") == std::fs::read(&second).unwrap());
    net.client.ok(&["rm", "a"]);
    wait_for("all shards to be deleted", || (stored_shards(&net) == 0).then_some(()));
    // Folders may have grown, nothing else.
    wait_for("the room to be counted as free", || (used(0) <= before + 64 * 1024).then_some(()));
    assert_eq!(net.client.fails(&["get", "a", "-o", "/dev/null/x"]).0, "no_such_blob");
    assert_eq!(net.client.fails(&["rm", "a"]).0, "no_such_blob");
}

#[test]
fn a_blob_survives_the_loss_of_every_parity_and_not_one_more() {
    let mut net = Net::start(6);
    let file = net.file("source", 130 * MIB, 3);
    put(&net, "a", &file, "3+3");
    for i in [0, 2, 4] {
        net.providers[i].kill();
    }
    assert!(net.read("a") == std::fs::read(&file).unwrap());

    // A range moves little more than itself, also when parity has to stand in.
    let received = || net.client.status()["received_bytes"].as_u64().unwrap();
    let before = received();
    let start = 65 * MIB;
    let range = read_range(&net, "a", start, MIB);
    let moved = received() - before;
    assert!(range == std::fs::read(&file).unwrap()[start as usize..][..MIB as usize]);
    assert!(moved <= 4 * MIB, "{moved} bytes moved for 1 MiB");

    net.providers[5].kill();
    let stat = net.client.ok(&["stat", "a"]);
    let left = |what: &str| stat[what].as_i64().unwrap();
    assert_eq!((left("shards_to_spare"), left("shards_to_lose")), (-1, 3), "who is down may come back");
    // This ends by itself: every wait inside is bounded.
    let (code, message) = net.client.fails(&["get", "a", "-o", net.dir.path().join("b").to_str().unwrap()]);
    assert_eq!(code, "shards_missing");
    assert!(message.contains("only 2 of the 3 shards"), "{message}");
    assert!(message.matches("shard ").count() >= 4, "it names what is missing: {message}");
}

fn read_range(net: &Net, name: &str, start: u64, len: u64) -> Vec<u8> {
    let (url, token) = net.client.api();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http.get(format!("{url}/blobs/{name}")).bearer_auth(token);
        let response =
            request.header("Range", format!("bytes={start}-{}", start + len - 1)).send().await.unwrap();
        assert_eq!(response.status(), 206);
        response.bytes().await.unwrap().to_vec()
    })
}

/// Starts a put and kills the client's node once the first segment is placed: two are sent at once, and only the first can be followed by a third.
/// Returns how many shards were placed.
fn put_and_kill(net: &mut Net, file: &Path) -> u64 {
    let args = ["put", file.to_str().unwrap(), "--name", "a", "--code", "2+2"];
    let mut putting = net.client.command(&args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let sent = wait_for("some shards to be placed", || {
        let transfers = net.client.status()["transfers"].clone();
        transfers[0]["shards_sent"].as_u64().filter(|sent| *sent > 8)
    });
    net.client.kill();
    assert!(!putting.wait().unwrap().success(), "the put was to be cut short");
    net.client.start();
    net.wait_for_providers(4);
    assert!(net.client.ok(&["ls"]).as_array().unwrap().is_empty(), "nothing half-done is listed");
    sent
}

#[test]
fn a_put_cut_short_resumes_without_sending_accepted_shards_again() {
    let mut net = Net::start(4);
    let file = net.file("source", 400 * MIB, 4);
    let sent_before = put_and_kill(&mut net, &file);
    let done = put(&net, "a", &file, "2+2");
    let (sent, resumed) = (done["shards_sent"].as_u64().unwrap(), done["shards_resumed"].as_u64().unwrap());
    let shards = net.client.ok(&["stat", "a"])["segments"].as_u64().unwrap() * 4;
    assert!(resumed >= sent_before, "{resumed} resumed, {sent_before} were placed");
    assert_eq!(sent + resumed, shards, "every shard is accepted once over both tries");
    assert!(net.read("a") == std::fs::read(&file).unwrap());
}

#[test]
fn a_source_edited_between_two_tries_gives_the_edited_blob_under_new_keys() {
    let mut net = Net::start(4);
    let file = net.file("source", 400 * MIB, 5);
    put_and_kill(&mut net, &file);
    // Those of all providers: any of them may have had none yet when the client was killed. What is given up goes while we read.
    let shards = || all_shard_files(&net).filter_map(|file| std::fs::read(file).ok()).collect::<Vec<_>>();
    let first_try = shards();
    assert!(!first_try.is_empty());
    // One bit in the first segment, which is placed; the others stay as they are.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    put(&net, "a", &file, "2+2");
    assert!(net.read("a") == bytes);
    // Under one key and nonce, a one-bit edit would leave all stored bytes of its segment but a few as they were. So no shard of the
    // second try may share stored bytes at the same place with another shard of the first.
    let mut compared = 0;
    for new in &shards() {
        for old in first_try.iter().filter(|old| *old != new) {
            let shared = old.chunks_exact(32).zip(new.chunks_exact(32)).filter(|(a, b)| a == b).count();
            assert_eq!(shared, 0, "two shards share stored bytes");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn a_source_edited_back_and_forth_between_tries_keeps_its_shards() {
    let mut net = Net::start(4);
    let (a, b) = (net.file("a", 300 * MIB, 10), net.file("b", 300 * MIB, 11));
    // The second try gives the shards of the first up for deletion; the third has the first one's content again.
    put_and_kill(&mut net, &a);
    put_and_kill(&mut net, &b);
    put(&net, "a", &a, "2+2");
    let shards = net.client.ok(&["stat", "a"])["segments"].as_u64().unwrap() * 4;
    // A kill may leave a few more shards that were accepted and not yet journalled: nobody reads them, nobody misses them.
    wait_for("what was given up to be deleted", || (stored_shards(&net) < 2 * shards).then_some(()));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(stored_shards(&net) >= shards);
    assert!(net.read("a") == std::fs::read(&a).unwrap());
}

#[test]
fn a_put_before_recovering_is_told_so_and_kept() {
    let mut net = Net::start(3);
    let (old, new) = (net.file("old", MIB, 12), net.file("new", MIB, 13));
    put(&net, "a", &old, "2+1");
    let seed = net.dir.path().join("words");
    std::fs::rename(net.client.home.join("seed.txt"), &seed).unwrap();
    net.client.kill();
    let args = ["--join", &net.ticket, "--seed-file", seed.to_str().unwrap()];
    net.client = Node::init(net.dir.path().join("client-2"), 201, &args);
    net.client.start();
    net.wait_for_providers(3);
    let (code, message) = net.client.fails(&["put", new.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
    assert_eq!(code, "index_not_copied");
    assert!(message.contains("spare recover"), "{message}");
    assert_eq!(net.client.ok(&["recover"])["blobs"], 2);
    assert!(net.read("a") == std::fs::read(&old).unwrap(), "what was there first keeps its name");
    assert!(net.read("a (kept)") == std::fs::read(&new).unwrap(), "and nothing stored is lost");
    put(&net, "b", &new, "2+1");
}

#[test]
fn a_wiped_client_recovers_from_its_seed() {
    let mut net = Net::start(6);
    // Nine segments at n = 6: the recipe is too long for the index and is stored as a blob itself.
    let large = net.file("large", 350 * MIB, 6);
    let small = net.file("small", 10, 7);
    put(&net, "large", &large, "4+2");
    put(&net, "small", &small, "4+2");
    put(&net, "gone", &small, "4+2");
    net.client.ok(&["rm", "gone"]);
    let seed = net.dir.path().join("words");
    std::fs::copy(net.client.home.join("seed.txt"), &seed).unwrap();
    net.client.kill();
    std::fs::remove_dir_all(&net.client.home).unwrap();
    net.providers[1].kill();
    net.providers[3].kill();
    let args = ["--join", &net.ticket, "--seed-file", seed.to_str().unwrap()];
    net.client = Node::init(net.dir.path().join("client-2"), 201, &args);
    net.client.start();
    assert_eq!(net.client.ok(&["recover"])["blobs"], 2);
    assert!(net.read("large") == std::fs::read(&large).unwrap());
    assert!(net.read("small") == std::fs::read(&small).unwrap());
    // The log goes on under the new node key.
    put(&net, "new", &small, "2+1");
    assert_eq!(net.client.ok(&["ls"]).as_array().unwrap().len(), 3);

    let mut other = Node::init(net.dir.path().join("other"), 202, &["--join", &net.ticket]);
    other.start();
    let (code, message) = other.fails(&["recover"]);
    assert_eq!(code, "no_index");
    assert!(message.contains("right seed"), "{message}");
}

#[test]
fn everything_works_over_libp2p_streams_alone() {
    let net = Net::start_with(4, "10GB", &["--set", "node.transport=stream"]);
    let file = net.file("source", 60 * MIB, 8);
    put(&net, "a", &file, "2+2");
    assert!(net.read("a") == std::fs::read(&file).unwrap());
}

#[test]
fn a_get_cut_short_resumes_where_it_stopped() {
    let net = Net::start(3);
    let file = net.file("source", 90 * MIB, 9);
    let done = put(&net, "a", &file, "2+1");
    let path = |name: &str| net.dir.path().join(name);
    let copy = path("copy");
    let get = || net.client.ok(&["get", "a", "-o", copy.to_str().unwrap()]);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(
        path("copy.spare-part"),
        [&whole[..50_000_000], b"not yet on the disk when the power went"].concat(),
    )
    .unwrap();
    std::fs::write(path("copy.spare-part.id"), format!("{} 50000000\n", done["id"].as_str().unwrap()))
        .unwrap();
    assert_eq!(get()["resumed_bytes"], 50_000_000);
    assert!(std::fs::read(&copy).unwrap() == whole);
    // A part of another blob is not mixed in.
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(path("copy.spare-part"), b"other").unwrap();
    std::fs::write(path("copy.spare-part.id"), "another 5\n").unwrap();
    assert_eq!(get()["resumed_bytes"], 0);
    assert!(std::fs::read(&copy).unwrap() == whole);
    assert!(!path("copy.spare-part.id").exists());
}

#[test]
fn nodes_killed_right_after_an_acknowledgement_keep_what_they_acknowledged() {
    let mut net = Net::start(3);
    for round in 0..5u8 {
        let file = net.file("source", 3 * MIB, round);
        let name = format!("blob {round}");
        put(&net, &name, &file, "2+1");
        net.client.kill();
        net.providers.iter_mut().for_each(Node::kill);
        for provider in &mut net.providers {
            provider.start();
        }
        net.client.start();
        assert!(net.read(&name) == std::fs::read(&file).unwrap(), "round {round}");
    }
    let volume = net.providers[0].home.join("volume");
    let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(volume).output().unwrap();
    let du: u64 = String::from_utf8_lossy(&du.stdout).split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(net.providers[0].status()["provider"]["used_bytes"], du, "used room is what du says");
}
